//! Where a call's time and bytes went, for `rustdask.explain()`.

use std::collections::BTreeMap;
use std::time::Duration;

use rustdask_core::message::Timings;

/// Per-batch run times that are kept; enough for quantiles and stragglers.
const MAX_SAMPLES: usize = 100_000;

#[derive(Clone, Debug, Default)]
pub(crate) struct Stats {
    pub(crate) batches: u64,
    pub(crate) tasks: u64,
    pub(crate) batch_sizes: BTreeMap<u32, u64>,
    pub(crate) pickling: Duration,
    pub(crate) placing: Duration,
    pub(crate) loading_results: Duration,
    /// By the workers' clocks.
    pub(crate) timings: Timings,
    pub(crate) bytes_sent: u64,
    pub(crate) bytes_placed: u64,
    pub(crate) bytes_saved: u64,
    pub(crate) bytes_received: u64,
    /// Run time of each part and its items.
    pub(crate) samples: Vec<f64>,
    /// Items and run time since it was last asked, for the choice of batch sizes.
    recent: (u64, Duration),
}

impl Stats {
    pub(crate) fn submitted(&mut self, items: u32) {
        self.batches += 1;
        self.tasks += u64::from(items);
        *self.batch_sizes.entry(items).or_default() += 1;
    }

    pub(crate) fn ran(&mut self, time: Duration, items: u32) {
        self.timings.running += time;
        self.recent.0 += u64::from(items);
        self.recent.1 += time;
        if self.samples.len() < MAX_SAMPLES {
            self.samples.push(time.as_secs_f64());
        }
    }

    pub(crate) fn reported(&mut self, timings: Timings, items: u32, bytes: u64) {
        self.ran(timings.running, items);
        self.timings.loading += timings.loading;
        self.timings.dumping += timings.dumping;
        self.bytes_received += bytes;
    }

    /// Mean time of an item since this was last asked; what came before counts less and less.
    pub(crate) fn mean_item_time(&mut self) -> Option<Duration> {
        let (items, time) = self.recent;
        if items == 0 {
            return None;
        }
        if items > 1000 {
            self.recent = (items / 2, time / 2);
        }
        Some(time / u32::try_from(items).unwrap_or(u32::MAX))
    }
}
