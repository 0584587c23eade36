//! Workers that die or do not start.

use crate::common::*;
use crate::{nested, two_workers};
use rustdask_core::scheduler::Config;
use rustdask_core::{CallSpec, KillReason, Resolution};

#[test]
fn the_running_task_of_a_dead_worker_is_tried_again_then_fails_alone() {
    let mut w = World::with_workers(config(), 1, process(2));
    w.open(1, call(1));
    w.submit(1, 10);
    w.submit(1, 11);
    w.claim([run(0, 10), run(0, 11)]);
    w.lost(0);
    w.claim([start(1)]);
    w.joined(1, process(2));
    w.claim([rerun(1, 10, 1), rerun(1, 11, 1)]);
    w.lost(1);
    w.claim([crashed(1, 10, 1, 2), start(2)]);
    w.joined(2, process(2));
    w.claim([rerun(2, 11, 2)]);
}

#[test]
fn a_running_task_of_several_items_is_halved_without_a_death() {
    let mut w = World::with_workers(config(), 1, process(1));
    w.open(1, CallSpec { crash_retries: 0, ..call(1) });
    w.submit_items(1, 10, 5);
    w.claim([run(0, 10)]);
    w.lost(0);
    w.claim([remainder(1, 10, 2), start(1)]);
    w.submit_urgent_items(1, 11, 3);
    w.joined(1, process(1));
    w.claim([run(1, 11)]);
    w.finished(1, 11);
    w.claim([done(1, 11, 1), rerun(1, 10, 1)]);
    w.lost(1);
    w.claim([remainder(1, 10, 1), start(2)]);
    w.joined(2, process(1));
    w.claim([rerun(2, 10, 2)]);
    w.lost(2);
    w.claim([crashed(1, 10, 2, 1)]);
}

#[test]
fn a_task_that_had_not_begun_comes_back_whole() {
    let mut w = World::with_workers(config(), 1, process(2));
    w.open(1, call(1));
    w.submit_items(1, 10, 4);
    w.submit_items(1, 11, 4);
    w.claim([run(0, 10), run(0, 11)]);
    w.lost(0);
    w.claim([remainder(1, 10, 2), start(1)]);
    w.joined(1, process(2));
    w.claim([rerun(1, 10, 1), rerun(1, 11, 1)]);
}

#[test]
fn a_worker_that_was_told_to_end_leaves_other_tasks_whole() {
    let mut w = World::with_workers(Config { max_workers: 1, ..config() }, 1, process(2));
    w.open(1, call(1));
    w.open(2, call(1));
    w.submit_items(1, 10, 4);
    w.submit_items(2, 20, 4);
    w.claim([run(0, 10), run(0, 20)]);
    w.close(1);
    w.claim([kill(0, KillReason::Cancelled)]);
    w.lost(0);
    w.claim([start(1)]);
    w.joined(1, process(2));
    w.claim([rerun(1, 20, 1)]);
}

#[test]
fn what_a_halved_task_reports_late_is_dropped() {
    let mut w = World::with_workers(config(), 1, process(1));
    w.open(1, call(1));
    w.submit_items(1, 10, 4);
    w.lost(0);
    w.finished(0, 10);
    w.returned(0, 10, 1);
    assert_eq!(w.machine.stats().stale, 2);
    w.joined(1, process(1));
    w.claim([run(0, 10), remainder(1, 10, 2), start(1), rerun(1, 10, 1)]);
}

#[test]
fn workers_that_fail_to_start_are_tried_again_then_what_waits_is_given_up() {
    let mut w = World::new();
    w.open(1, call(1));
    w.submit(1, 10);
    w.submit(1, 11);
    w.lost(0);
    w.lost(1);
    w.claim([start(0), start(1), start(2)]);
    w.lost(2);
    w.claim([resolve(1, 10, Resolution::NoWorkers), resolve(1, 11, Resolution::NoWorkers)]);
    w.submit(1, 12);
    w.claim([start(3)]);
}

#[test]
fn nothing_is_given_up_while_a_worker_lives() {
    let mut w = World::new();
    w.open(1, call(2));
    w.submit(1, 10);
    w.submit(1, 11);
    w.submit(1, 12);
    w.joined(0, process(1));
    for worker in 1..4 {
        w.lost(worker);
    }
    w.claim([start(0), start(1), run(0, 10), start(2), start(3)]);
    w.finished(0, 10);
    w.claim([done(1, 10, 0), run(0, 11)]);
    w.lost(0);
    w.lost(4);
    w.claim([start(4), start(5)]);
    w.lost(5);
    w.claim([resolve(1, 11, Resolution::NoWorkers), resolve(1, 12, Resolution::NoWorkers)]);
}

#[test]
fn a_nested_call_does_not_hope_for_the_workers_that_wait_for_it() {
    let mut w = World::with_workers(config(), 1, thread());
    w.open(1, call(1));
    w.submit(1, 10);
    w.open(2, nested(1));
    w.submit(2, 20);
    w.claim([run(0, 10), start(1)]);
    for worker in 1..4 {
        w.lost(worker);
    }
    w.claim([start(2), start(3), resolve(2, 20, Resolution::NoWorkers)]);
}

#[test]
fn a_worker_that_joins_clears_the_failures_before_it() {
    let mut w = World::new();
    w.open(1, call(1));
    w.submit(1, 10);
    w.lost(0);
    w.lost(1);
    w.joined(2, process(1));
    w.claim([start(0), start(1), start(2), run(2, 10)]);
    w.lost(2);
    w.lost(3);
    w.lost(4);
    w.claim([start(3), start(4), start(5)]);
}

#[test]
fn reports_of_other_attempts_are_dropped_and_counted() {
    let mut w = two_workers();
    w.open(1, call(1));
    w.submit(1, 10);
    w.claim([run(0, 10)]);
    w.finished(1, 10);
    w.finished_again(0, 10, 1);
    w.finished(0, 99);
    w.finished(7, 10);
    w.claim([]);
    assert_eq!(w.machine.stats().stale, 4);
    w.finished(0, 10);
    w.claim([done(1, 10, 0)]);
    w.finished(0, 10);
    assert_eq!(w.machine.stats().stale, 5);
}

#[test]
fn tasks_may_finish_in_another_order_than_expected() {
    let mut w = World::with_workers(config(), 1, process(2));
    w.open(1, call(1));
    w.submit(1, 10);
    w.submit(1, 11);
    w.finished(0, 11);
    w.finished(0, 10);
    w.claim([run(0, 10), run(0, 11), done(1, 11, 0), done(1, 10, 0)]);
}
