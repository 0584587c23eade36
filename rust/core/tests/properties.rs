//! What holds for any sequence of events, sensible or not: the machine returns, stays consistent, never
//! resolves a task twice; the same events give the same actions. And that whoever kills workers is found.

mod common;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use common::HELPER;
use rustdask_core::scheduler::Config;
use rustdask_core::{
    Action, Actions, Amount, Attempt, CallId, CallSpec, Event, HostId, Outcome, Priority, Resolution, Resources,
    Scheduler, TaskId, TaskSpec, Time, WorkerId, WorkerSpec,
};

/// Tasks from here on are numbered by the player; those below are whatever an event says.
const FIRST_NUMBER: u64 = 1000;

/// Something that happens. What names an [`Index`] refers to what the machine has ordered, and so makes
/// sense; the rest may be about anything.
#[derive(Clone, Debug)]
enum Step {
    Any(Event),
    Submit { call: u64, items: u32, urgent: bool },
    Join(Index, WorkerSpec),
    Finish(Index),
    Return(Index, u32),
    Park(Index),
    Resume(Index),
    Lose(Index),
    Wait(u64),
}

fn call_id() -> impl Strategy<Value = CallId> {
    (0..4u64).prop_map(CallId)
}

fn worker_id() -> impl Strategy<Value = WorkerId> {
    prop_oneof![0..8u32, HELPER..HELPER + 3, Just(u32::MAX)].prop_map(WorkerId)
}

fn task_id() -> impl Strategy<Value = TaskId> {
    prop_oneof![0..40u64, Just(u64::MAX)].prop_map(TaskId)
}

fn attempt() -> impl Strategy<Value = Attempt> {
    prop_oneof![0..3u32, Just(u32::MAX)].prop_map(Attempt)
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![Just(Outcome::Ok), Just(Outcome::Err)]
}

fn call_spec() -> impl Strategy<Value = CallSpec> {
    let timeout = proptest::option::of((0..20u64).prop_map(Duration::from_millis));
    (0..5u32, 0..3u32, timeout, any::<bool>(), 0..5u32, any::<bool>(), any::<bool>()).prop_map(
        |(cap, crash_retries, item_timeout, helper_expected, depth, divisible, nested)| CallSpec {
            cap,
            crash_retries,
            item_timeout,
            helper_expected,
            depth,
            divisible,
            nested,
        },
    )
}

fn worker_spec() -> impl Strategy<Value = WorkerSpec> {
    let only = proptest::option::weighted(0.2, call_id());
    let host = proptest::option::weighted(0.3, (0..2u64).prop_map(HostId));
    (0..4u32, only, any::<bool>(), resources(), host).prop_map(|(depth, only, killable, resources, host)| WorkerSpec {
        depth,
        only,
        killable,
        resources,
        host,
    })
}

fn resources() -> impl Strategy<Value = Resources> {
    prop_oneof![
        3 => Just(Resources::NONE),
        1 => (0..4u32).prop_map(|half| {
            Resources::new([("GPU", Amount::from_f64(f64::from(half) / 2.0).expect("is small"))])
        })
    ]
}

fn task_spec() -> impl Strategy<Value = TaskSpec> {
    let workers = proptest::option::weighted(0.1, vec(worker_id(), 0..3));
    let rest = (0..3i32, 0..2u32, resources(), workers, any::<bool>());
    (task_id(), vec(task_id(), 0..4), rest).prop_map(
        |(task, dependencies, (user, retries, resources, workers, wanted))| TaskSpec {
            task,
            dependencies: dependencies.into(),
            priority: Priority { user, ..Priority::default() },
            retries,
            resources,
            workers: workers.map(Into::into),
            wanted,
        },
    )
}

fn graph_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (call_id(), vec(task_spec(), 0..20)).prop_map(|(call, tasks)| Event::GraphSubmitted { call, tasks }),
        1 => (call_id(), vec(task_id(), 0..9)).prop_map(|(call, tasks)| Event::TasksReleased { call, tasks }),
        1 => (call_id(), vec(task_id(), 0..3), any::<bool>())
            .prop_map(|(call, tasks, force)| Event::TasksCancelled { call, tasks, force }),
        1 => (worker_id(), task_id()).prop_map(|(worker, task)| Event::ReplicaAdded { worker, task }),
        1 => (worker_id(), task_id()).prop_map(|(worker, task)| Event::ReplicaLost { worker, task }),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (call_id(), call_spec()).prop_map(|(call, spec)| Event::CallOpened { call, spec }),
        1 => call_id().prop_map(|call| Event::CallClosed { call }),
        1 => (call_id(), any::<bool>()).prop_map(|(call, paused)| Event::CallPaused { call, paused }),
        1 => (call_id(), any::<u32>()).prop_map(|(call, depth)| Event::CallDepth { call, depth }),
        1 => call_id().prop_map(|call| Event::HelperExcused { call }),
        2 => (call_id(), task_id(), any::<u32>(), any::<bool>())
            .prop_map(|(call, task, items, urgent)| Event::TaskSubmitted { call, task, items, urgent }),
        2 => (worker_id(), worker_spec()).prop_map(|(worker, spec)| Event::WorkerJoined { worker, spec }),
        1 => worker_id().prop_map(|worker| Event::WorkerLost { worker }),
        1 => (0..4u32).prop_map(|count| Event::WorkersRequested { count }),
        2 => (worker_id(), task_id(), attempt(), outcome()).prop_map(|(worker, task, attempt, outcome)| {
            Event::TaskFinished { worker, task, attempt, outcome, size_bytes: 0 }
        }),
        2 => (worker_id(), task_id(), attempt(), any::<u32>()).prop_map(|(worker, task, attempt, kept)| {
            Event::TaskReturned { worker, task, attempt, kept }
        }),
        1 => (worker_id(), task_id(), attempt())
            .prop_map(|(worker, task, attempt)| Event::TaskParked { worker, task, attempt }),
        1 => (worker_id(), task_id(), attempt())
            .prop_map(|(worker, task, attempt)| Event::TaskResumed { worker, task, attempt }),
        1 => Just(Event::TimePassed),
        4 => graph_event(),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => event().prop_map(Step::Any),
        6 => (0..4u64, 1..9u32, proptest::bool::weighted(0.2))
            .prop_map(|(call, items, urgent)| Step::Submit { call, items, urgent }),
        4 => (any::<Index>(), worker_spec()).prop_map(|(index, spec)| Step::Join(index, spec)),
        5 => any::<Index>().prop_map(Step::Finish),
        4 => (any::<Index>(), 0..9u32).prop_map(|(index, kept)| Step::Return(index, kept)),
        2 => any::<Index>().prop_map(Step::Park),
        2 => any::<Index>().prop_map(Step::Resume),
        1 => any::<Index>().prop_map(Step::Lose),
        2 => (0..9u64).prop_map(Step::Wait),
    ]
}

fn config() -> impl Strategy<Value = Config> {
    let max_workers = prop_oneof![0..4u32, Just(u32::MAX)];
    (0..4u32, 0..4u32, 0..4u64, max_workers, any::<bool>()).prop_map(
        |(core_budget, max_start_failures, split_ms, max_workers, durable)| Config {
            core_budget,
            max_start_failures,
            split_after: Duration::from_millis(split_ms),
            max_workers,
            durable,
            ..Config::default()
        },
    )
}

/// The machine and what its actions have said so far.
struct Player {
    machine: Scheduler,
    now: Time,
    next_task: u64,
    ordered: Vec<WorkerId>,
    handed_out: Vec<(WorkerId, TaskId, Attempt)>,
    /// Items of the tasks that were submitted and not resolved.
    unresolved: BTreeMap<TaskId, u32>,
    log: Vec<Action>,
}

impl Player {
    fn new(config: Config) -> Player {
        Player {
            machine: Scheduler::new(config),
            now: Time::ZERO,
            next_task: FIRST_NUMBER,
            ordered: Vec::new(),
            handed_out: Vec::new(),
            unresolved: BTreeMap::new(),
            log: Vec::new(),
        }
    }

    fn event(&mut self, step: Step) -> Option<Event> {
        Some(match step {
            Step::Any(event) => event,
            Step::Submit { call, items, urgent } => {
                let task = TaskId(self.next_task);
                self.next_task += 1;
                self.unresolved.insert(task, items);
                Event::TaskSubmitted { call: CallId(call), task, items, urgent }
            }
            Step::Join(index, spec) => Event::WorkerJoined { worker: pick(index, &self.ordered)?, spec },
            Step::Lose(index) => Event::WorkerLost { worker: pick(index, &self.ordered)? },
            Step::Finish(index) => {
                let (worker, task, attempt) = pick(index, &self.handed_out)?;
                Event::TaskFinished { worker, task, attempt, outcome: Outcome::Ok, size_bytes: 0 }
            }
            Step::Return(index, kept) => {
                let (worker, task, attempt) = pick(index, &self.handed_out)?;
                Event::TaskReturned { worker, task, attempt, kept }
            }
            Step::Park(index) => {
                let (worker, task, attempt) = pick(index, &self.handed_out)?;
                Event::TaskParked { worker, task, attempt }
            }
            Step::Resume(index) => {
                let (worker, task, attempt) = pick(index, &self.handed_out)?;
                Event::TaskResumed { worker, task, attempt }
            }
            Step::Wait(millis) => {
                self.now += Duration::from_millis(millis);
                Event::TimePassed
            }
        })
    }

    fn play(&mut self, step: Step) -> Result<(), TestCaseError> {
        let Some(event) = self.event(step) else {
            return Ok(());
        };
        let mut actions = Actions::default();
        self.machine.handle(self.now, event, &mut actions);
        self.machine.check().map_err(TestCaseError::fail)?;
        for (_, action) in actions.drain() {
            self.note(&action)?;
            self.log.push(action);
        }
        let deadline = self.machine.next_deadline();
        prop_assert!(deadline.is_none_or(|time| time >= self.now), "a deadline has passed unnoticed");
        Ok(())
    }

    fn note(&mut self, action: &Action) -> Result<(), TestCaseError> {
        match *action {
            Action::StartWorker { worker } => {
                prop_assert!(!self.ordered.contains(&worker), "{worker:?} is started twice");
                self.ordered.push(worker);
            }
            Action::Run { worker, task, attempt } => {
                let again = self.handed_out.iter().any(|&(_, t, a)| (t, a) == (task, attempt));
                prop_assert!(!again || !is_numbered(task), "{task:?} {attempt:?} is handed out twice");
                self.handed_out.push((worker, task, attempt));
            }
            Action::Remainder { task, kept, .. } if is_numbered(task) => {
                let items = self.unresolved.get(&task).copied();
                prop_assert!(
                    items.is_some_and(|items| 0 < kept && kept < items),
                    "{task:?} of {items:?} items is cut to {kept}"
                );
                self.unresolved.insert(task, kept);
            }
            Action::Resolve { task, resolution, .. } if is_numbered(task) => {
                let items = self.unresolved.remove(&task);
                prop_assert!(items.is_some(), "{task:?} is resolved twice");
                let crashed = matches!(resolution, Resolution::WorkerCrashed { .. });
                prop_assert!(!crashed || items == Some(1), "{task:?} fails with items that did nothing");
            }
            _ => {}
        }
        Ok(())
    }
}

/// Submitted by [`Step::Submit`], so only once.
fn is_numbered(task: TaskId) -> bool {
    (FIRST_NUMBER..u64::MAX).contains(&task.0)
}

fn pick<T: Copy>(index: Index, from: &[T]) -> Option<T> {
    (!from.is_empty()).then(|| *index.get(from))
}

/// A batch with one item that kills each worker that runs it, and processes that run what they are handed.
struct Hunt {
    machine: Scheduler,
    culprit: u32,
    /// First item and number of items of each task.
    tasks: Vec<(u32, u32)>,
    events: VecDeque<Event>,
    deaths: u32,
    finished: BTreeSet<u32>,
    crashed: Vec<(u32, u32)>,
}

impl Hunt {
    const CALL: CallId = CallId(1);

    fn new(items: u32, culprit: u32, spec: CallSpec) -> Hunt {
        let mut hunt = Hunt {
            machine: Scheduler::new(Config::default()),
            culprit,
            tasks: Vec::new(),
            events: VecDeque::new(),
            deaths: 0,
            finished: BTreeSet::new(),
            crashed: Vec::new(),
        };
        let call = Hunt::CALL;
        hunt.events.push_back(Event::CallOpened { call, spec });
        hunt.submit(0, items, false);
        hunt
    }

    fn submit(&mut self, first: u32, items: u32, urgent: bool) {
        self.events.push_back(Event::TaskSubmitted {
            call: Hunt::CALL,
            task: TaskId(self.tasks.len() as u64),
            items,
            urgent,
        });
        self.tasks.push((first, items));
    }

    fn play(&mut self) {
        while let Some(event) = self.events.pop_front() {
            let mut actions = Actions::default();
            self.machine.handle(Time::ZERO, event, &mut actions);
            for (_, action) in actions.drain() {
                self.carry_out(action);
            }
        }
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::StartWorker { worker } => self.events.push_back(Event::WorkerJoined {
                worker,
                spec: WorkerSpec { depth: 1, only: None, killable: true, ..WorkerSpec::default() },
            }),
            Action::Run { worker, task, attempt } => {
                let (first, items) = self.tasks[task.0 as usize];
                let dies = (first..first + items).contains(&self.culprit);
                self.deaths += u32::from(dies);
                self.events.push_back(if dies {
                    Event::WorkerLost { worker }
                } else {
                    Event::TaskFinished { worker, task, attempt, outcome: Outcome::Ok, size_bytes: 0 }
                });
            }
            Action::Remainder { task, kept, .. } => {
                let (first, items) = self.tasks[task.0 as usize];
                self.tasks[task.0 as usize] = (first, kept);
                self.submit(first + kept, items - kept, true);
            }
            Action::Resolve { task, resolution, .. } => {
                let (first, items) = self.tasks[task.0 as usize];
                match resolution {
                    Resolution::Finished { .. } => self.finished.extend(first..first + items),
                    _ => self.crashed.push((first, items)),
                }
            }
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_events_leave_the_machine_consistent(config in config(), steps in vec(step(), 1..200)) {
        let mut player = Player::new(config);
        for step in steps {
            player.play(step)?;
        }
    }

    #[test]
    fn closing_all_calls_empties_the_machine(config in config(), steps in vec(step(), 1..100)) {
        let mut player = Player::new(config);
        for step in steps {
            player.play(step)?;
        }
        for call in 0..4 {
            player.play(Step::Any(Event::CallClosed { call: CallId(call) }))?;
        }
        prop_assert!(player.machine.is_empty());
        prop_assert_eq!(player.machine.stats().tasks, 0);
    }

    #[test]
    fn the_same_events_give_the_same_actions(config in config(), steps in vec(step(), 1..100)) {
        let (mut one, mut two) = (Player::new(config.clone()), Player::new(config));
        for step in steps {
            one.play(step.clone())?;
            two.play(step)?;
        }
        prop_assert_eq!(one.log, two.log);
    }

    #[test]
    fn the_culprit_of_a_batch_is_found_in_few_deaths(
        (items, culprit) in (1..2000u32).prop_flat_map(|items| (Just(items), 0..items)),
        cap in 1..5u32,
        crash_retries in 0..3u32,
    ) {
        let spec = CallSpec { cap, crash_retries, divisible: true, ..CallSpec::default() };
        let mut hunt = Hunt::new(items, culprit, spec);
        hunt.play();
        prop_assert_eq!(hunt.crashed, vec![(culprit, 1)]);
        prop_assert_eq!(hunt.finished.len() as u32, items - 1);
        let halvings = items.next_power_of_two().ilog2();
        prop_assert!(hunt.deaths <= halvings + crash_retries + 1, "{} deaths", hunt.deaths);
    }
}
