//! The whole control plane of one member (a master is a node with the role). Sans-IO.
//!
//! What a [`Node`] owns: the roster, one [`contact`] per tunnel, the relay allocations. What it does not own: sockets,
//! clocks, the TUN, the data plane's table; it is told about them and says what to do with them.
//!
//! The API has a grammar. There are four kinds of methods: getters (`status`, `neighbours`, `lookup`); `handle_*`, by
//! which the world tells the node something; `cache`, which gives away what should survive; and `poll_output`.
//!
//! **After any `handle_*`, drain `poll_output` until it returns [`Output::Timeout`], before the next one.**
//!
//! 1. `handle_interfaces` with the machine's addresses and the local port; then `handle_timeout` once.
//! 2. Drain `poll_output`: transmit, deliver, apply directives, note events.
//! 3. Sleep until the timeout it named, or until a datagram, a packet or a command comes.
//! 4. `handle_timeout`, `handle_datagram`, `handle_packet`, ... with the time now.
//! 5. Go to 2.
//!
//! Theory of operation. A node calls every master of the network description and keeps a tunnel to each; any other
//! peer is called when a packet for it comes. A tunnel begins with WireGuard's handshake, sent over whatever ways are
//! known ([`connect`]); then both introduce themselves with their certificates ([`records`]); only when both have
//! accepted do IP packets pass. A tunnel that leads over a relay starts at once and improves: candidates are probed
//! inside it ([`crate::path`]). A tunnel nobody uses is put away after [`PUT_AWAY`].

mod cache;
mod connect;
mod contact;
mod draw;
mod members;
pub mod output;
mod records;
mod relay;
mod spread;
mod status;

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use ipnet::IpNet;

use self::{
    cache::Cache,
    connect::{CONNECT_PATIENCE, MasterEndpoint},
    contact::{Contact, Guest},
    draw::Draw,
    members::Members,
    output::{Directive, Event, Output},
    relay::{Pairs, Relayed},
    spread::Announcer,
    status::Counters,
};
use crate::{
    path::{budget::Budget, candidate::Vantage, route::Route},
    roster::{Roster, Taken, addresses},
    tunnel::{
        Sink, TunnelError, anonymous,
        gate::{Admission, Gate, Origin as GateOrigin},
    },
    wire::{
        ip::IpView,
        message::{Message, TYPE_COOKIE_REPLY, TYPE_INITIATION, TYPE_RESPONSE},
        parts,
        record::{Entry, Record, Refusal, payload},
        relay::RelayIndex,
    },
    words::{
        certificate::Certificate,
        id::Incarnation,
        key::{SigningSecret, TransportKey, TransportSecret},
        network::Network,
        signed::Signed,
        time::{Now, Timestamp},
    },
};

/// A tunnel that carries no packets for this long is put away: as long as WireGuard's keys live.
pub const PUT_AWAY: Duration = Duration::from_secs(180);

/// How long a stranger has to show a certificate.
pub const GUEST_PATIENCE: Duration = Duration::from_secs(5);

/// Strangers at once; from one IPv4 address or IPv6 /64; and new ones a second.
pub const MAX_GUESTS: (usize, usize, u32) = (256, 4, 64);

/// A wall clock that strays from the monotonic one by more than this has been set.
const CLOCK_JUMP: Duration = Duration::from_secs(2);

/// How often the roster is purged, the announcements that were held back are released, and allocations expire.
const HOUSEKEEPING: Duration = Duration::from_secs(5);

/// How long to sleep when nothing at all is due.
const NOTHING_DUE: Duration = Duration::from_secs(3600);

/// Pings that wait for an answer at once.
const MAX_ECHOES: usize = 1024;

/// What a node starts with.
#[derive(Debug)]
pub struct Settings {
    /// The network, verified.
    pub network: Signed<Network>,
    /// This node's certificate, verified under the network's authority.
    pub certificate: Signed<Certificate>,
    /// The static key of its tunnels.
    pub transport: TransportSecret,
    /// Signs its announcements.
    pub host: SigningSecret,
    /// Fresh randomness: indexes, probe ids and the like are drawn from it.
    pub seed: [u8; 32],
    /// `[node] endpoints`, resolved: announced as candidates.
    pub endpoints: Vec<SocketAddr>,
    /// What [`Node::cache`] gave before the last stop.
    pub cache: Option<Vec<u8>>,
}

/// An address of this machine, as `handle_interfaces` is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The address.
    pub address: IpAddr,
    /// Length of its network's prefix.
    pub prefix_len: u8,
}

/// Newer signed data for a running node, from `update` (parsed from a file by the shell).
#[derive(Debug, Clone)]
pub struct Update {
    /// Entries to take in; each is verified.
    pub entries: Vec<Entry>,
}

/// Why an update was refused. What verified before the refused part has been taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpdateError {
    /// Something in it does not verify.
    #[error("{what}: {why}")]
    Refused {
        /// Which part.
        what: String,
        /// Why.
        why: String,
    },
}

/// What an update did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Updated {
    /// In words: `revocations up to 3`, `network version 2`, `certificate 7 of b`, `nothing new`.
    pub taken: String,
}

/// The control plane.
#[derive(Debug)]
pub struct Node {
    key: TransportKey,
    transport: TransportSecret,
    host: SigningSecret,
    certificate: Signed<Certificate>,
    incarnation: Incarnation,
    endpoints: Vec<SocketAddr>,
    port: u16,
    roster: Roster,
    members: Members,
    gate: Gate,
    contacts: BTreeMap<TransportKey, Contact>,
    indexes: BTreeMap<u32, TransportKey>,
    guests_this_second: (Option<Instant>, u32),
    master_endpoints: Vec<MasterEndpoint>,
    refusals: BTreeMap<TransportKey, Refusal>,
    last_seen: BTreeMap<TransportKey, Vec<SocketAddr>>,
    call_first: Vec<TransportKey>,
    pairs: Pairs,
    relayed: BTreeMap<RelayIndex, Relayed>,
    vantage: Vantage,
    budget: Budget,
    announcer: Announcer,
    echoes: BTreeMap<u64, (TransportKey, Instant)>,
    counters: Counters,
    draw: Draw,
    record_id: u32,
    outputs: VecDeque<Output>,
    made: Instant,
    clocks: Option<Now>,
    next_review: Option<Timestamp>,
    next_housekeeping: Option<Instant>,
    is_started: bool,
    is_accepted: bool,
    is_cache_dirty: bool,
    has_ended: bool,
}

impl Node {
    /// A node that has not said anything yet.
    pub fn new(settings: Settings, now: Now) -> Self {
        let mut draw = Draw::new(settings.seed);
        let cache = settings.cache.as_deref().and_then(Cache::read);
        let previous = cache::previous_incarnation(cache.as_ref());
        let incarnation = Incarnation(spread::draw_incarnation(draw.u64(), now.wall, previous.0));
        let roster = Roster::new(settings.network, draw.u64());
        let overlay: Vec<IpNet> = vec![roster.id().prefix().into(), roster.network().ipv4.into()];
        let key = settings.transport.public();
        let mut node = Self {
            key,
            gate: Gate::new(&key),
            transport: settings.transport,
            host: settings.host,
            certificate: settings.certificate,
            incarnation,
            endpoints: settings.endpoints,
            port: 0,
            roster,
            members: Members::default(),
            contacts: BTreeMap::new(),
            indexes: BTreeMap::new(),
            guests_this_second: (None, 0),
            master_endpoints: Vec::new(),
            refusals: BTreeMap::new(),
            last_seen: BTreeMap::new(),
            call_first: Vec::new(),
            pairs: Pairs::default(),
            relayed: BTreeMap::new(),
            vantage: Vantage { overlay, ..Vantage::default() },
            budget: Budget::default(),
            announcer: Announcer { is_dirty: true, ..Announcer::default() },
            echoes: BTreeMap::new(),
            counters: Counters::default(),
            draw,
            record_id: 0,
            outputs: VecDeque::new(),
            made: now.instant,
            clocks: None,
            next_review: None,
            next_housekeeping: None,
            is_started: false,
            is_accepted: false,
            is_cache_dirty: false,
            has_ended: false,
        };
        node.load_masters();
        if let Some(cache) = cache {
            node.load_cache(cache, now);
        }
        let own = Entry::Certificate(node.certificate.raw().clone());
        node.roster.take(&own, now.wall);
        node
    }

    // ---- what the world tells

    /// All addresses of this machine, and the local UDP port: at start and whenever they change.
    pub fn handle_interfaces(&mut self, interfaces: &[InterfaceAddress], port: u16, now: Now) {
        self.assert_drained();
        let own: Vec<IpAddr> = interfaces
            .iter()
            .map(|i| i.address.to_canonical())
            .filter(|a| !a.is_loopback())
            .collect();
        let connected = interfaces
            .iter()
            .filter(|i| !i.address.is_loopback())
            .filter_map(|i| IpNet::new(i.address.to_canonical(), i.prefix_len).ok())
            .map(|net| net.trunc())
            .collect();
        if self.vantage.own == own && self.vantage.connected == connected && self.port == port {
            return;
        }
        self.vantage.own = own;
        self.vantage.connected = connected;
        self.port = port;
        self.announcer.is_dirty = true;
        let keys: Vec<TransportKey> = self.contacts.keys().copied().collect();
        for key in keys {
            let claims = self.claims(&key, now);
            let Some(contact) = self.contacts.get_mut(&key) else { continue };
            contact.connecting = None;
            contact.paths.check(now.instant);
            if contact.is_open() {
                for claim in claims {
                    contact.paths.add(Route::direct(claim), true, now.instant);
                }
            }
        }
        if self.is_started {
            self.work(now);
        }
    }

    /// A datagram that a worker punted; the relay prefix, if any, is in `origin.relay` and cut off.
    pub fn handle_datagram(&mut self, origin: Route, datagram: &[u8], now: Now) {
        self.assert_drained();
        let Ok(message) = Message::parse(datagram) else {
            self.counters.malformed += 1;
            return;
        };
        let behind = self.behind(&origin);
        if origin.relay.is_some() && behind.is_none() {
            self.counters.unopened += 1;
            return;
        }
        let key = match message {
            Message::Initiation { .. } => self.admit(origin, behind, datagram, now),
            Message::Response { receiver, .. }
            | Message::CookieReply { receiver }
            | Message::Data { receiver, .. } => {
                if message.is_handshake() && !self.pass_gate(origin, datagram, now) {
                    return;
                }
                self.indexes.get(&(receiver >> 8)).copied()
            }
            Message::Relay { .. } => None,
        };
        // Through a relay nobody speaks but the node it names.
        match key {
            Some(key) if behind.is_none_or(|behind| behind == key) => {
                self.feed(&key, origin, datagram, now);
            }
            Some(_) | None => self.counters.unopened += 1,
        }
    }

    /// An IP packet that a program sent, read from the TUN.
    pub fn handle_packet(&mut self, packet: &[u8], now: Now) {
        self.assert_drained();
        let Ok(view) = IpView::parse(packet) else {
            self.counters.malformed += 1;
            return;
        };
        if view.is_reserved() {
            self.counters.reserved += 1;
        } else if !addresses(&self.certificate).contains(&view.source()) {
            self.counters.wrong_source += 1;
        } else {
            self.forward(view.destination(), view.bytes(), now);
        }
    }

    /// Does what is due. A late call does it late, and nothing is lost.
    pub fn handle_timeout(&mut self, now: Now) {
        self.assert_drained();
        self.work(now);
    }

    /// Sends an echo to an overlay address; the answer is [`Event::EchoReply`] with the id returned. `None`: nobody
    /// has that address, or too many wait already.
    pub fn handle_echo(&mut self, address: IpAddr, now: Now) -> Option<u64> {
        self.assert_drained();
        let key = self.members.owner_of(&address)?.next_hop;
        self.echoes.retain(|_, (_, sent)| now.instant.duration_since(*sent) < CONNECT_PATIENCE);
        if self.echoes.len() >= MAX_ECHOES {
            return None;
        }
        let id = self.draw.u64();
        self.echoes.insert(id, (key, now.instant));
        self.connect(&key, now);
        let contact = self.contacts.get_mut(&key)?;
        contact.last_used = now.instant;
        if contact.is_ready() {
            contact.paths.handle_sent(now.instant);
            self.send(&key, &Record::Echo { id }, None, now);
        }
        self.work(now);
        Some(id)
    }

    /// Takes newer signed data in: revocations, a network description, a certificate (the own renewed one too).
    ///
    /// # Errors
    /// [`UpdateError`] with the first part that does not verify.
    pub fn handle_update(&mut self, update: &Update, now: Now) -> Result<Updated, UpdateError> {
        self.assert_drained();
        let before = self.roster.knowledge();
        let mut taken = Vec::new();
        for entry in &update.entries {
            let what = match entry {
                Entry::Certificate(raw) => {
                    let serial = raw.peek::<Certificate>().map(|c| (c.serial, c.name));
                    serial.map_or_else(
                        |_| "certificate".to_owned(),
                        |(serial, name)| format!("certificate {serial} of {name}"),
                    )
                }
                Entry::Network(_) => "network description".to_owned(),
                Entry::Revocation(_) | Entry::Head(_) => "revocations".to_owned(),
                Entry::Announcement(_) => "announcement".to_owned(),
            };
            match self.take_entry(entry, now) {
                Taken::News(_) if matches!(entry, Entry::Certificate(_)) => taken.push(what),
                Taken::News(_) | Taken::Known | Taken::Early => {}
                Taken::Refused(why) => {
                    self.work(now);
                    return Err(UpdateError::Refused { what, why: why.to_string() });
                }
            }
        }
        let after = self.roster.knowledge();
        if after.head > before.head {
            taken.push(format!("revocations up to {}", after.head));
        }
        if after.network > before.network {
            taken.push(format!("network version {}", after.network));
        }
        self.work(now);
        let taken = if taken.is_empty() { "nothing new".to_owned() } else { taken.join(", ") };
        Ok(Updated { taken })
    }

    /// Tells the peers that we are going. Drain once more, then drop the node.
    pub fn handle_leave(&mut self, now: Now) {
        if self.has_ended {
            return;
        }
        self.announce(true, now);
        let open: Vec<TransportKey> = self
            .contacts
            .iter()
            .filter(|(_, contact)| contact.is_open() && !contact.is_wireguard)
            .map(|(key, _)| *key)
            .collect();
        for key in open {
            self.send(&key, &Record::Leaving, None, now);
        }
        self.has_ended = true;
    }

    /// Sending over this route failed in a way that shows it down (EPERM of a firewall, no route).
    pub fn handle_send_failure(&mut self, route: Route, now: Now) {
        self.assert_drained();
        for contact in self.contacts.values_mut() {
            contact.paths.handle_send_failure(route, now.instant);
        }
    }

    /// What to do next. Ends with [`Output::Timeout`].
    pub fn poll_output(&mut self) -> Output {
        self.outputs.pop_front().unwrap_or_else(|| Output::Timeout(self.next_timeout()))
    }

    // ---- getters

    /// The tunnel key, for mac1 checks in workers.
    pub fn transport_key(&self) -> TransportKey {
        self.key
    }

    /// The certificate in use; renewed ones replace it.
    pub fn certificate(&self) -> &Signed<Certificate> {
        &self.certificate
    }

    /// The network's description, the newest known.
    pub fn network(&self) -> &Signed<Network> {
        self.roster.network()
    }

    /// Which start of the node this is.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Whether some member has accepted us since the start.
    pub fn is_accepted(&self) -> bool {
        self.is_accepted
    }

    /// Whether there is any master to be accepted by, beside ourselves.
    pub fn has_other_masters(&self) -> bool {
        !self.master_endpoints.is_empty()
    }

    // ---- first contact

    /// Decides about an initiation: whose it is, and whether it may cost us a tunnel.
    fn admit(
        &mut self,
        origin: Route,
        behind: Option<TransportKey>,
        datagram: &[u8],
        now: Now,
    ) -> Option<TransportKey> {
        if self.has_ended || !self.pass_gate(origin, datagram, now) {
            return None;
        }
        let key = anonymous(datagram, &self.transport).ok().filter(|key| *key != self.key)?;
        if self.contacts.contains_key(&key) {
            return Some(key);
        }
        let is_member = self.roster.member(&key, now.wall).is_some();
        if is_member || (behind.is_none() && self.is_master(&key)) {
            let is_others = self.members.by_key.get(&key).is_some_and(|info| info.next_hop != key);
            if is_others {
                // A plain WireGuard member is its gateway's business.
                self.counters.guests += 1;
                return None;
            }
            self.ensure_contact(&key, now);
            return Some(key);
        }
        if behind.is_some() || !self.admit_guest(origin, now) {
            self.counters.guests += 1;
            return None;
        }
        self.ensure_contact(&key, now);
        let contact = self.contacts.get_mut(&key)?;
        contact.guest = Some(Guest { since: now.instant, place: guest_place(&origin) });
        Some(key)
    }

    fn pass_gate(&mut self, origin: Route, datagram: &[u8], now: Now) -> bool {
        let gate_origin = match (origin.relay, origin.egress) {
            (Some(index), _) => GateOrigin::Relay(index.0),
            (None, crate::path::route::Egress::Udp { endpoint, .. }) => {
                GateOrigin::Address(endpoint.ip())
            }
            (None, crate::path::route::Egress::Link(link)) => GateOrigin::Link(link.0.into()),
        };
        match self.gate.admit(datagram, gate_origin, now) {
            Admission::Pass => true,
            Admission::CookieReply(datagram) => {
                self.outputs.push_back(Output::Transmit { route: origin, datagram });
                false
            }
            Admission::Refuse(_) => {
                self.counters.gate += 1;
                false
            }
        }
    }

    /// Whether one more stranger may have a tunnel; makes room by ending the oldest one that has proven nothing.
    fn admit_guest(&mut self, origin: Route, now: Now) -> bool {
        let (max, max_per_place, max_per_second) = MAX_GUESTS;
        let (start, count) = &mut self.guests_this_second;
        if start.is_none_or(|start| now.instant.duration_since(start) >= Duration::from_secs(1)) {
            (*start, *count) = (Some(now.instant), 0);
        }
        *count += 1;
        if *count > max_per_second {
            return false;
        }
        let place = guest_place(&origin);
        let guests: Vec<(TransportKey, Guest)> = self
            .contacts
            .iter()
            .filter_map(|(key, c)| c.guest.map(|guest| (*key, guest)))
            .collect();
        if guests.iter().filter(|(_, guest)| guest.place == place).count() >= max_per_place {
            return false;
        }
        if guests.len() >= max
            && let Some((oldest, _)) = guests.iter().min_by_key(|(_, guest)| guest.since)
        {
            self.put_away(oldest, now);
        }
        true
    }

    // ---- datagrams and packets

    /// Gives a datagram to the tunnel it is for, and everything that comes of it to where it belongs.
    fn feed(&mut self, key: &TransportKey, origin: Route, datagram: &[u8], now: Now) {
        let Some(contact) = self.contacts.get_mut(key) else { return };
        let mut sink = Sink::default();
        match contact.tunnel.handle_datagram(datagram, now, &mut sink) {
            Ok(()) | Err(TunnelError::Duplicate) => {}
            Err(error) => {
                self.counters.unopened += 1;
                tracing::trace!(?key, %error, "datagram did not open");
            }
        }
        let kind = datagram.first().copied().unwrap_or_default();
        let is_initiation = kind == TYPE_INITIATION;
        if sink.opened {
            contact.last_opened = Some(now.instant);
        }
        // An initiation alone never changes a route: it may be a replay from anywhere.
        let is_proof = !is_initiation && (sink.opened || sink.established);
        if is_proof {
            let is_first = contact.paths.primary().is_none();
            if is_first || (sink.established && kind == TYPE_RESPONSE) || contact.is_wireguard {
                contact.paths.handle_proven(origin, now.instant);
            } else {
                contact.paths.add(origin, false, now.instant);
            }
            if sink.established {
                contact.initiation = None;
            }
            self.route_may_have_changed(key);
        }
        let must_initiate = sink.wrong_timestamp;
        let packets = std::mem::take(&mut sink.packets);
        self.drain_sink(key, sink, Some(origin), now);
        if must_initiate {
            let mut sink = Sink::default();
            if let Some(contact) = self.contacts.get_mut(key) {
                contact.tunnel.initiate(now, &mut sink);
            }
            self.drain_sink(key, sink, None, now);
        }
        if is_proof {
            self.introduce_if_needed(key, kind == TYPE_RESPONSE, now);
        }
        for packet in packets {
            self.handle_opened(key, origin, &packet, now);
        }
        if is_proof {
            self.flush_staged(key, now);
        }
    }

    /// Introduces us where that is needed: as initiator under all new keys, since the peer may have started anew; as
    /// responder once the initiator has shown that it holds the keys.
    fn introduce_if_needed(&mut self, key: &TransportKey, as_initiator: bool, now: Now) {
        let mut repeat = self.introduction_repeat(now.instant);
        repeat.is_due(now.instant);
        let Some(contact) = self.contacts.get_mut(key) else { return };
        let is_under_way = contact.is_open() || contact.introduction.is_some();
        if contact.is_wireguard || (is_under_way && !as_initiator) {
            return;
        }
        if !contact.is_open() {
            contact.introduction = Some(repeat);
        }
        self.introduce(key, now);
    }

    /// An IP packet came out of a tunnel.
    fn handle_opened(&mut self, key: &TransportKey, origin: Route, packet: &[u8], now: Now) {
        let Some(contact) = self.contacts.get_mut(key) else { return };
        if payload(packet).is_some() {
            if contact.is_wireguard {
                self.counters.reserved += 1;
                return;
            }
            match contact.assembler.handle_packet(packet) {
                Ok(Some(record)) => self.handle_record(key, origin, record, now),
                Ok(None) => {}
                Err(_) => self.counters.malformed += 1,
            }
            return;
        }
        if !contact.is_open() {
            self.counters.before_acceptance += 1;
            return;
        }
        let Ok(view) = IpView::parse(packet) else {
            self.counters.malformed += 1;
            return;
        };
        if view.is_reserved() {
            self.counters.reserved += 1;
            return;
        }
        contact.received += view.bytes().len() as u64;
        contact.last_used = now.instant;
        let from = self.members.owner_of(&view.source());
        if from.is_none_or(|from| from.next_hop != *key) {
            self.counters.wrong_source += 1;
            return;
        }
        if addresses(&self.certificate).contains(&view.destination()) {
            self.outputs.push_back(Output::Deliver { packet: view.bytes().to_vec() });
            return;
        }
        // A gateway passes on between its plain WireGuard members and everybody else, nothing more.
        let is_plain = |address: &IpAddr| {
            self.members
                .by_address
                .get(address)
                .and_then(|key| self.contacts.get(key))
                .is_some_and(|contact| contact.is_wireguard)
        };
        if self.is_gateway() && (is_plain(&view.source()) || is_plain(&view.destination())) {
            self.forward(view.destination(), view.bytes(), now);
        } else {
            self.counters.wrong_destination += 1;
        }
    }

    /// Sends a packet towards the member that owns its destination.
    fn forward(&mut self, destination: IpAddr, packet: &[u8], now: Now) {
        let Some(key) = self.members.owner_of(&destination).map(|info| info.next_hop) else {
            self.counters.no_member += 1;
            return;
        };
        self.ensure_contact(&key, now);
        let Some(contact) = self.contacts.get_mut(&key) else { return };
        contact.last_used = now.instant;
        if !contact.is_ready() {
            if contact.stage(packet) {
                self.counters.staged_out += 1;
            }
            self.connect(&key, now);
            return;
        }
        let mut sink = Sink::default();
        contact.sent += packet.len() as u64;
        contact.paths.handle_sent(now.instant);
        contact.tunnel.seal(packet, now, &mut sink);
        self.drain_sink(&key, sink, None, now);
    }

    /// Sends what waited, once the tunnel is ready.
    fn flush_staged(&mut self, key: &TransportKey, now: Now) {
        let Some(contact) = self.contacts.get_mut(key) else { return };
        if !contact.is_ready() || contact.staged.is_empty() {
            return;
        }
        let mut sink = Sink::default();
        while let Some(packet) = contact.staged.pop_front() {
            contact.sent += packet.len() as u64;
            contact.tunnel.seal(&packet, now, &mut sink);
        }
        contact.paths.handle_sent(now.instant);
        self.drain_sink(key, sink, None, now);
    }

    /// Seals a control record and sends it: over `via` if given, else over the peer's route.
    fn send(&mut self, key: &TransportKey, record: &Record, via: Option<Route>, now: Now) {
        self.record_id = self.record_id.wrapping_add(1);
        let Some(contact) = self.contacts.get_mut(key) else { return };
        if contact.is_wireguard {
            return;
        }
        let mut sink = Sink::default();
        for packet in parts::split(record, self.record_id) {
            contact.tunnel.seal(&packet, now, &mut sink);
        }
        self.drain_sink(key, sink, via, now);
    }

    /// Sends what a tunnel made: responses back to `via`, initiations over every way there is while none is proven,
    /// everything else over `via` or the peer's route.
    fn drain_sink(&mut self, key: &TransportKey, sink: Sink, via: Option<Route>, now: Now) {
        for datagram in sink.datagrams {
            let kind = datagram.first().copied().unwrap_or_default();
            let Some(contact) = self.contacts.get_mut(key) else { return };
            let primary = contact.paths.primary();
            if kind == TYPE_INITIATION {
                contact.initiation = Some(datagram.clone());
            }
            let routes = match (kind, via, primary) {
                (TYPE_RESPONSE | TYPE_COOKIE_REPLY, Some(via), _) => vec![via],
                (TYPE_INITIATION, None, None) => self.ways(key, now),
                (TYPE_INITIATION, None, Some(primary)) => vec![primary],
                (_, Some(via), None) => vec![via],
                (_, Some(via), Some(primary)) => {
                    // Of what comes while a datagram is handled, only the answer goes back where it came from.
                    vec![if sink.opened || sink.established { primary } else { via }]
                }
                (_, None, Some(primary)) => vec![primary],
                (_, None, None) => Vec::new(),
            };
            for route in routes {
                let datagram = datagram.clone();
                self.outputs.push_back(Output::Transmit { route, datagram });
            }
        }
    }

    fn direct(&mut self, directive: Directive) {
        self.outputs.push_back(Output::Directive(directive));
    }

    /// After anything that may have moved a peer's route: tells the data plane, relays, and who is reached through it.
    fn route_may_have_changed(&mut self, key: &TransportKey) {
        let Some(contact) = self.contacts.get_mut(key) else { return };
        let (old, new) = (contact.published, contact.paths.primary());
        if old == new {
            return;
        }
        contact.published = new;
        let was_open = contact.was_open;
        for info in self.members.by_key.values().filter(|info| info.next_hop == *key) {
            let directive = Directive::SetRoute { slot: info.slot, route: new };
            self.outputs.push_back(Output::Directive(directive));
        }
        if let (Some(old), Some(new)) = (old, new) {
            for contact in self.contacts.values_mut() {
                contact.paths.move_next_hop(old, new);
            }
            let behind: Vec<TransportKey> = self
                .relayed
                .values()
                .filter(|relayed| relayed.relay == *key)
                .map(|relayed| relayed.peer)
                .collect();
            for peer in behind {
                self.route_may_have_changed(&peer);
            }
        }
        self.move_pairs_of(key);
        if was_open && let Some(peer) = self.name_of(key) {
            let event = Event::RouteChanged { peer, route: new };
            self.outputs.push_back(Output::Event(event));
        }
    }

    /// A relay has started anew: what it allocated is gone.
    fn forget_relay(&mut self, relay: &TransportKey, now: Now) {
        let indexes: Vec<RelayIndex> = self
            .relayed
            .iter()
            .filter(|(_, relayed)| relayed.relay == *relay)
            .map(|(index, _)| *index)
            .collect();
        for index in indexes {
            self.forget_relayed(index, now);
        }
    }

    // ---- time

    fn work(&mut self, now: Now) {
        if !self.is_started {
            self.is_started = true;
            self.review(now);
            let active = std::mem::take(&mut self.call_first);
            for key in &active {
                if *key != self.key && self.roster.member(key, now.wall).is_some() {
                    self.connect(key, now);
                }
            }
        }
        if self.has_jumped(now)
            || self.next_review.is_some_and(|t| self.roster.clock(now.wall) >= t)
        {
            self.review(now);
        }
        if self.has_ended {
            return;
        }
        if self.next_housekeeping.is_none_or(|time| now.instant >= time) {
            self.next_housekeeping = Some(now.instant + HOUSEKEEPING);
            self.roster.purge(now.wall);
            for key in self.roster.release(now.wall) {
                self.spread(key, None, now);
            }
            self.expire_relays(now);
            self.call_masters(now);
            if self.certificate.has_ended(self.roster.clock(now.wall)) {
                self.review(now);
            }
        }
        let keys: Vec<TransportKey> = self.contacts.keys().copied().collect();
        for key in keys {
            self.work_contact(&key, now);
        }
        self.announce_if_due(now);
    }

    fn has_jumped(&mut self, now: Now) -> bool {
        let Some(last) = self.clocks.replace(now) else { return false };
        let passed = now.instant.duration_since(last.instant);
        let expected = last.wall.plus(passed);
        expected.since(now.wall).max(now.wall.since(expected)) > CLOCK_JUMP
    }

    fn work_contact(&mut self, key: &TransportKey, now: Now) {
        let Some(contact) = self.contacts.get_mut(key) else { return };
        let mut sink = Sink::default();
        contact.tunnel.handle_timeout(now, &mut sink);
        self.drain_sink(key, sink, None, now);
        let Some(contact) = self.contacts.get_mut(key) else { return };
        let is_up = contact.tunnel.is_established();
        if contact.introduction.as_mut().is_some_and(|r| r.is_due(now.instant)) && is_up {
            self.introduce(key, now);
        }
        self.spread_timeout(key, now);
        self.renew_asks(key, now);
        self.probe(key, now);
        self.route_may_have_changed(key);
        let Some(contact) = self.contacts.get(key) else { return };
        let wants = contact.is_open()
            && !contact.is_ready()
            && !spread::is_silent(contact, now, CONNECT_PATIENCE);
        if wants || contact.connecting.is_some() {
            self.connect(key, now);
        }
        self.flush_staged(key, now);
        self.put_away_if_done(key, now);
    }

    fn probe(&mut self, key: &TransportKey, now: Now) {
        loop {
            let Some(contact) = self.contacts.get_mut(key) else { return };
            if !contact.is_open() || contact.is_wireguard || !contact.tunnel.is_established() {
                return;
            }
            let draw = &mut self.draw;
            let Some((route, id)) =
                contact.paths.poll_probe(&mut self.budget, || draw.u64(), now.instant)
            else {
                return;
            };
            self.send(key, &Record::Probe { id }, Some(route), now);
        }
    }

    fn put_away_if_done(&mut self, key: &TransportKey, now: Now) {
        let is_master = self.is_master(key);
        let we_are_relay = self.certificate.roles.is_relay();
        let Some(contact) = self.contacts.get_mut(key) else { return };
        if let Some(guest) = contact.guest {
            if now.instant.duration_since(guest.since) >= GUEST_PATIENCE {
                self.put_away(key, now);
            }
            return;
        }
        let last_opened = contact.last_opened.unwrap_or(contact.last_used);
        let is_heard = we_are_relay && now.instant.duration_since(last_opened) < PUT_AWAY;
        if is_master || is_heard {
            if contact.connecting.is_some() && spread::is_silent(contact, now, CONNECT_PATIENCE) {
                contact.staged.clear();
            }
            return;
        }
        let patience = if contact.is_open() { PUT_AWAY } else { CONNECT_PATIENCE };
        if spread::is_silent(contact, now, patience) {
            if contact.is_ready() {
                self.send(key, &Record::Leaving, None, now);
            }
            self.put_away(key, now);
        }
    }

    fn next_timeout(&self) -> Instant {
        let Some(clocks) = self.clocks else {
            return self.next_housekeeping.unwrap_or(self.made + NOTHING_DUE);
        };
        if self.has_ended {
            return clocks.instant + Duration::from_secs(3600);
        }
        let review = self.next_review.map(|time| {
            clocks.instant
                + time.since(self.roster.clock(clocks.wall)).min(Duration::from_secs(3600))
        });
        let contacts = self.contacts.values().filter_map(|contact| {
            let is_up =
                contact.is_open() && !contact.is_wireguard && contact.tunnel.is_established();
            let mut next = contact.next_timeout(is_up);
            if let Some(guest) = contact.guest {
                let end = guest.since + GUEST_PATIENCE;
                next = Some(next.map_or(end, |next| next.min(end)));
            }
            next
        });
        contacts
            .chain(review)
            .chain(self.next_housekeeping)
            .chain(self.announcer.next_timeout())
            .min()
            .unwrap_or(clocks.instant + NOTHING_DUE)
    }

    fn assert_drained(&self) {
        debug_assert!(self.outputs.is_empty(), "drain poll_output before the next change");
    }
}

/// Whose guest a stranger is: an IPv6 host has a whole /64.
fn guest_place(origin: &Route) -> Option<IpAddr> {
    origin.endpoint().map(|endpoint| match endpoint.ip().to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6) >> 64 << 64)),
    })
}
