//! Tasks of graphs, pickled for worker processes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString, PyTuple};
use rustdask_core::message::Access;
use rustdask_core::{BlobId, CallId, SegmentId, TaskId};
use rustdask_runtime::parcel::{Blob, Contents, Parcel};
use rustdask_runtime::store::Store;
use rustdask_runtime::stored::Stored;

use crate::memory::Memory;
use crate::pools::Processes;
use crate::transport::{pickle_dumps, DumpedBlob, OutOfBand, Packing};

/// So many functions of a session are known by their object; beyond, all are pickled anew.
const MAX_FUNCTIONS: usize = 1024;

/// Functions that have been pickled. By address; the object is kept, so that nothing else can have that.
pub(crate) struct Functions<B>(HashMap<usize, (Py<PyAny>, Arc<B>)>);

impl<B> Default for Functions<B> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<B> Functions<B> {
    pub(crate) fn find(&self, function: &Bound<'_, PyAny>) -> Option<Arc<B>> {
        self.0.get(&(function.as_ptr() as usize)).map(|(_, blob)| blob.clone())
    }

    pub(crate) fn insert(&mut self, function: &Bound<'_, PyAny>, blob: Arc<B>) {
        self.0.insert(function.as_ptr() as usize, (function.clone().unbind(), blob));
    }

    /// When there are many, all of them, to be dropped where that is safe.
    fn make_room(&mut self) -> Self {
        if self.0.len() >= MAX_FUNCTIONS {
            return std::mem::take(self);
        }
        Self::default()
    }
}

/// Pickled once for each submission, as it is then; once for all where that cannot change. `own`: of this submission;
/// `constant`: of all. `pickle` says also whether it comes out the same each time.
pub(crate) fn pickled_once<B>(
    function: &Bound<'_, PyAny>,
    own: &mut Functions<B>,
    constant: &Mutex<Functions<B>>,
    pickle: impl FnOnce() -> PyResult<(Arc<B>, bool)>,
) -> PyResult<Arc<B>> {
    let lock = || constant.lock().expect("no holder panics");
    if let Some(blob) = own.find(function).or_else(|| lock().find(function)) {
        return Ok(blob);
    }
    let (blob, is_constant) = pickle()?;
    if !is_constant {
        own.insert(function, blob.clone());
        return Ok(blob);
    }
    let mut known = lock();
    let before = known.make_room();
    known.insert(function, blob.clone());
    drop(known);
    drop(before);
    Ok(blob)
}

/// A value, pickled by a method of a serializer, and the buffers beside that.
pub(crate) fn dumped<'py>(
    serializer: &Py<PyAny>,
    method: &Bound<'py, PyString>,
    value: &Bound<'py, PyAny>,
) -> PyResult<(Bound<'py, PyBytes>, Vec<OutOfBand<'py>>)> {
    serializer.bind(value.py()).call_method1(method, (value,))?.extract()
}

/// `plain`: they are of types that pickle needs no help with.
pub(crate) fn dumped_arguments<'py>(
    serializer: &Py<PyAny>,
    arguments: &Bound<'py, PyTuple>,
    plain: bool,
) -> PyResult<(Bound<'py, PyBytes>, Vec<OutOfBand<'py>>)> {
    let py = arguments.py();
    if plain {
        return Ok((pickle_dumps(py)?.call1((arguments, 5))?.cast_into()?, Vec::new()));
    }
    dumped(serializer, intern!(py, "arguments"), arguments)
}

/// A task, ready for any worker. What is held for it is let go of with it.
pub(crate) struct Shipment {
    pub(crate) parcel: Arc<Parcel>,
    /// Where its result will be counted, if it comes to this machine.
    pub(crate) memory: Option<Arc<Memory>>,
    #[allow(dead_code, reason = "it is there to be dropped")]
    held: Held,
    #[allow(dead_code, reason = "they are there to be dropped")]
    blobs: [Arc<HeldBlob>; 2],
}

/// Where pickled tasks go: workers of our own, or a cluster.
pub(crate) trait Destination: Send + Sync {
    fn store(&self) -> &Store;

    /// This is the process that made it, and not one that was forked from that.
    fn is_ours(&self) -> bool;

    /// Those who held these segments, each once, need them no more.
    fn release(&self, segments: &[SegmentId]);

    fn forget_blobs(&self, blobs: &[u64], urgent: bool);

    /// A value that tasks took is not needed any more.
    fn forget_result(&self, task: TaskId);
}

impl Destination for Processes {
    fn store(&self) -> &Store {
        &self.shared.memory.store
    }

    fn is_ours(&self) -> bool {
        Processes::is_ours(self)
    }

    fn release(&self, segments: &[SegmentId]) {
        Processes::release(self, segments);
    }

    fn forget_blobs(&self, blobs: &[u64], urgent: bool) {
        Processes::forget_blobs(self, blobs, urgent);
    }

    fn forget_result(&self, task: TaskId) {
        Processes::forget_result(self, task);
    }
}

/// Shared memory that is held.
struct Held {
    segments: Vec<SegmentId>,
    by: Arc<dyn Destination>,
}

impl Held {
    /// Workers refer to it beyond their tasks.
    fn keep(&self) {
        self.segments.iter().for_each(|segment| self.by.store().keep(*segment));
    }
}

/// A value of the submitter's. Workers forget it when the last task that takes it has run.
struct HeldValue {
    task: TaskId,
    held: Held,
}

impl Drop for HeldValue {
    fn drop(&mut self) {
        if self.held.by.is_ours() {
            self.held.by.forget_result(self.task);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.segments.is_empty() && self.by.is_ours() {
            self.by.release(&self.segments);
        }
    }
}

/// A pickle that many tasks refer to. Workers forget it with the last of them.
pub(crate) struct HeldBlob {
    blob: Arc<Blob>,
    held: Held,
}

impl Drop for HeldBlob {
    fn drop(&mut self) {
        if self.held.by.is_ours() {
            self.held.by.forget_blobs(&[self.blob.id.0], self.blob.is_large());
        }
    }
}

/// Pickles the tasks of a session.
pub(crate) struct Shipping {
    to: Arc<dyn Destination>,
    pub(crate) call: CallId,
    /// A `GraphSerializer`.
    serializer: Py<PyAny>,
    memory_limit: u64,
    pub(crate) memory: Option<Arc<Memory>>,
    /// Those that come out the same each time.
    functions: Mutex<Functions<HeldBlob>>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    settings: Option<Arc<HeldBlob>>,
    /// Functions that workers have, by their numbers: tasks submit those, too.
    by_number: HashMap<BlobId, Weak<HeldBlob>>,
}

impl Known {
    fn note(&mut self, blob: &Arc<HeldBlob>) {
        if self.by_number.len() == self.by_number.capacity() {
            self.by_number.retain(|_, blob| blob.strong_count() > 0);
        }
        self.by_number.insert(blob.blob.id, Arc::downgrade(blob));
    }
}

impl Shipping {
    pub(crate) fn new(
        to: Arc<dyn Destination>,
        call: CallId,
        serializer: Py<PyAny>,
        memory_limit: u64,
        memory: Option<Arc<Memory>>,
    ) -> Self {
        let (functions, known) = (Mutex::default(), Mutex::default());
        Self { to, call, serializer, memory_limit, memory, functions, known }
    }

    /// Before a submission: what workers are to be like for it.
    pub(crate) fn begin(&self, py: Python<'_>) -> PyResult<()> {
        let dumped: DumpedBlob<'_> = self.serializer.bind(py).call_method0(intern!(py, "begin"))?.extract()?;
        let mut known = self.lock();
        if known.settings.as_ref().is_some_and(|settings| settings.blob.id.0 == dumped.0) {
            return Ok(());
        }
        drop(known);
        let settings = Arc::new(self.blob(py, dumped)?);
        known = self.lock();
        let before = known.settings.replace(settings);
        drop(known);
        drop(before);
        Ok(())
    }

    /// `functions`: of this submission. `plain`: its arguments are of types that pickle needs no help with.
    pub(crate) fn ship<'py>(
        &self,
        py: Python<'py>,
        function: &Bound<'py, PyAny>,
        functions: &mut Functions<HeldBlob>,
        arguments: Bound<'py, PyTuple>,
        plain: bool,
    ) -> PyResult<Shipment> {
        let function = self.function(py, function, functions)?;
        let settings = self.lock().settings.clone().expect("made before a submission");
        let (pickle, buffers) = dumped_arguments(&self.serializer, &arguments, plain)?;
        let (contents, held) = self.pack(py, &pickle, &buffers)?;
        Ok(self.shipment([settings, function], contents, held))
    }

    fn shipment(&self, blobs: [Arc<HeldBlob>; 2], contents: Contents, held: Held) -> Shipment {
        let parcel = Parcel {
            call: self.call,
            contents,
            blobs: blobs.iter().map(|held| held.blob.clone()).collect(),
            memory_limit: self.memory_limit,
        };
        Shipment { parcel: Arc::new(parcel), memory: self.memory.clone(), held, blobs }
    }

    /// A value of this process, as workers get it. Also what is held for it.
    pub(crate) fn place(&self, py: Python<'_>, task: TaskId, value: &Bound<'_, PyAny>) -> PyResult<Stored> {
        let (pickle, buffers) = dumped(&self.serializer, intern!(py, "value"), value)?;
        let (contents, held) = self.pack(py, &pickle, &buffers)?;
        held.keep();
        Ok(Stored::Placed { contents, held: Box::new(HeldValue { task, held }) })
    }

    fn function<'py>(
        &self,
        py: Python<'py>,
        function: &Bound<'py, PyAny>,
        functions: &mut Functions<HeldBlob>,
    ) -> PyResult<Arc<HeldBlob>> {
        pickled_once(function, functions, &self.functions, || {
            let dumped = self.serializer.bind(py).call_method1(intern!(py, "function"), (function,))?;
            let dumped: DumpedBlob<'_> = dumped.extract()?;
            let is_constant = dumped.1;
            let blob = Arc::new(self.blob(py, dumped)?);
            self.lock().note(&blob);
            Ok((blob, is_constant))
        })
    }

    /// A function that a task submits. `same_as`: the blob that its worker got it in.
    pub(crate) fn function_of_worker(&self, id: BlobId, same_as: Option<BlobId>, contents: Contents) -> Arc<HeldBlob> {
        let mut known = self.lock();
        let same = same_as.and_then(|id| known.by_number.get(&id)).and_then(Weak::upgrade);
        if let Some(same) = same {
            return same;
        }
        let held = self.holds_nothing();
        let blob = Arc::new(HeldBlob { blob: Arc::new(Blob { id, contents }), held });
        known.note(&blob);
        blob
    }

    /// A task that a task has submitted. `None` if nothing was ever submitted here.
    pub(crate) fn of_worker(&self, function: Arc<HeldBlob>, contents: Contents) -> Option<Shipment> {
        let settings = self.lock().settings.clone()?;
        Some(self.shipment([settings, function], contents, self.holds_nothing()))
    }

    /// A value that tasks submitted by a task take. Workers forget it with the last of them.
    pub(crate) fn value_of_worker(&self, task: TaskId, contents: Contents) -> Stored {
        let held = self.holds_nothing();
        Stored::Placed { contents, held: Box::new(HeldValue { task, held }) }
    }

    fn blob<'py>(&self, py: Python<'py>, (id, _, pickle, buffers): DumpedBlob<'py>) -> PyResult<HeldBlob> {
        let (contents, held) = self.pack(py, &pickle, &buffers)?;
        held.keep();
        Ok(HeldBlob { blob: Arc::new(Blob { id: BlobId(id), contents }), held })
    }

    fn pack<'py>(
        &self,
        py: Python<'py>,
        pickle: &Bound<'py, PyBytes>,
        buffers: &[OutOfBand<'py>],
    ) -> PyResult<(Contents, Held)> {
        let mut held = self.holds_nothing();
        let store = self.to.store();
        let packing = Packing { py, store, call: self.call, folder: None, access: &|_| Access::CopyOnWrite };
        let contents = packing.pack(pickle, buffers, &mut held.segments)?.contents;
        Ok((contents, held))
    }

    fn holds_nothing(&self) -> Held {
        Held { segments: Vec::new(), by: self.to.clone() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().expect("no holder panics")
    }
}
