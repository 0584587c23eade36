//! Events: facts that have happened, as the shells report them.

use std::time::Duration;

use crate::id::{Attempt, CallId, HostId, TaskId, WorkerId};
use crate::resources::Resources;
use crate::task::TaskSpec;

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
    /// A worker is given no more tasks of the call while it holds so many, the running one included. At least 1.
    pub depth: u32,
    /// What is not begun of a long task may be taken back for a worker that is idle.
    pub divisible: bool,
    /// Made inside a task. Beyond its first worker, it only takes workers while the core budget has room.
    pub nested: bool,
}

impl Default for CallSpec {
    /// A call without a limit: on any number of workers, its tasks not divisible.
    fn default() -> Self {
        CallSpec {
            cap: u32::MAX,
            crash_retries: 0,
            item_timeout: None,
            helper_expected: false,
            depth: u32::MAX,
            divisible: false,
            nested: false,
        }
    }
}

/// What a worker is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WorkerSpec {
    /// Most tasks it may hold, running one included. 1: none is prefetched.
    pub depth: u32,
    /// Takes tasks of this call only: a caller that helps while it waits.
    pub only: Option<CallId>,
    /// Can be ended in mid-task (a process). A thread cannot.
    pub killable: bool,
    /// What its tasks may hold of it, together.
    pub resources: Resources,
    /// Workers of the same host share the resources that the first of them has brought.
    pub host: Option<HostId>,
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
    /// From now on, [`CallSpec::depth`] is another.
    CallDepth {
        call: CallId,
        depth: u32,
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
    /// Tasks that take each other's results. One that is there already, and is not wanted any more, is wanted
    /// again. One that depends on a task that is not there, or on itself, ends with
    /// [`crate::Resolution::Broken`].
    GraphSubmitted {
        call: CallId,
        tasks: Vec<TaskSpec>,
    },
    /// The submitter does not want these results any more. What nobody needs is freed, or not run; what
    /// runs is left to its end. Nothing more is said about the tasks.
    TasksReleased {
        call: CallId,
        tasks: Vec<TaskId>,
    },
    /// These tasks, unless they have finished, and all that depends on them end with
    /// [`crate::Resolution::Cancelled`]. `force`: the workers that run them are ended, where they can be.
    /// They stay wanted until they are released.
    TasksCancelled {
        call: CallId,
        tasks: Vec<TaskId>,
        force: bool,
    },
    /// The worker has got a copy of a result of another.
    ReplicaAdded {
        worker: WorkerId,
        task: TaskId,
    },
    /// The worker does not have the result that it made or copied.
    ReplicaLost {
        worker: WorkerId,
        task: TaskId,
    },
    /// A worker is ready: one that [`crate::Action::StartWorker`] asked for, or a helper with an id of its own.
    WorkerJoined {
        worker: WorkerId,
        spec: WorkerSpec,
    },
    /// The worker goes soon: it takes no more tasks. It ends those that it runs, and gives the others back.
    WorkerLeaving {
        worker: WorkerId,
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
        /// Of the result, which the worker keeps if it is that of a task of a graph.
        size_bytes: u64,
    },
    /// Answer to [`crate::Action::Retract`]: the worker keeps the first `kept` items.
    /// 0: it had not begun, and has dropped the task. All: nothing was left to give back.
    /// Also unasked, with 0, from a worker that cannot get at what the task depends on; the copies that it
    /// could not get are reported before, with [`Event::ReplicaLost`].
    TaskReturned {
        worker: WorkerId,
        task: TaskId,
        attempt: Attempt,
        kept: u32,
    },
    /// The task of a graph that the worker runs waits for others, and gives its place up: the worker goes on to take
    /// tasks. It keeps what it was granted, goes on some day, and is reported as ever.
    TaskParked {
        worker: WorkerId,
        task: TaskId,
        attempt: Attempt,
    },
    /// The parked task goes on. The worker has reported what it ran meanwhile, and begins nothing else before this ends
    /// or parks again.
    TaskResumed {
        worker: WorkerId,
        task: TaskId,
        attempt: Attempt,
    },
    /// From now on there are to be so many workers, whether there is work for them or not. Those that are lost are
    /// replaced; but after [`crate::scheduler::Config::max_start_failures`] that died with nothing to do, only where
    /// there is work, until some is done.
    WorkersRequested {
        count: u32,
    },
    /// Nothing else happened until now; deadlines may have passed.
    TimePassed,
}
