//! One worker's connection: what it says and prints, until it closes.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;

use rustdask_core::ending::Obituary;
use rustdask_core::message::{Access, Body, Extent, FromWorker, Report, Timings};
use rustdask_core::nested::FromTask;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use crate::connection::Connection;
use crate::delivery::{Delivery, Reported};
use crate::fork;
use crate::lease::{Lease, Received, SharedMemory};
use crate::lines::{Lines, Output};
use crate::shm::{Ledger, Segment};
use crate::wire::{Inbox, Read};
use crate::workers::{Owner, TaskNews};

/// How long to wait for the template to say how a worker ended.
const OBITUARY_PATIENCE: Duration = Duration::from_secs(2);

/// The near ends of a worker's pipes and socket.
pub(crate) struct Ends {
    pub(crate) socket: AsyncFd<OwnedFd>,
    pub(crate) stdout: AsyncFd<OwnedFd>,
    pub(crate) stderr: AsyncFd<OwnedFd>,
}

/// One worker's connection, served until it closes.
pub(crate) struct Serving<O: Owner> {
    pub(crate) connection: Arc<Connection>,
    pub(crate) owner: Rc<O>,
    pub(crate) memory: Arc<SharedMemory>,
    pub(crate) ends: Ends,
}

impl<O: Owner> Serving<O> {
    pub(crate) async fn run(self, obituary: oneshot::Receiver<(i32, u64)>) {
        let mut lines = Lines::default();
        if let Err(error) = self.listen(&mut lines).await {
            self.connection.condemn(format!("its connection failed: {error}"));
        }
        let condemned = self.connection.reason.lock().expect("no holder panics").is_some();
        let died = condemned || self.connection.pid().is_some();
        self.connection.kill();
        let ended = tokio::time::timeout(OBITUARY_PATIENCE, obituary).await;
        self.read_ledger(&mut lines);
        self.drain_output(&mut lines);
        lines.flush(&|output| self.output(output));
        self.bury(ended.ok().and_then(Result::ok), died);
    }

    /// Until the worker closes its socket.
    async fn listen(&self, lines: &mut Lines) -> io::Result<()> {
        let mut inbox = Inbox::default();
        // A closed pipe stays readable for ever: it is not asked again.
        let mut open = [true, true];
        loop {
            tokio::select! {
                biased;
                ready = self.ends.stdout.readable(), if open[0] => match self.read_output(&self.ends.stdout, false, lines) {
                    Read::Some => {}
                    Read::Nothing => ready?.clear_ready(),
                    Read::Closed => open[0] = false,
                },
                ready = self.ends.stderr.readable(), if open[1] => match self.read_output(&self.ends.stderr, true, lines) {
                    Read::Some => {}
                    Read::Nothing => ready?.clear_ready(),
                    Read::Closed => open[1] = false,
                },
                ready = self.ends.socket.readable() => match inbox.read(self.ends.socket.as_fd(), false)? {
                    Read::Some => self.handle_frames(&mut inbox, lines)?,
                    Read::Nothing => ready?.clear_ready(),
                    Read::Closed => return Ok(()),
                },
                () = self.write_backlog() => {}
            }
        }
    }

    async fn write_backlog(&self) {
        if !self.connection.outbox.has_backlog() {
            self.connection.backlog.notified().await;
        }
        let Ok(mut ready) = self.ends.socket.writable().await else { return };
        // A broken connection shows where it is read.
        if !self.connection.outbox.resume().unwrap_or(true) {
            ready.clear_ready();
        }
    }

    /// Handle what has arrived; what it says of tasks is told to the owner at once.
    fn handle_frames(&self, inbox: &mut Inbox, lines: &mut Lines) -> io::Result<()> {
        let _working = fork::working();
        let mut news = Vec::new();
        let handled = self.collect_news(inbox, lines, &mut news);
        if !news.is_empty() {
            self.owner.news(&self.connection, news);
        }
        handled
    }

    /// Tell what stood in the ledger when the worker ended. What it had sent already is told twice, and dropped as
    /// any report is that is not waited for.
    fn read_ledger(&self, lines: &mut Lines) {
        let Some(ledger) = self.connection.ledger.get() else { return };
        let mut inbox = Inbox::default();
        inbox.push(&Ledger::read(ledger));
        // Whatever it wrote there, it has ended.
        let _ = self.handle_frames(&mut inbox, lines);
    }

    fn collect_news(&self, inbox: &mut Inbox, lines: &mut Lines, news: &mut Vec<TaskNews>) -> io::Result<()> {
        let mut drained = false;
        while let Some(frame) = inbox.next_frame::<FromWorker>()? {
            match frame.message {
                FromWorker::Ready => self.ready(),
                FromWorker::Ledger { bytes } => {
                    let mapping = Segment::from_fd(inbox.take_fd()?, bytes).map(Access::ReadOnly)?;
                    // A second one would not be read.
                    let _ = self.connection.ledger.set(mapping);
                }
                FromWorker::Finished { task, attempt, report, body, buffers, timings, kept } => {
                    // What the tasks printed is read before their end is told.
                    if !std::mem::replace(&mut drained, true) {
                        self.drain_output(lines);
                        lines.flush(&|output| self.output(output));
                    }
                    let delivery = self.delivery(report, body, frame.body, &buffers, timings)?;
                    if kept {
                        // Already there: not to be sent.
                        self.connection.told().needs_result(task);
                    }
                    news.push(TaskNews::Finished(task, attempt, delivery));
                }
                FromWorker::Returned { task, attempt, kept } => news.push(TaskNews::Returned(task, attempt, kept)),
                FromWorker::Parked { task, attempt } => news.push(TaskNews::Parked(task, attempt)),
                FromWorker::Resumed { task, attempt } => news.push(TaskNews::Resumed(task, attempt)),
                FromWorker::Segment { segment, bytes } => {
                    let received = Segment::from_fd(inbox.take_fd()?, bytes);
                    let received = Arc::new(Received::new(received, &self.memory.descriptors)?);
                    self.connection.results.lock().expect("no holder panics").insert(segment, received);
                }
                FromWorker::Unmap { segment } => {
                    self.connection.results.lock().expect("no holder panics").remove(&segment);
                }
                FromWorker::Kept { segment } => self.memory.store.keep(segment),
                FromWorker::Nested(word) => {
                    // The owner hears of things in the order in which they happened.
                    if !news.is_empty() {
                        self.owner.news(&self.connection, std::mem::take(news));
                    }
                    self.hear_task(word, frame.body)?;
                }
                FromWorker::Log => self.output(Output { error_stream: true, text: frame.body, log: true }),
            }
        }
        Ok(())
    }

    /// What a task of the worker says.
    fn hear_task(&self, mut word: FromTask, inline: Vec<u8>) -> io::Result<()> {
        let (body, buffers) = match word.content_mut() {
            Some((body, buffers)) => (self.reported(*body, inline)?, self.leases(buffers)?),
            None => (Reported::Inline(inline), Vec::new()),
        };
        self.owner.nested(&self.connection, word, body, buffers)
    }

    fn delivery(
        &self,
        report: Report,
        body: Body,
        inline: Vec<u8>,
        buffers: &[Extent],
        timings: Timings,
    ) -> io::Result<Delivery> {
        let (body, buffers) = (self.reported(body, inline)?, self.leases(buffers)?);
        let bytes = body.bytes() + buffers.iter().map(|lease| lease.extent().bytes).sum::<u64>();
        Ok(Delivery::Report { report, body, buffers, timings, bytes })
    }

    fn reported(&self, body: Body, inline: Vec<u8>) -> io::Result<Reported> {
        Ok(match body {
            Body::Inline => Reported::Inline(inline),
            Body::InSegment(extent) => Reported::Leased(self.connection.lease(extent, &self.memory)?),
        })
    }

    fn leases(&self, buffers: &[Extent]) -> io::Result<Vec<Lease>> {
        buffers.iter().map(|extent| self.connection.lease(*extent, &self.memory)).collect()
    }

    fn ready(&self) {
        self.connection.ready.store(true, Ordering::Release);
        self.owner.ready(&self.connection);
    }

    fn output(&self, output: Output) {
        self.owner.output(&self.connection, output);
    }

    fn drain_output(&self, lines: &mut Lines) {
        while self.read_output(&self.ends.stdout, false, lines) == Read::Some {}
        while self.read_output(&self.ends.stderr, true, lines) == Read::Some {}
    }

    fn read_output(&self, pipe: &AsyncFd<OwnedFd>, error_stream: bool, lines: &mut Lines) -> Read {
        let mut text = [0u8; 16 << 10];
        match rustix::io::retry_on_intr(|| rustix::io::read(pipe.get_ref(), &mut text)) {
            Ok(bytes @ 1..) => {
                if error_stream {
                    self.connection.remember_stderr(&text[..bytes]);
                }
                lines.push(error_stream, &text[..bytes], &|output| self.output(output));
                Read::Some
            }
            Err(rustix::io::Errno::AGAIN) => Read::Nothing,
            Ok(0) | Err(_) => Read::Closed,
        }
    }

    fn bury(&self, ended: Option<(i32, u64)>, died: bool) {
        let _working = fork::working();
        let connection = &self.connection;
        let status = ended.map(|(status, _)| status);
        let tail: Vec<u8> = connection.stderr_tail.lock().expect("no holder panics").iter().copied().collect();
        let obituary = Obituary {
            exit_code: status.filter(|status| libc::WIFEXITED(*status)).map(|status| libc::WEXITSTATUS(status)),
            signal: status.filter(|status| libc::WIFSIGNALED(*status)).map(|status| libc::WTERMSIG(status)),
            peak_memory_bytes: ended.map(|(_, bytes)| bytes),
            stderr: String::from_utf8_lossy(&tail).into_owned(),
            reason: connection.reason.lock().expect("no holder panics").clone(),
        };
        self.owner.lost(connection, obituary, died);
    }
}
