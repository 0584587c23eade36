//! A task of a graph, as its submitter, its worker and those who wait for it see it.
//!
//! Its result is here from when it is made until nobody refers to the node any more: the engine, as long as the
//! result is needed; tasks that are to take it; handles. So results outlive the workers that made them.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use rustdask_core::ending::Unreported;
use rustdask_core::message::Report;
use rustdask_core::nested::Fault;
use rustdask_core::{Attempt, Grant, Outcome, TaskId};
use rustdask_runtime::connection::Connection;
use rustdask_runtime::delivery::{Delivery, Reported};
use rustdask_runtime::driver::{End, Inputs};
use rustdask_runtime::endpoint::Blob;
use rustdask_runtime::parcel::Parcel;
use rustdask_runtime::store::Store;
use rustdask_runtime::stored::Stored;

use crate::call::lost_report;
use crate::handle::Want;
use crate::remote::Remote;
use crate::session::SessionInner;
use crate::shipment::Shipment;
use crate::upstream::Outgoing;
use crate::watch::Ring;
use crate::work::Work;

pub(crate) struct Node {
    pub(crate) id: TaskId,
    /// Of its function, for people.
    pub(crate) name: Arc<str>,
    /// How many tasks stand above it, each of which has submitted the next one.
    pub(crate) depth: u32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    job: Option<Job>,
    /// The tasks whose results it takes, until it has a result itself.
    inputs: Vec<Arc<Node>>,
    /// The one whose report counts.
    attempt: Option<Attempt>,
    granted: Box<[Grant]>,
    made: Option<Made>,
    end: Option<Settled>,
    watchers: Vec<Watcher>,
}

/// What is to be done.
pub(crate) enum Job {
    Here(Arc<LocalCall>),
    Elsewhere(Arc<Shipment>),
    /// In a worker process, to be sent to where it is scheduled.
    Upstream(Arc<Outgoing>),
}

/// A call in a thread of this process.
pub(crate) struct LocalCall {
    pub(crate) function: Py<PyAny>,
    pub(crate) args: Py<PyTuple>,
    pub(crate) kwargs: Option<Py<PyDict>>,
    /// The contextvars.Context that it runs in a copy of.
    pub(crate) context: Option<Py<PyAny>>,
    /// Number of the first task of its submission.
    pub(crate) first: u64,
    pub(crate) session: Weak<SessionInner>,
}

/// What a worker made of it.
pub(crate) enum Made {
    Object(Py<PyAny>),
    /// By a worker process.
    Stored(Arc<Stored>),
    /// In a worker process, of a task that one of its tasks has submitted.
    Sent(Blob),
    /// On nodes of a cluster.
    Away(Arc<Remote>),
    /// A value of the submitter's own, as it is here and as workers get it.
    Scattered(Py<PyAny>, Arc<Stored>),
    Failure(Arc<Failure>),
}

/// The end, for those who wait.
#[derive(Clone)]
pub(crate) enum Settled {
    Finished,
    Failed(Arc<Failure>),
}

pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    /// The task that failed by itself.
    pub(crate) task: TaskId,
    pub(crate) name: Arc<str>,
}

pub(crate) enum FailureKind {
    /// The exception, of a thread of this process.
    Raised(Py<PyAny>),
    /// The exception, packed by a worker process.
    Remote(Reported),
    Unreported(Unreported),
    Cancelled,
    Unrunnable,
    Broken,
    Closed,
}

/// Who hears of the end.
pub(crate) enum Watcher {
    Ring(Arc<Ring>, usize),
    /// The worker whose task has submitted it.
    Worker(Weak<Connection>),
    /// Nobody: it is only kept wanted until then.
    Keep(#[allow(dead_code, reason = "it is there to be dropped")] Arc<Want>),
}

impl Node {
    pub(crate) fn new(id: TaskId, name: Arc<str>, depth: u32, job: Job) -> Arc<Self> {
        Arc::new(Self { id, name, depth, state: Mutex::new(State { job: Some(job), ..State::default() }) })
    }

    /// One that has its result from the beginning.
    pub(crate) fn with_result(id: TaskId, name: Arc<str>, made: Made) -> Arc<Self> {
        let state = State { made: Some(made), end: Some(Settled::Finished), ..State::default() };
        Arc::new(Self { id, name, depth: 0, state: Mutex::new(state) })
    }

    pub(crate) fn set_inputs(&self, inputs: Vec<Arc<Node>>) {
        self.lock().inputs = inputs;
    }

    /// What to run in this process, and the tasks whose results it takes. None once there is no need.
    pub(crate) fn local_call(&self) -> Option<(Arc<LocalCall>, Vec<Arc<Node>>)> {
        let state = self.lock();
        match &state.job {
            Some(Job::Here(call)) => Some((call.clone(), state.inputs.clone())),
            Some(Job::Elsewhere(_) | Job::Upstream(_)) | None => None,
        }
    }

    /// What to send to a worker process. None once there is no need.
    pub(crate) fn parcel(&self) -> Option<Arc<Parcel>> {
        match &self.lock().job {
            Some(Job::Elsewhere(shipment)) => Some(shipment.parcel.clone()),
            Some(Job::Here(_) | Job::Upstream(_)) | None => None,
        }
    }

    /// What to send to where the task is scheduled, and what it takes. There is no more need of it here.
    pub(crate) fn take_outgoing(&self) -> Option<(Arc<Outgoing>, Vec<Arc<Node>>)> {
        let mut state = self.lock();
        match state.job.take() {
            Some(Job::Upstream(outgoing)) => Some((outgoing, std::mem::take(&mut state.inputs))),
            other => {
                state.job = other;
                None
            }
        }
    }

    pub(crate) fn granted(&self) -> Box<[Grant]> {
        self.lock().granted.clone()
    }

    /// The result, if it is there.
    pub(crate) fn value<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        enum Where {
            Here(Arc<Stored>),
            Sent(Blob),
            Away(Arc<Remote>),
        }
        let found = match &self.lock().made {
            Some(Made::Object(value) | Made::Scattered(value, _)) => return Ok(Some(value.bind(py).clone())),
            Some(Made::Stored(stored)) => Where::Here(stored.clone()),
            Some(Made::Sent(sent)) => Where::Sent(sent.clone()),
            Some(Made::Away(remote)) => Where::Away(remote.clone()),
            Some(Made::Failure(_)) | None => return Ok(None),
        };
        let stored = match found {
            Where::Here(stored) => stored,
            Where::Sent(sent) => return crate::worker::load(py, sent).map(Some),
            Where::Away(remote) => self.fetched(py, &remote)?,
        };
        crate::transport::load(py, &stored).map(Some)
    }

    /// The result from the cluster, which is here from then on.
    fn fetched(&self, py: Python<'_>, remote: &Remote) -> PyResult<Arc<Stored>> {
        loop {
            if let Some(stored) = py.detach(|| remote.fetch(self.id))? {
                let stored = Arc::new(stored);
                let before = self.lock().made.replace(Made::Stored(stored.clone()));
                drop(before);
                return Ok(stored);
            }
            py.check_signals()?;
        }
    }

    pub(crate) fn input_ids(&self) -> Vec<TaskId> {
        self.lock().inputs.iter().map(|input| input.id).collect()
    }

    /// The result as workers get it, if it is there.
    fn stored(&self) -> Option<Arc<Stored>> {
        match &self.lock().made {
            Some(Made::Stored(stored) | Made::Scattered(_, stored)) => Some(stored.clone()),
            _ => None,
        }
    }

    /// What it takes from others, as workers get it.
    pub(crate) fn stored_inputs(&self) -> Inputs {
        let inputs = self.lock().inputs.clone();
        inputs.iter().filter_map(|input| Some((input.id, input.stored()?))).collect()
    }

    /// Move the result from memory to a file of the folder; how many bytes.
    pub(crate) fn spill(&self, store: &Store, folder: &Path) -> std::io::Result<u64> {
        let before = match &self.lock().made {
            Some(Made::Stored(stored)) => stored.clone(),
            _ => return Ok(0),
        };
        // Copied without the lock: the result is read meanwhile.
        let Some(spilled) = before.spilled(store, folder)? else { return Ok(0) };
        let mut state = self.lock();
        if matches!(&state.made, Some(Made::Stored(stored)) if Arc::ptr_eq(stored, &before)) {
            state.made = Some(Made::Stored(Arc::new(spilled)));
        }
        Ok(before.bytes())
    }

    /// What a worker process reports.
    pub(crate) fn deliver(self: &Arc<Self>, attempt: Attempt, delivery: Delivery) -> Leftovers {
        let made = match delivery {
            Delivery::Report { report: Report::Results, body, buffers, bytes, .. } => {
                let memory = match &self.lock().job {
                    Some(Job::Elsewhere(shipment)) => shipment.memory.clone(),
                    _ => None,
                };
                let counted = memory.and_then(|memory| memory.count(bytes, Arc::downgrade(self)));
                Made::Stored(Arc::new(Stored::Made { body, buffers, bytes, counted }))
            }
            Delivery::Report { report: Report::Error, body, .. } => {
                Made::Failure(self.failed(FailureKind::Remote(body)))
            }
            Delivery::Unsent => return Leftovers::default(),
        };
        self.made(attempt, made)
    }

    pub(crate) fn end(&self) -> Option<Settled> {
        self.lock().end.clone()
    }

    pub(crate) fn is_done(&self) -> bool {
        self.lock().end.is_some()
    }

    /// What an attempt has made of it, before the machine hears of it. What is not needed any more comes back, to be
    /// dropped where that is safe.
    pub(crate) fn made(&self, attempt: Attempt, made: Made) -> Leftovers {
        let mut state = self.lock();
        if state.attempt != Some(attempt) || state.end.is_some() {
            return Leftovers { made: Some(made), ..Leftovers::default() };
        }
        let finished = !matches!(made, Made::Failure(_));
        let made = state.made.replace(made);
        if !finished {
            return Leftovers { made, ..Leftovers::default() };
        }
        Leftovers { made, job: state.job.take(), inputs: std::mem::take(&mut state.inputs) }
    }

    pub(crate) fn assigned(&self, attempt: Attempt, granted: &[Grant]) {
        let mut state = self.lock();
        state.attempt = Some(attempt);
        state.granted = granted.into();
    }

    pub(crate) fn ended(&self, end: End<Work>) {
        let (watchers, failed) = {
            let mut state = self.lock();
            if state.end.is_some() {
                return;
            }
            let settled = self.settled(&state, end);
            let failed = matches!(settled, Settled::Failed(_));
            state.end = Some(settled);
            (std::mem::take(&mut state.watchers), failed)
        };
        watchers.into_iter().for_each(|watcher| watcher.tell(self, failed));
    }

    /// How the task ended, which another process schedules.
    pub(crate) fn told(&self, made: Option<Made>, end: Settled) {
        let failed = matches!(end, Settled::Failed(_));
        let (watchers, left) = {
            let mut state = self.lock();
            let before = std::mem::replace(&mut state.made, made);
            state.end = Some(end);
            let left = Leftovers { made: before, job: state.job.take(), inputs: std::mem::take(&mut state.inputs) };
            (std::mem::take(&mut state.watchers), left)
        };
        drop(left);
        watchers.into_iter().for_each(|watcher| watcher.tell(self, failed));
    }

    /// The same for the worker whose task has submitted this one.
    fn tell_worker(&self, connection: &Arc<Connection>) {
        let failure = match self.end() {
            None => return,
            Some(Settled::Failed(failure)) => failure,
            Some(Settled::Finished) => {
                let told = self.stored().is_some_and(|stored| stored.tell_end(connection, self.id).is_ok());
                if told {
                    return;
                }
                self.failed(FailureKind::Unreported(unsent("its result could not be sent")))
            }
        };
        let (fault, raised) = failure.kind.as_fault();
        if connection.tell_failed(self.id, failure.task, &failure.name, fault, raised).is_err() {
            let fault = Fault::Unreported(unsent("what it raised could not be sent"));
            // With nothing beside it, this does not fail.
            let _ = connection.tell_failed(self.id, failure.task, &failure.name, fault, None);
        }
    }

    fn settled(&self, state: &State, end: End<Work>) -> Settled {
        let kind = match end {
            End::Reported(Outcome::Ok) => return Settled::Finished,
            End::Reported(Outcome::Err) => match &state.made {
                Some(Made::Failure(failure)) => return Settled::Failed(failure.clone()),
                _ => FailureKind::Unreported(lost_report()),
            },
            End::DependencyFailed { cause } => {
                let cause = cause.as_ref().and_then(Work::node).and_then(|node| node.failure());
                let cause = cause.or_else(|| state.inputs.iter().find_map(|input| input.failure()));
                return Settled::Failed(cause.unwrap_or_else(|| self.failed(FailureKind::Cancelled)));
            }
            End::Unreported(unreported) => FailureKind::Unreported(unreported),
            End::Cancelled => FailureKind::Cancelled,
            End::Unrunnable => FailureKind::Unrunnable,
            End::Broken => FailureKind::Broken,
            End::Closed => FailureKind::Closed,
        };
        Settled::Failed(self.failed(kind))
    }

    pub(crate) fn failed(&self, kind: FailureKind) -> Arc<Failure> {
        Arc::new(Failure { kind, task: self.id, name: self.name.clone() })
    }

    fn failure(&self) -> Option<Arc<Failure>> {
        let state = self.lock();
        match (&state.end, &state.made) {
            (Some(Settled::Failed(failure)), _) | (None, Some(Made::Failure(failure))) => Some(failure.clone()),
            _ => None,
        }
    }

    /// Have somebody hear of the end: at once, if it has come.
    pub(crate) fn watch(&self, watcher: Watcher) {
        let failed = {
            let mut state = self.lock();
            let Some(end) = &state.end else {
                state.watchers.push(watcher);
                return;
            };
            matches!(end, Settled::Failed(_))
        };
        watcher.tell(self, failed);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }
}

impl Watcher {
    fn tell(self, node: &Node, failed: bool) {
        match self {
            Watcher::Ring(ring, token) => ring.ring(token, failed),
            Watcher::Worker(connection) => {
                if let Some(connection) = connection.upgrade() {
                    node.tell_worker(&connection);
                }
            }
            Watcher::Keep(_) => {}
        }
    }
}

impl FailureKind {
    /// As other processes are told, and what the task raised.
    fn as_fault(&self) -> (Fault, Option<&Reported>) {
        let fault = match self {
            FailureKind::Remote(raised) => return (Fault::Raised, Some(raised)),
            FailureKind::Raised(_) => Fault::Unreported(unsent("what it raised is in another process")),
            FailureKind::Unreported(unreported) => Fault::Unreported(unreported.clone()),
            FailureKind::Cancelled => Fault::Cancelled,
            FailureKind::Unrunnable => Fault::Unrunnable,
            FailureKind::Broken => Fault::Broken,
            FailureKind::Closed => Fault::Closed,
        };
        (fault, None)
    }
}

fn unsent(why: &str) -> Unreported {
    Unreported::NoWorkers { why: why.into() }
}

/// What a node has no more use for.
#[derive(Default)]
pub(crate) struct Leftovers {
    #[allow(dead_code, reason = "it is there to be dropped")]
    made: Option<Made>,
    #[allow(dead_code, reason = "it is there to be dropped")]
    job: Option<Job>,
    #[allow(dead_code, reason = "it is there to be dropped")]
    inputs: Vec<Arc<Node>>,
}

impl Drop for Node {
    /// One by one: a chain of tasks may be longer than the stack is deep.
    fn drop(&mut self) {
        let mut open = std::mem::take(&mut self.state.get_mut().expect("no holder panics").inputs);
        while let Some(node) = open.pop() {
            if let Some(mut node) = Arc::into_inner(node) {
                open.append(&mut node.state.get_mut().expect("no holder panics").inputs);
            }
        }
    }
}
