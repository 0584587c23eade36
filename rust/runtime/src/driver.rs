//! The driver: owns a scheduler machine, feeds it events, carries its actions out.
//!
//! One lock guards the machine and its shell, and actions are carried out under it, so that what a
//! worker is told keeps the order in which it was decided. Nothing that is done under the lock blocks
//! or touches Python; payloads that are no longer needed are dropped after it is released.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use rustdask_core::scheduler::Config;
use rustdask_core::{
    Action, Actions, Attempt, CallId, CallSpec, Event, KillReason, Resolution, Scheduler, TaskId, WorkerId,
};

use crate::mailbox::Mailbox;
use crate::parcel::Parcel;

const ONLY_GRAPHS: &str = "this driver submits no graphs";

/// What a task carries. The driver only holds it and cuts it.
pub trait Payload: Clone + Send + 'static {
    /// Keep the first `kept` items; the rest in at most `pieces` payloads, with their item counts.
    fn split(&self, kept: u32, pieces: u32) -> Vec<(Self, u32)>;

    /// What to send to a worker process, if it has been pickled already.
    fn parcel(&self) -> Option<Arc<Parcel>>;
}

/// How a task ended, with what its worker reported.
#[derive(Debug)]
pub enum Ending<R> {
    /// By a report of its worker.
    Reported(R),
    Crashed {
        obituary: Obituary,
        deaths: u32,
    },
    TimedOut,
    NoWorkers {
        why: String,
    },
}

/// What is known of a worker that died.
#[derive(Clone, Debug, Default)]
pub struct Obituary {
    pub exit_code: Option<i32>,
    pub signal: Option<i32>,
    pub peak_memory_bytes: Option<u64>,
    pub stderr: String,
    /// Why rustdask itself ended it, if it did.
    pub reason: Option<String>,
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
        ending: Ending<R>,
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
    /// The report that a `Finished` resolution is about.
    fn report(&mut self, task: TaskId) -> Option<Self::Report>;
    fn obituary(&mut self, worker: WorkerId) -> Obituary;
    fn start_failure(&self) -> String;
    /// A call is over: forget what is kept for it, and take back what no worker has begun of it.
    fn call_closed(&mut self, call: CallId, followups: &mut VecDeque<Event>);
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
}

pub struct State<S: Shell> {
    machine: Scheduler,
    pub shell: S,
    calls: HashMap<CallId, Call<S>>,
    tasks: HashMap<TaskId, Task<S::Payload>>,
    next_task: u64,
    next_call: u64,
    /// When the clock will next look; later deadlines need not disturb it.
    armed: Option<Duration>,
    splits: u64,
}

pub struct Driver<S: Shell> {
    state: Mutex<State<S>>,
    epoch: Instant,
    clock: OnceLock<Sender<Duration>>,
}

impl<S: Shell> Driver<S> {
    /// `shell` is made with a way back to the driver.
    pub fn new(config: Config, shell: impl FnOnce(Weak<Self>) -> S) -> Arc<Self> {
        Arc::new_cyclic(|driver| Self {
            state: Mutex::new(State {
                machine: Scheduler::new(config),
                shell: shell(driver.clone()),
                calls: HashMap::new(),
                tasks: HashMap::new(),
                next_task: 0,
                next_call: 0,
                armed: None,
                splits: 0,
            }),
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
            Some((closed.mailbox, payloads))
        });
        self.with(|state, events| state.shell.call_closed(call, events));
        drop(dropped);
    }

    /// The task's id; `None` when the call is closed.
    pub fn submit(self: &Arc<Self>, call: CallId, payload: S::Payload, items: u32) -> Option<TaskId> {
        self.with(|state, events| state.admit(call, payload, items, false, events))
    }

    pub fn event(self: &Arc<Self>, event: Event) {
        self.with(|_, events| events.push_back(event));
    }

    /// Work on the shell and let the machine hear of it in one step.
    pub fn with<T>(self: &Arc<Self>, step: impl FnOnce(&mut State<S>, &mut VecDeque<Event>) -> T) -> T {
        let mut garbage = Vec::new();
        let mut events = VecDeque::new();
        let mut state = self.state.lock().expect("no holder panics");
        let out = step(&mut state, &mut events);
        state.settle(self.epoch.elapsed(), &mut events, &mut garbage);
        let deadline = state.deadline_to_arm();
        drop(state);
        drop(garbage);
        if let Some(deadline) = deadline {
            self.arm(deadline);
        }
        out
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
    pub fn abandon_calls(&mut self, why: &str, events: &mut VecDeque<Event>) {
        for (call, abandoned) in self.calls.drain() {
            events.push_back(Event::CallClosed { call });
            for task in abandoned.tasks {
                if let Some(entry) = self.tasks.remove(&task) {
                    let ending = Ending::NoWorkers { why: why.into() };
                    abandoned.mailbox.post(Notice::Resolved { task, payload: entry.payload, ending });
                }
            }
        }
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
        let task = TaskId(self.next_task);
        self.next_task += 1;
        entry.tasks.insert(task);
        self.tasks.insert(task, Task { call, payload, items });
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
            Action::Forget { .. } | Action::Gone { .. } | Action::Lost { .. } | Action::Restored { .. } => {
                unreachable!("{ONLY_GRAPHS}")
            }
        }
    }

    fn run(&mut self, worker: WorkerId, task: TaskId, attempt: Attempt) {
        let Some(entry) = self.tasks.get(&task) else { return };
        let Some(call) = self.calls.get(&entry.call) else { return };
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
        let ending = match resolution {
            Resolution::Finished { .. } => match self.shell.report(task) {
                Some(report) => Ending::Reported(report),
                None => return,
            },
            Resolution::WorkerCrashed { worker, deaths } => {
                Ending::Crashed { obituary: self.shell.obituary(worker), deaths }
            }
            Resolution::TimedOut { .. } => Ending::TimedOut,
            Resolution::NoWorkers => Ending::NoWorkers { why: self.shell.start_failure() },
            Resolution::DependencyFailed { .. }
            | Resolution::Cancelled
            | Resolution::Unrunnable
            | Resolution::Broken => unreachable!("{ONLY_GRAPHS}"),
        };
        let Some(entry) = self.tasks.remove(&task) else { return };
        let Some(owner) = self.calls.get_mut(&call) else { return };
        owner.tasks.remove(&task);
        let quiet = S::REPORTERS_READ && matches!(ending, Ending::Reported(_));
        let notice = Notice::Resolved { task, payload: entry.payload.clone(), ending };
        if quiet {
            owner.mailbox.put(notice);
        } else {
            owner.mailbox.post(notice);
        }
        garbage.push(entry);
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
