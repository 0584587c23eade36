//! What the scheduler keeps of clients' tasks: what to send to the worker that runs one, and whom to tell of its end.
//!
//! Nothing here is unpickled. Functions, values and segments belong to the client that has sent them; tasks hold what they
//! name, and with the last holder the nodes are told to forget it.

use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use rustdask_core::cluster::{Pickle, Source, ToClient};
use rustdask_core::nested::{Ended, Fault};
use rustdask_core::{Attempt, BlobId, Grant, NodeId, Outcome, SegmentId, TaskId};
use rustdask_runtime::delivery::Delivery;
use rustdask_runtime::driver::{End, Links, Payload};

use super::client::Client;
use super::nodes::Nodes;

/// Memory that a client has brought to a node. Nodes forget it when nobody refers to it.
pub(crate) struct Segment {
    id: SegmentId,
    nodes: Arc<Nodes>,
}

impl Segment {
    pub(crate) fn named(id: SegmentId, nodes: Arc<Nodes>) -> Arc<Self> {
        nodes.segment_named(id);
        Arc::new(Self { id, nodes })
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        self.nodes.forget_segment(self.id);
    }
}

/// Something pickled.
pub(crate) struct Parcel {
    pub(crate) pickle: Pickle,
    /// The pickle itself, where it is inline.
    pub(crate) body: Bytes,
    #[allow(dead_code, reason = "they are there to be dropped")]
    pub(crate) segments: Box<[Arc<Segment>]>,
}

/// A pickle that tasks refer to. Nodes forget it with the last of them.
pub(crate) struct Blob {
    pub(crate) id: BlobId,
    pub(crate) parcel: Parcel,
    pub(crate) nodes: Arc<Nodes>,
}

impl Drop for Blob {
    fn drop(&mut self) {
        self.nodes.forget_blob(self.id);
    }
}

/// A value of a client's that tasks take.
pub(crate) struct Value {
    pub(crate) task: TaskId,
    pub(crate) parcel: Parcel,
    pub(crate) nodes: Arc<Nodes>,
}

impl Drop for Value {
    fn drop(&mut self) {
        self.nodes.forget_value(self.task);
    }
}

/// What a task takes.
#[derive(Clone)]
pub(crate) enum Input {
    Task(Arc<Task>),
    Value(Arc<Value>),
}

pub(crate) struct Task {
    pub(crate) id: TaskId,
    /// Of its function, for people.
    pub(crate) name: Box<str>,
    pub(crate) client: Arc<Client>,
    pub(crate) parcel: Parcel,
    pub(crate) blobs: Box<[Arc<Blob>]>,
    inputs: Mutex<Box<[Input]>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The one whose report counts.
    attempt: Option<Attempt>,
    granted: Box<[Grant]>,
    made: Option<Made>,
    failure: Option<Arc<Failure>>,
}

/// A result, where it is.
struct Made {
    nodes: Vec<NodeId>,
    /// The pickle, if it is small.
    small: Option<Bytes>,
}

/// Why a task failed by itself.
struct Failure {
    task: TaskId,
    name: Box<str>,
    fault: Fault,
    /// The exception.
    body: Bytes,
}

impl Task {
    pub(crate) fn new(
        id: TaskId,
        name: String,
        client: Arc<Client>,
        parcel: Parcel,
        blobs: Box<[Arc<Blob>]>,
    ) -> Arc<Self> {
        let (inputs, state) = (Mutex::default(), Mutex::default());
        Arc::new(Self { id, name: name.into(), client, parcel, blobs, inputs, state })
    }

    pub(crate) fn set_inputs(&self, inputs: Box<[Input]>) {
        *self.inputs.lock().expect("no holder panics") = inputs;
    }

    pub(crate) fn inputs(&self) -> MutexGuard<'_, Box<[Input]>> {
        self.inputs.lock().expect("no holder panics")
    }

    pub(crate) fn granted(&self) -> Box<[Grant]> {
        self.lock().granted.clone()
    }

    /// A report that counts says that the result is there.
    pub(crate) fn made(&self, attempt: Attempt, node: NodeId, small: Option<Bytes>) {
        let mut state = self.lock();
        if state.attempt == Some(attempt) {
            state.made = Some(Made { nodes: vec![node], small });
        }
    }

    /// A report that counts says that it has raised.
    pub(crate) fn raised(&self, attempt: Attempt, exception: Bytes) {
        let mut state = self.lock();
        if state.attempt == Some(attempt) {
            state.failure = Some(self.failed(Fault::Raised, exception));
        }
    }

    /// The result is on this node, too.
    pub(crate) fn copied(&self, node: NodeId) {
        if let Some(made) = self.lock().made.as_mut().filter(|made| !made.nodes.contains(&node)) {
            made.nodes.push(node);
        }
    }

    pub(crate) fn left(&self, node: NodeId) {
        if let Some(made) = &mut self.lock().made {
            made.nodes.retain(|has| *has != node);
        }
    }

    /// Where somebody finds the result who has got the bytes with it.
    pub(crate) fn source(&self) -> (Source, Bytes) {
        match &self.lock().made {
            Some(Made { small: Some(small), .. }) => (Source::Inline { bytes: small.len() as u32 }, small.clone()),
            Some(Made { nodes, .. }) => (Source::Nodes(nodes.clone()), Bytes::new()),
            None => (Source::Nodes(Vec::new()), Bytes::new()),
        }
    }

    /// The same, if the result is anywhere.
    pub(crate) fn place(&self) -> Option<(Source, Bytes)> {
        Some(self.source()).filter(|(source, _)| !matches!(source, Source::Nodes(nodes) if nodes.is_empty()))
    }

    fn failed(&self, fault: Fault, body: Bytes) -> Arc<Failure> {
        Arc::new(Failure { task: self.id, name: self.name.clone(), fault, body })
    }

    fn failure(&self) -> Option<Arc<Failure>> {
        self.lock().failure.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// Why it has failed; `None`: it has not.
    fn settle(&self, end: End<Work>) -> Option<Arc<Failure>> {
        let fault = match end {
            End::Reported(Outcome::Ok) => return None,
            End::Reported(Outcome::Err) => {
                return self.failure().or_else(|| Some(self.failed(Fault::Closed, Bytes::new())))
            }
            End::DependencyFailed { cause } => {
                let cause = cause.and_then(|cause| cause.0.failure());
                return cause.or_else(|| Some(self.failed(Fault::Cancelled, Bytes::new())));
            }
            End::Unreported(unreported) => Fault::Unreported(unreported),
            End::Cancelled => Fault::Cancelled,
            End::Unrunnable => Fault::Unrunnable,
            End::Broken => Fault::Broken,
            End::Closed => Fault::Closed,
        };
        Some(self.failed(fault, Bytes::new()))
    }
}

impl Drop for Task {
    /// One by one: a chain of tasks may be longer than the stack is deep.
    fn drop(&mut self) {
        let inputs = |task: &mut Task| std::mem::take(task.inputs.get_mut().expect("no holder panics")).into_vec();
        let mut open = inputs(self);
        while let Some(input) = open.pop() {
            if let Input::Task(task) = input {
                if let Some(mut task) = Arc::into_inner(task) {
                    open.append(&mut inputs(&mut task));
                }
            }
        }
    }
}

/// A task, as the driver carries it.
#[derive(Clone)]
pub(crate) struct Work(pub(crate) Arc<Task>);

impl Payload for Work {
    /// Tasks of graphs have one item.
    fn split(&self, _kept: u32, _pieces: u32) -> Vec<(Self, u32)> {
        Vec::new()
    }

    fn parcel(&self) -> Option<Arc<rustdask_runtime::parcel::Parcel>> {
        None
    }

    fn links(&self) -> Option<Links> {
        None
    }

    fn deliver(&self, _attempt: Attempt, delivery: Delivery) -> Result<Box<dyn Send>, Delivery> {
        Err(delivery)
    }

    fn assigned(&self, attempt: Attempt, granted: &[Grant]) {
        let mut state = self.0.lock();
        state.attempt = Some(attempt);
        state.granted = granted.into();
    }

    fn ended(&self, end: End<Self>) {
        let task = &self.0;
        let failure = task.settle(end);
        let (how, from, body) = match &failure {
            None => {
                let (from, body) = task.source();
                (Ended::Finished, from, body)
            }
            Some(failure) => {
                let how =
                    Ended::Failed { task: failure.task, name: failure.name.to_string(), fault: failure.fault.clone() };
                (how, Source::Inline { bytes: failure.body.len() as u32 }, failure.body.clone())
            }
        };
        task.lock().failure = failure;
        task.client.tell(&ToClient::Ended { task: task.id, how, from }, body);
    }

    fn lost(&self) {
        self.0.lock().made = None;
        self.0.client.tell(&ToClient::Lost { task: self.0.id }, Bytes::new());
    }
}
