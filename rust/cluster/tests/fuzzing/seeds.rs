//! Inputs with nothing wrong in them, or little, each with its name.

use std::time::Duration;

use rustdask_core::cluster::*;
use rustdask_core::ending::Obituary;
use rustdask_core::frame;
use rustdask_core::message::{Body, Extent, Report, Timings};
use rustdask_core::nested::{FromTask, Submitted};
use rustdask_core::{Attempt, BlobId, CallId, NodeId, SegmentId, TaskId, WorkerId};
use serde::Serialize;

/// For `messages`.
pub(crate) fn messages() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("node", input(0, &from_node())),
        ("client", input(1, &from_client())),
        ("data", input(2, &data_requests())),
        ("hello", input(3, &[Hello { role: Role::Node, versions: versions() }])),
    ]
}

/// For `handshake`.
pub(crate) fn handshakes() -> Vec<(&'static str, Vec<u8>)> {
    let prelude = |side: u8, mode: u8| [&[side], &b"rustdask"[..], &PROTOCOL.to_le_bytes(), &[mode], &[7; 32]].concat();
    vec![
        ("open", prelude(0, 0)),
        ("token", [prelude(0, 1), vec![9; 32]].concat()),
        ("acceptor", [prelude(1, 1), vec![1], vec![9; 32]].concat()),
        ("tls", prelude(1, 2)),
    ]
}

fn input<M: Serialize>(kind: u8, messages: &[M]) -> Vec<u8> {
    let mut input = vec![kind, 7];
    for (nth, message) in messages.iter().enumerate() {
        frame::append(&mut input, message, &b"pickle"[..nth % 7]);
    }
    input
}

fn versions() -> Versions {
    Versions { rustdask: "0.1.0".into(), python: (3, 12), libraries: vec![("numpy".into(), "2.1.0".into())] }
}

fn from_node() -> Vec<FromNode> {
    let (worker, task, attempt) = (NodeId(3).worker(1), TaskId(1 << 62), Attempt(2));
    let spec = NodeSpec { name: "n".into(), resources: vec![("GPU".into(), 2.0)], ..NodeSpec::default() };
    let obituary = Obituary { signal: Some(9), stderr: "killed".into(), ..Obituary::default() };
    vec![
        FromNode::Joined(spec),
        FromNode::WorkerJoined { worker, pid: 7 },
        FromNode::Finished { worker, task, attempt, report: Report::Results, bytes: 6, timings: Timings::default() },
        FromNode::Returned { worker, task, attempt, kept: 1 },
        FromNode::Unfetched { worker, task, attempt, missing: vec![(Thing::Result(TaskId(4)), NodeId(2))] },
        FromNode::Untold { worker, task, missing: vec![NodeId(2)] },
        FromNode::Copied { task },
        FromNode::Segment { segment: SegmentId(1), bytes: 1 << 20 },
        FromNode::Moved { thing: Thing::Result(task), to: NodeId(2) },
        FromNode::Holds { cluster: 1, results: vec![(task, 1)], segments: vec![(SegmentId(1), 1)] },
        FromNode::Output { call: Some(CallId(1)), error_stream: true, log: false },
        FromNode::Nested { worker, word: word() },
        FromNode::Alive(Load { cpu: Duration::from_millis(1500), ..Load::default() }),
        FromNode::WorkerLost { worker: WorkerId(0), obituary },
        FromNode::Leaving,
    ]
}

fn word() -> FromTask {
    let extent = Extent { segment: SegmentId(1), offset: 64, bytes: 1 << 20 };
    FromTask::Task(Submitted {
        task: TaskId(1 << 63),
        name: "fit".into(),
        function: BlobId(9),
        body: Body::Inline,
        buffers: vec![extent],
        inputs: vec![TaskId(1), TaskId(2)],
        wanted: true,
        priority: -1,
        order: 3,
        retries: 2,
        resources: vec![("GPU".into(), 0.5)],
        workers: Some(vec![1]),
    })
}

fn from_client() -> Vec<FromClient> {
    let (call, segment) = (CallId(1), SegmentId(5));
    vec![
        FromClient::Open { call, cap: 8, crash_retries: 3 },
        FromClient::Task { call, word: word() },
        FromClient::Task { call, word: FromTask::Submit { by: None } },
        FromClient::ForgetSegment { segment },
        FromClient::Unfetched { task: TaskId(3), node: NodeId(1) },
        FromClient::Info,
        FromClient::Close { call },
    ]
}

fn data_requests() -> Vec<DataRequest> {
    vec![
        DataRequest::Get { thing: Thing::Result(TaskId(1)), offset: 0, bytes: 1 << 26 },
        DataRequest::Get { thing: Thing::Segment(SegmentId(1)), offset: u64::MAX, bytes: u64::MAX },
        DataRequest::Put { segment: SegmentId(2), bytes: 1 << 40 },
        DataRequest::Take { thing: Thing::Result(TaskId(1)), from: NodeId(1) },
    ]
}
