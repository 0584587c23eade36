//! The worker process's side, for `rustdask._worker`.

use std::cell::RefCell;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyIndexError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use rustdask_core::message::{Buffer, Extent, Granted, Linked, Report, Timings};
use rustdask_core::{Attempt, BlobId, TaskId};
use rustdask_runtime::cursor::Cursor;
use rustdask_runtime::endpoint::{Blob, Bytes, Endpoint, View};
use rustdask_runtime::shm;

use crate::buffer::SharedBuffer;
use crate::transport::unpickle;

/// How long a wait for a task goes on before signals are looked at.
const SLICE: Duration = Duration::from_millis(500);

/// A worker's connection to the process that started it.
#[pyclass(frozen, module = "rustdask._core")]
pub(crate) struct WorkerEndpoint {
    pub(crate) endpoint: Arc<Endpoint>,
    /// The thread that Python calls the main one.
    first: ThreadId,
}

/// The task of a graph that a thread runs.
#[derive(Clone)]
struct Running {
    endpoint: Arc<Endpoint>,
    task: TaskId,
    attempt: Attempt,
    first: bool,
    /// It holds resources.
    has_grants: bool,
}

thread_local! {
    static RUNNING: RefCell<Option<Running>> = const { RefCell::new(None) };
}

/// While it lives, the task that this thread runs waits, and another thread runs tasks.
pub(crate) struct Waiting(Running);

impl Waiting {
    /// None if this thread runs no task of a graph. An error if no other thread can be started.
    pub(crate) fn begin(py: Python<'_>) -> PyResult<Option<Self>> {
        let Some((running, upstream)) = RUNNING.with_borrow(Clone::clone).zip(crate::session::upstream()) else {
            return Ok(None);
        };
        if running.endpoint.lacks_stand_in() {
            upstream.start_stand_in(py)?;
        }
        if running.has_grants {
            resources(py)?.call_method0(intern!(py, "hide_devices"))?;
        }
        py.detach(|| running.endpoint.park(running.task, running.attempt))?;
        // What is done meanwhile, by handlers of signals, is not the task.
        RUNNING.set(None);
        Ok(Some(Self(running)))
    }

    /// Go on, once it is this task's turn.
    pub(crate) fn end(self, py: Python<'_>) -> PyResult<()> {
        let Running { endpoint, task, attempt, first, has_grants } = self.0.clone();
        let resumed = py.detach(|| endpoint.unpark(task, attempt, first));
        RUNNING.set(Some(self.0));
        resumed?;
        if has_grants {
            resources(py)?.call_method0(intern!(py, "show_devices"))?;
        }
        Ok(())
    }
}

fn resources(py: Python<'_>) -> PyResult<Bound<'_, PyModule>> {
    py.import(intern!(py, "rustdask._resources"))
}

/// The task of a graph that the current thread runs.
pub(crate) fn running_task() -> Option<TaskId> {
    RUNNING.with_borrow(|running| running.as_ref().map(|running| running.task))
}

/// A task to run: its pickle, and how much of it is still to be done.
#[pyclass(frozen, module = "rustdask._core")]
pub(crate) struct WorkerTask {
    task: TaskId,
    attempt: Attempt,
    cursor: Arc<Cursor>,
    #[pyo3(get)]
    call: u64,
    #[pyo3(get)]
    pickle: Py<PyAny>,
    buffers: Vec<Buffer>,
    #[pyo3(get)]
    blobs: Vec<u64>,
    /// Number of the task in its engine.
    #[pyo3(get)]
    id: u64,
    linked: Option<Linked>,
}

#[pymethods]
impl WorkerTask {
    /// It belongs to a graph.
    #[getter]
    fn linked(&self) -> bool {
        self.linked.is_some()
    }

    /// Tasks whose results it takes.
    #[getter]
    fn inputs(&self) -> Vec<u64> {
        self.linked.iter().flat_map(|linked| &linked.inputs).map(|task| task.0).collect()
    }

    /// What it holds of resources: name, amount, and of which units.
    #[getter]
    fn granted(&self) -> Vec<GrantedTuple> {
        self.linked.iter().flat_map(|linked| &linked.granted).map(granted_tuple).collect()
    }

    /// How many buffers it has.
    #[getter]
    fn buffer_count(&self) -> usize {
        self.buffers.len()
    }

    /// Begin the next item: its position in the task, or None when none is left.
    fn advance(&self) -> Option<u32> {
        self.cursor.advance()
    }
}

#[pymethods]
impl WorkerEndpoint {
    #[new]
    fn new(fd: i32) -> PyResult<Self> {
        // SAFETY: the caller hands its descriptor over.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { endpoint: Endpoint::start(socket)?, first: std::thread::current().id() })
    }

    /// Wait until this thread is to run tasks; False when it is not needed.
    fn stand_in(&self, py: Python<'_>) -> PyResult<bool> {
        let first = self.is_first();
        loop {
            if let Some(answer) = py.detach(|| self.endpoint.stand_in(first, SLICE)) {
                return Ok(answer);
            }
            py.check_signals()?;
        }
    }

    /// Wait for a task. None when another thread is to go on.
    fn next_task(&self, py: Python<'_>) -> PyResult<Option<WorkerTask>> {
        loop {
            if self.endpoint.hand_over() {
                return Ok(None);
            }
            // Where one is there already, nobody else need run in between.
            let mut found = self.endpoint.next_task(Duration::ZERO)?;
            if found.is_none() {
                found = py.detach(|| self.endpoint.next_task(SLICE))?;
            }
            if let Some(task) = found {
                let running = Running {
                    endpoint: self.endpoint.clone(),
                    task: task.run.task,
                    attempt: task.run.attempt,
                    first: self.is_first(),
                    has_grants: task.run.linked.as_ref().is_some_and(|linked| !linked.granted.is_empty()),
                };
                RUNNING.set(task.run.linked.is_some().then_some(running));
                return Ok(Some(WorkerTask {
                    task: task.run.task,
                    attempt: task.run.attempt,
                    cursor: task.cursor,
                    call: task.run.call.0,
                    pickle: pickle(py, task.body)?,
                    buffers: task.run.buffers,
                    blobs: task.run.blobs.iter().map(|blob| blob.0).collect(),
                    id: task.run.task.0,
                    linked: task.run.linked,
                }));
            }
            py.check_signals()?;
        }
    }

    /// Buffers `start..end` of a task. They are mapped until the last one dies, and as they were sent
    /// once `settle` has been called in between.
    fn buffers(&self, py: Python<'_>, task: &WorkerTask, start: usize, end: usize) -> PyResult<Vec<Py<SharedBuffer>>> {
        let wanted = task.buffers.get(start..end).ok_or_else(|| PyIndexError::new_err("the task has fewer buffers"))?;
        shared(py, self.endpoint.views(wanted)?)
    }

    /// A blob's pickle and buffers.
    fn blob(&self, py: Python<'_>, id: u64) -> PyResult<(Py<PyAny>, Vec<Py<SharedBuffer>>)> {
        let blob = self.endpoint.blob(BlobId(id))?;
        Ok((pickle(py, blob.body)?, shared(py, blob.buffers)?))
    }

    /// The pickle and buffers of a result that another worker has made.
    fn result(&self, py: Python<'_>, task: u64) -> PyResult<(Py<PyAny>, Vec<Py<SharedBuffer>>)> {
        let sent = self.endpoint.result(TaskId(task))?;
        Ok((pickle(py, sent.body)?, shared(py, sent.buffers)?))
    }

    /// Results that will not be asked for again.
    fn take_forgotten_results(&self) -> Vec<u64> {
        self.endpoint.take_forgotten_results().into_iter().map(|task| task.0).collect()
    }

    /// Blobs that will not be asked for again.
    fn take_forgotten(&self) -> Vec<u64> {
        self.endpoint.take_forgotten().into_iter().map(|blob| blob.0).collect()
    }

    /// Report a task's results (`failed` false) or its exception, with the seconds it took. `kept`: this worker has the
    /// result for other tasks.
    #[pyo3(signature = (task, failed, pickle, buffers, loading, running, dumping, kept=false))]
    #[allow(clippy::too_many_arguments)]
    fn finish(
        &self,
        py: Python<'_>,
        task: &WorkerTask,
        failed: bool,
        pickle: &Bound<'_, PyBytes>,
        buffers: Vec<Bound<'_, PyAny>>,
        loading: f64,
        running: f64,
        dumping: f64,
        kept: bool,
    ) -> PyResult<()> {
        RUNNING.set(None);
        let begun = Instant::now();
        let extents = buffers.iter().map(|buffer| place(py, &self.endpoint, buffer)).collect::<PyResult<Vec<_>>>()?;
        let placing = begun.elapsed();
        let report = if failed { Report::Error } else { Report::Results };
        let timings = Timings {
            loading: Duration::from_secs_f64(loading.max(0.0)),
            running: Duration::from_secs_f64(running.max(0.0)),
            dumping: Duration::from_secs_f64(dumping.max(0.0)) + placing,
        };
        let bytes = pickle.as_bytes();
        py.detach(|| self.endpoint.finish(task.task, task.attempt, report, bytes, extents, timings, kept))?;
        Ok(())
    }

    /// Undo what tasks wrote to arguments that nobody refers to any more.
    fn settle(&self, py: Python<'_>) {
        py.detach(|| self.endpoint.settle());
    }

    /// After a task has forked, here.
    fn forked(&self) {
        self.endpoint.forked();
    }

    fn log(&self, py: Python<'_>, record: &Bound<'_, PyBytes>) -> PyResult<()> {
        let bytes = record.as_bytes();
        py.detach(|| self.endpoint.log(bytes))?;
        Ok(())
    }
}

impl WorkerEndpoint {
    fn is_first(&self) -> bool {
        self.first == std::thread::current().id()
    }
}

/// Put a buffer into shared memory.
pub(crate) fn place(py: Python<'_>, endpoint: &Endpoint, buffer: &Bound<'_, PyAny>) -> PyResult<Extent> {
    let exported = PyBuffer::<u8>::get(buffer)?;
    // SAFETY: the export keeps the memory where it is until `exported` is dropped.
    let data = unsafe { shm::borrow(exported.buf_ptr() as usize, exported.len_bytes()) };
    Ok(py.detach(|| endpoint.place(data))?)
}

/// A result that was sent, as a Python object.
pub(crate) fn load(py: Python<'_>, sent: Blob) -> PyResult<Bound<'_, PyAny>> {
    let buffers = shared(py, sent.buffers)?.into_iter().map(|buffer| buffer.into_bound(py)).collect();
    unpickle(pickle(py, sent.body)?.bind(py), buffers)
}

/// Name, amount, and how much of which units.
pub(crate) type GrantedTuple = (String, f64, Vec<(u32, f64)>);

pub(crate) fn granted_tuple(granted: &Granted) -> GrantedTuple {
    (granted.name.clone(), granted.amount, granted.units.clone())
}

fn pickle(py: Python<'_>, bytes: Bytes) -> PyResult<Py<PyAny>> {
    Ok(match bytes {
        Bytes::Inline(bytes) => PyBytes::new(py, &bytes).into_any().unbind(),
        Bytes::Mapped(view) => Py::new(py, SharedBuffer::of_view(view))?.into_any(),
    })
}

fn shared(py: Python<'_>, views: Vec<View>) -> PyResult<Vec<Py<SharedBuffer>>> {
    views.into_iter().map(|view| Py::new(py, SharedBuffer::of_view(view))).collect()
}
