//! Process groups: a worker leads one, so that what its tasks start can be ended with it.
//!
//! multiprocessing's resource trackers (loky's too) are spared. They end by themselves when those that they serve
//! have ended, and remove the semaphores and files that these have left behind.

use rustix::process::{kill_process, Pid, Signal};

/// Members of a group may start others while it is being ended.
const ROUNDS: usize = 3;

/// End a worker and what it has started.
pub fn end_group(leader: i32) {
    let Some(pid) = Pid::from_raw(leader) else { return };
    // It fails only when the process has ended.
    let _ = kill_process(pid, Signal::KILL);
    end_rest_of_group(leader);
}

/// End what a worker has started, and not itself.
pub fn end_rest_of_group(leader: i32) {
    for _ in 0..ROUNDS {
        let doomed: Vec<i32> = members(leader).into_iter().filter(|pid| *pid != leader && !is_tracker(*pid)).collect();
        if doomed.is_empty() {
            return;
        }
        for pid in doomed.into_iter().filter_map(Pid::from_raw) {
            // As above.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// Living processes of a group.
fn members(group: i32) -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| group_of(*pid) == Some(group)).collect()
}

/// None for a process that has ended.
fn group_of(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // What stands before the last parenthesis is the name, which may hold anything. Then: state, parent, group.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    (state != "Z" && state != "X").then(|| fields.nth(1)?.parse().ok())?
}

fn is_tracker(pid: i32) -> bool {
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let name = b"resource_tracker";
    command.windows(name.len()).any(|part| part == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    /// Look again and again, for half a minute at most.
    fn until(what: &str, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !condition() {
            assert!(Instant::now() < deadline, "waited in vain until {what}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_group_ends_but_for_resource_trackers() {
        // It ends as soon as nobody can read what it writes, so it writes to nobody.
        let shell = "sleep 60 & tail -f /dev/null resource_tracker > /dev/null 2>&1 & echo $!; wait";
        let mut leader =
            Command::new("sh").args(["-c", shell]).process_group(0).stdout(Stdio::piped()).spawn().unwrap();
        let mut tracker = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(leader.stdout.take().unwrap()), &mut tracker).unwrap();
        let (group, tracker) = (leader.id() as i32, tracker.trim().parse::<i32>().unwrap());
        until("the shell has started both", || members(group).len() == 3 && is_tracker(tracker));
        end_group(group);
        leader.wait().unwrap();
        until("only the tracker is left", || members(group) == [tracker]);
        // It may have ended by itself.
        let _ = kill_process(Pid::from_raw(tracker).unwrap(), Signal::KILL);
    }
}
