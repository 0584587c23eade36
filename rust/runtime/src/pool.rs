//! What the workers of a pool are, of whichever kind.

use rustdask_core::scheduler::Config;
use rustdask_core::{HostId, Resources, WorkerSpec};

/// What the workers of a pool are, together.
#[derive(Clone, Debug)]
pub struct PoolSpec {
    /// Cores that running tasks may use together. So many threads stay, however long they have had nothing to do.
    pub core_budget: u32,
    pub max_workers: u32,
    /// What tasks of graphs may hold.
    pub resources: Resources,
    pub host: Option<HostId>,
}

impl Default for PoolSpec {
    fn default() -> Self {
        Self { core_budget: 1, max_workers: u32::MAX, resources: Resources::NONE, host: None }
    }
}

impl PoolSpec {
    pub(crate) fn config(&self) -> Config {
        Config {
            core_budget: self.core_budget,
            max_workers: self.max_workers,
            start_resources: self.resources.clone(),
            // This process has all results, or the memory that they are in.
            durable: true,
            ..Config::default()
        }
    }

    pub(crate) fn worker(&self) -> WorkerSpec {
        WorkerSpec { resources: self.resources.clone(), host: self.host, ..WorkerSpec::default() }
    }
}
