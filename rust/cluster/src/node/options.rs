use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustdask_core::cluster::Versions;
use rustdask_runtime::template::Launch;

use crate::transport::{Address, Port, Security};

/// What a node is to be.
pub struct NodeOptions {
    pub scheduler: Address,
    pub security: Security,
    pub versions: Versions,
    pub name: String,
    /// Where data is handed out: a name or an IP address of this machine.
    pub host: String,
    pub port: Port,
    /// The host that others are told to get data from, where it is not the one that is listened on.
    pub contact_host: Option<String>,
    pub workers: u32,
    pub resources: Vec<(String, f64)>,
    /// Memory that results may take before they move to files; `None`: all there is.
    pub results_limit_bytes: Option<u64>,
    /// Memory that a worker process may take; 0: no limit.
    pub worker_memory_limit_bytes: u64,
    /// Where those files are made.
    pub local_directory: PathBuf,
    /// The node ends when it has had no scheduler for so long; `None`: it never does.
    pub death_timeout: Option<Duration>,
    /// A node that leaves ends tasks that take longer than this.
    pub drain_limit: Duration,
    pub launch: Launch,
    /// What people should know.
    pub notice: Arc<dyn Fn(Notice<'_>) + Send + Sync>,
}

/// What happens to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice<'a> {
    /// It belongs to the cluster; the address is that of its data.
    Joined {
        address: &'a str,
    },
    /// It looks for its scheduler.
    Lost {
        why: &'a str,
    },
    Warning(&'a str),
}
