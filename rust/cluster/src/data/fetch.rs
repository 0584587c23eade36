//! Gets things from nodes that have them.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use rustdask_core::cluster::{DataAnswer, DataRequest, Thing};
use rustdask_core::{NodeId, SegmentId};
use rustdask_runtime::shm::{Segment, MIN_SEGMENT_BYTES};
use rustdask_runtime::stored::{lay_out, Stored};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::peers::{Peer, Peers};
use super::PATIENCE;
use crate::transport::Connection;

/// What is larger is got in pieces, so many of them at a time.
const PIECE_BYTES: u64 = 64 << 20;
const LANES: usize = 4;

/// One read. It stays in the processor's cache until it is written to the segment.
const CHUNK_BYTES: usize = 256 << 10;

/// Most parts of a thing, and most bytes: what a peer says is not believed blindly.
const MAX_PARTS: usize = 1 << 16;
const MAX_BYTES: u64 = 1 << 46;

/// A thing that has been got.
pub struct Received {
    /// Of its parts, in bytes.
    pub sizes: Vec<u64>,
    target: Target,
}

/// Where the bytes go.
enum Target {
    /// A small pickle.
    Inline(Mutex<Vec<u8>>),
    Segment(Segment),
}

/// Why a thing was not got.
#[derive(Debug)]
pub enum Unfetched {
    /// These nodes do not have it, or cannot be reached.
    Missing(Vec<NodeId>),
    /// There is no room for it here.
    NoRoom(io::Error),
}

impl fmt::Display for Unfetched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(nodes) => write!(f, "none of {} nodes has it", nodes.len()),
            Self::NoRoom(error) => write!(f, "there is no room for it: {error}"),
        }
    }
}

impl Received {
    pub fn bytes(&self) -> u64 {
        self.sizes.iter().sum()
    }

    /// `fresh`: a number for the segment that it is in.
    pub fn into_stored(self, fresh: impl FnOnce() -> SegmentId) -> Stored {
        match self.target {
            Target::Inline(pickle) => Stored::inline(pickle.into_inner().expect("no holder panics")),
            Target::Segment(segment) => Stored::copied(fresh(), segment, &self.sizes),
        }
    }

    #[cfg(test)]
    pub(crate) fn of(parts: &[&[u8]]) -> Self {
        let sizes: Vec<u64> = parts.iter().map(|part| part.len() as u64).collect();
        let target = Target::new(&sizes).unwrap();
        target.write(&sizes, 0, &parts.concat()).unwrap();
        Self { sizes, target }
    }

    /// What was got as a segment is one.
    pub fn into_segment(self) -> io::Result<Segment> {
        match self.target {
            Target::Segment(segment) => Ok(segment),
            Target::Inline(bytes) => {
                let bytes = bytes.into_inner().expect("no holder panics");
                let segment = Segment::create(bytes.len() as u64, None)?;
                segment.fill(&bytes)?;
                Ok(segment)
            }
        }
    }
}

/// Get a thing that any of these nodes has.
pub async fn fetch(peers: &Arc<Peers>, thing: Thing, from: &[NodeId]) -> Result<Received, Unfetched> {
    let mut holders = Holders::new(from);
    let (sizes, begun) = begin(peers, thing, &mut holders).await?;
    let target = Target::new(&sizes).map_err(Unfetched::NoRoom)?;
    let total: u64 = sizes.iter().sum();
    let pieces = (PIECE_BYTES..total).step_by(PIECE_BYTES as usize);
    let pieces: VecDeque<_> = pieces.map(|start| start..total.min(start + PIECE_BYTES)).collect();
    let lanes = LANES.min(pieces.len() + 1);
    let transfer = Arc::new(Transfer {
        peers: peers.clone(),
        thing,
        sizes,
        target,
        holders: Mutex::new(holders),
        pieces: Mutex::new(pieces),
    });
    if lanes == 1 {
        transfer.lane(Some(begun)).await?;
    } else {
        transfer.clone().run_lanes(lanes, begun).await?;
    }
    let transfer = Arc::into_inner(transfer).expect("all lanes have ended");
    Ok(Received { sizes: transfer.sizes, target: transfer.target })
}

/// An answer has come, and so many bytes follow.
struct Begun {
    node: NodeId,
    peer: Arc<Peer>,
    connection: Connection,
    range: Range<u64>,
}

/// Find a node that has the thing, and what that is.
async fn begin(peers: &Peers, thing: Thing, holders: &mut Holders) -> Result<(Vec<u64>, Begun), Unfetched> {
    loop {
        let node = holders.next()?;
        match get(peers, node, thing, 0..PIECE_BYTES).await {
            Ok((peer, connection, sizes)) => {
                let range = 0..sizes.iter().sum::<u64>().min(PIECE_BYTES);
                return Ok((sizes, Begun { node, peer, connection, range }));
            }
            Err(_) => holders.failed(node),
        }
    }
}

/// Ask for a range of it. The connection on which it comes, and the sizes of the whole.
async fn get(
    peers: &Peers,
    node: NodeId,
    thing: Thing,
    range: Range<u64>,
) -> io::Result<(Arc<Peer>, Connection, Vec<u64>)> {
    let peer = peers.peer(node).ok_or(io::ErrorKind::NotFound)?;
    let request = DataRequest::Get { thing, offset: range.start, bytes: range.end - range.start };
    let (connection, answer) = peer.ask(&request).await?;
    match answer {
        DataAnswer::Found { parts } if is_sane(&parts) => Ok((peer, connection, parts)),
        DataAnswer::NotHere => {
            peer.keep(connection);
            Err(io::ErrorKind::NotFound.into())
        }
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "a node gave an answer that is none")),
    }
}

fn is_sane(parts: &[u64]) -> bool {
    let total = parts.iter().try_fold(0u64, |sum, bytes| sum.checked_add(*bytes));
    !parts.is_empty() && parts.len() <= MAX_PARTS && total.is_some_and(|total| total <= MAX_BYTES)
}

struct Transfer {
    peers: Arc<Peers>,
    thing: Thing,
    sizes: Vec<u64>,
    target: Target,
    holders: Mutex<Holders>,
    pieces: Mutex<VecDeque<Range<u64>>>,
}

/// A piece broke off: how far it had come, and whose fault it was.
struct Broken {
    at: u64,
    fault: Fault,
}

enum Fault {
    Peer,
    Here(io::Error),
}

impl Transfer {
    async fn run_lanes(self: Arc<Self>, lanes: usize, begun: Begun) -> Result<(), Unfetched> {
        let mut running = JoinSet::new();
        let mut begun = Some(begun);
        for _ in 0..lanes {
            let (transfer, begun) = (self.clone(), begun.take());
            running.spawn(async move { transfer.lane(begun).await });
        }
        drop(self);
        while let Some(ended) = running.join_next().await {
            // The others are of no use then, and end with the set.
            ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
        }
        Ok(())
    }

    /// Get one piece after the other.
    async fn lane(&self, begun: Option<Begun>) -> Result<(), Unfetched> {
        let mut buffer = vec![0; CHUNK_BYTES];
        if let Some(begun) = begun {
            let (node, range) = (begun.node, begun.range.clone());
            if let Err(broken) = self.receive(begun, &mut buffer).await {
                let rest = self.rest(node, broken, range.end)?;
                self.piece(rest, &mut buffer).await?;
            }
        }
        loop {
            let next = self.pieces.lock().expect("no holder panics").pop_front();
            let Some(range) = next else { return Ok(()) };
            self.piece(range, &mut buffer).await?;
        }
    }

    /// Get a piece, from one holder after the other if need be.
    async fn piece(&self, mut range: Range<u64>, buffer: &mut [u8]) -> Result<(), Unfetched> {
        while !range.is_empty() {
            let node = self.holders().next()?;
            let begun = match get(&self.peers, node, self.thing, range.clone()).await {
                Ok((peer, connection, sizes)) if sizes == self.sizes => {
                    Begun { node, peer, connection, range: range.clone() }
                }
                _ => {
                    self.holders().failed(node);
                    continue;
                }
            };
            match self.receive(begun, buffer).await {
                Ok(()) => return Ok(()),
                Err(broken) => range = self.rest(node, broken, range.end)?,
            }
        }
        Ok(())
    }

    /// What is left to be got from others.
    fn rest(&self, node: NodeId, broken: Broken, end: u64) -> Result<Range<u64>, Unfetched> {
        match broken.fault {
            Fault::Here(error) => Err(Unfetched::NoRoom(error)),
            Fault::Peer => {
                self.holders().failed(node);
                Ok(broken.at..end)
            }
        }
    }

    async fn receive(&self, begun: Begun, buffer: &mut [u8]) -> Result<(), Broken> {
        let Begun { peer, mut connection, range, .. } = begun;
        let mut at = range.start;
        while at < range.end {
            let chunk = &mut buffer[..CHUNK_BYTES.min((range.end - at) as usize)];
            let read = peer.until_gone(async { timeout(PATIENCE, connection.read_into(chunk)).await? });
            read.await.map_err(|_| Broken { at, fault: Fault::Peer })?;
            self.target.write(&self.sizes, at, chunk).map_err(|error| Broken { at, fault: Fault::Here(error) })?;
            at += chunk.len() as u64;
        }
        peer.keep(connection);
        Ok(())
    }

    fn holders(&self) -> MutexGuard<'_, Holders> {
        self.holders.lock().expect("no holder panics")
    }
}

impl Target {
    fn new(sizes: &[u64]) -> io::Result<Self> {
        match sizes {
            [small] if *small < MIN_SEGMENT_BYTES as u64 => Ok(Self::Inline(Mutex::new(vec![0; *small as usize]))),
            _ => Ok(Self::Segment(Segment::create(lay_out(sizes).1, None)?)),
        }
    }

    /// Write bytes that stand at `at` where the parts follow each other. Ranges that are written at once do not overlap.
    fn write(&self, sizes: &[u64], at: u64, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Inline(pickle) => {
                let start = at as usize;
                pickle.lock().expect("no holder panics")[start..start + bytes.len()].copy_from_slice(bytes);
                Ok(())
            }
            Self::Segment(segment) => write_parts(segment, sizes, at, bytes),
        }
    }
}

fn write_parts(segment: &Segment, sizes: &[u64], at: u64, mut bytes: &[u8]) -> io::Result<()> {
    let (offsets, _) = lay_out(sizes);
    let mut skip = at;
    for (size, offset) in sizes.iter().zip(offsets) {
        if bytes.is_empty() {
            break;
        }
        if skip >= *size {
            skip -= size;
            continue;
        }
        let (here, rest) = bytes.split_at(bytes.len().min((size - skip) as usize));
        segment.fill_at(here, offset + skip)?;
        (bytes, skip) = (rest, 0);
    }
    Ok(())
}

/// The nodes that are said to have a thing, asked in turns.
struct Holders {
    good: VecDeque<NodeId>,
    bad: Vec<NodeId>,
}

impl Holders {
    /// Whoever asks begins with another one, so that a thing that many need does not come from the first alone.
    fn new(from: &[NodeId]) -> Self {
        let mut good: VecDeque<NodeId> = from.to_vec().into();
        if !good.is_empty() {
            good.rotate_left(std::process::id() as usize % from.len());
        }
        Self { good, bad: Vec::new() }
    }

    fn next(&mut self) -> Result<NodeId, Unfetched> {
        let node = self.good.front().copied().ok_or_else(|| Unfetched::Missing(self.bad.clone()))?;
        self.good.rotate_left(1);
        Ok(node)
    }

    fn failed(&mut self, node: NodeId) {
        if self.good.contains(&node) {
            self.good.retain(|good| *good != node);
            self.bad.push(node);
        }
    }
}
