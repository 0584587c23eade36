//! Names of things. Each is a number that means nothing outside its own kind.

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
        )]
        pub struct $name(pub $inner);
    };
}

id!(
    /// One unit of work: what is run, counted, retried and resolved. Grows in submission order.
    TaskId(u64)
);
id!(
    /// One `Parallel` call: the tasks that share a concurrency cap and end together.
    CallId(u64)
);
id!(
    /// A place where one task runs at a time: a thread, a process, a helping caller.
    WorkerId(u32)
);
id!(
    /// What has resources that several workers share: the threads of one process, the workers of one machine.
    HostId(u64)
);
id!(
    /// How often a task has been handed out before. A report that carries another number is stale.
    Attempt(u32)
);
id!(
    /// Position of an event in the machine's input; each action names the event that caused it.
    EventSeq(u64)
);
id!(
    /// A piece of shared memory, numbered by the process that made it.
    SegmentId(u64)
);
id!(
    /// Bytes sent once to each worker and named by many tasks: a function, a common argument.
    BlobId(u64)
);
id!(
    /// A machine's part of a cluster: worker processes, and the results that they have made.
    NodeId(u32)
);

impl NodeId {
    /// A node numbers its workers itself, so many of them until it begins again. The machine numbers those that it asks
    /// for, without the highest bit.
    const WORKER_BITS: u32 = 12;
    const FOREIGN: u32 = 1 << 31;

    /// Its nth worker.
    pub fn worker(self, nth: u32) -> WorkerId {
        WorkerId(Self::FOREIGN | (self.0 << Self::WORKER_BITS) | (nth % (1 << Self::WORKER_BITS)))
    }

    /// The node that a worker belongs to.
    pub fn of(worker: WorkerId) -> Self {
        Self((worker.0 & !Self::FOREIGN) >> Self::WORKER_BITS)
    }
}
