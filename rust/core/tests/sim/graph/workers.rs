//! What the workers do: run tasks in order, keep results, copy those of others, report, die.

use std::collections::{BTreeSet, VecDeque};

use rustdask_core::{Attempt, Event, Outcome, TaskId, WorkerId, WorkerSpec};

use super::{GraphWorld, Happening};

#[derive(Clone, Debug)]
pub(crate) enum Order {
    /// With those who had each input when this was sent.
    Run {
        task: TaskId,
        attempt: Attempt,
        inputs: Vec<(TaskId, Vec<WorkerId>)>,
        keeps: bool,
    },
    Retract {
        task: TaskId,
        attempt: Attempt,
    },
    Forget {
        task: TaskId,
    },
    Die,
}

#[derive(Debug)]
pub(crate) struct Job {
    task: TaskId,
    attempt: Attempt,
    inputs: Vec<(TaskId, Vec<WorkerId>)>,
    /// The result stays here.
    keeps: bool,
}

#[derive(Debug)]
pub(crate) struct SimWorker {
    pub(crate) spec: WorkerSpec,
    /// The first one is running.
    pub(crate) jobs: VecDeque<Job>,
    /// They wait for others.
    pub(crate) parked: Vec<(TaskId, Attempt)>,
    pub(crate) store: BTreeSet<TaskId>,
    inbox_until: u64,
    outbox_until: u64,
}

impl SimWorker {
    pub(crate) fn new(spec: WorkerSpec) -> SimWorker {
        SimWorker {
            spec,
            jobs: VecDeque::new(),
            parked: Vec::new(),
            store: BTreeSet::new(),
            inbox_until: 0,
            outbox_until: 0,
        }
    }
}

impl GraphWorld {
    pub(crate) fn hand_out(&mut self, worker: WorkerId, task: TaskId, attempt: Attempt) {
        let sim = &self.ledger.tasks[&task];
        let mut known: Vec<TaskId> = self.machine.dependencies(task).collect();
        let mut wanted = sim.dependencies.clone();
        known.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(known, wanted, "{task:?} takes other results");
        let allowed = sim.workers.as_ref().is_none_or(|workers| workers.contains(&worker));
        assert!(allowed, "{task:?} may not run on {worker:?}");
        let (call, keeps) = (sim.call, !sim.plain);
        let inputs: Vec<_> = wanted.iter().map(|&on| (on, self.machine.holders(on).collect::<Vec<_>>())).collect();
        for (on, holders) in &inputs {
            let there = !holders.is_empty() || (self.ledger.durable && self.ledger.shell.contains(on));
            assert!(there, "{task:?} is run before {on:?}");
        }
        let granted = self.machine.granted(task);
        for (name, amount) in sim.resources.iter() {
            let grant = granted.iter().find(|grant| grant.name.as_ref() == name);
            assert!(grant.is_some_and(|grant| grant.amount == amount), "{task:?} is granted {granted:?}");
        }
        let Some(spec) = self.workers.get(&worker).map(|worker| worker.spec.clone()) else {
            // It has died, and the machine does not know.
            self.ledger.hold((worker, task, attempt), format!("{worker:?}"), &Default::default());
            return;
        };
        let pool = spec.host.map_or(format!("{worker:?}"), |host| format!("{host:?}"));
        self.ledger.hold((worker, task, attempt), pool, &spec.resources);
        let engaged: BTreeSet<WorkerId> = self.engaged(call);
        assert!(engaged.len() <= self.ledger.calls[&call].spec.cap as usize, "{call:?} has {engaged:?}");
        self.send(worker, Order::Run { task, attempt, inputs, keeps });
    }

    /// Workers that hold tasks of the call that it still waits for.
    fn engaged(&self, call: rustdask_core::CallId) -> BTreeSet<WorkerId> {
        let of_call = |task: &TaskId| self.ledger.tasks.get(task).is_some_and(|task| task.call == call);
        let known = |task: &TaskId| self.machine.is_assigned(*task) && !self.machine.is_parked(*task);
        let current = self.ledger.held.keys().filter(|(_, task, _)| of_call(task) && known(task));
        current.map(|(worker, ..)| *worker).collect()
    }

    /// Workers with tasks of other calls only, where a call is to be closed. What is parked does not count.
    pub(crate) fn unconcerned(&self, event: &Event) -> BTreeSet<WorkerId> {
        let Event::CallClosed { call: closed } = *event else { return BTreeSet::new() };
        let of_it = |task: &TaskId| self.ledger.tasks.get(task).is_some_and(|task| task.plain && task.call == closed);
        let plain = self.ledger.held.keys().filter(|(_, task, _)| of_it(task)).map(|(worker, ..)| *worker);
        let concerned: BTreeSet<WorkerId> = self.engaged(closed).into_iter().chain(plain).collect();
        let others = self.ledger.calls.keys().filter(|call| **call != closed).flat_map(|call| self.engaged(*call));
        others.filter(|worker| !concerned.contains(worker)).collect()
    }

    pub(crate) fn retire(&mut self) {
        let idle: Vec<WorkerId> = self.machine.idle_workers().collect();
        let left = self.machine.stats().workers - idle.len();
        assert!(idle.is_empty() || left >= self.requested as usize, "{left} workers are left of {}", self.requested);
        for worker in idle {
            if self.workers.remove(&worker).is_some() {
                self.tell(Event::WorkerLost { worker });
            }
        }
    }

    pub(crate) fn send(&mut self, worker: WorkerId, order: Order) {
        let delay = self.rng.range(1, self.latency_us);
        if let Some(sim) = self.workers.get_mut(&worker) {
            sim.inbox_until = sim.inbox_until.max(self.now_us + delay);
            let time = sim.inbox_until;
            self.at(time, Happening::Arrives(worker, order));
        }
    }

    fn report(&mut self, worker: WorkerId, event: Event) {
        let delay = self.rng.range(1, self.latency_us);
        if let Some(sim) = self.workers.get_mut(&worker) {
            sim.outbox_until = sim.outbox_until.max(self.now_us + delay);
            let time = sim.outbox_until;
            if self.rng.chance(self.faults.duplicate) {
                let again = time + self.rng.range(0, 3000);
                self.at(again, Happening::Reported(event.clone()));
            }
            self.at(time, Happening::Reported(event));
        }
    }

    pub(crate) fn arrives(&mut self, id: WorkerId, order: Order) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        match order {
            Order::Run { task, attempt, inputs, keeps } => {
                worker.jobs.push_back(Job { task, attempt, inputs, keeps });
                assert!(worker.jobs.len() <= worker.spec.depth as usize, "{id:?} is handed too much");
                if worker.jobs.len() == 1 {
                    self.soon(0, Happening::Begins(id, task, attempt));
                }
            }
            Order::Retract { task, attempt } => {
                let at = worker.jobs.iter().position(|job| (job.task, job.attempt) == (task, attempt));
                if let Some(at) = at {
                    let kept = u32::from(at == 0);
                    if at > 0 {
                        worker.jobs.remove(at);
                    }
                    self.report(id, Event::TaskReturned { worker: id, task, attempt, kept });
                }
            }
            Order::Forget { task } => {
                worker.store.remove(&task);
            }
            Order::Die => self.dies(id),
        }
    }

    /// Gets what the task takes, and runs it; or gives it back, where somebody does not have what he should.
    pub(crate) fn begins(&mut self, id: WorkerId, task: TaskId, attempt: Attempt) {
        let Some(worker) = self.workers.get(&id) else { return };
        let Some(job) = worker.jobs.front().filter(|job| (job.task, job.attempt) == (task, attempt)) else { return };
        let missing: Vec<_> = job.inputs.iter().filter(|(on, _)| !worker.store.contains(on)).cloned().collect();
        let mut complete = true;
        for (on, holders) in missing {
            let has = |holder: &WorkerId| self.workers.get(holder).is_some_and(|other| other.store.contains(&on));
            // Where results are durable, the shell sends along what no worker has.
            if self.ledger.durable || holders.iter().any(has) {
                self.workers.get_mut(&id).expect("is alive").store.insert(on);
                self.report(id, Event::ReplicaAdded { worker: id, task: on });
            } else {
                complete = false;
                for worker in holders {
                    self.report(id, Event::ReplicaLost { worker, task: on });
                }
            }
        }
        if !complete {
            self.next_job(id);
            self.report(id, Event::TaskReturned { worker: id, task, attempt, kept: 0 });
            return;
        }
        let sim = self.ledger.tasks.get(&task);
        let (run_us, poison) = sim.map_or((50, false), |task| (task.run_us, task.poison));
        let dies = self.rng.chance(self.faults.death) || poison;
        if !dies && self.parks && sim.is_some_and(|task| !task.plain) && self.rng.chance(10) {
            return self.parks(id, task, attempt, run_us);
        }
        let what = if dies { Happening::Dies(id) } else { Happening::Ends(id, task, attempt) };
        let time = self.now_us + run_us;
        self.at(time, what);
    }

    /// The task waits for something. The worker goes on with the next one meanwhile.
    fn parks(&mut self, id: WorkerId, task: TaskId, attempt: Attempt, run_us: u64) {
        self.workers.get_mut(&id).expect("is alive").parked.push((task, attempt));
        self.report(id, Event::TaskParked { worker: id, task, attempt });
        self.next_job(id);
        let waits_us = self.rng.range(0, 5 * run_us.max(1));
        let what = match self.rng.chance(self.faults.death) {
            true => Happening::Dies(id),
            false => Happening::EndsParked(id, task, attempt),
        };
        self.at(self.now_us + run_us + waits_us, what);
    }

    pub(crate) fn ends_parked(&mut self, id: WorkerId, task: TaskId, attempt: Attempt) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if self.killable && !self.ledger.tasks.contains_key(&task) {
            // Its call is closed: what it waits for will not come.
            return;
        }
        worker.parked.retain(|parked| *parked != (task, attempt));
        self.report(id, Event::TaskResumed { worker: id, task, attempt });
        let (outcome, size_bytes) = self.run(task);
        if outcome == Outcome::Ok {
            self.workers.get_mut(&id).expect("is alive").store.insert(task);
        }
        self.report(id, Event::TaskFinished { worker: id, task, attempt, outcome, size_bytes });
    }

    /// How the task ends this time.
    fn run(&mut self, task: TaskId) -> (Outcome, u64) {
        let Some(sim) = self.ledger.tasks.get_mut(&task) else { return (Outcome::Ok, 1) };
        sim.ran += 1;
        if sim.errors > 0 {
            sim.errors -= 1;
            return (Outcome::Err, sim.size_bytes);
        }
        (Outcome::Ok, sim.size_bytes)
    }

    pub(crate) fn ends(&mut self, id: WorkerId, task: TaskId, attempt: Attempt) {
        if !self.workers.contains_key(&id) {
            return;
        }
        let (outcome, size_bytes) = self.run(task);
        let worker = self.workers.get_mut(&id).expect("is alive");
        if outcome == Outcome::Ok && worker.jobs.front().is_some_and(|job| job.keeps) {
            worker.store.insert(task);
        }
        self.next_job(id);
        self.report(id, Event::TaskFinished { worker: id, task, attempt, outcome, size_bytes });
    }

    fn next_job(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.jobs.pop_front();
        let next = worker.jobs.front().map(|job| Happening::Begins(id, job.task, job.attempt));
        if let Some(next) = next {
            self.soon(0, next);
        }
    }

    pub(crate) fn drops(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if let Some(task) = worker.store.pop_first() {
            self.report(id, Event::ReplicaLost { worker: id, task });
        }
    }

    pub(crate) fn dies(&mut self, worker: WorkerId) {
        if self.workers.remove(&worker).is_some() {
            // What it has reported may arrive before or after the news of its death.
            self.soon(self.latency_us, Happening::Reported(Event::WorkerLost { worker }));
            if self.open {
                self.soon(3000, Happening::Joins);
            }
        }
    }
}
