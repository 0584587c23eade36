//! The worker process's side, for `rustdask._worker`.

use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use rustdask_core::message::{Buffer, Granted, Linked, Report, Timings};
use rustdask_core::{Attempt, BlobId, TaskId};
use rustdask_runtime::cursor::Cursor;
use rustdask_runtime::endpoint::{Bytes, Endpoint, View};
use rustdask_runtime::shm;

use crate::buffer::SharedBuffer;

/// How long a wait for a task goes on before signals are looked at.
const SLICE: Duration = Duration::from_millis(500);

/// A worker's connection to the process that started it.
#[pyclass(frozen, module = "rustdask._core")]
pub(crate) struct WorkerEndpoint(Arc<Endpoint>);

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
        Ok(Self(Endpoint::start(socket)?))
    }

    /// Wait for a task.
    fn next_task(&self, py: Python<'_>) -> PyResult<WorkerTask> {
        loop {
            // Where one is there already, nobody else need run in between.
            let mut found = self.0.next_task(Duration::ZERO)?;
            if found.is_none() {
                found = py.detach(|| self.0.next_task(SLICE))?;
            }
            if let Some(task) = found {
                return Ok(WorkerTask {
                    task: task.run.task,
                    attempt: task.run.attempt,
                    cursor: task.cursor,
                    call: task.run.call.0,
                    pickle: pickle(py, task.body)?,
                    buffers: task.run.buffers,
                    blobs: task.run.blobs.iter().map(|blob| blob.0).collect(),
                    id: task.run.task.0,
                    linked: task.run.linked,
                });
            }
            py.check_signals()?;
        }
    }

    /// Buffers `start..end` of a task. They are mapped until the last one dies, and as they were sent
    /// once `settle` has been called in between.
    fn buffers(&self, py: Python<'_>, task: &WorkerTask, start: usize, end: usize) -> PyResult<Vec<Py<SharedBuffer>>> {
        let wanted = task.buffers.get(start..end).ok_or_else(|| PyIndexError::new_err("the task has fewer buffers"))?;
        shared(py, self.0.views(wanted)?)
    }

    /// A blob's pickle and buffers.
    fn blob(&self, py: Python<'_>, id: u64) -> PyResult<(Py<PyAny>, Vec<Py<SharedBuffer>>)> {
        let blob = self.0.blob(BlobId(id))?;
        Ok((pickle(py, blob.body)?, shared(py, blob.buffers)?))
    }

    /// The pickle and buffers of a result that another worker has made.
    fn result(&self, py: Python<'_>, task: u64) -> PyResult<(Py<PyAny>, Vec<Py<SharedBuffer>>)> {
        let sent = self.0.result(TaskId(task))?;
        Ok((pickle(py, sent.body)?, shared(py, sent.buffers)?))
    }

    /// Results that will not be asked for again.
    fn take_forgotten_results(&self) -> Vec<u64> {
        self.0.take_forgotten_results().into_iter().map(|task| task.0).collect()
    }

    /// Blobs that will not be asked for again.
    fn take_forgotten(&self) -> Vec<u64> {
        self.0.take_forgotten().into_iter().map(|blob| blob.0).collect()
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
        let begun = Instant::now();
        let extents = buffers.iter().map(|buffer| self.place(py, buffer)).collect::<PyResult<Vec<_>>>()?;
        let placing = begun.elapsed();
        let report = if failed { Report::Error } else { Report::Results };
        let timings = Timings {
            loading: Duration::from_secs_f64(loading.max(0.0)),
            running: Duration::from_secs_f64(running.max(0.0)),
            dumping: Duration::from_secs_f64(dumping.max(0.0)) + placing,
        };
        let bytes = pickle.as_bytes();
        py.detach(|| self.0.finish(task.task, task.attempt, report, bytes, extents, timings, kept))?;
        Ok(())
    }

    /// Undo what tasks wrote to arguments that nobody refers to any more.
    fn settle(&self, py: Python<'_>) {
        py.detach(|| self.0.settle());
    }

    /// After a task has forked, here.
    fn forked(&self) {
        self.0.forked();
    }

    fn log(&self, py: Python<'_>, record: &Bound<'_, PyBytes>) -> PyResult<()> {
        let bytes = record.as_bytes();
        py.detach(|| self.0.log(bytes))?;
        Ok(())
    }
}

impl WorkerEndpoint {
    fn place(&self, py: Python<'_>, buffer: &Bound<'_, PyAny>) -> PyResult<rustdask_core::message::Extent> {
        let exported = PyBuffer::<u8>::get(buffer)?;
        // SAFETY: the export keeps the memory where it is until `exported` is dropped.
        let data = unsafe { shm::borrow(exported.buf_ptr() as usize, exported.len_bytes()) };
        Ok(py.detach(|| self.0.place(data))?)
    }
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
