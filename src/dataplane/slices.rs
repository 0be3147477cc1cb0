//! Slices: a superpacket is cut into texts that each fit a datagram, and joined again on the other side.
//!
//! Theory of operation. The sender cuts a packet of `len` bytes into slices of equal length ([`Cut`]) and seals each under the next
//! counter. The receiver opens the datagrams of a batch in place, where they lie in its arena, and tells a [`Joiner`] their places
//! in the order they came: ranges, not copies. Slices that follow each other make a *run*; a run that begins with slice 0 is the
//! front of the superpacket, headers and all, and goes to the device as one write of many pieces, the moment it is complete. At the
//! end of the batch everything that can be delivered is delivered: nothing waits for what may be lost.
//!
//! What comes after a gap has its place, too: the headers of recent superpackets that were not whole are remembered
//! ([`REMEMBERED`]), so a later run of a TCP superpacket is delivered behind a copy of them with its own sequence number, and one of
//! a UDP superpacket from its next whole datagram on. Only a run that overtakes slice 0 itself is copied, for as long as one more
//! batch. Nothing is allocated but that copy.

use std::{collections::VecDeque, ops::Range};

use crate::{
    node::output::PeerSlot,
    wire::{
        channel::{MAX_SLICES, Place},
        superpacket::Kind,
    },
};

/// Superpackets whose headers are remembered for slices that come late: what a path can hold in flight at ten gigabits and
/// two milliseconds.
pub const REMEMBERED: usize = 64;

/// Bytes of runs that overtook their slice 0, over all; the oldest go first.
pub const MAX_WAITING: usize = 256 * 1024;

/// Superpackets under way in one batch: those of a few senders whose datagrams arrive interleaved.
const MAX_OPEN: usize = 4;

/// The longest headers: IPv4 with options or IPv6, and a full TCP header.
const MAX_HEADERS: usize = 120;

const TCP: u8 = 6;

/// How a packet is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    len: usize,
    slice: usize,
    count: u16,
}

impl Cut {
    /// For a packet of `len` bytes and slices of at most `slice` bytes. `None`: more than [`MAX_SLICES`], or nothing to cut.
    pub fn new(len: usize, slice: usize) -> Option<Self> {
        let count = len.div_ceil(slice.max(1));
        let count = u16::try_from(count).ok().filter(|count| (1..=MAX_SLICES).contains(count))?;
        Some(Self { len, slice, count })
    }

    /// How many slices: so many counters are reserved.
    pub fn count(&self) -> u16 {
        self.count
    }

    /// The bytes of slice `number`.
    pub fn range(&self, number: u16) -> Range<usize> {
        let start = usize::from(number) * self.slice;
        start.min(self.len)..(start + self.slice).min(self.len)
    }
}

/// Which superpacket: whose, under which keys, and the counter of its slice 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Base {
    slot: PeerSlot,
    receiver: u32,
    counter: u64,
}

/// An opened message of a superpacket: who sent it, and where its text lies in the arena.
#[derive(Debug, Clone)]
pub struct Slice {
    /// Whose.
    pub slot: PeerSlot,
    /// The receiver index it came under: names the keys.
    pub receiver: u32,
    /// Of its message.
    pub counter: u64,
    /// Where it belongs.
    pub place: Place,
    /// The bytes behind the place.
    pub text: Range<usize>,
}

/// IP and transport header, in place.
#[derive(Debug, Clone, Copy)]
struct Headers {
    bytes: [u8; MAX_HEADERS],
    len: usize,
    /// Where the transport header begins.
    transport: usize,
}

/// What is remembered of a superpacket.
#[derive(Debug, Clone, Copy)]
struct Known {
    base: Base,
    kind: Kind,
    count: u16,
    /// Length of all slices but the last.
    slice: usize,
    headers: Headers,
}

/// A run that overtook its slice 0.
#[derive(Debug)]
struct Waiting {
    base: Base,
    kind: Kind,
    count: u16,
    first: u16,
    bytes: Vec<u8>,
    batches: u8,
}

/// Slices that follow each other, under way in this batch. Pieces lie in the arena: as long as the batch.
#[derive(Debug)]
struct Run {
    base: Base,
    kind: Kind,
    count: u16,
    first: u16,
    pieces: Vec<Range<usize>>,
}

/// A packet to deliver: its headers, then the pieces of the rest. Borrowed: during the call.
#[derive(Debug)]
pub struct Joined<'a> {
    /// Whose.
    pub slot: PeerSlot,
    /// What it is; the virtio header is rebuilt from it and the packet.
    pub kind: Kind,
    /// IP header, and the transport header where the kind has one: a copy, to be written to.
    pub headers: &'a mut [u8],
    /// What follows.
    pub pieces: &'a [&'a [u8]],
    /// Length of all together.
    pub len: usize,
}

/// Joins slices.
#[derive(Debug)]
pub struct Joiner {
    open: Vec<Run>,
    spare: Vec<Vec<Range<usize>>>,
    known: VecDeque<Known>,
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
}

impl Default for Joiner {
    fn default() -> Self {
        Self {
            open: Vec::with_capacity(MAX_OPEN),
            spare: (0..=MAX_OPEN).map(|_| Vec::with_capacity(MAX_SLICES.into())).collect(),
            known: VecDeque::with_capacity(REMEMBERED),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
        }
    }
}

impl Joiner {
    /// Takes an opened slice; delivers what is complete with it. Slices that disagree with what is known of their superpacket are
    /// dropped: `false`.
    pub fn push(
        &mut self,
        arena: &[u8],
        slice: Slice,
        deliver: &mut impl FnMut(Joined<'_>),
    ) -> bool {
        let Slice { slot, receiver, counter, place, text } = slice;
        let Some(counter) = counter.checked_sub(place.number.into()) else { return false };
        let base = Base { slot, receiver, counter };
        let same_sender = |run: &Run| (run.base.slot, run.base.receiver) == (slot, receiver);
        if let Some(at) = self.open.iter().position(same_sender) {
            let run = &mut self.open[at];
            let agrees = run.kind == place.kind && run.count == place.count;
            if run.base == base && !agrees {
                return false;
            }
            let next = usize::from(run.first) + run.pieces.len();
            // All slices but the last are equally long: one that is not tells a wrong place.
            let fits = run.pieces[0].len() >= text.len()
                && run.pieces.last().is_some_and(|last| last.len() == run.pieces[0].len());
            if run.base == base && usize::from(place.number) == next && fits {
                run.pieces.push(text);
                if run.first == 0 && run.pieces.len() == usize::from(run.count) {
                    self.close(at, arena, deliver);
                }
                return true;
            }
            // Its sender has gone on to something else.
            self.close(at, arena, deliver);
        }
        let known = self.known(base);
        if known.is_some_and(|known| known.kind != place.kind || known.count != place.count) {
            return false;
        }
        if self.open.len() == MAX_OPEN {
            self.close(0, arena, deliver);
        }
        let Place { number, count, kind } = place;
        let mut pieces = self.spare.pop().unwrap_or_default();
        pieces.push(text);
        self.open.push(Run { base, kind, count, first: number, pieces });
        true
    }

    /// The sender in this place has sent something else: what it has under way is delivered before that.
    pub fn pass(&mut self, arena: &[u8], slot: PeerSlot, deliver: &mut impl FnMut(Joined<'_>)) {
        while let Some(at) = self.open.iter().position(|run| run.base.slot == slot) {
            self.close(at, arena, deliver);
        }
    }

    /// Ends the batch: delivers everything that can be. What overtook its headers waits for one more.
    pub fn finish(&mut self, arena: &[u8], deliver: &mut impl FnMut(Joined<'_>)) {
        while !self.open.is_empty() {
            self.close(0, arena, deliver);
        }
        if self.waiting.is_empty() {
            return;
        }
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.retain_mut(|wait| {
            let known = self.known(wait.base);
            let is_same = known.is_some_and(|k| k.kind == wait.kind && k.count == wait.count);
            if let Some(known) = known.filter(|_| is_same) {
                let mut pieces = Pieces::default();
                pieces.push(&wait.bytes);
                deliver_part(known, wait.first, pieces, deliver);
            }
            wait.batches += 1;
            let stays = known.is_none() && wait.batches <= 2;
            if !stays {
                self.waiting_bytes -= wait.bytes.len();
            }
            stays
        });
        self.waiting = waiting;
    }

    /// Whether something waits for its headers: the next batch should not be long in coming.
    pub fn is_idle(&self) -> bool {
        self.open.is_empty() && self.waiting.is_empty()
    }

    fn known(&self, base: Base) -> Option<&Known> {
        // The newest are looked for most.
        self.known.iter().rev().find(|known| known.base == base)
    }

    /// Delivers a run as far as it goes.
    fn close(&mut self, at: usize, arena: &[u8], deliver: &mut impl FnMut(Joined<'_>)) {
        let mut run = self.open.remove(at);
        self.deliver_run(&run, arena, deliver);
        run.pieces.clear();
        self.spare.push(run.pieces);
    }

    fn deliver_run(&mut self, run: &Run, arena: &[u8], deliver: &mut impl FnMut(Joined<'_>)) {
        let mut pieces = Pieces::default();
        run.pieces.iter().for_each(|piece| pieces.push(&arena[piece.clone()]));
        if run.first != 0 {
            match self.known(run.base) {
                Some(known) => deliver_part(known, run.first, pieces, deliver),
                None => self.wait(run, &pieces),
            }
            return;
        }
        let Some(mut headers) = headers_of(run.kind, pieces.list()[0]) else { return };
        if run.pieces.len() == usize::from(run.count) {
            let len = pieces.len();
            pieces.skip_front(headers.len);
            deliver(Joined {
                slot: run.base.slot,
                kind: run.kind,
                headers: &mut headers.bytes[..headers.len],
                pieces: pieces.list(),
                len,
            });
            return;
        }
        // Something is missing at the end: a front, and perhaps more of it later.
        if !can_be_parted(run.kind, &headers) {
            return;
        }
        let slice = run.pieces[0].len();
        let known = Known { base: run.base, kind: run.kind, count: run.count, slice, headers };
        if self.known(run.base).is_none() {
            if self.known.len() == REMEMBERED {
                self.known.pop_front();
            }
            self.known.push_back(known);
        }
        deliver_part(&known, 0, pieces, deliver);
    }

    fn wait(&mut self, run: &Run, pieces: &Pieces<'_>) {
        let len = pieces.len();
        while self.waiting_bytes + len > MAX_WAITING {
            let Some(oldest) = self.waiting.pop_front() else { return };
            self.waiting_bytes -= oldest.bytes.len();
        }
        self.waiting_bytes += len;
        let Run { base, kind, count, first, .. } = *run;
        let bytes = pieces.list().concat();
        self.waiting.push_back(Waiting { base, kind, count, first, bytes, batches: 0 });
    }
}

/// The headers of a superpacket, from its first slice. `None`: it does not hold them.
fn headers_of(kind: Kind, first: &[u8]) -> Option<Headers> {
    let (transport, protocol) = match first.first()? >> 4 {
        4 => (usize::from(first[0] & 0xf) * 4, *first.get(9)?),
        6 => (40, *first.get(6)?),
        _ => return None,
    };
    let behind = match (kind, protocol) {
        (Kind::Whole, _) => 0,
        (Kind::Tcp(_) | Kind::Unfinished, TCP) => usize::from(first.get(transport + 12)? >> 4) * 4,
        (Kind::Tcp(_) | Kind::Udp(_) | Kind::Unfinished, _) => 8,
    };
    let len = transport + behind;
    let is_sound = transport >= 20 && (protocol != TCP || behind == 0 || behind >= 20);
    let found = first.get(..len).filter(|_| is_sound && len <= MAX_HEADERS)?;
    let mut bytes = [0; MAX_HEADERS];
    bytes[..len].copy_from_slice(found);
    Some(Headers { bytes, len, transport })
}

/// Whether a part of it is worth anything: TCP is a stream of bytes, a UDP superpacket one of datagrams.
fn can_be_parted(kind: Kind, headers: &Headers) -> bool {
    let is_v6 = headers.bytes[0] >> 4 == 6;
    let protocol = headers.bytes[if is_v6 { 6 } else { 9 }];
    match kind {
        Kind::Tcp(_) | Kind::Unfinished => protocol == TCP,
        Kind::Udp(_) => true,
        Kind::Whole => false,
    }
}

/// Delivers a part of a superpacket behind a copy of its headers, made to say what the part is.
fn deliver_part(
    known: &Known,
    first: u16,
    mut pieces: Pieces<'_>,
    deliver: &mut impl FnMut(Joined<'_>),
) {
    let mut headers = known.headers;
    let begin = usize::from(first) * known.slice;
    // A waiting run is one piece of many slices: its length tells where it ends.
    let reaches_end = begin + pieces.len() > usize::from(known.count - 1) * known.slice;
    let skip = headers.len.saturating_sub(begin);
    pieces.skip_front(skip);
    let Some(offset) = (begin + skip).checked_sub(headers.len) else { return };
    let at = headers.transport;
    match known.kind {
        Kind::Tcp(_) | Kind::Unfinished => {
            let sequence: [u8; 4] = headers.bytes[at + 4..at + 8].try_into().expect("four bytes");
            let sequence = u32::from_be_bytes(sequence).wrapping_add(offset as u32);
            headers.bytes[at + 4..at + 8].copy_from_slice(&sequence.to_be_bytes());
            // As when a kernel segments: CWR is said by the first segment, FIN and PSH by the last.
            if offset > 0 {
                headers.bytes[at + 13] &= !0x80;
            }
            if !reaches_end {
                headers.bytes[at + 13] &= !0x09;
            }
        }
        Kind::Udp(segment) => {
            // Only whole datagrams: a part of one would be taken for a short one.
            let segment = usize::from(segment);
            pieces.skip_front((segment - offset % segment) % segment);
            if !reaches_end {
                pieces.keep_front(pieces.len() - pieces.len() % segment);
            }
        }
        Kind::Whole => return,
    }
    let len = pieces.len();
    if len > 0 {
        deliver(Joined {
            slot: known.base.slot,
            kind: known.kind,
            headers: &mut headers.bytes[..headers.len],
            pieces: pieces.list(),
            len: headers.len + len,
        });
    }
}

/// A list of pieces, in place.
#[derive(Debug)]
struct Pieces<'a> {
    list: [&'a [u8]; MAX_SLICES as usize],
    range: Range<usize>,
}

impl Default for Pieces<'_> {
    fn default() -> Self {
        Self { list: [&[]; MAX_SLICES as usize], range: 0..0 }
    }
}

impl<'a> Pieces<'a> {
    fn push(&mut self, piece: &'a [u8]) {
        self.list[self.range.end] = piece;
        self.range.end += 1;
    }

    fn list(&self) -> &[&'a [u8]] {
        &self.list[self.range.clone()]
    }

    fn len(&self) -> usize {
        self.list().iter().map(|piece| piece.len()).sum()
    }

    /// Drops so many bytes at the front.
    fn skip_front(&mut self, mut skip: usize) {
        while skip > 0 && !self.range.is_empty() {
            let first = &mut self.list[self.range.start];
            let part = skip.min(first.len());
            *first = &first[part..];
            skip -= part;
            if first.is_empty() {
                self.range.start += 1;
            }
        }
    }

    /// Drops everything behind so many bytes.
    fn keep_front(&mut self, len: usize) {
        let mut left = len;
        for at in self.range.clone() {
            let piece = &mut self.list[at];
            *piece = &piece[..left.min(piece.len())];
            left -= piece.len();
            if left == 0 {
                self.range.end = at + usize::from(!piece.is_empty());
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::wire::superpacket::rebuild;

    const TCP_HEADERS: usize = 40;
    const UDP_HEADERS: usize = 28;

    fn superpacket(kind: Kind, payload: usize, sequence: u32) -> Vec<u8> {
        let mut packet = vec![0; 20];
        packet[0] = 0x45;
        packet[9] = if matches!(kind, Kind::Tcp(_)) { 6 } else { 17 };
        packet[12..20].copy_from_slice(&[10, 99, 0, 1, 10, 99, 0, 2]);
        let mut header = vec![0; if matches!(kind, Kind::Tcp(_)) { 20 } else { 8 }];
        if matches!(kind, Kind::Tcp(_)) {
            header[4..8].copy_from_slice(&sequence.to_be_bytes());
            header[12] = 0x50;
        }
        packet.extend(header);
        packet.extend((0..payload).map(|n| (n * 7 + n / 251) as u8));
        packet
    }

    struct Sent {
        counter: u64,
        place: Place,
        bytes: Vec<u8>,
    }

    fn cut(packet: &[u8], kind: Kind, slice: usize, base: u64) -> Vec<Sent> {
        let cut = Cut::new(packet.len(), slice).expect("cuttable");
        (0..cut.count())
            .map(|number| Sent {
                counter: base + u64::from(number),
                place: Place { number, count: cut.count(), kind },
                bytes: packet[cut.range(number)].to_vec(),
            })
            .collect()
    }

    /// What a TCP receiver gets of a delivered packet: sequence numbers with their bytes.
    fn tcp_bytes(packet: &[u8]) -> Vec<(u32, u8)> {
        let sequence = u32::from_be_bytes(packet[24..28].try_into().expect("four"));
        let payload = packet[TCP_HEADERS..].iter();
        payload.zip(0u32..).map(|(byte, n)| (sequence.wrapping_add(n), *byte)).collect()
    }

    /// Puts what was sent into an arena, as the kernel would.
    fn arena(batch: &[&Sent]) -> (Vec<u8>, Vec<Slice>) {
        let mut arena = Vec::new();
        let slices = batch.iter().map(|sent| {
            let text = arena.len()..arena.len() + sent.bytes.len();
            arena.extend_from_slice(&sent.bytes);
            let Sent { counter, place, .. } = **sent;
            Slice { slot: PeerSlot(1), receiver: 7, counter, place, text }
        });
        let slices = slices.collect();
        (arena, slices)
    }

    fn deliver(joiner: &mut Joiner, batch: &[&Sent]) -> Vec<(Kind, Vec<u8>)> {
        let mut out = Vec::new();
        let mut take = |joined: Joined<'_>| {
            let packet = [&[&*joined.headers], joined.pieces].concat().concat();
            assert_eq!(packet.len(), joined.len);
            out.push((joined.kind, packet));
        };
        let (arena, slices) = arena(batch);
        for slice in slices {
            joiner.push(&arena, slice, &mut take);
        }
        joiner.finish(&arena, &mut take);
        assert!(joiner.open.is_empty() && joiner.spare.len() > MAX_OPEN);
        out
    }

    #[test]
    fn all_slices_in_order_are_the_superpacket_in_one_piece() {
        let kind = Kind::Tcp(1340);
        let packet = superpacket(kind, 60_000, 9);
        let sent = cut(&packet, kind, 1400, 100);
        let all: Vec<&Sent> = sent.iter().collect();
        assert_eq!(deliver(&mut Joiner::default(), &all), [(kind, packet)]);
    }

    #[test]
    fn a_lost_slice_costs_itself_alone() {
        let kind = Kind::Tcp(1340);
        let packet = superpacket(kind, 20_000, u32::MAX - 3000);
        let sent = cut(&packet, kind, 1400, 100);
        let most: Vec<&Sent> = sent.iter().filter(|sent| sent.place.number != 5).collect();
        let delivered = deliver(&mut Joiner::default(), &most);
        assert_eq!(delivered.len(), 2);
        let got: BTreeSet<(u32, u8)> = delivered.iter().flat_map(|(_, p)| tcp_bytes(p)).collect();
        let whole: BTreeSet<(u32, u8)> = tcp_bytes(&packet).into_iter().collect();
        assert!(got.is_subset(&whole));
        assert_eq!(whole.len() - got.len(), 1400);
    }

    #[test]
    fn fin_and_psh_come_with_the_last_byte_alone() {
        let kind = Kind::Tcp(1340);
        let mut packet = superpacket(kind, 8000, 9);
        packet[33] = 0x80 | 0x10 | 0x08 | 0x01;
        let sent = cut(&packet, kind, 1400, 100);
        let most: Vec<&Sent> = sent.iter().filter(|sent| sent.place.number != 2).collect();
        let delivered = deliver(&mut Joiner::default(), &most);
        let flags: Vec<u8> = delivered.iter().map(|(_, packet)| packet[33]).collect();
        assert_eq!(flags, [0x80 | 0x10, 0x10 | 0x08 | 0x01]);
    }

    #[test]
    fn a_lost_slice_of_udp_costs_the_datagrams_it_touches() {
        let kind = Kind::Udp(1000);
        let packet = superpacket(kind, 20_000, 0);
        let sent = cut(&packet, kind, 1400, 7);
        let most: Vec<&Sent> = sent.iter().filter(|sent| sent.place.number != 3).collect();
        let delivered = deliver(&mut Joiner::default(), &most);
        let datagrams: Vec<Vec<u8>> = delivered
            .iter()
            .flat_map(|(_, p)| p[UDP_HEADERS..].chunks(1000).map(<[u8]>::to_vec))
            .collect();
        let originals: Vec<Vec<u8>> =
            packet[UDP_HEADERS..].chunks(1000).map(<[u8]>::to_vec).collect();
        assert!(datagrams.iter().all(|datagram| originals.contains(datagram)), "none cut short");
        assert_eq!(datagrams.len(), 20 - 2, "bytes 4172 to 5572 touch two datagrams");
    }

    #[test]
    fn a_run_that_overtakes_its_front_waits_for_it_and_not_for_ever() {
        let kind = Kind::Tcp(1340);
        let packet = superpacket(kind, 8000, 9);
        let sent = cut(&packet, kind, 1400, 100);
        let mut joiner = Joiner::default();
        let late: Vec<&Sent> = sent[2..].iter().collect();
        assert_eq!(deliver(&mut joiner, &late), []);
        let front: Vec<&Sent> = sent[..2].iter().collect();
        let delivered = deliver(&mut joiner, &front);
        let got: BTreeSet<(u32, u8)> = delivered.iter().flat_map(|(_, p)| tcp_bytes(p)).collect();
        assert_eq!(got, tcp_bytes(&packet).into_iter().collect());
        assert_eq!(joiner.waiting_bytes, 0);
        assert_eq!(
            deliver(&mut joiner, &cut(&packet, kind, 1400, 900)[3..].iter().collect::<Vec<_>>()),
            []
        );
        (0..3).for_each(|_| assert_eq!(deliver(&mut joiner, &[]), []));
        assert_eq!((joiner.waiting.len(), joiner.waiting_bytes), (0, 0));
    }

    #[test]
    fn slices_that_disagree_are_dropped() {
        let kind = Kind::Tcp(1340);
        let packet = superpacket(kind, 8000, 9);
        let sent = cut(&packet, kind, 1400, 100);
        let mut joiner = Joiner::default();
        let (arena, slices) = arena(&[&sent[0], &sent[1]]);
        let none = &mut |_: Joined<'_>| panic!("nothing is complete");
        assert!(joiner.push(&arena, slices[0].clone(), none));
        let with = |place, counter| Slice { place, counter, ..slices[1].clone() };
        let other_count = Place { count: 9, ..sent[1].place };
        assert!(!joiner.push(&arena, with(other_count, 101), none));
        let other_kind = Place { kind: Kind::Tcp(1200), ..sent[1].place };
        assert!(!joiner.push(&arena, with(other_kind, 101), none));
        assert!(!joiner.push(&arena, with(sent[1].place, 0), none), "a counter below its number");
    }

    #[test]
    fn senders_that_arrive_interleaved_are_kept_apart() {
        let kind = Kind::Tcp(1340);
        let packets: Vec<Vec<u8>> = (0..6).map(|n| superpacket(kind, 8000, n * 9000)).collect();
        let sent: Vec<Vec<Sent>> = packets.iter().map(|p| cut(p, kind, 1400, 100)).collect();
        for senders in [2, MAX_OPEN, 6] {
            let mut joiner = Joiner::default();
            let mut out = Vec::new();
            let mut take = |joined: Joined<'_>| {
                out.push((
                    joined.slot.0 as usize,
                    [&[&*joined.headers], joined.pieces].concat().concat(),
                ));
            };
            let all: Vec<&Sent> =
                (0..6).flat_map(|n| sent[..senders].iter().map(move |s| &s[n])).collect();
            let (arena, slices) = arena(&all);
            for (n, slice) in slices.into_iter().enumerate() {
                joiner.push(
                    &arena,
                    Slice { slot: PeerSlot((n % senders) as u32), ..slice },
                    &mut take,
                );
            }
            joiner.finish(&arena, &mut take);
            for (n, packet) in packets[..senders].iter().enumerate() {
                let whole: BTreeSet<(u32, u8)> = tcp_bytes(packet).into_iter().collect();
                let parts = out.iter().filter(|(slot, _)| *slot == n);
                let got: BTreeSet<(u32, u8)> =
                    parts.clone().flat_map(|(_, p)| tcp_bytes(p)).collect();
                assert_eq!(got, whole);
                assert!(senders > MAX_OPEN || parts.count() == 1);
            }
        }
    }

    #[test]
    fn a_long_packet_that_is_no_superpacket_crosses_whole_or_not_at_all() {
        for kind in [Kind::Whole, Kind::Unfinished] {
            let packet = superpacket(Kind::Udp(0), 4080, 0);
            let sent = cut(&packet, kind, 1400, 5);
            let all: Vec<&Sent> = sent.iter().collect();
            assert_eq!(deliver(&mut Joiner::default(), &all), [(kind, packet)]);
            assert_eq!(deliver(&mut Joiner::default(), &all[..2]), []);
        }
        // TCP without segmentation offload over a large MTU: a stream all the same.
        let packet = superpacket(Kind::Tcp(0), 8000, 5);
        let sent = cut(&packet, Kind::Unfinished, 1400, 5);
        let most: Vec<&Sent> = sent.iter().filter(|sent| sent.place.number != 2).collect();
        let delivered = deliver(&mut Joiner::default(), &most);
        assert_eq!(
            delivered.iter().map(|(_, p)| p.len() - TCP_HEADERS).sum::<usize>(),
            8000 - 1400
        );
    }

    #[test]
    fn what_is_held_is_bounded() {
        let kind = Kind::Tcp(1340);
        let packet = superpacket(kind, 60_000, 9);
        let mut joiner = Joiner::default();
        for n in 0..200 {
            let sent = cut(&packet, kind, 1400, n * 100);
            let skip = if n % 2 == 0 { 1 } else { 0 };
            let some: Vec<&Sent> = sent.iter().skip(skip).collect();
            deliver(&mut joiner, &some);
            assert!(joiner.waiting_bytes <= MAX_WAITING && joiner.known.len() <= REMEMBERED);
        }
    }

    proptest! {
        #[test]
        fn loss_order_and_duplication_deliver_nothing_wrong(
            payload in 1usize..20_000,
            slice in 200usize..1500,
            fates in proptest::collection::vec((0u8..10, 0usize..100), 64),
            cuts in 1usize..4,
        ) {
            let kind = Kind::Tcp(536);
            let packet = superpacket(kind, payload, 77);
            let Some(_) = Cut::new(packet.len(), slice) else { return Ok(()) };
            let sent = cut(&packet, kind, slice, 1000);
            // Fate 0: lost; 1: twice; 2: late.
            let mut order: Vec<(usize, &Sent)> = Vec::new();
            for (n, one) in sent.iter().enumerate() {
                let (fate, by) = fates[n];
                match fate {
                    0 => {}
                    1 => order.extend([(n * 100, one), (n * 100 + by * 7, one)]),
                    2 => order.push((n * 100 + by * 40, one)),
                    _ => order.push((n * 100, one)),
                }
            }
            order.sort_by_key(|(at, _)| *at);
            let arrived: Vec<&Sent> = order.into_iter().map(|(_, one)| one).collect();
            let mut joiner = Joiner::default();
            let mut got = BTreeSet::new();
            let size = arrived.len().div_ceil(cuts).max(1);
            for batch in arrived.chunks(size) {
                for (kind, mut packet) in deliver(&mut joiner, batch) {
                    if packet.len() > TCP_HEADERS {
                        prop_assert!(rebuild(kind, &mut packet).is_ok());
                    }
                    got.extend(tcp_bytes(&packet));
                }
            }
            let whole: BTreeSet<(u32, u8)> = tcp_bytes(&packet).into_iter().collect();
            prop_assert!(got.is_subset(&whole), "every byte at its own place");
            if arrived.iter().any(|one| one.place.number == 0) && cuts == 1 {
                let arrived: usize = arrived
                    .iter()
                    .map(|one| (one.place.number, one.bytes.len()))
                    .collect::<BTreeSet<_>>()
                    .into_iter()
                    .map(|(_, len)| len)
                    .sum();
                prop_assert_eq!(got.len(), arrived - TCP_HEADERS, "everything that came is delivered");
            }
        }
    }
}
