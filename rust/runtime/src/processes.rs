//! Worker processes of this machine: started, fed, heard and buried by one I/O thread.
//!
//! Who does what: the driver decides under its lock; the thread that waits for a call pickles tasks and
//! writes them straight to the worker's socket; the I/O thread reads reports and output, watches memory
//! and idle time, and learns from the template how a worker ended.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::{Duration, Instant};

use rustdask_core::ending::Obituary;
use rustdask_core::message::{Access, Body, Extent, FromWorker, Report, Timings, ToWorker};
use rustdask_core::nested::FromTask;
use rustdask_core::{Attempt, BlobId, CallId, Event, KillReason, Outcome, SegmentId, TaskId, WorkerId, WorkerSpec};
use rustix::net::{socketpair, AddressFamily, SocketFlags, SocketType};
use rustix::pipe::{pipe_with, PipeFlags};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot, Notify};

use crate::driver::{Driver, Inputs, Job, Notice, Payload, Shell};
use crate::endpoint::View;
use crate::fork;
use crate::group;
use crate::parcel::Contents;
use crate::pool::PoolSpec;
use crate::shm::{Ledger, Mapping, Segment};
use crate::store::Store;
use crate::stored::Shown;
use crate::template::{Launch, News, Template, WorkerEnds};
use crate::upstream::{Guest, Host};
use crate::wire::{Inbox, Outbox, Read};

/// Tasks that a worker may hold, the running one included: it never waits for us between two. Calls ask for less.
const DEPTH: u32 = 128;
/// Of graphs, at least so many, and as many as this is the time for.
pub const GRAPH_DEPTH: u32 = 4;
const WORK_AHEAD_US: f64 = 1000.0;
const PACE_WEIGHT: f64 = 1.0 / 32.0;
/// How often memory and idle time are looked at while anything is to be looked at.
const TICK: Duration = Duration::from_millis(50);
/// Unused arguments are kept in shared memory this long.
const KEEP_ARGUMENTS: Duration = Duration::from_secs(5);
/// A set that is empty keeps room for so many.
const KEPT_ROOM: usize = 4096;
/// Most descriptors of segments of workers that are kept, to hand them on.
const MAX_DESCRIPTORS: usize = 4096;
const SHUT_DOWN: &str = "rustdask was shut down while the call was running";
/// How long to wait for the template to say how a worker ended.
const OBITUARY_PATIENCE: Duration = Duration::from_secs(2);
/// What is kept of a worker's stderr for the report of its death.
const STDERR_TAIL_BYTES: usize = 4 << 10;

/// What a worker reported of a task, or why it was never sent.
pub enum Delivery {
    Report {
        report: Report,
        body: Reported,
        buffers: Vec<Lease>,
        timings: Timings,
        bytes: u64,
    },
    /// The payload could not be pickled or placed; the caller knows why.
    Unsent,
}

impl Delivery {
    fn outcome(&self) -> Outcome {
        match self {
            Self::Report { report: Report::Results, .. } => Outcome::Ok,
            _ => Outcome::Err,
        }
    }

    fn bytes(&self) -> u64 {
        match self {
            Self::Report { bytes, .. } => *bytes,
            Self::Unsent => 0,
        }
    }

    /// How long the worker had to do with it.
    fn took(&self) -> Duration {
        match self {
            Self::Report { timings, .. } => timings.loading + timings.running + timings.dumping,
            Self::Unsent => Duration::ZERO,
        }
    }
}

/// How long the tasks of graphs take, and so how many of them a worker is given ahead: waking each other costs the
/// processes more than a short task does.
struct Pace {
    mean_us: f64,
    depth: u32,
}

impl Pace {
    /// The depth that suits, when that has changed for good.
    fn after(&mut self, took: Duration) -> Option<u32> {
        self.mean_us += PACE_WEIGHT * (took.as_secs_f64() * 1e6 - self.mean_us);
        let depth = ((WORK_AHEAD_US / self.mean_us.max(1.0)) as u32).clamp(GRAPH_DEPTH, DEPTH);
        let changed = depth >= 2 * self.depth || 2 * depth <= self.depth;
        changed.then(|| {
            self.depth = depth;
            depth
        })
    }
}

impl Default for Pace {
    fn default() -> Self {
        Self { mean_us: WORK_AHEAD_US, depth: GRAPH_DEPTH }
    }
}

/// Bytes of a report's pickle.
pub enum Reported {
    Inline(Vec<u8>),
    Leased(Lease),
}

/// A range of a worker's segment. When the last clone is dropped the worker may fill the segment again.
#[derive(Clone)]
pub struct Lease(Arc<Leased>);

struct Leased {
    received: Arc<Received>,
    extent: Extent,
    connection: Weak<Connection>,
    shared: Arc<Shared>,
    /// Other workers look at it.
    shown: Mutex<Option<Shown>>,
    /// [`fork::count`] when it was mapped.
    forks: u64,
}

/// A segment of a worker's.
struct Received {
    mapping: Arc<Mapping>,
    /// While few are kept: each takes a descriptor.
    segment: Option<Arc<Segment>>,
    descriptors: Arc<AtomicUsize>,
}

impl Received {
    fn new(segment: Segment, descriptors: &Arc<AtomicUsize>) -> io::Result<Self> {
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
    pub(crate) fn shown_as(&self) -> io::Result<Extent> {
        let mut shown = self.0.shown.lock().expect("no holder panics");
        if shown.is_none() {
            let id = self.0.shared.store.fresh_id();
            *shown = Some(Shown::new(id, self.segment()?));
        }
        let segment = shown.as_ref().expect("just made").id;
        Ok(Extent { segment, ..self.0.extent })
    }

    pub(crate) fn copy_to(&self, segment: &Segment, offset: u64) -> io::Result<()> {
        let extent = self.0.extent;
        let start = self.mapping().range(extent.offset, extent.bytes);
        let start = start.ok_or_else(|| invalid("a result is outside of its segment"))?;
        // SAFETY: the range was checked, and the lease keeps it mapped, and its owner from filling it again.
        segment.fill_at(unsafe { crate::shm::borrow(start.as_ptr() as usize, extent.bytes as usize) }, offset)
    }

    /// The worker's, if its descriptor is there, or a copy.
    fn segment(&self) -> io::Result<Arc<Segment>> {
        if let Some(segment) = &self.0.received.segment {
            return Ok(segment.clone());
        }
        let extent = self.0.extent;
        let copy = Segment::create(extent.offset + extent.bytes, None)?;
        self.copy_to(&copy, extent.offset)?;
        Ok(Arc::new(copy))
    }

    pub fn extent(&self) -> Extent {
        self.0.extent
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        self.shared.leases.fetch_sub(1, Ordering::Relaxed);
        let shown = self.shown.get_mut().expect("no holder panics").take();
        let Some(connection) = self.connection.upgrade().filter(|connection| connection.is_ours()) else { return };
        let segment = self.extent.segment;
        // A process that was forked since may still look at it.
        let reusable = self.forks == fork::count() && shown.is_none();
        let message = if reusable { ToWorker::Recycle { segment } } else { ToWorker::Retire { segment } };
        connection.outbox.send(&message, &[], None);
    }
}

/// Text that a worker wrote.
pub struct Output {
    pub error_stream: bool,
    pub text: Vec<u8>,
    /// It is a pickled log record, not text.
    pub log: bool,
}

/// Our side of a worker process.
pub struct Connection {
    /// The process that speaks on it.
    owner: u32,
    pub worker: WorkerId,
    pub rank: u32,
    pub outbox: Outbox,
    backlog: Arc<Notify>,
    /// 0 until the template has said; -1 once it has been killed.
    pid: AtomicI32,
    /// The worker's segments, by the id it gave them.
    results: Mutex<HashMap<SegmentId, Arc<Received>>>,
    /// Segments of ours and blobs that it has been told of.
    told: Mutex<Told>,
    /// Where its reports stand before it sends them.
    ledger: OnceLock<Mapping>,
    memory_limit: AtomicU64,
    stderr_tail: Mutex<VecDeque<u8>>,
    reason: Mutex<Option<String>>,
}

/// What a worker knows.
#[derive(Default)]
pub(crate) struct Told {
    segments: HashSet<SegmentId>,
    blobs: HashSet<BlobId>,
    /// Blobs that it will be told to forget with its next task.
    forgotten: Vec<BlobId>,
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
    fn is_ours(&self) -> bool {
        self.owner == std::process::id()
    }

    pub(crate) fn forget_result(&self, task: TaskId) {
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

    pub fn limit_memory(&self, bytes: u64) {
        self.memory_limit.store(bytes, Ordering::Relaxed);
    }

    pub fn pid(&self) -> Option<i32> {
        Some(self.pid.load(Ordering::Acquire)).filter(|pid| *pid > 0)
    }

    pub(crate) fn forget(&self, segment: SegmentId) {
        if self.told().segments.remove(&segment) {
            self.outbox.send(&ToWorker::Unmap { segment }, &[], None);
        }
    }

    /// End a worker that cannot go on, and keep the reason for the report of its death.
    fn condemn(&self, reason: String) {
        *self.reason.lock().expect("no holder panics") = Some(reason);
        self.kill();
    }

    /// End the process and what it started.
    fn kill(&self) {
        let pid = self.pid.swap(-1, Ordering::AcqRel);
        if pid > 0 {
            group::end_group(pid);
        }
    }

    fn lease(self: &Arc<Self>, extent: Extent, shared: &Arc<Shared>) -> io::Result<Lease> {
        let received = self.results.lock().expect("no holder panics").get(&extent.segment).cloned();
        let received = received.filter(|received| received.mapping.range(extent.offset, extent.bytes).is_some());
        let received = received.ok_or_else(|| invalid("a worker named memory that it had not announced"))?;
        shared.leases.fetch_add(1, Ordering::Relaxed);
        let (connection, forks) = (Arc::downgrade(self), fork::count());
        let (shared, shown) = (shared.clone(), Mutex::default());
        Ok(Lease(Arc::new(Leased { received, extent, connection, shared, shown, forks })))
    }

    fn remember_stderr(&self, text: &[u8]) {
        let mut tail = self.stderr_tail.lock().expect("no holder panics");
        tail.extend(text);
        let excess = tail.len().saturating_sub(STDERR_TAIL_BYTES);
        tail.drain(..excess);
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

enum Command {
    Start(WorkerId),
    Stop(oneshot::Sender<()>),
}

struct Worker {
    connection: Arc<Connection>,
    /// Tasks handed to it that it has not reported, sent or not.
    holds: u32,
    idle_since: Instant,
    ready: bool,
}

pub struct ProcessShell<P: Payload> {
    workers: HashMap<WorkerId, Worker>,
    commands: mpsc::UnboundedSender<Command>,
    /// Handed out, not pickled yet: may still be taken back here.
    unsent: HashMap<TaskId, (WorkerId, Attempt)>,
    /// Workers with something to be flushed.
    addressed: HashSet<WorkerId>,
    /// The reports that are being handled.
    reports: HashMap<TaskId, Delivery>,
    pace: Pace,
    /// Results that tasks on workers take: where they are now, they stay until then.
    pins: HashMap<(WorkerId, TaskId), Inputs>,
    obituary: Option<(WorkerId, Obituary)>,
    start_failure: String,
    stopped: bool,
    spec: PoolSpec,
    _payload: std::marker::PhantomData<P>,
}

impl<P: Payload> Shell for ProcessShell<P> {
    type Payload = P;
    type Report = Delivery;

    const REPORTERS_READ: bool = false;

    fn start_worker(&mut self, worker: WorkerId, followups: &mut VecDeque<Event>) {
        if self.stopped || self.commands.send(Command::Start(worker)).is_err() {
            self.start_failure = SHUT_DOWN.into();
            followups.push_back(Event::WorkerLost { worker });
        }
    }

    fn run(&mut self, job: Job<Self>) {
        let Job { worker, task, attempt, items, payload, mailbox, .. } = job;
        let Some(entry) = self.workers.get_mut(&worker) else { return };
        entry.holds += 1;
        if let Some(parcel) = payload.parcel() {
            let links = payload.links();
            if let Err(error) = parcel.hold(&entry.connection, task, attempt, items, links.as_ref()) {
                // No descriptor could be passed: the worker is of no use any more.
                entry.connection.condemn(format!("could not be sent its arguments: {error}"));
            }
            self.addressed.insert(worker);
            if let Some(links) = links.filter(|links| !links.inputs.is_empty()) {
                self.pins.insert((worker, task), links.inputs);
            }
            return;
        }
        self.unsent.insert(task, (worker, attempt));
        mailbox.post(Notice::Send { worker, task, attempt, payload });
    }

    fn retract(&mut self, worker: WorkerId, task: TaskId, attempt: Attempt, followups: &mut VecDeque<Event>) {
        if self.unsent.get(&task) == Some(&(worker, attempt)) {
            self.unsent.remove(&task);
            self.released(worker);
            followups.push_back(Event::TaskReturned { worker, task, attempt, kept: 0 });
        } else if let Some(entry) = self.workers.get(&worker) {
            entry.connection.outbox.send(&ToWorker::Retract { task, attempt }, &[], None);
        }
    }

    fn kill(&mut self, worker: WorkerId, _reason: KillReason) {
        if let Some(entry) = self.workers.get(&worker) {
            entry.connection.kill();
        }
    }

    fn forget(&mut self, worker: WorkerId, task: TaskId) {
        if let Some(entry) = self.workers.get(&worker) {
            entry.connection.forget_result(task);
        }
    }

    fn gone(&mut self, task: TaskId) {
        self.workers.values().for_each(|entry| entry.connection.forget_result(task));
    }

    fn report(&mut self, task: TaskId) -> Option<Delivery> {
        self.reports.remove(&task)
    }

    fn obituary(&mut self, worker: WorkerId) -> Obituary {
        match &self.obituary {
            Some((lost, obituary)) if *lost == worker => obituary.clone(),
            _ => Obituary::default(),
        }
    }

    fn start_failure(&self) -> String {
        self.start_failure.clone()
    }

    fn call_closed(&mut self, _call: CallId, _followups: &mut VecDeque<Event>) {
        self.reports.clear();
    }

    fn flush(&mut self) {
        for worker in self.addressed.drain() {
            if let Some(entry) = self.workers.get(&worker) {
                entry.connection.outbox.flush();
            }
        }
    }
}

impl<P: Payload> ProcessShell<P> {
    fn released(&mut self, worker: WorkerId) {
        if let Some(entry) = self.workers.get_mut(&worker) {
            entry.holds = entry.holds.saturating_sub(1);
            entry.idle_since = Instant::now();
        }
    }
}

/// What the pool's threads share beside the driver.
pub struct Shared {
    pub store: Store,
    outputs: Mutex<Vec<Output>>,
    /// Called when there is output and nobody may be waiting for a call.
    on_output: Box<dyn Fn() + Send + Sync>,
    idle_timeout: Mutex<Option<Duration>>,
    template_pid: AtomicU64,
    /// Workers that ended in the middle of a task without having been told to.
    deaths: AtomicU64,
    /// Results that are mapped here and not dropped yet.
    leases: AtomicUsize,
    /// Descriptors of segments of workers that are kept, to hand them on.
    descriptors: Arc<AtomicUsize>,
    /// Who takes on what tasks submit.
    host: OnceLock<Host>,
}

impl Shared {
    /// From now on, tasks may submit tasks.
    pub fn set_host(&self, host: Host) {
        // Nobody sets it twice.
        let _ = self.host.set(host);
    }

    pub fn take_outputs(&self) -> Vec<Output> {
        std::mem::take(&mut self.outputs.lock().expect("no holder panics"))
    }

    /// How many results are mapped here.
    pub fn mapped_results(&self) -> usize {
        self.leases.load(Ordering::Relaxed)
    }

    /// How many workers have died of their tasks.
    pub fn deaths(&self) -> u64 {
        self.deaths.load(Ordering::Relaxed)
    }

    fn output(&self, output: Output) {
        self.outputs.lock().expect("no holder panics").push(output);
        (self.on_output)();
    }
}

/// One worker, for `info()`.
#[derive(Clone, Debug)]
pub struct WorkerInfo {
    pub worker: u32,
    pub rank: u32,
    pub pid: i32,
}

pub struct ProcessPool<P: Payload> {
    pub driver: Arc<Driver<ProcessShell<P>>>,
    pub shared: Arc<Shared>,
    owner: u32,
    commands: mpsc::UnboundedSender<Command>,
    io_thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl<P: Payload> ProcessPool<P> {
    pub fn start(spec: PoolSpec, launch: Launch, on_output: Box<dyn Fn() + Send + Sync>) -> io::Result<Self> {
        let (commands, orders) = mpsc::unbounded_channel();
        let shell_commands = commands.clone();
        let driver = Driver::new(spec.config(), |_| ProcessShell {
            workers: HashMap::new(),
            commands: shell_commands,
            unsent: HashMap::new(),
            addressed: HashSet::new(),
            reports: HashMap::new(),
            pace: Pace::default(),
            pins: HashMap::new(),
            obituary: None,
            start_failure: String::new(),
            stopped: false,
            spec,
            _payload: std::marker::PhantomData,
        });
        let shared = Arc::new(Shared {
            store: Store::default(),
            outputs: Mutex::default(),
            on_output,
            idle_timeout: Mutex::default(),
            template_pid: AtomicU64::new(0),
            deaths: AtomicU64::new(0),
            leases: AtomicUsize::new(0),
            descriptors: Arc::default(),
            host: OnceLock::new(),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let io = Io { driver: driver.clone(), shared: shared.clone(), launch, template: None, awaited: HashMap::new() };
        let thread = std::thread::Builder::new().name("rustdask-io".into()).spawn(move || {
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, io.serve(orders));
        })?;
        let owner = std::process::id();
        Ok(Self { driver, shared, owner, commands, io_thread: Mutex::new(Some(thread)) })
    }

    /// The connection to send a task on, unless it was taken back or its worker is gone.
    pub fn claim(&self, worker: WorkerId, task: TaskId, attempt: Attempt) -> Option<Arc<Connection>> {
        self.driver.with(|state, _| {
            if state.shell.unsent.get(&task) != Some(&(worker, attempt)) {
                return None;
            }
            state.shell.unsent.remove(&task);
            Some(state.shell.workers.get(&worker)?.connection.clone())
        })
    }

    /// A claimed task could not be sent: it fails.
    pub fn unsent(&self, worker: WorkerId, task: TaskId, attempt: Attempt) {
        self.driver.with(|state, events| {
            state.shell.released(worker);
            state.shell.reports.insert(task, Delivery::Unsent);
            events.push_back(Event::TaskFinished { worker, task, attempt, outcome: Outcome::Err, size_bytes: 0 });
        });
    }

    /// Tasks have ended: the segments that they held are not needed for them any more.
    pub fn release(&self, segments: &[SegmentId]) {
        let gone = self.shared.store.release(segments);
        self.forget_segments(&gone);
    }

    /// A call has ended: workers need its blobs no more. They hear of it with their next task, unless it is `urgent`.
    pub fn forget_blobs(&self, blobs: &[u64], urgent: bool) {
        if blobs.is_empty() {
            return;
        }
        for connection in self.connections() {
            {
                let mut told = connection.told();
                let known: Vec<BlobId> =
                    blobs.iter().map(|blob| BlobId(*blob)).filter(|b| told.blobs.remove(b)).collect();
                told.forgotten.extend(known);
                if urgent {
                    connection.hold_forgotten(&mut told);
                }
            }
            if urgent {
                connection.outbox.flush();
            }
        }
    }

    /// This is the process that made it, and not one that was forked from that.
    pub fn is_ours(&self) -> bool {
        self.owner == std::process::id()
    }

    /// A value that tasks took is not needed any more.
    pub fn forget_result(&self, task: TaskId) {
        self.connections().iter().for_each(|connection| connection.forget_result(task));
    }

    pub fn set_idle_timeout(&self, timeout: Option<Duration>) {
        *self.shared.idle_timeout.lock().expect("no holder panics") = timeout;
    }

    pub fn workers(&self) -> Vec<WorkerInfo> {
        let mut workers: Vec<_> = self
            .connections()
            .iter()
            .filter_map(|c| Some(WorkerInfo { worker: c.worker.0, rank: c.rank, pid: c.pid()? }))
            .collect();
        workers.sort_by_key(|info| info.rank);
        workers
    }

    pub fn template_pid(&self) -> Option<u64> {
        Some(self.shared.template_pid.load(Ordering::Relaxed)).filter(|pid| *pid > 0)
    }

    /// End workers, template and I/O thread, and wait for them.
    pub fn stop(&self) {
        let (done, finished) = oneshot::channel();
        let thread = self.io_thread.lock().expect("no holder panics").take();
        if self.commands.send(Command::Stop(done)).is_ok() {
            // An error means that the thread had ended already.
            let _ = finished.blocking_recv();
        }
        if let Some(thread) = thread {
            // A panic there has been printed already.
            let _ = thread.join();
        }
    }

    fn forget_segments(&self, segments: &[SegmentId]) {
        if segments.is_empty() {
            return;
        }
        for connection in self.connections() {
            segments.iter().for_each(|segment| connection.forget(*segment));
        }
    }

    fn connections(&self) -> Vec<Arc<Connection>> {
        connections(&self.driver)
    }
}

fn connections<P: Payload>(driver: &Arc<Driver<ProcessShell<P>>>) -> Vec<Arc<Connection>> {
    driver.with(|state, _| state.shell.workers.values().map(|worker| worker.connection.clone()).collect())
}

/// The I/O thread's own state.
struct Io<P: Payload> {
    driver: Arc<Driver<ProcessShell<P>>>,
    shared: Arc<Shared>,
    launch: Launch,
    template: Option<AsyncTemplate>,
    /// Who waits to hear how a worker ended.
    awaited: HashMap<WorkerId, oneshot::Sender<(i32, u64)>>,
}

struct AsyncTemplate {
    template: Template,
    readable: AsyncFd<OwnedFd>,
}

/// The near ends of a worker's pipes and socket.
struct Ends {
    socket: AsyncFd<OwnedFd>,
    stdout: AsyncFd<OwnedFd>,
    stderr: AsyncFd<OwnedFd>,
}

impl<P: Payload> Io<P> {
    async fn serve(mut self, mut orders: mpsc::UnboundedReceiver<Command>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let quiet = self.template.is_none();
            tokio::select! {
                order = orders.recv() => match order {
                    Some(Command::Start(worker)) => {
                        let _working = fork::working();
                        self.start_worker(worker);
                    }
                    Some(Command::Stop(done)) => {
                        self.stop(&mut orders);
                        // The one who asked may have given up waiting.
                        let _ = done.send(());
                        return;
                    }
                    None => return self.stop(&mut orders),
                },
                news = template_news(self.template.as_ref()) => {
                    let _working = fork::working();
                    self.hear(news);
                }
                _ = tick.tick(), if !quiet => {
                    let _working = fork::working();
                    self.look_around();
                }
            }
        }
    }

    fn start_worker(&mut self, worker: WorkerId) {
        if let Err(error) = self.try_start_worker(worker) {
            self.lost_at_start(worker, error.to_string());
        }
    }

    fn lost_at_start(&mut self, worker: WorkerId, why: String) {
        self.awaited.remove(&worker);
        self.driver.with(|state, events| {
            state.shell.workers.remove(&worker);
            state.shell.start_failure = why;
            events.push_back(Event::WorkerLost { worker });
        });
    }

    fn try_start_worker(&mut self, worker: WorkerId) -> io::Result<()> {
        let (near, far, socket) = make_ends()?;
        let rank = self.lowest_free_rank();
        let backlog = Arc::new(Notify::new());
        let on_backlog = backlog.clone();
        let connection = Arc::new(Connection {
            owner: std::process::id(),
            worker,
            rank,
            outbox: Outbox::new(socket, Box::new(move || on_backlog.notify_one())),
            backlog,
            pid: AtomicI32::new(0),
            results: Mutex::default(),
            told: Mutex::default(),
            ledger: OnceLock::new(),
            memory_limit: AtomicU64::new(0),
            stderr_tail: Mutex::default(),
            reason: Mutex::default(),
        });
        self.template()?.request(worker, rank, &far)?;
        drop(far);
        let (ended, obituary) = oneshot::channel();
        self.awaited.insert(worker, ended);
        let entry = Worker { connection: connection.clone(), holds: 0, idle_since: Instant::now(), ready: false };
        let workers = self.driver.with(|state, _| {
            state.shell.workers.insert(worker, entry);
            state.shell.spec.max_workers
        });
        connection.outbox.send(&ToWorker::Welcome { worker, workers }, &[], None);
        let (driver, shared) = (self.driver.clone(), self.shared.clone());
        let serving = Serving { connection, driver, shared, ends: near, guest: RefCell::default() };
        tokio::task::spawn_local(serving.run(obituary));
        Ok(())
    }

    fn lowest_free_rank(&self) -> u32 {
        let taken: HashSet<u32> = connections(&self.driver).iter().map(|c| c.rank).collect();
        (0..).find(|rank| !taken.contains(rank)).expect("there are more numbers than workers")
    }

    fn template(&mut self) -> io::Result<&Template> {
        if self.template.is_none() {
            let template = Template::start(&self.launch)?;
            let readable = watch(template.socket.try_clone()?)?;
            self.shared.template_pid.store(u64::from(template.pid()), Ordering::Relaxed);
            self.template = Some(AsyncTemplate { template, readable });
        }
        Ok(&self.template.as_ref().expect("just made").template)
    }

    fn hear(&mut self, news: io::Result<News>) {
        match news {
            Ok(News::Started { worker, pid }) => self.started(worker, pid),
            Ok(News::Exited { worker, status, peak_memory_bytes }) => {
                if let Some(awaited) = self.awaited.remove(&worker) {
                    // The connection's end may have been handled without it.
                    let _ = awaited.send((status, peak_memory_bytes));
                }
            }
            Ok(News::Failed { worker, why }) => self.lost_at_start(worker, why),
            Err(error) => self.lose_template(&error),
        }
    }

    fn started(&self, worker: WorkerId, pid: i32) {
        let doomed = self.driver.with(|state, _| {
            let entry = state.shell.workers.get(&worker)?;
            let set = entry.connection.pid.compare_exchange(0, pid, Ordering::AcqRel, Ordering::Acquire);
            Some(set.is_err())
        });
        if doomed == Some(true) {
            group::end_group(pid);
        }
    }

    /// Its workers end with it; what they were doing is done again by workers of a new one.
    fn lose_template(&mut self, error: &io::Error) {
        if let Some(AsyncTemplate { template, readable }) = self.template.take() {
            drop(readable);
            template.stop(Duration::ZERO);
        }
        self.shared.template_pid.store(0, Ordering::Relaxed);
        self.awaited.clear();
        let never_ready: Vec<WorkerId> = self.driver.with(|state, _| {
            let starting = state.shell.workers.iter().filter(|(_, entry)| !entry.ready);
            starting.map(|(worker, _)| *worker).collect()
        });
        for worker in never_ready {
            self.lost_at_start(worker, format!("the process that starts workers failed: {error}"));
        }
    }

    fn look_around(&self) {
        for connection in connections(&self.driver) {
            enforce_memory_limit(&connection);
            connection.hold_forgotten(&mut connection.told());
            connection.outbox.flush();
        }
        self.retire_idle();
        for segment in self.shared.store.trim(KEEP_ARGUMENTS) {
            connections(&self.driver).iter().for_each(|connection| connection.forget(segment));
        }
    }

    /// Workers that have had nothing to do for long enough end; decided under the driver's lock, so
    /// that none of them is given a task at that moment.
    fn retire_idle(&self) {
        let Some(timeout) = *self.shared.idle_timeout.lock().expect("no holder panics") else { return };
        let retired: Vec<Worker> = self.driver.with(|state, events| {
            let idle: Vec<WorkerId> = state
                .shell
                .workers
                .iter()
                .filter(|(_, entry)| entry.ready && entry.holds == 0 && entry.idle_since.elapsed() >= timeout)
                .map(|(worker, _)| *worker)
                .collect();
            events.extend(idle.iter().map(|worker| Event::WorkerLost { worker: *worker }));
            idle.iter().filter_map(|worker| state.shell.workers.remove(worker)).collect()
        });
        retired.iter().for_each(|entry| entry.connection.kill());
    }

    fn stop(&mut self, orders: &mut mpsc::UnboundedReceiver<Command>) {
        let (ended, left) = self.driver.with(|state, events| {
            state.shell.stopped = true;
            let left = state.abandon_calls(SHUT_DOWN, events);
            let ended: Vec<_> = state.shell.workers.drain().collect();
            events.extend(ended.iter().map(|(worker, _)| Event::WorkerLost { worker: *worker }));
            (ended, (left, std::mem::take(&mut state.shell.pins)))
        });
        drop(left);
        // Started by nobody: those that were asked for and not begun.
        while let Ok(order) = orders.try_recv() {
            if let Command::Start(worker) = order {
                self.lost_at_start(worker, SHUT_DOWN.into());
            }
        }
        ended.iter().for_each(|(_, entry)| entry.connection.kill());
        if let Some(AsyncTemplate { template, readable }) = self.template.take() {
            drop(readable);
            template.stop(Duration::from_secs(1));
        }
        self.shared.template_pid.store(0, Ordering::Relaxed);
    }
}

async fn template_news(template: Option<&AsyncTemplate>) -> io::Result<News> {
    let Some(template) = template else { return std::future::pending().await };
    loop {
        let mut ready = template.readable.readable().await?;
        match template.template.news()? {
            Some(news) => return Ok(news),
            None => ready.clear_ready(),
        }
    }
}

fn make_ends() -> io::Result<(Ends, WorkerEnds, Arc<OwnedFd>)> {
    let (near, socket) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let (out_read, stdout) = pipe_with(PipeFlags::CLOEXEC)?;
    let (err_read, stderr) = pipe_with(PipeFlags::CLOEXEC)?;
    for fd in [&out_read, &err_read] {
        rustix::fs::fcntl_setfl(fd, rustix::fs::OFlags::NONBLOCK)?;
    }
    let writer = Arc::new(near.try_clone()?);
    let ends = Ends { socket: watch(near)?, stdout: watch(out_read)?, stderr: watch(err_read)? };
    Ok((ends, WorkerEnds { socket, stdout, stderr }, writer))
}

fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd always answers with the same descriptor, and has it open until it is dropped.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

fn enforce_memory_limit(connection: &Connection) {
    let limit = connection.memory_limit.load(Ordering::Relaxed);
    let Some(pid) = connection.pid().filter(|_| limit > 0) else { return };
    let Some(used) = private_memory(pid).filter(|used| *used > limit) else { return };
    connection.condemn(format!("exceeded memory_limit of {} MiB (reached {} MiB)", limit >> 20, used >> 20));
}

/// Resident memory of a process without what it shares with others, in bytes.
fn private_memory(pid: i32) -> Option<u64> {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let mut pages = statm.split_whitespace().skip(1).map_while(|field| field.parse::<u64>().ok());
    let (resident, shared) = (pages.next()?, pages.next()?);
    Some(resident.saturating_sub(shared) * rustix::param::page_size() as u64)
}

/// What a worker says of a task.
enum TaskNews {
    Finished(TaskId, Attempt, Delivery),
    Returned(TaskId, Attempt, u32),
    Parked(TaskId, Attempt),
    Resumed(TaskId, Attempt),
}

/// One worker's connection, served until it closes.
struct Serving<P: Payload> {
    connection: Arc<Connection>,
    driver: Arc<Driver<ProcessShell<P>>>,
    shared: Arc<Shared>,
    ends: Ends,
    /// What takes on what its tasks submit, once one has.
    guest: RefCell<Option<Box<dyn Guest>>>,
}

impl<P: Payload> Serving<P> {
    async fn run(self, obituary: oneshot::Receiver<(i32, u64)>) {
        let mut lines = Lines::default();
        if let Err(error) = self.listen(&mut lines).await {
            self.connection.condemn(format!("its connection failed: {error}"));
        }
        let condemned = self.connection.reason.lock().expect("no holder panics").is_some();
        let died = condemned || self.connection.pid().is_some();
        self.connection.kill();
        let ended = tokio::time::timeout(OBITUARY_PATIENCE, obituary).await;
        self.read_ledger(&mut lines);
        self.drain_output(&mut lines);
        lines.flush(&self.shared);
        self.bury(ended.ok().and_then(Result::ok), died);
    }

    /// Until the worker closes its socket.
    async fn listen(&self, lines: &mut Lines) -> io::Result<()> {
        let mut inbox = Inbox::default();
        // A closed pipe stays readable for ever: it is not asked again.
        let mut open = [true, true];
        loop {
            tokio::select! {
                biased;
                ready = self.ends.stdout.readable(), if open[0] => match self.read_output(&self.ends.stdout, false, lines) {
                    Read::Some => {}
                    Read::Nothing => ready?.clear_ready(),
                    Read::Closed => open[0] = false,
                },
                ready = self.ends.stderr.readable(), if open[1] => match self.read_output(&self.ends.stderr, true, lines) {
                    Read::Some => {}
                    Read::Nothing => ready?.clear_ready(),
                    Read::Closed => open[1] = false,
                },
                ready = self.ends.socket.readable() => match inbox.read(self.ends.socket.as_fd(), false)? {
                    Read::Some => self.handle_frames(&mut inbox, lines)?,
                    Read::Nothing => ready?.clear_ready(),
                    Read::Closed => return Ok(()),
                },
                () = self.write_backlog() => {}
            }
        }
    }

    async fn write_backlog(&self) {
        if !self.connection.outbox.has_backlog() {
            self.connection.backlog.notified().await;
        }
        let Ok(mut ready) = self.ends.socket.writable().await else { return };
        // A broken connection shows where it is read.
        if !self.connection.outbox.resume().unwrap_or(true) {
            ready.clear_ready();
        }
    }

    /// Handle what has arrived; what it says of tasks is told to the driver at once.
    fn handle_frames(&self, inbox: &mut Inbox, lines: &mut Lines) -> io::Result<()> {
        let _working = fork::working();
        let mut news = Vec::new();
        let handled = self.collect_news(inbox, lines, &mut news);
        if !news.is_empty() {
            self.tell(news);
        }
        handled
    }

    /// Tell what stood in the ledger when the worker ended. What it had sent already is told twice, and dropped as
    /// any report is that is not waited for.
    fn read_ledger(&self, lines: &mut Lines) {
        let Some(ledger) = self.connection.ledger.get() else { return };
        let mut inbox = Inbox::default();
        inbox.push(&Ledger::read(ledger));
        // Whatever it wrote there, it has ended.
        let _ = self.handle_frames(&mut inbox, lines);
    }

    fn collect_news(&self, inbox: &mut Inbox, lines: &mut Lines, news: &mut Vec<TaskNews>) -> io::Result<()> {
        let mut drained = false;
        while let Some(frame) = inbox.next_frame::<FromWorker>()? {
            match frame.message {
                FromWorker::Ready => self.ready(),
                FromWorker::Ledger { bytes } => {
                    let mapping = Segment::from_fd(inbox.take_fd()?, bytes).map(Access::ReadOnly)?;
                    // A second one would not be read.
                    let _ = self.connection.ledger.set(mapping);
                }
                FromWorker::Finished { task, attempt, report, body, buffers, timings, kept } => {
                    // What the tasks printed is read before their end is told.
                    if !std::mem::replace(&mut drained, true) {
                        self.drain_output(lines);
                        lines.flush(&self.shared);
                    }
                    let delivery = self.delivery(report, body, frame.body, &buffers, timings)?;
                    if kept {
                        // Already there: not to be sent.
                        self.connection.told().needs_result(task);
                    }
                    news.push(TaskNews::Finished(task, attempt, delivery));
                }
                FromWorker::Returned { task, attempt, kept } => news.push(TaskNews::Returned(task, attempt, kept)),
                FromWorker::Parked { task, attempt } => news.push(TaskNews::Parked(task, attempt)),
                FromWorker::Resumed { task, attempt } => news.push(TaskNews::Resumed(task, attempt)),
                FromWorker::Segment { segment, bytes } => {
                    let received = Segment::from_fd(inbox.take_fd()?, bytes);
                    let received = Arc::new(Received::new(received, &self.shared.descriptors)?);
                    self.connection.results.lock().expect("no holder panics").insert(segment, received);
                }
                FromWorker::Unmap { segment } => {
                    self.connection.results.lock().expect("no holder panics").remove(&segment);
                }
                FromWorker::Kept { segment } => self.shared.store.keep(segment),
                FromWorker::Nested(word) => {
                    // The machine hears of things in the order in which they happened.
                    if !news.is_empty() {
                        self.tell(std::mem::take(news));
                    }
                    self.hear_task(word, frame.body)?;
                }
                FromWorker::Log => self.shared.output(Output { error_stream: true, text: frame.body, log: true }),
            }
        }
        Ok(())
    }

    /// What a task of the worker says.
    fn hear_task(&self, word: FromTask, inline: Vec<u8>) -> io::Result<()> {
        let mut guest = self.guest.borrow_mut();
        let guest = match &mut *guest {
            Some(guest) => guest,
            empty => {
                let host = self.shared.host.get().ok_or_else(|| invalid("a task submits where none can"))?;
                empty.insert(host(&self.connection))
            }
        };
        match word {
            FromTask::Function { function, same_as, body, buffers } => {
                guest.function(function, same_as, self.received(body, inline, &buffers)?)
            }
            FromTask::ForgetFunction { function } => guest.forget_function(function),
            FromTask::Value { task, name, body, buffers } => {
                guest.value(task, name, self.received(body, inline, &buffers)?)
            }
            FromTask::Task(mut task) => {
                let contents = self.received(task.body, inline, &std::mem::take(&mut task.buffers))?;
                guest.task(task, contents);
            }
            FromTask::Submit { by } => guest.submit(by)?,
            FromTask::Release { tasks } => guest.release(tasks),
            FromTask::Cancel { tasks, force } => guest.cancel(tasks, force),
        }
        Ok(())
    }

    /// What the worker has sent, for other workers.
    fn received(&self, body: Body, inline: Vec<u8>, buffers: &[Extent]) -> io::Result<Contents> {
        let lease = |extent: &Extent| self.connection.lease(*extent, &self.shared);
        let body = match body {
            Body::Inline => Reported::Inline(inline),
            Body::InSegment(extent) => Reported::Leased(lease(&extent)?),
        };
        Contents::of_worker(body, buffers.iter().map(lease).collect::<io::Result<_>>()?)
    }

    fn delivery(
        &self,
        report: Report,
        body: Body,
        inline: Vec<u8>,
        buffers: &[Extent],
        timings: Timings,
    ) -> io::Result<Delivery> {
        let shared = &self.shared;
        let buffers =
            buffers.iter().map(|extent| self.connection.lease(*extent, shared)).collect::<io::Result<Vec<_>>>()?;
        let body = match body {
            Body::Inline => Reported::Inline(inline),
            Body::InSegment(extent) => Reported::Leased(self.connection.lease(extent, shared)?),
        };
        let body_bytes = match &body {
            Reported::Inline(bytes) => bytes.len() as u64,
            Reported::Leased(lease) => lease.extent().bytes,
        };
        let bytes = body_bytes + buffers.iter().map(|lease| lease.extent().bytes).sum::<u64>();
        Ok(Delivery::Report { report, body, buffers, timings, bytes })
    }

    fn ready(&self) {
        let worker = self.connection.worker;
        self.driver.with(|state, events| {
            if let Some(entry) = state.shell.workers.get_mut(&worker) {
                entry.ready = true;
                entry.idle_since = Instant::now();
                let spec = WorkerSpec { depth: DEPTH, killable: true, ..state.shell.spec.worker() };
                events.push_back(Event::WorkerJoined { worker, spec });
            }
        });
    }

    fn tell(&self, news: Vec<TaskNews>) {
        let worker = self.connection.worker;
        let garbage = self.driver.with(|state, events| {
            let mut garbage = Vec::new();
            // Of reports before that nobody was waiting for.
            let dropped = std::mem::take(&mut state.shell.reports);
            let mut unpinned = Vec::new();
            for news in news {
                match news {
                    TaskNews::Finished(task, attempt, delivery) => {
                        unpinned.extend(state.shell.pins.remove(&(worker, task)));
                        let (outcome, size_bytes) = (delivery.outcome(), delivery.bytes());
                        state.shell.released(worker);
                        if let Some(call) = state.call_of_linked(task) {
                            let depth = state.shell.pace.after(delivery.took());
                            events.extend(depth.map(|depth| Event::CallDepth { call, depth }));
                        }
                        let delivered = match state.payload(task) {
                            Some(payload) => payload.deliver(attempt, delivery),
                            None => Err(delivery),
                        };
                        match delivered {
                            Ok(left) => garbage.push(left),
                            Err(delivery) => drop(state.shell.reports.insert(task, delivery)),
                        }
                        events.push_back(Event::TaskFinished { worker, task, attempt, outcome, size_bytes });
                    }
                    TaskNews::Returned(task, attempt, kept) => {
                        if kept == 0 {
                            unpinned.extend(state.shell.pins.remove(&(worker, task)));
                            state.shell.released(worker);
                        }
                        events.push_back(Event::TaskReturned { worker, task, attempt, kept });
                    }
                    TaskNews::Parked(task, attempt) => events.push_back(Event::TaskParked { worker, task, attempt }),
                    TaskNews::Resumed(task, attempt) => events.push_back(Event::TaskResumed { worker, task, attempt }),
                }
            }
            (garbage, dropped, unpinned)
        });
        drop(garbage);
    }

    fn drain_output(&self, lines: &mut Lines) {
        while self.read_output(&self.ends.stdout, false, lines) == Read::Some {}
        while self.read_output(&self.ends.stderr, true, lines) == Read::Some {}
    }

    fn read_output(&self, pipe: &AsyncFd<OwnedFd>, error_stream: bool, lines: &mut Lines) -> Read {
        let mut text = [0u8; 16 << 10];
        match rustix::io::retry_on_intr(|| rustix::io::read(pipe.get_ref(), &mut text)) {
            Ok(bytes @ 1..) => {
                if error_stream {
                    self.connection.remember_stderr(&text[..bytes]);
                }
                lines.push(error_stream, &text[..bytes], &self.shared);
                Read::Some
            }
            Err(rustix::io::Errno::AGAIN) => Read::Nothing,
            Ok(0) | Err(_) => Read::Closed,
        }
    }

    fn bury(&self, ended: Option<(i32, u64)>, died: bool) {
        let _working = fork::working();
        let connection = &self.connection;
        let status = ended.map(|(status, _)| status);
        let tail: Vec<u8> = connection.stderr_tail.lock().expect("no holder panics").iter().copied().collect();
        let obituary = Obituary {
            exit_code: status.filter(|status| libc::WIFEXITED(*status)).map(|status| libc::WEXITSTATUS(status)),
            signal: status.filter(|status| libc::WIFSIGNALED(*status)).map(|status| libc::WTERMSIG(status)),
            peak_memory_bytes: ended.map(|(_, bytes)| bytes),
            stderr: String::from_utf8_lossy(&tail).into_owned(),
            reason: connection.reason.lock().expect("no holder panics").clone(),
        };
        let worker = connection.worker;
        // What it has submitted, nobody waits for any more.
        drop(self.guest.take());
        let unpinned = self.driver.with(|state, events| {
            let mut unpinned = Vec::new();
            if let Some(entry) = state.shell.workers.remove(&worker) {
                if died {
                    self.shared.deaths.fetch_add(1, Ordering::Relaxed);
                }
                if !entry.ready || entry.holds == 0 {
                    let at = if entry.ready { "with nothing to do" } else { "while it was starting" };
                    state.shell.start_failure = start_failure(&obituary, at);
                }
                state.shell.unsent.retain(|_, (holder, _)| *holder != worker);
                let held: Vec<_> = state.shell.pins.keys().filter(|(holder, _)| *holder == worker).copied().collect();
                unpinned.extend(held.iter().filter_map(|pin| state.shell.pins.remove(pin)));
                state.shell.obituary = Some((worker, obituary));
                events.push_back(Event::WorkerLost { worker });
            }
            unpinned
        });
        drop(unpinned);
    }
}

fn start_failure(obituary: &Obituary, at: &str) -> String {
    let how = match (obituary.signal, obituary.exit_code) {
        (Some(signal), _) => format!("was ended by signal {signal}"),
        (None, Some(code)) => format!("exited with code {code}"),
        (None, None) => "ended".into(),
    };
    format!("a worker process {how} {at}; its stderr: {}", obituary.stderr.trim())
}

/// Output cut into whole lines, so that those of several workers do not mix.
#[derive(Default)]
struct Lines {
    partial: [Vec<u8>; 2],
}

impl Lines {
    fn push(&mut self, error_stream: bool, text: &[u8], shared: &Shared) {
        let partial = &mut self.partial[usize::from(error_stream)];
        partial.extend_from_slice(text);
        if let Some(end) = partial.iter().rposition(|byte| *byte == b'\n') {
            let rest = partial.split_off(end + 1);
            let text = std::mem::replace(partial, rest);
            shared.output(Output { error_stream, text, log: false });
        }
    }

    fn flush(&mut self, shared: &Shared) {
        for (error_stream, partial) in [false, true].into_iter().zip(&mut self.partial) {
            if !partial.is_empty() {
                shared.output(Output { error_stream, text: std::mem::take(partial), log: false });
            }
        }
    }
}
