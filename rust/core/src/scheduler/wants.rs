//! What is needed: tasks that are wanted, and what these wait for. Nothing else is run or kept.

use crate::action::{Action, KillReason};
use crate::id::{Attempt, CallId, TaskId, WorkerId};

use super::node::{NodeIx, State};
use super::ready::Rank;
use super::worker::Ask;
use super::{Out, Scheduler};

impl Scheduler {
    /// Has a task run that is needed, and all that it depends on and that has no result.
    pub(super) fn activate(&mut self, root: NodeIx, out: &mut Out<'_>) {
        let mut open = vec![root];
        while let Some(at) = open.pop() {
            if self.graph[at].state != State::Released {
                continue;
            }
            let (mut missing, mut failed) = (0, None);
            for place in 0..self.graph[at].dependencies.len() {
                let on = self.graph[at].dependencies.as_slice()[place].node;
                let dependency = &mut self.graph[on];
                dependency.waiters += 1;
                missing += u32::from(!matches!(dependency.state, State::Done { .. }));
                match dependency.state {
                    State::Released => open.push(on),
                    State::Failed { .. } => failed = Some(on),
                    _ => {}
                }
            }
            self.graph[at].state = State::Waiting { missing };
            self.graph.active += 1;
            match failed {
                Some(by) => self.fail_after(at, by, out),
                None if missing == 0 => self.graph.woken.push(at),
                None => {}
            }
        }
    }

    /// Brings all to rest that the event has set in motion: frees what is needed no more, queues what is ready.
    pub(super) fn settle(&mut self, out: &mut Out<'_>) {
        if self.graph.is_at_rest() {
            return;
        }
        while let Some(at) = self.graph.loose.pop() {
            self.let_be(at, out);
        }
        let mut woken = std::mem::take(&mut self.graph.woken);
        let graph = &self.graph;
        woken.retain(|&at| graph[at].state == State::Waiting { missing: 0 });
        if woken.len() > 1 {
            woken.sort_unstable_by_key(|&at| Rank::of(&graph[at]));
        }
        for at in woken.drain(..) {
            if self.graph[at].state == (State::Waiting { missing: 0 }) {
                self.queue(at);
            }
        }
        woken.shrink_to(1024);
        self.graph.woken = woken;
        self.graph.shrink();
    }

    /// Gives up a task unless it is needed, and forgets it unless others depend on it.
    fn let_be(&mut self, at: NodeIx, out: &mut Out<'_>) {
        let node = &self.graph[at];
        if node.is_needed() || node.state == State::Gone {
            return;
        }
        match node.state {
            State::Done { .. } => self.free(at, out),
            _ if node.is_active() => self.stop(at, false, out),
            _ => {}
        }
        if self.graph[at].dependents.is_empty() {
            self.graph.unlink(at);
            if let Some(class) = self.graph[at].class {
                self.classes.leave(class);
            }
            out.push(Action::Gone { task: self.graph[at].id });
            self.graph.remove(at);
        }
    }

    /// Tells all workers that have the result to forget it.
    pub(super) fn free(&mut self, at: NodeIx, out: &mut Out<'_>) {
        let task = self.graph[at].id;
        let state = std::mem::replace(&mut self.graph[at].state, State::Released);
        if let State::Done { holders, .. } = state {
            for holder in holders.as_slice() {
                self.drop_from(holder.worker, holder.at);
                out.push(Action::Forget { worker: holder.worker, task });
            }
        }
    }

    /// Takes an active task out of whatever it is in. It needs the results of others no more.
    pub(super) fn stop(&mut self, at: NodeIx, force: bool, out: &mut Out<'_>) {
        match self.graph[at].state {
            State::Ready { .. } => self.unqueue(at),
            State::Assigned { worker, attempt } => {
                self.let_go(worker, self.graph[at].id, attempt, force, out);
                self.graph[at].spend_attempt();
            }
            _ => {}
        }
        self.graph[at].state = State::Released;
        self.graph.active -= 1;
        self.loosen(at);
    }

    /// The task does not need what it depends on any more.
    pub(super) fn loosen(&mut self, at: NodeIx) {
        for place in 0..self.graph[at].dependencies.len() {
            let on = self.graph[at].dependencies.as_slice()[place].node;
            let dependency = &mut self.graph[on];
            dependency.waiters -= 1;
            if !dependency.is_needed() {
                self.graph.loose.push(on);
            }
        }
    }

    /// Nobody needs what the worker has of the task: it gives it back, unless it runs it already.
    fn let_go(&mut self, on: WorkerId, task: TaskId, attempt: Attempt, force: bool, out: &mut Out<'_>) {
        if self.parked > 0 && self.let_go_parked(on, task, attempt, force, out) {
            return;
        }
        let Some((worker, at)) = self.roster.worker(on).zip(self.roster.find(on, task, attempt)) else {
            return;
        };
        let (killable, leaving, asked) = (worker.spec.killable, worker.leaving, worker.slots[at].ask.is_some());
        self.edit(on, at, |slot| slot.forced = force);
        self.disown(on, at);
        if leaving {
            return;
        }
        if at > 0 && !asked {
            self.ask(on, at, Ask::Whole, out);
        } else if at == 0 && force && killable {
            self.kill(on, KillReason::Cancelled, out);
        }
    }

    /// Takes all tasks of a closed call out of the table. Workers hold none of them any more.
    pub(super) fn close_graph(&mut self, call: CallId, out: &mut Out<'_>) {
        for at in self.graph.take_call(call) {
            if let State::Ready { .. } = self.graph[at].state {
                self.unqueue(at);
            }
            self.graph.active -= usize::from(self.graph[at].is_active());
            self.free(at, out);
            if let Some(class) = self.graph[at].class {
                self.classes.leave(class);
            }
            self.graph.vacate(at);
        }
    }
}
