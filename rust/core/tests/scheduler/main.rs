//! One test for each rule of the scheduler machine.

#[path = "../common/mod.rs"]
mod common;

mod balance;
mod closing;
mod durable;
mod failures;
mod faults;
mod graphs;
mod limits;
mod locality;
mod nesting;
mod parked;
mod placement;
mod recovery;
mod requested;
mod resources;
mod totality;
mod wants;

use common::{call, config, ms, process, World};
use rustdask_core::CallSpec;

/// Two idle worker processes that hold two tasks each.
pub(crate) fn two_workers() -> World {
    World::with_workers(config(), 2, process(2))
}

pub(crate) fn nested(cap: u32) -> CallSpec {
    CallSpec { nested: true, ..call(cap) }
}

pub(crate) fn helped(cap: u32) -> CallSpec {
    CallSpec { helper_expected: true, ..call(cap) }
}

pub(crate) fn timed(cap: u32, limit_ms: u64) -> CallSpec {
    CallSpec { item_timeout: Some(ms(limit_ms)), ..call(cap) }
}
