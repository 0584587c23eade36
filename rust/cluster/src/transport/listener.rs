//! Lets those in who belong to the cluster.
//!
//! Handshakes go on beside each other, each for a limited time, and so many of them at most: beyond that the oldest makes room.
//! So connections that say nothing neither keep others out nor take more than a bounded amount of memory.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{lookup_host, TcpListener, TcpStream};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::timeout;

use super::handshake::{self, HandshakeError};
use super::stream::{self, Stream};
use super::{Address, Connection, Security};

const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
const MAX_HANDSHAKES: usize = 256;

/// How many ports are tried, one after the other.
const PORTS_TRIED: u16 = 100;

/// While the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// This one; 0 is one that the system picks.
    Exactly(u16),
    /// This one, or the next that is free.
    OrNext(u16),
}

/// A connection that was not let in; says whose, and why.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused(pub String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

pub struct Listener {
    tcp: TcpListener,
    local: SocketAddr,
    security: Arc<Security>,
    handshakes: JoinSet<Result<Stream, HandshakeError>>,
    /// The same, oldest first.
    begun: VecDeque<Begun>,
}

struct Begun {
    id: Id,
    peer: SocketAddr,
    task: AbortHandle,
}

impl Listener {
    /// `host`: a name, or an IP address without brackets. Addresses that other machines can reach are refused without a token
    /// and TLS.
    pub async fn bind(host: &str, port: Port, security: Security) -> io::Result<Self> {
        let tcp = match port {
            Port::Exactly(port) => bind(host, port, &security).await?,
            Port::OrNext(first) => bind_from(host, first, &security).await?,
        };
        let local = tcp.local_addr()?;
        let security = Arc::new(security);
        Ok(Self { tcp, local, security, handshakes: JoinSet::new(), begun: VecDeque::new() })
    }

    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// What others connect to, unless it is an address like 0.0.0.0.
    pub fn address(&self) -> Address {
        Address::new(self.security.tls.is_some(), self.local)
    }

    /// The next peer that is let in or refused. Nobody is, unless this is waited for. A wait may be given up.
    pub async fn accept(&mut self) -> Result<Connection, Refused> {
        loop {
            tokio::select! {
                // So there are never more of those that have ended than of those that have begun.
                biased;
                Some(ended) = self.handshakes.join_next_with_id() => return self.ended(ended),
                accepted = self.tcp.accept() => match accepted {
                    Ok((tcp, peer)) => self.begin(tcp, peer),
                    Err(error) => {
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        return Err(Refused(format!("no connection can be accepted on {}: {error}", self.local)));
                    }
                },
            }
            // However many connections come, the handshakes that have begun go on between them.
            tokio::task::yield_now().await;
        }
    }

    fn begin(&mut self, tcp: TcpStream, peer: SocketAddr) {
        // Those before it are ending already.
        if let Some(oldest) = self.begun.len().checked_sub(MAX_HANDSHAKES) {
            self.begun[oldest].task.abort();
        }
        let security = self.security.clone();
        let task = self.handshakes.spawn(async move {
            let silent = |_| HandshakeError::Peer(format!("it did not identify itself within {HANDSHAKE_LIMIT:?}"));
            timeout(HANDSHAKE_LIMIT, authenticate(tcp, &security)).await.map_err(silent)?
        });
        self.begun.push_back(Begun { id: task.id(), peer, task });
    }

    fn ended(&mut self, ended: Result<(Id, Result<Stream, HandshakeError>), JoinError>) -> Result<Connection, Refused> {
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        let at = self.begun.iter().position(|begun| begun.id == id).expect("a handshake ends once");
        let peer = self.begun.remove(at).expect("it was just found").peer;
        match ended {
            Ok((_, Ok(stream))) => Ok(Connection::new(stream, peer)),
            Ok((_, Err(why))) => Err(Refused(format!("{peer} was refused: {why}"))),
            Err(error) if error.is_cancelled() => {
                Err(Refused(format!("{peer} was refused: more than {MAX_HANDSHAKES} others came after it")))
            }
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

async fn authenticate(tcp: TcpStream, security: &Security) -> Result<Stream, HandshakeError> {
    stream::configure(&tcp)?;
    let mut stream = match &security.tls {
        None => Stream::Plain(tcp),
        Some(_) if comes_plain(&tcp).await? => {
            let mut stream = Stream::Plain(tcp);
            let why = handshake::ask_for_tls(&mut stream).await;
            stream.linger().await;
            return Err(why);
        }
        Some(tls) => Stream::accept_tls(tcp, tls).await?,
    };
    let binding = stream.binding()?;
    if let Err(why) = handshake::accept(&mut stream, security.token.as_ref(), &binding).await {
        stream.linger().await;
        return Err(why);
    }
    Ok(stream)
}

async fn comes_plain(tcp: &TcpStream) -> io::Result<bool> {
    let mut first = [0];
    Ok(tcp.peek(&mut first).await? == 1 && handshake::is_plain(first[0]))
}

async fn bind_from(host: &str, first: u16, security: &Security) -> io::Result<TcpListener> {
    let last = first.saturating_add(PORTS_TRIED - 1);
    for port in first..=last {
        match bind(host, port, security).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            bound => return bound,
        }
    }
    let why = format!("cannot listen on {host}: ports {first} to {last} are taken");
    Err(io::Error::new(io::ErrorKind::AddrInUse, why))
}

/// On the first address that the name stands for and that can be listened on.
async fn bind(host: &str, port: u16, security: &Security) -> io::Result<TcpListener> {
    let unable =
        |error: io::Error| io::Error::new(error.kind(), format!("cannot listen on {host}, port {port}: {error}"));
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name stands for no address");
    for address in lookup_host((host, port)).await.map_err(unable)? {
        security.permits(address).map_err(|why| io::Error::new(io::ErrorKind::PermissionDenied, why))?;
        match TcpListener::bind(address).await {
            Ok(tcp) => return Ok(tcp),
            Err(error) => failed = error,
        }
    }
    Err(unable(failed))
}
