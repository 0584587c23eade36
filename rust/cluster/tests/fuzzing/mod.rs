//! Checks that hold for any input, and inputs to begin with. The targets in `fuzz` share them.

pub(crate) mod handshake;
pub(crate) mod messages;
pub(crate) mod seeds;
