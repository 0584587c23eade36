//! Tasks on their way to workers: held until all that they name is here.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use rustdask_core::cluster::{FromNode, RunOnNode, Source, Thing};
use rustdask_core::message::ToWorker;
use rustdask_core::{Attempt, BlobId, NodeId, SegmentId, TaskId, WorkerId};
use rustdask_runtime::driver::{Inputs, Links};
use rustdask_runtime::parcel::{Blob, Parcel};
use rustdask_runtime::stored::Stored;

use super::core::{Node, Waiter};
use super::options::Notice;
use super::places::Running;
use super::recipe::{contents, missing, Recipe};
use crate::data::Unfetched;

/// A task that waits for things that it names.
pub(crate) struct Pending {
    run: RunOnNode,
    pickle: Vec<u8>,
    /// Small results that came with it.
    small: Inputs,
    lacks: HashSet<Thing>,
}

impl Node {
    pub(crate) fn run(&mut self, worker: WorkerId, run: RunOnNode, body: Vec<u8>) {
        let (pickle, small) = self.unpack(&run, body);
        if !self.places.contains_key(&worker) {
            // The scheduler is about to hear that it has ended.
            return;
        }
        let lacking = self.lacking(&run);
        let (key, lacks) = ((worker, run.task), lacking.iter().map(|(thing, _)| *thing).collect());
        self.pending.insert(key, Pending { run, pickle, small, lacks });
        if lacking.is_empty() {
            return self.start(key);
        }
        for (thing, from) in lacking {
            self.fetch(thing, &from, Waiter::Run(key.0, key.1));
        }
    }

    /// The pickle of the arguments, and the small results behind it. Values are put by.
    fn unpack(&mut self, run: &RunOnNode, mut body: Vec<u8>) -> (Vec<u8>, Inputs) {
        let mut rest = body.split_off(run.pickle.inline_bytes().min(body.len()));
        let mut take = |bytes: usize| {
            let after = rest.split_off(bytes.min(rest.len()));
            std::mem::replace(&mut rest, after)
        };
        let mut small = Inputs::new();
        for (task, source) in &run.inputs {
            match source {
                Source::Inline { bytes } => {
                    let pickle = take(*bytes as usize);
                    let stored = self.passing.entry(*task).or_insert_with(|| Arc::new(Stored::inline(pickle)));
                    small.push((*task, stored.clone()));
                }
                Source::Value(Some(pickle)) => {
                    self.values.insert(*task, Recipe::new(pickle.clone(), take(pickle.inline_bytes())));
                }
                Source::Value(None) | Source::Nodes(_) => {}
            }
        }
        (body, small)
    }

    /// What it names that is not here, and who has it.
    fn lacking(&self, run: &RunOnNode) -> Vec<(Thing, Vec<NodeId>)> {
        let mut lacking = Vec::new();
        let mut segments: HashSet<SegmentId> = run.pickle.segments().collect();
        for (task, source) in &run.inputs {
            match source {
                Source::Nodes(nodes) if !self.holdings.has(Thing::Result(*task)) => {
                    lacking.push((Thing::Result(*task), nodes.clone()));
                }
                Source::Value(_) => segments.extend(unmade(self.values.get(task))),
                Source::Nodes(_) | Source::Inline { .. } => {}
            }
        }
        run.blobs.iter().for_each(|blob| segments.extend(unmade(self.blobs.get(blob))));
        for segment in segments {
            if !self.holdings.has(Thing::Segment(segment)) {
                lacking.push((Thing::Segment(segment), self.segments.get(&segment).cloned().unwrap_or_default()));
            }
        }
        lacking
    }

    /// All that it names is here: hand it to its worker.
    fn start(&mut self, key: (WorkerId, TaskId)) {
        let Some(pending) = self.pending.remove(&key) else { return };
        let (worker, task, attempt) = (key.0, key.1, pending.run.attempt);
        if let Err(error) = self.hand_over(worker, pending) {
            // Something that it names was forgotten meanwhile, or was never said to be here.
            self.refuse(worker, task, attempt, &format!("a task cannot be run: {error}"));
        }
    }

    fn hand_over(&mut self, worker: WorkerId, pending: Pending) -> io::Result<()> {
        let Pending { run, pickle, small, .. } = pending;
        let blobs = run.blobs.iter().map(|blob| self.blob(*blob)).collect::<io::Result<Vec<_>>>()?;
        let inputs = self.inputs(&run, &small)?;
        let contents = contents(&run.pickle, pickle, &self.holdings)?;
        let parcel = Parcel { call: run.call, contents, blobs, memory_limit: self.worker_memory_limit_bytes };
        let links = Links { inputs, granted: run.granted };
        let Some(place) = self.places.get_mut(&worker) else { return Ok(()) };
        if let Err(error) = parcel.hold(&place.connection, run.task, run.attempt, 1, Some(&links)) {
            // No descriptor could be passed: the worker is of no use any more.
            place.connection.condemn(format!("could not be sent its arguments: {error}"));
        }
        let Links { inputs, .. } = links;
        place.running.push(Running { task: run.task, attempt: run.attempt, call: run.call, inputs });
        self.addressed.insert(worker);
        Ok(())
    }

    fn blob(&mut self, id: BlobId) -> io::Result<Arc<Blob>> {
        let holdings = self.holdings.clone();
        let recipe = self.blobs.get_mut(&id).ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, format!("blob {} was not sent before it was named", id.0))
        })?;
        recipe.make(&holdings, |contents| Arc::new(Blob { id, contents })).cloned()
    }

    fn inputs(&mut self, run: &RunOnNode, small: &Inputs) -> io::Result<Inputs> {
        let mut inputs = Inputs::with_capacity(run.inputs.len());
        for (task, source) in &run.inputs {
            if let Source::Value(_) = source {
                self.make_value(*task)?;
            }
            let passing = small.iter().find(|(of, _)| of == task).map(|(_, stored)| stored.clone());
            let stored = passing.or_else(|| self.holdings.result(*task));
            inputs.push((*task, stored.ok_or_else(|| missing(Thing::Result(*task)))?));
        }
        Ok(inputs)
    }

    fn make_value(&mut self, task: TaskId) -> io::Result<()> {
        let holdings = self.holdings.clone();
        if let Some(recipe) = self.values.get_mut(&task) {
            let keep = |contents| holdings.keep_value(task, Stored::Placed { contents, held: Box::new(()) });
            recipe.make(&holdings, keep)?;
        }
        Ok(())
    }

    pub(crate) fn input_arrived(
        &mut self,
        worker: WorkerId,
        task: TaskId,
        thing: Thing,
        outcome: &Result<(), Unfetched>,
    ) {
        let Some(pending) = self.pending.get_mut(&(worker, task)) else { return };
        match outcome {
            Ok(()) => {
                pending.lacks.remove(&thing);
                if pending.lacks.is_empty() {
                    self.start((worker, task));
                }
            }
            Err(why) => {
                let attempt = pending.run.attempt;
                self.pending.remove(&(worker, task));
                match why {
                    Unfetched::Missing(nodes) => {
                        let missing = self.or_self(nodes).into_iter().map(|node| (thing, node)).collect();
                        self.say(&FromNode::Unfetched { worker, task, attempt, missing }, Bytes::new());
                    }
                    Unfetched::NoRoom(error) => {
                        self.refuse(worker, task, attempt, &format!("there is no room for an input: {error}"));
                    }
                }
            }
        }
    }

    /// Where nobody was said to have it, the scheduler took this node for one that has.
    pub(crate) fn or_self(&self, nodes: &[NodeId]) -> Vec<NodeId> {
        if nodes.is_empty() {
            vec![self.number]
        } else {
            nodes.to_vec()
        }
    }

    fn refuse(&self, worker: WorkerId, task: TaskId, attempt: Attempt, why: &str) {
        (self.notice)(Notice::Warning(why));
        self.say(&FromNode::Unfetched { worker, task, attempt, missing: Vec::new() }, Bytes::new());
    }

    pub(crate) fn retract(&mut self, worker: WorkerId, task: TaskId, attempt: Attempt) {
        let pending = self.pending.get(&(worker, task)).is_some_and(|pending| pending.run.attempt == attempt);
        if pending {
            self.pending.remove(&(worker, task));
            self.say(&FromNode::Returned { worker, task, attempt, kept: 0 }, Bytes::new());
        } else if let Some(place) = self.places.get(&worker) {
            place.connection.outbox.send(&ToWorker::Retract { task, attempt }, &[], None);
        }
    }

    /// A worker has ended.
    pub(crate) fn forget_tasks_of(&mut self, worker: WorkerId) {
        self.pending.retain(|(holder, _), _| *holder != worker);
        self.ends.retain(|(holder, _), _| *holder != worker);
    }

    /// A task has ended, and with it the need for small results that came for it.
    pub(crate) fn unpin(&mut self, inputs: Inputs) {
        for (task, stored) in inputs {
            let passing = self.passing.get(&task).is_some_and(|passing| Arc::ptr_eq(passing, &stored));
            // Here, and among those that pass.
            if passing && Arc::strong_count(&stored) == 2 {
                self.passing.remove(&task);
                self.places.values().for_each(|place| place.connection.forget_result(task));
            }
        }
    }
}

fn unmade<T>(recipe: Option<&Recipe<T>>) -> Vec<SegmentId> {
    match recipe {
        Some(recipe) if recipe.made().is_none() => recipe.segments().collect(),
        _ => Vec::new(),
    }
}
