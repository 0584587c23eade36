use std::sync::Arc;
use std::time::Duration;

use rustdask_core::cluster::{DataAnswer, DataRequest, Role, Thing, Versions};
use rustdask_core::{NodeId, SegmentId, TaskId};
use rustdask_runtime::shm::Segment;
use rustdask_runtime::stored::{lay_out, Pickle, Stored};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::*;
use crate::transport::{connect, Address, Listener, Port, Security};

const TASK: TaskId = TaskId(7);

/// One that has data, as others reach it.
struct Holder {
    holdings: Arc<Holdings>,
    address: Address,
    visits: mpsc::UnboundedReceiver<Visit>,
}

async fn holder() -> Holder {
    let holdings = Holdings::new(None, std::env::temp_dir()).unwrap();
    let listener = Listener::bind("127.0.0.1", Port::Exactly(0), Security::default()).await.unwrap();
    let address = listener.address();
    let (visitors, visits) = mpsc::unbounded_channel();
    tokio::spawn(open_doors(listener, holdings.clone(), visitors, Versions::default()));
    Holder { holdings, address, visits }
}

fn peers(addresses: &[Address]) -> Arc<Peers> {
    let peers = Peers::new(Security::default(), Versions::default());
    for (i, address) in addresses.iter().enumerate() {
        peers.add(NodeId(i as u32), address.clone());
    }
    Arc::new(peers)
}

fn nodes(count: u32) -> Vec<NodeId> {
    (0..count).map(NodeId).collect()
}

fn bytes(count: usize, seed: usize) -> Vec<u8> {
    (0..count).map(|i| ((i + seed) % 251) as u8).collect()
}

/// A result in a segment.
fn stored(parts: &[Vec<u8>]) -> Stored {
    let sizes: Vec<u64> = parts.iter().map(|part| part.len() as u64).collect();
    let (offsets, total) = lay_out(&sizes);
    let segment = Segment::create(total, None).unwrap();
    for (part, offset) in parts.iter().zip(offsets) {
        segment.fill_at(part, offset).unwrap();
    }
    Stored::copied(SegmentId(1), segment, &sizes)
}

fn parts(stored: &Stored) -> Vec<Vec<u8>> {
    let (pickle, views) = stored.parts_here().unwrap();
    let pickle = match &pickle {
        Pickle::Inline(bytes) => bytes.to_vec(),
        Pickle::Mapped(view) => view.as_slice().unwrap().to_vec(),
    };
    std::iter::once(pickle).chain(views.iter().map(|view| view.as_slice().unwrap().to_vec())).collect()
}

fn received(outcome: Result<Received, Unfetched>) -> Vec<Vec<u8>> {
    parts(&outcome.unwrap().into_stored(|| SegmentId(2)))
}

/// Passes so many bytes of what the holder says on, and then breaks off, for ever.
async fn breaking_proxy(to: Address, after: usize) -> Address {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let local = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut left = after;
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = TcpStream::connect((&*to.host, to.port)).await.unwrap();
            left = relay(&mut near, &mut far, left).await;
        }
    });
    Address::new(false, local)
}

async fn relay(near: &mut TcpStream, far: &mut TcpStream, mut left: usize) -> usize {
    let (mut question, mut answer) = ([0; 4096], vec![0; 64 << 10]);
    while left > 0 {
        tokio::select! {
            read = near.read(&mut question) => match read {
                Ok(read @ 1..) => far.write_all(&question[..read]).await.unwrap(),
                _ => break,
            },
            read = far.read(&mut answer) => match read {
                Ok(read @ 1..) => {
                    let passed = read.min(left);
                    left -= passed;
                    if near.write_all(&answer[..passed]).await.is_err() {
                        break;
                    }
                }
                _ => break,
            },
        }
    }
    left
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_arrive_part_for_part() {
    let holder = holder().await;
    let peers = peers(&[holder.address]);
    for parts in [
        vec![b"small".to_vec()],
        vec![bytes(60 << 10, 1)],
        vec![bytes(100, 2), bytes(100_001, 3), bytes(1, 4), bytes(3 << 20, 5)],
        vec![bytes(200_000, 6)],
    ] {
        holder.holdings.keep(TASK, stored(&parts));
        assert!(received(fetch(&peers, Thing::Result(TASK), &nodes(1)).await) == parts);
    }
    holder.holdings.keep(TASK, Stored::inline(b"pickle".to_vec()));
    assert_eq!(received(fetch(&peers, Thing::Result(TASK), &nodes(1)).await), [b"pickle"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_that_were_moved_to_a_file_are_handed_out_from_there() {
    let folder = tempfile::tempdir().unwrap();
    let store = rustdask_runtime::store::Store::default();
    let there = vec![bytes(100, 1), bytes(300_000, 2)];
    let spilled = stored(&there).spilled(&store, folder.path()).unwrap().unwrap();
    assert!(parts(&spilled) == there);
    assert!(spilled.spilled(&store, folder.path()).unwrap().is_none());
    let holder = holder().await;
    holder.holdings.keep(TASK, spilled);
    assert!(received(fetch(&peers(&[holder.address]), Thing::Result(TASK), &nodes(1)).await) == there);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_move_to_files_when_they_take_too_much_memory() {
    let folder = tempfile::tempdir().unwrap();
    let holdings = Holdings::new(Some(4 << 20), folder.path().into()).unwrap();
    let all: Vec<Vec<Vec<u8>>> = (0..8).map(|i| vec![bytes(100, i), bytes(1 << 20, i)]).collect();
    for (i, parts) in all.iter().enumerate() {
        holdings.keep(TaskId(i as u64), stored(parts));
    }
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while holdings.figures().0 > (4 << 20) * 6 / 10 {
        assert!(std::time::Instant::now() < deadline, "{:?}", holdings.figures());
        tokio::task::yield_now().await;
    }
    assert!(holdings.figures().1 >= 4 << 20);
    for (i, there) in all.iter().enumerate() {
        assert!(parts(&holdings.result(TaskId(i as u64)).unwrap()) == *there);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_have_it_is_named() {
    let (has, has_not) = (holder().await, holder().await);
    let peers = peers(&[has_not.address, has.address.clone()]);
    let missing = fetch(&peers, Thing::Result(TASK), &[NodeId(0), NodeId(9)]).await;
    let Err(Unfetched::Missing(mut missing)) = missing else { panic!("nobody has it") };
    missing.sort();
    assert_eq!(missing, [NodeId(0), NodeId(9)]);
    assert!(matches!(fetch(&peers, Thing::Result(TASK), &[]).await, Err(Unfetched::Missing(none)) if none.is_empty()));
    has.holdings.keep(TASK, stored(&[bytes(5000, 0)]));
    assert!(received(fetch(&peers, Thing::Result(TASK), &nodes(2)).await) == [bytes(5000, 0)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_large_comes_in_pieces_and_goes_on_with_another_holder() {
    let (one, two) = (holder().await, holder().await);
    let there = vec![bytes(1000, 0), bytes(150 << 20, 1)];
    one.holdings.keep(TASK, stored(&there));
    two.holdings.keep(TASK, stored(&there));
    let broken = breaking_proxy(one.address, 20_000_000).await;
    let peers = peers(&[broken.clone(), two.address]);
    assert!(received(fetch(&peers, Thing::Result(TASK), &nodes(2)).await) == there);
    let alone = fetch(&peers, Thing::Result(TASK), &nodes(1)).await;
    assert!(matches!(alone, Err(Unfetched::Missing(broken)) if broken == nodes(1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segments_are_put_and_got() {
    let mut holder = holder().await;
    let data = bytes(5 << 20, 3);
    let mut client = connect(&holder.address, &Security::default(), Duration::from_secs(10)).await.unwrap();
    client.greet(Role::Data, Versions::default()).await.unwrap();
    let id = SegmentId(1 << 62);
    client.send(&DataRequest::Put { segment: id, bytes: data.len() as u64 }, &[]).await.unwrap();
    client.write_from(&data).await.unwrap();
    assert_eq!(client.receive::<DataAnswer>(LIMITS).await.unwrap().unwrap().message, DataAnswer::Stored);
    assert!(matches!(holder.visits.recv().await, Some(Visit::Put { segment, bytes: 0x500000 }) if segment == id));
    let got = fetch(&peers(&[holder.address]), Thing::Segment(id), &nodes(1)).await.unwrap();
    let segment = got.into_segment().unwrap();
    let held = HeldSegment::Own(Arc::new(segment));
    assert!(held.view().unwrap().as_slice().unwrap() == data);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_segment_for_which_there_is_no_room_is_refused() {
    let holder = holder().await;
    for bytes in [0, 1 << 60] {
        let mut client = connect(&holder.address, &Security::default(), Duration::from_secs(10)).await.unwrap();
        client.greet(Role::Data, Versions::default()).await.unwrap();
        client.send(&DataRequest::Put { segment: SegmentId(1), bytes }, &[]).await.unwrap();
        let answer = client.receive::<DataAnswer>(LIMITS).await.unwrap().unwrap().message;
        assert!(matches!(answer, DataAnswer::Failed(_)), "{answer:?}");
    }
    assert!(!holder.holdings.has(Thing::Segment(SegmentId(1))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_given_up_is_not_waited_for() {
    // It takes connections, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peers = peers(&[Address::new(false, silent.local_addr().unwrap())]);
    let fetching = tokio::spawn({
        let peers = peers.clone();
        async move { fetch(&peers, Thing::Result(TASK), &nodes(1)).await.err() }
    });
    let (_held, _) = silent.accept().await.unwrap();
    peers.remove(NodeId(0));
    let outcome = tokio::time::timeout(Duration::from_secs(5), fetching).await.unwrap().unwrap();
    assert!(matches!(outcome, Some(Unfetched::Missing(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_used_again_and_broken_ones_replaced() {
    let holder = holder().await;
    holder.holdings.keep(TASK, stored(&[bytes(70_000, 0)]));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peers = peers(&[Address::new(false, listener.local_addr().unwrap())]);
    let get = || async { received(fetch(&peers, Thing::Result(TASK), &nodes(1)).await) == [bytes(70_000, 0)] };
    let accept = || async {
        let (mut near, _) = listener.accept().await.unwrap();
        let mut far = TcpStream::connect((&*holder.address.host, holder.address.port)).await.unwrap();
        tokio::spawn(async move { relay(&mut near, &mut far, usize::MAX).await }).abort_handle()
    };
    let (first, got) = tokio::join!(accept(), get());
    assert!(got && get().await && get().await, "without a second connection");
    first.abort();
    let (_second, got) = tokio::join!(accept(), get());
    assert!(got);
}
