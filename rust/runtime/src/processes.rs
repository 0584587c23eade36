//! A pool of worker processes of this machine, and the driver's shell over them.
//!
//! Who does what: the driver decides under its lock; the thread that waits for a call pickles tasks and
//! writes them straight to the worker's socket; the I/O thread (`workers`, `serving`) reads reports and output, watches
//! memory and idle time, and learns from the template how a worker ended.

use std::cell::RefCell;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use rustdask_core::ending::Obituary;
use rustdask_core::message::ToWorker;
use rustdask_core::nested::FromTask;
use rustdask_core::{Attempt, BlobId, CallId, Event, KillReason, Outcome, SegmentId, TaskId, WorkerId, WorkerSpec};
use tokio::sync::{mpsc, oneshot};

use crate::connection::{invalid, Connection};
use crate::delivery::{Delivery, Reported};
use crate::driver::{Driver, Inputs, Job, Notice, Payload, Shell, State};
use crate::lease::{Lease, SharedMemory};
use crate::lines::Output;
use crate::pace::{Pace, DEPTH};
use crate::parcel::Contents;
use crate::pool::PoolSpec;
use crate::template::Launch;
use crate::upstream::{Guest, Host};
use crate::workers::{Command, Owner, TaskNews, Workers, SHUT_DOWN};

/// Unused arguments are kept in shared memory this long.
const KEEP_ARGUMENTS: Duration = Duration::from_secs(5);

struct Worker {
    connection: Arc<Connection>,
    /// Tasks handed to it that it has not reported, sent or not.
    holds: u32,
    idle_since: Instant,
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
    pub memory: Arc<SharedMemory>,
    outputs: Mutex<Vec<Output>>,
    /// Called when there is output and nobody may be waiting for a call.
    on_output: Box<dyn Fn() + Send + Sync>,
    idle_timeout: Mutex<Option<Duration>>,
    template_pid: AtomicU64,
    /// Workers that ended in the middle of a task without having been told to.
    deaths: AtomicU64,
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
        let max_workers = spec.max_workers;
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
            memory: Arc::default(),
            outputs: Mutex::default(),
            on_output,
            idle_timeout: Mutex::default(),
            template_pid: AtomicU64::new(0),
            deaths: AtomicU64::new(0),
            host: OnceLock::new(),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (io_driver, io_shared) = (driver.clone(), shared.clone());
        let thread = std::thread::Builder::new().name("rustdask-io".into()).spawn(move || {
            let memory = io_shared.memory.clone();
            let owner = PoolOwner { driver: io_driver, shared: io_shared, guests: RefCell::default() };
            let workers = Workers::new(Rc::new(owner), memory, launch, max_workers);
            tokio::task::LocalSet::new().block_on(&runtime, workers.serve(orders));
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
        let gone = self.shared.memory.store.release(segments);
        self.forget_segments(&gone);
    }

    /// A call has ended: workers need its blobs no more. They hear of it with their next task, unless it is `urgent`.
    pub fn forget_blobs(&self, blobs: &[u64], urgent: bool) {
        if blobs.is_empty() {
            return;
        }
        let blobs: Vec<BlobId> = blobs.iter().map(|blob| BlobId(*blob)).collect();
        self.connections().iter().for_each(|connection| connection.forget_blobs(&blobs, urgent));
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

/// Turns what workers say into events for the driver.
struct PoolOwner<P: Payload> {
    driver: Arc<Driver<ProcessShell<P>>>,
    shared: Arc<Shared>,
    /// What takes on what tasks submit, of workers of which one has.
    guests: RefCell<HashMap<WorkerId, Box<dyn Guest>>>,
}

impl<P: Payload> Owner for PoolOwner<P> {
    fn starting(&self, connection: &Arc<Connection>) {
        let entry = Worker { connection: connection.clone(), holds: 0, idle_since: Instant::now() };
        self.driver.with(|state, _| state.shell.workers.insert(connection.worker, entry));
    }

    fn connections(&self) -> Vec<Arc<Connection>> {
        connections(&self.driver)
    }

    fn ready(&self, connection: &Arc<Connection>) {
        let worker = connection.worker;
        self.driver.with(|state, events| {
            if let Some(entry) = state.shell.workers.get_mut(&worker) {
                entry.idle_since = Instant::now();
                let spec = WorkerSpec { depth: DEPTH, killable: true, ..state.shell.spec.worker() };
                events.push_back(Event::WorkerJoined { worker, spec });
            }
        });
    }

    fn news(&self, connection: &Arc<Connection>, news: Vec<TaskNews>) {
        let worker = connection.worker;
        let garbage = self.driver.with(|state, events| {
            // Of reports before that nobody was waiting for.
            let dropped = std::mem::take(&mut state.shell.reports);
            let mut left = Vec::new();
            let mut unpinned = Vec::new();
            for news in news {
                match news {
                    TaskNews::Finished(task, attempt, delivery) => {
                        unpinned.extend(state.shell.pins.remove(&(worker, task)));
                        left.extend(finished(state, events, worker, (task, attempt), delivery));
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
            (left, dropped, unpinned)
        });
        drop(garbage);
    }

    fn nested(
        &self,
        connection: &Arc<Connection>,
        word: FromTask,
        body: Reported,
        buffers: Vec<Lease>,
    ) -> io::Result<()> {
        let worker = connection.worker;
        let mut guests = self.guests.borrow_mut();
        let guest = match guests.entry(worker) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let host = self.shared.host.get().ok_or_else(|| invalid("a task submits where none can"))?;
                new.insert(host(connection))
            }
        };
        guest.hear(word, Contents::of_worker(body, buffers)?)
    }

    fn output(&self, _connection: &Arc<Connection>, output: Output) {
        self.shared.output(output);
    }

    fn lost(&self, connection: &Arc<Connection>, obituary: Obituary, died: bool) {
        let worker = connection.worker;
        // What it has submitted, nobody waits for any more.
        drop(self.guests.borrow_mut().remove(&worker));
        let unpinned = self.driver.with(|state, events| {
            let mut unpinned = Vec::new();
            if let Some(entry) = state.shell.workers.remove(&worker) {
                if died {
                    self.shared.deaths.fetch_add(1, Ordering::Relaxed);
                }
                if !connection.is_ready() || entry.holds == 0 {
                    let at = if connection.is_ready() { "with nothing to do" } else { "while it was starting" };
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

    fn not_started(&self, worker: WorkerId, why: String) {
        self.driver.with(|state, events| {
            state.shell.workers.remove(&worker);
            state.shell.start_failure = why;
            events.push_back(Event::WorkerLost { worker });
        });
    }

    fn template(&self, pid: Option<u32>) {
        self.shared.template_pid.store(pid.map_or(0, u64::from), Ordering::Relaxed);
    }

    fn tick(&self) {
        self.retire_idle();
        for segment in self.shared.memory.store.trim(KEEP_ARGUMENTS) {
            self.connections().iter().for_each(|connection| connection.forget(segment));
        }
    }

    fn stop(&self) -> Vec<Arc<Connection>> {
        let (ended, left) = self.driver.with(|state, events| {
            state.shell.stopped = true;
            let left = state.abandon_calls(SHUT_DOWN, events);
            let ended: Vec<_> = state.shell.workers.drain().collect();
            events.extend(ended.iter().map(|(worker, _)| Event::WorkerLost { worker: *worker }));
            (ended, (left, std::mem::take(&mut state.shell.pins)))
        });
        drop(left);
        ended.into_iter().map(|(_, entry)| entry.connection).collect()
    }
}

impl<P: Payload> PoolOwner<P> {
    /// Workers that have had nothing to do for long enough end; decided under the driver's lock, so
    /// that none of them is given a task at that moment.
    fn retire_idle(&self) {
        let Some(timeout) = *self.shared.idle_timeout.lock().expect("no holder panics") else { return };
        let retired: Vec<Worker> = self.driver.with(|state, events| {
            let idle: Vec<WorkerId> = state
                .shell
                .workers
                .iter()
                .filter(|(_, entry)| {
                    entry.connection.is_ready() && entry.holds == 0 && entry.idle_since.elapsed() >= timeout
                })
                .map(|(worker, _)| *worker)
                .collect();
            events.extend(idle.iter().map(|worker| Event::WorkerLost { worker: *worker }));
            idle.iter().filter_map(|worker| state.shell.workers.remove(worker)).collect()
        });
        retired.iter().for_each(|entry| entry.connection.kill());
    }
}

/// What is not needed any more comes back, to be dropped without the driver's lock.
fn finished<P: Payload>(
    state: &mut State<ProcessShell<P>>,
    events: &mut VecDeque<Event>,
    worker: WorkerId,
    (task, attempt): (TaskId, Attempt),
    delivery: Delivery,
) -> Option<Box<dyn Send>> {
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
    events.push_back(Event::TaskFinished { worker, task, attempt, outcome, size_bytes });
    match delivered {
        Ok(left) => Some(left),
        Err(delivery) => {
            state.shell.reports.insert(task, delivery);
            None
        }
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
