//! Tasks of graphs that fail, and what becomes of those that need them.

use crate::common::graph::*;
use crate::common::*;
use crate::{timed, two_workers};
use rustdask_core::{CallSpec, KillReason, Resolution, TaskSpec};

#[test]
fn all_that_needs_a_failed_task_fails_and_names_it() {
    let mut w = two_workers();
    w.open(1, call(2));
    w.graph(1, [task(10, &[]), task(11, &[]), inner(12, &[10]), task(13, &[12, 11]), task(14, &[11])]);
    w.claim([run(0, 10), run(1, 11)]);
    w.raised(0, 10, 0);
    w.claim([raises(1, 10, 0), failed_after(1, 13, 10)]);
    w.made(1, 11, 1);
    w.claim([done(1, 11, 1), run(1, 14)]);
}

#[test]
fn what_is_submitted_later_fails_of_the_same_cause() {
    let mut w = two_workers();
    w.open(1, call(2));
    w.graph(1, [task(10, &[]), task(11, &[10])]);
    w.raised(0, 10, 0);
    w.claim([run(0, 10), raises(1, 10, 0), failed_after(1, 11, 10)]);
    w.graph(1, [task(12, &[11])]);
    w.claim([failed_after(1, 12, 10)]);
    w.release(1, [10, 11, 12]);
    assert_eq!(w.machine.stats().known, 0);
}

#[test]
fn a_failed_task_no_longer_needs_what_it_depends_on() {
    let mut w = two_workers();
    w.open(1, call(2));
    w.graph(1, [inner(10, &[]), inner(11, &[]), task(12, &[10, 11])]);
    w.made(0, 10, 1);
    w.claim([run(0, 10), run(1, 11)]);
    w.raised(1, 11, 0);
    w.claim([raises(1, 11, 1), failed_after(1, 12, 11), forget(0, 10)]);
}

#[test]
fn a_task_that_raises_is_tried_again_as_often_as_it_says() {
    let mut w = two_workers();
    w.open(1, call(2));
    w.graph(1, [TaskSpec { retries: 1, ..task(10, &[]) }]);
    w.raised(0, 10, 0);
    w.claim([run(0, 10), rerun(0, 10, 1)]);
    w.raised(0, 10, 1);
    w.claim([raises(1, 10, 0)]);
}

#[test]
fn a_task_that_kills_its_workers_fails_within_the_crash_budget() {
    let mut w = World::with_workers(config(), 1, process(2));
    w.open(1, CallSpec { crash_retries: 0, ..call(1) });
    w.graph(1, [task(10, &[]), task(11, &[10]), task(12, &[])]);
    w.claim([run(0, 10), run(0, 12)]);
    w.lost(0);
    w.claim([crashed(1, 10, 0, 1), failed_after(1, 11, 10), start(1)]);
    w.joined(1, process(1));
    w.claim([rerun(1, 12, 1)]);
}

#[test]
fn a_task_that_overruns_its_limit_fails() {
    let mut w = World::with_workers(config(), 1, process(1));
    w.open(1, timed(1, 10));
    w.graph(1, [task(10, &[]), task(11, &[10])]);
    w.wait(ms(10));
    w.claim([run(0, 10), timed_out(1, 10, 0), failed_after(1, 11, 10), kill(0, KillReason::TimedOut)]);
}

#[test]
fn where_no_worker_can_be_started_all_fails() {
    let mut w = World::new();
    w.open(1, call(1));
    w.graph(1, [task(10, &[]), task(11, &[10])]);
    w.claim([start(0)]);
    for worker in 0..3 {
        w.lost(worker);
    }
    w.claim([start(1), start(2), resolve(1, 10, Resolution::NoWorkers), failed_after(1, 11, 10)]);
}
