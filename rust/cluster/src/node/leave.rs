//! A node that leaves hands over what it has.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};

use rustdask_core::cluster::{DataAnswer, DataRequest, Thing};
use rustdask_core::NodeId;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::data::Peers;

/// So many things are on their way at once.
const LANES: usize = 4;

/// Have other nodes get these things from this one, in turns. Who took what is told by the channel, as it happens. What nobody
/// takes is left to be computed again.
pub(crate) async fn hand_over(
    peers: Arc<Peers>,
    number: NodeId,
    things: Vec<Thing>,
    moved: mpsc::UnboundedSender<(Thing, NodeId)>,
) {
    let takers: VecDeque<NodeId> = peers.nodes().into();
    let work = Arc::new(Work { peers, number, moved, things: Mutex::new(things), takers: Mutex::new(takers) });
    let mut lanes = JoinSet::new();
    for _ in 0..LANES {
        let work = work.clone();
        lanes.spawn(async move { work.lane().await });
    }
    lanes.join_all().await;
}

struct Work {
    peers: Arc<Peers>,
    number: NodeId,
    moved: mpsc::UnboundedSender<(Thing, NodeId)>,
    things: Mutex<Vec<Thing>>,
    takers: Mutex<VecDeque<NodeId>>,
}

impl Work {
    async fn lane(&self) {
        while let Some(thing) = self.next_thing() {
            while let Some(taker) = self.next_taker() {
                match self.offer(thing, taker).await {
                    Ok(true) => {
                        // The node ends after this does.
                        let _ = self.moved.send((thing, taker));
                        break;
                    }
                    // It is not there, or leaves, too, or has no room: it will take nothing else.
                    Ok(false) | Err(_) => self.takers().retain(|other| *other != taker),
                }
            }
        }
    }

    async fn offer(&self, thing: Thing, taker: NodeId) -> io::Result<bool> {
        let peer = self.peers.peer(taker).ok_or(io::ErrorKind::NotFound)?;
        let (connection, answer) = peer.ask_patiently(&DataRequest::Take { thing, from: self.number }).await?;
        peer.keep(connection);
        Ok(answer == DataAnswer::Stored)
    }

    fn next_thing(&self) -> Option<Thing> {
        self.things.lock().expect("no holder panics").pop()
    }

    fn next_taker(&self) -> Option<NodeId> {
        let mut takers = self.takers();
        let next = takers.front().copied();
        if next.is_some() {
            takers.rotate_left(1);
        }
        next
    }

    fn takers(&self) -> std::sync::MutexGuard<'_, VecDeque<NodeId>> {
        self.takers.lock().expect("no holder panics")
    }
}
