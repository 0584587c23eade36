use std::net::SocketAddr;

use super::{Tls, Token};

/// What peers must have in common with us.
#[derive(Clone, Debug, Default)]
pub struct Security {
    pub token: Option<Token>,
    pub tls: Option<Tls>,
}

impl Security {
    /// Whether such an address may be listened on.
    pub(crate) fn permits(&self, address: SocketAddr) -> Result<(), String> {
        if self.token.is_some() || self.tls.is_some() || address.ip().to_canonical().is_loopback() {
            return Ok(());
        }
        Err(format!(
            "other machines can reach {address}, so a token (--token-file, RUSTDASK_TOKEN) or TLS (--tls-cert, --tls-key, \
             --tls-ca) is needed there; without them, listen on 127.0.0.1"
        ))
    }
}
