//! Between Python objects and worker processes: pickles out, results in.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyList};
use rustdask_core::ending::Unreported;
use rustdask_core::message::{Access, Body, Buffer, Report};
use rustdask_core::{Attempt, BlobId, CallId, SegmentId, TaskId, WorkerId};
use rustdask_runtime::delivery::{Delivery, Reported};
use rustdask_runtime::parcel::{Blob, Contents, Parcel};
use rustdask_runtime::shm::{self, MIN_SEGMENT_BYTES};
use rustdask_runtime::store::{Placement, Source, Store};
use rustdask_runtime::stored::{Pickle, Stored};

use crate::batch::PartRef;
use crate::buffer::SharedBuffer;
use crate::call::{CallInner, End};
use crate::pools::Processes;

/// Results mapped at once; the kernel allows some 65,000 mappings to a process. Further ones are copied.
const MAX_MAPPED_RESULTS: usize = 16_000;

/// A buffer that stands beside a pickle, and whether it is the object that was there before.
pub(crate) type OutOfBand<'py> = (Bound<'py, PyAny>, bool);
pub(crate) type DumpedBlob<'py> = (u64, bool, Bound<'py, PyBytes>, Vec<OutOfBand<'py>>);
type Dumped<'py> = (Bound<'py, PyBytes>, Vec<OutOfBand<'py>>, Vec<DumpedBlob<'py>>);

/// Pickle a part whose turn has come, and hand it to its worker, unless it was taken back in the meantime.
pub(crate) fn send(
    py: Python<'_>,
    call: &Arc<CallInner>,
    pool: &Arc<Processes>,
    worker: WorkerId,
    task: TaskId,
    attempt: Attempt,
    part: &PartRef,
) -> PyResult<()> {
    let Some(connection) = pool.claim(worker, task, attempt) else { return Ok(()) };
    let items = part.0.end() - part.0.start;
    let sent = make_parcel(py, call, pool, part)
        .and_then(|parcel| Ok(parcel.hold(&connection, task, attempt, items, None)?));
    connection.outbox.flush();
    if let Err(error) = sent {
        part.0.set_outcome(Err(error));
        pool.unsent(worker, task, attempt);
    }
    Ok(())
}

/// Pickle a part before its turn, so that it can be sent without Python.
pub(crate) fn pickle(py: Python<'_>, call: &Arc<CallInner>, pool: &Arc<Processes>, part: &PartRef) -> PyResult<()> {
    let parcel = make_parcel(py, call, pool, part)?;
    // Nobody else has seen the part yet.
    let _ = part.0.parcel.set(Arc::new(parcel));
    Ok(())
}

fn make_parcel(py: Python<'_>, call: &Arc<CallInner>, pool: &Arc<Processes>, part: &PartRef) -> PyResult<Parcel> {
    let batch = &part.0.batch;
    let (start, end) = (part.0.start, part.0.end());
    let begun = Instant::now();
    let dump = call.settings.dump.as_ref().expect("calls in processes have one").bind(py);
    let index = part.0.first_index();
    let (pickle, buffers, blobs): Dumped<'_> = dump.call1((&batch.items, start, end, index))?.extract()?;
    let pickled = begun.elapsed();

    let packing = Packing {
        py,
        store: &pool.shared.memory.store,
        call: call.id,
        folder: call.settings.folder.as_deref(),
        access: &|bytes| access(call, bytes),
    };
    let mut held = Vec::new();
    let packed = packing.pack(&pickle, &buffers, &mut held);
    part.0.segments.lock().expect("no holder panics").extend(held);
    let contents = counted(call, packed?);
    let blobs = blobs.into_iter().map(|blob| make_blob(call, pool, &packing, blob)).collect::<PyResult<Vec<_>>>()?;
    let mut stats = call.stats();
    stats.pickling += pickled;
    stats.placing += begun.elapsed() - pickled;
    stats.bytes_sent += contents.inline.len() as u64;
    Ok(Parcel { call: call.id, contents, blobs, memory_limit: call.settings.memory_limit })
}

/// The blob of this number; made the first time in each call.
fn make_blob(
    call: &Arc<CallInner>,
    pool: &Arc<Processes>,
    packing: &Packing<'_, '_>,
    (id, kept, pickle, buffers): DumpedBlob<'_>,
) -> PyResult<Arc<Blob>> {
    if let Some(blob) = call.blobs().made.get(&id) {
        call.stats().bytes_saved += pickle.as_bytes().len() as u64;
        return Ok(blob.clone());
    }
    let mut held = Vec::new();
    let packed = packing.pack(&pickle, &buffers, &mut held);
    // Workers keep what they have unpickled of it until they hear that the call is over.
    held.iter().for_each(|segment| pool.shared.memory.store.keep(*segment));
    call.blobs().segments.extend(held);
    let blob = Arc::new(Blob { id: BlobId(id), contents: counted(call, packed?) });
    let mut blobs = call.blobs();
    blobs.made.insert(id, blob.clone());
    if kept {
        blobs.kept.insert(id);
    }
    Ok(blob)
}

fn access(call: &CallInner, bytes: usize) -> Access {
    if bytes as u64 > call.settings.max_nbytes {
        call.settings.access
    } else {
        Access::CopyOnWrite
    }
}

fn counted(call: &CallInner, packed: Packed) -> Contents {
    let mut stats = call.stats();
    stats.bytes_placed += packed.placed_bytes;
    stats.bytes_saved += packed.saved_bytes;
    packed.contents
}

/// Brings pickles and the buffers beside them into the form in which they travel.
pub(crate) struct Packing<'a, 'py> {
    pub(crate) py: Python<'py>,
    pub(crate) store: &'a Store,
    pub(crate) call: CallId,
    pub(crate) folder: Option<&'a Path>,
    /// How a buffer of so many bytes is mapped.
    pub(crate) access: &'a dyn Fn(usize) -> Access,
}

pub(crate) struct Packed {
    pub(crate) contents: Contents,
    /// Copied to shared memory, and found there.
    placed_bytes: u64,
    saved_bytes: u64,
}

impl<'py> Packing<'_, 'py> {
    /// Segments that are held for it go to `held`, also when it fails.
    pub(crate) fn pack(
        &self,
        pickle: &Bound<'py, PyBytes>,
        buffers: &[OutOfBand<'py>],
        held: &mut Vec<SegmentId>,
    ) -> PyResult<Packed> {
        let contents = Contents {
            inline: Vec::new(),
            body: Body::Inline,
            buffers: Vec::new(),
            segments: Vec::new(),
            leases: Vec::new(),
        };
        let mut packed = Packed { contents, placed_bytes: 0, saved_bytes: 0 };
        self.place(buffers, held, &mut packed)?;
        let bytes = pickle.as_bytes();
        if bytes.len() < MIN_SEGMENT_BYTES {
            packed.contents.inline = bytes.to_vec();
        } else {
            let (store, folder) = (self.store, self.folder);
            let extent = self.py.detach(|| store.place_once(bytes, folder))?;
            held.push(extent.segment);
            packed.placed_bytes += bytes.len() as u64;
            packed.contents.body = Body::InSegment(extent);
        }
        let distinct: BTreeSet<SegmentId> = held.iter().copied().collect();
        let segment = |id| (id, self.store.segment(id).expect("it is held, so it is there"));
        packed.contents.segments = distinct.into_iter().map(segment).collect();
        Ok(packed)
    }

    fn place(&self, buffers: &[OutOfBand<'py>], held: &mut Vec<SegmentId>, packed: &mut Packed) -> PyResult<()> {
        if buffers.is_empty() {
            return Ok(());
        }
        let exports = buffers.iter().map(|(buffer, _)| PyBuffer::<u8>::get(buffer)).collect::<PyResult<Vec<_>>>()?;
        let sources: Vec<Source<'_>> = exports
            .iter()
            .zip(buffers)
            .map(|(exported, (_, same))| {
                let bytes = exported.len_bytes();
                // SAFETY: the export keeps the memory where it is until `exports` is dropped.
                let data = unsafe { shm::borrow(exported.buf_ptr() as usize, bytes) };
                Source { bytes: data, same: *same, shared: (self.access)(bytes) == Access::Shared }
            })
            .collect();
        let (folder, store, call) = (self.folder, self.store, self.call);
        let placements = self.py.detach(|| store.place(call, &sources, folder, held))?;
        for Placement { extent, copied } in placements {
            let counter = if copied { &mut packed.placed_bytes } else { &mut packed.saved_bytes };
            *counter += extent.bytes;
            packed.contents.buffers.push(Buffer { extent, access: (self.access)(extent.bytes as usize) });
        }
        Ok(())
    }
}

/// `pickle.dumps`.
pub(crate) fn pickle_dumps(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static DUMPS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    DUMPS.import(py, "pickle", "dumps")
}

/// `pickle.loads`.
fn pickle_loads(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static LOADS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    LOADS.import(py, "pickle", "loads")
}

/// A result, as a Python object.
pub(crate) fn load<'py>(py: Python<'py>, stored: &Stored) -> PyResult<Bound<'py, PyAny>> {
    // The result may be asked for again, by others: what one does to it is not seen by them.
    let (pickle, buffers) = match stored {
        Stored::Made { body, buffers, .. } => {
            let views = buffers.iter().map(|lease| Bound::new(py, SharedBuffer::private(lease)?));
            (pickled(py, body)?, views.collect::<PyResult<Vec<_>>>()?)
        }
        Stored::Copied(copied) => {
            let (pickle, views) = copied.views()?;
            let pickle = match pickle {
                Pickle::Inline(bytes) => PyBytes::new(py, bytes).into_any(),
                Pickle::Mapped(view) => Bound::new(py, SharedBuffer::of_view(view))?.into_any(),
            };
            let views = views.into_iter().map(|view| Bound::new(py, SharedBuffer::of_view(view)));
            (pickle, views.collect::<PyResult<Vec<_>>>()?)
        }
        Stored::Placed { contents, .. } if contents.segments.is_empty() && contents.leases.is_empty() => {
            (PyBytes::new(py, &contents.inline).into_any(), Vec::new())
        }
        Stored::Placed { .. } => {
            return Err(PyRuntimeError::new_err("what this process has placed, it does not load"));
        }
    };
    unpickle(&pickle, buffers)
}

/// A pickle and its buffers as an object.
pub(crate) fn unpickle<'py>(
    pickle: &Bound<'py, PyAny>,
    buffers: Vec<Bound<'py, SharedBuffer>>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = pickle.py();
    let loads = pickle_loads(py)?;
    if buffers.is_empty() {
        return loads.call1((pickle,));
    }
    let kwargs = PyDict::new(py);
    kwargs.set_item(intern!(py, "buffers"), buffers)?;
    loads.call((pickle,), Some(&kwargs))
}

pub(crate) fn pickled<'py>(py: Python<'py>, body: &Reported) -> PyResult<Bound<'py, PyAny>> {
    Ok(match body {
        Reported::Inline(bytes) => PyBytes::new(py, bytes).into_any(),
        Reported::Leased(lease) => Bound::new(py, SharedBuffer::of_lease(lease.clone()))?.into_any(),
    })
}

/// What a worker's report means.
pub(crate) fn receive(py: Python<'_>, call: &Arc<CallInner>, part: &PartRef, delivery: Delivery) -> PyResult<End> {
    let Delivery::Report { report, body, buffers, timings, bytes } = delivery else {
        return Ok(match part.0.take_outcome() {
            Some(Err(error)) => End::Raised(error),
            _ => End::Unreported(Unreported::NoWorkers { why: "a task could not be sent".into() }),
        });
    };
    {
        let mut stats = call.stats();
        stats.reported(timings, part.0.first_index(), part.0.end() - part.0.start, bytes);
        let at_worker = timings.loading + timings.running + timings.dumping;
        stats.queue += part.0.batch.submitted.elapsed().saturating_sub(at_worker);
    }
    call.deepen_if_short();
    let pickle = pickled(py, &body)?;
    if report == Report::Error {
        return Ok(End::Remote(pickle.unbind()));
    }
    let begun = Instant::now();
    let copy = buffers.len() + mapped_results(call) > MAX_MAPPED_RESULTS;
    let views = buffers.into_iter().map(|lease| {
        if copy {
            let (extent, mapping) = (lease.extent(), lease.mapping());
            let bytes = mapping.copy_range(extent.offset, extent.bytes).unwrap_or_default();
            Ok(pyo3::types::PyByteArray::new(py, &bytes).into_any())
        } else {
            Ok(Bound::new(py, SharedBuffer::of_lease(lease))?.into_any())
        }
    });
    let views = views.collect::<PyResult<Vec<_>>>()?;
    let load = call.settings.load.as_ref().expect("calls in processes have one").bind(py);
    let loaded = load.call1((pickle, views)).and_then(|results| Ok(results.cast_into::<PyList>()?.unbind()));
    call.stats().loading_results += begun.elapsed();
    Ok(match loaded {
        Ok(results) => End::Results(results),
        Err(error) => End::Raised(error),
    })
}

fn mapped_results(call: &CallInner) -> usize {
    match &call.engine {
        crate::call::Engine::Processes { pool, .. } => pool.shared.memory.mapped_results(),
        crate::call::Engine::Threads { .. } => 0,
    }
}
