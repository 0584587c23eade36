//! Moves work to workers that have none: takes back tasks that wait behind others, and tails of long ones.
//!
//! A request is made only where an idle worker may take what comes back, and only as many as there are
//! such workers, so nothing goes to and fro.

use crate::event::Time;
use crate::id::{CallId, WorkerId};

use super::call::Call;
use super::worker::{Ask, Worker};
use super::{Out, Scheduler};

impl Scheduler {
    pub(super) fn rebalance(&mut self, out: &mut Out<'_>) {
        let mut turn = None;
        while let Some(id) = self.hungry_after(turn) {
            turn = Some(id);
            while let Some(task) = self.movable(id) {
                match task {
                    Move::Whole(worker, places) => {
                        for at in places {
                            self.ask(worker, at, Ask::Whole, out);
                        }
                    }
                    Move::Tail(worker) => self.ask(worker, 0, Ask::Tail, out),
                }
            }
        }
    }

    /// When the next running task may be split for a worker that is idle.
    pub(super) fn next_split(&self) -> Option<Time> {
        let calls = self.hungry.iter().filter_map(|id| self.calls.get(id));
        let wanting = calls.filter(|call| self.wants_tail(call));
        wanting.filter_map(|call| call.splits.first()).map(|&(time, _)| time).min()
    }

    fn hungry_after(&self, turn: Option<CallId>) -> Option<CallId> {
        match turn {
            None => self.hungry.first().copied(),
            Some(id) => self.hungry.range(CallId(id.0.checked_add(1)?)..).next().copied(),
        }
    }

    /// What to take back of the call's tasks next, if anything.
    fn movable(&self, id: CallId) -> Option<Move> {
        let call = self.calls.get(&id)?;
        let thieves = self.thieves(call);
        if thieves == 0 {
            return None;
        }
        if call.room() == 0 {
            return self.relocatable(id, call);
        }
        if (call.recalls as usize) < call.room().min(thieves) {
            if let Some(task) = self.recallable(id, call) {
                return Some(task);
            }
        }
        let &(ready, worker) = call.splits.first()?;
        (ready <= self.now && self.wants_tail(call)).then_some(Move::Tail(worker))
    }

    /// Idle workers that the call could use.
    fn thieves(&self, call: &Call) -> usize {
        let shared = self.roster.idle().min(self.core_allowance(call));
        shared + self.idle_helpers(call).count()
    }

    fn engaged_to_stay<'a>(&'a self, call: &'a Call) -> impl Iterator<Item = (WorkerId, &'a Worker)> {
        let engaged = call.engaged.keys().filter_map(|&id| Some((id, self.roster.worker(id)?)));
        engaged.filter(|(_, worker)| !worker.leaving)
    }

    fn wants_tail(&self, call: &Call) -> bool {
        let asked = call.recalls + call.splits_asked;
        (asked as usize) < call.room().min(self.thieves(call))
    }

    /// The last task of the worker that has most of the call waiting. Looks no further than need be: with many
    /// workers, that is most of the cost of a call that comes to its end.
    fn recallable(&self, id: CallId, call: &Call) -> Option<Move> {
        if call.unstarted == call.recalls {
            return None;
        }
        let possible = self.roster.deepest().saturating_sub(1);
        let (mut most, mut best) = (0, None);
        for (&worker_id, &held) in &call.engaged {
            if held <= most {
                continue;
            }
            let Some(worker) = self.roster.worker(worker_id).filter(|worker| !worker.leaving) else {
                continue;
            };
            let (count, last) = worker.recallable(id, self.now).fold((0, 0), |(count, _), at| (count + 1, at));
            if count > most {
                (most, best) = (count, Some(Move::Whole(worker_id, vec![last])));
                if most >= possible {
                    break;
                }
            }
        }
        best
    }

    /// All tasks of the call on a worker that runs something else. The call may not engage one more worker,
    /// so it has to leave that one first.
    fn relocatable(&self, id: CallId, call: &Call) -> Option<Move> {
        if call.unstarted == 0 || call.recalls > 0 {
            return None;
        }
        let mut elsewhere = self.engaged_to_stay(call).filter(|(_, worker)| !worker.runs(id));
        elsewhere.find_map(|(worker_id, worker)| {
            let places: Vec<usize> = worker.recallable(id, self.now).collect();
            let all = call.engaged.get(&worker_id) == Some(&(places.len() as u32));
            all.then_some(Move::Whole(worker_id, places))
        })
    }
}

/// What to take back from a worker: tasks at these places, or the tail of the one that runs.
enum Move {
    Whole(WorkerId, Vec<usize>),
    Tail(WorkerId),
}
