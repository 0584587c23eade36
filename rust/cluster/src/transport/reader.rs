//! The receiving side of a control connection.

use std::io;
use std::sync::Arc;

use rustdask_core::cluster::MAX_CONTROL_BODY_BYTES;
use rustdask_core::frame::{Decoder, Frame};
use serde::de::DeserializeOwned;
use tokio::io::AsyncReadExt;

use super::connection::invalid;
use super::outbox::Link;
use super::stream::ReadHalf;

const READ_BYTES: usize = 64 << 10;

pub struct Reader {
    half: ReadHalf,
    decoder: Decoder,
    buffer: Vec<u8>,
    link: Arc<Link>,
}

impl Reader {
    pub(crate) fn new(half: ReadHalf, link: Arc<Link>) -> Self {
        Self { half, decoder: Decoder::new(MAX_CONTROL_BODY_BYTES), buffer: vec![0; READ_BYTES], link }
    }

    /// The next frame; `None` where the peer has closed the connection instead. An error says also why the [`Outbox`](super::Outbox) gave
    /// the connection up, if it did. A wait may be given up.
    pub async fn next<M: DeserializeOwned>(&mut self) -> io::Result<Option<Frame<M>>> {
        loop {
            if let Some(frame) = self.decoder.next_frame().map_err(invalid)? {
                return Ok(Some(frame));
            }
            let read = tokio::select! {
                biased;
                error = self.link.given_up() => return Err(error),
                read = self.half.read(&mut self.buffer) => read,
            };
            match read {
                Ok(0) => return self.at_end(),
                Ok(bytes) => self.decoder.push(&self.buffer[..bytes]),
                // TLS, and the peer did not take its leave.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return self.at_end(),
                Err(error) => return Err(error),
            }
        }
    }

    fn at_end<T>(&self) -> io::Result<Option<T>> {
        if self.decoder.is_empty() {
            return Ok(None);
        }
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection broke in the middle of a message"))
    }
}
