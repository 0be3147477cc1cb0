//! Control records: what each of them does. Only an introduction, a refusal and a farewell count before both have accepted.

use std::{net::SocketAddr, time::Duration};

use super::{
    Node,
    contact::REPEAT_FIRST,
    output::{Event, Output},
};
use crate::{
    path::route::Route,
    roster::Taken,
    wire::record::{Entry, Introduction, Record, Refusal},
    words::{
        announcement::Announcement,
        certificate::Certificate,
        id::Serial,
        key::TransportKey,
        revocation::Revocation,
        signed::{Signed, SignedError},
        time::{Now, Repeat},
    },
};

/// Slowest pace of repeated introductions.
const INTRODUCTION_SLOWEST: Duration = Duration::from_secs(5);

/// Clock skew that `status` shows.
const SKEW_SHOWN: i64 = 60;

impl Node {
    pub(super) fn introduction_repeat(&self, now: std::time::Instant) -> Repeat {
        Repeat::new(REPEAT_FIRST, INTRODUCTION_SLOWEST, now)
    }

    pub(super) fn handle_record(
        &mut self,
        key: &TransportKey,
        origin: Route,
        record: Record,
        now: Now,
    ) {
        let is_open = self.contacts.get(key).is_some_and(|contact| contact.is_open());
        match record {
            Record::Introduction(introduction) => {
                self.handle_introduction(key, &introduction, origin, now);
            }
            Record::Refused(why) => self.handle_refused(key, why, now),
            Record::Leaving => self.handle_leaving(key, now),
            // Self-verifying, and perhaps the reason why this peer will never accept us.
            Record::News { entries } if !is_open => {
                let is_master = self.is_master(key);
                for entry in entries {
                    let counts = is_master && !matches!(entry, Entry::Network(_));
                    if counts || self.is_about_us(&entry) {
                        self.take_entry(&entry, now);
                    } else {
                        self.counters.early_records += 1;
                    }
                }
            }
            _ if !is_open => self.counters.early_records += 1,
            Record::Sync { epoch, after } => {
                for page in self.roster.pages(epoch, after) {
                    self.send(key, &page, None, now);
                }
            }
            Record::Page { epoch, after, upto, latest, entries } => {
                self.handle_page(key, (epoch, after, upto, latest), &entries, now);
            }
            Record::News { entries } => {
                for entry in &entries {
                    self.take_entry_from(entry, Some(*key), now);
                }
                self.tell(key, now);
            }
            Record::Known(knowledge) => self.handle_known(key, knowledge, now),
            Record::Probe { id, keys } => {
                let seen = match (origin.relay, origin.endpoint()) {
                    (None, Some(endpoint)) => Some(endpoint),
                    (Some(_), _) | (None, None) => None,
                };
                let unknown = if self.opens(key, keys, now) { 0 } else { keys };
                let reply = Record::ProbeReply { id, seen, unknown };
                self.send(key, &reply, Some(origin), now);
            }
            Record::ProbeReply { id, seen, unknown } => {
                self.handle_unknown(key, unknown, now);
                self.handle_probe_reply(key, id, seen, now);
            }
            Record::Echo { id } => {
                let primary = self.contacts.get(key).and_then(|contact| contact.paths.primary());
                let direct = primary.is_some_and(|route| route.is_direct());
                self.send(key, &Record::EchoReply { id, direct }, None, now);
            }
            Record::EchoReply { id, direct } => {
                let is_ours = self.echoes.get(&id).is_some_and(|echo| echo.key == *key);
                if is_ours && let Some(echo) = self.echoes.remove(&id) {
                    let round_trip = now.instant.duration_since(echo.asked);
                    let event = Event::EchoReply { id, route: origin, direct, round_trip };
                    self.outputs.push_back(Output::Event(event));
                }
            }
            Record::RelayAsk { peer } => self.handle_relay_ask(key, peer, origin, now),
            Record::RelayOffer { index, certificate } => {
                self.handle_relay_offer(key, index, &certificate, now);
            }
            Record::RelayTake { index } => self.handle_relay_take(key, index, origin, now),
            Record::RelayGrant { peer, index } => self.handle_relay_grant(key, peer, index, now),
            Record::RelayDeny { peer, why } => {
                tracing::debug!(%peer, %why, "relay denied");
                self.handle_relay_deny(key, peer);
            }
            Record::RelayClose { index } => self.handle_relay_close(key, index, now),
            Record::Offer(offer) => self.handle_offer(key, &offer, now),
            Record::Accept(accept) => self.handle_accept(key, &accept, now),
        }
    }

    /// Why somebody refuses us, in the words of the authority or of our own key: heard from anybody.
    fn is_about_us(&self, entry: &Entry) -> bool {
        match entry {
            Entry::Revocation(raw) => {
                raw.peek::<Revocation>().is_ok_and(|revocation| revocation.names(&self.certificate))
            }
            Entry::Announcement(raw) => raw
                .peek::<Announcement>()
                .is_ok_and(|announcement| announcement.serial == self.certificate.serial),
            Entry::Certificate(_) | Entry::Head(_) | Entry::Network(_) => false,
        }
    }

    /// Sends our introduction, as it stands now.
    pub(super) fn introduce(&mut self, key: &TransportKey, now: Now) {
        let Some(contact) = self.contacts.get(key) else { return };
        let introduction = Introduction {
            certificate: self.certificate.raw().clone(),
            accepted: contact.trust.theirs.is_some(),
            incarnation: self.incarnation,
            accepted_incarnation: contact.trust.incarnation.unwrap_or_default(),
            wants_answer: !contact.trust.ours,
            knowledge: self.roster.knowledge(),
            suites: self.suites,
            features: self.features(),
            time: now.wall,
        };
        self.send(key, &Record::Introduction(Box::new(introduction)), None, now);
    }

    fn handle_introduction(
        &mut self,
        key: &TransportKey,
        introduction: &Introduction,
        origin: Route,
        now: Now,
    ) {
        let serial = match self.judge(key, introduction, now) {
            Ok(serial) => serial,
            Err(why) => {
                tracing::debug!(?key, %why, "introduction refused");
                let serial = introduction.certificate.peek::<Certificate>().ok().map(|c| c.serial);
                self.refuse(key, why, serial, Some(origin), now);
                return;
            }
        };
        let ours = self.incarnation;
        let knowledge = self.roster.knowledge();
        let mut repeat = self.introduction_repeat(now.instant);
        repeat.is_due(now.instant);
        let Some(contact) = self.contacts.get_mut(key) else { return };
        let is_new_start = contact.trust.incarnation != Some(introduction.incarnation);
        if is_new_start {
            self.end_keys(key, now);
        }
        let Some(contact) = self.contacts.get_mut(key) else { return };
        if is_new_start {
            contact.reset_trust(introduction.incarnation);
            // Perhaps on another machine: what was known of ways is void, but for the one it has just come by.
            contact.paths.restart(origin, now.instant);
        }
        let was_open = contact.is_open();
        contact.guest = None;
        contact.trust.theirs = Some(serial);
        contact.trust.ours |= introduction.accepted && introduction.accepted_incarnation == ours;
        contact.knowledge = introduction.knowledge;
        self.begin_channel(key, introduction);
        let Some(contact) = self.contacts.get_mut(key) else { return };
        // What goes with our introduction is what we have told.
        contact.told = Some(knowledge);
        let ahead = (introduction.time.0 as i64).saturating_sub(now.wall.0 as i64) / 1000;
        contact.skew = (ahead.abs() > SKEW_SHOWN).then_some(ahead);
        let is_open = contact.is_open();
        contact.introduction = if is_open { None } else { contact.introduction.or(Some(repeat)) };
        self.refusals.remove(key);
        if is_new_start {
            self.route_may_have_changed(key);
            self.end_pairs_of(key, now);
            self.forget_relay(key, now);
        }
        if introduction.wants_answer {
            self.introduce(key, now);
        }
        if is_open && !was_open {
            self.handle_open(key, origin, now);
        }
        self.compare(key, now);
    }

    /// Checks a certificate that was shown in a tunnel; takes it into the roster if it is good.
    fn judge(
        &mut self,
        key: &TransportKey,
        introduction: &Introduction,
        now: Now,
    ) -> Result<Serial, Refusal> {
        let raw = &introduction.certificate;
        let authority = self.roster.network().authority;
        let certificate = Signed::<Certificate>::verify(raw, self.roster.id(), &authority)
            .map_err(|_| Refusal::OtherNetwork)?;
        if certificate.network != *self.roster.id() {
            return Err(Refusal::OtherNetwork);
        }
        if certificate.transport != *key {
            return Err(Refusal::OtherKey);
        }
        self.roster.standing(&certificate, now.wall)?;
        let known = self.contacts.get(key).and_then(|contact| contact.trust.incarnation);
        if known.is_some_and(|known| known > introduction.incarnation) {
            // Unless its last words everywhere are of this start, or a farewell: then it is the clock that was set back.
            let member = self.roster.by_serial(certificate.serial);
            let last = member.and_then(|member| member.announcement(now.wall));
            let is_elsewhere =
                |last: &Announcement| last.incarnation != introduction.incarnation && !last.leaving;
            if last.is_none_or(|last| is_elsewhere(&last)) {
                return Err(Refusal::InUseElsewhere);
            }
        }
        self.take_entry_from(&Entry::Certificate(raw.clone()), Some(*key), now);
        Ok(certificate.serial)
    }

    /// Both have accepted: everything may pass now.
    fn handle_open(&mut self, key: &TransportKey, origin: Route, now: Now) {
        let Some(contact) = self.contacts.get_mut(key) else { return };
        contact.was_open = true;
        contact.connecting = None;
        contact.initiation = None;
        contact.last_used = now.instant;
        let route = contact.paths.primary().unwrap_or(origin);
        let claims = self.claims(key, now);
        if let Some(contact) = self.contacts.get_mut(key) {
            for claim in claims {
                contact.paths.add(Route::direct(claim), true, now.instant);
            }
        }
        for entry in self.master_endpoints.iter().filter(|entry| entry.master == *key) {
            for address in &entry.addresses {
                if let Some(contact) = self.contacts.get_mut(key) {
                    contact.paths.add(Route::direct(*address), true, now.instant);
                }
            }
        }
        if let Some(peer) = self.name_of(key) {
            self.outputs.push_back(Output::Event(Event::PeerUp { peer: peer.clone(), route }));
            if !self.is_accepted {
                self.is_accepted = true;
                self.outputs.push_back(Output::Event(Event::Accepted { by: peer, route }));
            }
        }
        self.announcer.is_dirty |= self.is_master(key);
        self.emit_cache_changed();
        self.route_may_have_changed(key);
        self.flush_staged(key, now);
        // A relay that has just come up may lead to those who are waited for.
        let waiting: Vec<TransportKey> = self
            .contacts
            .iter()
            .filter(|(other, contact)| *other != key && contact.connecting.is_some())
            .map(|(other, _)| *other)
            .collect();
        for other in waiting {
            if let Some(contact) = self.contacts.get_mut(&other) {
                contact.connecting = None;
            }
            self.connect(&other, now);
        }
    }

    fn handle_refused(&mut self, key: &TransportKey, why: Refusal, now: Now) {
        // Nobody can make us leave by saying so: only what the authority, or our own key elsewhere, has signed ends us.
        self.put_away(key, now);
        let is_known = self.is_master(key) || self.roster.member(key, now.wall).is_some();
        if !is_known {
            // What a stranger thinks of us is kept nowhere.
            return;
        }
        let by = self.name_of(key);
        let before = self.refusals.insert(*key, (why, now.instant));
        if before.is_none_or(|(before, _)| before != why) {
            self.outputs.push_back(Output::Event(Event::RefusedBy { by, why }));
        }
        if why == Refusal::InUseElsewhere && self.roster.member(key, now.wall).is_some() {
            tracing::warn!("a member says that this key is in use on another machine");
        }
    }

    fn handle_leaving(&mut self, key: &TransportKey, now: Now) {
        self.put_away(key, now);
    }

    fn handle_probe_reply(
        &mut self,
        key: &TransportKey,
        id: u64,
        seen: Option<SocketAddr>,
        now: Now,
    ) {
        let is_relay = self.is_relay(key, now);
        let Some(contact) = self.contacts.get_mut(key) else { return };
        let Some(route) = contact.paths.handle_reply(id, now.instant) else { return };
        // Only who is met over loopback can have seen us there.
        let is_loopback = |at: SocketAddr| at.ip().to_canonical().is_loopback();
        let seen = seen.filter(|seen| {
            is_loopback(*seen) == route.endpoint().is_some_and(is_loopback)
                && !seen.ip().is_multicast()
                && !seen.ip().is_unspecified()
        });
        if is_relay && route.is_direct() {
            let is_primary = contact.paths.primary() == Some(route);
            if self.handle_reflexive(key, seen) && is_primary {
                self.take_again(key, now);
            }
        }
        self.route_may_have_changed(key);
        self.flush_staged(key, now);
    }

    /// Takes an entry, passes it on, and lets it take effect.
    pub(super) fn take_entry(&mut self, entry: &Entry, now: Now) -> Taken {
        self.take_entry_from(entry, None, now)
    }

    /// The same, not passing it back to where it came from.
    pub(super) fn take_entry_from(
        &mut self,
        entry: &Entry,
        from: Option<TransportKey>,
        now: Now,
    ) -> Taken {
        let taken = self.roster.take(entry, now.wall);
        match taken {
            Taken::News(key) => {
                self.spread(key, from, now);
                self.handle_news(key, now);
            }
            // An announcement that waits for its turn counts for us already.
            Taken::Known => {
                if let Entry::Announcement(raw) = entry
                    && let Ok(announcement) = raw.peek::<Announcement>()
                {
                    self.handle_announcement(announcement.serial, now);
                }
            }
            Taken::Early => {
                if matches!(entry, Entry::Revocation(_)) {
                    self.review(now);
                }
                if let Some(from) = from {
                    self.read_soon(&from, now);
                }
            }
            Taken::Refused(why) => {
                self.counters.refused_entries += 1;
                if why != SignedError::Signature {
                    tracing::debug!(%why, "entry refused");
                }
            }
        }
        taken
    }
}
