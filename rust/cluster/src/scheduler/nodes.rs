//! The nodes of a cluster, as the scheduler speaks to them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use rustdask_core::cluster::{Load, NodeInfo, NodeSpec, Pickle, RunOnNode, Source, ToNode, Versions};
use rustdask_core::message::Granted;
use rustdask_core::{Attempt, BlobId, CallId, NodeId, SegmentId, TaskId, WorkerId};

use crate::transport::Outbox;

use super::task::{Input, Task};

/// All nodes that are connected, and where clients' segments are.
#[derive(Default)]
pub(crate) struct Nodes {
    nodes: RwLock<BTreeMap<NodeId, Arc<Node>>>,
    segments: Mutex<HashMap<SegmentId, Segment>>,
}

struct Segment {
    bytes: u64,
    /// Where it was put. Others get it from there.
    nodes: Vec<NodeId>,
}

pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) spec: NodeSpec,
    pub(crate) versions: Versions,
    outbox: Outbox,
    told: Mutex<Told>,
    state: Mutex<NodeState>,
}

/// How a node fares, for people and for time limits.
pub(crate) struct NodeState {
    pub(crate) load: Load,
    pub(crate) heard: Instant,
    pub(crate) leaving: bool,
    /// Process ids of its workers.
    pub(crate) workers: BTreeMap<WorkerId, u32>,
}

/// What a node knows.
#[derive(Default)]
struct Told {
    blobs: HashSet<BlobId>,
    segments: HashSet<SegmentId>,
    values: HashSet<TaskId>,
}

impl Nodes {
    pub(crate) fn get(&self, id: NodeId) -> Option<Arc<Node>> {
        self.nodes.read().expect("no holder panics").get(&id).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Node>> {
        self.nodes.read().expect("no holder panics").values().cloned().collect()
    }

    /// A node has come; each hears of the others.
    pub(crate) fn add(&self, node: Arc<Node>) {
        let mut nodes = self.nodes.write().expect("no holder panics");
        for other in nodes.values() {
            node.send(&ToNode::Peer { node: other.id, address: other.spec.address.clone() }, Bytes::new());
            other.send(&ToNode::Peer { node: node.id, address: node.spec.address.clone() }, Bytes::new());
        }
        nodes.insert(node.id, node);
    }

    /// A node has gone. Segments that were there alone: whose they are is to be told.
    pub(crate) fn remove(&self, id: NodeId) -> Vec<SegmentId> {
        let mut nodes = self.nodes.write().expect("no holder panics");
        nodes.remove(&id);
        nodes.values().for_each(|other| other.send(&ToNode::PeerGone { node: id }, Bytes::new()));
        drop(nodes);
        let mut lost = Vec::new();
        for (segment, entry) in self.segments().iter_mut() {
            let before = entry.nodes.len();
            entry.nodes.retain(|node| *node != id);
            if before > 0 && entry.nodes.is_empty() {
                lost.push(*segment);
            }
        }
        lost
    }

    /// Somebody refers to a segment from here on.
    pub(crate) fn segment_named(&self, segment: SegmentId) {
        self.segments().insert(segment, Segment { bytes: 0, nodes: Vec::new() });
    }

    /// A segment is on a node. Where nobody refers to it any more, it need not be.
    pub(crate) fn segment_put(&self, segment: SegmentId, bytes: u64, on: NodeId) {
        let holders = self.segments().get_mut(&segment).map(|entry| {
            entry.bytes = bytes;
            if !entry.nodes.contains(&on) {
                entry.nodes.push(on);
            }
            entry.nodes.clone()
        });
        let Some(nodes) = holders else {
            return self.get(on).iter().for_each(|node| node.send(&ToNode::ForgetSegment { segment }, Bytes::new()));
        };
        // Those that were told of a place where it is not, or of none.
        let told = self.all().into_iter().filter(|node| node.told().segments.contains(&segment));
        told.for_each(|node| node.send(&ToNode::Segment { segment, bytes, nodes: nodes.clone() }, Bytes::new()));
    }

    pub(crate) fn segment_bytes(&self, segment: SegmentId) -> u64 {
        self.segments().get(&segment).map_or(0, |entry| entry.bytes)
    }

    /// A node does not have a segment that it was said to have. True if no node has it.
    pub(crate) fn segment_missing(&self, segment: SegmentId, on: NodeId) -> bool {
        self.segments().get_mut(&segment).is_some_and(|entry| {
            entry.nodes.retain(|node| *node != on);
            entry.nodes.is_empty()
        })
    }

    pub(crate) fn forget_segment(&self, segment: SegmentId) {
        let on = self.segments().remove(&segment).map(|entry| entry.nodes).unwrap_or_default();
        for node in self.all() {
            if node.told().segments.remove(&segment) || on.contains(&node.id) {
                node.send(&ToNode::ForgetSegment { segment }, Bytes::new());
            }
        }
    }

    pub(crate) fn forget_blob(&self, blob: BlobId) {
        for node in self.all() {
            if node.told().blobs.remove(&blob) {
                node.send(&ToNode::ForgetBlob { blob }, Bytes::new());
            }
        }
    }

    pub(crate) fn forget_value(&self, task: TaskId) {
        for node in self.all() {
            if node.told().values.remove(&task) {
                node.send(&ToNode::ForgetResult { task }, Bytes::new());
            }
        }
    }

    /// Hand a task to a worker, with what its node does not know yet.
    pub(crate) fn run(&self, worker: WorkerId, call: CallId, attempt: Attempt, task: &Task) {
        let Some(node) = self.get(NodeId::of(worker)) else { return };
        // Locked until all is in its place: nobody else may send a task before the blob that this one was to bring.
        let mut told = node.told();
        for blob in &task.blobs {
            if told.blobs.insert(blob.id) {
                self.tell_segments(&node, &mut told, &blob.parcel.pickle);
                node.send(
                    &ToNode::Blob { blob: blob.id, pickle: blob.parcel.pickle.clone() },
                    blob.parcel.body.clone(),
                );
            }
        }
        self.tell_segments(&node, &mut told, &task.parcel.pickle);
        let mut body = BytesMut::new();
        let inputs = self.inputs(&node, &mut told, task, &mut body);
        let body = match body.is_empty() {
            true => task.parcel.body.clone(),
            false => {
                let mut whole = BytesMut::with_capacity(task.parcel.body.len() + body.len());
                whole.extend_from_slice(&task.parcel.body);
                whole.extend_from_slice(&body);
                whole.freeze()
            }
        };
        let run = RunOnNode {
            call,
            task: task.id,
            attempt,
            blobs: task.blobs.iter().map(|blob| blob.id).collect(),
            pickle: task.parcel.pickle.clone(),
            inputs,
            granted: task.granted().iter().map(Granted::from).collect(),
        };
        node.send(&ToNode::Run { worker, run }, body);
    }

    /// What a task takes. What is small is appended to the body.
    fn inputs(&self, node: &Node, told: &mut Told, task: &Task, body: &mut BytesMut) -> Vec<(TaskId, Source)> {
        let source = |input: &Input| match input {
            Input::Task(task) => {
                let (source, small) = task.source();
                body.extend_from_slice(&small);
                (task.id, source)
            }
            Input::Value(value) => {
                let news = told.values.insert(value.task).then(|| {
                    self.tell_segments(node, told, &value.parcel.pickle);
                    body.extend_from_slice(&value.parcel.body);
                    value.parcel.pickle.clone()
                });
                (value.task, Source::Value(news))
            }
        };
        task.inputs().iter().map(source).collect()
    }

    fn tell_segments(&self, node: &Node, told: &mut Told, pickle: &Pickle) {
        for segment in pickle.segments() {
            if told.segments.insert(segment) {
                let segments = self.segments();
                let (bytes, nodes) = segments.get(&segment).map_or((0, Vec::new()), |s| (s.bytes, s.nodes.clone()));
                node.send(&ToNode::Segment { segment, bytes, nodes }, Bytes::new());
            }
        }
    }

    fn segments(&self) -> MutexGuard<'_, HashMap<SegmentId, Segment>> {
        self.segments.lock().expect("no holder panics")
    }
}

impl Node {
    pub(crate) fn new(id: NodeId, spec: NodeSpec, versions: Versions, outbox: Outbox) -> Arc<Self> {
        let state =
            NodeState { load: Load::default(), heard: Instant::now(), leaving: false, workers: BTreeMap::new() };
        Arc::new(Self { id, spec, versions, outbox, told: Mutex::default(), state: Mutex::new(state) })
    }

    pub(crate) fn send(&self, message: &ToNode, body: Bytes) {
        self.outbox.send(message, body);
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, NodeState> {
        self.state.lock().expect("no holder panics")
    }

    /// End its connection.
    pub(crate) fn give_up(&self, why: &str) {
        self.outbox.give_up(why);
    }

    /// One to stand for what the node has.
    pub(crate) fn any_worker(&self) -> Option<WorkerId> {
        self.state().workers.keys().next().copied()
    }

    /// Another worker of the node than this one, to stand for what the node has.
    pub(crate) fn sibling(&self, of: WorkerId) -> Option<WorkerId> {
        self.state().workers.keys().copied().find(|worker| *worker != of)
    }

    pub(crate) fn info(&self) -> NodeInfo {
        let state = self.state();
        NodeInfo {
            node: self.id.0,
            spec: self.spec.clone(),
            versions: self.versions.clone(),
            workers: state.workers.iter().map(|(worker, pid)| (worker.0, *pid)).collect(),
            load: state.load,
            leaving: state.leaving,
            silent: state.heard.elapsed(),
        }
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().expect("no holder panics")
    }
}
