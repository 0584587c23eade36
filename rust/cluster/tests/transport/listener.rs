use std::io;
use std::time::{Duration, Instant};

use rustdask_cluster::transport::{connect, Address, ConnectError, Listener, Port, Security};
use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::{listen, meet, part, with_token, LIMIT};

#[tokio::test]
async fn other_machines_need_a_token() {
    for host in ["0.0.0.0", "::"] {
        let bound = Listener::bind(host, Port::Exactly(0), Security::default()).await;
        let error = bound.err().expect("it is refused");
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(error.to_string().contains("--token-file") && error.to_string().contains("--tls-cert"), "{error}");
    }
    Listener::bind("0.0.0.0", Port::Exactly(0), with_token()).await.unwrap();
    Listener::bind("localhost", Port::Exactly(0), Security::default()).await.unwrap();
}

#[tokio::test]
async fn the_next_free_port_is_taken_where_that_will_do() {
    let first = listen(&Security::default()).await;
    let port = first.local().port();
    let next = Listener::bind("127.0.0.1", Port::OrNext(port), Security::default()).await.unwrap();
    assert!(next.address().port > port);
    let error = Listener::bind("127.0.0.1", Port::Exactly(port), Security::default()).await.err().expect("it is taken");
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert!(error.to_string().contains(&format!("cannot listen on 127.0.0.1, port {port}")), "{error}");
}

#[tokio::test]
async fn only_those_with_the_token_are_let_in() {
    let security = with_token();
    let mut listener = listen(&security).await;
    let address = listener.address();
    part(&mut listener, &address, &with_token(), ["it has another token", "it has another token"]).await;
    part(&mut listener, &address, &Security::default(), ["it wants a token", "it has no token"]).await;
    let (opened, accepted) = meet(&mut listener, &address, &security).await;
    assert_eq!(opened.unwrap().local().unwrap(), accepted.unwrap().peer());
}

#[tokio::test]
async fn nobody_there_is_an_error_that_may_pass() {
    let address = listen(&Security::default()).await.address();
    let error = connect(&address, &Security::default(), LIMIT).await.err().expect("nobody is there");
    assert!(matches!(error, ConnectError::Unreachable(_)), "{error:?}");
    assert!(error.to_string().starts_with(&format!("cannot reach {address}: ")), "{error}");
}

#[tokio::test]
async fn a_listener_that_says_nothing_is_given_up() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = Address::new(false, silent.local_addr().unwrap());
    let error = connect(&address, &Security::default(), Duration::from_millis(50)).await.err().expect("it is silent");
    assert!(error.to_string().contains("no answer within 50ms"), "{error}");
}

#[tokio::test]
async fn those_who_speak_something_else_are_refused() {
    let mut listener = listen(&with_token()).await;
    let mut stranger = TcpStream::connect(listener.local()).await.unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\nHost: head\r\nUser-Agent: curl\r\n\r\n").await.unwrap();
    stranger.shutdown().await.unwrap();
    let refused = listener.accept().await.err().expect("it is refused");
    assert!(refused.0.contains("it does not speak rustdask's protocol"), "{refused}");
    let mut answer = Vec::new();
    stranger.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"rustdask"));
}

#[tokio::test(start_paused = true)]
async fn those_who_say_nothing_are_refused_after_a_while() {
    let mut listener = listen(&with_token()).await;
    let mut silent = TcpStream::connect(listener.local()).await.unwrap();
    let refused = listener.accept().await.err().expect("it is refused");
    let peer = silent.local_addr().unwrap();
    assert_eq!(refused.0, format!("{peer} was refused: it did not identify itself within 5s"));
    assert_eq!(silent.read(&mut [0]).await.unwrap(), 0);
}

/// Raise the limit of open files as far as this user may, and say how many connections that is enough for.
fn room_for_connections() -> usize {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    limit.maximum.map_or(usize::MAX, |files| files as usize - 1_000)
}

async fn keep_in_order(ten_thousand: usize) {
    let security = with_token();
    let mut listener = listen(&security).await;
    let (local, address) = (listener.local(), listener.address());
    let accepting = tokio::spawn(async move {
        let (mut honest, mut refused) = (Vec::new(), 0);
        while honest.len() < 20 || refused + 256 < ten_thousand {
            match listener.accept().await {
                Ok(connection) => honest.push(connection),
                Err(why) => {
                    assert!(why.0.contains("more than 256 others came after it"), "{why}");
                    refused += 1;
                }
            }
        }
        (listener, honest)
    });
    let flood = tokio::spawn(async move {
        let mut silent = Vec::new();
        while silent.len() < ten_thousand {
            silent.push(TcpStream::connect(local).await.unwrap());
        }
        silent
    });
    let mut slowest = Duration::ZERO;
    for _ in 0..20 {
        let begun = Instant::now();
        connect(&address, &security, LIMIT).await.unwrap();
        slowest = slowest.max(begun.elapsed());
    }
    let silent = flood.await.unwrap();
    let (_listener, _honest) = accepting.await.unwrap();
    assert!(slowest < Duration::from_secs(10), "{slowest:?}");
    // All but the newest have been closed.
    for mut connection in silent.into_iter().take(ten_thousand - 256) {
        let read = connection.read(&mut [0]).await;
        assert!(read.as_ref().map_or(true, |bytes| *bytes == 0), "{read:?}");
    }
}

#[tokio::test]
async fn ten_thousand_who_say_nothing_keep_nobody_out() {
    keep_in_order(10_000.min(room_for_connections())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_do_they_where_several_threads_work() {
    keep_in_order(2_000.min(room_for_connections())).await;
}
