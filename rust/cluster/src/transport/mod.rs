//! How the processes of a cluster reach each other: who is let in, and frames and bytes both ways.
//!
//! A peer is authenticated before anything else of it is read: [`handshake`], within TLS where that is used. So whoever has
//! neither the token nor a certificate costs a few hundred bytes, for a few seconds. A token proves each side to the other, and no more:
//! what follows is neither hidden nor sealed. TLS does both. Without either, only loopback addresses are listened on.
//!
//! A [`Connection`] begins with a greeting ([`Connection::greet`], [`Connection::hello`]). As a control connection it is
//! [split](Connection::split) then, into a [`Reader`] and an [`Outbox`] that anybody may send by without waiting. As a data
//! connection it stays whole: frames by turns with raw bytes, which are read into and written from the caller's memory.
//! How a connection ends is always seen where it is read.

mod address;
mod certificates;
mod connect;
mod connection;
mod greeting;
pub mod handshake;
mod listener;
mod outbox;
mod private;
mod reader;
mod security;
mod stream;
mod tls;
mod token;

pub use address::Address;
pub use certificates::make_certificates;
pub use connect::{connect, ConnectError};
pub use connection::Connection;
pub use greeting::check_versions;
pub use listener::{Listener, Port, Refused};
pub use outbox::Outbox;
pub use reader::Reader;
pub use security::Security;
pub use tls::{Tls, TlsFiles};
pub use token::Token;
