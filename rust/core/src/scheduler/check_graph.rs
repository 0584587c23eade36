//! Recomputes what the machine knows of graphs: links, needs, queues, holders and resources.

use std::collections::{BTreeMap, BTreeSet};

use crate::id::{CallId, WorkerId};

use super::check::{ensure, Verdict};
use super::node::{NodeIx, State};
use super::ready::{Rank, Stand};
use super::Scheduler;

impl Scheduler {
    pub(super) fn check_graph(&self) -> Verdict {
        ensure(self.graph.loose.is_empty() && self.graph.woken.is_empty(), || "an event left things undone".into())?;
        let nodes: Vec<NodeIx> = self.calls.keys().flat_map(|&call| self.graph.of_call(call)).collect();
        ensure(nodes.len() == self.graph.len(), || format!("{} tasks of {}", nodes.len(), self.graph.len()))?;
        let active = nodes.iter().filter(|&&at| self.graph[at].is_active()).count();
        ensure(active == self.graph.active, || format!("{} active, but found {active}", self.graph.active))?;
        for &at in &nodes {
            self.check_links(at)?;
            self.check_needs(at)?;
            self.check_state(at)?;
        }
        self.check_queues(&nodes)?;
        self.check_results()?;
        self.check_pools()
    }

    fn check_links(&self, at: NodeIx) -> Verdict {
        let node = &self.graph[at];
        let say = || format!("a link of {node:?} is loose");
        ensure(self.graph.find_of(node.call, node.id) == Some(at), || format!("{node:?} is not found"))?;
        for (place, link) in node.dependencies.as_slice().iter().enumerate() {
            let other = self.graph[link.node].dependents.as_slice().get(link.back as usize);
            ensure(other.is_some_and(|other| (other.node, other.back) == (at, place as u32)), say)?;
        }
        for (place, link) in node.dependents.as_slice().iter().enumerate() {
            let other = self.graph[link.node].dependencies.as_slice().get(link.back as usize);
            ensure(other.is_some_and(|other| (other.node, other.back) == (at, place as u32)), say)?;
        }
        Ok(())
    }

    /// What is needed is kept, and nothing else.
    fn check_needs(&self, at: NodeIx) -> Verdict {
        let node = &self.graph[at];
        let dependents = node.dependents.as_slice().iter();
        let waiters = dependents.filter(|link| self.graph[link.node].is_active()).count();
        ensure(waiters == node.waiters as usize, || format!("{waiters} wait for {node:?}"))?;
        let done = matches!(node.state, State::Done { .. });
        ensure(node.is_needed() || !(done || node.is_active()), || format!("nobody needs {node:?}"))?;
        ensure(!node.is_needed() || node.state != State::Released, || format!("is needed, and rests: {node:?}"))?;
        let kept = node.is_needed() || !node.dependents.is_empty();
        ensure(kept, || format!("nobody will need {node:?}"))?;
        if self.config.durable {
            let ended = matches!(node.state, State::Done { .. } | State::Failed { .. });
            ensure(node.is_needed(), || format!("is durable, or never will be, and not needed: {node:?}"))?;
            ensure(!ended || node.dependencies.is_empty(), || format!("has ended and depends on others: {node:?}"))?;
        }
        let open = node.is_active() && !node.resolved;
        ensure(!node.wanted || node.resolved || open, || format!("the end of {node:?} was not told"))
    }

    fn check_state(&self, at: NodeIx) -> Verdict {
        let node = &self.graph[at];
        let links = node.dependencies.as_slice().iter();
        let missing = links.filter(|link| !matches!(self.graph[link.node].state, State::Done { .. })).count();
        let right = match &node.state {
            State::Gone => false,
            State::Waiting { missing: known } => *known > 0 && *known as usize == missing,
            State::Ready { home } => missing == 0 && home.is_none_or(|home| self.roster.worker(home).is_some()),
            State::Assigned { worker, attempt } => self
                .roster
                .held(*worker, node.id, *attempt)
                .is_some_and(|slot| slot.wanted && slot.task.node == Some(at) && *attempt == node.attempt),
            State::Done { holders, .. } => {
                let distinct: BTreeSet<WorkerId> = holders.as_slice().iter().map(|holder| holder.worker).collect();
                (self.config.durable || !holders.is_empty()) && distinct.len() == holders.len()
            }
            State::Released | State::Failed { .. } => true,
        };
        let failed = node.dependencies.as_slice().iter().any(|link| {
            let waits = matches!(node.state, State::Waiting { .. } | State::Ready { .. });
            waits && matches!(self.graph[link.node].state, State::Failed { .. })
        });
        ensure(right && !failed, || format!("{missing} results are missing, and the state is wrong: {node:?}"))
    }

    /// Each ready task is in the queue that its state says, and in no other; nothing else is.
    fn check_queues(&self, nodes: &[NodeIx]) -> Verdict {
        let mut expected = BTreeMap::new();
        for &at in nodes {
            let node = &self.graph[at];
            if let State::Ready { home } = node.state {
                let stand = (node.class, home);
                expected.insert(at, (node.call, stand, Rank::of(node)));
            }
        }
        let mut found = BTreeMap::new();
        let mut at_home: BTreeMap<WorkerId, u32> = BTreeMap::new();
        for (&id, call) in &self.calls {
            let count = call.ready.iter().count();
            ensure(count == call.ready.len(), || format!("{id:?} counts {} of {count} ready", call.ready.len()))?;
            for (stand, rank, at) in call.ready.iter() {
                let stand = match stand {
                    Stand::Open => (None, None),
                    Stand::Home(home) => (None, Some(home)),
                    Stand::Bound(class) => (Some(class), None),
                };
                if let Some(home) = stand.1 {
                    *at_home.entry(home).or_default() += 1;
                }
                let twice = found.insert(at, (id, stand, rank)).is_some();
                ensure(!twice, || format!("{at:?} is in two queues"))?;
            }
        }
        let bound = expected.values().filter(|(_, stand, _)| stand.0.is_some()).count();
        ensure(bound == self.bound_ready, || format!("{} bound, but found {bound}", self.bound_ready))?;
        ensure(found == expected, || format!("ready: {expected:?}, but found {found:?}"))?;
        for (id, worker) in &self.roster.workers {
            let found = at_home.remove(id).unwrap_or_default();
            ensure(worker.at_home == found, || format!("{id:?} is home to {found}: {worker:?}"))?;
            ensure(found == 0 || !worker.leaving, || format!("{id:?} is home to tasks though it is leaving"))?;
        }
        ensure(at_home.is_empty(), || format!("homes that are gone: {at_home:?}"))
    }

    fn check_results(&self) -> Verdict {
        let mut known = BTreeSet::new();
        for (&id, worker) in &self.roster.workers {
            for (place, &at) in worker.results.iter().enumerate() {
                let holders = self.graph[at].holders();
                let right = holders.iter().any(|holder| (holder.worker, holder.at) == (id, place as u32));
                ensure(right, || format!("{id:?} is not known to hold {:?}", self.graph[at]))?;
                known.insert((at, id));
            }
        }
        let calls = self.calls.keys().flat_map(|&call| self.graph.of_call(call));
        let found = calls.map(|at| self.graph[at].holders().len()).sum::<usize>();
        ensure(found == known.len(), || format!("{found} copies, but workers know of {}", known.len()))
    }

    fn check_pools(&self) -> Verdict {
        let workers = self.roster.workers.values();
        let slots =
            workers.flat_map(|worker| worker.slots.iter().chain(&worker.parked).map(move |slot| (worker.pool, slot)));
        self.roster.pools.check(slots.filter_map(|(pool, slot)| pool.zip(slot.grants.as_deref())))
    }

    /// Nothing that an idle worker could do now is left in the queues.
    pub(super) fn check_ready(&self, id: CallId) -> Verdict {
        let Some(call) = self.calls.get(&id).filter(|call| !call.paused && call.room() > 0) else { return Ok(()) };
        let owner = self.owner_pick(call).is_some();
        ensure(!owner, || format!("tasks of {id:?} wait for a worker that is idle"))?;
        ensure(self.bound_pick(call).is_none(), || format!("bound tasks of {id:?} wait beside an idle worker"))
    }
}
