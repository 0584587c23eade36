//! Results that are lost with their workers.

use crate::common::graph::*;
use crate::common::*;
use crate::two_workers;
use rustdask_core::scheduler::Config;

/// Two workers, and none to take their place.
fn two_only() -> World {
    World::with_workers(Config { max_workers: 2, ..config() }, 2, process(2))
}

#[test]
fn a_lost_result_that_is_still_needed_is_made_again_with_its_inputs() {
    let mut w = two_only();
    w.open(1, call(2));
    w.graph(1, [inner(10, &[]), inner(11, &[10]), task(12, &[]), task(13, &[11, 12])]);
    w.claim([run(0, 10), run(1, 12)]);
    w.made(0, 10, 1);
    w.made(0, 11, 1);
    w.claim([run(0, 11), forget(0, 10)]);
    w.lost(0);
    w.claim([start(2)]);
    w.joined(2, process(2));
    w.claim([rerun(2, 10, 1)]);
    w.made(1, 12, 1);
    w.made_again(2, 10, 1);
    w.claim([done(1, 12, 1), rerun(2, 11, 1)]);
    w.made_again(2, 11, 1);
    w.claim([forget(2, 10), run(1, 13)]);
}

#[test]
fn a_result_of_which_a_copy_is_left_is_not_lost() {
    let mut w = two_only();
    w.open(1, call(2));
    w.graph(1, [task(10, &[]), task(11, &[])]);
    w.made(0, 10, 1);
    w.claim([run(0, 10), run(1, 11), done(1, 10, 0)]);
    w.copied(1, 10);
    w.lost(0);
    w.claim([]);
    assert_eq!(w.holders(10), [1].into());
}

#[test]
fn who_knew_of_a_lost_result_is_told_when_it_is_there_again_and_not_twice_how_it_ended() {
    let mut w = two_only();
    w.open(1, call(2));
    w.graph(1, [task(10, &[])]);
    w.made(0, 10, 1);
    w.claim([run(0, 10), done(1, 10, 0)]);
    w.lost(0);
    w.claim([lost(1, 10), rerun(1, 10, 1)]);
    w.made_again(1, 10, 1);
    w.claim([restored(1, 10, 1)]);
}

#[test]
fn a_lost_result_that_nobody_needs_is_not_made_again() {
    let mut w = two_only();
    w.open(1, call(2));
    w.graph(1, [inner(10, &[]), task(11, &[10])]);
    w.made(0, 10, 1);
    w.made(0, 11, 1);
    w.claim([run(0, 10), run(0, 11), done(1, 11, 0), forget(0, 10)]);
    w.copied(1, 11);
    w.lost(0);
    w.claim([]);
}

#[test]
fn a_ready_task_waits_again_when_its_input_is_lost() {
    let mut w = World::with_workers(Config { max_workers: 2, ..config() }, 2, process(1));
    w.open(1, call(2));
    w.graph(1, [inner(10, &[]), task(11, &[]), task(12, &[10])]);
    w.graph(1, [user_priority(1, task(13, &[]))]);
    w.made(0, 10, 1);
    w.claim([run(0, 10), run(1, 11), run(0, 13)]);
    w.copy_lost(0, 10);
    w.claim([forget(0, 10)]);
    w.made(1, 11, 1);
    w.claim([done(1, 11, 1), rerun(1, 10, 1)]);
    w.made_again(1, 10, 1);
    w.claim([run(1, 12)]);
}

#[test]
fn a_prefetched_task_is_taken_back_when_its_input_is_lost() {
    let mut w = World::with_workers(Config { max_workers: 2, ..config() }, 2, process(2));
    w.open(1, call(2));
    w.graph(1, [inner(10, &[]), task(11, &[]), task(12, &[]), task(13, &[]), task(14, &[10])]);
    w.made(0, 10, 1);
    w.claim([run(0, 10), run(1, 11), run(0, 12), run(1, 13), run(0, 14)]);
    w.copy_lost(0, 10);
    w.claim([forget(0, 10), retract(0, 14)]);
    w.returned(0, 14, 0);
    w.claim([rerun(0, 10, 1)]);
}

#[test]
fn a_worker_that_cannot_get_an_input_gives_the_task_back() {
    let mut w = two_workers();
    w.open(1, call(2));
    w.graph(1, [inner(10, &[]), inner(11, &[]), task(12, &[10, 11])]);
    w.made(0, 10, 1);
    w.made(1, 11, 9);
    w.claim([run(0, 10), run(1, 11), run(1, 12)]);
    w.copy_lost(0, 10);
    w.claim([forget(0, 10), rerun(0, 10, 1)]);
    w.returned(1, 12, 0);
    w.claim([]);
    w.made_again(0, 10, 1);
    w.claim([rerun(1, 12, 1)]);
}

#[test]
fn a_result_that_cannot_be_made_again_is_told() {
    let mut w = two_only();
    w.open(1, call(2));
    w.graph(1, [task(10, &[])]);
    w.made(0, 10, 1);
    w.lost(0);
    w.claim([run(0, 10), done(1, 10, 0), lost(1, 10), rerun(1, 10, 1)]);
    w.raised(1, 10, 1);
    let resolution = rustdask_core::Resolution::Finished {
        worker: rustdask_core::WorkerId(1),
        outcome: rustdask_core::Outcome::Err,
    };
    w.claim([rustdask_core::Action::Restored {
        call: rustdask_core::CallId(1),
        task: rustdask_core::TaskId(10),
        resolution,
    }]);
}
