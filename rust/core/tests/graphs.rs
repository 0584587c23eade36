//! What holds for any graph, sound or not, on any workers: each wanted task ends once and as it should, nothing runs
//! before what it depends on, and in the end nothing is left.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;

use rustdask_core::scheduler::Config;
use rustdask_core::{
    Action, Actions, Amount, CallId, CallSpec, Event, Outcome, Priority, Resolution, Resources, Scheduler, TaskId,
    TaskSpec, Time, WorkerId, WorkerSpec,
};

const CALL: CallId = CallId(1);

/// Tasks 0.. in some order, in one or more submissions. Some depend on tasks that never come, or on themselves.
fn submissions(sound: bool) -> impl Strategy<Value = Vec<Vec<TaskSpec>>> {
    (1..40usize).prop_flat_map(move |count| {
        let of = move |id: usize| {
            let most = if sound { id as u64 } else { count as u64 + 1 };
            let dependencies = vec(0..most.max(1), if most == 0 { 0..1 } else { 0..4 });
            let rest = (0..3i32, 0..3u64, proptest::bool::weighted(0.4), proptest::option::weighted(0.2, 0..2u32));
            (dependencies, rest).prop_map(move |(dependencies, (user, twos, wanted, limit))| TaskSpec {
                task: TaskId(id as u64),
                dependencies: dependencies.into_iter().map(TaskId).collect(),
                priority: Priority { user, ..Priority::default() },
                resources: if twos == 2 { gpus(1.0) } else { Resources::NONE },
                workers: limit.map(|worker| [WorkerId(worker)].into()),
                wanted,
                retries: 0,
            })
        };
        let tasks = (0..count).map(of).collect::<Vec<_>>();
        (tasks, 1..count + 1, any::<bool>()).prop_map(|(mut tasks, size, reverse)| {
            if reverse {
                tasks.reverse();
                return vec![tasks];
            }
            // What a later submission names has to be wanted until then.
            let split = size < tasks.len();
            tasks.iter_mut().for_each(|task| task.wanted |= split);
            tasks.chunks(size).map(<[TaskSpec]>::to_vec).collect()
        })
    })
}

fn gpus(count: f64) -> Resources {
    Resources::new([("GPU", Amount::from_f64(count).expect("is small"))])
}

/// The machine, workers 0 and 1 that do what they are told, and tasks that all succeed but those that `fail`.
struct Player {
    machine: Scheduler,
    tasks: BTreeMap<TaskId, TaskSpec>,
    fail: BTreeSet<TaskId>,
    has_run: BTreeSet<TaskId>,
    running: BTreeMap<WorkerId, Vec<Event>>,
    resolved: BTreeMap<TaskId, Resolution>,
    stores: BTreeMap<WorkerId, BTreeSet<TaskId>>,
}

impl Player {
    fn new(depth: u32, durable: bool, fail: BTreeSet<TaskId>) -> Player {
        let config = Config { start_resources: gpus(1.0), max_workers: 2, durable, ..Config::default() };
        let mut player = Player {
            machine: Scheduler::new(config),
            tasks: BTreeMap::new(),
            fail,
            has_run: BTreeSet::new(),
            running: BTreeMap::new(),
            resolved: BTreeMap::new(),
            stores: BTreeMap::new(),
        };
        let spec = CallSpec { cap: 2, divisible: true, ..CallSpec::default() };
        player.handle(Event::CallOpened { call: CALL, spec }, depth);
        // Both workers are there before the first graph comes.
        for id in [1000, 1001] {
            let event = Event::TaskSubmitted { call: CALL, task: TaskId(id), items: 1, urgent: false };
            player.handle(event, depth);
        }
        player.work(depth);
        player
    }

    fn handle(&mut self, event: Event, depth: u32) {
        let mut actions = Actions::default();
        self.machine.handle(Time::ZERO, event, &mut actions);
        self.machine.check().expect("is consistent");
        for (_, action) in actions.drain() {
            self.carry_out(action, depth);
        }
    }

    fn carry_out(&mut self, action: Action, depth: u32) {
        match action {
            Action::StartWorker { worker } => {
                let spec = WorkerSpec { depth, killable: true, resources: gpus(1.0), ..WorkerSpec::default() };
                self.handle(Event::WorkerJoined { worker, spec }, depth);
            }
            Action::Run { worker, task, attempt } => {
                for on in self.tasks.get(&task).iter().flat_map(|task| &task.dependencies) {
                    assert!(self.has_run.contains(on), "{task:?} runs before {on:?}");
                    assert!(self.machine.holders(*on).next().is_some(), "{task:?} does not get {on:?}");
                }
                let outcome = if self.fail.contains(&task) { Outcome::Err } else { Outcome::Ok };
                let event = Event::TaskFinished { worker, task, attempt, outcome, size_bytes: 1 };
                self.running.entry(worker).or_default().push(event);
            }
            Action::Retract { worker, task, attempt } => {
                let queue = self.running.entry(worker).or_default();
                let is_it = |event: &Event| matches!(event, Event::TaskFinished { task: it, .. } if *it == task);
                let Some(at) = queue.iter().position(is_it).filter(|&at| at > 0) else { return };
                queue.remove(at);
                self.handle(Event::TaskReturned { worker, task, attempt, kept: 0 }, depth);
            }
            Action::Forget { worker, task } => {
                let was_there = self.stores.entry(worker).or_default().remove(&task);
                assert!(was_there, "{worker:?} does not have {task:?}");
            }
            Action::Resolve { task, resolution, .. } => {
                let again = self.resolved.insert(task, resolution);
                assert_eq!(again, None, "{task:?} is resolved twice");
            }
            _ => {}
        }
    }

    /// Lets the workers run what they have, one task after the other.
    fn work(&mut self, depth: u32) {
        while let Some(queue) = self.running.values_mut().find(|queue| !queue.is_empty()) {
            let event = queue.remove(0);
            if let Event::TaskFinished { worker, task, outcome: Outcome::Ok, .. } = event {
                self.has_run.insert(task);
                if self.tasks.contains_key(&task) {
                    self.stores.entry(worker).or_default().insert(task);
                }
            }
            self.handle(event, depth);
        }
    }
}

/// How the task has to end, were it run.
fn expected(id: TaskId, tasks: &BTreeMap<TaskId, TaskSpec>, sound: &BTreeSet<TaskId>, fail: &BTreeSet<TaskId>) -> bool {
    let inputs = &tasks[&id].dependencies;
    sound.contains(&id) && !fail.contains(&id) && inputs.iter().all(|on| expected(*on, tasks, sound, fail))
}

/// Tasks that depend neither on what is not there, nor on themselves, at first or second hand.
fn sound(tasks: &BTreeMap<TaskId, TaskSpec>) -> BTreeSet<TaskId> {
    let mut sound = BTreeSet::new();
    loop {
        let ripe = |task: &&TaskSpec| task.dependencies.iter().all(|on| sound.contains(on));
        let more: BTreeSet<TaskId> = tasks.values().filter(ripe).map(|task| task.task).collect();
        if more == sound {
            return sound;
        }
        sound = more;
    }
}

fn play(graphs: Vec<Vec<TaskSpec>>, depth: u32, durable: bool, fail: BTreeSet<TaskId>) -> Player {
    let mut player = Player::new(depth, durable, fail);
    for tasks in graphs {
        player.tasks.extend(tasks.iter().map(|task| (task.task, task.clone())));
        player.handle(Event::GraphSubmitted { call: CALL, tasks }, depth);
    }
    player.work(depth);
    player
}

fn release_all(player: &mut Player, depth: u32) {
    let tasks = player.tasks.keys().copied().collect();
    player.handle(Event::TasksReleased { call: CALL, tasks }, depth);
    assert_eq!(player.machine.stats().known, 0, "nothing is known that nobody wants");
    assert!(player.stores.values().all(BTreeSet::is_empty), "nothing is kept that nobody wants");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn each_wanted_task_ends_once_and_as_it_should(
        graphs in submissions(true),
        depth in 1..4u32,
        durable in any::<bool>(),
        fail in proptest::collection::btree_set((0..40u64).prop_map(TaskId), 0..6),
    ) {
        let mut player = play(graphs, depth, durable, fail.clone());
        let sound = sound(&player.tasks);
        for task in player.tasks.values().filter(|task| task.wanted) {
            let how = player.resolved.get(&task.task).copied();
            let ok = expected(task.task, &player.tasks, &sound, &fail);
            prop_assert_eq!(how.map(|how| how.is_ok()), Some(ok), "{:?} ended with {:?}", task, how);
            if let Some(Resolution::DependencyFailed { cause }) = how {
                prop_assert!(fail.contains(&cause) || !sound.contains(&cause), "{:?} did not fail", cause);
            }
        }
        release_all(&mut player, depth);
    }

    #[test]
    fn whatever_cannot_be_run_ends_and_holds_up_nothing(
        graphs in submissions(false),
        depth in 1..4u32,
        durable in any::<bool>(),
    ) {
        let one = graphs.len() == 1;
        let mut player = play(graphs, depth, durable, BTreeSet::new());
        let sound = sound(&player.tasks);
        for task in player.tasks.values().filter(|task| task.wanted) {
            let how = player.resolved.get(&task.task).copied();
            prop_assert!(how.is_some(), "{:?} hangs", task);
            let ok = sound.contains(&task.task);
            // In several submissions, what is named too early is not there.
            prop_assert!(!one || how.is_some_and(|how| how.is_ok()) == ok, "{:?} ended with {:?}", task, how);
        }
        release_all(&mut player, depth);
    }
}
