//! Tasks that wait for others give their places up.

use crate::common::graph::*;
use crate::common::*;
use rustdask_core::scheduler::Config;
use rustdask_core::{Attempt, CallSpec, Event, KillReason, TaskId, TaskSpec, WorkerId, WorkerSpec};

fn world(workers: u32) -> World {
    let config = Config { durable: true, max_workers: workers, start_resources: gpus(1.0), ..config() };
    let mut world = World::with_workers(config, workers, WorkerSpec { resources: gpus(1.0), ..process(1) });
    world.open(1, call(u32::MAX));
    world
}

fn park(w: &mut World, worker: u32, task: u64, attempt: u32) {
    w.handle(Event::TaskParked { worker: WorkerId(worker), task: TaskId(task), attempt: Attempt(attempt) });
}

fn resume(w: &mut World, worker: u32, task: u64, attempt: u32) {
    w.handle(Event::TaskResumed { worker: WorkerId(worker), task: TaskId(task), attempt: Attempt(attempt) });
}

#[test]
fn nesting_of_any_depth_ends_on_one_worker() {
    let mut w = world(1);
    for depth in 0..100 {
        w.graph(1, [task(depth, &[])]);
        w.claim([run(0, depth)]);
        park(&mut w, 0, depth, 0);
        w.claim([]);
    }
    for depth in (0..100).rev() {
        w.made(0, depth, 1);
        w.claim([done(1, depth, 0)]);
    }
    assert_eq!(w.machine.holds(WorkerId(0)), Some(0));
}

#[test]
fn what_waits_behind_a_task_that_goes_on_is_taken_back_for_an_idle_worker() {
    let mut w = world(2);
    w.graph(1, [task(10, &[]), task(11, &[])]);
    w.claim([run(0, 10), run(1, 11)]);
    park(&mut w, 0, 10, 0);
    w.graph(1, [task(12, &[])]);
    w.claim([run(0, 12)]);
    resume(&mut w, 0, 10, 0);
    w.claim([]);
    w.made(1, 11, 1);
    w.claim([done(1, 11, 1), retract(0, 12)]);
    w.returned(0, 12, 0);
    w.claim([rerun(1, 12, 1)]);
    park(&mut w, 0, 10, 0);
    resume(&mut w, 0, 10, 0);
    w.made(0, 10, 1);
    w.claim([done(1, 10, 0)]);
}

#[test]
fn a_parked_task_keeps_what_it_was_granted() {
    let mut w = world(1);
    w.graph(1, [TaskSpec { resources: gpus(1.0), ..task(10, &[]) }]);
    w.claim([run(0, 10)]);
    park(&mut w, 0, 10, 0);
    assert_eq!(w.machine.granted(TaskId(10)).len(), 1);
    w.graph(1, [TaskSpec { resources: gpus(1.0), ..task(11, &[]) }, task(12, &[])]);
    w.claim([run(0, 12)]);
    w.made(0, 12, 1);
    w.made(0, 10, 1);
    w.claim([done(1, 12, 0), done(1, 10, 0), run(0, 11)]);
}

#[test]
fn parked_tasks_of_a_lost_worker_are_run_again_and_share_the_blame() {
    let mut w = world(1);
    w.graph(1, [task(10, &[])]);
    w.claim([run(0, 10)]);
    park(&mut w, 0, 10, 0);
    w.lost(0);
    w.claim([start(1)]);
    w.joined(1, process(1));
    w.claim([rerun(1, 10, 1)]);
    park(&mut w, 1, 10, 1);
    w.made_again(0, 10, 0);
    w.claim([]);
    w.made_again(1, 10, 1);
    w.claim([done(1, 10, 1)]);
}

#[test]
fn a_parked_task_can_be_cancelled() {
    let mut w = world(1);
    w.graph(1, [task(10, &[]), task(11, &[10])]);
    w.claim([run(0, 10)]);
    park(&mut w, 0, 10, 0);
    w.cancel(1, [10]);
    w.claim([cancelled(1, 10), cancelled(1, 11)]);
    w.made(0, 10, 1);
    w.claim([forget(0, 10)]);
    w.graph(1, [task(12, &[])]);
    w.claim([run(0, 12)]);
    park(&mut w, 0, 12, 0);
    w.cancel_by_force(1, [12]);
    w.claim([kill(0, KillReason::Cancelled), cancelled(1, 12)]);
}

#[test]
fn a_closed_call_ends_the_workers_whose_tasks_wait() {
    let mut w = world(2);
    w.open(2, call(u32::MAX));
    w.graph(1, [task(10, &[])]);
    w.graph(2, [task(20, &[])]);
    w.claim([run(0, 10), run(1, 20)]);
    park(&mut w, 0, 10, 0);
    w.close(1);
    w.claim([kill(0, KillReason::Cancelled)]);
    w.lost(0);
    w.made(1, 20, 1);
    w.claim([done(2, 20, 1)]);
}

/// A worker that runs task 20 of call 2, after task 10 of call 1 was parked there.
fn beside_a_parked_task() -> World {
    let mut w = world(1);
    w.open(2, CallSpec { crash_retries: 0, ..call(u32::MAX) });
    w.graph(1, [task(10, &[])]);
    w.claim([run(0, 10)]);
    park(&mut w, 0, 10, 0);
    w.graph(2, [task(20, &[])]);
    w.claim([run(0, 20)]);
    w
}

#[test]
fn a_worker_where_tasks_of_a_closed_call_wait_is_ended_when_others_need_it_no_more() {
    let mut w = beside_a_parked_task();
    w.close(1);
    w.claim([]);
    w.graph(2, [task(21, &[])]);
    assert_eq!(w.machine.idle_workers().count(), 0);
    w.made(0, 20, 1);
    w.claim([done(2, 20, 0), kill(0, KillReason::Cancelled)]);
    w.lost(0);
    w.claim([start(1)]);
    w.joined(1, process(1));
    w.claim([run(1, 21)]);
}

#[test]
fn a_worker_where_a_released_task_waits_is_ended_with_its_call() {
    let mut w = world(1);
    w.graph(1, [task(10, &[])]);
    w.claim([run(0, 10)]);
    park(&mut w, 0, 10, 0);
    w.release(1, [10]);
    w.claim([]);
    w.close(1);
    w.claim([kill(0, KillReason::Cancelled)]);
}

#[test]
fn a_worker_where_tasks_of_a_closed_call_wait_runs_what_others_wait_for_there() {
    let mut w = beside_a_parked_task();
    w.close(1);
    park(&mut w, 0, 20, 0);
    w.graph(2, [task(21, &[])]);
    w.claim([run(0, 21)]);
    w.made(0, 21, 1);
    w.claim([done(2, 21, 0)]);
    w.made(0, 20, 1);
    w.claim([done(2, 20, 0), kill(0, KillReason::Cancelled)]);
}

#[test]
fn only_what_runs_can_be_parked() {
    let mut w = world(1);
    w.graph(1, [task(10, &[])]);
    w.claim([run(0, 10)]);
    park(&mut w, 0, 10, 7);
    park(&mut w, 3, 10, 0);
    assert_eq!(w.machine.stats().stale, 2);
    park(&mut w, 0, 10, 0);
    park(&mut w, 0, 10, 0);
    assert_eq!(w.machine.stats().stale, 2);
    resume(&mut w, 0, 10, 7);
    resume(&mut w, 0, 10, 0);
    resume(&mut w, 0, 10, 0);
    assert_eq!(w.machine.stats().stale, 4);
    w.made(0, 10, 1);
    w.claim([done(1, 10, 0)]);
}
