//! Actions: orders for the shell to carry out, each with the event that caused it.

use crate::id::{Attempt, CallId, EventSeq, TaskId, WorkerId};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KillReason {
    /// A task on it overran its time limit.
    TimedOut,
    /// What it runs was cancelled, or its call closed.
    Cancelled,
}

/// How a task ended, for the one who submitted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// On a worker, which may be gone where results are durable.
    Finished {
        worker: WorkerId,
        outcome: crate::Outcome,
    },
    /// Its worker died under it `deaths` times, the last time on `worker`.
    WorkerCrashed {
        worker: WorkerId,
        deaths: u32,
    },
    TimedOut {
        worker: WorkerId,
    },
    /// No worker could be started to run it.
    NoWorkers,
    /// It needs, at first or second hand, the result of `cause`, which failed by itself.
    DependencyFailed {
        cause: TaskId,
    },
    /// It was cancelled, or something that it depends on.
    Cancelled,
    /// No worker has what it asks for, and none can come that has.
    Unrunnable,
    /// It depends on a task that is not there, or on itself.
    Broken,
}

impl Resolution {
    /// There is a result.
    pub fn is_ok(&self) -> bool {
        matches!(self, Resolution::Finished { outcome: crate::Outcome::Ok, .. })
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Start a worker under this id; answered by `WorkerJoined` or `WorkerLost`.
    StartWorker { worker: WorkerId },
    /// Hand a task to the worker. What that needs to know of a task of a graph is to be asked at once:
    /// [`crate::Scheduler::dependencies`], their [`crate::Scheduler::holders`], and what is
    /// [`crate::Scheduler::granted`].
    Run { worker: WorkerId, task: TaskId, attempt: Attempt },
    /// Ask the worker to give back what it has not begun of the task; answered by `TaskReturned`,
    /// or by `TaskFinished` where that is on its way already.
    Retract { worker: WorkerId, task: TaskId, attempt: Attempt },
    /// The task was cut to its first `kept` items; submit the rest as new urgent tasks.
    Remainder { call: CallId, task: TaskId, kept: u32 },
    /// End the worker at once; answered by `WorkerLost`.
    Kill { worker: WorkerId, reason: KillReason },
    /// Tell the submitter; exactly once for each task of a call that is still open. Of a graph's tasks, for each
    /// that is wanted until then, and for each that fails by itself: that explains how others end.
    Resolve { call: CallId, task: TaskId, resolution: Resolution },
    /// Nobody needs the result from the worker, which may drop it.
    Forget { worker: WorkerId, task: TaskId },
    /// The task of a graph is forgotten: it is neither run again nor asked for. What the shell keeps for it, like
    /// what it runs, why it failed, or a durable result, can go. Not said of the tasks of a call that is closed: they
    /// all go.
    Gone { task: TaskId },
    /// The result of a task that was resolved, and is wanted still, is gone with the workers that had it. It is
    /// being computed again; answered by `Restored`.
    Lost { call: CallId, task: TaskId },
    /// A lost result is there again, or will not be: as the resolution says.
    Restored { call: CallId, task: TaskId, resolution: Resolution },
}

/// Buffer that [`crate::Scheduler::handle`] appends to; the shell drains it.
#[derive(Debug, Default)]
pub struct Actions {
    pub(crate) items: Vec<(EventSeq, Action)>,
}

impl Actions {
    pub fn drain(&mut self) -> impl Iterator<Item = (EventSeq, Action)> + '_ {
        self.items.drain(..)
    }

    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
}
