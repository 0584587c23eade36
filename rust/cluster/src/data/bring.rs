//! Brings segments to nodes.

use std::io;
use std::sync::Arc;

use rustdask_core::cluster::{DataAnswer, DataRequest};
use rustdask_core::message::Access;
use rustdask_core::{NodeId, SegmentId};
use rustdask_runtime::endpoint::View;
use rustdask_runtime::shm::Segment;
use tokio::time::timeout;

use super::peers::Peers;
use super::{LIMITS, PATIENCE};

/// One write, each of which has its own time limit.
const CHUNK_BYTES: usize = 4 << 20;

/// Have a node keep a copy of a segment under this number.
pub async fn bring(peers: &Arc<Peers>, to: NodeId, number: SegmentId, segment: &Segment) -> io::Result<()> {
    let peer = peers.peer(to).ok_or(io::ErrorKind::NotConnected)?;
    let bytes = segment.bytes;
    let view = View { mapping: Arc::new(segment.map(Access::ReadOnly)?), offset: 0, bytes };
    let data = view.as_slice().ok_or(io::ErrorKind::InvalidInput)?;
    let request = DataRequest::Put { segment: number, bytes };
    let mut connection = peer.until_gone(peer.connect()).await?;
    let brought = async {
        connection.send(&request, &[]).await?;
        for chunk in data.chunks(CHUNK_BYTES) {
            timeout(PATIENCE, connection.write_from(chunk)).await??;
        }
        let answer = timeout(PATIENCE, connection.receive(LIMITS)).await??;
        match answer.map(|frame| frame.message) {
            Some(DataAnswer::Stored) => Ok(()),
            Some(DataAnswer::Failed(why)) => Err(io::Error::other(why)),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "a node gave an answer that is none")),
        }
    };
    peer.until_gone(brought).await?;
    peer.keep(connection);
    Ok(())
}
