//! The roster: who is in the network, and what has been taken back. Every record in it is self-verifying.
//!
//! Theory of operation. [`Roster::take`] is the only way in: it verifies an entry's signature, compares it with what is
//! held, and keeps the newer. Each kept entry gets the next local *version*; a peer that asks for "everything after
//! version n of epoch e" gets exactly what it missed, page by page ([`Roster::pages`]). The epoch is drawn at random
//! by every start, so that numbers of an earlier life are not mistaken for ours.
//!
//! Nothing is ever deleted because of a date alone: expiry is computed when somebody asks ([`Roster::standing`]), and
//! records go a week after their certificate ended. The newest date that the authority has signed is a floor for the
//! clock: a machine whose clock was set back does not bring old certificates to life.
//!
//! Revocations are numbered 1..N without gaps: they are counted in order, though each is in force at once, and the
//! signed head tells how many there are.

mod sync;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
    net::IpAddr,
    time::Duration,
};

use sha2::{Digest, Sha256};
pub use sync::news;

use crate::{
    wire::record::{Entry, Knowledge, Refusal},
    words::{
        announcement::Announcement,
        certificate::{Certificate, RECORD_GRACE, SKEW, Validity},
        id::{Name, NetworkId, Serial},
        key::{TransportKey, VerifyKey},
        network::Network,
        revocation::{Head, Revocation},
        signed::{RawSigned, Signed, SignedError},
        time::Timestamp,
    },
};

/// A node's announcements are passed on no oftener than this, whatever it sends.
pub const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(5);

/// Revocations that arrived before their predecessors, at most this many: pages come in order, so few ever wait.
const MAX_EARLY: usize = 256;

/// Which entry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Key {
    /// The network description.
    Network,
    /// The head of the revocations.
    Head,
    /// One revocation.
    Revocation(u64),
    /// A certificate.
    Certificate(Serial),
    /// A node's announcement.
    Announcement(Serial),
}

/// What became of an entry that was offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It was news; it is kept now.
    News(Key),
    /// It is held already, or something newer is, or it waits for its turn to be passed on.
    Known,
    /// It cannot be counted yet: an announcement whose certificate is unknown, a revocation out of order.
    Early,
    /// It does not verify.
    Refused(SignedError),
}

/// A certificate and what its node last said.
#[derive(Debug)]
pub struct Member {
    certificate: Signed<Certificate>,
    /// Verified; read again when somebody asks, since most are never asked for.
    announcement: Option<RawSigned>,
    sequence: u64,
    /// When its announcement last got a version.
    versioned: Timestamp,
    /// A newer one waits until [`ANNOUNCE_INTERVAL`] is over.
    held_back: bool,
}

impl Member {
    /// Its certificate.
    pub fn certificate(&self) -> &Signed<Certificate> {
        &self.certificate
    }
    /// What it last said of itself, if that still counts.
    pub fn announcement(&self, wall: Timestamp) -> Option<Announcement> {
        let announcement = self.announcement.as_ref()?.peek::<Announcement>().ok()?;
        (!announcement.is_over(wall)).then_some(announcement)
    }
}

/// The roster of one network.
#[derive(Debug)]
pub struct Roster {
    id: NetworkId,
    network: Signed<Network>,
    head: Option<Signed<Head>>,
    revocations: Vec<Signed<Revocation>>,
    early: BTreeMap<u64, Signed<Revocation>>,
    revoked_serials: HashSet<Serial>,
    revoked_transport: HashSet<TransportKey>,
    revoked_host: HashSet<VerifyKey>,
    /// In boxes: serials come in order, which leaves a tree's nodes half empty.
    members: BTreeMap<Serial, Box<Member>>,
    /// Highest serial by tunnel key, whatever its validity.
    by_transport: BTreeMap<TransportKey, Serial>,
    /// Who may supersede whom: a number for each name and node number, then the serials that have it.
    claims: BTreeSet<(u64, Serial)>,
    floor: Timestamp,
    epoch: u64,
    version: u64,
    log: BTreeMap<u64, Key>,
    versions: BTreeMap<Key, u64>,
    digest: u64,
}

impl Roster {
    /// A roster that knows its network and nobody in it. `epoch`: drawn at random by every start.
    pub fn new(network: Signed<Network>, epoch: u64) -> Self {
        let mut roster = Self {
            id: network.id(),
            floor: network.date,
            digest: hash(&Entry::Network(network.raw().clone())),
            network,
            head: None,
            revocations: Vec::new(),
            early: BTreeMap::new(),
            revoked_serials: HashSet::new(),
            revoked_transport: HashSet::new(),
            revoked_host: HashSet::new(),
            members: BTreeMap::new(),
            by_transport: BTreeMap::new(),
            claims: BTreeSet::new(),
            epoch,
            version: 0,
            log: BTreeMap::new(),
            versions: BTreeMap::new(),
        };
        roster.bump(Key::Network);
        roster
    }

    /// The network's id.
    pub fn id(&self) -> &NetworkId {
        &self.id
    }

    /// The network's description, the newest known.
    pub fn network(&self) -> &Signed<Network> {
        &self.network
    }

    /// The wall clock, never earlier than the newest date the authority has signed.
    pub fn clock(&self, wall: Timestamp) -> Timestamp {
        wall.max(self.floor)
    }

    /// How far our knowledge goes.
    pub fn knowledge(&self) -> Knowledge {
        Knowledge { head: self.head_count(), network: self.network.version, digest: self.digest }
    }

    /// Number of the newest revocation held, all before it included.
    pub fn head_count(&self) -> u64 {
        self.revocations.len() as u64
    }

    /// Whether the signed head tells of revocations that we have not seen.
    pub fn is_behind(&self) -> bool {
        self.head.as_ref().is_some_and(|head| head.count > self.head_count())
    }

    /// Whether this peer knows something that we do not, as far as can be told from outside.
    pub fn is_behind_of(&self, theirs: &Knowledge) -> bool {
        theirs.head > self.head_count()
            || theirs.network > self.network.version
            || theirs.digest != self.digest
    }

    /// Takes an entry in, if it verifies and is news. A late or repeated one changes nothing.
    pub fn take(&mut self, entry: &Entry, wall: Timestamp) -> Taken {
        let authority = self.network.authority;
        let outcome = match entry {
            Entry::Network(raw) => {
                Signed::verify(raw, &self.id, &authority).map(|signed| self.take_network(signed))
            }
            Entry::Head(raw) => {
                Signed::verify(raw, &self.id, &authority).map(|signed| self.take_head(signed))
            }
            Entry::Revocation(raw) => {
                Signed::verify(raw, &self.id, &authority).map(|signed| self.take_revocation(signed))
            }
            Entry::Certificate(raw) => Signed::verify(raw, &self.id, &authority)
                .and_then(|signed| self.take_certificate(signed, wall)),
            Entry::Announcement(raw) => {
                let Ok(peeked) = raw.peek::<Announcement>() else {
                    return Taken::Refused(SignedError::Malformed);
                };
                let Some(member) = self.members.get(&peeked.serial) else { return Taken::Early };
                let Some(host) = member.certificate.host else {
                    return Taken::Refused(SignedError::Invalid(
                        "wireguard members announce nothing",
                    ));
                };
                Signed::verify(raw, &self.id, &host)
                    .and_then(|signed| self.take_announcement(signed, wall))
            }
        };
        outcome.unwrap_or_else(Taken::Refused)
    }

    fn take_network(&mut self, network: Signed<Network>) -> Taken {
        if network.version <= self.network.version {
            return Taken::Known;
        }
        self.floor = self.floor.max(network.date);
        self.digest ^= hash(&Entry::Network(self.network.raw().clone()));
        self.digest ^= hash(&Entry::Network(network.raw().clone()));
        self.network = network;
        self.bump(Key::Network);
        Taken::News(Key::Network)
    }

    fn take_head(&mut self, head: Signed<Head>) -> Taken {
        let held = self.head.as_ref().map(|held| (held.count, held.date));
        if Some((head.count, head.date)) <= held {
            return Taken::Known;
        }
        self.floor = self.floor.max(head.date);
        if let Some(held) = &self.head {
            self.digest ^= hash(&Entry::Head(held.raw().clone()));
        }
        self.digest ^= hash(&Entry::Head(head.raw().clone()));
        self.head = Some(head);
        self.bump(Key::Head);
        Taken::News(Key::Head)
    }

    fn take_revocation(&mut self, revocation: Signed<Revocation>) -> Taken {
        let next = self.head_count() + 1;
        if revocation.number < next {
            return Taken::Known;
        }
        // In force at once, in order or not: what the authority took back is taken back.
        self.revoked_serials.insert(revocation.serial);
        self.revoked_transport.insert(revocation.transport);
        self.revoked_host.extend(revocation.host);
        if revocation.number > next {
            if self.early.len() < MAX_EARLY {
                self.early.insert(revocation.number, revocation);
            }
            return Taken::Early;
        }
        let mut following = Some(revocation);
        while let Some(revocation) = following {
            let number = revocation.number;
            self.floor = self.floor.max(revocation.date);
            self.digest ^= hash(&Entry::Revocation(revocation.raw().clone()));
            self.revocations.push(revocation);
            self.bump(Key::Revocation(number));
            following = self.early.remove(&(number + 1));
        }
        Taken::News(Key::Revocation(next))
    }

    fn take_certificate(
        &mut self,
        certificate: Signed<Certificate>,
        wall: Timestamp,
    ) -> Result<Taken, SignedError> {
        if certificate.network != self.id {
            return Err(SignedError::Invalid("the certificate is of another network"));
        }
        let serial = certificate.serial;
        let is_over = self.clock(wall).since(certificate.not_after) > RECORD_GRACE;
        if self.members.contains_key(&serial) || is_over {
            return Ok(Taken::Known);
        }
        self.digest ^= hash(&Entry::Certificate(certificate.raw().clone()));
        let best = self.by_transport.entry(certificate.transport).or_insert(serial);
        *best = (*best).max(serial);
        self.claims.extend(claims(&certificate).map(|claim| (claim, serial)));
        let versioned = Timestamp::default();
        let member =
            Member { certificate, announcement: None, sequence: 0, versioned, held_back: false };
        self.members.insert(serial, Box::new(member));
        self.bump(Key::Certificate(serial));
        Ok(Taken::News(Key::Certificate(serial)))
    }

    fn take_announcement(
        &mut self,
        announcement: Signed<Announcement>,
        wall: Timestamp,
    ) -> Result<Taken, SignedError> {
        let wall = self.clock(wall);
        let serial = announcement.serial;
        if announcement.is_ahead(wall) {
            return Err(SignedError::Invalid("the announcement is of the future"));
        }
        let member = self.members.get_mut(&serial).expect("looked up by take");
        let held = member.announcement.as_ref().map(|_| member.sequence);
        if announcement.is_over(wall) || held >= Some(announcement.sequence) {
            return Ok(Taken::Known);
        }
        member.sequence = announcement.sequence;
        member.announcement = Some(announcement.raw().clone());
        // A clock that was set back must not hold announcements for ever.
        if wall >= member.versioned && wall.since(member.versioned) < ANNOUNCE_INTERVAL {
            member.held_back = true;
            return Ok(Taken::Known);
        }
        member.versioned = wall;
        member.held_back = false;
        self.bump(Key::Announcement(serial));
        Ok(Taken::News(Key::Announcement(serial)))
    }

    /// Announcements that were held back and may be passed on now.
    pub fn release(&mut self, wall: Timestamp) -> Vec<Key> {
        let wall = self.clock(wall);
        let mut due = Vec::new();
        for (serial, member) in &mut self.members {
            if member.held_back && wall.since(member.versioned) >= ANNOUNCE_INTERVAL {
                member.held_back = false;
                member.versioned = wall;
                due.push(Key::Announcement(*serial));
            }
        }
        due.iter().for_each(|key| self.bump(*key));
        due
    }

    /// Forgets records whose certificate ended more than [`RECORD_GRACE`] ago.
    pub fn purge(&mut self, wall: Timestamp) {
        let wall = self.clock(wall);
        let is_over = |member: &Member| wall.since(member.certificate.not_after) > RECORD_GRACE;
        let over: Vec<Serial> =
            self.members.iter().filter(|(_, m)| is_over(m)).map(|(serial, _)| *serial).collect();
        for serial in over {
            let Some(member) = self.members.remove(&serial) else { continue };
            self.digest ^= hash(&Entry::Certificate(member.certificate.raw().clone()));
            for claim in claims(&member.certificate) {
                self.claims.remove(&(claim, serial));
            }
            let transport = member.certificate.transport;
            if self.by_transport.get(&transport) == Some(&serial) {
                let mut others = self.members.iter().rev();
                match others.find(|(_, other)| other.certificate.transport == transport) {
                    Some((next, _)) => self.by_transport.insert(transport, *next),
                    None => self.by_transport.remove(&transport),
                };
            }
            for key in [Key::Certificate(serial), Key::Announcement(serial)] {
                if let Some(version) = self.versions.remove(&key) {
                    self.log.remove(&version);
                }
            }
        }
    }

    /// Whether this certificate, whose signature has been verified, is good now.
    ///
    /// # Errors
    /// Why it is not.
    pub fn standing(&self, certificate: &Certificate, wall: Timestamp) -> Result<(), Refusal> {
        let wall = self.clock(wall);
        if self.is_revoked(certificate) {
            return Err(Refusal::Revoked);
        }
        match certificate.validity(wall) {
            Validity::NotYet => return Err(Refusal::NotYet),
            Validity::Expired => return Err(Refusal::Expired),
            Validity::Valid => {}
        }
        let supersedes = |other: &Certificate| {
            (other.name == certificate.name || other.number == certificate.number)
                && other.transport != certificate.transport
                && !self.is_revoked(other)
                && other.validity(wall) == Validity::Valid
        };
        let newer = claims(certificate).into_iter().flat_map(|claim| {
            let range =
                (claim, Serial(certificate.serial.0.saturating_add(1)))..=(claim, Serial(u64::MAX));
            self.claims.range(range).filter_map(|(_, serial)| self.members.get(serial))
        });
        if newer.into_iter().any(|member| supersedes(&member.certificate)) {
            return Err(Refusal::Superseded);
        }
        Ok(())
    }

    /// Whether its serial, its transport key or its host key has been taken back.
    pub fn is_revoked(&self, certificate: &Certificate) -> bool {
        self.revoked_serials.contains(&certificate.serial)
            || self.revoked_transport.contains(&certificate.transport)
            || certificate.host.is_some_and(|host| self.revoked_host.contains(&host))
    }

    /// The best certificate for a tunnel key that is good now.
    pub fn member(&self, key: &TransportKey, wall: Timestamp) -> Option<&Member> {
        let best = self.members.get(self.by_transport.get(key)?)?;
        if self.standing(&best.certificate, wall).is_ok() {
            return Some(best);
        }
        // Rare: the newest certificate of this key is not good (yet), an older one may be.
        self.members.values().rev().map(AsRef::as_ref).find(|member: &&Member| {
            member.certificate.transport == *key && self.standing(&member.certificate, wall).is_ok()
        })
    }

    /// By serial, good or not.
    pub fn by_serial(&self, serial: Serial) -> Option<&Member> {
        self.members.get(&serial).map(AsRef::as_ref)
    }

    /// Every good member, the highest serial of each name only, in the order of names.
    pub fn members(&self, wall: Timestamp) -> Vec<&Member> {
        let clock = self.clock(wall);
        let mut by_name: BTreeMap<&Name, &Member> = BTreeMap::new();
        let mut numbers = BTreeMap::new();
        for (serial, member) in &self.members {
            let certificate = &member.certificate;
            if !self.is_revoked(certificate) && certificate.validity(clock) == Validity::Valid {
                by_name.insert(&certificate.name, member);
                numbers.insert(certificate.number, *serial);
            }
        }
        by_name.retain(|_, m| numbers.get(&m.certificate.number) == Some(&m.certificate.serial));
        by_name.into_values().collect()
    }

    /// Everything held, good or not.
    pub fn all(&self) -> impl Iterator<Item = &Member> {
        self.members.values().map(AsRef::as_ref)
    }

    /// All revocations, in order.
    pub fn revocations(&self) -> impl Iterator<Item = &Signed<Revocation>> {
        self.revocations.iter()
    }

    /// When the set of good members changes next because of a date.
    pub fn next_change(&self, wall: Timestamp) -> Option<Timestamp> {
        let wall = self.clock(wall);
        self.members
            .values()
            .flat_map(|m| {
                [m.certificate.not_before.minus(SKEW), m.certificate.not_after.plus(SKEW)]
            })
            .filter(|time| *time >= wall)
            .min()
            .map(|time| time.plus(Duration::from_millis(1)))
    }

    /// The entry under a key, as it was received.
    pub fn entry(&self, key: Key) -> Option<Entry> {
        match key {
            Key::Network => Some(Entry::Network(self.network.raw().clone())),
            Key::Head => self.head.as_ref().map(|head| Entry::Head(head.raw().clone())),
            Key::Revocation(number) => {
                let index = usize::try_from(number.checked_sub(1)?).ok()?;
                self.revocations.get(index).map(|r| Entry::Revocation(r.raw().clone()))
            }
            Key::Certificate(serial) => {
                let member = self.members.get(&serial)?;
                Some(Entry::Certificate(member.certificate.raw().clone()))
            }
            Key::Announcement(serial) => {
                let announcement = self.members.get(&serial)?.announcement.as_ref()?;
                Some(Entry::Announcement(announcement.clone()))
            }
        }
    }

    /// Every entry, certificates before announcements: what a cache keeps.
    pub fn entries(&self) -> Vec<Entry> {
        self.versions.keys().filter_map(|key| self.entry(*key)).collect()
    }

    /// Gives an entry the next version.
    fn bump(&mut self, key: Key) {
        self.version += 1;
        if let Some(old) = self.versions.insert(key, self.version) {
            self.log.remove(&old);
        }
        self.log.insert(self.version, key);
    }
}

/// Addresses of a member, both families.
pub fn addresses(certificate: &Certificate) -> [IpAddr; 2] {
    [certificate.ipv4.into(), certificate.ipv6().into()]
}

/// What a certificate lays claim to, its name and its number, as numbers to look up by; two names may share one.
fn claims(certificate: &Certificate) -> [u64; 2] {
    [number_of(&certificate.name), number_of(&certificate.number)]
}

fn number_of(claim: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    claim.hash(&mut hasher);
    hasher.finish()
}

/// What an entry adds to the digest. Announcements are not in it: they change too often, and spread as news.
fn hash(entry: &Entry) -> u64 {
    let raw = entry.raw();
    let hash = Sha256::new().chain_update(raw.signature.0).chain_update(&raw.bytes).finalize();
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hash[..8]);
    u64::from_le_bytes(bytes)
}
