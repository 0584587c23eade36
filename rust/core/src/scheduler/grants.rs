//! Tasks that not every worker may run: those that ask for resources, or for certain workers.
//!
//! Ready tasks that ask for the same are a class, and stand in a queue of their own, so that they hold up no
//! others. Such a task goes to an idle worker only, and holds its resources until it is off that worker.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use crate::action::Resolution;
use crate::id::{TaskId, WorkerId};
use crate::resources::{Grant, Resources};
use crate::task::TaskSpec;

use super::call::Call;
use super::node::State;
use super::place::Pick;
use super::pool::{could_give, PoolKey};
use super::ready::Stand;
use super::worker::Worker;
use super::{Out, Scheduler};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ClassIx(NonZeroU32);

type Workers = Option<Box<[WorkerId]>>;

#[derive(Debug, Default)]
struct Class {
    needs: Resources,
    /// Sorted.
    workers: Workers,
    tasks: u32,
    /// The last outlook in which a worker was there for it, or could come.
    hopeful_at: u64,
}

#[derive(Debug, Default)]
pub(super) struct Classes {
    all: BTreeMap<ClassIx, Class>,
    known: BTreeMap<(Resources, Workers), ClassIx>,
    newest: u32,
}

impl Classes {
    /// The class of one more task; `None` for one that any worker may run.
    pub(super) fn enter(&mut self, spec: &TaskSpec) -> Option<ClassIx> {
        if spec.resources.is_empty() && spec.workers.is_none() {
            return None;
        }
        let mut workers = spec.workers.clone();
        if let Some(workers) = &mut workers {
            workers.sort_unstable();
        }
        let newest = &mut self.newest;
        let key = (spec.resources.clone(), workers);
        let (needs, workers) = key.clone();
        let at = *self.known.entry(key).or_insert_with(|| {
            *newest = newest.wrapping_add(1).max(1);
            ClassIx(NonZeroU32::new(*newest).unwrap_or(NonZeroU32::MIN))
        });
        self.all.entry(at).or_insert(Class { needs, workers, tasks: 0, hopeful_at: 0 }).tasks += 1;
        Some(at)
    }

    pub(super) fn leave(&mut self, at: ClassIx) {
        let Some(class) = self.all.get_mut(&at) else { return };
        class.tasks -= 1;
        if class.tasks == 0 {
            if let Some(class) = self.all.remove(&at) {
                self.known.remove(&(class.needs, class.workers));
            }
        }
    }

    pub(super) fn needs(&self, at: ClassIx) -> Option<&Resources> {
        self.all.get(&at).map(|class| &class.needs)
    }

    /// A worker for it was there in this outlook, or could come.
    pub(super) fn is_hopeful(&self, at: ClassIx, outlook: u64) -> bool {
        self.all.get(&at).is_some_and(|class| class.hopeful_at == outlook)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty() && self.known.is_empty()
    }
}

impl Scheduler {
    /// What a task holds of its worker's resources, while it is on one.
    pub fn granted(&self, task: TaskId) -> &[Grant] {
        let node = self.graph.find(task).map(|at| &self.graph[at]);
        let Some(State::Assigned { worker, attempt }) = node.map(|node| &node.state) else {
            return &[];
        };
        let place = self.roster.find(*worker, task, *attempt);
        let slot = self.roster.worker(*worker).zip(place).map(|(worker, at)| &worker.slots[at]);
        slot.and_then(|slot| slot.grants.as_deref()).unwrap_or(&[])
    }

    /// The first of the call's bound tasks for which a worker is idle.
    pub(super) fn bound_pick(&self, call: &Call) -> Option<Pick> {
        if call.ready.bound.is_empty() || self.roster.idle() == 0 || self.core_allowance(call) == 0 {
            return None;
        }
        let picks = call.ready.bound.iter().filter_map(|(&class, queue)| {
            let (rank, node) = queue.first()?;
            let worker = self.idle_of_class(class)?;
            Some((rank, Pick { worker, task: Some((Stand::Bound(class), rank, node)) }))
        });
        picks.min_by_key(|(rank, _)| *rank).map(|(_, pick)| pick)
    }

    fn idle_of_class(&self, at: ClassIx) -> Option<WorkerId> {
        let class = self.classes.all.get(&at)?;
        if let Some(workers) = &class.workers {
            let suits = |id: &WorkerId| self.roster.worker(*id).is_some_and(|w| self.suits(w, &class.needs));
            return workers.iter().copied().find(suits);
        }
        self.roster.pools.idle_with(&class.needs)
    }

    fn suits(&self, worker: &Worker, needs: &Resources) -> bool {
        let has = needs.is_empty() || worker.pool.is_some_and(|pool| self.roster.pools.has_left(pool, needs));
        worker.is_idle() && worker.is_shared() && has
    }

    /// Fails the ready tasks for which there is no worker, and to which none will come.
    pub(super) fn give_up_bound(&mut self, out: &mut Out<'_>) {
        if !std::mem::take(&mut self.outlook_changed) || self.config.open {
            return;
        }
        let calls = self.hungry.iter().filter_map(|id| self.calls.get(id));
        let queues: Vec<_> = calls.flat_map(|call| &call.ready.bound).collect();
        let (mut hopeful, mut hopeless) = (Vec::new(), Vec::new());
        for (&class, queue) in queues {
            if self.has_hope(class) {
                hopeful.push(class);
            } else {
                let how = if self.is_startable(class) { Resolution::NoWorkers } else { Resolution::Unrunnable };
                hopeless.extend(queue.iter().map(|(rank, node)| (rank, node, how)));
            }
        }
        for class in hopeful {
            if let Some(class) = self.classes.all.get_mut(&class) {
                class.hopeful_at = self.outlook;
            }
        }
        hopeless.sort_unstable_by_key(|(rank, ..)| *rank);
        for (_, node, how) in hopeless {
            if how == Resolution::NoWorkers {
                // Whatever is submitted next is worth a new try.
                self.start_failures = 0;
            }
            self.fail(node, how, out);
        }
        self.settle(out);
    }

    /// Workers came or went, or will not come.
    pub(super) fn change_outlook(&mut self) {
        self.outlook += 1;
        self.outlook_changed = true;
    }

    /// A worker is there that could run tasks of the class some day, or may yet come.
    fn has_hope(&self, at: ClassIx) -> bool {
        let Some(class) = self.classes.all.get(&at) else { return false };
        let able = |id: &WorkerId| self.roster.worker(*id).is_some_and(|w| self.could_suit(w, &class.needs));
        match &class.workers {
            Some(workers) => workers.iter().any(|id| self.roster.is_starting(*id) || able(id)),
            None => {
                let starts = self.start_failures < self.config.max_start_failures && self.config.max_workers > 0;
                let comes = starts || self.roster.starting() > 0;
                (comes && self.is_startable(at)) || self.roster.pools.any_could_give(&class.needs)
            }
        }
    }

    fn could_suit(&self, worker: &Worker, needs: &Resources) -> bool {
        let serves = worker.is_shared() && !worker.leaving;
        let has = needs.is_empty() || worker.pool.is_some_and(|pool| self.roster.pools.could_give(pool, needs));
        serves && has
    }

    /// A worker that is started on demand has what the class needs.
    fn is_startable(&self, at: ClassIx) -> bool {
        let class = self.classes.all.get(&at).filter(|class| class.workers.is_none());
        class.is_some_and(|class| could_give(&self.config.start_resources, &class.needs))
    }

    /// Bound tasks of the call that a worker started now could run.
    pub(super) fn bound_to_start_for(&self, call: &Call) -> usize {
        let bound = call.ready.bound.iter().filter(|(&class, _)| !call.paused && self.is_startable(class));
        bound.map(|(_, queue)| queue.len()).sum()
    }
}

impl Worker {
    /// Whose resources its tasks hold; `None` where there are none.
    pub(super) fn pool_of(id: WorkerId, spec: &crate::event::WorkerSpec) -> Option<PoolKey> {
        match spec.host {
            // Helpers do what any thread can do.
            _ if spec.only.is_some() => None,
            Some(host) => Some(PoolKey::Host(host)),
            None if spec.resources.is_empty() => None,
            None => Some(PoolKey::Worker(id)),
        }
    }
}
