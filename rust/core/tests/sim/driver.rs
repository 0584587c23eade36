//! The driver: tells the machine what happened, and carries its actions out.

use std::hash::Hash;
use std::time::Duration;

use rustdask_core::{Action, Actions, Attempt, CallId, Event, TaskId, Time, WorkerId};

use crate::calls::SimTask;
use crate::worker::Order;
use crate::world::{Happening, World};

impl World {
    pub(crate) fn tell(&mut self, event: Event, ran: Option<u32>) {
        self.inbox.push_back((event, ran));
    }

    /// Lets the machine handle what it was told, one event after the other, as a driver does.
    pub(crate) fn drive(&mut self) {
        while let Some((event, ran)) = self.inbox.pop_front() {
            self.say(&event);
            let mut actions = Actions::default();
            let now = Duration::from_micros(self.now_us);
            self.before(&event);
            self.machine.handle(now, event, &mut actions);
            if let Err(what) = self.machine.check() {
                panic!("{what}");
            }
            let deadline = self.machine.next_deadline();
            assert!(deadline.is_none_or(|time| time > now), "a deadline was not kept");
            for (_, action) in actions.drain() {
                self.say(&action);
                format!("{action:?}").hash(&mut self.trace);
                self.carry_out(action, ran);
            }
        }
    }

    /// What an event means to the submitters: a worker that is lost, or gives a task back, holds it no more.
    pub(crate) fn before(&mut self, event: &Event) {
        match *event {
            Event::CallClosed { call } => self.forget(call),
            Event::WorkerLost { worker } => {
                let tasks = self.ledger.tasks.values_mut();
                let held = tasks.filter(|task| task.held_by.is_some_and(|(by, _)| by == worker));
                held.for_each(|task| task.held_by = None);
            }
            Event::TaskReturned { worker, task, attempt, kept: 0 } => {
                if let Some(task) = self.ledger.tasks.get_mut(&task) {
                    task.held_by = task.held_by.filter(|&by| by != (worker, attempt));
                }
            }
            _ => {}
        }
    }

    pub(crate) fn carry_out(&mut self, action: Action, ran: Option<u32>) {
        match action {
            Action::StartWorker { worker } => {
                let works = !self.rng.chance(self.faults.failed_start);
                self.soon(3000, Happening::Started(worker, works));
            }
            Action::Run { worker, task, attempt } => self.hand_out(worker, task, attempt),
            Action::Retract { worker, task, attempt } => self.send(worker, Order::Retract { task, attempt }),
            Action::Kill { worker, .. } => {
                assert!(!self.threads && worker.0 < 1 << 31, "{worker:?} cannot be killed");
                self.send(worker, Order::Die);
            }
            Action::Forget { .. } | Action::Gone { .. } | Action::Lost { .. } | Action::Restored { .. } => {
                panic!("{action:?} is not about a graph")
            }
            Action::Remainder { call, task, kept } => self.split(call, task, kept),
            Action::Resolve { call, task, resolution } => {
                let now = Duration::from_micros(self.now_us);
                self.ledger.settle(task, call, resolution, now, ran);
                self.close_if_done(call);
            }
        }
    }

    pub(crate) fn hand_out(&mut self, worker: WorkerId, id: TaskId, attempt: Attempt) {
        let task = self.ledger.tasks.get_mut(&id).expect("what is handed out is not resolved");
        assert_eq!(task.held_by, None, "{id:?} is on two workers");
        task.held_by = Some((worker, attempt));
        task.handed_out = Duration::from_micros(self.now_us);
        let (call, items) = (task.call, task.items);
        let sim = &self.ledger.calls[&call];
        let held = self.ledger.holders(call);
        assert!(held <= sim.spec.cap as usize, "{call:?} has {held} workers: {:?}", sim.spec);
        self.send(worker, Order::Run { task: id, attempt, items });
    }

    /// Submits what is left of a task that was cut, in one or two parts.
    pub(crate) fn split(&mut self, call: CallId, id: TaskId, kept: u32) {
        let task = self.ledger.tasks.get_mut(&id).expect("what is split is not resolved");
        assert!(0 < kept && kept < task.items, "{id:?} is cut from {} to {kept}", task.items);
        let (middle, end) = (task.first + kept, task.first + task.items);
        task.items = kept;
        let (culprit, item_us) = (task.culprit, task.item_us);
        let cut = self.rng.small(middle, end - 1);
        for (first, end) in [(middle, cut), (cut, end)] {
            if first < end {
                let part = SimTask {
                    call,
                    first,
                    items: end - first,
                    culprit,
                    item_us,
                    nests: false,
                    held_by: None,
                    handed_out: Time::ZERO,
                };
                self.submit(part, true);
            }
        }
    }
}
