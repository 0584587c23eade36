//! What is wrong with peers, on stderr: a line a second at most, however many of them there are.

use std::fmt::Display;
use std::sync::Mutex;
use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(crate) struct Complaints(Mutex<State>);

#[derive(Default)]
struct State {
    last: Option<Instant>,
    unsaid: u64,
}

impl Complaints {
    pub(crate) fn say(&self, what: &dyn Display) {
        let mut state = self.0.lock().expect("no holder panics");
        if state.last.is_some_and(|last| last.elapsed() < PAUSE) {
            state.unsaid += 1;
            return;
        }
        state.last = Some(Instant::now());
        match std::mem::take(&mut state.unsaid) {
            0 => eprintln!("rustdask scheduler: {what}"),
            others => eprintln!("rustdask scheduler: {what} (and {others} others before)"),
        }
    }
}
