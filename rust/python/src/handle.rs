//! A submitter's hold on the result of a task. The result is kept, and the task run, while there is one.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::call::describe_unreported;
use crate::node::{FailureKind, Node, Settled, Watcher};
use crate::session::{Session, SessionInner};
use crate::watch::{seconds, Ring};

/// The wish for a result. When the last clone is dropped, the engine hears that nobody has it any more.
pub(crate) struct Want {
    pub(crate) session: Arc<SessionInner>,
    pub(crate) node: Arc<Node>,
    /// The engine has never heard of the task: its result came from the submitter.
    pub(crate) outside: bool,
}

impl Drop for Want {
    fn drop(&mut self) {
        if self.outside {
            self.session.release_value(self.node.id);
        } else {
            self.session.release(self.node.id);
        }
    }
}

/// What a handle is made of: given out by the engine, taken by the class that wraps it.
#[pyclass(frozen, module = "rustdask._core")]
pub(crate) struct Seed(pub(crate) Mutex<Option<Arc<Want>>>);

#[pyclass(subclass, frozen, weakref, module = "rustdask._core")]
pub(crate) struct Handle {
    want: Mutex<Option<Arc<Want>>>,
    id: u64,
    name: Arc<str>,
    key: Mutex<Option<Py<PyAny>>>,
}

/// What became of a task: how it ended, what there is to say about it, and the name of the task that failed, where that is
/// another one.
type Outcome = (&'static str, Py<PyAny>, Option<String>);

impl Handle {
    pub(crate) fn want(&self) -> PyResult<Arc<Want>> {
        let want = self.want.lock().expect("no holder panics").clone();
        want.ok_or_else(|| PyRuntimeError::new_err(format!("{} was released: its result is not kept", self.key_text())))
    }

    pub(crate) fn node(&self) -> PyResult<Arc<Node>> {
        Ok(self.want()?.node.clone())
    }

    pub(crate) fn set_key(&self, key: Py<PyAny>) {
        *self.key.lock().expect("no holder panics") = Some(key);
    }

    fn key_text(&self) -> String {
        format!("{}-{}", self.name, self.id)
    }
}

#[pymethods]
impl Handle {
    #[new]
    fn new(seed: &Bound<'_, PyAny>) -> PyResult<Self> {
        let seed = seed.cast::<Seed>().map_err(|_| PyTypeError::new_err("handles are made by a session"))?;
        let want = seed.get().0.lock().expect("no holder panics").take();
        let want = want.ok_or_else(|| PyValueError::new_err("a handle has been made of this already"))?;
        let (id, name) = (want.node.id.0, want.node.name.clone());
        Ok(Self { want: Mutex::new(Some(want)), id, name, key: Mutex::new(None) })
    }

    /// Number of the task in its engine.
    #[getter]
    fn id(&self) -> u64 {
        self.id
    }

    /// Name of the task.
    #[getter]
    fn key(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let mut key = self.key.lock().expect("no holder panics");
        if let Some(key) = key.as_ref() {
            return Ok(key.clone_ref(py));
        }
        let made = self.key_text().into_pyobject(py)?.into_any().unbind();
        *key = Some(made.clone_ref(py));
        Ok(made)
    }

    /// "pending", "finished", "error", "cancelled", or "released".
    fn state(&self) -> &'static str {
        match self.node().map(|node| node.end()) {
            Err(_) => "released",
            Ok(None) => "pending",
            Ok(Some(Settled::Finished)) => "finished",
            Ok(Some(Settled::Failed(failure))) => match failure.kind {
                FailureKind::Cancelled | FailureKind::Closed => "cancelled",
                _ => "error",
            },
        }
    }

    /// The session that it belongs to.
    #[getter]
    fn session(&self) -> PyResult<Session> {
        Ok(Session::borrowed(self.want()?.session.clone()))
    }

    fn done(&self) -> bool {
        self.node().is_ok_and(|node| node.is_done())
    }

    /// Wait for the end; False when the time, in seconds, is over.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        self.wait_for(py, seconds(timeout)?)
    }

    /// How it ended, what there is to say, and which other task failed. Only once it is done.
    fn outcome(&self, py: Python<'_>) -> PyResult<Outcome> {
        let want = self.want()?;
        let node = &want.node;
        match node.end() {
            None => Err(PyRuntimeError::new_err("the task has not ended")),
            Some(Settled::Finished) => match node.value(py)? {
                Some(value) => Ok(("finished", value.unbind(), None)),
                None => Err(misplaced()),
            },
            Some(Settled::Failed(failure)) => {
                let (kind, details) = describe(py, &failure.kind)?;
                let other = failure.task != node.id;
                Ok((kind, details, other.then(|| format!("{}-{}", failure.name, failure.task.0))))
            }
        }
    }

    /// Another handle for the same task.
    fn another<'py>(&self, cls: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let seed = Bound::new(cls.py(), Seed(Mutex::new(Some(self.want()?))))?;
        let made = cls.call1((seed,))?;
        if let Some(key) = self.key.lock().expect("no holder panics").as_ref() {
            made.cast::<Handle>()?.get().set_key(key.clone_ref(cls.py()));
        }
        Ok(made)
    }

    /// Keep the task wanted until it has ended, whatever becomes of its handles.
    fn keep(&self) -> PyResult<()> {
        let want = self.want()?;
        want.node.watch(Watcher::Keep(want.clone()));
        Ok(())
    }

    /// Let go of the result.
    fn release(&self) {
        drop(self.want.lock().expect("no holder panics").take());
    }
}

impl Handle {
    fn wait_for(&self, py: Python<'_>, timeout: Option<Duration>) -> PyResult<bool> {
        let node = self.node()?;
        if node.is_done() {
            return Ok(true);
        }
        let ring = Arc::<Ring>::default();
        node.watch(Watcher::Ring(ring.clone(), 0));
        ring.wait(py, 1, timeout)
    }
}

fn describe(py: Python<'_>, kind: &FailureKind) -> PyResult<(&'static str, Py<PyAny>)> {
    Ok(match kind {
        FailureKind::Raised(error) => ("raised", error.clone_ref(py)),
        FailureKind::Remote(body) => ("remote", crate::transport::pickled(py, body)?.unbind()),
        FailureKind::Unreported(unreported) => describe_unreported(py, unreported)?,
        FailureKind::Cancelled => ("cancelled", py.None()),
        FailureKind::Unrunnable => ("unrunnable", py.None()),
        FailureKind::Broken => ("broken", py.None()),
        FailureKind::Closed => ("closed", py.None()),
    })
}

/// All results, in the order of the handles, once all are there; or, as soon as one has failed, its handle.
#[pyfunction]
pub(crate) fn results<'py>(py: Python<'py>, handles: Vec<Bound<'py, Handle>>) -> PyResult<Bound<'py, PyAny>> {
    let ring = Arc::<Ring>::default();
    let nodes = handles.iter().map(|handle| handle.get().node()).collect::<PyResult<Vec<_>>>()?;
    let open: Vec<_> = nodes.iter().filter(|node| !node.is_done()).collect();
    open.iter().for_each(|node| node.watch(Watcher::Ring(ring.clone(), 0)));
    let failed = |node: &Arc<Node>| matches!(node.end(), Some(Settled::Failed(_)));
    if !nodes.iter().any(failed) {
        ring.wait_or_fail(py, open.len())?;
    }
    if let Some(at) = nodes.iter().position(failed) {
        return Ok(handles[at].clone().into_any());
    }
    let values = nodes.iter().map(|node| node.value(py)?.ok_or_else(misplaced)).collect::<PyResult<Vec<_>>>()?;
    Ok(PyTuple::new(py, values)?.into_any())
}

pub(crate) fn misplaced() -> PyErr {
    PyRuntimeError::new_err("a result is not where it should be")
}
