//! A simulated worker: runs what it is handed in order, one item at a time.

use std::collections::VecDeque;

use rustdask_core::{Attempt, TaskId, WorkerSpec};

#[derive(Clone, Copy, Debug)]
pub(crate) enum Order {
    Run { task: TaskId, attempt: Attempt, items: u32 },
    Retract { task: TaskId, attempt: Attempt },
    Die,
}

#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) task: TaskId,
    pub(crate) attempt: Attempt,
    pub(crate) items: u32,
    pub(crate) done: u32,
}

#[derive(Debug)]
pub(crate) struct SimWorker {
    pub(crate) spec: WorkerSpec,
    /// The first one is running.
    pub(crate) jobs: VecDeque<Job>,
    /// When the last order sent to it arrives, and its last report: neither line reorders.
    pub(crate) inbox_until: u64,
    pub(crate) outbox_until: u64,
}

impl SimWorker {
    pub(crate) fn new(spec: WorkerSpec) -> SimWorker {
        SimWorker { spec, jobs: VecDeque::new(), inbox_until: 0, outbox_until: 0 }
    }

    /// Gives back what it has not begun of a task: the items that it keeps. `None`: it has finished the
    /// task, and said so.
    pub(crate) fn give_back(&mut self, task: TaskId, attempt: Attempt) -> Option<u32> {
        let at = self.jobs.iter().position(|job| (job.task, job.attempt) == (task, attempt))?;
        if at > 0 {
            self.jobs.remove(at);
            return Some(0);
        }
        let job = &mut self.jobs[0];
        job.items = job.items.min(job.done + 1);
        Some(job.items)
    }
}
