//! Where a process listens, as people write it.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// `tcp://host:port`, `tls://host:port`, or `host:port`, which is TCP. An IPv6 address stands in brackets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    pub tls: bool,
    /// A name, or an IP address without brackets.
    pub host: String,
    pub port: u16,
}

impl Address {
    pub fn new(tls: bool, socket: SocketAddr) -> Self {
        Self { tls, host: socket.ip().to_string(), port: socket.port() }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse(text.trim()).map_err(|why| format!("`{text}` is no address like tcp://host:8786: {why}"))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "tls" } else { "tcp" };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

fn parse(text: &str) -> Result<Address, String> {
    let (scheme, rest) = text.split_once("://").unwrap_or(("tcp", text));
    let tls = match scheme {
        "tcp" => false,
        "tls" => true,
        other => return Err(format!("the scheme is tcp or tls, not `{other}`")),
    };
    let (host, port) = match rest.strip_prefix('[') {
        Some(rest) => bracketed(rest)?,
        None => named(rest)?,
    };
    let port = port.ok_or("the port is missing")?;
    match port.parse() {
        Ok(port @ 1..) => Ok(Address { tls, host: host.into(), port }),
        _ => Err(format!("a port is a number from 1 to 65535, not `{port}`")),
    }
}

fn bracketed(rest: &str) -> Result<(&str, Option<&str>), String> {
    let (host, port) = rest.split_once(']').ok_or("a bracket is not closed")?;
    let (ip, _zone) = host.split_once('%').unwrap_or((host, ""));
    ip.parse::<Ipv6Addr>().map_err(|_| format!("`{host}` is no IPv6 address"))?;
    match port.strip_prefix(':') {
        None if !port.is_empty() => Err(format!("`{port}` stands where the port should")),
        port => Ok((host, port)),
    }
}

fn named(rest: &str) -> Result<(&str, Option<&str>), String> {
    let (host, port) = rest.split_once(':').map_or((rest, None), |(host, port)| (host, Some(port)));
    if rest.parse::<Ipv6Addr>().is_ok() || port.is_some_and(|port| port.contains(':')) {
        return Err("an IPv6 address stands in brackets, as in tcp://[::1]:8786".into());
    }
    if host.is_empty() {
        return Err("the host is missing".into());
    }
    if let Some(odd) = host.chars().find(|c| !(c.is_alphanumeric() || "-._".contains(*c))) {
        return Err(format!("`{odd}` cannot be in the name of a host"));
    }
    Ok((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        for (text, written) in [
            ("tcp://head:8786", "tcp://head:8786"),
            ("tls://node-1.example.org:1", "tls://node-1.example.org:1"),
            (" 10.0.0.1:65535\n", "tcp://10.0.0.1:65535"),
            ("tls://[::1]:8786", "tls://[::1]:8786"),
            ("[fe80::1%eth0]:8786", "tcp://[fe80::1%eth0]:8786"),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), written);
            assert_eq!(written.parse(), Ok(address));
        }
    }

    #[test]
    fn errors_say_what_is_wrong() {
        for (text, why) in [
            ("http://head:8786", "not `http`"),
            ("head", "the port is missing"),
            ("tcp://:8786", "the host is missing"),
            ("", "the host is missing"),
            ("head:0", "not `0`"),
            ("head:65536", "not `65536`"),
            ("head:http", "not `http`"),
            ("tcp://head:8786/status", "not `8786/status`"),
            ("me@head:8786", "`@` cannot be"),
            ("::1:8786", "stands in brackets"),
            ("fe80::1", "stands in brackets"),
            ("[head]:8786", "`head` is no IPv6 address"),
            ("[::1:8786", "not closed"),
            ("[::1]", "the port is missing"),
            ("[::1]8786", "`8786` stands where the port should"),
        ] {
            let error = text.parse::<Address>().unwrap_err();
            assert!(error.contains(why) && error.contains(text), "{error}");
        }
    }
}
