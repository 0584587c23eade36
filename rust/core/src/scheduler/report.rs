//! What is said about tasks: reports of workers, and how each task ended.

use crate::action::{Action, KillReason, Resolution};
use crate::event::Outcome;
use crate::id::{Attempt, CallId, TaskId, WorkerId};

use super::call::Task;
use super::{Out, Scheduler};

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
        outcome: Outcome,
        out: &mut Out<'_>,
    ) {
        if let Some(at) = self.reported(worker, task, attempt, true, out) {
            self.resolve_on(worker, at, Resolution::Finished { worker, outcome }, out);
            self.take_off(worker, at);
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
        let Some(at) = self.reported(worker, task, attempt, kept == 0, out) else {
            return;
        };
        if kept == 0 {
            if let Some(slot) = self.take_off(worker, at) {
                self.requeue(slot.call, slot.task);
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
    /// attempts that the worker does not hold, and of tasks that nobody waits for. `left` says that the
    /// worker is rid of the task.
    fn reported(
        &mut self,
        id: WorkerId,
        task: TaskId,
        attempt: Attempt,
        left: bool,
        out: &mut Out<'_>,
    ) -> Option<usize> {
        let at = self.roster.find(id, task, attempt);
        if let Some((worker, at)) = self.roster.worker(id).zip(at) {
            if worker.slots[at].wanted {
                return Some(at);
            }
            let in_vain = worker.spec.killable && !worker.leaving;
            if left {
                self.take_off(id, at);
            } else if in_vain {
                // It has begun a task that was disowned while it waited there.
                self.kill(id, KillReason::Cancelled, out);
            }
        }
        self.stale += 1;
        None
    }

    fn is_killable(&self, worker: WorkerId) -> bool {
        self.roster.worker(worker).is_some_and(|w| w.spec.killable)
    }

    pub(super) fn requeue(&mut self, call: CallId, task: Task) {
        if let Some(open) = self.calls.get_mut(&call) {
            open.requeue(task);
            self.hungry.insert(call);
        }
    }

    fn resolve_on(&mut self, worker: WorkerId, at: usize, resolution: Resolution, out: &mut Out<'_>) {
        let slot = self.roster.worker(worker).and_then(|w| w.slots.get(at));
        if let Some((call, task)) = slot.map(|slot| (slot.call, slot.task.id)) {
            self.resolve(call, task, resolution, out);
        }
    }

    /// Says how a task ended, and forgets it.
    pub(super) fn resolve(&mut self, call: CallId, task: TaskId, resolution: Resolution, out: &mut Out<'_>) {
        self.live.remove(&task);
        out.push(Action::Resolve { call, task, resolution });
    }
}
