//! From one device to the other: outbound, inbound and everything between, without sockets.
#![expect(clippy::disallowed_methods, reason = "any instant will do")]

mod ends;
mod packets;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use clusternet::{
    channel::Suite,
    dataplane::{
        drops::DropReason,
        punt::{Notice, Punt},
    },
    node::output::{Carrier, Directive, PeerSlot},
    path::route::Route,
    wire::{
        ip::IpView,
        relay::RelayIndex,
        superpacket::{self, Kind, VirtioHeader},
    },
};
use ends::{Delivered, End, OTHER, address, addresses, datagrams, endpoint, ends, ends_over};
use packets::{ACK, FIN, PSH, Recipe, payload};
use proptest::prelude::*;

const SUITES: [Suite; 2] = [Suite::Aes256Gcm, Suite::ChaCha20Poly1305];

/// A packet of node 1 to node 2 as its kernel hands it over.
fn superpacket(recipe: &Recipe, kind: Kind, len: usize) -> (VirtioHeader, Vec<u8>) {
    let mut packet = from_1_to_2(recipe, len);
    let header = superpacket::rebuild(kind, &mut packet).expect("well-formed");
    (header, packet)
}

fn from_1_to_2(recipe: &Recipe, len: usize) -> Vec<u8> {
    let mut packet = recipe.unfinished(&payload(len));
    address(&mut packet, 1, 2);
    packet
}

fn pair() -> [End; 2] {
    ends(Suite::Aes256Gcm, None, Instant::now())
}

fn notices(end: &mut End) -> Vec<Notice> {
    let mut notices = Vec::new();
    end.punted.drain(100, |punt| {
        if let Punt::Notice(notice) = punt {
            notices.push(notice);
        }
    });
    notices
}

#[test]
fn a_superpacket_arrives_as_it_left_in_one_send_and_one_write() {
    for suite in SUITES {
        for relay in [None, Some(RelayIndex(77))] {
            for recipe in Recipe::all() {
                let kind = if recipe.is_tcp { Kind::Tcp(1340) } else { Kind::Udp(1200) };
                for len in [1341, 5000, 20_000, 59_000] {
                    let [mut a, mut b] = ends(suite, relay, Instant::now());
                    let (header, packet) = superpacket(&recipe, kind, len);
                    // The first packet on a route may have to be moved, the second is read where it belongs.
                    for _ in 0..2 {
                        let sent = a.send([(header, &*packet)]);
                        assert_eq!(sent.len(), 1, "one system call");
                        let (bytes, segment, to) = &sent[0];
                        assert_eq!((*to, *segment), (endpoint(2), bytes.len().min(1452)));
                        let arrived = b.receive(endpoint(1), &[(bytes.clone(), *segment)]);
                        assert_eq!(arrived, [(header, packet.clone())], "{kind:?} {len}");
                    }
                    assert_eq!(b.counters.report().count(), 0);
                }
            }
        }
    }
}

#[test]
fn small_packets_at_hand_together_leave_together_and_keep_their_order() {
    let [mut a, mut b] = pair();
    let recipe = Recipe::new(false, false);
    let packets: Vec<_> =
        [100, 100, 100, 50, 100].map(|len| superpacket(&recipe, Kind::Unfinished, len)).into();
    let sent = a.send(packets.iter().map(|(header, packet)| (*header, &**packet)));
    assert_eq!(sent.len(), 2, "a shorter one ends a send");
    assert_eq!(datagrams(&sent).len(), 5);
    let together: Vec<_> = sent.into_iter().map(|(bytes, segment, _)| (bytes, segment)).collect();
    let arrived = b.receive(endpoint(1), &together);
    let bytes: usize = arrived.iter().map(|(_, packet)| packet.len() - 28).sum();
    assert_eq!(bytes, 450);
}

#[test]
fn the_first_message_is_told_of_and_traffic_once() {
    let [mut a, mut b] = pair();
    let (header, packet) = superpacket(&Recipe::new(true, true), Kind::Unfinished, 10);
    for round in 0..3 {
        let sent = a.send([(header, &*packet)]);
        b.receive(endpoint(1), &[(sent[0].0.clone(), sent[0].1)]);
        let first = round == 0;
        let at_b = if first {
            vec![Notice::Confirmed { index: 2 }, Notice::Active { slot: OTHER }]
        } else {
            Vec::new()
        };
        assert_eq!(notices(&mut b), at_b);
        assert_eq!(notices(&mut a).len(), usize::from(first));
    }
    let traffic = &b.table.table().peer(OTHER).unwrap().traffic;
    assert_eq!(traffic.inbound.units(), 3);
    traffic.rest();
    let sent = a.send([(header, &*packet)]);
    // From elsewhere: told, and the route stays.
    b.receive(endpoint(9), &[(sent[0].0.clone(), sent[0].1)]);
    let origin = Route::direct(endpoint(9));
    assert_eq!(
        notices(&mut b),
        [Notice::Active { slot: OTHER }, Notice::Heard { slot: OTHER, origin }]
    );
    assert_eq!(b.table.table().peer(OTHER).unwrap().route, Some(Route::direct(endpoint(1))));
}

#[test]
fn what_does_not_open_was_seen_or_is_under_unknown_keys_is_counted() {
    let [mut a, mut b] = pair();
    let (header, packet) = superpacket(&Recipe::new(false, true), Kind::Tcp(1340), 6000);
    let sent = a.send([(header, &*packet)]);
    let (bytes, segment, _) = sent[0].clone();
    let mut damaged = bytes.clone();
    damaged[3 * segment + 40] ^= 1;
    assert_eq!(b.receive(endpoint(1), &[(damaged, segment)]).len(), 2, "around the damaged one");
    assert_eq!(b.counters.drops(DropReason::Unauthentic), 1);
    let again = b.receive(endpoint(1), &[(bytes.clone(), segment)]);
    assert_eq!(again.len(), 1, "the damaged one counts as lost, and came now");
    assert_eq!(b.counters.drops(DropReason::Replay), 4);
    let mut unknown = bytes;
    unknown[5] ^= 1;
    b.receive(endpoint(1), &[(unknown[..segment].to_vec(), segment)]);
    assert_eq!(b.counters.drops(DropReason::UnknownChannel), 1);
    // Revoked in between: nothing passes any more, in neither direction.
    a.keypairs.kill();
    b.keypairs.kill();
    assert_eq!(a.send([(header, &*packet)]), []);
    let late = (sent[0].0[..segment].to_vec(), segment);
    b.receive(endpoint(1), &[late]);
    assert_eq!(b.counters.drops(DropReason::KeysEnded), 1);
}

#[test]
fn a_peer_speaks_only_for_itself_and_only_to_us() {
    for (from, to) in [(1, 9), (9, 2), (2, 2), (1, 1)] {
        for (kind, len) in [(Kind::Unfinished, 100), (Kind::Tcp(1340), 9000)] {
            let [mut a, mut b] = pair();
            // A liar's own table lets it send anything.
            let (header, mut packet) = superpacket(&Recipe::new(false, true), kind, len);
            address(&mut packet, from, to);
            a.table = clusternet::dataplane::table::Builder::new(addresses(from));
            let keypairs = std::sync::Arc::clone(&a.keypairs);
            for directive in [
                Directive::InstallPeer { slot: OTHER, addresses: addresses(to) },
                Directive::SetRoute { slot: OTHER, route: Some(Route::direct(endpoint(2))) },
                Directive::SealWith { slot: OTHER, keypairs: Some(keypairs) },
            ] {
                a.table.apply(&directive);
            }
            let sent = a.send([(header, &*packet)]);
            assert_eq!(b.receive(endpoint(1), &[(sent[0].0.clone(), sent[0].1)]), []);
            let reason =
                if from == 1 { DropReason::PeerDestination } else { DropReason::PeerSource };
            assert_eq!(b.counters.drops(reason), 1, "{from} to {to}");
        }
    }
}

#[test]
fn keys_that_have_ended_send_packets_to_control() {
    let [mut a, _] = pair();
    a.now += Duration::from_secs(180);
    let (header, packet) = superpacket(&Recipe::new(false, true), Kind::Tcp(1000), 5000);
    assert_eq!(a.send([(header, &*packet)]), []);
    let mut segments = Vec::new();
    a.punted.drain(100, |punt| {
        if let Punt::Packet(packet) = punt {
            segments.push(packet.to_vec());
        }
    });
    assert_eq!(segments.len(), 5, "cut and finished as the kernel would");
    assert!(segments.iter().all(|segment| packets::is_right(segment)));
}

#[test]
fn more_datagrams_than_a_kernel_takes_at_once_arrive_one_by_one() {
    let [mut a, mut b] = pair();
    let (header, packet) = superpacket(&Recipe::new(false, false), Kind::Unfinished, 10_000);
    let header = VirtioHeader { gso_type: 5, segment: 100, flags: 1, ..header };
    let sent = a.send([(header, &*packet)]);
    let arrived = b.receive(endpoint(1), &[(sent[0].0.clone(), sent[0].1)]);
    assert_eq!(arrived.len(), 100);
    assert!(arrived.iter().all(|(header, packet)| {
        *header == VirtioHeader::default() && packets::is_right(packet) && packet.len() == 128
    }));
}

#[test]
fn a_long_packet_that_only_its_kernel_understands_is_finished_here() {
    let [mut a, mut b] = pair();
    // IPv6, a destination options header, then UDP.
    let (_, plain) = superpacket(&Recipe::new(true, false), Kind::Unfinished, 5000);
    let mut packet = plain[..40].to_vec();
    packet[6] = 60;
    packet.extend([17, 0, 1, 4, 0, 0, 0, 0]);
    packet.extend(&plain[40..]);
    let length = (packet.len() - 40) as u16;
    packet[4..6].copy_from_slice(&length.to_be_bytes());
    let header = VirtioHeader {
        flags: 1,
        checksum_start: 48,
        checksum_offset: 6,
        ..VirtioHeader::default()
    };
    let mut finished = packet.clone();
    superpacket::finish(&header, &mut finished).expect("well-formed");
    let sent = a.send([(header, &*packet)]);
    let arrived = b.receive(endpoint(1), &[(sent[0].0.clone(), sent[0].1)]);
    assert_eq!(arrived, [(VirtioHeader::default(), finished)]);
}

#[test]
fn a_gateway_hands_on_what_is_for_the_members_behind_it_and_nothing_else() {
    for (kind, len, packets) in [(Kind::Unfinished, 500, 1), (Kind::Tcp(1000), 9500, 10)] {
        let [mut a, mut b] = pair();
        let (behind, other) = (PeerSlot(8), PeerSlot(9));
        for end in [&mut a, &mut b] {
            end.table.apply(&Directive::InstallPeer { slot: behind, addresses: addresses(8) });
            end.table.apply(&Directive::InstallPeer { slot: other, addresses: addresses(9) });
        }
        for slot in [behind, other] {
            let route = Some(Route::direct(endpoint(2)));
            let keypairs = Some(std::sync::Arc::clone(&a.keypairs));
            a.table.apply(&Directive::SetCarrier { slot, carrier: Carrier::Gateway(OTHER) });
            a.table.apply(&Directive::SetRoute { slot, route });
            a.table.apply(&Directive::SealWith { slot, keypairs });
        }
        b.table.apply(&Directive::SetCarrier { slot: behind, carrier: Carrier::Us });
        let mut transit = Vec::new();
        for to in [8, 9] {
            let (header, mut packet) = superpacket(&Recipe::new(true, true), kind, len);
            address(&mut packet, 1, to);
            let header = superpacket::rebuild(kind, &mut packet).unwrap_or(header);
            let sent = a.send([(header, &*packet)]);
            assert_eq!(b.receive(endpoint(1), &[(sent[0].0.clone(), sent[0].1)]), []);
        }
        b.punted.drain(100, |punt| {
            if let Punt::Transit(slot, packet) = punt {
                transit.push((slot, packet.to_vec()));
            }
        });
        assert_eq!(transit.len(), packets, "segmented and finished, and only for the one behind");
        assert!(transit.iter().all(|(slot, packet)| *slot == OTHER && packets::is_right(packet)));
        assert_eq!(b.counters.drops(DropReason::PeerDestination), 1);
        // Its answers come back from behind the gateway.
        let (header, mut packet) = superpacket(&Recipe::new(true, true), kind, len);
        address(&mut packet, 8, 1);
        let header = superpacket::rebuild(kind, &mut packet).unwrap_or(header);
        let mut gateway = clusternet::dataplane::table::Builder::new(addresses(8));
        std::mem::swap(&mut gateway, &mut b.table);
        let keypairs = Some(std::sync::Arc::clone(&b.keypairs));
        b.table.apply(&Directive::InstallPeer { slot: OTHER, addresses: addresses(1) });
        b.table
            .apply(&Directive::SetRoute { slot: OTHER, route: Some(Route::direct(endpoint(1))) });
        b.table.apply(&Directive::SealWith { slot: OTHER, keypairs });
        let sent = b.send([(header, &*packet)]);
        assert_eq!(a.receive(endpoint(2), &[(sent[0].0.clone(), sent[0].1)]).len(), 1);
    }
}

/// Stream bytes by sequence number.
fn stream(delivered: &Delivered) -> BTreeMap<u32, u8> {
    let mut bytes = BTreeMap::new();
    for (_, packet) in delivered {
        let start = if packet[0] >> 4 == 6 { 40 } else { 20 };
        let sequence =
            u32::from_be_bytes(packet[start + 4..start + 8].try_into().expect("four bytes"));
        let end = start + usize::from(packet[start + 12] >> 4) * 4;
        for (byte, n) in packet[end..].iter().zip(0..) {
            bytes.insert(sequence.wrapping_add(n), *byte);
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Any packets, any loss, order and duplication, in any batches: what is delivered is a part of what was sent, every header
    /// is one that a kernel takes, and in order without loss it is all of it.
    #[test]
    fn whatever_happens_on_the_way_nothing_wrong_is_delivered(
        is_v6 in any::<bool>(),
        sizes in prop::collection::vec((1usize..20_000, any::<bool>()), 1..6),
        datagram in 1200u16..9000,
        relayed in any::<bool>(),
        fates in prop::collection::vec((0u8..12, 0usize..60), 0..200),
        together in 1usize..40,
        flags in prop_oneof![Just(ACK), Just(ACK | PSH), Just(ACK | FIN)],
    ) {
        let relay = relayed.then_some(RelayIndex(5));
        let [mut a, mut b] = ends_over(Suite::Aes256Gcm, relay, datagram, Instant::now());
        let mut recipe = Recipe::new(is_v6, true);
        recipe.flags = flags;
        let mut whole = Delivered::new();
        for (len, is_super) in sizes {
            let kind = if is_super { Kind::Tcp(1200) } else { Kind::Unfinished };
            let (header, packet) = superpacket(&recipe, kind, len);
            recipe.sequence = recipe.sequence.wrapping_add(len as u32);
            whole.push((header, packet));
        }
        let sent = a.send(whole.iter().map(|(header, packet)| (*header, &**packet)));
        let mut order: Vec<(usize, Vec<u8>)> = Vec::new();
        for (n, one) in datagrams(&sent).into_iter().enumerate() {
            prop_assert!(one.len() <= usize::from(datagram));
            match fates.get(n).copied().unwrap_or((9, 0)) {
                (0, _) => {}
                (1, by) => order.extend([(n * 10, one.clone()), (n * 10 + by, one)]),
                (2, by) => order.push((n * 10 + by, one)),
                _ => order.push((n * 10, one)),
            }
        }
        let clean = fates.iter().all(|(fate, _)| *fate > 2);
        order.sort_by_key(|(at, _)| *at);
        let mut delivered = Delivered::new();
        for batch in order.chunks(together) {
            let batch: Vec<_> = batch.iter().map(|(_, one)| (one.clone(), one.len())).collect();
            delivered.extend(b.receive(endpoint(1), &batch));
        }
        for (header, packet) in &delivered {
            let view = IpView::parse(packet).expect("well-formed");
            prop_assert_eq!(view.total_len(), packet.len());
            prop_assert!(usize::from(header.header_len) <= packet.len());
            let mut copy = packet.clone();
            prop_assert!(superpacket::finish(header, &mut copy).is_ok());
        }
        let (got, all) = (stream(&delivered), stream(&whole));
        let wrong: BTreeSet<_> = got.iter().filter(|(n, byte)| all.get(n) != Some(byte)).collect();
        prop_assert!(wrong.is_empty());
        if clean {
            prop_assert_eq!(got.len(), all.len());
        }
    }
}
