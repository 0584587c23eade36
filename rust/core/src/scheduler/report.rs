//! What is said about tasks: reports of workers, and how each task ended.

use crate::action::{Action, KillReason, Resolution};
use crate::event::{Outcome, Time};
use crate::id::{Attempt, CallId, TaskId, WorkerId};

use super::call::Task;
use super::node::NodeIx;
use super::{Out, Scheduler};

/// What a worker has of a task after its report.
#[derive(Clone, Copy, PartialEq)]
enum Left {
    Nothing,
    Result,
    /// It runs it.
    Task,
}

impl Scheduler {
    /// Ends the tasks that have overrun their time.
    pub(super) fn expire(&mut self, out: &mut Out<'_>) {
        while let Some(worker) = self.roster.overdue(self.now) {
            self.resolve_on(worker, 0, Resolution::TimedOut { worker }, out);
            self.disown(worker, 0);
            if self.is_killable(worker) {
                self.kill(worker, KillReason::TimedOut, out);
            }
        }
    }

    pub(super) fn task_finished(
        &mut self,
        worker: WorkerId,
        task: TaskId,
        attempt: Attempt,
        (outcome, size_bytes): (Outcome, u64),
        out: &mut Out<'_>,
    ) {
        self.idle_deaths = 0;
        if self.parked > 0 && self.parked_finished(worker, task, attempt, (outcome, size_bytes), out) {
            return;
        }
        let left = if outcome == Outcome::Ok { Left::Result } else { Left::Nothing };
        let Some(at) = self.reported(worker, task, attempt, left, out) else {
            return;
        };
        let began = self.roster.worker(worker).filter(|_| at == 0).map(|worker| worker.head_since);
        let Some(slot) = self.take_off(worker, at) else {
            return;
        };
        match slot.task.node {
            Some(node) => {
                self.learn(slot.call, began);
                self.ended(node, slot.task, worker, (outcome, size_bytes), out);
            }
            None => self.resolve(slot.call, &slot.task, Resolution::Finished { worker, outcome }, out),
        }
    }

    /// Notes how long the task of a graph ran.
    fn learn(&mut self, call: CallId, began: Option<Time>) {
        if let Some((call, began)) = self.calls.get_mut(&call).zip(began) {
            call.took(self.now.saturating_sub(began));
        }
    }

    pub(super) fn task_returned(
        &mut self,
        worker: WorkerId,
        task: TaskId,
        attempt: Attempt,
        kept: u32,
        out: &mut Out<'_>,
    ) {
        let left = if kept == 0 { Left::Nothing } else { Left::Task };
        let Some(at) = self.reported(worker, task, attempt, left, out) else {
            return;
        };
        if kept == 0 {
            if let Some(slot) = self.take_off(worker, at) {
                if let Some(node) = slot.task.node {
                    self.graph[node].roams = slot.ask.is_some();
                }
                self.requeue(slot.call, slot.task, out);
            }
            return;
        }
        let ask_after = self.now.saturating_add(self.config.split_after);
        self.edit(worker, at, |slot| {
            slot.ask = None;
            slot.ask_after = ask_after;
            if kept < slot.task.items {
                slot.task.items = kept;
                out.push(Action::Remainder { call: slot.call, task, kept });
            }
        });
    }

    /// Place of the task that a worker reports. Here, and nowhere else, end the reports that are stale: of
    /// attempts that the worker does not hold, and of tasks that nobody waits for.
    fn reported(
        &mut self,
        id: WorkerId,
        task: TaskId,
        attempt: Attempt,
        left: Left,
        out: &mut Out<'_>,
    ) -> Option<usize> {
        let at = self.roster.find(id, task, attempt);
        if let Some((worker, at)) = self.roster.worker(id).zip(at) {
            if worker.slots[at].wanted {
                return Some(at);
            }
            let slot = &worker.slots[at];
            let in_vain = worker.spec.killable && !worker.leaving && (slot.forced || slot.task.node.is_none());
            let kept = left == Left::Result && slot.task.node.is_some();
            if kept {
                self.made_in_vain(id, task, out);
            }
            if left != Left::Task {
                self.take_off(id, at);
            } else if in_vain {
                // It has begun a task that was disowned while it waited there.
                self.kill(id, KillReason::Cancelled, out);
            }
        }
        self.stale += 1;
        None
    }

    /// A worker has made a result that nobody waits for: it need not keep that, unless it had it before.
    pub(super) fn made_in_vain(&self, worker: WorkerId, task: TaskId, out: &mut Out<'_>) {
        if self.holders(task).all(|holder| holder != worker) {
            out.push(Action::Forget { worker, task });
        }
    }

    fn is_killable(&self, worker: WorkerId) -> bool {
        self.roster.worker(worker).is_some_and(|w| w.spec.killable)
    }

    pub(super) fn requeue(&mut self, call: CallId, task: Task, out: &mut Out<'_>) {
        if let Some(node) = task.node {
            self.back(node, task, out);
        } else if let Some(open) = self.calls.get_mut(&call) {
            open.requeue(task);
            self.hungry.insert(call);
        }
    }

    fn resolve_on(&mut self, worker: WorkerId, at: usize, resolution: Resolution, out: &mut Out<'_>) {
        let slot = self.roster.worker(worker).and_then(|w| w.slots.get(at));
        if let Some((call, id, node)) = slot.map(|slot| (slot.call, slot.task.id, slot.task.node)) {
            self.resolve_task(call, id, node, resolution, out);
        }
    }

    /// Says how a task ended, and forgets it.
    pub(super) fn resolve(&mut self, call: CallId, task: &Task, resolution: Resolution, out: &mut Out<'_>) {
        self.resolve_task(call, task.id, task.node, resolution, out);
    }

    fn resolve_task(&mut self, call: CallId, task: TaskId, node: Option<NodeIx>, how: Resolution, out: &mut Out<'_>) {
        match node {
            Some(node) => self.fail(node, how, out),
            None => {
                self.live.remove(&task);
                out.push(Action::Resolve { call, task, resolution: how });
            }
        }
    }
}
