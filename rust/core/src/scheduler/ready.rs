//! Tasks of a graph that are ready to run, in the order in which they go out.

use std::collections::{BTreeMap, VecDeque};

use crate::id::{TaskId, WorkerId};
use crate::task::Priority;

use super::classes::ClassIx;
use super::node::{Node, NodeIx};

/// Compares in the order in which tasks go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    priority: Priority,
    id: TaskId,
}

impl Rank {
    pub(super) fn of(node: &Node) -> Rank {
        Rank { priority: node.priority, id: node.id }
    }
}

/// An empty row keeps room for so many.
const KEPT_ROOM: usize = 4096;

/// A queue by rank. Tasks mostly come in the order in which they go: those stand in a plain row, which costs
/// the same however long it is, and only the others in a tree.
#[derive(Debug, Default)]
pub(super) struct ReadyQueue {
    /// Sorted. `None`: was taken out; neither end is.
    row: VecDeque<(Rank, Option<NodeIx>)>,
    taken_out: usize,
    tree: BTreeMap<Rank, NodeIx>,
}

impl ReadyQueue {
    pub(super) fn len(&self) -> usize {
        self.row.len() - self.taken_out + self.tree.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.row.is_empty() && self.tree.is_empty()
    }

    pub(super) fn push(&mut self, rank: Rank, node: NodeIx) {
        if self.row.back().is_none_or(|&(last, _)| last < rank) {
            self.row.push_back((rank, Some(node)));
        } else {
            self.tree.insert(rank, node);
        }
    }

    pub(super) fn first(&self) -> Option<(Rank, NodeIx)> {
        let row = self.row.front().and_then(|&(rank, node)| Some((rank, node?)));
        let tree = self.tree.first_key_value().map(|(&rank, &node)| (rank, node));
        match (row, tree) {
            (Some(row), Some(tree)) => Some(if row.0 < tree.0 { row } else { tree }),
            (row, tree) => row.or(tree),
        }
    }

    pub(super) fn remove(&mut self, rank: Rank) {
        if self.tree.remove(&rank).is_some() {
            return;
        }
        if self.row.front().is_some_and(|&(first, _)| first == rank) {
            self.row.pop_front();
        } else if let Ok(at) = self.row.binary_search_by(|(known, _)| known.cmp(&rank)) {
            self.taken_out += usize::from(self.row[at].1.take().is_some());
        }
        self.tidy();
    }

    /// Keeps the ends of the row real, and most of what is between them.
    fn tidy(&mut self) {
        while self.row.front().is_some_and(|(_, node)| node.is_none()) {
            self.row.pop_front();
            self.taken_out -= 1;
        }
        while self.row.back().is_some_and(|(_, node)| node.is_none()) {
            self.row.pop_back();
            self.taken_out -= 1;
        }
        if self.row.is_empty() && self.row.capacity() > KEPT_ROOM {
            self.row = VecDeque::new();
        }
        if self.taken_out > 32 && self.taken_out > self.row.len() / 2 {
            self.row.retain(|(_, node)| node.is_some());
            self.taken_out = 0;
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Rank, NodeIx)> + '_ {
        let row = self.row.iter().filter_map(|&(rank, node)| Some((rank, node?)));
        row.chain(self.tree.iter().map(|(&rank, &node)| (rank, node)))
    }
}

/// Where a ready task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stand {
    Open,
    /// Most of its input is on this worker.
    Home(WorkerId),
    /// It asks for resources, or for certain workers.
    Bound(ClassIx),
}

/// The ready tasks of a call.
#[derive(Debug, Default)]
pub(super) struct Ready {
    pub(super) open: ReadyQueue,
    pub(super) homes: BTreeMap<WorkerId, ReadyQueue>,
    pub(super) bound: BTreeMap<ClassIx, ReadyQueue>,
    at_home: usize,
}

impl Ready {
    pub(super) fn push(&mut self, stand: Stand, rank: Rank, node: NodeIx) {
        match stand {
            Stand::Open => self.open.push(rank, node),
            Stand::Home(worker) => {
                self.homes.entry(worker).or_default().push(rank, node);
                self.at_home += 1;
            }
            Stand::Bound(class) => self.bound.entry(class).or_default().push(rank, node),
        }
    }

    pub(super) fn remove(&mut self, stand: Stand, rank: Rank) {
        match stand {
            Stand::Open => self.open.remove(rank),
            Stand::Home(worker) => {
                self.at_home -= 1;
                take_from(&mut self.homes, worker, rank);
            }
            Stand::Bound(class) => take_from(&mut self.bound, class, rank),
        }
    }

    /// The first task for the worker among those that it may run without asking more.
    pub(super) fn first_for(&self, worker: WorkerId) -> Option<(Stand, Rank, NodeIx)> {
        let open = self.open.first().map(|(rank, node)| (Stand::Open, rank, node));
        let home = self.homes.get(&worker).and_then(ReadyQueue::first);
        let home = home.map(|(rank, node)| (Stand::Home(worker), rank, node));
        match (open, home) {
            (Some(open), Some(home)) => Some(if open.1 < home.1 { open } else { home }),
            (open, home) => open.or(home),
        }
    }

    /// Tasks that any worker may run.
    pub(super) fn unbound(&self) -> usize {
        self.open.len() + self.at_home
    }

    pub(super) fn is_empty(&self) -> bool {
        self.unbound() == 0 && self.bound.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.unbound() + self.bound.values().map(ReadyQueue::len).sum::<usize>()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Stand, Rank, NodeIx)> + '_ {
        let open = self.open.iter().map(|(rank, node)| (Stand::Open, rank, node));
        let homes =
            self.homes.iter().flat_map(|(&home, queue)| queue.iter().map(move |(r, n)| (Stand::Home(home), r, n)));
        let bound =
            self.bound.iter().flat_map(|(&class, queue)| queue.iter().map(move |(r, n)| (Stand::Bound(class), r, n)));
        open.chain(homes).chain(bound)
    }
}

fn take_from<K: Ord>(queues: &mut BTreeMap<K, ReadyQueue>, key: K, rank: Rank) {
    if let Some(queue) = queues.get_mut(&key) {
        queue.remove(rank);
        if queue.is_empty() {
            queues.remove(&key);
        }
    }
}
