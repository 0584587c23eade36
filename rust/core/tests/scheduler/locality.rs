//! Tasks go where their input is, unless that takes longer than moving it.

use std::collections::BTreeSet;

use crate::common::graph::*;
use crate::common::*;
use crate::two_workers;
use rustdask_core::{Action, Actions, CallId, Event, Priority, Scheduler, TaskSpec, Time};

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

/// Plays workers that take a millisecond, more or less, for each task; how many of the tasks with an input found it
/// on their worker, and when all were done.
fn play(tasks: Vec<TaskSpec>, workers: u32) -> (usize, Time) {
    let mut machine = Scheduler::new(config());
    let mut actions = Actions::default();
    let (mut near, mut now) = (0, ms(0));
    let mut free_at = vec![ms(0); workers as usize];
    let mut ends = BTreeSet::new();
    machine.handle(now, Event::CallOpened { call: CallId(1), spec: call(workers) }, &mut actions);
    machine.handle(now, Event::GraphSubmitted { call: CallId(1), tasks }, &mut actions);
    loop {
        let batch: Vec<Action> = actions.drain().map(|(_, action)| action).collect();
        for action in batch {
            match action {
                Action::StartWorker { worker } => {
                    machine.handle(now, Event::WorkerJoined { worker, spec: process(2) }, &mut actions);
                }
                Action::Run { worker, task, attempt } => {
                    let mut inputs = machine.dependencies(task);
                    near += usize::from(inputs.next().is_some_and(|on| machine.holders(on).any(|has| has == worker)));
                    let free = &mut free_at[worker.0 as usize];
                    *free = now.max(*free) + ms(1) + std::time::Duration::from_micros(task.0 * 7 % 200);
                    ends.insert((*free, worker, task, attempt));
                }
                _ => {}
            }
        }
        if actions.is_empty() {
            let Some((time, worker, task, attempt)) = ends.pop_first() else { break };
            now = time;
            let event = Event::TaskFinished { worker, task, attempt, outcome: OK, size_bytes: 1_000_000 };
            machine.handle(now, event, &mut actions);
        }
    }
    (near, now)
}

#[test]
fn chains_stay_where_they_are_even_if_all_are_begun_before_any_goes_on() {
    let (chains, links, workers) = (400, 20, 16);
    let id = |chain: u64, link: u64| link * chains + chain;
    let tasks = (0..links).flat_map(|link| (0..chains).map(move |chain| (chain, link)));
    let tasks = tasks.map(|(chain, link)| {
        let on = if link == 0 { vec![] } else { vec![id(chain, link - 1)] };
        let priority = Priority { order: id(chain, link) as u32, ..Priority::default() };
        TaskSpec { priority, wanted: link + 1 == links, ..inner(id(chain, link), &on) }
    });
    let (near, time) = play(tasks.collect(), workers);
    let moves = (chains * (links - 1)) as usize - near;
    assert!(moves < 100, "{moves} tasks left their worker");
    let least = ms(chains * links * 11 / 10 / u64::from(workers));
    assert!(time < least * 103 / 100, "{time:?}, though {least:?} would do");
}

#[test]
fn what_needs_one_result_is_spread_over_all_workers() {
    let count = 1600;
    let tasks = std::iter::once(inner(0, &[])).chain((1..=count).map(|id| task(id, &[0])));
    let (_, time) = play(tasks.collect(), 16);
    let least = ms(1 + count * 11 / 10 / 16);
    assert!(time < least * 105 / 100, "{time:?}, though {least:?} would do");
}

#[test]
fn of_workers_that_have_the_same_an_idle_one_is_taken() {
    let mut w = World::with_workers(config(), 2, process(1));
    w.open(1, call(2));
    w.graph(1, [task(10, &[])]);
    w.made(0, 10, 1);
    w.claim([run(0, 10), done(1, 10, 0)]);
    w.copied(1, 10);
    w.graph(1, [task(11, &[])]);
    w.graph(1, [task(12, &[10])]);
    w.claim([run(0, 11), run(1, 12)]);
}
