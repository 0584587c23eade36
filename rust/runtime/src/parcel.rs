//! A task that has been pickled and whose arrays have been placed: ready for any worker, without Python.

use std::io;
use std::sync::Arc;

use rustdask_core::message::{Access, Body, Buffer, Extent, Linked, RunTask, ToWorker};
use rustdask_core::{Attempt, BlobId, CallId, SegmentId, TaskId};

use crate::connection::{invalid, Connection, Told};
use crate::delivery::Reported;
use crate::driver::Links;
use crate::endpoint::View;
use crate::lease::Lease;
use crate::shm::Segment;
use crate::stored::Pickle;

/// Bytes on their way: a pickle, its buffers, and the shared memory that they are in.
pub struct Contents {
    /// The pickle, unless it stands in a segment itself.
    pub inline: Vec<u8>,
    pub body: Body,
    pub buffers: Vec<Buffer>,
    pub segments: Vec<(SegmentId, Arc<Segment>)>,
    /// What is in the memory of the worker that it came from.
    pub leases: Vec<Lease>,
}

impl Contents {
    /// What a worker has sent, for other workers.
    pub(crate) fn of_worker(body: Reported, buffers: Vec<Lease>) -> io::Result<Self> {
        let access = Access::CopyOnWrite;
        let shown = buffers.iter().map(|lease| Ok(Buffer { extent: lease.shown_as()?, access }));
        let shown = shown.collect::<io::Result<Vec<_>>>()?;
        let mut leases = buffers;
        let (inline, body) = match body {
            Reported::Inline(bytes) => (bytes, Body::Inline),
            Reported::Leased(lease) => {
                let body = Body::InSegment(lease.shown_as()?);
                leases.push(lease);
                (Vec::new(), body)
            }
        };
        Ok(Self { inline, body, buffers: shown, segments: Vec::new(), leases })
    }

    /// The pickle, and the buffers.
    pub(crate) fn parts_here(&self) -> io::Result<(Pickle<'_>, Vec<View>)> {
        let pickle = match self.body {
            Body::Inline => Pickle::Inline(&self.inline),
            Body::InSegment(extent) => Pickle::Mapped(self.view(extent)?),
        };
        let views = self.buffers.iter().map(|buffer| self.view(buffer.extent)).collect::<io::Result<_>>()?;
        Ok((pickle, views))
    }

    fn view(&self, extent: Extent) -> io::Result<View> {
        let Extent { segment, offset, bytes } = extent;
        if let Some((_, own)) = self.segments.iter().find(|(id, _)| *id == segment) {
            return Ok(View { mapping: Arc::new(own.map(Access::ReadOnly)?), offset, bytes });
        }
        let of_segment = |lease: &&Lease| lease.shown_as().is_ok_and(|shown| shown.segment == segment);
        let lease = self.leases.iter().find(of_segment).ok_or_else(|| invalid("a buffer is in no segment"))?;
        Ok(View { mapping: lease.mapping().clone(), offset, bytes })
    }

    pub(crate) fn announce(&self, connection: &Arc<Connection>, told: &mut Told) -> io::Result<()> {
        self.segments.iter().try_for_each(|(id, segment)| connection.announce(told, *id, segment))?;
        self.leases.iter().try_for_each(|lease| lease.show(connection, told, None).map(|_| ()))
    }
}

/// What many tasks refer to; sent once to each worker.
pub struct Blob {
    pub id: BlobId,
    pub contents: Contents,
}

pub struct Parcel {
    pub call: CallId,
    pub contents: Contents,
    pub blobs: Vec<Arc<Blob>>,
    /// Private memory that a worker may use for it; 0: no limit.
    pub memory_limit: u64,
}

impl Blob {
    /// Whether workers should let go of it as soon as the call ends, and not when they are next spoken to.
    pub fn is_large(&self) -> bool {
        !(self.contents.segments.is_empty() && self.contents.leases.is_empty())
    }
}

impl Parcel {
    /// Have it go with what is flushed next; with the results that a task of a graph takes.
    pub fn hold(
        &self,
        connection: &Arc<Connection>,
        task: TaskId,
        attempt: Attempt,
        items: u32,
        links: Option<&Links>,
    ) -> io::Result<()> {
        // Locked until all is in its place: nobody else may send a task before the blob that this one was to bring.
        let mut told = connection.told();
        connection.hold_forgotten(&mut told);
        for (input, stored) in links.iter().flat_map(|links| &links.inputs) {
            if told.needs_result(*input) {
                stored.ship(connection, &mut told, *input)?;
            }
        }
        for blob in &self.blobs {
            if told.needs_blob(blob.id) {
                let Contents { inline, body, buffers, .. } = &blob.contents;
                blob.contents.announce(connection, &mut told)?;
                let message = ToWorker::Blob { blob: blob.id, body: *body, buffers: buffers.clone() };
                connection.outbox.hold(&message, inline, None);
            }
        }
        self.contents.announce(connection, &mut told)?;
        connection.limit_memory(self.memory_limit);
        let run = RunTask {
            call: self.call,
            task,
            attempt,
            items,
            blobs: self.blobs.iter().map(|blob| blob.id).collect(),
            body: self.contents.body,
            buffers: self.contents.buffers.clone(),
            linked: links.map(|links| Linked {
                inputs: links.inputs.iter().map(|(input, _)| *input).collect(),
                granted: links.granted.clone(),
            }),
        };
        connection.outbox.hold(&ToWorker::Run(run), &self.contents.inline, None);
        Ok(())
    }
}
