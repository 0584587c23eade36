//! Helpers, and calls made inside a task.

use crate::common::*;
use crate::{helped, nested, two_workers};
use rustdask_core::scheduler::Config;
use rustdask_core::CallSpec;

#[test]
fn a_place_is_kept_for_the_helper_until_it_joins() {
    let mut w = two_workers();
    w.open(1, helped(2));
    w.submit(1, 10);
    w.submit(1, 11);
    w.submit(1, 12);
    w.claim([run(0, 10), run(0, 11)]);
    w.joined(HELPER, helper(1));
    w.claim([run(HELPER, 12)]);
}

#[test]
fn an_excused_helper_leaves_its_place_to_any_worker() {
    let mut w = two_workers();
    w.open(1, helped(1));
    w.submit(1, 10);
    w.claim([]);
    w.excuse(1);
    w.claim([run(0, 10)]);
}

#[test]
fn an_idle_helper_is_taken_first_and_serves_its_call_only() {
    let mut w = two_workers();
    w.open(1, helped(1));
    w.joined(HELPER, helper(1));
    w.open(2, call(1));
    w.submit(2, 20);
    w.claim([run(0, 20)]);
    w.submit(1, 10);
    w.claim([run(HELPER, 10)]);
}

#[test]
fn a_helper_that_leaves_gives_its_tasks_back_without_a_death() {
    let mut w = World::with_workers(config(), 1, process(1));
    w.open(1, CallSpec { crash_retries: 0, ..helped(1) });
    w.joined(HELPER, helper(1));
    w.submit(1, 10);
    w.claim([run(HELPER, 10)]);
    w.lost(HELPER);
    w.claim([rerun(0, 10, 1)]);
}

#[test]
fn a_nested_call_takes_no_more_workers_than_there_are_cores() {
    let mut w = World::with_workers(config(), 3, thread());
    w.open(1, call(1));
    w.submit(1, 10);
    w.open(2, nested(3));
    w.submit(2, 20);
    w.submit(2, 21);
    w.claim([run(0, 10), run(1, 20)]);
    w.finished(0, 10);
    w.claim([done(1, 10, 0), run(0, 21)]);
}

#[test]
fn a_nested_call_may_always_have_one_worker() {
    let mut w = World::with_workers(Config { core_budget: 1, ..config() }, 1, thread());
    w.open(1, call(1));
    w.submit(1, 10);
    w.open(2, nested(4));
    w.submit(2, 20);
    w.submit(2, 21);
    w.claim([run(0, 10), start(1)]);
    w.joined(1, thread());
    w.claim([run(1, 20)]);
}

#[test]
fn the_helper_of_a_nested_call_needs_no_core_of_its_own() {
    let mut w = World::with_workers(config(), 2, thread());
    w.open(1, call(1));
    w.submit(1, 10);
    w.open(2, CallSpec { nested: true, ..helped(4) });
    w.joined(HELPER, helper(2));
    w.submit(2, 20);
    w.submit(2, 21);
    w.submit(2, 22);
    w.claim([run(0, 10), run(HELPER, 20), run(1, 21)]);
    assert_eq!(w.machine.stats().busy, 2);
}
