//! Time limits of tasks.

use crate::common::*;
use crate::timed;
use rustdask_core::{CallSpec, KillReason};

#[test]
fn a_process_that_overruns_is_killed_and_its_other_tasks_run_elsewhere() {
    let mut w = World::with_workers(config(), 1, process(2));
    w.open(1, CallSpec { crash_retries: 0, ..timed(1, 10) });
    w.submit(1, 10);
    w.submit(1, 11);
    w.claim([run(0, 10), run(0, 11)]);
    assert_eq!(w.machine.next_deadline(), Some(ms(10)));
    w.wait(ms(10));
    w.claim([timed_out(1, 10, 0), kill(0, KillReason::TimedOut)]);
    w.submit(1, 12);
    w.claim([]);
    w.lost(0);
    w.claim([start(1)]);
    w.joined(1, process(2));
    w.claim([rerun(1, 11, 1), run(1, 12)]);
}

#[test]
fn a_worker_told_to_end_is_done_with_even_if_it_reports_meanwhile() {
    let mut w = World::with_workers(config(), 1, process(2));
    w.open(1, CallSpec { crash_retries: 0, ..timed(1, 10) });
    w.submit(1, 10);
    w.submit(1, 11);
    w.wait(ms(10));
    w.claim([run(0, 10), run(0, 11), timed_out(1, 10, 0), kill(0, KillReason::TimedOut)]);
    w.finished(0, 10);
    w.submit(1, 12);
    w.wait(ms(100));
    w.claim([]);
    w.lost(0);
    w.joined(1, process(2));
    w.claim([start(1), rerun(1, 11, 1), run(1, 12)]);
}

#[test]
fn a_thread_that_overruns_is_replaced_and_comes_back_when_it_reports() {
    let mut w = World::with_workers(config(), 1, thread());
    w.open(1, timed(1, 10));
    w.submit(1, 10);
    w.submit(1, 11);
    w.claim([run(0, 10)]);
    w.wait(ms(10));
    w.claim([timed_out(1, 10, 0), start(1)]);
    w.joined(1, thread());
    w.claim([run(1, 11)]);
    w.finished(0, 10);
    w.claim([]);
    assert_eq!(w.machine.stats().stale, 1);
    assert_eq!(w.machine.stats().idle, 1);
}

#[test]
fn the_clock_of_a_task_starts_when_the_one_before_has_ended() {
    let mut w = World::with_workers(config(), 1, process(2));
    w.open(1, timed(1, 10));
    w.submit(1, 10);
    w.submit_items(1, 11, 3);
    w.now = ms(8);
    w.finished(0, 10);
    w.claim([run(0, 10), run(0, 11), done(1, 10, 0)]);
    assert_eq!(w.machine.next_deadline(), Some(ms(38)));
    w.returned(0, 11, 2);
    w.claim([remainder(1, 11, 2)]);
    assert_eq!(w.machine.next_deadline(), Some(ms(28)));
}

#[test]
fn a_limit_beyond_all_time_is_none() {
    let mut w = World::with_workers(config(), 1, process(2));
    w.open(1, timed(1, u64::MAX));
    w.submit_items(1, 10, u32::MAX);
    w.claim([run(0, 10)]);
    assert_eq!(w.machine.next_deadline(), None);
}
