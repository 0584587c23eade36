//! Connections over loopback, on ports that the system picks.

mod connection;
mod listener;
mod outbox;
mod tls;

use std::path::Path;
use std::time::Duration;

use rustdask_cluster::transport::{
    connect, make_certificates, Address, ConnectError, Connection, Listener, Port, Refused, Security, Tls, Token,
};

const LIMIT: Duration = Duration::from_secs(20);

fn with_token() -> Security {
    Security { token: Some(Token::random().unwrap()), tls: None }
}

fn with_tls(folder: &Path) -> Security {
    let tls = Tls::load(&make_certificates(folder, &[]).unwrap()).unwrap();
    Security { token: None, tls: Some(tls) }
}

async fn listen(security: &Security) -> Listener {
    Listener::bind("127.0.0.1", Port::Exactly(0), security.clone()).await.unwrap()
}

/// One attempt, as both sides see it.
async fn meet(
    listener: &mut Listener,
    address: &Address,
    opener: &Security,
) -> (Result<Connection, ConnectError>, Result<Connection, Refused>) {
    tokio::join!(connect(address, opener, LIMIT), listener.accept())
}

/// Two ends of a connection: the opener's, the acceptor's.
async fn pair(security: &Security) -> (Connection, Connection) {
    let mut listener = listen(security).await;
    let address = listener.address();
    let (opened, accepted) = meet(&mut listener, &address, security).await;
    (opened.unwrap(), accepted.unwrap())
}

/// An attempt that fails says so on both sides.
async fn part(listener: &mut Listener, address: &Address, opener: &Security, whys: [&str; 2]) {
    let (opened, accepted) = meet(listener, address, opener).await;
    let opened = opened.err().expect("it fails");
    assert!(matches!(opened, ConnectError::Refused(_)), "{opened:?}");
    let sentence = format!("cannot work with {address}: ");
    assert!(opened.to_string().starts_with(&sentence), "{opened}");
    assert!(opened.to_string().contains(whys[0]), "{opened}");
    let accepted = accepted.err().expect("it fails");
    assert!(accepted.to_string().contains(whys[1]), "{accepted}");
}
