//! What is needed is run and kept; nothing else is.

use crate::common::graph::*;
use crate::common::*;
use crate::two_workers;
use rustdask_core::scheduler::Config;
use rustdask_core::KillReason;

#[test]
fn nothing_is_run_that_nobody_wants() {
    let mut w = two_workers();
    w.open(1, call(2));
    w.graph(1, [inner(10, &[]), inner(11, &[10])]);
    w.claim([]);
    assert_eq!(w.machine.stats().known, 0);
}

#[test]
fn a_result_is_freed_on_all_workers_when_the_last_that_needs_it_is_done() {
    let mut w = two_workers();
    w.open(1, call(2));
    w.graph(1, [inner(10, &[]), task(11, &[10]), task(12, &[10])]);
    w.made(0, 10, 1);
    w.claim([run(0, 10), run(0, 11)]);
    w.wait(ms(1));
    w.claim([run(1, 12)]);
    w.copied(1, 10);
    assert_eq!(w.holders(10), [0, 1].into());
    w.made(0, 11, 1);
    w.claim([done(1, 11, 0)]);
    w.made(1, 12, 1);
    w.claim([done(1, 12, 1), forget(0, 10), forget(1, 10)]);
    assert!(w.holders(10).is_empty());
}

#[test]
fn a_wanted_result_is_kept_until_it_is_released() {
    let mut w = two_workers();
    w.open(1, call(2));
    w.graph(1, [task(10, &[])]);
    w.made(0, 10, 1);
    w.claim([run(0, 10), done(1, 10, 0)]);
    assert_eq!(w.machine.stats().known, 1);
    w.release(1, [10]);
    w.claim([forget(0, 10)]);
    assert_eq!(w.machine.stats().known, 0);
}

#[test]
fn a_released_task_that_waits_is_dropped_with_all_that_only_it_needs() {
    let mut w = World::with_workers(config(), 1, process(2));
    w.open(1, call(1));
    w.graph(1, [task(10, &[]), inner(11, &[]), inner(12, &[]), task(13, &[11, 12])]);
    w.claim([run(0, 10), run(0, 11)]);
    w.release(1, [13]);
    w.claim([retract(0, 11)]);
    assert_eq!(w.machine.stats().known, 1);
    w.returned(0, 11, 0);
    w.made(0, 10, 1);
    w.claim([done(1, 10, 0)]);
}

#[test]
fn a_released_task_that_runs_is_left_to_end_and_its_result_forgotten() {
    let mut w = two_workers();
    w.open(1, call(2));
    w.graph(1, [task(10, &[])]);
    w.claim([run(0, 10)]);
    w.release(1, [10]);
    w.claim([]);
    w.made(0, 10, 1);
    w.claim([forget(0, 10)]);
    assert_eq!(w.machine.stats().idle, 2);
}

#[test]
fn a_released_task_is_run_as_long_as_others_need_it() {
    let mut w = two_workers();
    w.open(1, call(2));
    w.graph(1, [task(10, &[]), task(11, &[10])]);
    w.release(1, [10]);
    w.made(0, 10, 1);
    w.claim([run(0, 10), run(0, 11)]);
}

#[test]
fn a_task_that_is_submitted_again_is_told_again() {
    let mut w = two_workers();
    w.open(1, call(2));
    w.graph(1, [task(10, &[]), task(11, &[10])]);
    w.made(0, 10, 1);
    w.claim([run(0, 10), done(1, 10, 0), run(0, 11)]);
    w.graph(1, [task(10, &[])]);
    w.claim([]);
    w.release(1, [10]);
    w.graph(1, [task(10, &[])]);
    w.claim([done(1, 10, 0)]);
}

#[test]
fn a_copy_that_nobody_needs_is_forgotten() {
    let mut w = two_workers();
    w.copied(0, 10);
    w.copied(7, 10);
    w.claim([forget(0, 10)]);
}

#[test]
fn cancelled_tasks_end_with_all_that_depends_on_them() {
    let mut w = World::with_workers(Config { max_workers: 1, ..config() }, 1, process(1));
    w.open(1, call(1));
    w.graph(1, [task(10, &[]), inner(11, &[10]), task(12, &[11]), task(13, &[])]);
    w.claim([run(0, 10)]);
    w.cancel(1, [10]);
    w.claim([cancelled(1, 10), cancelled(1, 12)]);
    w.made(0, 10, 1);
    w.claim([forget(0, 10), run(0, 13)]);
    w.graph(1, [task(14, &[12])]);
    w.claim([cancelled(1, 14)]);
}

#[test]
fn a_task_that_has_finished_is_not_cancelled() {
    let mut w = two_workers();
    w.open(1, call(2));
    w.graph(1, [task(10, &[])]);
    w.made(0, 10, 1);
    w.cancel(1, [10]);
    w.claim([run(0, 10), done(1, 10, 0)]);
    assert_eq!(w.holders(10), [0].into());
}

#[test]
fn what_is_cancelled_by_force_is_ended_where_it_can_be() {
    let mut w = World::with_workers(config(), 1, process(2));
    w.open(1, call(1));
    w.graph(1, [task(10, &[]), task(11, &[])]);
    w.cancel_by_force(1, [11]);
    w.claim([run(0, 10), run(0, 11), retract(0, 11), cancelled(1, 11)]);
    w.cancel_by_force(1, [10]);
    w.claim([kill(0, KillReason::Cancelled), cancelled(1, 10)]);
}

#[test]
fn closing_a_call_frees_all_that_it_had() {
    let mut w = two_workers();
    w.open(1, call(2));
    w.graph(1, [task(10, &[]), task(11, &[10]), task(12, &[11])]);
    w.made(0, 10, 1);
    w.claim([run(0, 10), done(1, 10, 0), run(0, 11)]);
    w.close(1);
    w.claim([forget(0, 10), kill(0, KillReason::Cancelled)]);
    assert!(w.machine.is_empty());
}

#[test]
fn a_worker_with_results_of_others_is_not_ended_for_a_closed_call() {
    let mut w = World::with_workers(config(), 1, process(1));
    w.open(1, call(1));
    w.open(2, call(1));
    w.graph(1, [task(10, &[])]);
    w.made(0, 10, 1);
    w.graph(2, [task(20, &[])]);
    w.claim([run(0, 10), done(1, 10, 0), run(0, 20)]);
    w.close(2);
    w.claim([]);
    w.made(0, 20, 1);
    w.claim([forget(0, 20)]);
}
