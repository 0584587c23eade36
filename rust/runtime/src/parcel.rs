//! A task that has been pickled and whose arrays have been placed: ready for any worker, without Python.

use std::io;
use std::sync::Arc;

use rustdask_core::message::{Body, Buffer, Granted, Linked, RunTask, ToWorker};
use rustdask_core::{Attempt, BlobId, CallId, SegmentId, TaskId};

use crate::driver::Links;
use crate::processes::Connection;
use crate::shm::Segment;
use crate::wire::append_frame;

/// Bytes on their way: a pickle, its buffers, and the shared memory that they are in.
pub struct Contents {
    /// The pickle, unless it stands in a segment itself.
    pub inline: Vec<u8>,
    pub body: Body,
    pub buffers: Vec<Buffer>,
    pub segments: Vec<(SegmentId, Arc<Segment>)>,
}

impl Contents {
    pub(crate) fn announce(&self, connection: &Connection) -> io::Result<()> {
        self.segments.iter().try_for_each(|(id, segment)| connection.announce(*id, segment))
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
        !self.contents.segments.is_empty()
    }
}

impl Parcel {
    /// With the results that a task of a graph takes.
    pub fn send(
        &self,
        connection: &Arc<Connection>,
        task: TaskId,
        attempt: Attempt,
        items: u32,
        links: Option<&Links>,
    ) -> io::Result<()> {
        let mut frames = connection.take_forgotten_frames();
        for (input, stored) in links.iter().flat_map(|links| &links.inputs) {
            if connection.needs_result(*input) {
                stored.ship(connection, *input, &mut frames)?;
            }
        }
        for blob in &self.blobs {
            if connection.needs_blob(blob.id.0) {
                let Contents { inline, body, buffers, .. } = &blob.contents;
                blob.contents.announce(connection)?;
                let message = ToWorker::Blob { blob: blob.id, body: *body, buffers: buffers.clone() };
                append_frame(&mut frames, &message, inline);
            }
        }
        self.contents.announce(connection)?;
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
                granted: links.granted.iter().map(Granted::from).collect(),
            }),
        };
        append_frame(&mut frames, &ToWorker::Run(run), &self.contents.inline);
        connection.outbox.send_frames(frames, None);
        Ok(())
    }
}
