//! Results in the memory of the worker processes that made them.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use rustdask_core::message::{Access, Extent, ToWorker};
use rustdask_core::TaskId;

use crate::connection::{invalid, Connection, Told};
use crate::endpoint::View;
use crate::fork;
use crate::shm::{Mapping, Segment};
use crate::store::Store;
use crate::stored::Shown;

/// Most descriptors of segments of workers that are kept, to hand them on.
const MAX_DESCRIPTORS: usize = 4096;

/// Memory that a process has in common with its workers: what is placed here for them, and results that they have made.
#[derive(Default)]
pub struct SharedMemory {
    pub store: Store,
    /// Results that are mapped here and not dropped yet.
    pub(crate) leases: AtomicUsize,
    /// Descriptors of segments of workers that are kept, to hand them on.
    pub(crate) descriptors: Arc<AtomicUsize>,
}

impl SharedMemory {
    /// How many results are mapped here.
    pub fn mapped_results(&self) -> usize {
        self.leases.load(Ordering::Relaxed)
    }
}

/// A range of a worker's segment. When the last clone is dropped the worker may fill the segment again.
#[derive(Clone)]
pub struct Lease(pub(crate) Arc<Leased>);

pub(crate) struct Leased {
    pub(crate) received: Arc<Received>,
    pub(crate) extent: Extent,
    pub(crate) connection: Weak<Connection>,
    pub(crate) memory: Arc<SharedMemory>,
    /// Other workers look at it.
    pub(crate) shown: Mutex<Option<Shown>>,
    /// [`fork::count`] when it was mapped.
    pub(crate) forks: u64,
}

/// A segment of a worker's.
pub(crate) struct Received {
    pub(crate) mapping: Arc<Mapping>,
    /// While few are kept: each takes a descriptor.
    segment: Option<Arc<Segment>>,
    descriptors: Arc<AtomicUsize>,
}

impl Received {
    pub(crate) fn new(segment: Segment, descriptors: &Arc<AtomicUsize>) -> io::Result<Self> {
        let mapping = Arc::new(segment.map(Access::Shared)?);
        let descriptors = descriptors.clone();
        let few = descriptors.load(Ordering::Relaxed) < max_descriptors();
        let segment = few.then(|| {
            descriptors.fetch_add(1, Ordering::Relaxed);
            Arc::new(segment)
        });
        Ok(Self { mapping, segment, descriptors })
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        if self.segment.is_some() {
            self.descriptors.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// A quarter of what the process may have open.
fn max_descriptors() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(MAX_DESCRIPTORS, |limit| (limit / 4).min(MAX_DESCRIPTORS as u64) as usize)
}

impl Lease {
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.0.received.mapping
    }

    /// A view of it that may be written to: the writes stay there.
    pub fn private(&self) -> io::Result<View> {
        let Extent { offset, bytes, .. } = self.0.extent;
        let mapping = Arc::new(self.segment()?.map(Access::CopyOnWrite)?);
        Ok(View { mapping, offset, bytes })
    }

    /// Let a worker look at it; where it finds it.
    pub(crate) fn show(&self, to: &Arc<Connection>, told: &mut Told, task: Option<TaskId>) -> io::Result<Extent> {
        let extent = self.shown_as()?;
        let mut shown = self.0.shown.lock().expect("no holder panics");
        shown.as_mut().expect("just made").to(to, told, task)?;
        Ok(extent)
    }

    /// Where workers find it that it has been shown to.
    pub fn shown_as(&self) -> io::Result<Extent> {
        let mut shown = self.0.shown.lock().expect("no holder panics");
        if shown.is_none() {
            let id = self.0.memory.store.fresh_id();
            *shown = Some(Shown::new(id, self.segment()?));
        }
        let segment = shown.as_ref().expect("just made").id;
        Ok(Extent { segment, ..self.0.extent })
    }

    /// As it is here.
    pub fn view(&self) -> View {
        let Extent { offset, bytes, .. } = self.0.extent;
        View { mapping: self.mapping().clone(), offset, bytes }
    }

    /// The worker's, if its descriptor is there, or a copy.
    fn segment(&self) -> io::Result<Arc<Segment>> {
        if let Some(segment) = &self.0.received.segment {
            return Ok(segment.clone());
        }
        let extent = self.0.extent;
        let copy = Segment::create(extent.offset + extent.bytes, None)?;
        let view = self.view();
        copy.fill_at(view.as_slice().ok_or_else(|| invalid("a result is outside of its segment"))?, extent.offset)?;
        Ok(Arc::new(copy))
    }

    pub fn extent(&self) -> Extent {
        self.0.extent
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        self.memory.leases.fetch_sub(1, Ordering::Relaxed);
        let shown = self.shown.get_mut().expect("no holder panics").take();
        let Some(connection) = self.connection.upgrade().filter(|connection| connection.is_ours()) else { return };
        let segment = self.extent.segment;
        // A process that was forked since may still look at it.
        let reusable = self.forks == fork::count() && shown.is_none();
        let message = if reusable { ToWorker::Recycle { segment } } else { ToWorker::Retire { segment } };
        connection.outbox.send(&message, &[], None);
    }
}
