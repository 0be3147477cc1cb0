//! Who may be sent to and from which addresses: the roster's good members as the data plane needs them.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    net::IpAddr,
};

use super::{
    Node,
    output::{Carrier, Directive, Event, Neighbour, Output, PeerSlot},
};
use crate::{
    path::route::Route,
    roster::{Key, addresses},
    wire::record::{Entry, Record, Refusal},
    words::{
        certificate::Certificate,
        id::{Name, Serial},
        key::TransportKey,
        time::Now,
    },
};

/// One good member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MemberInfo {
    pub(super) serial: Serial,
    pub(super) slot: PeerSlot,
    pub(super) addresses: [IpAddr; 2],
    /// The key of the tunnel that leads to it: its own, or its gateway's.
    pub(super) next_hop: TransportKey,
    /// The same as the data plane was told.
    carrier: Carrier,
}

/// All good members but ourselves, by tunnel key and by address.
#[derive(Debug, Default)]
pub(super) struct Members {
    pub(super) by_key: BTreeMap<TransportKey, MemberInfo>,
    by_address: BTreeMap<IpAddr, PeerSlot>,
    by_slot: Vec<Option<TransportKey>>,
    /// Those that another node's tunnel leads to.
    behind: BTreeSet<TransportKey>,
    free_slots: BTreeSet<u32>,
    /// Of the neighbours as they were last spoken of.
    digest: u64,
}

impl Members {
    /// A place for a new member.
    fn take_slot(&mut self, key: TransportKey) -> PeerSlot {
        let slot = self.free_slots.pop_first().unwrap_or_else(|| {
            self.by_slot.push(None);
            self.by_slot.len() as u32 - 1
        });
        self.by_slot[slot as usize] = Some(key);
        PeerSlot(slot)
    }

    fn free_slot(&mut self, slot: PeerSlot) {
        self.by_slot[slot.0 as usize] = None;
        self.free_slots.insert(slot.0);
    }

    /// The member that owns an overlay address.
    pub(super) fn owner_of(&self, address: &IpAddr) -> Option<&MemberInfo> {
        self.by_key.get(&self.key_of(*self.by_address.get(address)?)?)
    }

    /// The member in this place.
    pub(super) fn key_of(&self, slot: PeerSlot) -> Option<TransportKey> {
        *self.by_slot.get(slot.0 as usize)?
    }

    /// The key of the tunnel that leads to the member in this place.
    pub(super) fn next_hop_of(&self, slot: PeerSlot) -> Option<TransportKey> {
        self.by_key.get(&self.key_of(slot)?).map(|info| info.next_hop)
    }

    /// Everybody whose packets go through the tunnel with `key`: its holder, and who is behind it.
    pub(super) fn carried_by(&self, key: &TransportKey) -> impl Iterator<Item = &MemberInfo> {
        let behind = self.behind.iter().filter_map(|member| self.by_key.get(member));
        let own = self.by_key.get(key).filter(|info| info.next_hop == *key);
        own.into_iter().chain(behind.filter(move |info| info.next_hop == *key))
    }
}

impl Node {
    /// The node through which plain WireGuard members are reached: the first master of the description.
    fn gateway(&self) -> Option<TransportKey> {
        self.roster.network().masters.first().map(|master| master.transport)
    }

    /// Whether plain WireGuard members are reached through this node.
    pub(super) fn is_gateway(&self) -> bool {
        self.gateway() == Some(self.key)
    }

    /// Judges everybody again: after news and when a date has passed. Ends what has to end.
    pub(super) fn review(&mut self, now: Now) {
        self.review_self(now);
        self.rebuild_members(now);
        self.review_contacts(now);
        self.next_review = self.roster.next_change(now.wall);
    }

    fn review_self(&mut self, now: Now) {
        let newest = self.roster.member(&self.key, now.wall).map(|member| member.certificate());
        if let Some(newest) = newest
            && newest.serial > self.certificate.serial
            && newest.host == Some(self.host.public())
        {
            self.certificate = newest.clone();
            self.announcer.is_dirty = true;
            // Who refused the old one is shown the new one at once.
            self.refusals.clear();
            let repeat = self.introduction_repeat(now.instant);
            for (_, contact) in self.contacts.iter_mut().filter(|(_, c)| !c.is_wireguard) {
                contact.introduction = Some(repeat);
            }
        }
        let standing = self.roster.standing(&self.certificate, now.wall);
        let ended = self.certificate.has_ended(self.roster.clock(now.wall));
        let why = if ended { Some(Refusal::Expired) } else { standing.err() };
        if let Some(why) = why {
            self.end(why, now);
        }
    }

    /// This node must stop: tells its peers and the shell, once.
    pub(super) fn end(&mut self, why: Refusal, now: Now) {
        if !self.has_ended {
            match why {
                // A farewell would end the tunnels of the machine that has the key now.
                Refusal::InUseElsewhere => {
                    self.has_ended = true;
                    self.end_all_keys(now);
                }
                Refusal::OtherNetwork
                | Refusal::NotYet
                | Refusal::Expired
                | Refusal::Revoked
                | Refusal::Superseded
                | Refusal::OtherKey => self.handle_leave(now),
            }
            self.outputs.push_back(Output::Event(Event::Ended { why }));
        }
    }

    fn rebuild_members(&mut self, now: Now) {
        let gateway = self.gateway();
        let mut wanted: BTreeMap<TransportKey, (Serial, [IpAddr; 2], TransportKey)> =
            BTreeMap::new();
        let mut plain = BTreeSet::new();
        let mut digest = DefaultHasher::new();
        for member in self.roster.members(now.wall) {
            let certificate: &Certificate = member.certificate();
            certificate.serial.hash(&mut digest);
            if certificate.transport == self.key {
                continue;
            }
            if certificate.roles.is_wireguard() {
                plain.insert(certificate.transport);
            }
            let through = if certificate.roles.is_wireguard() && !self.is_gateway() {
                gateway.unwrap_or(certificate.transport)
            } else {
                certificate.transport
            };
            let info = (certificate.serial, addresses(certificate), through);
            wanted.insert(certificate.transport, info);
        }
        let gone: Vec<TransportKey> = self
            .members
            .by_key
            .iter()
            .filter(|(key, info)| wanted.get(*key).is_none_or(|(_, a, _)| *a != info.addresses))
            .map(|(key, _)| *key)
            .collect();
        gone.iter().for_each(|key| self.remove_member(key));
        let mut moved = Vec::new();
        for (key, (serial, addresses, next_hop)) in wanted {
            if let Some(known) = self.members.by_key.get_mut(&key) {
                known.serial = serial;
                if known.next_hop != next_hop {
                    known.next_hop = next_hop;
                    moved.push(key);
                }
                continue;
            }
            let slot = self.members.take_slot(key);
            let carrier = Carrier::Own;
            let info = MemberInfo { serial, slot, addresses, next_hop, carrier };
            self.members.by_key.insert(key, info);
            addresses.iter().for_each(|address| {
                self.members.by_address.insert(*address, slot);
            });
            self.direct(Directive::InstallPeer { slot, addresses });
            self.reinstall_keypairs(&key, slot);
            moved.push(key);
        }
        // Only now, when everybody has a place.
        self.rebuild_carriers(&plain);
        for key in moved {
            self.publish_ways(&key, now);
        }
        let digest = digest.finish();
        if digest != self.members.digest {
            self.members.digest = digest;
            self.outputs.push_back(Output::Event(Event::NeighboursChanged));
        }
    }

    fn remove_member(&mut self, key: &TransportKey) {
        let Some(info) = self.members.by_key.remove(key) else { return };
        info.addresses.iter().for_each(|address| {
            self.members.by_address.remove(address);
        });
        self.members.free_slot(info.slot);
        self.members.behind.remove(key);
        self.last_seen.remove(key);
        self.refusals.remove(key);
        self.direct(Directive::RemovePeer { slot: info.slot });
    }

    /// Says whose tunnel carries the packets of plain WireGuard members, where that has changed.
    fn rebuild_carriers(&mut self, plain: &BTreeSet<TransportKey>) {
        self.members.behind.clear();
        for key in plain {
            let Some(info) = self.members.by_key.get(key) else { continue };
            let carrier = if info.next_hop == *key {
                Carrier::Us
            } else {
                self.members.behind.insert(*key);
                // Without a gateway nobody carries: its own tunnel never comes to be.
                let gateway = self.members.by_key.get(&info.next_hop);
                gateway.map_or(Carrier::Own, |gateway| Carrier::Gateway(gateway.slot))
            };
            let slot = info.slot;
            if info.carrier != carrier
                && let Some(info) = self.members.by_key.get_mut(key)
            {
                info.carrier = carrier;
                self.direct(Directive::SetCarrier { slot, carrier });
            }
        }
    }

    /// Tells the data plane by which way a member is reached now, and under which keys.
    fn publish_ways(&mut self, key: &TransportKey, now: Now) {
        let Some(info) = self.members.by_key.get(key) else { return };
        let (slot, next_hop) = (info.slot, info.next_hop);
        let route = self.contacts.get(&next_hop).and_then(|contact| contact.published);
        let keypairs = self.sealing(&next_hop, now);
        self.direct(Directive::SetRoute { slot, route });
        self.direct(Directive::SealWith { slot, keypairs });
    }

    /// Ends contacts whose certificate is good no more, and says why.
    fn review_contacts(&mut self, now: Now) {
        let mut refused = Vec::new();
        for (key, contact) in self.contacts.iter_mut() {
            let Some(serial) = contact.trust.theirs else { continue };
            if let Some(member) = self.roster.member(key, now.wall) {
                contact.trust.theirs = Some(member.certificate().serial);
                continue;
            }
            let certificate = self.roster.by_serial(serial).map(|member| member.certificate());
            let why = certificate
                .and_then(|certificate| self.roster.standing(certificate, now.wall).err())
                .unwrap_or(Refusal::Expired);
            refused.push((*key, serial, why));
        }
        for (key, serial, why) in refused {
            self.refuse(&key, why, Some(serial), None, now);
        }
    }

    /// Ends a contact: tells it why, with the signed evidence where there is some, and puts everything of it away.
    pub(super) fn refuse(
        &mut self,
        key: &TransportKey,
        why: Refusal,
        serial: Option<Serial>,
        via: Option<Route>,
        now: Now,
    ) {
        let evidence: Vec<Entry> = match why {
            Refusal::Revoked => self
                .roster
                .revocations()
                .filter(|r| r.transport == *key || Some(r.serial) == serial)
                .map(|r| Entry::Revocation(r.raw().clone()))
                .take(2)
                .collect(),
            Refusal::InUseElsewhere => {
                serial.and_then(|s| self.roster.entry(Key::Announcement(s))).into_iter().collect()
            }
            Refusal::OtherNetwork
            | Refusal::NotYet
            | Refusal::Expired
            | Refusal::Superseded
            | Refusal::OtherKey => Vec::new(),
        };
        if !evidence.is_empty() {
            self.send(key, &Record::News { entries: evidence }, via, now);
        }
        self.send(key, &Record::Refused(why), via, now);
        // The other machine with this key, the later one, shares the contact and keeps it.
        if why != Refusal::InUseElsewhere {
            self.put_away(key, now);
        }
    }

    /// Every good node, itself included, by name.
    pub fn neighbours(&self) -> Vec<Neighbour> {
        let mut neighbours: Vec<Neighbour> = self
            .members
            .by_key
            .values()
            .filter_map(|info| self.roster.by_serial(info.serial))
            .map(|member| neighbour(member.certificate(), false))
            .chain(std::iter::once(neighbour(&self.certificate, true)))
            .collect();
        neighbours.sort_by(|a, b| a.name.cmp(&b.name));
        neighbours
    }

    /// Finds a node by name, `NAME.NETWORK` or overlay address.
    pub fn lookup(&self, node: &str) -> Option<(Name, IpAddr)> {
        let suffix = format!(".{}", self.roster.network().name);
        let name = node.strip_suffix(&suffix).unwrap_or(node);
        let address = node.parse::<IpAddr>().ok();
        let is_it = |n: &Neighbour| {
            n.name.as_str() == name
                || address == Some(n.ipv4.into())
                || address == Some(n.ipv6.into())
        };
        let found = self.neighbours().into_iter().find(is_it)?;
        Some((found.name, address.unwrap_or_else(|| found.ipv6.into())))
    }
}

fn neighbour(certificate: &Certificate, is_self: bool) -> Neighbour {
    Neighbour {
        name: certificate.name.clone(),
        ipv4: certificate.ipv4,
        ipv6: certificate.ipv6(),
        host: certificate.host,
        owner: certificate.owner.clone(),
        is_self,
    }
}
