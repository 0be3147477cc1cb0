//! Two nodes' data planes joined by lists instead of sockets and devices: for tests, benches and fuzzing.
#![allow(dead_code, unreachable_pub, reason = "each user takes its part")]

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use clusternet::{
    channel::{
        Suite, Suites,
        exchange::{self, Context, Party},
        keypair::Keypairs,
    },
    dataplane::{
        drops::Counters,
        inbound::{self, Inbound, Sink, Takes},
        outbound::{self, Batch, Spread},
        punt::{self, Receiver, Sender},
        table::{Builder, DATAGRAM},
    },
    node::output::{Directive, PeerSlot},
    path::route::{Egress, Route},
    wire::{
        message::Mac1Key,
        relay::RelayIndex,
        superpacket::{self, Kind, VirtioHeader},
    },
    words::{
        id::{Incarnation, NetworkId, Serial},
        key::TransportKey,
    },
};

use super::packets::{Recipe, payload};

/// The other end's place in each table.
pub const OTHER: PeerSlot = PeerSlot(3);

/// Overlay addresses of the n-th node.
pub fn addresses(n: u8) -> [IpAddr; 2] {
    [[10, 99, 0, n].into(), [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(n)].into()]
}

/// Underlay endpoint of the n-th node.
pub fn endpoint(n: u8) -> SocketAddr {
    ([192, 0, 2, n], 7000).into()
}

/// Keys that two ends have agreed on, with indexes 1 and 2.
pub fn keypairs(suite: Suite, stripes: u8, now: Instant) -> [Arc<Keypairs>; 2] {
    let suites = Suites::only(suite);
    let party = |n: u8| Party {
        serial: Serial(n.into()),
        key: TransportKey([n; 32]),
        incarnation: Incarnation(n.into()),
        suites,
    };
    let context = Context { network: NetworkId([9; 16]), offerer: party(1), answerer: party(2) };
    let offered = exchange::offer(1, 1 << 8).expect("a library that works");
    let (accept, theirs) =
        exchange::accept(offered.offer(), 2 << 8, &context).expect("a good offer");
    let ours = offered.complete(&accept, &context).expect("a good answer");
    [ours, theirs].map(|agreed| Arc::new(Keypairs::new(&agreed, stripes, now)))
}

/// One end: a table with one peer, and the batches of one worker.
pub struct End {
    pub table: Builder,
    pub counters: Arc<Counters>,
    pub punts: Sender,
    pub punted: Receiver,
    pub batch: Batch,
    pub inbound: Inbound,
    pub mac1: Mac1Key,
    pub now: Instant,
    pub keypairs: Arc<Keypairs>,
}

/// What arrived at a device.
pub type Delivered = Vec<(VirtioHeader, Vec<u8>)>;

/// Datagrams of one send: bytes, and the length of all but the last.
pub type Sent = (Vec<u8>, usize, SocketAddr);

#[derive(Default)]
struct Lists {
    delivered: Delivered,
    forwarded: Vec<(Egress, Vec<u8>, usize)>,
}

impl Sink for Lists {
    fn forward(&mut self, to: Egress, datagrams: &[u8], segment: usize) {
        self.forwarded.push((to, datagrams.to_vec(), segment));
    }
    fn deliver<'a>(&mut self, header: VirtioHeader, packet: impl Iterator<Item = &'a [u8]>) {
        self.delivered.push((header, packet.flatten().copied().collect()));
    }
}

/// Nodes 1 and 2, each with keys for the other. `relay`: the indexes under which each sends, if a third node forwards.
pub fn ends(suite: Suite, relay: Option<RelayIndex>, now: Instant) -> [End; 2] {
    ends_over(suite, relay, DATAGRAM, now)
}

/// The same over a way that carries datagrams of this size.
pub fn ends_over(suite: Suite, relay: Option<RelayIndex>, datagram: u16, now: Instant) -> [End; 2] {
    let mut numbers = [(1, 2), (2, 1)].into_iter();
    keypairs(suite, 2, now).map(|keypairs| {
        let (own, other) = numbers.next().expect("two of them");
        let mut table = Builder::new(addresses(own));
        table.set_datagram(datagram);
        let route = Route { relay, ..Route::direct(endpoint(other)) };
        for directive in [
            Directive::InstallPeer { slot: OTHER, addresses: addresses(other) },
            Directive::SetRoute { slot: OTHER, route: Some(route) },
            Directive::InstallKeypairs { slot: OTHER, keypairs: Arc::clone(&keypairs) },
            Directive::SealWith { slot: OTHER, keypairs: Some(Arc::clone(&keypairs)) },
        ] {
            table.apply(&directive);
        }
        let counters = Arc::<Counters>::default();
        let (punts, punted) = punt::queue(Arc::clone(&counters), || ());
        End {
            table,
            counters,
            punts,
            punted,
            batch: Batch::default(),
            inbound: Inbound::new(Takes::ALL),
            mac1: Mac1Key::of(&TransportKey([own; 32])),
            now,
            keypairs,
        }
    })
}

impl End {
    /// Hands over one packet as a device does; gives what a full batch had to send before it.
    pub fn read(&mut self, header: VirtioHeader, packet: &[u8]) -> Vec<Sent> {
        let early = if self.batch.is_full() { self.flush() } else { Vec::new() };
        lay_out(&mut self.batch, packet);
        let context = outbound::Context {
            table: self.table.table(),
            stripe: 0,
            now: self.now,
            counters: &self.counters,
        };
        self.batch.take(&context, &header, packet.len(), &mut self.punts, |_| ());
        early
    }

    /// Sends what has come together.
    pub fn flush(&mut self) -> Vec<Sent> {
        let sent = self.batch.sends().map(|(bytes, segment, to)| (bytes.to_vec(), segment, to));
        let sent = sent.collect();
        self.batch.clear();
        self.punts.flush();
        sent
    }

    /// Hands over packets and sends them.
    pub fn send<'a>(
        &mut self,
        packets: impl IntoIterator<Item = (VirtioHeader, &'a [u8])>,
    ) -> Vec<Sent> {
        let mut sent = Vec::new();
        for (header, packet) in packets {
            sent.extend(self.read(header, packet));
        }
        sent.extend(self.flush());
        sent
    }

    /// Receives one batch of datagrams from the other end, some of which may have come together.
    pub fn receive(&mut self, from: SocketAddr, together: &[(Vec<u8>, usize)]) -> Delivered {
        let mut lists = Lists::default();
        let context = inbound::Context {
            table: self.table.table(),
            mac1: &self.mac1,
            now: self.now,
            counters: &self.counters,
        };
        let origin = Route::direct(from).egress;
        for (bytes, segment) in together {
            let room = match self.inbound.room() {
                Some(room) => room,
                None => {
                    self.inbound.finish(&context, &mut self.punts, &mut lists);
                    self.inbound.room().expect("a new batch has room")
                }
            };
            room[..bytes.len()].copy_from_slice(bytes);
            let size = (bytes.len(), *segment);
            self.inbound.take(&context, origin, size, &mut self.punts, &mut lists);
        }
        self.inbound.finish(&context, &mut self.punts, &mut lists);
        lists.delivered
    }
}

/// Puts a packet where a device would: spread as the batch wants it.
pub fn lay_out(batch: &mut Batch, packet: &[u8]) {
    let (room, Spread { front, slice, back }) = batch.room();
    let slots = room.chunks_mut(front + slice + back);
    for (part, slot) in packet.chunks(slice).zip(slots) {
        slot[front..front + part.len()].copy_from_slice(part);
    }
}

/// A packet from node 1 to node 2 as the kernel of node 1 hands it over: a superpacket where it is longer than a segment.
pub fn from_1_to_2(recipe: &Recipe, len: usize) -> (VirtioHeader, Vec<u8>) {
    let kind = if recipe.is_tcp { Kind::Tcp(1340) } else { Kind::Udp(1200) };
    let mut packet = recipe.unfinished(&payload(len));
    address(&mut packet, 1, 2);
    let header = superpacket::rebuild(kind, &mut packet).expect("well-formed");
    (header, packet)
}

/// Writes the addresses of two nodes into a packet.
pub fn address(packet: &mut [u8], from: u8, to: u8) {
    for (n, at4, at6) in [(from, 12, 8), (to, 16, 24)] {
        for address in addresses(n) {
            match address {
                IpAddr::V4(ip) if packet[0] >> 4 == 4 => {
                    packet[at4..at4 + 4].copy_from_slice(&ip.octets());
                }
                IpAddr::V6(ip) if packet[0] >> 4 == 6 => {
                    packet[at6..at6 + 16].copy_from_slice(&ip.octets());
                }
                IpAddr::V4(_) | IpAddr::V6(_) => {}
            }
        }
    }
}

/// Datagrams of a send, one by one.
pub fn datagrams(sent: &[Sent]) -> Vec<Vec<u8>> {
    let datagrams = sent.iter().flat_map(|(bytes, segment, _)| bytes.chunks(*segment));
    datagrams.map(<[u8]>::to_vec).collect()
}
