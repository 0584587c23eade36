//! The scheduler over real sockets, with nodes and clients that only speak.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use rustdask_cluster::scheduler::{self, Options};
use rustdask_cluster::transport::{connect, Address, Listener, Outbox, Port, Reader, Security};
use rustdask_core::cluster::{FromClient, FromNode, NodeSpec, Role, RunOnNode, Source, ToClient, ToNode, Versions};
use rustdask_core::ending::{Obituary, Unreported};
use rustdask_core::message::{Body, Report, Timings};
use rustdask_core::nested::{Ended, Fault, FromTask, Numbers, Submitted};
use rustdask_core::{BlobId, CallId, NodeId, Priority, TaskId, TaskSpec, WorkerId};
use serde::de::DeserializeOwned;
use serde::Serialize;
use tokio::sync::oneshot;

const PATIENCE: Duration = Duration::from_secs(20);
const CALL: CallId = CallId(0);

struct Cluster {
    address: Address,
    stop: Option<oneshot::Sender<()>>,
    serving: tokio::task::JoinHandle<()>,
}

impl Cluster {
    async fn start() -> Self {
        let listener = Listener::bind("127.0.0.1", Port::Exactly(0), Security::default()).await.unwrap();
        let address = listener.address();
        let (stop, stopped) = oneshot::channel();
        let options = Options { versions: versions(), node_timeout: Duration::from_secs(3600) };
        let serving = tokio::spawn(async move {
            scheduler::serve(listener, options, async { drop(stopped.await) }).await;
        });
        Self { address, stop: Some(stop), serving }
    }

    async fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        self.serving.await.unwrap();
    }

    async fn peer<I: DeserializeOwned>(&self, role: Role) -> Peer<I> {
        let mut connection = connect(&self.address, &Security::default(), PATIENCE).await.unwrap();
        let welcome = connection.greet(role, versions()).await.unwrap();
        let (reader, outbox) = connection.split(1 << 30);
        Peer { number: welcome.number, reader, outbox, heard: VecDeque::new() }
    }

    /// A node with so many workers.
    async fn node(&self, workers: u32) -> Peer<ToNode> {
        let node: Peer<ToNode> = self.peer(Role::Node).await;
        let spec = NodeSpec { name: format!("node-{}", node.number), workers, ..NodeSpec::default() };
        node.say(&FromNode::Joined(spec), b"");
        for nth in 0..workers {
            node.say(&FromNode::WorkerJoined { worker: node.worker(nth), pid: 1 }, b"");
        }
        node
    }

    async fn client(&self) -> Peer<ToClient> {
        let client: Peer<ToClient> = self.peer(Role::Client).await;
        client.say(&FromClient::Open { call: CALL, cap: u32::MAX, crash_retries: 1 }, b"");
        let function =
            FromTask::Function { function: client.blob(), same_as: None, body: Body::Inline, buffers: vec![] };
        client.say(&FromClient::Task { call: CALL, word: function }, b"function");
        client
    }
}

fn versions() -> Versions {
    Versions { rustdask: "0.1.0".into(), python: (3, 11), libraries: vec![] }
}

struct Peer<I> {
    number: u32,
    reader: Reader,
    outbox: Outbox,
    heard: VecDeque<(I, Vec<u8>)>,
}

impl<I: DeserializeOwned> Peer<I> {
    fn say<M: Serialize>(&self, message: &M, body: &[u8]) {
        self.outbox.send(message, Bytes::copy_from_slice(body));
    }

    /// The next message of a kind. Others stay for later.
    async fn expect<T>(&mut self, kind: impl Fn(&I) -> Option<T>) -> (T, Vec<u8>) {
        if let Some(at) = self.heard.iter().position(|(message, _)| kind(message).is_some()) {
            let (message, body) = self.heard.remove(at).unwrap();
            return (kind(&message).unwrap(), body);
        }
        loop {
            let next = tokio::time::timeout(PATIENCE, self.reader.next::<I>()).await;
            let frame = next.expect("nothing is said").expect("the connection holds").expect("it is open");
            match kind(&frame.message) {
                Some(found) => return (found, frame.body),
                None => self.heard.push_back((frame.message, frame.body)),
            }
        }
    }
}

impl Peer<ToNode> {
    fn worker(&self, nth: u32) -> WorkerId {
        NodeId(self.number).worker(nth)
    }

    async fn run(&mut self) -> (WorkerId, RunOnNode, Vec<u8>) {
        let ((worker, run), body) = self
            .expect(|message| match message {
                ToNode::Run { worker, run } => Some((*worker, run.clone())),
                _ => None,
            })
            .await;
        (worker, run, body)
    }

    /// The next task for its nth worker. Those for others go to nobody.
    async fn run_on(&mut self, nth: u32) -> (WorkerId, RunOnNode, Vec<u8>) {
        loop {
            let (worker, run, body) = self.run().await;
            if worker == self.worker(nth) {
                return (worker, run, body);
            }
        }
    }

    fn finish(&self, worker: WorkerId, run: &RunOnNode, result: &[u8]) {
        let bytes = if result.is_empty() { 1 << 20 } else { result.len() as u64 };
        let finished = FromNode::Finished {
            worker,
            task: run.task,
            attempt: run.attempt,
            report: Report::Results,
            bytes,
            timings: Timings::default(),
        };
        self.say(&finished, result);
    }
}

impl Peer<ToClient> {
    fn task(&self, nth: u64) -> TaskId {
        TaskId(Numbers::of_client(self.number).take(0) + nth)
    }

    fn blob(&self) -> BlobId {
        BlobId(Numbers::of_client(self.number).take(0))
    }

    fn submit(&self, tasks: impl IntoIterator<Item = (u64, Vec<u64>)>) {
        for (nth, inputs) in tasks {
            let priority = Priority { order: nth as u32, ..Priority::default() };
            let spec = TaskSpec { task: self.task(nth), priority, wanted: true, ..TaskSpec::default() };
            let inputs = inputs.into_iter().map(|input| self.task(input)).collect();
            let task = Submitted::new(&spec, &format!("task-{nth}"), self.blob(), (Body::Inline, vec![]), inputs);
            self.say(
                &FromClient::Task { call: CALL, word: FromTask::Task(task) },
                format!("arguments {nth}").as_bytes(),
            );
        }
        self.say(&FromClient::Task { call: CALL, word: FromTask::Submit { by: None } }, b"");
    }

    async fn ended(&mut self, nth: u64) -> (Ended, Source, Vec<u8>) {
        let wanted = self.task(nth);
        let ((how, from), body) = self
            .expect(|message| match message {
                ToClient::Ended { task, how, from } if *task == wanted => Some((how.clone(), from.clone())),
                _ => None,
            })
            .await;
        (how, from, body)
    }
}

#[tokio::test]
async fn a_task_goes_to_a_node_and_its_small_result_to_the_client() {
    let cluster = Cluster::start().await;
    let mut node = cluster.node(1).await;
    let mut client = cluster.client().await;
    client.submit([(0, vec![])]);
    let (blob, pickle) = node
        .expect(|message| match message {
            ToNode::Blob { blob, .. } => Some(*blob),
            _ => None,
        })
        .await;
    assert_eq!((blob, &pickle[..]), (client.blob(), &b"function"[..]));
    let (worker, run, body) = node.run().await;
    assert_eq!((worker, run.task, &body[..]), (node.worker(0), client.task(0), &b"arguments 0"[..]));
    node.finish(worker, &run, b"result");
    let (how, from, body) = client.ended(0).await;
    assert_eq!((how, from, &body[..]), (Ended::Finished, Source::Inline { bytes: 6 }, &b"result"[..]));
    cluster.stop().await;
}

#[tokio::test]
async fn a_large_result_stays_and_who_takes_it_is_told_where() {
    let cluster = Cluster::start().await;
    let mut node = cluster.node(1).await;
    let mut client = cluster.client().await;
    client.submit([(0, vec![]), (1, vec![0])]);
    let (worker, run, _) = node.run().await;
    node.finish(worker, &run, b"");
    let (_, from, body) = client.ended(0).await;
    assert_eq!((from, body.len()), (Source::Nodes(vec![NodeId(node.number)]), 0));
    let (_, run, _) = node.run().await;
    assert_eq!(run.inputs, [(client.task(0), Source::Nodes(vec![NodeId(node.number)]))]);
    cluster.stop().await;
}

#[tokio::test]
async fn what_a_lost_node_had_is_made_again() {
    let cluster = Cluster::start().await;
    let mut first = cluster.node(1).await;
    let mut client = cluster.client().await;
    client.submit([(0, vec![]), (1, vec![0])]);
    let (worker, run, _) = first.run().await;
    first.finish(worker, &run, b"");
    client.ended(0).await;
    first.run().await;
    drop(first);
    let wanted = client.task(0);
    client.expect(|message| matches!(message, ToClient::Lost { task } if *task == wanted).then_some(())).await;
    let mut second = cluster.node(1).await;
    for (nth, result) in [(0, "again"), (1, "then")] {
        let (worker, run, _) = second.run().await;
        assert_eq!(run.task, client.task(nth));
        second.finish(worker, &run, result.as_bytes());
        assert_eq!(client.ended(nth).await.2, result.as_bytes());
    }
    cluster.stop().await;
}

#[tokio::test]
async fn a_task_that_ends_all_its_workers_fails_alone_and_says_how() {
    let cluster = Cluster::start().await;
    let mut node = cluster.node(1).await;
    let mut client = cluster.client().await;
    client.submit([(0, vec![]), (1, vec![])]);
    let dies = client.task(0);
    for death in 0..2 {
        let (worker, run, _) = node.run_on(death).await;
        assert_eq!(run.task, dies);
        let obituary = Obituary { signal: Some(9), ..Obituary::default() };
        node.say(&FromNode::WorkerLost { worker, obituary }, b"");
        node.say(&FromNode::WorkerJoined { worker: node.worker(death + 1), pid: 1 }, b"");
    }
    let (worker, run, _) = node.run_on(2).await;
    node.finish(worker, &run, b"lives");
    let (how, ..) = client.ended(0).await;
    let Ended::Failed { task, fault: Fault::Unreported(Unreported::Crashed { obituary, deaths }), .. } = how else {
        panic!("{how:?}");
    };
    assert_eq!((task, obituary.signal, deaths), (client.task(0), Some(9), 2));
    assert_eq!(client.ended(1).await.2, b"lives");
    cluster.stop().await;
}

#[tokio::test]
async fn what_a_node_has_outlives_the_process_that_made_it() {
    let cluster = Cluster::start().await;
    let mut node = cluster.node(1).await;
    let mut client = cluster.client().await;
    client.submit([(0, vec![])]);
    let (worker, run, _) = node.run().await;
    node.finish(worker, &run, b"");
    client.ended(0).await;
    node.say(&FromNode::WorkerLost { worker, obituary: Obituary::default() }, b"");
    node.say(&FromNode::WorkerJoined { worker: node.worker(1), pid: 1 }, b"");
    client.submit([(1, vec![0])]);
    let (_, run, _) = node.run().await;
    assert_eq!((run.task, run.inputs.len()), (client.task(1), 1));
    cluster.stop().await;
}

#[tokio::test]
async fn with_a_client_goes_what_it_had() {
    let cluster = Cluster::start().await;
    let mut node = cluster.node(1).await;
    let client = cluster.client().await;
    client.submit([(0, vec![])]);
    let (worker, run, _) = node.run().await;
    let (blob, task) = (client.blob(), client.task(0));
    drop(client);
    node.expect(|message| matches!(message, ToNode::Kill { worker: on } if *on == worker).then_some(())).await;
    node.expect(|message| matches!(message, ToNode::ForgetBlob { blob: gone } if *gone == blob).then_some(())).await;
    node.finish(worker, &run, b"late");
    node.expect(|message| matches!(message, ToNode::ForgetResult { task: gone } if *gone == task).then_some(())).await;
    cluster.stop().await;
}

#[tokio::test]
async fn who_names_what_is_another_clients_is_shown_the_door() {
    let cluster = Cluster::start().await;
    let mut client = cluster.client().await;
    let theirs = TaskId(Numbers::of_client(client.number + 1).take(0));
    let value = FromTask::Value { task: theirs, name: String::new(), body: Body::Inline, buffers: vec![] };
    client.say(&FromClient::Task { call: CALL, word: value }, b"");
    assert!(tokio::time::timeout(PATIENCE, client.reader.next::<ToClient>()).await.unwrap().unwrap().is_none());
    cluster.stop().await;
}
