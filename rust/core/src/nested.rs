//! What is said about tasks that other tasks submit, between the worker that runs those and the scheduler's process.
//!
//! The worker numbers what it submits itself, so that it need not wait for an answer: see [`Numbers`].

use serde::{Deserialize, Serialize};

use crate::ending::Unreported;
use crate::id::{BlobId, TaskId, WorkerId};
use crate::message::{Body, Extent};
use crate::resources::Resources;
use crate::task::{Priority, TaskSpec};

/// Numbers for tasks, functions and segments that one worker or client hands out, and no other, nor the scheduler's process.
#[derive(Debug)]
pub struct Numbers {
    next: u64,
}

impl Numbers {
    /// Numbers with the highest bit belong to workers; each has 2^31 of them.
    const WORKERS: u64 = 1 << 63;
    const EACH_WORKER_BITS: u32 = 31;
    /// Those with the next one belong to clients; each has 2^40.
    const CLIENTS: u64 = 1 << 62;
    const EACH_CLIENT_BITS: u32 = 40;

    pub fn of(worker: WorkerId) -> Self {
        Self { next: Self::WORKERS | u64::from(worker.0) << Self::EACH_WORKER_BITS }
    }

    /// Of a client of a cluster, by its own number.
    pub fn of_client(number: u32) -> Self {
        Self { next: Self::CLIENTS | ((u64::from(number) << Self::EACH_CLIENT_BITS) & (Self::CLIENTS - 1)) }
    }

    /// The number was handed out by this client.
    pub fn is_of_client(number: u64, client: u32) -> bool {
        number >> Self::EACH_CLIENT_BITS == Self::of_client(client).next >> Self::EACH_CLIENT_BITS
    }

    /// The first of so many.
    pub fn take(&mut self, count: u64) -> u64 {
        let first = self.next;
        self.next += count;
        first
    }
}

/// A task that a worker submits. The pickle of its arguments is the body.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Submitted {
    pub task: TaskId,
    /// Of its function, for people.
    pub name: String,
    /// One that the worker has sent.
    pub function: BlobId,
    pub body: Body,
    pub buffers: Vec<Extent>,
    /// Tasks whose results it takes, and values.
    pub inputs: Vec<TaskId>,
    /// The worker wants to be told of its end.
    pub wanted: bool,
    pub priority: i32,
    pub order: u32,
    pub retries: u32,
    pub resources: Vec<(String, f64)>,
    pub workers: Option<Vec<u32>>,
}

impl Submitted {
    /// `content`: where the pickle of its arguments is, and the buffers beside that.
    pub fn new(
        spec: &TaskSpec,
        name: &str,
        function: BlobId,
        content: (Body, Vec<Extent>),
        inputs: Vec<TaskId>,
    ) -> Self {
        let (body, buffers) = content;
        Self {
            task: spec.task,
            name: name.into(),
            function,
            body,
            buffers,
            inputs,
            wanted: spec.wanted,
            priority: spec.priority.user,
            order: spec.priority.order,
            retries: spec.retries,
            resources: spec.resources.to_f64(),
            workers: spec.workers.as_ref().map(|workers| workers.iter().map(|worker| worker.0).collect()),
        }
    }

    /// For the scheduler. `depth`: how many tasks stand above it; `is_value`: of its inputs, those that no task makes.
    pub fn spec(&self, depth: u32, generation: u32, is_value: impl Fn(&TaskId) -> bool) -> TaskSpec {
        TaskSpec {
            task: self.task,
            dependencies: self.inputs.iter().copied().filter(|input| !is_value(input)).collect(),
            priority: Priority { user: self.priority, depth, generation, order: self.order },
            retries: self.retries,
            resources: Resources::from_f64(&self.resources),
            workers: self.workers.as_ref().map(|workers| workers.iter().copied().map(WorkerId).collect()),
            wanted: self.wanted,
        }
    }
}

/// From a task, by way of its worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromTask {
    /// A function that tasks will name. `same_as`: the blob that it came in, if it came in one.
    Function {
        function: BlobId,
        same_as: Option<BlobId>,
        body: Body,
        buffers: Vec<Extent>,
    },
    ForgetFunction {
        function: BlobId,
    },
    /// A value that tasks will take.
    Value {
        task: TaskId,
        name: String,
        body: Body,
        buffers: Vec<Extent>,
    },
    /// One of the tasks of a submission.
    Task(Submitted),
    /// All of them have been sent. `by`: the task that submits them, if it is one.
    Submit {
        by: Option<TaskId>,
    },
    Release {
        tasks: Vec<TaskId>,
    },
    Cancel {
        tasks: Vec<TaskId>,
        force: bool,
    },
}

impl FromTask {
    /// Where the pickle is that it brings, if it brings one, and the buffers beside that.
    pub fn content_mut(&mut self) -> Option<(&mut Body, &mut Vec<Extent>)> {
        match self {
            Self::Function { body, buffers, .. }
            | Self::Value { body, buffers, .. }
            | Self::Task(Submitted { body, buffers, .. }) => Some((body, buffers)),
            Self::ForgetFunction { .. } | Self::Submit { .. } | Self::Release { .. } | Self::Cancel { .. } => None,
        }
    }
}

/// How a task ended that a worker has submitted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Ended {
    /// The body and the buffers are its result.
    Finished,
    /// `task`: the one that failed by itself.
    Failed { task: TaskId, name: String, fault: Fault },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Fault {
    /// The body is the exception.
    Raised,
    Unreported(Unreported),
    Cancelled,
    Unrunnable,
    Broken,
    Closed,
}
