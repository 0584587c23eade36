//! A task that others may depend on: what is known of it, and what state it is in.

use std::num::NonZeroU32;

use crate::id::{Attempt, CallId, TaskId, WorkerId};
use crate::task::Priority;

use super::classes::ClassIx;
use super::list::List;

/// Place of a task in the table. Used again after the task is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct NodeIx(pub(super) NonZeroU32);

/// One end of a dependency. `back` is the place of the other end in the other task's list.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Link {
    pub(super) node: NodeIx,
    pub(super) back: u32,
}

/// A worker that has the result; `at` is the result's place in the worker's list.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Holder {
    pub(super) worker: WorkerId,
    pub(super) at: u32,
}

#[derive(Debug, Default, PartialEq)]
pub(super) enum State {
    /// An unused place of the table.
    #[default]
    Gone,
    /// Nobody needs it now.
    Released,
    /// For so many results of others. With none missing, it becomes ready before the event is over.
    Waiting { missing: u32 },
    /// In a queue of its call: that of tasks for `home`, or another.
    Ready { home: Option<WorkerId> },
    /// On a worker, under this number.
    Assigned { worker: WorkerId, attempt: Attempt },
    /// At least one worker has its result, or the shell. `by` has made it.
    Done { holders: List<Holder>, size_bytes: u64, by: WorkerId },
    /// There will be no result, since `cause` failed or was cancelled.
    Failed { cause: TaskId, cancelled: bool },
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: TaskId,
    pub(super) call: CallId,
    pub(super) priority: Priority,
    /// The next one.
    pub(super) attempt: Attempt,
    /// Workers that died while they ran it.
    pub(super) deaths: u32,
    /// How often it may still be run again after the user's code raised.
    pub(super) retries: u32,
    pub(super) class: Option<ClassIx>,
    /// The submitter wants its result, and knows how it ended.
    pub(super) wanted: bool,
    pub(super) resolved: bool,
    /// Was taken back for an idle worker: it has no home when it is queued next.
    pub(super) roams: bool,
    pub(super) state: State,
    /// Links to active tasks that depend on it: they need its result.
    pub(super) waiters: u32,
    pub(super) dependencies: List<Link>,
    pub(super) dependents: List<Link>,
    /// The tasks of a call are a chain.
    pub(super) before: Option<NodeIx>,
    pub(super) after: Option<NodeIx>,
}

impl Node {
    pub(super) fn is_needed(&self) -> bool {
        self.wanted || self.waiters > 0
    }

    /// On its way to a result.
    pub(super) fn is_active(&self) -> bool {
        matches!(self.state, State::Waiting { .. } | State::Ready { .. } | State::Assigned { .. })
    }

    pub(super) fn holders(&self) -> &[Holder] {
        match &self.state {
            State::Done { holders, .. } => holders.as_slice(),
            _ => &[],
        }
    }

    pub(super) fn size_bytes(&self) -> u64 {
        match self.state {
            State::Done { size_bytes, .. } => size_bytes,
            _ => 0,
        }
    }

    /// The number has been handed out, and will not be again.
    pub(super) fn spend_attempt(&mut self) {
        self.attempt = Attempt(self.attempt.0.saturating_add(1));
    }

    pub(super) fn new(id: TaskId, call: CallId) -> Node {
        Node {
            id,
            call,
            priority: Priority::default(),
            attempt: Attempt(0),
            deaths: 0,
            retries: 0,
            class: None,
            wanted: false,
            resolved: false,
            roams: false,
            state: State::Gone,
            waiters: 0,
            dependencies: List::Empty,
            dependents: List::Empty,
            before: None,
            after: None,
        }
    }
}
