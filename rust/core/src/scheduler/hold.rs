//! What workers hold: the verbs that change a worker's queue.
//!
//! Each leaves the counts of calls and the indexes of workers right. Nothing else touches a queue.

use crate::action::{Action, KillReason};
use crate::id::{CallId, WorkerId};
use crate::resources::Grant;

use super::call::{Call, Task};
use super::node::{NodeIx, State};
use super::place::Pick;
use super::worker::{Ask, Filing, Slot, Worker};
use super::{Out, Scheduler};

impl Scheduler {
    /// Hands a task of the call to a worker.
    pub(super) fn hand_out(&mut self, call: CallId, pick: Pick, out: &mut Out<'_>) {
        let to = pick.worker;
        let mut grants = None;
        let task = match pick.task {
            None => self.calls.get_mut(&call).and_then(Call::pop),
            Some((.., node)) => {
                grants = self.grants_for(node, to);
                Some(self.assign(node, to))
            }
        };
        let Some(task) = task else { return };
        let Some(worker) = self.roster.workers.get_mut(&to) else {
            return;
        };
        let Some(from) = self.calls.get_mut(&call) else {
            return;
        };
        let head = worker.slots.is_empty();
        if head {
            worker.head_since = self.now;
        }
        out.push(Action::Run { worker: to, task: task.id, attempt: task.attempt });
        let slot = Slot { grants, ..Slot::new(call, task) };
        from.gain(to, &slot, head);
        worker.slots.push_back(slot);
        self.refile(to);
    }

    /// The ready task as the worker will hold it.
    fn assign(&mut self, at: NodeIx, to: WorkerId) -> Task {
        self.unqueue(at);
        let node = &mut self.graph[at];
        node.state = State::Assigned { worker: to, attempt: node.attempt };
        Task { id: node.id, items: 1, attempt: node.attempt, deaths: node.deaths, node: Some(at) }
    }

    fn grants_for(&mut self, at: NodeIx, on: WorkerId) -> Option<Box<[Grant]>> {
        let needs = self.classes.needs(self.graph[at].class?)?;
        let pool = self.roster.worker(on)?.pool?;
        self.roster.pools.take(pool, needs).filter(|grants| !grants.is_empty())
    }

    /// Takes a task off the worker: it does not hold it any more.
    pub(super) fn take_off(&mut self, from: WorkerId, at: usize) -> Option<Slot> {
        let worker = self.roster.workers.get_mut(&from)?;
        let slot = worker.slots.remove(at)?;
        if let Some((pool, grants)) = worker.pool.zip(slot.grants.as_deref()) {
            self.roster.pools.give_back(pool, grants);
        }
        self.lifted(from, at, &slot);
        Some(slot)
    }

    /// Puts the running task aside; it keeps what it was granted.
    pub(super) fn park(&mut self, on: WorkerId) {
        let Some(slot) = self.roster.workers.get_mut(&on).and_then(|worker| worker.slots.pop_front()) else { return };
        self.lifted(on, 0, &slot);
        if let Some(worker) = self.roster.workers.get_mut(&on) {
            worker.parked.push(Slot { ask: None, has_waited: true, ..slot });
            self.parked += 1;
        }
        self.refile(on);
    }

    /// Puts a parked task before all that the worker holds: what was first there has not begun.
    pub(super) fn resume(&mut self, on: WorkerId, parked: usize) {
        let Some(worker) = self.roster.workers.get_mut(&on) else { return };
        let slot = worker.parked.swap_remove(parked);
        self.parked -= 1;
        if let Some(next) = worker.slots.front().filter(|next| next.wanted) {
            if let Some(call) = self.calls.get_mut(&next.call) {
                call.stand_back();
                self.hungry.insert(next.call);
            }
        }
        if let Some(call) = self.calls.get_mut(&slot.call).filter(|_| slot.wanted) {
            call.gain(on, &slot, true);
        }
        worker.head_since = self.now;
        worker.slots.push_front(slot);
        self.refile(on);
    }

    /// Counts and indexes after a task has left a worker's queue.
    fn lifted(&mut self, from: WorkerId, at: usize, slot: &Slot) {
        let Some(worker) = self.roster.workers.get_mut(&from) else { return };
        if let Some(call) = self.calls.get_mut(&slot.call).filter(|_| slot.wanted) {
            call.lose(from, slot, at == 0);
        }
        if at == 0 {
            worker.head_since = self.now;
            worker.rested = self.seq.0;
            if let Some(next) = worker.slots.front().filter(|next| next.wanted) {
                if let Some(call) = self.calls.get_mut(&next.call) {
                    call.begin();
                }
            }
        }
        self.refile(from);
        if !self.graph.is_empty() {
            self.stir(from);
        }
    }

    /// Nobody waits for the task any more; the worker holds it until it says so or is lost.
    pub(super) fn disown(&mut self, on: WorkerId, at: usize) {
        self.edit(on, at, |slot| slot.wanted = false);
    }

    /// Asks the worker for a task, or for what it has not begun of it.
    pub(super) fn ask(&mut self, of: WorkerId, at: usize, ask: Ask, out: &mut Out<'_>) {
        self.edit(of, at, |slot| {
            slot.ask = Some(ask);
            out.push(Action::Retract { worker: of, task: slot.task.id, attempt: slot.task.attempt });
        });
    }

    /// Orders the worker to end. What else it holds moves when it is lost.
    pub(super) fn kill(&mut self, id: WorkerId, reason: KillReason, out: &mut Out<'_>) {
        if self.roster.worker(id).is_some() {
            out.push(Action::Kill { worker: id, reason });
            self.leave(id);
        }
    }

    /// Nothing more is placed on the worker.
    pub(super) fn leave(&mut self, id: WorkerId) {
        let Some(worker) = self.roster.workers.get_mut(&id) else {
            return;
        };
        worker.leaving = true;
        for at in 0..worker.slots.len() {
            self.edit(id, at, |slot| slot.ask = None);
        }
        self.refile(id);
        self.evict(id);
    }

    /// Takes a worker out, with all that it holds.
    pub(super) fn take_out(&mut self, id: WorkerId) -> Option<Worker> {
        self.roster.workers.get_mut(&id)?.leaving = true;
        self.evict(id);
        let worker = self.roster.workers.get_mut(&id)?;
        for (at, slot) in worker.slots.iter().enumerate() {
            if let Some(call) = self.calls.get_mut(&slot.call).filter(|_| slot.wanted) {
                call.lose(id, slot, at == 0);
            }
        }
        if let Some(call) = worker.spec.only.and_then(|call| self.calls.get_mut(&call)) {
            call.helpers.remove(&id);
        }
        self.refile_as(id, Filing::default());
        self.change_outlook();
        self.roster.remove(id)
    }

    /// Changes one task on a worker.
    pub(super) fn edit(&mut self, on: WorkerId, at: usize, change: impl FnOnce(&mut Slot)) {
        let Some(worker) = self.roster.workers.get_mut(&on) else {
            return;
        };
        let Some(slot) = worker.slots.get_mut(at) else {
            return;
        };
        let call = self.calls.get_mut(&slot.call).filter(|_| slot.wanted);
        match call {
            Some(call) => {
                call.lose(on, slot, at == 0);
                change(slot);
                if slot.wanted {
                    call.gain(on, slot, at == 0);
                }
            }
            None => change(slot),
        }
        self.refile(on);
    }

    /// Brings the indexes up to date with the worker's state.
    pub(super) fn refile(&mut self, id: WorkerId) {
        let Some(worker) = self.roster.workers.get_mut(&id) else {
            return;
        };
        let head_call = worker.slots.front().and_then(|slot| self.calls.get(&slot.call));
        let new = worker.filing(head_call.map(|call| &call.spec), self.config.split_after);
        if worker.filed != new {
            self.refile_as(id, new);
        }
    }

    pub(super) fn filing(&self, worker: &Worker) -> Filing {
        let head_call = worker.slots.front().and_then(|slot| self.calls.get(&slot.call));
        worker.filing(head_call.map(|call| &call.spec), self.config.split_after)
    }

    fn refile_as(&mut self, id: WorkerId, new: Filing) {
        let Some(worker) = self.roster.workers.get_mut(&id) else {
            return;
        };
        let old = std::mem::replace(&mut worker.filed, new);
        self.roster.refile(id, old, new);
        if old.split == new.split {
            return;
        }
        if let Some((call, time)) = old.split {
            if let Some(call) = self.calls.get_mut(&call) {
                call.splits.remove(&(time, id));
            }
        }
        if let Some((call, time)) = new.split {
            if let Some(open) = self.calls.get_mut(&call) {
                open.splits.insert((time, id));
                self.hungry.insert(call);
            }
        }
    }
}
