//! How tasks of a graph end, and what that means to those that depend on them.

use crate::action::{Action, Resolution};
use crate::event::Outcome;
use crate::id::WorkerId;

use super::call::Task;
use super::list::List;
use super::node::{NodeIx, State};
use super::{Out, Scheduler};

impl Scheduler {
    /// A worker has run the task, and does not hold it any more.
    pub(super) fn ended(&mut self, at: NodeIx, task: Task, by: WorkerId, how: (Outcome, u64), out: &mut Out<'_>) {
        let (outcome, size_bytes) = how;
        match outcome {
            Outcome::Ok => self.complete(at, by, size_bytes, out),
            Outcome::Err if self.graph[at].retries > 0 => {
                self.graph[at].retries -= 1;
                self.back(at, task, out);
            }
            Outcome::Err => self.fail(at, Resolution::Finished { worker: by, outcome }, out),
        }
    }

    fn complete(&mut self, at: NodeIx, by: WorkerId, size_bytes: u64, out: &mut Out<'_>) {
        let node = &mut self.graph[at];
        node.state = State::Done { holders: List::Empty, size_bytes, by };
        node.deaths = 0;
        node.spend_attempt();
        self.graph.active -= 1;
        self.add_holder(at, by);
        self.loosen(at);
        self.drop_lineage(at);
        for place in 0..self.graph[at].dependents.len() {
            let by = self.graph[at].dependents.as_slice()[place].node;
            if let State::Waiting { missing } = &mut self.graph[by].state {
                *missing -= 1;
                if *missing == 0 {
                    self.graph.woken.push(by);
                }
            }
        }
        self.announce(at, Resolution::Finished { worker: by, outcome: Outcome::Ok }, out);
    }

    /// The task fails by itself, and with it all that waits for it.
    pub(super) fn fail(&mut self, at: NodeIx, how: Resolution, out: &mut Out<'_>) {
        self.end(at, how, false, out);
    }

    /// The task fails since one that it depends on has failed.
    pub(super) fn fail_after(&mut self, at: NodeIx, failed: NodeIx, out: &mut Out<'_>) {
        if let State::Failed { cause, cancelled } = self.graph[failed].state {
            self.end(at, follow_up(cause, cancelled), false, out);
        }
    }

    /// Ends a task without a result, and all that waits for one of it. Tasks that run already may have got
    /// what they need, and run on unless this was cancelled.
    pub(super) fn end(&mut self, root: NodeIx, how: Resolution, force: bool, out: &mut Out<'_>) {
        let cancelled = how == Resolution::Cancelled;
        let cause = match how {
            Resolution::DependencyFailed { cause } => cause,
            _ => self.graph[root].id,
        };
        let mut open = vec![(root, how)];
        while let Some((at, how)) = open.pop() {
            if matches!(self.graph[at].state, State::Done { .. } | State::Failed { .. } | State::Gone) {
                continue;
            }
            if self.graph[at].is_active() {
                self.stop(at, force, out);
            }
            self.graph[at].state = State::Failed { cause, cancelled };
            self.drop_lineage(at);
            self.graph.loose.push(at);
            for link in self.graph[at].dependents.as_slice() {
                let dependent = &self.graph[link.node];
                let runs = matches!(dependent.state, State::Assigned { .. });
                if dependent.is_active() && (cancelled || !runs) {
                    open.push((link.node, follow_up(cause, cancelled)));
                }
            }
            self.announce(at, how, out);
        }
    }

    /// A task that has ended will not run again where no result is ever lost: what it depends on can go.
    fn drop_lineage(&mut self, at: NodeIx) {
        if self.config.durable {
            self.graph.unlink(at);
        }
    }

    /// Tells the submitter, if it wants to know.
    pub(super) fn announce(&mut self, at: NodeIx, resolution: Resolution, out: &mut Out<'_>) {
        let node = &mut self.graph[at];
        let (call, task) = (node.call, node.id);
        if !node.wanted {
            if is_cause(resolution) {
                out.push(Action::Resolve { call, task, resolution });
            }
            return;
        }
        if std::mem::replace(&mut node.resolved, true) {
            out.push(Action::Restored { call, task, resolution });
        } else {
            out.push(Action::Resolve { call, task, resolution });
        }
    }
}

/// The end of others will be explained by this one.
fn is_cause(how: Resolution) -> bool {
    !how.is_ok() && !matches!(how, Resolution::DependencyFailed { .. } | Resolution::Cancelled)
}

fn follow_up(cause: crate::TaskId, cancelled: bool) -> Resolution {
    if cancelled {
        Resolution::Cancelled
    } else {
        Resolution::DependencyFailed { cause }
    }
}
