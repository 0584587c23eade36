//! The node by itself: words of the scheduler and of workers in, words to them out. Worker processes are the far ends of sockets.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use rustdask_core::cluster::{FromNode, NodeSpec, Pickle, PicklePlace, RunOnNode, Source, Thing, ToNode, Versions};
use rustdask_core::ending::Obituary;
use rustdask_core::message::{Body, Extent, Report, Timings, ToWorker};
use rustdask_core::nested::{Ended, Fault};
use rustdask_core::{Attempt, BlobId, CallId, NodeId, SegmentId, TaskId, WorkerId};
use rustdask_runtime::connection::Connection;
use rustdask_runtime::delivery::{Delivery, Reported};
use rustdask_runtime::wire::{Inbox, Read};
use rustdask_runtime::workers::{Command, Owner, TaskNews};
use rustix::net::{socketpair, AddressFamily, SocketFlags, SocketType};
use tokio::sync::mpsc;

use super::core::{Errand, Node, Parts};
use super::relay::Relay;
use crate::data::{Holdings, Peers, Received, Unfetched};
use crate::transport::Security;

const NODE: NodeId = NodeId(3);
const ATTEMPT: Attempt = Attempt(1);
/// There is no such process.
const PID: i32 = i32::MAX;
/// A client's.
const SEGMENT: SegmentId = SegmentId(1 << 62);

type Said = Rc<RefCell<VecDeque<(FromNode, Bytes)>>>;

struct World {
    relay: Relay,
    said: Said,
    orders: mpsc::UnboundedReceiver<Command>,
    errands: mpsc::UnboundedReceiver<Errand>,
    notices: Arc<Mutex<Vec<String>>>,
}

impl World {
    fn new(workers: u32) -> Self {
        let (orders, commands) = mpsc::unbounded_channel();
        let (errand, errands) = mpsc::unbounded_channel();
        let notices = Arc::<Mutex<Vec<String>>>::default();
        let noted = notices.clone();
        let node = Node::new(Parts {
            spec: NodeSpec { workers, ..NodeSpec::default() },
            holdings: Holdings::new(None, std::env::temp_dir()).unwrap(),
            peers: Arc::new(Peers::new(Security::default(), Versions::default())),
            notice: Arc::new(move |notice| noted.lock().unwrap().push(format!("{notice:?}"))),
            worker_memory_limit_bytes: 0,
            orders,
            errands: errand,
        });
        let relay = Relay { node: Rc::new(RefCell::new(node)), happened: Rc::default() };
        Self { relay, said: Said::default(), orders: commands, errands, notices }
    }

    /// A node with so many workers, which the scheduler knows.
    fn ready(workers: u32) -> (Self, Vec<Worker>) {
        let mut world = Self::new(workers);
        world.join(NODE, None);
        world.said();
        let started = (0..workers).map(|_| world.start_worker()).collect();
        world.said();
        (world, started)
    }

    fn join(&self, number: NodeId, before: Option<u64>) {
        let said = self.said.clone();
        let uplink = move |message: &FromNode, body| said.borrow_mut().push_back((message.clone(), body));
        self.node().joined(number, before, Box::new(uplink));
    }

    fn start_worker(&mut self) -> Worker {
        let Ok(Command::Start(worker)) = self.orders.try_recv() else { panic!("no worker is asked for") };
        let (near, far) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        let connection = Connection::new(worker, 0, Arc::new(near));
        self.relay.starting(&connection);
        assert!(connection.started(PID));
        self.relay.started(&connection);
        self.relay.ready(&connection);
        Worker { connection, far, inbox: Inbox::default() }
    }

    fn node(&self) -> std::cell::RefMut<'_, Node> {
        self.relay.node.borrow_mut()
    }

    fn tell(&self, message: ToNode, body: &[u8]) {
        let mut node = self.node();
        node.handle(message, body.to_vec());
        node.flush();
    }

    fn run(&self, worker: &Worker, run: RunOnNode, body: &[u8]) {
        self.tell(ToNode::Run { worker: worker.connection.worker, run }, body);
    }

    /// What the scheduler has been told since.
    fn said(&self) -> Vec<(FromNode, Bytes)> {
        self.said.borrow_mut().drain(..).collect()
    }

    fn words(&self) -> Vec<FromNode> {
        self.said().into_iter().map(|(message, _)| message).collect()
    }

    fn errand(&mut self) -> (Thing, Vec<NodeId>) {
        let errand = self.errands.try_recv().expect("something is to be got");
        (errand.thing, errand.from)
    }

    fn arrives(&self, thing: Thing, parts: &[&[u8]]) {
        let mut node = self.node();
        node.arrived(thing, Ok(Received::of(parts)));
        node.flush();
    }

    fn reports(&self, worker: &Worker, task: u64, report: Report, pickle: &[u8]) {
        let (body, bytes) = (Reported::Inline(pickle.to_vec()), pickle.len() as u64);
        let delivery = Delivery::Report { report, body, buffers: vec![], timings: Timings::default(), bytes };
        self.relay.news(&worker.connection, vec![TaskNews::Finished(TaskId(task), ATTEMPT, delivery)]);
    }
}

/// A worker process, as the node sees it.
struct Worker {
    connection: Arc<Connection>,
    far: OwnedFd,
    inbox: Inbox,
}

impl Worker {
    /// What it has been told since.
    fn heard(&mut self) -> Vec<(ToWorker, Vec<u8>)> {
        while self.inbox.read(self.far.as_fd(), false).unwrap() == Read::Some {}
        std::iter::from_fn(|| self.inbox.next_frame().unwrap()).map(|frame| (frame.message, frame.body)).collect()
    }

    /// The tasks that it has been given since.
    fn runs(&mut self) -> Vec<u64> {
        let task = |(message, _)| match message {
            ToWorker::Run(run) => Some(run.task.0),
            _ => None,
        };
        self.heard().into_iter().filter_map(task).collect()
    }

    fn id(&self) -> WorkerId {
        self.connection.worker
    }
}

fn inline(bytes: usize) -> Pickle {
    Pickle { place: PicklePlace::Inline { bytes: bytes as u32 }, buffers: vec![] }
}

fn task(task: u64, inputs: Vec<(u64, Source)>) -> RunOnNode {
    let inputs = inputs.into_iter().map(|(task, source)| (TaskId(task), source)).collect();
    let (blobs, granted) = (vec![], vec![]);
    RunOnNode { call: CallId(5), task: TaskId(task), attempt: ATTEMPT, blobs, pickle: inline(4), inputs, granted }
}

fn nodes(numbers: &[u32]) -> Source {
    Source::Nodes(numbers.iter().copied().map(NodeId).collect())
}

#[test]
fn workers_are_started_and_replaced() {
    let mut world = World::new(2);
    assert!(world.orders.try_recv().is_err(), "not before there is a scheduler");
    world.join(NODE, None);
    assert!(matches!(&world.words()[..], [FromNode::Joined(spec)] if spec.workers == 2));
    let (one, two) = (world.start_worker(), world.start_worker());
    assert_eq!((NodeId::of(one.id()), NodeId::of(two.id())), (NODE, NODE));
    let joined = |worker: &Worker| FromNode::WorkerJoined { worker: worker.id(), pid: PID as u32 };
    assert_eq!(world.words(), [joined(&one), joined(&two)]);
    assert!(world.orders.try_recv().is_err(), "no more than two");

    world.run(&one, task(7, vec![]), b"args");
    let obituary = Obituary { signal: Some(9), ..Obituary::default() };
    // It was told to end, as far as it is known here.
    world.relay.lost(&one.connection, obituary.clone(), false);
    assert_eq!(world.words(), [FromNode::WorkerLost { worker: one.id(), obituary }]);
    assert!(world.node().is_drained());
    world.reports(&one, 7, Report::Results, b"late");
    assert_eq!(world.words(), [], "what a worker says that was given up does not count");
}

#[test]
fn a_worker_that_cannot_be_started_is_tried_again_and_not_for_ever() {
    let mut world = World::new(1);
    world.join(NODE, None);
    world.said();
    let Ok(Command::Start(worker)) = world.orders.try_recv() else { panic!("no worker is asked for") };
    world.relay.not_started(worker, "no python".into());
    assert!(matches!(&world.words()[..], [FromNode::WorkerLost { obituary, .. }] if obituary.reason.is_some()));
    assert!(world.orders.try_recv().is_err(), "not at once");
    assert!(world.notices.lock().unwrap()[0].contains("no python"));
    for _ in 0..4 {
        let mut node = world.node();
        node.starts.hurry();
        node.beat();
        drop(node);
        assert!(world.node().fatal.is_none());
        let Ok(Command::Start(worker)) = world.orders.try_recv() else { panic!("no worker is asked for") };
        world.relay.not_started(worker, "no python".into());
    }
    assert!(world.node().fatal.as_ref().unwrap().contains("no python"));
}

#[test]
fn tasks_go_to_their_worker_with_what_they_name() {
    let (world, mut workers) = World::ready(1);
    let worker = &mut workers[0];
    let (settings, function) = (BlobId(1), BlobId(2));
    world.tell(ToNode::Blob { blob: settings, pickle: inline(3) }, b"set");
    world.tell(ToNode::Blob { blob: function, pickle: inline(3) }, b"fun");
    let inputs = vec![(20, Source::Inline { bytes: 5 }), (21, Source::Value(Some(inline(6))))];
    let run = RunOnNode { blobs: vec![settings, function], ..task(7, inputs) };
    world.run(worker, run.clone(), b"argssmallvalued");
    let heard = worker.heard();
    let bodies: Vec<&[u8]> = heard.iter().map(|(_, body)| &body[..]).collect();
    assert_eq!(bodies, [&b"small"[..], b"valued", b"set", b"fun", b"args"]);
    let Some((ToWorker::Run(told), _)) = heard.last() else { panic!("{heard:?}") };
    let linked = told.linked.as_ref().unwrap();
    assert_eq!((told.call, told.task, told.attempt, told.items), (CallId(5), TaskId(7), ATTEMPT, 1));
    assert_eq!((&told.blobs, &linked.inputs), (&run.blobs, &vec![TaskId(20), TaskId(21)]));

    // All that is known by now.
    let again = RunOnNode {
        blobs: vec![settings, function],
        ..task(8, vec![(20, Source::Inline { bytes: 5 }), (21, Source::Value(None))])
    };
    world.run(worker, again, b"argssmall");
    assert_eq!(worker.heard().len(), 1);
}

#[test]
fn a_task_waits_for_what_other_nodes_have() {
    let (mut world, mut workers) = World::ready(1);
    let worker = &mut workers[0];
    world.tell(ToNode::Segment { segment: SEGMENT, bytes: 100_000, nodes: vec![NodeId(9), NODE] }, b"");
    let range = Extent { segment: SEGMENT, offset: 64, bytes: 1000 };
    let run = RunOnNode {
        pickle: Pickle { place: PicklePlace::Inline { bytes: 4 }, buffers: vec![range] },
        ..task(7, vec![(20, nodes(&[8, 9]))])
    };
    world.run(worker, run, b"args");
    let mut errands = [world.errand(), world.errand()];
    errands.sort_by_key(|(thing, _)| matches!(thing, Thing::Segment(_)));
    let (result, segment) = (Thing::Result(TaskId(20)), Thing::Segment(SEGMENT));
    assert_eq!(errands, [(result, vec![NodeId(8), NodeId(9)]), (segment, vec![NodeId(9)])]);
    // Another task wants the same, and it is not got twice.
    world.run(worker, task(8, vec![(20, nodes(&[8, 9]))]), b"args");
    assert!(world.errands.try_recv().is_err());
    assert!(worker.heard().is_empty());

    world.arrives(result, &[b"pickle", &[1; 70_000]]);
    assert_eq!(world.words(), [FromNode::Copied { task: TaskId(20) }]);
    assert_eq!(worker.runs(), [8]);
    world.arrives(segment, &[&[2; 100_000]]);
    assert_eq!(world.words(), [FromNode::Segment { segment: SEGMENT, bytes: 100_000 }]);
    let heard = worker.heard();
    let Some((ToWorker::Run(told), body)) = heard.last() else { panic!("{heard:?}") };
    let extent = told.buffers[0].extent;
    assert_eq!((extent.segment, extent.offset, extent.bytes, &body[..]), (SEGMENT, 64, 1000, &b"args"[..]));
    assert!(matches!(heard[0], (ToWorker::Segment { segment: SEGMENT, bytes: 100_000 }, _)), "{heard:?}");
}

#[test]
fn what_nobody_has_is_said() {
    let (mut world, workers) = World::ready(1);
    let worker = &workers[0];
    let thing = Thing::Result(TaskId(20));
    world.run(worker, task(7, vec![(20, nodes(&[8]))]), b"args");
    world.run(worker, task(8, vec![(20, nodes(&[8, 9]))]), b"args");
    assert_eq!(world.errand().1, [NodeId(8)]);
    world.node().arrived(thing, Err(Unfetched::Missing(vec![NodeId(8)])));
    // The second task has named one more.
    assert_eq!((world.errand().1, world.words()), (vec![NodeId(9)], vec![]));
    world.node().arrived(thing, Err(Unfetched::Missing(vec![NodeId(9)])));
    let unfetched = |task| FromNode::Unfetched {
        worker: worker.id(),
        task: TaskId(task),
        attempt: ATTEMPT,
        missing: vec![(thing, NodeId(9))],
    };
    assert_eq!(world.words(), [unfetched(7), unfetched(8)]);
    assert!(world.node().is_drained());

    world.run(worker, task(7, vec![(20, nodes(&[NODE.0]))]), b"args");
    assert_eq!(world.errand().1, []);
    world.node().arrived(thing, Err(Unfetched::Missing(vec![])));
    let words = world.words();
    let [FromNode::Unfetched { missing, .. }] = &words[..] else { panic!("{words:?}") };
    assert_eq!(*missing, [(thing, NODE)]);
}

#[test]
fn a_task_for_whose_input_there_is_no_room_is_given_back() {
    let (mut world, workers) = World::ready(1);
    world.run(&workers[0], task(7, vec![(20, nodes(&[8]))]), b"args");
    let (thing, _) = world.errand();
    world.node().arrived(thing, Err(Unfetched::NoRoom(std::io::Error::other("disk full"))));
    let words = world.words();
    assert!(matches!(&words[..], [FromNode::Unfetched { missing, .. }] if missing.is_empty()), "{words:?}");
    assert!(world.notices.lock().unwrap()[0].contains("disk full"));
}

#[test]
fn tasks_are_taken_back() {
    let (mut world, mut workers) = World::ready(1);
    let worker = workers[0].id();
    world.run(&workers[0], task(7, vec![(20, nodes(&[8]))]), b"args");
    world.run(&workers[0], task(8, vec![]), b"args");
    workers[0].heard();
    let retract = |task| ToNode::Retract { worker, task: TaskId(task), attempt: ATTEMPT };
    let returned = |task, kept| FromNode::Returned { worker, task: TaskId(task), attempt: ATTEMPT, kept };
    world.tell(retract(7), b"");
    assert_eq!(world.words(), [returned(7, 0)]);
    let (thing, _) = world.errand();
    world.arrives(thing, &[b"pickle"]);
    assert_eq!(workers[0].runs(), [0u64; 0], "it is not wanted any more");
    world.said();

    world.tell(retract(8), b"");
    assert!(matches!(workers[0].heard()[..], [(ToWorker::Retract { task: TaskId(8), attempt: ATTEMPT }, _)]));
    assert_eq!(world.words(), []);
    world.relay.news(&workers[0].connection, vec![TaskNews::Returned(TaskId(8), ATTEMPT, 0)]);
    assert_eq!(world.words(), [returned(8, 0)]);
    assert!(world.node().is_drained());
}

#[test]
fn small_results_go_with_the_report_and_large_ones_stay() {
    let (world, workers) = World::ready(1);
    let holdings = world.node().holdings.clone();
    for (number, report, pickle, goes) in [
        (7, Report::Results, vec![1; 4 << 10], true),
        (8, Report::Results, vec![2; (4 << 10) + 1], false),
        (9, Report::Error, vec![3; 100 << 10], true),
        (10, Report::Error, vec![4; 2 << 20], false),
    ] {
        world.run(&workers[0], task(number, vec![]), b"args");
        world.reports(&workers[0], number, report, &pickle);
        let said = world.said();
        let [(FromNode::Finished { task, bytes, report: said, .. }, body)] = &said[..] else { panic!("{said:?}") };
        assert_eq!((task.0, *bytes, *said), (number, pickle.len() as u64, report));
        assert_eq!(&body[..], if goes { &pickle[..] } else { b"" });
        let thing = Thing::Result(TaskId(number));
        assert_eq!(holdings.has(thing), !goes);
        world.tell(ToNode::ForgetResult { task: TaskId(number) }, b"");
        assert!(!holdings.has(thing));
    }
}

#[test]
fn a_report_that_nobody_waits_for_is_dropped() {
    let (world, workers) = World::ready(1);
    world.run(&workers[0], task(7, vec![]), b"args");
    world.reports(&workers[0], 7, Report::Results, &[1; 10_000]);
    world.tell(ToNode::ForgetResult { task: TaskId(7) }, b"");
    world.said();
    world.reports(&workers[0], 7, Report::Results, &[1; 10_000]);
    assert_eq!(world.words(), []);
    assert!(!world.node().holdings.has(Thing::Result(TaskId(7))));
}

#[test]
fn workers_forget_small_results_when_no_task_takes_them() {
    let (world, mut workers) = World::ready(1);
    let takes = |number| task(number, vec![(20, Source::Inline { bytes: 5 })]);
    world.run(&workers[0], takes(7), b"argssmall");
    world.run(&workers[0], takes(8), b"argssmall");
    world.reports(&workers[0], 7, Report::Results, b"one");
    world.run(&workers[0], task(9, vec![]), b"args");
    let forgets = |worker: &mut Worker| {
        worker
            .heard()
            .iter()
            .filter(|(message, _)| matches!(message, ToWorker::ForgetResult { task: TaskId(20) }))
            .count()
    };
    assert_eq!(forgets(&mut workers[0]), 0);
    world.reports(&workers[0], 8, Report::Results, b"two");
    world.run(&workers[0], task(10, vec![]), b"args");
    assert_eq!(forgets(&mut workers[0]), 1);
    assert!(world.node().passing.is_empty());
}

#[test]
fn workers_forget_what_the_scheduler_forgets() {
    let (world, mut workers) = World::ready(1);
    world.tell(ToNode::Blob { blob: BlobId(1), pickle: inline(3) }, b"fun");
    let run = RunOnNode { blobs: vec![BlobId(1)], ..task(7, vec![(21, Source::Value(Some(inline(6))))]) };
    world.run(&workers[0], run, b"argsvalued");
    workers[0].heard();
    world.tell(ToNode::ForgetBlob { blob: BlobId(1) }, b"");
    world.tell(ToNode::ForgetResult { task: TaskId(21) }, b"");
    world.run(&workers[0], task(8, vec![]), b"args");
    let heard: Vec<ToWorker> = workers[0].heard().into_iter().map(|(message, _)| message).collect();
    let forgotten = [ToWorker::ForgetResult { task: TaskId(21) }, ToWorker::ForgetBlob { blob: BlobId(1) }];
    assert_eq!(heard[..2], forgotten);
    let node = world.node();
    assert!(node.blobs.is_empty() && node.values.is_empty() && !node.holdings.has(Thing::Result(TaskId(21))));
}

#[test]
fn another_scheduler_is_told_what_is_here() {
    let (mut world, workers) = World::ready(2);
    world.run(&workers[0], task(7, vec![]), b"args");
    world.reports(&workers[0], 7, Report::Results, &[1; 10_000]);
    world.run(&workers[0], task(8, vec![(21, Source::Value(Some(inline(6))))]), b"argsvalued");
    world.run(&workers[1], task(9, vec![(20, nodes(&[8]))]), b"args");
    world.said();
    world.node().disconnected();
    assert!(world.node().is_drained());
    world.reports(&workers[0], 8, Report::Results, b"late");

    let number = NodeId(4);
    world.join(number, Some(77));
    let holds = FromNode::Holds { cluster: 77, results: vec![(TaskId(7), 10_000)], segments: vec![] };
    assert!(matches!(&world.words()[..], [FromNode::Joined(_)]));
    assert!(world.orders.try_recv().is_err(), "the old workers have not ended");
    world.relay.lost(&workers[0].connection, Obituary::default(), false);
    world.relay.lost(&workers[1].connection, Obituary::default(), false);
    assert_eq!(world.words(), [], "the new scheduler knows nothing of them");
    let workers = [world.start_worker(), world.start_worker()];
    let joined = workers.map(|worker| FromNode::WorkerJoined { worker: worker.id(), pid: PID as u32 });
    assert!(matches!(joined[0], FromNode::WorkerJoined { worker, .. } if NodeId::of(worker) == number));
    let [one, two] = joined;
    assert_eq!(world.words(), [one, holds, two]);
}

#[test]
fn workers_hear_of_the_ends_of_tasks_that_they_have_submitted() {
    let (mut world, mut workers) = World::ready(1);
    let worker = workers[0].id();
    let ended = |task, how, from| ToNode::Ended { worker, task: TaskId(task), how, from };
    world.tell(ended(30, Ended::Finished, Source::Inline { bytes: 5 }), b"small");
    let failed = Ended::Failed { task: TaskId(30), name: "f".into(), fault: Fault::Raised };
    world.tell(ended(31, failed.clone(), Source::Inline { bytes: 6 }), b"raised");
    let cancelled = Ended::Failed { task: TaskId(32), name: "f".into(), fault: Fault::Cancelled };
    world.tell(ended(32, cancelled.clone(), Source::Inline { bytes: 0 }), b"");
    world.tell(ended(33, Ended::Finished, nodes(&[8])), b"");
    let told = |task, how| ToWorker::Ended { task: TaskId(task), how, body: Body::Inline, buffers: vec![] };
    let expected = [
        (told(30, Ended::Finished), b"small".to_vec()),
        (told(31, failed), b"raised".to_vec()),
        (told(32, cancelled), vec![]),
    ];
    assert_eq!(workers[0].heard(), expected);

    let (thing, from) = world.errand();
    assert_eq!((thing, from), (Thing::Result(TaskId(33)), vec![NodeId(8)]));
    world.arrives(thing, &[b"larger"]);
    assert_eq!(workers[0].heard(), [(told(33, Ended::Finished), b"larger".to_vec())]);

    world.said();
    world.tell(ended(34, Ended::Finished, nodes(&[8])), b"");
    let (thing, _) = world.errand();
    world.node().arrived(thing, Err(Unfetched::Missing(vec![NodeId(8)])));
    assert_eq!(world.words(), [FromNode::Untold { worker, task: TaskId(34), missing: vec![NodeId(8)] }]);
}

#[test]
fn what_a_worker_prints_belongs_to_the_call_of_the_task_that_it_runs() {
    let (world, workers) = World::ready(1);
    world.run(&workers[0], task(7, vec![]), b"args");
    let output = rustdask_runtime::lines::Output { error_stream: true, text: b"hello\n".to_vec(), log: false };
    world.relay.output(&workers[0].connection, output);
    let word = FromNode::Output { call: Some(CallId(5)), error_stream: true, log: false };
    assert_eq!(world.said(), [(word, Bytes::from_static(b"hello\n"))]);
}

#[test]
fn a_node_that_leaves_says_so_and_starts_no_workers() {
    let (mut world, workers) = World::ready(1);
    world.run(&workers[0], task(7, vec![]), b"args");
    world.tell(ToNode::Stop, b"");
    assert_eq!(world.words(), [FromNode::Leaving]);
    assert!(!world.node().is_drained());
    world.reports(&workers[0], 7, Report::Results, b"done");
    assert!(world.node().is_drained());
    world.relay.lost(&workers[0].connection, Obituary::default(), true);
    assert!(world.orders.try_recv().is_err());
}
