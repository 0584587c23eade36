//! A TCP connection, with TLS or without.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::TlsStream;

use super::handshake::HandshakeError;
use super::Tls;

/// A link that has been silent for so long is looked after, ...
const KEEP_ALIVE_AFTER: Duration = Duration::from_secs(30);
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEP_ALIVE_PROBES: u32 = 3;
/// ... and is broken when nothing has been taken for so long.
const UNACKNOWLEDGED_MS: u32 = 60_000;

/// For a peer to close its side, too, and what it may have sent before.
const LINGER_LIMIT: Duration = Duration::from_secs(1);
const LEFT_BYTES: u64 = 64 << 10;

const BINDING_BYTES: usize = 32;
const BINDING_LABEL: &[u8] = b"EXPORTER-rustdask-handshake";

pub(crate) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

pub(crate) type ReadHalf = Box<dyn AsyncRead + Send + Unpin>;
pub(crate) type WriteHalf = Box<dyn AsyncWrite + Send + Unpin>;

/// Small messages go at once, and a link that is cut is noticed.
pub(crate) fn configure(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    sockopt::set_socket_keepalive(tcp, true)?;
    sockopt::set_tcp_keepidle(tcp, KEEP_ALIVE_AFTER)?;
    sockopt::set_tcp_keepintvl(tcp, KEEP_ALIVE_EVERY)?;
    sockopt::set_tcp_keepcnt(tcp, KEEP_ALIVE_PROBES)?;
    sockopt::set_tcp_user_timeout(tcp, UNACKNOWLEDGED_MS)?;
    Ok(())
}

impl Stream {
    pub(crate) async fn accept_tls(tcp: TcpStream, tls: &Tls) -> Result<Self, HandshakeError> {
        let stream = tls.acceptor.accept(tcp).await?;
        Ok(Self::Tls(Box::new(stream.into())))
    }

    pub(crate) async fn open_tls(tcp: TcpStream, tls: &Tls, host: &str) -> Result<Self, HandshakeError> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| HandshakeError::Peer(format!("no certificate can be for a host that is named `{host}`")))?;
        let stream = tls.connector.connect(name, tcp).await?;
        Ok(Self::Tls(Box::new(stream.into())))
    }

    /// A secret of the TLS session that its two ends have and nobody between them.
    pub(crate) fn binding(&self) -> Result<Vec<u8>, HandshakeError> {
        let secret = vec![0; BINDING_BYTES];
        let exported = match self {
            Self::Plain(_) => return Ok(Vec::new()),
            Self::Tls(stream) => match &**stream {
                TlsStream::Client(stream) => stream.get_ref().1.export_keying_material(secret, BINDING_LABEL, None),
                TlsStream::Server(stream) => stream.get_ref().1.export_keying_material(secret, BINDING_LABEL, None),
            },
        };
        exported.map_err(|error| HandshakeError::Peer(format!("TLS with it failed: {error}")))
    }

    pub(crate) fn local(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Plain(tcp) => tcp.local_addr(),
            Self::Tls(stream) => stream.get_ref().0.local_addr(),
        }
    }

    pub(crate) fn split(self) -> (ReadHalf, WriteHalf) {
        match self {
            Self::Plain(tcp) => {
                let (read, write) = tcp.into_split();
                (Box::new(read), Box::new(write))
            }
            Self::Tls(stream) => {
                let (read, write) = tokio::io::split(*stream);
                (Box::new(read), Box::new(write))
            }
        }
    }

    /// Close, and see to it that the peer gets what was written last: a socket that is closed with bytes unread takes
    /// that back.
    pub(crate) async fn linger(&mut self) {
        let closed = async {
            self.shutdown().await?;
            tokio::io::copy(&mut self.take(LEFT_BYTES), &mut tokio::io::sink()).await
        };
        // The peer may be gone already, or stay for ever, which is as well.
        let _ = timeout(LINGER_LIMIT, closed).await;
    }

    fn io(&mut self) -> Pin<&mut (dyn Io + Send + Unpin)> {
        match self {
            Self::Plain(tcp) => Pin::new(tcp),
            Self::Tls(stream) => Pin::new(&mut **stream),
        }
    }
}

trait Io: AsyncRead + AsyncWrite {}
impl<T: AsyncRead + AsyncWrite> Io for T {}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.io().poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.io().poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_shutdown(cx)
    }
}
