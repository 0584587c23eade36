//! In a worker process: the session of the tasks that it runs, which submit to the pool that the worker belongs to.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};
use rustdask_core::message::Extent;
use rustdask_core::nested::{Ended, Fault, Submitted};
use rustdask_core::{BlobId, TaskId, TaskSpec};
use rustdask_runtime::delivery::Reported;
use rustdask_runtime::endpoint::{Blob, Bytes, Endpoint};
use rustdask_runtime::upstream::{inline, Frames};

use crate::node::{Failure, FailureKind, Made, Node, Settled};
use crate::shipment::{dumped, dumped_arguments, pickled_once, Functions};
use crate::transport::OutOfBand;
use crate::work::Work;
use crate::worker::{place, running_task};

pub(crate) struct Upstream {
    pub(crate) endpoint: Arc<Endpoint>,
    /// A `NestedSerializer`.
    serializer: Py<PyAny>,
    /// Starts a thread that runs tasks of the worker.
    start_stand_in: Py<PyAny>,
    /// Tasks that have not ended and that somebody here wants.
    nodes: Mutex<HashMap<TaskId, Arc<Node>>>,
    /// Those that come out the same each time.
    functions: Mutex<Functions<SentFunction>>,
}

/// A function that the process has been sent which the worker belongs to.
pub(crate) struct SentFunction {
    id: BlobId,
    endpoint: Arc<Endpoint>,
}

impl Drop for SentFunction {
    fn drop(&mut self) {
        // Where it cannot be said, the other side is gone.
        let _ = self.endpoint.forget_function(self.id);
    }
}

/// A task that is to be sent.
pub(crate) struct Outgoing {
    function: Arc<SentFunction>,
    pickle: Py<PyBytes>,
    buffers: Vec<Py<PyAny>>,
}

/// The blob that it came in, if it is to go on as that; whether it comes out the same each time.
type DumpedFunction<'py> = (Option<u64>, bool, Bound<'py, PyBytes>, Vec<OutOfBand<'py>>);

impl Upstream {
    pub(crate) fn new(endpoint: Arc<Endpoint>, serializer: Py<PyAny>, start_stand_in: Py<PyAny>) -> Arc<Self> {
        let (nodes, functions) = (Mutex::default(), Mutex::default());
        let upstream = Arc::new(Self { endpoint, serializer, start_stand_in, nodes, functions });
        let listener: Weak<Self> = Arc::downgrade(&upstream);
        upstream.endpoint.listen(Box::new(move |task, how, sent| {
            if let Some(upstream) = listener.upgrade() {
                upstream.ended(task, how, sent);
            }
        }));
        upstream
    }

    pub(crate) fn reserve(&self, tasks: u64) -> TaskId {
        TaskId(self.endpoint.take_numbers(tasks))
    }

    /// Tasks that have not ended.
    pub(crate) fn open(&self) -> usize {
        self.nodes.lock().expect("no holder panics").len()
    }

    pub(crate) fn start_stand_in(&self, py: Python<'_>) -> PyResult<()> {
        self.start_stand_in.call0(py).map(|_| ())
    }

    /// `functions`: of this submission. `plain`: its arguments are of types that pickle needs no help with.
    pub(crate) fn pickle<'py>(
        &self,
        py: Python<'py>,
        function: &Bound<'py, PyAny>,
        functions: &mut Functions<SentFunction>,
        arguments: Bound<'py, PyTuple>,
        plain: bool,
    ) -> PyResult<Outgoing> {
        let function = self.function(py, function, functions)?;
        let (pickle, buffers) = dumped_arguments(&self.serializer, &arguments, plain)?;
        let buffers = buffers.into_iter().map(|(buffer, _)| buffer.unbind()).collect();
        Ok(Outgoing { function, pickle: pickle.unbind(), buffers })
    }

    /// Before a submission.
    pub(crate) fn begin(&self, py: Python<'_>) -> PyResult<()> {
        self.serializer.bind(py).call_method0(intern!(py, "begin")).map(|_| ())
    }

    fn function<'py>(
        &self,
        py: Python<'py>,
        function: &Bound<'py, PyAny>,
        functions: &mut Functions<SentFunction>,
    ) -> PyResult<Arc<SentFunction>> {
        pickled_once(function, functions, &self.functions, || {
            let dumped = self.serializer.bind(py).call_method1(intern!(py, "function"), (function,))?;
            let (same_as, is_constant, pickle, buffers): DumpedFunction<'_> = dumped.extract()?;
            let buffers = self.place_all(py, buffers.iter().map(|(buffer, _)| buffer))?;
            let id = BlobId(self.endpoint.take_numbers(1));
            let bytes = pickle.as_bytes();
            py.detach(|| self.endpoint.send_function(id, same_as.map(BlobId), bytes, buffers))?;
            Ok((Arc::new(SentFunction { id, endpoint: self.endpoint.clone() }), is_constant))
        })
    }

    fn place_all<'a, 'py: 'a>(
        &self,
        py: Python<'py>,
        buffers: impl Iterator<Item = &'a Bound<'py, PyAny>>,
    ) -> PyResult<Vec<Extent>> {
        buffers.map(|buffer| place(py, &self.endpoint, buffer)).collect()
    }

    /// Send a value that tasks will take.
    pub(crate) fn send_value(
        &self,
        py: Python<'_>,
        task: TaskId,
        name: &str,
        value: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let (pickle, buffers) = dumped(&self.serializer, intern!(py, "value"), value)?;
        let buffers = self.place_all(py, buffers.iter().map(|(buffer, _)| buffer))?;
        let bytes = pickle.as_bytes();
        Ok(py.detach(|| self.endpoint.send_value(task, name, bytes, buffers))?)
    }

    pub(crate) fn submit(&self, py: Python<'_>, tasks: Vec<(TaskSpec, Work)>) -> PyResult<()> {
        let mut frames = Frames::default();
        let mut wanted = Vec::new();
        let mut functions = Vec::new();
        for (spec, work) in &tasks {
            let Some(node) = work.node() else { continue };
            let Some((outgoing, inputs)) = node.take_outgoing() else { continue };
            let pickle = outgoing.pickle.as_bytes(py);
            let buffers = self.place_all(py, outgoing.buffers.iter().map(|buffer| buffer.bind(py)))?;
            let body = self.endpoint.put(pickle)?;
            let inputs = inputs.iter().map(|input| input.id).collect();
            let task = Submitted::new(spec, &node.name, outgoing.function.id, (body, buffers), inputs);
            frames.task(task, inline(body, pickle));
            functions.push(outgoing.function.clone());
            wanted.extend(spec.wanted.then(|| (node.id, node.clone())));
        }
        self.nodes.lock().expect("no holder panics").extend(wanted);
        let by = running_task();
        py.detach(|| self.endpoint.submit(frames, by))?;
        // Only now may they be forgotten.
        drop(functions);
        Ok(())
    }

    pub(crate) fn release(&self, task: TaskId) {
        drop(self.take(task));
        // Where it cannot be said, the other side is gone.
        let _ = self.endpoint.release(vec![task]);
    }

    fn take(&self, task: TaskId) -> Option<Arc<Node>> {
        self.nodes.lock().expect("no holder panics").remove(&task)
    }

    fn ended(&self, task: TaskId, how: Ended, sent: Blob) {
        let Some(node) = self.take(task) else { return };
        match how {
            Ended::Finished => node.told(Some(Made::Sent(sent)), Settled::Finished),
            Ended::Failed { task, name, fault } => {
                let failure = Failure { kind: failure_kind(fault, copied(sent.body)), task, name: name.into() };
                node.told(None, Settled::Failed(Arc::new(failure)));
            }
        }
    }
}

/// `raised`: the exception, pickled.
pub(crate) fn failure_kind(fault: Fault, raised: Vec<u8>) -> FailureKind {
    match fault {
        Fault::Raised => FailureKind::Remote(Reported::Inline(raised)),
        Fault::Unreported(unreported) => FailureKind::Unreported(unreported),
        Fault::Cancelled => FailureKind::Cancelled,
        Fault::Unrunnable => FailureKind::Unrunnable,
        Fault::Broken => FailureKind::Broken,
        Fault::Closed => FailureKind::Closed,
    }
}

fn copied(bytes: Bytes) -> Vec<u8> {
    match bytes {
        Bytes::Inline(bytes) => Arc::unwrap_or_clone(bytes),
        // What was mapped is as long as it was said to be.
        Bytes::Mapped(view) => view.mapping.copy_range(view.offset, view.bytes).unwrap_or_default(),
    }
}
