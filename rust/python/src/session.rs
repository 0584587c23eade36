//! One submitter of graphs: its calls become nodes of the pool's scheduler machine.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyList, PyTuple};
use rustdask_core::message::Granted;
use rustdask_core::{
    Amount, Attempt, CallId, CallSpec, Event, HostId, Outcome, Priority, Resources, TaskId, TaskSpec, WorkerId,
};
use rustdask_runtime::driver::Shell as _;
use rustdask_runtime::mailbox::Mailbox;
use rustdask_runtime::pace::GRAPH_DEPTH;
use rustdask_runtime::pool::PoolSpec;
use rustdask_runtime::template::Launch;

use crate::cluster::{self, VersionsOf};
use crate::exit::Inside;
use crate::handle::{Handle, Seed, Want};
use crate::node::{Job, LocalCall, Made, Node};
use crate::pools::{self, pools, PATIENCE};
use crate::remote::Remote;
use crate::scan::{self, Input, Place};
use crate::shipment::{Functions, HeldBlob, Shipping};
use crate::upstream::{SentFunction, Upstream};
use crate::work::Work;
use crate::worker::{granted_tuple, GrantedTuple, WorkerEndpoint};

thread_local! {
    /// Of the submission that this thread is making.
    static FIRST_TASK: Cell<u64> = const { Cell::new(0) };
    /// The session whose task this thread is running.
    static CURRENT: RefCell<Option<Current>> = const { RefCell::new(None) };
}

struct Current {
    session: Arc<SessionInner>,
    node: Arc<Node>,
    attempt: Attempt,
}

/// The task that the current thread runs, and its attempt.
pub(crate) fn current_task() -> Option<(TaskId, Attempt)> {
    CURRENT.with_borrow(|current| current.as_ref().map(|current| (current.node.id, current.attempt)))
}

/// How many tasks stand above one that the current thread submits.
fn depth_below_current() -> u32 {
    CURRENT.with_borrow(|current| current.as_ref().map_or(0, |current| current.node.depth + 1))
}

pub(crate) fn first_task() -> u64 {
    FIRST_TASK.get()
}

/// While it lives, inputs are pickled by numbers that begin with this one.
struct Numbering(u64);

impl Numbering {
    fn from(first: u64) -> Self {
        Self(FIRST_TASK.replace(first))
    }
}

impl Drop for Numbering {
    fn drop(&mut self) {
        FIRST_TASK.set(self.0);
    }
}

/// What runs a session's tasks.
pub(crate) enum Engine {
    Threads(Arc<pools::Threads>),
    Processes(Arc<pools::Processes>, Arc<Shipping>),
    /// In a worker process: the pool that it belongs to.
    Upstream(Arc<Upstream>),
    Cluster(Arc<Remote>, Arc<Shipping>),
}

/// In a worker process: the session of its tasks.
static UPSTREAM: OnceLock<Arc<SessionInner>> = OnceLock::new();

pub(crate) struct SessionInner {
    engine: Engine,
    call: CallId,
    /// Who may use it: a forked child may not.
    owner: u32,
    closed: AtomicBool,
    /// Submissions so far: what was asked for first is done first.
    generation: Arc<AtomicU32>,
}

impl SessionInner {
    fn new(engine: Engine, call: CallId) -> Arc<Self> {
        let (owner, generation) = (std::process::id(), Arc::default());
        Arc::new(Self { engine, call, owner, closed: AtomicBool::new(false), generation })
    }

    fn cancel(&self, tasks: Vec<TaskId>, force: bool) -> std::io::Result<()> {
        let call = self.call;
        match &self.engine {
            Engine::Threads(pool) => pool.driver.event(Event::TasksCancelled { call, tasks, force }),
            Engine::Processes(pool, _) => pool.driver.event(Event::TasksCancelled { call, tasks, force }),
            Engine::Upstream(upstream) => return upstream.endpoint.cancel(tasks, force),
            Engine::Cluster(remote, _) => remote.cancel(tasks, force),
        }
        Ok(())
    }

    /// Nobody has a handle for the task any more.
    pub(crate) fn release(&self, task: TaskId) {
        if self.owner != std::process::id() {
            return;
        }
        match &self.engine {
            Engine::Upstream(upstream) => upstream.release(task),
            Engine::Cluster(remote, _) => remote.release(task),
            Engine::Threads(pool) => pool.driver.release(self.call, task),
            Engine::Processes(pool, _) => pool.driver.release(self.call, task),
        }
    }

    /// The same for a value of the submitter's own. Tasks may be about to take it: workers forget it with its node.
    pub(crate) fn release_value(&self, task: TaskId) {
        if matches!(self.engine, Engine::Upstream(_)) {
            self.release(task);
        }
    }

    fn reserve(&self, tasks: u64) -> TaskId {
        match &self.engine {
            Engine::Threads(pool) => pool.driver.reserve(tasks),
            Engine::Processes(pool, _) => pool.driver.reserve(tasks),
            Engine::Upstream(upstream) => upstream.reserve(tasks),
            Engine::Cluster(remote, _) => remote.reserve(tasks),
        }
    }

    fn submit(&self, py: Python<'_>, tasks: Vec<(TaskSpec, Work)>) -> PyResult<()> {
        let submitted = match &self.engine {
            Engine::Threads(pool) => py.detach(|| pool.driver.submit_graph(self.call, tasks)),
            Engine::Processes(pool, _) => py.detach(|| pool.driver.submit_graph(self.call, tasks)),
            Engine::Upstream(upstream) => return upstream.submit(py, tasks),
            Engine::Cluster(remote, _) => return Ok(py.detach(|| remote.submit(tasks))?),
        };
        submitted.map_err(|_| PyRuntimeError::new_err("the client is closed"))
    }

    /// End all that was submitted, and the pool, but for tasks that are in the middle of something that cannot be ended.
    pub(crate) fn close(&self) {
        if self.closed.swap(true, Ordering::AcqRel) || self.owner != std::process::id() {
            return;
        }
        match &self.engine {
            Engine::Threads(pool) => {
                pool.driver.close_call(self.call);
                pool.close(PATIENCE);
            }
            Engine::Processes(pool, shipping) => {
                shipping.memory.iter().for_each(|memory| memory.close());
                pool.driver.close_call(self.call);
                pool.stop();
                // However long the client is kept.
                pool.shared.memory.store.trim(Duration::ZERO);
            }
            Engine::Upstream(_) => {}
            Engine::Cluster(remote, _) => remote.close(),
        }
    }

    /// The pool, where it has output of its own.
    pub(crate) fn processes(&self) -> Option<&Arc<pools::Processes>> {
        match &self.engine {
            Engine::Threads(_) | Engine::Upstream(_) | Engine::Cluster(..) => None,
            Engine::Processes(pool, _) => Some(pool),
        }
    }

    fn check_open(&self) -> PyResult<()> {
        pools::check_open()?;
        if self.owner != std::process::id() {
            return Err(PyRuntimeError::new_err(
                "this client belongs to the process that this one was forked from; make a new one here",
            ));
        }
        if self.closed.load(Ordering::Acquire) {
            return Err(PyRuntimeError::new_err("the client is closed"));
        }
        Ok(())
    }
}

/// The tasks of a submission, on their way to becoming nodes.
struct Submission<'py> {
    session: Arc<SessionInner>,
    first: u64,
    /// How many tasks stand above them.
    depth: u32,
    context: Option<Bound<'py, PyAny>>,
    names: HashMap<usize, Arc<str>>,
    /// Functions that were pickled for it.
    shipped: Functions<HeldBlob>,
    sent: Functions<SentFunction>,
}

/// What a task was found to take: tasks of its own submission, by their places, and others.
#[derive(Default)]
struct Needs {
    inside: Vec<usize>,
    outside: Vec<Arc<Want>>,
    /// It has arguments that pickle needs help with.
    complex: bool,
}

impl Submission<'_> {
    fn node(&mut self, id: u64, task: &Bound<'_, PyTuple>, needs: &Needs) -> PyResult<Arc<Node>> {
        let function = task.get_item(0)?;
        let name = self.name(&function)?;
        let session = self.session.clone();
        let job = match &session.engine {
            Engine::Threads(_) => self.local_call(function, task)?,
            Engine::Processes(_, shipping) | Engine::Cluster(_, shipping) => {
                let arguments = self.with_inputs(task, needs)?;
                let shipment = shipping.ship(task.py(), &function, &mut self.shipped, arguments, !needs.complex)?;
                Job::Elsewhere(Arc::new(shipment))
            }
            Engine::Upstream(upstream) => {
                let arguments = self.with_inputs(task, needs)?;
                let outgoing = upstream.pickle(task.py(), &function, &mut self.sent, arguments, !needs.complex)?;
                Job::Upstream(Arc::new(outgoing))
            }
        };
        Ok(Node::new(TaskId(id), name, self.depth, job))
    }

    fn local_call<'py>(&self, function: Bound<'py, PyAny>, task: &Bound<'py, PyTuple>) -> PyResult<Job> {
        let kwargs = task.get_item(2)?;
        let kwargs = kwargs.cast_into::<PyDict>().ok().filter(|kwargs| !kwargs.is_empty());
        let call = LocalCall {
            function: function.unbind(),
            args: task.get_item(1)?.cast_into::<PyTuple>()?.unbind(),
            kwargs: kwargs.map(Bound::unbind),
            context: self.context.clone().map(Bound::unbind),
            first: self.first,
            session: Arc::downgrade(&self.session),
        };
        Ok(Job::Here(Arc::new(call)))
    }

    /// Handles among the arguments become inputs. In the pickle, those have the numbers of their tasks.
    fn with_inputs<'py>(&self, task: &Bound<'py, PyTuple>, needs: &Needs) -> PyResult<Bound<'py, PyTuple>> {
        let py = task.py();
        let mut arguments = task.get_slice(1, 3);
        if !needs.outside.is_empty() {
            let input = |place: Place<'_, 'py>| {
                let task = match place {
                    Place::Handle(handle) => handle.get().node()?.id.0.wrapping_sub(self.first),
                    Place::Input(at) => at,
                    Place::Other => return Err(PyValueError::new_err("nothing stands for a result here")),
                };
                Ok(Bound::new(py, Input { task })?.into_any())
            };
            if let Some(filled) = scan::fill(&arguments, &input)? {
                arguments = filled.cast_into()?;
            }
        }
        Ok(arguments)
    }

    fn needs(&self, tasks: usize, task: &Bound<'_, PyTuple>) -> PyResult<Needs> {
        let mut needs = Needs::default();
        let mut note = |place: Place<'_, '_>| {
            match place {
                Place::Input(at) if at < tasks as u64 => needs.inside.push(at as usize),
                Place::Input(at) => {
                    return Err(PyValueError::new_err(format!("Input({at}) names none of the {tasks} tasks submitted")))
                }
                Place::Handle(handle) => needs.outside.push(self.checked(handle)?),
                Place::Other => needs.complex = true,
            }
            Ok(())
        };
        scan::visit(&task.get_item(1)?, &mut note)?;
        scan::visit(&task.get_item(2)?, &mut note)?;
        needs.inside.sort_unstable();
        needs.inside.dedup();
        needs.outside.sort_unstable_by_key(|want| want.node.id);
        needs.outside.dedup_by_key(|want| want.node.id);
        Ok(needs)
    }

    fn checked(&self, handle: &Bound<'_, Handle>) -> PyResult<Arc<Want>> {
        let want = handle.get().want()?;
        if !Arc::ptr_eq(&want.session, &self.session) {
            return Err(PyValueError::new_err(format!(
                "{} belongs to another client; gather its result there first",
                handle.repr()?
            )));
        }
        Ok(want)
    }

    fn name(&mut self, function: &Bound<'_, PyAny>) -> PyResult<Arc<str>> {
        if let Some(name) = self.names.get(&(function.as_ptr() as usize)) {
            return Ok(name.clone());
        }
        let named = function.getattr_opt(intern!(function.py(), "__name__"))?;
        let name: Arc<str> = match named.map(|name| name.extract::<String>()) {
            Some(Ok(name)) => name.into(),
            _ => function.get_type().name()?.to_string().into(),
        };
        self.names.insert(function.as_ptr() as usize, name.clone());
        Ok(name)
    }
}

/// A submitter of graphs to a pool of its own.
#[pyclass(frozen, weakref, module = "rustdask._core")]
pub(crate) struct Session {
    inner: Arc<SessionInner>,
    /// It ends with this object.
    owned: bool,
}

#[pymethods]
impl Session {
    /// Run tasks in threads of this process. `resources` are what all of them have together.
    #[staticmethod]
    #[pyo3(signature = (*, workers, resources=None))]
    fn threads(workers: u32, resources: Option<HashMap<String, f64>>) -> PyResult<Self> {
        pools::check_open()?;
        let pool = Arc::new(pools::Threads::new(pool_spec(workers, resources)?, Arc::new(pools::serve)));
        pool.driver.event(Event::WorkersRequested { count: workers });
        let call = pool.driver.open_call(graph_spec(1), Arc::new(Mailbox::new(None)));
        Ok(Self::over(Engine::Threads(pool), call))
    }

    /// Run tasks in worker processes. `launch` says how to start Python: `(program, arguments, greeting)`. Results beyond
    /// `results_limit` bytes move to files of the folder.
    #[staticmethod]
    #[pyo3(signature = (*, workers, launch, serializer, results_limit, folder, resources=None, memory_limit=0))]
    #[allow(clippy::too_many_arguments)]
    fn processes(
        workers: u32,
        launch: &Bound<'_, PyAny>,
        serializer: Py<PyAny>,
        results_limit: u64,
        folder: PathBuf,
        resources: Option<HashMap<String, f64>>,
        memory_limit: u64,
    ) -> PyResult<Self> {
        pools::check_open()?;
        let spec = pool_spec(workers, resources)?;
        let (program, arguments, greeting) = launch.call0()?.extract()?;
        let launch = Launch { program, arguments, greeting };
        let pool = Arc::new(pools::Processes::start(spec, launch, pools::on_output())?);
        pool.driver.event(Event::WorkersRequested { count: workers });
        let call = pool.driver.open_call(graph_spec(GRAPH_DEPTH), Arc::new(Mailbox::new(None)));
        let memory = Some(crate::memory::start(results_limit, folder, &pool, call)?);
        let shipping = Arc::new(Shipping::new(pool.clone(), call, serializer, memory_limit, memory));
        let session = Self::over(Engine::Processes(pool.clone(), shipping.clone()), call);
        pool.shared.set_host(crate::guest::host(&shipping, &pool, session.inner.generation.clone()));
        Ok(session)
    }

    /// In a worker process: the session of its tasks, which submit to the pool that the worker belongs to.
    /// `start_stand_in` is called when the task that runs is going to wait, and no thread is there to run others.
    #[staticmethod]
    fn upstream(endpoint: &WorkerEndpoint, serializer: Py<PyAny>, start_stand_in: Py<PyAny>) {
        let upstream = Upstream::new(endpoint.endpoint.clone(), serializer, start_stand_in);
        // A worker has one.
        let _ = UPSTREAM.set(SessionInner::new(Engine::Upstream(upstream), CallId(0)));
    }

    /// Run tasks on the cluster whose scheduler has this address. `output` is called with what workers write: whether on stderr,
    /// whether it is a pickled log record, and that. Also what differs between here and the scheduler, in sentences.
    #[staticmethod]
    #[pyo3(signature = (*, address, versions, serializer, output, timeout, memory_limit=0, token=None, tls=None))]
    #[allow(clippy::too_many_arguments)]
    fn cluster(
        py: Python<'_>,
        address: &str,
        versions: VersionsOf,
        serializer: Py<PyAny>,
        output: Py<PyAny>,
        timeout: f64,
        memory_limit: u64,
        token: Option<&str>,
        tls: Option<(String, String, String)>,
    ) -> PyResult<(Self, Vec<String>)> {
        pools::check_open()?;
        let address = address.parse().map_err(PyValueError::new_err)?;
        let security = cluster::security(token, tls)?;
        let (timeout, output) = (cluster::duration(timeout), cluster::output(output));
        let remote = py.detach(|| Remote::connect(&address, &security, versions.into(), timeout, output));
        let remote = remote.map_err(cluster::unconnected)?;
        let shipping = Arc::new(Shipping::new(remote.clone(), CallId(0), serializer, memory_limit, None));
        let warnings = remote.client().warnings().to_vec();
        Ok((Self::over(Engine::Cluster(remote, shipping), CallId(0)), warnings))
    }

    /// It is that of the tasks of this worker process.
    #[getter]
    fn is_upstream(&self) -> bool {
        matches!(self.inner.engine, Engine::Upstream(_))
    }

    /// Workers that run, as `(id, rank, pid)`.
    fn workers(&self) -> Vec<(u32, u32, i32)> {
        let workers = self.inner.processes().map(|pool| pool.workers()).unwrap_or_default();
        workers.into_iter().map(|info| (info.worker, info.rank, info.pid)).collect()
    }

    /// Hand over tasks `(function, args, kwargs)`. `Input(i)` in the arguments stands for the result of task number `i`
    /// of the list, a handle for that of an earlier task.
    #[pyo3(signature = (cls, tasks, *, wanted=None, orders=None, keys=None, priority=0, retries=0, resources=None, workers=None))]
    #[allow(clippy::too_many_arguments)]
    fn submit<'py>(
        &self,
        cls: &Bound<'py, PyAny>,
        tasks: &Bound<'py, PyList>,
        wanted: Option<Vec<usize>>,
        orders: Option<Vec<u32>>,
        keys: Option<Vec<Py<PyAny>>>,
        priority: i32,
        retries: u32,
        resources: Option<HashMap<String, f64>>,
        workers: Option<Vec<u32>>,
    ) -> PyResult<Bound<'py, PyList>> {
        let py = cls.py();
        let _inside = Inside::enter()?;
        self.inner.check_open()?;
        let count = tasks.len();
        let first = self.inner.reserve(count as u64).0;
        let mut submission = Submission {
            session: self.inner.clone(),
            first,
            depth: depth_below_current(),
            context: current_context(py)?,
            names: HashMap::new(),
            shipped: Functions::default(),
            sent: Functions::default(),
        };
        if let Engine::Processes(_, shipping) | Engine::Cluster(_, shipping) = &self.inner.engine {
            shipping.begin(py)?;
        }
        if let Engine::Upstream(upstream) = &self.inner.engine {
            upstream.begin(py)?;
        }
        let numbering = Numbering::from(first);
        let mut nodes = Vec::with_capacity(count);
        let mut needs = Vec::with_capacity(count);
        for (at, task) in tasks.iter().enumerate() {
            let task = task.cast_into::<PyTuple>()?;
            let need = submission.needs(count, &task)?;
            nodes.push(submission.node(first + at as u64, &task, &need)?);
            needs.push(need);
        }
        drop(numbering);
        refuse_cycles(&needs)?;
        let template = TaskSpec {
            priority: Priority {
                user: priority,
                depth: submission.depth,
                generation: self.inner.generation.fetch_add(1, Ordering::Relaxed),
                order: 0,
            },
            retries,
            resources: parse_resources(resources)?,
            workers: workers.map(|workers| workers.into_iter().map(WorkerId).collect()),
            ..TaskSpec::default()
        };
        let mut specs = specs(&nodes, &needs, template, orders)?;
        let wanted = wanted.unwrap_or_else(|| (0..count).collect());
        for &at in &wanted {
            let spec =
                specs.get_mut(at).ok_or_else(|| PyValueError::new_err("wanted names a task that is not there"))?;
            spec.0.wanted = true;
        }
        self.inner.submit(py, specs)?;
        let wants =
            wanted.iter().map(|&at| Want { session: self.inner.clone(), node: nodes[at].clone(), outside: false });
        let handles = handles(cls, wants)?;
        for (handle, key) in handles.iter().zip(keys.into_iter().flatten()) {
            handle.cast::<Handle>()?.get().set_key(key);
        }
        Ok(handles)
    }

    /// A handle for a value of the submitter's own.
    fn scatter<'py>(&self, cls: &Bound<'py, PyAny>, value: Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let _inside = Inside::enter()?;
        self.inner.check_open()?;
        let id = self.inner.reserve(1);
        let name: Arc<str> = value.get_type().name()?.to_string().into();
        let made = match &self.inner.engine {
            Engine::Threads(_) => Made::Object(value.unbind()),
            Engine::Processes(_, shipping) => {
                let stored = Arc::new(shipping.place(value.py(), id, &value)?);
                Made::Scattered(value.unbind(), stored)
            }
            Engine::Cluster(remote, shipping) => {
                let stored = Arc::new(shipping.place(value.py(), id, &value)?);
                remote.value(id, &stored)?;
                Made::Scattered(value.unbind(), stored)
            }
            Engine::Upstream(upstream) => {
                upstream.send_value(value.py(), id, &name, &value)?;
                Made::Object(value.unbind())
            }
        };
        let node = Node::with_result(id, name, made);
        let made = handles(cls, std::iter::once(Want { session: self.inner.clone(), node, outside: true }))?;
        made.get_item(0)
    }

    /// End tasks, and those that depend on them. `force`: also what runs already, where it can be ended.
    #[pyo3(signature = (handles, *, force=false))]
    fn cancel(&self, py: Python<'_>, handles: Vec<Bound<'_, Handle>>, force: bool) -> PyResult<()> {
        let _inside = Inside::enter()?;
        let tasks = handles.iter().map(|handle| Ok(handle.get().node()?.id)).collect::<PyResult<Vec<_>>>()?;
        Ok(py.detach(|| self.inner.cancel(tasks, force))?)
    }

    /// What the scheduler holds: tasks and workers, by their state.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let out = PyDict::new(py);
        let stats = match &self.inner.engine {
            Engine::Threads(pool) => pool.driver.stats(),
            Engine::Processes(pool, _) => pool.driver.stats(),
            Engine::Upstream(upstream) => {
                out.set_item("active", upstream.open())?;
                out.set_item("workers", upstream.endpoint.workers())?;
                return Ok(out);
            }
            Engine::Cluster(remote, _) => return crate::cluster::info(py, &py.detach(|| remote.info())?),
        };
        out.set_item("active", stats.tasks)?;
        out.set_item("queued", stats.queued)?;
        out.set_item("known", stats.known)?;
        out.set_item("workers", stats.workers)?;
        out.set_item("starting", stats.starting)?;
        out.set_item("idle", stats.idle)?;
        if let Engine::Processes(_, shipping) = &self.inner.engine {
            let (used, spilled) = shipping.memory.as_ref().map(|memory| memory.figures()).unwrap_or_default();
            out.set_item("result_bytes", used)?;
            out.set_item("spilled_bytes", spilled)?;
        }
        Ok(out)
    }

    /// Why the last worker that did not start, or died with nothing to do, did so.
    #[getter]
    fn start_failure(&self) -> String {
        match &self.inner.engine {
            Engine::Threads(pool) => pool.driver.with(|state, _| state.shell.start_failure()),
            Engine::Processes(pool, _) => pool.driver.with(|state, _| state.shell.start_failure()),
            // It starts none.
            Engine::Upstream(_) | Engine::Cluster(..) => String::new(),
        }
    }

    /// This process made it, and was not forked from the one that did.
    #[getter]
    fn is_ours(&self) -> bool {
        self.inner.owner == std::process::id()
    }

    #[getter]
    fn closed(&self) -> bool {
        self.inner.closed.load(Ordering::Acquire)
    }

    /// End all tasks and the pool.
    fn close(&self, py: Python<'_>) {
        // The end of the interpreter closes all sessions.
        let Ok(_inside) = Inside::enter() else { return };
        py.detach(|| self.inner.close());
    }

    fn __eq__(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    fn __hash__(&self) -> usize {
        Arc::as_ptr(&self.inner) as usize
    }
}

impl Session {
    /// The session of another object, which it does not end.
    pub(crate) fn borrowed(inner: Arc<SessionInner>) -> Self {
        Self { inner, owned: false }
    }

    fn over(engine: Engine, call: CallId) -> Self {
        let inner = SessionInner::new(engine, call);
        pools().session_opened(Arc::downgrade(&inner));
        Self { inner, owned: true }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Its threads may need the interpreter to end.
        if self.owned {
            Python::attach(|py| self.close(py));
        }
    }
}

/// The session whose task the current thread runs; in a worker process, that of its tasks.
#[pyfunction]
pub(crate) fn current_session() -> Option<Session> {
    let current = CURRENT.with_borrow(|current| current.as_ref().map(|current| current.session.clone()));
    let upstream = || UPSTREAM.get().filter(|session| session.owner == std::process::id()).cloned();
    current.or_else(upstream).map(Session::borrowed)
}

/// In a worker process, and not one that was forked from that: where its tasks submit to.
pub(crate) fn upstream() -> Option<Arc<Upstream>> {
    let session = UPSTREAM.get().filter(|session| session.owner == std::process::id())?;
    match &session.engine {
        Engine::Upstream(upstream) => Some(upstream.clone()),
        _ => None,
    }
}

/// The task that the current thread runs has ended already, as by being cancelled: nobody will see what it makes.
#[pyfunction]
pub(crate) fn is_abandoned() -> bool {
    CURRENT.with_borrow(|current| current.as_ref().is_some_and(|current| current.node.is_done()))
}

/// What the task that the current thread runs holds of resources: name, amount, and of which units.
#[pyfunction]
pub(crate) fn current_grants() -> Vec<GrantedTuple> {
    let granted = CURRENT.with_borrow(|current| current.as_ref().map(|current| current.node.granted()));
    granted.iter().flatten().map(|grant| granted_tuple(&Granted::from(grant))).collect()
}

/// Each worker has a core, and all of them have the resources together.
fn pool_spec(workers: u32, resources: Option<HashMap<String, f64>>) -> PyResult<PoolSpec> {
    let resources = parse_resources(resources)?;
    Ok(PoolSpec { core_budget: workers, max_workers: workers, resources, host: Some(HostId(0)) })
}

fn graph_spec(depth: u32) -> CallSpec {
    CallSpec { cap: u32::MAX, crash_retries: 2, depth, ..CallSpec::default() }
}

fn handles<'py>(cls: &Bound<'py, PyAny>, wants: impl Iterator<Item = Want>) -> PyResult<Bound<'py, PyList>> {
    let seed = Bound::new(cls.py(), Seed(Mutex::new(None)))?;
    let made = PyList::empty(cls.py());
    for want in wants {
        *seed.get().0.lock().expect("no holder panics") = Some(Arc::new(want));
        made.append(cls.call1((&seed,))?)?;
    }
    Ok(made)
}

fn specs(
    nodes: &[Arc<Node>],
    needs: &[Needs],
    template: TaskSpec,
    orders: Option<Vec<u32>>,
) -> PyResult<Vec<(TaskSpec, Work)>> {
    if orders.as_ref().is_some_and(|orders| orders.len() != nodes.len()) {
        return Err(PyValueError::new_err("orders must have one entry for each task"));
    }
    let mut specs = Vec::with_capacity(nodes.len());
    for (at, (node, needs)) in nodes.iter().zip(needs).enumerate() {
        let known = needs.outside.iter().filter(|want| !want.outside).map(|want| want.node.id);
        let dependencies = needs.inside.iter().map(|&at| nodes[at].id).chain(known).collect();
        // By their numbers: those of earlier submissions are lower.
        let inputs = needs.outside.iter().map(|want| want.node.clone());
        node.set_inputs(inputs.chain(needs.inside.iter().map(|&at| nodes[at].clone())).collect());
        let order = orders.as_ref().map_or(at as u32, |orders| orders[at]);
        let priority = Priority { order, ..template.priority };
        specs.push((TaskSpec { task: node.id, dependencies, priority, ..template.clone() }, Work::Node(node.clone())));
    }
    Ok(specs)
}

/// Tasks that take only what stands before them, as most lists have them, are in no cycle. Otherwise the tasks are taken
/// out one by one, each after what it takes (Kahn, CACM 1962).
fn refuse_cycles(needs: &[Needs]) -> PyResult<()> {
    if needs.iter().enumerate().all(|(at, needs)| needs.inside.iter().all(|&on| on < at)) {
        return Ok(());
    }
    let mut dependents = vec![Vec::new(); needs.len()];
    let mut missing: Vec<usize> = needs.iter().map(|needs| needs.inside.len()).collect();
    for (at, needs) in needs.iter().enumerate() {
        needs.inside.iter().for_each(|&on| dependents[on].push(at));
    }
    let mut free: Vec<usize> = (0..needs.len()).filter(|&at| missing[at] == 0).collect();
    let mut done = 0;
    while let Some(at) = free.pop() {
        done += 1;
        for &by in &dependents[at] {
            missing[by] -= 1;
            if missing[by] == 0 {
                free.push(by);
            }
        }
    }
    if done == needs.len() {
        return Ok(());
    }
    let stuck: Vec<usize> = (0..needs.len()).filter(|&at| missing[at] > 0).take(5).collect();
    Err(PyValueError::new_err(format!("tasks depend on themselves; among them, by their places, {stuck:?}")))
}

/// The context variables of now, unless none is set.
fn current_context(py: Python<'_>) -> PyResult<Option<Bound<'_, PyAny>>> {
    static COPY_CONTEXT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let context = COPY_CONTEXT.import(py, "contextvars", "copy_context")?.call0()?;
    Ok(if context.len()? == 0 { None } else { Some(context) })
}

fn parse_resources(resources: Option<HashMap<String, f64>>) -> PyResult<Resources> {
    let mut amounts = Vec::new();
    for (name, amount) in resources.iter().flatten() {
        let parsed = Amount::from_f64(*amount).ok_or_else(|| {
            PyValueError::new_err(format!("the amount of a resource must be a positive number, got {name}={amount}"))
        })?;
        amounts.push((name.as_str(), parsed));
    }
    Ok(Resources::new(amounts))
}

/// Run a task of a graph in this thread. What it has no more use for is dropped here, outside of all locks.
pub(crate) fn run_node(py: Python<'_>, node: &Arc<Node>, attempt: Attempt) -> Outcome {
    let Some((call, inputs)) = node.local_call() else { return Outcome::Err };
    let current = call.session.upgrade().map(|session| Current { session, node: node.clone(), attempt });
    let before = CURRENT.replace(current);
    let outcome = call_here(py, &call, &inputs);
    CURRENT.set(before);
    drop((call, inputs));
    let (made, outcome) = match outcome {
        Ok(value) => (Made::Object(value.unbind()), Outcome::Ok),
        Err(error) => {
            let raised = crate::node::FailureKind::Raised(error.into_value(py).into_any());
            (Made::Failure(node.failed(raised)), Outcome::Err)
        }
    };
    drop(node.made(attempt, made));
    outcome
}

fn call_here<'py>(py: Python<'py>, call: &LocalCall, inputs: &[Arc<Node>]) -> PyResult<Bound<'py, PyAny>> {
    let (args, kwargs) = match inputs.is_empty() {
        true => (call.args.bind(py).clone(), call.kwargs.as_ref().map(|kwargs| kwargs.bind(py).clone())),
        false => filled(py, call, inputs)?,
    };
    let function = call.function.bind(py);
    let Some(context) = &call.context else { return function.call(args, kwargs.as_ref()) };
    let context = context.bind(py).call_method0(intern!(py, "copy"))?;
    let with_function: Vec<_> = std::iter::once(function.clone()).chain(args.iter()).collect();
    let with_function = PyTuple::new(py, with_function)?;
    context.call_method(intern!(py, "run"), with_function, kwargs.as_ref())
}

type Arguments<'py> = (Bound<'py, PyTuple>, Option<Bound<'py, PyDict>>);

fn filled<'py>(py: Python<'py>, call: &LocalCall, inputs: &[Arc<Node>]) -> PyResult<Arguments<'py>> {
    let value = |id: u64| {
        let input = inputs.binary_search_by_key(&id, |input| input.id.0).ok().map(|at| &inputs[at]);
        let value = input.map(|input| input.value(py)).transpose()?.flatten();
        value.ok_or_else(crate::handle::misplaced)
    };
    let result = |place: Place<'_, 'py>| match place {
        Place::Input(at) => value(call.first + at),
        Place::Handle(handle) => value(handle.get().node()?.id.0),
        Place::Other => Err(PyRuntimeError::new_err("nothing stands for a result here")),
    };
    let args = call.args.bind(py);
    let args = match scan::fill(args, &result)? {
        Some(filled) => filled.cast_into::<PyTuple>()?,
        None => args.clone(),
    };
    let Some(kwargs) = &call.kwargs else { return Ok((args, None)) };
    let kwargs = kwargs.bind(py);
    let kwargs = match scan::fill(kwargs, &result)? {
        Some(filled) => filled.cast_into::<PyDict>()?,
        None => kwargs.clone(),
    };
    Ok((args, Some(kwargs)))
}
