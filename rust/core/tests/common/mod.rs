//! A world for the scheduler machine: it carries events in and records the actions that come out. The machine's
//! state is checked after each event, and an action that a test did not claim fails it.
#![allow(dead_code, unreachable_pub)]

pub mod graph;

use std::time::Duration;

use rustdask_core::scheduler::Config;
use rustdask_core::{
    Action, Actions, Attempt, CallId, CallSpec, Event, KillReason, Outcome, Resolution, Scheduler, TaskId, Time,
    WorkerId, WorkerSpec,
};

pub const OK: Outcome = Outcome::Ok;
/// First id of those that the shell gives to helpers.
pub const HELPER: u32 = 1 << 31;

pub struct World {
    pub machine: Scheduler,
    pub now: Time,
    actions: Vec<Action>,
    /// Tasks that the machine has forgotten. They need not be claimed.
    pub gone: Vec<u64>,
}

impl World {
    pub fn new() -> World {
        World::with(config())
    }

    pub fn with(config: Config) -> World {
        World { machine: Scheduler::new(config), now: Time::ZERO, actions: Vec::new(), gone: Vec::new() }
    }

    /// A world with workers 0.. that are idle; the call that had them started is closed again.
    pub fn with_workers(config: Config, count: u32, spec: WorkerSpec) -> World {
        let mut world = World::with(config);
        world.open(1_000_000, call(count));
        for worker in 0..count {
            world.submit(1_000_000, u64::from(1_000_000 + worker));
            world.claim([start(worker)]);
        }
        world.close(1_000_000);
        for worker in 0..count {
            world.joined(worker, spec.clone());
        }
        world.claim([]);
        world
    }

    pub fn handle(&mut self, event: Event) {
        let seq = self.machine.next_seq();
        let mut actions = Actions::default();
        self.machine.handle(self.now, event, &mut actions);
        for (cause, action) in actions.drain() {
            assert_eq!(cause, seq, "{action:?} names another event as its cause");
            match action {
                Action::Gone { task } => self.gone.push(task.0),
                action => self.actions.push(action),
            }
        }
        if let Err(what) = self.machine.check() {
            panic!("{what}");
        }
    }

    /// These actions came out since the last claim, in this order, and no others.
    #[track_caller]
    pub fn claim<const N: usize>(&mut self, expected: [Action; N]) {
        let found = std::mem::take(&mut self.actions);
        assert_eq!(found, expected, "left: what came out, right: what was claimed");
    }

    pub fn open(&mut self, call: u64, spec: CallSpec) {
        self.handle(Event::CallOpened { call: CallId(call), spec });
    }

    pub fn close(&mut self, call: u64) {
        self.handle(Event::CallClosed { call: CallId(call) });
    }

    pub fn pause(&mut self, call: u64, paused: bool) {
        self.handle(Event::CallPaused { call: CallId(call), paused });
    }

    pub fn excuse(&mut self, call: u64) {
        self.handle(Event::HelperExcused { call: CallId(call) });
    }

    pub fn submit(&mut self, call: u64, task: u64) {
        self.submit_items(call, task, 1);
    }

    pub fn submit_items(&mut self, call: u64, task: u64, items: u32) {
        let (call, task) = (CallId(call), TaskId(task));
        self.handle(Event::TaskSubmitted { call, task, items, urgent: false });
    }

    pub fn submit_urgent(&mut self, call: u64, task: u64) {
        self.submit_urgent_items(call, task, 1);
    }

    pub fn submit_urgent_items(&mut self, call: u64, task: u64, items: u32) {
        let (call, task) = (CallId(call), TaskId(task));
        self.handle(Event::TaskSubmitted { call, task, items, urgent: true });
    }

    pub fn joined(&mut self, worker: u32, spec: WorkerSpec) {
        self.handle(Event::WorkerJoined { worker: WorkerId(worker), spec });
    }

    pub fn lost(&mut self, worker: u32) {
        self.handle(Event::WorkerLost { worker: WorkerId(worker) });
    }

    pub fn finished(&mut self, worker: u32, task: u64) {
        self.finished_again(worker, task, 0);
    }

    pub fn finished_again(&mut self, worker: u32, task: u64, attempt: u32) {
        self.handle(Event::TaskFinished {
            worker: WorkerId(worker),
            task: TaskId(task),
            attempt: Attempt(attempt),
            outcome: OK,
            size_bytes: 0,
        });
    }

    pub fn returned(&mut self, worker: u32, task: u64, kept: u32) {
        self.returned_again(worker, task, 0, kept);
    }

    pub fn returned_again(&mut self, worker: u32, task: u64, attempt: u32, kept: u32) {
        self.handle(Event::TaskReturned {
            worker: WorkerId(worker),
            task: TaskId(task),
            attempt: Attempt(attempt),
            kept,
        });
    }

    /// Lets time pass, and tells the machine.
    pub fn wait(&mut self, time: Duration) {
        self.now += time;
        self.handle(Event::TimePassed);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(self.actions, [], "actions that nobody claimed");
        }
    }
}

pub fn config() -> Config {
    Config { core_budget: 2, ..Config::default() }
}

pub fn call(cap: u32) -> CallSpec {
    CallSpec { cap, crash_retries: 1, divisible: true, ..CallSpec::default() }
}

pub fn process(depth: u32) -> WorkerSpec {
    WorkerSpec { depth, only: None, killable: true, ..WorkerSpec::default() }
}

pub fn thread() -> WorkerSpec {
    WorkerSpec { depth: 1, only: None, killable: false, ..WorkerSpec::default() }
}

pub fn helper(call: u64) -> WorkerSpec {
    WorkerSpec { depth: 1, only: Some(CallId(call)), killable: false, ..WorkerSpec::default() }
}

pub fn start(worker: u32) -> Action {
    Action::StartWorker { worker: WorkerId(worker) }
}

pub fn run(worker: u32, task: u64) -> Action {
    rerun(worker, task, 0)
}

pub fn rerun(worker: u32, task: u64, attempt: u32) -> Action {
    Action::Run { worker: WorkerId(worker), task: TaskId(task), attempt: Attempt(attempt) }
}

pub fn retract(worker: u32, task: u64) -> Action {
    Action::Retract { worker: WorkerId(worker), task: TaskId(task), attempt: Attempt(0) }
}

pub fn remainder(call: u64, task: u64, kept: u32) -> Action {
    Action::Remainder { call: CallId(call), task: TaskId(task), kept }
}

pub fn kill(worker: u32, reason: KillReason) -> Action {
    Action::Kill { worker: WorkerId(worker), reason }
}

pub fn done(call: u64, task: u64, worker: u32) -> Action {
    resolve(call, task, Resolution::Finished { worker: WorkerId(worker), outcome: OK })
}

pub fn timed_out(call: u64, task: u64, worker: u32) -> Action {
    resolve(call, task, Resolution::TimedOut { worker: WorkerId(worker) })
}

pub fn crashed(call: u64, task: u64, worker: u32, deaths: u32) -> Action {
    resolve(call, task, Resolution::WorkerCrashed { worker: WorkerId(worker), deaths })
}

pub fn resolve(call: u64, task: u64, resolution: Resolution) -> Action {
    Action::Resolve { call: CallId(call), task: TaskId(task), resolution }
}

pub fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}
