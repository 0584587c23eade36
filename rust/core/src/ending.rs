//! Why tasks end that no worker has reported.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Unreported {
    Crashed { obituary: Obituary, deaths: u32 },
    TimedOut,
    NoWorkers { why: String },
}

/// What is known of a worker that died.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Obituary {
    pub exit_code: Option<i32>,
    pub signal: Option<i32>,
    pub peak_memory_bytes: Option<u64>,
    pub stderr: String,
    /// Why rustdask itself ended it, if it did.
    pub reason: Option<String>,
}
