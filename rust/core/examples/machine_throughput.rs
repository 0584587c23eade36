//! Prints what the scheduler machine costs. For tasks that are independent: all submitted at once, then finished one
//! by one. For graphs: how many tasks it completes a second, all that it says carried out at once, and how many bytes a
//! waiting task takes. `cargo run --release -p rustdask-core --example machine_throughput [most tasks] [graphs]`, where the
//! graphs are some of `wide,tree,chains,gpus`; named, they are all that is run.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustdask_core::scheduler::Config;
use rustdask_core::{
    Action, Actions, Amount, CallId, CallSpec, Event, Outcome, Priority, Resources, Scheduler, TaskId, TaskSpec, Time,
    WorkerSpec,
};

/// Counts the bytes that are in use.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);

// Sound, since all is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(layout.size(), Ordering::Relaxed);
        System.alloc(layout)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        System.dealloc(block, layout);
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        IN_USE.fetch_add(new_size, Ordering::Relaxed);
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        System.realloc(block, layout, new_size)
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const CALL: CallId = CallId(1);

fn main() {
    let most: u64 = std::env::args().nth(1).and_then(|most| most.parse().ok()).unwrap_or(1_000_000);
    let named = std::env::args().nth(2);
    if named.is_none() {
        all_independent();
    }
    println!(
        "\n{:>7} {:>8} {:>10} {:>15} {:>11} {:>13} {:>14}",
        "graph", "workers", "tasks", "completions/s", "ns each", "ns to submit", "bytes/waiting"
    );
    for (name, shape) in [("wide", wide as Shape), ("tree", tree), ("chains", chains), ("gpus", gpus)] {
        if named.as_ref().is_some_and(|named| named.split(',').all(|other| other != name)) {
            continue;
        }
        for workers in [2, 1000] {
            for tasks in (3..8).map(|power| 10u64.pow(power)).filter(|&tasks| tasks <= most) {
                graph(name, shape(tasks), workers);
            }
        }
    }
}

fn all_independent() {
    println!("{:>10} {:>10} {:>14} {:>12}", "workers", "tasks", "tasks/s", "ns per task");
    for workers in [2, 1000] {
        for tasks in [10_000, 100_000, 1_000_000] {
            let elapsed = independent(workers, tasks).as_secs_f64();
            let tasks_f = tasks as f64;
            println!("{workers:>10} {tasks:>10} {:>14.0} {:>12.0}", tasks_f / elapsed, elapsed / tasks_f * 1e9);
        }
    }
}

fn open(workers: u32, resources: &Resources) -> (Scheduler, Actions) {
    let mut machine =
        Scheduler::new(Config { core_budget: workers, start_resources: resources.clone(), ..Config::default() });
    let mut actions = Actions::default();
    let spec = CallSpec { cap: workers, crash_retries: 3, divisible: true, ..CallSpec::default() };
    machine.handle(Time::ZERO, Event::CallOpened { call: CALL, spec }, &mut actions);
    (machine, actions)
}

fn independent(workers: u32, tasks: u64) -> Duration {
    let (mut machine, mut actions) = open(workers, &Resources::NONE);
    let began = Instant::now();
    for task in 0..tasks {
        let event = Event::TaskSubmitted { call: CALL, task: TaskId(task), items: 1, urgent: false };
        machine.handle(Time::ZERO, event, &mut actions);
    }
    let resolved = work_off(&mut machine, &mut actions, &Resources::NONE).resolved;
    machine.handle(Time::ZERO, Event::CallClosed { call: CALL }, &mut actions);
    assert_eq!(resolved, tasks);
    assert!(machine.is_empty());
    began.elapsed()
}

type Shape = fn(u64) -> Vec<TaskSpec>;

fn task(id: u64, dependencies: &[u64], wanted: bool) -> TaskSpec {
    TaskSpec {
        task: TaskId(id),
        dependencies: dependencies.iter().map(|&on| TaskId(on)).collect(),
        priority: Priority { order: id as u32, ..Priority::default() },
        wanted,
        ..TaskSpec::default()
    }
}

/// Independent tasks, each of which is wanted.
fn wide(count: u64) -> Vec<TaskSpec> {
    (0..count).map(|id| task(id, &[], true)).collect()
}

/// Independent tasks that need half a GPU each. Every worker has one.
fn gpus(count: u64) -> Vec<TaskSpec> {
    let half = Resources::new([("GPU", Amount::from_f64(0.5).expect("is small"))]);
    (0..count).map(|id| TaskSpec { resources: half.clone(), ..task(id, &[], true) }).collect()
}

/// Results are added up two by two, as soon as there are two.
fn tree(count: u64) -> Vec<TaskSpec> {
    let mut tasks = Vec::new();
    let mut sums: Vec<(u64, u32)> = Vec::new();
    for id in 0..count {
        let pair = sums.len() >= 2 && sums[sums.len() - 1].1 == sums[sums.len() - 2].1;
        let (dependencies, height) = match pair.then(|| (sums.pop(), sums.pop())) {
            Some((Some(right), Some(left))) => (vec![left.0, right.0], left.1 + 1),
            _ => (vec![], 0),
        };
        sums.push((id, height));
        tasks.push(task(id, &dependencies, false));
    }
    for (id, _) in sums {
        tasks[id as usize].wanted = true;
    }
    tasks
}

/// Chains of a hundred tasks, the last of which is wanted.
fn chains(count: u64) -> Vec<TaskSpec> {
    let links = |id: u64| if id % 100 == 0 { vec![] } else { vec![id - 1] };
    (0..count).map(|id| task(id, &links(id), id % 100 == 99 || id + 1 == count)).collect()
}

fn graph(name: &str, tasks: Vec<TaskSpec>, workers: u32) {
    let count = tasks.len();
    let wanted: Vec<TaskId> = tasks.iter().filter(|task| task.wanted).map(|task| task.task).collect();
    let asks = tasks.iter().any(|task| !task.resources.is_empty());
    let resources = Resources::new(asks.then_some(("GPU", Amount::whole(1))));
    let (mut machine, mut actions) = open(workers, &resources);
    let parcel = size_of_val(&tasks[..]) + tasks.iter().map(heap_bytes).sum::<usize>();
    let before = IN_USE.load(Ordering::Relaxed) - parcel;
    let began = Instant::now();
    machine.handle(Time::ZERO, Event::GraphSubmitted { call: CALL, tasks }, &mut actions);
    let submitted = began.elapsed();
    let bytes = IN_USE.load(Ordering::Relaxed).saturating_sub(before);
    let began = Instant::now();
    let done = work_off(&mut machine, &mut actions, &resources);
    let worked = began.elapsed().as_secs_f64();
    assert_eq!((done.ran, done.resolved), (count as u64, wanted.len() as u64));
    machine.handle(Time::ZERO, Event::TasksReleased { call: CALL, tasks: wanted }, &mut actions);
    assert_eq!(machine.stats().known, 0);
    let count_f = count as f64;
    println!(
        "{name:>7} {workers:>8} {count:>10} {:>15.0} {:>11.0} {:>13.0} {:>14.0}",
        count_f / worked,
        worked / count_f * 1e9,
        submitted.as_secs_f64() / count_f * 1e9,
        bytes as f64 / count_f
    );
}

fn heap_bytes(task: &TaskSpec) -> usize {
    let named = task.resources.iter().map(|(name, _)| name.len() + size_of::<(Box<str>, Amount)>());
    size_of_val(&task.dependencies[..]) + named.sum::<usize>()
}

#[derive(Default)]
struct Done {
    ran: u64,
    resolved: u64,
}

/// Carries out actions until there are none: workers start at once, and tasks take no time.
fn work_off(machine: &mut Scheduler, actions: &mut Actions, resources: &Resources) -> Done {
    let mut done = Done::default();
    let mut batch = Vec::new();
    while !actions.is_empty() {
        batch.extend(actions.drain().map(|(_, action)| action));
        for action in batch.drain(..) {
            match action {
                Action::StartWorker { worker } => {
                    let spec =
                        WorkerSpec { depth: 2, only: None, killable: true, resources: resources.clone(), host: None };
                    machine.handle(Time::ZERO, Event::WorkerJoined { worker, spec }, actions);
                }
                Action::Run { worker, task, attempt } => {
                    done.ran += 1;
                    let event = Event::TaskFinished { worker, task, attempt, outcome: Outcome::Ok, size_bytes: 1000 };
                    machine.handle(Time::ZERO, event, actions);
                }
                Action::Retract { worker, task, attempt } => {
                    // Too late, as a rule: where all is done at once, the task has been run already.
                    let event = Event::TaskReturned { worker, task, attempt, kept: 1 };
                    machine.handle(Time::ZERO, event, actions);
                }
                Action::Resolve { .. } => done.resolved += 1,
                _ => {}
            }
        }
    }
    done
}
