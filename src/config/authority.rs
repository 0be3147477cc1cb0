//! What an authority does: begins a network, issues and renews certificates, revokes them. Pure: a ledger and a secret
//! in, a changed ledger and signed things out; on an error nothing has changed.
//!
//! Rules. Serials and node numbers count up and are never given out twice. A number belongs to a pair of keys: the same
//! keys keep it (a renewal), new keys get a new one. A key serves one name for ever, and none after its revocation. A
//! name with a certificate that may still be accepted somewhere keeps its keys until that is revoked: otherwise two
//! machines would have one name.

use ipnet::Ipv4Net;

use super::ledger::{Ledger, Standing};
use crate::words::{
    certificate::{BACKDATE, Certificate, Roles},
    endpoint::Endpoint,
    id::{Name, NetworkId, NodeNumber, Owner, Serial},
    key::{KeyError, SigningSecret, TransportKey, VerifyKey},
    network::{MAX_ENDPOINTS, MAX_MASTERS, Master, Network},
    revocation::{Head, Revocation},
    signed::{Signed, SignedError, Statement},
    time::Timestamp,
};

/// Why the authority does not sign.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    /// Secret and ledger belong to different networks.
    #[error(
        "authority.key is of authority {key}, the ledger is of {ledger}: they belong to different networks"
    )]
    OtherLedger {
        /// Public half of the secret.
        key: VerifyKey,
        /// What the ledger says.
        ledger: VerifyKey,
    },
    /// `NAME.key` would be the authority's own file.
    #[error("a node cannot be called `authority`: authority.key is the network's own secret")]
    ReservedName,
    /// The name has a certificate that may still be accepted, for other keys.
    #[error(
        "`{name}` has a certificate for other keys (serial {serial}, until {until}): choose another name, or take that one back first (clusternet revoke {name})"
    )]
    NameTaken {
        /// The name.
        name: Name,
        /// Serial of the certificate in the way.
        serial: Serial,
        /// When it ends.
        until: Timestamp,
    },
    /// The key is in the ledger under another name.
    #[error("this key belongs to `{0}` (serial {1}): every node needs keys of its own")]
    KeyTaken(Name, Serial),
    /// Only one of the two keys is in the ledger.
    #[error(
        "one of these two keys is in the ledger beside another one (serial {0}): keys are made and used in pairs"
    )]
    KeyMixed(Serial),
    /// The keys have been revoked, for ever.
    #[error(
        "these keys have been revoked (revocation {0}) and can never be used again: make new ones"
    )]
    KeyRevoked(u64),
    /// A node would sign as the authority.
    #[error("this is the authority's own key: a node needs keys of its own")]
    AuthorityKey,
    /// The key itself cannot be certified.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Nothing known under this name whose keys could be certified again.
    #[error("the ledger has no `{0}` whose certificate could be renewed")]
    Unknown(Name),
    /// A plain WireGuard member stays one, and a node a node.
    #[error("`{0}` cannot change between a node and a plain WireGuard member: choose another name")]
    OtherSort(Name),
    /// Endpoints without the role, or the role without endpoints.
    #[error(
        "a master needs 1 to {MAX_ENDPOINTS} endpoints (--endpoint udp://HOST:PORT), and only a master has any"
    )]
    Endpoints,
    /// The network has all the masters it may have.
    #[error("a network has at most {MAX_MASTERS} masters")]
    Masters,
    /// A plain WireGuard member is a member and nothing more.
    #[error("a plain WireGuard member has neither role nor owner")]
    Wireguard,
    /// All addresses have been given out.
    #[error("the IPv4 network {0} has no address left: node numbers are never used twice")]
    Full(Ipv4Net),
    /// No such certificate.
    #[error("the ledger has no certificate of `{0}`")]
    NoSuchName(Name),
    /// No such certificate.
    #[error("the ledger has no certificate with serial {0}")]
    NoSuchSerial(Serial),
    /// Nothing to take back.
    #[error("every certificate of {0} has expired: there is nothing to take back")]
    Expired(String),
    /// What would be signed is impossible.
    #[error(transparent)]
    Statement(#[from] SignedError),
}

/// Refuses names that no node may have.
///
/// # Errors
/// [`AuthorityError::ReservedName`].
pub fn check_name(name: &Name) -> Result<(), AuthorityError> {
    if name.as_str() == "authority" { Err(AuthorityError::ReservedName) } else { Ok(()) }
}

/// What a network begins with.
#[derive(Debug, Clone)]
pub struct Beginning {
    /// The network's name.
    pub name: Name,
    /// Where overlay IPv4 addresses come from.
    pub ipv4: Ipv4Net,
    /// Owner of certificates that name none.
    pub owner: Option<Owner>,
    /// The first master's name.
    pub master: Name,
    /// The first master's public keys.
    pub keys: (TransportKey, VerifyKey),
    /// Where it can be met.
    pub endpoints: Vec<Endpoint>,
    /// When its certificate ends.
    pub not_after: Timestamp,
}

/// Which keys a certificate is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    /// A node's.
    Node(TransportKey, VerifyKey),
    /// A plain WireGuard member's.
    Wireguard(TransportKey),
    /// Those that the ledger has for the name.
    Known,
}

/// A certificate that is asked for. What is `None` stays as it was, or takes the network's default.
#[derive(Debug, Clone)]
pub struct Issue {
    /// For whom.
    pub name: Name,
    /// For which keys.
    pub keys: Keys,
    /// When it ends.
    pub not_after: Timestamp,
    /// Role: node, relay or master.
    pub role: Option<Roles>,
    /// Owner; `Some(None)` for none.
    pub owner: Option<Option<Owner>>,
    /// Where a master can be met; empty: as before.
    pub endpoints: Vec<Endpoint>,
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The new certificate.
    pub certificate: Signed<Certificate>,
    /// The same keys had one before: number and addresses are the old ones.
    pub renewed: bool,
    /// `master.toml` has a new version.
    pub network_changed: bool,
}

/// What a revocation names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Every certificate of this name that has not expired.
    Name(Name),
    /// One certificate; with it end all others for the same keys.
    Serial(Serial),
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Revoked {
    /// New revocations; none where everything had been revoked already.
    pub new: Vec<Signed<Revocation>>,
    /// Certificates that end with them, by serial.
    pub ended: Vec<Serial>,
    /// Names that lose their membership.
    pub names: Vec<Name>,
    /// `master.toml` has a new version.
    pub network_changed: bool,
    /// A revoked master is still in `master.toml`, since there is no other.
    pub masterless: bool,
}

/// Nodes that may execute on one another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnerGroup {
    /// Whose; `None`: these execute nowhere, and nobody on them.
    pub owner: Option<Owner>,
    /// Which, by number.
    pub nodes: Vec<Name>,
}

/// A secret and its ledger.
#[derive(Debug, Clone)]
pub struct Authority {
    secret: SigningSecret,
    ledger: Ledger,
}

impl Authority {
    /// Begins a network with its first master.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn begin(
        secret: SigningSecret,
        beginning: Beginning,
        now: Timestamp,
    ) -> Result<(Self, Issued), AuthorityError> {
        let date = now.whole_second();
        let id = NetworkId::of(&secret.public());
        let (transport, host) = beginning.keys;
        let first = Master {
            name: beginning.master.clone(),
            number: NodeNumber(1),
            transport,
            host,
            endpoints: beginning.endpoints.clone(),
        };
        if first.endpoints.is_empty() || first.endpoints.len() > MAX_ENDPOINTS {
            return Err(AuthorityError::Endpoints);
        }
        let network = Network {
            version: 1,
            name: beginning.name,
            authority: secret.public(),
            ipv4: beginning.ipv4,
            date,
            masters: vec![first],
        };
        network.check()?;
        let ledger = Ledger {
            authority: secret.public(),
            owner: beginning.owner,
            next_number: 1,
            next_serial: 1,
            network: Signed::sign(network, &id, &secret),
            certificates: Vec::new(),
            head: Signed::sign(Head { count: 0, date }, &id, &secret),
            revocations: Vec::new(),
        };
        let mut authority = Self { secret, ledger };
        let issue = Issue {
            name: beginning.master,
            keys: Keys::Node(transport, host),
            not_after: beginning.not_after,
            role: Some(Roles::MASTER),
            owner: None,
            endpoints: beginning.endpoints,
        };
        let issued = authority.issue(issue, now)?;
        Ok((authority, issued))
    }

    /// Takes up work on a ledger.
    ///
    /// # Errors
    /// [`AuthorityError::OtherLedger`].
    pub fn open(secret: SigningSecret, ledger: Ledger) -> Result<Self, AuthorityError> {
        let key = secret.public();
        if key == ledger.authority {
            Ok(Self { secret, ledger })
        } else {
            Err(AuthorityError::OtherLedger { key, ledger: ledger.authority })
        }
    }

    /// The ledger as it stands.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Issues a certificate, or renews one.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub fn issue(&mut self, issue: Issue, now: Timestamp) -> Result<Issued, AuthorityError> {
        check_name(&issue.name)?;
        let (transport, host) = self.keys(&issue)?;
        let before = self.known(&issue.name, &transport, host.as_ref(), now)?.cloned();
        let wireguard = host.is_none();
        if before.as_ref().is_some_and(|b| b.roles.is_wireguard() != wireguard) {
            return Err(AuthorityError::OtherSort(issue.name));
        }
        let roles = match issue.role {
            Some(_) if wireguard => return Err(AuthorityError::Wireguard),
            None if wireguard => Roles::WIREGUARD,
            Some(Roles::WIREGUARD) => return Err(AuthorityError::OtherSort(issue.name)),
            Some(role) => role,
            None => before.as_ref().map_or(Roles::NODE, |b| b.roles),
        };
        let owner = match issue.owner {
            Some(Some(_)) if wireguard => return Err(AuthorityError::Wireguard),
            Some(owner) => owner,
            None if wireguard => None,
            None => before.as_ref().map_or_else(|| self.ledger.owner.clone(), |b| b.owner.clone()),
        };
        let number = before.as_ref().map_or(NodeNumber(self.ledger.next_number), |b| b.number);
        let ipv4_net = self.ledger.network.ipv4;
        let ipv4 = number.ipv4(&ipv4_net).ok_or(AuthorityError::Full(ipv4_net))?;
        let certificate = Certificate {
            network: self.ledger.id(),
            serial: Serial(self.ledger.next_serial),
            name: issue.name,
            number,
            ipv4,
            transport,
            host,
            owner,
            roles,
            not_before: now.minus(BACKDATE).whole_second(),
            not_after: issue.not_after.whole_second(),
        };
        certificate.check()?;
        let masters = self.masters_with(&certificate, issue.endpoints)?;

        let certificate = Signed::sign(certificate, &self.ledger.id(), &self.secret);
        if before.is_none() {
            self.ledger.next_number += 1;
        }
        self.ledger.next_serial += 1;
        self.ledger.certificates.push(certificate.clone());
        let network_changed = self.publish(masters, now);
        Ok(Issued { certificate, renewed: before.is_some(), network_changed })
    }

    /// Takes certificates back. Asking again for what has been revoked changes nothing.
    ///
    /// # Errors
    /// [`AuthorityError`]: nothing of that name or serial, or expired.
    pub fn revoke(&mut self, target: &Target, now: Timestamp) -> Result<Revoked, AuthorityError> {
        let named: Vec<Signed<Certificate>> = match target {
            Target::Name(name) => {
                self.ledger.certificates.iter().filter(|c| c.name == *name).cloned().collect()
            }
            Target::Serial(serial) => {
                self.ledger.certificate(*serial).into_iter().cloned().collect()
            }
        };
        if named.is_empty() {
            return Err(match target {
                Target::Name(name) => AuthorityError::NoSuchName(name.clone()),
                Target::Serial(serial) => AuthorityError::NoSuchSerial(*serial),
            });
        }
        let live = |c: &Signed<Certificate>| self.ledger.is_live(c, now);
        let before: Vec<Serial> =
            self.ledger.certificates.iter().filter(|c| live(c)).map(|c| c.serial).collect();
        let ending: Vec<_> = named.iter().filter(|c| live(c)).cloned().collect();
        if ending.is_empty() && named.iter().all(|c| self.ledger.revocation_of(c).is_none()) {
            let what = match target {
                Target::Name(name) => format!("`{name}`"),
                Target::Serial(serial) => format!("serial {serial}"),
            };
            return Err(AuthorityError::Expired(what));
        }

        let id = self.ledger.id();
        let date = self.date(now);
        let mut new = Vec::with_capacity(ending.len());
        for certificate in ending {
            let revocation = Revocation {
                number: self.ledger.revocations.len() as u64 + 1,
                serial: certificate.serial,
                transport: certificate.transport,
                host: certificate.host,
                date,
            };
            let signed = Signed::sign(revocation, &id, &self.secret);
            self.ledger.revocations.push(signed.clone());
            new.push(signed);
        }
        if !new.is_empty() {
            let count = self.ledger.revocations.len() as u64;
            self.ledger.head = Signed::sign(Head { count, date }, &id, &self.secret);
        }
        let ended: Vec<_> = before
            .into_iter()
            .filter_map(|serial| self.ledger.certificate(serial))
            .filter(|c| !self.ledger.is_live(c, now))
            .collect();
        let mut names: Vec<Name> = ended.iter().map(|c| c.name.clone()).collect();
        names.sort();
        names.dedup();
        let ended = ended.iter().map(|c| c.serial).collect();
        let kept: Vec<Master> = self.standing_masters().cloned().collect();
        let masterless = kept.is_empty();
        let network_changed = !masterless && self.publish(kept, now);
        Ok(Revoked { new, ended, names, network_changed, masterless })
    }

    /// Who may execute on whom, among the present members; those without owner last.
    pub fn owner_groups(&self, now: Timestamp) -> Vec<OwnerGroup> {
        let mut groups: Vec<OwnerGroup> = Vec::new();
        for member in self.ledger.members(now).into_iter().filter(|m| !m.roles.is_wireguard()) {
            match groups.iter_mut().find(|group| group.owner == member.owner) {
                Some(group) => group.nodes.push(member.name.clone()),
                None => groups.push(OwnerGroup {
                    owner: member.owner.clone(),
                    nodes: vec![member.name.clone()],
                }),
            }
        }
        groups.sort_by(|a, b| (a.owner.is_none(), &a.owner).cmp(&(b.owner.is_none(), &b.owner)));
        groups
    }

    fn keys(&self, issue: &Issue) -> Result<(TransportKey, Option<VerifyKey>), AuthorityError> {
        match issue.keys {
            Keys::Node(transport, host) => {
                transport.check()?;
                host.check()?;
                if host == self.ledger.authority {
                    return Err(AuthorityError::AuthorityKey);
                }
                Ok((transport, Some(host)))
            }
            Keys::Wireguard(transport) => {
                transport.check()?;
                Ok((transport, None))
            }
            Keys::Known => {
                let newest = self.ledger.newest(&issue.name);
                let known = newest.ok_or_else(|| AuthorityError::Unknown(issue.name.clone()))?;
                Ok((known.transport, known.host))
            }
        }
    }

    /// The newest certificate of these keys, after checking that they may have another one under this name.
    fn known(
        &self,
        name: &Name,
        transport: &TransportKey,
        host: Option<&VerifyKey>,
        now: Timestamp,
    ) -> Result<Option<&Signed<Certificate>>, AuthorityError> {
        let mut before = None;
        for certificate in &self.ledger.certificates {
            let same_transport = certificate.transport == *transport;
            let same_host = host.is_some() && certificate.host.as_ref() == host;
            if !same_transport && !same_host {
                if certificate.name == *name && self.ledger.is_live(certificate, now) {
                    return Err(AuthorityError::NameTaken {
                        name: name.clone(),
                        serial: certificate.serial,
                        until: certificate.not_after,
                    });
                }
                continue;
            }
            if certificate.name != *name {
                return Err(AuthorityError::KeyTaken(certificate.name.clone(), certificate.serial));
            }
            if !same_transport || certificate.host.as_ref() != host {
                return Err(if certificate.roles.is_wireguard() == host.is_none() {
                    AuthorityError::KeyMixed(certificate.serial)
                } else {
                    AuthorityError::OtherSort(name.clone())
                });
            }
            if let Standing::Revoked(number) = self.ledger.standing(certificate, now) {
                return Err(AuthorityError::KeyRevoked(number));
            }
            before = Some(certificate);
        }
        Ok(before)
    }

    /// The masters of `master.toml` that have neither been revoked nor lost the role.
    fn standing_masters(&self) -> impl Iterator<Item = &Master> {
        self.ledger.network.masters.iter().filter(|entry| {
            self.ledger.newest(&entry.name).is_none_or(|newest| {
                newest.roles.is_master() && Network::is_entry_of(entry, newest)
            }) && !self
                .ledger
                .certificates
                .iter()
                .any(|c| Network::is_entry_of(entry, c) && self.ledger.revocation_of(c).is_some())
        })
    }

    /// The masters once this certificate is issued.
    fn masters_with(
        &self,
        certificate: &Certificate,
        endpoints: Vec<Endpoint>,
    ) -> Result<Vec<Master>, AuthorityError> {
        let mut masters: Vec<Master> = self.standing_masters().cloned().collect();
        let at = masters.iter().position(|entry| Network::is_entry_of(entry, certificate));
        match (certificate.roles.is_master(), certificate.host) {
            (true, Some(host)) => {
                let endpoints = match at.and_then(|at| masters.get(at)) {
                    Some(entry) if endpoints.is_empty() => entry.endpoints.clone(),
                    Some(_) | None => endpoints,
                };
                if endpoints.is_empty() || endpoints.len() > MAX_ENDPOINTS {
                    return Err(AuthorityError::Endpoints);
                }
                let entry = Master {
                    name: certificate.name.clone(),
                    number: certificate.number,
                    transport: certificate.transport,
                    host,
                    endpoints,
                };
                match at.and_then(|at| masters.get_mut(at)) {
                    Some(old) => *old = entry,
                    None => masters.push(entry),
                }
            }
            (true, None) | (false, _) => {
                if !endpoints.is_empty() {
                    return Err(AuthorityError::Endpoints);
                }
                if let Some(at) = at {
                    masters.remove(at);
                }
            }
        }
        if masters.len() > MAX_MASTERS {
            return Err(AuthorityError::Masters);
        }
        if masters.is_empty() {
            // Nobody could join a network without a meeting place: the last entry stays until there is another.
            return Ok(self.ledger.network.masters.clone());
        }
        Ok(masters)
    }

    /// Signs a new version of the network, if its masters are others than before.
    fn publish(&mut self, masters: Vec<Master>, now: Timestamp) -> bool {
        let old = self.ledger.network.statement();
        if old.masters == masters {
            return false;
        }
        let network =
            Network { version: old.version + 1, date: self.date(now), masters, ..old.clone() };
        self.ledger.network = Signed::sign(network, &self.ledger.id(), &self.secret);
        true
    }

    /// The date of what is signed now: never before what was signed last, whatever this machine's clock says.
    fn date(&self, now: Timestamp) -> Timestamp {
        now.whole_second().max(self.ledger.network.date).max(self.ledger.head.date)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        config::{key::Secrets, testing::*},
        words::certificate::Validity,
    };

    #[test]
    fn a_network_begins_with_one_signed_master() {
        let (authority, issued) = network();
        let ledger = authority.ledger();
        assert_eq!(ledger.network.version, 1);
        assert_eq!(ledger.network.masters.len(), 1);
        assert!(issued.certificate.roles.is_master());
        assert_eq!(
            (issued.certificate.serial, issued.certificate.number),
            (Serial(1), NodeNumber(1))
        );
        assert!(Network::is_entry_of(&ledger.network.masters[0], &issued.certificate));
        assert_eq!(
            issued.certificate.validity(NOW.minus(Duration::from_secs(600))),
            Validity::Valid
        );
        assert_eq!(issued.certificate.owner, Some(owner("alice")));
        assert!(!issued.network_changed && !issued.renewed);
        let raw = issued.certificate.raw();
        assert!(Signed::<Certificate>::verify(raw, &ledger.id(), &ledger.authority).is_ok());
    }

    #[test]
    fn new_nodes_get_new_numbers_and_renewals_keep_theirs() {
        let (mut authority, _) = network();
        let a = Secrets::generate();
        let first = authority.issue(node("a", &a), NOW).unwrap();
        let b = authority.issue(node("b", &Secrets::generate()), NOW).unwrap();
        let again = authority.issue(node("a", &a), NOW).unwrap();
        assert!(again.renewed && !first.renewed);
        assert_eq!((first.certificate.number.0, first.certificate.serial.0), (2, 2));
        assert_eq!((b.certificate.number.0, b.certificate.serial.0), (3, 3));
        assert_eq!((again.certificate.number.0, again.certificate.serial.0), (2, 4));
        let known = authority.issue(Issue { keys: Keys::Known, ..node("a", &a) }, NOW).unwrap();
        assert_eq!((known.certificate.number.0, known.certificate.serial.0), (2, 5));
        assert_eq!(known.certificate.transport, a.transport.public());
        let names: Vec<_> = authority.ledger().members(NOW).iter().map(|c| c.serial.0).collect();
        assert_eq!(names, [1, 5, 3]);
    }

    #[test]
    fn a_key_serves_one_name_only() {
        let (mut authority, _) = network();
        let a = Secrets::generate();
        authority.issue(node("a", &a), NOW).unwrap();
        let before = authority.ledger().clone();
        let other = authority.issue(node("b", &a), NOW).unwrap_err();
        assert_eq!(other, AuthorityError::KeyTaken(name("a"), Serial(2)));
        let half = Secrets { transport: a.transport.clone(), ..Secrets::generate() };
        assert_eq!(
            authority.issue(node("a", &half), NOW).unwrap_err(),
            AuthorityError::KeyMixed(Serial(2))
        );
        let half = Secrets { host: a.host.clone(), ..Secrets::generate() };
        assert_eq!(
            authority.issue(node("b", &half), NOW).unwrap_err(),
            AuthorityError::KeyTaken(name("a"), Serial(2))
        );
        let keys = Keys::Wireguard(a.transport.public());
        let plain = Issue { keys, ..node("a", &a) };
        assert_eq!(authority.issue(plain, NOW).unwrap_err(), AuthorityError::OtherSort(name("a")));
        assert_eq!(*authority.ledger(), before, "a refusal changes nothing");
    }

    #[test]
    fn a_name_keeps_its_keys_until_they_end() {
        let (mut authority, _) = network();
        authority.issue(node("a", &Secrets::generate()), NOW).unwrap();
        let fresh = Secrets::generate();
        let clash = authority.issue(node("a", &fresh), NOW).unwrap_err();
        assert!(matches!(clash, AuthorityError::NameTaken { serial: Serial(2), .. }), "{clash}");
        let later = NOW.plus(Duration::from_secs(31 * 86_400));
        let mut expired = authority.clone();
        let ask = Issue { not_after: later.plus(Duration::from_secs(60)), ..node("a", &fresh) };
        assert_eq!(expired.issue(ask, later).unwrap().certificate.number.0, 3);
        authority.revoke(&Target::Name(name("a")), NOW).unwrap();
        let issued = authority.issue(node("a", &fresh), NOW).unwrap();
        assert_eq!(issued.certificate.number.0, 3, "a number is never used twice");
    }

    #[test]
    fn no_node_takes_the_authoritys_name() {
        let (mut authority, _) = network();
        let refused = authority.issue(node("authority", &Secrets::generate()), NOW);
        assert_eq!(refused.unwrap_err(), AuthorityError::ReservedName);
    }

    #[test]
    fn low_order_and_foreign_keys_are_never_certified() {
        let (mut authority, _) = network();
        let good = Secrets::generate();
        let low = Issue {
            keys: Keys::Node(TransportKey([0; 32]), good.host.public()),
            ..node("a", &good)
        };
        assert_eq!(authority.issue(low, NOW).unwrap_err(), KeyError::LowOrder.into());
        let mut identity = [0; 32];
        identity[0] = 1;
        let weak = Issue {
            keys: Keys::Node(good.transport.public(), VerifyKey(identity)),
            ..node("a", &good)
        };
        assert_eq!(authority.issue(weak, NOW).unwrap_err(), KeyError::NotAPoint.into());
        let own = Keys::Node(good.transport.public(), authority.ledger().authority);
        let own = authority.issue(Issue { keys: own, ..node("a", &good) }, NOW);
        assert_eq!(own.unwrap_err(), AuthorityError::AuthorityKey);
        let low = Issue { keys: Keys::Wireguard(TransportKey([0; 32])), ..node("a", &good) };
        assert_eq!(authority.issue(low, NOW).unwrap_err(), KeyError::LowOrder.into());
    }

    #[test]
    fn revoking_a_name_names_every_unexpired_certificate() {
        let (mut authority, _) = network();
        let a = Secrets::generate();
        let short = NOW.plus(Duration::from_secs(60));
        authority.issue(Issue { not_after: short, ..node("a", &a) }, NOW).unwrap();
        authority.issue(node("a", &a), NOW).unwrap();
        authority.issue(node("a", &a), NOW).unwrap();
        let later = NOW.plus(Duration::from_secs(3600));
        let revoked = authority.revoke(&Target::Name(name("a")), later).unwrap();
        let serials: Vec<_> = revoked.new.iter().map(|r| (r.number, r.serial.0)).collect();
        assert_eq!(serials, [(1, 3), (2, 4)]);
        assert_eq!(revoked.names, [name("a")]);
        assert_eq!(authority.ledger().head.count, 2);
        let again = authority.revoke(&Target::Name(name("a")), later).unwrap();
        assert!(again.new.is_empty());
        assert_eq!(
            authority.issue(node("a", &a), later).unwrap_err(),
            AuthorityError::KeyRevoked(1)
        );
        let gone = authority.issue(Issue { keys: Keys::Known, ..node("a", &a) }, later);
        assert_eq!(gone.unwrap_err(), AuthorityError::Unknown(name("a")));
    }

    #[test]
    fn revoking_what_is_not_there_says_so() {
        let (mut authority, _) = network();
        let short = NOW.plus(Duration::from_secs(60));
        authority
            .issue(Issue { not_after: short, ..node("a", &Secrets::generate()) }, NOW)
            .unwrap();
        let later = NOW.plus(Duration::from_secs(3600));
        for (target, wanted) in [
            (Target::Name(name("x")), AuthorityError::NoSuchName(name("x"))),
            (Target::Serial(Serial(9)), AuthorityError::NoSuchSerial(Serial(9))),
            (Target::Name(name("a")), AuthorityError::Expired("`a`".to_owned())),
            (Target::Serial(Serial(2)), AuthorityError::Expired("serial 2".to_owned())),
        ] {
            assert_eq!(authority.revoke(&target, later).unwrap_err(), wanted);
        }
        let skewed = short.plus(Duration::from_secs(60));
        let revoked = authority.revoke(&Target::Name(name("a")), skewed).unwrap();
        assert_eq!(revoked.new.len(), 1, "within the skew it is still accepted somewhere");
    }

    #[test]
    fn masters_come_and_go_with_their_certificates() {
        let (mut authority, _) = network();
        let b = Secrets::generate();
        let master = Issue {
            role: Some(Roles::MASTER),
            endpoints: vec!["udp://b:1".parse().unwrap()],
            ..node("b", &b)
        };
        let bare = Issue { endpoints: Vec::new(), ..master.clone() };
        assert_eq!(authority.issue(bare, NOW).unwrap_err(), AuthorityError::Endpoints);
        let not_master = Issue { role: Some(Roles::RELAY), ..master.clone() };
        assert_eq!(authority.issue(not_master, NOW).unwrap_err(), AuthorityError::Endpoints);
        assert!(authority.issue(master, NOW).unwrap().network_changed);
        assert_eq!(authority.ledger().network.version, 2);
        let renewed = authority.issue(node("b", &b), NOW).unwrap();
        assert!(renewed.certificate.roles.is_master() && !renewed.network_changed);
        let revoked = authority.revoke(&Target::Name(name("head")), NOW).unwrap();
        assert!(revoked.network_changed && !revoked.masterless);
        let names: Vec<_> = authority.ledger().network.masters.iter().map(|m| &m.name).collect();
        assert_eq!((names, authority.ledger().network.version), (vec![&name("b")], 3));
        let revoked = authority.revoke(&Target::Name(name("b")), NOW).unwrap();
        assert!(revoked.masterless && !revoked.network_changed);
        let c = Issue {
            role: Some(Roles::MASTER),
            endpoints: vec!["udp://c:1".parse().unwrap()],
            ..node("c", &Secrets::generate())
        };
        authority.issue(c, NOW).unwrap();
        let names: Vec<_> = authority.ledger().network.masters.iter().map(|m| &m.name).collect();
        assert_eq!((names, authority.ledger().network.version), (vec![&name("c")], 4));
    }

    #[test]
    fn a_full_network_refuses_new_nodes_but_renews() {
        let (mut authority, issued) = network_in("10.0.0.0/30");
        let a = Secrets::generate();
        authority.issue(node("a", &a), NOW).unwrap();
        let full = authority.issue(node("b", &Secrets::generate()), NOW).unwrap_err();
        assert!(matches!(full, AuthorityError::Full(_)), "{full}");
        assert!(authority.issue(node("a", &a), NOW).unwrap().renewed);
        assert_eq!(issued.certificate.ipv4.to_string(), "10.0.0.1");
    }

    #[test]
    fn a_wireguard_member_is_nothing_more() {
        let (mut authority, _) = network();
        let key = Secrets::generate().transport.public();
        let plain = Issue { keys: Keys::Wireguard(key), ..node("phone", &Secrets::generate()) };
        let issued = authority.issue(plain.clone(), NOW).unwrap();
        assert!(issued.certificate.roles.is_wireguard());
        assert_eq!((issued.certificate.host, &issued.certificate.owner), (None, &None));
        for wrong in [
            Issue { role: Some(Roles::RELAY), ..plain.clone() },
            Issue { owner: Some(Some(owner("eve"))), ..plain.clone() },
        ] {
            assert_eq!(authority.issue(wrong, NOW).unwrap_err(), AuthorityError::Wireguard);
        }
        assert!(authority.issue(plain, NOW).unwrap().renewed);
    }

    #[test]
    fn owners_group_the_nodes_that_may_execute_on_one_another() {
        let (mut authority, _) = network();
        authority.issue(node("a", &Secrets::generate()), NOW).unwrap();
        let free = Issue { owner: Some(None), ..node("b", &Secrets::generate()) };
        authority.issue(free, NOW).unwrap();
        let bob = Issue { owner: Some(Some(owner("bob"))), ..node("c", &Secrets::generate()) };
        authority.issue(bob, NOW).unwrap();
        let groups = authority.owner_groups(NOW);
        let group = |owner, nodes: &[&str]| OwnerGroup {
            owner,
            nodes: nodes.iter().map(|n| name(n)).collect(),
        };
        assert_eq!(
            groups,
            [
                group(Some(owner("alice")), &["head", "a"]),
                group(Some(owner("bob")), &["c"]),
                group(None, &["b"])
            ]
        );
    }

    #[test]
    fn dates_never_go_back_with_the_clock() {
        let (mut authority, _) = network();
        authority.issue(node("a", &Secrets::generate()), NOW).unwrap();
        let early = NOW.minus(Duration::from_secs(7200));
        let revoked = authority.revoke(&Target::Name(name("a")), early).unwrap();
        assert_eq!(revoked.new[0].date, NOW);
    }

    #[test]
    fn the_secret_must_be_the_ledgers() {
        let (authority, _) = network();
        let wrong = Authority::open(SigningSecret::generate(), authority.ledger().clone());
        assert!(matches!(wrong, Err(AuthorityError::OtherLedger { .. })));
    }
}
