//! A node's life, from joining to leaving.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::pin::{pin, Pin};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustdask_core::cluster::{FromNode, NodeSpec, Thing, ToNode, Welcome};
use rustdask_core::NodeId;
use rustdask_runtime::workers::{Command, Workers};
use tokio::sync::{mpsc, oneshot, Notify};
use tokio::task::LocalSet;
use tokio::time::{interval, sleep, timeout, MissedTickBehavior};

use super::core::{Errand, Node, Parts};
use super::leave::hand_over;
use super::link::find_scheduler;
use super::options::{NodeOptions, Notice};
use super::relay::Relay;
use crate::data::{self, fetch, Holdings, Peers, Received, Unfetched, Visit};
use crate::transport::{Address, Listener, Outbox, Reader};

const BEAT: Duration = Duration::from_secs(1);

/// Most bytes that may wait for the scheduler to take them.
const MAX_BACKLOG_BYTES: usize = 1 << 30;

/// How long a node that leaves waits for its last words to be taken.
const FAREWELL: Duration = Duration::from_secs(5);

/// Where memory is short, things are tried to be got again after a pause, so often.
const ROOM_PAUSE: Duration = Duration::from_secs(1);
const ROOM_TRIES: u32 = 30;

/// Be a node until `stop` is ready, the scheduler says so, or it is of no use any more. Needs a tokio runtime; on one with several
/// threads, data moves beside what else there is to do.
pub async fn serve(options: NodeOptions, stop: impl Future<Output = ()>) -> io::Result<()> {
    LocalSet::new().run_until(Life::begin(options, pin!(stop))).await
}

/// As [`serve`], on a runtime of its own.
pub fn serve_blocking(options: NodeOptions, stop: impl Future<Output = ()>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("rustdask-node")
        .enable_all()
        .build()?;
    let served = runtime.block_on(serve(options, stop));
    runtime.shutdown_timeout(FAREWELL);
    served
}

type Arrival = (Thing, Result<Received, Unfetched>);

/// What the node's task listens to.
struct Life<'a> {
    options: NodeOptions,
    node: Rc<RefCell<Node>>,
    happened: Rc<Notify>,
    peers: Arc<Peers>,
    errands: mpsc::UnboundedReceiver<Errand>,
    arrivals: (mpsc::UnboundedSender<Arrival>, mpsc::UnboundedReceiver<Arrival>),
    visits: mpsc::UnboundedReceiver<Visit>,
    stop: Pin<&'a mut dyn Future<Output = ()>>,
}

/// Why the node does not listen to its scheduler any more.
enum Over {
    Lost(String),
    Drained,
}

impl<'a> Life<'a> {
    async fn begin(options: NodeOptions, stop: Pin<&'a mut dyn Future<Output = ()>>) -> io::Result<()> {
        let listener = Listener::bind(&options.host, options.port, options.security.clone()).await?;
        let address = contact(&options, listener.address()).to_string();
        let holdings = Holdings::new(options.results_limit_bytes, options.local_directory.clone())?;
        let peers = Arc::new(Peers::new(options.security.clone(), options.versions.clone()));
        let (visitors, visits) = mpsc::unbounded_channel();
        let doors = tokio::spawn(data::open_doors(listener, holdings.clone(), visitors, options.versions.clone()));
        let (orders, commands) = mpsc::unbounded_channel();
        let (errand, errands) = mpsc::unbounded_channel();
        let node = Node::new(Parts {
            spec: spec(&options, address),
            holdings: holdings.clone(),
            peers: peers.clone(),
            notice: options.notice.clone(),
            worker_memory_limit_bytes: options.worker_memory_limit_bytes,
            orders: orders.clone(),
            errands: errand,
        });
        let (node, happened) = (Rc::new(RefCell::new(node)), Rc::new(Notify::new()));
        let relay = Relay { node: node.clone(), happened: happened.clone() };
        let workers = Workers::new(Rc::new(relay), holdings.memory.clone(), options.launch.clone(), options.workers);
        let serving = tokio::task::spawn_local(workers.serve(commands));
        let life = Self { options, node, happened, peers, errands, arrivals: mpsc::unbounded_channel(), visits, stop };
        let lived = life.live().await;
        doors.abort();
        let (done, stopped) = oneshot::channel();
        if orders.send(Command::Stop(done)).is_ok() {
            // An error means that it has ended already.
            let _ = stopped.await;
        }
        serving.await.map_err(io::Error::other)?;
        lived
    }

    async fn live(mut self) -> io::Result<()> {
        let mut before: Option<u64> = None;
        loop {
            let found = tokio::select! {
                found = find_scheduler(&self.options) => found.map_err(io::Error::other)?,
                () = self.stop.as_mut() => return Ok(()),
            };
            let (connection, welcome) = found;
            let (reader, outbox) = connection.split(MAX_BACKLOG_BYTES);
            self.join(&welcome, before, outbox.clone());
            match self.attend(reader).await? {
                Over::Drained => {
                    self.node.borrow_mut().uplink = None;
                    outbox.close();
                    // A scheduler that does not take it any more learns it from the end of the connection.
                    let _ = timeout(FAREWELL, outbox.closed()).await;
                    return Ok(());
                }
                Over::Lost(why) => {
                    self.node.borrow_mut().disconnected();
                    if self.node.borrow().leaving {
                        return Ok(());
                    }
                    (self.options.notice)(Notice::Lost { why: &why });
                    before = Some(welcome.cluster);
                }
            }
        }
    }

    fn join(&self, welcome: &Welcome, before: Option<u64>, outbox: Outbox) {
        let mut node = self.node.borrow_mut();
        let uplink = move |message: &FromNode, body: Bytes| outbox.send(message, body);
        node.joined(NodeId(welcome.number), before, Box::new(uplink));
        (self.options.notice)(Notice::Joined { address: &node.spec.address });
    }

    /// Until the scheduler is lost, or the node has left.
    async fn attend(&mut self, mut reader: Reader) -> io::Result<Over> {
        let mut beat = interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut drain_limit = pin!(None::<Pin<Box<tokio::time::Sleep>>>);
        let (moving, mut moved) = mpsc::unbounded_channel();
        let mut moving = Some(moving);
        let mut stopped = false;
        loop {
            if let Some(why) = self.node.borrow_mut().fatal.take() {
                return Err(io::Error::other(why));
            }
            let (leaving, drained, unsent) = {
                let node = self.node.borrow();
                (node.leaving, node.leaving && node.is_drained(), !node.addressed.is_empty())
            };
            if leaving && drain_limit.is_none() {
                drain_limit.set(Some(Box::pin(sleep(self.options.drain_limit))));
            }
            if leaving && drained {
                if let Some(moving) = moving.take() {
                    self.begin_to_hand_over(moving);
                }
            }
            tokio::select! {
                biased;
                _ = beat.tick() => self.node.borrow_mut().beat(),
                () = self.stop.as_mut(), if !stopped => {
                    stopped = true;
                    self.node.borrow_mut().leave();
                }
                () = due(drain_limit.as_mut()), if leaving && !drained => self.node.borrow_mut().condemn_all(),
                Some((thing, outcome)) = self.arrivals.1.recv() => self.node.borrow_mut().arrived(thing, outcome),
                Some(errand) = self.errands.recv() => self.run_errand(errand),
                Some(visit) = self.visits.recv() => self.receive(visit),
                thing = moved.recv() => match thing {
                    Some((thing, to)) => self.node.borrow().say(&FromNode::Moved { thing, to }, Bytes::new()),
                    None => return Ok(Over::Drained),
                },
                () = self.happened.notified() => {}
                frame = reader.next::<ToNode>() => match frame {
                    Ok(Some(frame)) => self.node.borrow_mut().handle(frame.message, frame.body),
                    Ok(None) => return Ok(Over::Lost("the scheduler has closed the connection".into())),
                    Err(error) => return Ok(Over::Lost(format!("the connection to the scheduler is lost: {error}"))),
                },
                // Nothing more is to be read for now.
                () = std::future::ready(()), if unsent => self.node.borrow_mut().flush(),
            }
        }
    }

    fn begin_to_hand_over(&self, moved: mpsc::UnboundedSender<(Thing, NodeId)>) {
        let node = self.node.borrow();
        let results = node.holdings.results().into_iter().map(|(task, _)| Thing::Result(task));
        let segments = node.holdings.segments().into_iter().map(|(segment, _)| Thing::Segment(segment));
        let values: Vec<Thing> = node.values.keys().map(|task| Thing::Result(*task)).collect();
        let things = results.chain(segments).filter(|thing| !values.contains(thing)).collect();
        tokio::spawn(timeout(self.options.drain_limit, hand_over(self.peers.clone(), node.number, things, moved)));
    }

    fn run_errand(&self, errand: Errand) {
        let (peers, arrivals) = (self.peers.clone(), self.arrivals.0.clone());
        tokio::spawn(async move {
            let outcome = get(&peers, &errand).await;
            // The node may have ended meanwhile.
            let _ = arrivals.send((errand.thing, outcome));
        });
    }

    fn receive(&self, visit: Visit) {
        let mut node = self.node.borrow_mut();
        match visit {
            Visit::Put { segment, bytes } => node.has_segment(segment, bytes),
            Visit::Take { thing, from, done } => node.take(thing, from, done),
        }
    }
}

async fn due(limit: Pin<&mut Option<Pin<Box<tokio::time::Sleep>>>>) {
    match limit.as_pin_mut() {
        Some(limit) => limit.await,
        None => std::future::pending().await,
    }
}

/// Get a thing. Where there is no room for it, there may be soon.
async fn get(peers: &Arc<Peers>, errand: &Errand) -> Result<Received, Unfetched> {
    for _ in 1..ROOM_TRIES {
        match fetch(peers, errand.thing, &errand.from).await {
            Err(Unfetched::NoRoom(_)) => sleep(ROOM_PAUSE).await,
            outcome => return outcome,
        }
    }
    fetch(peers, errand.thing, &errand.from).await
}

fn contact(options: &NodeOptions, listening: Address) -> Address {
    match &options.contact_host {
        Some(host) => Address { host: host.clone(), ..listening },
        None => listening,
    }
}

fn spec(options: &NodeOptions, address: String) -> NodeSpec {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    NodeSpec {
        name: options.name.clone(),
        address,
        workers: options.workers,
        resources: options.resources.clone(),
        memory_limit_bytes: options.results_limit_bytes.unwrap_or(0),
        pid: std::process::id(),
        host,
    }
}
