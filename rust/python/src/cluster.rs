//! The processes of a cluster, for the commands that make one.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyConnectionError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use rustdask_cluster::node::{self, NodeOptions, Notice};
use rustdask_cluster::scheduler::{self, Options, NODE_TIMEOUT};
use rustdask_cluster::transport::{self, ConnectError, Listener, Port, Security, Tls, TlsFiles, Token};
use rustdask_core::cluster::{Info, NodeInfo, Versions};
use rustdask_runtime::template::Launch;
use tokio::sync::oneshot;

/// How long a wait goes on before signals are looked at.
const SLICE: Duration = Duration::from_millis(50);

/// Something that runs beside Python, in a thread of its own, until it is stopped or ends by itself.
struct Service {
    stop: Mutex<Option<oneshot::Sender<()>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    ended: Arc<AtomicBool>,
}

impl Service {
    /// `serve` is given what to wait for.
    fn start(name: &str, serve: impl FnOnce(oneshot::Receiver<()>) + Send + 'static) -> PyResult<Self> {
        let (stop, stopped) = oneshot::channel();
        let ended = Arc::new(AtomicBool::new(false));
        let ending = ended.clone();
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            serve(stopped);
            ending.store(true, Ordering::Release);
        })?;
        Ok(Self { stop: Mutex::new(Some(stop)), thread: Mutex::new(Some(thread)), ended })
    }

    /// Wait until it has ended, for so many seconds at most; false when those are over. Signals are looked at.
    fn wait(&self, py: Python<'_>, seconds: f64) -> PyResult<bool> {
        let deadline = Instant::now().checked_add(duration(seconds));
        loop {
            let left = deadline.map_or(SLICE, |deadline| deadline.saturating_duration_since(Instant::now()));
            if self.ended.load(Ordering::Acquire) || left.is_zero() {
                return Ok(self.ended.load(Ordering::Acquire));
            }
            py.detach(|| std::thread::sleep(left.min(SLICE)));
            py.check_signals()?;
        }
    }

    /// Ask it to end.
    fn leave(&self) {
        let stop = self.stop.lock().expect("no holder panics").take();
        // It may have ended by itself.
        let _ = stop.map(|stop| stop.send(()));
    }

    /// End it, and wait for that.
    fn end(&self, py: Python<'_>) {
        self.leave();
        let thread = self.thread.lock().expect("no holder panics").take();
        // A panic there has been printed already.
        py.detach(|| thread.map(JoinHandle::join));
    }
}

pub(crate) fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

/// Whoever drops the other end wants it to stop, too.
async fn heard(stopped: oneshot::Receiver<()>) {
    let _ = stopped.await;
}

/// A cluster's scheduler.
#[pyclass(frozen, module = "rustdask._core")]
pub(crate) struct ClusterScheduler {
    service: Service,
    #[pyo3(get)]
    address: String,
}

#[pymethods]
impl ClusterScheduler {
    /// Listen, and serve whoever belongs to the cluster. `exact`: on this port and no other.
    #[new]
    #[pyo3(signature = (*, host, port, exact, versions, token=None, tls=None))]
    fn new(
        py: Python<'_>,
        host: &str,
        port: u16,
        exact: bool,
        versions: VersionsOf,
        token: Option<&str>,
        tls: Option<(String, String, String)>,
    ) -> PyResult<Self> {
        let security = security(token, tls)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let port = if exact { Port::Exactly(port) } else { Port::OrNext(port) };
        let listener = py.detach(|| runtime.block_on(Listener::bind(host, port, security)))?;
        let address = listener.address().to_string();
        let options = Options { versions: versions.into(), node_timeout: NODE_TIMEOUT };
        let service = Service::start("rustdask-scheduler", move |stopped| {
            runtime.block_on(scheduler::serve(listener, options, heard(stopped)));
        })?;
        Ok(Self { service, address })
    }

    /// Wait until it has ended, in seconds; False when the time is over.
    fn wait(&self, py: Python<'_>, seconds: f64) -> PyResult<bool> {
        self.service.wait(py, seconds)
    }

    fn stop(&self, py: Python<'_>) {
        self.service.end(py);
    }
}

/// Make an authority and a certificate for these hosts: ca.pem, cert.pem and key.pem.
#[pyfunction]
pub(crate) fn make_certificates(directory: PathBuf, hosts: Vec<String>) -> PyResult<()> {
    transport::make_certificates(&directory, &hosts)?;
    Ok(())
}

/// Versions, as Python has them.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct VersionsOf {
    rustdask: String,
    python: (u8, u8),
    libraries: Vec<(String, String)>,
}

impl From<VersionsOf> for Versions {
    fn from(versions: VersionsOf) -> Self {
        let VersionsOf { rustdask, python, libraries } = versions;
        Self { rustdask, python, libraries }
    }
}

pub(crate) fn security(token: Option<&str>, tls: Option<(String, String, String)>) -> PyResult<Security> {
    let token = token.map(str::parse::<Token>).transpose().map_err(PyValueError::new_err)?;
    let tls = tls.map(|(cert, key, ca)| Tls::load(&TlsFiles { cert: cert.into(), key: key.into(), ca: ca.into() }));
    Ok(Security { token, tls: tls.transpose()? })
}

pub(crate) fn unconnected(error: ConnectError) -> PyErr {
    PyConnectionError::new_err(error.to_string())
}

/// Hands what workers write to Python.
pub(crate) fn output(take: Py<PyAny>) -> crate::remote::Output {
    Box::new(move |error_stream, log, text| {
        Python::try_attach(|py| {
            let text = PyBytes::new(py, text);
            if let Err(error) = take.call1(py, (error_stream, log, text)) {
                error.write_unraisable(py, None);
            }
        });
    })
}

/// What a scheduler says of itself.
pub(crate) fn info<'py>(py: Python<'py>, info: &Info) -> PyResult<Bound<'py, PyDict>> {
    let out = PyDict::new(py);
    out.set_item("versions", versions(py, &info.versions)?)?;
    out.set_item("uptime", info.uptime.as_secs_f64())?;
    out.set_item("clients", info.clients)?;
    out.set_item("known", info.tasks)?;
    out.set_item("active", info.active)?;
    out.set_item("queued", info.queued)?;
    out.set_item("workers", info.nodes.iter().map(|node| node.workers.len()).sum::<usize>())?;
    let nodes = info.nodes.iter().map(|node| node_info(py, node)).collect::<PyResult<Vec<_>>>()?;
    out.set_item("nodes", nodes)?;
    Ok(out)
}

fn node_info<'py>(py: Python<'py>, node: &NodeInfo) -> PyResult<Bound<'py, PyDict>> {
    let out = PyDict::new(py);
    let (spec, load) = (&node.spec, &node.load);
    out.set_item("name", &spec.name)?;
    out.set_item("address", &spec.address)?;
    out.set_item("host", &spec.host)?;
    out.set_item("pid", spec.pid)?;
    out.set_item(
        "resources",
        spec.resources.iter().map(|(name, amount)| (name.clone(), *amount)).collect::<HashMap<_, _>>(),
    )?;
    out.set_item("workers", &node.workers)?;
    out.set_item("memory_limit", spec.memory_limit_bytes)?;
    out.set_item("memory_bytes", load.memory_bytes)?;
    out.set_item("result_bytes", load.result_bytes)?;
    out.set_item("spilled_bytes", load.spilled_bytes)?;
    out.set_item("leaving", node.leaving)?;
    out.set_item("silent", node.silent.as_secs_f64())?;
    out.set_item("versions", versions(py, &node.versions)?)?;
    Ok(out)
}

fn versions<'py>(py: Python<'py>, versions: &Versions) -> PyResult<Bound<'py, PyDict>> {
    let out = PyDict::new(py);
    out.set_item("rustdask", &versions.rustdask)?;
    out.set_item("python", versions.python)?;
    out.set_item("libraries", versions.libraries.clone().into_iter().collect::<HashMap<_, _>>())?;
    Ok(out)
}

/// A machine's part of a cluster.
#[pyclass(frozen, module = "rustdask._core")]
pub(crate) struct ClusterNode {
    service: Service,
    #[pyo3(get)]
    name: String,
    state: Arc<Mutex<NodeState>>,
}

#[derive(Default)]
struct NodeState {
    address: Option<String>,
    /// Why it has ended, if that was not asked for.
    failure: Option<String>,
}

#[pymethods]
impl ClusterNode {
    /// Join a cluster. `launch` says how to start Python: `(program, arguments, greeting)`.
    #[new]
    #[pyo3(signature = (*, scheduler, name, workers, launch, resources, memory_limit, results_limit, folder, host, port, death_timeout, drain_limit, versions, token=None, tls=None))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        scheduler: &str,
        name: String,
        workers: u32,
        launch: &Bound<'_, PyAny>,
        resources: HashMap<String, f64>,
        memory_limit: u64,
        results_limit: Option<u64>,
        folder: PathBuf,
        host: String,
        port: u16,
        death_timeout: Option<f64>,
        drain_limit: f64,
        versions: VersionsOf,
        token: Option<&str>,
        tls: Option<(String, String, String)>,
    ) -> PyResult<Self> {
        let (program, arguments, greeting) = launch.call0()?.extract()?;
        let state: Arc<Mutex<NodeState>> = Arc::default();
        let options = NodeOptions {
            scheduler: scheduler.parse().map_err(PyValueError::new_err)?,
            security: security(token, tls)?,
            versions: versions.into(),
            name: name.clone(),
            host,
            port: Port::Exactly(port),
            contact_host: None,
            workers,
            resources: resources.into_iter().collect(),
            results_limit_bytes: results_limit,
            worker_memory_limit_bytes: memory_limit,
            local_directory: folder,
            death_timeout: death_timeout.map(duration),
            drain_limit: duration(drain_limit),
            launch: Launch { program, arguments, greeting },
            notice: take_notice(state.clone()),
        };
        let ended = state.clone();
        let service = Service::start("rustdask-node", move |stopped| {
            if let Err(error) = node::serve_blocking(options, heard(stopped)) {
                ended.lock().expect("no holder panics").failure = Some(error.to_string());
            }
        })?;
        Ok(Self { service, name, state })
    }

    /// Where others get its data; None until it has joined.
    #[getter]
    fn address(&self) -> Option<String> {
        self.state.lock().expect("no holder panics").address.clone()
    }

    /// Why it has ended, if that was not asked for.
    #[getter]
    fn failure(&self) -> Option<String> {
        self.state.lock().expect("no holder panics").failure.clone()
    }

    /// Wait until it has ended, in seconds; False when the time is over.
    fn wait(&self, py: Python<'_>, seconds: f64) -> PyResult<bool> {
        self.service.wait(py, seconds)
    }

    /// Have it end what it runs, hand over what it has, and leave.
    fn leave(&self) {
        self.service.leave();
    }

    /// Leave, and wait for that.
    fn stop(&self, py: Python<'_>) {
        self.service.end(py);
    }
}

fn take_notice(state: Arc<Mutex<NodeState>>) -> Arc<dyn Fn(Notice<'_>) + Send + Sync> {
    Arc::new(move |notice| match notice {
        Notice::Joined { address } => state.lock().expect("no holder panics").address = Some(address.into()),
        Notice::Lost { why } => eprintln!("rustdask worker: looking for the scheduler: {why}"),
        Notice::Warning(text) => eprintln!("rustdask worker: {text}"),
    })
}
