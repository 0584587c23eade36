//! What a node has: results, and segments of clients.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use rustdask_core::cluster::Thing;
use rustdask_core::message::Access;
use rustdask_core::{SegmentId, TaskId};
use rustdask_runtime::endpoint::View;
use rustdask_runtime::lease::{Lease, SharedMemory};
use rustdask_runtime::memory::{Memory, Movable};
use rustdask_runtime::shm::Segment;
use rustdask_runtime::store::Store;
use rustdask_runtime::stored::{Guard, Stored};

/// Things are dropped without the lock: that may take a while.
pub struct Holdings {
    pub memory: Arc<SharedMemory>,
    account: Arc<Memory<Kept>>,
    things: Mutex<Things>,
}

#[derive(Default)]
struct Things {
    results: HashMap<TaskId, Arc<Kept>>,
    segments: HashMap<SegmentId, Arc<HeldSegment>>,
}

/// A result, wherever it is now.
struct Kept {
    stored: Mutex<Arc<Stored>>,
    /// While it is in memory.
    counted: Mutex<Option<Guard>>,
}

impl Kept {
    fn now(&self) -> Arc<Stored> {
        self.stored.lock().expect("no holder panics").clone()
    }
}

impl Movable for Kept {
    fn spill(&self, store: &Store, folder: &Path) -> io::Result<u64> {
        let before = self.now();
        // Copied without the lock: the result is read meanwhile.
        let Some(spilled) = before.spilled(store, folder)? else { return Ok(0) };
        *self.stored.lock().expect("no holder panics") = Arc::new(spilled);
        drop(self.counted.lock().expect("no holder panics").take());
        Ok(before.bytes())
    }
}

/// A segment that tasks name.
pub enum HeldSegment {
    Own(Arc<Segment>),
    /// In the memory of a worker, whose task has submitted tasks.
    Leased(Lease),
}

impl HeldSegment {
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Own(segment) => segment.bytes,
            Self::Leased(lease) => lease.extent().bytes,
        }
    }

    pub fn view(&self) -> io::Result<View> {
        match self {
            Self::Own(segment) => {
                let mapping = Arc::new(segment.map(Access::ReadOnly)?);
                Ok(View { mapping, offset: 0, bytes: segment.bytes })
            }
            Self::Leased(lease) => Ok(lease.view()),
        }
    }
}

impl Holdings {
    /// `limit`: bytes of memory that results may take. From there on the oldest move to files of the folder.
    pub fn new(limit: Option<u64>, folder: PathBuf) -> io::Result<Arc<Self>> {
        let memory = Arc::<SharedMemory>::default();
        // Work is not held back: the scheduler sees how a node fares.
        let account = Memory::start(limit.unwrap_or(u64::MAX), folder, &memory, Box::new(|_| ()))?;
        Ok(Arc::new(Self { memory, account, things: Mutex::default() }))
    }

    pub fn keep(&self, task: TaskId, stored: Stored) {
        let kept = Arc::new(Kept { stored: Mutex::new(Arc::new(stored)), counted: Mutex::default() });
        {
            // Locked until it is in its place: the result may be moved at once.
            let mut counted = kept.counted.lock().expect("no holder panics");
            *counted = self.account.count(kept.now().bytes(), Arc::downgrade(&kept));
        }
        let before = self.things().results.insert(task, kept);
        drop(before);
    }

    /// Keep a value of a client's. It is not moved: the client's segments are not this node's.
    pub fn keep_value(&self, task: TaskId, stored: Stored) {
        let kept = Arc::new(Kept { stored: Mutex::new(Arc::new(stored)), counted: Mutex::default() });
        let before = self.things().results.insert(task, kept);
        drop(before);
    }

    pub fn keep_segment(&self, segment: SegmentId, held: HeldSegment) {
        let before = self.things().segments.insert(segment, Arc::new(held));
        drop(before);
    }

    pub fn result(&self, task: TaskId) -> Option<Arc<Stored>> {
        self.things().results.get(&task).map(|kept| kept.now())
    }

    pub fn segment(&self, segment: SegmentId) -> Option<Arc<HeldSegment>> {
        self.things().segments.get(&segment).cloned()
    }

    pub fn has(&self, thing: Thing) -> bool {
        match thing {
            Thing::Result(task) => self.things().results.contains_key(&task),
            Thing::Segment(segment) => self.things().segments.contains_key(&segment),
        }
    }

    pub fn forget(&self, thing: Thing) {
        match thing {
            Thing::Result(task) => {
                let gone = self.things().results.remove(&task);
                drop(gone);
            }
            Thing::Segment(segment) => {
                let gone = self.things().segments.remove(&segment);
                drop(gone);
            }
        }
    }

    /// With their bytes.
    pub fn results(&self) -> Vec<(TaskId, u64)> {
        self.things().results.iter().map(|(task, kept)| (*task, kept.now().bytes())).collect()
    }

    pub fn segments(&self) -> Vec<(SegmentId, u64)> {
        self.things().segments.iter().map(|(segment, held)| (*segment, held.bytes())).collect()
    }

    /// Bytes of results in memory, and of those that were ever moved to files.
    pub fn figures(&self) -> (u64, u64) {
        self.account.figures()
    }

    fn things(&self) -> MutexGuard<'_, Things> {
        self.things.lock().expect("no holder panics")
    }
}

impl Drop for Holdings {
    fn drop(&mut self) {
        self.account.close();
    }
}
