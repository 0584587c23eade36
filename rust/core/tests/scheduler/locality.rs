//! Tasks go where their input is, unless that takes longer than moving it.

use crate::common::graph::*;
use crate::common::*;
use crate::two_workers;

#[test]
fn a_task_goes_to_the_worker_that_has_most_of_its_input() {
    let mut w = two_workers();
    w.open(1, call(2));
    w.graph(1, [inner(10, &[]), inner(11, &[]), inner(12, &[10, 11]), task(13, &[12])]);
    w.made(0, 10, 100);
    w.made(1, 11, 101);
    w.claim([run(0, 10), run(1, 11), run(1, 12)]);
    w.made(1, 12, 1);
    w.claim([forget(1, 11), forget(0, 10), run(1, 13)]);
}

#[test]
fn chains_stay_on_their_workers() {
    let mut w = World::with_workers(config(), 2, process(1));
    w.open(1, call(2));
    w.graph(1, [inner(10, &[]), inner(20, &[]), task(11, &[10]), task(21, &[20])]);
    w.claim([run(0, 10), run(1, 20)]);
    w.made(1, 20, 1);
    w.made(0, 10, 1);
    w.claim([run(1, 21), run(0, 11)]);
}

/// Worker 0 runs task 13 and has the large input of task 12; tasks took 10 ms so far.
fn busy_home() -> World {
    let mut w = World::with_workers(config(), 2, process(1));
    w.open(1, call(2));
    w.graph(1, [inner(10, &[]), task(11, &[]), task(12, &[10])]);
    w.now += ms(10);
    w.graph(1, [user_priority(1, task(13, &[]))]);
    w
}

#[test]
fn a_task_waits_for_its_home_while_moving_its_input_would_take_longer() {
    let mut w = busy_home();
    w.made(0, 10, 100_000_000);
    w.made(1, 11, 1);
    w.claim([run(0, 10), run(1, 11), run(0, 13), done(1, 11, 1)]);
    w.made(0, 13, 1);
    w.claim([done(1, 13, 0), run(0, 12)]);
}

#[test]
fn a_task_moves_at_once_when_its_input_is_small() {
    let mut w = busy_home();
    w.made(0, 10, 1000);
    w.made(1, 11, 1);
    w.claim([run(0, 10), run(1, 11), run(0, 13), done(1, 11, 1), run(1, 12)]);
}

#[test]
fn a_task_moves_after_all_when_its_home_is_busy_for_longer_than_expected() {
    let mut w = busy_home();
    w.made(0, 10, 100_000_000);
    w.made(1, 11, 1);
    w.claim([run(0, 10), run(1, 11), run(0, 13), done(1, 11, 1)]);
    w.wait(ms(50));
    w.claim([]);
    let deadline = w.machine.next_deadline().expect("the move is planned");
    w.wait(deadline - w.now);
    w.claim([run(1, 12)]);
}
