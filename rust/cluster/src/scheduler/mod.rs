//! The scheduler of a cluster: the machine of `rustdask-core` behind sockets.
//!
//! Guarantees:
//! - No pickle is opened here, and no data passes through, except for what is smaller than a question for it.
//! - What a client or node has here goes with its connection.
//! - A peer that breaks the protocol, or takes nothing of what it is sent, loses its connection, and nobody else notices.
//!
//! One task serves each connection. Whatever it hears becomes an event of the machine, whose orders [`shell`] carries out.

mod client;
mod complaints;
mod nodes;
mod reports;
mod shell;
mod task;

use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use rustdask_core::cluster::{Answer, FromClient, FromNode, Hello, Info, Role, ToClient, Versions, Welcome};
use rustdask_core::ending::Obituary;
use rustdask_core::scheduler::Config;
use rustdask_core::{Event, NodeId, SegmentId, TaskId, WorkerId};
use rustdask_runtime::driver::Driver;

use crate::transport::{self, Connection, Listener};

use client::{Client, Session};
use complaints::Complaints;
use nodes::{Node, Nodes};
use reports::Reports;
use shell::ClusterShell;
use task::Task;

/// A node that has said nothing for so long is given up.
pub const NODE_TIMEOUT: Duration = Duration::from_secs(30);
/// Numbers of peers begin with one of so many, other ones with each start.
const FIRST_NUMBERS: u32 = 1 << 18;
/// How often silent nodes are looked for.
const LOOK: Duration = Duration::from_secs(1);
/// A client that does not take what it is sent is not listened to beyond so many bytes,
const PAUSE_BYTES: usize = 64 << 20;
/// and any peer is given up beyond these.
const MAX_BACKLOG_BYTES: usize = 1 << 30;

pub struct Options {
    pub versions: Versions,
    pub node_timeout: Duration,
}

pub(crate) struct Scheduler {
    driver: Arc<Driver<ClusterShell>>,
    nodes: Arc<Nodes>,
    clients: Mutex<Vec<Arc<Client>>>,
    versions: Versions,
    cluster: u64,
    began: Instant,
    next_number: AtomicU32,
    complaints: Complaints,
}

/// Serve until `stop`.
pub async fn serve(mut listener: Listener, options: Options, stop: impl Future<Output = ()>) {
    let scheduler = Scheduler::new(options.versions);
    let mut looks = tokio::time::interval(LOOK);
    let mut stop = std::pin::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => return,
            accepted = listener.accept() => match accepted {
                Ok(connection) => drop(tokio::spawn(scheduler.clone().serve_connection(connection))),
                Err(refused) => scheduler.complaints.say(&refused),
            },
            _ = looks.tick() => scheduler.give_up_silent(options.node_timeout),
        }
    }
}

impl Scheduler {
    fn new(versions: Versions) -> Arc<Self> {
        let nodes: Arc<Nodes> = Arc::default();
        let cluster = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos() as u64);
        let config = Config { open: true, max_workers: 0, core_budget: u32::MAX, ..Config::default() };
        let shell_nodes = nodes.clone();
        Arc::new(Self {
            driver: Driver::new(config, |_| ClusterShell::new(shell_nodes)),
            nodes,
            clients: Mutex::default(),
            versions,
            cluster,
            began: Instant::now(),
            // 0 is nobody's. What nodes still have of an earlier scheduler's tasks is not taken for this one's.
            next_number: AtomicU32::new(1 + (cluster / 1000) as u32 % FIRST_NUMBERS),
            complaints: Complaints::default(),
        })
    }

    async fn serve_connection(self: Arc<Self>, mut connection: Connection) {
        let peer = connection.peer();
        // Whatever was wrong with it, the connection is over. Its peer sees that, and says why.
        let Ok(hello) = connection.hello().await else { return };
        let Some(number) = self.answer(&mut connection, &hello).await else { return };
        let outcome = match hello.role {
            Role::Client => self.clone().serve_client(connection, number).await,
            Role::Node => self.clone().serve_node(connection, number, hello.versions).await,
            Role::Observer => self.serve_observer(connection).await,
            Role::Data => Ok(()),
        };
        if let Err(error) = outcome {
            self.complaints.say(&format_args!("the connection of {peer} was ended: {error}"));
        }
    }

    /// Its number, unless it is refused.
    async fn answer(&self, connection: &mut Connection, hello: &Hello) -> Option<u32> {
        let checked = match hello.role {
            // What is only different is for the peer to warn of.
            Role::Client | Role::Node => transport::check_versions(&self.versions, &hello.versions).map(|_| ()),
            Role::Observer => Ok(()),
            Role::Data => Err("the scheduler has no data; nodes have".into()),
        };
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let welcome = || Welcome { cluster: self.cluster, number, versions: self.versions.clone() };
        let refused = checked.is_err();
        let answer = checked.map_or_else(Answer::Refused, |()| Answer::Welcome(welcome()));
        connection.send(&answer, &[]).await.ok()?;
        (!refused).then_some(number)
    }

    async fn serve_client(self: Arc<Self>, connection: Connection, number: u32) -> io::Result<()> {
        let (mut reader, outbox) = connection.split(MAX_BACKLOG_BYTES);
        let mut session = Session::new(number, outbox.clone(), self.clone());
        let client = session.client().clone();
        for node in self.nodes.all() {
            client.tell(&ToClient::Peer { node: node.id, address: node.spec.address.clone() }, Bytes::new());
        }
        self.clients.lock().expect("no holder panics").push(client.clone());
        let outcome = async {
            while let Some(frame) = reader.next::<FromClient>().await? {
                session.handle(frame.message, frame.body.into())?;
                outbox.until_below(PAUSE_BYTES).await;
            }
            Ok(())
        };
        let outcome = outcome.await;
        self.clients.lock().expect("no holder panics").retain(|other| !Arc::ptr_eq(other, &client));
        outcome
    }

    async fn serve_node(self: Arc<Self>, connection: Connection, number: u32, versions: Versions) -> io::Result<()> {
        let (mut reader, outbox) = connection.split(MAX_BACKLOG_BYTES);
        let spec = match reader.next::<FromNode>().await? {
            Some(frame) => match frame.message {
                FromNode::Joined(spec) => spec,
                _ => return Err(garbled("a node speaks before it has said what it is")),
            },
            None => return Ok(()),
        };
        let node = Node::new(NodeId(number), spec, versions, outbox);
        let peer = ToClient::Peer { node: node.id, address: node.spec.address.clone() };
        self.tell_clients(&peer, &Bytes::new());
        let mut reports = Reports::new(node.clone(), self.clone());
        let outcome = async {
            while let Some(frame) = reader.next::<FromNode>().await? {
                reports.handle(frame.message, frame.body.into())?;
            }
            Ok(())
        };
        let outcome = outcome.await;
        drop(reports);
        self.tell_clients(&ToClient::PeerGone { node: node.id }, &Bytes::new());
        outcome
    }

    async fn serve_observer(&self, mut connection: Connection) -> io::Result<()> {
        connection.send(&ToClient::Info(self.info()), &[]).await
    }

    fn tell_clients(&self, message: &ToClient, body: &Bytes) {
        let clients = self.clients.lock().expect("no holder panics");
        clients.iter().for_each(|client| client.tell(message, body.clone()));
    }

    /// Somebody could not get a result from a node that is said to have it.
    fn unfetched(&self, task: TaskId, node: NodeId) {
        let worker = self.nodes.get(node).and_then(|node| node.any_worker());
        self.driver.with(|state, events| {
            if let Some(work) = state.payload(task) {
                work.0.left(node);
            }
            // What a node had that is gone is known to be lost.
            let Some(worker) = worker else { return };
            let holders = state.machine().holders(task).filter(|worker| NodeId::of(*worker) == node);
            let holders: Vec<WorkerId> = holders.collect();
            let on_node = if holders.is_empty() { vec![worker] } else { holders };
            events.extend(on_node.into_iter().map(|worker| Event::ReplicaLost { worker, task }));
        });
    }

    /// The task, while it is known.
    fn task(&self, task: TaskId) -> Option<Arc<Task>> {
        self.driver.with(|state, _| state.payload(task).map(|work| work.0.clone()))
    }

    fn segment_missing(&self, segment: SegmentId, node: NodeId) {
        if self.nodes.segment_missing(segment, node) {
            self.segments_lost(&[segment]);
        }
    }

    /// A worker is gone. `heir`: another of its node, to stand for what that has.
    fn lose(&self, worker: WorkerId, heir: Option<WorkerId>, obituary: Obituary) {
        self.driver.with(|state, events| {
            if let Some(heir) = heir {
                let left = state.machine().results_on(worker);
                events.extend(left.map(|task| Event::ReplicaAdded { worker: heir, task }));
            }
            state.shell.obituary = Some((worker, obituary));
            events.push_back(Event::WorkerLost { worker });
        });
    }

    fn segments_lost(&self, segments: &[SegmentId]) {
        for &segment in segments {
            self.tell_clients(&ToClient::LostSegment { segment }, &Bytes::new());
        }
    }

    /// The connection of a node that says nothing any more is closed, and what it had is made again elsewhere.
    fn give_up_silent(&self, after: Duration) {
        let silent = self.nodes.all().into_iter().filter(|node| node.state().heard.elapsed() > after);
        silent.for_each(|node| node.give_up(&format!("node {} has said nothing for {after:?}", node.spec.name)));
    }

    fn info(&self) -> Info {
        let stats = self.driver.stats();
        Info {
            cluster: self.cluster,
            versions: self.versions.clone(),
            uptime: self.began.elapsed(),
            clients: self.clients.lock().expect("no holder panics").len() as u32,
            tasks: stats.known as u64,
            active: stats.tasks as u64,
            queued: stats.queued as u64,
            nodes: self.nodes.all().iter().map(|node| node.info()).collect(),
        }
    }
}

fn garbled(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}
