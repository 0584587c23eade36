//! How long this thread has run on a processor. Reading it takes some half a microsecond.

use std::time::Duration;

pub fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    // The kernel gives no negative ones.
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
