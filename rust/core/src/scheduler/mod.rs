//! The scheduler machine: decides what runs where, and what became of it.
//!
//! Guarantees:
//! - [`Scheduler::handle`] is total: any event in any state returns; it never panics on what a peer sent.
//! - Actions depend only on the sequence of events and their times.
//! - Each task of a call that stays open is resolved exactly once.
//! - No more than `cap` workers hold tasks of a call at any moment.
//! - A task of a graph runs when all that it depends on has a result, and only if somebody needs its own. Nothing is
//!   kept that nobody needs. A result that is lost and needed is computed again; where results are durable, none
//!   is ever lost.
//! - No more of a resource is given to tasks than its worker, or its host, has.
//! - A report about an attempt that its worker does not hold is dropped, in one place, and counted.
//!
//! Assumes that a worker runs what it is handed in order, one task at a time, so the head of its queue is
//! the task that runs, and needs no message to say so.
//!
//! Each event goes through four steps: it changes the state (`transition`, `report`; for graphs `submit`, `endings`,
//! `recover`), tasks that overran their time are ended (`report`), what is not needed any more is freed and what is
//! ready is queued (`wants`), and work is handed out (`place`, for graphs `locality` and `grants`) or moved to workers
//! that have none (`balance`).

mod balance;
mod call;
mod check;
mod check_graph;
mod classes;
mod endings;
mod grants;
mod graph;
mod hold;
mod list;
mod live;
mod locality;
mod node;
mod parked;
mod place;
mod pool;
mod ready;
mod recover;
mod report;
mod roster;
mod submit;
mod transition;
mod wants;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::action::{Action, Actions};
use crate::event::{Event, Time};
use crate::id::{CallId, EventSeq, WorkerId};

use crate::resources::Resources;

use call::Call;
use classes::Classes;
use graph::Graph;
use live::Live;
use roster::Roster;
use worker::Worker;

#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Cores that running tasks may use together; what nested calls are held to.
    pub core_budget: u32,
    /// Workers in a row that may fail to start before waiting tasks are given up, and workers that may die with nothing
    /// to do before those that were requested are not replaced until a task is finished. At least 1.
    pub max_start_failures: u32,
    /// How long a task of several items runs before its tail is taken back for an idle worker.
    pub split_after: Duration,
    /// Most workers that exist at once, helpers not counted.
    pub max_workers: u32,
    /// What a worker will have that is started on demand.
    pub start_resources: Resources,
    /// Workers may join that nobody asked for: tasks wait for them, however long.
    pub open: bool,
    /// Results outlive the workers that made them: the shell keeps each from the moment at which it hears of it
    /// until the task is [`Action::Gone`]. So none is lost or made again, and of what nobody needs nothing is known.
    pub durable: bool,
    /// What moving a result to another worker costs, to weigh against waiting for one that has it.
    pub bandwidth_bytes_per_s: u64,
    pub latency: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            core_budget: 1,
            max_start_failures: 3,
            split_after: Duration::from_millis(2),
            max_workers: u32::MAX,
            start_resources: Resources::NONE,
            open: false,
            durable: false,
            bandwidth_bytes_per_s: 1_000_000_000,
            latency: Duration::from_micros(200),
        }
    }
}

/// Counts for people and for tests. Nothing is decided by them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Calls that are open.
    pub calls: usize,
    /// Tasks not yet resolved.
    pub tasks: usize,
    /// Those of them that wait for a worker and for nothing else.
    pub queued: usize,
    /// Tasks of graphs that are known, finished or not.
    pub known: usize,
    /// Workers that have joined and are not lost, helpers included.
    pub workers: usize,
    /// Workers asked for that have neither joined nor failed.
    pub starting: usize,
    /// Workers without a task that any call may use.
    pub idle: usize,
    /// Workers that count against the core budget.
    pub busy: usize,
    /// Reports dropped because their attempt was not the current one.
    pub stale: u64,
}

#[derive(Debug)]
pub struct Scheduler {
    config: Config,
    /// Number of the next event.
    seq: EventSeq,
    /// Never goes back, whatever the shell says.
    now: Time,
    calls: BTreeMap<CallId, Call>,
    roster: Roster,
    graph: Graph,
    classes: Classes,
    /// Workers that something has happened to in this event, or to their tasks.
    stirred: Vec<WorkerId>,
    /// Ready tasks that are bound to resources or workers.
    bound_ready: usize,
    /// Bound tasks may have lost their last hope.
    outlook_changed: bool,
    /// Changes when workers come or go, or will not come.
    outlook: u64,
    /// Tasks that belong to no graph and are not yet resolved, to notice one that is submitted twice.
    live: Live,
    /// Calls that could use another worker. May lag in keeping a call, never in missing one.
    hungry: BTreeSet<CallId>,
    /// The call that was served last; the next one in order has the next turn.
    turn: CallId,
    /// Workers that failed to start since one last joined.
    start_failures: u32,
    /// Workers that were requested and have died with nothing to do since a task was last finished.
    idle_deaths: u32,
    /// So many shared workers are to be there.
    floor: u32,
    /// Tasks that have given their places up.
    parked: usize,
    /// Workers where some of them wait in vain.
    doomed: BTreeSet<WorkerId>,
    stale: u64,
}

/// Where the handling of one event puts its actions.
struct Out<'a> {
    seq: EventSeq,
    actions: &'a mut Actions,
}

impl Out<'_> {
    fn push(&mut self, action: Action) {
        self.actions.items.push((self.seq, action));
    }
}

impl Scheduler {
    pub fn new(config: Config) -> Self {
        Scheduler {
            config: Config { max_start_failures: config.max_start_failures.max(1), ..config },
            seq: EventSeq(0),
            now: Time::ZERO,
            calls: BTreeMap::new(),
            roster: Roster::default(),
            graph: Graph::default(),
            classes: Classes::default(),
            stirred: Vec::new(),
            bound_ready: 0,
            outlook_changed: false,
            outlook: 1,
            live: Live::default(),
            hungry: BTreeSet::new(),
            turn: CallId(0),
            start_failures: 0,
            idle_deaths: 0,
            floor: 0,
            parked: 0,
            doomed: BTreeSet::new(),
            stale: 0,
        }
    }

    /// Takes in one event, the first of which is number 0, and appends what has to be done.
    pub fn handle(&mut self, now: Time, event: Event, actions: &mut Actions) {
        let mut out = Out { seq: self.seq, actions };
        self.seq = EventSeq(self.seq.0 + 1);
        self.now = self.now.max(now);
        self.apply(event, &mut out);
        self.expire(&mut out);
        self.settle(&mut out);
        self.end_doomed(&mut out);
        self.give_up_bound(&mut out);
        self.place(&mut out);
        self.settle(&mut out);
    }

    /// When to send [`Event::TimePassed`] unless another event comes first: a task will overrun its
    /// limit, or a running one has become long enough to be split for a worker that is idle.
    pub fn next_deadline(&self) -> Option<Time> {
        let overrun = self.roster.next_deadline();
        [overrun, self.next_split(), self.next_move()].into_iter().flatten().min()
    }

    /// No call is open. Workers may well be there.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty() && self.live.is_empty() && self.graph.is_empty() && self.classes.is_empty()
    }

    /// Number that the next event will get.
    pub fn next_seq(&self) -> EventSeq {
        self.seq
    }

    /// Tasks on the worker that it has not reported, wanted or not; `None` for one that is not there.
    pub fn holds(&self, worker: WorkerId) -> Option<usize> {
        self.roster.worker(worker).map(|w| w.slots.len() + w.parked.len())
    }

    /// Workers that any call may use and that have nothing to do and no result that would be lost with them, the
    /// one that rested longest first: the order in which to let them go. Only so many that as many stay as were
    /// requested.
    pub fn idle_workers(&self) -> impl Iterator<Item = WorkerId> + '_ {
        let idle = self.roster.idle_coldest_first();
        let durable = self.config.durable;
        let loses = move |worker: &Worker| !worker.parked.is_empty() || !(durable || worker.results.is_empty());
        let idle = idle.filter(move |id| self.roster.worker(*id).is_some_and(|worker| !loses(worker)));
        idle.take(self.roster.staying().saturating_sub(self.floor as usize))
    }

    pub fn stats(&self) -> Stats {
        Stats {
            calls: self.calls.len(),
            tasks: self.live.len() + self.graph.active,
            known: self.graph.len(),
            queued: self.calls.values().map(Call::waiting).sum(),
            workers: self.roster.len(),
            starting: self.roster.starting(),
            idle: self.roster.idle(),
            busy: self.roster.busy(),
            stale: self.stale,
        }
    }
}
