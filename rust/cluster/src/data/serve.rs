//! Hands out what is here, and takes what is brought.

use std::io;
use std::sync::Arc;

use rustdask_core::cluster::{Answer, DataAnswer, DataRequest, Role, Thing, Versions, Welcome};
use rustdask_core::frame;
use rustdask_core::{NodeId, SegmentId};
use rustdask_runtime::shm::Segment;
use rustdask_runtime::stored::Pickle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::holdings::{HeldSegment, Holdings};
use super::{LIMITS, PATIENCE};
use crate::transport::{Connection, Listener};

/// Data up to this size goes with the answer, in one write.
const TOGETHER_BYTES: usize = 64 << 10;

/// So much is written, or read, before it is seen whether the peer is alive.
const CHUNK_BYTES: usize = 1 << 20;

/// What a data connection has brought that the node must know of.
pub(crate) enum Visit {
    /// A segment has come.
    Put { segment: SegmentId, bytes: u64 },
    /// Get this from a node that leaves.
    Take { thing: Thing, from: NodeId, done: oneshot::Sender<Result<(), String>> },
}

/// Let those in who want data, or bring some.
pub(crate) async fn open_doors(
    mut listener: Listener,
    holdings: Arc<Holdings>,
    visits: mpsc::UnboundedSender<Visit>,
    versions: Versions,
) {
    loop {
        // Who was not let in has been told why.
        let Ok(connection) = listener.accept().await else { continue };
        let (holdings, visits, versions) = (holdings.clone(), visits.clone(), versions.clone());
        tokio::spawn(async move {
            // A connection that breaks is the peer's affair: it asks again.
            let _ = receive_visitor(connection, holdings, visits, versions).await;
        });
    }
}

async fn receive_visitor(
    mut connection: Connection,
    holdings: Arc<Holdings>,
    visits: mpsc::UnboundedSender<Visit>,
    versions: Versions,
) -> io::Result<()> {
    let hello = connection.hello().await?;
    if hello.role != Role::Data {
        let why = "this is a node, which hands out data: connect to the scheduler instead";
        connection.send(&Answer::Refused(why.into()), &[]).await?;
        connection.close().await;
        return Ok(());
    }
    let welcome = Welcome { cluster: 0, number: 0, versions };
    connection.send(&Answer::Welcome(welcome), &[]).await?;
    serve(connection, holdings, visits).await
}

/// Serve one connection, until the peer closes it.
async fn serve(
    mut connection: Connection,
    holdings: Arc<Holdings>,
    visits: mpsc::UnboundedSender<Visit>,
) -> io::Result<()> {
    while let Some(frame) = connection.receive::<DataRequest>(LIMITS).await? {
        match frame.message {
            DataRequest::Get { thing, offset, bytes } => give(&mut connection, &holdings, thing, offset, bytes).await?,
            DataRequest::Put { segment, bytes } => {
                if let Err(error) = take(&mut connection, &holdings, segment, bytes).await {
                    let answer = DataAnswer::Failed(error.to_string());
                    connection.send(&answer, &[]).await?;
                    // What it goes on to send is no request.
                    connection.close().await;
                    return Err(error);
                }
                // The node may be about to end; then nobody needs to know.
                let _ = visits.send(Visit::Put { segment, bytes });
                connection.send(&DataAnswer::Stored, &[]).await?;
            }
            DataRequest::Take { thing, from } => {
                let (done, taken) = oneshot::channel();
                let _ = visits.send(Visit::Take { thing, from, done });
                let answer = match taken.await.unwrap_or_else(|_| Err("the node is about to leave".into())) {
                    Ok(()) => DataAnswer::Stored,
                    Err(why) => DataAnswer::Failed(why),
                };
                connection.send(&answer, &[]).await?;
            }
        }
    }
    Ok(())
}

async fn give(
    connection: &mut Connection,
    holdings: &Holdings,
    thing: Thing,
    offset: u64,
    bytes: u64,
) -> io::Result<()> {
    match thing {
        Thing::Result(task) => match holdings.result(task) {
            Some(stored) => {
                let (pickle, views) = stored.parts_here()?;
                let pickle = match &pickle {
                    Pickle::Inline(bytes) => *bytes,
                    Pickle::Mapped(view) => view.as_slice().ok_or_else(outside)?,
                };
                let mut parts = vec![pickle];
                for view in &views {
                    parts.push(view.as_slice().ok_or_else(outside)?);
                }
                send(connection, &parts, offset, bytes).await
            }
            None => connection.send(&DataAnswer::NotHere, &[]).await,
        },
        Thing::Segment(segment) => match holdings.segment(segment) {
            Some(held) => {
                let view = held.view()?;
                send(connection, &[view.as_slice().ok_or_else(outside)?], offset, bytes).await
            }
            None => connection.send(&DataAnswer::NotHere, &[]).await,
        },
    }
}

fn outside() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a part is outside of its segment")
}

async fn send(connection: &mut Connection, parts: &[&[u8]], offset: u64, bytes: u64) -> io::Result<()> {
    let answer = DataAnswer::Found { parts: parts.iter().map(|part| part.len() as u64).collect() };
    let wanted = range_of(parts, offset, bytes);
    let mut head = frame::encode(&answer, 0);
    let mut rest = wanted.into_iter().peekable();
    while let Some(part) = rest.next_if(|part| head.len() + part.len() <= TOGETHER_BYTES) {
        head.extend_from_slice(part);
    }
    write(connection, &head).await?;
    for part in rest {
        write(connection, part).await?;
    }
    Ok(())
}

async fn write(connection: &mut Connection, bytes: &[u8]) -> io::Result<()> {
    for chunk in bytes.chunks(CHUNK_BYTES) {
        timeout(PATIENCE, connection.write_from(chunk)).await??;
    }
    Ok(())
}

/// So many bytes from there on, where the parts follow each other.
fn range_of<'a>(parts: &[&'a [u8]], offset: u64, bytes: u64) -> Vec<&'a [u8]> {
    let (mut skip, mut left) = (offset, bytes);
    let mut wanted = Vec::new();
    for part in parts {
        let start = skip.min(part.len() as u64);
        skip -= start;
        let part = &part[start as usize..];
        let part = &part[..left.min(part.len() as u64) as usize];
        left -= part.len() as u64;
        if !part.is_empty() {
            wanted.push(part);
        }
    }
    wanted
}

async fn take(connection: &mut Connection, holdings: &Holdings, id: SegmentId, bytes: u64) -> io::Result<()> {
    if bytes == 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a segment has at least one byte"));
    }
    let segment = Segment::create(bytes, None)?;
    let mut buffer = vec![0; CHUNK_BYTES.min(bytes as usize)];
    let mut at = 0;
    while at < bytes {
        let chunk = &mut buffer[..CHUNK_BYTES.min((bytes - at) as usize)];
        timeout(PATIENCE, connection.read_into(chunk)).await??;
        segment.fill_at(chunk, at)?;
        at += chunk.len() as u64;
    }
    holdings.keep_segment(id, HeldSegment::Own(Arc::new(segment)));
    Ok(())
}
