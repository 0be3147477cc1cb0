//! Routes: how to send to a peer now. The reverse of where a datagram came from (its *origin*) is a route too.

use std::{fmt, net::SocketAddr};

use crate::wire::relay::RelayIndex;

/// One of this node's UDP sockets: the local port is part of a route.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct SocketId(pub u8);

/// A stream that carries framed datagrams.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct LinkId(pub u32);

/// Where a datagram leaves, or where it came in.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Egress {
    /// Over UDP from a local socket to an endpoint (IPv4 as IPv4, never mapped into IPv6).
    Udp {
        /// From which of our sockets.
        socket: SocketId,
        /// To which underlay address.
        endpoint: SocketAddr,
    },
    /// Over a link.
    Link(LinkId),
}

/// How to send to a peer now: egress, and the relay prefix where a third node forwards.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Route {
    /// Where the datagram leaves.
    pub egress: Egress,
    /// The relay's index in front of it, if any.
    pub relay: Option<RelayIndex>,
}

impl Route {
    /// Straight to an endpoint, over the first socket.
    pub fn direct(endpoint: SocketAddr) -> Self {
        Self { egress: Egress::Udp { socket: SocketId(0), endpoint }, relay: None }
    }

    /// The underlay address of the next hop; `None` for links.
    pub fn endpoint(&self) -> Option<SocketAddr> {
        match self.egress {
            Egress::Udp { endpoint, .. } => Some(endpoint),
            Egress::Link(_) => None,
        }
    }

    /// Whether no third node forwards.
    pub fn is_direct(&self) -> bool {
        self.relay.is_none()
    }

    /// The same egress without relay prefix: the next hop itself.
    #[must_use]
    pub fn next_hop(self) -> Self {
        Self { relay: None, ..self }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.egress {
            Egress::Udp { endpoint, .. } => write!(f, "udp {endpoint}")?,
            Egress::Link(link) => write!(f, "link {}", link.0)?,
        }
        if self.relay.is_some() {
            f.write_str(" (relayed)")?;
        }
        Ok(())
    }
}
