//! The network itself: sites, hosts, the queue of datagrams under way, and the log.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap},
    fmt,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use clusternet::{wire::message::Message, words::time::Now};

use super::{
    clock::{Clock, Rng},
    gateway::Gateway,
};

/// Something sans-IO that lives on a simulated host.
pub trait Host {
    /// A datagram has arrived at one of the host's own addresses.
    fn handle_datagram(&mut self, local: SocketAddr, from: SocketAddr, bytes: &[u8], now: Now);
    /// Called after every change and when the wake-up asked for has come: does what is due, says what to send.
    fn poll(&mut self, now: Now) -> Output;
}

/// What a host wants.
#[derive(Debug, Default)]
pub struct Output {
    /// To be sent, in order.
    pub transmits: Vec<Transmit>,
    /// When to poll next; in the past means at once.
    pub wake: Option<Instant>,
}

/// A datagram to send.
#[derive(Debug, Clone)]
pub struct Transmit {
    /// From which of the host's endpoints; an unspecified address means its first one of the family of `to`.
    pub local: SocketAddr,
    /// To which endpoint.
    pub to: SocketAddr,
    /// What.
    pub bytes: Vec<u8>,
}

/// A host of this network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId(pub usize);

/// A LAN, or the internet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SiteId(pub usize);

/// What a host's own line does to datagrams, each way. The line of sender and receiver both count.
#[derive(Debug, Clone, Copy)]
pub struct Condition {
    /// How long each takes.
    pub latency: Duration,
    /// Up to so much longer, evenly spread: datagrams overtake each other.
    pub jitter: Duration,
    /// How likely each is lost.
    pub loss: f64,
    /// How likely each comes twice.
    pub duplicate: f64,
}

impl Default for Condition {
    fn default() -> Self {
        Self {
            latency: Duration::from_millis(5),
            jitter: Duration::ZERO,
            loss: 0.0,
            duplicate: 0.0,
        }
    }
}

/// What became of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It arrived.
    Delivered,
    /// A line lost it.
    Lost,
    /// A partition stands between, or a host is down.
    Cut,
    /// A gateway did not let it pass.
    Filtered,
    /// Nobody has that address.
    Unroutable,
}

/// One line of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Since the start: of arrival where it arrived, else of sending.
    pub at: Duration,
    /// The sender.
    pub from: HostId,
    /// The receiver, where one was found.
    pub to: Option<HostId>,
    /// `initiation`, `response`, `cookie reply`, `data`, `keepalive`, `channel`, `channel keepalive`, `relayed ...` or `other`.
    pub kind: String,
    /// Length of the datagram.
    pub len: usize,
    /// What became of it.
    pub fate: Fate,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>12.6} {} ->", self.at.as_secs_f64(), self.from.0)?;
        match self.to {
            Some(to) => write!(f, " {}", to.0)?,
            None => f.write_str(" ?")?,
        }
        write!(f, " {} ({} bytes) {:?}", self.kind, self.len, self.fate)
    }
}

/// The simulated network.
pub struct Net<H> {
    clock: Clock,
    rng: Rng,
    sites: Vec<Site>,
    hosts: Vec<Slot<H>>,
    under_way: BinaryHeap<Reverse<UnderWay>>,
    sent: u64,
    cuts: BTreeSet<(HostId, HostId)>,
    /// Everything that was sent, and what became of it.
    pub log: Vec<Entry>,
}

struct Site {
    parent: Option<SiteId>,
    gateway: Option<Gateway>,
}

struct Slot<H> {
    host: H,
    site: SiteId,
    addresses: Vec<IpAddr>,
    condition: Condition,
    wake: Option<Instant>,
    wall_error: i64,
    up: bool,
}

/// A datagram on its way; the order of arrival, then of sending.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct UnderWay {
    arrives: Duration,
    number: u64,
    sender: HostId,
    receiver: HostId,
    from: SocketAddr,
    to: SocketAddr,
    bytes: Vec<u8>,
}

/// The internet: every network has it.
pub const INTERNET: SiteId = SiteId(0);

/// A host that is polled so often without time passing never sleeps.
const POLLS_MAX: usize = 10_000;

impl<H: Host> Net<H> {
    /// An empty network; `seed` decides what is lost and what overtakes what.
    pub fn new(clock: Clock, seed: u64) -> Self {
        Self {
            clock,
            rng: Rng::new(seed ^ 0x6e65_7477_6f72_6b00),
            sites: vec![Site { parent: None, gateway: None }],
            hosts: Vec::new(),
            under_way: BinaryHeap::new(),
            sent: 0,
            cuts: BTreeSet::new(),
            log: Vec::new(),
        }
    }

    // ---- building

    /// A site behind a gateway.
    pub fn site(&mut self, parent: SiteId, gateway: Gateway) -> SiteId {
        self.sites.push(Site { parent: Some(parent), gateway: Some(gateway) });
        SiteId(self.sites.len() - 1)
    }

    /// A host with these addresses; it is polled when time next moves.
    pub fn host(&mut self, site: SiteId, addresses: &[IpAddr], host: H) -> HostId {
        let wake = Some(self.now().instant);
        let condition = Condition::default();
        let addresses = addresses.to_vec();
        let slot = Slot { host, site, addresses, condition, wake, wall_error: 0, up: true };
        self.hosts.push(slot);
        HostId(self.hosts.len() - 1)
    }

    /// What the host's line does from now on.
    pub fn set_condition(&mut self, host: HostId, condition: Condition) {
        self.hosts[host.0].condition = condition;
    }

    /// The same for all hosts.
    pub fn set_conditions(&mut self, condition: Condition) {
        for slot in &mut self.hosts {
            slot.condition = condition;
        }
    }

    /// The gateway of a site, to reboot it or to change what it does.
    pub fn gateway(&mut self, site: SiteId) -> &mut Gateway {
        self.sites[site.0].gateway.as_mut().expect("the internet has no gateway")
    }

    /// Parts two hosts, both ways.
    pub fn cut(&mut self, a: HostId, b: HostId) {
        self.cut_one_way(a, b);
        self.cut_one_way(b, a);
    }

    /// Loses everything from one host to another.
    pub fn cut_one_way(&mut self, from: HostId, to: HostId) {
        self.cuts.insert((from, to));
    }

    /// Joins two hosts again, both ways.
    pub fn heal(&mut self, a: HostId, b: HostId) {
        self.cuts.remove(&(a, b));
        self.cuts.remove(&(b, a));
    }

    /// Parts every host of one set from every host of the other.
    pub fn partition(&mut self, some: &[HostId], others: &[HostId]) {
        for a in some {
            for b in others {
                self.cut(*a, *b);
            }
        }
    }

    /// Ends all partitions.
    pub fn heal_all(&mut self) {
        self.cuts.clear();
    }

    /// Switches a host off (it is not polled, what is under way to it is lost) or on.
    pub fn set_up(&mut self, host: HostId, up: bool) {
        let now = self.now().instant;
        let slot = &mut self.hosts[host.0];
        slot.up = up;
        slot.wake = up.then_some(now);
    }

    /// Puts another machine in the host's place, as a restart does; gives back the old one.
    pub fn replace(&mut self, host: HostId, new: H) -> H {
        let old = std::mem::replace(&mut self.hosts[host.0].host, new);
        self.set_up(host, true);
        old
    }

    /// Moves a host to other addresses, perhaps to another site.
    pub fn rehome(&mut self, host: HostId, site: SiteId, addresses: &[IpAddr]) {
        let slot = &mut self.hosts[host.0];
        slot.site = site;
        slot.addresses = addresses.to_vec();
    }

    /// Makes one host's wall clock wrong by so many milliseconds.
    pub fn set_wall_error(&mut self, host: HostId, milliseconds: i64) {
        self.hosts[host.0].wall_error = milliseconds;
    }

    /// The clock alone, for a test that goes on without a network.
    pub fn into_clock(self) -> Clock {
        self.clock
    }

    // ---- running

    /// Both clocks, the wall clock being right.
    pub fn now(&self) -> Now {
        self.clock.set_wall_error(0);
        self.clock.now()
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.clock.elapsed()
    }

    /// Looks at a host.
    pub fn peek(&self, host: HostId) -> &H {
        &self.hosts[host.0].host
    }

    /// All hosts, in order.
    pub fn hosts(&self) -> impl Iterator<Item = (HostId, &H)> {
        self.hosts.iter().enumerate().map(|(number, slot)| (HostId(number), &slot.host))
    }

    /// Does something to a host, by its own clock, then polls it.
    pub fn with<T>(&mut self, host: HostId, action: impl FnOnce(&mut H, Now) -> T) -> T {
        let now = self.now_at(host);
        let result = action(&mut self.hosts[host.0].host, now);
        self.poll(host);
        result
    }

    /// Lets time pass, with everything that happens in it.
    pub fn run_for(&mut self, time: Duration) {
        let end = self.elapsed() + time;
        while self.step(end) {}
        self.clock.advance_to(end);
    }

    /// Lets time pass until the condition holds, looked at after every event; `false` if it never did within `limit`.
    pub fn run_until(&mut self, limit: Duration, mut holds: impl FnMut(&Self) -> bool) -> bool {
        let end = self.elapsed() + limit;
        while !holds(self) {
            if !self.step(end) {
                self.clock.advance_to(end);
                return holds(self);
            }
        }
        true
    }

    /// The log as text, one line each; for `assert_eq!` between runs and for reading after a failure.
    pub fn log_text(&self) -> String {
        self.log.iter().map(|entry| format!("{entry}\n")).collect()
    }

    /// How many datagrams of a kind were delivered.
    pub fn delivered(&self, kind: &str) -> usize {
        let counts = |entry: &&Entry| entry.fate == Fate::Delivered && entry.kind == kind;
        self.log.iter().filter(counts).count()
    }

    /// The next event, unless it is later than `end`.
    fn step(&mut self, end: Duration) -> bool {
        let started = self.now().instant - self.elapsed();
        let arrival = self.under_way.peek().map(|Reverse(next)| next.arrives);
        let wake = self
            .hosts
            .iter()
            .enumerate()
            .filter_map(|(number, slot)| {
                slot.wake.map(|at| (at.saturating_duration_since(started), HostId(number)))
            })
            .min();
        let (at, host) = match (arrival, wake) {
            (None, None) => return false,
            (Some(arrives), Some((at, host))) if at < arrives => (at, Some(host)),
            (Some(arrives), _) => (arrives, None),
            (None, Some((at, host))) => (at, Some(host)),
        };
        let at = at.max(self.elapsed());
        if at > end {
            return false;
        }
        self.clock.advance_to(at);
        match host {
            Some(host) => self.poll(host),
            None => self.arrive(),
        }
        true
    }

    fn arrive(&mut self) {
        let Some(Reverse(datagram)) = self.under_way.pop() else { return };
        let UnderWay { sender, receiver, from, to, bytes, .. } = datagram;
        let slot = &self.hosts[receiver.0];
        if !slot.up || !slot.addresses.contains(&to.ip()) {
            self.note(sender, Some(receiver), &bytes, Fate::Cut);
            return;
        }
        self.note(sender, Some(receiver), &bytes, Fate::Delivered);
        let now = self.now_at(receiver);
        self.hosts[receiver.0].host.handle_datagram(to, from, &bytes, now);
        self.poll(receiver);
    }

    fn poll(&mut self, host: HostId) {
        if !self.hosts[host.0].up {
            self.hosts[host.0].wake = None;
            return;
        }
        for _ in 0..POLLS_MAX {
            let now = self.now_at(host);
            let output = self.hosts[host.0].host.poll(now);
            let done = output.transmits.is_empty();
            for transmit in output.transmits {
                self.transmit(host, transmit);
            }
            self.hosts[host.0].wake = output.wake;
            if done && output.wake.is_none_or(|at| at > now.instant) {
                return;
            }
        }
        panic!("host {} never sleeps:\n{}", host.0, self.tail());
    }

    fn transmit(&mut self, sender: HostId, transmit: Transmit) {
        let Transmit { mut local, to, bytes } = transmit;
        let slot = &self.hosts[sender.0];
        if local.ip().is_unspecified() {
            let Some(ip) = slot.addresses.iter().find(|ip| ip.is_ipv4() == to.is_ipv4()) else {
                return self.note(sender, None, &bytes, Fate::Unroutable);
            };
            local.set_ip(*ip);
        }
        let (receiver, from, to) = match self.route(slot.site, local, to) {
            Ok(found) => found,
            Err(fate) => return self.note(sender, None, &bytes, fate),
        };
        if self.cuts.contains(&(sender, receiver)) {
            return self.note(sender, Some(receiver), &bytes, Fate::Cut);
        }
        let lines = [self.hosts[sender.0].condition, self.hosts[receiver.0].condition];
        let mut copies = 1;
        for line in lines {
            if self.rng.chance(line.loss) {
                return self.note(sender, Some(receiver), &bytes, Fate::Lost);
            }
            copies += usize::from(self.rng.chance(line.duplicate));
        }
        for _ in 0..copies {
            let mut arrives = self.elapsed();
            for line in lines {
                let jitter = u64::try_from(line.jitter.as_nanos()).expect("short");
                let more = if jitter == 0 { 0 } else { self.rng.below(jitter) };
                arrives += line.latency + Duration::from_nanos(more);
            }
            self.sent += 1;
            let number = self.sent;
            let bytes = bytes.clone();
            self.under_way.push(Reverse(UnderWay {
                arrives,
                number,
                sender,
                receiver,
                from,
                to,
                bytes,
            }));
        }
    }

    /// From site to site: up until the destination is known, then down to it. Gives receiver, source and destination as
    /// the receiver sees them.
    fn route(
        &mut self,
        site: SiteId,
        mut from: SocketAddr,
        mut to: SocketAddr,
    ) -> Result<(HostId, SocketAddr, SocketAddr), Fate> {
        let at = self.elapsed();
        let mut site = site;
        let mut came_out_of = None;
        loop {
            if let Some(host) = self.host_in(site, to.ip()) {
                return Ok((host, from, to));
            }
            if let Some(inner) = self.site_towards(site, to.ip()) {
                let hairpin = came_out_of == Some(inner);
                let gateway = self.gateway(inner);
                if hairpin && !gateway.hairpin {
                    return Err(Fate::Filtered);
                }
                to = gateway.inbound(from, to, at).ok_or(Fate::Filtered)?;
                site = inner;
                came_out_of = None;
                continue;
            }
            let parent = self.sites[site.0].parent.ok_or(Fate::Unroutable)?;
            from = self.gateway(site).outbound(from, to, at).ok_or(Fate::Filtered)?;
            came_out_of = Some(site);
            site = parent;
        }
    }

    fn host_in(&self, site: SiteId, ip: IpAddr) -> Option<HostId> {
        let found =
            self.hosts.iter().position(|slot| slot.site == site && slot.addresses.contains(&ip))?;
        Some(HostId(found))
    }

    /// The site within `site` that leads to the address: by its gateway's outside address, or untranslated.
    fn site_towards(&self, site: SiteId, ip: IpAddr) -> Option<SiteId> {
        (0..self.sites.len()).map(SiteId).find(|inner| {
            let Site { parent, gateway: Some(gateway) } = &self.sites[inner.0] else {
                return false;
            };
            let translates =
                gateway.outside.iter().any(|outside| outside.is_ipv4() == ip.is_ipv4());
            *parent == Some(site)
                && if translates {
                    gateway.outside.contains(&ip)
                } else {
                    self.host_in(*inner, ip).is_some() || self.site_towards(*inner, ip).is_some()
                }
        })
    }

    fn now_at(&self, host: HostId) -> Now {
        self.clock.set_wall_error(self.hosts[host.0].wall_error);
        self.clock.now()
    }

    fn note(&mut self, from: HostId, to: Option<HostId>, bytes: &[u8], fate: Fate) {
        let (at, len) = (self.elapsed(), bytes.len());
        self.log.push(Entry { at, from, to, kind: kind(bytes), len, fate });
    }

    fn tail(&self) -> String {
        let last = self.log.len().saturating_sub(20);
        self.log[last..].iter().map(|entry| format!("{entry}\n")).collect()
    }
}

/// What the log calls a datagram.
fn kind(bytes: &[u8]) -> String {
    match Message::parse(bytes) {
        Ok(Message::Initiation { .. }) => "initiation".to_owned(),
        Ok(Message::Response { .. }) => "response".to_owned(),
        Ok(Message::CookieReply { .. }) => "cookie reply".to_owned(),
        Ok(Message::Data { keepalive: true, .. }) => "keepalive".to_owned(),
        Ok(Message::Data { keepalive: false, .. }) => "data".to_owned(),
        Ok(Message::Channel { .. }) if bytes.len() == 32 => "channel keepalive".to_owned(),
        Ok(Message::Channel { .. }) => "channel".to_owned(),
        Ok(Message::Relay { inner, .. }) => format!("relayed {}", kind(inner)),
        Err(_) => "other".to_owned(),
    }
}
