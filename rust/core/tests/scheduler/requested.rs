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
