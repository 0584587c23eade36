//! A world of graphs: clients that submit tasks which take each other's results, and workers that keep these, copy
//! them from each other, and die with them. In some worlds the results are durable: the shell keeps them.

mod client;
mod ledger;
mod workers;

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::time::Duration;

use rustdask_core::scheduler::Config;
use rustdask_core::{
    Action, Actions, Amount, Attempt, CallId, Event, HostId, KillReason, Resources, Scheduler, TaskId, WorkerId,
    WorkerSpec,
};

use crate::rng::Rng;
use ledger::Ledger;
use workers::{Order, SimWorker};

const MOST_STEPS: u64 = 200_000;

#[derive(Clone, Debug)]
pub(crate) enum Happening {
    Open,
    Submit(CallId),
    Release(CallId),
    Cancel(CallId),
    Abort(CallId),
    Pause(CallId, bool),
    Started(WorkerId, bool),
    /// A worker comes by itself.
    Joins,
    Arrives(WorkerId, Order),
    /// The worker begins, or has run, what it has at the head of its queue.
    Begins(WorkerId, TaskId, Attempt),
    Ends(WorkerId, TaskId, Attempt),
    /// The worker has run what it had parked.
    EndsParked(WorkerId, TaskId, Attempt),
    Dies(WorkerId),
    Reported(Event),
    /// A worker drops a result by mistake.
    Drops(WorkerId),
    /// So many workers are to be there.
    Request(u32),
    /// Idle workers are let go.
    Retire,
}

/// What goes wrong, in percent.
pub(crate) struct Faults {
    pub(crate) death: u64,
    pub(crate) poison: u64,
    pub(crate) error: u64,
    pub(crate) failed_start: u64,
    pub(crate) stillborn: u64,
    pub(crate) duplicate: u64,
    pub(crate) abort: u64,
    pub(crate) cancel: u64,
    pub(crate) drop: u64,
}

pub(crate) struct GraphWorld {
    pub(crate) rng: Rng,
    pub(crate) verbose: bool,
    pub(crate) machine: Scheduler,
    pub(crate) now_us: u64,
    pub(crate) queue: BTreeMap<(u64, u64), Happening>,
    pub(crate) inbox: VecDeque<Event>,
    pub(crate) happened: u64,
    pub(crate) ledger: Ledger,
    pub(crate) workers: BTreeMap<WorkerId, SimWorker>,
    pub(crate) faults: Faults,
    pub(crate) killable: bool,
    /// Tasks may wait for others.
    parks: bool,
    pub(crate) open: bool,
    pub(crate) resources: Resources,
    pub(crate) depth: u32,
    pub(crate) latency_us: u64,
    pub(crate) next_call: u64,
    pub(crate) next_task: u64,
    pub(crate) next_worker: u32,
    requested: u32,
    trace: DefaultHasher,
}

impl GraphWorld {
    pub(crate) fn new(seed: u64, verbose: bool) -> GraphWorld {
        let mut rng = Rng::new(seed ^ 0x6772_6170_6800_0000);
        let faulty = rng.chance(70);
        let open = rng.chance(30);
        let durable = rng.chance(50);
        let stillborn = !open && rng.chance(5);
        let mut fault = |most| if faulty { rng.range(0, most) } else { 0 };
        let faults = Faults {
            death: fault(6),
            poison: fault(3),
            error: fault(10),
            failed_start: fault(40),
            stillborn: if stillborn { 100 } else { 0 },
            duplicate: fault(20),
            abort: fault(40),
            cancel: fault(60),
            drop: fault(60),
        };
        let resources = match rng.small(0, 2) {
            0 => Resources::NONE,
            gpus => Resources::new([("GPU", Amount::whole(gpus)), ("memory", Amount::whole(1000))]),
        };
        let config = Config {
            core_budget: rng.small(1, 4),
            max_start_failures: rng.small(1, 4),
            max_workers: if open { 0 } else { rng.small(1, 8) },
            start_resources: resources.clone(),
            open,
            durable,
            bandwidth_bytes_per_s: 1 << rng.small(20, 34),
            latency: Duration::from_micros(rng.range(0, 500)),
            ..Config::default()
        };
        let mut world = GraphWorld {
            machine: Scheduler::new(config),
            verbose,
            now_us: 0,
            queue: BTreeMap::new(),
            inbox: VecDeque::new(),
            happened: 0,
            ledger: Ledger { durable, ..Ledger::default() },
            workers: BTreeMap::new(),
            faults,
            killable: rng.chance(70),
            parks: rng.chance(50),
            open,
            resources,
            depth: rng.small(1, 4),
            latency_us: rng.range(1, 400),
            next_call: 0,
            next_task: 0,
            next_worker: 1 << 31,
            requested: 0,
            trace: DefaultHasher::new(),
            rng,
        };
        for _ in 0..world.rng.range(1, 4) {
            world.soon(20_000, Happening::Open);
        }
        for _ in 0..if open { world.rng.range(1, 6) } else { 0 } {
            world.soon(20_000, Happening::Joins);
        }
        for _ in 0..if open { 0 } else { world.rng.range(0, 2) } {
            let count = world.rng.small(0, 4);
            world.soon(20_000, Happening::Request(count));
            world.soon(60_000, Happening::Retire);
        }
        world
    }

    /// Runs until nothing more happens; a hash of all actions.
    pub(crate) fn play(mut self) -> u64 {
        while self.step() {
            assert!(self.happened < MOST_STEPS, "the world does not come to an end");
        }
        assert!(self.ledger.calls.is_empty(), "calls hang: {:?}", self.ledger.unresolved());
        assert!(self.machine.is_empty(), "the machine is not empty: {:?}", self.machine.stats());
        for (id, worker) in &self.workers {
            assert!(worker.store.is_empty(), "{id:?} keeps what nobody wants: {:?}", worker.store);
            assert!(worker.jobs.is_empty(), "{id:?} still has {:?}", worker.jobs);
            assert!(worker.parked.is_empty(), "{:?} wait in vain on {id:?}", worker.parked);
        }
        self.tell(Event::WorkersRequested { count: 0 });
        for worker in self.workers.keys().copied().collect::<Vec<_>>() {
            self.tell(Event::WorkerLost { worker });
        }
        self.drive();
        let stats = self.machine.stats();
        assert_eq!((stats.tasks, stats.known, stats.workers, stats.starting, stats.busy), (0, 0, 0, 0, 0));
        assert!(self.ledger.shell.is_empty(), "results are kept that nobody wants: {:?}", self.ledger.shell);
        self.trace.finish()
    }

    fn step(&mut self) -> bool {
        let next = self.queue.first_key_value().map(|(&(time, _), _)| time);
        let deadline = self.machine.next_deadline().map(|time| time.as_nanos().div_ceil(1000) as u64);
        match (next, deadline) {
            (None, None) => return false,
            (next, Some(deadline)) if next.is_none_or(|next| deadline < next) => {
                self.now_us = deadline.max(self.now_us);
                self.tell(Event::TimePassed);
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

    pub(crate) fn tell(&mut self, event: Event) {
        self.inbox.push_back(event);
    }

    pub(crate) fn drive(&mut self) {
        while let Some(event) = self.inbox.pop_front() {
            self.say(&event);
            let mut actions = Actions::default();
            let now = Duration::from_micros(self.now_us);
            self.ledger.knows_the_same(&self.machine);
            let unconcerned = self.unconcerned(&event);
            self.ledger.before(&event, &self.machine);
            self.ledger.submitted(&event);
            self.machine.handle(now, event, &mut actions);
            if let Err(what) = self.machine.check() {
                panic!("{what}");
            }
            let deadline = self.machine.next_deadline();
            assert!(deadline.is_none_or(|time| time > now), "a deadline was not kept");
            for (_, action) in actions.drain() {
                self.say(&action);
                if let Action::Kill { worker, reason: KillReason::Cancelled } = action {
                    assert!(!unconcerned.contains(&worker), "{worker:?} runs nothing that was cancelled");
                }
                format!("{action:?}").hash(&mut self.trace);
                self.carry_out(action);
            }
        }
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::StartWorker { worker } => {
                assert!(!self.open, "nobody starts workers here");
                let works = !self.rng.chance(self.faults.failed_start);
                self.soon(3000, Happening::Started(worker, works));
            }
            Action::Run { worker, task, attempt } => self.hand_out(worker, task, attempt),
            Action::Retract { worker, task, attempt } => self.send(worker, Order::Retract { task, attempt }),
            Action::Forget { worker, task } => self.send(worker, Order::Forget { task }),
            Action::Kill { worker, .. } => {
                assert!(self.killable, "{worker:?} cannot be killed");
                self.send(worker, Order::Die);
            }
            Action::Remainder { .. } => panic!("tasks of a graph are not cut"),
            Action::Resolve { call, task, resolution } => {
                self.ledger.resolved(call, task, resolution);
                self.after_resolution(call);
            }
            Action::Gone { task } => self.ledger.gone(task),
            Action::Lost { .. } | Action::Restored { .. } if self.ledger.durable => {
                panic!("durable results are not lost")
            }
            Action::Lost { call, task } => self.ledger.lost(call, task),
            Action::Restored { call, task, resolution } => {
                self.ledger.restored(call, task, resolution);
                self.after_resolution(call);
            }
        }
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::Open => self.open_call(),
            Happening::Submit(call) => self.submit(call),
            Happening::Release(call) => self.release(call),
            Happening::Cancel(call) => self.cancel(call),
            Happening::Abort(call) => self.close(call),
            Happening::Pause(call, paused) => self.tell(Event::CallPaused { call, paused }),
            Happening::Started(worker, true) => self.joins(worker),
            Happening::Started(worker, false) => self.tell(Event::WorkerLost { worker }),
            Happening::Joins => {
                let worker = WorkerId(self.next_worker);
                self.next_worker += 1;
                self.joins(worker);
            }
            Happening::Arrives(worker, order) => self.arrives(worker, order),
            Happening::Begins(worker, task, attempt) => self.begins(worker, task, attempt),
            Happening::Ends(worker, task, attempt) => self.ends(worker, task, attempt),
            Happening::EndsParked(worker, task, attempt) => self.ends_parked(worker, task, attempt),
            Happening::Dies(worker) => self.dies(worker),
            Happening::Reported(event) => self.tell(event),
            Happening::Drops(worker) => self.drops(worker),
            Happening::Request(count) => {
                self.requested = count;
                self.tell(Event::WorkersRequested { count });
            }
            Happening::Retire => self.retire(),
        }
    }

    fn joins(&mut self, worker: WorkerId) {
        let host = self.rng.chance(50).then(|| HostId(self.rng.range(0, 1)));
        let resources = self.resources.clone();
        let spec = WorkerSpec { depth: self.depth, only: None, killable: self.killable, resources, host };
        self.workers.insert(worker, SimWorker::new(spec.clone()));
        if self.rng.chance(self.faults.drop) {
            self.soon(20_000, Happening::Drops(worker));
        }
        if self.rng.chance(self.faults.death) {
            self.soon(20_000, Happening::Dies(worker));
        }
        if self.rng.chance(self.faults.stillborn) {
            self.soon(1, Happening::Dies(worker));
        }
        self.tell(Event::WorkerJoined { worker, spec });
    }
}
