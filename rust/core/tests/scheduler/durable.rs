//! Results that outlive their workers, since the shell keeps them.

use crate::common::graph::*;
use crate::common::*;
use rustdask_core::scheduler::Config;
use rustdask_core::{Attempt, KillReason, TaskId, WorkerId};

/// Workers that hold one task each, and none to take their place.
fn durable(workers: u32) -> World {
    let config = Config { durable: true, max_workers: workers, ..config() };
    World::with_workers(config, workers, process(1))
}

#[test]
fn a_result_outlives_its_worker() {
    let mut w = durable(2);
    w.open(1, call(2));
    w.graph(1, [task(10, &[]), inner(11, &[]), task(12, &[11]), task(13, &[10, 11])]);
    w.made(0, 10, 7);
    w.made(1, 11, 5);
    w.claim([run(0, 10), run(1, 11), done(1, 10, 0), run(0, 13), run(1, 12)]);
    w.lost(1);
    w.claim([start(2)]);
    assert!(w.holders(11).is_empty());
    assert_eq!(w.machine.size_bytes(TaskId(11)), Some(5));
    w.joined(2, process(1));
    w.claim([rerun(2, 12, 1)]);
}

#[test]
fn a_copy_that_is_lost_is_only_a_copy() {
    let mut w = durable(2);
    w.open(1, call(2));
    w.graph(1, [task(10, &[])]);
    w.made(0, 10, 1);
    w.claim([run(0, 10), done(1, 10, 0)]);
    w.copy_lost(0, 10);
    w.claim([forget(0, 10)]);
    w.graph(1, [task(11, &[10])]);
    w.claim([run(0, 11)]);
    w.copied(1, 10);
    assert_eq!(w.holders(10), [1].into());
}

#[test]
fn a_result_that_is_on_no_worker_is_told_again() {
    let mut w = durable(2);
    w.open(1, call(2));
    w.graph(1, [task(10, &[]), task(11, &[]), task(12, &[10, 11])]);
    w.made(0, 10, 1);
    w.claim([run(0, 10), run(1, 11), done(1, 10, 0)]);
    w.lost(0);
    w.release(1, [10]);
    w.claim([]);
    w.graph(1, [task(10, &[])]);
    w.claim([done(1, 10, 0)]);
}

#[test]
fn of_a_chain_only_its_end_is_known() {
    let mut w = durable(1);
    w.open(1, call(1));
    w.graph(1, [task(0, &[])]);
    w.claim([run(0, 0)]);
    for link in 1..100 {
        w.graph(1, [task(link, &[link - 1])]);
        w.release(1, [link - 1]);
        w.made(0, link - 1, 1);
        w.claim([run(0, link)]);
        assert!(w.machine.stats().known <= 2, "{:?}", w.machine.stats());
        w.gone.clear();
        w.made(0, link, 1);
        w.claim([done(1, link, 0), forget(0, link - 1)]);
        assert_eq!((w.gone.as_slice(), w.machine.stats().known), ([link - 1].as_slice(), 1));
    }
}

#[test]
fn a_chain_that_is_submitted_at_once_is_forgotten_link_by_link() {
    let mut w = durable(1);
    w.open(1, call(1));
    w.graph(1, [inner(10, &[]), inner(11, &[10]), inner(12, &[11]), task(13, &[12])]);
    w.made(0, 10, 1);
    w.claim([run(0, 10), run(0, 11)]);
    assert!(w.gone.is_empty());
    w.made(0, 11, 1);
    w.claim([forget(0, 10), run(0, 12)]);
    assert_eq!(w.gone, [10]);
    w.made(0, 12, 1);
    w.claim([forget(0, 11), run(0, 13)]);
    assert_eq!(w.gone, [10, 11]);
}

#[test]
fn of_what_has_failed_only_the_cause_is_known() {
    let mut w = durable(1);
    w.open(1, call(1));
    w.graph(1, [inner(10, &[]), inner(11, &[10]), task(12, &[11])]);
    w.raised(0, 10, 0);
    w.claim([run(0, 10), raises(1, 10, 0), failed_after(1, 12, 10)]);
    assert_eq!((w.gone.len(), w.machine.stats().known), (2, 1));
    w.graph(1, [task(13, &[12])]);
    w.claim([failed_after(1, 13, 10)]);
}

#[test]
fn it_is_known_beforehand_which_reports_are_taken() {
    let mut w = durable(2);
    w.open(1, call(2));
    w.graph(1, [task(10, &[])]);
    w.claim([run(0, 10)]);
    let awaits = |w: &World, worker, attempt| w.machine.awaits(WorkerId(worker), TaskId(10), Attempt(attempt));
    assert!(awaits(&w, 0, 0) && !awaits(&w, 0, 1) && !awaits(&w, 1, 0));
    assert!(!w.machine.has_result(TaskId(10)));
    w.made(0, 10, 1);
    w.claim([done(1, 10, 0)]);
    assert!(!awaits(&w, 0, 0) && w.machine.has_result(TaskId(10)));
    w.release(1, [10]);
    w.claim([forget(0, 10)]);
    assert!(!w.machine.has_result(TaskId(10)));
}

#[test]
fn a_worker_with_nothing_but_copies_may_be_let_go_or_ended() {
    let mut w = durable(1);
    w.open(1, call(1));
    w.open(2, call(1));
    w.graph(1, [task(10, &[])]);
    w.made(0, 10, 1);
    w.claim([run(0, 10), done(1, 10, 0)]);
    assert_eq!(w.machine.idle_workers().collect::<Vec<_>>(), [WorkerId(0)]);
    w.graph(2, [task(20, &[])]);
    w.close(2);
    w.claim([run(0, 20), kill(0, KillReason::Cancelled)]);
}
