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
//! a UDP superpacket from its next whole datagram on.
//!
//! Some runs are of no use to anybody before others come: those of a packet that is none of many, or of one datagram, and those that
//! overtake slice 0. They are *held*, as copies ([`MAX_HELD`]), since batches may be as short as one slice: a link that needs
//! longer for a slice than this machine for a turn brings them one by one. What is held is never waited for.

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

/// Runs that are held for others to come, over all; the oldest go first. No peer has more than half of the room.
pub const MAX_HELD: usize = 32;

/// Bytes of them.
pub const MAX_HELD_BYTES: usize = 256 * 1024;

/// The longest packet that can come of runs.
const MAX_PACKET: usize = 65_535;

/// Buffers that are kept for what will be held.
const MAX_SPARE: usize = 4;

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

/// Slices that follow each other.
#[derive(Debug, Clone, Copy)]
struct Part {
    base: Base,
    kind: Kind,
    count: u16,
    /// Length of all slices but the last; 0: only the last is here.
    slice: usize,
    /// The first of them, and how many of its bytes have been delivered.
    first: u16,
    skip: usize,
    /// The one behind the last of them.
    next: u16,
}

impl Part {
    /// The packet's beginning.
    fn is_front(&self) -> bool {
        self.first == 0 && self.skip == 0
    }

    /// All of the packet.
    fn is_whole(&self) -> bool {
        self.is_front() && self.next == self.count
    }

    /// Its last `left` bytes of `len`. `None`: slices that contradict each other.
    fn tail(&self, len: usize, left: usize) -> Option<Self> {
        if left == len {
            return Some(*self);
        }
        let begin = usize::from(self.first) * self.slice + self.skip + len - left;
        let first = u16::try_from(begin.checked_div(self.slice)?).ok()?;
        Some(Self { first, skip: begin % self.slice, ..*self })
    }
}

/// A copy of slices that are of use only with others.
#[derive(Debug)]
struct Held {
    part: Part,
    bytes: Vec<u8>,
    /// The packet's headers have not come yet.
    is_early: bool,
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
    held: VecDeque<Held>,
    held_bytes: usize,
    spare_bytes: Vec<Vec<u8>>,
    /// Packets whose beginning is not what their kind says.
    malformed: u64,
}

impl Default for Joiner {
    fn default() -> Self {
        Self {
            open: Vec::with_capacity(MAX_OPEN),
            spare: (0..=MAX_OPEN).map(|_| Vec::with_capacity(MAX_SLICES.into())).collect(),
            known: VecDeque::with_capacity(REMEMBERED),
            held: VecDeque::with_capacity(MAX_HELD),
            held_bytes: 0,
            spare_bytes: Vec::with_capacity(MAX_SPARE),
            malformed: 0,
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

    /// Ends the batch: delivers everything that can be.
    pub fn finish(&mut self, arena: &[u8], deliver: &mut impl FnMut(Joined<'_>)) {
        while !self.open.is_empty() {
            self.close(0, arena, deliver);
        }
        // What overtook its headers: perhaps they have come now.
        let can_go = |this: &Self| {
            this.held.iter().position(|held| held.is_early && this.known(held.part.base).is_some())
        };
        while let Some(at) = can_go(self) {
            let Held { part, bytes, .. } = self.release(at);
            let mut pieces = Pieces::default();
            pieces.push(&bytes);
            self.settle(part, pieces, deliver);
            self.recycle(bytes);
        }
    }

    /// How many packets have been dropped since the last time because they are not what their kind says.
    pub fn take_malformed(&mut self) -> u64 {
        std::mem::take(&mut self.malformed)
    }

    fn known(&self, base: Base) -> Option<&Known> {
        // The newest are looked for most.
        self.known.iter().rev().find(|known| known.base == base)
    }

    /// Delivers a run as far as it goes, together with what is held before and behind it.
    fn close(&mut self, at: usize, arena: &[u8], deliver: &mut impl FnMut(Joined<'_>)) {
        let Run { base, kind, count, first, pieces: mut ranges } = self.open.remove(at);
        let next = first + ranges.len() as u16;
        let is_last_alone = first > 0 && first + 1 == count;
        let slice = if is_last_alone { 0 } else { ranges[0].len() };
        let mut part = Part { base, kind, count, slice, first, skip: 0, next };
        let mut before = self.take_held(&part, |held| held.next == first);
        let behind = self.take_held(&part, |held| held.first == next && held.skip == 0);
        if let Some(Held { part: before, .. }) = before {
            part = Part { next, ..before };
        }
        if let Some(Held { part: behind, .. }) = behind {
            part.next = behind.next;
        }
        let own = ranges.iter().map(|range| &arena[range.clone()]);
        let parts = own.chain(behind.iter().map(|held| &*held.bytes));
        if let Some(held) = before.as_mut().filter(|_| !part.is_whole() && !self.knows(base)) {
            // Still of no use: it grows where it lies.
            let mut bytes = std::mem::take(&mut held.bytes);
            parts.for_each(|part| bytes.extend_from_slice(part));
            self.hold(part, bytes);
        } else {
            let mut pieces = Pieces::default();
            before.iter().for_each(|held| pieces.push(&held.bytes));
            parts.for_each(|part| pieces.push(part));
            self.settle(part, pieces, deliver);
        }
        [before, behind].into_iter().flatten().for_each(|held| self.recycle(held.bytes));
        ranges.clear();
        self.spare.push(ranges);
    }

    /// Delivers what can be of a part; the rest is held.
    fn settle(&mut self, part: Part, mut pieces: Pieces<'_>, deliver: &mut impl FnMut(Joined<'_>)) {
        let len = pieces.len();
        let left = self.deliver_part(&part, pieces.clone(), deliver);
        let Some(tail) = part.tail(len, left).filter(|_| left > 0) else { return };
        let mut bytes = self.spare_bytes.pop().unwrap_or_default();
        pieces.skip_front(len - left);
        pieces.list().iter().for_each(|piece| bytes.extend_from_slice(piece));
        self.hold(tail, bytes);
    }

    /// Says how many bytes at its end are of no use yet.
    fn deliver_part(
        &mut self,
        part: &Part,
        mut pieces: Pieces<'_>,
        deliver: &mut impl FnMut(Joined<'_>),
    ) -> usize {
        let len = pieces.len();
        if part.is_front() {
            let Some(mut headers) = headers_of(part.kind, pieces.list()[0]) else {
                self.malformed += 1;
                return 0;
            };
            if part.is_whole() {
                pieces.skip_front(headers.len);
                deliver(Joined {
                    slot: part.base.slot,
                    kind: part.kind,
                    headers: &mut headers.bytes[..headers.len],
                    pieces: pieces.list(),
                    len,
                });
                return 0;
            }
            if !can_be_parted(part.kind, &headers) {
                return len;
            }
            self.remember(part, headers);
        }
        match self.known(part.base) {
            Some(known) => deliver_behind(known, part, pieces, deliver),
            None => len,
        }
    }

    fn remember(&mut self, part: &Part, headers: Headers) {
        if self.knows(part.base) {
            return;
        }
        if self.known.len() == REMEMBERED {
            self.known.pop_front();
        }
        let Part { base, kind, count, slice, .. } = *part;
        self.known.push_back(Known { base, kind, count, slice, headers });
    }

    fn knows(&self, base: Base) -> bool {
        self.known(base).is_some()
    }

    /// Takes out what is held of the same packet and fits.
    fn take_held(&mut self, part: &Part, fits: impl Fn(&Part) -> bool) -> Option<Held> {
        let at = self.held.iter().position(|Held { part: held, .. }| {
            (held.base, held.kind, held.count) == (part.base, part.kind, part.count) && fits(held)
        });
        at.map(|at| self.release(at))
    }

    /// Holds a copy for others to come, at the cost of the oldest.
    fn hold(&mut self, part: Part, bytes: Vec<u8>) {
        if bytes.len() > MAX_PACKET {
            return;
        }
        let slot = part.base.slot;
        let is_its = |held: &Held| held.part.base.slot == slot;
        loop {
            let its = self.held.iter().filter(|held| is_its(held));
            let (count, len) =
                its.fold((1, bytes.len()), |(n, len), held| (n + 1, len + held.bytes.len()));
            let is_full =
                self.held.len() == MAX_HELD || self.held_bytes + bytes.len() > MAX_HELD_BYTES;
            let oldest = if count > MAX_HELD / 2 || len > MAX_HELD_BYTES / 2 {
                self.held.iter().position(is_its)
            } else {
                is_full.then_some(0)
            };
            let Some(oldest) = oldest else { break };
            let Held { bytes, .. } = self.release(oldest);
            self.recycle(bytes);
        }
        self.held_bytes += bytes.len();
        let is_early = part.first > 0 && !self.knows(part.base);
        self.held.push_back(Held { part, bytes, is_early });
    }

    fn release(&mut self, at: usize) -> Held {
        let held = self.held.remove(at).expect("who calls has just seen it");
        self.held_bytes -= held.bytes.len();
        held
    }

    fn recycle(&mut self, mut bytes: Vec<u8>) {
        if self.spare_bytes.len() < MAX_SPARE && bytes.capacity() > 0 {
            bytes.clear();
            self.spare_bytes.push(bytes);
        }
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

/// Delivers a part of a superpacket behind a copy of its headers, made to say what the part is. Says how many bytes at its end
/// are of no use without those that follow.
fn deliver_behind(
    known: &Known,
    part: &Part,
    mut pieces: Pieces<'_>,
    deliver: &mut impl FnMut(Joined<'_>),
) -> usize {
    let mut headers = known.headers;
    let begin = usize::from(part.first) * known.slice + part.skip;
    let reaches_end = part.next == known.count;
    let skip = headers.len.saturating_sub(begin);
    pieces.skip_front(skip);
    let Some(offset) = (begin + skip).checked_sub(headers.len) else { return 0 };
    let at = headers.transport;
    let mut left = 0;
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
                left = pieces.len() % segment;
                pieces.keep_front(pieces.len() - left);
            }
        }
        Kind::Whole => return 0,
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
    left
}

/// A list of pieces, in place.
#[derive(Debug, Clone)]
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
    fn a_run_that_overtakes_its_front_is_held_for_it() {
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
        assert_eq!(joiner.held_bytes, 0);
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
            assert!(joiner.held_bytes <= MAX_HELD_BYTES && joiner.known.len() <= REMEMBERED);
            assert_eq!(joiner.held_bytes, joiner.held.iter().map(|h| h.bytes.len()).sum::<usize>());
        }
        for (slice, of_a_packet) in [(1400, 43), (30_000, 3)] {
            let mut joiner = Joiner::default();
            for n in 0..100 {
                // The last one never comes.
                let sent = cut(&superpacket(Kind::Udp(0), 60_000, 0), Kind::Whole, slice, n * 100);
                assert_eq!(sent.len(), of_a_packet);
                let some: Vec<&Sent> = sent[..of_a_packet - 1].iter().collect();
                assert_eq!(deliver(&mut joiner, &some), []);
                assert!(joiner.held_bytes <= MAX_HELD_BYTES / 2, "one peer has half of the room");
                assert!(joiner.held.len() <= MAX_HELD / 2);
            }
        }
    }

    #[test]
    fn a_peer_that_never_ends_its_packets_does_not_cost_another_ones() {
        let packet = superpacket(Kind::Udp(0), 4080, 0);
        let sent = cut(&packet, Kind::Whole, 1400, 5);
        let junk = cut(&packet, Kind::Whole, 1400, 1000);
        let mut joiner = Joiner::default();
        let mut out = Vec::new();
        let mut push = |sent: &Sent, slot, more| {
            let (arena, slices) = arena(&[sent]);
            let slice = Slice { slot: PeerSlot(slot), ..slices[0].clone() };
            let counter = slice.counter + more;
            joiner.push(&arena, Slice { counter, ..slice }, &mut |_| ());
            joiner.finish(&arena, &mut |joined| out.push((joined.slot.0, joined.len)));
        };
        for one in &sent {
            push(one, 1, 0);
            (0..100).for_each(|n| push(&junk[0], 2, 1000 * n));
        }
        assert_eq!(out, [(1, packet.len())]);
    }

    /// What a UDP receiver gets of a delivered packet.
    fn datagrams(kind: Kind, packet: &[u8]) -> Vec<Vec<u8>> {
        let size = match kind {
            Kind::Udp(segment) => segment.into(),
            Kind::Whole | Kind::Unfinished | Kind::Tcp(_) => packet.len(),
        };
        packet[UDP_HEADERS..].chunks(size).map(<[u8]>::to_vec).collect()
    }

    #[test]
    fn slices_that_come_one_by_one_lose_nothing() {
        for kind in [Kind::Whole, Kind::Unfinished, Kind::Udp(1372), Kind::Udp(8892), Kind::Udp(5)]
        {
            let packet = superpacket(Kind::Udp(0), 30_000, 0);
            let sent = cut(&packet, kind, 1412, 100);
            for together in [1, 2, 3, 5, 21, 22] {
                let mut joiner = Joiner::default();
                let sent: Vec<&Sent> = sent.iter().collect();
                let delivered: Vec<_> =
                    sent.chunks(together).flat_map(|some| deliver(&mut joiner, some)).collect();
                let got: Vec<_> =
                    delivered.iter().flat_map(|(kind, packet)| datagrams(*kind, packet)).collect();
                assert_eq!(got, datagrams(kind, &packet), "{kind:?}, {together} together");
                assert_eq!(joiner.held_bytes, 0);
            }
        }
    }

    proptest! {
        #[test]
        fn datagrams_arrive_whole_or_not_at_all(
            payload in 1usize..20_000,
            slice in 200usize..1500,
            kind in prop_oneof![Just(Kind::Whole), Just(Kind::Unfinished), (320u16..3000).prop_map(Kind::Udp)],
            fates in proptest::collection::vec((0u8..10, 0usize..100), 100),
            together in 1usize..20,
        ) {
            let packet = superpacket(Kind::Udp(0), payload, 0);
            let Some(_) = Cut::new(packet.len(), slice) else { return Ok(()) };
            let sent = cut(&packet, kind, slice, 1000);
            // Fate 0: lost; 1: late. Twice is for the window.
            let mut order: Vec<(usize, &Sent)> = Vec::new();
            for (n, one) in sent.iter().enumerate() {
                let (fate, by) = fates[n];
                match fate {
                    0 => {}
                    1 => order.push((n * 100 + by * 40, one)),
                    _ => order.push((n * 100, one)),
                }
            }
            let all_came = order.len() == sent.len();
            let in_order = order.is_sorted_by_key(|(at, _)| *at);
            order.sort_by_key(|(at, _)| *at);
            let arrived: Vec<&Sent> = order.into_iter().map(|(_, one)| one).collect();
            let mut joiner = Joiner::default();
            let mut got = Vec::new();
            for batch in arrived.chunks(together) {
                for (kind, mut packet) in deliver(&mut joiner, batch) {
                    // Of a part only this makes the length right.
                    prop_assert!(kind == Kind::Whole || rebuild(kind, &mut packet).is_ok());
                    got.extend(datagrams(kind, &packet));
                }
            }
            let mut whole = datagrams(kind, &packet);
            if all_came && (in_order || !matches!(kind, Kind::Udp(_))) {
                prop_assert_eq!(&got, &whole);
            }
            for datagram in got {
                let place = whole.iter().position(|one| *one == datagram);
                prop_assert!(place.is_some(), "each is one that was sent, and none comes twice");
                whole.remove(place.unwrap_or_default());
            }
        }

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
            if arrived.iter().any(|one| one.place.number == 0) {
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
