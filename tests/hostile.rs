//! A member with valid keys who keeps to no rule: nothing panics, and nothing reaches the device but what a kernel takes and what
//! is that member's own.
#![expect(clippy::disallowed_methods, reason = "any instant will do")]

mod forge;

use std::time::Instant;

use clusternet::{
    channel::Suite,
    dataplane::{
        drops::DropReason,
        inbound::{Inbound, Takes},
    },
    wire::{channel::MAX_SLICES, superpacket::VirtioHeader},
};
use forge::{
    Forger,
    ends::{self, Delivered, End, endpoint, ends, from_1_to_2},
    is_from_1_to_2,
    packets::Recipe,
    place, seal,
};

fn pair() -> [End; 2] {
    ends(Suite::Aes256Gcm, None, Instant::now())
}

fn receive(end: &mut End, batch: &[Vec<u8>]) -> Delivered {
    let batch: Vec<_> = batch.iter().map(|one| (one.clone(), one.len())).collect();
    end.receive(endpoint(1), &batch)
}

/// What `virtio_net_hdr_to_skb` (linux/virtio_net.h, 6.12) asks of a header and the packet behind it, and `tun_get_user` of the packet.
fn is_taken_by_linux(header: &VirtioHeader, packet: &[u8]) -> bool {
    let (needs_checksum, gso) = (header.flags & 1 != 0, header.gso_type & !0x80);
    let (start, offset) = (usize::from(header.checksum_start), usize::from(header.checksum_offset));
    let is_v6 = packet.first().is_some_and(|first| first >> 4 == 6);
    let is_known = match gso {
        0 => true,
        1 => !is_v6 && packet[9] == 6,
        4 => is_v6 && packet[6] == 6,
        5 => packet[if is_v6 { 6 } else { 9 }] == 17,
        _ => return false,
    };
    let has_headers = usize::from(header.header_len) <= packet.len();
    let has_checksum = !needs_checksum || start + offset + 2 <= packet.len();
    let is_sound_gso = gso == 0 || {
        let behind = start + if gso == 5 { 8 } else { 20 };
        let payload = packet.len().saturating_sub(behind);
        let of_udp = gso != 5 || (offset == 6 && payload <= usize::from(header.segment) * 64);
        let of_tcp = gso == 5 || offset == 16;
        needs_checksum && header.segment > 0 && behind <= packet.len() && of_udp && of_tcp
    };
    let stated = match packet.first().map(|first| first >> 4) {
        Some(4) if packet.len() >= 20 => usize::from(u16::from_be_bytes([packet[2], packet[3]])),
        Some(6) if packet.len() >= 40 => {
            40 + usize::from(u16::from_be_bytes([packet[4], packet[5]]))
        }
        _ => return false,
    };
    // Of a finished packet the system itself takes as much as is its own.
    let is_all = stated == packet.len() || (!needs_checksum && stated <= packet.len());
    is_known && has_headers && has_checksum && is_sound_gso && is_all && packet.len() <= 65_535
}

/// Whatever a forger sends; gives how much of it reached the device.
fn suffer(end: &mut End, from: &End, forger: &mut Forger) -> usize {
    let batch = forger.batch(&from.keypairs);
    let delivered = receive(end, &batch);
    for (header, packet) in &delivered {
        let front = &packet[..packet.len().min(60)];
        assert!(is_from_1_to_2(packet), "not the peer's own: {front:02x?}");
        assert!(
            is_taken_by_linux(header, packet),
            "{header:?} before {front:02x?}, {}",
            packet.len()
        );
    }
    delivered.len()
}

/// An honest packet still arrives.
fn still_works(from: &End, end: &mut End, counter: u64) {
    let (header, packet) = from_1_to_2(&Recipe::new(false, true), 5000);
    let slices = packet.chunks(1412);
    let count = slices.len() as u16;
    let batch: Vec<_> = slices
        .zip(0..)
        .map(|(slice, n)| {
            let text = [&place(n, count, 2, 1340), slice].concat();
            seal(&from.keypairs, counter + u64::from(n), &text)
        })
        .collect();
    assert_eq!(receive(end, &batch), [(header, packet)]);
}

#[test]
fn nothing_but_its_own_sound_packets_comes_of_what_a_forger_sends() {
    for takes in [Takes::ALL, Takes { tcp: true, udp: false }, Takes { tcp: false, udp: false }] {
        let mut delivered = 0;
        for seed in 0..100 {
            let [a, mut b] = pair();
            b.inbound = Inbound::new(takes);
            let mut forger = Forger::new(seed);
            for _ in 0..12 {
                delivered += suffer(&mut b, &a, &mut forger);
            }
            still_works_as(takes, &a, &mut b, forger.counter() + 10_000);
        }
        assert!(delivered > 1000, "the forger forges too badly: {delivered}");
    }
}

/// Of devices that take no superpackets only the payload can be compared.
fn still_works_as(takes: Takes, from: &End, end: &mut End, counter: u64) {
    if takes == Takes::ALL {
        return still_works(from, end, counter);
    }
    let text = [&place(0, 1, 0, 0), &*Recipe::new(false, true).packet(b"hello")].concat();
    let mut packet = text[8..].to_vec();
    ends::address(&mut packet, 1, 2);
    let message = seal(&from.keypairs, counter, &[&place(0, 1, 0, 0), &*packet].concat());
    assert_eq!(receive(end, &[message]), [(VirtioHeader::default(), packet)]);
}

#[test]
fn places_that_cannot_be_are_counted_and_cost_nothing_else() {
    let [a, mut b] = pair();
    let (_, packet) = from_1_to_2(&Recipe::new(false, true), 3000);
    let too_many = MAX_SLICES + 1;
    let wrong = [
        place(0, 0, 0, 0),
        place(1, 1, 0, 0),
        place(0, too_many, 2, 1340),
        place(64, 65, 2, 1340),
        place(u16::MAX, u16::MAX, 2, 1340),
        place(0, 1, 4, 0),
        place(0, 1, 255, 1340),
        place(0, 1, 0, 1),
        place(0, 1, 1, 1340),
        place(0, 1, 2, 63),
        place(0, 1, 3, 0),
    ];
    let mut batch: Vec<_> = (0..)
        .zip(&wrong)
        .map(|(n, place)| seal(&a.keypairs, n, &[place, &packet[..1400]].concat()))
        .collect();
    // A slice whose superpacket would have begun before the first message of all.
    batch.push(seal(&a.keypairs, 20, &[&place(30, 40, 2, 1340), &packet[..1400]].concat()));
    // A place and nothing behind it; less than a place.
    batch.push(seal(&a.keypairs, 21, &place(0, 1, 0, 0)));
    batch.push(seal(&a.keypairs, 22, &[1, 2, 3]));
    assert_eq!(receive(&mut b, &batch), []);
    assert_eq!(b.counters.drops(DropReason::Misplaced), batch.len() as u64);
    assert_eq!(b.counters.report().count(), 1);
    still_works(&a, &mut b, 1000);
}

#[test]
fn counters_beyond_what_keys_may_seal_are_refused() {
    let [a, mut b] = pair();
    let (_, packet) = from_1_to_2(&Recipe::new(false, true), 100);
    for counter in [u64::MAX, u64::MAX - 1, 1 << 63, 1 << 32] {
        let text = [&place(0, 1, 1, 0), &*packet].concat();
        assert_eq!(receive(&mut b, &[seal(&a.keypairs, counter, &text)]), [], "{counter}");
    }
    assert_eq!(b.counters.drops(DropReason::KeysEnded), 4);
    // The window has not moved.
    still_works(&a, &mut b, 0);
}

#[test]
fn a_superpacket_of_tiny_datagrams_is_cut_or_dropped_but_never_handed_on_as_it_is() {
    for (segment, datagrams) in
        [(1, 64), (1, 65), (1, 1000), (2, 5000), (100, 6401), (1200, 60_000)]
    {
        let [a, mut b] = pair();
        let (_, packet) = from_1_to_2(&Recipe::new(false, false), datagrams);
        let slices: Vec<_> = packet.chunks(1412).collect();
        let count = slices.len() as u16;
        let batch: Vec<_> = (0..)
            .zip(slices)
            .map(|(n, slice)| {
                seal(&a.keypairs, u64::from(n), &[&place(n, count, 3, segment), slice].concat())
            })
            .collect();
        let delivered = receive(&mut b, &batch);
        let payload: usize = delivered.iter().map(|(_, packet)| packet.len() - 28).sum();
        assert!(
            payload == datagrams || delivered.is_empty(),
            "{segment}: {payload} of {datagrams}"
        );
        assert!(delivered.iter().all(|(header, packet)| is_taken_by_linux(header, packet)));
        still_works(&a, &mut b, 1000);
    }
}

#[test]
fn a_kind_that_does_not_fit_its_packet_is_dropped() {
    for (kind, is_tcp) in [(2, false), (3, true)] {
        for len in [100, 5000] {
            let [a, mut b] = pair();
            let (_, packet) = from_1_to_2(&Recipe::new(true, is_tcp), len);
            let slices: Vec<_> = packet.chunks(1412).collect();
            let count = slices.len() as u16;
            let batch: Vec<_> = (0..)
                .zip(slices)
                .map(|(n, slice)| {
                    seal(&a.keypairs, u64::from(n), &[&place(n, count, kind, 1200), slice].concat())
                })
                .collect();
            assert_eq!(receive(&mut b, &batch), [], "{kind} {len}");
            assert_eq!(
                b.counters.drops(DropReason::PeerMalformed),
                1,
                "{kind} {len}: {:?}",
                b.counters.report().collect::<Vec<_>>()
            );
        }
    }
}
