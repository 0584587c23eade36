//! The pools of this process: made on first use, ended by `shutdown()`, started afresh after a fork.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use rustdask_core::{Attempt, Outcome, TaskId};
use rustdask_runtime::lines::Output;
use rustdask_runtime::pool::PoolSpec;
use rustdask_runtime::processes::ProcessPool;
use rustdask_runtime::template::Launch;
use rustdask_runtime::threads::{Seat, ThreadPool};

use crate::call::{run_part, CallInner};
use crate::session::SessionInner;
use crate::work::Work;

pub(crate) type Threads = ThreadPool<Work>;
pub(crate) type Processes = ProcessPool<Work>;

/// Threads that are busy at shutdown are waited for this long, twice.
pub(crate) const PATIENCE: Duration = Duration::from_millis(500);

/// What the background reader is asked to do.
enum Errand {
    Read(Arc<CallInner>),
    /// There is output of workers, and nobody waits for a call.
    Output,
    Stop,
}

#[derive(Default)]
pub(crate) struct Pools {
    threads: Mutex<Option<Arc<Threads>>>,
    processes: Mutex<Option<Arc<Processes>>>,
    calls: Mutex<Vec<Weak<CallInner>>>,
    sessions: Mutex<Vec<Weak<SessionInner>>>,
    reader: OnceLock<Sender<Errand>>,
    reader_thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

/// The interpreter is about to end: no call may begin any more.
static EXITING: AtomicBool = AtomicBool::new(false);

static POOLS: AtomicPtr<Pools> = AtomicPtr::new(std::ptr::null_mut());

/// The pools of this process. They live as long as it does.
pub(crate) fn pools() -> &'static Pools {
    let current = POOLS.load(Ordering::Acquire);
    if !current.is_null() {
        // SAFETY: what is stored here comes from Box::into_raw and is never freed.
        return unsafe { &*current };
    }
    let fresh = Box::into_raw(Box::<Pools>::default());
    match POOLS.compare_exchange(std::ptr::null_mut(), fresh, Ordering::AcqRel, Ordering::Acquire) {
        // SAFETY: as above.
        Ok(_) => unsafe { &*fresh },
        Err(earlier) => {
            // SAFETY: `fresh` was shared with nobody.
            drop(unsafe { Box::from_raw(fresh) });
            // SAFETY: as above.
            unsafe { &*earlier }
        }
    }
}

/// From now on [`check_open`] refuses.
pub(crate) fn refuse_calls() {
    EXITING.store(true, Ordering::SeqCst);
}

/// An error when the interpreter is about to end.
pub(crate) fn check_open() -> PyResult<()> {
    if EXITING.load(Ordering::SeqCst) {
        return Err(PyRuntimeError::new_err("rustdask has been shut down, because the interpreter is ending"));
    }
    Ok(())
}

/// In a forked child: the parent's pools, whose threads do not exist here and whose locks may be held, are
/// left alone for ever.
pub(crate) fn forget_after_fork() {
    POOLS.store(std::ptr::null_mut(), Ordering::Release);
    EXITING.store(false, Ordering::Release);
    crate::exit::forget_callers();
}

impl Pools {
    pub(crate) fn threads(&self, core_budget: u32) -> Arc<Threads> {
        let mut threads = self.threads.lock().expect("no holder panics");
        threads
            .get_or_insert_with(|| {
                let spec = PoolSpec { core_budget, ..PoolSpec::default() };
                Arc::new(ThreadPool::new(spec, Arc::new(serve)))
            })
            .clone()
    }

    /// `launch` is asked for how to start Python when there is no pool yet.
    pub(crate) fn processes(
        &'static self,
        core_budget: u32,
        launch: impl FnOnce() -> PyResult<Launch>,
    ) -> PyResult<Arc<Processes>> {
        if let Some(pool) = self.existing_processes() {
            return Ok(pool);
        }
        let launch = launch()?;
        let mut processes = self.processes.lock().expect("no holder panics");
        if let Some(pool) = processes.as_ref() {
            return Ok(pool.clone());
        }
        let spec = PoolSpec { core_budget, ..PoolSpec::default() };
        let pool = Arc::new(ProcessPool::start(spec, launch, on_output())?);
        *processes = Some(pool.clone());
        Ok(pool)
    }

    pub(crate) fn existing_processes(&self) -> Option<Arc<Processes>> {
        self.processes.lock().expect("no holder panics").clone()
    }

    /// Remember a call, until it is dropped.
    pub(crate) fn opened(&self, call: Weak<CallInner>) {
        let mut calls = self.calls.lock().expect("no holder panics");
        if calls.len() == calls.capacity() {
            calls.retain(|call| call.strong_count() > 0);
        }
        calls.push(call);
    }

    /// What the workers of all pools have written since the last time.
    pub(crate) fn take_outputs(&self) -> Vec<Output> {
        let own = self.existing_processes();
        let sessions: Vec<_> =
            self.sessions.lock().expect("no holder panics").iter().filter_map(Weak::upgrade).collect();
        let others = sessions.iter().filter_map(|session| session.processes());
        own.iter().chain(others).flat_map(|pool| pool.shared.take_outputs()).collect()
    }

    /// Remember a session, until it is dropped.
    pub(crate) fn session_opened(&self, session: Weak<SessionInner>) {
        let mut sessions = self.sessions.lock().expect("no holder panics");
        sessions.retain(|session| session.strong_count() > 0);
        sessions.push(session);
    }

    /// Have all callers stop waiting: the interpreter is about to end, and they must be out of native code by then.
    pub(crate) fn release_callers(&self) {
        let calls: Vec<_> = self.calls.lock().expect("no holder panics").iter().filter_map(Weak::upgrade).collect();
        calls.iter().for_each(|call| call.stop());
        // Who closes a client waits for its threads.
        let deadline = Instant::now() + 2 * PATIENCE;
        while (crate::output::is_attended() || crate::exit::has_callers()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn thread_count(&self) -> usize {
        self.threads.lock().expect("no holder panics").as_ref().map_or(0, |pool| pool.thread_count())
    }

    /// Have the background reader read a call's mailbox.
    pub(crate) fn read_in_background(&'static self, call: Arc<CallInner>) {
        self.start_reader();
        self.errand(Errand::Read(call));
    }

    fn errand(&self, errand: Errand) {
        if let Some(reader) = self.reader.get() {
            // The receiver is gone only after `stop`.
            let _ = reader.send(errand);
        }
    }

    fn start_reader(&'static self) {
        self.reader.get_or_init(|| {
            let (sender, errands) = crossbeam_channel::unbounded();
            let thread = std::thread::Builder::new().name("rustdask-reader".into()).spawn(move || read(&errands));
            *self.reader_thread.lock().expect("no holder panics") = thread.ok();
            sender
        });
    }

    /// End everything. The next use makes new pools. Threads that were in the middle of tasks are still there.
    pub(crate) fn stop(&self) {
        let old = self as *const Self as *mut Self;
        // Somebody else may have stopped it meanwhile.
        let _ = POOLS.compare_exchange(old, std::ptr::null_mut(), Ordering::AcqRel, Ordering::Acquire);
        let sessions = std::mem::take(&mut *self.sessions.lock().expect("no holder panics"));
        sessions.iter().filter_map(Weak::upgrade).for_each(|session| session.close());
        let processes = self.processes.lock().expect("no holder panics").take();
        if let Some(pool) = processes {
            pool.stop();
        }
        let threads = self.threads.lock().expect("no holder panics").take();
        self.errand(Errand::Stop);
        if let Some(thread) = self.reader_thread.lock().expect("no holder panics").take() {
            // A panic there has been printed already.
            let _ = thread.join();
        }
        if let Some(pool) = threads {
            pool.close(PATIENCE);
        }
    }
}

/// What a pool of processes calls when a worker has written something.
pub(crate) fn on_output() -> Box<dyn Fn() + Send + Sync> {
    Box::new(|| {
        if !crate::output::is_attended() {
            pools().start_reader();
        }
        pools().errand(Errand::Output);
    })
}

thread_local! {
    /// Where this thread gets its tasks, if it is a pool thread.
    static SEAT: RefCell<Option<Arc<Seat<Work>>>> = const { RefCell::new(None) };
}

/// A pool thread, of whichever pool. It keeps its Python thread state from start to end, and lets go of the interpreter while it waits.
pub(crate) fn serve(seat: Seat<Work>) {
    let seat = Arc::new(seat);
    // None: the interpreter is ending, and so does this thread.
    let _ = Python::try_attach(|py| {
        let Ok(_registered) = crate::exit::Registered::new(py) else { return };
        SEAT.set(Some(seat.clone()));
        while py.detach(|| seat.wait()) {
            while let Some(ran) = run_one(py, &seat) {
                ran.into_iter().for_each(|call| call.read(py));
            }
        }
        SEAT.set(None);
    });
}

/// While it lives, the task that this thread runs has given its place up, since it waits for others.
pub(crate) enum Parked {
    Thread(Arc<Seat<Work>>, TaskId, Attempt),
    /// In a worker process.
    Process(crate::worker::Waiting),
}

impl Parked {
    /// None if this thread runs no task of a graph.
    pub(crate) fn begin(py: Python<'_>) -> PyResult<Option<Self>> {
        if let Some(waiting) = crate::worker::Waiting::begin(py)? {
            return Ok(Some(Self::Process(waiting)));
        }
        let current = crate::session::current_task().zip(SEAT.with_borrow(Clone::clone));
        let park = |((task, attempt), seat): (_, Arc<Seat<Work>>)| {
            seat.park(task, attempt).then_some(Self::Thread(seat, task, attempt))
        };
        Ok(current.and_then(park))
    }

    /// Go on, once it is this task's turn.
    pub(crate) fn end(self, py: Python<'_>) -> PyResult<()> {
        match self {
            Self::Thread(seat, task, attempt) => py.detach(|| seat.unpark(task, attempt)),
            Self::Process(waiting) => waiting.end(py)?,
        }
        Ok(())
    }
}

/// Run a task that was assigned to this thread, if it is a pool thread and there is one. It may be in the middle of
/// something: reading what has become of a task, it may have come to a call that waits for this very one. So it is not the
/// one to read what becomes of that.
pub(crate) fn run_assigned(py: Python<'_>) -> bool {
    let ran = SEAT.with_borrow(Clone::clone).and_then(|seat| run_one(py, &seat));
    ran.inspect(|call| call.iter().for_each(|call| call.leave_to_others())).is_some()
}

/// Run what was assigned; for a part of a call of joblib's, the call, whose mailbox is to be read.
fn run_one(py: Python<'_>, seat: &Seat<Work>) -> Option<Option<Arc<CallInner>>> {
    let assigned = seat.take()?;
    let (call, outcome) = match assigned.payload {
        Work::Part(part) => {
            let call = part.0.batch.call.clone();
            match call.enter_thread(py) {
                Ok(()) => run_part(py, &part, assigned.cursor),
                Err(error) => part.0.set_outcome(Err(error)),
            }
            (Some(call), Outcome::Ok)
        }
        Work::Node(node) => (None, crate::session::run_node(py, &node, assigned.attempt)),
    };
    seat.finished(assigned.task, assigned.attempt, outcome);
    Some(call)
}

fn read(errands: &Receiver<Errand>) {
    // None: the interpreter is ending, and so does this thread.
    let _ = Python::try_attach(|py| loop {
        match py.detach(|| errands.recv()) {
            Ok(Errand::Read(call)) => call.read(py),
            Ok(Errand::Output) => crate::output::relay_if_unattended(py),
            Ok(Errand::Stop) | Err(_) => return,
        }
    });
}
