//! What the submitters do: open calls, submit tasks, abort, pause, close.

use rustdask_core::{CallId, Event, TaskId, Time};

use crate::calls::{SimCall, SimTask};
use crate::world::{Happening, World};

impl World {
    pub(crate) fn open(&mut self, sim: SimCall) -> CallId {
        let call = CallId(self.next_call);
        self.next_call += 1;
        let spec = sim.spec.clone();
        let helped = spec.helper_expected;
        self.ledger.calls.insert(call, sim);
        self.tell(Event::CallOpened { call, spec }, None);
        self.soon(500, Happening::Submit(call));
        if helped {
            let comes = self.rng.chance(70);
            self.soon(3000, if comes { Happening::HelperComes(call) } else { Happening::Excuse(call) });
        }
        if self.rng.chance(self.faults.abort) {
            self.soon(20_000, Happening::Abort(call));
        }
        if self.rng.chance(20) {
            let time = self.now_us + self.rng.range(0, 5000);
            self.at(time, Happening::Pause(call, true));
            let until = time + self.rng.range(0, 5000);
            self.at(until, Happening::Pause(call, false));
        }
        call
    }

    pub(crate) fn submit_some(&mut self, call: CallId) {
        let Some(sim) = self.ledger.calls.get(&call) else {
            return;
        };
        let (planned, nesting) = (sim.planned, sim.nesting);
        let burst = self.rng.small(0, 10).min(planned);
        for _ in 0..burst {
            let items = if self.rng.chance(30) { self.rng.small(2, 50) } else { 1 };
            let sim = self.ledger.calls.get_mut(&call).expect("is open");
            let first = sim.items_wanted;
            sim.planned -= 1;
            sim.items_wanted += items;
            let poison = self.rng.chance(self.faults.poison);
            let task = SimTask {
                call,
                first,
                items,
                culprit: poison.then(|| first + self.rng.small(0, items - 1)),
                nests: self.threads && nesting < 2 && self.rng.chance(10),
                item_us: if self.rng.chance(10) { self.rng.range(1, 8000) } else { self.rng.range(1, 300) },
                held_by: None,
                handed_out: Time::ZERO,
            };
            self.submit(task, false);
        }
        if burst < planned {
            self.soon(2000, Happening::Submit(call));
        }
        self.close_if_done(call);
    }

    pub(crate) fn submit(&mut self, sim: SimTask, urgent: bool) {
        let task = TaskId(self.next_task);
        self.next_task += 1;
        let (call, items) = (sim.call, sim.items);
        self.ledger.calls.get_mut(&call).expect("is open").unresolved += 1;
        self.ledger.tasks.insert(task, sim);
        self.tell(Event::TaskSubmitted { call, task, items, urgent }, None);
    }

    pub(crate) fn pause(&mut self, call: CallId, paused: bool) {
        if let Some(sim) = self.ledger.calls.get_mut(&call) {
            sim.paused = paused;
            self.tell(Event::CallPaused { call, paused }, None);
        }
    }

    pub(crate) fn close_if_done(&mut self, call: CallId) {
        let Some(sim) = self.ledger.calls.get(&call).filter(|sim| sim.is_done()) else {
            return;
        };
        assert_eq!(sim.settled.len(), sim.items_wanted as usize, "items of {call:?} were lost");
        self.close(call);
    }

    pub(crate) fn close(&mut self, call: CallId) {
        if self.ledger.calls.contains_key(&call) {
            self.tell(Event::CallClosed { call }, None);
        }
    }

    /// The machine is about to hear that the call is closed.
    pub(crate) fn forget(&mut self, call: CallId) {
        let Some(sim) = self.ledger.forget(call) else {
            return;
        };
        let helpers = self.workers.iter().filter(|(_, worker)| worker.spec.only == Some(call));
        for helper in helpers.map(|(&id, _)| id).collect::<Vec<_>>() {
            self.soon(500, Happening::HelperGoes(helper));
        }
        if let Some((worker, task, attempt)) = sim.parent {
            self.soon(10, Happening::ItemDone(worker, task, attempt, 0));
        }
    }
}
