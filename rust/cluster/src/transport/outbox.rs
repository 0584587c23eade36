//! The sending side of a control connection.
//!
//! Whoever sends never waits: frames are gathered under a lock, and one task writes all that have come meanwhile. What a slow
//! peer does not take is counted. Those that can wait do so by [`Outbox::until_below`]; for the others there is a limit, beyond
//! which the connection is given up, and its [`Reader`](super::Reader) told.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::{Buf, Bytes};
use rustdask_core::cluster::MAX_CONTROL_BODY_BYTES;
use rustdask_core::frame;
use serde::Serialize;
use tokio::io::AsyncWriteExt;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::stream::WriteHalf;

/// Frames are put together until they are so long.
const GATHERED_BYTES: usize = 256 << 10;

/// Bodies up to this size are copied behind their header.
const COPIED_BYTES: usize = 16 << 10;

/// Pieces of one write.
const MAX_PIECES: usize = 64;

/// May be cloned. When the last clone is dropped, what waits is written, and then the connection's sending side closed.
#[derive(Clone)]
pub struct Outbox(Arc<Owner>);

struct Owner(Arc<Link>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// What senders, the writing task and the reader of a connection have in common.
pub(crate) struct Link {
    peer: SocketAddr,
    max_backlog_bytes: usize,
    queue: Mutex<Queue>,
    /// Something has come into the empty queue, or nothing will any more: for the writer.
    wake: Notify,
    /// Something was written: for those who wait until there is less.
    written: Notify,
    given_up: CancellationToken,
    /// The writer has ended.
    done: CancellationToken,
}

#[derive(Default)]
struct Queue {
    pieces: VecDeque<Bytes>,
    /// After the pieces.
    gathered: Vec<u8>,
    /// Of all that has not been written, whether it is still here or not.
    backlog_bytes: usize,
    state: State,
}

#[derive(Default)]
enum State {
    #[default]
    Open,
    /// Nothing comes any more, and the rest is written.
    Closing,
    /// Nothing is written any more. Why it was given up, if it was.
    Ended(Option<String>),
}

/// Begin to write.
pub(crate) fn start(half: WriteHalf, peer: SocketAddr, max_backlog_bytes: usize) -> (Outbox, Arc<Link>) {
    let link = Arc::new(Link {
        peer,
        max_backlog_bytes,
        queue: Mutex::default(),
        wake: Notify::new(),
        written: Notify::new(),
        given_up: CancellationToken::new(),
        done: CancellationToken::new(),
    });
    tokio::spawn(write(half, link.clone()));
    (Outbox(Arc::new(Owner(link.clone()))), link)
}

impl Outbox {
    /// The body is no longer than [`MAX_CONTROL_BODY_BYTES`]. A connection that has ended takes what is sent and forgets it: its
    /// end shows where it is read.
    pub fn send<M: Serialize>(&self, message: &M, body: Bytes) {
        debug_assert!(body.len() as u64 <= MAX_CONTROL_BODY_BYTES, "the peer would refuse it");
        let link = &self.0 .0;
        let mut queue = link.lock();
        if !matches!(queue.state, State::Open) {
            return;
        }
        let idle = queue.is_empty();
        queue.push(message, body);
        if queue.backlog_bytes > link.max_backlog_bytes {
            let waiting = queue.backlog_bytes;
            link.give_up(queue, format!("{} does not take what it is sent: {waiting} bytes wait for it", link.peer));
        } else if idle {
            link.wake.notify_one();
        }
    }

    /// Bytes that wait to be taken by the peer.
    pub fn backlog_bytes(&self) -> usize {
        self.0 .0.lock().backlog_bytes
    }

    /// Wait until fewer bytes than these wait to be taken, or the connection has ended.
    pub async fn until_below(&self, limit_bytes: usize) {
        let link = &self.0 .0;
        loop {
            let mut written = std::pin::pin!(link.written.notified());
            written.as_mut().enable();
            if self.backlog_bytes() < limit_bytes || link.done.is_cancelled() {
                return;
            }
            written.await;
        }
    }

    /// Take no more, write what waits, and close the sending side.
    pub fn close(&self) {
        self.0 .0.close();
    }

    /// Wait until nothing is written any more, after [`Outbox::close`], or since the connection has ended.
    pub async fn closed(&self) {
        self.0 .0.done.cancelled().await;
    }

    /// End the connection at once, with what waits. Its reader gets the reason as an error.
    pub fn give_up(&self, why: &str) {
        let link = &self.0 .0;
        link.give_up(link.lock(), why.into());
    }
}

impl Link {
    /// Returns, with the reason, when the connection is given up.
    pub(crate) async fn given_up(&self) -> io::Error {
        self.given_up.cancelled().await;
        match &self.lock().state {
            State::Ended(Some(why)) => io::Error::new(io::ErrorKind::ConnectionAborted, why.clone()),
            _ => io::ErrorKind::ConnectionAborted.into(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no holder panics")
    }

    fn close(&self) {
        let mut queue = self.lock();
        if matches!(queue.state, State::Open) {
            queue.state = State::Closing;
            self.wake.notify_one();
        }
    }

    fn give_up(&self, mut queue: MutexGuard<'_, Queue>, why: String) {
        if !matches!(queue.state, State::Ended(_)) {
            queue.end(Some(why));
            drop(queue);
            self.given_up.cancel();
        }
    }

    /// The writer is no more.
    fn ended(&self) {
        let mut queue = self.lock();
        if !matches!(queue.state, State::Ended(_)) {
            queue.end(None);
        }
        drop(queue);
        self.done.cancel();
        self.written.notify_waiters();
    }

    fn wrote(&self, bytes: usize) {
        let mut queue = self.lock();
        queue.backlog_bytes = queue.backlog_bytes.saturating_sub(bytes);
        drop(queue);
        self.written.notify_waiters();
    }
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.gathered.is_empty()
    }

    fn push<M: Serialize>(&mut self, message: &M, body: Bytes) {
        let before = self.gathered.len();
        frame::append_head(&mut self.gathered, message, body.len());
        self.backlog_bytes += self.gathered.len() - before + body.len();
        if body.len() <= COPIED_BYTES {
            self.gathered.extend_from_slice(&body);
            if self.gathered.len() >= GATHERED_BYTES {
                self.seal();
            }
        } else {
            self.seal();
            self.pieces.push_back(body);
        }
    }

    fn seal(&mut self) {
        if !self.gathered.is_empty() {
            self.pieces.push_back(std::mem::take(&mut self.gathered).into());
        }
    }

    fn take(&mut self) -> VecDeque<Bytes> {
        self.seal();
        std::mem::take(&mut self.pieces)
    }

    fn end(&mut self, why: Option<String>) {
        *self = Self { state: State::Ended(why), ..Self::default() };
    }
}

async fn write(mut half: WriteHalf, link: Arc<Link>) {
    tokio::select! {
        biased;
        _ = link.given_up.cancelled() => {}
        // An error of the link shows where it is read.
        _ = drain(&mut half, &link) => {}
    }
    link.ended();
}

/// Until the outbox is closed.
async fn drain(half: &mut WriteHalf, link: &Link) -> io::Result<()> {
    loop {
        let (pieces, closing) = {
            let mut queue = link.lock();
            (queue.take(), matches!(queue.state, State::Closing))
        };
        if !pieces.is_empty() {
            write_pieces(half, pieces, link).await?;
        } else if closing {
            return half.shutdown().await;
        } else {
            link.wake.notified().await;
        }
    }
}

async fn write_pieces(half: &mut WriteHalf, mut pieces: VecDeque<Bytes>, link: &Link) -> io::Result<()> {
    while !pieces.is_empty() {
        let slices: Vec<IoSlice<'_>> = pieces.iter().take(MAX_PIECES).map(|piece| IoSlice::new(piece)).collect();
        let written = half.write_vectored(&slices).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        advance(&mut pieces, written);
        link.wrote(written);
    }
    half.flush().await
}

fn advance(pieces: &mut VecDeque<Bytes>, mut bytes: usize) {
    while let Some(first) = pieces.front_mut() {
        if bytes < first.len() {
            first.advance(bytes);
            return;
        }
        bytes -= first.len();
        pieces.pop_front();
    }
}
