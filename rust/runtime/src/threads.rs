//! Threads of this process as workers, and callers that help while they wait.
//!
//! Each thread sleeps on its own slot, so that waking one wakes no other. The driver fills slots under
//! its lock; a thread empties its own. What runs in a thread is the business of [`ThreadBody`].

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use rustdask_core::ending::Obituary;
use rustdask_core::scheduler::Config;
use rustdask_core::{Attempt, CallId, Event, KillReason, Outcome, TaskId, WorkerId, WorkerSpec};

use crate::cursor::Cursor;
use crate::driver::{Driver, Job, Notice, Payload, Shell};
use crate::pool::PoolSpec;

/// Ids from here on are helpers'; the machine numbers its own workers from 0.
const FIRST_HELPER: u32 = 1 << 31;

/// How often a thread of a closed pool looks whether the last call has ended.
const CLOSING: Duration = Duration::from_millis(20);

/// Threads beyond the number of cores end when they have had nothing to do for so long.
const KEEP_IDLE: Duration = Duration::from_secs(10);

/// What a pool thread does from its start to its end: take tasks from its [`Seat`] until there are no more.
pub type ThreadBody<P> = Arc<dyn Fn(Seat<P>) + Send + Sync>;

/// A task for a thread.
pub struct Assigned<P> {
    call: CallId,
    pub task: TaskId,
    pub attempt: Attempt,
    pub payload: P,
    pub cursor: Arc<Cursor>,
}

struct Slot<P> {
    state: Mutex<SlotState<P>>,
    filled: Condvar,
    vacated: Condvar,
}

struct SlotState<P> {
    waiting: VecDeque<Assigned<P>>,
    closed: bool,
    /// Threads whose tasks have got what they waited for, and that may not go on yet.
    returning: usize,
    /// Nobody serves the slot: one of those may.
    vacant: bool,
}

impl<P> Slot<P> {
    fn new() -> Arc<Self> {
        let state = SlotState { waiting: VecDeque::new(), closed: false, returning: 0, vacant: false };
        Arc::new(Self { state: Mutex::new(state), filled: Condvar::new(), vacated: Condvar::new() })
    }
}

pub struct ThreadShell<P: Payload> {
    slots: HashMap<WorkerId, Arc<Slot<P>>>,
    /// Of each helper: tasks posted to its mailbox that it has not taken yet.
    helpers: HashMap<WorkerId, HashMap<TaskId, Attempt>>,
    /// Of the task that each worker was last given.
    cursors: HashMap<WorkerId, (TaskId, Arc<Cursor>)>,
    driver: Weak<Driver<Self>>,
    body: ThreadBody<P>,
    alive: Arc<Alive>,
    next_helper: u32,
    start_failure: String,
    spec: PoolSpec,
}

impl<P: Payload> Shell for ThreadShell<P> {
    type Payload = P;
    /// What a thread made of a task is in its payload already.
    type Report = ();

    const REPORTERS_READ: bool = true;

    fn start_worker(&mut self, worker: WorkerId, followups: &mut VecDeque<Event>) {
        match self.start(worker) {
            Ok(()) => {
                let spec = WorkerSpec { depth: 1, ..self.spec.worker() };
                followups.push_back(Event::WorkerJoined { worker, spec });
            }
            Err(error) => {
                self.start_failure = format!("the system refused to start a thread: {error}");
                followups.push_back(Event::WorkerLost { worker });
            }
        }
    }

    fn run(&mut self, job: Job<Self>) {
        let cursor = Arc::new(Cursor::new(job.items));
        self.cursors.insert(job.worker, (job.task, cursor.clone()));
        let Job { call, worker, task, attempt, payload, mailbox, .. } = job;
        if let Some(helper) = self.helpers.get_mut(&worker) {
            helper.insert(task, attempt);
            mailbox.post(Notice::Help { task, attempt, payload, cursor });
        } else if let Some(slot) = self.slots.get(&worker) {
            slot.state.lock().expect("no holder panics").waiting.push_back(Assigned {
                call,
                task,
                attempt,
                payload,
                cursor,
            });
            slot.filled.notify_one();
        }
    }

    fn retract(&mut self, worker: WorkerId, task: TaskId, attempt: Attempt, followups: &mut VecDeque<Event>) {
        if self.take_back(worker, task, attempt) {
            followups.push_back(Event::TaskReturned { worker, task, attempt, kept: 0 });
        } else if let Some((running, cursor)) = self.cursors.get(&worker) {
            if *running == task {
                followups.push_back(Event::TaskReturned { worker, task, attempt, kept: cursor.cut() });
            }
        }
    }

    fn kill(&mut self, _worker: WorkerId, _reason: KillReason) {
        unreachable!("threads join as workers that cannot be killed");
    }

    /// What a thread has made is nobody's in particular.
    fn forget(&mut self, _worker: WorkerId, _task: TaskId) {}

    fn gone(&mut self, _task: TaskId) {}

    fn report(&mut self, _task: TaskId) -> Option<()> {
        Some(())
    }

    fn obituary(&mut self, _worker: WorkerId) -> Obituary {
        Obituary::default()
    }

    fn start_failure(&self) -> String {
        self.start_failure.clone()
    }

    /// The machine takes the first task of a worker to be running. A thread may only just have been woken for it.
    fn call_closed(&mut self, call: CallId, followups: &mut VecDeque<Event>) {
        for (&worker, slot) in &self.slots {
            let mut state = slot.state.lock().expect("no holder panics");
            state.waiting.retain(|Assigned { call: of, task, attempt, .. }| {
                if *of == call {
                    let (task, attempt) = (*task, *attempt);
                    let outcome = Outcome::Err;
                    followups.push_back(Event::TaskFinished { worker, task, attempt, outcome, size_bytes: 0 });
                }
                *of != call
            });
        }
    }
}

impl<P: Payload> ThreadShell<P> {
    fn start(&mut self, worker: WorkerId) -> std::io::Result<()> {
        let driver = self.driver.upgrade().expect("the driver's lock is held, so it lives");
        let slot = Slot::new();
        let seat = Seat {
            worker,
            slot: slot.clone(),
            driver,
            body: self.body.clone(),
            leaving: Leaving::counted(&self.alive),
        };
        seat.occupy()?;
        self.slots.insert(worker, slot);
        Ok(())
    }

    /// Take a task that was posted to a helper and is there still, in this very attempt.
    fn take_posted(&mut self, helper: WorkerId, task: TaskId, attempt: Attempt) -> bool {
        let Some(posted) = self.helpers.get_mut(&helper) else { return false };
        let found = posted.get(&task) == Some(&attempt);
        if found {
            posted.remove(&task);
        }
        found
    }

    fn take_back(&mut self, worker: WorkerId, task: TaskId, attempt: Attempt) -> bool {
        if self.helpers.contains_key(&worker) {
            return self.take_posted(worker, task, attempt);
        }
        let Some(slot) = self.slots.get(&worker) else { return false };
        let mut state = slot.state.lock().expect("no holder panics");
        let before = state.waiting.len();
        state.waiting.retain(|assigned| (assigned.task, assigned.attempt) != (task, attempt));
        state.waiting.len() < before
    }
}

/// A pool of threads that grows on demand and parks when idle.
pub struct ThreadPool<P: Payload> {
    pub driver: Arc<Driver<ThreadShell<P>>>,
    alive: Arc<Alive>,
}

/// How many threads have not ended yet.
#[derive(Default)]
struct Alive {
    count: Mutex<usize>,
    fewer: Condvar,
}

impl<P: Payload> ThreadPool<P> {
    pub fn new(spec: PoolSpec, body: ThreadBody<P>) -> Self {
        let alive = Arc::new(Alive::default());
        let config = Config {
            // What one thread has made, all have, and it is kept by the tasks themselves.
            bandwidth_bytes_per_s: u64::MAX,
            latency: Duration::ZERO,
            ..spec.config()
        };
        let driver = Driver::new(config, |driver| ThreadShell {
            slots: HashMap::new(),
            helpers: HashMap::new(),
            cursors: HashMap::new(),
            driver,
            body,
            alive: alive.clone(),
            next_helper: FIRST_HELPER,
            start_failure: String::new(),
            spec,
        });
        Self { driver, alive }
    }

    /// Join the calling thread to a call. It leaves with [`ThreadPool::leave`].
    pub fn join_as_helper(&self, call: CallId) -> WorkerId {
        self.driver.with(|state, events| {
            let worker = WorkerId(state.shell.next_helper);
            state.shell.next_helper = state.shell.next_helper.checked_add(1).unwrap_or(FIRST_HELPER);
            state.shell.helpers.insert(worker, HashMap::new());
            events.push_back(Event::WorkerJoined {
                worker,
                spec: WorkerSpec { depth: 1, only: Some(call), ..WorkerSpec::default() },
            });
            worker
        })
    }

    /// Take a task that a `Help` notice offered; false when it was taken back in the meantime.
    pub fn take_help(&self, worker: WorkerId, task: TaskId, attempt: Attempt) -> bool {
        self.driver.with(|state, _| state.shell.take_posted(worker, task, attempt))
    }

    pub fn leave(&self, worker: WorkerId) {
        self.driver.with(|state, events| {
            state.shell.helpers.remove(&worker);
            state.shell.cursors.remove(&worker);
            events.push_back(Event::WorkerLost { worker });
        });
    }

    pub fn finished(&self, worker: WorkerId, task: TaskId, attempt: Attempt, outcome: Outcome) {
        self.driver.event(Event::TaskFinished { worker, task, attempt, outcome, size_bytes: 0 });
    }

    pub fn thread_count(&self) -> usize {
        *self.alive.count.lock().expect("no holder panics")
    }

    /// Let idle threads end, busy ones after their task; wait for them at most `patience`.
    /// True when all have ended.
    pub fn close(&self, patience: Duration) -> bool {
        self.driver.with(|state, _| {
            for slot in state.shell.slots.values() {
                slot.state.lock().expect("no holder panics").closed = true;
                slot.filled.notify_one();
            }
        });
        let deadline = Instant::now() + patience;
        let mut count = self.alive.count.lock().expect("no holder panics");
        while *count > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            count = self.alive.fewer.wait_timeout(count, left).expect("no holder panics").0;
        }
        true
    }
}

struct Leaving(Arc<Alive>);

impl Leaving {
    fn counted(alive: &Arc<Alive>) -> Self {
        *alive.count.lock().expect("no holder panics") += 1;
        Self(alive.clone())
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        *self.0.count.lock().expect("no holder panics") -= 1;
        self.0.fewer.notify_all();
    }
}

/// A pool thread's place: where its tasks come from and its reports go.
pub struct Seat<P: Payload> {
    pub worker: WorkerId,
    slot: Arc<Slot<P>>,
    driver: Arc<Driver<ThreadShell<P>>>,
    body: ThreadBody<P>,
    leaving: Leaving,
}

impl<P: Payload> Seat<P> {
    /// Start a thread that serves it.
    fn occupy(self) -> std::io::Result<()> {
        let (name, body) = (format!("rustdask-{}", self.worker.0), self.body.clone());
        std::thread::Builder::new().name(name).spawn(move || body(self)).map(|_| ())
    }

    /// The task that this thread runs is going to wait for others: another thread takes the seat. False if none can be
    /// started.
    pub fn park(&self, task: TaskId, attempt: Attempt) -> bool {
        let stand_in = Seat {
            worker: self.worker,
            slot: self.slot.clone(),
            driver: self.driver.clone(),
            body: self.body.clone(),
            leaving: Leaving::counted(&self.leaving.0),
        };
        let parked = stand_in.occupy().is_ok();
        if parked {
            self.driver.event(Event::TaskParked { worker: self.worker, task, attempt });
        }
        parked
    }

    /// After [`Seat::park`]: wait until whoever has the seat is between two tasks, and take it back.
    pub fn unpark(&self, task: TaskId, attempt: Attempt) {
        let mut state = self.state();
        state.returning += 1;
        self.slot.filled.notify_all();
        let mut state = self.slot.vacated.wait_while(state, |state| !state.vacant).expect("no holder panics");
        state.vacant = false;
        state.returning -= 1;
        drop(state);
        self.driver.event(Event::TaskResumed { worker: self.worker, task, attempt });
    }

    /// Leave the seat to a thread that is returning to it, if one is.
    fn vacate(&self, state: &mut SlotState<P>) -> bool {
        if state.returning == 0 {
            return false;
        }
        state.vacant = true;
        self.slot.vacated.notify_one();
        true
    }

    /// Sleep until there is a task, or the thread is to end: then false. The task is not taken yet.
    pub fn wait(&self) -> bool {
        let mut state = self.state();
        loop {
            if self.vacate(&mut state) {
                return false;
            }
            if !state.waiting.is_empty() {
                return true;
            }
            if state.closed {
                drop(state);
                if self.driver.is_idle() {
                    return false;
                }
                // Calls that were running when the pool was closed may still have something to do.
                state = self.sleep(self.state(), CLOSING).0;
                continue;
            }
            let (woken, timed_out) = self.sleep(state, KEEP_IDLE);
            state = woken;
            if timed_out {
                drop(state);
                if self.retire() {
                    return false;
                }
                state = self.state();
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, SlotState<P>> {
        self.slot.state.lock().expect("no holder panics")
    }

    /// Until there is a task, the pool is closed, or the time is over: then true.
    fn sleep<'a>(
        &self,
        state: MutexGuard<'a, SlotState<P>>,
        at_most: Duration,
    ) -> (MutexGuard<'a, SlotState<P>>, bool) {
        let closed = state.closed;
        let unchanged =
            |state: &mut SlotState<P>| state.waiting.is_empty() && state.closed == closed && state.returning == 0;
        let (state, outcome) =
            self.slot.filled.wait_timeout_while(state, at_most, unchanged).expect("no holder panics");
        (state, outcome.timed_out())
    }

    /// Leave the pool, if it has more threads than cores and none of its tasks is for this one.
    fn retire(&self) -> bool {
        self.driver.with(|state, events| {
            let mine = self.state();
            if !mine.waiting.is_empty()
                || mine.returning > 0
                || state.shell.slots.len() <= state.shell.spec.core_budget as usize
            {
                return false;
            }
            state.shell.slots.remove(&self.worker);
            state.shell.cursors.remove(&self.worker);
            events.push_back(Event::WorkerLost { worker: self.worker });
            true
        })
    }

    /// The next task, unless it was taken back, or another thread is to go on first.
    pub fn take(&self) -> Option<Assigned<P>> {
        let mut state = self.state();
        if state.returning > 0 {
            return None;
        }
        state.waiting.pop_front()
    }

    pub fn finished(&self, task: TaskId, attempt: Attempt, outcome: Outcome) {
        self.driver.event(Event::TaskFinished { worker: self.worker, task, attempt, outcome, size_bytes: 0 });
    }
}
