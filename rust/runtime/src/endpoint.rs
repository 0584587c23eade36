//! The worker's side of its connection: tasks in, reports out.
//!
//! An I/O thread reads, so that taking tasks back and the end of the parent are noticed while a task
//! runs and whoever holds the interpreter. When the parent's end closes, the process ends at once.
//! The thread that runs tasks writes its reports itself. Those of short tasks wait for each other, in memory that the
//! parent can read should the process end; the I/O thread sends them when a longer task has come in between.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustdask_core::frame::{self, Frame};
use rustdask_core::message::{Access, Body, Buffer, Extent, FromWorker, Report, RunTask, Timings, ToWorker};
use rustdask_core::{Attempt, BlobId, SegmentId, TaskId, WorkerId};
use rustix::event::{poll, PollFd, PollFlags};
use rustix::time::{
    timerfd_create, timerfd_settime, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec,
};

use crate::connection::invalid;
use crate::cursor::Cursor;
use crate::shm::{Ledger, Mapping, PageMap, Segment};
use crate::upstream::{inline, Baton, Upstream};
use crate::wire::{self, Inbox, Read};

/// Recycled segments that are kept for the next results: this many bytes and segments, this long.
const KEEP_BYTES: u64 = 512 << 20;
const MAX_KEPT: usize = 48;
const KEEP_IDLE: Duration = Duration::from_secs(5);
/// Segments that results are in and that can be filled again; each keeps a descriptor open.
const MAX_LENT: usize = 48;
/// Requests to take tasks back that came before the task; more than this many are leftovers.
const MAX_EARLY: usize = 1024;

/// Reports that may wait together: of tasks up to so long,
const SHORT_TASK: Duration = Duration::from_micros(50);
/// for so long while such tasks follow,
const GATHER: Duration = Duration::from_micros(100);
/// and whatever follows.
const OVERDUE: Duration = Duration::from_micros(200);
const LEDGER_BYTES: usize = 64 << 10;
/// A worker with no more tasks than this may run out of them before it gets others.
const FEW_WAITING: usize = 3;

/// Bytes that the parent sent, where they are.
#[derive(Clone)]
pub enum Bytes {
    Inline(Arc<Vec<u8>>),
    Mapped(View),
}

/// A range of a mapping, which it keeps alive.
#[derive(Clone)]
pub struct View {
    pub mapping: Arc<Mapping>,
    pub offset: u64,
    pub bytes: u64,
}

impl View {
    /// `None` if it is not all in the mapping. Whoever may write there does so before it says that anything is there.
    pub fn as_slice(&self) -> Option<&[u8]> {
        let start = self.mapping.range(self.offset, self.bytes)?;
        // SAFETY: the range was checked, and the view keeps it mapped.
        Some(unsafe { crate::shm::borrow(start.as_ptr() as usize, self.bytes as usize) })
    }
}

/// A task to run.
pub struct Task {
    pub run: RunTask,
    pub body: Bytes,
    pub cursor: Arc<Cursor>,
}

/// A blob: bytes that many tasks refer to.
#[derive(Clone)]
pub struct Blob {
    pub body: Bytes,
    pub buffers: Vec<View>,
}

struct Queued {
    run: RunTask,
    inline: Vec<u8>,
    cursor: Arc<Cursor>,
}

/// Where a blob's pickle is, what came in the frame, and its buffers.
pub(crate) type SentBlob = (Body, Arc<Vec<u8>>, Vec<Buffer>);

#[derive(Default)]
pub(crate) struct Inner {
    waiting: VecDeque<Queued>,
    pub(crate) running: Option<Running>,
    pub(crate) baton: Baton,
    pub(crate) welcome: Option<(WorkerId, u32)>,
    early: HashSet<(TaskId, Attempt)>,
    blobs: HashMap<BlobId, SentBlob>,
    forgotten: Vec<BlobId>,
    /// Results of other workers that were sent.
    sent_results: HashMap<TaskId, SentBlob>,
    forgotten_results: Vec<TaskId>,
    segments: HashMap<SegmentId, Segment>,
    mappings: HashMap<(SegmentId, Access), Arc<Mapping>>,
    /// Segments that are kept here beyond their tasks, and whether the parent has been told.
    kept: HashMap<SegmentId, bool>,
    /// Page faults of this process when no private mapping had been written to.
    clean_at: Option<u64>,
    results: Results,
}

pub(crate) struct Running {
    pub(crate) task: TaskId,
    pub(crate) attempt: Attempt,
    cursor: Arc<Cursor>,
    begun: Instant,
}

/// Reports that wait to be sent.
struct Outgoing {
    ledger: Ledger,
    count: usize,
    since: Option<Instant>,
    /// The timer will go off.
    armed: bool,
}

/// Our own segments, which results are written to.
#[derive(Default)]
struct Results {
    next: u64,
    lent: HashMap<SegmentId, Warm>,
    free: Vec<(SegmentId, Warm)>,
    free_since: Option<Instant>,
}

/// A segment that has been filled before, so that it has memory.
struct Warm {
    segment: Segment,
    /// Made when it is filled again.
    mapping: Option<Mapping>,
}

impl Warm {
    fn refill(&mut self, buffer: &[u8]) -> io::Result<()> {
        if self.mapping.is_none() {
            self.mapping = Some(self.segment.map(Access::Shared)?);
        }
        self.mapping.iter().for_each(|mapping| mapping.overwrite(buffer));
        Ok(())
    }
}

impl Results {
    fn free_bytes(&self) -> u64 {
        self.free.iter().map(|(_, warm)| warm.segment.bytes).sum()
    }

    /// The smallest free segment that is large enough, and not wastefully so.
    fn take_free(&mut self, bytes: u64) -> Option<(SegmentId, Warm)> {
        let sizes = self.free.iter().enumerate().map(|(at, (_, warm))| (warm.segment.bytes, at));
        let (_, best) = sizes.filter(|(size, _)| *size >= bytes && *size <= bytes.saturating_mul(2)).min()?;
        Some(self.free.swap_remove(best))
    }

    /// False when it cannot be filled again.
    fn recycle(&mut self, id: SegmentId) -> bool {
        let Some(warm) = self.lent.remove(&id) else { return false };
        self.free.push((id, warm));
        self.free_since = Some(Instant::now());
        true
    }

    fn lend(&mut self, id: SegmentId, warm: Warm) {
        if self.lent.len() < MAX_LENT {
            self.lent.insert(id, warm);
        }
    }

    /// Segments to give up: all of them after a while without use, the oldest when there are too many.
    fn surplus(&mut self) -> Vec<SegmentId> {
        let mut gone = Vec::new();
        let stale = self.free_since.is_some_and(|since| since.elapsed() >= KEEP_IDLE);
        while !self.free.is_empty() && (stale || self.free.len() > MAX_KEPT || self.free_bytes() > KEEP_BYTES) {
            gone.push(self.free.remove(0).0);
        }
        gone
    }
}

pub struct Endpoint {
    socket: OwnedFd,
    outgoing: Mutex<Outgoing>,
    /// Goes off when reports are overdue.
    timer: OwnedFd,
    pub(crate) inner: Mutex<Inner>,
    pub(crate) arrived: Condvar,
    pub(crate) upstream: Upstream,
    pages: Option<PageMap>,
}

impl Endpoint {
    /// Take the connection over and say that the worker is ready.
    pub fn start(socket: OwnedFd) -> io::Result<Arc<Self>> {
        let (ledger, segment) = Ledger::create(LEDGER_BYTES)?;
        let endpoint = Arc::new(Self {
            socket,
            outgoing: Mutex::new(Outgoing { ledger, count: 0, since: None, armed: false }),
            timer: timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?,
            inner: Mutex::default(),
            arrived: Condvar::new(),
            upstream: Upstream::default(),
            // Without it (a hardened /proc), mappings are not reused between tasks.
            pages: PageMap::open().ok(),
        });
        let reader = endpoint.clone();
        std::thread::Builder::new().name("rustdask-io".into()).spawn(move || reader.read_until_closed())?;
        endpoint.send(&FromWorker::Ledger { bytes: segment.bytes }, &[], Some(&segment))?;
        endpoint.send(&FromWorker::Ready, &[], None)?;
        Ok(endpoint)
    }

    /// Wait for the next task, at most `limit`.
    pub fn next_task(&self, limit: Duration) -> io::Result<Option<Task>> {
        let mut inner = self.inner.lock().expect("no holder panics");
        if inner.waiting.is_empty() && !limit.is_zero() && !inner.baton.is_asked_for() {
            inner = self.arrived.wait_timeout(inner, limit).expect("no holder panics").0;
        }
        if inner.baton.is_asked_for() {
            return Ok(None);
        }
        let Some(queued) = inner.waiting.pop_front() else { return Ok(None) };
        let (task, attempt, cursor) = (queued.run.task, queued.run.attempt, queued.cursor.clone());
        inner.running = Some(Running { task, attempt, cursor, begun: Instant::now() });
        let body = inner.bytes(queued.run.body, Arc::new(queued.inline))?;
        Ok(Some(Task { run: queued.run, body, cursor: queued.cursor }))
    }

    /// Map buffers of a task.
    pub fn views(&self, buffers: &[Buffer]) -> io::Result<Vec<View>> {
        self.inner.lock().expect("no holder panics").views(buffers)
    }

    pub fn blob(&self, id: BlobId) -> io::Result<Blob> {
        let mut inner = self.inner.lock().expect("no holder panics");
        let (body, inline, buffers) =
            inner.blobs.get(&id).cloned().ok_or_else(|| invalid("a task refers to a blob that was not sent"))?;
        Ok(Blob { body: inner.bytes(body, inline)?, buffers: inner.views(&buffers)? })
    }

    /// The result of another task, which another worker has made.
    pub fn result(&self, task: TaskId) -> io::Result<Blob> {
        let mut inner = self.inner.lock().expect("no holder panics");
        let sent = inner.sent_results.get(&task).cloned();
        let (body, inline, buffers) = sent.ok_or_else(|| invalid("a task takes a result that was not sent"))?;
        Ok(Blob { body: inner.bytes(body, inline)?, buffers: inner.views(&buffers)? })
    }

    /// Results that are not needed any more since it was last asked.
    pub fn take_forgotten_results(&self) -> Vec<TaskId> {
        std::mem::take(&mut self.inner.lock().expect("no holder panics").forgotten_results)
    }

    /// Blobs that are not needed any more since it was last asked.
    pub fn take_forgotten(&self) -> Vec<BlobId> {
        std::mem::take(&mut self.inner.lock().expect("no holder panics").forgotten)
    }

    /// Put a result's buffer into shared memory; the parent has it until it says `Recycle`.
    pub fn place(&self, buffer: &[u8]) -> io::Result<Extent> {
        let bytes = buffer.len() as u64;
        let reused = self.inner.lock().expect("no holder panics").results.take_free(bytes);
        let (id, warm) = match reused {
            Some((id, mut warm)) => {
                warm.refill(buffer)?;
                (id, warm)
            }
            None => {
                let (id, segment) = self.new_segment(bytes)?;
                segment.fill(buffer)?;
                (id, Warm { segment, mapping: None })
            }
        };
        self.inner.lock().expect("no holder panics").results.lend(id, warm);
        Ok(Extent { segment: id, offset: 0, bytes })
    }

    fn new_segment(&self, bytes: u64) -> io::Result<(SegmentId, Segment)> {
        let segment = Segment::create(bytes, None)?;
        let id = {
            let results = &mut self.inner.lock().expect("no holder panics").results;
            results.next += 1;
            SegmentId(results.next)
        };
        self.send(&FromWorker::Segment { segment: id, bytes }, &[], Some(&segment))?;
        Ok((id, segment))
    }

    #[allow(clippy::too_many_arguments)]
    pub fn finish(
        &self,
        task: TaskId,
        attempt: Attempt,
        report: Report,
        pickle: &[u8],
        buffers: Vec<Extent>,
        timings: Timings,
        keeps_result: bool,
    ) -> io::Result<()> {
        let body = self.put(pickle)?;
        let inline = inline(body, pickle);
        let (kept, short, waiting) = {
            let mut inner = self.inner.lock().expect("no holder panics");
            let ran = inner.running.take();
            let short = ran.is_some_and(|ran| ran.begun.elapsed() < SHORT_TASK);
            (inner.newly_kept(), short, inner.waiting.len())
        };
        // Before the report: once that is there, the parent may fill the task's segments again.
        for segment in kept {
            self.send(&FromWorker::Kept { segment }, &[], None)?;
        }
        let kept = keeps_result;
        let finished = FromWorker::Finished { task, attempt, report, body, buffers, timings, kept };
        let mut outgoing = self.outgoing.lock().expect("no holder panics");
        if short && outgoing.may_wait(waiting) && outgoing.hold(&finished, inline) {
            return self.arm(&mut outgoing, OVERDUE);
        }
        self.write(&mut outgoing, &finished, inline, None)
    }

    /// Before the next task: undo what the one before wrote to its arguments, so that this finds them as they were
    /// sent. Mappings that somebody has kept, as a task does that waits, are left to them.
    pub fn settle(&self) {
        let mut inner = self.inner.lock().expect("no holder panics");
        if inner.mappings.is_empty() {
            inner.clean_at = None;
            return;
        }
        inner.note_kept();
        // A page becomes private by a fault: where there was none, nothing was written.
        let faults = page_faults();
        let unwritten = inner.clean_at == Some(faults);
        let pages = self.pages.as_ref();
        inner.mappings.retain(|(_, access), mapping| {
            if *access != Access::CopyOnWrite {
                return true;
            }
            // What somebody keeps is theirs: the next task gets a mapping of its own.
            let free = Arc::strong_count(mapping) == 1;
            free && (unwritten || pages.is_some_and(|pages| mapping.reset(pages).is_ok()))
        });
        inner.clean_at = Some(faults);
    }

    /// This process has forked: the child may go on looking at arguments, whatever becomes of the task.
    pub fn forked(&self) {
        self.inner.lock().expect("no holder panics").note_kept();
    }

    pub fn log(&self, record: &[u8]) -> io::Result<()> {
        self.send(&FromWorker::Log, record, None)
    }

    pub(crate) fn send(&self, message: &FromWorker, body: &[u8], fd: Option<&Segment>) -> io::Result<()> {
        let mut outgoing = self.outgoing.lock().expect("no holder panics");
        self.write(&mut outgoing, message, body, fd)
    }

    /// Write a frame, after the reports that wait.
    fn write(
        &self,
        outgoing: &mut Outgoing,
        message: &FromWorker,
        body: &[u8],
        fd: Option<&Segment>,
    ) -> io::Result<()> {
        let mut bytes = outgoing.ledger.as_bytes().to_vec();
        frame::append(&mut bytes, message, body);
        self.write_bytes(outgoing, &bytes, fd)
    }

    /// `bytes`: those of the reports that wait first.
    fn write_bytes(&self, outgoing: &mut Outgoing, bytes: &[u8], fd: Option<&Segment>) -> io::Result<()> {
        wire::write_blocking(self.socket.as_fd(), bytes, fd.map(AsFd::as_fd))?;
        outgoing.sent();
        Ok(())
    }

    /// Have the I/O thread look after reports, unless it will anyway.
    fn arm(&self, outgoing: &mut Outgoing, after: Duration) -> io::Result<()> {
        if !std::mem::replace(&mut outgoing.armed, true) {
            let value = Timespec { tv_sec: 0, tv_nsec: i64::from(after.subsec_nanos().max(1)) };
            let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
            timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        }
        Ok(())
    }

    /// The timer has gone off: send the reports, or wait for them to be overdue.
    fn send_overdue(&self) -> io::Result<()> {
        let mut outgoing = self.outgoing.lock().expect("no holder panics");
        outgoing.armed = false;
        let Some(since) = outgoing.since else { return Ok(()) };
        let left = OVERDUE.saturating_sub(since.elapsed());
        if !left.is_zero() {
            return self.arm(&mut outgoing, left);
        }
        let bytes = outgoing.ledger.as_bytes().to_vec();
        self.write_bytes(&mut outgoing, &bytes, None)
    }

    /// Write frames that were put together before, after the reports that wait.
    pub(crate) fn send_frames(&self, frames: &[u8]) -> io::Result<()> {
        let mut outgoing = self.outgoing.lock().expect("no holder panics");
        let mut bytes = outgoing.ledger.as_bytes().to_vec();
        bytes.extend_from_slice(frames);
        self.write_bytes(&mut outgoing, &bytes, None)
    }

    /// What was sent, with its buffers in mappings that no task is given.
    pub(crate) fn open(&self, (body, inline, buffers): SentBlob) -> io::Result<Blob> {
        let mut inner = self.inner.lock().expect("no holder panics");
        Ok(Blob { body: inner.bytes(body, inline)?, buffers: inner.own_views(&buffers)? })
    }

    fn read_until_closed(&self) {
        if let Err(error) = self.read_frames() {
            eprintln!("rustdask worker: cannot go on: {error}");
        }
        exit_now();
    }

    fn read_frames(&self) -> io::Result<()> {
        let mut inbox = Inbox::default();
        loop {
            self.wait_readable()?;
            if inbox.read(self.socket.as_fd(), true)? == Read::Closed {
                return Ok(());
            }
            let mut queued = false;
            while let Some(frame) = inbox.next_frame::<ToWorker>()? {
                queued |= matches!(frame.message, ToWorker::Run(_));
                self.handle(frame, &mut inbox)?;
            }
            if queued {
                self.arrived.notify_one();
            }
        }
    }

    /// Wait for the parent's next word; send reports that are overdue and give surplus segments up meanwhile.
    fn wait_readable(&self) -> io::Result<()> {
        loop {
            let has_free = !self.inner.lock().expect("no holder panics").results.free.is_empty();
            let timeout = Timespec { tv_sec: 1, tv_nsec: 0 };
            let mut fds = [PollFd::new(&self.socket, PollFlags::IN), PollFd::new(&self.timer, PollFlags::IN)];
            let ready = rustix::io::retry_on_intr(|| poll(&mut fds, has_free.then_some(&timeout)))?;
            let [socket, timer] = fds.map(|fd| !fd.revents().is_empty());
            if timer {
                let mut expirations = [0u8; 8];
                // Nothing is there when it was set again in the meantime.
                let _ = rustix::io::read(&self.timer, &mut expirations);
                self.send_overdue()?;
            }
            if socket {
                return Ok(());
            }
            if ready == 0 {
                self.give_up_surplus()?;
            }
        }
    }

    fn give_up_surplus(&self) -> io::Result<()> {
        let gone = self.inner.lock().expect("no holder panics").results.surplus();
        gone.into_iter().try_for_each(|segment| self.send(&FromWorker::Unmap { segment }, &[], None))
    }

    fn handle(&self, frame: Frame<ToWorker>, inbox: &mut Inbox) -> io::Result<()> {
        match frame.message {
            ToWorker::Run(run) => self.queue(run, frame.body)?,
            ToWorker::Retract { task, attempt } => self.retract(task, attempt)?,
            ToWorker::Welcome { worker, workers } => self.welcome(worker, workers),
            ToWorker::Ended { task, how, body, buffers } => {
                self.tell_ended(task, how, (body, Arc::new(frame.body), buffers))?;
            }
            ToWorker::Recycle { segment } => {
                let recycled = self.inner.lock().expect("no holder panics").results.recycle(segment);
                if !recycled {
                    self.send(&FromWorker::Unmap { segment }, &[], None)?;
                }
                self.give_up_surplus()?;
            }
            ToWorker::Retire { segment } => {
                self.inner.lock().expect("no holder panics").results.lent.remove(&segment);
                self.send(&FromWorker::Unmap { segment }, &[], None)?;
            }
            ToWorker::Blob { blob, body, buffers } => {
                let mut inner = self.inner.lock().expect("no holder panics");
                inner.blobs.insert(blob, (body, Arc::new(frame.body), buffers));
            }
            ToWorker::ForgetBlob { blob } => {
                let mut inner = self.inner.lock().expect("no holder panics");
                inner.blobs.remove(&blob);
                inner.forgotten.push(blob);
            }
            ToWorker::Result { task, body, buffers } => {
                let mut inner = self.inner.lock().expect("no holder panics");
                inner.sent_results.insert(task, (body, Arc::new(frame.body), buffers));
            }
            ToWorker::ForgetResult { task } => {
                let mut inner = self.inner.lock().expect("no holder panics");
                inner.sent_results.remove(&task);
                inner.forgotten_results.push(task);
            }
            ToWorker::Segment { segment, bytes } => {
                let received = Segment::from_fd(inbox.take_fd()?, bytes);
                self.inner.lock().expect("no holder panics").segments.insert(segment, received);
            }
            ToWorker::Unmap { segment } => {
                let mut inner = self.inner.lock().expect("no holder panics");
                inner.segments.remove(&segment);
                inner.kept.remove(&segment);
                inner.mappings.retain(|(mapped, _), _| *mapped != segment);
            }
        }
        Ok(())
    }

    fn queue(&self, run: RunTask, inline: Vec<u8>) -> io::Result<()> {
        let (task, attempt) = (run.task, run.attempt);
        let cursor = Arc::new(Cursor::new(run.items));
        let mut inner = self.inner.lock().expect("no holder panics");
        if inner.early.remove(&(task, attempt)) {
            drop(inner);
            return self.send(&FromWorker::Returned { task, attempt, kept: 0 }, &[], None);
        }
        inner.waiting.push_back(Queued { run, inline, cursor });
        Ok(())
    }

    fn retract(&self, task: TaskId, attempt: Attempt) -> io::Result<()> {
        let mut inner = self.inner.lock().expect("no holder panics");
        let kept = match &inner.running {
            Some(running) if (running.task, running.attempt) == (task, attempt) => Some(running.cursor.cut()),
            // It has begun, if no more than that.
            _ if inner.baton.has_parked(task, attempt) => Some(1),
            _ => {
                let before = inner.waiting.len();
                inner.waiting.retain(|queued| (queued.run.task, queued.run.attempt) != (task, attempt));
                (inner.waiting.len() < before).then_some(0)
            }
        };
        if kept.is_none() {
            // Its report crossed this request, or it is still to come.
            if inner.early.len() >= MAX_EARLY {
                inner.early.clear();
            }
            inner.early.insert((task, attempt));
        }
        drop(inner);
        match kept {
            Some(kept) => self.send(&FromWorker::Returned { task, attempt, kept }, &[], None),
            None => Ok(()),
        }
    }
}

impl Outgoing {
    /// Enough tasks wait that the parent need not hear of this one at once to keep the worker busy.
    fn may_wait(&self, waiting: usize) -> bool {
        2 * self.count + FEW_WAITING < waiting && self.since.is_none_or(|since| since.elapsed() < GATHER)
    }

    /// False when there is no room.
    fn hold(&mut self, message: &FromWorker, body: &[u8]) -> bool {
        let mut bytes = Vec::with_capacity(body.len() + 64);
        frame::append(&mut bytes, message, body);
        let held = self.ledger.push(&bytes);
        if held {
            self.count += 1;
            self.since.get_or_insert_with(Instant::now);
        }
        held
    }

    fn sent(&mut self) {
        self.ledger.clear();
        self.count = 0;
        self.since = None;
    }
}

impl Inner {
    /// Remember the segments to which more refers than this endpoint.
    fn note_kept(&mut self) {
        for ((segment, _), mapping) in &self.mappings {
            if Arc::strong_count(mapping) > 1 {
                self.kept.entry(*segment).or_insert(false);
            }
        }
    }

    /// Those of them that the parent has not been told of.
    fn newly_kept(&mut self) -> Vec<SegmentId> {
        self.note_kept();
        let news = |(segment, told): (&SegmentId, &mut bool)| (!std::mem::replace(told, true)).then_some(*segment);
        self.kept.iter_mut().filter_map(news).collect()
    }

    fn bytes(&mut self, body: Body, inline: Arc<Vec<u8>>) -> io::Result<Bytes> {
        Ok(match body {
            Body::Inline => Bytes::Inline(inline),
            Body::InSegment(extent) => Bytes::Mapped(self.view(extent, Access::ReadOnly)?),
        })
    }

    fn views(&mut self, buffers: &[Buffer]) -> io::Result<Vec<View>> {
        buffers.iter().map(|buffer| self.view(buffer.extent, buffer.access)).collect()
    }

    /// The same in mappings of their own, one for each segment.
    fn own_views(&self, buffers: &[Buffer]) -> io::Result<Vec<View>> {
        let mut mappings = HashMap::new();
        let mut view = |buffer: &Buffer| {
            let key = (buffer.extent.segment, buffer.access);
            let mapping = match mappings.entry(key) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => entry.insert(self.map(key)?),
            };
            view_of(mapping, buffer.extent)
        };
        buffers.iter().map(&mut view).collect()
    }

    fn view(&mut self, extent: Extent, access: Access) -> io::Result<View> {
        let key = (extent.segment, access);
        if !self.mappings.contains_key(&key) {
            let mapping = self.map(key)?;
            self.mappings.insert(key, mapping);
        }
        view_of(&self.mappings[&key], extent)
    }

    fn map(&self, (segment, access): (SegmentId, Access)) -> io::Result<Arc<Mapping>> {
        let segment = self.segments.get(&segment);
        let segment = segment.ok_or_else(|| invalid("a task names a segment that was not sent"))?;
        Ok(Arc::new(segment.map(access)?))
    }
}

fn view_of(mapping: &Arc<Mapping>, extent: Extent) -> io::Result<View> {
    if mapping.range(extent.offset, extent.bytes).is_none() {
        return Err(invalid("a task names memory outside its segment"));
    }
    Ok(View { mapping: mapping.clone(), offset: extent.offset, bytes: extent.bytes })
}

/// Page faults of this process that needed no reading from a disk.
fn page_faults() -> u64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the kernel fills the structure, of which all zeros are a valid value.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    usage.ru_minflt as u64 + usage.ru_majflt as u64
}

/// End the process without exit handlers: the parent is gone, and nobody would see what they do.
fn exit_now() -> ! {
    crate::group::end_rest_of_group(std::process::id() as i32);
    // SAFETY: _exit takes no memory of ours and does not return.
    unsafe { libc::_exit(0) }
}
