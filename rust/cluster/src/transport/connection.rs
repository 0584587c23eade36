//! A connection to a peer that is known, whole: one side at a time sends or receives.

use std::io;
use std::net::SocketAddr;

use rustdask_core::frame::{self, Frame, FrameError, Limits, PREFIX_BYTES};
use serde::{de::DeserializeOwned, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::stream::Stream;
use super::{outbox, Outbox, Reader};

/// Nothing is ever read beyond what is asked for. An operation that was given up leaves the connection of no use.
pub struct Connection {
    stream: Stream,
    peer: SocketAddr,
}

impl Connection {
    pub(crate) fn new(stream: Stream, peer: SocketAddr) -> Self {
        Self { stream, peer }
    }

    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Our own end: an address of this machine that the peer's can reach, at least through this connection.
    pub fn local(&self) -> io::Result<SocketAddr> {
        self.stream.local()
    }

    pub async fn send<M: Serialize>(&mut self, message: &M, body: &[u8]) -> io::Result<()> {
        let mut bytes = Vec::new();
        frame::append(&mut bytes, message, body);
        self.write_from(&bytes).await
    }

    /// The next frame; `None` where the peer has closed the connection instead.
    pub async fn receive<M: DeserializeOwned>(&mut self, limits: Limits) -> io::Result<Option<Frame<M>>> {
        let mut prefix = [0; PREFIX_BYTES];
        match self.stream.read(&mut prefix).await {
            Ok(0) => return Ok(None),
            Ok(read) => self.read_into(&mut prefix[read..]).await?,
            // TLS, and the peer did not take its leave.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        let (header_bytes, body_bytes) = frame::lengths(&prefix, limits).map_err(invalid)?;
        let mut header = vec![0; header_bytes];
        self.read_into(&mut header).await?;
        let mut body = vec![0; body_bytes];
        self.read_into(&mut body).await?;
        Ok(Some(Frame { message: frame::decode_header(&header).map_err(invalid)?, body }))
    }

    /// Fill the memory with the bytes that come next.
    pub async fn read_into(&mut self, memory: &mut [u8]) -> io::Result<()> {
        self.stream.read_exact(memory).await.map(|_| ())
    }

    pub async fn write_from(&mut self, memory: &[u8]) -> io::Result<()> {
        self.stream.write_all(memory).await?;
        self.stream.flush().await
    }

    /// Close, once the peer has had the chance to read what was sent last.
    pub async fn close(mut self) {
        self.stream.linger().await;
    }

    /// Make a control connection of it, which is given up when more than so many bytes wait to be taken by the peer. Needs a tokio
    /// runtime.
    pub fn split(self, max_backlog_bytes: usize) -> (Reader, Outbox) {
        let (read, write) = self.stream.split();
        let (outbox, link) = outbox::start(write, self.peer, max_backlog_bytes);
        (Reader::new(read, link), outbox)
    }
}

pub(crate) fn invalid(error: FrameError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
