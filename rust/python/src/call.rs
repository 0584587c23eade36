//! One `Parallel` call: what is submitted, who runs it, who hears of its end.
//!
//! Notices of the driver are read by whoever is there: the caller while it waits, a pool thread that has
//! just finished a task, or the background reader when results are consumed elsewhere.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyKeyboardInterrupt, PyRuntimeError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};
use rustdask_core::ending::Unreported;
use rustdask_core::message::Access;
use rustdask_core::{Attempt, CallId, CallSpec, Event, Outcome, TaskId, WorkerId};
use rustdask_runtime::cpu;
use rustdask_runtime::cursor::Cursor;
use rustdask_runtime::delivery::Delivery;
use rustdask_runtime::driver::{CallMailbox, Notice};
use rustdask_runtime::mailbox::Mailbox;
use rustdask_runtime::parcel::Blob;

use crate::batch::{Batch, Part, PartRef};
use crate::output::{relay, Attendance};
use crate::pools::{pools, run_assigned, Processes, Threads};
use crate::stats::Stats;
use crate::work::Work;

/// How long a wait goes on before signals are looked at.
pub(crate) const SLICE: Duration = Duration::from_millis(50);
/// A caller that takes longer than this to hand its tasks over is not waited for as a helper.
const DISPATCH_PATIENCE: Duration = Duration::from_millis(2);

/// Batches that are pickled as soon as they are submitted, for each worker.
const EAGER_BATCHES_PER_WORKER: usize = 4;

/// Tasks that a worker process holds at first, and when they turn out to be short and without arrays of their own.
pub(crate) const FEW_AHEAD: u32 = 4;
const MANY_AHEAD: u32 = 16;
const SHORT: Duration = Duration::from_micros(200);
/// So many tasks are looked at before.
const JUDGED_BY: u64 = 16;

/// After calls of so many items, memory is given back to the system.
const MANY_ITEMS: u64 = 100_000;

/// The parts of a call that Python code makes up.
pub(crate) struct Settings {
    /// `on_done(token, kind, value, index) -> stop`.
    pub(crate) on_done: Py<PyAny>,
    /// `substitute(kind, value, index, items) -> results or None`: stand-ins for a part that failed.
    pub(crate) substitute: Option<Py<PyAny>>,
    /// `run_item(index, function, args, kwargs) -> result`, where a bare call is not enough.
    pub(crate) run_item: Option<Py<PyAny>>,
    /// The contextvars.Context that tasks in threads run in copies of.
    pub(crate) context: Option<Py<PyAny>>,
    /// `enter()` prepares a pool thread for tasks of the call.
    pub(crate) enter: Option<Py<PyAny>>,
    /// `dump(items, start, end) -> (pickle, buffers, blobs)`.
    pub(crate) dump: Option<Py<PyAny>>,
    /// `load(pickle, buffers) -> results`.
    pub(crate) load: Option<Py<PyAny>>,
    /// How arrays over `max_nbytes` are mapped.
    pub(crate) access: Access,
    pub(crate) max_nbytes: u64,
    pub(crate) folder: Option<PathBuf>,
    pub(crate) memory_limit: u64,
    /// Items have a time limit each, so each is a task of its own.
    pub(crate) one_by_one: bool,
}

pub(crate) enum Engine {
    Threads { pool: Arc<Threads>, mailbox: Arc<CallMailbox<Work, ()>> },
    Processes { pool: Arc<Processes>, mailbox: Arc<CallMailbox<Work, Delivery>> },
}

pub(crate) struct CallInner {
    pub(crate) engine: Engine,
    pub(crate) id: CallId,
    pub(crate) settings: Settings,
    pub(crate) stats: Mutex<Stats>,
    incidents_before: (u64, u64),
    /// Blobs that workers were told of for this call, and the memory that they hold.
    blobs: Mutex<Blobs>,
    opened: Instant,
    items: AtomicU64,
    /// Batches that have had no outcome yet.
    outstanding: AtomicUsize,
    stopped: AtomicBool,
    closed: AtomicBool,
    /// Batches beyond this many unfinished ones are pickled later.
    eager_batches: usize,
    /// Notices are read on other threads than the caller's.
    background: bool,
    /// Workers may hold many of its tasks.
    deep: AtomicBool,
    /// The caller is reading notices in the middle of a submission.
    dispatching: AtomicBool,
    helper_expected: AtomicBool,
    helper: Mutex<Option<WorkerId>>,
}

#[derive(Default)]
pub(crate) struct Blobs {
    pub(crate) made: HashMap<u64, Arc<Blob>>,
    /// Those of them that later calls will refer to.
    pub(crate) kept: HashSet<u64>,
    pub(crate) segments: Vec<rustdask_core::SegmentId>,
}

/// Who reads a mailbox. Only the caller, who joined as a helper, can take what the helper is to run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reader {
    Caller,
    Other,
}

/// How a part of a batch ended, as Python is told.
pub(crate) enum End {
    Results(Py<PyList>),
    /// An exception of this process.
    Raised(PyErr),
    /// A pickled exception.
    Remote(Py<PyAny>),
    Unreported(Unreported),
}

impl End {
    fn describe(self, py: Python<'_>) -> PyResult<(&'static str, Py<PyAny>)> {
        Ok(match self {
            Self::Results(results) => ("results", results.into_any()),
            Self::Raised(error) => ("raised", error.into_value(py).into_any()),
            Self::Remote(pickle) => ("remote", pickle),
            Self::Unreported(unreported) => describe_unreported(py, &unreported)?,
        })
    }
}

/// As Python is told.
pub(crate) fn describe_unreported(py: Python<'_>, unreported: &Unreported) -> PyResult<(&'static str, Py<PyAny>)> {
    let (obituary, deaths) = match unreported {
        Unreported::Crashed { obituary, deaths } => (obituary, deaths),
        Unreported::TimedOut => return Ok(("timed out", py.None())),
        Unreported::NoWorkers { why } => return Ok(("no workers", why.into_pyobject(py)?.into_any().unbind())),
    };
    let death = PyDict::new(py);
    death.set_item("deaths", deaths)?;
    death.set_item("exit_code", obituary.exit_code)?;
    death.set_item("signal", obituary.signal)?;
    death.set_item("peak_memory_bytes", obituary.peak_memory_bytes)?;
    death.set_item("stderr", &obituary.stderr)?;
    death.set_item("reason", &obituary.reason)?;
    Ok(("crashed", death.into_any().unbind()))
}

impl CallInner {
    pub(crate) fn open_threads(pool: Arc<Threads>, spec: CallSpec, settings: Settings, background: bool) -> Arc<Self> {
        Arc::new_cyclic(|call| {
            let mailbox = Arc::new(Mailbox::new(background.then(|| bell(call.clone()))));
            let helper_expected = spec.helper_expected;
            let id = pool.driver.open_call(spec, mailbox.clone());
            Self::new(Engine::Threads { pool, mailbox }, id, settings, 0, background, helper_expected)
        })
        .remembered()
    }

    pub(crate) fn open_processes(
        pool: Arc<Processes>,
        spec: CallSpec,
        settings: Settings,
        background: bool,
    ) -> Arc<Self> {
        Arc::new_cyclic(|call| {
            let mailbox = Arc::new(Mailbox::new(background.then(|| bell(call.clone()))));
            let eager_batches = EAGER_BATCHES_PER_WORKER * spec.cap as usize;
            let id = pool.driver.open_call(spec, mailbox.clone());
            Self::new(Engine::Processes { pool, mailbox }, id, settings, eager_batches, background, false)
        })
        .remembered()
    }

    fn remembered(self: Arc<Self>) -> Arc<Self> {
        pools().opened(Arc::downgrade(&self));
        self
    }

    fn new(
        engine: Engine,
        id: CallId,
        settings: Settings,
        eager_batches: usize,
        background: bool,
        helper_expected: bool,
    ) -> Self {
        Self {
            incidents_before: engine.incidents(),
            engine,
            id,
            settings,
            stats: Mutex::default(),
            blobs: Mutex::default(),
            opened: Instant::now(),
            items: AtomicU64::new(0),
            outstanding: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            eager_batches,
            background,
            deep: AtomicBool::new(false),
            dispatching: AtomicBool::new(false),
            helper_expected: AtomicBool::new(helper_expected),
            helper: Mutex::new(None),
        }
    }

    pub(crate) fn submit(self: &Arc<Self>, items: &Bound<'_, PyList>, token: Py<PyAny>) -> PyResult<()> {
        let count = u32::try_from(items.len())?;
        let first_index = self.items.fetch_add(u64::from(count), Ordering::Relaxed);
        self.stats().submitted(count);
        let batch = Batch::new(self.clone(), items.clone().unbind(), count, token, first_index);
        let ahead = self.outstanding.fetch_add(1, Ordering::AcqRel);
        let accepted = match self.settings.one_by_one {
            false => self.submit_part(items.py(), Part::whole(batch, count), ahead),
            true => (0..count).all(|i| self.submit_part(items.py(), Part::of(batch.clone(), i, i + 1), ahead)),
        };
        if !accepted {
            return Err(PyRuntimeError::new_err(
                "the call was shut down while it was running; rustdask.shutdown() ends all calls",
            ));
        }
        if self.opened.elapsed() > DISPATCH_PATIENCE && self.helper_expected.swap(false, Ordering::AcqRel) {
            self.event(Event::HelperExcused { call: self.id });
        }
        self.read_while_dispatching(items.py())
    }

    /// False when the call is closed.
    fn submit_part(self: &Arc<Self>, py: Python<'_>, part: PartRef, ahead: usize) -> bool {
        let items = part.0.end() - part.0.start;
        if let Engine::Processes { pool, mailbox } = &self.engine {
            // Tasks that are far from their turn are pickled when it comes, so that few are in memory twice.
            if ahead < self.eager_batches {
                if let Err(error) = crate::transport::pickle(py, self, pool, &part) {
                    part.0.set_outcome(Err(error));
                    let ending = Ok(Delivery::Unsent);
                    mailbox.post(Notice::Resolved { task: TaskId(u64::MAX), payload: Work::Part(part), ending });
                    return true;
                }
            }
        }
        match &self.engine {
            Engine::Threads { pool, .. } => pool.driver.submit(self.id, Work::Part(part), items).is_some(),
            Engine::Processes { pool, .. } => pool.driver.submit(self.id, Work::Part(part), items).is_some(),
        }
    }

    /// A caller that hands many batches over reads what comes back in between, so that workers are not kept waiting.
    fn read_while_dispatching(self: &Arc<Self>, py: Python<'_>) -> PyResult<()> {
        let remote = matches!(self.engine, Engine::Processes { .. });
        if !remote || self.background || self.dispatching.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let mut read = Ok(true);
        while matches!(read, Ok(true)) {
            read = self.read_one(py, Reader::Caller);
        }
        self.dispatching.store(false, Ordering::Release);
        read.map(|_| ())
    }

    /// Read notices until the call has ended, and help where that is expected.
    pub(crate) fn wait(self: &Arc<Self>, py: Python<'_>) -> PyResult<()> {
        let _attendance = Attendance::start();
        let helping = self.start_helping();
        let waited = self.wait_until_ended(py);
        if helping {
            self.stop_helping();
        }
        let relayed = relay(py);
        waited.and(relayed)
    }

    fn wait_until_ended(self: &Arc<Self>, py: Python<'_>) -> PyResult<()> {
        loop {
            while !self.has_ended() && (self.read_one(py, Reader::Caller)? || run_assigned(py)) {}
            relay(py)?;
            if self.has_ended() {
                return Ok(());
            }
            py.detach(|| match &self.engine {
                Engine::Threads { mailbox, .. } => mailbox.wait(SLICE, || self.has_ended()),
                Engine::Processes { mailbox, .. } => mailbox.wait(SLICE, || self.has_ended()),
            });
            py.check_signals()?;
        }
    }

    fn has_ended(&self) -> bool {
        self.stopped.load(Ordering::Acquire) || self.outstanding.load(Ordering::Acquire) == 0
    }

    fn start_helping(&self) -> bool {
        let Engine::Threads { pool, .. } = &self.engine else { return false };
        if !self.helper_expected.swap(false, Ordering::AcqRel) {
            return false;
        }
        // Locked before it joins: whoever reads a notice for the helper finds it.
        let mut helper = self.helper.lock().expect("no holder panics");
        *helper = Some(pool.join_as_helper(self.id));
        true
    }

    fn stop_helping(&self) {
        let helper = self.helper.lock().expect("no holder panics").take();
        if let (Engine::Threads { pool, .. }, Some(helper)) = (&self.engine, helper) {
            pool.leave(helper);
        }
    }

    /// Read what there is, on a thread that is not the caller's: nobody above it can take an error.
    pub(crate) fn read(self: &Arc<Self>, py: Python<'_>) {
        crate::output::relay_if_unattended(py);
        loop {
            match self.read_one(py, Reader::Other) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    error.write_unraisable(py, None);
                    self.stop();
                }
            }
        }
    }

    /// False when there was nothing.
    fn read_one(self: &Arc<Self>, py: Python<'_>, reader: Reader) -> PyResult<bool> {
        match &self.engine {
            Engine::Threads { pool, mailbox } => {
                let readable = |notice: &_| reader == Reader::Caller || !matches!(notice, Notice::Help { .. });
                match mailbox.take_if(readable) {
                    Some(notice) => self.handle_local(py, pool, notice)?,
                    None => return Ok(false),
                }
            }
            Engine::Processes { pool, mailbox } => match mailbox.take() {
                Some(notice) => self.handle_remote(py, pool, notice)?,
                None => return Ok(false),
            },
        }
        Ok(true)
    }

    fn handle_local(self: &Arc<Self>, py: Python<'_>, pool: &Arc<Threads>, notice: Notice<Work, ()>) -> PyResult<()> {
        match notice {
            Notice::Help { task, attempt, payload, cursor } => match payload.into_part() {
                Some(part) => self.help(py, pool, task, attempt, &part, cursor),
                None => Ok(()),
            },
            Notice::Resolved { payload, ending, .. } => {
                let Some(part) = payload.into_part() else { return Ok(()) };
                let end = match (ending, part.0.take_outcome()) {
                    (Ok(()), Some(Ok(results))) => End::Results(results),
                    (Ok(()), Some(Err(error))) => End::Raised(error),
                    (Ok(()), None) => End::Unreported(lost_report()),
                    (Err(unreported), _) => End::Unreported(unreported),
                };
                self.end_part(py, &part, end)
            }
            Notice::Send { .. } => Ok(()),
        }
    }

    fn help(
        self: &Arc<Self>,
        py: Python<'_>,
        pool: &Arc<Threads>,
        task: TaskId,
        attempt: Attempt,
        part: &PartRef,
        cursor: Arc<Cursor>,
    ) -> PyResult<()> {
        let Some(helper) = *self.helper.lock().expect("no holder panics") else { return Ok(()) };
        if !pool.take_help(helper, task, attempt) {
            return Ok(());
        }
        run_part(py, part, cursor);
        match part.0.take_outcome() {
            // It was meant for this thread, not for the task.
            Some(Err(error)) if error.is_instance_of::<PyKeyboardInterrupt>(py) => Err(error),
            outcome => {
                outcome.into_iter().for_each(|outcome| part.0.set_outcome(outcome));
                pool.finished(helper, task, attempt, Outcome::Ok);
                Ok(())
            }
        }
    }

    fn handle_remote(
        self: &Arc<Self>,
        py: Python<'_>,
        pool: &Arc<Processes>,
        notice: Notice<Work, Delivery>,
    ) -> PyResult<()> {
        match notice {
            Notice::Send { worker, task, attempt, payload } => match payload.into_part() {
                Some(part) => crate::transport::send(py, self, pool, worker, task, attempt, &part),
                None => Ok(()),
            },
            Notice::Resolved { payload, ending, .. } => {
                let Some(part) = payload.into_part() else { return Ok(()) };
                pool.release(&part.0.take_segments());
                let end = match ending {
                    Ok(delivery) => crate::transport::receive(py, self, &part, delivery)?,
                    Err(unreported) => End::Unreported(unreported),
                };
                self.end_part(py, &part, end)
            }
            Notice::Help { .. } => Ok(()),
        }
    }

    fn end_part(self: &Arc<Self>, py: Python<'_>, part: &PartRef, end: End) -> PyResult<()> {
        let batch = &part.0.batch;
        let index = batch.first_index + u64::from(part.0.start);
        if let End::Results(results) = end {
            return self.add_results(py, part, results);
        }
        let (kind, value) = end.describe(py)?;
        if let Some(substitute) = &self.settings.substitute {
            let items = batch.items.bind(py).get_slice(part.0.start as usize, part.0.end() as usize);
            let stand_ins = substitute.bind(py).call1((kind, &value, index, items))?;
            if !stand_ins.is_none() {
                return self.add_results(py, part, stand_ins.cast_into::<PyList>()?.unbind());
            }
        }
        if batch.fail() {
            return self.deliver(py, batch, kind, value, index);
        }
        Ok(())
    }

    fn add_results(self: &Arc<Self>, py: Python<'_>, part: &PartRef, results: Py<PyList>) -> PyResult<()> {
        let batch = &part.0.batch;
        match batch.add(py, part.0.start, results)? {
            Some(whole) => self.deliver(py, batch, "results", whole.into_any(), batch.first_index),
            None => Ok(()),
        }
    }

    fn deliver(&self, py: Python<'_>, batch: &Batch, kind: &str, value: Py<PyAny>, index: u64) -> PyResult<()> {
        let told = self.settings.on_done.bind(py).call1((&batch.token, kind, value, index));
        let stop = match &told {
            Ok(stop) => stop.is_truthy()?,
            Err(_) => true,
        };
        if stop {
            self.stopped.store(true, Ordering::Release);
        }
        self.outstanding.fetch_sub(1, Ordering::AcqRel);
        if self.has_ended() {
            self.wake();
        }
        told.map(|_| ())
    }

    fn wake(&self) {
        match &self.engine {
            Engine::Threads { mailbox, .. } => mailbox.wake(),
            Engine::Processes { mailbox, .. } => mailbox.wake(),
        }
    }

    /// There is something to read, and whoever left it cannot.
    pub(crate) fn leave_to_others(self: &Arc<Self>) {
        if self.background {
            pools().read_in_background(self.clone());
        } else {
            self.wake();
        }
    }

    /// Have the caller stop waiting.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.wake();
    }

    /// Waking each other costs the processes more than a short task: such tasks are sent further ahead.
    pub(crate) fn deepen_if_short(&self) {
        if !self.deep.load(Ordering::Relaxed) && self.stats().has_short_parts(JUDGED_BY, SHORT) {
            self.deep.store(true, Ordering::Relaxed);
            self.event(Event::CallDepth { call: self.id, depth: MANY_AHEAD });
        }
    }

    pub(crate) fn event(&self, event: Event) {
        match &self.engine {
            Engine::Threads { pool, .. } => pool.driver.event(event),
            Engine::Processes { pool, .. } => pool.driver.event(event),
        }
    }

    /// Forget the call. What waits is dropped, what runs in a process is ended with it.
    pub(crate) fn close(&self, py: Python<'_>) {
        self.closed.store(true, Ordering::Release);
        match &self.engine {
            // Letting go of the interpreter here would have a pool thread that waits for it take it, and give it back.
            Engine::Threads { pool, mailbox } => {
                pool.driver.close_call(self.id);
                drop(mailbox.empty());
            }
            Engine::Processes { pool, mailbox } => py.detach(|| {
                let _working = rustdask_runtime::fork::working();
                pool.driver.close_call(self.id);
                drop(mailbox.empty());
                let blobs = std::mem::take(&mut *self.blobs());
                let urgent = blobs.made.values().any(|blob| blob.is_large());
                let own = blobs.made.keys().copied().filter(|blob| !blobs.kept.contains(blob));
                pool.forget_blobs(&own.collect::<Vec<_>>(), urgent);
                pool.release(&blobs.segments);
            }),
        }
        self.stop();
        if self.items.load(Ordering::Relaxed) >= MANY_ITEMS {
            rustdask_runtime::trim::give_memory_back_soon();
        }
    }

    /// Prepare the current pool thread, unless it was prepared for this call last.
    pub(crate) fn enter_thread(&self, py: Python<'_>) -> PyResult<()> {
        thread_local! {
            static ENTERED: std::cell::RefCell<Option<Py<PyAny>>> = const { std::cell::RefCell::new(None) };
        }
        let Some(enter) = &self.settings.enter else { return Ok(()) };
        let same = ENTERED.with_borrow(|entered| entered.as_ref().is_some_and(|entered| entered.is(enter)));
        if !same {
            enter.bind(py).call0()?;
            ENTERED.set(Some(enter.clone_ref(py)));
        }
        Ok(())
    }

    pub(crate) fn stats(&self) -> std::sync::MutexGuard<'_, Stats> {
        self.stats.lock().expect("no holder panics")
    }

    pub(crate) fn blobs(&self) -> std::sync::MutexGuard<'_, Blobs> {
        self.blobs.lock().expect("no holder panics")
    }

    /// Tasks that were cut for idle workers, and workers that died, since the call was opened.
    pub(crate) fn incidents(&self) -> (u64, u64) {
        let (splits, deaths) = self.engine.incidents();
        (splits - self.incidents_before.0, deaths - self.incidents_before.1)
    }
}

impl Engine {
    /// As [`CallInner::incidents`], since the pool was started.
    fn incidents(&self) -> (u64, u64) {
        match self {
            Self::Threads { pool, .. } => (pool.driver.splits(), 0),
            Self::Processes { pool, .. } => (pool.driver.splits(), pool.shared.deaths()),
        }
    }
}

/// Of a task that was reported, but whose outcome is not there.
pub(crate) fn lost_report() -> Unreported {
    Unreported::NoWorkers { why: "a report was lost".into() }
}

fn bell(call: Weak<CallInner>) -> Box<dyn Fn() + Send + Sync> {
    Box::new(move || {
        if let Some(call) = call.upgrade() {
            pools().read_in_background(call);
        }
    })
}

/// Run what is left of a part in this thread, in a copy of the call's context, and keep its outcome with it.
pub(crate) fn run_part(py: Python<'_>, part: &PartRef, cursor: Arc<Cursor>) {
    let started = Instant::now();
    let call = &part.0.batch.call;
    let cpu_time = call.stats().worth_a_clock().then(cpu::thread_time);
    let outcome = match &call.settings.context {
        Some(context) => run_in_context(py, context, part, cursor),
        None => run_items(py, part, &cursor),
    };
    let ran = started.elapsed();
    let mut stats = call.stats();
    stats.queue += started - part.0.batch.submitted;
    stats.ran(ran, part.0.first_index(), part.0.end() - part.0.start);
    if let Some(before) = cpu_time {
        stats.on_clock(ran, cpu::thread_time().saturating_sub(before));
    }
    drop(stats);
    part.0.set_outcome(outcome);
}

fn run_in_context(py: Python<'_>, context: &Py<PyAny>, part: &PartRef, cursor: Arc<Cursor>) -> PyResult<Py<PyList>> {
    let context = context.bind(py).call_method0(intern!(py, "copy"))?;
    let run = Bound::new(py, RunItems { part: part.clone(), cursor })?;
    Ok(context.call_method1(intern!(py, "run"), (run,))?.cast_into::<PyList>()?.unbind())
}

/// What a context is asked to run.
#[pyclass(frozen)]
struct RunItems {
    part: PartRef,
    cursor: Arc<Cursor>,
}

#[pymethods]
impl RunItems {
    fn __call__(&self, py: Python<'_>) -> PyResult<Py<PyList>> {
        run_items(py, &self.part, &self.cursor)
    }
}

fn run_items(py: Python<'_>, part: &PartRef, cursor: &Cursor) -> PyResult<Py<PyList>> {
    let batch = &part.0.batch;
    let items = batch.items.bind(py);
    let results = PyList::empty(py);
    // Nobody hears of what is left of a call that has been closed.
    while !batch.call.closed.load(Ordering::Acquire) {
        let Some(begun) = cursor.advance() else { break };
        let position = part.0.start + begun;
        let item = items.get_item(position as usize)?.cast_into::<PyTuple>()?;
        let result = match &batch.call.settings.run_item {
            None => call_item(&item)?,
            Some(run_item) => {
                let index = batch.first_index + u64::from(position);
                run_item.bind(py).call1((index, item.get_item(0)?, item.get_item(1)?, item.get_item(2)?))?
            }
        };
        results.append(result)?;
    }
    Ok(results.unbind())
}

fn call_item<'py>(item: &Bound<'py, PyTuple>) -> PyResult<Bound<'py, PyAny>> {
    let args = item.get_item(1)?;
    let kwargs = item.get_item(2)?.cast_into::<PyDict>()?;
    let kwargs = if kwargs.is_empty() { None } else { Some(&kwargs) };
    match args.cast::<PyTuple>() {
        Ok(args) => item.get_item(0)?.call(args, kwargs),
        Err(_) => item.get_item(0)?.call(
            args.try_iter()?.collect::<PyResult<Vec<_>>>().and_then(|args| PyTuple::new(item.py(), args))?,
            kwargs,
        ),
    }
}
