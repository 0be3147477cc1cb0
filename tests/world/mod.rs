//! Whole networks of `Node`s on the simulated internet: an authority, members, and what their programs see.
#![allow(dead_code, unreachable_pub, reason = "each test binary includes this and uses its part")]

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use clusternet::{
    api,
    channel::{
        keypair::Keypairs,
        message::{self, MAX_SLICE, Text},
    },
    dataplane::table::Builder,
    node::{
        InterfaceAddress, Node, Settings, Traffic, Update,
        output::{Event, Output as NodeOutput, PeerSlot},
    },
    path::route::{Egress, Route, SocketId},
    tunnel::{Sink, Tunnel},
    wire::{
        exchange::Suites, ip::IpView, message::Message, record::Entry, relay, superpacket::Kind,
    },
    words::{
        certificate::{BACKDATE, Certificate, Roles},
        id::{Name, NetworkId, NodeNumber, Serial},
        key::{SigningSecret, TransportSecret},
        network::{Master, Network},
        revocation::{Head, Revocation},
        signed::Signed,
        time::{Now, Timestamp},
    },
};

use crate::sim::{Clock, Host, HostId, Net, Output, SiteId, Transmit};

/// The UDP port of every node.
pub const PORT: u16 = 51820;

/// One machine: its node, and what came out of it.
pub struct Machine {
    pub node: Option<Node>,
    /// A plain WireGuard program in its stead, and where its peer is.
    pub plain: Option<(Tunnel, SocketAddr)>,
    pub delivered: Vec<Vec<u8>>,
    pub events: Vec<Event>,
    /// What the node tells workers.
    pub table: Builder,
    /// Receiver index and counter of every channel message made here, before a restart too.
    pub sealed: Vec<(u32, u64)>,
    /// How many exchanges' keys workers open with.
    pub installed: usize,
    /// Packets are sealed and messages opened beside the node, as workers do. Else the node does it.
    pub has_workers: bool,
    /// How often the machine was woken by its own wish.
    pub wakes: u64,
    wake: Option<Instant>,
    /// What has passed since the node was last told, and when that was.
    traffic: BTreeMap<PeerSlot, Traffic>,
    told: Option<Instant>,
    relays: Vec<(relay::RelayIndex, Route, Route)>,
    forwarded: Vec<Transmit>,
    interfaces: Vec<InterfaceAddress>,
}

fn unspecified(to: &SocketAddr) -> SocketAddr {
    if to.is_ipv4() { ([0, 0, 0, 0], PORT).into() } else { ([0u16; 8], PORT).into() }
}

/// How often workers say what has passed.
const TRAFFIC: Duration = Duration::from_secs(1);

fn transmit(route: Route, datagram: Vec<u8>) -> Option<Transmit> {
    let Egress::Udp { endpoint, .. } = route.egress else { return None };
    let bytes = match route.relay {
        Some(index) => relay::wrap(index, &datagram),
        None => datagram,
    };
    Some(Transmit { local: unspecified(&endpoint), to: endpoint, bytes })
}

impl Machine {
    fn blank(table: Builder) -> Self {
        Self {
            node: None,
            plain: None,
            delivered: Vec::new(),
            events: Vec::new(),
            table,
            sealed: Vec::new(),
            installed: 0,
            has_workers: false,
            wakes: 0,
            wake: None,
            traffic: BTreeMap::new(),
            told: None,
            relays: Vec::new(),
            forwarded: Vec::new(),
            interfaces: Vec::new(),
        }
    }

    /// Tells the node something, and does what follows.
    pub fn tell(&mut self, now: Now, what: impl FnOnce(&mut Node)) {
        let mut output = self.drain(now);
        if let Some(node) = &mut self.node {
            what(node);
        }
        output.transmits.append(&mut self.drain(now).transmits);
        self.forwarded.append(&mut output.transmits);
    }

    /// A program sends a packet.
    pub fn send(&mut self, packet: &[u8], now: Now) {
        if !(self.has_workers && self.seal(packet, now)) {
            self.tell(now, |node| node.handle_packet(packet, now));
        }
    }

    /// What a worker does with a packet from its device. Whether there were keys and a way.
    fn seal(&mut self, packet: &[u8], now: Now) -> bool {
        let Ok(view) = IpView::parse(packet) else { return false };
        let Some((slot, peer)) = self.table.table().member(view.destination()) else {
            return false;
        };
        let (Some(route), Some(keypairs)) = (peer.route, peer.seal_with.clone()) else {
            return false;
        };
        let mut datagrams = Vec::new();
        let keypair = keypairs.stripe(0).expect("every exchange has one");
        let sealed = message::seal_packet(
            keypair,
            packet,
            Kind::Whole,
            MAX_SLICE,
            now.instant,
            |datagram| {
                datagrams.push(datagram);
            },
        );
        let traffic = self.traffic.entry(slot).or_default();
        traffic.sent_packets += 1;
        traffic.sent_bytes += packet.len() as u64;
        datagrams.iter().for_each(|datagram| self.note(datagram));
        self.forwarded.extend(datagrams.into_iter().filter_map(|d| transmit(route, d)));
        sealed.is_ok()
    }

    /// Seals any packet at all for `to`, as somebody may who has changed his workers.
    pub fn seal_under(&mut self, keypairs: &Keypairs, to: &Identity, packet: &[u8], now: Now) {
        let address: IpAddr = to.certificate.ipv4.into();
        let route = self.table.table().member(address).and_then(|(_, peer)| peer.route);
        let (keypair, route) = (keypairs.stripe(0).expect("one"), route.expect("a way"));
        let mut datagrams = Vec::new();
        message::seal_packet(keypair, packet, Kind::Whole, MAX_SLICE, now.instant, |datagram| {
            datagrams.push(datagram);
        })
        .expect("young keys");
        datagrams.iter().for_each(|datagram| self.note(datagram));
        self.forwarded.extend(datagrams.into_iter().filter_map(|d| transmit(route, d)));
    }

    fn note(&mut self, datagram: &[u8]) {
        if let Ok(Message::Channel { receiver, counter }) = Message::parse(datagram) {
            self.sealed.push((receiver, counter));
        }
    }

    /// What a worker does with a message of the channel.
    fn open(&mut self, receiver: u32, origin: Route, bytes: &[u8], now: Now) {
        let Some(opener) = self.table.table().opener(receiver).cloned() else { return };
        let Some(keypair) = opener.keypairs.stripe(receiver as u8) else { return };
        let mut bytes = bytes.to_vec();
        let Ok((_, text)) = message::open(keypair, &mut bytes, now.instant) else { return };
        if opener.keypairs.confirm() {
            self.tell(now, |node| node.handle_confirmed(opener.keypairs.index(), now));
        }
        let route = self.table.table().peer(opener.slot).and_then(|peer| peer.route);
        if route != Some(origin) {
            self.tell(now, |node| node.handle_heard(opener.slot, origin, now));
        }
        let Text::Slice(_, packet) = text else { return };
        let traffic = self.traffic.entry(opener.slot).or_default();
        traffic.received_packets += 1;
        traffic.received_bytes += packet.len() as u64;
        let Ok(view) = IpView::parse(packet) else { return };
        let table = self.table.table();
        if !table.belongs(view.source(), opener.slot) {
            return;
        }
        if table.own().contains(&view.destination()) {
            self.delivered.push(packet.to_vec());
        } else {
            self.tell(now, |node| node.handle_transit(opener.slot, packet, now));
        }
    }

    fn tell_traffic(&mut self, now: Now) {
        let is_time = self.told.is_none_or(|told| now.instant.duration_since(told) >= TRAFFIC);
        if self.traffic.is_empty() || !is_time {
            return;
        }
        self.told = Some(now.instant);
        for (slot, traffic) in std::mem::take(&mut self.traffic) {
            self.tell(now, |node| node.handle_traffic(slot, traffic, now));
        }
    }

    /// Does what the node wants until it wants to wait.
    fn drain(&mut self, now: Now) -> Output {
        let mut transmits = std::mem::take(&mut self.forwarded);
        let mut lookups: Vec<(String, u16)> = Vec::new();
        if let Some((tunnel, _)) = &mut self.plain {
            let mut sink = Sink::default();
            tunnel.handle_timeout(now, &mut sink);
            let wake = tunnel.next_timeout();
            self.take_sink(sink);
            transmits.append(&mut self.forwarded);
            return Output { transmits, wake };
        }
        let wake = loop {
            let Some(output) = self.node.as_mut().map(Node::poll_output) else { break None };
            match output {
                NodeOutput::Timeout(wake) if lookups.is_empty() => break Some(wake),
                NodeOutput::Timeout(_) => {
                    for (host, port) in std::mem::take(&mut lookups) {
                        let found = Err("no such name".to_owned());
                        if let Some(node) = &mut self.node {
                            node.handle_resolved(&host, port, found, now);
                        }
                    }
                }
                NodeOutput::Transmit { route, datagram } => {
                    self.note(&datagram);
                    transmits.extend(transmit(route, datagram));
                }
                NodeOutput::Deliver { packet } => self.delivered.push(packet),
                NodeOutput::Directive(directive) => self.apply(directive),
                NodeOutput::Event(event) => self.events.push(event),
                NodeOutput::Resolve { host, port } => lookups.push((host, port)),
            }
        };
        Output { transmits, wake }
    }

    fn take_sink(&mut self, sink: Sink) {
        let Some((_, to)) = &self.plain else { return };
        let to = *to;
        self.delivered.extend(sink.packets);
        let transmits = sink.datagrams.into_iter();
        self.forwarded.extend(transmits.map(|bytes| Transmit {
            local: unspecified(&to),
            to,
            bytes,
        }));
    }

    /// A program on a plain WireGuard machine sends a packet.
    pub fn send_plain(&mut self, packet: &[u8], now: Now) {
        let mut sink = Sink::default();
        if let Some((tunnel, _)) = &mut self.plain {
            tunnel.seal(packet, now, &mut sink);
        }
        self.take_sink(sink);
    }

    /// What workers do with directives.
    fn apply(&mut self, directive: clusternet::node::output::Directive) {
        use clusternet::node::output::Directive;
        self.table.apply(&directive);
        match directive {
            Directive::InstallRelay { index, from, to } => {
                self.relays.retain(|(known, _, _)| *known != index);
                self.relays.push((index, from, to));
            }
            Directive::RemoveRelay { index } => self.relays.retain(|(known, _, _)| *known != index),
            Directive::InstallKeypairs { .. } => self.installed += 1,
            Directive::RemoveKeypairs { .. } => self.installed -= 1,
            Directive::InstallTunnel { .. }
            | Directive::RemoveTunnel { .. }
            | Directive::InstallPeer { .. }
            | Directive::SetCarrier { .. }
            | Directive::SealWith { .. }
            | Directive::SetRoute { .. }
            | Directive::RemovePeer { .. } => {}
        }
    }

    pub fn status(&self, now: Now) -> api::Status {
        self.node.as_ref().expect("the node runs").status(now)
    }

    pub fn ended(&self) -> Option<String> {
        self.events.iter().find_map(|event| {
            if let Event::Ended { why } = event { Some(why.to_string()) } else { None }
        })
    }
}

impl Host for Machine {
    fn handle_datagram(&mut self, _: SocketAddr, from: SocketAddr, bytes: &[u8], now: Now) {
        if let Some((tunnel, _)) = &mut self.plain {
            let mut sink = Sink::default();
            // What does not open is dropped, as a plain program does.
            let _ = tunnel.handle_datagram(bytes, now, &mut sink);
            self.take_sink(sink);
            return;
        }
        let origin =
            Route { egress: Egress::Udp { socket: SocketId(0), endpoint: from }, relay: None };
        let channel = |bytes: &[u8]| match Message::parse(bytes) {
            Ok(Message::Channel { receiver, .. }) if self.has_workers => Some(receiver),
            Ok(_) | Err(_) => None,
        };
        let Some((index, inner)) = relay::split(bytes) else {
            if let Some(receiver) = channel(bytes) {
                return self.open(receiver, origin, bytes, now);
            }
            if let Some(node) = &mut self.node {
                node.handle_datagram(origin, bytes, now);
            }
            return;
        };
        if let Some((_, expected, to)) = self.relays.iter().find(|(known, _, _)| *known == index) {
            if *expected == origin
                && let (Some(endpoint), Some(out)) = (to.endpoint(), to.relay)
            {
                let bytes = relay::wrap(out, inner);
                self.forwarded.push(Transmit {
                    local: unspecified(&endpoint),
                    to: endpoint,
                    bytes,
                });
            }
            return;
        }
        let origin = Route { relay: Some(index), ..origin };
        if let Some(receiver) = channel(inner) {
            return self.open(receiver, origin, inner, now);
        }
        if let Some(node) = &mut self.node {
            node.handle_datagram(origin, inner, now);
        }
    }

    fn poll(&mut self, now: Now) -> Output {
        self.wakes += u64::from(self.wake.is_some_and(|wake| wake <= now.instant));
        // What a call before left is drained first: the grammar of the API.
        self.tell_traffic(now);
        let mut output = self.drain(now);
        if let Some(node) = &mut self.node {
            node.handle_timeout(now);
        }
        let mut more = self.drain(now);
        output.transmits.append(&mut more.transmits);
        output.wake = more.wake;
        if !self.traffic.is_empty() {
            let next = self.told.map_or(now.instant, |told| told + TRAFFIC);
            output.wake = output.wake.map(|wake| wake.min(next));
        }
        self.wake = output.wake;
        output
    }
}

/// Who a node is, to start it and to start it again.
#[derive(Clone)]
pub struct Identity {
    pub name: String,
    pub certificate: Signed<Certificate>,
    transport: TransportSecret,
    host: SigningSecret,
}

/// A network and its authority.
pub struct World {
    pub net: Net<Machine>,
    pub authority: SigningSecret,
    pub id: NetworkId,
    network: Signed<Network>,
    serials: u64,
    revoked: Vec<Entry>,
    seed: u64,
    /// Of machines that are started from now on.
    pub suites: Suites,
    pub stripes: u8,
    pub has_workers: bool,
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("literal")
}

impl World {
    /// A network whose master has the first identity and can be met at `endpoint`.
    pub fn new(clock: Clock, seed: u64, endpoint: &str) -> (Self, Identity) {
        let net = Net::new(clock, seed);
        let authority = SigningSecret::from_bytes([seed as u8 ^ 0x55; 32]);
        let id = NetworkId::of(&authority.public());
        let head = Identity::draw("head", seed);
        let master = Master {
            name: name("head"),
            number: NodeNumber(1),
            transport: head.1.public(),
            host: head.2.public(),
            endpoints: vec![endpoint.parse().expect("literal")],
        };
        let network = Network {
            version: 1,
            name: name("lab"),
            authority: authority.public(),
            ipv4: "10.99.0.0/16".parse().expect("literal"),
            date: net.now().wall,
            masters: vec![master],
        };
        let network = Signed::sign(network, &id, &authority);
        let mut world = Self {
            net,
            authority,
            id,
            network,
            serials: 0,
            revoked: Vec::new(),
            seed,
            suites: Suites::of(true),
            stripes: 2,
            has_workers: false,
        };
        let identity = world.certify(head, Roles::MASTER, Duration::from_secs(86_400));
        (world, identity)
    }

    pub fn issue(&mut self, name: &str, valid: Duration) -> Identity {
        let drawn = Identity::draw(name, self.seed);
        self.certify(drawn, Roles::NODE, valid)
    }

    fn certify(
        &mut self,
        (name_text, transport, host): (String, TransportSecret, SigningSecret),
        roles: Roles,
        valid: Duration,
    ) -> Identity {
        self.serials += 1;
        let number = self.serials as u32;
        let wall = self.net.now().wall;
        let certificate = Certificate {
            network: self.id,
            serial: Serial(self.serials),
            name: name(&name_text),
            number: NodeNumber(number),
            ipv4: NodeNumber(number).ipv4(&self.network.ipv4).expect("small"),
            transport: transport.public(),
            host: (!roles.is_wireguard()).then(|| host.public()),
            owner: None,
            roles,
            not_before: wall.minus(BACKDATE),
            not_after: wall.plus(valid),
        };
        let certificate = Signed::sign(certificate, &self.id, &self.authority);
        Identity { name: name_text, certificate, transport, host }
    }

    /// The same identity with a certificate that ends later.
    pub fn renew(&mut self, identity: &Identity, valid: Duration) -> Identity {
        self.serials += 1;
        let mut certificate = Certificate::clone(&identity.certificate);
        certificate.serial = Serial(self.serials);
        certificate.not_after = self.net.now().wall.plus(valid);
        let certificate = Signed::sign(certificate, &self.id, &self.authority);
        Identity { certificate, ..identity.clone() }
    }

    /// The same identity with another number, and so with other addresses.
    pub fn readdress(&mut self, identity: &Identity, number: u32) -> Identity {
        self.serials += 1;
        let mut certificate = Certificate::clone(&identity.certificate);
        certificate.serial = Serial(self.serials);
        certificate.number = NodeNumber(number);
        certificate.ipv4 = certificate.number.ipv4(&self.network.ipv4).expect("small");
        let certificate = Signed::sign(certificate, &self.id, &self.authority);
        Identity { certificate, ..identity.clone() }
    }

    /// A revocation of one identity with all before it, as `clusternet revoke` writes them.
    pub fn revoke(&mut self, identity: &Identity) -> Update {
        let date = self.net.now().wall;
        let revocation = Revocation {
            number: self.revoked.len() as u64 + 1,
            serial: identity.certificate.serial,
            transport: identity.certificate.transport,
            host: identity.certificate.host,
            date,
        };
        let signed = Signed::sign(revocation, &self.id, &self.authority);
        self.revoked.push(Entry::Revocation(signed.raw().clone()));
        let head = Head { count: self.revoked.len() as u64, date };
        let head = Signed::sign(head, &self.id, &self.authority);
        let mut entries = vec![Entry::Head(head.raw().clone())];
        entries.extend(self.revoked.iter().cloned());
        Update { entries }
    }

    /// A node of this identity, with the addresses its machine has.
    pub fn machine(
        &mut self,
        identity: &Identity,
        addresses: &[IpAddr],
        cache: Option<Vec<u8>>,
        now: Now,
    ) -> Machine {
        self.seed += 1;
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&self.seed.to_le_bytes());
        let settings = Settings {
            network: self.network.clone(),
            certificate: identity.certificate.clone(),
            transport: identity.transport.clone(),
            host: identity.host.clone(),
            seed,
            endpoints: Vec::new(),
            cache,
            suites: self.suites,
            stripes: self.stripes,
        };
        let interfaces: Vec<InterfaceAddress> = addresses
            .iter()
            .map(|address| InterfaceAddress {
                address: *address,
                prefix_len: if address.is_ipv4() { 24 } else { 64 },
            })
            .collect();
        let mut node = Node::new(settings, now);
        node.handle_interfaces(&interfaces, PORT, now);
        let certificate: &Certificate = &identity.certificate;
        let own = [certificate.ipv4.into(), certificate.ipv6().into()];
        let has_workers = self.has_workers;
        Machine { node: Some(node), interfaces, has_workers, ..Machine::blank(Builder::new(own)) }
    }

    /// A plain WireGuard program with the master as its peer.
    pub fn start_plain(
        &mut self,
        identity: &Identity,
        head: &Identity,
        endpoint: &str,
        site: SiteId,
        addresses: &[&str],
    ) -> HostId {
        let addresses: Vec<IpAddr> = addresses.iter().map(|text| ip(text)).collect();
        let key = head.certificate.transport;
        let tunnel = Tunnel::new(&identity.transport, &key, 7, self.net.now());
        let own = [identity.certificate.ipv4.into(), identity.certificate.ipv6().into()];
        let plain = Some((tunnel, endpoint.parse().expect("literal")));
        let machine = Machine { plain, ..Machine::blank(Builder::new(own)) };
        self.net.host(site, &addresses, machine)
    }

    /// A certificate for a plain WireGuard program.
    pub fn issue_plain(&mut self, name: &str) -> Identity {
        let drawn = Identity::draw(name, self.seed);
        self.certify(drawn, Roles::WIREGUARD, Duration::from_secs(86_400))
    }

    pub fn start(&mut self, identity: &Identity, site: SiteId, addresses: &[&str]) -> HostId {
        let addresses: Vec<IpAddr> = addresses.iter().map(|text| ip(text)).collect();
        let machine = self.machine(identity, &addresses, None, self.net.now());
        self.net.host(site, &addresses, machine)
    }

    /// The process is killed and started again, with what it had written to its cache.
    pub fn restart(&mut self, host: HostId, identity: &Identity, with_cache: bool) {
        let now = self.net.now();
        let cache = self.net.with(host, |machine, now| machine.node.as_mut().map(|n| n.cache(now)));
        let interfaces = self.net.peek(host).interfaces.clone();
        let addresses: Vec<IpAddr> = interfaces.iter().map(|i| i.address).collect();
        let mut machine = self.machine(identity, &addresses, cache.filter(|_| with_cache), now);
        machine.sealed = self.net.with(host, |machine, _| std::mem::take(&mut machine.sealed));
        self.net.replace(host, machine);
    }

    /// Sends one UDP packet from one node's program to another's.
    pub fn send(&mut self, from: HostId, from_id: &Identity, to_id: &Identity, text: &[u8]) {
        let packet = udp_packet(from_id, to_id, text);
        self.net.with(from, |machine, now| machine.send(&packet, now));
    }

    /// Whether a packet with this text has come out at a host.
    pub fn got(net: &Net<Machine>, host: HostId, text: &[u8]) -> bool {
        net.peek(host).delivered.iter().any(|packet| packet.ends_with(text))
    }

    /// Sends every 200 ms until it arrives; how long that took.
    pub fn reach(
        &mut self,
        from: (HostId, &Identity),
        to: (HostId, &Identity),
        limit: Duration,
    ) -> Option<Duration> {
        let began = self.net.elapsed();
        let mut round = 0;
        loop {
            round += 1;
            let text = format!("{} {} {round} {began:?}", from.1.name, to.1.name);
            self.send(from.0, from.1, to.1, text.as_bytes());
            let step = Duration::from_millis(200);
            if self.net.run_until(step, |net| Self::got(net, to.0, text.as_bytes())) {
                return Some(self.net.elapsed() - began);
            }
            if self.net.elapsed() - began > limit {
                return None;
            }
        }
    }

    /// How `from` says it reaches `to`.
    pub fn path(&self, from: HostId, to: &Identity) -> Option<String> {
        let status = self.net.peek(from).status(self.net.now());
        status.peers.into_iter().find(|peer| peer.name.as_str() == to.name)?.path
    }

    pub fn is_accepted(net: &Net<Machine>, host: HostId) -> bool {
        net.peek(host).node.as_ref().is_some_and(Node::is_accepted)
    }
}

impl Identity {
    /// What a thief of the key file has.
    pub fn transport_secret(&self) -> TransportSecret {
        self.transport.clone()
    }

    /// What signs its announcements.
    pub fn host_secret(&self) -> &SigningSecret {
        &self.host
    }

    fn draw(name: &str, seed: u64) -> (String, TransportSecret, SigningSecret) {
        let mut bytes = [7; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        for (place, byte) in name.bytes().enumerate().take(16) {
            bytes[8 + place] ^= byte;
        }
        (name.to_owned(), TransportSecret::from_bytes(bytes), SigningSecret::from_bytes(bytes))
    }
}

fn name(text: &str) -> Name {
    text.parse().expect("literal")
}

/// A UDP packet over IPv4 between two nodes.
pub fn udp_packet(from: &Identity, to: &Identity, text: &[u8]) -> Vec<u8> {
    let total = (28 + text.len()) as u16;
    let mut packet = vec![0; 28];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    packet[8] = 64;
    packet[9] = 17;
    packet[12..16].copy_from_slice(&from.certificate.ipv4.octets());
    packet[16..20].copy_from_slice(&to.certificate.ipv4.octets());
    packet.extend_from_slice(text);
    packet
}

/// Milliseconds of wall time that a test moves clocks by.
pub fn wall(now: Now) -> Timestamp {
    now.wall
}
