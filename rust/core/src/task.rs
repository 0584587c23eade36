//! What a task of a graph asks for.

use std::cmp::Ordering;

use crate::id::{TaskId, WorkerId};
use crate::resources::Resources;

/// Which of two ready tasks goes first: that of the higher `user`, then of the higher `depth`, then of the lower
/// `generation`, then of the lower `order`. Of equals the one with the lower id. What compares as less goes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Priority {
    /// What the user asked for.
    pub user: i32,
    /// How many tasks stand above it, each of which has submitted the next one. So a recursion goes into its depth
    /// before it goes into its breadth, and few tasks wait at a time.
    pub depth: u32,
    /// Number of the submission: what was asked for first is done first.
    pub generation: u32,
    /// Place in the order that suits the graph.
    pub order: u32,
}

impl Ord for Priority {
    fn cmp(&self, other: &Self) -> Ordering {
        let user = other.user.cmp(&self.user);
        let depth = other.depth.cmp(&self.depth);
        user.then(depth).then(self.generation.cmp(&other.generation)).then(self.order.cmp(&other.order))
    }
}

impl PartialOrd for Priority {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A task whose result stays on the worker that made it, until nobody needs it any more.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TaskSpec {
    pub task: TaskId,
    /// Tasks of the same call whose results it takes, from this event or an earlier one.
    pub dependencies: Box<[TaskId]>,
    pub priority: Priority,
    /// How often it is run again after the user's code raised.
    pub retries: u32,
    /// What it holds of its worker while it is there. A task that asks for any is not prefetched.
    pub resources: Resources,
    /// Workers that may run it; `None`: any. A task that names some is not prefetched.
    pub workers: Option<Box<[WorkerId]>>,
    /// The submitter wants the result, until [`crate::Event::TasksReleased`]. Otherwise the task is only
    /// run, and its result only kept, for others that depend on it. A task that is neither wanted nor needed
    /// is forgotten before the next event, and cannot be named there.
    pub wanted: bool,
}
