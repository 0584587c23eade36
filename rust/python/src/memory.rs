//! The account of a session: memory that its results take.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustdask_core::{CallId, Event};
use rustdask_runtime::memory::{self, Movable};
use rustdask_runtime::store::Store;

use crate::node::Node;
use crate::pools::Processes;

pub(crate) type Memory = memory::Memory<Node>;

impl Movable for Node {
    fn spill(&self, store: &Store, folder: &Path) -> io::Result<u64> {
        Node::spill(self, store, folder)
    }
}

/// `limit`: bytes of memory that results may take; files are made in the folder. While memory is full, no task of the call
/// begins.
pub(crate) fn start(limit: u64, folder: PathBuf, pool: &Arc<Processes>, call: CallId) -> io::Result<Arc<Memory>> {
    let driver = Arc::downgrade(&pool.driver);
    let pause = move |paused| {
        if let Some(driver) = driver.upgrade() {
            driver.event(Event::CallPaused { call, paused });
        }
    };
    Memory::start(limit, folder, &pool.shared.memory, Box::new(pause))
}
