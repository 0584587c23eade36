//! All workers, and the indexes that find the right one without looking at the others.
//!
//! The indexes follow from each worker's state; only [`Roster::refile`] changes them.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::hash::BuildHasherDefault;

use crate::event::Time;
use crate::id::{Attempt, TaskId, WorkerId};

use super::live::InOrder;
use super::pool::Pools;
use super::worker::{Filing, Shelf, Slot, Worker};

/// Ids from here on are given by the shell, to helpers; those below by the machine.
const FIRST_FOREIGN_ID: u32 = 1 << 31;

#[derive(Debug, Default)]
pub(super) struct Roster {
    /// Never gone through to decide anything: its order means nothing.
    pub(super) workers: HashMap<WorkerId, Box<Worker>, BuildHasherDefault<InOrder>>,
    /// Asked for; neither joined nor failed.
    starting: BTreeSet<WorkerId>,
    /// The one that worked last comes first: its caches are warm.
    idle: BTreeSet<(Reverse<u64>, WorkerId)>,
    /// Workers that hold something and take more, the one with least first.
    roomy: BTreeSet<(usize, WorkerId)>,
    deadlines: BTreeSet<(Time, WorkerId)>,
    /// Idle workers that ready tasks are at home on.
    owners: BTreeSet<WorkerId>,
    pub(super) pools: Pools,
    busy: usize,
    /// Workers that any call may use.
    shared: usize,
    next_id: u32,
    /// Most tasks that any worker so far could hold.
    deepest: u32,
}

impl Roster {
    pub(super) fn worker(&self, id: WorkerId) -> Option<&Worker> {
        self.workers.get(&id).map(Box::as_ref)
    }

    pub(super) fn find(&self, id: WorkerId, task: TaskId, attempt: Attempt) -> Option<usize> {
        self.worker(id)?.find(task, attempt)
    }

    pub(super) fn slot(&self, id: WorkerId, task: TaskId, attempt: Attempt) -> Option<&Slot> {
        let worker = self.worker(id)?;
        worker.slots.get(worker.find(task, attempt)?)
    }

    pub(super) fn parked_slot(&self, id: WorkerId, task: TaskId, attempt: Attempt) -> Option<&Slot> {
        let worker = self.worker(id)?;
        worker.parked.get(worker.find_parked(task, attempt)?)
    }

    /// The task on the worker, parked or not.
    pub(super) fn held(&self, id: WorkerId, task: TaskId, attempt: Attempt) -> Option<&Slot> {
        self.slot(id, task, attempt).or_else(|| self.parked_slot(id, task, attempt))
    }

    /// An id for a new worker; `None` once all are used up.
    pub(super) fn start(&mut self) -> Option<WorkerId> {
        let id = WorkerId(self.next_id);
        if id.0 >= FIRST_FOREIGN_ID {
            return None;
        }
        self.next_id += 1;
        self.starting.insert(id);
        Some(id)
    }

    /// The worker will not come after all. False: it was not awaited.
    pub(super) fn stop_waiting_for(&mut self, id: WorkerId) -> bool {
        self.starting.remove(&id)
    }

    /// May a worker that nobody asked for have this id?
    pub(super) fn is_free_foreign_id(&self, id: WorkerId) -> bool {
        id.0 >= FIRST_FOREIGN_ID && !self.workers.contains_key(&id)
    }

    pub(super) fn add(&mut self, id: WorkerId, worker: Worker) {
        self.shared += usize::from(worker.is_shared());
        self.deepest = self.deepest.max(worker.spec.depth);
        let mut worker = worker;
        worker.pool = Worker::pool_of(id, &worker.spec);
        if let Some(pool) = worker.pool {
            self.pools.join(pool, &worker.spec.resources);
        }
        self.workers.insert(id, Box::new(worker));
    }

    /// Takes out a worker that is on no index any more.
    pub(super) fn remove(&mut self, id: WorkerId) -> Option<Worker> {
        let worker = self.workers.remove(&id)?;
        self.shared -= usize::from(worker.is_shared());
        for grants in worker.slots.iter().chain(&worker.parked).filter_map(|slot| slot.grants.as_deref()) {
            if let Some(pool) = worker.pool {
                self.pools.give_back(pool, grants);
            }
        }
        if let Some(pool) = worker.pool {
            self.pools.leave(pool);
        }
        Some(*worker)
    }

    /// Moves a worker's entries in the indexes.
    pub(super) fn refile(&mut self, id: WorkerId, old: Filing, new: Filing) {
        if old.shelf != new.shelf {
            self.unshelve(id, old.shelf);
            self.shelve(id, new.shelf);
        }
        if old.deadline != new.deadline {
            if let Some(time) = old.deadline {
                self.deadlines.remove(&(time, id));
            }
            self.deadlines.extend(new.deadline.map(|time| (time, id)));
        }
        if old.owner != new.owner {
            if new.owner {
                self.owners.insert(id);
            } else {
                self.owners.remove(&id);
            }
        }
        self.busy = self.busy + usize::from(new.busy) - usize::from(old.busy);
    }

    fn unshelve(&mut self, id: WorkerId, shelf: Shelf) {
        match shelf {
            Shelf::Off => true,
            Shelf::Idle(rested) => {
                self.offer(id, rested, false);
                self.idle.remove(&(Reverse(rested), id))
            }
            Shelf::Roomy(load) => self.roomy.remove(&(load, id)),
        };
    }

    fn shelve(&mut self, id: WorkerId, shelf: Shelf) {
        match shelf {
            Shelf::Off => true,
            Shelf::Idle(rested) => {
                self.offer(id, rested, true);
                self.idle.insert((Reverse(rested), id))
            }
            Shelf::Roomy(load) => self.roomy.insert((load, id)),
        };
    }

    /// Lets the pool know whether its worker is idle.
    fn offer(&mut self, id: WorkerId, rested: u64, idle: bool) {
        if let Some(pool) = self.workers.get(&id).and_then(|worker| worker.pool) {
            self.pools.set_idle(pool, id, rested, idle);
        }
    }

    pub(super) fn idle_owners(&self) -> impl Iterator<Item = WorkerId> + '_ {
        self.owners.iter().copied()
    }

    pub(super) fn is_starting(&self, id: WorkerId) -> bool {
        self.starting.contains(&id)
    }

    pub(super) fn warmest_idle(&self) -> Option<WorkerId> {
        self.idle.first().map(|&(_, id)| id)
    }

    pub(super) fn idle_coldest_first(&self) -> impl Iterator<Item = WorkerId> + '_ {
        self.idle.iter().rev().map(|&(_, id)| id)
    }

    /// Workers that hold something and take more, the one with least first.
    pub(super) fn roomy(&self) -> impl ExactSizeIterator<Item = (usize, WorkerId)> + '_ {
        self.roomy.iter().copied()
    }

    /// One that any call may use is there, and will be free some day.
    pub(super) fn has_able_worker(&self) -> bool {
        let mut workers = self.workers.values();
        workers.any(|worker| worker.is_shared() && !worker.is_stuck())
    }

    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.deadlines.first().map(|&(time, _)| time)
    }

    pub(super) fn overdue(&self, now: Time) -> Option<WorkerId> {
        let &(time, id) = self.deadlines.first()?;
        (time <= now).then_some(id)
    }

    pub(super) fn len(&self) -> usize {
        self.workers.len()
    }

    pub(super) fn deepest(&self) -> u32 {
        self.deepest
    }

    pub(super) fn starting(&self) -> usize {
        self.starting.len()
    }

    pub(super) fn idle(&self) -> usize {
        self.idle.len()
    }

    pub(super) fn busy(&self) -> usize {
        self.busy
    }

    /// Workers that any call may use, those still starting included.
    pub(super) fn shared_or_starting(&self) -> usize {
        self.shared + self.starting.len()
    }

    /// Workers that any call may use, without those that are about to end.
    pub(super) fn staying(&self) -> usize {
        self.workers.values().filter(|worker| worker.is_shared() && !worker.leaving && !worker.doomed).count()
    }

    /// Whether indexes and counts follow from the workers; says which does not.
    pub(super) fn check(&self) -> Result<(), String> {
        let mut fresh = Roster::default();
        for (&id, worker) in &self.workers {
            fresh.refile(id, Filing::default(), worker.filed);
            fresh.shared += usize::from(worker.is_shared());
        }
        let same = fresh.idle == self.idle
            && fresh.roomy == self.roomy
            && fresh.deadlines == self.deadlines
            && fresh.owners == self.owners
            && (fresh.busy, fresh.shared) == (self.busy, self.shared);
        let twice = self.starting.iter().any(|id| self.workers.contains_key(id));
        if same && !twice {
            return Ok(());
        }
        Err(format!("the roster is inconsistent: {self:?}"))
    }
}
