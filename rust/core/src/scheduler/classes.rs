//! Tasks that ask for the same resources and the same workers are of one class.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeBounds;

use crate::id::WorkerId;
use crate::resources::Resources;
use crate::task::TaskSpec;

/// Classes that name workers come after all that do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ClassIx {
    pinned: bool,
    number: u32,
}

impl ClassIx {
    const FIRST_PINNED: ClassIx = ClassIx { pinned: true, number: 0 };

    pub(super) fn any_worker() -> impl RangeBounds<ClassIx> {
        ..ClassIx::FIRST_PINNED
    }

    pub(super) fn certain_workers() -> impl RangeBounds<ClassIx> {
        ClassIx::FIRST_PINNED..
    }
}

type Workers = Option<Box<[WorkerId]>>;

#[derive(Debug, Default)]
pub(super) struct Class {
    pub(super) needs: Resources,
    /// Sorted.
    pub(super) workers: Workers,
    tasks: u32,
    /// The last outlook in which a worker was there for it, or could come.
    pub(super) hopeful_at: u64,
}

#[derive(Debug, Default)]
pub(super) struct Classes {
    all: BTreeMap<ClassIx, Class>,
    known: BTreeMap<(Resources, Workers), ClassIx>,
    /// The classes that name a worker.
    naming: BTreeMap<WorkerId, BTreeSet<ClassIx>>,
    newest: u32,
}

impl Classes {
    /// The class of one more task; `None` for one that any worker may run.
    pub(super) fn enter(&mut self, spec: &TaskSpec) -> Option<ClassIx> {
        if spec.resources.is_empty() && spec.workers.is_none() {
            return None;
        }
        let mut workers = spec.workers.clone();
        if let Some(workers) = &mut workers {
            workers.sort_unstable();
        }
        let key = (spec.resources.clone(), workers);
        let at = match self.known.get(&key) {
            Some(&at) => at,
            None => self.add(key),
        };
        self.get_mut(at)?.tasks += 1;
        Some(at)
    }

    fn add(&mut self, (needs, workers): (Resources, Workers)) -> ClassIx {
        let mut at = ClassIx { pinned: workers.is_some(), number: self.newest };
        while self.all.contains_key(&at) {
            at.number = at.number.wrapping_add(1);
        }
        self.newest = at.number.wrapping_add(1);
        for &worker in workers.iter().flatten() {
            self.naming.entry(worker).or_default().insert(at);
        }
        self.known.insert((needs.clone(), workers.clone()), at);
        self.all.insert(at, Class { needs, workers, tasks: 0, hopeful_at: 0 });
        at
    }

    pub(super) fn leave(&mut self, at: ClassIx) {
        let Some(class) = self.all.get_mut(&at) else { return };
        class.tasks -= 1;
        if class.tasks == 0 {
            self.remove(at);
        }
    }

    fn remove(&mut self, at: ClassIx) {
        let Some(class) = self.all.remove(&at) else { return };
        for worker in class.workers.iter().flatten() {
            if let Some(naming) = self.naming.get_mut(worker) {
                naming.remove(&at);
                if naming.is_empty() {
                    self.naming.remove(worker);
                }
            }
        }
        self.known.remove(&(class.needs, class.workers));
    }

    pub(super) fn get(&self, at: ClassIx) -> Option<&Class> {
        self.all.get(&at)
    }

    pub(super) fn get_mut(&mut self, at: ClassIx) -> Option<&mut Class> {
        self.all.get_mut(&at)
    }

    pub(super) fn naming(&self, worker: WorkerId) -> impl Iterator<Item = ClassIx> + '_ {
        self.naming.get(&worker).into_iter().flatten().copied()
    }

    pub(super) fn needs(&self, at: ClassIx) -> Option<&Resources> {
        self.get(at).map(|class| &class.needs)
    }

    /// A worker for it was there in this outlook, or could come.
    pub(super) fn is_hopeful(&self, at: ClassIx, outlook: u64) -> bool {
        self.get(at).is_some_and(|class| class.hopeful_at == outlook)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty() && self.known.is_empty() && self.naming.is_empty()
    }
}
