//! The simulated world: a queue of things that will happen, and the machine that is told of them.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, VecDeque};
use std::hash::Hasher;
use std::time::Duration;

use rustdask_core::scheduler::Config;
use rustdask_core::{Attempt, CallId, Event, Scheduler, TaskId, WorkerId, WorkerSpec};

use crate::calls::{random_call, Ledger};
use crate::rng::Rng;
use crate::worker::{Order, SimWorker};

/// More than any world needs that gets anywhere.
const MOST_STEPS: u64 = 300_000;

#[derive(Clone, Debug)]
pub(crate) enum Happening {
    Open,
    Submit(CallId),
    Abort(CallId),
    Pause(CallId, bool),
    Excuse(CallId),
    HelperComes(CallId),
    HelperGoes(WorkerId),
    /// A worker that was asked for is there, or is not.
    Started(WorkerId, bool),
    Arrives(WorkerId, Order),
    ItemDone(WorkerId, TaskId, Attempt, u32),
    Dies(WorkerId),
    /// A report reaches the machine. The number: items run, of a task that has finished.
    Reported(Event, u32),
    /// Idle workers are let go.
    Retire,
}

/// What goes wrong in this world, in percent.
pub(crate) struct Faults {
    pub(crate) death: u64,
    pub(crate) poison: u64,
    pub(crate) failed_start: u64,
    pub(crate) duplicate: u64,
    pub(crate) abort: u64,
}

pub(crate) struct World {
    pub(crate) rng: Rng,
    pub(crate) verbose: bool,
    pub(crate) machine: Scheduler,
    pub(crate) now_us: u64,
    pub(crate) queue: BTreeMap<(u64, u64), Happening>,
    /// What the machine has yet to be told.
    pub(crate) inbox: VecDeque<(Event, Option<u32>)>,
    pub(crate) happened: u64,
    pub(crate) ledger: Ledger,
    pub(crate) workers: BTreeMap<WorkerId, SimWorker>,
    pub(crate) faults: Faults,
    pub(crate) threads: bool,
    pub(crate) depth: u32,
    pub(crate) latency_us: u64,
    pub(crate) next_call: u64,
    pub(crate) next_task: u64,
    pub(crate) next_helper: u32,
    pub(crate) trace: DefaultHasher,
}

impl World {
    pub(crate) fn new(seed: u64, verbose: bool) -> World {
        let mut rng = Rng::new(seed);
        let threads = rng.chance(40);
        let faulty = rng.chance(70);
        let hopeless = rng.chance(15);
        let mut fault = |most| if faulty { rng.range(0, most) } else { 0 };
        let faults = Faults {
            death: if threads { 0 } else { fault(5) },
            poison: if threads { 0 } else { fault(5) },
            failed_start: if hopeless { 90 } else { fault(30) },
            duplicate: fault(20),
            abort: fault(60),
        };
        // Threads that wait for nested calls need others to take their place.
        let bounded = !threads && rng.chance(50);
        let config = Config {
            core_budget: rng.small(1, 4),
            max_start_failures: rng.small(1, 4),
            split_after: Duration::from_micros(rng.range(100, 3000)),
            max_workers: if bounded { rng.small(1, 5) } else { u32::MAX },
            ..Config::default()
        };
        let mut world = World {
            machine: Scheduler::new(config),
            verbose,
            now_us: 0,
            queue: BTreeMap::new(),
            inbox: VecDeque::new(),
            happened: 0,
            ledger: Ledger::default(),
            workers: BTreeMap::new(),
            faults,
            threads,
            depth: if threads { 1 } else { rng.small(1, 4) },
            latency_us: rng.range(1, 400),
            next_call: 0,
            next_task: 0,
            next_helper: 1 << 31,
            trace: DefaultHasher::new(),
            rng,
        };
        for _ in 0..world.rng.range(1, 5) {
            world.soon(20_000, Happening::Open);
        }
        for _ in 0..world.rng.range(0, 3) {
            world.soon(60_000, Happening::Retire);
        }
        world
    }

    /// Runs until nothing more happens; a hash of all actions.
    pub(crate) fn play(mut self) -> u64 {
        while self.step() {
            assert!(self.happened < MOST_STEPS, "the world does not come to an end");
        }
        assert!(self.ledger.calls.is_empty(), "calls hang: {:?}", self.ledger);
        assert!(self.machine.is_empty(), "the machine is not empty");
        self.retire();
        self.drive();
        let stats = self.machine.stats();
        assert_eq!((stats.tasks, stats.workers, stats.starting, stats.busy), (0, 0, 0, 0));
        self.trace.finish()
    }

    pub(crate) fn step(&mut self) -> bool {
        let next = self.queue.first_key_value().map(|(&(time, _), _)| time);
        let deadline = self.machine.next_deadline().map(|time| time.as_micros() as u64);
        match (next, deadline) {
            (None, None) => return false,
            (next, Some(deadline)) if next.is_none_or(|next| deadline < next) => {
                self.now_us = deadline.max(self.now_us);
                self.tell(Event::TimePassed, None);
            }
            _ => {
                let ((time, _), happening) = self.queue.pop_first().expect("one is there");
                self.now_us = time;
                self.say(&happening);
                self.happen(happening);
            }
        }
        self.drive();
        self.happened += 1;
        true
    }

    pub(crate) fn say(&self, what: &dyn std::fmt::Debug) {
        if self.verbose {
            eprintln!("{:>9} {what:?}", self.now_us);
        }
    }

    pub(crate) fn at(&mut self, time_us: u64, what: Happening) {
        self.happened += 1;
        self.queue.insert((time_us, self.happened), what);
    }

    pub(crate) fn soon(&mut self, most_us: u64, what: Happening) {
        let time = self.now_us + self.rng.range(0, most_us);
        self.at(time, what);
    }

    pub(crate) fn happen(&mut self, what: Happening) {
        match what {
            Happening::Open => {
                let timeouts = self.rng.chance(50);
                let call = random_call(&mut self.rng, 0, timeouts);
                self.open(call);
            }
            Happening::Submit(call) => self.submit_some(call),
            Happening::Abort(call) => self.close(call),
            Happening::Pause(call, paused) => self.pause(call, paused),
            Happening::Excuse(call) => self.tell(Event::HelperExcused { call }, None),
            Happening::HelperComes(call) => self.helper_comes(call),
            Happening::HelperGoes(worker) => self.helper_goes(worker),
            Happening::Started(worker, true) => {
                let spec =
                    WorkerSpec { depth: self.depth, only: None, killable: !self.threads, ..WorkerSpec::default() };
                self.joins(worker, spec);
            }
            Happening::Started(worker, false) => self.tell(Event::WorkerLost { worker }, None),
            Happening::Arrives(worker, order) => self.arrives(worker, order),
            Happening::ItemDone(worker, task, attempt, item) => self.item_done(worker, task, attempt, item),
            Happening::Dies(worker) => self.dies(worker),
            Happening::Reported(event, ran) => self.tell(event, Some(ran)),
            Happening::Retire => self.retire(),
        }
    }
}
