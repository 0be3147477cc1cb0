//! Inbound: what becomes of datagrams from the underlay. No I/O; everything here is hostile until it has been opened.
//!
//! In order: datagrams of one origin that came together lie in the arena of an [`Inbound`]. Those we relay get another index where
//! they lie and leave as they came. Messages of a channel are grouped by their keys: the window is asked once for the group, each is
//! opened in place, the window is told once. What was opened is a whole packet or a slice of one; slices are joined ([`slices`]),
//! small neighbours of one flow are coalesced ([`coalesce`]), and each result goes to the device as one write of pieces that lie in
//! the arena. Anything else is punted or dropped. Nothing is answered: an answer to a stranger would be a tool against others.
//!
//! [`slices`]: super::slices
//! [`coalesce`]: super::coalesce

use std::{ops::Range, time::Instant};

use super::{
    coalesce::Coalescer,
    drops::{Counters, DropReason},
    punt::{Class, Notice, Sender},
    segment,
    slices::{Joined, Joiner, Slice},
    table::{Opener, Table},
};
use crate::{
    channel::keypair::{KeyError, TAG},
    node::output::PeerSlot,
    path::route::{Egress, Route},
    wire::{
        channel::{HEADER, Header, Place},
        filter::{self, FilterError},
        ip::IpView,
        message::{Mac1Key, Message},
        relay::{self, RelayIndex},
        superpacket::{self, Kind, ShapeError, VirtioHeader},
    },
};

/// The most bytes that one receive brings.
pub const MAX_RECEIVE: usize = 65_536;

/// Receives that are taken together: what comes in several calls and belongs together can still be joined.
const RECEIVES: usize = 4;

/// The most messages that one receive brings: 64 by Linux's limit for each side's offload, or many small ones.
const MAX_MESSAGES: usize = 128;

/// Small packets that are taken before they are delivered: as many as a batch of one receive each has.
const MAX_PACKETS: usize = 512;

/// A peer that comes by another way is not told of more often than this: control needs to hear it once.
const HEARD_INTERVAL: std::time::Duration = std::time::Duration::from_secs(1);

/// What datagrams are decided by. Borrowed: one turn.
#[expect(missing_debug_implementations, reason = "holds a key")]
pub struct Context<'a> {
    /// As it is now.
    pub table: &'a Table,
    /// Tells handshakes made for us.
    pub mac1: &'a Mac1Key,
    /// Now, by the clock that keys live by.
    pub now: Instant,
    /// What is counted.
    pub counters: &'a Counters,
}

/// Where results go: the worker's socket and device, or a test's lists.
pub trait Sink {
    /// Sends datagrams of `segment` bytes, the last perhaps shorter, for others.
    fn forward(&mut self, to: Egress, datagrams: &[u8], segment: usize);
    /// Hands a packet to the device, in pieces.
    fn deliver<'a>(&mut self, header: VirtioHeader, packet: impl Iterator<Item = &'a [u8]>);
}

/// What the device takes besides whole and finished packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Takes {
    /// TCP superpackets, and packets with unfinished checksums.
    pub tcp: bool,
    /// UDP superpackets.
    pub udp: bool,
}

impl Takes {
    /// Whatever a kernel can.
    pub const ALL: Self = Self { tcp: true, udp: true };

    fn takes(self, kind: Kind) -> bool {
        match kind {
            Kind::Whole => true,
            Kind::Unfinished | Kind::Tcp(_) => self.tcp,
            Kind::Udp(_) => self.tcp && self.udp,
        }
    }
}

/// A message of a channel, by its header.
#[derive(Debug, Clone, Copy)]
struct Sealed {
    header: Header,
    relay: Option<RelayIndex>,
    /// Where the header begins in the arena.
    start: usize,
    end: usize,
}

/// Where packets leave the batch: to the device, or to control where they go on from here.
#[derive(Debug)]
struct Exit {
    takes: Takes,
    /// A packet in one piece, where the device does not take it as it is.
    scratch: Vec<u8>,
    /// Packets that go on from here, one behind the other: whose, and how long.
    transit: Vec<(PeerSlot, usize)>,
    transit_bytes: Vec<u8>,
}

/// Datagrams on their way in.
#[derive(Debug)]
pub struct Inbound {
    arena: Box<[u8]>,
    used: usize,
    messages: Vec<Sealed>,
    verdicts: Vec<(u64, Result<(), KeyError>)>,
    joiner: Joiner,
    coalescer: Coalescer,
    /// How many it has taken.
    packets: usize,
    exit: Exit,
    heard: Option<(PeerSlot, Route, Instant)>,
}

impl Inbound {
    /// For a device that takes these.
    pub fn new(takes: Takes) -> Self {
        let scratch = if takes == Takes::ALL { 0 } else { MAX_RECEIVE };
        Self {
            arena: vec![0; RECEIVES * MAX_RECEIVE].into(),
            used: 0,
            messages: Vec::with_capacity(MAX_MESSAGES),
            verdicts: Vec::with_capacity(MAX_MESSAGES),
            joiner: Joiner::default(),
            coalescer: Coalescer::new(takes.udp && takes.tcp, MAX_PACKETS),
            packets: 0,
            exit: Exit {
                takes,
                scratch: Vec::with_capacity(scratch),
                transit: Vec::new(),
                transit_bytes: Vec::new(),
            },
            heard: None,
        }
    }

    /// Where the next datagrams are to be received; `None` where the batch must end first.
    pub fn room(&mut self) -> Option<&mut [u8]> {
        self.arena.get_mut(self.used..self.used + MAX_RECEIVE)
    }

    /// Takes datagrams of one origin that have just been received into [`Self::room`]: `len` bytes, all but the last datagram of
    /// `segment` bytes.
    pub fn take(
        &mut self,
        context: &Context<'_>,
        origin: Egress,
        (len, segment): (usize, usize),
        punts: &mut Sender,
        sink: &mut impl Sink,
    ) {
        let (mut at, end) = (self.used, self.used + len);
        // What belongs to one batch stays where it is; the next begins at a cache line.
        self.used = end.next_multiple_of(64);
        while at < end {
            let mut next = (at + segment.max(1)).min(end);
            let datagram = &mut self.arena[at..next];
            let prefix = datagram.first_chunk::<{ relay::PREFIX }>().copied();
            match decide(context.table, context.mac1, origin, datagram) {
                Ok(Verdict::Forward(to)) => {
                    next = self.same_index(context, origin, prefix, next..end, segment);
                    let datagrams = (next - at).div_ceil(segment);
                    context.counters.forwarded.count_many(datagrams as u64, (next - at) as u64);
                    sink.forward(to, &self.arena[at..next], segment);
                    at = next;
                }
                Ok(Verdict::Open { header, relay }) => {
                    let start = at + if relay.is_some() { relay::PREFIX } else { 0 };
                    let is_other = self.messages.last().is_some_and(|last| {
                        last.header.receiver != header.receiver || last.relay != relay
                    });
                    if is_other || self.messages.len() == MAX_MESSAGES {
                        self.open(context, origin, punts, sink);
                    }
                    self.messages.push(Sealed { header, relay, start, end: next });
                    at = next;
                }
                Ok(Verdict::Punt { class, origin, start }) => {
                    punts.datagram(class, origin, &datagram[start..]);
                    at = next;
                }
                Err(reason) => {
                    context.counters.count(reason);
                    at = next;
                }
            }
        }
        self.open(context, origin, punts, sink);
    }

    /// Ends the batch: delivers what is left of it, and wakes control if there is anything for it.
    pub fn finish(&mut self, context: &Context<'_>, punts: &mut Sender, sink: &mut impl Sink) {
        self.joiner.finish(&self.arena, &mut deliver(context, &mut self.exit, sink));
        for _ in 0..self.joiner.take_malformed() {
            context.counters.count(DropReason::PeerMalformed);
        }
        self.flush(context, sink);
        self.used = 0;
        let mut rest = self.exit.transit_bytes.as_slice();
        for (slot, len) in self.exit.transit.drain(..) {
            let (packet, behind) = rest.split_at(len);
            punts.transit(slot, packet);
            rest = behind;
        }
        self.exit.transit_bytes.clear();
        punts.flush();
    }

    /// Swaps the index of all that follow under the same one, so that they go on together as they came. Says where they end.
    fn same_index(
        &mut self,
        context: &Context<'_>,
        origin: Egress,
        prefix: Option<[u8; relay::PREFIX]>,
        range: Range<usize>,
        segment: usize,
    ) -> usize {
        let Range { start: mut at, end } = range;
        while at < end {
            let datagram = &mut self.arena[at..(at + segment).min(end)];
            let is_same = datagram.first_chunk().copied() == prefix;
            if !is_same || decide(context.table, context.mac1, origin, datagram).is_err() {
                break;
            }
            at += datagram.len();
        }
        at
    }

    /// Opens the messages that wait: all under one receiver index, from one origin.
    fn open(
        &mut self,
        context: &Context<'_>,
        origin: Egress,
        punts: &mut Sender,
        sink: &mut impl Sink,
    ) {
        let Some(Sealed { header: Header { receiver, .. }, relay, .. }) =
            self.messages.first().copied()
        else {
            return;
        };
        let count_all = |this: &mut Self, reason| {
            this.messages.drain(..).for_each(|_| context.counters.count(reason));
        };
        let Some(Opener { slot, keypairs }) = context.table.opener(receiver) else {
            return count_all(self, DropReason::UnknownChannel);
        };
        let Some(keypair) = keypairs.stripe(receiver as u8) else {
            return count_all(self, DropReason::UnknownChannel);
        };
        if keypair.is_dead(context.now) {
            return count_all(self, DropReason::KeysEnded);
        }
        self.verdicts.clear();
        self.verdicts.extend(self.messages.iter().map(|message| (message.header.counter, Ok(()))));
        keypair.check(&mut self.verdicts);
        for (message, (counter, verdict)) in self.messages.iter().zip(&mut self.verdicts) {
            if verdict.is_ok() {
                let (header, text) = self.arena[message.start..message.end].split_at_mut(HEADER);
                *verdict = keypair.open(*counter, header, text).map(|_| ());
            }
        }
        keypair.mark(&mut self.verdicts);
        let (mut opened, mut bytes) = (0, 0);
        let messages = std::mem::take(&mut self.messages);
        for (message, at) in messages.iter().zip(0..) {
            match self.verdicts[at].1 {
                Ok(()) => {
                    let text = message.start + HEADER..message.end - TAG;
                    opened += 1;
                    bytes += text.len() as u64;
                    if !text.is_empty() {
                        self.take_text(context, *slot, message.header, text, sink);
                    }
                }
                Err(KeyError::Dead) => context.counters.count(DropReason::KeysEnded),
                Err(KeyError::Unauthentic) => context.counters.count(DropReason::Unauthentic),
                Err(KeyError::Replay(_)) => context.counters.count(DropReason::Replay),
            }
        }
        self.messages = messages;
        self.messages.clear();
        if opened == 0 {
            return;
        }
        if keypairs.confirm() && !punts.notice(Notice::Confirmed { index: keypairs.index() }) {
            keypairs.unconfirm();
        }
        let Some(peer) = context.table.peer(*slot) else { return };
        peer.traffic.inbound.count_many(opened, bytes);
        if peer.traffic.is_news() && !punts.notice(Notice::Active { slot: *slot }) {
            peer.traffic.rest();
        }
        let came_by = Route { egress: origin, relay };
        if peer.route != Some(came_by) {
            self.hear(*slot, came_by, context.now, punts);
        }
    }

    /// The peer has come by another way than ours to it.
    fn hear(&mut self, slot: PeerSlot, origin: Route, now: Instant, punts: &mut Sender) {
        let is_known = self.heard.is_some_and(|(known, route, at)| {
            known == slot && route == origin && now.saturating_duration_since(at) < HEARD_INTERVAL
        });
        if !is_known && punts.notice(Notice::Heard { slot, origin }) {
            self.heard = Some((slot, origin, now));
        }
    }

    /// An opened text: a whole packet or a slice.
    fn take_text(
        &mut self,
        context: &Context<'_>,
        slot: PeerSlot,
        header: Header,
        text: Range<usize>,
        sink: &mut impl Sink,
    ) {
        let Some((place, rest)) = Place::parse(&self.arena[text.clone()]) else {
            return context.counters.count(DropReason::Misplaced);
        };
        let text = text.end - rest.len()..text.end;
        if place.count > 1 {
            // Small packets that came before are before it.
            self.flush(context, sink);
            let Header { receiver, counter } = header;
            let slice = Slice { slot, receiver, counter, place, text };
            let is_sound =
                self.joiner.push(&self.arena, slice, &mut deliver(context, &mut self.exit, sink));
            if !is_sound {
                context.counters.count(DropReason::Misplaced);
            }
            return;
        }
        self.joiner.pass(&self.arena, slot, &mut deliver(context, &mut self.exit, sink));
        let packet = &self.arena[text.clone()];
        match check(context, slot, packet, packet.len()) {
            Err(reason) => context.counters.count(reason),
            Ok(Passage::On(len)) => {
                self.exit.pass_on(slot, place.kind, std::iter::once(&packet[..len]));
            }
            Ok(Passage::ForUs(len)) => {
                self.packets += 1;
                self.coalescer.push(&mut self.arena, text.start..text.start + len, place.kind);
                if self.packets == MAX_PACKETS {
                    self.flush(context, sink);
                }
            }
        }
    }

    /// Delivers the small packets that wait.
    fn flush(&mut self, context: &Context<'_>, sink: &mut impl Sink) {
        if std::mem::take(&mut self.packets) == 0 {
            return;
        }
        let (arena, exit) = (&mut self.arena, &mut self.exit);
        self.coalescer.flush(|kind, pieces| {
            let Some((first, others)) = pieces.split_first() else { return };
            let len = pieces.iter().map(Range::len).sum();
            let header = rebuild(kind, &mut arena[first.clone()], len);
            match header {
                Ok(header) => {
                    let parts = std::iter::once(first).chain(others);
                    let parts = parts.map(|part| &arena[part.clone()]);
                    exit.hand_over(kind, header, parts, sink);
                }
                Err(reason) => context.counters.count(reason),
            }
        });
    }
}

/// What becomes of a joined superpacket, or a part of one.
fn deliver<'a>(
    context: &'a Context<'_>,
    exit: &'a mut Exit,
    sink: &'a mut impl Sink,
) -> impl FnMut(Joined<'_>) + 'a {
    move |Joined { slot, kind, headers, pieces, len }| {
        // First: of a part only then the header says how long it is.
        let header = match rebuild(kind, headers, len) {
            Ok(header) => header,
            Err(reason) => return context.counters.count(reason),
        };
        let parts = std::iter::once(&*headers).chain(pieces.iter().copied());
        match check(context, slot, headers, len) {
            Ok(Passage::On(_)) => exit.pass_on(slot, kind, parts),
            Ok(Passage::ForUs(_)) => {
                exit.hand_over(kind, header, parts, sink);
            }
            Err(reason) => context.counters.count(reason),
        }
    }
}

/// The virtio header for a packet; `None`: it stands for more datagrams than a kernel takes at once.
fn rebuild(kind: Kind, headers: &mut [u8], len: usize) -> Result<Option<VirtioHeader>, DropReason> {
    match superpacket::rebuild_parts(kind, headers, len) {
        Ok(header) => Ok(Some(header)),
        Err(ShapeError::Segments) => Ok(None),
        Err(ShapeError::Ip(_) | ShapeError::Transport | ShapeError::Gso) => {
            Err(DropReason::PeerMalformed)
        }
    }
}

impl Exit {
    /// Hands a packet to the device: as it is if the device takes that, else as its segments.
    fn hand_over<'a>(
        &mut self,
        kind: Kind,
        header: Option<VirtioHeader>,
        parts: impl Iterator<Item = &'a [u8]>,
        sink: &mut impl Sink,
    ) {
        if let Some(header) = header.filter(|_| self.takes.takes(kind)) {
            return sink.deliver(header, parts);
        }
        self.gather(parts);
        // Its headers have just been rebuilt: it is what its kind says.
        let _ = segment::segment(kind, &mut self.scratch, |packet| {
            sink.deliver(VirtioHeader::default(), std::iter::once(packet));
        });
    }

    /// Keeps a packet for control, as its segments: it goes on through a tunnel.
    fn pass_on<'a>(&mut self, slot: PeerSlot, kind: Kind, parts: impl Iterator<Item = &'a [u8]>) {
        self.gather(parts);
        let Self { scratch, transit, transit_bytes, .. } = self;
        // What is not what its kind says goes no further.
        let _ = segment::segment(kind, scratch, |packet| {
            transit.push((slot, packet.len()));
            transit_bytes.extend_from_slice(packet);
        });
    }

    fn gather<'a>(&mut self, parts: impl Iterator<Item = &'a [u8]>) {
        self.scratch.clear();
        parts.for_each(|part| self.scratch.extend_from_slice(part));
    }
}

/// Where a peer's packet may go, and its own length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Passage {
    /// To the device.
    ForUs(usize),
    /// On, to a plain WireGuard member that this node is the gateway of.
    On(usize),
}

/// Whether a packet of `len` bytes, of which at least the IP header is in `first`, may come from this peer, and where it may go.
fn check(
    context: &Context<'_>,
    slot: PeerSlot,
    first: &[u8],
    len: usize,
) -> Result<Passage, DropReason> {
    let view = IpView::parse_front(first, len).map_err(|e| DropReason::of_peer(e.into()))?;
    let belongs = |source| context.table.belongs(source, slot);
    match filter::check_inbound(&view, context.table.own(), belongs) {
        Ok(()) => Ok(Passage::ForUs(view.total_len())),
        // Looked at last of all, so everything else about it is right.
        Err(FilterError::Destination) if context.table.carries(view.destination()) => {
            Ok(Passage::On(view.total_len()))
        }
        Err(error) => Err(DropReason::of_peer(error)),
    }
}

/// What to do with a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A relayed one, its index already swapped: send all of it over this.
    Forward(Egress),
    /// A message of a channel.
    Open {
        /// Its header.
        header: Header,
        /// The relay's index in front of it.
        relay: Option<RelayIndex>,
    },
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
    if let Some(header) = channel(datagram) {
        return Ok(Verdict::Open { header, relay: None });
    }
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
    if let Some(header) = channel(inner) {
        return Ok(Verdict::Open { header, relay: Some(relayed) });
    }
    let class = admit(table, mac1, Message::parse(inner)?, inner)?;
    let origin = Route { egress: origin, relay: Some(relayed) };
    Ok(Verdict::Punt { class, origin, start: relay::PREFIX })
}

/// The header of a message of a channel, long enough to hold a tag.
fn channel(datagram: &[u8]) -> Option<Header> {
    let (header, sealed) = Header::parse(datagram)?;
    (sealed.len() >= TAG).then_some(header)
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
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
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

    #[derive(Default)]
    struct Forwarded(Vec<(Egress, Vec<u8>)>);

    impl Sink for Forwarded {
        fn forward(&mut self, to: Egress, datagrams: &[u8], segment: usize) {
            let each = datagrams.chunks(segment);
            self.0.extend(each.map(|datagram| (to, datagram.to_vec())));
        }
        fn deliver<'a>(&mut self, _: VirtioHeader, _: impl Iterator<Item = &'a [u8]>) {
            panic!("nothing was sealed")
        }
    }

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
    fn what_is_relayed_together_goes_on_together() {
        let world = world();
        let counters = Arc::<Counters>::default();
        let (mut sender, _receiver) = queue(Arc::clone(&counters), || ());
        let mut together: Vec<u8> = Vec::new();
        for n in 0..3 {
            together.extend(wrap(OURS, &data(5, n, 100)));
        }
        let segment = together.len() / 3;
        // One in the middle under an index that is not alice's.
        together.extend(wrap(OTHERS, &data(5, 3, 100)));
        together.extend(wrap(OURS, &data(5, 4, 50)));
        struct Sends(Vec<(Egress, usize)>);
        impl Sink for Sends {
            fn forward(&mut self, to: Egress, datagrams: &[u8], _: usize) {
                assert!(datagrams.starts_with(&OTHERS.prefix()));
                self.0.push((to, datagrams.len()));
            }
            fn deliver<'a>(&mut self, _: VirtioHeader, _: impl Iterator<Item = &'a [u8]>) {}
        }
        let mut sink = Sends(Vec::new());
        let mut inbound = Inbound::new(Takes::ALL);
        let table = world.table.table();
        let now = Instant::now();
        let context = Context { table, mac1: &world.mac1, now, counters: &counters };
        inbound.room().unwrap()[..together.len()].copy_from_slice(&together);
        let size = (together.len(), segment);
        inbound.take(&context, alice(), size, &mut sender, &mut sink);
        assert_eq!(sink.0, [(bob(), 3 * segment), (bob(), segment - 50)]);
        assert_eq!(counters.drops(DropReason::UnknownTunnel), 1);
        assert_eq!(counters.forwarded.units(), 4);
    }

    #[test]
    fn a_batch_keeps_its_order_and_one_bad_datagram_stops_nothing() {
        let world = world();
        let counters = Arc::<Counters>::default();
        let (mut sender, mut receiver) = queue(Arc::clone(&counters), || ());
        let datagrams = [
            (bob(), data(TUNNEL << 8, 1, 1)),
            (bob(), vec![9]),
            (alice(), wrap(OURS, &data(5, 5, 5))),
            (bob(), data(TUNNEL << 8, 2, 2)),
            (bob(), wrap(RelayIndex(3), &data(TUNNEL << 8, 3, 3))),
        ];
        let mut sink = Forwarded::default();
        let mut inbound = Inbound::new(Takes::ALL);
        let context = Context {
            table: world.table.table(),
            mac1: &world.mac1,
            now: Instant::now(),
            counters: &counters,
        };
        for (origin, datagram) in &datagrams {
            inbound.room().unwrap()[..datagram.len()].copy_from_slice(datagram);
            let size = (datagram.len(), datagram.len());
            inbound.take(&context, *origin, size, &mut sender, &mut sink);
        }
        inbound.finish(&context, &mut sender, &mut sink);
        let sent = sink.0;
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
                Ok(Verdict::Open { .. }) => prop_assert_eq!(datagram, before),
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
