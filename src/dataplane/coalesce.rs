//! Coalesce: packets of a flow that came in one batch become one superpacket, for one write to the device. No I/O, no copy.
//!
//! Theory of operation. The worker hands over every packet of a batch in the order they came ([`Coalescer::push`]), as places in
//! its arena. A packet joins the *run* of its flow if Linux's own GRO would have it so; else that run ends and the packet begins
//! the next. [`Coalescer::flush`] gives back each run as the pieces of one packet: the first packet whole, of the others the
//! payload. The order within a flow is kept, and a flow is what has the same addresses, protocol and ports; what cannot be
//! told apart (fragments, extension headers) ends every run.
//!
//! The rules (net/ipv4/tcp_offload.c, udp_offload.c, include/net/gro.h), which make segmenting a run again give back its packets:
//! - lengths agree with the IP header; no IPv4 options, its checksum right; TOS, TTL and DF alike; IPv4 ids rising by one, or all
//!   alike under DF, where they mean nothing (RFC 6864 §4.1); IPv6's first word and hop limit alike;
//! - as long as the first, a shorter one ends the run; none is empty;
//! - TCP: next sequence number; acknowledgement, window, flags and options alike. CWR may only be the first's, and PSH or FIN end
//!   the run. Never SYN, RST, URG;
//! - UDP: with checksum;
//! - a finished checksum ([`Kind::Whole`]) is checked before the packet joins: afterwards nobody could tell. Where the peer's
//!   kernel left it unfinished, the channel's seal has answered for every byte;
//! - up to [`MAX_PACKET`] bytes, [`MAX_PIECES`] pieces, and [`MAX_UDP_SEGMENTS`] datagrams.
//!
//! Superpackets take part as well: they are the packets that they stand for.

use std::ops::Range;

use crate::wire::{
    checksum::Checksum,
    superpacket::{CWR, FIN, FLAGS, Headers, Kind, MAX_PACKET, MAX_UDP_SEGMENTS, PSH},
};

/// Flows that may have a run under way, as in one bucket of Linux's GRO. A further one ends the oldest.
pub const FLOWS: usize = 8;

/// The most pieces of what is joined: what one `writev` is given. A superpacket that comes alone may have more.
pub const MAX_PIECES: usize = 64;

const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const URG: u8 = 0x20;

/// No next piece.
const NONE: usize = usize::MAX;

/// Joins the packets of one batch at a time. Its memory stays for the next batch.
#[derive(Debug)]
pub struct Coalescer {
    takes_udp: bool,
    pieces: Vec<Piece>,
    /// In the order of their first packets.
    runs: Vec<Run>,
    /// Of the runs those that may grow, the oldest first.
    open: Vec<Flow>,
    gathered: Vec<Range<usize>>,
}

#[derive(Debug)]
struct Piece {
    place: Range<usize>,
    next: usize,
}

/// What will be one write.
#[derive(Debug)]
struct Run {
    kind: Kind,
    first: usize,
    last: usize,
}

/// A run that may grow.
#[derive(Debug)]
struct Flow {
    run: usize,
    /// Its first packet.
    head: Packet,
    /// Payload of all.
    payload: usize,
    pieces: usize,
    /// IPv4 ids are all alike; known from the second packet on.
    has_fixed_id: Option<bool>,
    /// The first packet's checksum need not be looked at (again).
    is_checked: bool,
}

/// A TCP or UDP packet.
#[derive(Debug, Clone, Copy)]
struct Packet {
    /// Where it begins in the arena.
    start: usize,
    /// How much of it stands there: all of it, if it is one piece.
    first_piece: usize,
    pieces: usize,
    headers: Headers,
    payload: usize,
    /// Payload of each segment but the last; all of it, if it is no superpacket.
    segment: usize,
    kind: Kind,
}

impl Coalescer {
    /// `takes_udp`: whether the device takes UDP superpackets. Up to `pieces` a batch nothing is allocated later.
    pub fn new(takes_udp: bool, pieces: usize) -> Self {
        Self {
            takes_udp,
            pieces: Vec::with_capacity(pieces),
            runs: Vec::with_capacity(pieces),
            open: Vec::with_capacity(FLOWS),
            gathered: Vec::with_capacity(MAX_PIECES),
        }
    }

    /// Takes a packet that stands in one place. Flags in the header of an earlier one may change.
    ///
    /// # Panics
    /// If the place is not in the arena.
    pub fn push(&mut self, arena: &mut [u8], packet: Range<usize>, kind: Kind) {
        self.push_pieces(arena, &[packet], kind);
    }

    /// Takes a packet in pieces, of which the first has all its headers.
    ///
    /// # Panics
    /// If a piece is not in the arena.
    pub fn push_pieces(&mut self, arena: &mut [u8], pieces: &[Range<usize>], kind: Kind) {
        let Some(packet) = Packet::find(arena, pieces, kind) else {
            self.open.clear();
            self.begin(pieces, kind);
            return;
        };
        let is_joinable = packet.is_joinable(arena) && (packet.headers.is_tcp || self.takes_udp);
        if let Some(at) = self.open.iter().position(|flow| flow.head.is_same_flow(&packet, arena)) {
            let flow = &mut self.open[at];
            if is_joinable && flow.accepts(&packet, arena) {
                flow.add(&packet, arena);
                let (run, is_full) = (flow.run, packet.is_last_of(flow.head.segment, arena));
                self.runs[run].kind = flow.kind();
                self.append(run, pieces, packet.headers.end);
                if is_full {
                    self.open.remove(at);
                }
                return;
            }
            self.open.remove(at);
        }
        let run = self.begin(pieces, kind);
        if is_joinable && !packet.is_last_of(packet.segment, arena) {
            if self.open.len() == FLOWS {
                self.open.remove(0);
            }
            self.open.push(Flow::new(run, packet));
        }
    }

    /// Gives every packet, in the order of their beginnings, and forgets them: what it is now, and its pieces. Of what has
    /// been joined, lengths and checksum wait for [`superpacket::rebuild_parts`](crate::wire::superpacket::rebuild_parts).
    pub fn flush(&mut self, mut each: impl FnMut(Kind, &[Range<usize>])) {
        for run in self.runs.drain(..) {
            self.gathered.clear();
            let mut at = run.first;
            while at != NONE {
                let piece = &self.pieces[at];
                self.gathered.push(piece.place.clone());
                at = piece.next;
            }
            each(run.kind, &self.gathered);
        }
        self.pieces.clear();
        self.open.clear();
    }

    /// Begins a run.
    fn begin(&mut self, pieces: &[Range<usize>], kind: Kind) -> usize {
        let Some((first, rest)) = pieces.split_first() else { return NONE };
        let at = self.pieces.len();
        self.pieces.push(Piece { place: first.clone(), next: NONE });
        self.runs.push(Run { kind, first: at, last: at });
        let run = self.runs.len() - 1;
        self.append(run, rest, 0);
        run
    }

    /// Puts pieces behind those of a run, but for so many bytes at their front.
    fn append(&mut self, run: usize, pieces: &[Range<usize>], mut skip: usize) {
        let run = &mut self.runs[run];
        for piece in pieces {
            let place = piece.start + skip..piece.end;
            skip = 0;
            if place.is_empty() {
                continue;
            }
            let at = self.pieces.len();
            self.pieces.push(Piece { place, next: NONE });
            self.pieces[run.last].next = at;
            run.last = at;
        }
    }
}

impl Flow {
    fn new(run: usize, head: Packet) -> Self {
        Self {
            run,
            head,
            payload: head.payload,
            pieces: head.pieces,
            has_fixed_id: None,
            is_checked: head.kind != Kind::Whole,
        }
    }

    fn kind(&self) -> Kind {
        let segment = self.head.segment as u16;
        if self.head.headers.is_tcp { Kind::Tcp(segment) } else { Kind::Udp(segment) }
    }

    /// Whether a packet of this flow may be joined. The checksums come last: they cost the most.
    fn accepts(&mut self, packet: &Packet, arena: &[u8]) -> bool {
        let Self { head, .. } = *self;
        let is_single = packet.segment == packet.payload;
        let fits = packet.segment == head.segment || (is_single && packet.payload < head.segment);
        let payload = self.payload + packet.payload;
        let has_room = head.headers.end + payload <= MAX_PACKET
            && self.pieces + packet.pieces <= MAX_PIECES
            && (head.headers.is_tcp || payload.div_ceil(head.segment) <= MAX_UDP_SEGMENTS);
        fits && has_room
            && self.follows_in_ip(packet, arena)
            && (!head.headers.is_tcp || self.follows_in_tcp(packet, arena))
            && self.is_checked(arena)
            && (packet.kind != Kind::Whole || packet.is_finished(arena))
    }

    fn follows_in_ip(&mut self, packet: &Packet, arena: &[u8]) -> bool {
        let (one, two) = (self.head.bytes(arena), packet.bytes(arena));
        if self.head.headers.is_v6 {
            return one[..4] == two[..4] && one[7] == two[7];
        }
        let id = |packet: &[u8]| u16::from_be_bytes([packet[4], packet[5]]);
        let ahead = id(two).wrapping_sub(id(one));
        let never_fragments = two[6] & 0x40 != 0;
        let is_fixed = *self.has_fixed_id.get_or_insert(never_fragments && ahead == 0);
        let expected = if is_fixed { 0 } else { self.payload.div_ceil(self.head.segment) as u16 };
        // TOS; DF; TTL and protocol.
        one[1] == two[1] && one[6] == two[6] && one[8..10] == two[8..10] && ahead == expected
    }

    fn follows_in_tcp(&self, packet: &Packet, arena: &[u8]) -> bool {
        let (one, two) = (self.head.transport(arena), packet.transport(arena));
        let sequence = |tcp: &[u8]| u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
        // From the acknowledgement to the options: all but flags and checksum.
        let is_alike = one[8..FLAGS] == two[8..FLAGS]
            && one[FLAGS + 1..16] == two[FLAGS + 1..16]
            && one[18..] == two[18..];
        let new_flags = one[FLAGS] ^ two[FLAGS];
        let may_differ = FIN | PSH | (one[FLAGS] & CWR);
        is_alike
            && new_flags & !may_differ == 0
            && two[FLAGS] & CWR == 0
            && sequence(one).wrapping_add(self.payload as u32) == sequence(two)
    }

    /// Whether the first packet's checksum is right. Only when a second one comes does it matter.
    fn is_checked(&mut self, arena: &[u8]) -> bool {
        self.is_checked = self.is_checked || self.head.is_finished(arena);
        self.is_checked
    }

    fn add(&mut self, packet: &Packet, arena: &mut [u8]) {
        self.payload += packet.payload;
        self.pieces += packet.pieces;
        if self.head.headers.is_tcp {
            let flags = packet.transport(arena)[FLAGS] & (FIN | PSH);
            arena[self.head.start + self.head.headers.transport + FLAGS] |= flags;
        }
    }
}

impl Packet {
    /// `None`: not TCP or UDP for our purposes.
    fn find(arena: &[u8], pieces: &[Range<usize>], kind: Kind) -> Option<Self> {
        let first = pieces.first()?;
        let headers = Headers::find(&arena[first.clone()]).ok()?;
        let payload = pieces.iter().map(Range::len).sum::<usize>() - headers.end;
        let segment = match kind {
            Kind::Whole | Kind::Unfinished => payload,
            Kind::Tcp(segment) | Kind::Udp(segment) => payload.min(segment.into()),
        };
        let (start, first_piece, pieces) = (first.start, first.len(), pieces.len());
        Some(Self { start, first_piece, pieces, headers, payload, segment, kind })
    }

    /// What of it stands in its first place.
    fn bytes<'a>(&self, arena: &'a [u8]) -> &'a [u8] {
        &arena[self.start..self.start + self.first_piece]
    }

    /// Its transport header.
    fn transport<'a>(&self, arena: &'a [u8]) -> &'a [u8] {
        &self.bytes(arena)[self.headers.transport..self.headers.end]
    }

    fn is_same_flow(&self, other: &Self, arena: &[u8]) -> bool {
        let ports = |packet: &Self| {
            let at = packet.start + packet.headers.transport;
            at..at + 4
        };
        let addresses = |packet: &Self| {
            let Range { start, end } = packet.headers.addresses();
            packet.start + start..packet.start + end
        };
        let (one, two) = (self.headers, other.headers);
        (one.is_v6, one.is_tcp) == (two.is_v6, two.is_tcp)
            && arena[ports(self)] == arena[ports(other)]
            && arena[addresses(self)] == arena[addresses(other)]
    }

    /// Whether it can be part of a run at all.
    fn is_joinable(&self, arena: &[u8]) -> bool {
        let bytes = self.bytes(arena);
        let len = self.headers.end + self.payload;
        let Headers { is_v6, is_tcp, transport, .. } = self.headers;
        let is_plain_ip = is_v6
            || (transport == 20
                && bytes[6] & 0x80 == 0
                && Checksum::default().with(&bytes[..20]).is_valid());
        let is_plain = if is_tcp {
            bytes[transport + FLAGS] & (SYN | RST | URG) == 0
        } else {
            let stated = u16::from_be_bytes([bytes[transport + 4], bytes[transport + 5]]);
            usize::from(stated) == len - transport
        };
        let fits_kind = match self.kind {
            // Only in one piece can its checksum be checked.
            Kind::Whole => self.pieces == 1,
            Kind::Unfinished => true,
            Kind::Tcp(_) => is_tcp,
            Kind::Udp(_) => !is_tcp,
        };
        let is_whole = self.headers.stated_len(bytes) == len;
        self.segment > 0 && is_whole && is_plain_ip && is_plain && fits_kind
    }

    /// Whether nothing may follow it in a run with segments of this length.
    fn is_last_of(&self, segment: usize, arena: &[u8]) -> bool {
        let ends = self.headers.is_tcp && self.transport(arena)[FLAGS] & (FIN | PSH) != 0;
        ends || !self.payload.is_multiple_of(segment)
    }

    fn is_finished(&self, arena: &[u8]) -> bool {
        self.headers.is_finished(self.bytes(arena))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        dataplane::segment::segment,
        wire::{
            packets::{self, ACK, ECE, Recipe, finish, is_right, payload},
            superpacket::rebuild_parts,
        },
    };

    /// A packet as it comes: what it is, and its pieces.
    type Came = (Kind, Vec<Vec<u8>>);

    /// What a batch becomes: the kind of each write, how many pieces it has, and the packet as the device gets it.
    fn coalesce_with(coalescer: &mut Coalescer, batch: &[Came]) -> Vec<(Kind, usize, Vec<u8>)> {
        let mut arena = vec![0xee; 3];
        let mut places = Vec::new();
        for (kind, pieces) in batch {
            let mut packet = Vec::new();
            for piece in pieces {
                packet.push(arena.len()..arena.len() + piece.len());
                arena.extend(piece);
                arena.push(0xee);
            }
            places.push((*kind, packet));
        }
        for (kind, pieces) in &places {
            coalescer.push_pieces(&mut arena, pieces, *kind);
        }
        let mut writes = Vec::new();
        coalescer.flush(|kind, pieces| {
            let mut packet: Vec<u8> =
                pieces.iter().flat_map(|piece| arena[piece.clone()].to_vec()).collect();
            let len = packet.len();
            // What is refused is written as it is: a kernel says the same.
            let _ = rebuild_parts(kind, &mut packet[..pieces[0].len()], len);
            writes.push((kind, pieces.len(), packet));
        });
        writes
    }

    fn coalesce(batch: &[Came]) -> Vec<(Kind, usize, Vec<u8>)> {
        coalesce_with(&mut Coalescer::new(true, 8), batch)
    }

    fn whole(packet: Vec<u8>) -> Came {
        (Kind::Whole, vec![packet])
    }

    /// The packets that writes stand for.
    fn packets_of(writes: &[(Kind, usize, Vec<u8>)]) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        for (kind, _, packet) in writes {
            segment(*kind, &mut packet.clone(), |packet| all.push(packet.to_vec())).unwrap();
        }
        all
    }

    /// The packet after `recipe`'s with so much payload.
    fn next(recipe: &Recipe, payload: usize) -> Recipe {
        let mut next = recipe.clone();
        next.id = next.id.wrapping_add(1);
        next.sequence = next.sequence.wrapping_add(payload as u32);
        next
    }

    /// Neighbours of one flow with these payloads.
    fn neighbours(recipe: &Recipe, lengths: &[usize]) -> Vec<(Recipe, Vec<u8>)> {
        let mut recipe = recipe.clone();
        let one = |len: &usize| {
            let this = recipe.clone();
            recipe = next(&recipe, *len);
            (this, payload(*len))
        };
        lengths.iter().map(one).collect()
    }

    fn joined(recipe: &Recipe, segment: u16) -> Kind {
        if recipe.is_tcp { Kind::Tcp(segment) } else { Kind::Udp(segment) }
    }

    #[test]
    #[cfg_attr(miri, ignore = "minutes; smaller ones do the same")]
    fn neighbours_of_a_flow_become_one_write() {
        for mut recipe in Recipe::all() {
            if recipe.is_tcp {
                recipe.options = (1..=12).collect();
            }
            for (lengths, is_finished) in
                [([200; 5], true), ([200; 5], false), ([200, 200, 200, 200, 7], true)]
            {
                let parts = neighbours(&recipe, &lengths);
                let packets: Vec<_> =
                    parts.iter().map(|(recipe, part)| recipe.packet(part)).collect();
                let batch: Vec<Came> = if is_finished {
                    packets.iter().cloned().map(whole).collect()
                } else {
                    let unfinished = parts.iter().map(|(recipe, part)| recipe.unfinished(part));
                    unfinished.map(|packet| (Kind::Unfinished, vec![packet])).collect()
                };
                let writes = coalesce(&batch);
                let all = parts.iter().flat_map(|(_, part)| part.clone()).collect::<Vec<_>>();
                let superpacket = recipe.unfinished(&all);
                assert_eq!(writes, [(joined(&recipe, 200), 5, superpacket)], "{recipe:?}");
                assert_eq!(packets_of(&writes), packets);
            }
        }
    }

    /// What becomes of a packet and the next of its flow, after changes to both.
    fn two_become(
        recipe: &Recipe,
        first: impl Fn(&mut Recipe),
        second: impl Fn(&mut Recipe),
        after: impl Fn(&mut [Vec<u8>; 2]),
    ) -> usize {
        let (mut one, mut two) = (recipe.clone(), next(recipe, 200));
        first(&mut one);
        second(&mut two);
        let mut packets = [one.packet(&payload(200)), two.packet(&payload(200))];
        after(&mut packets);
        let writes = coalesce(&packets.clone().map(whole));
        if writes.len() == 2 {
            let left_alone = packets.map(|packet| (Kind::Whole, 1, packet));
            assert_eq!(writes, left_alone, "what is not joined is not touched");
        } else {
            assert_eq!(packets_of(&writes), packets);
        }
        writes.len()
    }

    #[test]
    #[cfg_attr(miri, ignore = "minutes; smaller ones do the same")]
    fn what_differs_in_ip_is_not_joined() {
        for recipe in Recipe::all() {
            let two = |change: &dyn Fn(&mut Recipe)| two_become(&recipe, |_| (), change, |_| ());
            assert_eq!(two(&|_| ()), 1);
            assert_eq!(two(&|two| two.class ^= 1), 2, "ECN");
            assert_eq!(two(&|two| two.class ^= 0x40), 2, "TOS");
            assert_eq!(two(&|two| two.hops -= 1), 2);
            for address in if recipe.is_v6 { [23, 39] } else { [15, 19] } {
                let other = |packets: &mut [Vec<u8>; 2]| {
                    packets[1][address] ^= 4;
                    finish(&mut packets[1]);
                };
                assert_eq!(two_become(&recipe, |_| (), |_| (), other), 2, "another member");
            }
            if recipe.is_v6 {
                assert_eq!(two(&|two| two.flow_label += 1), 2);
            } else {
                assert_eq!(two(&|two| two.may_fragment = true), 2);
                assert_eq!(two(&|two| two.id += 1), 2);
                assert_eq!(two(&|two| two.id -= 2), 2);
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "minutes; smaller ones do the same")]
    fn ipv4_ids_rise_by_one_or_mean_nothing() {
        for mut recipe in Recipe::all().into_iter().filter(|recipe| !recipe.is_v6) {
            recipe.id = u16::MAX;
            let parts = neighbours(&recipe, &[200; 4]);
            let writes = |may_fragment: bool, ids: [u16; 4]| {
                let with_id = |((recipe, part), id): (&(Recipe, Vec<u8>), u16)| {
                    whole(Recipe { id, may_fragment, ..recipe.clone() }.packet(part))
                };
                coalesce(&parts.iter().zip(ids).map(with_id).collect::<Vec<_>>()).len()
            };
            for may_fragment in [false, true] {
                assert_eq!(writes(may_fragment, [u16::MAX, 0, 1, 2]), 1);
                assert_eq!(writes(may_fragment, [u16::MAX, 0, 1, 1]), 2);
                assert_eq!(writes(may_fragment, [u16::MAX, 0, 2, 3]), 2);
                assert_eq!(writes(may_fragment, [7, 9, 11, 13]), 4);
            }
            assert_eq!(writes(false, [0; 4]), 1);
            assert_eq!(writes(true, [0; 4]), 4, "could be fragments of each other");
            assert_eq!(writes(false, [5, 5, 5, 6]), 2);
            assert_eq!(writes(false, [5, 5, 7, 8]), 2);
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "minutes; smaller ones do the same")]
    fn what_differs_in_tcp_is_not_joined() {
        for is_v6 in [false, true] {
            let options = (1..=12).collect();
            let recipe = Recipe { options, ..Recipe::new(is_v6, true) };
            let two = |change: &dyn Fn(&mut Recipe)| two_become(&recipe, |_| (), change, |_| ());
            assert_eq!(two(&|two| two.sequence += 1), 2, "a gap");
            assert_eq!(two(&|two| two.sequence -= 1), 2, "sent again");
            assert_eq!(two(&|two| two.ack += 1), 2);
            assert_eq!(two(&|two| two.window += 1), 2);
            assert_eq!(two(&|two| two.options[11] += 1), 2, "another time stamp");
            assert_eq!(two(&|two| two.options.truncate(8)), 2);
            for flag in [packets::SYN, packets::RST, packets::URG, packets::CWR, ECE] {
                assert_eq!(two(&|two| two.flags |= flag), 2, "{flag:x}");
            }
            assert_eq!(two(&|two| two.flags &= !ACK), 2);
            for flag in [packets::PSH, packets::FIN] {
                assert_eq!(two(&|two| two.flags |= flag), 1, "the last may say so");
            }
            let both = |flags: u8| {
                let change = |recipe: &mut Recipe| recipe.flags |= flags;
                two_become(&recipe, change, change, |_| ())
            };
            assert_eq!(both(ECE), 1);
            for flag in
                [packets::SYN, packets::RST, packets::URG, packets::PSH, packets::FIN, packets::CWR]
            {
                assert_eq!(both(flag), 2, "{flag:x}");
            }
            let first = |flags: u8| two_become(&recipe, |one| one.flags |= flags, |_| (), |_| ());
            assert_eq!(first(packets::CWR), 1, "the first may say so");
            assert_eq!(first(packets::PSH), 2, "nothing waits behind it");
            assert_eq!(first(packets::FIN), 2);
            let urgent = |packets: &mut [Vec<u8>; 2]| {
                let place = recipe.headers() - 14;
                packets[1][place] = 1;
                finish(&mut packets[1]);
            };
            assert_eq!(two_become(&recipe, |_| (), |_| (), urgent), 2, "the urgent pointer");
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "minutes; smaller ones do the same")]
    fn what_is_not_whole_is_not_joined() {
        for recipe in Recipe::all() {
            let after =
                |change: &dyn Fn(&mut [Vec<u8>; 2])| two_become(&recipe, |_| (), |_| (), change);
            for which in [0, 1] {
                assert_eq!(after(&|packets| packets[which][70] ^= 1), 2, "a wrong checksum");
                assert_eq!(after(&|packets| packets[which].push(0)), 2, "padding");
                assert_eq!(after(&|packets| packets[which].truncate(100)), 2, "cut off");
                if !recipe.is_v6 {
                    assert_eq!(after(&|packets| packets[which][10] ^= 1), 2, "IPv4's checksum");
                    assert_eq!(
                        after(&|packets| {
                            packets[which][6] |= 0x80;
                            finish(&mut packets[which]);
                        }),
                        2,
                        "a reserved bit"
                    );
                    assert_eq!(
                        after(&|packets| {
                            packets[which][6] = 0x20;
                            finish(&mut packets[which]);
                        }),
                        2,
                        "a fragment"
                    );
                    assert_eq!(
                        after(&|packets| {
                            let packet = &mut packets[which];
                            packet[0] = 0x46;
                            packet[3] += 4;
                            packet.splice(20..20, [1; 4]);
                            finish(packet);
                        }),
                        2,
                        "IPv4 options"
                    );
                }
                if !recipe.is_tcp {
                    let at = recipe.headers() - 4;
                    assert_eq!(
                        after(&|packets| packets[which][at + 2..at + 4].fill(0)),
                        2,
                        "no checksum"
                    );
                    assert_eq!(
                        after(&|packets| {
                            packets[which][at + 1] -= 1;
                            finish(&mut packets[which]);
                        }),
                        2,
                        "a datagram shorter than its packet"
                    );
                }
            }
        }
    }

    #[test]
    fn what_gro_leaves_alone_is_left_alone_even_if_it_is_alike() {
        for recipe in Recipe::all() {
            let both = |change: &dyn Fn(&mut Vec<u8>)| {
                two_become(&recipe, |_| (), |_| (), |packets| packets.iter_mut().for_each(change))
            };
            if !recipe.is_v6 {
                let reserved_bit = |packet: &mut Vec<u8>| {
                    packet[6] |= 0x80;
                    finish(packet);
                };
                assert_eq!(both(&reserved_bit), 2);
                let options = |packet: &mut Vec<u8>| {
                    packet[0] = 0x46;
                    packet[3] += 4;
                    packet.splice(20..20, [0; 4]);
                    finish(packet);
                };
                assert_eq!(both(&options), 2);
            }
        }
    }

    #[test]
    fn what_stands_behind_a_packet_is_no_payload() {
        for recipe in Recipe::all() {
            let mut padded = next(&recipe, 200).unfinished(&payload(100));
            padded.push(0);
            let batch = [recipe.unfinished(&payload(200)), padded];
            let writes = coalesce(&batch.map(|packet| (Kind::Unfinished, vec![packet])));
            assert_eq!(writes.len(), 2);
        }
    }

    #[test]
    fn a_finished_checksum_counts_for_a_whole_packet_alone() {
        for recipe in Recipe::all() {
            // The first piece would be right by itself.
            let mut first = recipe.packet(&payload(200));
            let place = if recipe.is_v6 { 4 } else { 2 };
            let len = u16::from_be_bytes([first[place], first[place + 1]]) + 200;
            first[place..place + 2].copy_from_slice(&len.to_be_bytes());
            if !recipe.is_v6 {
                first[10..12].fill(0);
                let sum = !packets::naive(&first[..20]);
                first[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            let second = next(&recipe, 400).packet(&payload(200));
            let writes = coalesce(&[(Kind::Whole, vec![first, payload(200)]), whole(second)]);
            assert_eq!(writes.len(), 2);
        }
    }

    #[test]
    fn only_the_last_may_be_shorter_and_none_is_longer_or_empty() {
        for recipe in Recipe::all() {
            let writes = |lengths: &[usize]| {
                let parts = neighbours(&recipe, lengths);
                let packets: Vec<_> =
                    parts.iter().map(|(recipe, part)| recipe.packet(part)).collect();
                let writes = coalesce(&packets.iter().cloned().map(whole).collect::<Vec<_>>());
                assert_eq!(packets_of(&writes), packets);
                writes.iter().map(|(_, pieces, _)| *pieces).collect::<Vec<_>>()
            };
            assert_eq!(writes(&[100, 100, 99, 99, 99]), [3, 2]);
            assert_eq!(writes(&[100, 101, 101, 100, 101]), [1, 3, 1]);
            assert_eq!(writes(&[100, 0, 100, 100]), [1, 1, 2]);
            assert_eq!(writes(&[0, 0, 0]), [1, 1, 1]);
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "minutes; smaller ones do the same")]
    fn a_run_is_bounded() {
        for recipe in Recipe::all() {
            let pieces = |len: usize, count: usize| {
                let parts = neighbours(&recipe, &vec![len; count]);
                let batch = parts.iter().map(|(recipe, part)| whole(recipe.packet(part)));
                let writes = coalesce(&batch.collect::<Vec<_>>());
                assert!(writes.iter().all(|(_, _, packet)| packet.len() <= MAX_PACKET));
                writes.iter().map(|(_, pieces, _)| *pieces).collect::<Vec<_>>()
            };
            assert_eq!(pieces(10, MAX_PIECES + 10), [MAX_PIECES, 10]);
            let most = (MAX_PACKET - recipe.headers()) / 1400;
            assert_eq!(pieces(1400, most + 3), [most, 3]);
            assert_eq!(pieces(32_000, 5), [2, 2, 1]);
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "minutes; smaller ones do the same")]
    fn superpackets_are_the_packets_they_stand_for() {
        for recipe in Recipe::all() {
            let kind = joined(&recipe, 500);
            let ip = |number: u16| Recipe { id: recipe.id.wrapping_add(number), ..recipe.clone() };
            let at = |number: u16| Recipe {
                sequence: recipe.sequence.wrapping_add(u32::from(number) * 500),
                ..ip(number)
            };
            let bytes = payload(10_000);
            let cut = |packet: Vec<u8>| packet.chunks(700).map(<[u8]>::to_vec).collect::<Vec<_>>();
            // Ten segments, one, three and a short one, then another.
            let all = |kind, other| {
                vec![
                    (kind, cut(at(0).unfinished(&bytes[..5000]))),
                    whole(at(10).packet(&bytes[5000..5500])),
                    (other, cut(at(11).unfinished(&bytes[5500..7100]))),
                    whole(at(15).packet(&bytes[7100..7600])),
                ]
            };
            let writes = coalesce(&all(kind, kind));
            assert_eq!(writes.len(), 2);
            assert_eq!((writes[0].0, &writes[0].2), (kind, &recipe.unfinished(&bytes[..7100])));
            assert_eq!(coalesce(&all(kind, joined(&recipe, 400))).len(), 3, "another segment size");
            assert_eq!(coalesce(&all(joined(&recipe, 499), kind)).len(), 3);
            let other = if recipe.is_tcp { Kind::Udp(500) } else { Kind::Tcp(500) };
            assert_eq!(coalesce(&all(other, kind)).len(), 3, "a kind that does not fit");
            assert_eq!(coalesce(&all(Kind::Whole, kind)).len(), 3, "a checksum in many pieces");
        }
    }

    #[test]
    fn short_segments_are_not_the_end_of_long_ones() {
        for recipe in Recipe::all() {
            let short = (joined(&recipe, 100), vec![next(&recipe, 500).unfinished(&payload(300))]);
            let writes = coalesce(&[whole(recipe.packet(&payload(500))), short]);
            assert_eq!(writes.len(), 2);
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "minutes; smaller ones do the same")]
    fn superpackets_of_udp_are_bounded_together() {
        let recipe = Recipe::new(true, false);
        for (more, expected) in [(4, 1), (5, 2)] {
            let batch = [60, more]
                .map(|count| (Kind::Udp(100), vec![recipe.unfinished(&payload(count * 100))]));
            assert_eq!(coalesce(&batch).len(), expected);
        }
    }

    #[test]
    fn a_batch_knows_nothing_of_the_one_before() {
        for recipe in Recipe::all() {
            let parts = neighbours(&recipe, &[100; 9]);
            let mut coalescer = Coalescer::new(true, 8);
            for parts in parts.chunks(3) {
                let batch: Vec<_> =
                    parts.iter().map(|(recipe, part)| whole(recipe.packet(part))).collect();
                let writes = coalesce_with(&mut coalescer, &batch);
                assert_eq!((writes.len(), writes[0].1), (1, 3));
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "minutes; smaller ones do the same")]
    fn flows_are_kept_apart_and_each_in_order() {
        let flows: Vec<Recipe> = (0..6_u16)
            .flat_map(|n| Recipe::all().map(|recipe| Recipe { ports: [n, 9], ..recipe }))
            .collect();
        for count in [1, FLOWS, FLOWS + 1, flows.len()] {
            let mut flows = flows[..count].to_vec();
            let mut batch = Vec::new();
            for _ in 0..4 {
                for flow in &mut flows {
                    batch.push(whole(flow.packet(&payload(100))));
                    *flow = next(flow, 100);
                }
            }
            let writes = coalesce(&batch).len();
            let expected = if count <= FLOWS { count } else { batch.len() };
            assert_eq!(writes, expected, "no more than {FLOWS} at a time");
        }
    }

    #[test]
    fn nothing_overtakes_what_could_be_of_its_flow() {
        for recipe in Recipe::all() {
            let parts = neighbours(&recipe, &[100; 4]);
            let [a, b, c, d] = [0, 1, 2, 3].map(|n: usize| parts[n].0.packet(&parts[n].1));
            let mut fragment = c.clone();
            if recipe.is_v6 {
                fragment[6] = 44;
            } else {
                fragment[6] = 0x20;
            }
            let batch = [a, b, fragment.clone(), c, d].map(whole);
            let writes = coalesce(&batch);
            assert_eq!(writes.iter().map(|(_, pieces, _)| *pieces).collect::<Vec<_>>(), [2, 1, 2]);
            assert_eq!(writes[1].2, fragment);
        }
    }

    #[test]
    fn a_device_that_takes_no_udp_superpackets_gets_none() {
        for recipe in Recipe::all() {
            let parts = neighbours(&recipe, &[100; 4]);
            let batch: Vec<_> =
                parts.iter().map(|(recipe, part)| whole(recipe.packet(part))).collect();
            let mut coalescer = Coalescer::new(false, 8);
            for _ in 0..2 {
                let writes = coalesce_with(&mut coalescer, &batch);
                assert_eq!(writes.len(), if recipe.is_tcp { 1 } else { 4 });
            }
        }
    }

    /// IPv4 ids of packets that are never fragmented mean nothing, and are not given back.
    fn without_id(mut packet: Vec<u8>) -> Vec<u8> {
        if packet[0] >> 4 == 4 && packet[6] & 0x40 != 0 && is_right(&packet) {
            packet[4..6].fill(0);
            finish(&mut packet);
        }
        packet
    }

    /// Which flow a packet is of: protocol and ports.
    fn flow_of(packet: &[u8]) -> (u8, u8, Vec<u8>) {
        if packet[0] >> 4 == 6 {
            (6, packet[6], packet[40..44].to_vec())
        } else {
            let transport = usize::from(packet[0] & 0xf) * 4;
            (4, packet[9], packet[transport..transport + 4].to_vec())
        }
    }

    /// How a packet differs from what would follow in its flow: mostly not.
    #[derive(Debug, Clone, Copy)]
    enum Oddity {
        Not,
        Flags(u8),
        Gap,
        Ack,
        Id,
        Class,
        Fragmentable,
        Spoiled(usize),
    }

    fn oddity() -> impl Strategy<Value = Oddity> {
        prop_oneof![
            30 => Just(Oddity::Not),
            3 => prop::sample::select(vec![1_u8, 2, 4, 8, 8, 8, 0x20, 0x40, 0x80]).prop_map(Oddity::Flags),
            1 => Just(Oddity::Gap),
            1 => Just(Oddity::Ack),
            1 => Just(Oddity::Id),
            1 => Just(Oddity::Class),
            1 => Just(Oddity::Fragmentable),
            1 => any::<usize>().prop_map(Oddity::Spoiled),
        ]
    }

    proptest! {
        #[test]
        fn segmenting_what_was_joined_gives_back_every_flow(
            packets in prop::collection::vec(
                (0..4_usize, 0..3_u16, prop::sample::select(vec![100_usize, 100, 100, 100, 40, 0, 101]), oddity(), 0..4_u8),
                1..if cfg!(miri) { 8 } else { 120 },
            ),
        ) {
            let mut flows: Vec<Recipe> = (0..3)
                .flat_map(|n| Recipe::all().map(|recipe| Recipe { ports: [n, 9], ..recipe }))
                .collect();
            let (mut batch, mut expected) = (Vec::new(), Vec::new());
            for (which, n, len, oddity, kind) in packets {
                let flow = &mut flows[usize::from(n) * 4 + which];
                let mut recipe = flow.clone();
                // Some superpackets, some in pieces.
                let len = if kind == 3 { len * 3 } else { len };
                let mut spoiled = None;
                match oddity {
                    Oddity::Not => {}
                    Oddity::Flags(flags) => recipe.flags |= flags,
                    Oddity::Gap => recipe.sequence = recipe.sequence.wrapping_add(50),
                    Oddity::Ack => recipe.ack += 1,
                    Oddity::Id => recipe.id = recipe.id.wrapping_sub(1),
                    Oddity::Class => recipe.class ^= 2,
                    Oddity::Fragmentable => recipe.may_fragment = true,
                    Oddity::Spoiled(at) => spoiled = Some(at),
                }
                let payload = payload(len);
                let segment = len.div_ceil(3).max(1) as u16;
                *flow = next(&recipe, len);
                flow.flags = ACK;
                let (kind, packet) = match kind {
                    0 | 1 => (Kind::Whole, recipe.packet(&payload)),
                    2 => (Kind::Unfinished, recipe.unfinished(&payload)),
                    _ => (joined(&recipe, segment), recipe.unfinished(&payload)),
                };
                let mut pieces = vec![packet];
                if kind != Kind::Whole && len > 50 {
                    let rest = pieces[0].split_off(recipe.headers() + len % 7);
                    pieces.push(rest);
                }
                if let (Some(at), Kind::Whole) = (spoiled, kind) {
                    let place = recipe.headers() + at % len.max(1);
                    if let Some(byte) = pieces[0].get_mut(place) { *byte ^= 0x10; }
                }
                if joined(&recipe, segment) == kind {
                    flow.id = recipe.id.wrapping_add(len.div_ceil(segment.into()).max(1) as u16);
                }
                segment_into(kind, &pieces.concat(), &mut expected);
                batch.push((kind, pieces));
            }
            let writes = coalesce(&batch);
            prop_assert!(writes.len() <= batch.len());
            let made = packets_of(&writes);
            prop_assert_eq!(made.len(), expected.len());
            for flow in made.iter().map(|packet| flow_of(packet)).collect::<std::collections::BTreeSet<_>>() {
                let of = |packets: &[Vec<u8>]| {
                    let own = packets.iter().filter(|packet| flow_of(packet) == flow);
                    own.cloned().map(without_id).collect::<Vec<_>>()
                };
                prop_assert_eq!(of(&made), of(&expected));
            }
        }

        #[test]
        fn hostile_bytes_never_panic(
            mut packets in prop::collection::vec(
                (prop::collection::vec(any::<u8>(), 0..100), prop::sample::select(vec![0x45_u8, 0x46, 0x60, 7]),
                    prop::sample::select(vec![6_u8, 17, 1]), (0..4_u8, any::<u16>()), 0..100_usize),
                0..10,
            ),
        ) {
            let mut batch = Vec::new();
            for (bytes, first, protocol, kind, cut) in &mut packets {
                if let Some(byte) = bytes.first_mut() { *byte = *first; }
                for place in [6, 9] {
                    if let Some(byte) = bytes.get_mut(place) { *byte = *protocol; }
                }
                let kind = match kind {
                    (0, _) => Kind::Whole,
                    (1, _) => Kind::Unfinished,
                    (2, segment) => Kind::Tcp(*segment),
                    (_, segment) => Kind::Udp(*segment),
                };
                let (front, back) = bytes.split_at((*cut).min(bytes.len()));
                batch.push((kind, vec![front.to_vec(), back.to_vec()]));
            }
            let writes = coalesce(&batch);
            prop_assert!(writes.len() <= batch.len());
        }
    }

    fn segment_into(kind: Kind, packet: &[u8], all: &mut Vec<Vec<u8>>) {
        segment(kind, &mut packet.to_vec(), |packet| all.push(packet.to_vec())).unwrap();
    }
}
