//! Data connections: results and segments, from those who have them to those who need them.
//!
//! A [`Get`](rustdask_core::cluster::DataRequest::Get) names a thing and a range of it. So what is large is got in pieces, several at a time, and each
//! goes on with another holder where one has failed. Bytes are sent from the memory that they are in, and received into a
//! segment that workers are shown.

mod bring;
mod fetch;
mod holdings;
mod peers;
mod serve;
#[cfg(test)]
mod tests;

pub use bring::bring;
pub use fetch::{fetch, Received, Unfetched};
pub use holdings::{HeldSegment, Holdings};
pub use peers::Peers;
pub(crate) use serve::{open_doors, Visit};

use std::time::Duration;

use rustdask_core::frame::Limits;

/// A peer that says nothing for so long, in the middle of something, is taken for dead.
const PATIENCE: Duration = Duration::from_secs(30);

/// Requests and answers; data is not in frames.
const LIMITS: Limits = Limits { header_bytes: 1 << 20, body_bytes: 0 };
