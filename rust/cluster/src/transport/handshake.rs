//! The first bytes of a connection, by which each side learns whether the other is one of its cluster.
//!
//! Both send a prelude: a magic word, the version of the protocol, what is asked for, and a nonce. With a token, the opener then sends a proof,
//! and the acceptor a verdict and, if that is good, a proof of its own. A proof is the HMAC-SHA256, by the token, of both preludes, of whose
//! proof it is, and of a secret of the TLS session below, if there is one. So it is of no use on another connection, in the
//! other direction, or to somebody between the two of a TLS connection; and none can be asked to do without a token.
//!
//! All sizes are fixed, and the acceptor proves nothing to whom it does not know.

use std::fmt;
use std::io;

use ring::hmac;
use rustdask_core::cluster::PROTOCOL;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{tls, token, Token};

const MAGIC: &[u8; 8] = b"rustdask";
const NONCE_BYTES: usize = 32;
const PROOF_BYTES: usize = 32;

/// Magic, version of the protocol (u16, little endian), mode, nonce.
pub const PRELUDE_BYTES: usize = MAGIC.len() + 2 + 1 + NONCE_BYTES;

/// After the prelude of an acceptor that wants a token: the proof of the opener is good.
const WELCOME: u8 = 1;
const REFUSED: u8 = 0;

/// Why a connection did not come about.
#[derive(Debug)]
pub enum HandshakeError {
    /// It broke, so another one may succeed.
    Link(io::Error),
    /// What the peer is, or has not. Of the form "it …".
    Peer(String),
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                f.write_str("it closed the connection")
            }
            Self::Link(error) => error.fmt(f),
            Self::Peer(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for HandshakeError {}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        match tls::reason(&error) {
            Some(reason) => Self::Peer(reason),
            None => Self::Link(error),
        }
    }
}

fn peer<T>(why: &str) -> Result<T, HandshakeError> {
    Err(HandshakeError::Peer(why.into()))
}

/// What a side asks for, beside what TLS has checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Open = 0,
    Token = 1,
    /// The acceptor's, to an opener that came without TLS.
    Tls = 2,
}

impl Mode {
    fn of(token: Option<&Token>) -> Self {
        if token.is_some() {
            Self::Token
        } else {
            Self::Open
        }
    }
}

/// The opener's side. `binding`: a secret that both have of the TLS session, or nothing.
pub async fn open<S>(stream: &mut S, token: Option<&Token>, binding: &[u8]) -> Result<(), HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let ours = Prelude::new(Mode::of(token))?;
    send(stream, &ours.0).await?;
    let theirs = Prelude::read(stream).await?;
    match (theirs.mode()?, token) {
        (Mode::Tls, _) => peer("it speaks TLS only: use a tls:// address, with certificates"),
        (Mode::Token, None) => peer("it wants a token, and none was given (--token-file, RUSTDASK_TOKEN)"),
        (Mode::Open, Some(_)) => peer("it has no token, so nothing shows that it is the one that the token is for"),
        (Mode::Open, None) => Ok(()),
        (Mode::Token, Some(token)) => {
            let transcript = Transcript { opener: &ours, acceptor: &theirs, binding };
            send(stream, transcript.proof(token, Side::Opener).as_ref()).await?;
            let verdict: [u8; 1 + PROOF_BYTES] = receive(stream).await?;
            if verdict[0] != WELCOME {
                return peer("it has another token");
            }
            transcript.check(token, Side::Acceptor, &verdict[1..])
        }
    }
}

/// The acceptor's side. After an error there may be something on its way to the opener that tells it why.
pub async fn accept<S>(stream: &mut S, token: Option<&Token>, binding: &[u8]) -> Result<(), HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let theirs = Prelude::read(stream).await?;
    let ours = Prelude::new(Mode::of(token))?;
    send(stream, &ours.0).await?;
    match (theirs.mode()?, token) {
        (Mode::Tls, _) => peer(STRANGER),
        (Mode::Token, None) => peer("it has a token, and this process has none"),
        (Mode::Open, Some(_)) => peer("it has no token"),
        (Mode::Open, None) => Ok(()),
        (Mode::Token, Some(token)) => {
            let transcript = Transcript { opener: &theirs, acceptor: &ours, binding };
            let proof: [u8; PROOF_BYTES] = receive(stream).await?;
            let checked = transcript.check(token, Side::Opener, &proof);
            let mut verdict = [REFUSED; 1 + PROOF_BYTES];
            if checked.is_ok() {
                verdict[0] = WELCOME;
                verdict[1..].copy_from_slice(transcript.proof(token, Side::Acceptor).as_ref());
            }
            send(stream, &verdict).await?;
            checked
        }
    }
}

/// Whether a connection without TLS begins with this byte.
pub(crate) fn is_plain(first: u8) -> bool {
    first == MAGIC[0]
}

/// Tell an opener without TLS that it has to use it.
pub(crate) async fn ask_for_tls<S>(stream: &mut S) -> HandshakeError
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let told = async {
        let theirs = Prelude::read(stream).await?;
        send(stream, &Prelude::new(Mode::Tls)?.0).await?;
        theirs.mode()
    };
    match told.await {
        Ok(_) => HandshakeError::Peer("it came without TLS".into()),
        Err(error) => error,
    }
}

const STRANGER: &str = "it does not speak rustdask's protocol";

struct Prelude([u8; PRELUDE_BYTES]);

impl Prelude {
    fn new(mode: Mode) -> io::Result<Self> {
        let mut bytes = [0; PRELUDE_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..10].copy_from_slice(&PROTOCOL.to_le_bytes());
        bytes[10] = mode as u8;
        bytes[11..].copy_from_slice(&token::random::<NONCE_BYTES>()?);
        Ok(Self(bytes))
    }

    async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Self> {
        Ok(Self(receive(stream).await?))
    }

    fn mode(&self) -> Result<Mode, HandshakeError> {
        if !self.0.starts_with(MAGIC) {
            // The head of a record with a TLS handshake.
            let tls = self.0.starts_with(&[0x16, 0x03]);
            return peer(if tls { "it came with TLS, which is not used here" } else { STRANGER });
        }
        let protocol = u16::from_le_bytes([self.0[8], self.0[9]]);
        if protocol != PROTOCOL {
            return peer(&format!(
                "it speaks version {protocol} of the protocol, and this process version {PROTOCOL}: \
                 install the same rustdask on both"
            ));
        }
        [Mode::Open, Mode::Token, Mode::Tls]
            .into_iter()
            .find(|mode| *mode as u8 == self.0[10])
            .ok_or_else(|| HandshakeError::Peer(STRANGER.into()))
    }
}

#[derive(Clone, Copy)]
enum Side {
    Opener = 1,
    Acceptor = 2,
}

/// What a proof is of.
struct Transcript<'a> {
    opener: &'a Prelude,
    acceptor: &'a Prelude,
    binding: &'a [u8],
}

impl Transcript<'_> {
    fn proof(&self, token: &Token, side: Side) -> hmac::Tag {
        hmac::sign(token.key(), &self.bytes(side))
    }

    /// In constant time.
    fn check(&self, token: &Token, side: Side, proof: &[u8]) -> Result<(), HandshakeError> {
        hmac::verify(token.key(), &self.bytes(side), proof)
            .map_err(|_| HandshakeError::Peer("it has another token".into()))
    }

    fn bytes(&self, side: Side) -> Vec<u8> {
        [&[side as u8][..], &self.opener.0, &self.acceptor.0, self.binding].concat()
    }
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

async fn receive<S: AsyncRead + Unpin, const N: usize>(stream: &mut S) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{duplex, DuplexStream};

    type Outcome = Result<(), HandshakeError>;

    fn pipe() -> (DuplexStream, DuplexStream) {
        duplex(1 << 10)
    }

    async fn meet(opener: Option<&Token>, acceptor: Option<&Token>, bindings: [&[u8]; 2]) -> (Outcome, Outcome) {
        let (mut near, mut far) = pipe();
        let opened = async {
            let outcome = open(&mut near, opener, bindings[0]).await;
            drop(near);
            outcome
        };
        tokio::join!(opened, accept(&mut far, acceptor, bindings[1]))
    }

    fn says(outcome: Outcome, why: &str) {
        let error = outcome.unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }

    #[tokio::test]
    async fn those_with_the_same_token_are_let_in() {
        let token = Token::random().unwrap();
        let (opened, accepted) = meet(Some(&token), Some(&token), [b"tls", b"tls"]).await;
        opened.unwrap();
        accepted.unwrap();
        let (opened, accepted) = meet(None, None, [b"", b""]).await;
        opened.unwrap();
        accepted.unwrap();
    }

    #[tokio::test]
    async fn others_are_told_why_they_are_not() {
        let (one, other) = (Token::random().unwrap(), Token::random().unwrap());
        let (opened, accepted) = meet(Some(&one), Some(&other), [b"", b""]).await;
        says(opened, "it has another token");
        says(accepted, "it has another token");
        let (opened, accepted) = meet(None, Some(&one), [b"", b""]).await;
        says(opened, "it wants a token");
        says(accepted, "it has no token");
        let (opened, accepted) = meet(Some(&one), None, [b"", b""]).await;
        says(opened, "it has no token");
        says(accepted, "it has a token, and this process has none");
    }

    #[tokio::test]
    async fn a_proof_holds_for_one_tls_session_alone() {
        let token = Token::random().unwrap();
        let (opened, accepted) = meet(Some(&token), Some(&token), [b"one", b"other"]).await;
        says(opened, "it has another token");
        says(accepted, "it has another token");
    }

    #[tokio::test]
    async fn what_an_opener_said_before_does_not_open_again() {
        let token = Token::random().unwrap();
        let said = {
            let (mut near, mut far) = pipe();
            let (mut relay, mut acceptor) = pipe();
            let mut said = Vec::new();
            let relayed = async {
                let prelude: [u8; PRELUDE_BYTES] = receive(&mut far).await.unwrap();
                send(&mut relay, &prelude).await.unwrap();
                send(&mut far, &receive::<_, PRELUDE_BYTES>(&mut relay).await.unwrap()).await.unwrap();
                let proof: [u8; PROOF_BYTES] = receive(&mut far).await.unwrap();
                send(&mut relay, &proof).await.unwrap();
                said.extend(prelude);
                said.extend(proof);
                send(&mut far, &receive::<_, { 1 + PROOF_BYTES }>(&mut relay).await.unwrap()).await.unwrap();
            };
            let (opened, accepted, ()) =
                tokio::join!(open(&mut near, Some(&token), b""), accept(&mut acceptor, Some(&token), b""), relayed);
            opened.unwrap();
            accepted.unwrap();
            said
        };
        let (mut near, mut far) = pipe();
        send(&mut near, &said).await.unwrap();
        says(accept(&mut far, Some(&token), b"").await, "it has another token");
    }

    #[tokio::test]
    async fn an_acceptor_that_echoes_is_not_believed() {
        let token = Token::random().unwrap();
        let (mut near, mut far) = pipe();
        let echo = async {
            let prelude: [u8; PRELUDE_BYTES] = receive(&mut far).await.unwrap();
            send(&mut far, &prelude).await.unwrap();
            let proof: [u8; PROOF_BYTES] = receive(&mut far).await.unwrap();
            send(&mut far, &[WELCOME]).await.unwrap();
            send(&mut far, &proof).await.unwrap();
        };
        let (opened, ()) = tokio::join!(open(&mut near, Some(&token), b""), echo);
        says(opened, "it has another token");
    }

    #[tokio::test]
    async fn other_versions_and_other_protocols_are_named() {
        for (at, byte, why) in [
            (8, 9, "it speaks version 9 of the protocol, and this process version 1"),
            (0, b'R', "it does not speak rustdask's protocol"),
            (10, 3, "it does not speak rustdask's protocol"),
        ] {
            let mut prelude = Prelude::new(Mode::Open).unwrap().0;
            prelude[at] = byte;
            let (mut near, mut far) = pipe();
            send(&mut near, &prelude).await.unwrap();
            says(accept(&mut far, None, b"").await, why);
            let (mut near, mut far) = pipe();
            send(&mut far, &prelude).await.unwrap();
            says(open(&mut near, None, b"").await, why);
        }
        let (mut near, mut far) = pipe();
        send(&mut near, &[b"\x16\x03\x01".as_slice(), &[0; PRELUDE_BYTES]].concat()).await.unwrap();
        says(accept(&mut far, None, b"").await, "it came with TLS");
    }

    #[tokio::test]
    async fn half_a_prelude_is_a_closed_connection() {
        let (mut near, mut far) = pipe();
        send(&mut near, &MAGIC[..]).await.unwrap();
        drop(near);
        says(accept(&mut far, None, b"").await, "it closed the connection");
    }
}
