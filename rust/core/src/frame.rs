//! Frames: how messages are cut out of a byte stream.
//!
//! A frame is a fixed prefix, a header (one postcard-encoded message) and a body (opaque bytes).
//! The decoder takes bytes in any pieces, never reads past a frame, refuses lengths over its
//! limits before it makes room for them, and treats "not enough bytes yet" as a value, not an error.

use std::fmt;

use serde::{de::DeserializeOwned, Serialize};

/// Bytes before the header: header length (u32), body length (u64), both little endian.
pub const PREFIX_BYTES: usize = 12;

/// Longest header that is accepted. Headers name things; data belongs in the body.
pub const MAX_HEADER_BYTES: usize = 16 << 20;

/// A [`Decoder`] that has nothing left to read gives memory beyond this back.
const KEPT_BYTES: usize = 1 << 20;

/// The longest frame that is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub header_bytes: u64,
    pub body_bytes: u64,
}

/// What is wrong with a peer's bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum FrameError {
    HeaderTooLong {
        bytes: u64,
        limit: u64,
    },
    BodyTooLong {
        bytes: u64,
        limit: u64,
    },
    /// The header is no message of this protocol version.
    Garbled(String),
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HeaderTooLong { bytes, limit } => {
                write!(f, "peer announced a header of {bytes} bytes; at most {limit} are accepted")
            }
            Self::BodyTooLong { bytes, limit } => {
                write!(f, "peer announced a body of {bytes} bytes; at most {limit} are accepted")
            }
            Self::Garbled(why) => write!(f, "peer sent a header that is no message: {why}"),
        }
    }
}

impl std::error::Error for FrameError {}

/// Prefix and header of a frame, ready to be written before its `body_bytes` of body.
pub fn encode<M: Serialize>(message: &M, body_bytes: usize) -> Vec<u8> {
    let mut out = Vec::new();
    append_head(&mut out, message, body_bytes);
    out
}

/// Append a whole frame.
pub fn append<M: Serialize>(out: &mut Vec<u8>, message: &M, body: &[u8]) {
    append_head(out, message, body.len());
    out.extend_from_slice(body);
}

/// Append prefix and header of a frame, whose body is to follow.
pub fn append_head<M: Serialize>(out: &mut Vec<u8>, message: &M, body_bytes: usize) {
    let start = out.len();
    let header = start + PREFIX_BYTES;
    out.resize(header, 0);
    *out = postcard::to_extend(message, std::mem::take(out)).expect("messages hold no unserializable values");
    let header_bytes = (out.len() - header) as u32;
    out[start..start + 4].copy_from_slice(&header_bytes.to_le_bytes());
    out[start + 4..header].copy_from_slice(&(body_bytes as u64).to_le_bytes());
}

/// Bytes of header and body that follow a prefix.
pub fn lengths(prefix: &[u8; PREFIX_BYTES], limits: Limits) -> Result<(usize, usize), FrameError> {
    let (header, body) = prefix.split_at(4);
    let header = u64::from(u32::from_le_bytes(header.try_into().expect("4 bytes")));
    let body = u64::from_le_bytes(body.try_into().expect("8 bytes"));
    if header > limits.header_bytes {
        return Err(FrameError::HeaderTooLong { bytes: header, limit: limits.header_bytes });
    }
    if body > limits.body_bytes {
        return Err(FrameError::BodyTooLong { bytes: body, limit: limits.body_bytes });
    }
    Ok((header as usize, body as usize))
}

/// The message that a header is.
pub fn decode_header<M: DeserializeOwned>(header: &[u8]) -> Result<M, FrameError> {
    postcard::from_bytes(header).map_err(|e| FrameError::Garbled(e.to_string()))
}

/// One message and the bytes that came with it.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame<M> {
    pub message: M,
    pub body: Vec<u8>,
}

/// Cuts frames out of a stream of bytes.
#[derive(Debug)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Where the first unread byte is; bytes before it are dropped when room is needed.
    start: usize,
    limits: Limits,
}

impl Decoder {
    pub fn new(max_body_bytes: u64) -> Self {
        let limits = Limits { header_bytes: MAX_HEADER_BYTES as u64, body_bytes: max_body_bytes };
        Self { buffer: Vec::new(), start: 0, limits }
    }

    /// Append bytes that arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.is_empty() {
            self.buffer.clear();
            self.buffer.shrink_to(KEPT_BYTES);
            self.start = 0;
        } else if self.start > self.buffer.len() / 2 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// All bytes that arrived were whole frames, which have been read.
    pub fn is_empty(&self) -> bool {
        self.start == self.buffer.len()
    }

    /// The next whole frame, or `None` until more bytes are pushed.
    pub fn next_frame<M: DeserializeOwned>(&mut self) -> Result<Option<Frame<M>>, FrameError> {
        let unread = &self.buffer[self.start..];
        let Some((prefix, rest)) = unread.split_first_chunk() else {
            return Ok(None);
        };
        let (header_bytes, body_bytes) = lengths(prefix, self.limits)?;
        let Some(body) = rest.get(header_bytes..header_bytes.saturating_add(body_bytes)) else {
            return Ok(None);
        };
        let message = decode_header(&rest[..header_bytes])?;
        let body = body.to_vec();
        self.start += PREFIX_BYTES + header_bytes + body_bytes;
        Ok(Some(Frame { message, body }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_any_cut() {
        let mut stream = Vec::new();
        append(&mut stream, &(7u32, "seven"), b"abc");
        stream.extend(encode(&(8u32, "eight"), 0));
        for cut in 1..stream.len() {
            let mut decoder = Decoder::new(1 << 20);
            let mut seen = Vec::new();
            for piece in stream.chunks(cut) {
                decoder.push(piece);
                while let Some(frame) = decoder.next_frame::<(u32, String)>().unwrap() {
                    seen.push((frame.message.0, frame.body));
                }
            }
            assert_eq!(seen, vec![(7, b"abc".to_vec()), (8, Vec::new())], "cut {cut}");
        }
    }

    #[test]
    fn lengths_over_the_limits_are_refused_before_room_is_made() {
        let mut decoder = Decoder::new(10);
        decoder.push(&encode(&1u8, 11));
        assert_eq!(decoder.next_frame::<u8>(), Err(FrameError::BodyTooLong { bytes: 11, limit: 10 }));
        let mut decoder = Decoder::new(10);
        decoder.push(&[0xff; PREFIX_BYTES]);
        assert!(matches!(decoder.next_frame::<u8>(), Err(FrameError::HeaderTooLong { .. })));
    }

    #[test]
    fn a_decoder_is_empty_between_frames_and_keeps_no_large_one() {
        let mut decoder = Decoder::new(u64::MAX >> 1);
        let mut large = Vec::new();
        append(&mut large, &1u8, &vec![0; 2 * KEPT_BYTES]);
        decoder.push(&large[..PREFIX_BYTES + 5]);
        assert!(decoder.next_frame::<u8>().unwrap().is_none() && !decoder.is_empty());
        decoder.push(&large[PREFIX_BYTES + 5..]);
        assert!(decoder.next_frame::<u8>().unwrap().is_some() && decoder.is_empty());
        decoder.push(&encode(&1u8, 0));
        assert!(decoder.buffer.capacity() <= KEPT_BYTES);
    }

    #[test]
    fn lengths_at_their_largest_do_not_overflow() {
        let mut decoder = Decoder::new(u64::MAX);
        let prefix = [[0, 0, 0, 1].as_slice(), &[0xff; 8]].concat();
        decoder.push(&prefix);
        assert!(decoder.next_frame::<u8>().is_ok_and(|frame| frame.is_none()));
    }

    #[test]
    fn garbage_is_an_error_not_a_panic() {
        let mut decoder = Decoder::new(10);
        let mut frame = encode(&1u8, 0);
        frame[PREFIX_BYTES] = 9;
        decoder.push(&frame);
        assert!(matches!(decoder.next_frame::<bool>(), Err(FrameError::Garbled(_))));
    }
}
