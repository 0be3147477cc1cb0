//! Endpoints as people write them: `udp://host:port`, `tcp://host:port`, `ssh://user@host`.

use std::{fmt, net::Ipv6Addr, str::FromStr};

use serde::{Deserialize, Serialize};

/// The longest endpoint text accepted: a DNS name has at most 253 characters.
const MAX_TEXT: usize = 320;

/// Why an endpoint was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// No known scheme in front.
    #[error("`{0}` has none of the schemes udp://, tcp://, ssh://")]
    Scheme(String),
    /// Host or port is missing or malformed.
    #[error("`{0}` is not {1}")]
    Form(String, &'static str),
}

/// Where a node can be met, by scheme. The host is a DNS name or an address literal.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Endpoint {
    /// Sealed datagrams over UDP.
    Udp {
        /// DNS name or address literal (IPv6 without brackets).
        host: String,
        /// UDP port, not 0.
        port: u16,
    },
    /// A link over TCP.
    Tcp {
        /// DNS name or address literal (IPv6 without brackets).
        host: String,
        /// TCP port, not 0.
        port: u16,
    },
    /// A link over an ssh client's stdio.
    Ssh {
        /// Login name, where it differs from the user's configuration.
        user: Option<String>,
        /// Host as the user's ssh configuration knows it.
        host: String,
        /// Port, where it differs from the user's configuration.
        port: Option<u16>,
    },
}

/// `[A-Za-z0-9_][A-Za-z0-9._-]*`: what may reach an ssh command line.
fn is_plain_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

fn host_and_port(text: &str) -> Option<(&str, Option<&str>)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        host.parse::<Ipv6Addr>().ok()?;
        return match rest.strip_prefix(':') {
            Some(port) => Some((host, Some(port))),
            None => rest.is_empty().then_some((host, None)),
        };
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    is_plain_word(host).then_some((host, port))
}

fn port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port != 0)
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let shown = || text.chars().take(80).collect::<String>();
        let socket = |rest: &str| {
            let (host, port_text) = host_and_port(rest)?;
            Some((host.to_owned(), port(port_text?)?))
        };
        if text.len() > MAX_TEXT {
            return Err(EndpointError::Form(shown(), "short enough to be an endpoint"));
        }
        if let Some(rest) = text.strip_prefix("udp://") {
            let (host, port) = socket(rest)
                .ok_or_else(|| EndpointError::Form(shown(), "of the form udp://HOST:PORT"))?;
            Ok(Self::Udp { host, port })
        } else if let Some(rest) = text.strip_prefix("tcp://") {
            let (host, port) = socket(rest)
                .ok_or_else(|| EndpointError::Form(shown(), "of the form tcp://HOST:PORT"))?;
            Ok(Self::Tcp { host, port })
        } else if let Some(rest) = text.strip_prefix("ssh://") {
            let form = || EndpointError::Form(shown(), "of the form ssh://[USER@]HOST[:PORT]");
            let (user, rest) = match rest.split_once('@') {
                Some((user, rest)) => (Some(user), rest),
                None => (None, rest),
            };
            if user.is_some_and(|user| !is_plain_word(user)) {
                return Err(form());
            }
            let (host, port_text) = host_and_port(rest).ok_or_else(form)?;
            let port = match port_text {
                Some(text) => Some(port(text).ok_or_else(form)?),
                None => None,
            };
            Ok(Self::Ssh { user: user.map(str::to_owned), host: host.to_owned(), port })
        } else {
            Err(EndpointError::Scheme(shown()))
        }
    }
}

impl TryFrom<String> for Endpoint {
    type Error = EndpointError;
    fn try_from(text: String) -> Result<Self, EndpointError> {
        text.parse()
    }
}

impl From<Endpoint> for String {
    fn from(endpoint: Endpoint) -> Self {
        endpoint.to_string()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bracketed = |host: &str| {
            if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
        };
        match self {
            Self::Udp { host, port } => write!(f, "udp://{}:{port}", bracketed(host)),
            Self::Tcp { host, port } => write!(f, "tcp://{}:{port}", bracketed(host)),
            Self::Ssh { user, host, port } => {
                f.write_str("ssh://")?;
                if let Some(user) = user {
                    write!(f, "{user}@")?;
                }
                f.write_str(&bracketed(host))?;
                port.map_or(Ok(()), |port| write!(f, ":{port}"))
            }
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_print_as_they_were_written() {
        for text in [
            "udp://login.example.org:51820",
            "udp://192.0.2.1:1",
            "udp://[2001:db8::1]:51820",
            "tcp://h:443",
            "ssh://user@login",
            "ssh://login:2222",
            "ssh://u.x@[fe80::1]:22",
        ] {
            assert_eq!(text.parse::<Endpoint>().map(|e| e.to_string()).as_deref(), Ok(text));
        }
    }

    #[test]
    fn what_could_become_an_ssh_option_is_refused() {
        for text in [
            "ssh://-oProxyCommand=x",
            "ssh://-l@host",
            "ssh://user@-host",
            "ssh://us er@host",
            "ssh://h;x",
            "udp://host",
            "udp://host:0",
            "udp://host:65536",
            "udp://::1:5",
            "udp://[::1]5",
            "http://x:1",
            "host:1",
            "",
        ] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }
}
