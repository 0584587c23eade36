//! The places of a node's worker processes: which are there, and which are to be started.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustdask_core::cluster::FromNode;
use rustdask_core::ending::Obituary;
use rustdask_core::nested::Numbers;
use rustdask_core::{Attempt, CallId, NodeId, TaskId, WorkerId};
use rustdask_runtime::connection::Connection;
use rustdask_runtime::driver::Inputs;
use rustdask_runtime::workers::Command;

use super::core::Node;

/// Workers that end before they are ready are replaced after a pause, which doubles with each.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// When so many have, one after the other, and none is there, the node gives up.
const MAX_FAILURES: u32 = 5;

/// A worker process, and what it was given.
pub(crate) struct Place {
    pub(crate) connection: Arc<Connection>,
    ready: bool,
    /// In order: it runs the first.
    pub(crate) running: Vec<Running>,
    /// For segments of its that tasks on other nodes take.
    pub(crate) numbers: Numbers,
}

/// A task that a worker has.
pub(crate) struct Running {
    pub(crate) task: TaskId,
    pub(crate) attempt: Attempt,
    pub(crate) call: CallId,
    /// They stay where they are until it ends.
    pub(crate) inputs: Inputs,
}

/// Workers on their way.
#[derive(Default)]
pub(crate) struct Starts {
    next: u32,
    asked: HashSet<WorkerId>,
    failures: u32,
    not_before: Option<Instant>,
}

impl Starts {
    pub(crate) fn due(&self, now: Instant) -> bool {
        self.not_before.is_none_or(|then| then <= now)
    }

    #[cfg(test)]
    pub(crate) fn hurry(&mut self) {
        self.not_before = None;
    }

    fn failed(&mut self) {
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(16)).min(LONGEST_PAUSE);
        self.failures += 1;
        self.not_before = Some(Instant::now() + pause);
    }
}

impl Node {
    /// Start what is missing, unless it is too early for that.
    pub(crate) fn fill_places(&mut self) {
        let fit = self.uplink.is_some() && !self.leaving && self.condemned.is_empty();
        if !fit || !self.starts.due(Instant::now()) {
            return;
        }
        while self.places.len() + self.starts.asked.len() < self.spec.workers as usize {
            let worker = self.fresh_worker();
            self.starts.asked.insert(worker);
            if self.orders.send(Command::Start(worker)).is_err() {
                self.fatal.get_or_insert_with(|| "the task that serves workers has ended".into());
                return;
            }
        }
    }

    fn fresh_worker(&mut self) -> WorkerId {
        loop {
            let worker = self.number.worker(self.starts.next);
            self.starts.next += 1;
            if !self.places.contains_key(&worker) && !self.starts.asked.contains(&worker) {
                return worker;
            }
        }
    }

    pub(crate) fn worker_starting(&mut self, connection: &Arc<Connection>) {
        let worker = connection.worker;
        let wanted = self.starts.asked.remove(&worker) && NodeId::of(worker) == self.number && self.uplink.is_some();
        if !wanted {
            // It was asked for by a scheduler that has been lost since.
            connection.kill();
            self.condemned.push(connection.clone());
            return;
        }
        let numbers = Numbers::of(worker);
        self.places
            .insert(worker, Place { connection: connection.clone(), ready: false, running: Vec::new(), numbers });
    }

    pub(crate) fn worker_ready(&mut self, connection: &Arc<Connection>) {
        let Some(place) = self.places.get_mut(&connection.worker) else { return };
        place.ready = true;
        self.starts.failures = 0;
        self.starts.not_before = None;
        self.say_joined(connection);
    }

    /// Once the worker is ready and it is known which process it is, whichever comes first.
    pub(crate) fn say_joined(&mut self, connection: &Arc<Connection>) {
        let worker = connection.worker;
        let (Some(place), Some(pid)) = (self.places.get(&worker), connection.pid()) else { return };
        if place.ready {
            self.say(&FromNode::WorkerJoined { worker, pid: pid as u32 }, Bytes::new());
            self.say_what_is_held();
        }
    }

    pub(crate) fn worker_lost(&mut self, connection: &Arc<Connection>, obituary: Obituary) {
        let worker = connection.worker;
        self.condemned.retain(|condemned| !Arc::ptr_eq(condemned, connection));
        let ours = self.places.get(&worker).is_some_and(|place| Arc::ptr_eq(&place.connection, connection));
        if ours {
            let lost = self.places.remove(&worker);
            self.forget_tasks_of(worker);
            if lost.as_ref().is_some_and(|place| !place.ready) {
                self.start_failed(&format!("a worker process ended while it was starting: {}", why(&obituary)));
            }
            self.say(&FromNode::WorkerLost { worker, obituary }, Bytes::new());
            drop(lost);
        }
        self.fill_places();
    }

    pub(crate) fn worker_not_started(&mut self, worker: WorkerId, why: String) {
        // Also said of one that was on its way when the template ended.
        let known = self.starts.asked.remove(&worker) | self.places.remove(&worker).is_some();
        if !known || NodeId::of(worker) != self.number {
            return;
        }
        self.forget_tasks_of(worker);
        self.start_failed(&format!("a worker process could not be started: {why}"));
        let obituary = Obituary { reason: Some(why), ..Obituary::default() };
        self.say(&FromNode::WorkerLost { worker, obituary }, Bytes::new());
        self.fill_places();
    }

    fn start_failed(&mut self, why: &str) {
        self.starts.failed();
        (self.notice)(super::options::Notice::Warning(why));
        let any = self.places.values().any(|place| place.ready);
        if !any && self.starts.failures >= MAX_FAILURES {
            self.fatal = Some(format!("{MAX_FAILURES} times one after the other, {why}"));
        }
    }

    /// All workers end, and nothing that they say counts any more.
    pub(crate) fn condemn_all(&mut self) {
        self.starts.asked.clear();
        self.pending.clear();
        self.ends.clear();
        for place in std::mem::take(&mut self.places).into_values() {
            place.connection.kill();
            self.condemned.push(place.connection);
        }
    }

    /// Those that are there, whether they count or not.
    pub(crate) fn all_connections(&self) -> Vec<Arc<Connection>> {
        self.places.values().map(|place| &place.connection).chain(&self.condemned).cloned().collect()
    }
}

fn why(obituary: &Obituary) -> String {
    match (&obituary.reason, obituary.signal, obituary.exit_code) {
        (Some(reason), ..) => reason.clone(),
        (None, Some(signal), _) => format!("signal {signal}; its stderr: {}", obituary.stderr.trim()),
        (None, None, code) => format!("exit code {}; its stderr: {}", code.unwrap_or(0), obituary.stderr.trim()),
    }
}
