//! What a node says to the scheduler.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use rustdask_core::cluster::{FromNode, Source, Thing, ToClient, ToNode};
use rustdask_core::ending::{Obituary, Unreported};
use rustdask_core::message::Report;
use rustdask_core::nested::{Ended, Fault, FromTask, Submitted};
use rustdask_core::{Attempt, Event, HostId, NodeId, Outcome, Resources, TaskId, WorkerId, WorkerSpec};

use super::nodes::Node;
use super::{garbled, Scheduler};

/// Most tasks that a worker holds. Calls ask for less.
const DEPTH: u32 = 128;

/// A node's connection. What it has goes with it.
pub(crate) struct Reports {
    node: Arc<Node>,
    scheduler: Arc<Scheduler>,
    /// The last worker of the node has ended: what the node has is under its number, until another has come.
    bereft: Option<(WorkerId, Obituary)>,
}

impl Reports {
    pub(crate) fn new(node: Arc<Node>, scheduler: Arc<Scheduler>) -> Self {
        scheduler.nodes.add(node.clone());
        Self { node, scheduler, bereft: None }
    }

    pub(crate) fn handle(&mut self, message: FromNode, body: Bytes) -> io::Result<()> {
        self.node.state().heard = Instant::now();
        match message {
            FromNode::Joined(_) => return Err(garbled("a node says twice what it is")),
            FromNode::WorkerJoined { worker, pid } => self.worker_joined(self.own(worker)?, pid),
            FromNode::WorkerLost { worker, obituary } => self.worker_lost(self.own(worker)?, obituary),
            FromNode::Finished { worker, task, attempt, report, bytes, timings: _ } => {
                self.finished(self.own(worker)?, task, attempt, (report, bytes), body);
            }
            FromNode::Returned { worker, task, attempt, kept } => {
                let worker = self.own(worker)?;
                self.scheduler.driver.event(Event::TaskReturned { worker, task, attempt, kept });
            }
            FromNode::Parked { worker, task, attempt } => {
                let worker = self.own(worker)?;
                self.scheduler.driver.event(Event::TaskParked { worker, task, attempt });
            }
            FromNode::Resumed { worker, task, attempt } => {
                let worker = self.own(worker)?;
                self.scheduler.driver.event(Event::TaskResumed { worker, task, attempt });
            }
            FromNode::Unfetched { worker, task, attempt, missing } => {
                let worker = self.own(worker)?;
                missing.into_iter().for_each(|(thing, node)| self.missing(thing, node));
                self.scheduler.driver.event(Event::TaskReturned { worker, task, attempt, kept: 0 });
            }
            // None has got a result.
            FromNode::Untold { .. } => {}
            FromNode::Copied { task } => self.copied(task, self.node.id),
            FromNode::Segment { segment, bytes } => self.scheduler.nodes.segment_put(segment, bytes, self.node.id),
            FromNode::Moved { thing, to } => self.moved(thing, to),
            FromNode::Holds { cluster: _, results, segments } => {
                results.into_iter().for_each(|(task, _)| self.copied(task, self.node.id));
                let put = |(segment, bytes)| self.scheduler.nodes.segment_put(segment, bytes, self.node.id);
                segments.into_iter().for_each(put);
            }
            FromNode::Output { call: _, error_stream, log } => {
                // All clients: any of them may have asked for it.
                self.scheduler.tell_clients(&ToClient::Output { error_stream, log }, &body);
            }
            FromNode::Nested { worker, word } => self.refuse_nested(self.own(worker)?, word),
            FromNode::Alive(load) => self.node.state().load = load,
            FromNode::Leaving => self.leaving(),
        }
        Ok(())
    }

    fn own(&self, worker: WorkerId) -> io::Result<WorkerId> {
        if NodeId::of(worker) == self.node.id {
            return Ok(worker);
        }
        Err(garbled("a node speaks for a worker of another"))
    }

    fn worker_joined(&mut self, worker: WorkerId, pid: u32) {
        self.node.state().workers.insert(worker, pid);
        let spec = WorkerSpec {
            depth: DEPTH,
            killable: true,
            resources: Resources::from_f64(&self.node.spec.resources),
            host: Some(HostId(u64::from(self.node.id.0))),
            ..WorkerSpec::default()
        };
        self.scheduler.driver.event(Event::WorkerJoined { worker, spec });
        if let Some((before, obituary)) = self.bereft.take() {
            self.bury(before, obituary);
        }
    }

    /// What the node has made is there still. Where no other worker can stand for it, the end is told when one has come.
    fn worker_lost(&mut self, worker: WorkerId, obituary: Obituary) {
        let known = self.node.state().workers.contains_key(&worker);
        if let Some((before, obituary)) = self.bereft.take() {
            // The one that was to take its place has ended, too.
            self.scheduler.lose(before, None, obituary);
        }
        if !known {
            return;
        }
        if self.node.sibling(worker).is_some() {
            return self.bury(worker, obituary);
        }
        self.bereft = Some((worker, obituary));
    }

    fn bury(&self, worker: WorkerId, obituary: Obituary) {
        let heir = self.node.sibling(worker);
        self.node.state().workers.remove(&worker);
        self.scheduler.lose(worker, heir, obituary);
    }

    fn finished(&self, worker: WorkerId, task: TaskId, attempt: Attempt, (report, bytes): (Report, u64), body: Bytes) {
        self.scheduler.driver.with(|state, events| {
            let outcome = match report {
                Report::Results => Outcome::Ok,
                Report::Error => Outcome::Err,
            };
            if state.machine().awaits(worker, task, attempt) {
                if let Some(work) = state.payload(task) {
                    match outcome {
                        Outcome::Ok => work.0.made(attempt, self.node.id, (!body.is_empty()).then_some(body)),
                        Outcome::Err => work.0.raised(attempt, body),
                    }
                }
            }
            events.push_back(Event::TaskFinished { worker, task, attempt, outcome, size_bytes: bytes });
        });
    }

    /// Tasks on a cluster cannot submit tasks yet: those that they submit fail, and say so.
    fn refuse_nested(&self, worker: WorkerId, word: FromTask) {
        let FromTask::Task(Submitted { task, name, wanted: true, .. }) = word else { return };
        let why = "tasks on a cluster cannot submit tasks yet".into();
        let fault = Fault::Unreported(Unreported::NoWorkers { why });
        let how = Ended::Failed { task, name, fault };
        self.node.send(&ToNode::Ended { worker, task, how, from: Source::Inline { bytes: 0 } }, Bytes::new());
    }

    /// The result is on a node, too.
    fn copied(&self, task: TaskId, on: NodeId) {
        let worker = self.scheduler.nodes.get(on).and_then(|node| node.any_worker());
        self.scheduler.driver.with(|state, events| {
            if let Some(work) = state.payload(task) {
                work.0.copied(on);
            }
            events.extend(worker.map(|worker| Event::ReplicaAdded { worker, task }));
        });
    }

    /// Something is not where it was said to be.
    fn missing(&self, thing: Thing, node: NodeId) {
        match thing {
            Thing::Result(task) => self.scheduler.unfetched(task, node),
            Thing::Segment(segment) => self.scheduler.segment_missing(segment, node),
        }
    }

    fn moved(&self, thing: Thing, to: NodeId) {
        match thing {
            Thing::Result(task) => {
                self.copied(task, to);
                self.scheduler.unfetched(task, self.node.id);
            }
            Thing::Segment(segment) => {
                let bytes = self.scheduler.nodes.segment_bytes(segment);
                self.scheduler.nodes.segment_put(segment, bytes, to);
            }
        }
    }

    /// No more tasks for it.
    fn leaving(&self) {
        self.node.state().leaving = true;
        let workers: Vec<WorkerId> = self.node.state().workers.keys().copied().collect();
        self.scheduler.driver.with(|_, events| {
            events.extend(workers.into_iter().map(|worker| Event::WorkerLeaving { worker }));
        });
    }
}

impl Drop for Reports {
    fn drop(&mut self) {
        let lost = self.scheduler.nodes.remove(self.node.id);
        let workers: Vec<WorkerId> = std::mem::take(&mut self.node.state().workers).into_keys().collect();
        let obituary = Obituary {
            reason: Some(format!("lost the connection to node {}", self.node.spec.name)),
            ..Obituary::default()
        };
        workers.into_iter().for_each(|worker| self.scheduler.lose(worker, None, obituary.clone()));
        self.scheduler.segments_lost(&lost);
    }
}
