//! What the clients do: open calls, submit graphs, release, cancel, close.

use std::time::Duration;

use rustdask_core::{Amount, CallId, CallSpec, Event, Priority, Resources, TaskId, TaskSpec, WorkerId};

use super::ledger::{SimCall, SimTask};
use super::{GraphWorld, Happening};

impl GraphWorld {
    pub(crate) fn open_call(&mut self) {
        let call = CallId(self.next_call);
        self.next_call += 1;
        let cap = if self.rng.chance(70) { u32::MAX } else { self.rng.small(1, 4) };
        let spec = CallSpec {
            cap,
            crash_retries: self.rng.small(0, 2),
            item_timeout: self.rng.chance(20).then(|| Duration::from_micros(self.rng.range(200, 9000))),
            divisible: true,
            ..CallSpec::default()
        };
        let planned = self.rng.small(0, 4);
        self.ledger.calls.insert(call, SimCall { spec: spec.clone(), planned, tasks: Vec::new() });
        self.tell(Event::CallOpened { call, spec });
        self.soon(500, Happening::Submit(call));
        for _ in 0..self.rng.range(0, 5) {
            self.soon(20_000, Happening::Release(call));
        }
        if self.rng.chance(self.faults.cancel) {
            self.soon(20_000, Happening::Cancel(call));
        }
        if self.rng.chance(self.faults.abort) {
            self.soon(30_000, Happening::Abort(call));
        }
        if self.rng.chance(20) {
            let time = self.now_us + self.rng.range(0, 5000);
            self.at(time, Happening::Pause(call, true));
            self.at(time + 3000, Happening::Pause(call, false));
        }
    }

    pub(crate) fn submit(&mut self, call: CallId) {
        let Some(sim) = self.ledger.calls.get_mut(&call) else { return };
        if sim.planned > 0 {
            sim.planned -= 1;
            let first = self.next_task;
            let count = self.rng.range(0, 25);
            let mut tasks: Vec<TaskSpec> = (0..count).map(|order| self.task(call, first, order as u32)).collect();
            if self.rng.chance(20) {
                tasks.reverse();
            }
            self.tell(Event::GraphSubmitted { call, tasks });
            let plain = if self.rng.chance(20) { self.rng.small(1, 10) } else { 0 };
            for _ in 0..plain {
                self.submit_plain(call);
            }
            self.soon(5000, Happening::Submit(call));
        }
        self.after_resolution(call);
    }

    fn submit_plain(&mut self, call: CallId) {
        let spec = self.task(call, u64::MAX, 0);
        let task = self.ledger.tasks.get_mut(&spec.task).expect("was made");
        (task.plain, task.wanted, task.retries) = (true, true, 0);
        (task.dependencies, task.workers, task.resources) = (Vec::new(), None, Resources::NONE);
        self.tell(Event::TaskSubmitted { call, task: spec.task, items: 1, urgent: self.next_task % 5 == 0 });
    }

    fn task(&mut self, call: CallId, first: u64, order: u32) -> TaskSpec {
        let id = TaskId(self.next_task);
        self.next_task += 1;
        let shape = self.rng.small(0, 3);
        let mut dependencies = Vec::new();
        for _ in 0..if shape == 0 { 0 } else { self.rng.small(1, shape) } {
            let back = if shape == 1 { 1 } else { self.rng.range(1, 8) };
            // Of earlier submissions, only what is kept for the client is there.
            let on = TaskId(id.0.saturating_sub(back));
            let known = self.ledger.tasks.get(&on);
            if known.is_some_and(|task| task.call == call && !task.plain && (on.0 >= first || task.wanted)) {
                dependencies.push(on);
            }
        }
        let resources = self.needs();
        let workers = self.rng.chance(4).then(|| {
            let low = if self.open { 1 << 31 } else { 0 };
            (0..self.rng.small(0, 3)).map(|_| WorkerId(low + self.rng.small(0, 5))).collect::<Box<[WorkerId]>>()
        });
        // Where nobody ever gives up hope, the clients must not ask for what never comes.
        let workers = workers.filter(|_| !self.open);
        let task = SimTask {
            call,
            plain: false,
            dependencies: dependencies.clone(),
            resources: resources.clone(),
            workers: workers.clone(),
            retries: self.rng.small(0, 2),
            errors: if self.rng.chance(self.faults.error) { self.rng.small(1, 3) } else { 0 },
            poison: self.rng.chance(self.faults.poison) && self.killable,
            run_us: if self.rng.chance(10) { self.rng.range(1, 8000) } else { self.rng.range(1, 300) },
            size_bytes: 1 << self.rng.small(0, 24),
            wanted: self.rng.chance(40),
            cancelled: false,
            told: None,
            lost: false,
            submitted: false,
            gone: false,
            raised: Default::default(),
            ran: 0,
        };
        let priority = Priority { user: self.rng.small(0, 1) as i32, order, ..Priority::default() };
        let (retries, wanted) = (task.retries, task.wanted);
        self.ledger.tasks.insert(id, task);
        self.ledger.calls.get_mut(&call).expect("is open").tasks.push(id);
        TaskSpec { task: id, dependencies: dependencies.into(), priority, retries, resources, workers, wanted }
    }

    fn needs(&mut self) -> Resources {
        let gpus = self.resources.amount("GPU");
        if self.rng.chance(75) || (self.open && gpus.is_zero()) {
            return Resources::NONE;
        }
        let most = if self.open { gpus.units() as u32 } else { 3 };
        let gpus = if self.rng.chance(50) { 0.5 } else { f64::from(self.rng.small(1, most)) };
        let memory = if self.open { 0 } else { self.rng.small(0, 1) };
        let amount = Amount::from_f64(gpus).expect("is small");
        Resources::new([("GPU", amount), ("memory", Amount::whole(memory * 400))])
    }

    fn some_of(&mut self, call: CallId) -> Vec<TaskId> {
        let all = self.ledger.calls.get(&call).map(|sim| sim.tasks.clone()).unwrap_or_default();
        let share = self.rng.range(1, 60);
        let graph = all.into_iter().filter(|id| !self.ledger.tasks[id].plain).collect::<Vec<_>>();
        graph.into_iter().filter(|_| self.rng.chance(share)).collect()
    }

    pub(crate) fn release(&mut self, call: CallId) {
        let tasks = self.some_of(call);
        for id in &tasks {
            let task = self.ledger.tasks.get_mut(id).expect("goes with its call");
            task.wanted = false;
            task.lost = false;
        }
        self.tell(Event::TasksReleased { call, tasks });
        self.after_resolution(call);
    }

    pub(crate) fn cancel(&mut self, call: CallId) {
        let tasks = self.some_of(call);
        for id in &tasks {
            self.ledger.tasks.get_mut(id).expect("goes with its call").cancelled = true;
        }
        let force = self.rng.chance(50);
        self.tell(Event::TasksCancelled { call, tasks, force });
    }

    pub(crate) fn close(&mut self, call: CallId) {
        if self.ledger.calls.contains_key(&call) {
            self.tell(Event::CallClosed { call });
        }
    }

    /// A client that knows all, and does not want to see more, goes; or it releases all that it has.
    pub(crate) fn after_resolution(&mut self, call: CallId) {
        if self.ledger.is_done(call) {
            if self.rng.chance(50) {
                self.soon(3000, Happening::Release(call));
            }
            self.soon(8000, Happening::Abort(call));
        }
    }
}
