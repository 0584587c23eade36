//! Waiting for tasks of graphs: by blocking, or through a descriptor that an event loop watches.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use rustix::event::{eventfd, EventfdFlags};

use crate::call::SLICE;
use crate::handle::Handle;
use crate::node::Watcher;

/// Where the ends of tasks are told, as the tokens that they were watched under.
#[derive(Default)]
pub(crate) struct Ring {
    state: Mutex<RingState>,
    rang: Condvar,
}

#[derive(Default)]
struct RingState {
    tokens: VecDeque<usize>,
    /// Ends that have been told, ever.
    told: usize,
    /// One of them was a failure.
    failed: bool,
    /// Nobody need be woken before so many have been told, or, where that is asked for, a failure.
    wake_at: usize,
    wake_for_failure: bool,
    descriptor: Option<Arc<OwnedFd>>,
}

impl Ring {
    pub(crate) fn ring(&self, token: usize, failed: bool) {
        let (wake, descriptor) = {
            let mut state = self.lock();
            state.tokens.push_back(token);
            state.told += 1;
            state.failed |= failed;
            let first = state.tokens.len() == 1;
            (
                state.told >= state.wake_at || (failed && state.wake_for_failure),
                state.descriptor.clone().filter(|_| first),
            )
        };
        if wake {
            self.rang.notify_all();
        }
        if let Some(descriptor) = descriptor {
            // It can only fail where the counter is full, and then it is readable already.
            let _ = rustix::io::write(&*descriptor, &1u64.to_ne_bytes());
        }
    }

    pub(crate) fn take(&self) -> Vec<usize> {
        let mut state = self.lock();
        if let Some(descriptor) = &state.descriptor {
            let mut count = [0; 8];
            // Empty where nobody has written.
            let _ = rustix::io::read(&**descriptor, &mut count);
        }
        state.tokens.drain(..).collect()
    }

    /// Wait until `count` ends have been told in all; false when the time is over.
    pub(crate) fn wait(&self, py: Python<'_>, count: usize, timeout: Option<Duration>) -> PyResult<bool> {
        self.wait_until(py, timeout, count, |state| state.told >= count)
    }

    /// As [`Ring::wait`], but also until one of the ends is a failure.
    pub(crate) fn wait_or_fail(&self, py: Python<'_>, count: usize) -> PyResult<()> {
        self.lock().wake_for_failure = true;
        self.wait_until(py, None, count, |state| state.told >= count || state.failed).map(|_| ())
    }

    fn wait_until(
        &self,
        py: Python<'_>,
        timeout: Option<Duration>,
        wake_at: usize,
        done: impl Fn(&RingState) -> bool + Sync,
    ) -> PyResult<bool> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        if done(&self.lock()) {
            return Ok(true);
        }
        let _attendance = crate::output::Attendance::start();
        crate::pools::check_open()?;
        let parked =
            if deadline.is_some_and(|at| at <= Instant::now()) { None } else { crate::pools::Parked::begin(py)? };
        let waited = self.wait_in_slices(py, deadline, wake_at, done);
        parked.map_or(Ok(()), |parked| parked.end(py))?;
        waited
    }

    fn wait_in_slices(
        &self,
        py: Python<'_>,
        deadline: Option<Instant>,
        wake_at: usize,
        done: impl Fn(&RingState) -> bool + Sync,
    ) -> PyResult<bool> {
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let slice = left.map_or(SLICE, |left| left.min(SLICE));
            let there = py.detach(|| {
                let mut state = self.lock();
                state.wake_at = wake_at;
                let waiting = |state: &mut RingState| !done(state);
                let (state, _) = self.rang.wait_timeout_while(state, slice, waiting).expect("no holder panics");
                done(&state)
            });
            crate::output::relay(py)?;
            if there || left.is_some_and(|left| left.is_zero()) {
                return Ok(there);
            }
            py.check_signals()?;
            crate::pools::check_open()?;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, RingState> {
        self.state.lock().expect("no holder panics")
    }

    fn told(&self) -> usize {
        self.lock().told
    }

    fn descriptor(&self) -> std::io::Result<Arc<OwnedFd>> {
        let mut state = self.lock();
        if let Some(descriptor) = &state.descriptor {
            return Ok(descriptor.clone());
        }
        let first = u32::from(!state.tokens.is_empty());
        let made = Arc::new(eventfd(first, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        state.descriptor = Some(made.clone());
        Ok(made)
    }
}

/// Ends of tasks, in the order in which they come.
#[pyclass(frozen, module = "rustdask._core")]
pub(crate) struct Watch {
    ring: Arc<Ring>,
    /// Those whose end has not been handed on, by their tokens.
    handles: Mutex<Handles>,
}

#[derive(Default)]
struct Handles {
    by_token: std::collections::HashMap<usize, Py<Handle>>,
    next: usize,
    /// Ends that have been handed on.
    taken: usize,
}

#[pymethods]
impl Watch {
    #[new]
    fn new() -> Self {
        Self { ring: Arc::default(), handles: Mutex::default() }
    }

    /// Watch further tasks; the end of one that has ended comes at once.
    fn add(&self, handles: Vec<Bound<'_, Handle>>) -> PyResult<()> {
        for handle in handles {
            let node = handle.get().node()?;
            let token = {
                let mut known = self.handles.lock().expect("no holder panics");
                known.next += 1;
                let token = known.next;
                known.by_token.insert(token, handle.unbind());
                token
            };
            node.watch(Watcher::Ring(self.ring.clone(), token));
        }
        Ok(())
    }

    /// Wait for ends, and return their handles; none when the time, in seconds, is over, or all have been returned.
    #[pyo3(signature = (timeout=None))]
    fn next(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Vec<Py<Handle>>> {
        let taken = {
            let known = self.handles.lock().expect("no holder panics");
            if known.taken == known.next {
                return Ok(Vec::new());
            }
            known.taken
        };
        self.ring.wait(py, taken + 1, seconds(timeout)?)?;
        Ok(self.take())
    }

    /// The handles of those that have ended since the last time.
    fn take(&self) -> Vec<Py<Handle>> {
        let tokens = self.ring.take();
        let mut known = self.handles.lock().expect("no holder panics");
        known.taken += tokens.len();
        tokens.iter().filter_map(|token| known.by_token.remove(token)).collect()
    }

    /// Wait until all tasks have ended; False when the time, in seconds, is over.
    #[pyo3(signature = (timeout=None))]
    fn wait_all(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let all = self.handles.lock().expect("no holder panics").next;
        self.ring.wait(py, all, seconds(timeout)?)
    }

    /// How many have not ended.
    fn pending(&self) -> usize {
        let all = self.handles.lock().expect("no holder panics").next;
        all - self.ring.told()
    }

    /// A descriptor that is readable while there are ends to take.
    fn fileno(&self) -> PyResult<i32> {
        Ok(self.ring.descriptor()?.as_raw_fd())
    }
}

/// A time limit of a caller; one that is over already does not wait.
pub(crate) fn seconds(timeout: Option<f64>) -> PyResult<Option<Duration>> {
    let Some(timeout) = timeout else { return Ok(None) };
    if timeout.is_nan() {
        return Err(PyValueError::new_err("a timeout must be a number of seconds or None, got nan"));
    }
    // Longer than a process lives is for ever.
    Ok(Duration::try_from_secs_f64(timeout.max(0.0)).ok())
}
