//! Where a call's time and bytes went, for `rustdask.explain()`.

use std::collections::BTreeMap;
use std::time::Duration;

use rustdask_core::message::Timings;

/// Per-batch run times that are kept; enough for quantiles.
const MAX_SAMPLES: usize = 100_000;
/// The longest batches that are remembered.
const MAX_SLOWEST: usize = 5;
/// Where items take less, the clock that tells waiting from running would cost too much.
const WORTH_A_CLOCK: Duration = Duration::from_micros(100);

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
    /// Between being handed over and being begun, summed over parts.
    pub(crate) queue: Duration,
    /// Of the time that parts ran in threads of this process: on a processor, and not.
    pub(crate) on_cpu: Duration,
    pub(crate) blocked: Duration,
    /// Parts that were run.
    parts: u64,
    /// Run time of each part.
    pub(crate) samples: Vec<f64>,
    /// The longest parts: number of the first item, and run time in seconds.
    pub(crate) slowest: Vec<(u64, f64)>,
    /// Items and run time since it was last asked, for the choice of batch sizes.
    recent: (u64, Duration),
}

impl Stats {
    pub(crate) fn submitted(&mut self, items: u32) {
        self.batches += 1;
        self.tasks += u64::from(items);
        *self.batch_sizes.entry(items).or_default() += 1;
    }

    pub(crate) fn ran(&mut self, time: Duration, first_index: u64, items: u32) {
        self.parts += 1;
        self.timings.running += time;
        self.recent.0 += u64::from(items);
        self.recent.1 += time;
        let seconds = time.as_secs_f64();
        if self.samples.len() < MAX_SAMPLES {
            self.samples.push(seconds);
        }
        if self.slowest.len() < MAX_SLOWEST || self.slowest.iter().any(|(_, least)| *least < seconds) {
            self.slowest.push((first_index, seconds));
            self.slowest.sort_by(|a, b| b.1.total_cmp(&a.1));
            self.slowest.truncate(MAX_SLOWEST);
        }
    }

    pub(crate) fn reported(&mut self, timings: Timings, first_index: u64, items: u32, bytes: u64) {
        self.ran(timings.running, first_index, items);
        self.timings.loading += timings.loading;
        self.timings.dumping += timings.dumping;
        self.bytes_received += bytes;
    }

    /// At least so many parts were run, in less than this time on average, and none of them needed shared memory.
    pub(crate) fn has_short_parts(&self, at_least: u64, time: Duration) -> bool {
        self.parts >= at_least && self.bytes_placed == 0 && self.timings.running < time * self.parts as u32
    }

    /// Whether the next part is to be timed by its thread's processor time, too.
    pub(crate) fn worth_a_clock(&self) -> bool {
        self.tasks < 100 || self.timings.running > WORTH_A_CLOCK * u32::try_from(self.recent.0).unwrap_or(u32::MAX)
    }

    pub(crate) fn on_clock(&mut self, wall: Duration, on_cpu: Duration) {
        self.on_cpu += on_cpu;
        self.blocked += wall.saturating_sub(on_cpu);
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
