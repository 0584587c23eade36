//! What tasks in worker processes submit, taken on by the process that they belong to. No Python here: the pool's I/O
//! thread does all of it.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use rustdask_core::nested::Submitted;
use rustdask_core::{BlobId, Event, TaskId};
use rustdask_runtime::connection::Connection;
use rustdask_runtime::driver::{End, Payload as _};
use rustdask_runtime::parcel::Contents;
use rustdask_runtime::upstream::{self, Host};

use crate::node::{Job, Made, Node, Watcher};
use crate::pools::Processes;
use crate::shipment::{HeldBlob, Shipping};
use crate::work::Work;

/// What a session's workers turn to. `generation`: submissions so far.
pub(crate) fn host(shipping: &Arc<Shipping>, pool: &Arc<Processes>, generation: Arc<AtomicU32>) -> Host {
    let (shipping, pool) = (Arc::downgrade(shipping), Arc::downgrade(pool));
    Box::new(move |connection| {
        Box::new(Guest {
            shipping: shipping.clone(),
            pool: pool.clone(),
            generation: generation.clone(),
            connection: Arc::downgrade(connection),
            functions: HashMap::new(),
            values: HashMap::new(),
            wanted: HashSet::new(),
            coming: Vec::new(),
        })
    })
}

/// What one worker has submitted.
struct Guest {
    shipping: Weak<Shipping>,
    pool: Weak<Processes>,
    generation: Arc<AtomicU32>,
    connection: Weak<Connection>,
    functions: HashMap<BlobId, Arc<HeldBlob>>,
    values: HashMap<TaskId, Arc<Node>>,
    wanted: HashSet<TaskId>,
    coming: Vec<(Submitted, Contents)>,
}

impl upstream::Guest for Guest {
    fn function(&mut self, function: BlobId, same_as: Option<BlobId>, contents: Contents) {
        let Some(shipping) = self.shipping.upgrade() else { return };
        self.functions.insert(function, shipping.function_of_worker(function, same_as, contents));
    }

    fn forget_function(&mut self, function: BlobId) {
        self.functions.remove(&function);
    }

    fn value(&mut self, task: TaskId, name: String, contents: Contents) {
        let Some(shipping) = self.shipping.upgrade() else { return };
        let stored = Arc::new(shipping.value_of_worker(task, contents));
        self.values.insert(task, Node::with_result(task, name.into(), Made::Stored(stored)));
    }

    fn task(&mut self, task: Submitted, contents: Contents) {
        self.coming.push((task, contents));
    }

    fn submit(&mut self, by: Option<TaskId>) -> io::Result<()> {
        let coming = std::mem::take(&mut self.coming);
        let Some((shipping, pool)) = self.engine() else { return Ok(()) };
        let generation = self.generation.fetch_add(1, Ordering::Relaxed);
        let depth = self.depth_below(&pool, by);
        let mut tasks = Vec::with_capacity(coming.len());
        for (task, contents) in coming {
            let function = self.functions.get(&task.function).cloned();
            let shipment = function.and_then(|function| shipping.of_worker(function, contents));
            let shipment = shipment.ok_or_else(|| invalid("a task names a function that was not sent"))?;
            let node = Node::new(task.task, task.name.as_str().into(), depth, Job::Elsewhere(Arc::new(shipment)));
            if task.wanted {
                self.wanted.insert(task.task);
                node.watch(Watcher::Worker(self.connection.clone()));
            }
            tasks.push((task, node));
        }
        self.link(&pool, &tasks);
        let spec = |task: &Submitted| task.spec(depth, generation, |input| self.values.contains_key(input));
        let tasks = tasks.into_iter().map(|(task, node)| (spec(&task), Work::Node(node))).collect();
        if let Err(tasks) = pool.driver.submit_graph(shipping.call, tasks) {
            tasks.iter().for_each(|(_, work)| work.ended(End::Closed));
        }
        Ok(())
    }

    fn release(&mut self, tasks: Vec<TaskId>) {
        let tasks: Vec<_> = tasks
            .into_iter()
            .filter(|task| match self.values.remove(task) {
                Some(_) => false,
                None => self.wanted.remove(task),
            })
            .collect();
        self.release_wanted(tasks);
    }

    fn cancel(&mut self, tasks: Vec<TaskId>, force: bool) {
        let Some((shipping, pool)) = self.engine() else { return };
        pool.driver.event(Event::TasksCancelled { call: shipping.call, tasks, force });
    }
}

impl Guest {
    /// None when the session has ended.
    fn engine(&self) -> Option<(Arc<Shipping>, Arc<Processes>)> {
        self.shipping.upgrade().zip(self.pool.upgrade())
    }

    fn depth_below(&self, pool: &Processes, task: Option<TaskId>) -> u32 {
        let depth = |task| pool.driver.with(|state, _| Some(state.payload(task)?.node()?.depth));
        // One that the driver has forgotten was cancelled.
        task.and_then(depth).map_or(0, |depth| depth + 1)
    }

    /// Tell the tasks whose results they take.
    fn link(&self, pool: &Processes, tasks: &[(Submitted, Arc<Node>)]) {
        let own: HashMap<TaskId, &Arc<Node>> = tasks.iter().map(|(task, node)| (task.task, node)).collect();
        let found: Vec<Vec<Arc<Node>>> = pool.driver.with(|state, _| {
            let node = |task: &TaskId| {
                let known = own.get(task).copied().or_else(|| self.values.get(task));
                known.or_else(|| state.payload(*task).and_then(Work::node)).cloned()
            };
            tasks.iter().map(|(task, _)| task.inputs.iter().filter_map(node).collect()).collect()
        });
        tasks.iter().zip(found).for_each(|((_, node), inputs)| node.set_inputs(inputs));
    }

    fn release_wanted(&self, tasks: Vec<TaskId>) {
        if let Some((shipping, pool)) = self.engine().filter(|_| !tasks.is_empty()) {
            pool.driver.event(Event::TasksReleased { call: shipping.call, tasks });
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let wanted = self.wanted.drain().collect();
        self.release_wanted(wanted);
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
