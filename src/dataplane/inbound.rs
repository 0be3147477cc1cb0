//! Inbound: what becomes of datagrams from the underlay. No I/O; everything here is hostile until a tunnel has opened it.
//!
//! The functions stand in the order in which a datagram meets them. Nothing is answered: an answer to a stranger would
//! be a tool against others.

use super::{
    drops::{Counters, DropReason},
    punt::{Class, Sender},
    table::Table,
};
use crate::{
    path::route::{Egress, Route},
    wire::{
        message::{Mac1Key, Message},
        relay::{self, RelayIndex},
    },
};

/// A datagram and where it came from. Borrowed: until the next receive.
#[derive(Debug)]
pub struct Arrival<'a> {
    /// Socket or link, and who seems to have sent it.
    pub origin: Egress,
    /// The whole datagram. Written to only where it is forwarded.
    pub datagram: &'a mut [u8],
}

/// What to do with a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A relayed one, its index already swapped: send all of it over this.
    Forward(Egress),
    /// For control: from here on, with this origin.
    Punt {
        /// Which quota it counts against.
        class: Class,
        /// Where it came from; the relay's index, if any, is in it.
        origin: Route,
        /// Where the datagram begins behind the relay prefix.
        start: usize,
    },
}

/// A batch, in order: forwards by `forward`, punts by `punts` (flushed at the end), counts what is dropped.
pub fn batch<'a>(
    table: &Table,
    mac1: &Mac1Key,
    arrivals: impl IntoIterator<Item = Arrival<'a>>,
    punts: &mut Sender,
    counters: &Counters,
    mut forward: impl FnMut(Egress, &[u8]),
) {
    for Arrival { origin, datagram } in arrivals {
        match decide(table, mac1, origin, datagram) {
            Ok(Verdict::Forward(egress)) => {
                counters.forwarded.count(datagram.len());
                forward(egress, datagram);
            }
            Ok(Verdict::Punt { class, origin, start }) => {
                punts.datagram(class, origin, &datagram[start..]);
            }
            Err(reason) => counters.count(reason),
        }
    }
    punts.flush();
}

/// One datagram.
///
/// # Errors
/// Why it ends here.
pub fn decide(
    table: &Table,
    mac1: &Mac1Key,
    origin: Egress,
    datagram: &mut [u8],
) -> Result<Verdict, DropReason> {
    let relayed = match Message::parse(datagram)? {
        Message::Relay { index, .. } => index,
        message @ (Message::Initiation { .. }
        | Message::Response { .. }
        | Message::CookieReply { .. }
        | Message::Data { .. }
        | Message::Channel { .. }) => {
            let class = admit(table, mac1, message, datagram)?;
            return Ok(Verdict::Punt {
                class,
                origin: Route { egress: origin, relay: None },
                start: 0,
            });
        }
    };
    if table.relay(relayed).is_some() {
        return swap_index(table, origin, relayed, datagram).map(Verdict::Forward);
    }
    // Not an index that we gave out, so at most one that a relay gave to us: the datagram behind it is ours or nobody's.
    let inner = &datagram[relay::PREFIX..];
    let class = admit(table, mac1, Message::parse(inner)?, inner)?;
    let origin = Route { egress: origin, relay: Some(relayed) };
    Ok(Verdict::Punt { class, origin, start: relay::PREFIX })
}

/// Forwards for others: only what comes from where the index was given to, and exactly as long as it came.
fn swap_index(
    table: &Table,
    origin: Egress,
    index: RelayIndex,
    datagram: &mut [u8],
) -> Result<Egress, DropReason> {
    let entry = table.relay(index).ok_or(DropReason::RelayOrigin)?;
    if entry.from != origin {
        return Err(DropReason::RelayOrigin);
    }
    let prefix = datagram.first_chunk_mut::<{ relay::PREFIX }>().ok_or(DropReason::Length)?;
    *prefix = entry.index.prefix();
    entry.forwarded.count(datagram.len());
    Ok(entry.to)
}

/// Lets through to control only what its sender cannot have made by guessing: handshakes made with our public key, and
/// answers and data for a tunnel that exists.
fn admit(
    table: &Table,
    mac1: &Mac1Key,
    message: Message<'_>,
    datagram: &[u8],
) -> Result<Class, DropReason> {
    let known = |receiver| {
        if table.knows_tunnel(receiver) { Ok(()) } else { Err(DropReason::UnknownTunnel) }
    };
    let made_for_us = || {
        if mac1.is_valid_in(datagram) { Ok(()) } else { Err(DropReason::Mac1) }
    };
    match message {
        Message::Initiation { .. } => made_for_us().map(|()| Class::Handshake),
        Message::Response { receiver, .. } => {
            known(receiver)?;
            made_for_us().map(|()| Class::Handshake)
        }
        Message::CookieReply { receiver } => known(receiver).map(|()| Class::Handshake),
        Message::Data { receiver, counter, .. } => {
            known(receiver)?;
            // boringtun's window arithmetic must never see these; an honest sender rekeys 2^60 messages earlier.
            if counter >= 1 << 63 { Err(DropReason::Counter) } else { Ok(Class::Tunnel) }
        }
        Message::Channel { receiver, .. } => match table.opener(receiver) {
            Some(_) => Ok(Class::Tunnel),
            None => Err(DropReason::UnknownTunnel),
        },
        Message::Relay { .. } => Err(DropReason::RelayNested),
    }
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, sync::Arc};

    use boringtun::noise::Tunn;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        dataplane::{
            punt::{Punt, queue},
            table::Builder,
        },
        node::output::Directive,
        wire::relay::wrap,
        words::key::TransportSecret,
    };

    const TUNNEL: u32 = 0x00ab_cdef;
    const OURS: RelayIndex = RelayIndex(0x0101_0101);
    const OTHERS: RelayIndex = RelayIndex(0x0202_0202);

    fn udp(address: &str) -> Egress {
        Route::direct(address.parse::<SocketAddr>().unwrap()).egress
    }
    fn alice() -> Egress {
        udp("192.0.2.1:1")
    }
    fn bob() -> Egress {
        udp("192.0.2.2:2")
    }

    struct World {
        table: Builder,
        us: TransportSecret,
        mac1: Mac1Key,
    }

    /// We have one tunnel and relay from alice to bob.
    fn world() -> World {
        let mut table = Builder::new(["10.99.0.1".parse().unwrap(), "fd00::1".parse().unwrap()]);
        table.apply(&Directive::InstallTunnel { index: TUNNEL });
        table.apply(&Directive::InstallRelay {
            index: OURS,
            from: Route { egress: alice(), relay: None },
            to: Route { egress: bob(), relay: Some(OTHERS) },
        });
        let us = TransportSecret::generate();
        let mac1 = Mac1Key::of(&us.public());
        World { table, us, mac1 }
    }

    impl World {
        fn decide(&self, origin: Egress, datagram: &mut [u8]) -> Result<Verdict, DropReason> {
            decide(self.table.table(), &self.mac1, origin, datagram)
        }
        fn initiation(&self) -> Vec<u8> {
            let own = TransportSecret::generate().expose().to_owned().into();
            let mut tunn = Tunn::new(own, self.us.public().0.into(), None, None, 7, None);
            let mut buffer = vec![0; 148];
            tunn.format_handshake_initiation(&mut buffer, false);
            buffer
        }
    }

    fn data(receiver: u32, counter: u64, sealed: usize) -> Vec<u8> {
        let mut datagram = vec![4, 0, 0, 0];
        datagram.extend(receiver.to_le_bytes());
        datagram.extend(counter.to_le_bytes());
        datagram.resize(32 + sealed, 0xee);
        datagram
    }

    fn punt(class: Class, origin: Egress, relay: Option<RelayIndex>, start: usize) -> Verdict {
        Verdict::Punt { class, origin: Route { egress: origin, relay }, start }
    }

    #[test]
    fn data_passes_only_with_a_known_tunnel_index() {
        let world = world();
        assert_eq!(
            world.decide(alice(), &mut data(TUNNEL << 8 | 3, 0, 20)),
            Ok(punt(Class::Tunnel, alice(), None, 0))
        );
        assert_eq!(
            world.decide(alice(), &mut data((TUNNEL + 1) << 8, 0, 20)),
            Err(DropReason::UnknownTunnel)
        );
        assert_eq!(
            world.decide(alice(), &mut data(TUNNEL << 8, 1 << 63, 20)),
            Err(DropReason::Counter)
        );
    }

    #[test]
    fn handshakes_pass_only_with_our_mac1() {
        let world = world();
        let mut initiation = world.initiation();
        let handshake = Ok(punt(Class::Handshake, bob(), None, 0));
        assert_eq!(world.decide(bob(), &mut initiation), handshake);
        initiation[20] ^= 1;
        assert_eq!(world.decide(bob(), &mut initiation), Err(DropReason::Mac1));
        let mut response = vec![0; 92];
        response[0] = 2;
        assert_eq!(world.decide(bob(), &mut response), Err(DropReason::UnknownTunnel));
        response[8..12].copy_from_slice(&(TUNNEL << 8).to_le_bytes());
        assert_eq!(world.decide(bob(), &mut response), Err(DropReason::Mac1));
        let mut cookie = vec![0; 64];
        cookie[0] = 3;
        assert_eq!(world.decide(bob(), &mut cookie), Err(DropReason::UnknownTunnel));
        cookie[4..8].copy_from_slice(&(TUNNEL << 8).to_le_bytes());
        assert_eq!(world.decide(bob(), &mut cookie), handshake);
    }

    #[test]
    fn a_relay_swaps_the_index_and_touches_nothing_else() {
        let world = world();
        // What is inside is none of the relay's business: no mac1 of ours, no tunnel of ours.
        let inner = data(0xdead_be00, 9, 200);
        let mut datagram = wrap(OURS, &inner);
        let before = datagram.len();
        assert_eq!(world.decide(alice(), &mut datagram), Ok(Verdict::Forward(bob())));
        assert_eq!(datagram, wrap(OTHERS, &inner));
        assert_eq!(datagram.len(), before, "never longer than it came");
        let entry = world.table.table().relay(OURS).unwrap();
        assert_eq!((entry.forwarded.units(), entry.forwarded.bytes()), (1, before as u64));
    }

    #[test]
    fn a_relay_index_is_accepted_only_from_the_origin_it_was_given_to() {
        let world = world();
        // Even if what is inside would be for us.
        let mut datagram = wrap(OURS, &data(TUNNEL << 8, 9, 200));
        for origin in [bob(), udp("192.0.2.1:2"), udp("[2001:db8::1]:1")] {
            assert_eq!(world.decide(origin, &mut datagram), Err(DropReason::RelayOrigin));
        }
        let link = Egress::Link(crate::path::route::LinkId(0));
        assert_eq!(world.decide(link, &mut datagram), Err(DropReason::RelayOrigin));
        assert_eq!(datagram, wrap(OURS, &data(TUNNEL << 8, 9, 200)), "untouched");
    }

    #[test]
    fn a_relay_never_forwards_onto_another_relayed_route() {
        let world = world();
        let mut nested = wrap(OURS, &wrap(OTHERS, &data(TUNNEL << 8, 9, 200)));
        assert_eq!(world.decide(alice(), &mut nested), Err(DropReason::RelayNested));
        let mut empty = OURS.prefix().to_vec();
        assert_eq!(world.decide(alice(), &mut empty), Err(DropReason::Length));
    }

    #[test]
    fn what_a_relay_brings_us_is_checked_as_if_it_came_straight() {
        let world = world();
        let index = RelayIndex(77);
        let tunnel = Ok(punt(Class::Tunnel, alice(), Some(index), 8));
        assert_eq!(world.decide(alice(), &mut wrap(index, &data(TUNNEL << 8, 1, 9))), tunnel);
        assert_eq!(
            world.decide(alice(), &mut wrap(index, &data(0, 1, 9))),
            Err(DropReason::UnknownTunnel)
        );
        let initiation = world.initiation();
        assert_eq!(
            world.decide(alice(), &mut wrap(index, &initiation)),
            Ok(punt(Class::Handshake, alice(), Some(index), 8))
        );
        assert_eq!(
            world.decide(alice(), &mut wrap(index, &[0; 148])),
            Err(DropReason::UnknownType)
        );
    }

    #[test]
    fn a_batch_keeps_its_order_and_one_bad_datagram_stops_nothing() {
        let world = world();
        let counters = Arc::<Counters>::default();
        let (mut sender, mut receiver) = queue(Arc::clone(&counters), || (), || ());
        let mut datagrams = [
            (bob(), data(TUNNEL << 8, 1, 1)),
            (bob(), vec![]),
            (alice(), wrap(OURS, &data(5, 5, 5))),
            (bob(), data(TUNNEL << 8, 2, 2)),
            (bob(), wrap(RelayIndex(3), &data(TUNNEL << 8, 3, 3))),
        ];
        let arrivals =
            datagrams.iter_mut().map(|(origin, datagram)| Arrival { origin: *origin, datagram });
        let mut sent = Vec::new();
        batch(world.table.table(), &world.mac1, arrivals, &mut sender, &counters, |to, bytes| {
            sent.push((to, bytes.to_vec()));
        });
        assert_eq!(sent, [(bob(), wrap(OTHERS, &data(5, 5, 5)))]);
        let mut punted = Vec::new();
        receiver.drain(100, |punt| {
            let Punt::Datagram(origin, bytes) = punt else { panic!("only datagrams came") };
            punted.push((origin.relay, bytes.to_vec()));
        });
        assert_eq!(
            punted,
            [
                (None, data(TUNNEL << 8, 1, 1)),
                (None, data(TUNNEL << 8, 2, 2)),
                (Some(RelayIndex(3)), data(TUNNEL << 8, 3, 3))
            ]
        );
        assert_eq!(counters.report().collect::<Vec<_>>(), [(DropReason::UnknownType, 1)]);
        assert_eq!(counters.forwarded.units(), 1);
    }

    proptest! {
        #[test]
        fn no_datagram_panics_grows_or_passes_unproven(
            mut datagram in prop::collection::vec(any::<u8>(), 0..300),
            header in prop::option::of((prop::sample::select(vec![1_u8, 2, 3, 4, 0x20]), any::<bool>())),
        ) {
            let world = world();
            if let Some((kind, relayed)) = header && datagram.len() >= 4 {
                datagram[..4].copy_from_slice(&[kind, 0, 0, 0]);
                if relayed {
                    datagram = wrap(RelayIndex(9), &datagram);
                }
            }
            let before = datagram.clone();
            match world.decide(alice(), &mut datagram) {
                // 24 bits of index guessed by chance: not in this many cases, but allowed.
                Ok(Verdict::Punt { class, start, .. }) => {
                    prop_assert_eq!(class, Class::Tunnel);
                    prop_assert!(world.table.table().knows_tunnel(u32::from_le_bytes(
                        datagram[start + 4..start + 8].try_into().unwrap())));
                    prop_assert_eq!(datagram, before);
                }
                Ok(Verdict::Forward(_)) => prop_assert_eq!(&before[4..8], &OURS.0.to_le_bytes()),
                Err(_) => prop_assert_eq!(datagram, before),
            }
        }

        #[test]
        fn mutated_messages_never_panic(
            at in 0_usize..148, bit in 0_u8..8, cut in 0_usize..149, relayed in any::<bool>(),
        ) {
            let world = world();
            let mut datagram = world.initiation();
            datagram[at] ^= 1 << bit;
            datagram.truncate(cut);
            if relayed {
                datagram = wrap(RelayIndex(9), &datagram);
            }
            let verdict = world.decide(alice(), &mut datagram);
            // Only mac2, the last 16 bytes, is not covered by mac1.
            prop_assert!(verdict.is_err() || at >= 132);
        }
    }
}
