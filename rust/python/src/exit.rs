//! The end of the interpreter, while pool threads are in the middle of tasks.
//!
//! A thread that asks for the interpreter after its end is unwound by CPython (before 3.14), straight through
//! frames of Rust, which aborts the process. So none may get there: threads that run Python code are
//! interrupted, and those that are still in native code by then are put to sleep for good. The end waits for threads of the
//! user's that are in code of ours, and from then on none is let in.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use pyo3::exceptions::PySystemExit;
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;

/// Callers that are in code of ours, where they may let go of the interpreter and ask for it again.
static INSIDE: AtomicUsize = AtomicUsize::new(0);

/// While it lives, the end of the interpreter is waited with, a little.
pub(crate) struct Inside;

impl Inside {
    /// An error once the interpreter is about to end. Counted first: who ends sees whom it has not refused.
    pub(crate) fn enter() -> PyResult<Self> {
        INSIDE.fetch_add(1, Ordering::SeqCst);
        let inside = Self;
        crate::pools::check_open()?;
        Ok(inside)
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.fetch_sub(1, Ordering::SeqCst);
    }
}

pub(crate) fn has_callers() -> bool {
    INSIDE.load(Ordering::SeqCst) > 0
}

/// In a forked child: its callers are not here.
pub(crate) fn forget_callers() {
    INSIDE.store(0, Ordering::SeqCst);
}

/// Pool threads that have not ended: Python's name for them, and the system's.
static THREADS: Mutex<Option<HashMap<i64, usize>>> = Mutex::new(None);

/// Notes the current thread, while it lives.
pub(crate) struct Registered(i64);

impl Registered {
    pub(crate) fn new(py: Python<'_>) -> PyResult<Self> {
        let ident = py.import("threading")?.call_method0(intern!(py, "get_ident"))?.extract()?;
        // SAFETY: the call has no preconditions.
        let native = unsafe { libc::pthread_self() } as usize;
        THREADS.lock().expect("no holder panics").get_or_insert_default().insert(ident, native);
        Ok(Self(ident))
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        if let Some(threads) = THREADS.lock().expect("no holder panics").as_mut() {
            threads.remove(&self.0);
        }
    }
}

/// Whether all pool threads, of whichever pool, have ended within the time.
pub(crate) fn threads_end_within(time: Duration) -> bool {
    let deadline = Instant::now() + time;
    while THREADS.lock().expect("no holder panics").iter().flatten().next().is_some() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

/// Raise SystemExit in the tasks of all pool threads; they notice between two steps of Python code.
pub(crate) fn interrupt_threads(py: Python<'_>) {
    let idents: Vec<i64> =
        THREADS.lock().expect("no holder panics").iter().flatten().map(|(ident, _)| *ident).collect();
    let exit = py.get_type::<PySystemExit>();
    for ident in idents {
        // SAFETY: the interpreter is attached, and an ident without a thread is ignored.
        unsafe { ffi::PyThreadState_SetAsyncExc(ident as _, exit.as_ptr()) };
    }
}

/// Let pool threads that are still there never run again. Only when the process is about to end.
pub(crate) fn park_threads() {
    extern "C" fn sleep_for_good(_: libc::c_int) {
        loop {
            // SAFETY: async-signal-safe, no preconditions.
            unsafe { libc::pause() };
        }
    }
    let threads = THREADS.lock().expect("no holder panics");
    let signal = libc::SIGRTMIN() + 7;
    // SAFETY: the handler is async-signal-safe; the threads live, since they leave the table, whose lock is held, before they end.
    unsafe {
        libc::signal(signal, sleep_for_good as *const () as libc::sighandler_t);
        for native in threads.iter().flatten().map(|(_, native)| *native) {
            libc::pthread_kill(native as libc::pthread_t, signal);
        }
    }
}
