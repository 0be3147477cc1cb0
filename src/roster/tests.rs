//! The roster's rules, one test each.

use super::*;
use crate::{
    wire::record::Record,
    words::{
        certificate::{BACKDATE, Roles},
        id::{Incarnation, NodeNumber},
        key::{SigningSecret, TransportSecret},
        network::Master,
        signed::RawSigned,
    },
};

const NOW: Timestamp = Timestamp(1_700_000_000_000);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

struct Lab {
    authority: SigningSecret,
    id: NetworkId,
    roster: Roster,
}

fn lab() -> Lab {
    let authority = SigningSecret::generate();
    let id = NetworkId::of(&authority.public());
    let roster = Roster::new(network(&authority, 1), 77);
    Lab { authority, id, roster }
}

fn network(authority: &SigningSecret, version: u64) -> Signed<Network> {
    let master = Master {
        name: "head".parse().expect("literal"),
        number: NodeNumber(1),
        transport: TransportSecret::from_bytes([1; 32]).public(),
        host: SigningSecret::from_bytes([1; 32]).public(),
        endpoints: vec!["udp://192.0.2.1:51820".parse().expect("literal")],
    };
    let network = Network {
        version,
        name: "lab".parse().expect("literal"),
        authority: authority.public(),
        ipv4: "10.99.0.0/16".parse().expect("literal"),
        date: NOW.minus(HOUR),
        masters: vec![master],
    };
    Signed::sign(network, &NetworkId::of(&authority.public()), authority)
}

impl Lab {
    fn certificate(&self, serial: u64, number: u32, name: &str) -> Certificate {
        Certificate {
            network: self.id,
            serial: Serial(serial),
            name: name.parse().expect("literal"),
            number: NodeNumber(number),
            ipv4: format!("10.99.0.{number}").parse().expect("literal"),
            transport: TransportSecret::from_bytes([serial as u8; 32]).public(),
            host: Some(SigningSecret::from_bytes([serial as u8; 32]).public()),
            owner: None,
            roles: Roles::NODE,
            not_before: NOW.minus(BACKDATE),
            not_after: NOW.plus(HOUR),
        }
    }

    fn sign(&self, certificate: Certificate) -> RawSigned {
        Signed::sign(certificate, &self.id, &self.authority).raw().clone()
    }

    fn add(&mut self, certificate: Certificate) -> Taken {
        let raw = self.sign(certificate);
        self.roster.take(&Entry::Certificate(raw), NOW)
    }

    fn revocation(&self, number: u64, certificate: &Certificate) -> Entry {
        let revocation = Revocation {
            number,
            serial: certificate.serial,
            transport: certificate.transport,
            host: certificate.host,
            date: NOW,
        };
        Entry::Revocation(Signed::sign(revocation, &self.id, &self.authority).raw().clone())
    }

    fn announcement(&self, serial: u64, sequence: u64) -> Entry {
        let announcement = Announcement {
            serial: Serial(serial),
            sequence,
            incarnation: Incarnation(1),
            candidates: Vec::new(),
            relays: Vec::new(),
            features: 0,
            head: 0,
            leaving: false,
        };
        let host = SigningSecret::from_bytes([serial as u8; 32]);
        Entry::Announcement(Signed::sign(announcement, &self.id, &host).raw().clone())
    }
}

#[test]
fn a_certificate_of_another_authority_is_refused() {
    let mut lab = lab();
    let foreign = Signed::sign(lab.certificate(2, 2, "a"), &lab.id, &SigningSecret::generate());
    let taken = lab.roster.take(&Entry::Certificate(foreign.raw().clone()), NOW);
    assert_eq!(taken, Taken::Refused(SignedError::Signature));
}

#[test]
fn a_flipped_bit_anywhere_is_refused() {
    let mut lab = lab();
    let good = lab.sign(lab.certificate(2, 2, "a"));
    for bit in 0..good.bytes.len() * 8 {
        let mut bad = good.clone();
        bad.bytes[bit / 8] ^= 1 << (bit % 8);
        let taken = lab.roster.take(&Entry::Certificate(bad), NOW);
        assert!(matches!(taken, Taken::Refused(_)), "bit {bit}");
    }
    for bit in 0..64 * 8 {
        let mut bad = good.clone();
        bad.signature.0[bit / 8] ^= 1 << (bit % 8);
        let taken = lab.roster.take(&Entry::Certificate(bad), NOW);
        assert_eq!(taken, Taken::Refused(SignedError::Signature), "bit {bit}");
    }
    assert!(matches!(lab.roster.take(&Entry::Certificate(good), NOW), Taken::News(_)));
}

#[test]
fn trailing_bytes_are_refused_even_when_signed() {
    let mut lab = lab();
    let mut raw = lab.sign(lab.certificate(2, 2, "a"));
    raw.bytes.push(0);
    let text = [b"clusternet/1 certificate\0".as_slice(), &lab.id.0, &raw.bytes].concat();
    raw.signature = lab.authority.sign(&text);
    let taken = lab.roster.take(&Entry::Certificate(raw), NOW);
    assert_eq!(taken, Taken::Refused(SignedError::Malformed));
}

#[test]
fn a_signature_of_one_kind_does_not_serve_another() {
    let mut lab = lab();
    let mut raw = lab.sign(lab.certificate(2, 2, "a"));
    let text = [b"clusternet/1 request\0".as_slice(), &lab.id.0, &raw.bytes].concat();
    raw.signature = lab.authority.sign(&text);
    let taken = lab.roster.take(&Entry::Certificate(raw), NOW);
    assert_eq!(taken, Taken::Refused(SignedError::Signature));
}

#[test]
fn a_revocation_ends_serial_transport_key_and_host_key() {
    let mut lab = lab();
    let first = lab.certificate(2, 2, "a");
    let same_transport = Certificate { transport: first.transport, ..lab.certificate(3, 3, "b") };
    let same_host = Certificate { host: first.host, ..lab.certificate(4, 4, "c") };
    let other = lab.certificate(5, 5, "d");
    for certificate in [&first, &same_transport, &same_host, &other] {
        assert!(matches!(lab.add(certificate.clone()), Taken::News(_)));
    }
    let revocation = lab.revocation(1, &first);
    assert_eq!(lab.roster.take(&revocation, NOW), Taken::News(Key::Revocation(1)));
    for certificate in [&first, &same_transport, &same_host] {
        assert_eq!(lab.roster.standing(certificate, NOW), Err(Refusal::Revoked));
    }
    assert_eq!(lab.roster.standing(&other, NOW), Ok(()));
    assert_eq!(lab.roster.members(NOW).len(), 1);
}

#[test]
fn revocations_out_of_order_act_at_once_and_count_in_order() {
    let mut lab = lab();
    let (a, b) = (lab.certificate(2, 2, "a"), lab.certificate(3, 3, "b"));
    let (first, second) = (lab.revocation(1, &a), lab.revocation(2, &b));
    assert_eq!(lab.roster.take(&second, NOW), Taken::Early);
    assert_eq!(lab.roster.standing(&b, NOW), Err(Refusal::Revoked));
    assert_eq!(lab.roster.head_count(), 0);
    assert_eq!(lab.roster.take(&first, NOW), Taken::News(Key::Revocation(1)));
    assert_eq!(lab.roster.head_count(), 2);
}

#[test]
fn dates_are_judged_with_five_minutes_of_skew() {
    let lab = lab();
    let skew = Duration::from_secs(300);
    let certificate = lab.certificate(2, 2, "a");
    let at = |time| lab.roster.standing(&certificate, time);
    assert_eq!(at(certificate.not_before.minus(skew)), Ok(()));
    assert_eq!(at(certificate.not_after.plus(skew)), Ok(()));
    assert_eq!(at(certificate.not_after.plus(skew + SECOND)), Err(Refusal::Expired));
    let later = Certificate {
        not_before: NOW.plus(HOUR),
        not_after: NOW.plus(HOUR * 2),
        ..certificate.clone()
    };
    let too_early = later.not_before.minus(skew + SECOND);
    assert_eq!(lab.roster.standing(&later, too_early), Err(Refusal::NotYet));
    assert_eq!(lab.roster.standing(&later, later.not_before.minus(skew)), Ok(()));
}

#[test]
fn the_newest_signed_date_is_a_floor_for_the_clock() {
    let mut lab = lab();
    let certificate = lab.certificate(2, 2, "a");
    let long_ago = NOW.minus(HOUR * 24 * 365);
    let date = certificate.not_after.plus(SKEW + SECOND);
    let head = Signed::sign(Head { count: 0, date }, &lab.id, &lab.authority);
    assert_eq!(lab.roster.take(&Entry::Head(head.raw().clone()), long_ago), Taken::News(Key::Head));
    assert_eq!(lab.roster.standing(&certificate, long_ago), Err(Refusal::Expired));
}

#[test]
fn of_two_certificates_for_a_name_or_number_the_higher_serial_wins() {
    let mut lab = lab();
    let (old, new) = (lab.certificate(2, 2, "a"), lab.certificate(3, 9, "a"));
    let same_number = lab.certificate(4, 9, "z");
    lab.add(new.clone());
    lab.add(old.clone());
    assert_eq!(lab.roster.standing(&old, NOW), Err(Refusal::Superseded));
    assert_eq!(lab.roster.standing(&new, NOW), Ok(()));
    lab.add(same_number);
    assert_eq!(lab.roster.standing(&new, NOW), Err(Refusal::Superseded));
    let names: Vec<_> =
        lab.roster.members(NOW).iter().map(|m| m.certificate().name.to_string()).collect();
    assert_eq!(names, ["z"]);
}

#[test]
fn a_renewal_for_the_same_key_does_not_end_the_old_certificate() {
    let mut lab = lab();
    let old = lab.certificate(2, 2, "a");
    let new = Certificate { serial: Serial(3), not_after: NOW.plus(HOUR * 9), ..old.clone() };
    lab.add(old.clone());
    lab.add(new);
    assert_eq!(lab.roster.standing(&old, NOW), Ok(()));
    let member = lab.roster.member(&old.transport, NOW).expect("valid");
    assert_eq!(member.certificate().serial, Serial(3));
}

#[test]
fn newer_announcements_replace_older_ones_and_are_passed_on_slowly() {
    let mut lab = lab();
    let early = lab.announcement(2, NOW.0);
    assert_eq!(lab.roster.take(&early, NOW), Taken::Early);
    lab.add(lab.certificate(2, 2, "a"));
    assert_eq!(lab.roster.take(&early, NOW), Taken::News(Key::Announcement(Serial(2))));
    assert_eq!(lab.roster.take(&early, NOW), Taken::Known);
    let newer = lab.announcement(2, NOW.0 + 1);
    assert_eq!(lab.roster.take(&newer, NOW), Taken::Known, "held back for five seconds");
    assert_eq!(lab.roster.entry(Key::Announcement(Serial(2))), Some(newer));
    assert!(lab.roster.release(NOW.plus(SECOND * 4)).is_empty());
    assert_eq!(lab.roster.release(NOW.plus(SECOND * 5)), [Key::Announcement(Serial(2))]);
}

#[test]
fn announcements_of_the_future_and_of_yesterday_are_refused() {
    let mut lab = lab();
    lab.add(lab.certificate(2, 2, "a"));
    let future = lab.announcement(2, NOW.plus(HOUR + SECOND).0);
    assert!(matches!(lab.roster.take(&future, NOW), Taken::Refused(_)));
    let old = lab.announcement(2, NOW.minus(HOUR * 24 + SECOND).0);
    assert_eq!(lab.roster.take(&old, NOW), Taken::Known);
    assert!(lab.roster.by_serial(Serial(2)).expect("held").announcement(NOW).is_none());
}

#[test]
fn pages_bring_a_stranger_up_to_date_and_then_nothing() {
    let mut lab = lab();
    for n in 2..=150 {
        lab.add(lab.certificate(n, n as u32, &format!("n{n}")));
    }
    let mut other = Roster::new(network(&lab.authority, 1), 5);
    let (mut epoch, mut after, mut requests) = (0, 0, 0);
    while requests == 0 || after < lab.roster.version() {
        requests += 1;
        for page in lab.roster.pages(epoch, after) {
            assert_eq!(crate::wire::parts::split(&page, 1).len(), 1, "one packet each");
            let Record::Page { epoch: theirs, after: from, upto, entries, .. } = page else {
                unreachable!("pages are pages");
            };
            assert_eq!(from, after);
            (epoch, after) = (theirs, upto);
            for entry in &entries {
                assert!(!matches!(other.take(entry, NOW), Taken::Refused(_)));
            }
        }
    }
    assert_eq!(requests, 3, "64 entries a request");
    assert_eq!(other.members(NOW).len(), 149);
    assert_eq!(other.knowledge().digest, lab.roster.knowledge().digest);
    let pages = lab.roster.pages(epoch, after);
    let [Record::Page { entries, upto, .. }] = pages.as_slice() else { panic!("one empty page") };
    assert_eq!((entries.len(), *upto), (0, lab.roster.version()));
}

#[test]
fn records_go_a_week_after_their_certificate() {
    let mut lab = lab();
    let before = lab.roster.knowledge();
    lab.add(lab.certificate(2, 2, "a"));
    lab.roster.purge(NOW.plus(HOUR + RECORD_GRACE));
    assert!(lab.roster.by_serial(Serial(2)).is_some());
    lab.roster.purge(NOW.plus(HOUR + RECORD_GRACE + SECOND));
    assert!(lab.roster.by_serial(Serial(2)).is_none());
    assert_eq!(lab.roster.knowledge(), before);
}

#[test]
fn an_older_certificate_that_ends_later_counts_when_the_newer_one_has_gone() {
    let mut lab = lab();
    let mut longer = lab.certificate(2, 2, "a");
    longer.not_after = NOW.plus(HOUR * 24 * 30);
    let shorter = Certificate { serial: Serial(3), not_after: NOW.plus(HOUR), ..longer.clone() };
    let key = longer.transport;
    lab.add(longer);
    lab.add(shorter);
    let late = NOW.plus(HOUR * 2 + RECORD_GRACE);
    lab.roster.purge(late);
    assert!(lab.roster.by_serial(Serial(3)).is_none());
    let member = lab.roster.member(&key, late).expect("the older one is valid");
    assert_eq!(member.certificate().serial, Serial(2));
}

#[test]
fn a_newer_network_description_replaces_the_older() {
    let mut lab = lab();
    let newer = Entry::Network(network(&lab.authority, 2).raw().clone());
    assert_eq!(lab.roster.take(&newer, NOW), Taken::News(Key::Network));
    let older = Entry::Network(network(&lab.authority, 1).raw().clone());
    assert_eq!(lab.roster.take(&older, NOW), Taken::Known);
    assert_eq!(lab.roster.network().version, 2);
}
