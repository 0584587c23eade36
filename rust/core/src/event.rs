//! Events: facts that have happened, as the shells report them.

use std::time::Duration;

use crate::id::{Attempt, CallId, TaskId, WorkerId};

/// Time since the driver started. The machine never reads a clock; it is told.
pub type Time = Duration;

/// What a call asks of the scheduler.
#[derive(Clone, Debug, PartialEq)]
pub struct CallSpec {
    /// At most this many workers hold tasks of the call at once. At least 1.
    pub cap: u32,
    /// How often a task may lose its worker before it fails with [`crate::Resolution::WorkerCrashed`]:
    /// 0 fails it the first time. A task of several items is cut in halves instead, until it has one.
    pub crash_retries: u32,
    /// Longest run of one item of a task; counted from when its worker could start it.
    pub item_timeout: Option<Duration>,
    /// The calling thread will join as a helper: one unit of `cap` is kept free for it
    /// until it joins or [`Event::HelperExcused`].
    pub helper_expected: bool,
    /// Made inside a task. Beyond its first worker, it only takes workers while the core budget has room.
    pub nested: bool,
}

/// What a worker is.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerSpec {
    /// Most tasks it may hold, running one included. 1: none is prefetched.
    pub depth: u32,
    /// Takes tasks of this call only: a caller that helps while it waits.
    pub only: Option<CallId>,
    /// Can be ended in mid-task (a process). A thread cannot.
    pub killable: bool,
}

/// How an attempt at a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Ok,
    /// The user's code raised, or what it was given or gave back cannot travel.
    Err,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    CallOpened {
        call: CallId,
        spec: CallSpec,
    },
    /// Nobody wants the call's results any more: finished, or aborted with work in hand.
    CallClosed {
        call: CallId,
    },
    /// Backpressure: while paused, no task of the call is handed out for the first time.
    CallPaused {
        call: CallId,
        paused: bool,
    },
    /// The caller will not help (yet): the place kept for it is free for any worker.
    HelperExcused {
        call: CallId,
    },
    /// `urgent` tasks go before the others of their call: what is left of a task that was split.
    TaskSubmitted {
        call: CallId,
        task: TaskId,
        items: u32,
        urgent: bool,
    },
    /// A worker is ready: one that [`crate::Action::StartWorker`] asked for, or a helper with an id of its own.
    WorkerJoined {
        worker: WorkerId,
        spec: WorkerSpec,
    },
    /// A worker is gone, or could not be started.
    WorkerLost {
        worker: WorkerId,
    },
    TaskFinished {
        worker: WorkerId,
        task: TaskId,
        attempt: Attempt,
        outcome: Outcome,
    },
    /// Answer to [`crate::Action::Retract`]: the worker keeps the first `kept` items.
    /// 0: it had not begun, and has dropped the task. All: nothing was left to give back.
    TaskReturned {
        worker: WorkerId,
        task: TaskId,
        attempt: Attempt,
        kept: u32,
    },
    /// Nothing else happened until now; deadlines may have passed.
    TimePassed,
}
