//! How a node fares.

use std::time::Duration;

use rustdask_core::cluster::Load;
use rustdask_runtime::workers::private_memory;
use rustix::param::clock_ticks_per_second;

use super::core::Node;

impl Node {
    /// Of this process and of its workers.
    pub(crate) fn load(&self) -> Load {
        let (result_bytes, spilled_bytes) = self.holdings.figures();
        let workers = self.all_connections().into_iter().filter_map(|connection| connection.pid());
        let processes = std::iter::once(std::process::id() as i32).chain(workers);
        let (memory_bytes, cpu) = processes
            .filter_map(usage)
            .fold((0, Duration::ZERO), |(bytes, time), (more_bytes, more_time)| (bytes + more_bytes, time + more_time));
        Load { result_bytes, spilled_bytes, memory_bytes, cpu }
    }
}

/// Memory that a process shares with nobody, in bytes, and the time that it has had on processors. `None` once it has ended.
fn usage(pid: i32) -> Option<(u64, Duration)> {
    let memory = private_memory(pid)?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // What stands before the last parenthesis is the name, which may hold anything. Then the state is the first field, and
    // the times in user and system mode are the twelfth and the thirteenth.
    let mut times = stat.rsplit_once(')')?.1.split_whitespace().skip(11).map_while(|field| field.parse::<u64>().ok());
    let ticks = times.next()? + times.next()?;
    let cpu = Duration::from_millis(ticks * 1000 / clock_ticks_per_second());
    Some((memory, cpu))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_uses_memory_and_one_that_is_not_there_has_none() {
        let (bytes, _) = usage(std::process::id() as i32).unwrap();
        assert!(bytes > 100 << 10, "{bytes}");
        assert_eq!(usage(i32::MAX), None);
    }
}
