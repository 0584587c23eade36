//! Arguments in shared memory: each buffer is placed once and named by every task that has it.
//!
//! A buffer is known by its address and length, and by what it holds. While the caller vouches that it
//! is the same object in the same call, a sample of it is compared; otherwise all of it (XXH3-128, which
//! runs at the speed of memory). So an array that was changed between calls is placed anew.
//!
//! A segment stays while tasks hold it, and after that for the next call. Then a buffer of the same size takes it
//! over, which is several times faster than filling fresh memory, unless a worker has said that it still refers to
//! it. Else it is given up when it is the longest unused of too many, or the store has been idle for a while.
//!
//! Small buffers that are placed at once share a segment: an estimator of a thousand trees would
//! take more descriptors than a process may have.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustdask_core::message::{Access, Extent};
use rustdask_core::{CallId, SegmentId};
use xxhash_rust::xxh3::{xxh3_128, Xxh3};

use crate::shm::{self, Fillers, Segment};

/// Kept for later calls at most: this many segments and bytes.
const MAX_KEPT: usize = 24;
const MAX_KEPT_BYTES: u64 = 1 << 30;

/// Buffers from this size on have a segment of their own.
const OWN_SEGMENT_BYTES: usize = 1 << 20;
/// So many buffers of one task may have that; more of them share one whatever their size, to save descriptors.
const MAX_OWN: usize = 32;
/// Where a buffer begins in a segment that it shares: a cache line.
const ALIGNMENT: u64 = 64;

/// Up to this size the whole buffer is the sample.
const WHOLE_SAMPLE_BYTES: usize = 1 << 20;
const SAMPLE_PIECES: usize = 64;
const SAMPLE_PIECE_BYTES: usize = 1 << 10;

/// A buffer of the caller's.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    pub bytes: &'a [u8],
    /// The caller vouches that this is the very object that was at its address before in this call.
    pub same: bool,
    /// Tasks write to the segment itself.
    pub shared: bool,
}

/// Where a buffer stands in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    pub extent: Extent,
    /// It was copied there now.
    pub copied: bool,
}

/// Where buffers of such sizes begin in a segment that they share, and its size; all in bytes.
pub(crate) fn side_by_side(sizes: impl Iterator<Item = u64>) -> (Vec<u64>, u64) {
    let mut end = 0;
    let offsets = sizes.map(|bytes| {
        let offset = u64::next_multiple_of(end, ALIGNMENT);
        end = offset + bytes;
        offset
    });
    (offsets.collect(), end)
}

/// Where a buffer is in the caller's memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Place {
    address: usize,
    bytes: usize,
}

impl Place {
    fn of(buffer: &[u8]) -> Self {
        Self { address: buffer.as_ptr() as usize, bytes: buffer.len() }
    }
}

struct Placed {
    segment: Arc<Segment>,
    /// Where its file is; None: in memory.
    folder: Option<PathBuf>,
    /// The buffers that it has copies of.
    places: Vec<Place>,
    /// Tasks and blobs that name it and have not ended.
    holders: u32,
    /// A worker may refer to it beyond its tasks, so what it holds stays as it is.
    kept: bool,
    last_used: Instant,
}

/// What is known of a buffer that was placed.
#[derive(Clone, Copy)]
struct Known {
    extent: Extent,
    sample: u128,
    /// Hash of all of it, once it was needed.
    whole: Option<u128>,
    shared: bool,
    /// In this call it was compared last.
    call: CallId,
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
    by_place: HashMap<Place, Known>,
    next: u64,
}

#[derive(Default)]
pub struct Store {
    inner: Mutex<Inner>,
    fillers: Fillers,
}

impl Store {
    /// Have segments hold what the buffers hold now, until they are released: each as often as `held` names it then.
    pub fn place(
        &self,
        call: CallId,
        sources: &[Source<'_>],
        folder: Option<&Path>,
        held: &mut Vec<SegmentId>,
    ) -> io::Result<Vec<Placement>> {
        let mut placements: Vec<Option<Placement>> = vec![None; sources.len()];
        let mut small: Vec<Source<'_>> = Vec::new();
        let mut small_at: HashMap<Place, Vec<usize>> = HashMap::new();
        for (i, source) in sources.iter().enumerate() {
            if let Some(twins) = small_at.get_mut(&Place::of(source.bytes)) {
                twins.push(i);
            } else if let Some(extent) = self.known(call, source, folder) {
                held.push(extent.segment);
                placements[i] = Some(Placement { extent, copied: false });
            } else if source.bytes.len() >= OWN_SEGMENT_BYTES && sources.len() <= MAX_OWN {
                let extent = self.place_alone(call, source, folder, held)?;
                placements[i] = Some(Placement { extent, copied: true });
            } else {
                small.push(*source);
                small_at.insert(Place::of(source.bytes), vec![i]);
            }
        }
        let times = small_at.values().map(|twins| twins.len() as u32).sum();
        let extents = self.place_together(call, &small, folder, times)?;
        for (source, extent) in small.iter().zip(extents) {
            for (nth, i) in small_at[&Place::of(source.bytes)].iter().enumerate() {
                held.push(extent.segment);
                placements[*i] = Some(Placement { extent, copied: nth == 0 });
            }
        }
        Ok(placements.into_iter().map(|placement| placement.expect("each was placed in one of three ways")).collect())
    }

    /// Have a segment hold bytes that nobody will place again, until it is released.
    pub fn place_once(&self, bytes: &[u8], folder: Option<&Path>) -> io::Result<Extent> {
        let segment = Segment::create(bytes.len() as u64, folder)?;
        segment.fill_by(&self.fillers, bytes)?;
        let mut inner = self.lock();
        let id = inner.insert(segment, folder, 1);
        Ok(Extent { segment: id, offset: 0, bytes: bytes.len() as u64 })
    }

    fn place_alone(
        &self,
        call: CallId,
        source: &Source<'_>,
        folder: Option<&Path>,
        held: &mut Vec<SegmentId>,
    ) -> io::Result<Extent> {
        let bytes = source.bytes.len() as u64;
        let place = Place::of(source.bytes);
        let taken = self.lock().take_over(&place, bytes, folder);
        let id = match taken {
            Some(id) => id,
            None => {
                let segment = Segment::create(bytes, folder)?;
                self.lock().insert(segment, folder, 1)
            }
        };
        held.push(id);
        self.segment(id).expect("it is held, so it is there").fill_by(&self.fillers, source.bytes)?;
        let extent = Extent { segment: id, offset: 0, bytes };
        self.lock().know(place, Known::new(extent, source, call));
        Ok(extent)
    }

    /// One segment for all of them, which is held so many times.
    fn place_together(
        &self,
        call: CallId,
        sources: &[Source<'_>],
        folder: Option<&Path>,
        times: u32,
    ) -> io::Result<Vec<Extent>> {
        if sources.is_empty() {
            return Ok(Vec::new());
        }
        let (offsets, total) = side_by_side(sources.iter().map(|source| source.bytes.len() as u64));
        let segment = Segment::create(total, folder)?;
        for (source, offset) in sources.iter().zip(&offsets) {
            segment.fill_at(source.bytes, *offset)?;
        }
        let mut inner = self.lock();
        let id = inner.insert(segment, folder, times);
        let extent = |source: &Source<'_>, offset| Extent { segment: id, offset, bytes: source.bytes.len() as u64 };
        let extents: Vec<_> = sources.iter().zip(offsets).map(|(source, offset)| extent(source, offset)).collect();
        for (source, extent) in sources.iter().zip(&extents) {
            inner.know(Place::of(source.bytes), Known::new(*extent, source, call));
        }
        Ok(extents)
    }

    /// Where the buffer stands already, as it is now; it is held there once more.
    fn known(&self, call: CallId, source: &Source<'_>, folder: Option<&Path>) -> Option<Extent> {
        let place = Place::of(source.bytes);
        let (known, segment) = {
            let inner = self.lock();
            let known = *inner.by_place.get(&place)?;
            let placed = inner.placed.get(&known.extent.segment)?;
            if placed.folder.as_deref() != folder || known.shared != source.shared {
                return None;
            }
            (known, placed.segment.clone())
        };
        if known.sample != sample(source.bytes) {
            return None;
        }
        if known.call == call && source.same {
            return self.lock().hold_known(place, known);
        }
        // What tasks of another call have written to it is nothing to this one.
        if known.call != call && known.shared {
            return None;
        }
        let whole = Some(xxh3_128(source.bytes));
        // What was placed in a shared segment is known only by its hash: tasks have written to it since.
        if known.whole.or_else(|| hash_of(&segment, known.extent)) != whole {
            return None;
        }
        self.lock().hold_known(place, Known { whole, call, ..known })
    }

    /// A worker may refer to the segment beyond its tasks.
    pub fn keep(&self, id: SegmentId) {
        if let Some(placed) = self.lock().placed.get_mut(&id) {
            placed.kept = true;
        }
    }

    /// A number that no other segment has.
    pub fn fresh_id(&self) -> SegmentId {
        self.lock().fresh_id()
    }

    pub fn segment(&self, id: SegmentId) -> Option<Arc<Segment>> {
        self.lock().placed.get(&id).map(|placed| placed.segment.clone())
    }

    /// Holders have ended. The segments that are given up for it: tell the workers to unmap them.
    pub fn release(&self, segments: &[SegmentId]) -> Vec<SegmentId> {
        let mut inner = self.lock();
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
        let mut inner = self.lock();
        let old: Vec<_> =
            inner.unused().filter(|(_, placed)| placed.last_used.elapsed() >= age).map(|(id, _)| *id).collect();
        old.iter().for_each(|id| inner.remove(*id));
        old
    }

    pub fn stats(&self) -> StoreStats {
        let inner = self.lock();
        StoreStats {
            segments: inner.placed.len(),
            bytes: inner.placed.values().map(|placed| placed.segment.bytes).sum(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder panics")
    }
}

impl Known {
    fn new(extent: Extent, source: &Source<'_>, call: CallId) -> Self {
        let sample = sample(source.bytes);
        let whole = match source.bytes.len() <= WHOLE_SAMPLE_BYTES {
            true => Some(sample),
            false => source.shared.then(|| xxh3_128(source.bytes)),
        };
        Self { extent, sample, whole, shared: source.shared, call }
    }
}

impl Inner {
    fn insert(&mut self, segment: Segment, folder: Option<&Path>, holders: u32) -> SegmentId {
        let id = self.fresh_id();
        let placed = Placed {
            segment: Arc::new(segment),
            folder: folder.map(Path::to_path_buf),
            places: Vec::new(),
            holders,
            kept: false,
            last_used: Instant::now(),
        };
        self.placed.insert(id, placed);
        id
    }

    fn fresh_id(&mut self) -> SegmentId {
        self.next += 1;
        SegmentId(self.next - 1)
    }

    fn hold(&mut self, id: SegmentId) {
        self.placed.get_mut(&id).expect("what was just placed is there").holders += 1;
    }

    /// Hold what was found, unless it was given up or replaced meanwhile.
    fn hold_known(&mut self, place: Place, known: Known) -> Option<Extent> {
        let current = self.by_place.get_mut(&place).filter(|current| current.extent == known.extent)?;
        *current = known;
        self.placed.get_mut(&known.extent.segment)?.holders += 1;
        Some(known.extent)
    }

    fn know(&mut self, place: Place, known: Known) {
        self.placed.get_mut(&known.extent.segment).expect("what was just placed is there").places.push(place.clone());
        self.by_place.insert(place, known);
    }

    /// An unused segment of this size: the one that held this buffer before, else the longest unused. It is held now.
    fn take_over(&mut self, place: &Place, bytes: u64, folder: Option<&Path>) -> Option<SegmentId> {
        let fitting = self.unused().filter(|(_, placed)| {
            !placed.kept
                && placed.segment.bytes == bytes
                && placed.places.len() == 1
                && placed.folder.as_deref() == folder
        });
        let (id, _) = fitting.min_by_key(|(id, placed)| (placed.places[0] != *place, placed.last_used, **id))?;
        let id = *id;
        let places = std::mem::take(&mut self.placed.get_mut(&id)?.places);
        places.iter().for_each(|place| self.forget(id, place));
        self.hold(id);
        Some(id)
    }

    fn unused(&self) -> impl Iterator<Item = (&SegmentId, &Placed)> {
        self.placed.iter().filter(|(_, placed)| placed.holders == 0)
    }

    /// The segment has what is now at one of its places.
    fn is_current(&self, id: SegmentId, placed: &Placed) -> bool {
        placed.places.iter().any(|place| self.by_place.get(place).is_some_and(|known| known.extent.segment == id))
    }

    /// Drop unused segments, those first that others have replaced, then the longest unused,
    /// until at most `count` and `bytes` are kept.
    fn give_up(&mut self, count: usize, bytes: u64) -> Vec<SegmentId> {
        let mut unused: Vec<_> = self
            .unused()
            .map(|(id, placed)| (self.is_current(*id, placed), placed.last_used, *id, placed.segment.bytes))
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
        placed.places.iter().for_each(|place| self.forget(id, place));
    }

    fn forget(&mut self, id: SegmentId, place: &Place) {
        if self.by_place.get(place).is_some_and(|known| known.extent.segment == id) {
            self.by_place.remove(place);
        }
    }
}

/// Hash of what stands in a segment; None where it cannot be mapped.
fn hash_of(segment: &Segment, extent: Extent) -> Option<u128> {
    let mapping = segment.map(Access::ReadOnly).ok()?;
    let start = mapping.range(extent.offset, extent.bytes)?;
    // SAFETY: the range was checked, the mapping outlives the slice, and the caller holds no segment that is being filled.
    Some(xxh3_128(unsafe { shm::borrow(start.as_ptr() as usize, extent.bytes as usize) }))
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

    fn source(bytes: &[u8], same: bool) -> Source<'_> {
        Source { bytes, same, shared: false }
    }

    fn place(store: &Store, call: CallId, bytes: &[u8], same: bool) -> Placement {
        store.place(call, &[source(bytes, same)], None, &mut Vec::new()).unwrap()[0]
    }

    fn content(store: &Store, extent: Extent) -> Vec<u8> {
        let mapping = store.segment(extent.segment).unwrap().map(Access::ReadOnly).unwrap();
        mapping.copy_range(extent.offset, extent.bytes).unwrap()
    }

    #[test]
    fn the_same_buffer_is_placed_once_and_a_changed_one_again() {
        let store = Store::default();
        let mut data = vec![1u8; 12 << 20];
        let first = place(&store, FIRST, &data, false);
        assert!(first.copied);
        for call in [FIRST, SECOND, SECOND] {
            assert_eq!(place(&store, call, &data, true), Placement { copied: false, ..first });
        }
        // One byte that no sample looks at.
        data[5000] = 2;
        let third = place(&store, CallId(3), &data, true);
        assert!(third.copied);
        assert_ne!(third.extent.segment, first.extent.segment);
        assert_eq!(content(&store, third.extent)[5000], 2);
    }

    #[test]
    fn a_segment_that_nobody_holds_is_filled_again_unless_a_worker_kept_it() {
        let store = Store::default();
        let mut data = vec![1u8; 2 << 20];
        let first = place(&store, FIRST, &data, false).extent;
        store.release(&[first.segment]);
        data[0] = 2;
        let second = place(&store, SECOND, &data, false).extent;
        assert_eq!(second.segment, first.segment);
        assert_eq!(content(&store, second)[0], 2);
        store.keep(second.segment);
        store.release(&[second.segment]);
        data[0] = 3;
        let third = place(&store, CallId(3), &data, false).extent;
        assert_ne!(third.segment, second.segment);
        assert_eq!(content(&store, second)[0], 2);
    }

    #[test]
    fn small_buffers_share_a_segment_and_the_same_one_stands_there_once() {
        let store = Store::default();
        let buffers: Vec<Vec<u8>> = (0..100u8).map(|i| vec![i; 70_000 + usize::from(i)]).collect();
        let mut sources: Vec<_> = buffers.iter().map(|bytes| source(bytes, false)).collect();
        sources.push(sources[0]);
        let mut held = Vec::new();
        let placements = store.place(FIRST, &sources, None, &mut held).unwrap();
        assert_eq!((store.stats().segments, held.len()), (1, 101));
        for (buffer, placement) in buffers.iter().zip(&placements) {
            assert_eq!(&content(&store, placement.extent), buffer);
        }
        assert_eq!(placements[100], Placement { copied: false, ..placements[0] });
        assert_eq!(place(&store, FIRST, &buffers[3], true), Placement { copied: false, ..placements[3] });
    }

    #[test]
    fn what_tasks_wrote_to_a_shared_segment_is_not_seen_by_the_next_call() {
        let store = Store::default();
        let data = vec![1u8; 2 << 20];
        let shared = [Source { bytes: &data, same: true, shared: true }];
        let place = |call| store.place(call, &shared, None, &mut Vec::new()).unwrap()[0];
        let first = place(FIRST);
        assert_eq!(place(FIRST), Placement { copied: false, ..first });
        store.segment(first.extent.segment).unwrap().fill(&[2; 100]).unwrap();
        let unvouched = [Source { same: false, ..shared[0] }];
        let again = store.place(FIRST, &unvouched, None, &mut Vec::new()).unwrap()[0];
        assert_eq!(again, Placement { copied: false, ..first }, "what tasks wrote is theirs to see");
        assert!(place(SECOND).copied);
    }

    #[test]
    fn what_another_has_replaced_is_given_up_first() {
        let store = Store::default();
        let mut data = vec![1u8; 100_000];
        let old = place(&store, FIRST, &data, false).extent;
        data[0] = 9;
        let new = place(&store, FIRST, &data, true).extent;
        assert_eq!(store.release(&[old.segment, new.segment]), [old.segment]);
        assert!(store.segment(new.segment).is_some());
        assert_eq!(store.trim(Duration::ZERO), [new.segment]);
        assert_eq!(store.stats().segments, 0);
    }
}
