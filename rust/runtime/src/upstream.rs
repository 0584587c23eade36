//! Tasks of worker processes that submit tasks: what their worker sends for them, and what it gets.
//!
//! In the worker, one thread at a time runs tasks. A task that waits hands this on, so that the worker is never held up by
//! it, however deep tasks are nested.

use std::io;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::Duration;

use rustdask_core::frame;
use rustdask_core::message::{Body, Extent, FromWorker, ToWorker};
use rustdask_core::nested::{Ended, Fault, FromTask, Numbers, Submitted};
use rustdask_core::{Attempt, BlobId, TaskId, WorkerId};

use crate::connection::Connection;
use crate::delivery::Reported;
use crate::endpoint::{Blob, Endpoint, Inner, Running, SentBlob};
use crate::parcel::Contents;
use crate::shm::MIN_SEGMENT_BYTES;

/// What takes on what the tasks of one worker submit. The I/O thread calls it, and drops it when the worker is gone.
/// What cannot be, as of a worker that has gone wrong, is an error.
pub trait Guest {
    fn function(&mut self, function: BlobId, same_as: Option<BlobId>, contents: Contents);
    fn forget_function(&mut self, function: BlobId);
    fn value(&mut self, task: TaskId, name: String, contents: Contents);
    fn task(&mut self, task: Submitted, contents: Contents);
    /// Run the tasks that have come. `by`: the task that has submitted them.
    fn submit(&mut self, by: Option<TaskId>) -> io::Result<()>;
    fn release(&mut self, tasks: Vec<TaskId>);
    fn cancel(&mut self, tasks: Vec<TaskId>, force: bool);

    /// A word of a task's. `contents`: what it names.
    fn hear(&mut self, word: FromTask, contents: Contents) -> io::Result<()> {
        match word {
            FromTask::Function { function, same_as, .. } => self.function(function, same_as, contents),
            FromTask::ForgetFunction { function } => self.forget_function(function),
            FromTask::Value { task, name, .. } => self.value(task, name, contents),
            FromTask::Task(task) => self.task(task, contents),
            FromTask::Submit { by } => self.submit(by)?,
            FromTask::Release { tasks } => self.release(tasks),
            FromTask::Cancel { tasks, force } => self.cancel(tasks, force),
        }
        Ok(())
    }
}

/// Makes a [`Guest`] of a worker.
pub type Host = Box<dyn Fn(&Arc<Connection>) -> Box<dyn Guest> + Send + Sync>;

impl Connection {
    /// Tell the worker that a task has failed which it has submitted. `raised`: the exception.
    pub fn tell_failed(
        self: &Arc<Self>,
        task: TaskId,
        cause: TaskId,
        name: &str,
        fault: Fault,
        raised: Option<&Reported>,
    ) -> io::Result<()> {
        let mut told = self.told();
        let (body, inline) = match raised {
            Some(raised) => raised.parts(self, &mut told, None)?,
            None => (Body::Inline, &[][..]),
        };
        let how = Ended::Failed { task: cause, name: name.into(), fault };
        self.outbox.send(&ToWorker::Ended { task, how, body, buffers: Vec::new() }, inline, None);
        Ok(())
    }
}

/// Hears of the ends of tasks that were submitted, with the result or the exception.
pub type Listener = Box<dyn Fn(TaskId, Ended, Blob) + Send + Sync>;

/// The worker's side of what its tasks submit.
#[derive(Default)]
pub(crate) struct Upstream {
    numbers: Mutex<Option<Numbers>>,
    listener: OnceLock<Listener>,
    freed: Condvar,
}

/// A submission that is put together.
#[derive(Default)]
pub struct Frames(Vec<u8>);

impl Frames {
    fn push(&mut self, word: FromTask, inline: &[u8]) {
        frame::append(&mut self.0, &FromWorker::Nested(word), inline);
    }

    /// `task` has its body and buffers already.
    pub fn task(&mut self, task: Submitted, inline: &[u8]) {
        self.push(FromTask::Task(task), inline);
    }
}

impl Endpoint {
    /// What hears of the ends of tasks that are submitted here.
    pub fn listen(&self, listener: Listener) {
        // Nobody listens twice.
        let _ = self.upstream.listener.set(listener);
    }

    /// How many workers there are to be, this one among them.
    pub fn workers(&self) -> u32 {
        self.inner.lock().expect("no holder panics").welcome.map_or(1, |(_, workers)| workers)
    }

    pub(crate) fn welcome(&self, worker: WorkerId, workers: u32) {
        self.inner.lock().expect("no holder panics").welcome = Some((worker, workers));
        *self.upstream.numbers.lock().expect("no holder panics") = Some(Numbers::of(worker));
    }

    /// Numbers for so many tasks or functions; the first of them.
    pub fn take_numbers(&self, count: u64) -> u64 {
        let mut numbers = self.upstream.numbers.lock().expect("no holder panics");
        numbers.as_mut().expect("the first word has come before any task").take(count)
    }

    /// Where a pickle is to be: in the frame, or in shared memory.
    pub fn put(&self, pickle: &[u8]) -> io::Result<Body> {
        Ok(if pickle.len() < MIN_SEGMENT_BYTES { Body::Inline } else { Body::InSegment(self.place(pickle)?) })
    }

    pub fn send_function(
        &self,
        function: BlobId,
        same_as: Option<BlobId>,
        pickle: &[u8],
        buffers: Vec<Extent>,
    ) -> io::Result<()> {
        let body = self.put(pickle)?;
        let inline = inline(body, pickle);
        self.say(FromTask::Function { function, same_as, body, buffers }, inline)
    }

    pub fn forget_function(&self, function: BlobId) -> io::Result<()> {
        self.say(FromTask::ForgetFunction { function }, &[])
    }

    pub fn send_value(&self, task: TaskId, name: &str, pickle: &[u8], buffers: Vec<Extent>) -> io::Result<()> {
        let body = self.put(pickle)?;
        let inline = inline(body, pickle);
        self.say(FromTask::Value { task, name: name.into(), body, buffers }, inline)
    }

    pub fn submit(&self, mut tasks: Frames, by: Option<TaskId>) -> io::Result<()> {
        tasks.push(FromTask::Submit { by }, &[]);
        self.send_frames(&tasks.0)
    }

    pub fn release(&self, tasks: Vec<TaskId>) -> io::Result<()> {
        self.say(FromTask::Release { tasks }, &[])
    }

    pub fn cancel(&self, tasks: Vec<TaskId>, force: bool) -> io::Result<()> {
        self.say(FromTask::Cancel { tasks, force }, &[])
    }

    fn say(&self, word: FromTask, inline: &[u8]) -> io::Result<()> {
        self.send(&FromWorker::Nested(word), inline, None)
    }

    /// The memory that the result is in is mapped at once: it may be told to be given up before it is looked at.
    pub(crate) fn tell_ended(&self, task: TaskId, how: Ended, sent: SentBlob) -> io::Result<()> {
        if let Some(listener) = self.upstream.listener.get() {
            listener(task, how, self.open(sent)?);
        }
        Ok(())
    }
}

/// The pickle, if it goes in the frame.
pub fn inline(body: Body, pickle: &[u8]) -> &[u8] {
    if matches!(body, Body::Inline) {
        pickle
    } else {
        &[]
    }
}

/// Stand-ins beyond so many end when there is nothing for them to do.
const SPARE: usize = 4;

/// Which thread runs tasks: the one that has the baton. Those that want it: threads whose tasks have got what they waited
/// for; the first thread of the process, since some libraries want to be called there; stand-ins.
#[derive(Default)]
pub(crate) struct Baton {
    taken: bool,
    returning: usize,
    first_waits: bool,
    /// The first thread has it.
    with_first: bool,
    spare: usize,
    parked: Vec<Running>,
}

impl Baton {
    /// Whoever has it is to give it away before the next task.
    pub(crate) fn is_asked_for(&self) -> bool {
        self.returning > 0 || (self.first_waits && !self.with_first)
    }

    pub(crate) fn has_parked(&self, task: TaskId, attempt: Attempt) -> bool {
        self.parked.iter().any(|parked| (parked.task, parked.attempt) == (task, attempt))
    }
}

impl Endpoint {
    /// Give the baton away if somebody else is to have it. Only whoever has it asks.
    pub fn hand_over(&self) -> bool {
        let mut inner = self.inner.lock().expect("no holder panics");
        if !inner.baton.is_asked_for() {
            return false;
        }
        inner.baton.taken = false;
        self.upstream.freed.notify_all();
        true
    }

    /// Wait for the baton, as one who has no task, at most `limit`; None when the time is over. False when enough others
    /// wait for it.
    pub fn stand_in(&self, first: bool, limit: Duration) -> Option<bool> {
        let mut inner = self.inner.lock().expect("no holder panics");
        if inner.baton.taken && !first && inner.baton.spare >= SPARE {
            return Some(false);
        }
        inner.baton.spare += usize::from(!first);
        inner.baton.first_waits |= first;
        if first {
            self.arrived.notify_all();
        }
        let unfit =
            |inner: &mut Inner| inner.baton.taken || inner.baton.returning > 0 || (inner.baton.first_waits && !first);
        let (mut inner, waited) =
            self.upstream.freed.wait_timeout_while(inner, limit, unfit).expect("no holder panics");
        let baton = &mut inner.baton;
        baton.spare -= usize::from(!first);
        if waited.timed_out() {
            // The first thread looks at signals, and waits on.
            return None;
        }
        baton.first_waits &= !first;
        baton.taken = true;
        baton.with_first = first;
        Some(true)
    }

    /// Nobody would take the baton if it were given away.
    pub fn lacks_stand_in(&self) -> bool {
        let inner = self.inner.lock().expect("no holder panics");
        inner.baton.returning == 0 && !inner.baton.first_waits && inner.baton.spare == 0
    }

    /// The task that the current thread runs is going to wait. There must be somebody to stand in.
    pub fn park(&self, task: TaskId, attempt: Attempt) -> io::Result<()> {
        // What others are given from here on, they do not share with this task.
        self.settle();
        self.send(&FromWorker::Parked { task, attempt }, &[], None)?;
        let mut inner = self.inner.lock().expect("no holder panics");
        let running = inner.running.take();
        inner.baton.parked.extend(running);
        inner.baton.taken = false;
        self.upstream.freed.notify_all();
        Ok(())
    }

    /// After [`Endpoint::park`]: wait until whoever has the baton is between two tasks, and take it.
    pub fn unpark(&self, task: TaskId, attempt: Attempt, first: bool) -> io::Result<()> {
        let mut inner = self.inner.lock().expect("no holder panics");
        inner.baton.returning += 1;
        self.arrived.notify_all();
        let mut inner = self.upstream.freed.wait_while(inner, |inner| inner.baton.taken).expect("no holder panics");
        let baton = &mut inner.baton;
        baton.returning -= 1;
        baton.taken = true;
        baton.with_first = first;
        let at = baton.parked.iter().position(|parked| (parked.task, parked.attempt) == (task, attempt));
        inner.running = at.map(|at| inner.baton.parked.swap_remove(at));
        drop(inner);
        self.send(&FromWorker::Resumed { task, attempt }, &[], None)
    }
}
