//! Workers that are to be there whether there is work for them or not.

use crate::common::*;
use rustdask_core::scheduler::Config;
use rustdask_core::{Event, WorkerId};

#[test]
fn as_many_workers_as_were_requested_are_there() {
    let mut w = World::with(Config { max_workers: 3, ..config() });
    w.handle(Event::WorkersRequested { count: 2 });
    w.claim([start(0), start(1)]);
    w.joined(0, process(1));
    w.joined(1, process(1));
    w.claim([]);
    w.lost(0);
    w.claim([start(2)]);
    w.lost(2);
    w.claim([start(3)]);
    w.handle(Event::WorkersRequested { count: 5 });
    w.claim([start(4)]);
    w.handle(Event::WorkersRequested { count: 0 });
    w.lost(1);
    w.claim([]);
}

/// Two workers that were requested, and are idle.
fn two_requested() -> World {
    let mut w = World::new();
    w.handle(Event::WorkersRequested { count: 2 });
    w.claim([start(0), start(1)]);
    w.joined(0, process(1));
    w.joined(1, process(1));
    w
}

#[test]
fn only_workers_beyond_those_that_were_requested_may_be_let_go() {
    let mut w = two_requested();
    w.open(1, call(3));
    for task in 10..13 {
        w.submit(1, task);
    }
    w.claim([run(0, 10), run(1, 11), start(2)]);
    w.joined(2, process(1));
    w.claim([run(2, 12)]);
    assert_eq!(w.machine.idle_workers().count(), 0);
    w.finished(0, 10);
    w.finished(1, 11);
    w.claim([done(1, 10, 0), done(1, 11, 1)]);
    assert_eq!(w.machine.idle_workers().collect::<Vec<_>>(), [WorkerId(0)]);
    w.lost(0);
    w.claim([]);
    assert_eq!(w.machine.idle_workers().count(), 0);
}

/// Requested workers have died so often, with nothing to do, that they are not replaced any more.
fn given_up() -> World {
    let mut w = World::new();
    w.open(1, call(2));
    w.handle(Event::WorkersRequested { count: 2 });
    w.claim([start(0), start(1)]);
    for worker in 0..2 {
        w.joined(worker, process(1));
        w.lost(worker);
        w.claim([start(worker + 2)]);
    }
    for worker in 2..4 {
        w.joined(worker, process(1));
        w.lost(worker);
        w.claim([]);
    }
    w
}

#[test]
fn requested_workers_that_die_with_nothing_to_do_are_not_replaced_without_end() {
    let mut w = given_up();
    w.handle(Event::WorkersRequested { count: 2 });
    w.claim([start(4), start(5)]);
}

#[test]
fn what_kills_every_worker_ends_the_task_that_one_was_started_for() {
    let mut w = given_up();
    w.submit(1, 10);
    for worker in 4..6 {
        w.joined(worker, process(1));
        w.lost(worker);
    }
    w.claim([start(4), run(4, 10), start(5), rerun(5, 10, 1), crashed(1, 10, 5, 2)]);
}

#[test]
fn requested_workers_are_replaced_again_once_a_task_is_finished() {
    let mut w = given_up();
    w.submit(1, 10);
    w.joined(4, process(1));
    w.claim([start(4), run(4, 10)]);
    w.finished(4, 10);
    w.claim([done(1, 10, 4), start(5)]);
}
