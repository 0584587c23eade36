//! What comes of a task that went to a worker process.

use std::time::Duration;

use rustdask_core::message::{Report, Timings};
use rustdask_core::Outcome;

use crate::lease::Lease;

/// What a worker reported of a task, or why it was never sent.
pub enum Delivery {
    Report {
        report: Report,
        body: Reported,
        buffers: Vec<Lease>,
        timings: Timings,
        bytes: u64,
    },
    /// The payload could not be pickled or placed; the caller knows why.
    Unsent,
}

impl Delivery {
    pub(crate) fn outcome(&self) -> Outcome {
        match self {
            Self::Report { report: Report::Results, .. } => Outcome::Ok,
            _ => Outcome::Err,
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Self::Report { bytes, .. } => *bytes,
            Self::Unsent => 0,
        }
    }

    /// How long the worker had to do with it.
    pub(crate) fn took(&self) -> Duration {
        match self {
            Self::Report { timings, .. } => timings.loading + timings.running + timings.dumping,
            Self::Unsent => Duration::ZERO,
        }
    }
}

/// Bytes of a report's pickle.
pub enum Reported {
    Inline(Vec<u8>),
    Leased(Lease),
}

impl Reported {
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Inline(bytes) => bytes.len() as u64,
            Self::Leased(lease) => lease.extent().bytes,
        }
    }
}
