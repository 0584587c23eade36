//! Worker processes: started by the template, looked after, and ended.
//!
//! Whose workers they are does not matter here: an [`Owner`] keeps their connections, and hears what they say.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;

use rustdask_core::ending::Obituary;
use rustdask_core::message::ToWorker;
use rustdask_core::nested::FromTask;
use rustdask_core::{Attempt, TaskId, WorkerId};
use rustix::net::{socketpair, AddressFamily, SocketFlags, SocketType};
use rustix::pipe::{pipe_with, PipeFlags};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

use crate::connection::Connection;
use crate::delivery::{Delivery, Reported};
use crate::fork;
use crate::group;
use crate::lease::{Lease, SharedMemory};
use crate::lines::Output;
use crate::serving::{Ends, Serving};
use crate::template::{Launch, News, Template, WorkerEnds};

/// How often memory and idle time are looked at while anything is to be looked at.
const TICK: Duration = Duration::from_millis(50);
pub(crate) const SHUT_DOWN: &str = "rustdask was shut down while the call was running";

/// The one that worker processes belong to. All of it is called on the thread that serves them, and never waits.
pub trait Owner: 'static {
    /// A worker is being started: it is one of the [`Owner::connections`] from here on.
    fn starting(&self, connection: &Arc<Connection>);

    fn connections(&self) -> Vec<Arc<Connection>>;

    /// The number of its process is known. The worker may be ready before that.
    fn started(&self, _connection: &Arc<Connection>) {}

    /// The worker takes tasks.
    fn ready(&self, connection: &Arc<Connection>);

    /// What a worker says of its tasks, in order.
    fn news(&self, connection: &Arc<Connection>, news: Vec<TaskNews>);

    /// A task of the worker's submits tasks. Body and buffers are what the word names. After an error, the worker is ended.
    fn nested(
        &self,
        connection: &Arc<Connection>,
        word: FromTask,
        body: Reported,
        buffers: Vec<Lease>,
    ) -> io::Result<()>;

    fn output(&self, connection: &Arc<Connection>, output: Output);

    /// The worker has ended. `died`: without having been told to.
    fn lost(&self, connection: &Arc<Connection>, obituary: Obituary, died: bool);

    /// A worker that was asked for is not there, and will not be.
    fn not_started(&self, worker: WorkerId, why: String);

    /// The process that starts workers has been started, or has ended.
    fn template(&self, _pid: Option<u32>) {}

    /// Some time has passed.
    fn tick(&self) {}

    /// The workers are about to end, all that come back. None is started any more.
    fn stop(&self) -> Vec<Arc<Connection>>;
}

/// What a worker says of a task.
pub enum TaskNews {
    Finished(TaskId, Attempt, Delivery),
    Returned(TaskId, Attempt, u32),
    Parked(TaskId, Attempt),
    Resumed(TaskId, Attempt),
}

pub enum Command {
    Start(WorkerId),
    Stop(oneshot::Sender<()>),
}

/// Starts workers and looks after them.
pub struct Workers<O: Owner> {
    owner: Rc<O>,
    memory: Arc<SharedMemory>,
    launch: Launch,
    /// How many there are to be.
    count: u32,
    template: Option<AsyncTemplate>,
    /// Who waits to hear how a worker ended.
    awaited: HashMap<WorkerId, oneshot::Sender<(i32, u64)>>,
}

struct AsyncTemplate {
    template: Template,
    readable: AsyncFd<OwnedFd>,
}

impl<O: Owner> Workers<O> {
    pub fn new(owner: Rc<O>, memory: Arc<SharedMemory>, launch: Launch, count: u32) -> Self {
        Self { owner, memory, launch, count, template: None, awaited: HashMap::new() }
    }

    /// Do what is asked for, until it is to stop. To be run in a `LocalSet`.
    pub async fn serve(mut self, mut orders: mpsc::UnboundedReceiver<Command>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let quiet = self.template.is_none();
            tokio::select! {
                order = orders.recv() => match order {
                    Some(Command::Start(worker)) => {
                        let _working = fork::working();
                        self.start_worker(worker);
                    }
                    Some(Command::Stop(done)) => {
                        self.stop(&mut orders);
                        // The one who asked may have given up waiting.
                        let _ = done.send(());
                        return;
                    }
                    None => return self.stop(&mut orders),
                },
                news = template_news(self.template.as_ref()) => {
                    let _working = fork::working();
                    self.hear(news);
                }
                _ = tick.tick(), if !quiet => {
                    let _working = fork::working();
                    self.look_around();
                }
            }
        }
    }

    fn start_worker(&mut self, worker: WorkerId) {
        if let Err(error) = self.try_start_worker(worker) {
            self.lost_at_start(worker, error.to_string());
        }
    }

    fn lost_at_start(&mut self, worker: WorkerId, why: String) {
        self.awaited.remove(&worker);
        self.owner.not_started(worker, why);
    }

    fn try_start_worker(&mut self, worker: WorkerId) -> io::Result<()> {
        let (near, far, socket) = make_ends()?;
        let rank = self.lowest_free_rank();
        let connection = Connection::new(worker, rank, socket);
        self.template()?.request(worker, rank, &far)?;
        drop(far);
        let (ended, obituary) = oneshot::channel();
        self.awaited.insert(worker, ended);
        self.owner.starting(&connection);
        connection.outbox.send(&ToWorker::Welcome { worker, workers: self.count }, &[], None);
        let (owner, memory) = (self.owner.clone(), self.memory.clone());
        let serving = Serving { connection, owner, memory, ends: near };
        tokio::task::spawn_local(serving.run(obituary));
        Ok(())
    }

    fn lowest_free_rank(&self) -> u32 {
        let taken: HashSet<u32> = self.owner.connections().iter().map(|c| c.rank).collect();
        (0..).find(|rank| !taken.contains(rank)).expect("there are more numbers than workers")
    }

    fn template(&mut self) -> io::Result<&Template> {
        if self.template.is_none() {
            let template = Template::start(&self.launch)?;
            let readable = watch(template.socket.try_clone()?)?;
            self.owner.template(Some(template.pid()));
            self.template = Some(AsyncTemplate { template, readable });
        }
        Ok(&self.template.as_ref().expect("just made").template)
    }

    fn hear(&mut self, news: io::Result<News>) {
        match news {
            Ok(News::Started { worker, pid }) => self.started(worker, pid),
            Ok(News::Exited { worker, status, peak_memory_bytes }) => {
                if let Some(awaited) = self.awaited.remove(&worker) {
                    // The connection's end may have been handled without it.
                    let _ = awaited.send((status, peak_memory_bytes));
                }
            }
            Ok(News::Failed { worker, why }) => self.lost_at_start(worker, why),
            Err(error) => self.lose_template(&error),
        }
    }

    fn started(&self, worker: WorkerId, pid: i32) {
        let started = self.owner.connections().into_iter().find(|connection| connection.worker == worker);
        match started {
            Some(connection) if connection.started(pid) => self.owner.started(&connection),
            Some(_) => group::end_group(pid),
            None => {}
        }
    }

    /// Its workers end with it; what they were doing is done again by workers of a new one.
    fn lose_template(&mut self, error: &io::Error) {
        self.stop_template(Duration::ZERO);
        self.awaited.clear();
        for connection in self.owner.connections() {
            if !connection.is_ready() {
                self.lost_at_start(connection.worker, format!("the process that starts workers failed: {error}"));
            }
        }
    }

    fn look_around(&self) {
        for connection in self.owner.connections() {
            enforce_memory_limit(&connection);
            connection.hold_forgotten(&mut connection.told());
            connection.outbox.flush();
        }
        self.owner.tick();
    }

    fn stop(&mut self, orders: &mut mpsc::UnboundedReceiver<Command>) {
        let ended = self.owner.stop();
        // Started by nobody: those that were asked for and not begun.
        while let Ok(order) = orders.try_recv() {
            if let Command::Start(worker) = order {
                self.lost_at_start(worker, SHUT_DOWN.into());
            }
        }
        ended.iter().for_each(|connection| connection.kill());
        self.stop_template(Duration::from_secs(1));
    }

    fn stop_template(&mut self, patience: Duration) {
        if let Some(AsyncTemplate { template, readable }) = self.template.take() {
            drop(readable);
            template.stop(patience);
        }
        self.owner.template(None);
    }
}

async fn template_news(template: Option<&AsyncTemplate>) -> io::Result<News> {
    let Some(template) = template else { return std::future::pending().await };
    loop {
        let mut ready = template.readable.readable().await?;
        match template.template.news()? {
            Some(news) => return Ok(news),
            None => ready.clear_ready(),
        }
    }
}

fn make_ends() -> io::Result<(Ends, WorkerEnds, Arc<OwnedFd>)> {
    let (near, socket) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let (out_read, stdout) = pipe_with(PipeFlags::CLOEXEC)?;
    let (err_read, stderr) = pipe_with(PipeFlags::CLOEXEC)?;
    for fd in [&out_read, &err_read] {
        rustix::fs::fcntl_setfl(fd, rustix::fs::OFlags::NONBLOCK)?;
    }
    let writer = Arc::new(near.try_clone()?);
    let ends = Ends { socket: watch(near)?, stdout: watch(out_read)?, stderr: watch(err_read)? };
    Ok((ends, WorkerEnds { socket, stdout, stderr }, writer))
}

fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd always answers with the same descriptor, and has it open until it is dropped.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

fn enforce_memory_limit(connection: &Connection) {
    let limit = connection.memory_limit.load(Ordering::Relaxed);
    let Some(pid) = connection.pid().filter(|_| limit > 0) else { return };
    let Some(used) = private_memory(pid).filter(|used| *used > limit) else { return };
    connection.condemn(format!("exceeded memory_limit of {} MiB (reached {} MiB)", limit >> 20, used >> 20));
}

/// Resident memory of a process without what it shares with others, in bytes.
pub fn private_memory(pid: i32) -> Option<u64> {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let mut pages = statm.split_whitespace().skip(1).map_while(|field| field.parse::<u64>().ok());
    let (resident, shared) = (pages.next()?, pages.next()?);
    Some(resident.saturating_sub(shared) * rustix::param::page_size() as u64)
}
