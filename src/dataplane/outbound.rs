//! Outbound: what becomes of packets that programs send. No I/O.

use super::{
    drops::{Counters, DropReason},
    punt::Sender,
    table::{Peer, Table},
    unreachable,
};
use crate::{
    node::output::PeerSlot,
    wire::{filter, ip::IpView},
};

/// A packet that may go, and whose it is. Borrowed: as long as packet and table.
#[derive(Debug)]
pub struct Admitted<'p, 't> {
    /// The packet, cut to its own length.
    pub packet: IpView<'p>,
    /// The member it goes to.
    pub slot: PeerSlot,
    /// With the route to it.
    pub peer: &'t Peer,
}

/// What ended the look-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// Counted.
    pub reason: DropReason,
    /// Whether the program should be told at once, so that `connect` fails instead of timing out.
    pub answer: bool,
}

/// A batch of packets read from the TUN, in order: to control by `punts` (flushed at the end), refusals to the program by
/// `answer`, which gets a whole ICMP packet. Counts what is dropped.
pub fn batch<'a>(
    table: &Table,
    packets: impl IntoIterator<Item = &'a [u8]>,
    punts: &mut Sender,
    counters: &Counters,
    mut answer: impl FnMut(&[u8]),
) {
    let mut reply = [0; unreachable::MAX_LEN];
    for packet in packets {
        match decide(table, packet) {
            Ok(Admitted { packet, peer, .. }) => {
                peer.traffic.outbound.count(packet.bytes().len());
                punts.packet(packet.bytes());
            }
            Err(Refused { reason, answer: tell }) => {
                counters.count(reason);
                if tell && let Some(reply) = unreachable::reply(packet, &mut reply) {
                    answer(reply);
                }
            }
        }
    }
    punts.flush();
}

/// One packet: who it is for.
///
/// # Errors
/// Why it goes nowhere.
pub fn decide<'p, 't>(table: &'t Table, packet: &'p [u8]) -> Result<Admitted<'p, 't>, Refused> {
    let silently = |reason| Refused { reason, answer: false };
    let packet = filter::outbound(packet, table.own())
        .map_err(|error| silently(DropReason::of_program(error)))?;
    let destination = packet.destination();
    let broadcast = match destination {
        std::net::IpAddr::V4(address) => address.is_broadcast(),
        std::net::IpAddr::V6(_) => false,
    };
    if destination.is_multicast() || broadcast {
        return Err(silently(DropReason::PacketMulticast));
    }
    match table.member(destination) {
        Some((slot, peer)) => Ok(Admitted { packet, slot, peer }),
        None => Err(Refused { reason: DropReason::PacketNoMember, answer: true }),
    }
}

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, sync::Arc};

    use proptest::prelude::*;

    use super::*;
    use crate::{
        dataplane::{
            punt::{Punt, queue},
            table::Builder,
        },
        node::output::Directive,
    };

    fn pair(n: u8) -> [IpAddr; 2] {
        [[10, 99, 0, n].into(), [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(n)].into()]
    }

    /// We are 1; 2 is a member.
    fn table() -> Builder {
        let mut table = Builder::new(pair(1));
        table.apply(&Directive::InstallPeer { slot: PeerSlot(0), addresses: pair(2) });
        table
    }

    fn packet(source: &str, destination: &str, protocol: u8) -> Vec<u8> {
        let mut packet = match (source.parse().unwrap(), destination.parse().unwrap()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, protocol, 0, 0];
                packet.extend(source.octets());
                packet.extend(destination.octets());
                packet
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut packet = vec![0x60, 0, 0, 0, 0, 8, protocol, 64];
                packet.extend(source.octets());
                packet.extend(destination.octets());
                packet
            }
            _ => panic!("mixed families"),
        };
        packet.extend([1; 8]);
        packet
    }

    #[test]
    fn packets_to_members_pass_and_others_are_counted() {
        let table = table();
        let check = |source, destination, protocol| {
            decide(table.table(), &packet(source, destination, protocol))
                .map(|admitted| admitted.slot)
                .map_err(|refused| (refused.reason, refused.answer))
        };
        for (source, destination) in [("10.99.0.1", "10.99.0.2"), ("fd00::1", "fd00::2")] {
            assert_eq!(check(source, destination, 17), Ok(PeerSlot(0)));
            assert_eq!(check(source, destination, 253), Err((DropReason::PacketReserved, false)));
            assert_eq!(
                check(destination, source, 17),
                Err((DropReason::PacketSource, false)),
                "not ours to say"
            );
        }
        let no_member = Err((DropReason::PacketNoMember, true));
        assert_eq!(check("10.99.0.1", "10.99.0.3", 6), no_member);
        assert_eq!(check("fd00::1", "fd00::3", 6), no_member);
        assert_eq!(check("fd00::1", "2001:db8::1", 6), no_member);
        let multicast = Err((DropReason::PacketMulticast, false));
        assert_eq!(check("10.99.0.1", "224.0.0.251", 17), multicast);
        assert_eq!(check("10.99.0.1", "255.255.255.255", 17), multicast);
        assert_eq!(check("fd00::1", "ff02::2", 58), multicast);
        let reserved = Err((DropReason::PacketReserved, false));
        assert_eq!(check("::", "ff02::16", 58), reserved);
        assert_eq!(check("::", "::", 253), reserved);
    }

    #[test]
    fn a_batch_punts_what_may_go_and_answers_what_has_nowhere_to_go() {
        let table = table();
        let counters = Arc::<Counters>::default();
        let (mut sender, mut receiver) = queue(Arc::clone(&counters), || (), || ());
        let mut padded = packet("10.99.0.1", "10.99.0.2", 17);
        padded.extend([9; 5]);
        let packets = [
            padded,
            packet("10.99.0.1", "10.99.0.77", 17),
            b"junk".to_vec(),
            packet("fd00::1", "fd00::2", 6),
        ];
        let mut answers = 0;
        batch(table.table(), packets.iter().map(Vec::as_slice), &mut sender, &counters, |reply| {
            let view = IpView::parse(reply).unwrap();
            assert_eq!(view.destination(), pair(1)[0]);
            answers += 1;
        });
        let mut punted = Vec::new();
        receiver.drain(100, |punt| {
            let Punt::Packet(bytes) = punt else { panic!("only packets came") };
            punted.push(bytes.to_vec());
        });
        assert_eq!(
            punted,
            [packet("10.99.0.1", "10.99.0.2", 17), packet("fd00::1", "fd00::2", 6)],
            "cut to their length, in order"
        );
        assert_eq!(answers, 1);
        assert_eq!(counters.drops(DropReason::PacketNoMember), 1);
        assert_eq!(counters.drops(DropReason::PacketMalformed), 1);
        let peer = table.table().peer(PeerSlot(0)).unwrap();
        assert_eq!((peer.traffic.outbound.units(), peer.traffic.outbound.bytes()), (2, 28 + 48));
    }

    proptest! {
        #[test]
        fn no_packet_panics_or_passes_with_a_foreign_source(
            mut bytes in prop::collection::vec(any::<u8>(), 0..120), version in prop::sample::select(vec![4_u8, 6, 9]),
        ) {
            if let Some(first) = bytes.first_mut() {
                *first = version << 4 | *first & 0xf;
            }
            let table = table();
            if let Ok(admitted) = decide(table.table(), &bytes) {
                prop_assert!(pair(1).contains(&admitted.packet.source()));
                prop_assert!(pair(2).contains(&admitted.packet.destination()));
            }
            let mut buffer = [0; unreachable::MAX_LEN];
            if let Some(reply) = unreachable::reply(&bytes, &mut buffer) {
                prop_assert!(IpView::parse(reply).is_ok());
            }
        }
    }
}
