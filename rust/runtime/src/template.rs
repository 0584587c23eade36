//! The template process: a Python that has imported what workers need, and forks them.
//!
//! The user's own process is never forked. The template is single-threaded, so its forks are sound; it
//! reaps its children and says how they ended. Both sides speak pickled plain values, one to a packet.
//! When this process ends, however it ends, the template's socket closes, and it and the workers end too.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustdask_core::WorkerId;
use rustix::net::{
    recv, sendmsg, socketpair, AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketFlags, SocketType,
};
use serde::{Deserialize, Serialize};

use crate::plain;

/// How to start Python, and what to tell it first.
#[derive(Clone, Debug)]
pub struct Launch {
    pub program: String,
    pub arguments: Vec<String>,
    /// A pickled dict, read by `rustdask._template`.
    pub greeting: Vec<u8>,
}

/// The far ends of a new worker's connection.
pub struct WorkerEnds {
    pub socket: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

#[derive(Serialize)]
struct Request {
    worker: u32,
    rank: u32,
}

/// What the template says of a worker.
#[derive(Debug, Deserialize)]
struct Reply {
    worker: u32,
    pid: i32,
    /// As `waitpid` has it; None when the worker has only just started.
    status: Option<i32>,
    peak_memory_kib: u64,
    /// Why it could not be started.
    error: Option<String>,
}

#[derive(Debug)]
pub enum News {
    Started { worker: WorkerId, pid: i32 },
    Exited { worker: WorkerId, status: i32, peak_memory_bytes: u64 },
    Failed { worker: WorkerId, why: String },
}

pub struct Template {
    child: Child,
    pub socket: OwnedFd,
}

impl Template {
    pub fn start(launch: &Launch) -> io::Result<Self> {
        let (near, far) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let child = Command::new(&launch.program)
            .args(&launch.arguments)
            .stdin(Stdio::from(far))
            // Ctrl-C in a terminal goes to this process alone, which then ends its workers itself.
            .process_group(0)
            .spawn()
            .map_err(|error| io::Error::new(error.kind(), format!("cannot start {}: {error}", launch.program)))?;
        let template = Self { child, socket: near };
        rustix::net::send(&template.socket, &launch.greeting, SendFlags::NOSIGNAL)?;
        Ok(template)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn request(&self, worker: WorkerId, rank: u32, ends: &WorkerEnds) -> io::Result<()> {
        let packet = plain::dumps(&Request { worker: worker.0, rank });
        let fds = [ends.socket.as_fd(), ends.stdout.as_fd(), ends.stderr.as_fd()];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)), "there is space for three descriptors");
        sendmsg(&self.socket, &[io::IoSlice::new(&packet)], &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// The next news, if there is any; an error when the template is gone.
    pub fn news(&self) -> io::Result<Option<News>> {
        let mut packet = [0u8; 8192];
        let received = match recv(&self.socket, &mut packet, RecvFlags::DONTWAIT) {
            Ok((bytes, _)) => bytes,
            Err(rustix::io::Errno::AGAIN) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if received == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the template process ended"));
        }
        let reply: Reply = plain::loads(&packet[..received])
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
        Ok(Some(reply.into_news()))
    }

    /// Close the connection and wait for the process to end; end it after `patience`.
    pub fn stop(self, patience: Duration) {
        let Self { mut child, socket } = self;
        drop(socket);
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        // Both fail only when it has ended by itself.
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Reply {
    fn into_news(self) -> News {
        let worker = WorkerId(self.worker);
        match (self.error, self.status) {
            (Some(why), _) => News::Failed { worker, why },
            (None, Some(status)) => News::Exited { worker, status, peak_memory_bytes: self.peak_memory_kib << 10 },
            (None, None) => News::Started { worker, pid: self.pid },
        }
    }
}

/// Have the kernel end this process when the thread that started it ends, and look whether it has already.
pub fn die_with_parent() -> io::Result<()> {
    let parent = rustix::process::getppid();
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    if rustix::process::getppid() != parent {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the parent process ended during start"));
    }
    Ok(())
}
