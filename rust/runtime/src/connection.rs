//! Our side of a worker process: what it is told, and what we know of it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use rustdask_core::message::{Extent, ToWorker};
use rustdask_core::{BlobId, SegmentId, TaskId, WorkerId};
use tokio::sync::Notify;

use crate::fork;
use crate::group;
use crate::lease::{Lease, Leased, Received, SharedMemory};
use crate::shm::{Mapping, Segment};
use crate::wire::Outbox;

/// A set that is empty keeps room for so many.
const KEPT_ROOM: usize = 4096;
/// What is kept of a worker's stderr for the report of its death.
const STDERR_TAIL_BYTES: usize = 4 << 10;

/// Our side of a worker process.
pub struct Connection {
    /// The process that speaks on it.
    owner: u32,
    pub worker: WorkerId,
    pub rank: u32,
    pub outbox: Outbox,
    pub(crate) backlog: Arc<Notify>,
    /// It takes tasks.
    pub(crate) ready: AtomicBool,
    /// 0 until the template has said; -1 once it has been killed.
    pub(crate) pid: AtomicI32,
    /// The worker's segments, by the id it gave them.
    pub(crate) results: Mutex<HashMap<SegmentId, Arc<Received>>>,
    /// Segments of ours and blobs that it has been told of.
    told: Mutex<Told>,
    /// Where its reports stand before it sends them.
    pub(crate) ledger: OnceLock<Mapping>,
    pub(crate) memory_limit: AtomicU64,
    pub(crate) stderr_tail: Mutex<VecDeque<u8>>,
    pub(crate) reason: Mutex<Option<String>>,
}

/// What a worker knows.
#[derive(Default)]
pub(crate) struct Told {
    segments: HashSet<SegmentId>,
    pub(crate) blobs: HashSet<BlobId>,
    /// Blobs that it will be told to forget with its next task.
    pub(crate) forgotten: Vec<BlobId>,
    /// Tasks whose results it has.
    results: HashSet<TaskId>,
    /// Results that it will be told to forget with its next task, or soon.
    forgotten_results: Vec<TaskId>,
}

impl Told {
    /// True the first time that it is asked for this blob.
    pub(crate) fn needs_blob(&mut self, blob: BlobId) -> bool {
        self.blobs.insert(blob)
    }

    /// True the first time that it is asked for this result, since it was last forgotten.
    pub(crate) fn needs_result(&mut self, task: TaskId) -> bool {
        self.results.insert(task)
    }
}

impl Connection {
    /// `socket`: the near end of its connection.
    pub fn new(worker: WorkerId, rank: u32, socket: Arc<OwnedFd>) -> Arc<Self> {
        let backlog = Arc::new(Notify::new());
        let on_backlog = backlog.clone();
        Arc::new(Self {
            owner: std::process::id(),
            worker,
            rank,
            outbox: Outbox::new(socket, Box::new(move || on_backlog.notify_one())),
            backlog,
            ready: AtomicBool::new(false),
            pid: AtomicI32::new(0),
            results: Mutex::default(),
            told: Mutex::default(),
            ledger: OnceLock::new(),
            memory_limit: AtomicU64::new(0),
            stderr_tail: Mutex::default(),
            reason: Mutex::default(),
        })
    }

    pub(crate) fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().expect("no holder panics")
    }

    /// Let the worker know a segment, once.
    pub(crate) fn announce(&self, told: &mut Told, id: SegmentId, segment: &Segment) -> io::Result<()> {
        if told.segments.insert(id) {
            let fd = Arc::new(segment.duplicate_fd()?);
            self.outbox.hold(&ToWorker::Segment { segment: id, bytes: segment.bytes }, &[], Some(fd));
        }
        Ok(())
    }

    /// This is the process that made it, and not one that was forked from that.
    pub(crate) fn is_ours(&self) -> bool {
        self.owner == std::process::id()
    }

    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// The worker need not keep the result. It hears of it with its next task, or soon.
    pub fn forget_result(&self, task: TaskId) {
        let mut told = self.told();
        if told.results.remove(&task) {
            told.forgotten_results.push(task);
        }
    }

    /// What the worker is to be told before its next task.
    pub(crate) fn hold_forgotten(&self, told: &mut Told) {
        for task in std::mem::take(&mut told.forgotten_results) {
            self.outbox.hold(&ToWorker::ForgetResult { task }, &[], None);
        }
        if told.results.is_empty() && told.results.capacity() > KEPT_ROOM {
            told.results = HashSet::new();
        }
        for blob in told.forgotten.drain(..) {
            self.outbox.hold(&ToWorker::ForgetBlob { blob }, &[], None);
        }
    }

    /// The worker needs these no more. It hears of it with its next task, unless it is `urgent`.
    pub fn forget_blobs(&self, blobs: &[BlobId], urgent: bool) {
        {
            let mut told = self.told();
            let known: Vec<BlobId> = blobs.iter().copied().filter(|blob| told.blobs.remove(blob)).collect();
            told.forgotten.extend(known);
            if urgent {
                self.hold_forgotten(&mut told);
            }
        }
        if urgent {
            self.outbox.flush();
        }
    }

    pub fn limit_memory(&self, bytes: u64) {
        self.memory_limit.store(bytes, Ordering::Relaxed);
    }

    /// The number of its process is known. False when it has been told to end before.
    pub fn started(&self, pid: i32) -> bool {
        self.pid.compare_exchange(0, pid, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    pub fn pid(&self) -> Option<i32> {
        Some(self.pid.load(Ordering::Acquire)).filter(|pid| *pid > 0)
    }

    /// A segment of ours that it was shown is given up.
    pub fn forget(&self, segment: SegmentId) {
        if self.told().segments.remove(&segment) {
            self.outbox.send(&ToWorker::Unmap { segment }, &[], None);
        }
    }

    /// End a worker that cannot go on, and keep the reason for the report of its death.
    pub fn condemn(&self, reason: String) {
        *self.reason.lock().expect("no holder panics") = Some(reason);
        self.kill();
    }

    /// End the process and what it started.
    pub fn kill(&self) {
        let pid = self.pid.swap(-1, Ordering::AcqRel);
        if pid > 0 {
            group::end_group(pid);
        }
    }

    pub(crate) fn lease(self: &Arc<Self>, extent: Extent, memory: &Arc<SharedMemory>) -> io::Result<Lease> {
        let received = self.results.lock().expect("no holder panics").get(&extent.segment).cloned();
        let received = received.filter(|received| received.mapping.range(extent.offset, extent.bytes).is_some());
        let received = received.ok_or_else(|| invalid("a worker named memory that it had not announced"))?;
        memory.leases.fetch_add(1, Ordering::Relaxed);
        let (connection, forks) = (Arc::downgrade(self), fork::count());
        let (memory, shown) = (memory.clone(), Mutex::default());
        Ok(Lease(Arc::new(Leased { received, extent, connection, memory, shown, forks })))
    }

    pub(crate) fn remember_stderr(&self, text: &[u8]) {
        let mut tail = self.stderr_tail.lock().expect("no holder panics");
        tail.extend(text);
        let excess = tail.len().saturating_sub(STDERR_TAIL_BYTES);
        tail.drain(..excess);
    }
}

pub(crate) fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
