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

mod admission;
mod cache;
mod channels;
mod connect;
mod contact;
mod contacts;
mod draw;
mod flow;
mod members;
pub mod output;
mod records;
mod relay;
mod schedule;
mod spread;
mod status;

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use ipnet::IpNet;

use self::{
    cache::Cache,
    channels::Opener,
    connect::{CONNECT_PATIENCE, MasterEndpoint},
    contacts::Contacts,
    draw::Draw,
    members::Members,
    output::Output,
    relay::{Pairs, Relayed},
    spread::Announcer,
    status::Counters,
};
use crate::{
    path::{budget::Budget, candidate::Vantage, route::Route},
    roster::{Roster, Taken, addresses},
    tunnel::gate::Gate,
    wire::{
        exchange::{MAX_STRIPES, Suites},
        ip::IpView,
        message::Message,
        record::{Entry, Record, Refusal},
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

pub use self::channels::Traffic;

/// A tunnel that carries no packets for this long is put away: as long as WireGuard's keys live.
pub const PUT_AWAY: Duration = Duration::from_secs(180);

/// How long a stranger has to show a certificate.
pub const GUEST_PATIENCE: Duration = Duration::from_secs(5);

/// Strangers at once; from one IPv4 address or IPv6 /64; and new ones a second.
pub const MAX_GUESTS: (usize, usize, u32) = (256, 4, 64);

/// A wall clock that strays from the monotonic one by more than this has been set.
const CLOCK_JUMP: Duration = Duration::from_secs(2);

/// By more than this: perhaps the machine is the restored copy of another, which goes on sealing with the same keys.
const CLOCK_LEAP: Duration = Duration::from_secs(60);

/// How often the roster is purged, the announcements that were held back are released, and allocations expire.
const HOUSEKEEPING: Duration = Duration::from_secs(5);

/// Certificates of a page that came are judged with those of the pages behind it, so much later if these stay away: judging looks
/// at everybody.
const SETTLE: Duration = Duration::from_millis(100);

/// How long to sleep when nothing at all is due.
const NOTHING_DUE: Duration = Duration::from_secs(3600);

/// Pings that wait for an answer at once.
const MAX_ECHOES: usize = 1024;

/// A ping under way.
#[derive(Debug)]
struct Echo {
    key: TransportKey,
    asked: Instant,
    /// Not before the peer's tunnel is ready; the round trip then includes the waiting, as it does for a packet.
    is_sent: bool,
}

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
    /// Channel suites to use: this machine's, or the one that the configuration forces. None: no data channel.
    pub suites: Suites,
    /// Threads that seal messages of the channel: the workers, and control behind them.
    pub stripes: u8,
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
    contacts: Contacts,
    indexes: BTreeMap<u32, TransportKey>,
    openers: BTreeMap<u32, Opener>,
    suites: Suites,
    stripes: u8,
    guests_this_second: (Option<Instant>, u32),
    master_endpoints: Vec<MasterEndpoint>,
    /// Members and masters that will not have us: why, and when they last said so.
    refusals: BTreeMap<TransportKey, (Refusal, Instant)>,
    last_seen: BTreeMap<TransportKey, Vec<SocketAddr>>,
    call_first: Vec<TransportKey>,
    pairs: Pairs,
    relayed: BTreeMap<RelayIndex, Relayed>,
    vantage: Vantage,
    budget: Budget,
    announcer: Announcer,
    echoes: BTreeMap<u64, Echo>,
    counters: Counters,
    draw: Draw,
    record_id: u32,
    outputs: VecDeque<Output>,
    made: Instant,
    /// The time of the newest event.
    latest: Instant,
    clocks: Option<Now>,
    next_review: Option<Timestamp>,
    /// Many entries are being taken in: certificates among them are judged all together, at the latest then.
    is_bulk: bool,
    settle_at: Option<Instant>,
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
            contacts: Contacts::default(),
            indexes: BTreeMap::new(),
            openers: BTreeMap::new(),
            suites: settings.suites,
            stripes: settings.stripes.clamp(1, MAX_STRIPES),
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
            latest: now.instant,
            clocks: None,
            next_review: None,
            is_bulk: false,
            settle_at: None,
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
        self.begin(now);
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
        let keys: Vec<TransportKey> = self.contacts.keys();
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
        self.begin(now);
        let Ok(message) = Message::parse(datagram) else {
            self.counters.malformed += 1;
            return;
        };
        let (behind, origin) = match (origin.relay, self.behind(&origin)) {
            (None, _) => (None, origin),
            (Some(_), Some((behind, back))) => (Some(behind), back),
            (Some(_), None) => {
                self.counters.unopened += 1;
                return;
            }
        };
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
            Message::Channel { receiver, .. } => {
                self.handle_message(receiver, origin, behind, datagram, now);
                return;
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
        self.begin(now);
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
        self.begin(now);
        self.work(now);
    }

    /// Sends an echo to an overlay address; the answer is [`output::Event::EchoReply`] with the id returned. `None`: nobody
    /// has that address, or too many wait already.
    pub fn handle_echo(&mut self, address: IpAddr, now: Now) -> Option<u64> {
        self.begin(now);
        let key = self.members.owner_of(&address)?.next_hop;
        self.echoes.retain(|_, echo| now.instant.duration_since(echo.asked) < CONNECT_PATIENCE);
        if self.echoes.len() >= MAX_ECHOES {
            return None;
        }
        let id = self.draw.u64();
        self.echoes.insert(id, Echo { key, asked: now.instant, is_sent: false });
        self.connect(&key, now);
        let contact = self.contacts.get_mut(&key)?;
        contact.last_used = now.instant;
        self.send_echoes(&key, now);
        self.work(now);
        Some(id)
    }

    /// Takes newer signed data in: revocations, a network description, a certificate (the own renewed one too).
    ///
    /// # Errors
    /// [`UpdateError`] with the first part that does not verify.
    pub fn handle_update(&mut self, update: &Update, now: Now) -> Result<Updated, UpdateError> {
        self.begin(now);
        let before = self.roster.knowledge();
        let mut taken = Vec::new();
        self.is_bulk = true;
        let mut refused = None;
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
                    refused = Some(UpdateError::Refused { what, why: why.to_string() });
                    break;
                }
            }
        }
        self.is_bulk = false;
        self.settle(now);
        if let Some(error) = refused {
            self.work(now);
            return Err(error);
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
        self.has_ended = true;
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
        self.end_all_keys(now);
    }

    /// Sending over this route failed in a way that shows it down (EPERM of a firewall, no route).
    pub fn handle_send_failure(&mut self, route: Route, now: Now) {
        self.begin(now);
        let users =
            self.contacts.iter().filter(|(_, contact)| contact.paths.routes().any(|r| r == route));
        let users: Vec<TransportKey> = users.map(|(key, _)| *key).collect();
        for key in users {
            if let Some(contact) = self.contacts.get_mut(&key) {
                contact.paths.handle_send_failure(route, now.instant);
            }
        }
    }

    /// What to do next. Ends with [`Output::Timeout`].
    pub fn poll_output(&mut self) -> Output {
        match self.outputs.pop_front() {
            Some(output) => output,
            None => Output::Timeout(self.next_timeout()),
        }
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

    /// Every change begins here.
    fn begin(&mut self, now: Now) {
        debug_assert!(self.outputs.is_empty(), "drain poll_output before the next change");
        self.latest = now.instant;
    }
}
