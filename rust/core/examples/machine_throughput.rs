//! Prints what the scheduler machine costs per task: two workers, all tasks submitted at once, then
//! finished one by one. `cargo run --release -p rustdask-core --example machine_throughput`

use std::time::{Duration, Instant};

use rustdask_core::scheduler::Config;
use rustdask_core::{Action, Actions, CallId, CallSpec, Event, Outcome, Scheduler, TaskId, Time, WorkerSpec};

fn main() {
    println!("{:>10} {:>10} {:>14} {:>12}", "workers", "tasks", "tasks/s", "ns per task");
    for workers in [2, 1000] {
        for tasks in [10_000, 100_000, 1_000_000] {
            let elapsed = run(workers, tasks).as_secs_f64();
            let tasks_f = tasks as f64;
            println!("{workers:>10} {tasks:>10} {:>14.0} {:>12.0}", tasks_f / elapsed, elapsed / tasks_f * 1e9);
        }
    }
}

fn run(workers: u32, tasks: u64) -> Duration {
    let mut machine = Scheduler::new(Config { core_budget: workers, ..Config::default() });
    let mut actions = Actions::default();
    let call = CallId(1);
    let spec = CallSpec { cap: workers, crash_retries: 3, item_timeout: None, helper_expected: false, nested: false };
    let began = Instant::now();
    machine.handle(Time::ZERO, Event::CallOpened { call, spec }, &mut actions);
    for task in 0..tasks {
        let event = Event::TaskSubmitted { call, task: TaskId(task), items: 1, urgent: false };
        machine.handle(Time::ZERO, event, &mut actions);
    }
    let resolved = work_off(&mut machine, &mut actions);
    machine.handle(Time::ZERO, Event::CallClosed { call }, &mut actions);
    assert_eq!(resolved, tasks);
    assert!(machine.is_empty());
    began.elapsed()
}

/// Carries out actions until there are none: workers start at once, and tasks take no time.
fn work_off(machine: &mut Scheduler, actions: &mut Actions) -> u64 {
    let mut resolved = 0;
    let mut batch = Vec::new();
    while !actions.is_empty() {
        batch.extend(actions.drain().map(|(_, action)| action));
        for action in batch.drain(..) {
            match action {
                Action::StartWorker { worker } => {
                    let spec = WorkerSpec { depth: 2, only: None, killable: true, ..WorkerSpec::default() };
                    machine.handle(Time::ZERO, Event::WorkerJoined { worker, spec }, actions);
                }
                Action::Run { worker, task, attempt } => {
                    let event = Event::TaskFinished { worker, task, attempt, outcome: Outcome::Ok, size_bytes: 0 };
                    machine.handle(Time::ZERO, event, actions);
                }
                Action::Resolve { .. } => resolved += 1,
                _ => {}
            }
        }
    }
    resolved
}
