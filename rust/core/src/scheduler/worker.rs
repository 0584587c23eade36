//! A worker and the tasks on it.

use std::collections::VecDeque;
use std::time::Duration;

use crate::event::{CallSpec, Time, WorkerSpec};
use crate::id::{Attempt, CallId, TaskId};

use crate::resources::Grant;

use super::call::Task;
use super::node::NodeIx;
use super::pool::PoolKey;

/// What a worker was asked to give back, and has not answered yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// A task that had not begun when the request was made.
    Whole,
    /// What is left of a running task.
    Tail,
}

/// A task on a worker, until the worker reports it.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) task: Task,
    pub(super) call: CallId,
    /// Somebody waits for the task. Otherwise it only keeps the worker busy, and its report is stale.
    pub(super) wanted: bool,
    pub(super) ask: Option<Ask>,
    /// The worker answered a request; the next one is not before this.
    pub(super) ask_after: Time,
    /// What it holds of the worker's resources.
    pub(super) grants: Option<Box<[Grant]>>,
    /// It was cancelled by force: a worker that has begun it is ended.
    pub(super) forced: bool,
    /// It has been parked: it may be there beyond the depth of the worker.
    pub(super) has_waited: bool,
}

impl Slot {
    pub(super) fn new(call: CallId, task: Task) -> Slot {
        let (ask, ask_after, grants) = (None, Time::ZERO, None);
        Slot { task, call, wanted: true, ask, ask_after, grants, forced: false, has_waited: false }
    }

    pub(super) fn serves(&self, call: CallId) -> bool {
        self.wanted && self.call == call
    }
}

#[derive(Debug)]
pub(super) struct Worker {
    pub(super) spec: WorkerSpec,
    /// Counts against the core budget while it holds a task. The helper of a nested call does not:
    /// it is a worker already, which waits in one of its tasks.
    pub(super) counts: bool,
    /// Nothing more is placed on it: it was ordered to end, or the call that it helps is closed.
    pub(super) leaving: bool,
    /// Tasks are parked there that nothing will wake: it is to end once others need it no more.
    pub(super) doomed: bool,
    /// What it holds, in the order in which it runs them. The first one is running.
    pub(super) slots: VecDeque<Slot>,
    /// Tasks that wait for others. It runs them, and they are not in its way.
    pub(super) parked: Vec<Slot>,
    /// Results that it has.
    pub(super) results: Vec<NodeIx>,
    /// Ready tasks whose home it is.
    pub(super) at_home: u32,
    /// Whose resources its tasks hold.
    pub(super) pool: Option<PoolKey>,
    /// When the first one could start.
    pub(super) head_since: Time,
    /// Number of the event at which it last became idle.
    pub(super) rested: u64,
    /// Where the indexes have it now.
    pub(super) filed: Filing,
}

/// The entries of a worker in the indexes, as they follow from its state.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Filing {
    pub(super) shelf: Shelf,
    pub(super) busy: bool,
    /// It is idle, and tasks are at home on it.
    pub(super) owner: bool,
    pub(super) deadline: Option<Time>,
    pub(super) split: Option<(CallId, Time)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum Shelf {
    /// Takes nothing now, or is an idle helper, which its call finds by itself.
    #[default]
    Off,
    /// Has nothing to do, since this event.
    Idle(u64),
    /// Has this many tasks, and takes more.
    Roomy(usize),
}

impl Worker {
    pub(super) fn new(spec: WorkerSpec, counts: bool) -> Worker {
        Worker {
            spec: WorkerSpec { depth: spec.depth.max(1), ..spec },
            counts,
            leaving: false,
            doomed: false,
            slots: VecDeque::new(),
            parked: Vec::new(),
            results: Vec::new(),
            at_home: 0,
            pool: None,
            head_since: Time::ZERO,
            rested: 0,
            filed: Filing::default(),
        }
    }

    /// Any call may use it.
    pub(super) fn is_shared(&self) -> bool {
        self.spec.only.is_none()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.slots.is_empty() && !self.leaving && !self.is_draining()
    }

    /// It takes no more tasks, to come to its end; but what is parked there may wait for one that only it can run.
    fn is_draining(&self) -> bool {
        self.doomed && !self.parked.iter().any(|slot| slot.wanted)
    }

    /// Somebody waits for a task that it holds.
    pub(super) fn is_needed(&self) -> bool {
        self.slots.iter().chain(&self.parked).any(|slot| slot.wanted)
    }

    /// Runs something that nobody waits for and that cannot be ended.
    pub(super) fn is_stuck(&self) -> bool {
        !self.leaving && self.slots.front().is_some_and(|slot| !slot.wanted)
    }

    pub(super) fn runs(&self, call: CallId) -> bool {
        self.slots.front().is_some_and(|slot| slot.serves(call))
    }

    pub(super) fn find(&self, task: TaskId, attempt: Attempt) -> Option<usize> {
        self.slots.iter().position(|slot| slot.task.id == task && slot.task.attempt == attempt)
    }

    /// Place among the tasks that are parked.
    pub(super) fn find_parked(&self, task: TaskId, attempt: Attempt) -> Option<usize> {
        self.parked.iter().position(|slot| slot.task.id == task && slot.task.attempt == attempt)
    }

    /// Places of the tasks of `call` that it has not begun and was not asked for.
    pub(super) fn recallable(&self, call: CallId, now: Time) -> impl Iterator<Item = usize> + '_ {
        let behind = self.slots.iter().enumerate().skip(1);
        behind
            .filter(move |(_, slot)| slot.serves(call) && slot.ask.is_none() && slot.ask_after <= now)
            .map(|(at, _)| at)
    }

    /// Another task of `call` may be put behind what it holds. Not while it was asked to give one back:
    /// that would come here again.
    pub(super) fn takes_more(&self, call: CallId, spec: &CallSpec) -> bool {
        let mut slots = self.slots.iter();
        let roomy = matches!(self.shelf(), Shelf::Roomy(load) if load < spec.depth as usize);
        roomy && !slots.any(|slot| slot.serves(call) && slot.ask == Some(Ask::Whole))
    }

    pub(super) fn filing(&self, head_call: Option<&CallSpec>, split_after: Duration) -> Filing {
        let running = if self.leaving { None } else { self.slots.front() };
        let running = running.filter(|slot| slot.wanted);
        Filing {
            shelf: self.shelf(),
            busy: self.counts && !self.slots.is_empty(),
            owner: self.at_home > 0 && self.is_idle() && self.is_shared(),
            deadline: running.zip(head_call).and_then(|(slot, call)| self.deadline(slot, call)),
            split: running
                .filter(|slot| {
                    slot.task.items > 1 && slot.ask.is_none() && head_call.is_some_and(|call| call.divisible)
                })
                .map(|slot| (slot.call, slot.ask_after.max(self.head_since.saturating_add(split_after)))),
        }
    }

    fn shelf(&self) -> Shelf {
        match self.slots.len() {
            _ if self.leaving || self.is_draining() || self.is_stuck() => Shelf::Off,
            0 if self.is_shared() => Shelf::Idle(self.rested),
            0 => Shelf::Off,
            load if load < self.spec.depth as usize => Shelf::Roomy(load),
            _ => Shelf::Off,
        }
    }

    /// When the running task will have overrun its limit; never, where that is too far away to say.
    fn deadline(&self, slot: &Slot, call: &CallSpec) -> Option<Time> {
        let limit = call.item_timeout?.checked_mul(slot.task.items)?;
        self.head_since.checked_add(limit)
    }
}
