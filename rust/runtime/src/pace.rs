//! How far ahead of themselves workers are given the tasks of graphs.

use std::time::Duration;

/// Tasks that a worker may hold, the running one included: it never waits for us between two. Calls ask for less.
pub(crate) const DEPTH: u32 = 128;
/// Of graphs, at least so many, and as many as this is the time for.
pub const GRAPH_DEPTH: u32 = 4;
const WORK_AHEAD_US: f64 = 1000.0;
const PACE_WEIGHT: f64 = 1.0 / 32.0;

/// How long the tasks of graphs take, and so how many of them a worker is given ahead: waking each other costs the
/// processes more than a short task does.
pub(crate) struct Pace {
    mean_us: f64,
    depth: u32,
}

impl Pace {
    /// The depth that suits, when that has changed for good.
    pub(crate) fn after(&mut self, took: Duration) -> Option<u32> {
        self.mean_us += PACE_WEIGHT * (took.as_secs_f64() * 1e6 - self.mean_us);
        let depth = ((WORK_AHEAD_US / self.mean_us.max(1.0)) as u32).clamp(GRAPH_DEPTH, DEPTH);
        let changed = depth >= 2 * self.depth || 2 * depth <= self.depth;
        changed.then(|| {
            self.depth = depth;
            depth
        })
    }
}

impl Default for Pace {
    fn default() -> Self {
        Self { mean_us: WORK_AHEAD_US, depth: GRAPH_DEPTH }
    }
}
