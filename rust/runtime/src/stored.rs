//! Results of tasks, as the process that keeps them has them, and how workers get them that have not made them.
//!
//! A large result stays in the memory of the worker that made it. Another worker that needs it is handed the
//! descriptor; while there are too many of those, it is sent a copy in a segment of our own. Where memory is short, a
//! result moves to a file without a name, which is gone with the last descriptor, however the processes end.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};

use rustdask_core::message::{Access, Body, Buffer, Extent, ToWorker};
use rustdask_core::nested::Ended;
use rustdask_core::{SegmentId, TaskId};

use crate::endpoint::View;
use crate::parcel::Contents;
use crate::processes::{Connection, Lease, Reported, Told};
use crate::shm::Segment;
use crate::store::{side_by_side, Store};

/// What is there to be dropped with a result.
pub type Guard = Box<dyn Send + Sync>;

/// A result.
pub enum Stored {
    /// In memory of the worker that made it.
    Made { body: Reported, buffers: Vec<Lease>, bytes: u64, counted: Option<Guard> },
    /// In memory of our own.
    Placed { contents: Contents, held: Guard },
    /// In a file.
    Spilled(Spilled),
}

/// Where the pickle of a result is.
pub enum Pickle<'a> {
    Inline(&'a [u8]),
    Mapped(View),
}

pub struct Spilled {
    inline: Vec<u8>,
    body: Body,
    buffers: Vec<Extent>,
    bytes: u64,
    file: Mutex<Shown>,
}

impl Stored {
    /// Tell a worker what it needs to have the result under the number of its task, with what is flushed next.
    pub(crate) fn ship(&self, connection: &Arc<Connection>, told: &mut Told, task: TaskId) -> io::Result<()> {
        let (body, inline, buffers) = self.parts(connection, told, Some(task))?;
        connection.outbox.hold(&ToWorker::Result { task, body, buffers }, inline, None);
        Ok(())
    }

    /// The result as a worker gets it, which knows the memory that it is in from here on. `task`: what it is to forget
    /// before that.
    fn parts(
        &self,
        connection: &Arc<Connection>,
        told: &mut Told,
        task: Option<TaskId>,
    ) -> io::Result<(Body, &[u8], Vec<Buffer>)> {
        match self {
            Self::Placed { contents, .. } => {
                contents.announce(connection, told)?;
                Ok((contents.body, &contents.inline, contents.buffers.clone()))
            }
            Self::Made { body, buffers, .. } => {
                let (body, inline) = body.parts(connection, told, task)?;
                let buffers = buffers.iter().map(|lease| Ok(private(lease.show(connection, told, task)?)));
                Ok((body, inline, buffers.collect::<io::Result<_>>()?))
            }
            Self::Spilled(Spilled { inline, body, buffers, file, .. }) => {
                file.lock().expect("no holder panics").to(connection, told, task)?;
                Ok((*body, inline, buffers.iter().map(|extent| private(*extent)).collect()))
            }
        }
    }

    /// Tell a worker of the end of a task that it has submitted, with its result.
    pub fn tell_end(&self, connection: &Arc<Connection>, task: TaskId) -> io::Result<()> {
        let mut told = connection.told();
        let (body, inline, buffers) = self.parts(connection, &mut told, None)?;
        connection.outbox.send(&ToWorker::Ended { task, how: Ended::Finished, body, buffers }, inline, None);
        Ok(())
    }

    pub fn bytes(&self) -> u64 {
        match self {
            Self::Made { bytes, .. } | Self::Spilled(Spilled { bytes, .. }) => *bytes,
            Self::Placed { contents, .. } => {
                contents.inline.len() as u64 + contents.buffers.iter().map(|buffer| buffer.extent.bytes).sum::<u64>()
            }
        }
    }

    /// The same in a file of the folder; `None` where it takes no memory of a worker.
    pub fn spilled(&self, store: &Store, folder: &Path) -> io::Result<Option<Self>> {
        let Self::Made { body, buffers, bytes, .. } = self else { return Ok(None) };
        let (inline, leased) = match body {
            Reported::Inline(inline) => (inline.clone(), None),
            Reported::Leased(lease) => (Vec::new(), Some(lease)),
        };
        let leases: Vec<&Lease> = leased.into_iter().chain(buffers).collect();
        if leases.is_empty() {
            return Ok(None);
        }
        let id = store.fresh_id();
        let (offsets, total) = side_by_side(leases.iter().map(|lease| lease.extent().bytes));
        let extent = |(lease, offset): (&&Lease, u64)| Extent { segment: id, offset, bytes: lease.extent().bytes };
        let extents: Vec<Extent> = leases.iter().zip(offsets).map(extent).collect();
        let segment = Segment::create(total, Some(folder))?;
        for (lease, extent) in leases.iter().zip(&extents) {
            lease.copy_to(&segment, extent.offset)?;
        }
        let (body, buffers) = match leased {
            Some(_) => (Body::InSegment(extents[0]), extents[1..].to_vec()),
            None => (Body::Inline, extents),
        };
        let file = Mutex::new(Shown::new(id, Arc::new(segment)));
        Ok(Some(Self::Spilled(Spilled { inline, body, buffers, bytes: *bytes, file })))
    }
}

impl Spilled {
    /// The pickle, and views of the file, whose writes stay there.
    pub fn views(&self) -> io::Result<(Pickle<'_>, Vec<View>)> {
        let segment = self.file.lock().expect("no holder panics").segment.clone();
        let mapping = Arc::new(segment.map(Access::CopyOnWrite)?);
        let view = |extent: &Extent| View { mapping: mapping.clone(), offset: extent.offset, bytes: extent.bytes };
        let pickle = match &self.body {
            Body::Inline => Pickle::Inline(&self.inline),
            Body::InSegment(extent) => Pickle::Mapped(view(extent)),
        };
        Ok((pickle, self.buffers.iter().map(view).collect()))
    }
}

impl Reported {
    /// As a worker gets it, which knows the memory that it is in from here on.
    pub(crate) fn parts(
        &self,
        connection: &Arc<Connection>,
        told: &mut Told,
        task: Option<TaskId>,
    ) -> io::Result<(Body, &[u8])> {
        Ok(match self {
            Self::Inline(bytes) => (Body::Inline, &bytes[..]),
            Self::Leased(lease) => (Body::InSegment(lease.show(connection, told, task)?), &[][..]),
        })
    }
}

fn private(extent: Extent) -> Buffer {
    Buffer { extent, access: Access::CopyOnWrite }
}

/// A segment under a number of our own, and the workers that have been told of it.
pub(crate) struct Shown {
    pub(crate) id: SegmentId,
    pub(crate) segment: Arc<Segment>,
    /// With the tasks whose results are there.
    told: Vec<(Weak<Connection>, Option<TaskId>)>,
}

impl Shown {
    pub(crate) fn new(id: SegmentId, segment: Arc<Segment>) -> Self {
        Self { id, segment, told: Vec::new() }
    }

    pub(crate) fn to(&mut self, connection: &Arc<Connection>, told: &mut Told, task: Option<TaskId>) -> io::Result<()> {
        connection.announce(told, self.id, &self.segment)?;
        let known = |(to, of): &(Weak<Connection>, Option<TaskId>)| {
            std::ptr::eq(to.as_ptr(), Arc::as_ptr(connection)) && *of == task
        };
        if task.is_some() || !self.told.iter().any(known) {
            self.told.push((Arc::downgrade(connection), task));
        }
        Ok(())
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        for (connection, task) in &self.told {
            if let Some(connection) = connection.upgrade() {
                task.iter().for_each(|task| connection.forget_result(*task));
                connection.forget(self.id);
            }
        }
    }
}
