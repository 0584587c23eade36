//! The pure part of rustdask: the scheduler machine and the messages its shells speak.
//!
//! Nothing here reads a clock, opens a socket, starts a thread or holds a Python object.
//! Shells turn what happens in the world into [`Event`]s, hand them to [`Scheduler::handle`],
//! and carry out the [`Action`]s that come back.
#![forbid(unsafe_code)]

pub mod action;
pub mod cluster;
pub mod ending;
pub mod event;
pub mod frame;
pub mod id;
pub mod message;
pub mod nested;
pub mod resources;
pub mod scheduler;
pub mod task;

pub use action::{Action, Actions, KillReason, Resolution};
pub use event::{CallSpec, Event, Outcome, Time, WorkerSpec};
pub use id::{Attempt, BlobId, CallId, EventSeq, HostId, NodeId, SegmentId, TaskId, WorkerId};
pub use resources::{Amount, Grant, Resources};
pub use scheduler::Scheduler;
pub use task::{Priority, TaskSpec};
