//! First contact: whose an initiation is, and whether it may cost us a tunnel.
//!
//! Theory of operation. A handshake message passes the gate (mac1, cookies under load, a token bucket per origin); then
//! its maker's key is read. A member's key gets its tunnel; through a relay nobody else does. A stranger becomes a
//! *guest*: few at once, few from one place, few a second, [`GUEST_PATIENCE`](super::GUEST_PATIENCE) to show a certificate.

use std::{
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use super::{MAX_GUESTS, Node, contact::Guest, output::Output};
use crate::{
    path::route::{Egress, Route},
    tunnel::{
        anonymous,
        gate::{Admission, Origin as GateOrigin},
    },
    words::{key::TransportKey, time::Now},
};

impl Node {
    /// Decides about an initiation: whose it is, and whether it may cost us a tunnel.
    pub(super) fn admit(
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

    pub(super) fn pass_gate(&mut self, origin: Route, datagram: &[u8], now: Now) -> bool {
        let gate_origin = match (origin.relay, origin.egress) {
            (Some(index), _) => GateOrigin::Relay(index.0),
            (None, Egress::Udp { endpoint, .. }) => GateOrigin::Address(endpoint.ip()),
            (None, Egress::Link(link)) => GateOrigin::Link(link.0.into()),
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
    pub(super) fn admit_guest(&mut self, origin: Route, now: Now) -> bool {
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
}

/// Whose guest a stranger is: an IPv6 host has a whole /64.
fn guest_place(origin: &Route) -> Option<IpAddr> {
    origin.endpoint().map(|endpoint| match endpoint.ip().to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6) >> 64 << 64)),
    })
}
