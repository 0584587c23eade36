//! Pickles of clients, and what is made of them once the segments that they name are here.

use std::io;
use std::sync::Arc;

use rustdask_core::cluster::{Pickle, PicklePlace, Thing};
use rustdask_core::message::{Access, Body, Buffer, Extent};
use rustdask_core::SegmentId;
use rustdask_runtime::lease::Lease;
use rustdask_runtime::parcel::Contents;
use rustdask_runtime::shm::Segment;

use crate::data::{HeldSegment, Holdings};

/// What is made of a pickle the first time that it is needed.
pub(crate) struct Recipe<T> {
    pickle: Pickle,
    inline: Vec<u8>,
    made: Option<T>,
}

impl<T> Recipe<T> {
    /// `inline`: the pickle, if it is in no segment.
    pub(crate) fn new(pickle: Pickle, inline: Vec<u8>) -> Self {
        Self { pickle, inline, made: None }
    }

    pub(crate) fn made(&self) -> Option<&T> {
        self.made.as_ref()
    }

    pub(crate) fn segments(&self) -> impl Iterator<Item = SegmentId> + '_ {
        self.pickle.segments()
    }

    /// All its segments are here.
    pub(crate) fn make(&mut self, holdings: &Holdings, with: impl FnOnce(Contents) -> T) -> io::Result<&T> {
        if self.made.is_none() {
            let contents = contents(&self.pickle, std::mem::take(&mut self.inline), holdings)?;
            self.made = Some(with(contents));
        }
        Ok(self.made.as_ref().expect("just made"))
    }
}

/// The pickle as workers get it. All segments that it names are here.
pub(crate) fn contents(pickle: &Pickle, inline: Vec<u8>, holdings: &Holdings) -> io::Result<Contents> {
    let mut memory = Memory { holdings, segments: Vec::new(), leases: Vec::new() };
    let body = match &pickle.place {
        PicklePlace::Inline { .. } => Body::Inline,
        PicklePlace::Segment(named) => Body::InSegment(memory.extent(named)?),
    };
    let mut buffers = Vec::with_capacity(pickle.buffers.len());
    for named in &pickle.buffers {
        buffers.push(Buffer { extent: memory.extent(named)?, access: Access::CopyOnWrite });
    }
    Ok(Contents { inline, body, buffers, segments: memory.segments, leases: memory.leases })
}

struct Memory<'a> {
    holdings: &'a Holdings,
    segments: Vec<(SegmentId, Arc<Segment>)>,
    leases: Vec<Lease>,
}

impl Memory<'_> {
    fn extent(&mut self, named: &Extent) -> io::Result<Extent> {
        let Extent { segment, offset, bytes } = *named;
        let held = self.holdings.segment(segment).ok_or_else(|| missing(Thing::Segment(segment)))?;
        if offset.checked_add(bytes).is_none_or(|end| end > held.bytes()) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a pickle names memory outside of its segment"));
        }
        match &*held {
            HeldSegment::Own(own) => {
                if self.segments.iter().all(|(id, _)| *id != segment) {
                    self.segments.push((segment, own.clone()));
                }
                Ok(*named)
            }
            HeldSegment::Leased(lease) => {
                let shown = lease.shown_as()?;
                self.leases.push(lease.clone());
                Ok(Extent { segment: shown.segment, offset: shown.offset + offset, bytes })
            }
        }
    }
}

pub(crate) fn missing(thing: Thing) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{thing:?} is not here"))
}
