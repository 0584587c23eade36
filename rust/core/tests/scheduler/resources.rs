//! Tasks that ask for resources, or for certain workers.

use crate::common::graph::*;
use crate::common::*;
use rustdask_core::scheduler::Config;
use rustdask_core::{Amount, HostId, Resolution, Resources, TaskId, TaskSpec, WorkerId, WorkerSpec};

fn with(count: f64) -> WorkerSpec {
    WorkerSpec { resources: gpus(count), ..process(2) }
}

fn needs(count: f64, spec: TaskSpec) -> TaskSpec {
    TaskSpec { resources: gpus(count), ..spec }
}

fn pinned(workers: &[u32], spec: TaskSpec) -> TaskSpec {
    TaskSpec { workers: Some(workers.iter().map(|&worker| WorkerId(worker)).collect()), ..spec }
}

/// Workers come by themselves, under ids of their own.
fn cluster() -> World {
    World::with(Config { max_workers: 0, open: true, ..config() })
}

const A: u32 = HELPER;
const B: u32 = HELPER + 1;

#[test]
fn a_task_goes_where_its_resources_are_and_holds_up_no_other() {
    let mut w = cluster();
    w.joined(A, process(2));
    w.joined(B, with(1.0));
    w.open(1, call(2));
    w.graph(1, [needs(1.0, task(10, &[])), needs(1.0, task(11, &[])), task(12, &[]), task(13, &[])]);
    w.claim([run(B, 10), run(A, 12), run(A, 13)]);
    w.made(B, 10, 1);
    w.claim([done(1, 10, B), run(B, 11)]);
}

#[test]
fn workers_of_a_host_share_its_resources() {
    let mut w = cluster();
    let member = WorkerSpec { host: Some(HostId(1)), ..with(2.0) };
    for worker in 0..3 {
        w.joined(HELPER + worker, member.clone());
    }
    w.open(1, call(4));
    w.graph(1, [needs(1.0, task(10, &[])), needs(0.5, task(11, &[])), needs(0.5, task(12, &[]))]);
    w.claim([run(HELPER, 10), run(HELPER + 1, 11), run(HELPER + 2, 12)]);
    let unit = |task| w.machine.granted(TaskId(task))[0].units.to_vec();
    let half = Amount::from_f64(0.5).unwrap();
    assert_eq!((unit(10), unit(11), unit(12)), (vec![(0, Amount::whole(1))], vec![(1, half)], vec![(1, half)]));
    w.graph(1, [needs(1.0, task(13, &[]))]);
    w.made(HELPER + 1, 11, 1);
    w.claim([done(1, 11, HELPER + 1)]);
    w.made(HELPER, 10, 1);
    w.claim([done(1, 10, HELPER), run(HELPER, 13)]);
}

#[test]
fn a_worker_that_dies_gives_the_resources_of_its_host_back() {
    let mut w = cluster();
    let member = WorkerSpec { host: Some(HostId(1)), ..with(1.0) };
    w.joined(A, member.clone());
    w.joined(B, member);
    w.open(1, call(4));
    w.graph(1, [needs(1.0, task(10, &[])), needs(1.0, task(11, &[]))]);
    w.claim([run(A, 10)]);
    w.lost(A);
    w.claim([rerun(B, 10, 1)]);
}

#[test]
fn a_task_runs_only_on_the_workers_that_it_names() {
    let mut w = cluster();
    w.joined(A, process(2));
    w.open(1, call(2));
    w.graph(1, [pinned(&[B], task(10, &[])), task(11, &[])]);
    w.claim([run(A, 11)]);
    w.joined(B, process(2));
    w.claim([run(B, 10)]);
}

#[test]
fn in_a_cluster_tasks_wait_for_the_workers_that_they_need() {
    let mut w = cluster();
    w.open(1, call(2));
    w.graph(1, [needs(1.0, task(10, &[])), task(11, &[])]);
    w.claim([]);
    w.joined(A, with(1.0));
    w.claim([run(A, 10), run(A, 11)]);
}

#[test]
fn what_no_worker_can_ever_run_fails() {
    let mut w = World::with_workers(config(), 1, process(2));
    w.open(1, call(1));
    w.graph(1, [needs(1.0, task(10, &[])), task(11, &[10]), pinned(&[77], task(12, &[])), task(13, &[])]);
    let unrunnable = |id| resolve(1, id, Resolution::Unrunnable);
    w.claim([unrunnable(10), failed_after(1, 11, 10), unrunnable(12), run(0, 13)]);
}

#[test]
fn a_worker_is_started_for_a_task_that_it_could_run() {
    let start_resources = Resources::new([("GPU", Amount::whole(1))]);
    let mut w = World::with(Config { start_resources, ..config() });
    w.open(1, call(2));
    w.graph(1, [needs(1.0, task(10, &[])), needs(2.0, task(11, &[]))]);
    w.claim([resolve(1, 11, Resolution::Unrunnable), start(0)]);
    w.joined(0, with(1.0));
    w.claim([run(0, 10)]);
}

#[test]
fn a_task_for_a_worker_that_is_lost_fails_when_none_like_it_can_come() {
    let mut w = World::with_workers(config(), 2, process(1));
    w.open(1, call(2));
    w.graph(1, [pinned(&[0], task(10, &[])), pinned(&[0], task(11, &[]))]);
    w.claim([run(0, 10)]);
    w.lost(0);
    w.claim([resolve(1, 10, Resolution::Unrunnable), resolve(1, 11, Resolution::Unrunnable)]);
}

#[test]
fn where_none_can_be_started_that_could_run_it_a_task_fails() {
    let start_resources = Resources::new([("GPU", Amount::whole(1))]);
    let mut w = World::with(Config { start_resources, ..config() });
    w.open(1, call(1));
    w.graph(1, [needs(1.0, task(10, &[]))]);
    for worker in 0..3 {
        w.claim([start(worker)]);
        w.lost(worker);
    }
    w.claim([resolve(1, 10, Resolution::NoWorkers)]);
    w.graph(1, [needs(1.0, task(11, &[]))]);
    w.claim([start(3)]);
}

#[test]
fn a_worker_that_others_keep_supplied_is_left_to_become_idle_for_a_bound_task() {
    let mut w = cluster();
    w.joined(A, with(1.0));
    w.open(1, call(1));
    w.graph(1, [task(10, &[]), task(11, &[]), task(12, &[]), task(13, &[])]);
    w.claim([run(A, 10), run(A, 11)]);
    w.graph(1, [needs(1.0, task(20, &[])), pinned(&[A], task(21, &[]))]);
    w.made(A, 10, 1);
    w.made(A, 11, 1);
    w.claim([done(1, 10, A), done(1, 11, A), run(A, 20)]);
    w.made(A, 20, 1);
    w.claim([done(1, 20, A), run(A, 21), run(A, 12)]);
}

#[test]
fn a_bound_task_of_one_call_is_not_held_up_by_the_tasks_of_another() {
    let mut w = cluster();
    w.joined(A, process(2));
    w.open(1, call(1));
    w.open(2, call(1));
    for task in 10..14 {
        w.submit(1, task);
    }
    w.graph(2, [pinned(&[A], task(20, &[]))]);
    w.claim([run(A, 10), run(A, 11)]);
    w.finished(A, 10);
    w.finished(A, 11);
    w.claim([done(1, 10, A), done(1, 11, A), run(A, 20), run(A, 12)]);
}
