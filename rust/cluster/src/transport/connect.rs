//! Connections to others.

use std::fmt;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::handshake::{self, HandshakeError};
use super::stream::{self, Stream};
use super::{Address, Connection, Security};

/// Why there is no connection, with the address.
#[derive(Debug, PartialEq, Eq)]
pub enum ConnectError {
    /// Nobody is there, or the link broke: it may go better later.
    Unreachable(String),
    /// One of the two does not want the other, and will not later.
    Refused(String),
}

impl ConnectError {
    pub(crate) fn refused(peer: &dyn fmt::Display, why: &dyn fmt::Display) -> Self {
        Self::Refused(format!("cannot work with {peer}: {why}"))
    }

    pub(crate) fn unreachable(peer: &dyn fmt::Display, why: &dyn fmt::Display) -> Self {
        Self::Unreachable(format!("cannot reach {peer}: {why}"))
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Unreachable(why) | Self::Refused(why)) = self;
        f.write_str(why)
    }
}

impl std::error::Error for ConnectError {}

/// Try once, for so long at most.
pub async fn connect(address: &Address, security: &Security, limit: Duration) -> Result<Connection, ConnectError> {
    match timeout(limit, open(address, security)).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(HandshakeError::Link(error))) => Err(ConnectError::unreachable(address, &HandshakeError::Link(error))),
        Ok(Err(HandshakeError::Peer(why))) => Err(ConnectError::refused(address, &why)),
        Err(_) => Err(ConnectError::unreachable(address, &format!("no answer within {limit:?}"))),
    }
}

async fn open(address: &Address, security: &Security) -> Result<Connection, HandshakeError> {
    let tls = tls(address, security)?;
    let tcp = TcpStream::connect((&*address.host, address.port)).await?;
    stream::configure(&tcp)?;
    let peer = tcp.peer_addr()?;
    let mut stream = match tls {
        None => Stream::Plain(tcp),
        Some(tls) => Stream::open_tls(tcp, tls, &address.host).await?,
    };
    let binding = stream.binding()?;
    handshake::open(&mut stream, security.token.as_ref(), &binding).await?;
    Ok(Connection::new(stream, peer))
}

/// Nobody who has given certificates is to find out later that they were not used.
fn tls<'a>(address: &Address, security: &'a Security) -> Result<Option<&'a super::Tls>, HandshakeError> {
    let why = match (address.tls, &security.tls) {
        (true, None) => "a tls:// address needs certificates (--tls-cert, --tls-key, --tls-ca)",
        (false, Some(_)) => "certificates were given, and a tcp:// address would not use them: use a tls:// address",
        (_, tls) => return Ok(tls.as_ref()),
    };
    Err(HandshakeError::Peer(why.into()))
}
