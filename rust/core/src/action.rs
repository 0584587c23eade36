//! Actions: orders for the shell to carry out, each with the event that caused it.

use crate::id::{Attempt, CallId, EventSeq, TaskId, WorkerId};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KillReason {
    /// A task on it overran its time limit.
    TimedOut,
    /// Its call was closed while it was running.
    Cancelled,
}

/// How a task ended, for the one who submitted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
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
}

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Start a worker under this id; answered by `WorkerJoined` or `WorkerLost`.
    StartWorker {
        worker: WorkerId,
    },
    Run {
        worker: WorkerId,
        task: TaskId,
        attempt: Attempt,
    },
    /// Ask the worker to give back what it has not begun of the task; answered by `TaskReturned`,
    /// or by `TaskFinished` where that is on its way already.
    Retract {
        worker: WorkerId,
        task: TaskId,
        attempt: Attempt,
    },
    /// The task was cut to its first `kept` items; submit the rest as new urgent tasks.
    Remainder {
        call: CallId,
        task: TaskId,
        kept: u32,
    },
    /// End the worker at once; answered by `WorkerLost`.
    Kill {
        worker: WorkerId,
        reason: KillReason,
    },
    /// Tell the submitter; exactly once for each task of a call that is still open.
    Resolve {
        call: CallId,
        task: TaskId,
        resolution: Resolution,
    },
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
