//! The tasks that depend on each other: one table for all calls, with the links between them.
//!
//! A task stays in the table while it is wanted or another task of the table depends on it: a result that was
//! freed may be needed again, to compute one that was lost. Where results are durable, a task that has ended depends
//! on nothing. What is counted here follows from the states and links; `check` recomputes it.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::num::NonZeroU32;
use std::ops::{Index, IndexMut};

use crate::id::{CallId, TaskId};

use super::list::List;
use super::live::InOrder;
use super::node::{Link, Node, NodeIx, State};

#[derive(Debug, Default)]
pub(super) struct Graph {
    nodes: Vec<Node>,
    free: Vec<NodeIx>,
    ids: HashMap<TaskId, NodeIx, BuildHasherDefault<InOrder>>,
    /// The newest task of each call.
    newest: HashMap<CallId, NodeIx, BuildHasherDefault<InOrder>>,
    /// Tasks that are active.
    pub(super) active: usize,
    /// Tasks that nobody may need any more; looked at before the event is over.
    pub(super) loose: Vec<NodeIx>,
    /// Tasks that may have become ready; looked at before the event is over.
    pub(super) woken: Vec<NodeIx>,
}

impl Index<NodeIx> for Graph {
    type Output = Node;

    fn index(&self, at: NodeIx) -> &Node {
        &self.nodes[at.0.get() as usize - 1]
    }
}

impl IndexMut<NodeIx> for Graph {
    fn index_mut(&mut self, at: NodeIx) -> &mut Node {
        &mut self.nodes[at.0.get() as usize - 1]
    }
}

impl Graph {
    pub(super) fn find(&self, id: TaskId) -> Option<NodeIx> {
        self.ids.get(&id).copied()
    }

    pub(super) fn find_of(&self, call: CallId, id: TaskId) -> Option<NodeIx> {
        self.find(id).filter(|&at| self[at].call == call)
    }

    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    pub(super) fn reserve(&mut self, more: usize) {
        self.nodes.reserve(more.saturating_sub(self.free.len()));
        self.ids.reserve(more);
    }

    /// A new task, which nobody needs yet. Its id is not in the table; `None` when the table is full.
    pub(super) fn add(&mut self, id: TaskId, call: CallId) -> Option<NodeIx> {
        let mut node = Node::new(id, call);
        node.state = State::Released;
        node.after = self.newest.get(&call).copied();
        let at = match self.free.pop() {
            Some(at) => {
                self[at] = node;
                at
            }
            None => {
                let count = u32::try_from(self.nodes.len()).ok()?;
                let at = NodeIx(NonZeroU32::new(count.checked_add(1)?)?);
                self.nodes.push(node);
                at
            }
        };
        if let Some(after) = self[at].after {
            self[after].before = Some(at);
        }
        self.newest.insert(call, at);
        self.ids.insert(id, at);
        Some(at)
    }

    /// Makes the table fit for a task that depends on so many.
    pub(super) fn make_room(&mut self, node: NodeIx, dependencies: usize) {
        if self[node].dependencies.is_empty() {
            self[node].dependencies = List::with_capacity(dependencies);
        }
    }

    pub(super) fn link(&mut self, node: NodeIx, on: NodeIx) {
        let (place, back) = (self[node].dependencies.len() as u32, self[on].dependents.len() as u32);
        self[node].dependencies.push(Link { node: on, back });
        self[on].dependents.push(Link { node, back: place });
    }

    /// Takes the task off the lists of what it depends on, each of which may be loose after that.
    pub(super) fn unlink(&mut self, node: NodeIx) {
        while let Some(Link { node: on, back }) = self[node].dependencies.pop() {
            let dependents = &mut self[on].dependents;
            dependents.swap_remove(back as usize);
            if let Some(&moved) = dependents.as_slice().get(back as usize) {
                if let Some(other) = self[moved.node].dependencies.as_mut_slice().get_mut(moved.back as usize) {
                    other.back = back;
                }
            }
            if self[on].dependents.is_empty() {
                self.loose.push(on);
            }
        }
    }

    /// Takes out a task that has no links.
    pub(super) fn remove(&mut self, at: NodeIx) {
        let node = &self[at];
        let (call, before, after) = (node.call, node.before, node.after);
        if let Some(after) = after {
            self[after].before = before;
        }
        match (before, after) {
            (Some(before), _) => self[before].after = after,
            (None, Some(after)) => {
                self.newest.insert(call, after);
            }
            (None, None) => {
                self.newest.remove(&call);
            }
        }
        self.vacate(at);
    }

    /// Takes out a task of a call all of which goes.
    pub(super) fn vacate(&mut self, at: NodeIx) {
        let id = self[at].id;
        self.ids.remove(&id);
        self[at] = Node::new(TaskId(0), CallId(0));
        self.free.push(at);
    }

    /// All tasks of a call, the newest first, which leave the table one by one with [`Graph::vacate`].
    pub(super) fn take_call(&mut self, call: CallId) -> Vec<NodeIx> {
        let first = self.newest.remove(&call);
        std::iter::successors(first, |&at| self[at].after).collect()
    }

    pub(super) fn of_call(&self, call: CallId) -> impl Iterator<Item = NodeIx> + '_ {
        let first = self.newest.get(&call).copied();
        std::iter::successors(first, |&at| self[at].after)
    }

    /// The event has set nothing in motion, or all has come to rest.
    pub(super) fn is_at_rest(&self) -> bool {
        self.loose.is_empty() && self.woken.is_empty()
    }

    /// Gives the memory of a large table back once it is empty.
    pub(super) fn shrink(&mut self) {
        if self.is_empty() && self.nodes.len() > 1024 {
            *self = Graph::default();
        }
    }
}
