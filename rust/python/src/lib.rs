//! The binding of rustdask to Python: each function extracts, detaches, calls and converts, and no more.

mod batch;
mod buffer;
mod call;
mod cluster;
mod exit;
mod guest;
mod handle;
mod memory;
mod node;
mod output;
mod pools;
mod remote;
mod scan;
mod session;
mod shipment;
mod stats;
mod transport;
mod upstream;
mod watch;
mod work;
mod worker;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use numpy::{PyArray1, ToPyArray};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use rustdask_core::message::Access;
use rustdask_core::{CallSpec, Event};
use rustdask_runtime::template::Launch;

use crate::call::{CallInner, Settings, FEW_AHEAD};
use crate::pools::pools;
use crate::stats::Stats;

/// One `Parallel` call.
#[pyclass(frozen, module = "rustdask._core")]
struct Call(Arc<CallInner>);

#[pymethods]
impl Call {
    /// Open a call on the threads of this process.
    #[staticmethod]
    #[pyo3(signature = (*, cap, core_budget, on_done, divisible, helper, nested, background, context, enter,
                        run_item=None, substitute=None, item_timeout=None))]
    #[allow(clippy::too_many_arguments)]
    fn threads(
        cap: u32,
        core_budget: u32,
        on_done: Py<PyAny>,
        divisible: bool,
        helper: bool,
        nested: bool,
        background: bool,
        context: Option<Py<PyAny>>,
        enter: Option<Py<PyAny>>,
        run_item: Option<Py<PyAny>>,
        substitute: Option<Py<PyAny>>,
        item_timeout: Option<f64>,
    ) -> PyResult<Self> {
        pools::check_open()?;
        let spec = CallSpec {
            cap,
            crash_retries: 0,
            item_timeout: seconds(item_timeout)?,
            helper_expected: helper,
            depth: 1,
            divisible,
            nested,
        };
        let settings = Settings {
            on_done,
            substitute,
            run_item,
            context,
            enter,
            dump: None,
            load: None,
            access: Access::CopyOnWrite,
            max_nbytes: u64::MAX,
            folder: None,
            memory_limit: 0,
            one_by_one: item_timeout.is_some(),
        };
        Ok(Self(CallInner::open_threads(pools().threads(core_budget), spec, settings, background)))
    }

    /// Open a call on worker processes. `launch` is called for `(program, arguments, greeting)` when no
    /// pool is running.
    #[staticmethod]
    #[pyo3(signature = (*, cap, core_budget, on_done, divisible, background, launch, dump, load, crash_retries, access,
                        max_nbytes, folder=None, memory_limit=0, substitute=None, item_timeout=None,
                        idle_timeout=None))]
    #[allow(clippy::too_many_arguments)]
    fn processes(
        cap: u32,
        core_budget: u32,
        on_done: Py<PyAny>,
        divisible: bool,
        background: bool,
        launch: &Bound<'_, PyAny>,
        dump: Py<PyAny>,
        load: Py<PyAny>,
        crash_retries: u32,
        access: &str,
        max_nbytes: Option<u64>,
        folder: Option<PathBuf>,
        memory_limit: u64,
        substitute: Option<Py<PyAny>>,
        item_timeout: Option<f64>,
        idle_timeout: Option<f64>,
    ) -> PyResult<Self> {
        pools::check_open()?;
        let pool = pools().processes(core_budget, || {
            let (program, arguments, greeting) = launch.call0()?.extract()?;
            Ok(Launch { program, arguments, greeting })
        })?;
        pool.set_idle_timeout(seconds(idle_timeout)?);
        let spec = CallSpec {
            cap,
            crash_retries,
            item_timeout: seconds(item_timeout)?,
            helper_expected: false,
            depth: FEW_AHEAD,
            divisible,
            nested: false,
        };
        let settings = Settings {
            on_done,
            substitute,
            run_item: None,
            context: None,
            enter: None,
            dump: Some(dump),
            load: Some(load),
            access: parse_access(access)?,
            max_nbytes: max_nbytes.unwrap_or(u64::MAX),
            folder,
            memory_limit,
            one_by_one: item_timeout.is_some(),
        };
        Ok(Self(CallInner::open_processes(pool, spec, settings, background)))
    }

    /// Hand over a list of `(function, args, kwargs)`; `token` comes back with the outcome.
    fn submit(&self, items: &Bound<'_, PyList>, token: Py<PyAny>) -> PyResult<()> {
        let _inside = exit::Inside::enter()?;
        self.0.submit(items, token)
    }

    /// Wait until every batch has had its outcome or one has stopped the call.
    fn wait(&self, py: Python<'_>) -> PyResult<()> {
        self.0.wait(py)
    }

    /// Backpressure: while paused, no further task begins.
    fn pause(&self, paused: bool) {
        self.0.event(Event::CallPaused { call: self.0.id, paused });
    }

    /// Forget the call; what runs in a process is ended.
    fn close(&self, py: Python<'_>) {
        // The end of the interpreter ends all calls.
        let Ok(_inside) = exit::Inside::enter() else { return };
        self.0.close(py);
    }

    /// Mean run time of a task so far, in seconds.
    fn mean_item_time(&self) -> Option<f64> {
        self.0.stats().mean_item_time().map(|time| time.as_secs_f64())
    }

    /// What was counted and timed; once, when the call is over.
    fn take_stats(&self) -> CallStats {
        let (splits, crashes) = self.0.incidents();
        CallStats { stats: std::mem::take(&mut *self.0.stats()), splits, crashes }
    }
}

/// The figures of a call that is over, for `explain()`. They become Python objects only when they are asked for: those
/// that stay from the end of a large call keep the memory around them from being given back.
#[pyclass(frozen, module = "rustdask._core")]
struct CallStats {
    stats: Stats,
    splits: u64,
    crashes: u64,
}

#[pymethods]
impl CallStats {
    /// Times in seconds.
    fn as_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = &self.stats;
        let out = PyDict::new(py);
        out.set_item("batches", stats.batches)?;
        out.set_item("tasks", stats.tasks)?;
        out.set_item("batch_sizes", stats.batch_sizes.iter().collect::<Vec<_>>())?;
        out.set_item("pickling", (stats.pickling + stats.placing).as_secs_f64())?;
        out.set_item("unpickling", stats.timings.loading.as_secs_f64())?;
        out.set_item("running", stats.timings.running.as_secs_f64())?;
        out.set_item("results", (stats.timings.dumping + stats.loading_results).as_secs_f64())?;
        out.set_item("bytes_sent", stats.bytes_sent)?;
        out.set_item("bytes_placed", stats.bytes_placed)?;
        out.set_item("bytes_saved", stats.bytes_saved)?;
        out.set_item("bytes_received", stats.bytes_received)?;
        let samples: Bound<'py, PyArray1<f64>> = stats.samples.to_pyarray(py);
        out.set_item("task_seconds", samples)?;
        out.set_item("queue", stats.queue.as_secs_f64())?;
        out.set_item("on_cpu", stats.on_cpu.as_secs_f64())?;
        out.set_item("blocked", stats.blocked.as_secs_f64())?;
        out.set_item("slowest", &stats.slowest)?;
        out.set_item("splits", self.splits)?;
        out.set_item("crashes", self.crashes)?;
        Ok(out)
    }
}

fn seconds(value: Option<f64>) -> PyResult<Option<Duration>> {
    let parse = |seconds| {
        Duration::try_from_secs_f64(seconds).map_err(|_| {
            PyValueError::new_err(format!("a time limit must be a positive number of seconds, got {seconds}"))
        })
    };
    value.map(parse).transpose()
}

fn parse_access(access: &str) -> PyResult<Access> {
    match access {
        "c" => Ok(Access::CopyOnWrite),
        "r" => Ok(Access::ReadOnly),
        "r+" => Ok(Access::Shared),
        other => Err(PyValueError::new_err(format!("mmap_mode must be 'c', 'r', 'r+', 'w+' or None, got '{other}'"))),
    }
}

/// End all pools of this process and wait for them. The next call starts afresh.
/// `at_exit` says that no Python code will run after this.
#[pyfunction]
#[pyo3(signature = (*, at_exit=false))]
fn shutdown(py: Python<'_>, at_exit: bool) {
    let current = pools();
    if at_exit {
        pools::refuse_calls();
        py.detach(|| current.release_callers());
    }
    py.detach(|| current.stop());
    // Otherwise, threads that are busy finish what they have begun, and end then.
    if at_exit && !exit::threads_end_within(Duration::ZERO) {
        exit::interrupt_threads(py);
        if !py.detach(|| exit::threads_end_within(pools::PATIENCE)) {
            exit::park_threads();
        }
    }
}

/// Workers need this blob no more.
#[pyfunction]
fn forget_blob(py: Python<'_>, number: u64) {
    let Ok(_inside) = exit::Inside::enter() else { return };
    if let Some(pool) = pools().existing_processes() {
        py.detach(|| pool.forget_blobs(&[number], false));
    }
}

thread_local! {
    /// Held by the thread that forks, from before until after.
    static FORKING: std::cell::RefCell<Option<std::sync::RwLockWriteGuard<'static, ()>>> =
        const { std::cell::RefCell::new(None) };
}

/// Before this process forks: have no native thread hold a lock that the child needs.
#[pyfunction]
fn before_fork() {
    FORKING.set(Some(rustdask_runtime::fork::quiesce()));
}

/// After a fork, in the process that forked, or when it came to nothing.
#[pyfunction]
fn after_fork_in_parent() {
    rustdask_runtime::fork::happened();
    FORKING.set(None);
}

/// In a forked child: leave the parent's pools alone.
#[pyfunction]
fn after_fork_in_child() {
    rustdask_runtime::fork::happened();
    FORKING.set(None);
    pools::forget_after_fork();
}

/// What is running: threads, workers as `(rank, pid)`, the template's pid, shared memory.
#[pyfunction]
fn pool_info(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let out = PyDict::new(py);
    out.set_item("threads", pools().thread_count())?;
    let pool = pools().existing_processes();
    let workers: Vec<(u32, i32)> = pool.iter().flat_map(|p| p.workers()).map(|w| (w.rank, w.pid)).collect();
    out.set_item("workers", workers)?;
    out.set_item("template_pid", pool.as_ref().and_then(|pool| pool.template_pid()))?;
    let store = pool.as_ref().map(|pool| pool.shared.memory.store.stats()).unwrap_or_default();
    out.set_item("argument_segments", store.segments)?;
    out.set_item("argument_bytes", store.bytes)?;
    out.set_item("mapped_results", pool.as_ref().map_or(0, |pool| pool.shared.memory.mapped_results()))?;
    Ok(out)
}

/// Have the kernel end this process when the thread that started it ends.
#[pyfunction]
fn die_with_parent() -> PyResult<()> {
    rustdask_runtime::template::die_with_parent()?;
    Ok(())
}

#[pymodule(gil_used = false)]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Call>()?;
    module.add_class::<CallStats>()?;
    module.add_class::<session::Session>()?;
    module.add_class::<handle::Handle>()?;
    module.add_class::<scan::Input>()?;
    module.add_class::<watch::Watch>()?;
    module.add_class::<buffer::SharedBuffer>()?;
    module.add_class::<worker::WorkerEndpoint>()?;
    module.add_class::<worker::WorkerTask>()?;
    module.add_function(wrap_pyfunction!(shutdown, module)?)?;
    module.add_function(wrap_pyfunction!(handle::results, module)?)?;
    module.add_function(wrap_pyfunction!(scan::fill_with, module)?)?;
    module.add_function(wrap_pyfunction!(session::current_session, module)?)?;
    module.add_function(wrap_pyfunction!(session::current_grants, module)?)?;
    module.add_function(wrap_pyfunction!(session::is_abandoned, module)?)?;
    module.add_class::<cluster::ClusterScheduler>()?;
    module.add_class::<cluster::ClusterNode>()?;
    module.add_function(wrap_pyfunction!(cluster::make_certificates, module)?)?;
    module.add_function(wrap_pyfunction!(forget_blob, module)?)?;
    module.add_function(wrap_pyfunction!(before_fork, module)?)?;
    module.add_function(wrap_pyfunction!(after_fork_in_parent, module)?)?;
    module.add_function(wrap_pyfunction!(after_fork_in_child, module)?)?;
    module.add_function(wrap_pyfunction!(pool_info, module)?)?;
    module.add_function(wrap_pyfunction!(die_with_parent, module)?)?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    Ok(())
}
