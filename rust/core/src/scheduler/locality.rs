//! Where ready tasks are at home: on the worker that has most of their input.
//!
//! A task waits for its home while that costs less than moving its input to an idle worker would. What moving
//! costs is guessed from sizes, what waiting costs from how long the call's tasks took so far.

use std::ops::Bound;
use std::time::Duration;

use crate::event::Time;
use crate::id::{CallId, TaskId, WorkerId};

use super::call::Call;
use super::classes::ClassIx;
use super::node::{NodeIx, State};
use super::place::Pick;
use super::ready::{Rank, ReadyQueue, Stand};
use super::worker::Worker;
use super::Scheduler;

/// A result that more workers have than this is near everywhere, and says nothing about where to go.
const MANY_HOLDERS: usize = 8;
/// So many homes are looked at for a task that pays to move.
const MOST_LOOKED_AT: usize = 4;
/// Of so many inputs the sizes are added up; more are taken to be like these.
const MOST_WEIGHED: usize = 64;
/// So many workers that tasks have come home to are looked at after each event.
pub(super) const MOST_STIRRED: usize = 16;

impl Scheduler {
    /// Puts a task that waits for nothing into the queue where it belongs.
    pub(super) fn queue(&mut self, at: NodeIx) {
        let node = &self.graph[at];
        let (rank, call) = (Rank::of(node), node.call);
        let home = if node.class.is_none() { self.home(at) } else { None };
        let node = &mut self.graph[at];
        node.roams = false;
        node.state = State::Ready { home };
        let stand = stand(node.class, home);
        if let Stand::Bound(class) = stand {
            self.bound_ready += 1;
            self.outlook_changed |= !self.classes.is_hopeful(class, self.outlook);
        }
        if let Some(open) = self.calls.get_mut(&call) {
            open.ready.push(stand, rank, at);
            self.hungry.insert(call);
        }
        if let Some(home) = home {
            self.count_at_home(home, true);
            self.stir(home);
        }
    }

    /// Takes a ready task out of its queue.
    pub(super) fn unqueue(&mut self, at: NodeIx) {
        let node = &self.graph[at];
        let State::Ready { home } = node.state else { return };
        let (rank, call, stand) = (Rank::of(node), node.call, stand(node.class, home));
        self.bound_ready -= usize::from(matches!(stand, Stand::Bound(_)));
        if let Some(open) = self.calls.get_mut(&call) {
            open.ready.remove(stand, rank);
        }
        if let Some(home) = home {
            self.count_at_home(home, false);
        }
    }

    fn count_at_home(&mut self, home: WorkerId, more: bool) {
        let Some(worker) = self.roster.workers.get_mut(&home) else { return };
        let before = worker.at_home;
        worker.at_home = if more { before + 1 } else { before - 1 };
        if (before == 0) != (worker.at_home == 0) {
            self.refile(home);
        }
    }

    /// Something may be possible on the worker that was not before this event.
    pub(super) fn stir(&mut self, worker: WorkerId) {
        if self.stirred.len() < MOST_STIRRED && !self.stirred.contains(&worker) {
            self.stirred.push(worker);
        }
    }

    /// Nothing is at home on a worker that takes no more.
    pub(super) fn evict(&mut self, from: WorkerId) {
        if self.roster.worker(from).is_none_or(|worker| worker.at_home == 0) {
            return;
        }
        let queues = self.calls.values().filter_map(|call| call.ready.homes.get(&from));
        let tasks: Vec<NodeIx> = queues.flat_map(|queue| queue.iter().map(|(_, at)| at)).collect();
        for at in tasks {
            self.unqueue(at);
            self.queue(at);
        }
    }

    fn home(&self, at: NodeIx) -> Option<WorkerId> {
        let node = &self.graph[at];
        let links = if node.roams { &[] } else { node.dependencies.as_slice() };
        let inputs = links.iter().map(|link| &self.graph[link.node]);
        let mut near = inputs.filter(|input| input.holders().len() <= MANY_HOLDERS);
        if links.len() == 1 {
            let mut holders = near.next()?.holders().iter().map(|holder| holder.worker);
            let idle = |id: &WorkerId| self.is_home(*id) && self.roster.worker(*id).is_some_and(Worker::is_idle);
            return holders.clone().find(idle).or_else(|| holders.find(|id| self.is_home(*id)));
        }
        let pairs = near.flat_map(|input| input.holders().iter().map(|holder| (holder.worker, input.size_bytes())));
        let mut bytes: Vec<(WorkerId, u64)> = pairs.collect();
        bytes.sort_unstable();
        let sums = bytes.chunk_by(|a, b| a.0 == b.0).map(|same| {
            let sum = same.iter().fold(0u64, |sum, (_, size)| sum.saturating_add(*size));
            (sum, same.len(), std::cmp::Reverse(same[0].0))
        });
        let homes = sums.filter(|(.., id)| self.is_home(id.0));
        homes.max().map(|(.., id)| id.0)
    }

    fn is_home(&self, id: WorkerId) -> bool {
        self.roster.worker(id).is_some_and(|worker| worker.is_shared() && !worker.leaving)
    }

    /// An idle worker that tasks of the call are at home on.
    pub(super) fn owner_pick(&self, call: &Call) -> Option<Pick> {
        let mut owners = self.roster.idle_owners().filter(|id| call.ready.homes.contains_key(id));
        let worker = owners.next().filter(|_| self.core_allowance(call) > 0)?;
        call.ready.first_for(worker).map(|task| Pick { worker, task: Some(task) })
    }

    /// A task that is at home elsewhere, and that pays to move to the idle worker.
    pub(super) fn moving_pick(&self, to: WorkerId, call: &Call) -> Option<Pick> {
        let mut candidates = self.candidates(to, call);
        candidates.find_map(|(home, rank, at)| {
            let task = Some((Stand::Home(home), rank, at));
            self.pays_from(home, to, call, at).is_none_or(|time| time < self.now).then_some(Pick { worker: to, task })
        })
    }

    /// When it may pay to move a task to a worker that is idle now.
    pub(super) fn next_move(&self) -> Option<Time> {
        let to = self.roster.warmest_idle()?;
        let calls = self.hungry.iter().filter_map(|id| self.calls.get(id));
        let able = calls.filter(|call| !call.paused && call.room() > 0 && self.core_allowance(call) > 0);
        let times = able
            .flat_map(|call| self.candidates(to, call).filter_map(|(home, _, at)| self.pays_from(home, to, call, at)));
        times.filter(|&time| time >= self.now).map(|time| time.saturating_add(Duration::from_nanos(1))).min()
    }

    fn candidates<'a>(&'a self, to: WorkerId, call: &'a Call) -> impl Iterator<Item = (WorkerId, Rank, NodeIx)> + 'a {
        let homes = &call.ready.homes;
        let after = homes.range((Bound::Excluded(to), Bound::Unbounded));
        let owners = after.chain(homes.range(..to)).take(MOST_LOOKED_AT);
        owners.filter_map(|(&home, queue): (_, &ReadyQueue)| {
            let (rank, at) = queue.first()?;
            Some((home, rank, at))
        })
    }

    /// After which time the home has been busy for longer than the move would take; `None`: it pays at once.
    fn pays_from(&self, home: WorkerId, to: WorkerId, call: &Call, at: NodeIx) -> Option<Time> {
        let worker = self.roster.worker(home).filter(|worker| !worker.leaving && !worker.is_stuck())?;
        let moving = self.moving_time(at, to);
        let ahead = worker.slots.len() as u32 + worker.at_home.saturating_sub(1);
        let waiting = call.mean?.saturating_mul(ahead);
        if waiting > moving {
            return None;
        }
        Some(worker.head_since.saturating_add(moving))
    }

    fn moving_time(&self, at: NodeIx, to: WorkerId) -> Duration {
        let links = self.graph[at].dependencies.as_slice();
        let sample = links.iter().take(MOST_WEIGHED).map(|link| &self.graph[link.node]);
        let far = sample.filter(|input| {
            let holders = input.holders();
            holders.len() <= MANY_HOLDERS && holders.iter().all(|holder| holder.worker != to)
        });
        let bytes = far.fold(0u64, |sum, input| sum.saturating_add(input.size_bytes()));
        let bytes = u128::from(bytes) * links.len().max(1) as u128 / links.len().clamp(1, MOST_WEIGHED) as u128;
        let nanos = bytes.saturating_mul(1_000_000_000) / u128::from(self.config.bandwidth_bytes_per_s.max(1));
        let transfer = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.config.latency.saturating_add(transfer)
    }

    /// A task to prefetch for a worker of the call that something has happened to, or else for the one that has
    /// least.
    pub(super) fn ready_to_prefetch(&self, id: CallId, call: &Call) -> Option<Pick> {
        let stirred = self.stirred.iter().copied().filter(|worker| {
            let takes = call.engaged.contains_key(worker) && !self.is_reserved(*worker);
            takes && self.roster.worker(*worker).is_some_and(|w| w.takes_more(id, &call.spec))
        });
        let mut picks = stirred.filter_map(|worker| self.prefetch_pick(worker, call));
        picks.next().or_else(|| self.prefetch_pick(self.engaged_with_room(id, call)?, call))
    }

    /// While a worker is idle, tasks wait for their home where they can be taken from.
    pub(super) fn prefetch_pick(&self, worker: WorkerId, call: &Call) -> Option<Pick> {
        let task = call.ready.first_for(worker)?;
        let movable = matches!(task.0, Stand::Home(_)) && self.roster.idle() > 0 && call.room() > 0;
        let free = self.roster.worker(worker).is_some_and(|w| !w.knows(self.graph[task.2].id));
        (free && !movable).then_some(Pick { worker, task: Some(task) })
    }
}

impl Worker {
    /// It still has something of an earlier attempt at the task.
    fn knows(&self, task: TaskId) -> bool {
        self.slots.iter().any(|slot| slot.task.id == task)
    }
}

fn stand(class: Option<ClassIx>, home: Option<WorkerId>) -> Stand {
    match (class, home) {
        (Some(class), _) => Stand::Bound(class),
        (None, Some(home)) => Stand::Home(home),
        (None, None) => Stand::Open,
    }
}
