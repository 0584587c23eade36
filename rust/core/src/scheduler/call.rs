//! A call: its waiting tasks in the order in which they go out, and the workers that hold the others.
//!
//! What it counts about workers is derived from their queues; only [`Call::gain`] and [`Call::lose`]
//! change it, and `check` recomputes it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::event::{CallSpec, Time};
use crate::id::{Attempt, TaskId, WorkerId};

use super::node::NodeIx;
use super::ready::Ready;
use super::worker::{Ask, Slot};

#[derive(Debug)]
pub(super) struct Task {
    pub(super) id: TaskId,
    /// Items that this task still covers; shrinks when it is split.
    pub(super) items: u32,
    pub(super) attempt: Attempt,
    /// Workers that died while they ran it.
    pub(super) deaths: u32,
    /// Its place in the table, if it belongs to a graph.
    pub(super) node: Option<NodeIx>,
}

impl Task {
    pub(super) fn next_attempt(self) -> Task {
        Task { attempt: Attempt(self.attempt.0.saturating_add(1)), ..self }
    }
}

#[derive(Debug)]
pub(super) struct Call {
    pub(super) spec: CallSpec,
    /// A helper is expected, has not joined, and is not excused: one unit of the cap is its own.
    pub(super) awaited: bool,
    pub(super) paused: bool,
    /// What is left of tasks that were split.
    urgent: VecDeque<Task>,
    /// Handed out before, and come back.
    requeued: VecDeque<Task>,
    fresh: VecDeque<Task>,
    /// Tasks of graphs that wait for nothing but a worker.
    pub(super) ready: Ready,
    /// How long a task of its graphs runs, the last ones counting most.
    pub(super) mean: Option<Duration>,
    /// Workers that take tasks of this call only.
    pub(super) helpers: BTreeSet<WorkerId>,
    /// Workers that hold tasks of the call, and how many.
    pub(super) engaged: BTreeMap<WorkerId, u32>,
    /// Held tasks that are behind another one.
    pub(super) unstarted: u32,
    /// Unanswered requests for whole tasks.
    pub(super) recalls: u32,
    /// Unanswered requests for the tail of a running task.
    pub(super) splits_asked: u32,
    /// When each running task of several items may be split.
    pub(super) splits: BTreeSet<(Time, WorkerId)>,
}

impl Call {
    pub(super) fn new(spec: CallSpec) -> Call {
        Call {
            awaited: spec.helper_expected,
            spec: CallSpec { cap: spec.cap.max(1), depth: spec.depth.max(1), ..spec },
            paused: false,
            urgent: VecDeque::new(),
            requeued: VecDeque::new(),
            fresh: VecDeque::new(),
            ready: Ready::default(),
            mean: None,
            helpers: BTreeSet::new(),
            engaged: BTreeMap::new(),
            unstarted: 0,
            recalls: 0,
            splits_asked: 0,
            splits: BTreeSet::new(),
        }
    }

    pub(super) fn submit(&mut self, task: Task, urgent: bool) {
        let queue = if urgent { &mut self.urgent } else { &mut self.fresh };
        queue.push_back(task);
    }

    pub(super) fn requeue(&mut self, task: Task) {
        self.requeued.push_front(task.next_attempt());
    }

    /// The task that goes out next.
    pub(super) fn pop(&mut self) -> Option<Task> {
        let old = self.urgent.pop_front().or_else(|| self.requeued.pop_front());
        if old.is_some() || self.paused {
            return old;
        }
        self.fresh.pop_front()
    }

    /// Tasks that may be handed out now, to any worker.
    pub(super) fn available(&self) -> usize {
        let ready = if self.paused { 0 } else { self.ready.unbound() };
        self.in_line() + ready
    }

    /// Those of them that do not belong to graphs.
    pub(super) fn in_line(&self) -> usize {
        let fresh = if self.paused { 0 } else { self.fresh.len() };
        self.urgent.len() + self.requeued.len() + fresh
    }

    /// Tasks that wait for a worker, whether they may be handed out now or not.
    pub(super) fn waiting(&self) -> usize {
        self.urgent.len() + self.requeued.len() + self.fresh.len() + self.ready.len()
    }

    pub(super) fn waiting_tasks(&self) -> impl Iterator<Item = &Task> {
        self.urgent.iter().chain(&self.requeued).chain(&self.fresh)
    }

    /// How many more workers may hold tasks of the call.
    pub(super) fn room(&self) -> usize {
        let reserved = usize::from(self.awaited);
        (self.spec.cap as usize).saturating_sub(self.engaged.len() + reserved)
    }

    /// Nobody works for the call, and no helper is on its way: even a nested call may have one worker.
    pub(super) fn is_alone(&self) -> bool {
        self.engaged.is_empty() && !self.awaited
    }

    /// Another worker could do something for the call, now or later.
    pub(super) fn is_hungry(&self) -> bool {
        self.available() > 0 || self.unstarted > 0 || !self.splits.is_empty() || !self.ready.bound.is_empty()
    }

    /// Learns from a task of a graph that ran so long.
    pub(super) fn took(&mut self, time: Duration) {
        self.mean = Some(self.mean.map_or(time, |mean| (mean * 7).saturating_add(time) / 8));
    }

    /// Counts a task that `worker` holds.
    pub(super) fn gain(&mut self, worker: WorkerId, slot: &Slot, head: bool) {
        *self.engaged.entry(worker).or_insert(0) += 1;
        self.unstarted += u32::from(!head);
        self.recalls += u32::from(slot.ask == Some(Ask::Whole));
        self.splits_asked += u32::from(slot.ask == Some(Ask::Tail));
    }

    /// Counts that a task which was behind another has begun.
    pub(super) fn begin(&mut self) {
        self.unstarted -= 1;
    }

    /// Takes back what [`Call::begin`] counted: another task goes on before it.
    pub(super) fn stand_back(&mut self) {
        self.unstarted += 1;
    }

    /// Takes back what [`Call::gain`] counted.
    pub(super) fn lose(&mut self, worker: WorkerId, slot: &Slot, head: bool) {
        if let Some(count) = self.engaged.get_mut(&worker) {
            *count -= 1;
            if *count == 0 {
                self.engaged.remove(&worker);
            }
        }
        self.unstarted -= u32::from(!head);
        self.recalls -= u32::from(slot.ask == Some(Ask::Whole));
        self.splits_asked -= u32::from(slot.ask == Some(Ask::Tail));
    }
}
