//! Tasks that not every worker may run: those that ask for resources, or for certain workers.
//!
//! Ready tasks that ask for the same are a class, and stand in a queue of their own, so that they hold up no
//! others. Such a task goes to an idle worker only, and holds its resources until it is off that worker.

use crate::action::Resolution;
use crate::id::{TaskId, WorkerId};
use crate::resources::{Grant, Resources};

use super::call::Call;
use super::classes::ClassIx;
use super::node::State;
use super::place::Pick;
use super::pool::{could_give, PoolKey};
use super::ready::{ReadyQueue, Stand};
use super::worker::Worker;
use super::{Out, Scheduler};

impl Scheduler {
    /// What a task holds of its worker's resources, while it is on one, parked or not.
    pub fn granted(&self, task: TaskId) -> &[Grant] {
        let node = self.graph.find(task).map(|at| &self.graph[at]);
        let Some(State::Assigned { worker, attempt }) = node.map(|node| &node.state) else {
            return &[];
        };
        let slot = self.roster.held(*worker, task, *attempt);
        slot.and_then(|slot| slot.grants.as_deref()).unwrap_or(&[])
    }

    /// The first of the call's bound tasks for which a worker is idle.
    pub(super) fn bound_pick(&self, call: &Call) -> Option<Pick> {
        if call.ready.bound.is_empty() || self.roster.idle() == 0 || self.core_allowance(call) == 0 {
            return None;
        }
        let anywhere = call.ready.bound.range(ClassIx::any_worker()).filter_map(|(&class, queue)| {
            let worker = self.roster.pools.idle_with(self.classes.needs(class)?)?;
            Some((class, queue, worker))
        });
        let picks = anywhere.chain(self.pinned_pairs(call)).filter_map(|(class, queue, worker)| {
            let (rank, node) = queue.first()?;
            Some((rank, Pick { worker, task: Some((Stand::Bound(class), rank, node)) }))
        });
        picks.min_by_key(|(rank, _)| *rank).map(|(_, pick)| pick)
    }

    /// Idle workers with classes that name them. Starts from whichever are fewer.
    fn pinned_pairs<'a>(
        &'a self,
        call: &'a Call,
    ) -> Box<dyn Iterator<Item = (ClassIx, &'a ReadyQueue, WorkerId)> + 'a> {
        let bound = &call.ready.bound;
        if self.roster.idle() < bound.len() {
            let pairs = self.roster.idle_coldest_first().flat_map(|id| self.classes.naming(id).map(move |at| (id, at)));
            let suiting = pairs.filter(|&(id, at)| self.suits(id, at));
            return Box::new(suiting.filter_map(|(id, at)| Some((at, bound.get(&at)?, id))));
        }
        Box::new(bound.range(ClassIx::certain_workers()).filter_map(|(&at, queue)| {
            let named = self.classes.get(at)?.workers.as_deref()?;
            Some((at, queue, named.iter().copied().find(|&id| self.suits(id, at))?))
        }))
    }

    fn suits(&self, id: WorkerId, at: ClassIx) -> bool {
        let Some((worker, needs)) = self.roster.worker(id).zip(self.classes.needs(at)) else {
            return false;
        };
        let has = needs.is_empty() || worker.pool.is_some_and(|pool| self.roster.pools.has_left(pool, needs));
        worker.is_idle() && worker.is_shared() && has
    }

    /// A ready task is bound to the worker, or to what it has. Nothing is prefetched for it: it would never be idle
    /// as long as there are other tasks.
    pub(super) fn is_reserved(&self, id: WorkerId) -> bool {
        if self.bound_ready == 0 {
            return false;
        }
        let Some(worker) = self.roster.worker(id) else { return false };
        let could = |at: ClassIx| self.classes.needs(at).is_some_and(|needs| self.could_suit(worker, needs));
        let calls = self.hungry.iter().filter_map(|id| self.calls.get(id));
        let takes = |call: &&Call| !call.paused && (call.room() > 0 || call.engaged.contains_key(&id));
        let mut waiting = calls.filter(takes).map(|call| &call.ready.bound);
        waiting.any(|bound| {
            let named = self.classes.naming(id).any(|at| bound.contains_key(&at) && could(at));
            named || bound.range(ClassIx::any_worker()).any(|(&at, _)| could(at))
        })
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
            if let Some(class) = self.classes.get_mut(class) {
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
        let Some(class) = self.classes.get(at) else { return false };
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
        let class = self.classes.get(at).filter(|class| class.workers.is_none());
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
