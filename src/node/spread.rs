//! How knowledge spreads: announcements, news, sync, and telling each other how much one knows.
//!
//! Theory of operation. What is new is sent once to whom it concerns (`News`), and whoever might have missed it finds
//! out: two open peers tell each other what they know (`Known`: revocation head, network version, digest over the
//! signed entries) with every change, repeated with growing pauses until both say the same; whoever is behind asks
//! (`Sync`) and gets pages. To masters that question is also asked every [`READ_AGAIN`], for announcements, which
//! change too often to be in the digest.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use super::{
    Node, SETTLE,
    contact::Contact,
    output::{Event, Output},
};
use crate::{
    path::route::Route,
    roster::{Key, news},
    wire::record::{Entry, Knowledge, Record, Refusal},
    words::{
        announcement::{Announcement, LIFETIME, MAX_CANDIDATES, MAX_RELAYS},
        id::{Incarnation, Serial},
        key::TransportKey,
        signed::Signed,
        time::{Now, Repeat, Timestamp},
    },
};

/// Own announcements follow each other no faster: what is passed on is limited to one in five seconds anyway.
const ANNOUNCE_AFTER: Duration = Duration::from_secs(5);

/// An unchanged announcement is renewed after a quarter of its life.
const ANNOUNCE_AGAIN: Duration = Duration::from_secs(LIFETIME.as_secs() / 4);

/// How often masters are asked what is new, without a reason.
const READ_AGAIN: Duration = Duration::from_secs(20);

/// First and slowest pause between "this is what I know".
const TELL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// First and slowest pause between sync requests while answers are missing.
const READ: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// So long after our start another start of this key that seems to lie in the future is taken for one before ours.
const YOUNG: Duration = Duration::from_secs(60);

/// What we say of ourselves.
#[derive(Debug, Default)]
pub(super) struct Announcer {
    /// Something has changed since the last one.
    pub(super) is_dirty: bool,
    pub(super) sequence: u64,
    pub(super) last: Option<Instant>,
    /// Where masters and relays have seen us, each with its own word.
    pub(super) reflexive: Vec<(TransportKey, SocketAddr)>,
}

impl Announcer {
    /// When there is something to announce.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        let last = self.last?;
        Some(last + if self.is_dirty { ANNOUNCE_AFTER } else { ANNOUNCE_AGAIN })
    }

    fn is_due(&self, now: Instant) -> bool {
        self.next_timeout().is_none_or(|time| now >= time)
    }
}

impl Node {
    /// Announces ourselves if something has changed and the pause is over.
    pub(super) fn announce_if_due(&mut self, now: Now) {
        if self.announcer.is_due(now.instant) && !self.has_ended {
            self.announce(false, now);
        }
    }

    pub(super) fn announce(&mut self, leaving: bool, now: Now) {
        let relays = self
            .contacts
            .iter()
            .filter(|(key, contact)| contact.is_open() && self.is_relay(key, now))
            .filter_map(|(_, contact)| contact.trust.theirs)
            .take(MAX_RELAYS)
            .collect();
        let wall = self.roster.clock(now.wall);
        self.announcer.sequence = (self.announcer.sequence + 1).max(wall.0);
        let announcement = Announcement {
            serial: self.certificate.serial,
            sequence: self.announcer.sequence,
            incarnation: self.incarnation,
            candidates: if leaving { Vec::new() } else { self.own_candidates() },
            relays,
            features: 0,
            head: self.roster.head_count(),
            leaving,
        };
        self.announcer.is_dirty = false;
        self.announcer.last = Some(now.instant);
        let signed = Signed::sign(announcement, self.roster.id(), &self.host);
        self.take_entry(&Entry::Announcement(signed.raw().clone()), now);
        self.emit_cache_changed();
    }

    /// Where we may be reached: configured endpoints, where others have seen us, our interfaces.
    fn own_candidates(&self) -> Vec<SocketAddr> {
        let reflexive = self.announcer.reflexive.iter().map(|(_, address)| *address);
        let is_useful = |ip: &IpAddr| match ip {
            IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local() && !v4.is_unspecified(),
            IpAddr::V6(v6) => {
                !v6.is_loopback() && !v6.is_unicast_link_local() && !v6.is_unspecified()
            }
        };
        let interfaces = self
            .vantage
            .own
            .iter()
            .filter(|ip| is_useful(ip) && self.port != 0)
            .map(|ip| SocketAddr::new(*ip, self.port));
        let mut candidates: Vec<SocketAddr> = Vec::new();
        for candidate in self.endpoints.iter().copied().chain(reflexive).chain(interfaces) {
            if !candidates.contains(&candidate) && candidates.len() < MAX_CANDIDATES {
                candidates.push(candidate);
            }
        }
        candidates
    }

    /// A master or relay says where it sees us; whether that is news.
    pub(super) fn handle_reflexive(&mut self, by: &TransportKey, seen: Option<SocketAddr>) -> bool {
        let Some(seen) = seen.filter(|seen| seen.port() != 0) else { return false };
        let seen = SocketAddr::new(seen.ip().to_canonical(), seen.port());
        let reflexive = &self.announcer.reflexive;
        let known = reflexive.iter().position(|(key, address)| {
            // One of each family: a master is reached by both, and each answer says another.
            key == by && address.is_ipv4() == seen.is_ipv4()
        });
        match known {
            Some(place) if self.announcer.reflexive[place].1 == seen => return false,
            Some(place) => self.announcer.reflexive[place].1 = seen,
            None => {
                if self.announcer.reflexive.len() >= MAX_RELAYS {
                    // The word of one that is still there stays.
                    let contacts = &self.contacts;
                    self.announcer.reflexive.retain(|(key, _)| contacts.contains_key(key));
                }
                if self.announcer.reflexive.len() >= MAX_RELAYS {
                    return false;
                }
                self.announcer.reflexive.push((*by, seen));
            }
        }
        self.vantage.reflexive =
            self.announcer.reflexive.iter().map(|(_, address)| address.ip()).collect();
        self.announcer.is_dirty = true;
        true
    }

    /// Sends a new entry to whom it concerns. What the authority signed goes to everybody; announcements go through
    /// the masters, and a node's own to all its peers.
    pub(super) fn spread(&mut self, key: Key, from: Option<TransportKey>, now: Now) {
        let Some(entry) = self.roster.entry(key) else { return };
        let is_master = self.certificate.roles.is_master();
        let is_own = key == Key::Announcement(self.certificate.serial);
        let to: Vec<TransportKey> = self
            .contacts
            .iter()
            .filter(|(peer, contact)| {
                contact.is_open()
                    && !contact.is_wireguard
                    && Some(**peer) != from
                    && match key {
                        Key::Announcement(_) => {
                            is_master || is_own || self.roster.network().master(peer).is_some()
                        }
                        Key::Network | Key::Head | Key::Revocation(_) | Key::Certificate(_) => true,
                    }
            })
            .map(|(peer, _)| *peer)
            .collect();
        for record in news(vec![entry]) {
            for peer in &to {
                self.send(peer, &record, None, now);
            }
        }
    }

    /// What a new entry changes for us.
    pub(super) fn handle_news(&mut self, key: Key, now: Now) {
        match key {
            Key::Network => {
                self.load_masters();
                self.call_masters(now);
                self.review(now);
            }
            Key::Head | Key::Revocation(_) => {
                self.announcer.is_dirty = true;
                self.review(now);
            }
            Key::Certificate(_) if self.is_bulk => {
                self.settle_at.get_or_insert(now.instant + SETTLE);
            }
            Key::Certificate(_) => self.review(now),
            Key::Announcement(serial) => self.handle_announcement(serial, now),
        }
        let is_later = self.is_bulk && matches!(key, Key::Certificate(_));
        if !is_later && !matches!(key, Key::Announcement(_)) {
            self.compare_all(now);
        }
        self.emit_cache_changed();
    }

    /// Somebody, perhaps ourselves on another machine, has said something new.
    pub(super) fn handle_announcement(&mut self, serial: Serial, now: Now) {
        let Some(member) = self.roster.by_serial(serial) else { return };
        let key = member.certificate().transport;
        let Some(announcement) = member.announcement(now.wall) else { return };
        let (incarnation, sequence, leaving) =
            (announcement.incarnation, announcement.sequence, announcement.leaving);
        if key == self.key {
            let is_later = incarnation > self.incarnation;
            let is_young = now.instant.duration_since(self.made) < YOUNG;
            let is_ahead = incarnation.0 > draw_incarnation(u64::MAX, now.wall, 0);
            if is_later && (leaving || (is_young && is_ahead)) {
                // It has left, or is from a time that our clock has yet to reach: a start before ours, by a clock that was ahead.
                self.incarnation = Incarnation(incarnation.0.saturating_add(1));
                self.end_all_keys(now);
                self.announcer.sequence = self.announcer.sequence.max(sequence);
                self.announcer.is_dirty = true;
                let repeat = self.introduction_repeat(now.instant);
                for (_, contact) in self.contacts.iter_mut().filter(|(_, c)| !c.is_wireguard) {
                    contact.introduction = Some(repeat);
                }
            } else if is_later {
                self.end(Refusal::InUseElsewhere, now);
            } else if incarnation != self.incarnation {
                self.announcer.sequence = self.announcer.sequence.max(sequence);
                self.announcer.is_dirty = true;
            }
            return;
        }
        let claims = self.claims(&key, now);
        let Some(contact) = self.contacts.get_mut(&key) else { return };
        if contact.is_open() {
            for claim in claims {
                // No new budget: a peer must not have us probe somebody for ever by saying the same again and again.
                contact.paths.add(Route::direct(claim), false, now.instant);
            }
        } else if contact.connecting.is_some() {
            contact.connecting = None;
            self.connect(&key, now);
        }
    }

    pub(super) fn handle_page(
        &mut self,
        key: &TransportKey,
        (epoch, after, upto, latest): (u64, u64, u64, u64),
        entries: &[Entry],
        now: Now,
    ) {
        self.is_bulk = true;
        for entry in entries {
            self.take_entry_from(entry, Some(*key), now);
        }
        self.is_bulk = false;
        let Some(contact) = self.contacts.get_mut(key) else { return };
        if contact.read.0 != epoch {
            contact.read = (epoch, 0);
        }
        if after <= contact.read.1 {
            contact.read.1 = contact.read.1.max(upto);
        }
        let is_complete = contact.read.1 >= latest;
        contact.reading = (!is_complete).then(|| {
            // The other pages of this answer are on their way: ask again once they have had time to come.
            let mut repeat = Repeat::new(Duration::from_millis(100), READ.1, now.instant);
            repeat.is_due(now.instant);
            repeat
        });
        if is_complete {
            // No page is to come: somebody may wait for the names in this one.
            self.settle(now);
            self.tell(key, now);
        }
    }

    /// Tells a peer what we know, unless it has been told.
    pub(super) fn tell(&mut self, key: &TransportKey, now: Now) {
        let ours = self.roster.knowledge();
        let Some(contact) = self.contacts.get_mut(key) else { return };
        if contact.is_open() && !contact.is_wireguard && contact.told != Some(ours) {
            contact.told = Some(ours);
            self.send(key, &Record::Known(ours), None, now);
        }
    }

    pub(super) fn handle_known(&mut self, key: &TransportKey, theirs: Knowledge, now: Now) {
        if let Some(contact) = self.contacts.get_mut(key) {
            contact.knowledge = theirs;
        }
        self.tell(key, now);
        self.compare(key, now);
    }

    /// Starts asking and telling where two peers do not know the same.
    pub(super) fn compare(&mut self, key: &TransportKey, now: Now) {
        let ours = self.roster.knowledge();
        let Some(contact) = self.contacts.get_mut(key) else { return };
        if !contact.is_open() || contact.is_wireguard {
            return;
        }
        if contact.knowledge == ours {
            contact.telling = None;
        } else {
            if contact.telling.is_none() {
                contact.telling = Some(Repeat::new(TELL.0, TELL.1, now.instant));
            }
            if self.roster.is_behind_of(&contact.knowledge) {
                self.read_soon(key, now);
            }
        }
    }

    /// Something is missing: asks at once, unless an answer is awaited already.
    pub(super) fn read_soon(&mut self, key: &TransportKey, now: Now) {
        let Some(contact) = self.contacts.get_mut(key) else { return };
        let is_asked = contact.reading.is_some_and(|repeat| repeat.next <= now.instant + READ.0);
        if !is_asked {
            contact.reading = Some(Repeat::new(READ.0, READ.1, now.instant));
        }
    }

    /// Judges the certificates that were taken in together.
    pub(super) fn settle(&mut self, now: Now) {
        if self.settle_at.take().is_some() {
            self.review(now);
            self.compare_all(now);
        }
    }

    fn compare_all(&mut self, now: Now) {
        let keys: Vec<TransportKey> = self.contacts.keys();
        keys.iter().for_each(|key| self.compare(key, now));
    }

    /// Records of spreading that are due for one contact.
    pub(super) fn spread_timeout(&mut self, key: &TransportKey, now: Now) {
        let ours = self.roster.knowledge();
        let is_master = self.is_master(key);
        let Some(contact) = self.contacts.get_mut(key) else { return };
        if !contact.is_open() || contact.is_wireguard {
            contact.telling = None;
            contact.reading = None;
            return;
        }
        let read = contact.read;
        let wants_reading = contact.reading.as_mut().is_some_and(|r| r.is_due(now.instant));
        let mut wants_telling = contact.telling.as_mut().is_some_and(|r| r.is_due(now.instant));
        if contact.knowledge == ours {
            contact.telling = None;
            wants_telling = false;
        }
        if wants_telling {
            contact.told = Some(ours);
        }
        if contact.reading.is_none() && is_master {
            let mut repeat = Repeat::new(READ_AGAIN, READ_AGAIN, now.instant);
            repeat.is_due(now.instant);
            contact.reading = Some(repeat);
        }
        if wants_telling {
            self.send(key, &Record::Known(ours), None, now);
        }
        if wants_reading {
            self.send(key, &Record::Sync { epoch: read.0, after: read.1 }, None, now);
        }
    }

    /// How many other nodes could have confirmed what we know, and how many have: by their own word in a tunnel, or
    /// by the revocation number in their announcement.
    pub fn confirmations(&self, now: Now) -> (usize, usize) {
        let ours = self.roster.knowledge();
        let mut could = 0;
        let mut have = 0;
        for member in self.roster.members(now.wall) {
            let certificate = member.certificate();
            if certificate.transport == self.key || certificate.roles.is_wireguard() {
                continue;
            }
            let said = member.announcement(now.wall).filter(|a| !a.leaving);
            let contact = self.contacts.get(&certificate.transport).filter(|c| c.is_open());
            if said.is_none() && contact.is_none() {
                continue;
            }
            could += 1;
            let in_tunnel = contact.is_some_and(|contact| {
                contact.knowledge.head >= ours.head && contact.knowledge.network >= ours.network
            });
            let announced = ours.head > 0 && said.is_some_and(|a| a.head >= ours.head);
            have += usize::from(in_tunnel || announced);
        }
        (could, have)
    }

    /// The cache is worth writing again.
    pub(super) fn emit_cache_changed(&mut self) {
        if !self.is_cache_dirty {
            self.is_cache_dirty = true;
            self.outputs.push_back(Output::Event(Event::CacheChanged));
        }
    }
}

/// Whether a contact has been out of use for long enough to be put away.
pub(super) fn is_silent(contact: &Contact, now: Now, after: Duration) -> bool {
    now.instant.duration_since(contact.last_used) >= after
}

/// A start of a node: later ones are larger, so that of two machines with one key the later join wins.
pub(super) fn draw_incarnation(random: u64, wall: Timestamp, previous: u64) -> u64 {
    let by_clock = (wall.0 << 20) | (random & 0xf_ffff);
    by_clock.max(previous.saturating_add(1))
}
