//! How far a running task has come, and how much of it may still be taken away.
//!
//! Guarantee: each item is either begun by the one who runs the task or given back by [`Cursor::cut`],
//! never both. One atomic word holds both ends, so the two sides need no lock.

use std::sync::atomic::{AtomicU64, Ordering};

/// Items `begun..limit` of a task are not begun yet.
#[derive(Debug)]
pub struct Cursor(AtomicU64);

impl Cursor {
    pub fn new(items: u32) -> Self {
        Self(AtomicU64::new(pack(0, items)))
    }

    /// Begin the next item: its index, or `None` when none is left.
    pub fn advance(&self) -> Option<u32> {
        self.0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
                let (begun, limit) = unpack(word);
                (begun < limit).then(|| pack(begun + 1, limit))
            })
            .ok()
            .map(|word| unpack(word).0)
    }

    /// Take away what has not begun, but for the first item of a task that somebody has taken up;
    /// how many items stay.
    pub fn cut(&self) -> u32 {
        let mut kept = 0;
        // The update is unconditional, so it cannot fail.
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
            let (begun, limit) = unpack(word);
            kept = begun.max(1).min(limit);
            Some(pack(begun, kept))
        });
        kept
    }
}

fn pack(begun: u32, limit: u32) -> u64 {
    u64::from(begun) << 32 | u64::from(limit)
}

fn unpack(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_is_begun_or_given_back_never_both() {
        let cursor = Cursor::new(3);
        assert_eq!(cursor.advance(), Some(0));
        assert_eq!(cursor.cut(), 1);
        assert_eq!(cursor.advance(), None);
        assert_eq!(cursor.cut(), 1);
    }

    #[test]
    fn a_task_that_was_taken_up_keeps_an_item() {
        let cursor = Cursor::new(3);
        assert_eq!(cursor.cut(), 1);
        assert_eq!(cursor.advance(), Some(0));
        assert_eq!(cursor.advance(), None);
    }

    #[test]
    fn racing_sides_agree() {
        for _ in 0..100 {
            let cursor = Cursor::new(10_000);
            let (begun, kept) = std::thread::scope(|scope| {
                let runner = scope.spawn(|| std::iter::from_fn(|| cursor.advance()).count() as u32);
                let kept = cursor.cut();
                (runner.join().unwrap(), kept)
            });
            assert_eq!(begun, kept);
        }
    }
}
