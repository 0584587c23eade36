//! Nodes without workers, on loopback, with a scheduler that does what the test says.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use rustdask_core::cluster::{Answer, DataAnswer, DataRequest, FromNode, Role, Thing, ToNode, Versions, Welcome};
use rustdask_core::frame::Limits;
use rustdask_core::{NodeId, SegmentId};
use rustdask_runtime::template::Launch;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, LocalSet};
use tokio::time::timeout;

use super::{serve, NodeOptions};
use crate::data::{fetch, Peers};
use crate::transport::{connect, Address, Connection, Listener, Outbox, Port, Reader, Security};

const SEGMENT: SegmentId = SegmentId(1 << 62);
const LIMIT: Duration = Duration::from_secs(30);
const LIMITS: Limits = Limits { header_bytes: 1 << 20, body_bytes: 0 };

struct Scheduler {
    listener: Listener,
    cluster: u64,
}

/// The scheduler's end of a node's connection.
struct Link {
    reader: Reader,
    outbox: Outbox,
}

impl Scheduler {
    async fn start(port: Port, cluster: u64) -> Self {
        Self { listener: Listener::bind("127.0.0.1", port, Security::default()).await.unwrap(), cluster }
    }

    async fn node(&mut self, number: u32) -> Link {
        let mut connection = self.listener.accept().await.unwrap();
        assert_eq!(connection.hello().await.unwrap().role, Role::Node);
        let welcome = Welcome { cluster: self.cluster, number, versions: Versions::default() };
        connection.send(&Answer::Welcome(welcome), &[]).await.unwrap();
        let (reader, outbox) = connection.split(1 << 30);
        Link { reader, outbox }
    }
}

impl Link {
    fn tell(&self, message: ToNode) {
        self.outbox.send(&message, Bytes::new());
    }

    /// What it says next, beside being alive. None: it has left.
    async fn hears(&mut self) -> Option<FromNode> {
        loop {
            match timeout(LIMIT, self.reader.next::<FromNode>()).await.unwrap().unwrap()?.message {
                FromNode::Alive(_) => {}
                other => return Some(other),
            }
        }
    }

    async fn joined(&mut self) -> Address {
        match self.hears().await {
            Some(FromNode::Joined(spec)) => spec.address.parse().unwrap(),
            other => panic!("{other:?}"),
        }
    }
}

type Notices = Arc<Mutex<Vec<String>>>;

fn options(scheduler: Address, notices: &Notices) -> NodeOptions {
    let notices = notices.clone();
    NodeOptions {
        scheduler,
        security: Security::default(),
        versions: Versions::default(),
        name: "n".into(),
        host: "127.0.0.1".into(),
        port: Port::Exactly(0),
        contact_host: None,
        workers: 0,
        resources: vec![],
        results_limit_bytes: None,
        worker_memory_limit_bytes: 0,
        local_directory: PathBuf::from("/tmp"),
        death_timeout: Some(LIMIT),
        drain_limit: LIMIT,
        launch: Launch { program: "/nowhere".into(), arguments: vec![], greeting: vec![] },
        notice: Arc::new(move |notice| notices.lock().unwrap().push(format!("{notice:?}"))),
    }
}

/// A node, and what makes it leave.
fn start(scheduler: &Scheduler) -> (JoinHandle<io::Result<()>>, oneshot::Sender<()>) {
    let (stop, stopped) = oneshot::channel();
    let stopped = async {
        // Dropped: it is to go on.
        if stopped.await.is_err() {
            std::future::pending().await
        }
    };
    let options = options(scheduler.listener.address(), &Notices::default());
    (tokio::task::spawn_local(serve(options, stopped)), stop)
}

async fn ended(node: JoinHandle<io::Result<()>>) -> io::Result<()> {
    timeout(LIMIT, node).await.unwrap().unwrap()
}

async fn local(test: impl Future<Output = ()>) {
    LocalSet::new().run_until(test).await;
}

async fn put(address: &Address, segment: SegmentId, data: &[u8]) {
    let mut client: Connection = connect(address, &Security::default(), LIMIT).await.unwrap();
    client.greet(Role::Data, Versions::default()).await.unwrap();
    client.send(&DataRequest::Put { segment, bytes: data.len() as u64 }, &[]).await.unwrap();
    client.write_from(data).await.unwrap();
    let answer = client.receive::<DataAnswer>(LIMITS).await.unwrap().unwrap().message;
    assert_eq!(answer, DataAnswer::Stored);
}

async fn get(address: &Address, segment: SegmentId) -> Option<u64> {
    let peers = Arc::new(Peers::new(Security::default(), Versions::default()));
    peers.add(NodeId(0), address.clone());
    let got = fetch(&peers, Thing::Segment(segment), &[NodeId(0)]).await.ok()?;
    Some(got.bytes())
}

#[tokio::test]
async fn a_node_lives_until_it_is_told_to_leave() {
    local(async {
        let mut scheduler = Scheduler::start(Port::Exactly(0), 1).await;
        let (node, _stop) = start(&scheduler);
        let mut link = scheduler.node(1).await;
        let address = link.joined().await;
        let alive = timeout(LIMIT, link.reader.next::<FromNode>()).await.unwrap().unwrap().unwrap();
        let FromNode::Alive(load) = alive.message else { panic!("{alive:?}") };
        assert!(load.memory_bytes > 0);
        put(&address, SEGMENT, &[7; 100_000]).await;
        assert_eq!(link.hears().await, Some(FromNode::Segment { segment: SEGMENT, bytes: 100_000 }));
        link.tell(ToNode::ForgetSegment { segment: SEGMENT });
        link.tell(ToNode::Stop);
        assert_eq!(link.hears().await, Some(FromNode::Leaving));
        assert_eq!(link.hears().await, None);
        drop(link);
        ended(node).await.unwrap();
        assert_eq!(get(&address, SEGMENT).await, None);
    })
    .await;
}

#[tokio::test]
async fn a_node_that_leaves_hands_over_what_it_has() {
    local(async {
        let mut scheduler = Scheduler::start(Port::Exactly(0), 1).await;
        let (leaver, stop) = start(&scheduler);
        let mut one = scheduler.node(1).await;
        let from = one.joined().await;
        let (stayer, stop_stayer) = start(&scheduler);
        let mut two = scheduler.node(2).await;
        let to = two.joined().await;
        one.tell(ToNode::Peer { node: NodeId(2), address: to.to_string() });
        two.tell(ToNode::Peer { node: NodeId(1), address: from.to_string() });
        put(&from, SEGMENT, &[7; 100_000]).await;
        assert!(matches!(one.hears().await, Some(FromNode::Segment { .. })));

        stop.send(()).unwrap();
        assert_eq!(one.hears().await, Some(FromNode::Leaving));
        assert_eq!(one.hears().await, Some(FromNode::Moved { thing: Thing::Segment(SEGMENT), to: NodeId(2) }));
        assert_eq!(one.hears().await, None);
        drop(one);
        ended(leaver).await.unwrap();
        assert_eq!(two.hears().await, Some(FromNode::Segment { segment: SEGMENT, bytes: 100_000 }));
        assert_eq!(get(&to, SEGMENT).await, Some(100_000));
        stop_stayer.send(()).unwrap();
        drop(two);
        ended(stayer).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_node_that_loses_its_scheduler_finds_the_next() {
    local(async {
        let mut scheduler = Scheduler::start(Port::Exactly(0), 1).await;
        let port = scheduler.listener.local().port();
        let (node, _stop) = start(&scheduler);
        let mut link = scheduler.node(1).await;
        let address = link.joined().await;
        put(&address, SEGMENT, &[7; 100_000]).await;
        drop((link, scheduler));
        assert_eq!(get(&address, SEGMENT).await, Some(100_000));

        let mut scheduler = Scheduler::start(Port::Exactly(port), 2).await;
        let mut link = scheduler.node(5).await;
        assert_eq!(link.joined().await, address);
        let holds = FromNode::Holds { cluster: 1, results: vec![], segments: vec![(SEGMENT, 100_000)] };
        assert_eq!(link.hears().await, Some(holds));
        link.tell(ToNode::Stop);
        assert_eq!(link.hears().await, Some(FromNode::Leaving));
        drop(link);
        ended(node).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_node_that_finds_no_scheduler_gives_up() {
    local(async {
        let scheduler = Scheduler::start(Port::Exactly(0), 1).await;
        let address = scheduler.listener.address();
        drop(scheduler);
        let notices = Notices::default();
        let limit = Some(Duration::from_millis(300));
        let options = NodeOptions { death_timeout: limit, ..options(address.clone(), &notices) };
        let error = timeout(LIMIT, serve(options, std::future::pending())).await.unwrap().unwrap_err().to_string();
        assert!(error.contains(&address.to_string()) && error.contains("--death-timeout"), "{error}");
        assert!(notices.lock().unwrap().iter().any(|notice| notice.contains("Lost")));
    })
    .await;
}

#[tokio::test]
async fn a_node_that_is_refused_ends() {
    local(async {
        let mut scheduler = Scheduler::start(Port::Exactly(0), 1).await;
        let (node, _stop) = start(&scheduler);
        let mut connection = scheduler.listener.accept().await.unwrap();
        connection.hello().await.unwrap();
        connection.send(&Answer::Refused("not this Python".into()), &[]).await.unwrap();
        let error = ended(node).await.unwrap_err().to_string();
        assert!(error.contains("not this Python"), "{error}");
    })
    .await;
}

#[tokio::test]
async fn a_node_hands_data_out_and_is_no_scheduler() {
    local(async {
        let mut scheduler = Scheduler::start(Port::Exactly(0), 1).await;
        let (_node, _stop) = start(&scheduler);
        let address = scheduler.node(1).await.joined().await;
        let mut client = connect(&address, &Security::default(), LIMIT).await.unwrap();
        let refused = client.greet(Role::Client, Versions::default()).await.unwrap_err().to_string();
        assert!(refused.contains("connect to the scheduler"), "{refused}");
    })
    .await;
}
