//! The engine of a client whose tasks run on a cluster.
//!
//! What tasks are pickled to is held here until they have ended, as with worker processes of our own; the cluster's
//! client sends it. Word of the ends comes on its IO thread, without Python. Small results come with that; others are
//! fetched when somebody looks at them.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, Weak};
use std::time::Duration;

use rustdask_cluster::client::{Client, Found, News, Task};
use rustdask_cluster::transport::{Address, ConnectError, Security};
use rustdask_core::cluster::{Info, Versions};
use rustdask_core::ending::Unreported;
use rustdask_core::nested::Ended;
use rustdask_core::{BlobId, CallId, SegmentId, TaskId, TaskSpec};
use rustdask_runtime::store::Store;
use rustdask_runtime::stored::Stored;

use crate::node::{Failure, FailureKind, Made, Node, Settled};
use crate::shipment::Destination;
use crate::upstream::failure_kind;
use crate::work::Work;

/// How often a worker may die under a task of a client's.
const CRASH_RETRIES: u32 = 2;
/// How long a result that was lost may take to be made again, before whoever waits for it looks at signals.
const SLICE: Duration = Duration::from_millis(50);

pub(crate) struct Remote {
    client: OnceLock<Client>,
    call: OnceLock<CallId>,
    store: Store,
    owner: u32,
    tasks: Mutex<Tasks>,
    /// A result is somewhere else than it was, or nowhere.
    moved: Condvar,
    output: Output,
}

/// Takes what workers have written: whether on stderr, whether it is a pickled log record, and that.
pub(crate) type Output = Box<dyn Fn(bool, bool, &[u8]) + Send + Sync>;

#[derive(Default)]
struct Tasks {
    wanted: HashMap<TaskId, Wanted>,
    /// Why there is no scheduler any more.
    disconnected: Option<String>,
}

/// A task whose result somebody here wants.
struct Wanted {
    node: Arc<Node>,
    /// Where its result is, if that is not here.
    found: Option<Found>,
}

impl Remote {
    pub(crate) fn connect(
        address: &Address,
        security: &Security,
        versions: Versions,
        timeout: Duration,
        output: Output,
    ) -> Result<Arc<Self>, ConnectError> {
        let remote = Arc::new(Self {
            client: OnceLock::new(),
            call: OnceLock::new(),
            store: Store::default(),
            owner: std::process::id(),
            tasks: Mutex::default(),
            moved: Condvar::new(),
            output,
        });
        let listener: Weak<Self> = Arc::downgrade(&remote);
        let hear = Box::new(move |news| {
            if let Some(remote) = listener.upgrade() {
                remote.hear(news);
            }
        });
        let client = Client::connect(address, security, versions, timeout, hear)?;
        let call = client.open_call(u32::MAX, CRASH_RETRIES);
        // They are set here alone.
        let _ = (remote.client.set(client), remote.call.set(call));
        Ok(remote)
    }

    pub(crate) fn client(&self) -> &Client {
        self.client.get().expect("set before anybody else sees it")
    }

    fn call(&self) -> CallId {
        *self.call.get().expect("set before anybody else sees it")
    }

    pub(crate) fn reserve(&self, tasks: u64) -> TaskId {
        self.client().reserve(tasks)
    }

    pub(crate) fn submit(&self, tasks: Vec<(TaskSpec, Work)>) -> io::Result<()> {
        let outgoing: Vec<Task> = tasks.iter().filter_map(|(spec, work)| outgoing(spec, work.node()?)).collect();
        let wanted = tasks.iter().filter(|(spec, _)| spec.wanted).filter_map(|(_, work)| work.node());
        {
            let mut known = self.tasks();
            if let Some(why) = &known.disconnected {
                return Err(io::Error::new(io::ErrorKind::NotConnected, why.clone()));
            }
            known.wanted.extend(wanted.map(|node| (node.id, Wanted { node: node.clone(), found: None })));
        }
        self.client().submit(self.call(), &outgoing)
    }

    /// A value that tasks will take.
    pub(crate) fn value(&self, task: TaskId, stored: &Stored) -> io::Result<()> {
        match stored {
            Stored::Placed { contents, .. } => self.client().value(self.call(), task, contents),
            Stored::Made { .. } | Stored::Copied(_) => Err(io::Error::other("a value of the submitter's was placed")),
        }
    }

    pub(crate) fn release(&self, task: TaskId) {
        let released = self.tasks().wanted.remove(&task);
        drop(released);
        self.client().release(self.call(), vec![task]);
    }

    /// They have ended from here on, whatever the scheduler has to say of them still.
    pub(crate) fn cancel(&self, tasks: Vec<TaskId>, force: bool) {
        let open = self.open(|known| tasks.iter().filter_map(|task| known.get(task)).collect());
        self.client().cancel(self.call(), tasks, force);
        fail(&open, || FailureKind::Cancelled);
    }

    pub(crate) fn info(&self) -> io::Result<Info> {
        self.client().info(Duration::from_secs(10))
    }

    pub(crate) fn close(&self) {
        self.client().close();
        self.end_all(|| FailureKind::Closed);
    }

    /// The result, which is on nodes of the cluster; `None`: look again, at signals too.
    pub(crate) fn fetch(&self, task: TaskId) -> io::Result<Option<Stored>> {
        let nodes = {
            let known = self.tasks();
            if let Some(why) = &known.disconnected {
                return Err(io::Error::new(io::ErrorKind::NotConnected, why.clone()));
            }
            match known.wanted.get(&task).map(|wanted| &wanted.found) {
                Some(Some(Found::On(nodes))) => nodes.clone(),
                Some(Some(Found::Here(bytes))) => return Ok(Some(Stored::inline(bytes.to_vec()))),
                Some(None) => {
                    // It is made again.
                    let _ = self.moved.wait_timeout(known, SLICE).expect("no holder panics");
                    return Ok(None);
                }
                None => return Err(io::Error::new(io::ErrorKind::NotFound, "the result was released")),
            }
        };
        match self.client().fetch(task, &nodes) {
            Ok(stored) => Ok(Some(stored)),
            Err(error) if error.kind() == io::ErrorKind::NotConnected => {
                // The scheduler has been told, and says where the result is next.
                self.forget_place(task);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn hear(self: &Arc<Self>, news: News) {
        match news {
            News::Ended { task, how, found } => self.ended(task, how, found),
            News::Lost { task } => self.forget_place(task),
            News::Output { error_stream, log, text } => (self.output)(error_stream, log, &text),
            News::Disconnected(why) => {
                self.tasks().disconnected = Some(why.clone());
                self.end_all(|| FailureKind::Unreported(Unreported::NoWorkers { why: why.clone() }));
            }
        }
    }

    /// The result is not where it was.
    fn forget_place(&self, task: TaskId) {
        if let Some(wanted) = self.tasks().wanted.get_mut(&task) {
            wanted.found = None;
        }
    }

    fn ended(self: &Arc<Self>, task: TaskId, how: Ended, found: Found) {
        let Some(node) = self.tasks().wanted.get(&task).map(|wanted| wanted.node.clone()) else { return };
        if matches!(node.end(), Some(Settled::Failed(_))) {
            return;
        }
        let end = match how {
            Ended::Finished => {
                let made = match &found {
                    Found::Here(bytes) => Made::Stored(Arc::new(Stored::inline(bytes.to_vec()))),
                    Found::On(_) => Made::Away(self.clone()),
                };
                if let Some(wanted) = self.tasks().wanted.get_mut(&task) {
                    wanted.found = Some(found);
                }
                (Some(made), Settled::Finished)
            }
            Ended::Failed { task, name, fault } => {
                let raised = match found {
                    Found::Here(bytes) => bytes.to_vec(),
                    Found::On(_) => Vec::new(),
                };
                let failure = Failure { kind: failure_kind(fault, raised), task, name: name.into() };
                (None, Settled::Failed(Arc::new(failure)))
            }
        };
        node.told(end.0, end.1);
        self.moved.notify_all();
    }

    /// All that has not ended ends.
    fn end_all(&self, kind: impl Fn() -> FailureKind) {
        let open = self.open(|known| known.values().collect());
        fail(&open, kind);
        self.moved.notify_all();
    }

    /// Those of some tasks that have not ended.
    fn open(&self, some: impl FnOnce(&HashMap<TaskId, Wanted>) -> Vec<&Wanted>) -> Vec<Arc<Node>> {
        let known = self.tasks();
        let nodes = some(&known.wanted).into_iter().map(|wanted| wanted.node.clone());
        nodes.filter(|node| !node.is_done()).collect()
    }

    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        self.tasks.lock().expect("no holder panics")
    }
}

impl Destination for Remote {
    fn store(&self) -> &Store {
        &self.store
    }

    fn is_ours(&self) -> bool {
        self.owner == std::process::id()
    }

    fn release(&self, segments: &[SegmentId]) {
        let gone = self.store.release(segments);
        self.client().forget_segments(&gone);
    }

    fn forget_blobs(&self, blobs: &[u64], _urgent: bool) {
        let blobs: Vec<BlobId> = blobs.iter().map(|blob| BlobId(*blob)).collect();
        self.client().forget_blobs(self.call(), &blobs);
    }

    fn forget_result(&self, task: TaskId) {
        self.client().release(self.call(), vec![task]);
    }
}

fn fail(nodes: &[Arc<Node>], kind: impl Fn() -> FailureKind) {
    for node in nodes {
        let failure = node.failed(kind());
        node.told(None, Settled::Failed(failure));
    }
}

fn outgoing(spec: &TaskSpec, node: &Arc<Node>) -> Option<Task> {
    let (parcel, inputs) = (node.parcel()?, node.input_ids());
    Some(Task { spec: spec.clone(), name: node.name.clone(), parcel, inputs })
}
