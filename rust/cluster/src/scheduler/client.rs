//! What a client asks of the scheduler.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use rustdask_core::cluster::{FromClient, Pickle, PicklePlace, Source, ToClient};
use rustdask_core::message::{Body, Extent};
use rustdask_core::nested::{Ended, Fault, FromTask, Numbers, Submitted};
use rustdask_core::{BlobId, CallId, CallSpec, Event, NodeId, SegmentId, TaskId};
use rustdask_runtime::driver::{End, Payload as _};
use rustdask_runtime::mailbox::Mailbox;

use crate::transport::Outbox;

use super::task::{Blob, Input, Parcel, Segment, Task, Value, Work};
use super::{garbled, Scheduler};

/// Tasks that a worker is given ahead, the one that it runs included.
const DEPTH: u32 = 4;

/// A client, as its tasks know it.
pub(crate) struct Client {
    pub(crate) number: u32,
    outbox: Outbox,
}

impl Client {
    pub(crate) fn tell(&self, message: &ToClient, body: Bytes) {
        self.outbox.send(message, body);
    }
}

/// What a client has here. All of it goes with its connection.
pub(crate) struct Session {
    client: Arc<Client>,
    scheduler: Arc<Scheduler>,
    calls: HashMap<CallId, CallId>,
    functions: HashMap<BlobId, Arc<Blob>>,
    settings: Option<Arc<Blob>>,
    values: HashMap<TaskId, Arc<Value>>,
    segments: HashMap<SegmentId, Arc<Segment>>,
    coming: Vec<(Submitted, Bytes)>,
    /// Submissions so far: what was asked for first is done first.
    generation: u32,
}

impl Session {
    pub(crate) fn new(number: u32, outbox: Outbox, scheduler: Arc<Scheduler>) -> Self {
        Self {
            client: Arc::new(Client { number, outbox }),
            scheduler,
            calls: HashMap::new(),
            functions: HashMap::new(),
            settings: None,
            values: HashMap::new(),
            segments: HashMap::new(),
            coming: Vec::new(),
            generation: 0,
        }
    }

    pub(crate) fn client(&self) -> &Arc<Client> {
        &self.client
    }

    pub(crate) fn handle(&mut self, message: FromClient, body: Bytes) -> io::Result<()> {
        match message {
            FromClient::Open { call, cap, crash_retries } => self.open(call, cap, crash_retries),
            FromClient::Close { call } => {
                if let Some(call) = self.calls.remove(&call) {
                    self.scheduler.driver.close_call(call);
                }
            }
            FromClient::Settings { function } => {
                self.settings = Some(self.function(function)?.clone());
            }
            FromClient::Task { call, word } => self.word(call, word, body)?,
            FromClient::ForgetSegment { segment } => {
                self.segments.remove(&segment);
            }
            FromClient::Unfetched { task, node } => self.unfetched(task, node),
            FromClient::Info => self.client.tell(&ToClient::Info(self.scheduler.info()), Bytes::new()),
        }
        Ok(())
    }

    /// Where nobody has the result any more, the client hears of it again when it has been made.
    fn unfetched(&self, task: TaskId, node: NodeId) {
        self.scheduler.unfetched(task, node);
        if let Some((from, body)) = self.scheduler.task(task).and_then(|task| task.place()) {
            self.client.tell(&ToClient::Ended { task, how: Ended::Finished, from }, body);
        }
    }

    fn open(&mut self, call: CallId, cap: u32, crash_retries: u32) {
        let spec = CallSpec { cap: cap.max(1), crash_retries, depth: DEPTH, ..CallSpec::default() };
        let opened = self.scheduler.driver.open_call(spec, Arc::new(Mailbox::new(None)));
        if let Some(before) = self.calls.insert(call, opened) {
            self.scheduler.driver.close_call(before);
        }
    }

    fn word(&mut self, call: CallId, word: FromTask, body: Bytes) -> io::Result<()> {
        match word {
            FromTask::Function { function, same_as: _, body: place, buffers } => {
                self.check(function.0)?;
                let parcel = self.parcel(place, buffers, body)?;
                let nodes = self.scheduler.nodes.clone();
                self.functions.insert(function, Arc::new(Blob { id: function, parcel, nodes }));
            }
            FromTask::ForgetFunction { function } => drop(self.functions.remove(&function)),
            FromTask::Value { task, name: _, body: place, buffers } => {
                self.check(task.0)?;
                let parcel = self.parcel(place, buffers, body)?;
                let nodes = self.scheduler.nodes.clone();
                self.values.insert(task, Arc::new(Value { task, parcel, nodes }));
            }
            FromTask::Task(task) => {
                self.check(task.task.0)?;
                self.coming.push((task, body));
            }
            FromTask::Submit { by: _ } => self.submit(call)?,
            FromTask::Release { tasks } => {
                let tasks: Vec<_> = tasks.into_iter().filter(|task| self.values.remove(task).is_none()).collect();
                self.event(call, |call| Event::TasksReleased { call, tasks });
            }
            FromTask::Cancel { tasks, force } => {
                self.event(call, |call| Event::TasksCancelled { call, tasks, force });
            }
        }
        Ok(())
    }

    fn event(&self, call: CallId, event: impl FnOnce(CallId) -> Event) {
        if let Some(call) = self.calls.get(&call) {
            self.scheduler.driver.event(event(*call));
        }
    }

    /// Run the tasks that have come.
    fn submit(&mut self, call: CallId) -> io::Result<()> {
        let coming = std::mem::take(&mut self.coming);
        let Some(&opened) = self.calls.get(&call) else {
            coming.iter().for_each(|(task, _)| self.refuse(task));
            return Ok(());
        };
        let generation = self.generation;
        self.generation = generation.wrapping_add(1);
        let mut tasks = Vec::with_capacity(coming.len());
        for (submitted, body) in coming {
            tasks.push((self.task(&submitted, body)?, submitted));
        }
        self.link(&tasks);
        let spec = |task: &Submitted| task.spec(0, generation, |input| self.values.contains_key(input));
        let work = |(task, submitted)| (spec(&submitted), Work(task));
        let work = tasks.into_iter().map(work).collect();
        if let Err(work) = self.scheduler.driver.submit_graph(opened, work) {
            work.iter().for_each(|(_, work)| work.ended(End::Closed));
        }
        Ok(())
    }

    fn task(&mut self, submitted: &Submitted, body: Bytes) -> io::Result<Arc<Task>> {
        let function = self.function(submitted.function)?.clone();
        let blobs = self.settings.iter().cloned().chain([function]).collect();
        let parcel = self.parcel(submitted.body, submitted.buffers.clone(), body)?;
        Ok(Task::new(submitted.task, submitted.name.clone(), self.client.clone(), parcel, blobs))
    }

    fn parcel(&mut self, place: Body, buffers: Vec<Extent>, body: Bytes) -> io::Result<Parcel> {
        let pickle = pickle(place, buffers, &body);
        let segments = pickle.segments().map(|segment| self.segment(segment)).collect::<io::Result<_>>()?;
        Ok(Parcel { pickle, body, segments })
    }

    /// One that tasks name. The client may still be on the way with it.
    fn segment(&mut self, id: SegmentId) -> io::Result<Arc<Segment>> {
        self.check(id.0)?;
        let named = || Segment::named(id, self.scheduler.nodes.clone());
        Ok(self.segments.entry(id).or_insert_with(named).clone())
    }

    /// Tell the tasks whose results they take.
    fn link(&self, tasks: &[(Arc<Task>, Submitted)]) {
        let own: HashMap<TaskId, &Arc<Task>> = tasks.iter().map(|(task, _)| (task.id, task)).collect();
        let found: Vec<Box<[Input]>> = self.scheduler.driver.with(|state, _| {
            let input = |id: &TaskId| {
                if let Some(value) = self.values.get(id) {
                    return Some(Input::Value(value.clone()));
                }
                let known = own.get(id).map(|task| (*task).clone());
                known.or_else(|| state.payload(*id).map(|work| work.0.clone())).map(Input::Task)
            };
            tasks.iter().map(|(_, submitted)| submitted.inputs.iter().filter_map(input).collect()).collect()
        });
        tasks.iter().zip(found).for_each(|((task, _), inputs)| task.set_inputs(inputs));
    }

    fn refuse(&self, task: &Submitted) {
        let how = Ended::Failed { task: task.task, name: task.name.clone(), fault: Fault::Closed };
        let from = Source::Inline { bytes: 0 };
        self.client.tell(&ToClient::Ended { task: task.task, how, from }, Bytes::new());
    }

    fn function(&self, id: BlobId) -> io::Result<&Arc<Blob>> {
        self.functions.get(&id).ok_or_else(|| garbled("a client names a function that it has not sent"))
    }

    /// Nobody names what is another's.
    fn check(&self, number: u64) -> io::Result<()> {
        if Numbers::is_of_client(number, self.client.number) {
            return Ok(());
        }
        Err(garbled("a client uses numbers that are not its own"))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        for call in self.calls.values() {
            self.scheduler.driver.close_call(*call);
        }
    }
}

fn pickle(place: Body, buffers: Vec<Extent>, inline: &Bytes) -> Pickle {
    let place = match place {
        Body::Inline => PicklePlace::Inline { bytes: inline.len() as u32 },
        Body::InSegment(extent) => PicklePlace::Segment(extent),
    };
    Pickle { place, buffers }
}
