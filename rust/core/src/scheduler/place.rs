//! Where waiting tasks go: to an idle worker, else to one that is started for them, else behind what a
//! worker of their call has in hand.
//!
//! Calls take turns, task by task. Nothing here looks at all workers or at all tasks.

use std::ops::Bound;

use crate::action::{Action, Resolution};
use crate::id::{CallId, WorkerId};

use super::call::Call;
use super::node::NodeIx;
use super::ready::{Rank, Stand};
use super::roster::Roster;
use super::worker::Worker;
use super::{Out, Scheduler};

/// A worker, and the ready task of a graph that it gets; `None`: the call's next task in line.
pub(super) struct Pick {
    pub(super) worker: WorkerId,
    pub(super) task: Option<(Stand, Rank, NodeIx)>,
}

impl Pick {
    fn next(worker: WorkerId) -> Pick {
        Pick { worker, task: None }
    }
}

impl Scheduler {
    /// Hands out what can be handed out. All that an event may have made possible is done here.
    pub(super) fn place(&mut self, out: &mut Out<'_>) {
        let calls = &self.calls;
        self.hungry.retain(|id| calls.get(id).is_some_and(Call::is_hungry));
        self.take_turns(Self::idle_for, out);
        self.start_workers(out);
        self.take_turns(Self::prefetcher_for, out);
        self.rebalance(out);
        self.give_up(out);
        self.stirred.clear();
    }

    /// Hands out one task of each call in turn, until no call finds a worker.
    fn take_turns(&mut self, find: fn(&Self, CallId, &Call) -> Option<Pick>, out: &mut Out<'_>) {
        let mut misses = 0;
        while misses < self.hungry.len() {
            let id = self.next_turn();
            self.turn = id;
            match self.calls.get(&id).and_then(|call| find(self, id, call)) {
                Some(pick) => {
                    self.hand_out(id, pick, out);
                    misses = 0;
                }
                None => misses += 1,
            }
        }
    }

    fn next_turn(&self) -> CallId {
        if self.hungry.len() == 1 {
            return self.hungry.first().copied().unwrap_or(self.turn);
        }
        let after = (Bound::Excluded(self.turn), Bound::Unbounded);
        let next = self.hungry.range(after).next().or(self.hungry.first());
        next.copied().unwrap_or(self.turn)
    }

    /// An idle worker for the call's next task: its helper, or the one that worked last.
    fn idle_for(&self, _: CallId, call: &Call) -> Option<Pick> {
        if call.room() == 0 {
            return None;
        }
        if call.in_line() > 0 {
            return self.idle_worker(call).map(Pick::next);
        }
        if call.paused || call.ready.is_empty() {
            return None;
        }
        self.bound_pick(call).or_else(|| self.owner_pick(call)).or_else(|| {
            let worker = self.idle_worker(call)?;
            let task = call.ready.first_for(worker);
            task.map(|task| Pick { worker, task: Some(task) }).or_else(|| self.moving_pick(worker, call))
        })
    }

    fn idle_worker(&self, call: &Call) -> Option<WorkerId> {
        let helper = self.idle_helpers(call).next();
        helper.or_else(|| self.roster.warmest_idle().filter(|_| self.core_allowance(call) > 0))
    }

    pub(super) fn idle_helpers<'a>(&'a self, call: &'a Call) -> impl Iterator<Item = WorkerId> + 'a {
        let helpers = call.helpers.iter().copied();
        helpers.filter(|&id| self.roster.worker(id).is_some_and(Worker::is_idle))
    }

    /// How many workers, idle now, the core budget lets the call take.
    pub(super) fn core_allowance(&self, call: &Call) -> usize {
        if !call.spec.nested {
            return usize::MAX;
        }
        self.spare_cores().max(usize::from(call.is_alone()))
    }

    fn spare_cores(&self) -> usize {
        (self.config.core_budget as usize).saturating_sub(self.roster.busy())
    }

    /// Starts the workers that calls could use and that neither are idle nor on their way.
    fn start_workers(&mut self, out: &mut Out<'_>) {
        if !self.may_start() {
            return;
        }
        let wanted = self.workers_wanted();
        let floor = if self.idle_deaths < self.config.max_start_failures { self.floor as usize } else { 0 };
        let short = |roster: &Roster| roster.shared_or_starting() < floor;
        while self.may_start() && (wanted > self.roster.starting() + self.roster.idle() || short(&self.roster)) {
            let Some(worker) = self.roster.start() else {
                break;
            };
            out.push(Action::StartWorker { worker });
        }
    }

    pub(super) fn may_start(&self) -> bool {
        self.start_failures < self.config.max_start_failures
            && self.roster.shared_or_starting() < self.config.max_workers as usize
    }

    /// How many shared workers would find work now, beyond those that hold some.
    fn workers_wanted(&self) -> usize {
        let mut spare_cores = self.spare_cores();
        let mut wanted = 0;
        for call in self.hungry.iter().filter_map(|id| self.calls.get(id)) {
            let held_back = call.unstarted as usize;
            let mut more = call.room().min(call.available() + self.bound_to_start_for(call) + held_back);
            more = more.saturating_sub(self.idle_helpers(call).count());
            if call.spec.nested {
                more = more.min(spare_cores.max(usize::from(call.is_alone())));
                spare_cores = spare_cores.saturating_sub(more);
            }
            wanted += more;
        }
        wanted
    }

    /// A worker that has something to do, for the call's next task to wait on. Tasks for which a worker is
    /// starting wait for that.
    fn prefetcher_for(&self, id: CallId, call: &Call) -> Option<Pick> {
        if call.available() <= call.room().min(self.roster.starting()) {
            return None;
        }
        if call.in_line() == 0 {
            let ready = self.ready_to_prefetch(id, call);
            return ready.or_else(|| self.prefetch_pick(self.newly_engaged(call)?, call));
        }
        let engaged = self.engaged_with_room(id, call);
        engaged.or_else(|| self.newly_engaged(call)).map(Pick::next)
    }

    /// The least loaded worker that holds tasks of the call already. Looks through the shorter list.
    pub(super) fn engaged_with_room(&self, id: CallId, call: &Call) -> Option<WorkerId> {
        let roomy = self.roster.roomy();
        let most = self.most_looked_at();
        let open = |worker: WorkerId| self.roster.worker(worker).filter(|_| !self.is_reserved(worker));
        let fits = |worker: WorkerId| open(worker).filter(|w| w.takes_more(id, &call.spec));
        if roomy.len() <= call.engaged.len() {
            let depth = call.spec.depth as usize;
            let mut own = roomy
                .take_while(|&(load, _)| load < depth)
                .filter(|(_, worker)| call.engaged.contains_key(worker))
                .take(most);
            return own.find(|&(_, worker)| fits(worker).is_some()).map(|(_, worker)| worker);
        }
        let own = call.engaged.keys().take(most).filter_map(|&worker| Some((fits(worker)?.slots.len(), worker)));
        own.min().map(|(_, worker)| worker)
    }

    /// Where no worker can be started, any that runs something for others: else a call could starve beside one that
    /// keeps all workers supplied.
    fn newly_engaged(&self, call: &Call) -> Option<WorkerId> {
        if call.room() == 0 || self.may_start() || (call.spec.nested && !call.is_alone()) {
            return None;
        }
        if call.engaged.len() == self.roster.len() {
            return None;
        }
        let others = self.roster.roomy().map(|(_, worker)| worker).filter(|id| !call.engaged.contains_key(id));
        let mut others = others.take(self.most_looked_at());
        others.find(|&id| self.roster.worker(id).is_some_and(Worker::is_shared) && !self.is_reserved(id))
    }

    /// Workers to try before the search is given up. Without bound tasks the first one will do.
    fn most_looked_at(&self) -> usize {
        if self.bound_ready == 0 {
            usize::MAX
        } else {
            16
        }
    }

    /// Fails what waits where no worker can be started and none will come to it: an error, not a hang.
    fn give_up(&mut self, out: &mut Out<'_>) {
        let hopeless = self.start_failures >= self.config.max_start_failures;
        let none_comes = hopeless || self.config.max_workers == 0;
        if self.config.open || !none_comes || self.roster.starting() > 0 {
            return;
        }
        let hungry = self.hungry.iter().copied();
        let forsaken: Vec<CallId> = hungry.filter(|id| self.is_forsaken(*id)).collect();
        for &call in &forsaken {
            while let Some(task) = self.calls.get_mut(&call).and_then(Call::pop) {
                self.resolve(call, &task, Resolution::NoWorkers, out);
            }
            while let Some((.., node)) = self.calls.get(&call).and_then(|call| call.ready.iter().next()) {
                self.fail(node, Resolution::NoWorkers, out);
            }
        }
        if !forsaken.is_empty() {
            // Whatever is submitted next is worth a new try.
            self.start_failures = 0;
        }
    }

    /// The call has tasks to hand out, and neither a helper nor a worker that will be free some day. Those
    /// that are busy may be waiting for a nested call, so they are no hope to it.
    fn is_forsaken(&self, id: CallId) -> bool {
        let Some(call) = self.calls.get(&id).filter(|call| call.available() > 0) else {
            return false;
        };
        let mut helpers = call.helpers.iter().filter_map(|id| self.roster.worker(*id));
        let helped = call.awaited || helpers.any(|worker| !worker.leaving && !worker.is_stuck());
        let alone = call.spec.nested && call.is_alone();
        !helped && (alone || !self.roster.has_able_worker())
    }
}
