//! Calls that end with work in hand.

use crate::common::*;
use rustdask_core::scheduler::Config;
use rustdask_core::{CallSpec, KillReason, WorkerId};

#[test]
fn closing_a_call_kills_the_process_that_runs_it_and_resolves_nothing() {
    let mut w = World::with_workers(config(), 1, process(2));
    w.open(1, call(1));
    for task in 10..13 {
        w.submit(1, task);
    }
    w.claim([run(0, 10), run(0, 11)]);
    w.close(1);
    w.claim([kill(0, KillReason::Cancelled)]);
    assert!(w.machine.is_empty());
    w.open(2, call(1));
    w.submit(2, 20);
    w.claim([start(1)]);
    w.lost(0);
    w.joined(1, process(2));
    w.claim([run(1, 20)]);
}

#[test]
fn other_calls_tasks_on_a_cancelled_worker_run_elsewhere_without_a_death() {
    let mut w = World::with_workers(Config { max_workers: 1, ..config() }, 1, process(2));
    w.open(1, call(1));
    w.open(2, CallSpec { crash_retries: 0, ..call(1) });
    w.submit(1, 10);
    w.submit(2, 20);
    w.claim([run(0, 10), run(0, 20)]);
    w.close(1);
    w.claim([kill(0, KillReason::Cancelled)]);
    w.lost(0);
    w.joined(1, process(2));
    w.claim([start(1), rerun(1, 20, 1)]);
}

/// A worker that runs task 20 of call 2 and has the unstarted task 10 of call 1 behind it.
fn behind_another_call() -> World {
    let mut w = World::with_workers(Config { max_workers: 1, ..config() }, 1, process(2));
    w.open(2, call(1));
    w.open(1, call(1));
    w.submit(2, 20);
    w.submit(1, 10);
    w.claim([run(0, 20), run(0, 10)]);
    w
}

#[test]
fn unstarted_tasks_of_a_closed_call_are_taken_back() {
    let mut w = behind_another_call();
    w.close(1);
    w.claim([retract(0, 10)]);
    w.returned(0, 10, 0);
    assert_eq!(w.machine.holds(WorkerId(0)), Some(1));
    w.finished(0, 20);
    w.claim([done(2, 20, 0)]);
}

#[test]
fn a_process_that_has_begun_a_task_of_a_closed_call_is_killed() {
    let mut w = behind_another_call();
    w.close(1);
    w.finished(0, 20);
    w.claim([retract(0, 10), done(2, 20, 0)]);
    w.returned(0, 10, 1);
    w.claim([kill(0, KillReason::Cancelled)]);
}

#[test]
fn a_thread_runs_on_when_its_call_is_closed_and_is_free_after() {
    let mut w = World::with_workers(config(), 1, thread());
    w.open(1, call(1));
    w.submit(1, 10);
    w.claim([run(0, 10)]);
    w.close(1);
    w.claim([]);
    assert_eq!(w.machine.stats().idle, 0);
    w.finished(0, 10);
    assert_eq!(w.machine.stats().idle, 1);
}

#[test]
fn a_thread_is_asked_to_leave_out_what_it_has_not_begun_of_a_closed_call() {
    let mut w = World::with_workers(config(), 1, thread());
    w.open(1, call(1));
    w.submit_items(1, 10, 50);
    w.close(1);
    w.claim([run(0, 10), retract(0, 10)]);
    w.returned(0, 10, 3);
    w.finished(0, 10);
    w.claim([]);
    assert_eq!(w.machine.stats().stale, 2);
}
