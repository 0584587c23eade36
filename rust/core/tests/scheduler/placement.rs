//! Where tasks go, and in which order.

use crate::common::*;
use crate::two_workers;
use rustdask_core::scheduler::Config;
use rustdask_core::WorkerId;
use rustdask_core::{CallId, CallSpec, Event};

#[test]
fn a_worker_is_started_for_the_first_task_and_runs_it() {
    let mut w = World::new();
    w.open(1, call(2));
    w.submit(1, 10);
    w.claim([start(0)]);
    w.joined(0, process(2));
    w.claim([run(0, 10)]);
    w.finished(0, 10);
    w.claim([done(1, 10, 0)]);
    w.close(1);
    assert!(w.machine.is_empty());
    assert_eq!(w.machine.holds(WorkerId(0)), Some(0));
}

#[test]
fn no_more_workers_are_started_than_the_cap_allows() {
    let mut w = World::new();
    w.open(1, call(2));
    w.submit(1, 10);
    w.submit(1, 11);
    w.submit(1, 12);
    w.claim([start(0), start(1)]);
}

#[test]
fn a_worker_that_is_starting_counts_for_whoever_waits() {
    let mut w = World::new();
    w.open(1, call(4));
    w.submit(1, 10);
    w.claim([start(0)]);
    w.close(1);
    w.open(2, call(4));
    w.submit(2, 20);
    w.claim([]);
    w.joined(0, process(1));
    w.claim([run(0, 20)]);
}

#[test]
fn max_workers_holds_for_all_calls_together() {
    let mut w = World::with(Config { max_workers: 1, ..config() });
    w.open(1, call(4));
    w.open(2, call(4));
    w.submit(1, 10);
    w.submit(2, 20);
    w.claim([start(0)]);
}

#[test]
fn the_worker_that_worked_last_is_taken_first() {
    let mut w = two_workers();
    w.open(1, call(1));
    w.submit(1, 10);
    w.claim([run(0, 10)]);
    w.finished(0, 10);
    w.submit(1, 11);
    w.claim([done(1, 10, 0), run(0, 11)]);
    let coldest: Vec<_> = w.machine.idle_workers().collect();
    assert_eq!(coldest, [WorkerId(1)]);
}

#[test]
fn tasks_are_prefetched_up_to_the_depth_of_the_least_loaded_worker() {
    let mut w = two_workers();
    w.open(1, call(2));
    for task in 10..15 {
        w.submit(1, task);
    }
    w.claim([run(0, 10), run(1, 11), run(0, 12), run(1, 13)]);
    w.finished(1, 11);
    w.claim([done(1, 11, 1), run(1, 14)]);
}

#[test]
fn a_task_waits_for_the_worker_that_starts_for_it_rather_than_behind_another() {
    let mut w = World::with_workers(config(), 1, process(2));
    w.open(1, call(2));
    w.submit(1, 10);
    w.submit(1, 11);
    w.claim([run(0, 10), start(1)]);
    w.submit(1, 12);
    w.claim([run(0, 11)]);
    w.joined(1, process(2));
    w.claim([run(1, 12)]);
}

#[test]
fn a_cap_of_one_keeps_all_tasks_on_one_worker() {
    let mut w = two_workers();
    w.open(1, call(1));
    for task in 10..13 {
        w.submit(1, task);
    }
    w.claim([run(0, 10), run(0, 11)]);
    w.finished(0, 10);
    w.claim([done(1, 10, 0), run(0, 12)]);
}

#[test]
fn calls_take_turns() {
    let mut w = World::with_workers(Config { max_workers: 1, ..config() }, 1, process(1));
    w.open(1, call(2));
    w.open(2, call(2));
    for task in 10..13 {
        w.submit(1, task);
    }
    w.submit(2, 20);
    w.submit(2, 21);
    w.claim([run(0, 10)]);
    w.finished(0, 10);
    w.finished(0, 20);
    w.finished(0, 11);
    w.finished(0, 21);
    w.claim([
        done(1, 10, 0),
        run(0, 20),
        done(2, 20, 0),
        run(0, 11),
        done(1, 11, 0),
        run(0, 21),
        done(2, 21, 0),
        run(0, 12),
    ]);
}

#[test]
fn a_call_does_not_starve_beside_one_that_keeps_all_workers_supplied() {
    let mut w = World::with_workers(Config { max_workers: 1, ..config() }, 1, process(2));
    w.open(1, call(1));
    for task in 10..14 {
        w.submit(1, task);
    }
    w.claim([run(0, 10), run(0, 11)]);
    w.open(2, call(1));
    w.submit(2, 20);
    w.finished(0, 10);
    w.claim([done(1, 10, 0), run(0, 20)]);
}

#[test]
fn urgent_tasks_go_first_then_those_that_came_back() {
    let mut w = World::with_workers(Config { max_workers: 1, ..config() }, 1, process(1));
    w.open(1, call(1));
    for task in 10..12 {
        w.submit(1, task);
    }
    w.claim([run(0, 10)]);
    w.lost(0);
    w.claim([start(1)]);
    w.submit_urgent(1, 12);
    w.joined(1, process(1));
    w.finished(1, 12);
    w.finished_again(1, 10, 1);
    w.claim([run(1, 12), done(1, 12, 1), rerun(1, 10, 1), done(1, 10, 1), run(1, 11)]);
}

#[test]
fn a_paused_call_hands_out_only_what_is_urgent_or_came_back() {
    let mut w = World::with_workers(config(), 1, process(2));
    w.open(1, call(1));
    w.pause(1, true);
    w.submit(1, 10);
    w.claim([]);
    w.submit_urgent(1, 11);
    w.claim([run(0, 11)]);
    w.pause(1, false);
    w.claim([run(0, 10)]);
    w.pause(1, true);
    w.lost(0);
    w.claim([start(1)]);
    w.joined(1, process(2));
    w.claim([rerun(1, 11, 1), rerun(1, 10, 1)]);
}

#[test]
fn a_worker_holds_no_more_of_a_call_than_its_depth() {
    let mut w = World::with_workers(config(), 1, process(4));
    w.open(1, CallSpec { depth: 2, ..call(1) });
    for task in 10..15 {
        w.submit(1, task);
    }
    w.claim([run(0, 10), run(0, 11)]);
    w.handle(Event::CallDepth { call: CallId(1), depth: 3 });
    w.claim([run(0, 12)]);
    w.finished(0, 10);
    w.claim([done(1, 10, 0), run(0, 13)]);
}

#[test]
fn nor_where_the_call_might_engage_more_workers_and_none_can_be_started() {
    let mut w = World::with_workers(Config { max_workers: 1, ..config() }, 1, process(4));
    w.open(1, CallSpec { depth: 2, ..call(u32::MAX) });
    for task in 10..15 {
        w.submit(1, task);
    }
    w.claim([run(0, 10), run(0, 11)]);
}
