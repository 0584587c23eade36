//! What the pools run: parts of joblib's batches, and tasks of graphs.

use std::sync::Arc;

use rustdask_core::message::Granted;
use rustdask_core::{Attempt, Grant};
use rustdask_runtime::delivery::Delivery;
use rustdask_runtime::driver::{End, Links, Payload};
use rustdask_runtime::parcel::Parcel;

use crate::batch::PartRef;
use crate::node::Node;

#[derive(Clone)]
pub(crate) enum Work {
    Part(PartRef),
    Node(Arc<Node>),
}

impl Work {
    /// What a notice to a call of joblib's is about.
    pub(crate) fn into_part(self) -> Option<PartRef> {
        match self {
            Work::Part(part) => Some(part),
            Work::Node(_) => None,
        }
    }

    pub(crate) fn node(&self) -> Option<&Arc<Node>> {
        match self {
            Work::Part(_) => None,
            Work::Node(node) => Some(node),
        }
    }
}

impl Payload for Work {
    fn parcel(&self) -> Option<Arc<Parcel>> {
        match self {
            Work::Part(part) => part.parcel(),
            Work::Node(node) => node.parcel(),
        }
    }

    fn split(&self, kept: u32, pieces: u32) -> Vec<(Self, u32)> {
        match self {
            Work::Part(part) => {
                part.split(kept, pieces).into_iter().map(|(part, items)| (Work::Part(part), items)).collect()
            }
            Work::Node(_) => Vec::new(),
        }
    }

    fn links(&self) -> Option<Links> {
        self.node().map(|node| Links {
            inputs: node.stored_inputs(),
            granted: node.granted().iter().map(Granted::from).collect(),
        })
    }

    fn deliver(&self, attempt: Attempt, delivery: Delivery) -> Result<Box<dyn Send>, Delivery> {
        match self {
            Work::Part(_) => Err(delivery),
            Work::Node(node) => Ok(Box::new(node.deliver(attempt, delivery))),
        }
    }

    fn assigned(&self, attempt: Attempt, granted: &[Grant]) {
        if let Work::Node(node) = self {
            node.assigned(attempt, granted);
        }
    }

    fn ended(&self, end: End<Self>) {
        if let Work::Node(node) = self {
            node.ended(end);
        }
    }

    /// Results are kept in this process, not by the workers: none is lost.
    fn lost(&self) {}
}
