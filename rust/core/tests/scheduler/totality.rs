//! Events that are late, repeated, or about things that are not there.

use crate::common::*;
use crate::{timed, two_workers};
use rustdask_core::scheduler::Scheduler;
use rustdask_core::EventSeq;

#[test]
fn the_same_events_give_the_same_actions() {
    let play = || {
        let mut w = two_workers();
        w.open(1, call(2));
        for task in 10..14 {
            w.submit(1, task);
        }
        w.lost(1);
        w.claim([run(0, 10), run(1, 11), run(0, 12), run(1, 13), start(2)]);
        format!("{:?}", w.machine.stats())
    };
    assert_eq!(play(), play());
}

#[test]
fn events_about_things_that_are_not_there_change_nothing() {
    let mut w = World::new();
    w.submit(1, 10);
    w.close(1);
    w.pause(1, true);
    w.excuse(1);
    w.lost(3);
    w.joined(3, process(1));
    w.returned(3, 10, 0);
    w.wait(ms(1));
    w.claim([]);
    assert!(w.machine.is_empty());
    assert_eq!(w.machine.stats().workers, 0);
}

#[test]
fn what_is_said_twice_counts_once() {
    let mut w = World::new();
    w.open(1, call(1));
    w.open(1, call(5));
    w.submit(1, 10);
    w.submit(1, 10);
    w.claim([start(0)]);
    w.joined(0, process(1));
    w.joined(0, process(9));
    w.claim([run(0, 10)]);
    assert_eq!(w.machine.stats().tasks, 1);
}

#[test]
fn time_never_goes_back() {
    let mut w = World::with_workers(config(), 1, process(1));
    w.now = ms(50);
    w.open(1, timed(1, 10));
    w.now = ms(20);
    w.submit(1, 10);
    w.claim([run(0, 10)]);
    assert_eq!(w.machine.next_deadline(), Some(ms(60)));
}

#[test]
fn the_first_event_is_number_zero() {
    assert_eq!(Scheduler::new(config()).next_seq(), EventSeq(0));
}
