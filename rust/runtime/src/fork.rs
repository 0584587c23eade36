//! A gate for forks of this process, which is Python's to make at any moment.
//!
//! A lock that another thread holds at that moment stays locked in the child for ever. Most locks are of pools, which the
//! child leaves alone; but letting go of Python objects without the interpreter takes a lock of the binding's that the
//! child needs too. So native threads that may do that do it inside of [`working`], and a fork waits for them.
//!
//! Assumes that nobody asks for the interpreter inside of [`working`], and that it is not nested.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

static GATE: RwLock<()> = RwLock::new(());

/// How often this process, or one that it comes from, has forked.
static FORKS: AtomicU64 = AtomicU64::new(0);

/// Memory that was mapped at another count may be seen by another process, too.
pub fn count() -> u64 {
    FORKS.load(Ordering::Acquire)
}

/// This process has forked, or was forked.
pub fn happened() {
    FORKS.fetch_add(1, Ordering::AcqRel);
}

/// No fork happens while this lives.
pub fn working() -> RwLockReadGuard<'static, ()> {
    GATE.read().expect("no holder panics")
}

/// Wait until nobody is [`working`], and keep it so.
pub fn quiesce() -> RwLockWriteGuard<'static, ()> {
    GATE.write().expect("no holder panics")
}
