//! A node: a machine's part of a cluster. It has worker processes, keeps what they make, and hands that out.
//!
//! [`Node`](core::Node) is what it knows, changed by plain methods that never wait; one task calls them all, as do the
//! workers' connections, on the same thread. Data is got and handed out by tasks of their own, which share the
//! [`Holdings`](crate::data::Holdings) and tell the node what they have done.
//!
//! Where the scheduler is lost, the node ends its worker processes, keeps its results, and says what it has to the
//! scheduler that it finds in its place.

mod core;
mod ends;
mod leave;
#[cfg(test)]
mod life_tests;
mod link;
mod load;
mod options;
mod places;
mod recipe;
mod relay;
mod runs;
mod serve;
#[cfg(test)]
mod tests;

pub use options::{NodeOptions, Notice};
pub use serve::{serve, serve_blocking};
