//! The data channel as control sees it: exchanges inside tunnels, who seals with what, and the few messages that control
//! seals and opens itself.
//!
//! Theory of operation. [`crate::channel::state`] says of each peer which keys there must be; here that becomes records,
//! directives and datagrams. Workers seal and open; control seals what it sends itself (packets that waited, packets of
//! the plain WireGuard members behind this node, greetings) with a stripe of its own, the last one, so that no two
//! threads ever draw on one counter. From workers it hears three things: that new keys are in use
//! ([`Node::handle_confirmed`]), that a peer speaks from elsewhere ([`Node::handle_heard`]), and once a second what has
//! passed ([`Node::handle_traffic`]).

use std::sync::Arc;

use super::{
    Node,
    connect::CONNECT_PATIENCE,
    output::{Directive, Output, PeerSlot},
    spread,
};
use crate::{
    channel::{
        exchange::{ExchangeError, Party},
        keypair::Keypairs,
        message::{self, MAX_SLICE, Text},
        state::{Step, Terms},
    },
    path::route::Route,
    wire::{
        exchange::{Accept, Features, Offer},
        record::{Introduction, Record},
        superpacket::Kind,
    },
    words::{key::TransportKey, time::Now},
};

/// Whose an index is. Without keys while an offer that names it waits for its answer.
#[derive(Debug)]
pub(super) struct Opener {
    key: TransportKey,
    keypairs: Option<Arc<Keypairs>>,
}

/// What workers have sent to a member, and opened of it, since they last said so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Packets that programs have sent to it.
    pub sent_packets: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Packets that it has sent to programs.
    pub received_packets: u64,
    /// Their bytes.
    pub received_bytes: u64,
}

impl Node {
    // ---- what workers tell

    /// A message has been opened under the keys with this index ([`Keypairs::index`]) for the first time.
    pub fn handle_confirmed(&mut self, index: u32, now: Now) {
        self.begin(now);
        self.confirmed(index, now);
    }

    /// A channel message of this peer was opened that came another way than its route leads: a candidate, no more.
    pub fn handle_heard(&mut self, slot: PeerSlot, origin: Route, now: Now) {
        self.begin(now);
        let Some(key) = self.members.key_of(slot) else { return };
        let origin = match (origin.relay, self.behind(&origin)) {
            (None, _) => origin,
            (Some(_), Some((behind, back))) if behind == key => back,
            (Some(_), _) => return,
        };
        self.heard(&key, origin, now);
    }

    /// What has passed between programs here and a member since the last time; about once a second while something does.
    pub fn handle_traffic(&mut self, slot: PeerSlot, traffic: Traffic, now: Now) {
        self.begin(now);
        let Some(key) = self.members.next_hop_of(slot) else { return };
        let Some(contact) = self.contacts.get_mut(&key) else { return };
        contact.sent += traffic.sent_bytes;
        contact.received += traffic.received_bytes;
        if traffic.sent_packets + traffic.received_packets > 0 {
            contact.last_used = now.instant;
        }
        if traffic.sent_packets > 0 {
            contact.paths.handle_sent(now.instant);
        }
        if traffic.received_packets > 0 {
            contact.last_opened = Some(now.instant);
        }
        self.used(&key, now);
    }

    /// A worker has opened a packet that is not for this node: perhaps for a plain WireGuard member behind it.
    pub fn handle_transit(&mut self, slot: PeerSlot, packet: &[u8], now: Now) {
        self.begin(now);
        if let Some(key) = self.members.key_of(slot) {
            self.deliver(&key, packet, now);
        }
    }

    // ---- exchanges

    /// What our introductions say that we can do.
    pub(super) fn features(&self) -> Features {
        if self.suites.0 == 0 { Features::default() } else { Features::channel(self.stripes) }
    }

    /// An introduction has been accepted. What a start of a peer has said first, it cannot take back.
    pub(super) fn begin_channel(&mut self, key: &TransportKey, introduction: &Introduction) {
        let ours = self.features();
        let Some(contact) = self.contacts.get_mut(key) else { return };
        let both_have = ours.has_channel() && introduction.features.has_channel();
        if contact.channel.is_some() || !both_have {
            return;
        }
        contact.trust.suites = introduction.suites;
        contact.trust.features = introduction.features;
        contact.channel = Some(Box::default());
        if self.suites.choose(introduction.suites).is_none() {
            tracing::warn!(?key, "no cipher suite in common: no packets will pass");
        }
    }

    pub(super) fn handle_offer(&mut self, key: &TransportKey, offer: &Offer, now: Now) {
        let Some(terms) = self.terms(key).filter(|_| !self.has_ended) else { return };
        let index = self.draw_opener();
        self.change_channel(key, now, |channel, steps| {
            channel.handle_offer(offer, index, &terms, now.instant, steps)
        });
    }

    pub(super) fn handle_accept(&mut self, key: &TransportKey, accept: &Accept, now: Now) {
        let Some(terms) = self.terms(key) else { return };
        self.change_channel(key, now, |channel, steps| {
            channel.handle_accept(accept, &terms, now.instant, steps)
        });
        self.flush_staged(key, now);
    }

    /// Whether messages of a peer under this index can be opened: it asks with every probe.
    pub(super) fn opens(&self, key: &TransportKey, index: u32, now: Now) -> bool {
        let opener = self.openers.get(&index).filter(|opener| opener.key == *key);
        let keypairs = opener.and_then(|opener| opener.keypairs.as_ref());
        keypairs.is_some_and(|keypairs| !keypairs.is_dead(now.instant))
    }

    /// A peer has no such keys (0: it has what we seal with).
    pub(super) fn handle_unknown(&mut self, key: &TransportKey, index: u32, now: Now) {
        self.change_channel(key, now, |channel, steps| {
            channel.handle_unknown(index, now.instant, steps);
            Ok(())
        });
    }

    /// What is due for one channel.
    pub(super) fn work_channel(&mut self, key: &TransportKey, now: Now) {
        let Some(contact) = self.contacts.get_mut(key) else { return };
        let can_send = contact.is_ready();
        let is_idle = spread::is_silent(contact, now, CONNECT_PATIENCE);
        if is_idle && contact.channel.is_some() {
            // Nobody has sent anything for so long that what waits is of no use.
            contact.clear_staged();
        }
        let must_carry = !contact.staged.is_empty() && !contact.carries(now.instant);
        self.change_channel(key, now, |channel, steps| {
            if must_carry {
                channel.want(now.instant);
            } else if is_idle {
                channel.rest(steps);
            }
            channel.handle_timeout(can_send, now.instant, steps);
            Ok(())
        });
        let channel = self.contacts.get(key).and_then(|contact| contact.channel.as_ref());
        if can_send && channel.is_some_and(|channel| channel.needs_offer(now.instant)) {
            // Rises without being kept anywhere: we may have put this peer away and met it again.
            let number = now.instant.duration_since(self.made).as_millis() as u64 + 1;
            let index = self.draw_opener();
            self.change_channel(key, now, |channel, steps| {
                channel.offer(number, index, now.instant, steps)
            });
        }
    }

    /// Something has been opened under these keys.
    fn confirmed(&mut self, index: u32, now: Now) {
        let Some(key) = self.openers.get(&index).map(|opener| opener.key) else { return };
        self.change_channel(&key, now, |channel, steps| {
            channel.handle_confirmed(index, steps);
            Ok(())
        });
        self.flush_staged(&key, now);
    }

    /// Packets pass: keys that are getting old are renewed.
    fn used(&mut self, key: &TransportKey, now: Now) {
        let Some(contact) = self.contacts.get_mut(key) else { return };
        if let Some(channel) = &mut contact.channel {
            channel.handle_use(now.instant);
            self.work_channel(key, now);
        }
    }

    /// Ends all keys with a peer at once.
    pub(super) fn end_keys(&mut self, key: &TransportKey, now: Now) {
        self.change_channel(key, now, |channel, steps| {
            channel.end(steps);
            Ok(())
        });
    }

    /// The same for all peers, who learn of it by the next probe.
    pub(super) fn end_all_keys(&mut self, now: Now) {
        let keys: Vec<TransportKey> = self.contacts.keys();
        keys.iter().for_each(|key| self.end_keys(key, now));
    }

    /// Both sides as they have introduced themselves.
    fn terms(&self, key: &TransportKey) -> Option<Terms> {
        let trust = &self.contacts.get(key)?.trust;
        Some(Terms {
            network: *self.roster.id(),
            ours: Party {
                serial: self.certificate.serial,
                key: self.key,
                incarnation: self.incarnation,
                suites: self.suites,
            },
            theirs: Party {
                serial: trust.theirs?,
                key: *key,
                incarnation: trust.incarnation?,
                suites: trust.suites,
            },
            stripes: self.stripes.max(trust.features.stripes()),
        })
    }

    /// An index that no other keys have.
    fn draw_opener(&mut self) -> u32 {
        loop {
            let index = self.draw.u32() >> 8;
            if index != 0 && !self.openers.contains_key(&index) {
                return index;
            }
        }
    }

    /// Changes the state of a channel, and does what follows from it.
    fn change_channel(
        &mut self,
        key: &TransportKey,
        now: Now,
        change: impl FnOnce(
            &mut crate::channel::state::Channel,
            &mut Vec<Step>,
        ) -> Result<(), ExchangeError>,
    ) {
        let Some(contact) = self.contacts.get_mut(key) else { return };
        let Some(channel) = &mut contact.channel else { return };
        let mut steps = Vec::new();
        if let Err(error) = change(channel, &mut steps) {
            self.counters.exchanges += 1;
            tracing::debug!(?key, %error, "channel exchange");
        }
        for step in steps {
            match step {
                Step::Offer(offer) => {
                    let opener = Opener { key: *key, keypairs: None };
                    self.openers.entry(offer.receiver >> 8).or_insert(opener);
                    if let Some(contact) = self.contacts.get_mut(key) {
                        contact.paths.handle_sent(now.instant);
                    }
                    self.send(key, &Record::Offer(Box::new(offer)), None, now);
                }
                Step::Accept(accept) => {
                    self.send(key, &Record::Accept(Box::new(accept)), None, now);
                }
                Step::Install(keypairs) => {
                    let index = keypairs.index();
                    let opener = Opener { key: *key, keypairs: Some(Arc::clone(&keypairs)) };
                    self.openers.insert(index, opener);
                    if let Some(slot) = self.members.by_key.get(key).map(|info| info.slot) {
                        self.direct(Directive::InstallKeypairs { slot, keypairs });
                    }
                }
                Step::Remove(index) => {
                    let removed = self.openers.remove(&index);
                    if removed.is_some_and(|opener| opener.keypairs.is_some()) {
                        self.direct(Directive::RemoveKeypairs { index });
                    }
                }
                Step::Seal => self.publish_sealing(key, now),
                Step::Greet(keypairs) => self.greet(key, &keypairs, now),
            }
        }
    }

    /// Tells the data plane what packets are sealed with that go to this peer, or to who is behind it.
    fn publish_sealing(&mut self, key: &TransportKey, now: Now) {
        let keypairs = self.sealing(key, now);
        for info in self.members.carried_by(key) {
            let directive = Directive::SealWith { slot: info.slot, keypairs: keypairs.clone() };
            self.outputs.push_back(Output::Directive(directive));
        }
    }

    /// What is sealed with, to a peer.
    pub(super) fn sealing(&self, key: &TransportKey, now: Now) -> Option<Arc<Keypairs>> {
        let channel = self.contacts.get(key)?.channel.as_ref()?;
        channel.sealing(now.instant).cloned()
    }

    /// Tells the data plane again which keys open this peer's messages: it has a new place.
    pub(super) fn reinstall_keypairs(&mut self, key: &TransportKey, slot: PeerSlot) {
        let channel = self.contacts.get(key).and_then(|contact| contact.channel.as_ref());
        let keypairs: Vec<Arc<Keypairs>> =
            channel.into_iter().flat_map(|channel| channel.keypairs().cloned()).collect();
        for keypairs in keypairs {
            self.direct(Directive::InstallKeypairs { slot, keypairs });
        }
    }

    // ---- what control seals and opens itself

    fn greet(&mut self, key: &TransportKey, keypairs: &Keypairs, now: Now) {
        let primary = self.contacts.get(key).and_then(|contact| contact.paths.primary());
        let own = keypairs.stripe(self.stripes - 1);
        if let (Some(route), Some(keypair)) = (primary, own)
            && let Ok(datagram) = message::seal_empty(keypair, now.instant)
        {
            self.outputs.push_back(Output::Transmit { route, datagram });
        }
    }

    /// Seals a packet for a peer whose channel [carries](super::contact::Contact::carries).
    pub(super) fn seal_in_channel(&mut self, key: &TransportKey, packet: &[u8], now: Now) {
        let keypairs = self.sealing(key, now);
        let Some(contact) = self.contacts.get_mut(key) else { return };
        let keypair = keypairs.as_ref().and_then(|keypairs| keypairs.stripe(self.stripes - 1));
        let (Some(route), Some(keypair)) = (contact.paths.primary(), keypair) else { return };
        let outputs = &mut self.outputs;
        let transmit = |datagram| outputs.push_back(Output::Transmit { route, datagram });
        let sealed =
            message::seal_packet(keypair, packet, Kind::Whole, MAX_SLICE, now.instant, transmit);
        let is_sealed = sealed.is_ok();
        if is_sealed {
            contact.sent += packet.len() as u64;
        } else {
            self.counters.staged_out += contact.stage(packet);
        }
        match &mut contact.channel {
            Some(channel) if is_sealed => channel.handle_use(now.instant),
            Some(channel) => channel.want(now.instant),
            None => {}
        }
    }

    /// A channel message that no worker has opened.
    pub(super) fn handle_message(
        &mut self,
        receiver: u32,
        origin: Route,
        behind: Option<TransportKey>,
        datagram: &[u8],
        now: Now,
    ) {
        let index = receiver >> 8;
        let known = self.openers.get(&index).and_then(|opener| {
            let key = Some(opener.key).filter(|key| behind.is_none_or(|behind| behind == *key))?;
            Some((key, Arc::clone(opener.keypairs.as_ref()?)))
        });
        let Some((key, keypairs)) = known else {
            self.counters.unopened += 1;
            return;
        };
        let mut bytes = datagram.to_vec();
        let opened = keypairs
            .stripe(receiver as u8)
            .and_then(|keypair| message::open(keypair, &mut bytes, now.instant).ok());
        let Some((header, text)) = opened else {
            self.counters.unopened += 1;
            return;
        };
        if keypairs.confirm() {
            self.confirmed(index, now);
        }
        self.heard(&key, origin, now);
        let (place, slice) = match text {
            Text::Empty => return,
            Text::Slice(place, slice) if place.kind == Kind::Whole => (place, slice),
            // Nobody sends superpackets to control.
            Text::Slice(..) | Text::Malformed => {
                self.counters.malformed += 1;
                return;
            }
        };
        let channel = self.contacts.get_mut(&key).and_then(|contact| contact.channel.as_mut());
        let packet = channel.and_then(|channel| channel.joiner.join(header, place, slice));
        if let Some(packet) = packet {
            self.deliver(&key, &packet, now);
            self.used(&key, now);
        }
    }

    /// A message of a peer's channel was opened: it lives, and was there.
    fn heard(&mut self, key: &TransportKey, origin: Route, now: Now) {
        let Some(contact) = self.contacts.get_mut(key) else { return };
        contact.last_opened = Some(now.instant);
        if contact.paths.primary() != Some(origin) {
            contact.paths.add(origin, false, now.instant);
            contact.paths.handle_heard(origin, now.instant);
        }
    }
}
