//! Memory that results take: counted, moved to files where it is too much, and work held back until it is not.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use crossbeam_channel::{Receiver, Sender};
use rustdask_core::{CallId, Event};
use rustdask_runtime::shm::MIN_SEGMENT_BYTES;

use crate::node::Node;
use crate::pools::Processes;

/// Shares of the limit, in percent: from where on results move, down to where, and from where on no task begins.
const HIGH: u64 = 60;
const LOW: u64 = 50;
const FULL: u64 = 80;

/// The account of a session.
pub(crate) struct Memory {
    limit: u64,
    used: AtomicU64,
    spilled: AtomicU64,
    /// Results that may move, the oldest first.
    movable: Mutex<VecDeque<Weak<Node>>>,
    /// None once the session is closed.
    wake: Mutex<Option<Sender<()>>>,
    asked: AtomicBool,
}

/// So many bytes of an account, until it is dropped.
struct Counted {
    memory: Arc<Memory>,
    bytes: u64,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.memory.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Memory {
    /// `limit`: bytes of memory that results may take; files are made in the folder. A thread of its own moves them.
    pub(crate) fn start(
        limit: u64,
        folder: PathBuf,
        pool: &Arc<Processes>,
        call: CallId,
    ) -> std::io::Result<Arc<Self>> {
        let (wake, woken) = crossbeam_channel::bounded(1);
        let memory = Arc::new(Self {
            limit,
            used: AtomicU64::new(0),
            spilled: AtomicU64::new(0),
            movable: Mutex::default(),
            wake: Mutex::new(Some(wake)),
            asked: AtomicBool::new(false),
        });
        let mover = Mover { memory: Arc::downgrade(&memory), folder, pool: Arc::downgrade(pool), call, paused: false };
        std::thread::Builder::new().name("rustdask-spill".into()).spawn(move || mover.serve(&woken))?;
        Ok(memory)
    }

    /// Count a result in; what comes back is to be kept with it. Never waits.
    pub(crate) fn count(self: &Arc<Self>, bytes: u64, node: &Arc<Node>) -> Option<Box<dyn Send + Sync>> {
        // Smaller results are in no worker's memory.
        if bytes < MIN_SEGMENT_BYTES as u64 {
            return None;
        }
        self.movable.lock().expect("no holder panics").push_back(Arc::downgrade(node));
        let used = self.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if used > self.share(HIGH) && !self.asked.swap(true, Ordering::AcqRel) {
            // Where the thread could not be told, it is awake.
            let _ = self.wake.lock().expect("no holder panics").as_ref().map(|wake| wake.try_send(()));
        }
        Some(Box::new(Counted { memory: self.clone(), bytes }))
    }

    /// Nothing is moved any more.
    pub(crate) fn close(&self) {
        drop(self.wake.lock().expect("no holder panics").take());
    }

    /// Bytes of results in memory, and of those that were ever moved to files.
    pub(crate) fn figures(&self) -> (u64, u64) {
        (self.used.load(Ordering::Relaxed), self.spilled.load(Ordering::Relaxed))
    }

    fn share(&self, percent: u64) -> u64 {
        self.limit / 100 * percent
    }
}

/// Moves results. Ends with its account.
struct Mover {
    memory: Weak<Memory>,
    folder: PathBuf,
    pool: Weak<Processes>,
    call: CallId,
    paused: bool,
}

impl Mover {
    fn serve(mut self, woken: &Receiver<()>) {
        while woken.recv().is_ok() {
            let (Some(memory), Some(pool)) = (self.memory.upgrade(), self.pool.upgrade()) else { return };
            memory.asked.store(false, Ordering::Release);
            self.make_room(&memory, &pool);
        }
    }

    fn make_room(&mut self, memory: &Arc<Memory>, pool: &Arc<Processes>) {
        while memory.used.load(Ordering::Relaxed) > memory.share(LOW) {
            self.pause(memory.used.load(Ordering::Relaxed) > memory.share(FULL), pool);
            let next = memory.movable.lock().expect("no holder panics").pop_front();
            let Some(next) = next else { break };
            let Some(node) = next.upgrade() else { continue };
            match node.spill(&pool.shared.store, &self.folder) {
                Ok(bytes) => drop(memory.spilled.fetch_add(bytes, Ordering::Relaxed)),
                Err(error) => {
                    eprintln!(
                        "rustdask: results cannot be moved to {}: {error}. They stay in memory; free some space, \
                         or give local_directory= another folder.",
                        self.folder.display()
                    );
                    break;
                }
            }
        }
        self.pause(false, pool);
    }

    fn pause(&mut self, paused: bool, pool: &Arc<Processes>) {
        if std::mem::replace(&mut self.paused, paused) != paused {
            pool.driver.event(Event::CallPaused { call: self.call, paused });
        }
    }
}
