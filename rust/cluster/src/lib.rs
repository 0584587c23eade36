//! The processes of a cluster, and how they reach each other. No Python.

pub mod client;
pub mod data;
pub mod node;
pub mod scheduler;
pub mod transport;
