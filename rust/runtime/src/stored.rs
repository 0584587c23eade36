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

use crate::connection::{invalid, Connection, Told};
use crate::delivery::Reported;
use crate::endpoint::View;
use crate::lease::Lease;
use crate::parcel::Contents;
use crate::shm::Segment;
use crate::store::{side_by_side, Store};

/// What is there to be dropped with a result.
pub type Guard = Box<dyn Send + Sync>;

/// A result.
pub enum Stored {
    /// In memory of the worker that made it.
    Made { body: Reported, buffers: Vec<Lease>, bytes: u64, counted: Option<Guard> },
    /// In memory that others look at, too.
    Placed { contents: Contents, held: Guard },
    /// In memory of its own, or in a file.
    Copied(Copied),
}

/// Where the pickle of a result is.
pub enum Pickle<'a> {
    Inline(&'a [u8]),
    Mapped(View),
}

/// One segment has all of it, but for a pickle that is inline.
pub struct Copied {
    inline: Vec<u8>,
    body: Body,
    buffers: Vec<Extent>,
    bytes: u64,
    shown: Mutex<Shown>,
    in_file: bool,
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
            Self::Copied(Copied { inline, body, buffers, shown, .. }) => {
                shown.lock().expect("no holder panics").to(connection, told, task)?;
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
            Self::Made { bytes, .. } | Self::Copied(Copied { bytes, .. }) => *bytes,
            Self::Placed { contents, .. } => {
                contents.inline.len() as u64 + contents.buffers.iter().map(|buffer| buffer.extent.bytes).sum::<u64>()
            }
        }
    }

    /// A copy of a result of another process, as [`lay_out`] has it: the pickle first, then its buffers.
    pub fn copied(id: SegmentId, segment: Segment, sizes: &[u64]) -> Self {
        let (offsets, _) = side_by_side(sizes.iter().copied());
        let mut extents = offsets.iter().zip(sizes).map(|(offset, bytes)| extent(id, *offset, *bytes));
        let body = extents.next().map_or(Body::Inline, Body::InSegment);
        let (buffers, bytes) = (extents.collect(), sizes.iter().sum());
        let shown = Mutex::new(Shown::new(id, Arc::new(segment)));
        Self::Copied(Copied { inline: Vec::new(), body, buffers, bytes, shown, in_file: false })
    }

    /// The pickle of a small result.
    pub fn inline(pickle: Vec<u8>) -> Self {
        let contents =
            Contents { inline: pickle, body: Body::Inline, buffers: vec![], segments: vec![], leases: vec![] };
        Self::Placed { contents, held: Box::new(()) }
    }

    /// The pickle, and its buffers.
    pub fn parts_here(&self) -> io::Result<(Pickle<'_>, Vec<View>)> {
        match self {
            Self::Made { body: Reported::Inline(inline), buffers, .. } => {
                Ok((Pickle::Inline(inline), buffers.iter().map(Lease::view).collect()))
            }
            Self::Made { body: Reported::Leased(lease), buffers, .. } => {
                Ok((Pickle::Mapped(lease.view()), buffers.iter().map(Lease::view).collect()))
            }
            Self::Placed { contents, .. } => contents.parts_here(),
            Self::Copied(copied) => copied.views_as(Access::ReadOnly),
        }
    }

    /// The same in a file of the folder; `None` where it takes no memory that is shared.
    pub fn spilled(&self, store: &Store, folder: &Path) -> io::Result<Option<Self>> {
        if matches!(self, Self::Copied(Copied { in_file: true, .. })) {
            return Ok(None);
        }
        let (pickle, buffers) = self.parts_here()?;
        let (inline, mapped) = match pickle {
            Pickle::Inline(inline) => (inline.to_vec(), None),
            Pickle::Mapped(view) => (Vec::new(), Some(view)),
        };
        let views: Vec<&View> = mapped.iter().chain(&buffers).collect();
        if views.is_empty() {
            return Ok(None);
        }
        let id = store.fresh_id();
        let (offsets, total) = side_by_side(views.iter().map(|view| view.bytes));
        let mut extents: Vec<Extent> =
            views.iter().zip(offsets).map(|(view, offset)| extent(id, offset, view.bytes)).collect();
        let segment = Segment::create(total, Some(folder))?;
        for (view, extent) in views.iter().zip(&extents) {
            segment.fill_at(view.as_slice().ok_or_else(outside)?, extent.offset)?;
        }
        let body = match mapped {
            Some(_) => Body::InSegment(extents.remove(0)),
            None => Body::Inline,
        };
        let shown = Mutex::new(Shown::new(id, Arc::new(segment)));
        let copied = Copied { inline, body, buffers: extents, bytes: self.bytes(), shown, in_file: true };
        Ok(Some(Self::Copied(copied)))
    }
}

/// Where parts of such sizes stand in one segment, and the size of that; all in bytes.
pub fn lay_out(sizes: &[u64]) -> (Vec<u64>, u64) {
    side_by_side(sizes.iter().copied())
}

fn extent(segment: SegmentId, offset: u64, bytes: u64) -> Extent {
    Extent { segment, offset, bytes }
}

fn outside() -> io::Error {
    invalid("a result is outside of its segment")
}

impl Copied {
    /// The pickle, and views of the segment, whose writes stay there.
    pub fn views(&self) -> io::Result<(Pickle<'_>, Vec<View>)> {
        self.views_as(Access::CopyOnWrite)
    }

    fn views_as(&self, access: Access) -> io::Result<(Pickle<'_>, Vec<View>)> {
        let segment = self.shown.lock().expect("no holder panics").segment.clone();
        let mapping = Arc::new(segment.map(access)?);
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
