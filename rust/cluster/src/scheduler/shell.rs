//! Carries the machine's orders out: by messages to nodes.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use rustdask_core::cluster::ToNode;
use rustdask_core::ending::Obituary;
use rustdask_core::{Attempt, CallId, Event, KillReason, NodeId, TaskId, WorkerId};
use rustdask_runtime::driver::{Job, Shell};

use super::nodes::Nodes;
use super::task::Work;

pub(crate) struct ClusterShell {
    nodes: Arc<Nodes>,
    /// Of the worker that was lost last.
    pub(crate) obituary: Option<(WorkerId, Obituary)>,
}

impl ClusterShell {
    pub(crate) fn new(nodes: Arc<Nodes>) -> Self {
        Self { nodes, obituary: None }
    }

    fn send(&self, worker: WorkerId, message: &ToNode) {
        if let Some(node) = self.nodes.get(NodeId::of(worker)) {
            node.send(message, Bytes::new());
        }
    }
}

impl Shell for ClusterShell {
    type Payload = Work;
    /// What a worker has made is with its node, or with the task.
    type Report = ();

    const REPORTERS_READ: bool = false;

    /// Workers come by themselves.
    fn start_worker(&mut self, worker: WorkerId, followups: &mut VecDeque<Event>) {
        followups.push_back(Event::WorkerLost { worker });
    }

    fn run(&mut self, job: Job<Self>) {
        self.nodes.run(job.worker, job.call, job.attempt, &job.payload.0);
    }

    fn retract(&mut self, worker: WorkerId, task: TaskId, attempt: Attempt, _followups: &mut VecDeque<Event>) {
        self.send(worker, &ToNode::Retract { worker, task, attempt });
    }

    fn kill(&mut self, worker: WorkerId, _reason: KillReason) {
        self.send(worker, &ToNode::Kill { worker });
    }

    fn forget(&mut self, worker: WorkerId, task: TaskId) {
        self.send(worker, &ToNode::ForgetResult { task });
    }

    fn gone(&mut self, _task: TaskId) {}

    /// All tasks are those of graphs, which have their reports.
    fn report(&mut self, _task: TaskId) -> Option<()> {
        None
    }

    fn obituary(&mut self, worker: WorkerId) -> Obituary {
        match &self.obituary {
            Some((lost, obituary)) if *lost == worker => obituary.clone(),
            _ => Obituary::default(),
        }
    }

    fn start_failure(&self) -> String {
        "no node of the cluster can start workers".into()
    }

    fn call_closed(&mut self, _call: CallId, _followups: &mut VecDeque<Event>) {}
}
