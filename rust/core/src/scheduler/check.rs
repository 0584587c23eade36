//! Recomputes from scratch what the machine keeps count of. For tests, after each event; costs as much as
//! the machine is large.

use std::collections::{BTreeMap, BTreeSet};

use crate::id::{CallId, TaskId, WorkerId};

use super::call::Call;
use super::worker::Worker;
use super::Scheduler;

pub(super) type Verdict = Result<(), String>;

pub(super) fn ensure(holds: bool, what: impl FnOnce() -> String) -> Verdict {
    if holds {
        Ok(())
    } else {
        Err(what())
    }
}

impl Scheduler {
    /// Whether the state is consistent; says what is not.
    pub fn check(&self) -> Result<(), String> {
        self.check_tasks()?;
        for (&id, worker) in &self.roster.workers {
            self.check_worker(id, worker)?;
        }
        for (&id, call) in &self.calls {
            self.check_call(id, call)?;
            self.check_engaged(id, call)?;
            self.check_nothing_left_lying(id, call)?;
            self.check_ready(id)?;
        }
        self.check_graph()?;
        let parked = self.roster.workers.values().map(|worker| worker.parked.len()).sum::<usize>();
        ensure(parked == self.parked, || format!("{} parked, but found {parked}", self.parked))?;
        let doomed = self.roster.workers.iter().filter(|(_, worker)| worker.doomed && !worker.leaving);
        let doomed: BTreeSet<WorkerId> = doomed.map(|(id, _)| *id).collect();
        ensure(doomed == self.doomed, || format!("{doomed:?} are doomed, but known are {:?}", self.doomed))?;
        let needed = |id: &WorkerId| self.roster.worker(*id).is_some_and(Worker::is_needed);
        ensure(doomed.iter().all(needed), || format!("one of {doomed:?} is there in vain"))?;
        self.roster.check()
    }

    /// Each live task is in exactly one place.
    fn check_tasks(&self) -> Verdict {
        let waiting = self.calls.values().flat_map(Call::waiting_tasks).map(|task| task.id);
        let slots = self.roster.workers.values().flat_map(|worker| &worker.slots);
        let held = slots.filter(|slot| slot.wanted && slot.task.node.is_none()).map(|slot| slot.task.id);
        let all: Vec<TaskId> = waiting.chain(held).collect();
        let distinct: BTreeSet<TaskId> = all.iter().copied().collect();
        ensure(all.len() == distinct.len(), || format!("a task is in two places: {all:?}"))?;
        let live: BTreeSet<TaskId> = self.live.iter().copied().collect();
        ensure(live == distinct, || format!("live {live:?}, but found {distinct:?}"))
    }

    fn check_worker(&self, id: WorkerId, worker: &Worker) -> Verdict {
        let say = |what: &str| format!("{id:?}: {what}: {worker:?}");
        let handed_out = worker.slots.iter().filter(|slot| !slot.has_waited).count();
        ensure(handed_out <= worker.spec.depth as usize, || say("too deep"))?;
        ensure(worker.filed == self.filing(worker), || say("filed in the wrong place"))?;
        let mut slots = worker.slots.iter();
        ensure(slots.all(|slot| !slot.wanted || self.calls.contains_key(&slot.call)), || {
            say("holds a task of a closed call")
        })?;
        let asked = worker.slots.iter().any(|slot| slot.wanted && slot.ask.is_some());
        ensure(!(worker.leaving && asked), || say("is asked for tasks though it is leaving"))?;
        let deadline = worker.filed.deadline;
        ensure(deadline.is_none_or(|time| time >= self.now), || say("is overdue"))
    }

    fn check_call(&self, id: CallId, call: &Call) -> Verdict {
        let say = |what: &str| format!("{id:?}: {what}: {call:?}");
        let cap = call.spec.cap as usize - usize::from(call.awaited);
        ensure(call.engaged.len() <= cap, || say("engages more workers than its cap"))?;
        ensure(!call.is_hungry() || self.hungry.contains(&id), || say("is hungry and not known to be"))?;
        let helpers = self.roster.workers.iter().filter(|(_, w)| w.spec.only == Some(id) && !w.leaving);
        let helpers: BTreeSet<WorkerId> = helpers.map(|(id, _)| *id).collect();
        let gone = call.helpers.iter().any(|id| self.roster.worker(*id).is_none());
        ensure(helpers.is_subset(&call.helpers) && !gone, || say("has other helpers than it knows"))?;
        let splits = self.roster.workers.iter().filter_map(|(&worker, w)| {
            let (call, time) = w.filed.split?;
            (call == id).then_some((time, worker))
        });
        let splits: BTreeSet<_> = splits.collect();
        ensure(splits == call.splits, || say("may be split at other times than it knows"))
    }

    /// What the call counts about its workers is what the workers hold.
    fn check_engaged(&self, id: CallId, call: &Call) -> Verdict {
        let mut counted = Call::new(call.spec.clone());
        for (&worker_id, worker) in &self.roster.workers {
            for (at, slot) in worker.slots.iter().enumerate().filter(|(_, slot)| slot.serves(id)) {
                counted.gain(worker_id, slot, at == 0);
            }
        }
        let counts = |c: &Call| (c.engaged.clone(), c.unstarted, c.recalls, c.splits_asked);
        let (known, found): (Counts, Counts) = (counts(call), counts(&counted));
        ensure(known == found, || format!("{id:?} counts {known:?}, but found {found:?}"))
    }

    /// No worker is idle while the call has a task that it may run.
    fn check_nothing_left_lying(&self, id: CallId, call: &Call) -> Verdict {
        let idle =
            self.idle_helpers(call).next().is_some() || (self.roster.idle() > 0 && self.core_allowance(call) > 0);
        let open = if call.paused { 0 } else { call.ready.open.len() };
        let waits = idle && call.room() > 0 && call.in_line() + open > 0;
        ensure(!waits, || format!("{id:?} waits beside an idle worker: {call:?}"))?;
        let lies = idle && call.room() > 0 && call.recalls == 0 && self.has_recallable(id, call);
        ensure(!lies, || format!("{id:?} has tasks lying on busy workers beside an idle one: {call:?}"))
    }

    fn has_recallable(&self, id: CallId, call: &Call) -> bool {
        let mut engaged = call.engaged.keys().filter_map(|worker| self.roster.worker(*worker));
        engaged.any(|worker| !worker.leaving && worker.recallable(id, self.now).next().is_some())
    }
}

type Counts = (BTreeMap<WorkerId, u32>, u32, u32, u32);
