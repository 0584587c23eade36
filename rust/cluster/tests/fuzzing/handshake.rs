//! What holds for any bytes that a peer without the token sends: it is not let in, and the handshake ends.

use std::sync::OnceLock;

use rustdask_cluster::transport::{handshake, Token};
use tokio::io::{join, sink};
use tokio::runtime::{Builder, Runtime};

/// The first byte says which side the peer is on; the rest is what it sends.
pub(crate) fn check(input: &[u8]) {
    static RUNTIME: OnceLock<(Runtime, Token)> = OnceLock::new();
    let (runtime, token) = RUNTIME.get_or_init(|| {
        (
            Builder::new_current_thread().build().expect("it needs nothing"),
            Token::random().expect("the kernel has some"),
        )
    });
    let [side, sent @ ..] = input else { return };
    let mut stream = join(sent, sink());
    let outcome = runtime.block_on(async {
        if side % 2 == 0 {
            handshake::accept(&mut stream, Some(token), b"").await
        } else {
            handshake::open(&mut stream, Some(token), b"").await
        }
    });
    assert!(outcome.is_err(), "a peer without the token was let in");
}
