//! Time: what is due now, for the node and for each contact, and when to be woken next.

use std::time::{Duration, Instant};

use super::{
    CLOCK_JUMP, CLOCK_LEAP, GUEST_PATIENCE, HOUSEKEEPING, NOTHING_DUE, Node, PUT_AWAY,
    connect::CONNECT_PATIENCE, spread,
};
use crate::{
    tunnel::Sink,
    wire::record::Record,
    words::{key::TransportKey, time::Now},
};

impl Node {
    pub(super) fn work(&mut self, now: Now) {
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
        let jump = self.clock_jump(now);
        if jump > CLOCK_LEAP {
            self.end_all_keys(now);
        }
        if jump > CLOCK_JUMP || self.next_review.is_some_and(|t| self.roster.clock(now.wall) >= t) {
            self.review(now);
        }
        if self.settle_at.is_some_and(|time| now.instant >= time) {
            self.settle(now);
        }
        if self.has_ended {
            return;
        }
        let is_round = self.next_housekeeping.is_none_or(|time| now.instant >= time);
        if is_round {
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
        let due = if is_round {
            self.contacts.keys()
        } else {
            self.read_deadlines();
            self.contacts.due(now.instant)
        };
        for key in due {
            self.work_contact(&key, now);
        }
        self.announce_if_due(now);
    }

    /// How far the two clocks have moved apart since the last look.
    fn clock_jump(&mut self, now: Now) -> Duration {
        let Some(last) = self.clocks.replace(now) else { return Duration::ZERO };
        let passed = now.instant.duration_since(last.instant);
        let expected = last.wall.plus(passed);
        expected.since(now.wall).max(now.wall.since(expected))
    }

    pub(super) fn work_contact(&mut self, key: &TransportKey, now: Now) {
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
        let Some(contact) = self.contacts.get_mut(key) else { return };
        if std::mem::take(&mut contact.is_hop_new) && contact.is_ready() {
            self.take_again(key, now);
        }
        let Some(contact) = self.contacts.get(key) else { return };
        if contact.wants_connection(now.instant) || contact.connecting.is_some() {
            self.connect(key, now);
        }
        self.work_channel(key, now);
        self.flush_staged(key, now);
        self.put_away_if_done(key, now);
    }

    pub(super) fn probe(&mut self, key: &TransportKey, now: Now) {
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
            let keys = self.sealing(key, now).map_or(0, |keypairs| keypairs.send_index());
            self.send(key, &Record::Probe { id, keys }, Some(route), now);
        }
    }

    pub(super) fn put_away_if_done(&mut self, key: &TransportKey, now: Now) {
        let is_master = self.is_master(key);
        let we_are_relay = self.certificate.roles.is_relay();
        let Some(contact) = self.contacts.get_mut(key) else { return };
        if let Some(guest) = contact.guest {
            if now.instant.duration_since(guest.since) >= GUEST_PATIENCE {
                self.put_away(key, now);
            }
            return;
        }
        if !spread::is_silent(contact, now, CONNECT_PATIENCE) {
            return;
        }
        let last_opened = contact.last_opened.unwrap_or(contact.last_used);
        let is_heard = we_are_relay && now.instant.duration_since(last_opened) < PUT_AWAY;
        let relays_for_us = self.relayed.values().any(|relayed| relayed.relay == *key);
        if is_master || is_heard || (relays_for_us && contact.is_ready()) {
            if contact.connecting.is_some() {
                contact.clear_staged();
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

    /// When to be called again; never because of contacts that nothing has happened to.
    pub(super) fn next_timeout(&mut self) -> Instant {
        let Some(clocks) = self.clocks else {
            return self.next_housekeeping.unwrap_or(self.made + NOTHING_DUE);
        };
        if self.has_ended {
            return clocks.instant + NOTHING_DUE;
        }
        let review = self.next_review.map(|time| {
            let clock = self.roster.clock(clocks.wall);
            // A clock behind the floor stands still: until it has caught up nothing comes nearer.
            let least = if clock > clocks.wall { HOUSEKEEPING } else { Duration::ZERO };
            clocks.instant + time.since(clock).clamp(least, NOTHING_DUE)
        });
        self.read_deadlines();
        self.contacts
            .next_deadline()
            .into_iter()
            .chain(review)
            .chain(self.next_housekeeping)
            .chain(self.settle_at)
            .chain(self.announcer.next_timeout())
            .min()
            .unwrap_or(clocks.instant + NOTHING_DUE)
    }

    fn read_deadlines(&mut self) {
        let latest = self.latest;
        self.contacts.refresh(|contact| contact.next_timeout(latest));
    }
}
