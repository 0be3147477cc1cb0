//! A contact: everything about one tunnel that is, or is being, made. Put away when nobody needs it.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    time::{Duration, Instant},
};

use super::{GUEST_PATIENCE, connect::CONNECT_PATIENCE};
use crate::{
    channel::state::Channel,
    path::{paths::Paths, route::Route},
    tunnel::{REKEY_TIMEOUT, Tunnel},
    wire::{
        exchange::{Features, Suites},
        parts::Assembler,
        record::Knowledge,
        relay::RelayIndex,
    },
    words::{
        id::{Incarnation, Serial},
        key::TransportKey,
        time::Repeat,
    },
};

/// Packets held for one peer until they can be sealed, and their bytes: the oldest are dropped first.
const MAX_STAGED: (usize, usize) = (128, 512 << 10);

/// Places that are called back in five seconds.
const MAX_CALLED_BACK: usize = 4;

/// First pause between repeated records; doubles.
pub(super) const REPEAT_FIRST: Duration = Duration::from_millis(250);

/// How far two nodes have come in trusting each other inside a tunnel.
#[derive(Debug, Default)]
pub(super) struct Trust {
    /// The certificate of theirs that we have accepted.
    pub(super) theirs: Option<Serial>,
    /// They have accepted ours.
    pub(super) ours: bool,
    /// Which start of the peer this is about.
    pub(super) incarnation: Option<Incarnation>,
    /// What this start of the peer can do, by its first introduction.
    pub(super) suites: Suites,
    pub(super) features: Features,
}

/// Asking one relay for a way to this contact.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) repeat: Repeat,
    pub(super) granted: Option<RelayIndex>,
}

/// Where a stranger's tunnel came from: it has five seconds to show a certificate.
#[derive(Debug, Clone, Copy)]
pub(super) struct Guest {
    pub(super) since: Instant,
    /// IPv4 address or IPv6 /64; `None` over a link.
    pub(super) place: Option<IpAddr>,
}

#[derive(Debug)]
pub(super) struct Contact {
    pub(super) tunnel: Tunnel,
    pub(super) assembler: Assembler,
    pub(super) paths: Paths,
    pub(super) trust: Trust,
    pub(super) guest: Option<Guest>,
    /// A plain WireGuard program: no control records.
    pub(super) is_wireguard: bool,
    /// Our introduction, until theirs says that it was accepted.
    pub(super) introduction: Option<Repeat>,
    /// The data channel, where both sides have it: then IP packets go no other way.
    pub(super) channel: Option<Box<Channel>>,
    pub(super) staged: VecDeque<Vec<u8>>,
    staged_bytes: usize,
    /// The newest initiation of ours that has not been answered: sent again over ways found meanwhile.
    pub(super) initiation: Option<Vec<u8>>,
    /// Asked again while nothing answers.
    pub(super) connecting: Option<Repeat>,
    pub(super) asks: BTreeMap<TransportKey, Ask>,
    /// What the peer knows, and what we last told it of ours.
    pub(super) knowledge: Knowledge,
    pub(super) told: Option<Knowledge>,
    pub(super) telling: Option<Repeat>,
    /// How far we have read its roster: epoch and version.
    pub(super) read: (u64, u64),
    pub(super) reading: Option<Repeat>,
    pub(super) sent: u64,
    pub(super) received: u64,
    /// When an IP packet last went either way, or somebody asked for the peer.
    pub(super) last_used: Instant,
    pub(super) last_opened: Option<Instant>,
    /// How far its clock is ahead of ours, in seconds.
    pub(super) skew: Option<i64>,
    /// Has been open: its end is worth a word.
    pub(super) was_open: bool,
    /// The route as the data plane was last told.
    pub(super) published: Option<Route>,
    /// The newest direct route: what it relays for us comes and goes there, until there is another.
    pub(super) hop: Option<Route>,
    /// Where refused initiations came from, and when one of ours went back there.
    pub(super) called_back: Vec<(Route, Instant)>,
    /// Another hop than before, of which the relay has not been told.
    pub(super) is_hop_new: bool,
}

impl Contact {
    pub(super) fn new(tunnel: Tunnel, keepalive: Option<Duration>, now: Instant) -> Self {
        Self {
            tunnel,
            assembler: Assembler::default(),
            paths: Paths::new(keepalive),
            trust: Trust::default(),
            guest: None,
            is_wireguard: false,
            introduction: None,
            channel: None,
            staged: VecDeque::new(),
            staged_bytes: 0,
            initiation: None,
            connecting: None,
            asks: BTreeMap::new(),
            knowledge: Knowledge::default(),
            told: None,
            telling: None,
            read: (0, 0),
            reading: None,
            sent: 0,
            received: 0,
            last_used: now,
            last_opened: None,
            skew: None,
            was_open: false,
            published: None,
            hop: None,
            called_back: Vec::new(),
            is_hop_new: false,
        }
    }

    /// Both have accepted: IP packets may pass.
    pub(super) fn is_open(&self) -> bool {
        self.trust.theirs.is_some() && self.trust.ours
    }

    /// Open, with keys and a way to send: control records go out at once.
    pub(super) fn is_ready(&self) -> bool {
        self.is_open() && self.tunnel.is_established() && self.paths.primary().is_some()
    }

    /// Packets go out at once: through the channel where both have it, else through the tunnel.
    pub(super) fn carries(&self, now: Instant) -> bool {
        match &self.channel {
            Some(channel) => {
                self.is_open() && self.paths.primary().is_some() && channel.sealing(now).is_some()
            }
            None => self.is_ready(),
        }
    }

    /// Keeps a packet until it can be sealed; says how many older ones were dropped for it.
    pub(super) fn stage(&mut self, packet: &[u8]) -> u64 {
        self.staged_bytes += packet.len();
        self.staged.push_back(packet.to_vec());
        let mut dropped = 0;
        while self.staged.len() > MAX_STAGED.0 || self.staged_bytes > MAX_STAGED.1 {
            self.unstage();
            dropped += 1;
        }
        dropped
    }

    /// The oldest packet that waits.
    pub(super) fn unstage(&mut self) -> Option<Vec<u8>> {
        let packet = self.staged.pop_front()?;
        self.staged_bytes -= packet.len();
        Some(packet)
    }

    /// Nothing waits any more.
    pub(super) fn clear_staged(&mut self) {
        self.staged.clear();
        self.staged_bytes = 0;
    }

    /// Whether an initiation may go back to where a refused one came from: once in five seconds to one place, and to few.
    /// Copies come over several ways, and not every way leads back.
    pub(super) fn may_call_back(&mut self, origin: Route, now: Instant) -> bool {
        self.called_back.retain(|(_, at)| now.saturating_duration_since(*at) < REKEY_TIMEOUT);
        let may = self.called_back.len() < MAX_CALLED_BACK
            && self.called_back.iter().all(|(to, _)| *to != origin);
        if may {
            self.called_back.push((origin, now));
        }
        may
    }

    /// The peer has started anew and forgotten everything.
    pub(super) fn reset_trust(&mut self, incarnation: Incarnation) {
        self.trust = Trust { incarnation: Some(incarnation), ..Trust::default() };
        self.channel = None;
        self.knowledge = Knowledge::default();
        self.told = None;
        self.asks.clear();
    }

    /// Whether its way or its keys have been lost while it is in use.
    pub(super) fn wants_connection(&self, now: Instant) -> bool {
        self.is_open()
            && !self.is_ready()
            && !self.is_wireguard
            && now.saturating_duration_since(self.last_used) < CONNECT_PATIENCE
    }

    /// The earliest of its deadlines; those of paths only while probes can be sent, those of the channel that send only
    /// while it can.
    pub(super) fn next_timeout(&self, now: Instant) -> Option<Instant> {
        let repeats = [self.introduction, self.telling, self.reading, self.connecting];
        let can_probe = self.is_open() && !self.is_wireguard && self.tunnel.is_established();
        let is_due_now =
            self.is_hop_new || (self.connecting.is_none() && self.wants_connection(now));
        repeats
            .iter()
            .flatten()
            .map(|repeat| repeat.next)
            .chain(self.asks.values().map(|ask| ask.repeat.next))
            .chain(self.tunnel.next_timeout())
            .chain(self.paths.next_timeout().filter(|_| can_probe))
            .chain(self.channel.as_ref().and_then(|channel| channel.next_timeout(self.is_ready())))
            .chain(self.guest.map(|guest| guest.since + GUEST_PATIENCE))
            .chain(is_due_now.then_some(now))
            .min()
    }
}
