//! Memory that results take: counted, moved to files where it is too much, and work held back until it is not.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use crossbeam_channel::{Receiver, Sender};

use crate::lease::SharedMemory;
use crate::shm::MIN_SEGMENT_BYTES;
use crate::store::Store;
use crate::stored::Guard;

/// Shares of the limit, in percent: from where on results move, down to where, and from where on no task begins.
const HIGH: u64 = 60;
const LOW: u64 = 50;
const FULL: u64 = 80;

/// What keeps a result.
pub trait Movable: Send + Sync + 'static {
    /// Move the result from memory to a file of the folder; how many bytes.
    fn spill(&self, store: &Store, folder: &Path) -> io::Result<u64>;
}

/// Told that no task is to begin, since memory is full, and that tasks may begin again.
pub type Pause = Box<dyn Fn(bool) + Send>;

/// An account.
pub struct Memory<K: Movable> {
    limit: u64,
    used: AtomicU64,
    spilled: AtomicU64,
    /// Results that may move, the oldest first.
    movable: Mutex<VecDeque<Weak<K>>>,
    /// None once the session is closed.
    wake: Mutex<Option<Sender<()>>>,
    asked: AtomicBool,
}

/// So many bytes of an account, until it is dropped.
struct Counted<K: Movable> {
    memory: Arc<Memory<K>>,
    bytes: u64,
}

impl<K: Movable> Drop for Counted<K> {
    fn drop(&mut self) {
        self.memory.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl<K: Movable> Memory<K> {
    /// `limit`: bytes of memory that results may take; files are made in the folder. A thread of its own moves them.
    pub fn start(limit: u64, folder: PathBuf, shared: &Arc<SharedMemory>, pause: Pause) -> io::Result<Arc<Self>> {
        let (wake, woken) = crossbeam_channel::bounded(1);
        let memory = Arc::new(Self {
            limit,
            used: AtomicU64::new(0),
            spilled: AtomicU64::new(0),
            movable: Mutex::default(),
            wake: Mutex::new(Some(wake)),
            asked: AtomicBool::new(false),
        });
        let mover =
            Mover { memory: Arc::downgrade(&memory), folder, shared: Arc::downgrade(shared), pause, paused: false };
        std::thread::Builder::new().name("rustdask-spill".into()).spawn(move || mover.serve(&woken))?;
        Ok(memory)
    }

    /// Count a result in; what comes back is to be kept with it. Never waits.
    pub fn count(self: &Arc<Self>, bytes: u64, keeper: Weak<K>) -> Option<Guard> {
        // Smaller results are in no worker's memory.
        if bytes < MIN_SEGMENT_BYTES as u64 {
            return None;
        }
        self.movable.lock().expect("no holder panics").push_back(keeper);
        let used = self.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if used > self.share(HIGH) && !self.asked.swap(true, Ordering::AcqRel) {
            // Where the thread could not be told, it is awake.
            let _ = self.wake.lock().expect("no holder panics").as_ref().map(|wake| wake.try_send(()));
        }
        Some(Box::new(Counted { memory: self.clone(), bytes }))
    }

    /// Nothing is moved any more.
    pub fn close(&self) {
        drop(self.wake.lock().expect("no holder panics").take());
    }

    /// Bytes of results in memory, and of those that were ever moved to files.
    pub fn figures(&self) -> (u64, u64) {
        (self.used.load(Ordering::Relaxed), self.spilled.load(Ordering::Relaxed))
    }

    fn share(&self, percent: u64) -> u64 {
        self.limit / 100 * percent
    }
}

/// Moves results. Ends with its account.
struct Mover<K: Movable> {
    memory: Weak<Memory<K>>,
    folder: PathBuf,
    shared: Weak<SharedMemory>,
    pause: Pause,
    paused: bool,
}

impl<K: Movable> Mover<K> {
    fn serve(mut self, woken: &Receiver<()>) {
        while woken.recv().is_ok() {
            let (Some(memory), Some(shared)) = (self.memory.upgrade(), self.shared.upgrade()) else { return };
            memory.asked.store(false, Ordering::Release);
            self.make_room(&memory, &shared.store);
        }
    }

    fn make_room(&mut self, memory: &Arc<Memory<K>>, store: &Store) {
        while memory.used.load(Ordering::Relaxed) > memory.share(LOW) {
            self.set_paused(memory.used.load(Ordering::Relaxed) > memory.share(FULL));
            let next = memory.movable.lock().expect("no holder panics").pop_front();
            let Some(next) = next else { break };
            let Some(keeper) = next.upgrade() else { continue };
            match keeper.spill(store, &self.folder) {
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
        self.set_paused(false);
    }

    fn set_paused(&mut self, paused: bool) {
        if std::mem::replace(&mut self.paused, paused) != paused {
            (self.pause)(paused);
        }
    }
}
