//! Tasks that submit others and wait for them never wait for a place that they take themselves: however deep they are
//! nested, on however few workers, and whatever goes on when, all of them end.

use std::collections::{BTreeMap, VecDeque};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use rustdask_core::scheduler::Config;
use rustdask_core::{
    Action, Actions, Attempt, CallId, CallSpec, Event, Outcome, Scheduler, TaskId, TaskSpec, Time, WorkerId, WorkerSpec,
};

const CALL: CallId = CallId(1);

/// Who submits each task: one before it, often the last one, or nobody.
fn parents() -> impl Strategy<Value = Vec<Option<usize>>> {
    let parent = prop_oneof![3 => Just(None), 2 => any::<Index>().prop_map(Some)];
    vec((parent, proptest::bool::weighted(0.5)), 1..60).prop_map(|choices| {
        let parent = |(at, (index, last)): (usize, (Option<Index>, bool))| match (at, last, index) {
            (0, ..) => None,
            (_, true, _) => Some(at - 1),
            (_, false, index) => index.map(|index| index.index(at)),
        };
        choices.into_iter().enumerate().map(parent).collect()
    })
}

type Job = (WorkerId, TaskId, Attempt);

/// Something that may happen next.
#[derive(Clone, Copy, Debug)]
enum Move {
    /// What the worker runs submits others and waits for them, or ends.
    Run(Job),
    /// What has waited ends.
    Resume(Job),
}

struct Player {
    machine: Scheduler,
    parents: Vec<Option<usize>>,
    depth: u32,
    queues: BTreeMap<WorkerId, VecDeque<Job>>,
    /// What is parked, and how many it waits for.
    parked: BTreeMap<TaskId, (Job, usize)>,
    resolved: usize,
    now: Time,
}

impl Player {
    fn new(parents: Vec<Option<usize>>, workers: u32, depth: u32, durable: bool) -> Player {
        let machine = Scheduler::new(Config { max_workers: workers, durable, ..Config::default() });
        let (queues, parked) = Default::default();
        let mut player = Player { machine, parents, depth, queues, parked, resolved: 0, now: Time::ZERO };
        player.handle(Event::CallOpened { call: CALL, spec: CallSpec::default() });
        player.handle(Event::WorkersRequested { count: workers });
        player.submit(None);
        player
    }

    fn children(&self, of: Option<usize>) -> Vec<TaskId> {
        let all = self.parents.iter().enumerate();
        all.filter(|(_, parent)| **parent == of).map(|(id, _)| TaskId(id as u64)).collect()
    }

    fn submit(&mut self, by: Option<usize>) {
        let spec = |task| TaskSpec { task, wanted: true, ..TaskSpec::default() };
        let tasks = self.children(by).into_iter().map(spec).collect();
        self.handle(Event::GraphSubmitted { call: CALL, tasks });
    }

    fn handle(&mut self, event: Event) {
        let mut actions = Actions::default();
        self.now += Time::from_micros(100);
        self.machine.handle(self.now, event, &mut actions);
        self.machine.check().expect("is consistent");
        for (_, action) in actions.drain() {
            self.carry_out(action);
        }
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::StartWorker { worker } => {
                let spec = WorkerSpec { depth: self.depth, ..WorkerSpec::default() };
                self.handle(Event::WorkerJoined { worker, spec });
            }
            Action::Run { worker, task, attempt } => {
                self.queues.entry(worker).or_default().push_back((worker, task, attempt));
            }
            Action::Retract { worker, task, attempt } => {
                let queue = self.queues.entry(worker).or_default();
                if let Some(at) = queue.iter().position(|job| *job == (worker, task, attempt)).filter(|&at| at > 0) {
                    queue.remove(at);
                    self.handle(Event::TaskReturned { worker, task, attempt, kept: 0 });
                }
            }
            Action::Resolve { task, resolution, .. } => {
                assert!(resolution.is_ok(), "{task:?} ended with {resolution:?}");
                self.resolved += 1;
                if let Some(parent) = self.parents[task.0 as usize] {
                    let parent = TaskId(parent as u64);
                    self.parked.get_mut(&parent).expect("waits for its children").1 -= 1;
                    self.handle(Event::TasksReleased { call: CALL, tasks: vec![task] });
                }
            }
            _ => {}
        }
    }

    fn moves(&self) -> Vec<Move> {
        let heads = self.queues.values().filter_map(|queue| queue.front().copied()).map(Move::Run);
        let awake = self.parked.values().filter(|(_, waits_for)| *waits_for == 0);
        heads.chain(awake.map(|(job, _)| Move::Resume(*job))).collect()
    }

    fn make(&mut self, next: Move) {
        match next {
            Move::Run(job) => {
                self.queues.get_mut(&job.0).expect("has a queue").pop_front();
                let task = job.1 .0 as usize;
                let children = self.children(Some(task)).len();
                if children == 0 {
                    return self.finish(job);
                }
                let (worker, task_id, attempt) = job;
                self.parked.insert(task_id, (job, children));
                self.handle(Event::TaskParked { worker, task: task_id, attempt });
                self.submit(Some(task));
            }
            Move::Resume(job) => {
                let (worker, task, attempt) = job;
                self.parked.remove(&task);
                self.handle(Event::TaskResumed { worker, task, attempt });
                self.finish(job);
            }
        }
    }

    fn finish(&mut self, (worker, task, attempt): Job) {
        self.handle(Event::TaskFinished { worker, task, attempt, outcome: Outcome::Ok, size_bytes: 1 });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nested_tasks_all_end(
        parents in parents(),
        workers in 1..4u32,
        depth in 1..4u32,
        durable in any::<bool>(),
        choices in vec(any::<Index>(), 200),
    ) {
        let count = parents.len();
        let mut player = Player::new(parents, workers, depth, durable);
        let mut choices = choices.into_iter();
        loop {
            let moves = player.moves();
            let Some(choice) = choices.next().filter(|_| !moves.is_empty()) else { break };
            player.make(*choice.get(&moves));
        }
        prop_assert_eq!(player.resolved, count, "the others wait for ever: {:?}", player.parked);
        player.handle(Event::CallClosed { call: CALL });
        prop_assert!(player.machine.is_empty());
    }
}
