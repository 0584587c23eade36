//! What the workers do: come, go, die, run items, report.

use rustdask_core::{Attempt, CallId, Event, Outcome, TaskId, WorkerId, WorkerSpec};

use crate::calls::{is_mortal, random_call};
use crate::worker::{Job, Order, SimWorker};
use crate::world::{Happening, World};

impl World {
    pub(crate) fn helper_comes(&mut self, call: CallId) {
        if self.ledger.calls.contains_key(&call) {
            let worker = WorkerId(self.next_helper);
            self.next_helper += 1;
            self.joins(worker, WorkerSpec { depth: 1, only: Some(call), killable: false, ..WorkerSpec::default() });
            if self.rng.chance(20) {
                self.soon(10_000, Happening::HelperGoes(worker));
            }
        }
    }

    pub(crate) fn helper_goes(&mut self, worker: WorkerId) {
        if let Some(sim) = self.workers.get(&worker) {
            // One that waits in a nested call does not walk away.
            let (busy, only) = (!sim.jobs.is_empty(), sim.spec.only);
            if busy && (self.threads || only.is_none_or(|call| !self.ledger.calls.contains_key(&call))) {
                self.soon(500, Happening::HelperGoes(worker));
                return;
            }
            self.workers.remove(&worker);
            self.lose(worker);
        }
    }

    pub(crate) fn joins(&mut self, worker: WorkerId, spec: WorkerSpec) {
        self.workers.insert(worker, SimWorker::new(spec.clone()));
        self.tell(Event::WorkerJoined { worker, spec }, None);
    }

    pub(crate) fn dies(&mut self, worker: WorkerId) {
        if self.workers.remove(&worker).is_some() {
            // What it has reported may arrive before or after the news of its death.
            let event = Event::WorkerLost { worker };
            self.soon(self.latency_us, Happening::Reported(event, 0));
        }
    }

    pub(crate) fn lose(&mut self, worker: WorkerId) {
        self.tell(Event::WorkerLost { worker }, None);
    }

    pub(crate) fn retire(&mut self) {
        let idle: Vec<WorkerId> = self.machine.idle_workers().collect();
        for worker in idle {
            if self.machine.holds(worker) == Some(0) && self.workers.remove(&worker).is_some() {
                self.lose(worker);
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

    pub(crate) fn report(&mut self, worker: WorkerId, event: Event, ran: u32) {
        let delay = self.rng.range(1, self.latency_us);
        if let Some(sim) = self.workers.get_mut(&worker) {
            sim.outbox_until = sim.outbox_until.max(self.now_us + delay);
            let time = sim.outbox_until;
            if self.rng.chance(self.faults.duplicate) {
                let again = time + self.rng.range(0, 3000);
                self.at(again, Happening::Reported(event.clone(), ran));
            }
            self.at(time, Happening::Reported(event, ran));
        }
    }

    pub(crate) fn arrives(&mut self, worker: WorkerId, order: Order) {
        let Some(sim) = self.workers.get_mut(&worker) else {
            return;
        };
        match order {
            Order::Run { task, attempt, items } => {
                sim.jobs.push_back(Job { task, attempt, items, done: 0 });
                let first = sim.jobs.len() == 1;
                assert!(sim.jobs.len() <= sim.spec.depth as usize, "{worker:?} is handed too much");
                if first {
                    self.begin(worker);
                }
            }
            Order::Retract { task, attempt } => {
                if let Some(kept) = sim.give_back(task, attempt) {
                    self.report(worker, Event::TaskReturned { worker, task, attempt, kept }, 0);
                }
            }
            Order::Die => self.dies(worker),
        }
    }

    /// Begins the next item of the first job.
    pub(crate) fn begin(&mut self, worker: WorkerId) {
        let Some(job) = self.workers.get(&worker).and_then(|sim| sim.jobs.front()) else {
            return;
        };
        let (task, attempt, item) = (job.task, job.attempt, job.done);
        // A task of a closed call is run like any other.
        let sim = self.ledger.tasks.get(&task);
        let (item_us, poison, nests) = sim.map_or((50, false, false), |t| (t.item_us, t.kills_at(item), t.nests));
        let mortal = !self.threads && is_mortal(worker);
        if mortal && (poison || (item == 0 && self.rng.chance(self.faults.death))) {
            self.soon(item_us, Happening::Dies(worker));
        } else if nests && item == 0 {
            self.nest(worker, task, attempt);
        } else {
            let time = self.now_us + item_us;
            self.at(time, Happening::ItemDone(worker, task, attempt, item));
        }
    }

    pub(crate) fn nest(&mut self, worker: WorkerId, task: TaskId, attempt: Attempt) {
        let outer = self.ledger.tasks.get(&task).and_then(|task| self.ledger.calls.get(&task.call));
        let nesting = outer.map_or(0, |call| call.nesting) + 1;
        let mut call = random_call(&mut self.rng, nesting, false);
        call.parent = Some((worker, task, attempt));
        self.open(call);
    }

    pub(crate) fn item_done(&mut self, worker: WorkerId, task: TaskId, attempt: Attempt, item: u32) {
        let Some(sim) = self.workers.get_mut(&worker) else {
            return;
        };
        let Some(job) = sim.jobs.front_mut() else {
            return;
        };
        if (job.task, job.attempt, job.done) != (task, attempt, item) {
            return;
        }
        job.done += 1;
        if job.done >= job.items {
            let ran = job.items;
            sim.jobs.pop_front();
            let outcome = if self.rng.chance(90) { Outcome::Ok } else { Outcome::Err };
            self.report(worker, Event::TaskFinished { worker, task, attempt, outcome, size_bytes: 0 }, ran);
        }
        self.begin(worker);
    }
}
