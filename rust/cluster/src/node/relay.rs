//! What worker processes say, for the scheduler.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use rustdask_core::cluster::{FromNode, SMALL_RESULT_BYTES};
use rustdask_core::ending::Obituary;
use rustdask_core::message::{Body, Extent, Report};
use rustdask_core::nested::FromTask;
use rustdask_core::{Attempt, SegmentId, TaskId, WorkerId};
use rustdask_runtime::connection::Connection;
use rustdask_runtime::delivery::{Delivery, Reported};
use rustdask_runtime::lease::Lease;
use rustdask_runtime::lines::Output;
use rustdask_runtime::stored::Stored;
use rustdask_runtime::workers::{Owner, TaskNews};

use super::core::Node;
use crate::data::HeldSegment;

/// Exceptions up to this size go with the report of them.
const SMALL_ERROR_BYTES: usize = 1 << 20;

/// Text is sent in pieces of this size.
const OUTPUT_BYTES: usize = 1 << 20;

/// The node as its workers' owner.
pub(crate) struct Relay {
    pub(crate) node: Rc<RefCell<Node>>,
    /// Something has happened that the node's task is to look at.
    pub(crate) happened: Rc<tokio::sync::Notify>,
}

impl Owner for Relay {
    fn starting(&self, connection: &Arc<Connection>) {
        self.node.borrow_mut().worker_starting(connection);
    }

    fn connections(&self) -> Vec<Arc<Connection>> {
        self.node.borrow().all_connections()
    }

    fn started(&self, connection: &Arc<Connection>) {
        self.node.borrow_mut().say_joined(connection);
    }

    fn ready(&self, connection: &Arc<Connection>) {
        self.node.borrow_mut().worker_ready(connection);
    }

    fn news(&self, connection: &Arc<Connection>, news: Vec<TaskNews>) {
        let mut node = self.node.borrow_mut();
        for news in news {
            match news {
                TaskNews::Finished(task, attempt, delivery) => {
                    node.finished(connection.worker, task, attempt, delivery);
                }
                TaskNews::Returned(task, attempt, kept) => node.returned(connection.worker, task, attempt, kept),
                TaskNews::Parked(task, attempt) => node.parked(connection.worker, task, attempt),
                TaskNews::Resumed(task, attempt) => node.resumed(connection.worker, task, attempt),
            }
        }
        self.happened.notify_one();
    }

    fn nested(
        &self,
        connection: &Arc<Connection>,
        word: FromTask,
        body: Reported,
        buffers: Vec<Lease>,
    ) -> io::Result<()> {
        self.node.borrow_mut().nested(connection.worker, word, body, buffers);
        Ok(())
    }

    fn output(&self, connection: &Arc<Connection>, output: Output) {
        self.node.borrow().output(connection.worker, output);
    }

    fn lost(&self, connection: &Arc<Connection>, obituary: Obituary, _died: bool) {
        self.node.borrow_mut().worker_lost(connection, obituary);
        self.happened.notify_one();
    }

    fn not_started(&self, worker: WorkerId, why: String) {
        self.node.borrow_mut().worker_not_started(worker, why);
        self.happened.notify_one();
    }

    fn stop(&self) -> Vec<Arc<Connection>> {
        let mut node = self.node.borrow_mut();
        node.leaving = true;
        node.all_connections()
    }
}

impl Node {
    fn finished(&mut self, worker: WorkerId, task: TaskId, attempt: Attempt, delivery: Delivery) {
        let Delivery::Report { report, body, buffers, timings, bytes } = delivery else { return };
        let Some(place) = self.places.get_mut(&worker) else { return };
        let Some(at) = place.running.iter().position(|held| (held.task, held.attempt) == (task, attempt)) else {
            // Said once more by a worker that has ended, or taken back.
            return;
        };
        let ended = place.running.remove(at);
        let body = match (report, body) {
            (Report::Results, Reported::Inline(pickle)) if pickle.len() <= SMALL_RESULT_BYTES && buffers.is_empty() => {
                pickle.into()
            }
            (Report::Error, Reported::Inline(pickle)) if pickle.len() <= SMALL_ERROR_BYTES => pickle.into(),
            (_, body) => {
                self.holdings.keep(task, Stored::Made { body, buffers, bytes, counted: None });
                Bytes::new()
            }
        };
        self.say(&FromNode::Finished { worker, task, attempt, report, bytes, timings }, body);
        self.unpin(ended.inputs);
    }

    fn returned(&mut self, worker: WorkerId, task: TaskId, attempt: Attempt, kept: u32) {
        let Some(place) = self.places.get_mut(&worker) else { return };
        let held = place.running.iter().position(|held| (held.task, held.attempt) == (task, attempt));
        if let Some(at) = held.filter(|_| kept == 0) {
            let ended = place.running.remove(at);
            self.unpin(ended.inputs);
        }
        self.say(&FromNode::Returned { worker, task, attempt, kept }, Bytes::new());
    }

    fn parked(&self, worker: WorkerId, task: TaskId, attempt: Attempt) {
        self.say(&FromNode::Parked { worker, task, attempt }, Bytes::new());
    }

    fn resumed(&self, worker: WorkerId, task: TaskId, attempt: Attempt) {
        self.say(&FromNode::Resumed { worker, task, attempt }, Bytes::new());
    }

    /// Memory of the worker's that others are to look at becomes a segment of the cluster's.
    fn nested(&mut self, worker: WorkerId, mut word: FromTask, content: Reported, leases: Vec<Lease>) {
        if !self.places.contains_key(&worker) {
            return;
        }
        let mut inline = Bytes::new();
        if let Some((body, buffers)) = word.content_mut() {
            match content {
                Reported::Inline(pickle) => inline = pickle.into(),
                Reported::Leased(lease) => *body = Body::InSegment(self.publish(worker, lease)),
            }
            *buffers = leases.into_iter().map(|lease| self.publish(worker, lease)).collect();
        }
        self.say(&FromNode::Nested { worker, word }, inline);
    }

    fn publish(&mut self, worker: WorkerId, lease: Lease) -> Extent {
        let place = self.places.get_mut(&worker).expect("its word is being handled");
        let (segment, bytes) = (SegmentId(place.numbers.take(1)), lease.extent().bytes);
        self.holdings.keep_segment(segment, HeldSegment::Leased(lease));
        self.has_segment(segment, bytes);
        Extent { segment, offset: 0, bytes }
    }

    fn output(&self, worker: WorkerId, output: Output) {
        let call = self.places.get(&worker).and_then(|place| place.running.first()).map(|running| running.call);
        let Output { error_stream, text, log } = output;
        let mut rest = Bytes::from(text);
        while !rest.is_empty() {
            // A record has to stay whole.
            let piece = if log { rest.len() } else { rest.len().min(OUTPUT_BYTES) };
            self.say(&FromNode::Output { call, error_stream, log }, rest.split_to(piece));
        }
    }
}
