//! Graphs for the scheduler tests.

use std::collections::BTreeSet;

use super::*;
use rustdask_core::{Amount, Priority, Resources, TaskSpec};

/// A wanted task that takes the results of others. Tasks go in the order of their ids.
pub fn task(id: u64, dependencies: &[u64]) -> TaskSpec {
    TaskSpec {
        task: TaskId(id),
        dependencies: dependencies.iter().map(|&on| TaskId(on)).collect(),
        wanted: true,
        ..TaskSpec::default()
    }
}

/// One that is there only for others.
pub fn inner(id: u64, dependencies: &[u64]) -> TaskSpec {
    TaskSpec { wanted: false, ..task(id, dependencies) }
}

pub fn user_priority(user: i32, spec: TaskSpec) -> TaskSpec {
    TaskSpec { priority: Priority { user, ..spec.priority }, ..spec }
}

pub fn gpus(count: f64) -> Resources {
    Resources::new([("GPU", Amount::from_f64(count).unwrap())])
}

impl World {
    pub fn graph<const N: usize>(&mut self, call: u64, tasks: [TaskSpec; N]) {
        self.handle(Event::GraphSubmitted { call: CallId(call), tasks: tasks.into() });
    }

    pub fn release<const N: usize>(&mut self, call: u64, tasks: [u64; N]) {
        let tasks = tasks.map(TaskId).into();
        self.handle(Event::TasksReleased { call: CallId(call), tasks });
    }

    pub fn cancel<const N: usize>(&mut self, call: u64, tasks: [u64; N]) {
        let tasks = tasks.map(TaskId).into();
        self.handle(Event::TasksCancelled { call: CallId(call), tasks, force: false });
    }

    pub fn cancel_by_force<const N: usize>(&mut self, call: u64, tasks: [u64; N]) {
        let tasks = tasks.map(TaskId).into();
        self.handle(Event::TasksCancelled { call: CallId(call), tasks, force: true });
    }

    /// The worker has run the task, and keeps a result of this size.
    pub fn made(&mut self, worker: u32, task: u64, size_bytes: u64) {
        self.reported(worker, task, 0, OK, size_bytes);
    }

    pub fn made_again(&mut self, worker: u32, task: u64, attempt: u32) {
        self.reported(worker, task, attempt, OK, 1);
    }

    pub fn raised(&mut self, worker: u32, task: u64, attempt: u32) {
        self.reported(worker, task, attempt, Outcome::Err, 0);
    }

    fn reported(&mut self, worker: u32, task: u64, attempt: u32, outcome: Outcome, size_bytes: u64) {
        let (worker, task, attempt) = (WorkerId(worker), TaskId(task), Attempt(attempt));
        self.handle(Event::TaskFinished { worker, task, attempt, outcome, size_bytes });
    }

    pub fn copied(&mut self, worker: u32, task: u64) {
        self.handle(Event::ReplicaAdded { worker: WorkerId(worker), task: TaskId(task) });
    }

    pub fn copy_lost(&mut self, worker: u32, task: u64) {
        self.handle(Event::ReplicaLost { worker: WorkerId(worker), task: TaskId(task) });
    }

    pub fn holders(&self, task: u64) -> BTreeSet<u32> {
        self.machine.holders(TaskId(task)).map(|worker| worker.0).collect()
    }
}

pub fn forget(worker: u32, task: u64) -> Action {
    Action::Forget { worker: WorkerId(worker), task: TaskId(task) }
}

pub fn lost(call: u64, task: u64) -> Action {
    Action::Lost { call: CallId(call), task: TaskId(task) }
}

pub fn restored(call: u64, task: u64, worker: u32) -> Action {
    let resolution = Resolution::Finished { worker: WorkerId(worker), outcome: OK };
    Action::Restored { call: CallId(call), task: TaskId(task), resolution }
}

pub fn raises(call: u64, task: u64, worker: u32) -> Action {
    resolve(call, task, Resolution::Finished { worker: WorkerId(worker), outcome: Outcome::Err })
}

pub fn failed_after(call: u64, task: u64, cause: u64) -> Action {
    resolve(call, task, Resolution::DependencyFailed { cause: TaskId(cause) })
}

pub fn cancelled(call: u64, task: u64) -> Action {
    resolve(call, task, Resolution::Cancelled)
}
