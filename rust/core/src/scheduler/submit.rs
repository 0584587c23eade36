//! Graphs as they come in.
//!
//! Submitters check their graphs. Whatever they hand over all the same, each task ends: one that depends on a
//! task that is not there, or on itself, is broken, and has no links.

use std::collections::{BTreeMap, BTreeSet};

use crate::action::Resolution;
use crate::event::Outcome;
use crate::id::{CallId, TaskId};
use crate::task::TaskSpec;

use super::node::{NodeIx, State};
use super::{Out, Scheduler};

impl Scheduler {
    pub(super) fn graph_submitted(&mut self, call: CallId, tasks: Vec<TaskSpec>, out: &mut Out<'_>) {
        if !self.calls.contains_key(&call) {
            return;
        }
        self.graph.reserve(tasks.len());
        let mut batch = Vec::with_capacity(tasks.len());
        // Tasks that name one that has not been seen yet, which may come later in the batch.
        let mut late = Vec::new();
        let mut again = Vec::new();
        for spec in &tasks {
            let Some(node) = self.enter(call, spec, &mut again) else {
                continue;
            };
            batch.push(node);
            if !self.link_all(call, node, spec) {
                late.push((node, spec));
            }
        }
        for node in self.broken(call, &batch, &late) {
            self.graph.unlink(node);
            self.fail(node, Resolution::Broken, out);
        }
        self.begin(&batch, out);
        for node in again {
            self.tell_again(node, out);
        }
    }

    fn begin(&mut self, batch: &[NodeIx], out: &mut Out<'_>) {
        for &node in batch {
            if self.graph[node].is_needed() {
                self.activate(node, out);
            }
        }
        for &node in batch {
            if !self.graph[node].is_needed() {
                self.graph.loose.push(node);
            }
        }
    }

    /// Adds the task to the table, without links. `None`: it was there, or belongs to somebody else. One that
    /// others have kept there may be wanted `again`.
    fn enter(&mut self, call: CallId, spec: &TaskSpec, again: &mut Vec<NodeIx>) -> Option<NodeIx> {
        if let Some(known) = self.graph.find(spec.task) {
            let node = &mut self.graph[known];
            if spec.wanted && !node.wanted && node.call == call {
                node.wanted = true;
                node.resolved = false;
                again.push(known);
            }
            return None;
        }
        if self.live.contains(&spec.task) {
            return None;
        }
        let at = self.graph.add(spec.task, call)?;
        let class = self.classes.enter(spec);
        let node = &mut self.graph[at];
        node.priority = spec.priority;
        node.retries = spec.retries;
        node.wanted = spec.wanted;
        node.class = class;
        Some(at)
    }

    /// The submitter is told how the task ends, though it may have been told before.
    fn tell_again(&mut self, at: NodeIx, out: &mut Out<'_>) {
        let node = &self.graph[at];
        match node.state {
            _ if node.resolved => {}
            State::Done { by, .. } => {
                let worker = node.holders().first().map_or(by, |holder| holder.worker);
                self.announce(at, Resolution::Finished { worker, outcome: Outcome::Ok }, out);
            }
            State::Failed { cause, cancelled } => {
                let how = if cancelled { Resolution::Cancelled } else { Resolution::DependencyFailed { cause } };
                self.announce(at, how, out);
            }
            _ => self.activate(at, out),
        }
    }

    /// Links the task to all that it names; to none, if one is missing.
    fn link_all(&mut self, call: CallId, node: NodeIx, spec: &TaskSpec) -> bool {
        self.graph.make_room(node, spec.dependencies.len());
        for id in &spec.dependencies {
            match self.graph.find_of(call, *id).filter(|&on| on != node) {
                Some(on) => self.graph.link(node, on),
                None => {
                    self.graph.unlink(node);
                    return false;
                }
            }
        }
        true
    }

    /// Links what was late, and says which tasks can never be run.
    fn broken(&mut self, call: CallId, batch: &[NodeIx], late: &[(NodeIx, &TaskSpec)]) -> Vec<NodeIx> {
        let mut broken = Vec::new();
        for &(node, spec) in late {
            if !self.link_all(call, node, spec) {
                broken.push(node);
            }
        }
        if !late.is_empty() {
            broken.extend(self.circular(batch));
        }
        broken
    }

    /// Tasks of the batch that depend on themselves, or on such tasks: those left over when all others have been
    /// taken out, each after what it depends on (Kahn, CACM 1962).
    fn circular(&self, batch: &[NodeIx]) -> BTreeSet<NodeIx> {
        let mut left: BTreeSet<NodeIx> = batch.iter().copied().collect();
        let inside = |node: NodeIx| {
            let links = self.graph[node].dependencies.as_slice();
            links.iter().filter(|link| left.contains(&link.node)).count()
        };
        let mut missing: BTreeMap<NodeIx, usize> = batch.iter().map(|&node| (node, inside(node))).collect();
        let mut free: Vec<NodeIx> = batch.iter().copied().filter(|node| missing[node] == 0).collect();
        while let Some(node) = free.pop() {
            left.remove(&node);
            for link in self.graph[node].dependents.as_slice() {
                if let Some(count) = missing.get_mut(&link.node) {
                    *count -= 1;
                    if *count == 0 {
                        free.push(link.node);
                    }
                }
            }
        }
        left
    }

    pub(super) fn tasks_released(&mut self, call: CallId, tasks: &[TaskId]) {
        for &task in tasks {
            if let Some(node) = self.graph.find_of(call, task) {
                self.graph[node].wanted = false;
                self.graph.loose.push(node);
            }
        }
    }

    pub(super) fn tasks_cancelled(&mut self, call: CallId, tasks: &[TaskId], force: bool, out: &mut Out<'_>) {
        for &task in tasks {
            if let Some(node) = self.graph.find_of(call, task) {
                if self.graph[node].is_active() {
                    self.end(node, Resolution::Cancelled, force, out);
                }
            }
        }
    }
}
