//! Frames over a Unix stream socket, with file descriptors beside them.
//!
//! A descriptor is sent with the first byte of its frame or before, so it has arrived when the frame has;
//! frames and descriptors keep their order, and the receiver matches them in order.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};

use rustdask_core::frame::{self, Decoder, Frame};
use rustix::io::Errno;
use rustix::net::{
    recvmsg, sendmsg, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::{de::DeserializeOwned, Serialize};

/// Longest body of a local frame. Bodies from 64 KiB on are placed in segments, so this is generous.
pub const MAX_BODY_BYTES: u64 = 1 << 30;

const READ_BYTES: usize = 64 << 10;

/// Small frames that wait are written at once, so many bytes of them.
const GATHERED_BYTES: usize = 64 << 10;

/// A frame that waits to be written, whole or in part.
struct Outgoing {
    bytes: Vec<u8>,
    written: usize,
    fd: Option<Arc<OwnedFd>>,
}

#[derive(Default)]
struct Waiting {
    frames: VecDeque<Outgoing>,
    /// The socket was full: whoever watches it goes on when it is not any more.
    blocked: bool,
}

/// The sending side of a connection: any thread may send; frames never interleave.
pub struct Outbox {
    socket: Arc<OwnedFd>,
    waiting: Mutex<Waiting>,
    /// Called when something had to be left for [`Outbox::resume`].
    on_backlog: Box<dyn Fn() + Send + Sync>,
}

impl Outbox {
    pub fn new(socket: Arc<OwnedFd>, on_backlog: Box<dyn Fn() + Send + Sync>) -> Self {
        Self { socket, waiting: Mutex::default(), on_backlog }
    }

    /// Write a frame, as much as goes without waiting. A broken connection shows where it is read.
    pub fn send<M: Serialize>(&self, message: &M, body: &[u8], fd: Option<Arc<OwnedFd>>) {
        self.hold(message, body, fd);
        self.flush();
    }

    /// Have a frame wait for the next [`Outbox::flush`], which wakes the receiver once for all of them. The next
    /// [`Outbox::send`] of anybody sends it, too.
    pub fn hold<M: Serialize>(&self, message: &M, body: &[u8], fd: Option<Arc<OwnedFd>>) {
        let mut waiting = self.lock();
        match waiting.frames.back_mut() {
            Some(last) if fd.is_none() && last.bytes.len() + body.len() <= GATHERED_BYTES => {
                frame::append(&mut last.bytes, message, body);
            }
            _ => {
                let mut bytes = Vec::new();
                frame::append(&mut bytes, message, body);
                waiting.frames.push_back(Outgoing { bytes, written: 0, fd });
            }
        }
    }

    /// Write what is held, as much as goes without waiting.
    pub fn flush(&self) {
        let backlog = {
            let mut waiting = self.lock();
            !waiting.blocked && !write_waiting(self.socket.as_fd(), &mut waiting).unwrap_or(true)
        };
        if backlog {
            (self.on_backlog)();
        }
    }

    /// Go on where the socket was full; false when it is full again.
    pub fn resume(&self) -> io::Result<bool> {
        write_waiting(self.socket.as_fd(), &mut self.lock())
    }

    pub fn has_backlog(&self) -> bool {
        self.lock().blocked
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().expect("no holder panics")
    }
}

fn write_waiting(socket: BorrowedFd<'_>, waiting: &mut Waiting) -> io::Result<bool> {
    waiting.blocked = false;
    while let Some(next) = waiting.frames.front_mut() {
        match send_some(socket, &next.bytes[next.written..], next.fd.as_deref(), SendFlags::DONTWAIT) {
            Ok(sent) => {
                next.written += sent;
                next.fd = None;
            }
            Err(Errno::AGAIN) => {
                waiting.blocked = true;
                return Ok(false);
            }
            Err(error) => {
                waiting.frames.clear();
                return Err(error.into());
            }
        }
        if next.written == next.bytes.len() {
            waiting.frames.pop_front();
        }
    }
    Ok(true)
}

/// Write frames and wait until they are written. The caller keeps senders apart. A descriptor may belong to any of them.
pub fn write_blocking(socket: BorrowedFd<'_>, frames: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut fd = fd;
    let mut rest = frames;
    while !rest.is_empty() {
        let sent = send_some(socket, rest, fd.take(), SendFlags::empty())?;
        rest = &rest[sent..];
    }
    Ok(())
}

fn send_some(socket: BorrowedFd<'_>, bytes: &[u8], fd: Option<impl AsFd>, flags: SendFlags) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fd = fd.as_ref().map(AsFd::as_fd);
    let fds = fd.as_slice();
    if !fds.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(fds)), "there is space for one descriptor");
    }
    let slices = [IoSlice::new(bytes)];
    rustix::io::retry_on_intr(|| sendmsg(socket, &slices, &mut ancillary, flags | SendFlags::NOSIGNAL))
}

/// The receiving side of a connection.
pub struct Inbox {
    decoder: Decoder,
    fds: VecDeque<OwnedFd>,
    buffer: Vec<u8>,
}

/// What one read found.
#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    Some,
    /// Nothing is there now (non-blocking reads only).
    Nothing,
    Closed,
}

impl Default for Inbox {
    fn default() -> Self {
        Self { decoder: Decoder::new(MAX_BODY_BYTES), fds: VecDeque::new(), buffer: vec![0; READ_BYTES] }
    }
}

impl Inbox {
    pub fn read(&mut self, socket: BorrowedFd<'_>, wait: bool) -> io::Result<Read> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | if wait { RecvFlags::empty() } else { RecvFlags::DONTWAIT };
        let mut slices = [IoSliceMut::new(&mut self.buffer)];
        let received = match rustix::io::retry_on_intr(|| recvmsg(socket, &mut slices, &mut ancillary, flags)) {
            Ok(received) => received.bytes,
            Err(Errno::AGAIN) => return Ok(Read::Nothing),
            Err(Errno::CONNRESET) => return Ok(Read::Closed),
            Err(error) => return Err(error.into()),
        };
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        if received == 0 {
            return Ok(Read::Closed);
        }
        self.decoder.push(&self.buffer[..received]);
        Ok(Read::Some)
    }

    /// Take bytes that came another way.
    pub fn push(&mut self, bytes: &[u8]) {
        self.decoder.push(bytes);
    }

    pub fn next_frame<M: DeserializeOwned>(&mut self) -> io::Result<Option<Frame<M>>> {
        self.decoder.next_frame().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// The descriptor that belongs to the frame that was just read.
    pub fn take_fd(&mut self) -> io::Result<OwnedFd> {
        self.fds
            .pop_front()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a frame came without its descriptor"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{socketpair, AddressFamily, SocketFlags, SocketType};

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap()
    }

    #[test]
    fn frames_and_descriptors_arrive_together() {
        let (near, far) = pair();
        let outbox = Outbox::new(Arc::new(near), Box::new(|| ()));
        let passed = Arc::new(rustix::fs::memfd_create("t", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        outbox.send(&1u32, b"one", None);
        outbox.send(&2u32, b"", Some(passed));
        outbox.send(&3u32, b"three", None);
        let mut inbox = Inbox::default();
        let mut seen = Vec::new();
        while seen.len() < 3 {
            assert_eq!(inbox.read(far.as_fd(), true).unwrap(), Read::Some);
            while let Some(frame) = inbox.next_frame::<u32>().unwrap() {
                if frame.message == 2 {
                    inbox.take_fd().unwrap();
                }
                seen.push((frame.message, frame.body));
            }
        }
        assert_eq!(seen, [(1, b"one".to_vec()), (2, vec![]), (3, b"three".to_vec())]);
        drop(outbox);
        assert_eq!(inbox.read(far.as_fd(), true).unwrap(), Read::Closed);
    }

    #[test]
    fn frames_that_are_held_arrive_with_the_next() {
        let (near, far) = pair();
        let outbox = Outbox::new(Arc::new(near), Box::new(|| ()));
        let mut inbox = Inbox::default();
        outbox.hold(&1u32, b"one", None);
        outbox.hold(&2u32, b"two", None);
        assert_eq!(inbox.read(far.as_fd(), false).unwrap(), Read::Nothing);
        outbox.send(&3u32, b"three", None);
        assert_eq!(inbox.read(far.as_fd(), false).unwrap(), Read::Some);
        let seen: Vec<u32> = std::iter::from_fn(|| Some(inbox.next_frame::<u32>().unwrap()?.message)).collect();
        assert_eq!((seen, outbox.has_backlog()), (vec![1, 2, 3], false));
    }

    #[test]
    fn a_full_socket_keeps_a_backlog_in_order() {
        let (near, far) = pair();
        let outbox = Outbox::new(Arc::new(near), Box::new(|| ()));
        for i in 0..200u32 {
            outbox.send(&i, &[i as u8; 10_000], None);
        }
        assert!(outbox.has_backlog());
        let mut inbox = Inbox::default();
        let mut next = 0;
        while next < 200 {
            inbox.read(far.as_fd(), true).unwrap();
            outbox.resume().unwrap();
            while let Some(frame) = inbox.next_frame::<u32>().unwrap() {
                assert_eq!((frame.message, frame.body[0]), (next, next as u8));
                next += 1;
            }
        }
        assert!(!outbox.has_backlog());
    }
}
