//! Arguments in shared memory: each buffer is placed once and named by every task that has it.
//!
//! A buffer is known by its address and length, and by what it holds. While the caller vouches that it
//! is the same object in the same call, a sample of it is compared; otherwise all of it (XXH3-128, which
//! runs at the speed of memory). So an array that was changed between calls is placed anew.
//! A segment stays while tasks hold it, and after that for the next call, until it is the longest unused
//! of too many, or the store has been idle for a while.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustdask_core::message::Extent;
use rustdask_core::{CallId, SegmentId};
use xxhash_rust::xxh3::{xxh3_128, Xxh3};

use crate::shm::Segment;

/// Kept for later calls at most: this many segments and bytes.
const MAX_KEPT: usize = 24;
const MAX_KEPT_BYTES: u64 = 1 << 30;

/// Up to this size the whole buffer is the sample.
const WHOLE_SAMPLE_BYTES: usize = 8 << 20;
const SAMPLE_PIECES: usize = 64;
const SAMPLE_PIECE_BYTES: usize = 1 << 10;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Place {
    address: usize,
    bytes: usize,
    /// Where its segment's file is; None: in memory.
    folder: Option<PathBuf>,
}

impl Place {
    fn of(buffer: &[u8], folder: Option<&Path>) -> Self {
        Self { address: buffer.as_ptr() as usize, bytes: buffer.len(), folder: folder.map(Path::to_path_buf) }
    }
}

struct Placed {
    segment: Arc<Segment>,
    place: Place,
    sample: u128,
    whole: u128,
    /// Tasks and blobs that name it and have not ended.
    holders: u32,
    /// In this call it was compared last.
    call: CallId,
    last_used: Instant,
}

/// Bytes and segments, for `info()` and `explain()`.
#[derive(Clone, Copy, Debug, Default)]
pub struct StoreStats {
    pub segments: usize,
    pub bytes: u64,
}

#[derive(Default)]
struct Inner {
    placed: HashMap<SegmentId, Placed>,
    by_place: HashMap<Place, SegmentId>,
    next: u64,
}

#[derive(Default)]
pub struct Store(Mutex<Inner>);

impl Store {
    /// Have a segment hold what the buffer holds now, until it is released. The second value: bytes copied.
    /// `same` vouches that this is the very object that was at its address before in this call.
    pub fn place(&self, call: CallId, buffer: &[u8], same: bool, folder: Option<&Path>) -> io::Result<(Extent, u64)> {
        let place = Place::of(buffer, folder);
        let sample = sample(buffer);
        if let Some(segment) = self.known(call, &place, sample, same, buffer) {
            return Ok((extent(segment, buffer), 0));
        }
        let (id, extent) = self.place_anew(call, buffer, sample, folder)?;
        self.0.lock().expect("no holder panics").by_place.insert(place, id);
        Ok((extent, buffer.len() as u64))
    }

    /// As [`Store::place`], for bytes that nobody will place again.
    pub fn place_once(&self, call: CallId, buffer: &[u8], folder: Option<&Path>) -> io::Result<Extent> {
        Ok(self.place_anew(call, buffer, 0, folder)?.1)
    }

    fn place_anew(
        &self,
        call: CallId,
        buffer: &[u8],
        sample: u128,
        folder: Option<&Path>,
    ) -> io::Result<(SegmentId, Extent)> {
        let segment = Segment::create(buffer.len() as u64, folder)?;
        segment.fill(buffer)?;
        let placed = Placed {
            segment: Arc::new(segment),
            place: Place::of(buffer, folder),
            sample,
            whole: xxh3_128(buffer),
            holders: 1,
            call,
            last_used: Instant::now(),
        };
        let mut inner = self.0.lock().expect("no holder panics");
        let id = SegmentId(inner.next);
        inner.next += 1;
        inner.placed.insert(id, placed);
        Ok((id, extent(id, buffer)))
    }

    fn known(&self, call: CallId, place: &Place, sample: u128, same: bool, buffer: &[u8]) -> Option<SegmentId> {
        let (id, whole) = {
            let mut inner = self.0.lock().expect("no holder panics");
            let id = *inner.by_place.get(place)?;
            let placed = inner.placed.get_mut(&id)?;
            if placed.sample != sample {
                return None;
            }
            if same && placed.call == call {
                placed.holders += 1;
                return Some(id);
            }
            (id, placed.whole)
        };
        if xxh3_128(buffer) != whole {
            return None;
        }
        let mut inner = self.0.lock().expect("no holder panics");
        let placed = inner.placed.get_mut(&id)?;
        placed.call = call;
        placed.holders += 1;
        Some(id)
    }

    pub fn segment(&self, id: SegmentId) -> Option<Arc<Segment>> {
        self.0.lock().expect("no holder panics").placed.get(&id).map(|placed| placed.segment.clone())
    }

    /// Holders have ended. The segments that are given up for it: tell the workers to unmap them.
    pub fn release(&self, segments: &[SegmentId]) -> Vec<SegmentId> {
        let mut inner = self.0.lock().expect("no holder panics");
        let now = Instant::now();
        for id in segments {
            if let Some(placed) = inner.placed.get_mut(id) {
                placed.holders -= 1;
                placed.last_used = now;
            }
        }
        inner.give_up(MAX_KEPT, MAX_KEPT_BYTES)
    }

    /// Give up what nobody has held for `age`.
    pub fn trim(&self, age: Duration) -> Vec<SegmentId> {
        let mut inner = self.0.lock().expect("no holder panics");
        let old: Vec<_> =
            inner.unused().filter(|(_, placed)| placed.last_used.elapsed() >= age).map(|(id, _)| *id).collect();
        old.iter().for_each(|id| inner.remove(*id));
        old
    }

    pub fn stats(&self) -> StoreStats {
        let inner = self.0.lock().expect("no holder panics");
        StoreStats {
            segments: inner.placed.len(),
            bytes: inner.placed.values().map(|placed| placed.segment.bytes).sum(),
        }
    }
}

impl Inner {
    fn unused(&self) -> impl Iterator<Item = (&SegmentId, &Placed)> {
        self.placed.iter().filter(|(_, placed)| placed.holders == 0)
    }

    /// Drop unused segments, those first that another buffer has replaced, then the longest unused,
    /// until at most `count` and `bytes` are kept.
    fn give_up(&mut self, count: usize, bytes: u64) -> Vec<SegmentId> {
        let mut unused: Vec<_> = self
            .unused()
            .map(|(id, placed)| {
                (self.by_place.get(&placed.place) == Some(id), placed.last_used, *id, placed.segment.bytes)
            })
            .collect();
        unused.sort_unstable();
        let mut kept = unused.len();
        let mut kept_bytes: u64 = unused.iter().map(|entry| entry.3).sum();
        let mut gone = Vec::new();
        for (current, _, id, size) in unused {
            if current && kept <= count && kept_bytes <= bytes {
                break;
            }
            kept -= 1;
            kept_bytes -= size;
            gone.push(id);
        }
        gone.iter().for_each(|id| self.remove(*id));
        gone
    }

    fn remove(&mut self, id: SegmentId) {
        let Some(placed) = self.placed.remove(&id) else { return };
        if self.by_place.get(&placed.place) == Some(&id) {
            self.by_place.remove(&placed.place);
        }
    }
}

fn extent(segment: SegmentId, buffer: &[u8]) -> Extent {
    Extent { segment, offset: 0, bytes: buffer.len() as u64 }
}

/// A hash of the whole of a small buffer, or of pieces spread evenly over a large one.
fn sample(buffer: &[u8]) -> u128 {
    if buffer.len() <= WHOLE_SAMPLE_BYTES {
        return xxh3_128(buffer);
    }
    let mut hash = Xxh3::new();
    let stride = (buffer.len() - SAMPLE_PIECE_BYTES) / (SAMPLE_PIECES - 1);
    for piece in 0..SAMPLE_PIECES {
        hash.update(&buffer[piece * stride..piece * stride + SAMPLE_PIECE_BYTES]);
    }
    hash.digest128()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: CallId = CallId(1);
    const SECOND: CallId = CallId(2);

    #[test]
    fn the_same_buffer_is_placed_once_and_a_changed_one_again() {
        let store = Store::default();
        let mut data = vec![1u8; 12 << 20];
        let (first, copied) = store.place(FIRST, &data, false, None).unwrap();
        assert_eq!(copied, 12 << 20);
        assert_eq!(store.place(FIRST, &data, true, None).unwrap(), (first, 0));
        assert_eq!(store.place(SECOND, &data, true, None).unwrap(), (first, 0));
        // One byte that no sample looks at.
        data[5000] = 2;
        let (third, copied) = store.place(CallId(3), &data, true, None).unwrap();
        assert_ne!(third.segment, first.segment);
        assert_eq!(copied, 12 << 20);
    }

    #[test]
    fn what_another_has_replaced_is_given_up_first() {
        let store = Store::default();
        let mut data = vec![1u8; 100_000];
        let (old, _) = store.place(FIRST, &data, false, None).unwrap();
        data[0] = 9;
        let (new, _) = store.place(FIRST, &data, true, None).unwrap();
        assert_eq!(store.release(&[old.segment, new.segment]), [old.segment]);
        assert!(store.segment(new.segment).is_some());
        assert_eq!(store.trim(Duration::ZERO), [new.segment]);
        assert_eq!(store.stats().segments, 0);
    }
}
