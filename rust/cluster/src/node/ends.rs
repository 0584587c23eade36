//! Ends of tasks that workers have submitted, told to those.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use rustdask_core::cluster::{FromNode, Source, Thing};
use rustdask_core::nested::Ended;
use rustdask_core::{TaskId, WorkerId};
use rustdask_runtime::connection::Connection;
use rustdask_runtime::delivery::Reported;
use rustdask_runtime::stored::{Pickle, Stored};

use super::core::{Node, Waiter};
use super::options::Notice;
use crate::data::Unfetched;

/// It waits for the result, or the exception.
pub(crate) struct EndToTell {
    how: Ended,
}

impl Node {
    pub(crate) fn tell_end(&mut self, worker: WorkerId, task: TaskId, how: Ended, from: Source, body: Vec<u8>) {
        let Some(place) = self.places.get(&worker) else { return };
        let Source::Nodes(nodes) = from else {
            let stored = (!body.is_empty()).then(|| Stored::inline(body));
            return self.told(&place.connection, task, &how, stored.as_ref());
        };
        if let Some(stored) = self.holdings.result(task) {
            return self.told(&place.connection, task, &how, Some(&stored));
        }
        self.ends.insert((worker, task), EndToTell { how });
        self.fetch(Thing::Result(task), &nodes, Waiter::End(worker, task));
    }

    pub(crate) fn end_arrived(&mut self, worker: WorkerId, task: TaskId, outcome: &Result<(), Unfetched>) {
        let Some(EndToTell { how }) = self.ends.remove(&(worker, task)) else { return };
        let Some(place) = self.places.get(&worker) else { return };
        match (outcome, self.holdings.result(task)) {
            (Ok(()), Some(stored)) => self.told(&place.connection, task, &how, Some(&stored)),
            (Err(Unfetched::Missing(nodes)), _) => {
                self.say(&FromNode::Untold { worker, task, missing: self.or_self(nodes) }, Bytes::new());
            }
            (Err(Unfetched::NoRoom(_)), _) | (Ok(()), None) => {
                self.say(&FromNode::Untold { worker, task, missing: Vec::new() }, Bytes::new());
            }
        }
    }

    fn told(&self, connection: &Arc<Connection>, task: TaskId, how: &Ended, stored: Option<&Stored>) {
        if let Err(error) = tell(connection, task, how, stored) {
            let why = format!("could not be told of the end of a task: {error}");
            (self.notice)(Notice::Warning(&why));
            connection.condemn(why);
        }
    }
}

fn tell(connection: &Arc<Connection>, task: TaskId, how: &Ended, stored: Option<&Stored>) -> io::Result<()> {
    match (how, stored) {
        (Ended::Finished, Some(stored)) => stored.tell_end(connection, task),
        (Ended::Finished, None) => Err(io::Error::new(io::ErrorKind::InvalidData, "its result is missing")),
        (Ended::Failed { task: cause, name, fault }, stored) => {
            let raised = stored.map(exception).transpose()?;
            connection.tell_failed(task, *cause, name, fault.clone(), raised.as_ref())
        }
    }
}

fn exception(stored: &Stored) -> io::Result<Reported> {
    let (pickle, _) = stored.parts_here()?;
    let pickle = match &pickle {
        Pickle::Inline(bytes) => bytes.to_vec(),
        Pickle::Mapped(view) => view.as_slice().unwrap_or_default().to_vec(),
    };
    Ok(Reported::Inline(pickle))
}
