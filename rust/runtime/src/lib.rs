//! The shells of rustdask: they turn the world into events for the scheduler machine and carry
//! out its actions. Threads, worker processes, sockets and shared memory are here; Python is not.

pub mod connection;
pub mod cpu;
pub mod cursor;
pub mod delivery;
pub mod driver;
pub mod endpoint;
pub mod fork;
pub mod group;
pub mod lease;
pub mod lines;
pub mod mailbox;
pub mod memory;
pub mod pace;
pub mod parcel;
pub mod plain;
pub mod pool;
pub mod processes;
mod serving;
pub mod shm;
pub mod store;
pub mod stored;
pub mod template;
pub mod threads;
pub mod trim;
pub mod upstream;
pub mod wire;
pub mod workers;
