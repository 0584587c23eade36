//! What a node knows, and what it makes of what it is told.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use rustdask_core::cluster::{FromNode, NodeSpec, Thing, ToNode};
use rustdask_core::{BlobId, NodeId, SegmentId, TaskId, WorkerId};
use rustdask_runtime::connection::Connection;
use rustdask_runtime::parcel::Blob;
use rustdask_runtime::stored::Stored;
use rustdask_runtime::workers::Command;
use tokio::sync::{mpsc, oneshot};

use super::ends::EndToTell;
use super::options::Notice;
use super::places::{Place, Starts};
use super::recipe::Recipe;
use super::runs::Pending;
use crate::data::{Holdings, Peers, Received, Unfetched};

/// What is held by one `Holds`: it has to fit into a header.
const HELD_AT_ONCE: usize = 10_000;

/// A thing to be got. The answer goes to [`Node::arrived`].
pub(crate) struct Errand {
    pub(crate) thing: Thing,
    pub(crate) from: Vec<NodeId>,
}

/// The scheduler, as the node speaks to it.
pub(crate) type Uplink = Box<dyn Fn(&FromNode, Bytes)>;

/// Who waits for a thing.
pub(crate) enum Waiter {
    Run(WorkerId, TaskId),
    End(WorkerId, TaskId),
    /// A node that leaves.
    Taken(oneshot::Sender<Result<(), String>>),
}

/// A thing that is being got.
pub(crate) struct Fetching {
    pub(crate) waiters: Vec<Waiter>,
    /// Nodes that were named since.
    pub(crate) more: Vec<NodeId>,
}

pub(crate) struct Node {
    pub(crate) number: NodeId,
    pub(crate) spec: NodeSpec,
    pub(crate) holdings: Arc<Holdings>,
    pub(crate) peers: Arc<Peers>,
    /// The scheduler that was lost, until the next has been told what is here.
    before: Option<u64>,
    /// None while there is no scheduler.
    pub(crate) uplink: Option<Uplink>,
    pub(crate) notice: Arc<dyn Fn(Notice<'_>) + Send + Sync>,
    pub(crate) worker_memory_limit_bytes: u64,

    pub(crate) orders: mpsc::UnboundedSender<Command>,
    pub(crate) errands: mpsc::UnboundedSender<Errand>,

    pub(crate) places: HashMap<WorkerId, Place>,
    /// Workers of a scheduler that was lost, until they have ended.
    pub(crate) condemned: Vec<Arc<Connection>>,
    pub(crate) starts: Starts,
    /// Workers to which something was said that has not been sent.
    pub(crate) addressed: HashSet<WorkerId>,

    pub(crate) blobs: HashMap<BlobId, Recipe<Arc<Blob>>>,
    /// Values of clients: they may name segments that are not here yet.
    pub(crate) values: HashMap<TaskId, Recipe<()>>,
    /// Small results on their way to workers, which keep them while any task there takes them.
    pub(crate) passing: HashMap<TaskId, Arc<Stored>>,
    /// Who has the segments that tasks name.
    pub(crate) segments: HashMap<SegmentId, Vec<NodeId>>,

    pub(crate) pending: HashMap<(WorkerId, TaskId), Pending>,
    pub(crate) ends: HashMap<(WorkerId, TaskId), EndToTell>,
    pub(crate) fetching: HashMap<Thing, Fetching>,

    pub(crate) leaving: bool,
    /// Why the node cannot go on.
    pub(crate) fatal: Option<String>,
}

/// What a node is made of.
pub(crate) struct Parts {
    pub(crate) spec: NodeSpec,
    pub(crate) holdings: Arc<Holdings>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) notice: Arc<dyn Fn(Notice<'_>) + Send + Sync>,
    pub(crate) worker_memory_limit_bytes: u64,
    pub(crate) orders: mpsc::UnboundedSender<Command>,
    pub(crate) errands: mpsc::UnboundedSender<Errand>,
}

impl Node {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { spec, holdings, peers, notice, worker_memory_limit_bytes, orders, errands } = parts;
        Self {
            number: NodeId::default(),
            spec,
            holdings,
            peers,
            before: None,
            uplink: None,
            notice,
            worker_memory_limit_bytes,
            orders,
            errands,
            places: HashMap::new(),
            condemned: Vec::new(),
            starts: Starts::default(),
            addressed: HashSet::new(),
            blobs: HashMap::new(),
            values: HashMap::new(),
            passing: HashMap::new(),
            segments: HashMap::new(),
            pending: HashMap::new(),
            ends: HashMap::new(),
            fetching: HashMap::new(),
            leaving: false,
            fatal: None,
        }
    }

    /// There is a scheduler. `before`: the one that was lost, if there was any.
    pub(crate) fn joined(&mut self, number: NodeId, before: Option<u64>, uplink: Uplink) {
        self.number = number;
        self.uplink = Some(uplink);
        self.say(&FromNode::Joined(self.spec.clone()), Bytes::new());
        self.before = before;
        if self.spec.workers == 0 {
            self.say_what_is_held();
        }
        self.fill_places();
    }

    /// The scheduler is lost. Whatever another one makes of it, it gives this node a number of its own; so the workers end,
    /// and what they were doing is done again. Results stay.
    pub(crate) fn disconnected(&mut self) {
        self.uplink = None;
        self.condemn_all();
        self.addressed.clear();
        self.passing.clear();
        self.blobs.clear();
        for task in std::mem::take(&mut self.values).into_keys() {
            self.holdings.forget(Thing::Result(task));
        }
        // The scheduler names the nodes again, by other numbers.
        self.segments.clear();
        self.peers.clear();
        for fetching in self.fetching.values_mut() {
            fetching.more.clear();
            fetching.waiters.retain(|waiter| matches!(waiter, Waiter::Taken(_)));
        }
    }

    /// To the scheduler, results are with workers: so not before there is one.
    pub(crate) fn say_what_is_held(&mut self) {
        let Some(cluster) = self.before.take() else { return };
        let (results, segments) = (self.holdings.results(), self.holdings.segments());
        for results in results.chunks(HELD_AT_ONCE) {
            self.say(&FromNode::Holds { cluster, results: results.to_vec(), segments: vec![] }, Bytes::new());
        }
        for segments in segments.chunks(HELD_AT_ONCE) {
            self.say(&FromNode::Holds { cluster, results: vec![], segments: segments.to_vec() }, Bytes::new());
        }
    }

    pub(crate) fn say(&self, message: &FromNode, body: Bytes) {
        if let Some(uplink) = &self.uplink {
            uplink(message, body);
        }
    }

    /// A word of the scheduler's.
    pub(crate) fn handle(&mut self, message: ToNode, body: Vec<u8>) {
        match message {
            ToNode::Peer { node, address } => self.meet(node, &address),
            ToNode::PeerGone { node } => self.peers.remove(node),
            ToNode::Run { worker, run } => self.run(worker, run, body),
            ToNode::Retract { worker, task, attempt } => self.retract(worker, task, attempt),
            ToNode::Kill { worker } => {
                if let Some(place) = self.places.get(&worker) {
                    place.connection.kill();
                }
            }
            ToNode::Blob { blob, pickle } => drop(self.blobs.insert(blob, Recipe::new(pickle, body))),
            ToNode::ForgetBlob { blob } => self.forget_blob(blob),
            ToNode::ForgetResult { task } => self.forget_result(task),
            ToNode::Segment { segment, bytes: _, nodes } => self.segment_is_on(segment, nodes),
            ToNode::ForgetSegment { segment } => self.forget_segment(segment),
            ToNode::Ended { worker, task, how, from } => self.tell_end(worker, task, how, from, body),
            ToNode::Stop => self.leave(),
        }
    }

    fn meet(&self, node: NodeId, address: &str) {
        match address.parse() {
            Ok(address) => self.peers.add(node, address),
            // Whatever it has cannot be got, which is said when it is tried.
            Err(why) => (self.notice)(Notice::Warning(&format!("node {} cannot be reached: {why}", node.0))),
        }
    }

    fn forget_blob(&mut self, blob: BlobId) {
        let Some(forgotten) = self.blobs.remove(&blob) else { return };
        let large = forgotten.made().is_some_and(|blob| blob.is_large());
        self.connections().for_each(|connection| connection.forget_blobs(&[blob], large));
    }

    fn forget_result(&mut self, task: TaskId) {
        self.holdings.forget(Thing::Result(task));
        self.values.remove(&task);
        self.passing.remove(&task);
        self.connections().for_each(|connection| connection.forget_result(task));
    }

    fn segment_is_on(&mut self, segment: SegmentId, nodes: Vec<NodeId>) {
        let nodes: Vec<NodeId> = nodes.into_iter().filter(|node| *node != self.number).collect();
        if let Some(fetching) = self.fetching.get_mut(&Thing::Segment(segment)) {
            fetching.more.extend(&nodes);
        }
        self.segments.insert(segment, nodes);
    }

    fn forget_segment(&mut self, segment: SegmentId) {
        self.segments.remove(&segment);
        self.holdings.forget(Thing::Segment(segment));
        self.connections().for_each(|connection| connection.forget(segment));
    }

    fn connections(&self) -> impl Iterator<Item = &Arc<Connection>> {
        self.places.values().map(|place| &place.connection)
    }

    /// A segment has been put here.
    pub(crate) fn has_segment(&self, segment: SegmentId, bytes: u64) {
        self.say(&FromNode::Segment { segment, bytes }, Bytes::new());
    }

    /// Get a thing for somebody.
    pub(crate) fn fetch(&mut self, thing: Thing, from: &[NodeId], waiter: Waiter) {
        let from: Vec<NodeId> = from.iter().copied().filter(|node| *node != self.number).collect();
        if let Some(fetching) = self.fetching.get_mut(&thing) {
            fetching.waiters.push(waiter);
            fetching.more.extend(from);
            return;
        }
        self.fetching.insert(thing, Fetching { waiters: vec![waiter], more: Vec::new() });
        // Whoever takes errands ends after the node.
        let _ = self.errands.send(Errand { thing, from });
    }

    /// A thing is here, or cannot be got.
    pub(crate) fn arrived(&mut self, thing: Thing, outcome: Result<Received, Unfetched>) {
        let Some(mut fetching) = self.fetching.remove(&thing) else { return };
        let outcome = outcome.and_then(|received| self.keep(thing, received));
        if let Err(Unfetched::Missing(missing)) = &outcome {
            let untried: Vec<NodeId> = fetching.more.drain(..).filter(|node| !missing.contains(node)).collect();
            if !untried.is_empty() {
                self.fetching.insert(thing, fetching);
                let _ = self.errands.send(Errand { thing, from: untried });
                return;
            }
        }
        for waiter in fetching.waiters {
            match waiter {
                Waiter::Run(worker, task) => self.input_arrived(worker, task, thing, &outcome),
                Waiter::End(worker, task) => self.end_arrived(worker, task, &outcome),
                Waiter::Taken(done) => {
                    let taken = match &outcome {
                        Ok(()) => Ok(()),
                        Err(why) => Err(why.to_string()),
                    };
                    // The one who asked may be gone.
                    let _ = done.send(taken);
                }
            }
        }
    }

    fn keep(&mut self, thing: Thing, received: Received) -> Result<(), Unfetched> {
        match thing {
            Thing::Result(task) => {
                let stored = received.into_stored(|| self.holdings.memory.store.fresh_id());
                self.holdings.keep(task, stored);
                self.say(&FromNode::Copied { task }, Bytes::new());
            }
            Thing::Segment(id) => {
                let segment = received.into_segment().map_err(Unfetched::NoRoom)?;
                let bytes = segment.bytes;
                self.holdings.keep_segment(id, crate::data::HeldSegment::Own(Arc::new(segment)));
                self.has_segment(id, bytes);
            }
        }
        Ok(())
    }

    /// Another node leaves, and wants this one to have what it has.
    pub(crate) fn take(&mut self, thing: Thing, from: NodeId, done: oneshot::Sender<Result<(), String>>) {
        if self.holdings.has(thing) {
            let _ = done.send(Ok(()));
        } else if self.leaving {
            let _ = done.send(Err("this node leaves, too".into()));
        } else {
            self.fetch(thing, &[from], Waiter::Taken(done));
        }
    }

    /// Some time has passed: about a second.
    pub(crate) fn beat(&mut self) {
        let load = self.load();
        self.say(&FromNode::Alive(load), Bytes::new());
        if self.starts.due(Instant::now()) {
            self.fill_places();
        }
    }

    /// Take no more tasks.
    pub(crate) fn leave(&mut self) {
        if !std::mem::replace(&mut self.leaving, true) {
            self.say(&FromNode::Leaving, Bytes::new());
        }
    }

    /// No task is here any more.
    pub(crate) fn is_drained(&self) -> bool {
        self.pending.is_empty() && self.places.values().all(|place| place.running.is_empty())
    }

    /// Send what was kept until all is decided.
    pub(crate) fn flush(&mut self) {
        for worker in self.addressed.drain() {
            if let Some(place) = self.places.get(&worker) {
                place.connection.outbox.flush();
            }
        }
    }
}
