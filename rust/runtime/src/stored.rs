//! Results of tasks, as the process that keeps them has them, and how workers get them that have not made them.
//!
//! A large result stays in the memory of the worker that made it. Another worker that needs it is handed the
//! descriptor; while there are too many of those, it is sent a copy in a segment of our own.

use std::io;
use std::sync::Arc;

use rustdask_core::message::{Access, Body, Buffer, Extent, ToWorker};
use rustdask_core::{SegmentId, TaskId};

use crate::parcel::Contents;
use crate::processes::{Connection, Lease, Reported, Told};
use crate::shm::Segment;

/// A result.
pub enum Stored {
    /// In memory of the worker that made it.
    Made { body: Reported, buffers: Vec<Lease>, bytes: u64 },
    /// In memory of our own.
    Placed {
        contents: Contents,
        /// What holds the memory.
        held: Box<dyn Send + Sync>,
    },
}

impl Stored {
    /// Tell a worker what it needs to have the result under the number of its task, with what is flushed next.
    pub(crate) fn ship(&self, connection: &Arc<Connection>, told: &mut Told, task: TaskId) -> io::Result<()> {
        match self {
            Self::Placed { contents, .. } => {
                contents.announce(connection, told)?;
                let message = ToWorker::Result { task, body: contents.body, buffers: contents.buffers.clone() };
                connection.outbox.hold(&message, &contents.inline, None);
            }
            Self::Made { body, buffers, .. } => {
                let (body, inline) = match body {
                    Reported::Inline(bytes) => (Body::Inline, &bytes[..]),
                    Reported::Leased(lease) => (Body::InSegment(lease.show(connection, told)?), &[][..]),
                };
                let buffers = buffers.iter().map(|lease| Ok(private(lease.show(connection, told)?)));
                let buffers = buffers.collect::<io::Result<Vec<_>>>()?;
                connection.outbox.hold(&ToWorker::Result { task, body, buffers }, inline, None);
            }
        }
        Ok(())
    }

    pub fn bytes(&self) -> u64 {
        match self {
            Self::Made { bytes, .. } => *bytes,
            Self::Placed { contents, .. } => {
                contents.inline.len() as u64 + contents.buffers.iter().map(|buffer| buffer.extent.bytes).sum::<u64>()
            }
        }
    }
}

fn private(extent: Extent) -> Buffer {
    Buffer { extent, access: Access::CopyOnWrite }
}

/// A segment of a worker's under a number of our own, and the workers that have been told of it.
pub(crate) struct Shown {
    pub(crate) id: SegmentId,
    pub(crate) segment: Arc<Segment>,
    pub(crate) to: Vec<std::sync::Weak<Connection>>,
}

impl Drop for Shown {
    fn drop(&mut self) {
        for connection in self.to.iter().filter_map(std::sync::Weak::upgrade) {
            connection.forget(self.id);
        }
    }
}
