//! The set of tasks not yet resolved.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};

use crate::id::TaskId;

/// Never iterated over to decide anything: its order means nothing.
pub(super) type Live = HashSet<TaskId, BuildHasherDefault<InOrder>>;

/// Keeps neighbours together: ids are given in order and used in order, so a set of a million tasks is
/// walked through and not jumped about in. The high bits, which the table compares first, are mixed.
#[derive(Debug, Default)]
pub(super) struct InOrder(u64);

impl Hasher for InOrder {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(self.0.rotate_left(8) ^ u64::from(byte));
        }
    }

    fn write_u32(&mut self, id: u32) {
        self.write_u64(u64::from(id));
    }

    fn write_u64(&mut self, id: u64) {
        self.0 = id ^ (id.wrapping_mul(0x9e37_79b9_7f4a_7c15) << 57);
    }
}
