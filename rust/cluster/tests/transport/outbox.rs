use std::io;
use std::thread;

use bytes::Bytes;
use rustdask_cluster::transport::{Outbox, Reader, Security};
use rustdask_core::cluster::MAX_CONTROL_BODY_BYTES;
use tempfile::tempdir;

use crate::{pair, with_tls};

const PLENTY: usize = 1 << 30;

/// The near side's outbox, with its reader; the far side's.
async fn control(security: &Security, max_backlog_bytes: usize) -> ((Reader, Outbox), (Reader, Outbox)) {
    let (opener, acceptor) = pair(security).await;
    (opener.split(max_backlog_bytes), acceptor.split(PLENTY))
}

/// Small, middling and large bodies.
fn body(nth: u32) -> Bytes {
    let bytes = match nth % 50 {
        49 => 100_000,
        25 => 5_000,
        _ => nth % 3,
    };
    vec![nth as u8; bytes as usize].into()
}

async fn many_senders(security: &Security) {
    const SENDERS: u32 = 4;
    const EACH: u32 = 2_000;
    let ((_near, outbox), (mut far, _far_outbox)) = control(security, PLENTY).await;
    for sender in 0..SENDERS {
        let outbox = outbox.clone();
        thread::spawn(move || (0..EACH).for_each(|nth| outbox.send(&(sender, nth), body(nth))));
    }
    drop(outbox);
    let mut next = [0; SENDERS as usize];
    while let Some(frame) = far.next::<(u32, u32)>().await.unwrap() {
        let (sender, nth) = frame.message;
        assert_eq!(nth, next[sender as usize]);
        assert!(frame.body == body(nth), "the body of {nth} is its own");
        next[sender as usize] += 1;
    }
    // All came, and then the end, since all outboxes were dropped.
    assert_eq!(next, [EACH; SENDERS as usize]);
}

#[tokio::test]
async fn what_threads_send_arrives_whole_and_in_order() {
    many_senders(&Security::default()).await;
}

#[tokio::test]
async fn what_threads_send_arrives_by_tls() {
    let folder = tempdir().unwrap();
    many_senders(&with_tls(folder.path())).await;
}

#[tokio::test]
async fn both_sides_send_at_once() {
    let ((mut near, near_outbox), (mut far, far_outbox)) = control(&Security::default(), PLENTY).await;
    for nth in 0..1_000u32 {
        near_outbox.send(&nth, body(nth));
        far_outbox.send(&nth, body(nth));
    }
    near_outbox.close();
    far_outbox.close();
    for reader in [&mut near, &mut far] {
        let mut seen = 0;
        while let Some(frame) = reader.next::<u32>().await.unwrap() {
            assert_eq!(frame.message, seen);
            seen += 1;
        }
        assert_eq!(seen, 1_000);
    }
    near_outbox.closed().await;
    assert_eq!(near_outbox.backlog_bytes(), 0);
}

#[tokio::test]
async fn who_can_wait_waits_for_a_slow_peer() {
    const MESSAGES: u32 = 200;
    const LIMIT_BYTES: usize = 1 << 20;
    let ((_near, outbox), (mut far, _far_outbox)) = control(&Security::default(), PLENTY).await;
    let sender = tokio::spawn(async move {
        let mut most = 0;
        for nth in 0..MESSAGES {
            outbox.until_below(LIMIT_BYTES).await;
            outbox.send(&nth, vec![0; 300_000].into());
            most = most.max(outbox.backlog_bytes());
        }
        outbox.until_below(1).await;
        most
    });
    for nth in 0..MESSAGES {
        assert_eq!(far.next::<u32>().await.unwrap().unwrap().message, nth);
    }
    let most = sender.await.unwrap();
    assert!(most < LIMIT_BYTES + 400_000, "{most}");
    assert!(far.next::<u32>().await.unwrap().is_none());
}

#[tokio::test]
async fn a_peer_that_takes_nothing_is_given_up() {
    let ((mut near, outbox), (far, _far_outbox)) = control(&Security::default(), 8 << 20).await;
    let waiting = tokio::spawn({
        let outbox = outbox.clone();
        async move { outbox.until_below(1).await }
    });
    // More than the limit and the buffers of the kernel together.
    for nth in 0..1_000u32 {
        outbox.send(&nth, vec![0; 100_000].into());
        tokio::task::yield_now().await;
    }
    assert_eq!(outbox.backlog_bytes(), 0);
    let error = near.next::<u32>().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    assert!(error.to_string().contains("does not take what it is sent"), "{error}");
    outbox.closed().await;
    waiting.await.unwrap();
    drop(far);
}

#[tokio::test]
async fn giving_up_ends_a_wait_to_read() {
    let ((mut near, outbox), (mut far, _far_outbox)) = control(&Security::default(), PLENTY).await;
    let reading = tokio::spawn(async move { near.next::<u32>().await });
    tokio::task::yield_now().await;
    outbox.give_up("it is silent");
    assert_eq!(reading.await.unwrap().unwrap_err().to_string(), "it is silent");
    assert!(far.next::<u32>().await.unwrap().is_none());
}

#[tokio::test]
async fn what_is_sent_to_nobody_is_forgotten() {
    let ((mut near, outbox), far) = control(&Security::default(), PLENTY).await;
    drop(far);
    // The end shows where it is read.
    assert!(near.next::<u32>().await.unwrap().is_none());
    while !outbox_ended(&outbox).await {
        outbox.send(&1u32, vec![0; 100_000].into());
    }
    outbox.send(&1u32, Bytes::new());
    assert_eq!(outbox.backlog_bytes(), 0);
}

async fn outbox_ended(outbox: &Outbox) -> bool {
    tokio::task::yield_now().await;
    tokio::select! {
        biased;
        () = outbox.closed() => true,
        () = std::future::ready(()) => false,
    }
}

#[tokio::test]
async fn bodies_over_the_limit_are_not_received() {
    let (mut opener, acceptor) = pair(&Security::default()).await;
    let (mut reader, _outbox) = acceptor.split(PLENTY);
    let sending = tokio::spawn(async move {
        let _ = opener.send(&1u32, &vec![0; MAX_CONTROL_BODY_BYTES as usize + 1]).await;
    });
    let error = reader.next::<u32>().await.unwrap_err();
    assert!(error.to_string().contains("a body of 16777217 bytes"), "{error}");
    drop(reader);
    sending.abort();
}
