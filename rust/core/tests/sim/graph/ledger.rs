//! What the clients want, and what they have been told; what may be told them.

use std::collections::{BTreeMap, BTreeSet};

use rustdask_core::{
    Amount, Attempt, CallId, CallSpec, Event, Outcome, Resolution, Resources, Scheduler, TaskId, WorkerId,
};

#[derive(Debug)]
pub(crate) struct SimTask {
    pub(crate) call: CallId,
    /// Belongs to no graph: its result goes to the client.
    pub(crate) plain: bool,
    pub(crate) dependencies: Vec<TaskId>,
    pub(crate) resources: Resources,
    pub(crate) workers: Option<Box<[WorkerId]>>,
    pub(crate) retries: u32,
    /// Its code raises in the first so many attempts that come to an end.
    pub(crate) errors: u32,
    pub(crate) poison: bool,
    pub(crate) run_us: u64,
    pub(crate) size_bytes: u64,
    pub(crate) wanted: bool,
    pub(crate) cancelled: bool,
    pub(crate) told: Option<Resolution>,
    pub(crate) lost: bool,
    pub(crate) submitted: bool,
    pub(crate) gone: bool,
    /// Attempts that ended with an error, as the machine heard.
    pub(crate) raised: BTreeSet<Attempt>,
    pub(crate) ran: u32,
}

#[derive(Debug)]
pub(crate) struct SimCall {
    pub(crate) spec: CallSpec,
    pub(crate) planned: u32,
    pub(crate) tasks: Vec<TaskId>,
}

#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) calls: BTreeMap<CallId, SimCall>,
    pub(crate) tasks: BTreeMap<TaskId, SimTask>,
    /// What is on the workers as far as the machine has heard, with what it holds there.
    pub(crate) held: BTreeMap<(WorkerId, TaskId, Attempt), (String, Resources)>,
    pub(crate) durable: bool,
    /// Results that the shell keeps; of use where they are durable.
    pub(crate) shell: BTreeSet<TaskId>,
    /// All that was ever handed out.
    pub(crate) handed_out: BTreeSet<(TaskId, Attempt)>,
}

impl Ledger {
    /// Takes in an event that the machine is about to hear.
    pub(crate) fn before(&mut self, event: &Event, machine: &Scheduler) {
        match *event {
            Event::TaskFinished { worker, task, attempt, outcome, .. } => {
                let held = self.held.remove(&(worker, task, attempt)).is_some();
                let of_graph = self.tasks.get(&task).is_some_and(|task| !task.plain);
                if of_graph && outcome == Outcome::Ok && machine.awaits(worker, task, attempt) {
                    let again = !self.shell.insert(task);
                    assert!(!again || !self.durable, "{task:?} is run again though its result is there");
                }
                if let Some(task) = self.tasks.get_mut(&task).filter(|_| held && outcome == Outcome::Err) {
                    task.raised.insert(attempt);
                }
            }
            Event::TaskReturned { worker, task, attempt, kept: 0 } => {
                self.held.remove(&(worker, task, attempt));
            }
            Event::WorkerLost { worker } => self.held.retain(|(by, ..), _| *by != worker),
            Event::CallClosed { call } => {
                self.calls.remove(&call);
                self.tasks.retain(|_, task| task.call != call);
                let tasks = &self.tasks;
                self.shell.retain(|id| tasks.contains_key(id));
            }
            _ => {}
        }
    }

    pub(crate) fn submitted(&mut self, event: &Event) {
        if let Event::GraphSubmitted { tasks, .. } = event {
            for spec in tasks {
                // The call may have been closed meanwhile.
                if let Some(task) = self.tasks.get_mut(&spec.task) {
                    task.submitted = true;
                }
            }
        }
    }

    /// Notes what a worker is handed; no more is held of a pool than it has.
    pub(crate) fn hold(&mut self, by: (WorkerId, TaskId, Attempt), pool: String, total: &Resources) {
        let needs = self.tasks[&by.1].resources.clone();
        assert!(self.handed_out.insert((by.1, by.2)), "{by:?} is handed out twice");
        self.held.insert(by, (pool.clone(), needs));
        for (name, most) in total.iter() {
            let held = self.held.values().filter(|(of, _)| *of == pool);
            let sum = held.fold(Amount::default(), |sum, (_, needs)| sum.saturating_add(needs.amount(name)));
            assert!(sum <= most, "{pool}: {sum:?} of {most:?} {name} are in use");
        }
    }

    pub(crate) fn resolved(&mut self, call: CallId, id: TaskId, how: Resolution) {
        self.is_right(call, id, how);
        let task = self.tasks.get_mut(&id).expect("it was submitted");
        if !task.wanted {
            let explains = !how.is_ok() && !matches!(how, Resolution::DependencyFailed { .. } | Resolution::Cancelled);
            assert!(explains, "{id:?} is not wanted, and no cause: {how:?}");
            return;
        }
        assert_eq!(task.told, None, "{id:?} is resolved again: {how:?}");
        task.told = Some(how);
    }

    pub(crate) fn lost(&mut self, call: CallId, id: TaskId) {
        let task = self.tasks.get_mut(&id).expect("it was submitted");
        assert!(task.wanted && task.call == call, "{id:?} is not wanted");
        assert!(task.told.is_some_and(|how| how.is_ok()) && !task.lost, "{id:?} was not there");
        task.lost = true;
    }

    pub(crate) fn restored(&mut self, call: CallId, id: TaskId, how: Resolution) {
        self.is_right(call, id, how);
        let task = self.tasks.get_mut(&id).expect("it was submitted");
        assert!(task.wanted && std::mem::take(&mut task.lost), "{id:?} was not lost");
        task.told = Some(how);
    }

    pub(crate) fn gone(&mut self, id: TaskId) {
        let task = self.tasks.get_mut(&id).expect("it was submitted");
        assert!(!task.wanted && !std::mem::replace(&mut task.gone, true), "{id:?} is gone too early, or twice");
        self.shell.remove(&id);
    }

    /// The machine has said of all tasks that it does not know any more that they are gone.
    pub(crate) fn knows_the_same(&self, machine: &Scheduler) {
        for (&id, task) in self.tasks.iter().filter(|(_, task)| task.submitted && !task.plain) {
            assert_eq!(machine.knows(id), !task.gone, "{id:?}: {task:?}");
            let lost = self.durable && self.shell.contains(&id) && !machine.has_result(id);
            assert!(!lost, "{id:?} has been lost: {task:?}");
        }
    }

    /// The task may have ended so.
    fn is_right(&self, call: CallId, id: TaskId, how: Resolution) {
        let task = self.tasks.get(&id).unwrap_or_else(|| panic!("{id:?} is not there"));
        assert_eq!(task.call, call, "{id:?} is another call's");
        let right = match how {
            Resolution::Finished { outcome: Outcome::Ok, .. } => {
                task.ran > 0 && !task.poison && (task.plain || self.shell.contains(&id))
            }
            Resolution::Finished { .. } => task.raised.len() as u32 > task.retries,
            Resolution::WorkerCrashed { deaths, .. } => deaths == self.calls[&call].spec.crash_retries + 1,
            Resolution::DependencyFailed { cause } => cause != id && self.needs(id, cause),
            Resolution::Cancelled => self.is_cancelled(id),
            Resolution::Unrunnable => task.workers.is_some() || !task.resources.is_empty(),
            Resolution::NoWorkers => self.held.keys().all(|(_, held, _)| *held != id),
            Resolution::TimedOut { worker } => {
                let limited = self.calls[&call].spec.item_timeout.is_some();
                limited && self.held.keys().any(|&(by, held, _)| (by, held) == (worker, id))
            }
            Resolution::Broken => false,
        };
        assert!(right, "{id:?} cannot have ended with {how:?}: {task:?}");
    }

    fn needs(&self, id: TaskId, cause: TaskId) -> bool {
        self.ancestors(id).contains(&cause)
    }

    fn is_cancelled(&self, id: TaskId) -> bool {
        self.ancestors(id).iter().any(|id| self.tasks[id].cancelled)
    }

    /// The task and all that it depends on.
    fn ancestors(&self, id: TaskId) -> BTreeSet<TaskId> {
        let mut found = BTreeSet::from([id]);
        let mut open = vec![id];
        while let Some(id) = open.pop() {
            for &on in &self.tasks[&id].dependencies {
                if found.insert(on) {
                    open.push(on);
                }
            }
        }
        found
    }

    pub(crate) fn is_done(&self, call: CallId) -> bool {
        let Some(sim) = self.calls.get(&call) else { return false };
        sim.planned == 0 && sim.tasks.iter().all(|id| !self.is_open(*id))
    }

    fn is_open(&self, id: TaskId) -> bool {
        self.tasks.get(&id).is_some_and(|task| task.wanted && (task.told.is_none() || task.lost))
    }

    pub(crate) fn unresolved(&self) -> Vec<(TaskId, &SimTask)> {
        let open = self.tasks.iter().filter(|(id, _)| self.is_open(**id));
        open.map(|(id, task)| (*id, task)).collect()
    }
}
