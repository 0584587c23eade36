//! What each event changes.

use crate::action::{Action, KillReason, Resolution};
use crate::event::{CallSpec, Event, WorkerSpec};
use crate::id::{Attempt, CallId, TaskId, WorkerId};

use super::call::{Call, Task};
use super::worker::{Ask, Slot, Worker};
use super::{Out, Scheduler};

impl Scheduler {
    pub(super) fn apply(&mut self, event: Event, out: &mut Out<'_>) {
        match event {
            Event::CallOpened { call, spec } => self.call_opened(call, spec),
            Event::CallClosed { call } => self.call_closed(call, out),
            Event::CallPaused { call, paused } => self.call_paused(call, paused),
            Event::CallDepth { call, depth } => self.call_depth(call, depth),
            Event::HelperExcused { call } => self.helper_excused(call),
            Event::TaskSubmitted { call, task, items, urgent } => self.task_submitted(call, task, items, urgent),
            Event::GraphSubmitted { call, tasks } => self.graph_submitted(call, tasks, out),
            Event::TasksReleased { call, tasks } => self.tasks_released(call, &tasks),
            Event::TasksCancelled { call, tasks, force } => self.tasks_cancelled(call, &tasks, force, out),
            Event::ReplicaAdded { worker, task } => self.replica_added(worker, task, out),
            Event::ReplicaLost { worker, task } => self.replica_lost(worker, task, out),
            Event::WorkerJoined { worker, spec } => self.worker_joined(worker, spec),
            Event::WorkerLeaving { worker } => self.worker_leaving(worker),
            Event::WorkerLost { worker } => self.worker_lost(worker, out),
            Event::TaskFinished { worker, task, attempt, outcome, size_bytes } => {
                self.task_finished(worker, task, attempt, (outcome, size_bytes), out);
            }
            Event::TaskReturned { worker, task, attempt, kept } => {
                self.task_returned(worker, task, attempt, kept, out);
            }
            Event::TaskParked { worker, task, attempt } => self.task_parked(worker, task, attempt),
            Event::TaskResumed { worker, task, attempt } => self.task_resumed(worker, task, attempt),
            Event::WorkersRequested { count } => self.workers_requested(count),
            Event::TimePassed => {}
        }
    }

    fn call_opened(&mut self, call: CallId, spec: CallSpec) {
        if let std::collections::btree_map::Entry::Vacant(entry) = self.calls.entry(call) {
            entry.insert(Call::new(spec));
            // What kept workers from starting may have passed.
            (self.start_failures, self.idle_deaths) = (0, 0);
        }
    }

    fn call_closed(&mut self, call: CallId, out: &mut Out<'_>) {
        let Some(closed) = self.calls.get(&call) else {
            return;
        };
        let engaged: Vec<WorkerId> = closed.engaged.keys().copied().collect();
        self.close_graph(call, out);
        self.abandon_parked(call);
        for worker in engaged {
            self.abandon(worker, call, out);
        }
        let Some(closed) = self.calls.remove(&call) else {
            return;
        };
        self.hungry.remove(&call);
        for task in closed.waiting_tasks() {
            self.live.remove(&task.id);
        }
        for helper in closed.helpers {
            if let Some(worker) = self.roster.workers.get_mut(&helper) {
                worker.leaving = true;
            }
            self.refile(helper);
        }
    }

    /// Disowns what the worker holds of a call, and sees that little of it is run in vain.
    fn abandon(&mut self, on: WorkerId, call: CallId, out: &mut Out<'_>) {
        let Some(worker) = self.roster.worker(on) else {
            return;
        };
        let (runs, killable, leaving) = (worker.runs(call), worker.spec.killable, worker.leaving);
        let slots = worker.slots.iter().enumerate().filter(|(_, slot)| slot.serves(call));
        // One that runs and cannot be ended may at least leave out the items that it has not begun.
        let slots = slots.map(|(at, slot)| {
            let has_more = at > 0 || slot.task.items > 1;
            (at, slot.task.id, has_more && slot.ask.is_none())
        });
        // The results of others are worth more than the time that is lost.
        let loses = !worker.results.is_empty() && !self.config.durable;
        let spared = loses && worker.slots.front().is_some_and(|slot| slot.task.node.is_some());
        let ends = runs && killable && !leaving && !spared;
        for (at, task, worth_asking) in slots.collect::<Vec<_>>() {
            self.live.remove(&task);
            self.disown(on, at);
            if worth_asking && !leaving && !ends {
                self.ask(on, at, Ask::Whole, out);
            }
        }
        if ends {
            self.kill(on, KillReason::Cancelled, out);
        }
    }

    fn workers_requested(&mut self, count: u32) {
        self.floor = count;
        (self.start_failures, self.idle_deaths) = (0, 0);
    }

    fn call_paused(&mut self, call: CallId, paused: bool) {
        if let Some(open) = self.calls.get_mut(&call) {
            open.paused = paused;
            self.hungry.insert(call);
        }
    }

    fn call_depth(&mut self, call: CallId, depth: u32) {
        if let Some(open) = self.calls.get_mut(&call) {
            open.spec.depth = depth.max(1);
            self.hungry.insert(call);
        }
    }

    fn helper_excused(&mut self, call: CallId) {
        if let Some(call) = self.calls.get_mut(&call) {
            call.awaited = false;
        }
    }

    fn task_submitted(&mut self, call: CallId, id: TaskId, items: u32, urgent: bool) {
        let Some(open) = self.calls.get_mut(&call) else {
            return;
        };
        if self.graph.find(id).is_some() || !self.live.insert(id) {
            return;
        }
        let task = Task { id, items: items.max(1), attempt: Attempt(0), deaths: 0, node: None };
        open.submit(task, urgent);
        self.hungry.insert(call);
    }

    fn worker_joined(&mut self, id: WorkerId, spec: WorkerSpec) {
        if self.roster.stop_waiting_for(id) {
            self.start_failures = 0;
        } else if !self.roster.is_free_foreign_id(id) {
            return;
        }
        let mut worker = Worker::new(spec, true);
        if let Some(only) = worker.spec.only {
            match self.calls.get_mut(&only) {
                Some(call) => {
                    call.awaited = false;
                    call.helpers.insert(id);
                    worker.counts = !call.spec.nested;
                }
                None => worker.leaving = true,
            }
        }
        self.roster.add(id, worker);
        self.change_outlook();
        self.refile(id);
    }

    fn worker_leaving(&mut self, id: WorkerId) {
        self.leave(id);
        self.change_outlook();
    }

    fn worker_lost(&mut self, id: WorkerId, out: &mut Out<'_>) {
        if self.roster.stop_waiting_for(id) {
            self.start_failures = self.start_failures.saturating_add(1);
            self.change_outlook();
            return;
        }
        let leaving = self.roster.worker(id).is_some_and(|worker| worker.leaving);
        let Some(mut worker) = self.take_out(id) else {
            return;
        };
        // It did start: whoever takes its place deserves a try.
        self.start_failures = self.start_failures.min(self.config.max_start_failures - 1);
        // One that was told to end, or a helper that walked away, did not die of its task.
        let mut blamed = worker.is_shared() && !leaving;
        // Only tasks may cost workers without end: they are given up in time.
        let replaced = blamed && self.roster.shared_or_starting() < self.floor as usize;
        self.idle_deaths += u32::from(replaced && worker.slots.is_empty() && worker.parked.is_empty());
        let mut back = Vec::with_capacity(worker.slots.len());
        let parked = std::mem::take(&mut worker.parked);
        self.parked -= parked.len();
        for slot in parked.into_iter().filter(|slot| slot.wanted) {
            // It may have been going on again.
            self.bereaved(id, slot, blamed, &mut back, out);
        }
        for mut slot in std::mem::take(&mut worker.slots) {
            let running = std::mem::take(&mut blamed);
            if !slot.wanted {
                continue;
            }
            if running && slot.task.items > 1 {
                // One of its items did it: in halves, the others are soon clear of it.
                slot.task.items /= 2;
                out.push(Action::Remainder { call: slot.call, task: slot.task.id, kept: slot.task.items });
                back.push((slot.call, slot.task));
                continue;
            }
            self.bereaved(id, slot, running, &mut back, out);
        }
        for (call, task) in back.into_iter().rev() {
            self.requeue(call, task, out);
        }
        self.results_lost(id, &mut worker, out);
    }

    /// A task has lost its worker. One that was running may be why.
    fn bereaved(
        &mut self,
        worker: WorkerId,
        mut slot: Slot,
        running: bool,
        back: &mut Vec<(CallId, Task)>,
        out: &mut Out<'_>,
    ) {
        slot.task.deaths += u32::from(running);
        if running && self.gives_up(slot.call, slot.task.deaths) {
            let resolution = Resolution::WorkerCrashed { worker, deaths: slot.task.deaths };
            self.resolve(slot.call, &slot.task, resolution, out);
        } else {
            back.push((slot.call, slot.task));
        }
    }

    fn gives_up(&self, call: CallId, deaths: u32) -> bool {
        let call = self.calls.get(&call);
        call.is_none_or(|call| deaths > call.spec.crash_retries)
    }
}
