//! Making contact: which ways to try before there is a tunnel, and how masters are met and met again.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use super::{
    Node,
    contact::{Ask, Contact},
    output::{Directive, Event, Output},
};
use crate::{
    api::MasterStatus,
    path::route::Route,
    tunnel::{Sink, Tunnel},
    wire::record::Record,
    words::{
        endpoint::Endpoint,
        id::Name,
        key::TransportKey,
        time::{Now, Repeat},
    },
};

/// How often masters are probed when nothing else is said: below the 30 s after which common NATs forget UDP.
const MASTER_KEEPALIVE: Duration = Duration::from_secs(20);

/// How often an unanswered first message is sent again, over all ways there are.
const CONNECT_FIRST: Duration = Duration::from_secs(1);

/// Slowest pace at which a peer that packets wait for is called.
const CONNECT_SLOWEST: Duration = Duration::from_secs(10);

/// Who has refused us is not called again before this: certificates can be renewed and clocks set, but not that fast.
const REFUSED_PAUSE: Duration = Duration::from_secs(10);

/// How long packets may wait for a peer that does not answer.
pub(super) const CONNECT_PATIENCE: Duration = Duration::from_secs(30);

/// How often a relay is asked again for what it has granted: well within the two minutes that a grant lasts.
const RELAY_RENEW: Duration = Duration::from_secs(45);

/// Relays asked for one peer at most.
const MAX_ASKS: usize = 2;

/// How long a name that was looked up is good, and when a failed look-up is tried again.
const RESOLVE_AGAIN: Duration = Duration::from_secs(60);

/// One endpoint of one master.
#[derive(Debug)]
pub(super) struct MasterEndpoint {
    pub(super) master: TransportKey,
    pub(super) name: Name,
    pub(super) endpoint: Endpoint,
    pub(super) addresses: Vec<SocketAddr>,
    failure: Option<String>,
    looked_up: Option<Instant>,
    tried: bool,
}

impl Node {
    /// Takes the masters of the description that are not ourselves; keeps what is known of endpoints that stay.
    pub(super) fn load_masters(&mut self) {
        let mut old = std::mem::take(&mut self.master_endpoints);
        for master in &self.roster.network().masters {
            if master.transport == self.key {
                continue;
            }
            for endpoint in &master.endpoints {
                let known = old
                    .iter()
                    .position(|m| m.master == master.transport && m.endpoint == *endpoint)
                    .map(|place| old.swap_remove(place));
                self.master_endpoints.push(known.unwrap_or_else(|| MasterEndpoint {
                    master: master.transport,
                    name: master.name.clone(),
                    endpoint: endpoint.clone(),
                    addresses: Vec::new(),
                    failure: None,
                    looked_up: None,
                    tried: false,
                }));
            }
        }
    }

    /// Keeps calling every master that does not answer; asks for names to be looked up.
    pub(super) fn call_masters(&mut self, now: Now) {
        let mut keys = Vec::new();
        let mut lookups = Vec::new();
        for entry in &mut self.master_endpoints {
            if !keys.contains(&entry.master) {
                keys.push(entry.master);
            }
            match &entry.endpoint {
                Endpoint::Udp { host, port } => {
                    if let Ok(ip) = host.parse::<IpAddr>() {
                        entry.addresses = vec![SocketAddr::new(ip, *port)];
                        continue;
                    }
                    let answers =
                        self.contacts.get(&entry.master).is_some_and(|contact| contact.is_ready());
                    let is_old = entry
                        .looked_up
                        .is_none_or(|at| now.instant.duration_since(at) >= RESOLVE_AGAIN);
                    if is_old && !answers {
                        entry.looked_up = Some(now.instant);
                        lookups.push((host.clone(), *port));
                    }
                }
                Endpoint::Tcp { .. } | Endpoint::Ssh { .. } => {
                    entry.failure =
                        Some("this version reaches masters over udp:// only".to_owned());
                }
            }
        }
        for (host, port) in lookups {
            self.outputs.push_back(Output::Resolve { host, port });
        }
        for key in keys {
            let is_ready = self.contacts.get(&key).is_some_and(Contact::is_ready);
            if !is_ready {
                self.connect(&key, now);
            }
        }
    }

    /// The answer to `Output::Resolve`.
    pub fn handle_resolved(
        &mut self,
        host: &str,
        port: u16,
        found: Result<Vec<SocketAddr>, String>,
        now: Now,
    ) {
        self.begin(now);
        let is_it = |endpoint: &Endpoint| matches!(endpoint, Endpoint::Udp { host: h, port: p } if h == host && *p == port);
        let mut keys = Vec::new();
        for entry in self.master_endpoints.iter_mut().filter(|entry| is_it(&entry.endpoint)) {
            match &found {
                // A failed look-up does not take away addresses that were good before.
                Ok(addresses) => {
                    entry.addresses.clone_from(addresses);
                    entry.failure = None;
                    keys.push(entry.master);
                }
                Err(failure) => entry.failure = Some(format!("cannot be resolved: {failure}")),
            }
        }
        for key in keys {
            if let Some(contact) = self.contacts.get_mut(&key) {
                contact.connecting = None;
            }
            self.connect(&key, now);
        }
        self.emit_cache_changed();
    }

    /// Whether this key is a master's, by the signed description.
    pub(super) fn is_master(&self, key: &TransportKey) -> bool {
        self.roster.network().master(key).is_some()
    }

    /// Makes a contact for a key if there is none, with a fresh tunnel index.
    pub(super) fn ensure_contact(&mut self, key: &TransportKey, now: Now) {
        if self.contacts.contains_key(key) {
            return;
        }
        let index = loop {
            let index = self.draw.u32() >> 8;
            if index != 0 && !self.indexes.contains_key(&index) {
                break index;
            }
        };
        let keepalive = self.is_master(key).then_some(MASTER_KEEPALIVE);
        let tunnel = Tunnel::new(&self.transport, key, index, now);
        let mut contact = Contact::new(tunnel, keepalive, now.instant);
        let certificate = self.roster.member(key, now.wall).map(|member| member.certificate());
        if let Some(certificate) = certificate.filter(|c| c.roles.is_wireguard()) {
            // The authority itself has introduced it: its certificate is all there will be.
            contact.is_wireguard = true;
            contact.trust.theirs = Some(certificate.serial);
            contact.trust.ours = true;
        }
        self.indexes.insert(index, *key);
        self.contacts.insert(*key, contact);
        self.direct(Directive::InstallTunnel { index });
    }

    /// Starts, or goes on, calling a peer.
    pub(super) fn connect(&mut self, key: &TransportKey, now: Now) {
        if self.has_ended {
            return;
        }
        self.ensure_contact(key, now);
        let Some(contact) = self.contacts.get_mut(key) else { return };
        if contact.is_ready() || contact.is_wireguard {
            contact.connecting = None;
            return;
        }
        let refused = self.refusals.get(key).map(|(_, when)| *when + REFUSED_PAUSE);
        let repeat = contact.connecting.get_or_insert_with(|| {
            let mut repeat = Repeat::new(CONNECT_FIRST, CONNECT_SLOWEST, now.instant);
            repeat.next = repeat.next.max(refused.unwrap_or(now.instant));
            repeat
        });
        if !repeat.is_due(now.instant) {
            return;
        }
        self.ask_relays(key, now);
        let mut sink = Sink::default();
        let Some(contact) = self.contacts.get_mut(key) else { return };
        let is_lost = contact.paths.primary().is_none();
        if is_lost || !contact.tunnel.is_established() || contact.is_open() {
            // Also where keys were made and the way was lost before both had introduced themselves.
            contact.tunnel.initiate(now, &mut sink);
        }
        if sink.datagrams.is_empty()
            && let Some(initiation) = contact.initiation.clone()
        {
            // boringtun makes a new one every five seconds at most; until then the same one, which costs the peer nothing.
            sink.datagrams.push(initiation);
        }
        self.drain_sink(key, sink, None, now);
    }

    /// Ways to a peer that has no proven route: a master's endpoints, relays, what it announced, where it was last.
    pub(super) fn ways(&mut self, key: &TransportKey, now: Now) -> Vec<Route> {
        let mut ways: Vec<Route> = Vec::new();
        for entry in self.master_endpoints.iter_mut().filter(|entry| entry.master == *key) {
            entry.tried |= !entry.addresses.is_empty();
            ways.extend(entry.addresses.iter().map(|address| Route::direct(*address)));
        }
        let relayed = self.relayed.iter().filter(|(_, relayed)| relayed.peer == *key);
        for (index, relayed) in relayed {
            let hop = self.hop_to(&relayed.relay);
            ways.extend(hop.map(|hop| Route { relay: Some(*index), ..hop }));
        }
        for address in self.claims(key, now) {
            if self.budget.spend(address, now.instant) {
                ways.push(Route::direct(address));
            }
        }
        for address in self.last_seen.get(key).into_iter().flatten() {
            if self.budget.spend(*address, now.instant) {
                ways.push(Route::direct(*address));
            }
        }
        let mut unique: Vec<Route> = Vec::new();
        ways.retain(|way| {
            let is_new = !unique.contains(way);
            unique.push(*way);
            is_new
        });
        ways
    }

    /// What a peer announced and may be probed.
    pub(super) fn claims(&self, key: &TransportKey, now: Now) -> Vec<SocketAddr> {
        let Some(member) = self.roster.member(key, now.wall) else { return Vec::new() };
        let Some(announcement) = member.announcement(now.wall).filter(|a| !a.leaving) else {
            return Vec::new();
        };
        let all = &announcement.candidates;
        let accepted = all.iter().filter(|claim| self.vantage.accepts(**claim, all));
        accepted.map(|claim| SocketAddr::new(claim.ip().to_canonical(), claim.port())).collect()
    }

    /// Asks relays for a way to a peer, if it is not one that is met directly.
    fn ask_relays(&mut self, key: &TransportKey, now: Now) {
        if self.roster.member(key, now.wall).is_none() {
            return;
        }
        let relays: Vec<TransportKey> = self
            .contacts
            .iter()
            .filter(|(relay, contact)| *relay != key && contact.is_ready())
            .filter(|(relay, contact)| {
                let direct = contact.paths.primary().is_some_and(|route| route.is_direct());
                direct && self.is_relay(relay, now)
            })
            .map(|(relay, _)| *relay)
            .take(MAX_ASKS)
            .collect();
        let Some(contact) = self.contacts.get_mut(key) else { return };
        for relay in relays {
            let ask = contact.asks.entry(relay).or_insert_with(|| Ask {
                repeat: Repeat::new(Duration::from_millis(250), CONNECT_SLOWEST, now.instant),
                granted: None,
            });
            if ask.granted.is_some() {
                // What it granted does not lead there now: the other side may have forgotten its index.
                ask.repeat.next = now.instant;
            }
        }
        self.renew_asks(key, now);
    }

    /// Sends the relay requests that are due.
    pub(super) fn renew_asks(&mut self, key: &TransportKey, now: Now) {
        let serial = self.roster.member(key, now.wall).map(|m| m.certificate().serial);
        let Some(contact) = self.contacts.get_mut(key) else { return };
        let Some(serial) = serial else {
            contact.asks.clear();
            return;
        };
        let mut due = Vec::new();
        for (relay, ask) in &mut contact.asks {
            if ask.repeat.is_due(now.instant) {
                due.push(*relay);
                if ask.granted.is_some() {
                    ask.repeat = Repeat::new(RELAY_RENEW, RELAY_RENEW, now.instant);
                    ask.repeat.is_due(now.instant);
                }
            }
        }
        for relay in due {
            let is_ready = self.contacts.get(&relay).is_some_and(Contact::is_ready);
            if is_ready {
                self.send(&relay, &Record::RelayAsk { peer: serial }, None, now);
            } else if let Some(contact) = self.contacts.get_mut(key) {
                contact.asks.remove(&relay);
            }
        }
    }

    /// Whether a member's certificate makes it a relay.
    pub(super) fn is_relay(&self, key: &TransportKey, now: Now) -> bool {
        self.roster.member(key, now.wall).is_some_and(|m| m.certificate().roles.is_relay())
    }

    /// Ends a contact and everything that hangs on it.
    pub(super) fn put_away(&mut self, key: &TransportKey, now: Now) {
        self.end_keys(key, now);
        let Some(contact) = self.contacts.remove(key) else { return };
        self.indexes.remove(&contact.tunnel.index());
        self.direct(Directive::RemoveTunnel { index: contact.tunnel.index() });
        self.remember(key, contact.paths.primary());
        self.close_relayed(key, now);
        self.forget_relay(key, now);
        self.end_pairs_of(key, now);
        for info in self.members.carried_by(key) {
            let directive = Directive::SetRoute { slot: info.slot, route: None };
            self.outputs.push_back(Output::Directive(directive));
        }
        if contact.was_open
            && let Some(peer) = self.name_of(key)
        {
            self.outputs.push_back(Output::Event(Event::PeerDown { peer }));
        }
        self.announcer.is_dirty |= self.is_master(key);
    }

    /// Keeps the address where a member was last reached, for the next time.
    pub(super) fn remember(&mut self, key: &TransportKey, route: Option<Route>) {
        let address = route.filter(Route::is_direct).and_then(|route| route.endpoint());
        if let Some(address) = address.filter(|_| self.members.by_key.contains_key(key)) {
            self.last_seen.insert(*key, vec![address]);
        }
    }

    /// How the masters answer, in words.
    pub(super) fn master_status(&self) -> Vec<MasterStatus> {
        let describe = |entry: &MasterEndpoint| {
            let contact = self.contacts.get(&entry.master);
            let route =
                contact.filter(|contact| contact.is_ready()).and_then(|c| c.paths.primary());
            let is_here = route
                .and_then(|route| route.endpoint())
                .is_some_and(|endpoint| entry.addresses.contains(&endpoint));
            let refusal = self.refusals.get(&entry.master).map(|(why, _)| why);
            let outcome = if is_here {
                "answers".to_owned()
            } else if let Some(route) = &route {
                format!("answers, {}", self.describe_route(route))
            } else if let Some(why) = refusal {
                format!("refused: {why}")
            } else if let Some(failure) = &entry.failure {
                failure.clone()
            } else if entry.tried {
                "no answer (a firewall on the way, another port, or the master is not running)"
                    .to_owned()
            } else {
                "not tried yet".to_owned()
            };
            MasterStatus {
                name: entry.name.clone(),
                endpoint: entry.endpoint.to_string(),
                outcome,
                answers: route.is_some(),
            }
        };
        self.master_endpoints.iter().map(describe).collect()
    }

    /// A name for a key: the member's, else the master's of the description.
    pub(super) fn name_of(&self, key: &TransportKey) -> Option<Name> {
        self.members
            .by_key
            .get(key)
            .and_then(|info| self.roster.by_serial(info.serial))
            .map(|member| member.certificate().name.clone())
            .or_else(|| self.roster.network().master(key).map(|master| master.name.clone()))
    }
}
