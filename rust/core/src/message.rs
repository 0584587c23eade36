//! What a scheduler's process and its workers say to each other, whatever carries it.
//!
//! Payload bytes never stand in a message: they are the body of its frame, or an [`Extent`] of
//! a segment of shared memory that was announced before.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::{Attempt, BlobId, CallId, SegmentId, TaskId, WorkerId};
use crate::nested::{Ended, FromTask};
use crate::resources::Grant;

/// A range of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Extent {
    pub segment: SegmentId,
    pub offset: u64,
    pub bytes: u64,
}

/// Where a payload's pickle is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// In the frame.
    Inline,
    InSegment(Extent),
}

/// How a worker maps the arrays of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Access {
    /// Private: writes stay with the task that makes them.
    CopyOnWrite,
    ReadOnly,
    /// Writes are seen by every worker that maps it.
    Shared,
}

/// One out-of-band buffer of a pickle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buffer {
    pub extent: Extent,
    pub access: Access,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunTask {
    pub call: CallId,
    pub task: TaskId,
    pub attempt: Attempt,
    /// How many items the payload holds; what is not begun of them can be taken back.
    pub items: u32,
    /// Blobs that the payload refers to, in the order in which it numbers them.
    pub blobs: Vec<BlobId>,
    pub body: Body,
    pub buffers: Vec<Buffer>,
    /// Of a task of a graph. It makes one value, which the worker keeps under its number, as far as it can.
    pub linked: Option<Linked>,
}

/// What the task of a graph has beside its payload.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Linked {
    /// Tasks whose results it takes: the worker has made or been sent them.
    pub inputs: Vec<TaskId>,
    /// What it holds of the worker's resources.
    pub granted: Vec<Granted>,
}

/// What a task holds of a resource: how much in all, and of which units.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Granted {
    pub name: String,
    pub amount: f64,
    pub units: Vec<(u32, f64)>,
}

impl From<&Grant> for Granted {
    fn from(grant: &Grant) -> Self {
        let units = grant.units.iter().map(|(unit, amount)| (*unit, amount.to_f64())).collect();
        Self { name: grant.name.to_string(), amount: grant.amount.to_f64(), units }
    }
}

/// From the scheduler's process to a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToWorker {
    /// The first word: who it is, and how many workers there are to be.
    Welcome {
        worker: WorkerId,
        workers: u32,
    },
    Run(RunTask),
    /// Bytes to keep until `ForgetBlob`.
    Blob {
        blob: BlobId,
        body: Body,
        buffers: Vec<Buffer>,
    },
    ForgetBlob {
        blob: BlobId,
    },
    /// The result of a task, to keep until `ForgetResult`.
    Result {
        task: TaskId,
        body: Body,
        buffers: Vec<Buffer>,
    },
    ForgetResult {
        task: TaskId,
    },
    /// A segment of the sender's; its file descriptor comes with the frame.
    Segment {
        segment: SegmentId,
        bytes: u64,
    },
    /// The sender has given a segment of its own up: unmap it as soon as nothing refers to it.
    Unmap {
        segment: SegmentId,
    },
    /// Nothing refers to this segment of the worker's any more: it may be filled again.
    Recycle {
        segment: SegmentId,
    },
    /// As `Recycle`, but some other process may still look at it: it may be given up, and not filled.
    Retire {
        segment: SegmentId,
    },
    /// Give back what has not begun of the task; answered by `Returned` or `Finished`.
    Retract {
        task: TaskId,
        attempt: Attempt,
    },
    /// The end of a task that the worker has submitted and wants.
    Ended {
        task: TaskId,
        how: Ended,
        body: Body,
        buffers: Vec<Buffer>,
    },
}

/// Where the time of one task went, by the worker's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Timings {
    pub loading: Duration,
    pub running: Duration,
    pub dumping: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// The body holds the list of results.
    Results,
    /// The body holds the exception.
    Error,
}

/// From a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromWorker {
    Ready,
    /// Memory in which reports stand before they are sent, so that they outlive the worker; its file descriptor comes
    /// with the frame.
    Ledger {
        bytes: u64,
    },
    Finished {
        task: TaskId,
        attempt: Attempt,
        report: Report,
        body: Body,
        buffers: Vec<Extent>,
        timings: Timings,
        /// The worker has the result itself, for other tasks that take it.
        kept: bool,
    },
    Returned {
        task: TaskId,
        attempt: Attempt,
        kept: u32,
    },
    /// The task waits for others, and has given its place up.
    Parked {
        task: TaskId,
        attempt: Attempt,
    },
    /// It has its place again.
    Resumed {
        task: TaskId,
        attempt: Attempt,
    },
    /// A segment of the worker's that results refer to; its file descriptor comes with the frame.
    Segment {
        segment: SegmentId,
        bytes: u64,
    },
    /// The worker has given a segment of its own up.
    Unmap {
        segment: SegmentId,
    },
    /// Something that a task has left behind in the worker still refers to a segment of the receiver's.
    Kept {
        segment: SegmentId,
    },
    /// A pickled log record, in the body.
    Log,
    /// Of a task that submits tasks.
    Nested(FromTask),
}
