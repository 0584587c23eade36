//! Tasks that wait for others, and have given up their places on their workers meanwhile.
//!
//! So no depth of nesting runs out of workers. A parked task keeps its resources, counts for nothing else, and ends
//! like any other, whether or not it is known to have gone on. Where its call is closed, what it waits for will not
//! come: its worker is ended, but not under the tasks of others.

use crate::action::KillReason;
use crate::event::Outcome;
use crate::id::{Attempt, CallId, TaskId, WorkerId};

use super::worker::{Slot, Worker};
use super::{Out, Scheduler};

impl Scheduler {
    pub(super) fn task_parked(&mut self, worker: WorkerId, task: TaskId, attempt: Attempt) {
        match self.roster.find(worker, task, attempt) {
            Some(0) if self.roster.slot(worker, task, attempt).is_some_and(|slot| slot.task.node.is_some()) => {
                self.park(worker);
            }
            // It was parked before.
            None if self.roster.parked_slot(worker, task, attempt).is_some() => {}
            _ => self.stale += 1,
        }
    }

    pub(super) fn task_resumed(&mut self, worker: WorkerId, task: TaskId, attempt: Attempt) {
        let parked = self.roster.worker(worker).and_then(|worker| worker.find_parked(task, attempt));
        match parked {
            Some(at) if self.may_engage(worker, at) => self.resume(worker, at),
            Some(_) => {}
            None => self.stale += 1,
        }
    }

    /// The call of the parked task has the worker already, or may have one more.
    fn may_engage(&self, id: WorkerId, parked: usize) -> bool {
        let slot = self.roster.worker(id).map(|worker| &worker.parked[parked]).filter(|slot| slot.wanted);
        let call = slot.and_then(|slot| self.calls.get(&slot.call));
        call.is_none_or(|call| call.engaged.contains_key(&id) || call.room() > 0)
    }

    /// Takes in the end of a task that is parked; false if it is not.
    pub(super) fn parked_finished(
        &mut self,
        worker: WorkerId,
        task: TaskId,
        attempt: Attempt,
        how: (Outcome, u64),
        out: &mut Out<'_>,
    ) -> bool {
        let Some(slot) = self.unpark(worker, task, attempt) else { return false };
        match slot.task.node {
            Some(node) if slot.wanted => self.ended(node, slot.task, worker, how, out),
            _ => {
                self.stale += 1;
                if how.0 == Outcome::Ok {
                    self.made_in_vain(worker, task, out);
                }
            }
        }
        true
    }

    fn unpark(&mut self, from: WorkerId, task: TaskId, attempt: Attempt) -> Option<Slot> {
        let worker = self.roster.workers.get_mut(&from)?;
        let at = worker.find_parked(task, attempt)?;
        let slot = worker.parked.swap_remove(at);
        self.parked -= 1;
        if let Some((pool, grants)) = worker.pool.zip(slot.grants.as_deref()) {
            self.roster.pools.give_back(pool, grants);
            // What was granted may be what others wait for.
            self.stir(from);
        }
        self.refile(from);
        Some(slot)
    }

    /// Nobody needs the parked task any more; false if it is not parked there.
    pub(super) fn let_go_parked(
        &mut self,
        on: WorkerId,
        task: TaskId,
        attempt: Attempt,
        force: bool,
        out: &mut Out<'_>,
    ) -> bool {
        let Some(worker) = self.roster.workers.get_mut(&on) else { return false };
        let Some(at) = worker.find_parked(task, attempt) else { return false };
        worker.parked[at].wanted = false;
        let ends = force && worker.spec.killable && !worker.leaving;
        self.refile(on);
        if ends {
            self.kill(on, KillReason::Cancelled, out);
        }
        true
    }

    /// Disowns the parked tasks of a closed call; those that were let go before wait in vain as well.
    pub(super) fn abandon_parked(&mut self, call: CallId) {
        if self.parked == 0 {
            return;
        }
        for (&id, worker) in &mut self.roster.workers {
            let of_call = worker.parked.iter_mut().filter(|slot| slot.call == call);
            let disowned = of_call.map(|slot| slot.wanted = false).count();
            if disowned > 0 && worker.spec.killable && !worker.leaving {
                worker.doomed = true;
                self.doomed.insert(id);
            }
        }
        for id in self.doomed.clone() {
            self.refile(id);
        }
    }

    /// Ends the workers that are there for nothing but parked tasks of closed calls.
    pub(super) fn end_doomed(&mut self, out: &mut Out<'_>) {
        if self.doomed.is_empty() {
            return;
        }
        for id in self.doomed.clone() {
            let worker = self.roster.worker(id).filter(|worker| !worker.leaving);
            if worker.is_some_and(Worker::is_needed) {
                continue;
            }
            if worker.is_some() {
                self.kill(id, KillReason::Cancelled, out);
            }
            self.doomed.remove(&id);
        }
    }
}
