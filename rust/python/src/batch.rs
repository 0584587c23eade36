//! What a task carries: some of the items of a batch that was submitted.
//!
//! A batch is what joblib hands over at once. It goes out as one part; when a part is cut because other
//! workers have nothing to do, more parts appear, and the batch is done when all of them are.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyList;
use rustdask_core::SegmentId;
use rustdask_runtime::parcel::Parcel;

use crate::call::{CallInner, Engine};

pub(crate) struct Batch {
    pub(crate) call: Arc<CallInner>,
    /// A list of `(function, args, kwargs)`.
    pub(crate) items: Py<PyList>,
    /// The submitter's own; comes back with the outcome.
    pub(crate) token: Py<PyAny>,
    /// Number of the first item among all of the call.
    pub(crate) first_index: u64,
    pub(crate) submitted: Instant,
    done: Mutex<Done>,
}

struct Done {
    parts: Vec<(u32, Py<PyList>)>,
    items_left: u32,
    /// A part failed: the batch has had its outcome.
    failed: bool,
}

pub(crate) struct Part {
    pub(crate) batch: Arc<Batch>,
    pub(crate) start: u32,
    end: AtomicU32,
    was_cut: AtomicBool,
    /// What a thread of this process made of it.
    outcome: Mutex<Option<Result<Py<PyList>, PyErr>>>,
    /// What it looks like to a worker process, once it has been pickled.
    pub(crate) parcel: OnceLock<Arc<Parcel>>,
    /// Shared memory that is held for it.
    pub(crate) segments: Mutex<Vec<SegmentId>>,
}

#[derive(Clone)]
pub(crate) struct PartRef(pub(crate) Arc<Part>);

impl Batch {
    pub(crate) fn new(
        call: Arc<CallInner>,
        items: Py<PyList>,
        count: u32,
        token: Py<PyAny>,
        first_index: u64,
    ) -> Arc<Self> {
        let done = Mutex::new(Done { parts: Vec::new(), items_left: count, failed: false });
        Arc::new(Self { call, items, token, first_index, submitted: Instant::now(), done })
    }

    /// Take in a part's results; those of the whole batch when none is missing any more.
    pub(crate) fn add(&self, py: Python<'_>, start: u32, results: Py<PyList>) -> PyResult<Option<Py<PyList>>> {
        let mut parts = {
            let mut done = self.done.lock().expect("no holder panics");
            done.items_left = done.items_left.saturating_sub(results.bind(py).len() as u32);
            done.parts.push((start, results));
            if done.items_left > 0 || done.failed {
                return Ok(None);
            }
            std::mem::take(&mut done.parts)
        };
        if parts.len() == 1 {
            return Ok(parts.pop().map(|(_, results)| results));
        }
        parts.sort_unstable_by_key(|(start, _)| *start);
        let whole = PyList::empty(py);
        for (_, results) in parts {
            whole.call_method1(intern!(py, "extend"), (results,))?;
        }
        Ok(Some(whole.unbind()))
    }

    /// True the first time.
    pub(crate) fn fail(&self) -> bool {
        !std::mem::replace(&mut self.done.lock().expect("no holder panics").failed, true)
    }
}

impl Part {
    pub(crate) fn whole(batch: Arc<Batch>, count: u32) -> PartRef {
        Self::of(batch, 0, count)
    }

    pub(crate) fn of(batch: Arc<Batch>, start: u32, end: u32) -> PartRef {
        PartRef(Arc::new(Self {
            batch,
            start,
            end: AtomicU32::new(end),
            was_cut: AtomicBool::new(false),
            outcome: Mutex::new(None),
            parcel: OnceLock::new(),
            segments: Mutex::default(),
        }))
    }

    pub(crate) fn end(&self) -> u32 {
        self.end.load(Ordering::Acquire)
    }

    pub(crate) fn first_index(&self) -> u64 {
        self.batch.first_index + u64::from(self.start)
    }

    pub(crate) fn set_outcome(&self, outcome: Result<Py<PyList>, PyErr>) {
        *self.outcome.lock().expect("no holder panics") = Some(outcome);
    }

    pub(crate) fn take_outcome(&self) -> Option<Result<Py<PyList>, PyErr>> {
        self.outcome.lock().expect("no holder panics").take()
    }

    pub(crate) fn take_segments(&self) -> Vec<SegmentId> {
        std::mem::take(&mut self.segments.lock().expect("no holder panics"))
    }
}

impl PartRef {
    /// What to send for it, once it has been pickled.
    pub(crate) fn parcel(&self) -> Option<Arc<Parcel>> {
        // A part that was cut is not what was pickled: its worker would run what others have been given.
        self.0.parcel.get().filter(|_| !self.0.was_cut.load(Ordering::Acquire)).cloned()
    }

    /// Keep the first `kept` items; the rest in at most `pieces` parts, with their item counts.
    pub(crate) fn split(&self, kept: u32, pieces: u32) -> Vec<(Self, u32)> {
        let part = &self.0;
        let middle = part.start + kept;
        part.was_cut.store(true, Ordering::Release);
        let end = part.end.swap(middle, Ordering::AcqRel);
        let rest = end - middle;
        let pieces = pieces.clamp(1, rest.max(1));
        let bounds = |i: u32| middle + (u64::from(rest) * u64::from(i) / u64::from(pieces)) as u32;
        (0..pieces)
            .map(|i| (bounds(i), bounds(i + 1)))
            .filter(|(start, end)| start < end)
            .map(|(start, end)| (Part::of(part.batch.clone(), start, end), end - start))
            .collect()
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let segments = self.take_segments();
        if let (false, Engine::Processes { pool, .. }) = (segments.is_empty(), &self.batch.call.engine) {
            pool.release(&segments);
        }
    }
}
