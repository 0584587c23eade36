//! Who has which result, and what happens when a result is lost, or a task comes back without one.

use crate::action::Action;
use crate::id::{Attempt, TaskId, WorkerId};

use super::call::Task;
use super::node::{Holder, NodeIx, State};
use super::worker::{Ask, Worker};
use super::{Out, Scheduler};

impl Scheduler {
    /// Workers that have the task's result. Where results are durable, there may be none, and the shell has it.
    pub fn holders(&self, task: TaskId) -> impl Iterator<Item = WorkerId> + '_ {
        let node = self.graph.find(task).map(|at| &self.graph[at]);
        node.into_iter().flat_map(|node| node.holders()).map(|holder| holder.worker)
    }

    /// Tasks whose results the task takes. Where results are durable, to be asked before it ends.
    pub fn dependencies(&self, task: TaskId) -> impl Iterator<Item = TaskId> + '_ {
        let node = self.graph.find(task).map(|at| &self.graph[at]);
        let links = node.into_iter().flat_map(|node| node.dependencies.as_slice());
        links.map(|link| self.graph[link.node].id)
    }

    /// A report of this attempt by this worker will be taken. If it says that the task went well, its result is the
    /// one that counts; where results are durable, the shell keeps it then.
    pub fn awaits(&self, worker: WorkerId, task: TaskId, attempt: Attempt) -> bool {
        self.roster.held(worker, task, attempt).is_some_and(|slot| slot.wanted)
    }

    /// The task has run, and there is a result, which somebody needs.
    pub fn has_result(&self, task: TaskId) -> bool {
        self.size_bytes(task).is_some()
    }

    /// Size of the task's result; `None` while there is none.
    pub fn size_bytes(&self, task: TaskId) -> Option<u64> {
        let node = &self.graph[self.graph.find(task)?];
        matches!(node.state, State::Done { .. }).then(|| node.size_bytes())
    }

    /// The task of a graph is not [`Action::Gone`].
    pub fn knows(&self, task: TaskId) -> bool {
        self.graph.find(task).is_some()
    }

    /// Results that the worker has: what would be lost with it.
    pub fn results_on(&self, worker: WorkerId) -> impl ExactSizeIterator<Item = TaskId> + '_ {
        let results = self.roster.worker(worker).map_or(&[][..], |worker| &worker.results);
        results.iter().map(|&at| self.graph[at].id)
    }

    /// The task is on a worker that is expected to run it.
    pub fn is_assigned(&self, task: TaskId) -> bool {
        self.graph.find(task).is_some_and(|at| matches!(self.graph[at].state, State::Assigned { .. }))
    }

    /// It waits for others, and is in nobody's way.
    pub fn is_parked(&self, task: TaskId) -> bool {
        let at = self.graph.find(task);
        at.is_some_and(|at| match self.graph[at].state {
            State::Assigned { worker, attempt } => self.roster.parked_slot(worker, task, attempt).is_some(),
            _ => false,
        })
    }

    pub(super) fn replica_added(&mut self, worker: WorkerId, task: TaskId, out: &mut Out<'_>) {
        if self.roster.worker(worker).is_none() {
            return;
        }
        let node = self.graph.find(task);
        match node.map(|at| (at, &self.graph[at].state)) {
            Some((at, State::Done { .. })) => {
                if self.graph[at].holders().iter().all(|holder| holder.worker != worker) {
                    self.add_holder(at, worker);
                }
            }
            // It will have the result again in a moment.
            Some((_, State::Assigned { worker: on, .. })) if *on == worker => {}
            _ => out.push(Action::Forget { worker, task }),
        }
    }

    pub(super) fn replica_lost(&mut self, worker: WorkerId, task: TaskId, out: &mut Out<'_>) {
        let Some(at) = self.graph.find(task) else { return };
        let holder = self.graph[at].holders().iter().find(|holder| holder.worker == worker).copied();
        if let Some(holder) = holder {
            self.drop_from(worker, holder.at);
            // The news may be old, or wrong: now it is true.
            out.push(Action::Forget { worker, task });
            self.holder_gone(at, worker, out);
        }
    }

    pub(super) fn add_holder(&mut self, at: NodeIx, worker: WorkerId) {
        let Some(has) = self.roster.workers.get_mut(&worker).map(|worker| &mut worker.results) else {
            return;
        };
        if let State::Done { holders, .. } = &mut self.graph[at].state {
            holders.push(Holder { worker, at: has.len() as u32 });
            has.push(at);
        }
    }

    /// Takes a result off the worker's list; the last one of the list takes its place.
    pub(super) fn drop_from(&mut self, worker: WorkerId, place: u32) {
        let Some(worker_state) = self.roster.workers.get_mut(&worker) else { return };
        worker_state.results.swap_remove(place as usize);
        let Some(&moved) = worker_state.results.get(place as usize) else { return };
        if let State::Done { holders, .. } = &mut self.graph[moved].state {
            let holder = holders.as_mut_slice().iter_mut().find(|holder| holder.worker == worker);
            if let Some(holder) = holder {
                holder.at = place;
            }
        }
    }

    /// All that was on a lost worker, and perhaps nowhere else.
    pub(super) fn results_lost(&mut self, id: WorkerId, worker: &mut Worker, out: &mut Out<'_>) {
        for at in std::mem::take(&mut worker.results) {
            self.holder_gone(at, id, out);
        }
    }

    fn holder_gone(&mut self, at: NodeIx, worker: WorkerId, out: &mut Out<'_>) {
        if let State::Done { holders, .. } = &mut self.graph[at].state {
            if let Some(place) = holders.as_slice().iter().position(|holder| holder.worker == worker) {
                holders.swap_remove(place);
            }
            if holders.is_empty() && !self.config.durable {
                self.result_lost(at, out);
            }
        }
    }

    /// Nobody has the result: it is computed again, as long as it is needed.
    fn result_lost(&mut self, at: NodeIx, out: &mut Out<'_>) {
        self.graph[at].state = State::Released;
        for place in 0..self.graph[at].dependents.len() {
            let by = self.graph[at].dependents.as_slice()[place].node;
            self.input_lost(by, out);
        }
        let node = &self.graph[at];
        let (call, task) = (node.call, node.id);
        if node.wanted && node.resolved {
            out.push(Action::Lost { call, task });
        }
        if node.is_needed() {
            self.activate(at, out);
        } else {
            self.graph.loose.push(at);
        }
    }

    /// One more result is missing to the task. A worker that runs it may have got that before; one that has not
    /// begun it is asked for it.
    fn input_lost(&mut self, of: NodeIx, out: &mut Out<'_>) {
        if let State::Ready { .. } = self.graph[of].state {
            self.unqueue(of);
            self.graph[of].state = State::Waiting { missing: 0 };
        }
        let node = &mut self.graph[of];
        match &mut node.state {
            State::Waiting { missing } => *missing += 1,
            State::Assigned { worker, attempt } => {
                let (on, task, attempt) = (*worker, node.id, *attempt);
                let place = self.roster.find(on, task, attempt).filter(|&at| at > 0);
                let Some((worker, at)) = self.roster.worker(on).zip(place) else { return };
                if !worker.leaving && worker.slots[at].ask.is_none() {
                    self.ask(on, at, Ask::Whole, out);
                }
            }
            _ => {}
        }
    }

    /// A task is back from its worker without a result, to be run again.
    pub(super) fn back(&mut self, at: NodeIx, task: Task, out: &mut Out<'_>) {
        let (mut missing, mut failed) = (0, None);
        for link in self.graph[at].dependencies.as_slice() {
            match self.graph[link.node].state {
                State::Done { .. } => {}
                State::Failed { .. } => failed = Some(link.node),
                _ => missing += 1,
            }
        }
        let node = &mut self.graph[at];
        let task = task.next_attempt();
        (node.attempt, node.deaths) = (task.attempt, task.deaths);
        node.state = State::Waiting { missing };
        match failed {
            Some(by) => self.fail_after(at, by, out),
            None if missing == 0 => self.graph.woken.push(at),
            None => {}
        }
    }
}
