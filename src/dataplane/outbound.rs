//! Outbound: what becomes of packets that programs send. No I/O.
//!
//! In order: a packet or superpacket is read into the arena of a [`Batch`], spread over parts with room around each, so that every
//! part becomes a datagram where it lies; [`Batch::take`] looks up whose it is, reserves the counters, seals each part in place.
//! Neighbours for one endpoint form one *send*: one system call with `UDP_SEGMENT`. Whoever reads flushes when nothing more is at
//! hand, so nothing ever waits for a batch to fill.
//!
//! How a packet must be spread depends on whose it is, which only its header tells. So the spread that the last packet needed is
//! taken for the next; a packet that needs another is moved once.

use std::{net::SocketAddr, time::Instant};

use super::{
    drops::{Counters, DropReason},
    punt::{Notice, Sender},
    segment,
    slices::Cut,
    table::{DATAGRAM, Peer, Table},
    unreachable,
};
use crate::{
    channel::keypair::{Keypair, TAG},
    node::output::PeerSlot,
    path::route::Egress,
    wire::{
        channel::{HEADER, Header, PLACE, Place},
        filter,
        ip::IpView,
        relay::{self, RelayIndex},
        superpacket::{self, Kind, VirtioHeader},
    },
};

/// The largest packet a device hands over.
pub const MAX_PACKET: usize = 65_535;

/// After so many bytes a batch is sent: still in the processor's nearest caches.
const FULL: usize = 32 * 1024;

/// Sends that a batch holds at most: as many peers as small packets are for.
const MAX_SENDS: usize = 32;

/// Room for a full batch and one superpacket behind it, whatever its spread.
const ARENA: usize = FULL + 2 * MAX_PACKET;

/// The most datagrams that one system call takes: UDP_MAX_SEGMENTS before Linux 6.8, 128 since.
const MAX_SEGMENTS: usize = 64;

/// The most bytes that it takes: a UDP payload's limit over IPv4.
const MAX_BYTES: usize = 65_507;

/// How a packet is spread when it is read: parts of `slice` bytes, `front` bytes free before each and `back` behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Spread {
    /// Bytes free before each part.
    pub front: usize,
    /// Bytes of each part but the last.
    pub slice: usize,
    /// Bytes free behind each part.
    pub back: usize,
}

impl Spread {
    /// For datagrams of at most `datagram` bytes.
    fn of(datagram: u16, relay: Option<RelayIndex>) -> Self {
        let front = HEADER + PLACE + if relay.is_some() { relay::PREFIX } else { 0 };
        Self { front, slice: usize::from(datagram).saturating_sub(front + TAG).max(1), back: TAG }
    }

    /// From the beginning of one part's room to that of the next: the length of a datagram.
    fn stride(self) -> usize {
        self.front + self.slice + self.back
    }
}

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

/// What packets are decided by. Borrowed: one turn.
#[derive(Debug)]
pub struct Context<'a> {
    /// As it is now.
    pub table: &'a Table,
    /// Which stripe this thread seals.
    pub stripe: u8,
    /// Now, by the clock that keys live by.
    pub now: Instant,
    /// What is counted.
    pub counters: &'a Counters,
}

/// Datagrams for one endpoint that leave by one system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Send {
    to: SocketAddr,
    start: usize,
    end: usize,
    /// Length of each datagram but the last.
    segment: usize,
    datagrams: usize,
    /// Another datagram may follow: the last one is as long as the others.
    is_open: bool,
}

/// Packets on their way out: read into it, sealed in it, sent from it.
#[derive(Debug)]
pub struct Batch {
    arena: Box<[u8]>,
    used: usize,
    sends: Vec<Send>,
    /// How the next packet is spread.
    spread: Spread,
    /// A packet in one piece: where it must be moved, or goes to control.
    scratch: Box<[u8]>,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            arena: vec![0; ARENA].into(),
            used: 0,
            sends: Vec::with_capacity(MAX_SENDS),
            spread: Spread::of(DATAGRAM, None),
            scratch: vec![0; MAX_PACKET].into(),
        }
    }
}

impl Batch {
    /// Whether it is time to send: nothing more fits, or enough has come together.
    pub fn is_full(&self) -> bool {
        self.used >= FULL || self.sends.len() == MAX_SENDS
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.sends.is_empty()
    }

    /// Where the next packet is to be read, and how it is to be spread.
    pub fn room(&mut self) -> (&mut [u8], Spread) {
        (&mut self.arena[self.used..], self.spread)
    }

    /// What is to be sent: bytes, the length of each datagram but the last, and where to.
    pub fn sends(&self) -> impl Iterator<Item = (&[u8], usize, SocketAddr)> {
        self.sends.iter().map(|send| (&self.arena[send.start..send.end], send.segment, send.to))
    }

    /// Everything has been sent.
    pub fn clear(&mut self) {
        self.sends.clear();
        self.used = 0;
    }

    /// Takes the packet of `len` bytes that has just been read into [`Self::room`]: sealed it becomes part of the batch; what only
    /// control can send goes to `punts`, refusals to the program by `answer`, which gets a whole ICMP packet. Counts what is
    /// dropped.
    pub fn take(
        &mut self,
        context: &Context<'_>,
        header: &VirtioHeader,
        len: usize,
        punts: &mut Sender,
        mut answer: impl FnMut(&[u8]),
    ) {
        let Spread { front, slice, .. } = self.spread;
        let start = self.used + front;
        let first = start..start + len.min(slice);
        let decided = decide(context.table, &self.arena[first.clone()], len)
            .map(|Admitted { packet, slot, peer }| (packet.total_len(), slot, peer));
        let result = decided.and_then(|(len, slot, peer)| {
            let kind = superpacket::kind_front(header, &mut self.arena[first.clone()], len)
                .or_else(|error| self.finish(header, len).ok_or(error))
                .map_err(|_| Refused { reason: DropReason::PacketMalformed, answer: false })?;
            if self.seal(context, peer, kind, len) {
                peer.traffic.outbound.count(len);
                if peer.traffic.is_news() && !punts.notice(Notice::Active { slot }) {
                    peer.traffic.rest();
                }
            } else {
                self.punt(kind, len, punts);
            }
            Ok(())
        });
        let Err(Refused { reason, answer: tell }) = result else { return };
        context.counters.count(reason);
        let first = &self.arena[first];
        let mut reply = [0; unreachable::MAX_LEN];
        if tell && let Some(reply) = unreachable::reply(first, &mut reply) {
            answer(reply);
        }
    }

    /// Seals it where it lies. `false`: control must send it.
    fn seal(&mut self, context: &Context<'_>, peer: &Peer, kind: Kind, len: usize) -> bool {
        let (Some(keypairs), Some(route)) = (&peer.seal_with, peer.route) else { return false };
        let (Some(keypair), Egress::Udp { endpoint, .. }) =
            (keypairs.stripe(context.stripe), route.egress)
        else {
            return false;
        };
        let spread = Spread::of(peer.datagram, route.relay);
        let Some(cut) = Cut::new(len, spread.slice) else { return false };
        let Ok(counter) = keypair.reserve(cut.count().into(), context.now) else { return false };
        if spread != self.spread {
            self.spread_anew(spread, len);
        }
        let start = self.used;
        let mut end = start;
        for number in 0..cut.count() {
            let place = Place { number, count: cut.count(), kind };
            let begin = start + usize::from(number) * spread.stride();
            end = begin + spread.front + cut.range(number).len() + TAG;
            let counter = counter + u64::from(number);
            seal_slot(keypair, counter, place, route.relay, &mut self.arena[begin..end]);
        }
        self.used = end;
        self.append(endpoint, start, end, spread.stride(), cut.count().into());
        true
    }

    /// Finishes the checksum of a packet that lies in several parts and whose headers only its kernel understands.
    fn finish(&mut self, header: &VirtioHeader, len: usize) -> Option<Kind> {
        if len <= self.spread.slice || header.gso_type != 0 {
            return None;
        }
        self.gather(len);
        superpacket::finish(header, &mut self.scratch[..len]).ok()?;
        self.scatter(len);
        Some(Kind::Whole)
    }

    /// Moves the packet that has just been read to where another spread wants it; so will the next be read.
    fn spread_anew(&mut self, spread: Spread, len: usize) {
        self.gather(len);
        self.spread = spread;
        self.scatter(len);
    }

    /// Copies the packet in `scratch` back, spread.
    fn scatter(&mut self, len: usize) {
        let Spread { front, slice, .. } = self.spread;
        let room = self.arena[self.used..].chunks_mut(self.spread.stride());
        for (part, slot) in self.scratch[..len].chunks(slice).zip(room) {
            slot[front..front + part.len()].copy_from_slice(part);
        }
    }

    /// Copies the packet that has just been read into `scratch`, in one piece.
    fn gather(&mut self, len: usize) {
        let Spread { front, slice, .. } = self.spread;
        let room = self.arena[self.used..].chunks(self.spread.stride());
        for (part, slot) in self.scratch[..len].chunks_mut(slice).zip(room) {
            part.copy_from_slice(&slot[front..front + part.len()]);
        }
    }

    /// Hands the packet to control, as the kernel would have sent it without offloads.
    fn punt(&mut self, kind: Kind, len: usize, punts: &mut Sender) {
        self.gather(len);
        // The kind was found in this very packet.
        let _ = segment::segment(kind, &mut self.scratch[..len], |packet| punts.packet(packet));
    }

    /// Adds datagrams to the send before them, or begins another.
    fn append(
        &mut self,
        to: SocketAddr,
        start: usize,
        end: usize,
        stride: usize,
        datagrams: usize,
    ) {
        let segment = if datagrams > 1 { stride } else { end - start };
        let last_len = (end - start) - (datagrams - 1) * segment;
        if let Some(last) = self.sends.last_mut() {
            let fits_segment =
                if datagrams > 1 { segment == last.segment } else { segment <= last.segment };
            let fits_send =
                last.datagrams + datagrams <= MAX_SEGMENTS && end - last.start <= MAX_BYTES;
            if last.is_open && last.to == to && last.end == start && fits_segment && fits_send {
                last.end = end;
                last.datagrams += datagrams;
                last.is_open = last_len == last.segment;
                return;
            }
        }
        let is_open = last_len == segment;
        self.sends.push(Send { to, start, end, segment, datagrams, is_open });
    }
}

/// Makes a datagram of a slice with room around it: [relay prefix,] header, sealed place and slice, tag.
fn seal_slot(
    keypair: &Keypair,
    counter: u64,
    place: Place,
    relay: Option<RelayIndex>,
    slot: &mut [u8],
) {
    let mut message = slot;
    if let Some(index) = relay {
        let (prefix, rest) = message.split_at_mut(relay::PREFIX);
        prefix.copy_from_slice(&index.prefix());
        message = rest;
    }
    let header = Header { receiver: keypair.send_index(), counter }.to_bytes();
    let (front, text) = message.split_at_mut(HEADER);
    front.copy_from_slice(&header);
    let (text, tag) = text.split_at_mut(text.len() - TAG);
    text[..PLACE].copy_from_slice(&place.to_bytes());
    tag.copy_from_slice(&keypair.seal(counter, &header, text));
}

/// One packet, of which at least the headers are in `first`: who it is for.
///
/// # Errors
/// Why it goes nowhere.
pub fn decide<'p, 't>(
    table: &'t Table,
    first: &'p [u8],
    len: usize,
) -> Result<Admitted<'p, 't>, Refused> {
    let silently = |reason| Refused { reason, answer: false };
    let packet = IpView::parse_front(first, len).map_err(filter::FilterError::from);
    let packet = packet
        .and_then(|packet| filter::check_outbound(&packet, table.own()).map(|()| packet))
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
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
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
            let packet = packet(source, destination, protocol);
            decide(table.table(), &packet, packet.len())
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
    fn a_batch_punts_what_only_control_can_send_and_answers_what_has_nowhere_to_go() {
        let table = table();
        let counters = Arc::<Counters>::default();
        let (mut sender, mut receiver) = queue(Arc::clone(&counters), || ());
        let mut padded = packet("10.99.0.1", "10.99.0.2", 17);
        padded.extend([9; 5]);
        let packets = [
            padded,
            packet("10.99.0.1", "10.99.0.77", 17),
            b"junk".to_vec(),
            packet("fd00::1", "fd00::2", 6),
        ];
        let mut answers = 0;
        let mut batch = Batch::default();
        let context =
            Context { table: table.table(), stripe: 0, now: Instant::now(), counters: &counters };
        for packet in &packets {
            let (room, spread) = batch.room();
            room[spread.front..spread.front + packet.len()].copy_from_slice(packet);
            batch.take(&context, &VirtioHeader::default(), packet.len(), &mut sender, |reply| {
                let view = IpView::parse(reply).unwrap();
                assert_eq!(view.destination(), pair(1)[0]);
                answers += 1;
            });
        }
        assert!(batch.is_empty(), "there are no keys");
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
        assert_eq!(peer.traffic.outbound.units(), 0, "control counts what control sends");
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
            if let Ok(admitted) = decide(table.table(), &bytes, bytes.len()) {
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
