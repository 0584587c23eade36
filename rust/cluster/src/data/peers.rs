//! Nodes that have data, and the connections to them.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rustdask_core::cluster::{DataAnswer, DataRequest, Role, Versions};
use rustdask_core::NodeId;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{LIMITS, PATIENCE};
use crate::transport::{connect, Address, Connection, Security};

const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Connections to one peer that are kept for later.
const MAX_IDLE: usize = 8;

/// The nodes that the scheduler has named.
pub struct Peers {
    security: Security,
    versions: Versions,
    known: Mutex<BTreeMap<NodeId, Arc<Peer>>>,
}

pub(crate) struct Peer {
    address: Address,
    security: Security,
    versions: Versions,
    idle: Mutex<Vec<Connection>>,
    /// The scheduler has given it up.
    gone: CancellationToken,
}

impl Peers {
    pub fn new(security: Security, versions: Versions) -> Self {
        Self { security, versions, known: Mutex::default() }
    }

    pub fn add(&self, node: NodeId, address: Address) {
        let (security, versions) = (self.security.clone(), self.versions.clone());
        let (idle, gone) = (Mutex::default(), CancellationToken::new());
        let peer = Peer { address, security, versions, idle, gone };
        let before = self.known().insert(node, Arc::new(peer));
        before.iter().for_each(|peer| peer.gone.cancel());
    }

    /// Whoever waits for it stops that.
    pub fn remove(&self, node: NodeId) {
        let gone = self.known().remove(&node);
        gone.iter().for_each(|peer| peer.gone.cancel());
    }

    pub fn clear(&self) {
        let gone = std::mem::take(&mut *self.known());
        gone.values().for_each(|peer| peer.gone.cancel());
    }

    pub fn nodes(&self) -> Vec<NodeId> {
        self.known().keys().copied().collect()
    }

    pub(crate) fn peer(&self, node: NodeId) -> Option<Arc<Peer>> {
        self.known().get(&node).cloned()
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<NodeId, Arc<Peer>>> {
        self.known.lock().expect("no holder panics")
    }
}

impl Peer {
    /// The answer to a request, and the connection on which data follows.
    pub(crate) async fn ask(&self, request: &DataRequest) -> io::Result<(Connection, DataAnswer)> {
        self.ask_for(request, Some(PATIENCE)).await
    }

    /// As [`Peer::ask`], where the peer has to do something before it can answer.
    pub(crate) async fn ask_patiently(&self, request: &DataRequest) -> io::Result<(Connection, DataAnswer)> {
        self.ask_for(request, None).await
    }

    async fn ask_for(&self, request: &DataRequest, limit: Option<Duration>) -> io::Result<(Connection, DataAnswer)> {
        self.until_gone(async {
            let idle = self.idle().pop();
            if let Some(connection) = idle {
                // It may have been closed since; then a new one tells more.
                if let Ok(answered) = exchange(connection, request, limit).await {
                    return Ok(answered);
                }
            }
            exchange(self.connect().await?, request, limit).await
        })
        .await
    }

    /// A connection on which nothing is left to be read may serve again.
    pub(crate) fn keep(&self, connection: Connection) {
        let mut idle = self.idle();
        if idle.len() < MAX_IDLE {
            idle.push(connection);
        }
    }

    /// Do something with the peer, unless it is given up, or does not get on with it.
    pub(crate) async fn until_gone<T>(&self, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        tokio::select! {
            done = work => done,
            () = self.gone.cancelled() => Err(io::Error::new(io::ErrorKind::NotConnected, "the node has left")),
        }
    }

    pub(crate) async fn connect(&self) -> io::Result<Connection> {
        let unreachable = |error| io::Error::new(io::ErrorKind::NotConnected, error);
        let mut connection = connect(&self.address, &self.security, CONNECT_LIMIT).await.map_err(unreachable)?;
        connection.greet(Role::Data, self.versions.clone()).await.map_err(unreachable)?;
        Ok(connection)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().expect("no holder panics")
    }
}

async fn exchange(
    mut connection: Connection,
    request: &DataRequest,
    limit: Option<Duration>,
) -> io::Result<(Connection, DataAnswer)> {
    let answered = async {
        connection.send(request, &[]).await?;
        connection.receive(LIMITS).await
    };
    let answered = match limit {
        Some(limit) => timeout(limit, answered).await??,
        None => answered.await?,
    };
    let frame = answered.ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok((connection, frame.message))
}
