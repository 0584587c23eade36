//! Tasks that take each other's results: when they run, and in which order.

use crate::common::graph::*;
use crate::common::*;
use crate::two_workers;
use rustdask_core::{Priority, Resolution, TaskId, TaskSpec};

#[test]
fn a_task_runs_when_all_that_it_depends_on_is_done() {
    let mut w = two_workers();
    w.open(1, call(2));
    w.graph(1, [task(10, &[]), task(11, &[]), task(12, &[10, 11])]);
    w.claim([run(0, 10), run(1, 11)]);
    w.made(0, 10, 1);
    w.claim([done(1, 10, 0)]);
    w.made(1, 11, 5);
    w.claim([done(1, 11, 1), run(1, 12)]);
    assert_eq!(w.machine.dependencies(TaskId(12)).collect::<Vec<_>>(), [TaskId(10), TaskId(11)]);
    assert_eq!((w.holders(10), w.holders(11)), ([0].into(), [1].into()));
    assert_eq!(w.machine.size_bytes(TaskId(11)), Some(5));
    w.made(1, 12, 1);
    w.claim([done(1, 12, 1)]);
}

#[test]
fn only_what_is_wanted_is_told() {
    let mut w = two_workers();
    w.open(1, call(2));
    w.graph(1, [inner(10, &[]), task(11, &[10])]);
    w.claim([run(0, 10)]);
    w.made(0, 10, 1);
    w.claim([run(0, 11)]);
    w.made(0, 11, 1);
    w.claim([done(1, 11, 0), forget(0, 10)]);
}

#[test]
fn tasks_may_come_in_any_order_and_depend_on_earlier_submissions() {
    let mut w = two_workers();
    w.open(1, call(2));
    w.graph(1, [task(12, &[11, 10]), task(11, &[10]), task(10, &[])]);
    w.claim([run(0, 10)]);
    w.made(0, 10, 1);
    w.claim([done(1, 10, 0), run(0, 11)]);
    w.graph(1, [task(13, &[10])]);
    w.made(0, 11, 1);
    w.claim([done(1, 11, 0), run(0, 12)]);
    w.made(0, 12, 1);
    w.claim([done(1, 12, 0), run(0, 13)]);
}

#[test]
fn the_user_decides_then_the_depth_then_the_submission_then_the_order_then_the_id() {
    let mut w = World::with_workers(config(), 1, process(1));
    w.open(1, call(1));
    let at = |user, depth, generation, order, id| {
        let priority = Priority { user, depth, generation, order };
        TaskSpec { priority, ..task(id, &[]) }
    };
    w.graph(1, [at(0, 0, 0, 0, 9)]);
    w.graph(1, [at(0, 0, 2, 0, 15), at(0, 0, 1, 1, 14), at(0, 0, 1, 0, 13), at(0, 0, 1, 0, 12)]);
    w.graph(1, [at(1, 0, 9, 9, 10), at(0, 1, 9, 9, 11), at(-1, 9, 0, 0, 16)]);
    w.claim([run(0, 9)]);
    for (done_now, next) in [(9, 10), (10, 11), (11, 12), (12, 13), (13, 14), (14, 15), (15, 16)] {
        w.made(0, done_now, 1);
        w.claim([done(1, done_now, 0), run(0, next)]);
    }
}

#[test]
fn a_paused_call_hands_out_no_ready_tasks() {
    let mut w = two_workers();
    w.open(1, call(2));
    w.pause(1, true);
    w.graph(1, [task(10, &[])]);
    w.claim([]);
    w.pause(1, false);
    w.claim([run(0, 10)]);
}

#[test]
fn ready_tasks_are_prefetched_and_taken_back_for_idle_workers() {
    let mut w = two_workers();
    w.open(1, call(2));
    w.graph(1, [task(10, &[]), task(11, &[]), task(12, &[]), task(13, &[])]);
    w.claim([run(0, 10), run(1, 11), run(0, 12), run(1, 13)]);
    w.made(0, 10, 1);
    w.made(0, 12, 1);
    w.claim([done(1, 10, 0), done(1, 12, 0), retract(1, 13)]);
    w.returned(1, 13, 0);
    w.claim([rerun(0, 13, 1)]);
}

#[test]
fn what_depends_on_a_task_that_is_not_there_or_on_itself_is_broken() {
    let mut w = two_workers();
    w.open(1, call(2));
    w.graph(1, [task(10, &[99]), task(11, &[10])]);
    w.claim([resolve(1, 10, Resolution::Broken), failed_after(1, 11, 10)]);
    w.graph(1, [task(20, &[22]), task(21, &[20]), task(22, &[21]), task(23, &[23]), task(24, &[])]);
    let broken = |id| resolve(1, id, Resolution::Broken);
    w.claim([broken(23), broken(20), broken(21), broken(22), run(0, 24)]);
    w.release(1, [10, 11, 20, 21, 22, 23]);
    assert_eq!(w.machine.stats().known, 1);
}

#[test]
fn a_graph_of_a_call_that_is_not_open_is_dropped() {
    let mut w = two_workers();
    w.graph(1, [task(10, &[])]);
    w.claim([]);
    assert!(w.machine.is_empty());
}
