//! Moving work to idle workers.

use crate::common::*;
use crate::two_workers;
use rustdask_core::scheduler::Config;
use rustdask_core::CallSpec;

#[test]
fn a_prefetched_task_moves_to_a_worker_that_has_become_idle() {
    let mut w = two_workers();
    w.open(1, call(2));
    for task in 10..14 {
        w.submit(1, task);
    }
    w.claim([run(0, 10), run(1, 11), run(0, 12), run(1, 13)]);
    w.finished(0, 10);
    w.finished(0, 12);
    w.claim([done(1, 10, 0), done(1, 12, 0), retract(1, 13)]);
    w.returned(1, 13, 0);
    w.claim([rerun(0, 13, 1)]);
}

#[test]
fn a_task_that_is_not_divisible_stays_whole_though_a_worker_is_idle() {
    let mut w = two_workers();
    w.open(1, CallSpec { divisible: false, ..call(2) });
    w.submit_items(1, 10, 8);
    w.claim([run(0, 10)]);
    w.wait(ms(100));
    w.claim([]);
}

#[test]
fn the_last_task_of_the_worker_with_most_is_taken() {
    let mut w = World::with_workers(Config { max_workers: 3, ..config() }, 3, process(3));
    w.open(1, call(3));
    for task in 10..17 {
        w.submit(1, task);
    }
    w.claim([run(0, 10), run(1, 11), run(2, 12), run(0, 13), run(1, 14), run(2, 15), run(0, 16)]);
    w.finished(1, 11);
    w.finished(1, 14);
    w.claim([done(1, 11, 1), done(1, 14, 1), retract(0, 16)]);
}

#[test]
fn a_task_that_had_begun_stays_and_is_not_asked_for_again_at_once() {
    let mut w = two_workers();
    w.open(1, call(2));
    for task in 10..13 {
        w.submit(1, task);
    }
    w.finished(1, 11);
    w.claim([run(0, 10), run(1, 11), run(0, 12), done(1, 11, 1), retract(0, 12)]);
    w.returned(0, 12, 1);
    w.wait(ms(1));
    w.claim([]);
    w.finished(0, 10);
    w.finished(0, 12);
    w.claim([done(1, 10, 0), done(1, 12, 0)]);
}

#[test]
fn a_request_is_void_when_the_task_has_finished() {
    let mut w = two_workers();
    w.open(1, call(2));
    for task in 10..13 {
        w.submit(1, task);
    }
    w.finished(1, 11);
    w.claim([run(0, 10), run(1, 11), run(0, 12), done(1, 11, 1), retract(0, 12)]);
    w.finished(0, 10);
    w.finished(0, 12);
    w.claim([done(1, 10, 0), done(1, 12, 0)]);
    w.returned(0, 12, 1);
    assert_eq!(w.machine.stats().stale, 1);
}

#[test]
fn a_task_leaves_a_worker_that_runs_another_call_even_at_the_cap() {
    let mut w = World::with_workers(Config { max_workers: 1, ..config() }, 1, process(3));
    w.open(1, call(1));
    w.submit(1, 10);
    w.open(2, call(1));
    w.submit(2, 20);
    w.submit(2, 21);
    w.claim([run(0, 10), run(0, 20), run(0, 21)]);
    w.joined(HELPER, helper(2));
    w.claim([retract(0, 20), retract(0, 21)]);
    w.returned(0, 21, 0);
    w.claim([]);
    w.returned(0, 20, 0);
    w.claim([rerun(HELPER, 20, 1)]);
}

#[test]
fn a_call_at_its_cap_leaves_one_worker_for_one_that_is_idle() {
    let two = Config { max_workers: 2, ..config() };
    let mut w = World::with_workers(two, 2, process(2));
    w.open(1, call(2));
    w.submit(1, 10);
    w.submit(1, 11);
    w.open(2, call(2));
    w.submit(2, 20);
    w.submit(2, 21);
    w.claim([run(0, 10), run(1, 11), run(0, 20), run(1, 21)]);
    w.joined(HELPER, helper(2));
    w.claim([retract(0, 20)]);
    w.returned(0, 20, 0);
    w.claim([rerun(HELPER, 20, 1)]);
}

#[test]
fn the_tail_of_a_long_task_is_taken_back_for_an_idle_worker() {
    let mut w = two_workers();
    w.open(1, call(2));
    w.submit_items(1, 10, 100);
    w.claim([run(0, 10)]);
    assert_eq!(w.machine.next_deadline(), Some(ms(2)));
    w.wait(ms(1));
    w.claim([]);
    w.wait(ms(1));
    w.claim([retract(0, 10)]);
    assert_eq!(w.machine.next_deadline(), None);
    w.returned(0, 10, 40);
    w.claim([remainder(1, 10, 40)]);
    w.submit_urgent(1, 11);
    w.claim([run(1, 11)]);
    w.finished(0, 10);
    w.claim([done(1, 10, 0)]);
}

#[test]
fn no_more_tails_are_taken_back_than_there_are_idle_workers() {
    let mut w = World::with_workers(config(), 3, process(1));
    w.open(1, call(3));
    w.submit_items(1, 10, 100);
    w.submit_items(1, 11, 100);
    w.wait(ms(2));
    w.claim([run(0, 10), run(1, 11), retract(0, 10)]);
    w.wait(ms(2));
    w.claim([]);
    w.returned(0, 10, 100);
    w.claim([retract(1, 11)]);
}

#[test]
fn a_task_that_had_no_tail_left_is_asked_again_after_it_has_run_longer() {
    let mut w = two_workers();
    w.open(1, call(2));
    w.submit_items(1, 10, 5);
    w.wait(ms(2));
    w.claim([run(0, 10), retract(0, 10)]);
    w.wait(ms(1));
    w.returned(0, 10, 5);
    w.claim([]);
    assert_eq!(w.machine.next_deadline(), Some(ms(5)));
    w.wait(ms(2));
    w.claim([retract(0, 10)]);
}

#[test]
fn a_task_is_not_split_where_nobody_may_take_the_rest() {
    let mut w = two_workers();
    w.open(1, call(1));
    w.submit_items(1, 10, 5);
    w.claim([run(0, 10)]);
    assert_eq!(w.machine.next_deadline(), None);
    w.wait(ms(100));
    w.claim([]);
}
