//! A client's connection to a cluster: tasks go out, word of their ends comes in, results are fetched from nodes.
//!
//! One thread does all IO. Submitting never waits for it: arrays that tasks take are on their way to a node while the
//! tasks are on theirs to the scheduler, and a node that is early waits for them.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use rustdask_core::cluster::{FromClient, Info, Role, Source, Thing, ToClient, Versions};
use rustdask_core::message::{Body, Extent};
use rustdask_core::nested::{Ended, FromTask, Numbers, Submitted};
use rustdask_core::{BlobId, CallId, NodeId, SegmentId, TaskId, TaskSpec};
use rustdask_runtime::parcel::{Contents, Parcel};
use rustdask_runtime::shm::Segment;
use rustdask_runtime::stored::Stored;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::data::{bring, fetch, Peers, Unfetched};
use crate::transport::{self, Address, ConnectError, Outbox, Reader, Security};

/// Tasks that wait to be taken by the scheduler; beyond, it is given up.
const MAX_BACKLOG_BYTES: usize = 4 << 30;
/// How long to wait for the other side at the end.
const LEAVE: Duration = Duration::from_secs(1);

/// What a client hears of its tasks.
pub enum News {
    Ended {
        task: TaskId,
        how: Ended,
        found: Found,
    },
    /// The result is gone, and is made again.
    Lost {
        task: TaskId,
    },
    Output {
        error_stream: bool,
        log: bool,
        text: Bytes,
    },
    /// The scheduler is gone; in a sentence for people.
    Disconnected(String),
}

/// Where a result, or an exception, is.
#[derive(Clone, Debug)]
pub enum Found {
    Here(Bytes),
    On(Vec<NodeId>),
}

pub struct Client {
    link: Arc<Link>,
    warnings: Vec<String>,
    runtime: Mutex<Option<Runtime>>,
}

struct Link {
    outbox: Outbox,
    peers: Arc<Peers>,
    /// So many of them, for segments that wait for one.
    nodes: watch::Sender<usize>,
    /// First of the numbers that are this client's.
    base: u64,
    next_task: AtomicU64,
    next_call: AtomicU64,
    next_segment: AtomicU64,
    told: Mutex<Told>,
    info: Mutex<Option<Info>>,
    informed: Condvar,
    hear: Box<dyn Fn(News) + Send + Sync>,
}

/// What the scheduler knows.
#[derive(Default)]
struct Told {
    blobs: HashSet<BlobId>,
    settings: Option<BlobId>,
    segments: HashMap<SegmentId, Arc<Segment>>,
}

/// A task of a graph, pickled.
pub struct Task {
    pub spec: TaskSpec,
    pub name: Arc<str>,
    pub parcel: Arc<Parcel>,
    /// Tasks whose results it takes, and values.
    pub inputs: Vec<TaskId>,
}

impl Client {
    /// `hear` is called on the IO thread, and must not wait.
    pub fn connect(
        address: &Address,
        security: &Security,
        versions: Versions,
        timeout: Duration,
        hear: Box<dyn Fn(News) + Send + Sync>,
    ) -> Result<Self, ConnectError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("rustdask-client")
            .enable_all()
            .build()
            .map_err(|error| ConnectError::Unreachable(format!("cannot start a thread for the network: {error}")))?;
        let opened = runtime.block_on(async {
            let mut connection = transport::connect(address, security, timeout).await?;
            let welcome = connection.greet(Role::Client, versions.clone()).await?;
            Ok((connection.split(MAX_BACKLOG_BYTES), welcome))
        });
        let ((reader, outbox), welcome) = opened?;
        // A refusal would have come from the scheduler.
        let warnings = transport::check_versions(&versions, &welcome.versions).unwrap_or_default();
        let link = Arc::new(Link {
            outbox,
            peers: Arc::new(Peers::new(security.clone(), versions.clone())),
            nodes: watch::channel(0).0,
            base: Numbers::of_client(welcome.number).take(0),
            next_task: AtomicU64::new(0),
            next_call: AtomicU64::new(0),
            next_segment: AtomicU64::new(0),
            told: Mutex::default(),
            info: Mutex::default(),
            informed: Condvar::new(),
            hear,
        });
        runtime.spawn(link.clone().listen(reader));
        Ok(Self { link, warnings, runtime: Mutex::new(Some(runtime)) })
    }

    /// What differs between this process and the scheduler's, in sentences.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Numbers for so many tasks; the first of them.
    pub fn reserve(&self, tasks: u64) -> TaskId {
        TaskId(self.link.base + self.link.next_task.fetch_add(tasks, Ordering::Relaxed))
    }

    pub fn open_call(&self, cap: u32, crash_retries: u32) -> CallId {
        let call = CallId(self.link.next_call.fetch_add(1, Ordering::Relaxed));
        self.link.say(&FromClient::Open { call, cap, crash_retries });
        call
    }

    pub fn close_call(&self, call: CallId) {
        self.link.say(&FromClient::Close { call });
    }

    pub fn submit(&self, call: CallId, tasks: &[Task]) -> io::Result<()> {
        let mut told = self.link.told();
        for task in tasks {
            self.send_blobs(&mut told, call, &task.parcel)?;
            let contents = &task.parcel.contents;
            self.send_segments(&mut told, contents)?;
            let function = task.parcel.blobs.last().map(|blob| self.link.blob(blob.id));
            let function = function.ok_or_else(|| io::Error::other("a task has no function"))?;
            let content = self.link.content(contents);
            let task = Submitted::new(&task.spec, &task.name, function, content, task.inputs.clone());
            self.link.word_with(call, FromTask::Task(task), contents);
        }
        self.link.word(call, FromTask::Submit { by: None });
        Ok(())
    }

    /// A value that tasks will take.
    pub fn value(&self, call: CallId, task: TaskId, contents: &Contents) -> io::Result<()> {
        self.send_segments(&mut self.link.told(), contents)?;
        let (body, buffers) = self.link.content(contents);
        self.link.word_with(call, FromTask::Value { task, name: String::new(), body, buffers }, contents);
        Ok(())
    }

    pub fn release(&self, call: CallId, tasks: Vec<TaskId>) {
        self.link.word(call, FromTask::Release { tasks });
    }

    pub fn cancel(&self, call: CallId, tasks: Vec<TaskId>, force: bool) {
        self.link.word(call, FromTask::Cancel { tasks, force });
    }

    pub fn forget_blobs(&self, call: CallId, blobs: &[BlobId]) {
        let mut told = self.link.told();
        for blob in blobs.iter().filter(|blob| told.blobs.remove(blob)) {
            self.link.word(call, FromTask::ForgetFunction { function: self.link.blob(*blob) });
        }
        if told.settings.is_some_and(|settings| blobs.contains(&settings)) {
            told.settings = None;
        }
    }

    pub fn forget_segments(&self, segments: &[SegmentId]) {
        let mut told = self.link.told();
        for segment in segments.iter().filter(|segment| told.segments.remove(segment).is_some()) {
            self.link.say(&FromClient::ForgetSegment { segment: self.link.segment(*segment) });
        }
    }

    /// Get a result from a node that has it. Waits for that.
    pub fn fetch(&self, task: TaskId, nodes: &[NodeId]) -> io::Result<Stored> {
        let fetched = self.handle()?.block_on(fetch(&self.link.peers, Thing::Result(task), nodes));
        match fetched {
            Ok(received) => Ok(received.into_stored(|| self.link.fresh_segment())),
            Err(Unfetched::NoRoom(error)) => Err(error),
            Err(Unfetched::Missing(missing)) => {
                missing.iter().for_each(|node| self.link.say(&FromClient::Unfetched { task, node: *node }));
                Err(io::Error::new(io::ErrorKind::NotConnected, "the nodes that had the result cannot be reached"))
            }
        }
    }

    /// Ask the scheduler how it fares.
    pub fn info(&self, timeout: Duration) -> io::Result<Info> {
        let mut info = self.link.info.lock().expect("no holder panics");
        *info = None;
        self.link.say(&FromClient::Info);
        let waited = self.link.informed.wait_timeout_while(info, timeout, |info| info.is_none());
        let (mut info, _) = waited.expect("no holder panics");
        info.take().ok_or_else(|| io::Error::new(io::ErrorKind::TimedOut, "the scheduler has not answered"))
    }

    /// Leave. What was submitted is dropped.
    pub fn close(&self) {
        let runtime = self.runtime.lock().expect("no holder panics").take();
        if let Some(runtime) = runtime {
            self.link.outbox.close();
            // A scheduler that takes nothing any more is left as it is.
            let _ = runtime.block_on(async { tokio::time::timeout(LEAVE, self.link.outbox.closed()).await });
            runtime.shutdown_timeout(LEAVE);
        }
    }

    fn handle(&self) -> io::Result<tokio::runtime::Handle> {
        let runtime = self.runtime.lock().expect("no holder panics");
        let runtime = runtime.as_ref().ok_or_else(|| io::Error::other("the client is closed"))?;
        Ok(runtime.handle().clone())
    }

    fn send_blobs(&self, told: &mut Told, call: CallId, parcel: &Parcel) -> io::Result<()> {
        for blob in &parcel.blobs {
            if told.blobs.insert(blob.id) {
                let contents = &blob.contents;
                self.send_segments(told, contents)?;
                let (body, buffers) = self.link.content(contents);
                let word = FromTask::Function { function: self.link.blob(blob.id), same_as: None, body, buffers };
                self.link.word_with(call, word, contents);
            }
        }
        let settings = parcel.blobs.first().filter(|_| parcel.blobs.len() > 1).map(|blob| blob.id);
        if let Some(settings) = settings.filter(|settings| told.settings != Some(*settings)) {
            told.settings = Some(settings);
            self.link.say(&FromClient::Settings { function: self.link.blob(settings) });
        }
        Ok(())
    }

    fn send_segments(&self, told: &mut Told, contents: &Contents) -> io::Result<()> {
        for (id, segment) in &contents.segments {
            if !told.segments.contains_key(id) {
                told.segments.insert(*id, segment.clone());
                self.handle()?.spawn(self.link.clone().put(*id));
            }
        }
        Ok(())
    }
}

impl Link {
    async fn listen(self: Arc<Self>, mut reader: Reader) {
        let why = loop {
            match reader.next::<ToClient>().await {
                Ok(Some(frame)) => self.handle(frame.message, frame.body.into()),
                Ok(None) => break "the scheduler has closed the connection".to_owned(),
                Err(error) => break format!("the connection to the scheduler failed: {error}"),
            }
        };
        (self.hear)(News::Disconnected(why));
    }

    fn handle(self: &Arc<Self>, message: ToClient, body: Bytes) {
        match message {
            ToClient::Peer { node, address } => {
                // One that cannot be read cannot be reached: others may have what it has.
                if let Ok(address) = address.parse() {
                    self.peers.add(node, address);
                }
                self.nodes.send_replace(self.peers.nodes().len());
            }
            ToClient::PeerGone { node } => {
                self.peers.remove(node);
                self.nodes.send_replace(self.peers.nodes().len());
            }
            ToClient::Ended { task, how, from } => {
                let found = match from {
                    Source::Nodes(nodes) => Found::On(nodes),
                    Source::Inline { .. } | Source::Value(_) => Found::Here(body),
                };
                (self.hear)(News::Ended { task, how, found });
            }
            ToClient::Lost { task } => (self.hear)(News::Lost { task }),
            ToClient::LostSegment { segment } => {
                let id = SegmentId(segment.0.wrapping_sub(self.base));
                if self.told().segments.contains_key(&id) {
                    tokio::spawn(self.clone().put(id));
                }
            }
            ToClient::Output { error_stream, log } => (self.hear)(News::Output { error_stream, log, text: body }),
            ToClient::Info(info) => {
                *self.info.lock().expect("no holder panics") = Some(info);
                self.informed.notify_all();
            }
        }
    }

    /// Bring a segment to a node, as long as it is needed.
    async fn put(self: Arc<Self>, id: SegmentId) {
        let mut nodes = self.nodes.subscribe();
        let mut failed = HashSet::new();
        loop {
            let Some(segment) = self.told().segments.get(&id).cloned() else { return };
            let able: Vec<NodeId> = self.peers.nodes().into_iter().filter(|node| !failed.contains(node)).collect();
            if able.is_empty() {
                // Until another comes.
                if nodes.changed().await.is_err() {
                    return;
                }
                continue;
            }
            let node = able[id.0 as usize % able.len()];
            if bring(&self.peers, node, self.segment(id), &segment).await.is_ok() {
                // The node says so itself.
                return;
            }
            failed.insert(node);
        }
    }

    fn say(&self, message: &FromClient) {
        self.outbox.send(message, Bytes::new());
    }

    fn word(&self, call: CallId, word: FromTask) {
        self.say(&FromClient::Task { call, word });
    }

    /// A word that brings something, of which the pickle goes with it.
    fn word_with(&self, call: CallId, word: FromTask, contents: &Contents) {
        self.outbox.send(&FromClient::Task { call, word }, Bytes::copy_from_slice(&contents.inline));
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().expect("no holder panics")
    }

    /// A number for memory of ours that nobody else is told of.
    fn fresh_segment(&self) -> SegmentId {
        SegmentId(self.next_segment.fetch_add(1, Ordering::Relaxed))
    }

    fn blob(&self, id: BlobId) -> BlobId {
        BlobId(self.base + id.0)
    }

    fn segment(&self, id: SegmentId) -> SegmentId {
        SegmentId(self.base + id.0)
    }

    fn extent(&self, extent: Extent) -> Extent {
        Extent { segment: self.segment(extent.segment), ..extent }
    }

    /// Where things are, by numbers that are this client's.
    fn content(&self, contents: &Contents) -> (Body, Vec<Extent>) {
        let body = match contents.body {
            Body::Inline => Body::Inline,
            Body::InSegment(extent) => Body::InSegment(self.extent(extent)),
        };
        (body, contents.buffers.iter().map(|buffer| self.extent(buffer.extent)).collect())
    }
}
