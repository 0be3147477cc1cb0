//! Slices: a superpacket is cut into texts that each fit a datagram, and joined again on the other side.
//!
//! Theory of operation. The sender cuts a packet of `len` bytes into slices of equal length ([`Cut`]) and seals each under the next
//! counter. The receiver opens the datagrams of a batch in place and hands the texts to a [`Joiner`] in the order they came:
//! borrowed, not copied. Slices that follow each other make a *run*; a run that begins with slice 0 is the front of the
//! superpacket, headers and all, and goes to the device as one write of many pieces. At the end of the batch everything that
//! can be delivered is delivered: nothing waits for what may be lost.
//!
//! What comes after a gap has its place, too: the headers of recent superpackets are remembered ([`REMEMBERED`]), so a later
//! run of a TCP superpacket is delivered behind a copy of them with its own sequence number, and one of a UDP superpacket from
//! its next whole datagram on. Only a run that overtakes slice 0 itself is copied, for as long as one more batch.

use std::collections::VecDeque;

use crate::wire::{
    channel::{MAX_SLICES, Place},
    superpacket::Kind,
};

/// Superpackets whose headers are remembered for slices that come late: what a path can hold in flight at ten gigabits and
/// two milliseconds.
pub const REMEMBERED: usize = 64;

/// Bytes of runs that overtook their slice 0, over all; the oldest go first.
pub const MAX_WAITING: usize = 256 * 1024;

/// The longest headers: IPv6 and a full TCP header.
const MAX_HEADERS: usize = 100;

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
    pub fn range(&self, number: u16) -> std::ops::Range<usize> {
        let start = usize::from(number) * self.slice;
        start.min(self.len)..(start + self.slice).min(self.len)
    }
}

/// Which superpacket of one sender: the counter of its slice 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Base(u64);

/// What is remembered of a superpacket.
#[derive(Debug, Clone)]
struct Known {
    base: Base,
    kind: Kind,
    count: u16,
    /// Length of all slices but the last.
    slice: usize,
    /// IP and transport header, once slice 0 has come.
    headers: Vec<u8>,
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

/// Slices that follow each other, under way in this batch. Borrowed: as long as the batch.
#[derive(Debug)]
struct Run<'a> {
    base: Base,
    kind: Kind,
    count: u16,
    first: u16,
    pieces: Vec<&'a [u8]>,
}

/// A packet to deliver: headers to put in front (empty where the first piece has them), then the pieces.
#[derive(Debug, PartialEq, Eq)]
pub struct Joined<'a> {
    /// What it is; the virtio header is rebuilt from it and the packet.
    pub kind: Kind,
    /// Headers made for a run that does not begin at the front.
    pub headers: Vec<u8>,
    /// The packet, or the part of it that came.
    pub pieces: Vec<&'a [u8]>,
}

/// Joins the slices of one sender.
#[derive(Debug, Default)]
pub struct Joiner {
    known: VecDeque<Known>,
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
}

/// Joins the slices of one batch of one sender: [`Batch::push`] each, then [`Batch::finish`].
#[derive(Debug)]
pub struct Batch<'j, 'a> {
    joiner: &'j mut Joiner,
    run: Option<Run<'a>>,
    runs: Vec<Run<'a>>,
}

impl Joiner {
    /// Begins a batch.
    pub fn batch<'a>(&mut self) -> Batch<'_, 'a> {
        Batch { joiner: self, run: None, runs: Vec::new() }
    }

    fn remember(&mut self, run: &Run<'_>, headers: Vec<u8>) {
        if run.count == 1 || self.known.iter().any(|known| known.base == run.base) {
            return;
        }
        if self.known.len() == REMEMBERED {
            self.known.pop_front();
        }
        let slice = run.pieces[0].len();
        let known = Known { base: run.base, kind: run.kind, count: run.count, slice, headers };
        self.known.push_back(known);
    }

    fn wait(&mut self, run: &Run<'_>) {
        let bytes = run.pieces.concat();
        if bytes.len() > MAX_WAITING {
            return;
        }
        while self.waiting_bytes + bytes.len() > MAX_WAITING {
            let Some(oldest) = self.waiting.pop_front() else { break };
            self.waiting_bytes -= oldest.bytes.len();
        }
        self.waiting_bytes += bytes.len();
        let Run { base, kind, count, first, .. } = *run;
        self.waiting.push_back(Waiting { base, kind, count, first, bytes, batches: 0 });
    }
}

impl<'a> Batch<'_, 'a> {
    /// Takes an opened slice. `counter`: of its message. Slices that disagree with what is known of their superpacket are
    /// dropped: `false`.
    pub fn push(&mut self, counter: u64, place: Place, bytes: &'a [u8]) -> bool {
        let Some(base) = counter.checked_sub(place.number.into()).map(Base) else { return false };
        if let Some(run) = &mut self.run {
            let next = usize::from(run.first) + run.pieces.len();
            let same = run.base == base && run.kind == place.kind && run.count == place.count;
            // All slices but the last are equally long: one that is not tells a wrong place.
            let fits = run.pieces[0].len() >= bytes.len()
                && run.pieces.last().is_some_and(|last| last.len() == run.pieces[0].len());
            if same && usize::from(place.number) == next && fits {
                run.pieces.push(bytes);
                return true;
            }
            if run.base == base && !same {
                return false;
            }
        }
        if let Some(known) = self.joiner.known.iter().find(|known| known.base == base)
            && (known.kind != place.kind || known.count != place.count)
        {
            return false;
        }
        self.runs.extend(self.run.take());
        let Place { number, count, kind } = place;
        self.run = Some(Run { base, kind, count, first: number, pieces: vec![bytes] });
        true
    }

    /// Delivers everything that can be, in the order it came. What had to wait for its headers is handed over as bytes.
    pub fn finish(mut self, mut deliver: impl FnMut(Joined<'_>)) {
        self.runs.extend(self.run.take());
        for run in &self.runs {
            if run.first != 0 {
                let known = self.joiner.known.iter().find(|known| known.base == run.base);
                match known {
                    Some(known) => deliver_part(known, run.first, &run.pieces, &mut deliver),
                    None => self.joiner.wait(run),
                }
                continue;
            }
            if run.pieces.len() == usize::from(run.count) {
                deliver(Joined { kind: run.kind, headers: Vec::new(), pieces: run.pieces.clone() });
                continue;
            }
            // Something is missing at the end: a front, and perhaps more of it later.
            let Some(headers) = headers_of(run.kind, run.pieces[0]) else { continue };
            self.joiner.remember(run, headers);
            if let Some(known) = self.joiner.known.iter().find(|known| known.base == run.base) {
                deliver_part(known, 0, &run.pieces, &mut deliver);
            }
        }
        // Those who overtook slice 0 in this batch or the last.
        let mut waiting = std::mem::take(&mut self.joiner.waiting);
        waiting.retain_mut(|wait| {
            let known = self.joiner.known.iter().find(|known| known.base == wait.base);
            let is_same = known.is_some_and(|k| k.kind == wait.kind && k.count == wait.count);
            if let Some(known) = known.filter(|_| is_same) {
                deliver_part(known, wait.first, &[&wait.bytes], &mut deliver);
            }
            wait.batches += 1;
            let stays = known.is_none() && wait.batches <= 2;
            if !stays {
                self.joiner.waiting_bytes -= wait.bytes.len();
            }
            stays
        });
        self.joiner.waiting = waiting;
    }
}

/// The headers of a superpacket, from its first slice. `None`: none that later slices could be delivered behind.
fn headers_of(kind: Kind, first: &[u8]) -> Option<Vec<u8>> {
    let ip = match first.first()? >> 4 {
        4 => usize::from(first[0] & 0xf) * 4,
        6 => 40,
        _ => return None,
    };
    let transport = match kind {
        Kind::Tcp(_) => usize::from(first.get(ip + 12)? >> 4) * 4,
        Kind::Udp(_) => 8,
        Kind::Whole | Kind::Unfinished => return None,
    };
    let is_sound = ip >= 20 && transport >= 8 && ip + transport <= MAX_HEADERS;
    first.get(..ip + transport).filter(|_| is_sound).map(<[u8]>::to_vec)
}

/// Delivers a part of a superpacket behind a copy of its headers, made to say what the part is.
fn deliver_part(known: &Known, first: u16, pieces: &[&[u8]], deliver: &mut impl FnMut(Joined<'_>)) {
    let mut headers = known.headers.clone();
    let mut pieces = pieces.to_vec();
    let mut len: usize = pieces.iter().map(|piece| piece.len()).sum();
    let begin = usize::from(first) * known.slice;
    // A waiting run is one piece of many slices: its length tells where it ends.
    let reaches_end = begin + len > usize::from(known.count - 1) * known.slice;
    let skip = headers.len().saturating_sub(begin);
    skip_front(&mut pieces, skip);
    len = len.saturating_sub(skip);
    let Some(offset) = (begin + skip).checked_sub(headers.len()) else { return };
    let ip = if headers[0] >> 4 == 6 { 40 } else { usize::from(headers[0] & 0xf) * 4 };
    match known.kind {
        Kind::Tcp(_) => {
            let sequence: [u8; 4] = headers[ip + 4..ip + 8].try_into().expect("four bytes");
            let sequence = u32::from_be_bytes(sequence).wrapping_add(offset as u32);
            headers[ip + 4..ip + 8].copy_from_slice(&sequence.to_be_bytes());
            // As when a kernel segments: CWR is said by the first segment, FIN and PSH by the last.
            if offset > 0 {
                headers[ip + 13] &= !0x80;
            }
            if !reaches_end {
                headers[ip + 13] &= !0x09;
            }
        }
        Kind::Udp(segment) => {
            // Only whole datagrams: a part of one would be taken for a short one.
            let segment = usize::from(segment);
            let skip = (segment - offset % segment) % segment;
            skip_front(&mut pieces, skip);
            len = len.saturating_sub(skip);
            if !reaches_end {
                len -= len % segment;
            }
        }
        Kind::Whole | Kind::Unfinished => return,
    }
    keep_front(&mut pieces, len);
    if len > 0 {
        deliver(Joined { kind: known.kind, headers, pieces });
    }
}

/// Drops so many bytes at the front.
fn skip_front(pieces: &mut Vec<&[u8]>, mut skip: usize) {
    while skip > 0 && !pieces.is_empty() {
        let part = skip.min(pieces[0].len());
        pieces[0] = &pieces[0][part..];
        skip -= part;
        if pieces[0].is_empty() {
            pieces.remove(0);
        }
    }
}

/// Drops everything behind so many bytes.
fn keep_front(pieces: &mut Vec<&[u8]>, len: usize) {
    let mut left = len;
    pieces.retain_mut(|piece| {
        let part = left.min(piece.len());
        *piece = &piece[..part];
        left -= part;
        part > 0
    });
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

    fn deliver(joiner: &mut Joiner, batch: &[&Sent]) -> Vec<(Kind, Vec<u8>)> {
        let mut out = Vec::new();
        let mut open = joiner.batch();
        for sent in batch {
            open.push(sent.counter, sent.place, &sent.bytes);
        }
        open.finish(|joined| {
            let mut packet = joined.headers;
            joined.pieces.iter().for_each(|piece| packet.extend_from_slice(piece));
            out.push((joined.kind, packet));
        });
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
        let mut batch = joiner.batch();
        assert!(batch.push(100, sent[0].place, &sent[0].bytes));
        let other_count = Place { count: 9, ..sent[1].place };
        assert!(!batch.push(101, other_count, &sent[1].bytes));
        let other_kind = Place { kind: Kind::Tcp(1200), ..sent[1].place };
        assert!(!batch.push(101, other_kind, &sent[1].bytes));
        assert!(!batch.push(0, sent[1].place, &sent[1].bytes), "a counter below its number");
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
