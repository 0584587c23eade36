use rustdask_cluster::transport::{ConnectError, Security};
use rustdask_core::cluster::{Answer, DataAnswer, DataRequest, Role, Thing, Versions, Welcome};
use rustdask_core::frame::{self, Limits};
use rustdask_core::TaskId;
use tempfile::tempdir;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::{listen, pair, with_tls};

const LIMITS: Limits = Limits { header_bytes: 1 << 10, body_bytes: 1 << 10 };

fn versions() -> Versions {
    Versions { rustdask: "0.1.0".into(), python: (3, 12), libraries: vec![("numpy".into(), "2.1.0".into())] }
}

#[tokio::test]
async fn greetings_are_exchanged() {
    let (mut opener, mut acceptor) = pair(&Security::default()).await;
    let welcome = Welcome { cluster: 7, number: 3, versions: versions() };
    let answered = async {
        let hello = acceptor.hello().await.unwrap();
        assert_eq!((hello.role, hello.versions), (Role::Node, versions()));
        acceptor.send(&Answer::Welcome(welcome.clone()), &[]).await.unwrap();
    };
    let (greeted, ()) = tokio::join!(opener.greet(Role::Node, versions()), answered);
    assert_eq!(greeted, Ok(welcome));
}

#[tokio::test]
async fn a_refusal_names_the_peer() {
    let (mut opener, mut acceptor) = pair(&Security::default()).await;
    let answered = async {
        acceptor.hello().await.unwrap();
        acceptor.send(&Answer::Refused("Python is 3.12 here".into()), &[]).await.unwrap();
        acceptor.close().await;
    };
    let peer = opener.peer();
    let greeted = async {
        let greeted = opener.greet(Role::Client, versions()).await;
        drop(opener);
        greeted
    };
    let (greeted, ()) = tokio::join!(greeted, answered);
    assert_eq!(greeted, Err(ConnectError::Refused(format!("cannot work with {peer}: Python is 3.12 here"))));
}

#[tokio::test]
async fn a_long_greeting_is_refused_before_room_is_made() {
    let (mut opener, mut acceptor) = pair(&Security::default()).await;
    opener.send(&"x".repeat(65 << 10), &[]).await.unwrap();
    let error = acceptor.hello().await.unwrap_err();
    assert!(error.to_string().contains("at most 65536 are accepted"), "{error}");
}

#[tokio::test]
async fn those_who_do_not_greet_are_given_up() {
    let (_opener, mut acceptor) = pair(&Security::default()).await;
    tokio::time::pause();
    assert_eq!(acceptor.hello().await.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
}

/// Messages by turns with bytes that go from memory to memory.
async fn fetch(security: &Security) {
    let (mut taker, mut giver) = pair(security).await;
    let data: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    let giving = async {
        while let Some(frame) = giver.receive::<DataRequest>(LIMITS).await.unwrap() {
            let DataRequest::Get { offset, .. } = frame.message else { panic!("{:?}", frame.message) };
            let rest = &data[offset as usize..];
            giver.send(&DataAnswer::Found { parts: vec![rest.len() as u64] }, &[]).await.unwrap();
            giver.write_from(rest).await.unwrap();
        }
    };
    let taking = async {
        for offset in [0, 1_000_000, data.len() as u64] {
            let request = DataRequest::Get { thing: Thing::Result(TaskId(7)), offset, bytes: u64::MAX };
            taker.send(&request, &[]).await.unwrap();
            let answer = taker.receive::<DataAnswer>(LIMITS).await.unwrap().unwrap();
            let rest = &data[offset as usize..];
            assert_eq!(answer.message, DataAnswer::Found { parts: vec![rest.len() as u64] });
            let mut memory = vec![0; rest.len()];
            taker.read_into(&mut memory).await.unwrap();
            assert!(memory == rest, "the bytes arrive as they are");
        }
        drop(taker);
    };
    tokio::join!(giving, taking);
}

#[tokio::test]
async fn data_goes_from_memory_to_memory() {
    fetch(&Security::default()).await;
}

#[tokio::test]
async fn data_goes_from_memory_to_memory_by_tls() {
    let folder = tempdir().unwrap();
    fetch(&with_tls(folder.path())).await;
}

#[tokio::test]
async fn messages_over_the_limits_are_refused() {
    let (mut opener, mut acceptor) = pair(&Security::default()).await;
    opener.send(&1u8, &[0; 1025]).await.unwrap();
    let error = acceptor.receive::<u8>(LIMITS).await.unwrap_err();
    assert!(error.to_string().contains("a body of 1025 bytes; at most 1024"), "{error}");
}

#[tokio::test]
async fn a_message_that_breaks_off_is_an_error() {
    let mut listener = listen(&Security::default()).await;
    let mut peer = TcpStream::connect(listener.local()).await.unwrap();
    let prelude = [b"rustdask\x01\x00\x00".as_slice(), &[7; 32]].concat();
    peer.write_all(&prelude).await.unwrap();
    peer.write_all(&frame::encode(&1u32, 10)).await.unwrap();
    peer.shutdown().await.unwrap();
    let (mut reader, _outbox) = listener.accept().await.unwrap().split(1 << 20);
    let error = reader.next::<u32>().await.unwrap_err();
    assert!(error.to_string().contains("broke in the middle of a message"), "{error}");
}
