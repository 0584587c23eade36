//! The submitters' side: what calls want, and what they have been told about their tasks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rustdask_core::{Attempt, CallId, CallSpec, Resolution, TaskId, Time, WorkerId};

use crate::rng::Rng;

#[derive(Debug)]
pub(crate) struct SimTask {
    pub(crate) call: CallId,
    /// Number of its first item among all of the call.
    pub(crate) first: u32,
    pub(crate) items: u32,
    /// The item that kills each worker that runs it; it is in another part once the task was cut before it.
    pub(crate) culprit: Option<u32>,
    /// Opens a call of its own, and waits for that.
    pub(crate) nests: bool,
    pub(crate) item_us: u64,
    pub(crate) held_by: Option<(WorkerId, Attempt)>,
    pub(crate) handed_out: Time,
}

impl SimTask {
    pub(crate) fn kills_at(&self, item: u32) -> bool {
        self.culprit == Some(self.first + item)
    }

    /// Whether the worker would die of it before its end.
    pub(crate) fn kills(&self, worker: WorkerId) -> bool {
        is_mortal(worker) && (0..self.items).any(|item| self.kills_at(item))
    }
}

/// Helpers are threads of the submitter; they die of nothing.
pub(crate) fn is_mortal(worker: WorkerId) -> bool {
    worker.0 < 1 << 31
}

#[derive(Debug)]
pub(crate) struct SimCall {
    pub(crate) spec: CallSpec,
    /// Tasks still to be submitted.
    pub(crate) planned: u32,
    pub(crate) unresolved: u32,
    pub(crate) items_wanted: u32,
    /// Items of which the submitter knows how they ended.
    pub(crate) settled: BTreeSet<u32>,
    pub(crate) paused: bool,
    pub(crate) nesting: u32,
    /// The worker and attempt that wait for the end of this nested call.
    pub(crate) parent: Option<(WorkerId, TaskId, Attempt)>,
}

impl SimCall {
    pub(crate) fn is_done(&self) -> bool {
        self.planned == 0 && self.unresolved == 0
    }
}

/// All tasks of open calls.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) calls: BTreeMap<CallId, SimCall>,
    pub(crate) tasks: BTreeMap<TaskId, SimTask>,
}

impl Ledger {
    /// Notes how a task ended, having made sure that it could end so.
    pub(crate) fn settle(&mut self, id: TaskId, call: CallId, how: Resolution, now: Time, ran: Option<u32>) {
        let task = self.tasks.remove(&id).unwrap_or_else(|| panic!("{id:?} is resolved twice, or too late"));
        assert_eq!(task.call, call, "{id:?} is another call's");
        let call = self.calls.get_mut(&call).expect("tasks go with their call");
        match how {
            Resolution::Finished { worker, .. } => {
                assert_eq!(task.held_by.map(|(by, _)| by), Some(worker), "{id:?} ran elsewhere");
                assert_eq!(ran, Some(task.items), "{id:?}: items run, items asked for");
                assert!(!task.kills(worker), "{id:?} cannot have been run to its end");
            }
            Resolution::TimedOut { worker } => {
                assert_eq!(task.held_by.map(|(by, _)| by), Some(worker), "{id:?} ran elsewhere");
                let limit = call.spec.item_timeout.expect("only tasks with a limit overrun it") * task.items;
                assert!(now - task.handed_out >= limit, "{id:?} was given too little time");
            }
            Resolution::WorkerCrashed { deaths, .. } => {
                assert_eq!(deaths, call.spec.crash_retries + 1, "{id:?}");
                assert_eq!(task.items, 1, "{id:?} fails with items that did nothing");
            }
            Resolution::DependencyFailed { .. }
            | Resolution::Cancelled
            | Resolution::Unrunnable
            | Resolution::Broken => panic!("{id:?} belongs to no graph"),
            Resolution::NoWorkers => assert!(task.held_by.is_none(), "{id:?} has a worker"),
        }
        call.unresolved -= 1;
        for item in task.first..task.first + task.items {
            assert!(call.settled.insert(item), "item {item} of {id:?} is settled twice");
        }
    }

    /// A worker that holds tasks of the call, or more than one.
    pub(crate) fn holders(&self, call: CallId) -> usize {
        let tasks = self.tasks.values().filter(|task| task.call == call);
        let mut workers: Vec<WorkerId> = tasks.filter_map(|task| Some(task.held_by?.0)).collect();
        workers.sort_unstable();
        workers.dedup();
        workers.len()
    }

    pub(crate) fn forget(&mut self, call: CallId) -> Option<SimCall> {
        self.tasks.retain(|_, task| task.call != call);
        self.calls.remove(&call)
    }
}

pub(crate) fn random_call(rng: &mut Rng, nesting: u32, timeouts: bool) -> SimCall {
    let limit = timeouts && rng.chance(60);
    let helped = rng.chance(40);
    SimCall {
        spec: CallSpec {
            cap: rng.small(1, 6),
            crash_retries: rng.small(0, 2),
            item_timeout: limit.then(|| Duration::from_micros(rng.range(200, 5000))),
            helper_expected: helped,
            depth: rng.small(1, 6),
            divisible: rng.chance(80),
            nested: nesting > 0,
        },
        planned: if nesting > 0 { rng.small(1, 6) } else { rng.small(0, 40) },
        unresolved: 0,
        items_wanted: 0,
        settled: BTreeSet::new(),
        paused: false,
        nesting,
        parent: None,
    }
}
