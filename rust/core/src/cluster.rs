//! What the processes of a cluster say to each other, once they know each other's secret.
//!
//! A *node* is a machine's part of the cluster: one process that has worker processes, keeps their results, and hands
//! these out to other nodes and to clients. Clients and nodes each have a *control* connection to the scheduler; data goes over
//! *data* connections between those who have it and those who need it, and the scheduler sees none of it, except for
//! results that are smaller than the question for them would be.
//!
//! Numbers: the scheduler gives each node and client one of its own in [`Welcome`]. Whatever they number themselves begins
//! with that ([`Numbers`], [`NodeId::worker`]), so nobody need ask before naming something.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ending::Obituary;
use crate::id::{Attempt, BlobId, CallId, NodeId, SegmentId, TaskId, WorkerId};
use crate::message::{Extent, Granted, Report, Timings};
use crate::nested::{Ended, FromTask};

/// Version of everything in this module. Peers that speak another are refused.
pub const PROTOCOL: u16 = 1;

/// Longest body of a control frame. What is larger is data.
pub const MAX_CONTROL_BODY_BYTES: u64 = 16 << 20;

/// A result whose pickle is no longer than this, and has no buffers beside it, goes with the report of it.
pub const SMALL_RESULT_BYTES: usize = 4 << 10;

/// Who opens a connection, and what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    Client,
    Node,
    /// Asks for data, or brings some. To nodes, and to a scheduler that stands between a client and nodes.
    Data,
    /// Asks for one [`Info`].
    Observer,
}

/// The first message on a connection. The transport has compared [`PROTOCOL`] before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    pub role: Role,
    pub versions: Versions,
}

/// What must be alike, or should be, where pickles are exchanged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    pub rustdask: String,
    /// Major and minor. Functions pickled by one cannot be run by another.
    pub python: (u8, u8),
    /// Of libraries that pickles may refer to, by name.
    pub libraries: Vec<(String, String)>,
}

/// The answer to [`Hello`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    Welcome(Welcome),
    /// In a sentence for people.
    Refused(String),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    /// Of the scheduler, new with each start of it.
    pub cluster: u64,
    /// The node's or client's own.
    pub number: u32,
    pub versions: Versions,
}

/// What a node is; its first word to the scheduler.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeSpec {
    pub name: String,
    /// Where others get its data: `host:port`.
    pub address: String,
    /// Worker processes that it will have.
    pub workers: u32,
    /// What tasks on it may hold together.
    pub resources: Vec<(String, f64)>,
    pub memory_limit_bytes: u64,
    pub pid: u32,
    pub host: String,
}

/// From a node to the scheduler.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromNode {
    Joined(NodeSpec),
    /// A worker process is ready.
    WorkerJoined {
        worker: WorkerId,
        pid: u32,
    },
    /// A worker process has ended, or could not be started.
    WorkerLost {
        worker: WorkerId,
        obituary: Obituary,
    },
    /// The body is the pickle of a small result, or of the exception. Where it is empty, the node keeps it, under the number of the
    /// task, until [`ToNode::ForgetResult`].
    Finished {
        worker: WorkerId,
        task: TaskId,
        attempt: Attempt,
        report: Report,
        bytes: u64,
        timings: Timings,
    },
    /// As [`crate::message::FromWorker::Returned`].
    Returned {
        worker: WorkerId,
        task: TaskId,
        attempt: Attempt,
        kept: u32,
    },
    /// As [`crate::message::FromWorker::Parked`].
    Parked {
        worker: WorkerId,
        task: TaskId,
        attempt: Attempt,
    },
    /// As [`crate::message::FromWorker::Resumed`].
    Resumed {
        worker: WorkerId,
        task: TaskId,
        attempt: Attempt,
    },
    /// The task was not begun, since this could not be got from these nodes. Where nothing is missing, this node has no room for it.
    Unfetched {
        worker: WorkerId,
        task: TaskId,
        attempt: Attempt,
        missing: Vec<(Thing, NodeId)>,
    },
    /// The worker could not be told of the end of a task that it has submitted: the result could not be got from these nodes.
    Untold {
        worker: WorkerId,
        task: TaskId,
        missing: Vec<NodeId>,
    },
    /// The node has a copy of the result, too. If nobody needs it any more, the node is told to forget it.
    Copied {
        task: TaskId,
    },
    /// The node has got a segment, from a client, another node, or a task that submits tasks. The same holds for that.
    Segment {
        segment: SegmentId,
        bytes: u64,
    },
    /// Another node has taken what this one, which leaves, has had. The same holds for that one.
    Moved {
        thing: Thing,
        to: NodeId,
    },
    /// After the first `WorkerJoined`, from a node that has lost its scheduler: what it has still, with bytes. What nobody needs, it is told to
    /// forget. `cluster`: the scheduler that it had.
    Holds {
        cluster: u64,
        results: Vec<(TaskId, u64)>,
        segments: Vec<(SegmentId, u64)>,
    },
    /// Text that a worker wrote, or a pickled log record, in the body.
    Output {
        call: Option<CallId>,
        error_stream: bool,
        log: bool,
    },
    /// A task of the worker submits tasks.
    Nested {
        worker: WorkerId,
        word: FromTask,
    },
    /// Said again and again: the node is alive.
    Alive(Load),
    /// It takes no more tasks, and leaves when it has none.
    Leaving,
}

/// How a node fares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Load {
    pub result_bytes: u64,
    pub spilled_bytes: u64,
    pub memory_bytes: u64,
    pub cpu: Duration,
}

/// Where a task finds what it takes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Source {
    /// So many of the frame's body, after what stands before it there.
    Inline { bytes: u32 },
    /// Any of these nodes has it.
    Nodes(Vec<NodeId>),
    /// A value of a client's: the pickle is in the frame's body or in a segment. `None`: it was sent before, and not
    /// forgotten since.
    Value(Option<Pickle>),
}

/// A task for a worker of a node. The body: the pickle of its arguments, then what is [`Source::Inline`], in order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunOnNode {
    pub call: CallId,
    pub task: TaskId,
    pub attempt: Attempt,
    pub blobs: Vec<BlobId>,
    pub pickle: Pickle,
    pub inputs: Vec<(TaskId, Source)>,
    pub granted: Vec<Granted>,
}

/// A pickle, and the buffers beside it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pickle {
    pub place: PicklePlace,
    pub buffers: Vec<Extent>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PicklePlace {
    /// So many bytes of the frame's body.
    Inline {
        bytes: u32,
    },
    Segment(Extent),
}

impl Default for PicklePlace {
    fn default() -> Self {
        Self::Inline { bytes: 0 }
    }
}

impl Pickle {
    /// Bytes of a frame's body that belong to it.
    pub fn inline_bytes(&self) -> usize {
        match self.place {
            PicklePlace::Inline { bytes } => bytes as usize,
            PicklePlace::Segment(_) => 0,
        }
    }

    /// The segments that it names, one for each place.
    pub fn segments(&self) -> impl Iterator<Item = SegmentId> + '_ {
        let place = match &self.place {
            PicklePlace::Inline { .. } => None,
            PicklePlace::Segment(extent) => Some(extent),
        };
        place.into_iter().chain(&self.buffers).map(|extent| extent.segment)
    }
}

/// From the scheduler to a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToNode {
    /// Where another node's data is.
    Peer {
        node: NodeId,
        address: String,
    },
    PeerGone {
        node: NodeId,
    },
    Run {
        worker: WorkerId,
        run: RunOnNode,
    },
    /// Give back what has not begun of the task; answered by `Returned` or `Finished`.
    Retract {
        worker: WorkerId,
        task: TaskId,
        attempt: Attempt,
    },
    /// End the process. Another takes its place.
    Kill {
        worker: WorkerId,
    },
    /// What tasks will refer to. The body is its pickle, where that is inline.
    Blob {
        blob: BlobId,
        pickle: Pickle,
    },
    ForgetBlob {
        blob: BlobId,
    },
    /// Nobody needs the result from this node.
    ForgetResult {
        task: TaskId,
    },
    /// Who has a segment that tasks and blobs name from here on.
    Segment {
        segment: SegmentId,
        bytes: u64,
        nodes: Vec<NodeId>,
    },
    ForgetSegment {
        segment: SegmentId,
    },
    /// Of a task that a worker has submitted. The body is its result, or its exception, where that is small.
    Ended {
        worker: WorkerId,
        task: TaskId,
        how: Ended,
        from: Source,
    },
    /// Leave.
    Stop,
}

/// From a client to the scheduler.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromClient {
    /// A call, whose number is the client's.
    Open {
        call: CallId,
        cap: u32,
        crash_retries: u32,
    },
    /// What workers are to be like for the tasks from here on: a function of the client's.
    Settings {
        function: BlobId,
    },
    Close {
        call: CallId,
    },
    Task {
        call: CallId,
        word: FromTask,
    },
    ForgetSegment {
        segment: SegmentId,
    },
    /// The result could not be got from this node.
    Unfetched {
        task: TaskId,
        node: NodeId,
    },
    Info,
}

/// From the scheduler to a client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToClient {
    Peer {
        node: NodeId,
        address: String,
    },
    PeerGone {
        node: NodeId,
    },
    /// The end of a task that the client wants. The body is its result, or its exception, where that is small. Said again where
    /// a result was lost and is there once more.
    Ended {
        task: TaskId,
        how: Ended,
        from: Source,
    },
    /// The nodes that had the result are gone. It is computed again.
    Lost {
        task: TaskId,
    },
    /// A segment is on no node any more.
    LostSegment {
        segment: SegmentId,
    },
    Output {
        error_stream: bool,
        log: bool,
    },
    Info(Info),
}

/// What a scheduler says of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Info {
    pub cluster: u64,
    pub versions: Versions,
    pub uptime: Duration,
    pub clients: u32,
    /// Tasks that are known, that have not ended, and that wait for a worker and for nothing else.
    pub tasks: u64,
    pub active: u64,
    pub queued: u64,
    pub nodes: Vec<NodeInfo>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeInfo {
    pub node: u32,
    pub spec: NodeSpec,
    pub versions: Versions,
    /// Its workers: number and process.
    pub workers: Vec<(u32, u32)>,
    pub load: Load,
    pub leaving: bool,
    /// Since it was last heard of.
    pub silent: Duration,
}

/// On a data connection, from the one who opened it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum DataRequest {
    /// Answered by [`DataAnswer`], and by at most so many bytes if that is `Found`: the parts, one behind the other, from
    /// `offset` on.
    Get { thing: Thing, offset: u64, bytes: u64 },
    /// So many bytes follow; answered by `Stored` when all are there.
    Put { segment: SegmentId, bytes: u64 },
    /// Get this from a node that leaves; answered by `Stored`.
    Take { thing: Thing, from: NodeId },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Thing {
    Result(TaskId),
    Segment(SegmentId),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum DataAnswer {
    /// `parts`: lengths of the pickle and of the buffers beside it, which follow each other; a segment has one part.
    Found {
        parts: Vec<u64>,
    },
    NotHere,
    Stored,
    Failed(String),
}
