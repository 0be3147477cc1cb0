//! Relaying, both sides: what a relay allocates, and what its users make of it.
//!
//! Theory of operation. A asks a relay R for a way to B (`RelayAsk`). R, which holds a direct tunnel with both, draws
//! one index for each side and offers B its index together with A's certificate (`RelayOffer`): so the relay says who
//! will come. B takes it (`RelayTake`); R grants A its own index (`RelayGrant`). From then on a datagram from A's
//! origin under A's index leaves for B's origin under B's, and back. R looks at nothing else.
//!
//! An allocation lasts [`LIFETIME`] after it was last asked for, and ends with either tunnel.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{
    Node,
    contact::Contact,
    output::{Directive, Output},
};
use crate::{
    path::route::Route,
    tunnel::Sink,
    wire::{
        record::{Entry, Record, RelayRefusal},
        relay::RelayIndex,
    },
    words::{id::Serial, key::TransportKey, signed::RawSigned, time::Now},
};

/// How long an allocation lasts after it was last asked for.
const LIFETIME: Duration = Duration::from_secs(120);

/// Pairs one node may have asked a relay for at once: a node of a large cluster that talks to all others.
const MAX_PAIRS: usize = 1024;

/// Offers one node accepts at once.
const MAX_RELAYED: usize = 4096;

/// What a relay keeps of one pair. `sides[0]` has the smaller key.
#[derive(Debug)]
pub(super) struct Pair {
    sides: [Side; 2],
    ends: Instant,
}

#[derive(Debug)]
struct Side {
    key: TransportKey,
    index: RelayIndex,
    /// Knows its index: it asked and was granted, or was offered and took.
    taken: bool,
    asked: bool,
    /// Where it was when it last spoke of its index: it may send from elsewhere than where we send to.
    origin: Option<Route>,
    installed: Option<(Route, Route)>,
}

/// What a relay's user keeps: who is behind an index.
#[derive(Debug)]
pub(super) struct Relayed {
    pub(super) relay: TransportKey,
    pub(super) peer: TransportKey,
    pub(super) renewed: Instant,
}

/// The pairs of a relay.
#[derive(Debug, Default)]
pub(super) struct Pairs {
    by_keys: BTreeMap<(TransportKey, TransportKey), Pair>,
    by_index: BTreeMap<RelayIndex, (TransportKey, TransportKey)>,
}

impl Node {
    // ---- as a relay

    pub(super) fn handle_relay_ask(
        &mut self,
        from: &TransportKey,
        peer: Serial,
        origin: Route,
        now: Now,
    ) {
        if let Err(why) = self.allocate(from, peer, origin, now) {
            self.send(from, &Record::RelayDeny { peer, why }, None, now);
        }
    }

    fn allocate(
        &mut self,
        from: &TransportKey,
        peer: Serial,
        origin: Route,
        now: Now,
    ) -> Result<(), RelayRefusal> {
        if !self.certificate.roles.is_relay() {
            return Err(RelayRefusal::NoRelay);
        }
        let to = self.roster.by_serial(peer).map(|member| member.certificate().transport);
        let is_direct = |contact: &Contact| {
            contact.is_ready() && contact.paths.primary().is_some_and(|route| route.is_direct())
        };
        let to = to
            .filter(|to| to != from && self.contacts.get(to).is_some_and(is_direct))
            .ok_or(RelayRefusal::NotConnected)?;
        if !self.contacts.get(from).is_some_and(is_direct) {
            return Err(RelayRefusal::NotConnected);
        }
        let keys = if *from < to { (*from, to) } else { (to, *from) };
        if !self.pairs.by_keys.contains_key(&keys) {
            let asked_by_it = |pair: &&Pair| pair.sides.iter().any(|s| s.key == *from && s.asked);
            if self.pairs.by_keys.values().filter(asked_by_it).count() >= MAX_PAIRS {
                return Err(RelayRefusal::Quota);
            }
            let sides = [keys.0, keys.1].map(|key| {
                let index = self.draw_relay_index();
                self.pairs.by_index.insert(index, keys);
                Side { key, index, taken: false, asked: false, origin: None, installed: None }
            });
            self.pairs.by_keys.insert(keys, Pair { sides, ends: now.instant + LIFETIME });
        }
        let certificate = self.contacts.get(from).and_then(|contact| contact.trust.theirs);
        let certificate = certificate
            .and_then(|serial| self.roster.by_serial(serial))
            .map(|member| member.certificate().raw().clone())
            .ok_or(RelayRefusal::NotConnected)?;
        let Some(pair) = self.pairs.by_keys.get_mut(&keys) else {
            return Err(RelayRefusal::NotConnected);
        };
        pair.ends = now.instant + LIFETIME;
        let mut grant = None;
        let mut offer = None;
        let both_known = pair.sides.iter().all(|side| side.taken || side.key == *from);
        for side in &mut pair.sides {
            if side.key == *from {
                side.asked = true;
                side.taken = true;
                side.origin = Some(origin).filter(Route::is_direct).or(side.origin);
                grant = both_known.then_some(side.index);
            } else {
                offer = Some(side.index);
            }
        }
        self.install_pair(&keys);
        if let Some(index) = offer {
            self.send(&to, &Record::RelayOffer { index, certificate }, None, now);
        }
        if let Some(index) = grant {
            self.send(from, &Record::RelayGrant { peer, index }, None, now);
        }
        Ok(())
    }

    fn draw_relay_index(&mut self) -> RelayIndex {
        loop {
            let index = RelayIndex(self.draw.u32());
            if !self.pairs.by_index.contains_key(&index) && !self.relayed.contains_key(&index) {
                return index;
            }
        }
    }

    pub(super) fn handle_relay_take(
        &mut self,
        from: &TransportKey,
        index: RelayIndex,
        origin: Route,
        now: Now,
    ) {
        let Some(keys) = self.pairs.by_index.get(&index).copied() else { return };
        let Some(pair) = self.pairs.by_keys.get_mut(&keys) else { return };
        let Some(place) = pair.sides.iter().position(|s| s.key == *from && s.index == index) else {
            return;
        };
        let was_taken = std::mem::replace(&mut pair.sides[place].taken, true);
        let side = &mut pair.sides[place];
        side.origin = Some(origin).filter(Route::is_direct).or(side.origin);
        let other = &pair.sides[1 - place];
        let grant = other.asked.then_some((other.key, other.index));
        self.install_pair(&keys);
        if was_taken {
            return;
        }
        let serial = self.contacts.get(from).and_then(|contact| contact.trust.theirs);
        if let (Some((asker, index)), Some(peer)) = (grant, serial) {
            self.send(&asker, &Record::RelayGrant { peer, index }, None, now);
        }
    }

    pub(super) fn handle_relay_close(&mut self, from: &TransportKey, index: RelayIndex, now: Now) {
        if let Some(keys) = self.pairs.by_index.get(&index).copied()
            && (keys.0 == *from || keys.1 == *from)
        {
            self.end_pair(&keys, Some(*from), now);
        }
        let is_users = self.relayed.get(&index).is_some_and(|relayed| relayed.relay == *from);
        if is_users {
            self.forget_relayed(index, now);
        }
    }

    /// (Re)writes the forwarding entries of a pair where an origin has moved.
    fn install_pair(&mut self, keys: &(TransportKey, TransportKey)) {
        let Some(pair) = self.pairs.by_keys.get_mut(keys) else { return };
        let origin = |key: &TransportKey| {
            self.contacts
                .get(key)
                .and_then(|contact| contact.paths.primary())
                .filter(Route::is_direct)
        };
        let (Some(first), Some(second)) = (origin(&keys.0), origin(&keys.1)) else { return };
        let indexes = [pair.sides[0].index, pair.sides[1].index];
        let from = [&pair.sides[0], &pair.sides[1]].map(|side| side.origin);
        let wanted = [
            (from[0].unwrap_or(first), Route { relay: Some(indexes[1]), ..second }),
            (from[1].unwrap_or(second), Route { relay: Some(indexes[0]), ..first }),
        ];
        for (side, wanted) in pair.sides.iter_mut().zip(wanted) {
            if side.installed != Some(wanted) {
                side.installed = Some(wanted);
                let (from, to) = wanted;
                let directive = Directive::InstallRelay { index: side.index, from, to };
                self.outputs.push_back(Output::Directive(directive));
            }
        }
    }

    /// A node's route has changed, by a message opened in its tunnel: its pairs follow.
    pub(super) fn move_pairs_of(&mut self, key: &TransportKey) {
        let keys: Vec<_> =
            self.pairs.by_keys.keys().filter(|k| k.0 == *key || k.1 == *key).copied().collect();
        keys.iter().for_each(|keys| self.install_pair(keys));
    }

    /// A node's tunnel has ended: so do its pairs.
    pub(super) fn end_pairs_of(&mut self, key: &TransportKey, now: Now) {
        let keys: Vec<_> =
            self.pairs.by_keys.keys().filter(|k| k.0 == *key || k.1 == *key).copied().collect();
        keys.iter().for_each(|keys| self.end_pair(keys, Some(*key), now));
    }

    fn end_pair(
        &mut self,
        keys: &(TransportKey, TransportKey),
        gone: Option<TransportKey>,
        now: Now,
    ) {
        let Some(pair) = self.pairs.by_keys.remove(keys) else { return };
        for side in pair.sides {
            self.pairs.by_index.remove(&side.index);
            if side.installed.is_some() {
                self.direct(Directive::RemoveRelay { index: side.index });
            }
            if side.taken && Some(side.key) != gone {
                self.send(&side.key, &Record::RelayClose { index: side.index }, None, now);
            }
        }
    }

    /// Ends allocations that nobody asks for any more; says when the next one may end.
    pub(super) fn expire_relays(&mut self, now: Now) {
        let over: Vec<_> = self
            .pairs
            .by_keys
            .iter()
            .filter(|(_, pair)| pair.ends <= now.instant)
            .map(|(keys, _)| *keys)
            .collect();
        over.iter().for_each(|keys| self.end_pair(keys, None, now));
        let over: Vec<_> = self
            .relayed
            .iter()
            .filter(|(_, relayed)| now.instant.duration_since(relayed.renewed) > LIFETIME)
            .map(|(index, _)| *index)
            .collect();
        over.iter().for_each(|index| self.forget_relayed(*index, now));
    }

    // ---- as a user

    pub(super) fn handle_relay_offer(
        &mut self,
        relay: &TransportKey,
        index: RelayIndex,
        certificate: &RawSigned,
        now: Now,
    ) {
        if !self.is_relay(relay, now) || self.relayed.len() >= MAX_RELAYED {
            return;
        }
        // The relay says who: but only what the authority has signed counts.
        self.take_entry(&Entry::Certificate(certificate.clone()), now);
        let Ok(claimed) = certificate.peek::<crate::words::certificate::Certificate>() else {
            return;
        };
        if self.roster.member(&claimed.transport, now.wall).is_none()
            || claimed.transport == self.key
        {
            return;
        }
        self.learn_relayed(relay, claimed.transport, index, now);
        self.send(relay, &Record::RelayTake { index }, None, now);
    }

    pub(super) fn handle_relay_grant(
        &mut self,
        relay: &TransportKey,
        peer: Serial,
        index: RelayIndex,
        now: Now,
    ) {
        let Some(key) = self.roster.by_serial(peer).map(|m| m.certificate().transport) else {
            return;
        };
        let Some(ask) = self.contacts.get_mut(&key).and_then(|c| c.asks.get_mut(relay)) else {
            return;
        };
        if ask.granted.replace(index).is_none() {
            // From asking quickly to renewing slowly.
            ask.repeat.next = now.instant + Duration::from_secs(45);
        }
        self.learn_relayed(relay, key, index, now);
    }

    pub(super) fn handle_relay_deny(&mut self, relay: &TransportKey, peer: Serial) {
        let Some(key) = self.roster.by_serial(peer).map(|m| m.certificate().transport) else {
            return;
        };
        if let Some(ask) = self.contacts.get_mut(&key).and_then(|c| c.asks.get_mut(relay)) {
            ask.granted = None;
        }
    }

    /// There is a way to `peer` through `relay` under `index`.
    fn learn_relayed(
        &mut self,
        relay: &TransportKey,
        peer: TransportKey,
        index: RelayIndex,
        now: Now,
    ) {
        let Some(hop) = self.hop_to(relay) else { return };
        // An index is between us and one relay: another relay's number for somebody else must not take it over.
        if self.relayed.get(&index).is_some_and(|known| known.relay != *relay || known.peer != peer)
        {
            return;
        }
        let stale: Vec<RelayIndex> = self
            .relayed
            .iter()
            .filter(|(old, known)| **old != index && known.relay == *relay && known.peer == peer)
            .map(|(old, _)| *old)
            .collect();
        stale.iter().for_each(|old| self.forget_relayed(*old, now));
        let is_new = !self.relayed.contains_key(&index);
        self.relayed.insert(index, Relayed { relay: *relay, peer, renewed: now.instant });
        let route = Route { relay: Some(index), ..hop };
        let Some(contact) = self.contacts.get_mut(&peer) else { return };
        if contact.tunnel.is_established() {
            contact.paths.add(route, true, now.instant);
        } else if is_new {
            let initiation = contact.initiation.clone();
            let mut sink = Sink::default();
            match initiation {
                Some(initiation) => sink.datagrams.push(initiation),
                None => contact.tunnel.initiate(now, &mut sink),
            }
            self.drain_sink(&peer, sink, Some(route), now);
        }
    }

    /// Nobody talks with `peer` any more: its relays need not forward for it, nor may it be heard through them.
    pub(super) fn close_relayed(&mut self, peer: &TransportKey, now: Now) {
        let of_peer = self.relayed.iter().filter(|(_, relayed)| relayed.peer == *peer);
        let closed: Vec<_> = of_peer.map(|(index, relayed)| (*index, relayed.relay)).collect();
        for (index, relay) in closed {
            self.relayed.remove(&index);
            self.send(&relay, &Record::RelayClose { index }, None, now);
        }
    }

    /// An index means nothing any more.
    pub(super) fn forget_relayed(&mut self, index: RelayIndex, now: Now) {
        let Some(relayed) = self.relayed.remove(&index) else { return };
        let Some(contact) = self.contacts.get_mut(&relayed.peer) else { return };
        contact.asks.remove(&relayed.relay);
        let routes: Vec<Route> =
            contact.paths.routes().filter(|route| route.relay == Some(index)).collect();
        for route in routes {
            contact.paths.remove(route, now.instant);
        }
        self.route_may_have_changed(&relayed.peer);
        // Somebody who was talking wants another way at once.
        let wants = self.contacts.get(&relayed.peer).is_some_and(|contact| {
            now.instant.duration_since(contact.last_used) < Duration::from_secs(60)
        });
        if wants {
            if let Some(contact) = self.contacts.get_mut(&relayed.peer) {
                contact.connecting = None;
            }
            self.connect(&relayed.peer, now);
        }
    }

    /// Whether a relayed datagram comes from the relay that gave the index, and for whom it stands. Also the way back,
    /// which is our own way to that relay: it may send from elsewhere.
    pub(super) fn behind(&self, origin: &Route) -> Option<(TransportKey, Route)> {
        let relayed = self.relayed.get(&origin.relay?)?;
        let hop = self.hop_to(&relayed.relay)?;
        let came_by = origin.next_hop();
        let is_it = hop == came_by
            || self.contacts.get(&relayed.relay)?.paths.routes().any(|route| route == came_by);
        is_it.then_some((relayed.peer, Route { relay: origin.relay, ..hop }))
    }

    /// Our datagrams reach a relay from elsewhere than before: it takes what we sent under its indexes from there only
    /// when it has heard so inside the tunnel.
    pub(super) fn take_again(&mut self, relay: &TransportKey, now: Now) {
        let own = self.relayed.iter().filter(|(_, relayed)| relayed.relay == *relay);
        let indexes: Vec<RelayIndex> = own.map(|(index, _)| *index).collect();
        for index in indexes {
            self.send(relay, &Record::RelayTake { index }, None, now);
        }
    }

    /// Where datagrams for a relay to forward go, and come from: its own direct route, never one that is relayed itself.
    pub(super) fn hop_to(&self, relay: &TransportKey) -> Option<Route> {
        self.contacts.get(relay)?.hop
    }
}
