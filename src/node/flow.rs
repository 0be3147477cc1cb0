//! Datagrams and packets: from the underlay into the right tunnel, out of it to where they belong, and back.

use std::net::IpAddr;

use super::{
    Node,
    output::{Directive, Event, Output},
};
use crate::{
    path::route::Route,
    roster::addresses,
    tunnel::{Sink, TunnelError},
    wire::{
        ip::IpView,
        message::{TYPE_COOKIE_REPLY, TYPE_INITIATION, TYPE_RESPONSE},
        parts,
        record::{Record, payload},
        relay::RelayIndex,
    },
    words::{key::TransportKey, time::Now},
};

impl Node {
    /// Gives a datagram to the tunnel it is for, and everything that comes of it to where it belongs.
    pub(super) fn feed(&mut self, key: &TransportKey, origin: Route, datagram: &[u8], now: Now) {
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
            if contact.is_wireguard {
                contact.paths.handle_roamed(origin, now.instant);
            } else if is_first || (sink.established && kind == TYPE_RESPONSE) {
                contact.paths.handle_proven(origin, now.instant);
            } else {
                contact.paths.add(origin, false, now.instant);
                contact.paths.handle_heard(origin, now.instant);
            }
            if sink.established {
                contact.initiation = None;
            }
            self.route_may_have_changed(key);
        }
        let must_initiate = sink.wrong_timestamp;
        let packets = std::mem::take(&mut sink.packets);
        self.drain_sink(key, sink, Some(origin), now);
        if must_initiate
            && let Some(contact) = self.contacts.get_mut(key)
            && contact.may_call_back(origin, now.instant)
        {
            let mut sink = Sink::default();
            contact.tunnel.initiate(now, &mut sink);
            if sink.datagrams.is_empty() {
                // One is under way already, perhaps to where the peer is no more.
                sink.datagrams.extend(contact.initiation.clone());
            }
            // Back to where the refused one came from: its maker may be known nowhere else.
            self.drain_sink(key, sink, Some(origin), now);
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
    pub(super) fn introduce_if_needed(&mut self, key: &TransportKey, as_initiator: bool, now: Now) {
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
    pub(super) fn handle_opened(
        &mut self,
        key: &TransportKey,
        origin: Route,
        packet: &[u8],
        now: Now,
    ) {
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
        if contact.channel.is_some() {
            // Both have the channel: nobody gets a packet in under weaker keys.
            self.counters.beside_channel += 1;
            return;
        }
        self.deliver(key, packet, now);
    }

    /// An IP packet of a peer has been opened: to where it belongs.
    pub(super) fn deliver(&mut self, key: &TransportKey, packet: &[u8], now: Now) {
        let Some(contact) = self.contacts.get_mut(key) else { return };
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
            let member = self.members.owner_of(address).map(|info| info.next_hop);
            member.and_then(|key| self.contacts.get(&key)).is_some_and(|c| c.is_wireguard)
        };
        if self.is_gateway() && (is_plain(&view.source()) || is_plain(&view.destination())) {
            self.forward(view.destination(), view.bytes(), now);
        } else {
            self.counters.wrong_destination += 1;
        }
    }

    /// Sends a packet towards the member that owns its destination.
    pub(super) fn forward(&mut self, destination: IpAddr, packet: &[u8], now: Now) {
        let Some(key) = self.members.owner_of(&destination).map(|info| info.next_hop) else {
            self.counters.no_member += 1;
            return;
        };
        self.ensure_contact(&key, now);
        let Some(contact) = self.contacts.get_mut(&key) else { return };
        contact.last_used = now.instant;
        if contact.is_ready() {
            // Also while keys are waited for: what stands in their way may be a dead route.
            contact.paths.handle_sent(now.instant);
        }
        if !contact.carries(now.instant) {
            self.counters.staged_out += contact.stage(packet);
            self.connect(&key, now);
            self.work_channel(&key, now);
            return;
        }
        if contact.channel.is_some() {
            self.seal_in_channel(&key, packet, now);
            self.work_channel(&key, now);
            return;
        }
        let mut sink = Sink::default();
        contact.sent += packet.len() as u64;
        contact.tunnel.seal(packet, now, &mut sink);
        self.drain_sink(&key, sink, None, now);
    }

    /// Sends the pings for a peer that wait, once its tunnel is ready.
    pub(super) fn send_echoes(&mut self, key: &TransportKey, now: Now) {
        let Some(contact) = self.contacts.get_mut(key).filter(|contact| contact.is_ready()) else {
            return;
        };
        let waiting = self.echoes.iter_mut().filter(|(_, echo)| echo.key == *key && !echo.is_sent);
        let ids: Vec<u64> = waiting
            .map(|(id, echo)| {
                echo.is_sent = true;
                *id
            })
            .collect();
        if !ids.is_empty() {
            contact.paths.handle_sent(now.instant);
        }
        for id in ids {
            self.send(key, &Record::Echo { id }, None, now);
        }
    }

    /// Sends what waited, once the tunnel is ready.
    pub(super) fn flush_staged(&mut self, key: &TransportKey, now: Now) {
        self.send_echoes(key, now);
        let Some(contact) = self.contacts.get_mut(key) else { return };
        if !contact.carries(now.instant) || contact.staged.is_empty() {
            return;
        }
        contact.paths.handle_sent(now.instant);
        let is_channel = contact.channel.is_some();
        let mut sink = Sink::default();
        let mut packets = Vec::new();
        while let Some(packet) = contact.unstage() {
            if is_channel {
                packets.push(packet);
            } else {
                contact.sent += packet.len() as u64;
                contact.tunnel.seal(&packet, now, &mut sink);
            }
        }
        self.drain_sink(key, sink, None, now);
        packets.iter().for_each(|packet| self.seal_in_channel(key, packet, now));
    }

    /// Seals a control record and sends it: over `via` if given, else over the peer's route.
    pub(super) fn send(
        &mut self,
        key: &TransportKey,
        record: &Record,
        via: Option<Route>,
        now: Now,
    ) {
        self.record_id = self.record_id.wrapping_add(1);
        let Some(contact) = self.contacts.get_mut(key) else { return };
        if contact.is_wireguard {
            return;
        }
        let mut sink = Sink::default();
        // Of a repeated offer or answer, parts of one time complete those of another.
        let id = if let Record::Offer(offer) = record {
            number_of(&offer.x25519)
        } else if let Record::Accept(accept) = record {
            number_of(&accept.x25519)
        } else {
            self.record_id
        };
        for packet in parts::split(record, id) {
            contact.tunnel.seal(&packet, now, &mut sink);
        }
        self.drain_sink(key, sink, via, now);
    }

    /// Sends what a tunnel made: responses back to `via`, initiations over every way there is while none is proven,
    /// everything else over `via` or the peer's route.
    pub(super) fn drain_sink(
        &mut self,
        key: &TransportKey,
        sink: Sink,
        via: Option<Route>,
        now: Now,
    ) {
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

    pub(super) fn direct(&mut self, directive: Directive) {
        self.outputs.push_back(Output::Directive(directive));
    }

    /// After anything that may have moved a peer's route: tells the data plane, relays, and who is reached through it.
    pub(super) fn route_may_have_changed(&mut self, key: &TransportKey) {
        let Some(contact) = self.contacts.get_mut(key) else { return };
        let (old, new) = (contact.published, contact.paths.primary());
        if old == new {
            return;
        }
        contact.published = new;
        let old_hop = contact.hop;
        contact.hop = new.filter(Route::is_direct).or(old_hop);
        let new_hop = contact.hop;
        contact.is_hop_new |= old_hop != new_hop;
        let was_open = contact.was_open;
        for info in self.members.carried_by(key) {
            let directive = Directive::SetRoute { slot: info.slot, route: new };
            self.outputs.push_back(Output::Directive(directive));
        }
        if new.is_none() {
            self.remember(key, old);
        }
        if let (Some(old), Some(new)) = (old_hop, new_hop)
            && old != new
        {
            let behind: Vec<TransportKey> = self
                .relayed
                .values()
                .filter(|relayed| relayed.relay == *key)
                .map(|relayed| relayed.peer)
                .collect();
            for peer in behind {
                if let Some(contact) = self.contacts.get_mut(&peer) {
                    contact.paths.move_next_hop(old, new);
                }
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
    pub(super) fn forget_relay(&mut self, relay: &TransportKey, now: Now) {
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
}

/// A number that stands for a share, which is drawn anew for every exchange.
fn number_of(share: &[u8; 32]) -> u32 {
    let [a, b, c, d, ..] = *share;
    u32::from_le_bytes([a, b, c, d])
}
