//! NATs and firewalls in the words of RFC 4787: how they map, what they filter, when they forget.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// What a mapping of an inside endpoint depends on. RFC 4787 §4.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mapping {
    /// One outside port per inside endpoint, whoever it writes to.
    EndpointIndependent,
    /// One for each remote address.
    AddressDependent,
    /// One for each remote address and port ("symmetric").
    AddressAndPortDependent,
}

/// Whose datagrams are let in. RFC 4787 §5.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filtering {
    /// Anyone's, once there is a mapping.
    EndpointIndependent,
    /// Those from addresses written to.
    AddressDependent,
    /// Those from addresses and ports written to.
    AddressAndPortDependent,
}

/// What stands between a site and the site around it.
#[derive(Debug, Clone)]
pub struct Gateway {
    /// Outside addresses, when it translates; a family without one here is routed untranslated (IPv6 through a firewall).
    pub outside: Vec<IpAddr>,
    /// How it maps.
    pub mapping: Mapping,
    /// What it lets in.
    pub filtering: Filtering,
    /// After how long without an outgoing datagram it forgets.
    pub expiry: Duration,
    /// Whether a host inside reaches another one inside by its outside address.
    pub hairpin: bool,
    /// Inbound UDP ports open to all: (outside port, inside endpoint); for a firewall the inside endpoint itself.
    pub open: Vec<(u16, SocketAddr)>,
    /// Whether UDP passes at all.
    pub udp: bool,
    mappings: BTreeMap<(SocketAddr, Key), Mapped>,
    permissions: BTreeMap<(SocketAddr, SocketAddr), Duration>,
    next_port: u16,
}

/// The part of the remote endpoint that a mapping depends on.
type Key = (Option<IpAddr>, Option<u16>);

#[derive(Debug, Clone, Copy)]
struct Mapped {
    outside: SocketAddr,
    used: Duration,
}

impl Gateway {
    /// A NAT with these outside addresses; RFC 4787 allows no expiry below two minutes, real ones take 30 s.
    pub fn nat(mapping: Mapping, filtering: Filtering, outside: &[IpAddr]) -> Self {
        Self {
            outside: outside.to_vec(),
            mapping,
            filtering,
            expiry: Duration::from_secs(30),
            hairpin: false,
            open: Vec::new(),
            udp: true,
            mappings: BTreeMap::new(),
            permissions: BTreeMap::new(),
            next_port: 40_000,
        }
    }

    /// What stands in most homes: endpoint-independent mapping, address-and-port-dependent filtering.
    pub fn home(outside: &[IpAddr]) -> Self {
        Self::nat(Mapping::EndpointIndependent, Filtering::AddressAndPortDependent, outside)
    }

    /// What stands in many companies: a new port for each remote endpoint.
    pub fn symmetric(outside: &[IpAddr]) -> Self {
        Self::nat(Mapping::AddressAndPortDependent, Filtering::AddressAndPortDependent, outside)
    }

    /// A firewall that translates nothing and lets in only answers.
    pub fn firewall() -> Self {
        Self::nat(Mapping::EndpointIndependent, Filtering::AddressAndPortDependent, &[])
    }

    /// Opens a port to all.
    #[must_use]
    pub fn opening(mut self, port: u16, inside: SocketAddr) -> Self {
        self.open.push((port, inside));
        self
    }

    /// Forgets everything, as when it is switched off and on.
    pub fn reboot(&mut self) {
        self.mappings.clear();
        self.permissions.clear();
    }

    /// A datagram goes out: the source that it has outside. `None`: not let out.
    pub fn outbound(
        &mut self,
        source: SocketAddr,
        to: SocketAddr,
        at: Duration,
    ) -> Option<SocketAddr> {
        if !self.udp {
            return None;
        }
        self.forget(at);
        self.permissions.insert((source, to), at);
        let Some(outside) = self.outside_for(source) else { return Some(source) };
        if let Some((port, _)) = self.open.iter().find(|(_, inside)| *inside == source) {
            return Some(SocketAddr::new(outside, *port));
        }
        let key = match self.mapping {
            Mapping::EndpointIndependent => (None, None),
            Mapping::AddressDependent => (Some(to.ip()), None),
            Mapping::AddressAndPortDependent => (Some(to.ip()), Some(to.port())),
        };
        if let Some(mapped) = self.mappings.get_mut(&(source, key)) {
            mapped.used = at;
            return Some(mapped.outside);
        }
        let outside = SocketAddr::new(outside, self.free_port(source.port(), outside));
        self.mappings.insert((source, key), Mapped { outside, used: at });
        Some(outside)
    }

    /// A datagram comes in: the destination that it has inside. `None`: not let in.
    pub fn inbound(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        at: Duration,
    ) -> Option<SocketAddr> {
        if !self.udp {
            return None;
        }
        self.forget(at);
        let translated = self.outside.contains(&to.ip());
        let open = self.open.iter().find(|(port, inside)| {
            *port == to.port() && (translated && inside.is_ipv4() == to.is_ipv4() || *inside == to)
        });
        if let Some((_, inside)) = open {
            return Some(*inside);
        }
        let inside = if translated {
            let ((inside, _), _) = self.mappings.iter().find(|(_, mapped)| mapped.outside == to)?;
            *inside
        } else {
            to
        };
        let mut written_to = self
            .permissions
            .range((inside, UNSPECIFIED)..)
            .take_while(|((source, _), _)| *source == inside)
            .map(|((_, remote), _)| *remote);
        let pass = match self.filtering {
            Filtering::EndpointIndependent => written_to.next().is_some(),
            Filtering::AddressDependent => written_to.any(|remote| remote.ip() == from.ip()),
            Filtering::AddressAndPortDependent => written_to.any(|remote| remote == from),
        };
        pass.then_some(inside)
    }

    fn outside_for(&self, source: SocketAddr) -> Option<IpAddr> {
        self.outside.iter().find(|outside| outside.is_ipv4() == source.is_ipv4()).copied()
    }

    /// The same port as inside if it is free, else the next.
    fn free_port(&mut self, wanted: u16, outside: IpAddr) -> u16 {
        let taken = |port| {
            let endpoint = SocketAddr::new(outside, port);
            self.mappings.values().any(|mapped| mapped.outside == endpoint)
                || self.open.iter().any(|(open, _)| *open == port)
        };
        let mut port = wanted;
        while taken(port) {
            port = self.next_port;
            self.next_port = self.next_port.checked_add(1).unwrap_or(1024);
        }
        port
    }

    fn forget(&mut self, at: Duration) {
        let fresh = |used: Duration| at - used < self.expiry;
        self.mappings.retain(|_, mapped| fresh(mapped.used));
        self.permissions.retain(|_, used| fresh(*used));
    }
}

/// The least of all socket addresses: where a range begins.
const UNSPECIFIED: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0);
