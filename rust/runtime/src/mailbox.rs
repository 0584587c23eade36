//! Where the driver leaves word for a call: what to send, what to run, what has ended.
//!
//! The thread that made the call reads its mailbox while it waits. Where that thread is not
//! waiting (a generator is being consumed elsewhere), the mailbox rings a bell instead, and whoever
//! listens to the bell reads it.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

type Bell = Box<dyn Fn() + Send + Sync>;

pub struct Mailbox<N> {
    notices: Mutex<VecDeque<N>>,
    arrived: Condvar,
    bell: Option<Bell>,
}

impl<N> Mailbox<N> {
    /// `bell` is called, on any thread, after each notice that finds the mailbox empty.
    pub fn new(bell: Option<Bell>) -> Self {
        Self { notices: Mutex::new(VecDeque::new()), arrived: Condvar::new(), bell }
    }

    pub fn post(&self, notice: N) {
        let was_empty = {
            let mut notices = self.notices.lock().expect("no holder panics");
            notices.push_back(notice);
            notices.len() == 1
        };
        match &self.bell {
            Some(bell) if was_empty => bell(),
            Some(_) => {}
            None => self.arrived.notify_all(),
        }
    }

    /// Leave a notice that the one who leaves it will read, too: nobody is woken.
    pub fn put(&self, notice: N) {
        self.notices.lock().expect("no holder panics").push_back(notice);
    }

    /// All notices: when a call is over, nobody will read them, and they refer to the call.
    pub fn empty(&self) -> VecDeque<N> {
        std::mem::take(&mut self.notices.lock().expect("no holder panics"))
    }

    /// The first notice for which `wanted` holds.
    pub fn take_if(&self, wanted: impl Fn(&N) -> bool) -> Option<N> {
        let mut notices = self.notices.lock().expect("no holder panics");
        let found = notices.iter().position(wanted)?;
        notices.remove(found)
    }

    pub fn take(&self) -> Option<N> {
        self.notices.lock().expect("no holder panics").pop_front()
    }

    /// Wait until there is a notice, `done` holds, or `limit` has passed. `done` is looked at again
    /// after each [`Mailbox::wake`].
    pub fn wait(&self, limit: Duration, done: impl Fn() -> bool) {
        let notices = self.notices.lock().expect("no holder panics");
        if notices.is_empty() && !done() {
            let _ = self.arrived.wait_timeout(notices, limit).expect("no holder panics");
        }
    }

    /// Let a waiting reader look around, though there is no notice.
    pub fn wake(&self) {
        drop(self.notices.lock().expect("no holder panics"));
        self.arrived.notify_all();
    }
}
