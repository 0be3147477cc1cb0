//! What arrives as a datagram or from the TUN: messages, packets, control records and their parts.

use std::net::IpAddr;

use clusternet::{
    channel::{Suite, exchange},
    dataplane::{inbound, outbound, table::Builder, unreachable},
    node::output::{Directive, PeerSlot},
    path::route::{Egress, Route, SocketId},
    wire::{
        exchange::{Accept, Features, Offer, Suites},
        filter,
        ip::IpView,
        message::{Mac1Key, Message},
        parts::{self, Assembler},
        record::{self, Entry, Introduction, Knowledge, MAX_PACKET, Record, Refusal},
        relay::{self, RelayIndex},
    },
    words::{
        id::{Incarnation, Serial},
        key::{TransportKey, TransportSecret},
        time::Timestamp,
    },
};

use super::network::{NOW, authority};

fn key() -> TransportKey {
    TransportSecret::from_bytes([5; 32]).public()
}

fn endpoint() -> Egress {
    let endpoint = "192.0.2.1:51820".parse().expect("an endpoint");
    Egress::Udp { socket: SocketId(0), endpoint }
}

/// Message headers and the relay prefix.
pub fn message(data: &[u8]) -> bool {
    let parsed = Message::parse(data);
    if let Ok(Message::Relay { index, inner }) = parsed {
        assert_eq!(relay::wrap(index, inner), data);
        assert!(!matches!(Message::parse(inner), Ok(Message::Relay { .. })));
    }
    if Mac1Key::of(&key()).is_valid_in(data) {
        assert!(parsed.is_ok_and(|message| message.is_handshake()));
    }
    if let Some((index, inner)) = relay::split(data) {
        assert_eq!(relay::wrap(index, inner), data);
    }
    parsed.is_ok()
}

/// One of each message, alone and relayed.
pub fn messages() -> Vec<Vec<u8>> {
    let plain = [(1, 148), (2, 92), (3, 64), (4, 32), (4, 100)].map(|(kind, len)| {
        let mut message = vec![7; len];
        message[..4].copy_from_slice(&[kind, 0, 0, 0]);
        message
    });
    let relayed = plain.iter().map(|message| relay::wrap(RelayIndex(0x0707_0707), message));
    relayed.chain(plain.iter().cloned()).collect()
}

fn own() -> [IpAddr; 2] {
    [[10, 99, 0, 1].into(), [0xfd00, 0, 0, 0, 0, 0, 0, 1].into()]
}

fn peer() -> [IpAddr; 2] {
    [[10, 99, 0, 2].into(), [0xfd00, 0, 0, 0, 0, 0, 0, 2].into()]
}

/// IP packets from a program and from a peer, and the answers to them.
pub fn ip(data: &[u8]) -> bool {
    if let Ok(view) = IpView::parse(data) {
        assert!(data.starts_with(view.bytes()));
        let again = IpView::parse(view.bytes()).expect("a packet cut to its length is a packet");
        assert_eq!(again.bytes(), view.bytes());
        assert_eq!(view.source().is_ipv4(), view.destination().is_ipv4());
    }
    if let Ok(view) = filter::inbound(data, &own(), &peer()) {
        assert!(own().contains(&view.destination()) && peer().contains(&view.source()));
        assert!(record::payload(data).is_none(), "no control record passes as a packet");
    }
    if let Ok(view) = filter::outbound(data, &own()) {
        assert!(own().contains(&view.source()));
        assert!(record::payload(data).is_none(), "no program forges a control record");
    }
    let mut buffer = [0; unreachable::MAX_LEN];
    if let Some(reply) = unreachable::reply(data, &mut buffer) {
        let reply = IpView::parse(reply).expect("a well-formed answer");
        let asked = IpView::parse(data).expect("an answer to a packet");
        assert_eq!(reply.destination(), asked.source());
        let quiet = unreachable::reply(reply.bytes(), &mut [0; unreachable::MAX_LEN]).is_none();
        assert!(quiet, "no answer to an answer");
    }
    filter::inbound(data, &own(), &peer()).is_ok() || filter::outbound(data, &own()).is_ok()
}

/// Packets of both families between us, the peer and a stranger.
pub fn ips() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for (from, to) in [(own(), peer()), (peer(), own())] {
        for (from, to) in from.into_iter().zip(to) {
            let packet = match (from, to) {
                (IpAddr::V4(from), IpAddr::V4(to)) => {
                    let mut packet = vec![0; 60];
                    packet[0] = 0x45;
                    packet[3] = 60;
                    packet[9] = 17;
                    packet[12..16].copy_from_slice(&from.octets());
                    packet[16..20].copy_from_slice(&to.octets());
                    packet
                }
                (IpAddr::V6(from), IpAddr::V6(to)) => {
                    let mut packet = vec![0; 60];
                    packet[0] = 0x60;
                    packet[5] = 20;
                    packet[6] = 17;
                    packet[8..24].copy_from_slice(&from.octets());
                    packet[24..40].copy_from_slice(&to.octets());
                    packet
                }
                (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => continue,
            };
            all.push(packet);
        }
    }
    all
}

/// The first look at a datagram and at a packet, with a table that knows a tunnel, a peer and a relayed pair.
pub fn dataplane(data: &[u8]) -> bool {
    let mut builder = Builder::new(own());
    let route = Route { egress: endpoint(), relay: None };
    let index = RelayIndex(0x0707_0707);
    for directive in [
        Directive::InstallTunnel { index: 0x0007_0707 },
        Directive::InstallPeer { slot: PeerSlot(1), addresses: peer() },
        Directive::InstallRelay { index, from: route, to: Route { relay: Some(index), ..route } },
    ] {
        builder.apply(&directive);
    }
    let mut datagram = data.to_vec();
    let verdict = inbound::decide(builder.table(), &Mac1Key::of(&key()), endpoint(), &mut datagram);
    assert_eq!(datagram.len(), data.len());
    match verdict {
        Ok(inbound::Verdict::Forward(_)) => {
            let (_, inner) = relay::split(&datagram).expect("what is forwarded is relayed");
            assert_eq!(inner, &data[relay::PREFIX..], "and not changed inside");
        }
        Ok(inbound::Verdict::Punt { start, .. }) => {
            assert!(Message::parse(&datagram[start..]).is_ok());
            assert_eq!(datagram, data);
        }
        Ok(inbound::Verdict::Open { .. }) | Err(_) => assert_eq!(datagram, data),
    }
    if let Ok(admitted) = outbound::decide(builder.table(), data, data.len()) {
        assert!(admitted.peer.addresses.contains(&admitted.packet.destination()));
    }
    verdict.is_ok()
}

/// Datagrams that the table sends somewhere.
pub fn arrivals() -> Vec<Vec<u8>> {
    let mut all = messages();
    // Of handshake messages only the relayed ones pass unlooked at: a right mac1 is the sender's own work.
    all.retain(|message| !matches!(message[0], 1 | 2));
    all.push(super::tunnels::initiation(&key()));
    all
}

/// One encoded record.
pub fn record(data: &[u8]) -> bool {
    let Ok(record) = Record::decode(data) else { return false };
    assert_eq!(record.encode(), data, "one record has one encoding");
    if data.len() > parts::MAX_RECORD {
        return false;
    }
    let mut assembler = Assembler::default();
    let mut packets = parts::split(&record, 1);
    let last = packets.pop().expect("at least one");
    for packet in packets {
        assert_eq!(assembler.handle_packet(&packet), Ok(None));
    }
    assert_eq!(assembler.handle_packet(&last), Ok(Some(record)));
    true
}

fn all_records() -> Vec<Record> {
    let (authority, a) = authority();
    let ledger = authority.ledger();
    let certificate = a.certificate.raw().clone();
    let knowledge = Knowledge { head: 1, network: 2, digest: 3 };
    let entries =
        vec![Entry::Certificate(certificate.clone()), Entry::Network(ledger.network.raw().clone())];
    vec![
        Record::Introduction(Box::new(Introduction {
            certificate: certificate.clone(),
            accepted: true,
            incarnation: Incarnation(7),
            accepted_incarnation: Incarnation(8),
            knowledge,
            wants_answer: true,
            suites: Suites(3),
            features: Features(1),
            time: Timestamp(NOW.0),
        })),
        Record::Refused(Refusal::Expired),
        Record::Sync { epoch: 1, after: 2 },
        Record::Page { epoch: 1, after: 0, upto: 2, latest: 2, entries: entries.clone() },
        Record::News { entries },
        Record::Known(knowledge),
        Record::ProbeReply {
            id: 1,
            seen: Some("192.0.2.1:7".parse().expect("an endpoint")),
            unknown: 0,
        },
        Record::ProbeReply {
            id: 1,
            seen: Some("[2001:db8::1]:7".parse().expect("an endpoint")),
            unknown: 0,
        },
        Record::RelayOffer { index: RelayIndex(1), certificate },
        Record::RelayGrant { peer: Serial(300), index: RelayIndex(1) },
    ]
}

/// Encoded records of many kinds.
pub fn records() -> Vec<Vec<u8>> {
    all_records().iter().map(Record::encode).chain(exchange()).collect()
}

/// An offer, one with an impossible key, and an answer to nothing.
pub fn exchange() -> Vec<Vec<u8>> {
    let offer = exchange::offer(7, 0x0012_3400).expect("the library works").offer().clone();
    let impossible = Offer { number: 8, mlkem: vec![0xff; offer.mlkem.len()], ..offer };
    let accept = Accept {
        number: 1,
        receiver: 0x0012_3400,
        suite: Suite::Aes256Gcm,
        x25519: [9; 32],
        mlkem: vec![1; exchange::CIPHERTEXT],
    };
    let offers = [impossible, offer].map(|offer| Record::Offer(Box::new(offer)).encode());
    offers.into_iter().chain([Record::Accept(Box::new(accept)).encode()]).collect()
}

/// A stream of control packets, each behind its length in two bytes.
pub fn parts(data: &[u8]) -> bool {
    let mut whole = false;
    let mut assembler = Assembler::default();
    let mut rest = data;
    while let Some((len, more)) = rest.split_first_chunk::<2>() {
        let len = usize::from(u16::from_be_bytes(*len)).min(more.len());
        let (packet, more) = more.split_at(len);
        rest = more;
        if let Ok(Some(record)) = assembler.handle_packet(packet) {
            assert!(record.encode().len() <= parts::MAX_RECORD);
            whole = true;
        }
        if let Some(payload) = record::payload(packet) {
            assert!(payload.len() <= MAX_PACKET);
        }
    }
    whole
}

/// Streams of whole records in parts.
pub fn part_streams() -> Vec<Vec<u8>> {
    let stream = |record: &Record| {
        let mut stream = Vec::new();
        for packet in parts::split(record, 9) {
            stream.extend_from_slice(&(packet.len() as u16).to_be_bytes());
            stream.extend_from_slice(&packet);
        }
        stream
    };
    all_records().iter().map(stream).collect()
}
