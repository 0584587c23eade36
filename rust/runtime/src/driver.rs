//! The driver: owns a scheduler machine, feeds it events, carries its actions out.
//!
//! One lock guards the machine and its shell, and actions are carried out under it, so that what a
//! worker is told keeps the order in which it was decided. Nothing that is done under the lock blocks
//! or touches Python; payloads that are no longer needed are dropped after it is released.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use rustdask_core::ending::{Obituary, Unreported};
use rustdask_core::message::Granted;
use rustdask_core::scheduler::Config;
use rustdask_core::{
    Action, Actions, Attempt, CallId, CallSpec, Event, Grant, KillReason, Outcome, Resolution, Scheduler, TaskId,
    TaskSpec, WorkerId,
};

use crate::delivery::Delivery;
use crate::mailbox::Mailbox;
use crate::parcel::Parcel;
use crate::stored::Stored;

/// After graphs of so many tasks, memory is given back to the system.
const MANY_TASKS: usize = 100_000;

/// What a task carries. The driver only holds it and cuts it, and tells it how it fares if it belongs to a graph.
pub trait Payload: Clone + Send + 'static {
    /// Keep the first `kept` items; the rest in at most `pieces` payloads, with their item counts.
    fn split(&self, kept: u32, pieces: u32) -> Vec<(Self, u32)>;

    /// What to send to a worker process, if it has been pickled already.
    fn parcel(&self) -> Option<Arc<Parcel>>;

    /// None for tasks that belong to no graph.
    fn links(&self) -> Option<Links>;

    /// A task of a graph goes to a worker: what is reported of any other attempt does not count.
    fn assigned(&self, attempt: Attempt, granted: &[Grant]);

    /// What a worker process reports of a task of a graph, before the machine hears of it. What is not needed any more
    /// comes back, to be dropped without the driver's lock. Of other tasks, the delivery comes back.
    fn deliver(&self, attempt: Attempt, delivery: Delivery) -> Result<Box<dyn Send>, Delivery>;

    /// A task of a graph has ended, and somebody wants to know. Once more, when its result was lost.
    fn ended(&self, end: End<Self>);

    /// The result of a task of a graph is gone with the workers that had it, and is made again.
    fn lost(&self);
}

/// Results of tasks, by the numbers of these.
pub type Inputs = Vec<(TaskId, Arc<Stored>)>;

/// What the task of a graph has beside its parcel.
pub struct Links {
    /// The results that it takes.
    pub inputs: Inputs,
    pub granted: Vec<Granted>,
}

/// How a task ended.
#[derive(Debug)]
pub enum End<P> {
    /// By a report, which the payload has got from the worker if it belongs to a graph.
    Reported(Outcome),
    Unreported(Unreported),
    /// Something that it depends on failed; `None`: long ago.
    DependencyFailed {
        cause: Option<P>,
    },
    Cancelled,
    /// No worker has what it asks for.
    Unrunnable,
    /// It depends on a task that is not there, or on itself.
    Broken,
    /// Its call was closed.
    Closed,
}

/// Word for the one who made a call.
pub enum Notice<P, R> {
    /// Pickle the task and hand it to its worker.
    Send {
        worker: WorkerId,
        task: TaskId,
        attempt: Attempt,
        payload: P,
    },
    /// Run the task on the calling thread, which joined as a helper.
    Help {
        task: TaskId,
        attempt: Attempt,
        payload: P,
        cursor: Arc<crate::cursor::Cursor>,
    },
    Resolved {
        task: TaskId,
        payload: P,
        ending: Result<R, Unreported>,
    },
}

pub type CallMailbox<P, R> = Mailbox<Notice<P, R>>;

/// What a kind of worker must be able to do. Each method runs under the driver's lock.
pub trait Shell: Send + Sized + 'static {
    type Payload: Payload;
    type Report: Send;

    /// Whoever reports the end of a task also reads its call's mailbox, so that nobody need be woken.
    const REPORTERS_READ: bool;

    /// Events that follow at once go to `followups`.
    fn start_worker(&mut self, worker: WorkerId, followups: &mut VecDeque<Event>);
    fn run(&mut self, job: Job<Self>);
    fn retract(&mut self, worker: WorkerId, task: TaskId, attempt: Attempt, followups: &mut VecDeque<Event>);
    fn kill(&mut self, worker: WorkerId, reason: KillReason);
    /// The worker need not keep the result.
    fn forget(&mut self, worker: WorkerId, task: TaskId);
    /// The same for all workers.
    fn gone(&mut self, task: TaskId);
    /// The report that a `Finished` resolution is about.
    fn report(&mut self, task: TaskId) -> Option<Self::Report>;
    fn obituary(&mut self, worker: WorkerId) -> Obituary;
    fn start_failure(&self) -> String;
    /// A call is over: forget what is kept for it, and take back what no worker has begun of it.
    fn call_closed(&mut self, call: CallId, followups: &mut VecDeque<Event>);
    /// All is decided for now: send what was kept for that.
    fn flush(&mut self) {}
}

/// A task on its way to a worker.
pub struct Job<S: Shell> {
    pub call: CallId,
    pub mailbox: Arc<CallMailbox<S::Payload, S::Report>>,
    pub worker: WorkerId,
    pub task: TaskId,
    pub attempt: Attempt,
    pub items: u32,
    pub payload: S::Payload,
}

struct Call<S: Shell> {
    mailbox: Arc<CallMailbox<S::Payload, S::Report>>,
    tasks: HashSet<TaskId>,
    cap: u32,
}

struct Task<P> {
    call: CallId,
    payload: P,
    items: u32,
    /// It belongs to a graph: it is there until the machine has forgotten it.
    linked: bool,
}

pub struct State<S: Shell> {
    machine: Scheduler,
    pub shell: S,
    calls: HashMap<CallId, Call<S>>,
    tasks: HashMap<TaskId, Task<S::Payload>>,
    next_task: Arc<AtomicU64>,
    /// Most tasks of graphs at once since there were none.
    most_linked: usize,
    next_call: u64,
    /// When the clock will next look; later deadlines need not disturb it.
    armed: Option<Duration>,
    splits: u64,
}

pub struct Driver<S: Shell> {
    state: Mutex<State<S>>,
    next_task: Arc<AtomicU64>,
    /// Results that nobody wants any more, for the next one who has the lock.
    released: Mutex<Vec<(CallId, TaskId)>>,
    epoch: Instant,
    clock: OnceLock<Sender<Duration>>,
}

impl<S: Shell> Driver<S> {
    /// `shell` is made with a way back to the driver.
    pub fn new(config: Config, shell: impl FnOnce(Weak<Self>) -> S) -> Arc<Self> {
        let next_task = Arc::new(AtomicU64::new(0));
        Arc::new_cyclic(|driver| Self {
            state: Mutex::new(State {
                machine: Scheduler::new(config),
                shell: shell(driver.clone()),
                calls: HashMap::new(),
                tasks: HashMap::new(),
                next_task: next_task.clone(),
                most_linked: 0,
                next_call: 0,
                armed: None,
                splits: 0,
            }),
            next_task,
            released: Mutex::default(),
            epoch: Instant::now(),
            clock: OnceLock::new(),
        })
    }

    pub fn open_call(self: &Arc<Self>, spec: CallSpec, mailbox: Arc<CallMailbox<S::Payload, S::Report>>) -> CallId {
        self.with(|state, events| {
            let call = CallId(state.next_call);
            state.next_call += 1;
            state.calls.insert(call, Call { mailbox, tasks: HashSet::new(), cap: spec.cap });
            events.push_back(Event::CallOpened { call, spec });
            call
        })
    }

    /// Forget a call: what waits is dropped, what runs is ended where it can be.
    pub fn close_call(self: &Arc<Self>, call: CallId) {
        let dropped = self.with(|state, events| {
            let closed = state.calls.remove(&call)?;
            events.push_back(Event::CallClosed { call });
            let payloads: Vec<_> = closed.tasks.iter().filter_map(|task| state.tasks.remove(task)).collect();
            Some((closed.mailbox, payloads, state.drop_graph(call, || End::Closed)))
        });
        self.with(|state, events| state.shell.call_closed(call, events));
        drop(dropped);
    }

    /// The task's id; `None` when the call is closed.
    pub fn submit(self: &Arc<Self>, call: CallId, payload: S::Payload, items: u32) -> Option<TaskId> {
        self.with(|state, events| state.admit(call, payload, items, false, events))
    }

    /// Numbers for so many tasks of graphs; the first of them.
    pub fn reserve(&self, tasks: u64) -> TaskId {
        TaskId(self.next_task.fetch_add(tasks, Ordering::Relaxed))
    }

    /// Tasks whose ids were reserved, and that may depend on each other. When the call is closed, they come back.
    pub fn submit_graph(
        self: &Arc<Self>,
        call: CallId,
        tasks: Vec<(TaskSpec, S::Payload)>,
    ) -> Result<(), Vec<(TaskSpec, S::Payload)>> {
        self.with(|state, events| {
            if !state.calls.contains_key(&call) {
                return Err(tasks);
            }
            state.tasks.reserve(tasks.len());
            state.most_linked = state.most_linked.max(state.tasks.len() + tasks.len());
            let mut specs = Vec::with_capacity(tasks.len());
            for (spec, payload) in tasks {
                state.tasks.insert(spec.task, Task { call, payload, items: 1, linked: true });
                specs.push(spec);
            }
            events.push_back(Event::GraphSubmitted { call, tasks: specs });
            Ok(())
        })
    }

    /// Nobody wants the result of a task of a graph any more. Does not wait for the lock, so that it can be said
    /// anywhere.
    pub fn release(self: &Arc<Self>, call: CallId, task: TaskId) {
        self.released.lock().expect("no holder panics").push((call, task));
        self.settle_released();
    }

    /// Whoever has the lock looks again after giving it back, so nothing stays behind.
    fn settle_released(self: &Arc<Self>) {
        while !self.released.lock().expect("no holder panics").is_empty() {
            let Ok(state) = self.state.try_lock() else { return };
            self.finish(state, &mut VecDeque::new());
        }
    }

    fn take_released(&self, events: &mut VecDeque<Event>) {
        let mut released = std::mem::take(&mut *self.released.lock().expect("no holder panics"));
        released.sort_unstable();
        for same in released.chunk_by(|a, b| a.0 == b.0) {
            let tasks = same.iter().map(|(_, task)| *task).collect();
            events.push_back(Event::TasksReleased { call: same[0].0, tasks });
        }
    }

    pub fn event(self: &Arc<Self>, event: Event) {
        self.with(|_, events| events.push_back(event));
    }

    /// Work on the shell and let the machine hear of it in one step.
    pub fn with<T>(self: &Arc<Self>, step: impl FnOnce(&mut State<S>, &mut VecDeque<Event>) -> T) -> T {
        let mut events = VecDeque::new();
        let mut state = self.state.lock().expect("no holder panics");
        let out = step(&mut state, &mut events);
        self.finish(state, &mut events);
        self.settle_released();
        out
    }

    fn finish(self: &Arc<Self>, mut state: MutexGuard<'_, State<S>>, events: &mut VecDeque<Event>) {
        let mut garbage = Vec::new();
        self.take_released(events);
        state.settle(self.epoch.elapsed(), events, &mut garbage);
        state.shell.flush();
        let emptied = state.shrink();
        let deadline = state.deadline_to_arm();
        drop(state);
        drop(garbage);
        if emptied {
            crate::trim::give_memory_back_soon();
        }
        if let Some(deadline) = deadline {
            self.arm(deadline);
        }
    }

    /// No call is open and no worker holds a task.
    pub fn is_idle(&self) -> bool {
        let stats = self.stats();
        stats.calls == 0 && stats.busy == 0
    }

    /// What the scheduler holds.
    pub fn stats(&self) -> rustdask_core::scheduler::Stats {
        self.state.lock().expect("no holder panics").machine.stats()
    }

    /// Tasks that were cut in two so far.
    pub fn splits(&self) -> u64 {
        self.state.lock().expect("no holder panics").splits
    }

    fn arm(self: &Arc<Self>, deadline: Duration) {
        let clock = self.clock.get_or_init(|| start_clock(Arc::downgrade(self)));
        // The receiver ends only with the driver.
        let _ = clock.send(deadline);
    }

    fn ring(self: &Arc<Self>) {
        self.with(|state, events| {
            state.armed = None;
            events.push_back(Event::TimePassed);
        });
    }
}

impl<S: Shell> State<S> {
    /// All workers are about to end: every task of every call ends, too, and nothing more is taken on for them.
    /// What is left of them is to be dropped without the lock.
    #[must_use]
    pub fn abandon_calls(&mut self, why: &str, events: &mut VecDeque<Event>) -> Vec<S::Payload> {
        let mut left = Vec::new();
        for (call, abandoned) in std::mem::take(&mut self.calls) {
            events.push_back(Event::CallClosed { call });
            left.extend(self.drop_graph(call, || End::Unreported(Unreported::NoWorkers { why: why.into() })));
            for task in abandoned.tasks {
                if let Some(entry) = self.tasks.remove(&task) {
                    let ending = Err(Unreported::NoWorkers { why: why.into() });
                    abandoned.mailbox.post(Notice::Resolved { task, payload: entry.payload, ending });
                }
            }
        }
        left
    }

    fn admit(
        &mut self,
        call: CallId,
        payload: S::Payload,
        items: u32,
        urgent: bool,
        events: &mut VecDeque<Event>,
    ) -> Option<TaskId> {
        let entry = self.calls.get_mut(&call)?;
        let task = TaskId(self.next_task.fetch_add(1, Ordering::Relaxed));
        entry.tasks.insert(task);
        self.tasks.insert(task, Task { call, payload, items, linked: false });
        events.push_back(Event::TaskSubmitted { call, task, items, urgent });
        Some(task)
    }

    /// Handle events, and those that carrying their actions out gives rise to, until none is left.
    fn settle(&mut self, now: Duration, events: &mut VecDeque<Event>, garbage: &mut Vec<Task<S::Payload>>) {
        let mut actions = Actions::default();
        while let Some(event) = events.pop_front() {
            self.machine.handle(now, event, &mut actions);
            for (_, action) in actions.drain() {
                self.carry_out(action, events, garbage);
            }
        }
    }

    fn carry_out(&mut self, action: Action, events: &mut VecDeque<Event>, garbage: &mut Vec<Task<S::Payload>>) {
        match action {
            Action::StartWorker { worker } => self.shell.start_worker(worker, events),
            Action::Run { worker, task, attempt } => self.run(worker, task, attempt),
            Action::Retract { worker, task, attempt } => self.shell.retract(worker, task, attempt, events),
            Action::Kill { worker, reason } => self.shell.kill(worker, reason),
            Action::Remainder { call, task, kept } => self.split(call, task, kept, events),
            Action::Resolve { call, task, resolution } => self.resolve(call, task, resolution, garbage),
            Action::Forget { worker, task } => self.shell.forget(worker, task),
            Action::Gone { task } => {
                self.shell.gone(task);
                garbage.extend(self.tasks.remove(&task));
            }
            Action::Lost { task, .. } => {
                if let Some(entry) = self.tasks.get(&task) {
                    entry.payload.lost();
                }
            }
            Action::Restored { call, task, resolution } => self.resolve(call, task, resolution, garbage),
        }
    }

    fn run(&mut self, worker: WorkerId, task: TaskId, attempt: Attempt) {
        let Some(entry) = self.tasks.get(&task) else { return };
        let Some(call) = self.calls.get(&entry.call) else { return };
        if entry.linked {
            entry.payload.assigned(attempt, self.machine.granted(task));
        }
        self.shell.run(Job {
            call: entry.call,
            mailbox: call.mailbox.clone(),
            worker,
            task,
            attempt,
            items: entry.items,
            payload: entry.payload.clone(),
        });
    }

    fn split(&mut self, call: CallId, task: TaskId, kept: u32, events: &mut VecDeque<Event>) {
        let Some(entry) = self.tasks.get_mut(&task) else { return };
        let Some(cap) = self.calls.get(&call).map(|call| call.cap) else { return };
        entry.items = kept;
        self.splits += 1;
        for (payload, items) in entry.payload.split(kept, cap.max(2)) {
            self.admit(call, payload, items, true, events);
        }
    }

    fn resolve(&mut self, call: CallId, task: TaskId, resolution: Resolution, garbage: &mut Vec<Task<S::Payload>>) {
        let end = self.end(resolution);
        if let Some(entry) = self.tasks.get(&task).filter(|entry| entry.linked) {
            return entry.payload.ended(end);
        }
        let ending = match end {
            End::Reported(_) => match self.shell.report(task) {
                Some(report) => Ok(report),
                None => return,
            },
            End::Unreported(unreported) => Err(unreported),
            // Only tasks of graphs.
            End::DependencyFailed { .. } | End::Cancelled | End::Unrunnable | End::Broken | End::Closed => return,
        };
        let Some(entry) = self.tasks.remove(&task) else { return };
        let Some(owner) = self.calls.get_mut(&call) else { return };
        owner.tasks.remove(&task);
        let quiet = S::REPORTERS_READ && ending.is_ok();
        let notice = Notice::Resolved { task, payload: entry.payload.clone(), ending };
        if quiet {
            owner.mailbox.put(notice);
        } else {
            owner.mailbox.post(notice);
        }
        garbage.push(entry);
    }

    fn end(&mut self, resolution: Resolution) -> End<S::Payload> {
        match resolution {
            Resolution::Finished { outcome, .. } => End::Reported(outcome),
            Resolution::WorkerCrashed { worker, deaths } => {
                End::Unreported(Unreported::Crashed { obituary: self.shell.obituary(worker), deaths })
            }
            Resolution::TimedOut { .. } => End::Unreported(Unreported::TimedOut),
            Resolution::NoWorkers => End::Unreported(Unreported::NoWorkers { why: self.shell.start_failure() }),
            Resolution::DependencyFailed { cause } => {
                End::DependencyFailed { cause: self.tasks.get(&cause).map(|entry| entry.payload.clone()) }
            }
            Resolution::Cancelled => End::Cancelled,
            Resolution::Unrunnable => End::Unrunnable,
            Resolution::Broken => End::Broken,
        }
    }

    /// Take out all that a closed call has left of its graphs, and end it.
    fn drop_graph(&mut self, call: CallId, end: impl Fn() -> End<S::Payload>) -> Vec<S::Payload> {
        let of_call = |(id, task): (&TaskId, &Task<_>)| (task.linked && task.call == call).then_some(*id);
        let ids: Vec<TaskId> = self.tasks.iter().filter_map(of_call).collect();
        let dropped: Vec<_> = ids.iter().filter_map(|id| self.tasks.remove(id)).map(|task| task.payload).collect();
        dropped.iter().for_each(|payload| payload.ended(end()));
        dropped
    }

    /// When all of many tasks are gone: let go of the room that they took.
    fn shrink(&mut self) -> bool {
        if self.most_linked < MANY_TASKS || !self.tasks.is_empty() {
            return false;
        }
        self.most_linked = 0;
        self.tasks = HashMap::new();
        true
    }

    pub fn machine(&self) -> &Scheduler {
        &self.machine
    }

    /// The call of a task, if it belongs to a graph.
    pub fn call_of_linked(&self, task: TaskId) -> Option<CallId> {
        self.tasks.get(&task).filter(|entry| entry.linked).map(|entry| entry.call)
    }

    /// What a task carries, while it is there.
    pub fn payload(&self, task: TaskId) -> Option<&S::Payload> {
        self.tasks.get(&task).map(|entry| &entry.payload)
    }

    fn deadline_to_arm(&mut self) -> Option<Duration> {
        let deadline = self.machine.next_deadline()?;
        if self.armed.is_some_and(|armed| armed <= deadline) {
            return None;
        }
        self.armed = Some(deadline);
        Some(deadline)
    }
}

/// A thread that tells the machine when a deadline has passed. It ends with its driver.
fn start_clock<S: Shell>(driver: Weak<Driver<S>>) -> Sender<Duration> {
    let (sender, receiver) = crossbeam_channel::unbounded();
    std::thread::Builder::new()
        .name("rustdask-clock".into())
        .spawn(move || keep_time(&driver, &receiver))
        .expect("the system can start a thread");
    sender
}

fn keep_time<S: Shell>(driver: &Weak<Driver<S>>, deadlines: &Receiver<Duration>) {
    let mut next: Option<Duration> = None;
    loop {
        let Some(elapsed) = driver.upgrade().map(|driver| driver.epoch.elapsed()) else { return };
        let heard = match next {
            None => deadlines.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => deadlines.recv_timeout(at.saturating_sub(elapsed)),
        };
        match (heard, driver.upgrade()) {
            (Ok(deadline), _) => next = Some(next.map_or(deadline, |at| at.min(deadline))),
            (Err(RecvTimeoutError::Timeout), Some(driver)) => {
                next = None;
                let _working = crate::fork::working();
                driver.ring();
            }
            _ => return,
        }
    }
}
