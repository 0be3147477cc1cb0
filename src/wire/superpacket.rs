//! Superpackets: what a kernel with offloads hands over and takes, and the virtio header beside it.
//!
//! A superpacket is one GSO unit of up to 64 KiB: one IP header, one TCP or UDP header, and the payload of many segments.
//! Between two clusternet nodes it stays one. Of the virtio header only the *kind* and the *segment size* travel; whoever
//! writes the packet computes everything else from the packet itself ([`rebuild`]), so that nothing a peer sends can make
//! the kernel read a header where there is none.
//!
//! Checksums: a packet that its sender's kernel has left unfinished (`NEEDS_CSUM`) carries the sum over the pseudo-header; the
//! same is written again here for the length the packet has now, and the receiving kernel takes it as its own.
//!
//! What a kernel takes is said by `virtio_net_hdr_to_skb` (linux/virtio_net.h): a GSO type only with a payload longer than
//! one segment, of UDP only with the checksum unfinished and up to [`MAX_UDP_SEGMENTS`].

use std::ops::Range;

use super::{checksum::Checksum, ip::IpError};

/// Length of `struct virtio_net_hdr` as a TUN uses it (linux/virtio_net.h).
pub const VIRTIO_HEADER: usize = 10;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the checksum from `checksum_start` on is to be finished.
pub const NEEDS_CHECKSUM: u8 = 1;

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// Set beside the type when the TCP header has CWR, which only the first segment may say.
const GSO_ECN: u8 = 0x80;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// Where the flags stand in a TCP header.
pub const FLAGS: usize = 13;

/// The flag that ends a TCP stream.
pub const FIN: u8 = 0x01;
/// The flag of data that should not wait.
pub const PSH: u8 = 0x08;
/// The flag that says that the sender has slowed down.
pub const CWR: u8 = 0x80;

/// The smallest segment size of TCP: below it one superpacket would be thousands of packets. Linux takes no MSS below 88,
/// of which options may use 12.
pub const MIN_SEGMENT: u16 = 64;

/// The most datagrams of one UDP superpacket: `UDP_MAX_SEGMENTS` of every kernel that has it (newer ones take 128).
pub const MAX_UDP_SEGMENTS: usize = 64;

/// The longest packet: what the length field of IPv4 says at most.
pub const MAX_PACKET: usize = 0xffff;

/// `struct virtio_net_hdr`, in the byte order of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VirtioHeader {
    /// [`NEEDS_CHECKSUM`] or 0.
    pub flags: u8,
    /// `VIRTIO_NET_HDR_GSO_*`.
    pub gso_type: u8,
    /// Length of the headers, IP and transport together.
    pub header_len: u16,
    /// Payload bytes of each segment but the last.
    pub segment: u16,
    /// Where the transport header begins.
    pub checksum_start: u16,
    /// Where in it the checksum stands.
    pub checksum_offset: u16,
}

impl VirtioHeader {
    /// Reads what a TUN put in front of a packet.
    pub fn of(bytes: [u8; VIRTIO_HEADER]) -> Self {
        let [flags, gso_type, a, b, c, d, e, f, g, h] = bytes;
        Self {
            flags,
            gso_type,
            header_len: u16::from_ne_bytes([a, b]),
            segment: u16::from_ne_bytes([c, d]),
            checksum_start: u16::from_ne_bytes([e, f]),
            checksum_offset: u16::from_ne_bytes([g, h]),
        }
    }

    /// The same, with the packet behind it. `None`: fewer bytes than a header has.
    pub fn parse(bytes: &[u8]) -> Option<(Self, &[u8])> {
        bytes.split_first_chunk().map(|(header, rest)| (Self::of(*header), rest))
    }

    /// For writing in front of a packet.
    pub fn to_bytes(self) -> [u8; VIRTIO_HEADER] {
        let [a, b] = self.header_len.to_ne_bytes();
        let [c, d] = self.segment.to_ne_bytes();
        let [e, f] = self.checksum_start.to_ne_bytes();
        let [g, h] = self.checksum_offset.to_ne_bytes();
        [self.flags, self.gso_type, a, b, c, d, e, f, g, h]
    }
}

/// What travels of the virtio header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One packet, its checksum finished.
    Whole,
    /// One TCP or UDP packet whose checksum its sender's kernel left unfinished.
    Unfinished,
    /// A TCP superpacket with segments of this many bytes.
    Tcp(u16),
    /// A UDP superpacket with datagrams of this many bytes.
    Udp(u16),
}

impl Kind {
    /// As it stands on the wire: a byte for the kind and the segment size.
    pub fn to_wire(self) -> (u8, u16) {
        match self {
            Self::Whole => (0, 0),
            Self::Unfinished => (1, 0),
            Self::Tcp(segment) => (2, segment),
            Self::Udp(segment) => (3, segment),
        }
    }

    /// From the wire. `None`: no such kind, or a segment size that no kernel makes.
    pub fn from_wire(kind: u8, segment: u16) -> Option<Self> {
        match (kind, segment) {
            (0, 0) => Some(Self::Whole),
            (1, 0) => Some(Self::Unfinished),
            (2, MIN_SEGMENT..) => Some(Self::Tcp(segment)),
            (3, 1..) => Some(Self::Udp(segment)),
            _ => None,
        }
    }
}

/// Why a packet cannot be handed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShapeError {
    /// Its IP header is wrong or it is cut off.
    Ip(IpError),
    /// The transport header is missing, cut off, or not what the kind says.
    Transport,
    /// A GSO type nobody asked the kernel for.
    Gso,
    /// More datagrams than a kernel takes at once: to be segmented instead.
    Segments,
}

/// Where the headers of a TCP or UDP packet are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Headers {
    /// Which IP.
    pub is_v6: bool,
    /// TCP or UDP.
    pub is_tcp: bool,
    /// Where the transport header begins.
    pub transport: usize,
    /// Where it ends, and the payload begins.
    pub end: usize,
}

impl Headers {
    /// Finds them in the first bytes of a packet; its length does not matter. IPv6 extension headers and IPv4 fragments have
    /// no transport header for our purposes: kernels do not join them.
    ///
    /// # Errors
    /// [`ShapeError`].
    pub fn find(bytes: &[u8]) -> Result<Self, ShapeError> {
        let truncated = ShapeError::Ip(IpError::Truncated);
        let (is_v6, transport, protocol) = match bytes.first().ok_or(truncated)? >> 4 {
            4 => {
                let header: &[u8; 20] = bytes.first_chunk().ok_or(truncated)?;
                let len = usize::from(header[0] & 0xf) * 4;
                if len < 20 {
                    return Err(ShapeError::Ip(IpError::Malformed));
                }
                // Neither more fragments nor an offset.
                if u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0 {
                    return Err(ShapeError::Transport);
                }
                (false, len, header[9])
            }
            6 => (true, 40, *bytes.get(6).ok_or(truncated)?),
            _ => return Err(ShapeError::Ip(IpError::Malformed)),
        };
        let rest = bytes.get(transport..).ok_or(truncated)?;
        let len = match protocol {
            TCP => usize::from(*rest.get(12).ok_or(ShapeError::Transport)? >> 4) * 4,
            UDP => 8,
            _ => return Err(ShapeError::Transport),
        };
        let is_tcp = protocol == TCP;
        if rest.len() < len || (is_tcp && len < 20) {
            return Err(ShapeError::Transport);
        }
        Ok(Self { is_v6, is_tcp, transport, end: transport + len })
    }

    /// The IP header's own idea of the packet's length.
    pub fn stated_len(&self, packet: &[u8]) -> usize {
        let (place, before) = if self.is_v6 { (4, 40) } else { (2, 0) };
        usize::from(u16::from_be_bytes([packet[place], packet[place + 1]])) + before
    }

    /// Source and destination address, one behind the other.
    pub fn addresses(&self) -> Range<usize> {
        if self.is_v6 { 8..40 } else { 12..20 }
    }

    /// Writes the length of the packet into IP and UDP header, and the IPv4 header's checksum.
    ///
    /// # Errors
    /// [`ShapeError`]: shorter than its headers, or longer than any packet.
    pub fn set_len(&self, headers: &mut [u8], len: usize) -> Result<(), ShapeError> {
        if len < self.end {
            return Err(ShapeError::Ip(IpError::Truncated));
        }
        let total = u16::try_from(len).map_err(|_| ShapeError::Ip(IpError::Malformed))?;
        if self.is_v6 {
            headers[4..6].copy_from_slice(&(total - 40).to_be_bytes());
        } else {
            headers[2..4].copy_from_slice(&total.to_be_bytes());
            headers[10..12].fill(0);
            let sum = Checksum::default().with(&headers[..self.transport]).finished();
            headers[10..12].copy_from_slice(&sum);
        }
        if !self.is_tcp {
            let datagram = total - self.transport as u16;
            let place = self.transport + 4;
            headers[place..place + 2].copy_from_slice(&datagram.to_be_bytes());
        }
        Ok(())
    }

    /// Writes the checksum of a packet whose lengths are right.
    pub fn finish(&self, packet: &mut [u8]) {
        let place = self.checksum();
        packet[place.clone()].fill(0);
        let sum = self.pseudo_header(packet, packet.len()).with(&packet[self.transport..]);
        let sum = if self.is_tcp { sum.finished() } else { sum.finished_not_zero() };
        packet[place].copy_from_slice(&sum);
    }

    /// Whether a packet's checksum is finished and right. A UDP packet without one has none that could be.
    pub fn is_finished(&self, packet: &[u8]) -> bool {
        let is_there = self.is_tcp || packet[self.checksum()] != [0, 0];
        let sum = self.pseudo_header(packet, packet.len()).with(&packet[self.transport..]);
        is_there && sum.is_valid()
    }

    /// Where the checksum stands.
    fn checksum(&self) -> Range<usize> {
        let place = self.transport + if self.is_tcp { 16 } else { 6 };
        place..place + 2
    }

    /// Of a packet of this length.
    fn pseudo_header(&self, headers: &[u8], len: usize) -> Checksum {
        let protocol = if self.is_tcp { TCP } else { UDP };
        let len = (len - self.transport) as u16;
        Checksum::default().with_pseudo_header(&headers[self.addresses()], protocol, len)
    }
}

/// What kind of packet the kernel has handed over. A checksum that nobody could finish after us (that of an inner packet, or
/// behind IPv6 extension headers) is finished here, and the packet is [`Kind::Whole`].
///
/// # Errors
/// [`ShapeError`]: the packet is dropped.
pub fn kind(header: &VirtioHeader, packet: &mut [u8]) -> Result<Kind, ShapeError> {
    let len = packet.len();
    kind_front(header, packet, len)
}

/// As [`kind`], for a packet of `len` bytes of which at least the headers are in `packet`, the rest elsewhere.
///
/// # Errors
/// [`ShapeError`]: the packet is dropped.
pub fn kind_front(
    header: &VirtioHeader,
    packet: &mut [u8],
    len: usize,
) -> Result<Kind, ShapeError> {
    if header.gso_type == GSO_NONE && header.flags & NEEDS_CHECKSUM == 0 {
        return Ok(Kind::Whole);
    }
    let found = Headers::find(packet).and_then(|found| {
        let is_whole = found.stated_len(packet) == len;
        if is_whole { Ok(found) } else { Err(ShapeError::Ip(IpError::Truncated)) }
    });
    match header.gso_type & !GSO_ECN {
        GSO_NONE => {
            let place = |found: Headers| {
                let checksum = found.checksum().start;
                (found.transport, checksum - found.transport)
            };
            let (start, offset) = (header.checksum_start, header.checksum_offset);
            if found.map(place) == Ok((start.into(), offset.into())) {
                return Ok(Kind::Unfinished);
            }
            if packet.len() < len {
                return Err(ShapeError::Transport);
            }
            finish(header, packet).map(|()| Kind::Whole)
        }
        gso @ (GSO_TCPV4 | GSO_TCPV6 | GSO_UDP_L4) => {
            let found = found?;
            let fits = match gso {
                GSO_TCPV4 => found.is_tcp && !found.is_v6,
                GSO_TCPV6 => found.is_tcp && found.is_v6,
                _ => !found.is_tcp,
            };
            if !fits {
                return Err(ShapeError::Transport);
            }
            let kind = if found.is_tcp { 2 } else { 3 };
            Kind::from_wire(kind, header.segment).ok_or(ShapeError::Gso)
        }
        _ => Err(ShapeError::Gso),
    }
}

/// Finishes the checksum of a packet that the kernel has left unfinished, whatever is in it: for those who take nothing else.
///
/// # Errors
/// [`ShapeError::Transport`]: the header points behind the packet.
pub fn finish(header: &VirtioHeader, packet: &mut [u8]) -> Result<(), ShapeError> {
    if header.flags & NEEDS_CHECKSUM == 0 {
        return Ok(());
    }
    let start = usize::from(header.checksum_start);
    let place = start + usize::from(header.checksum_offset);
    let summed = packet.get(start..).ok_or(ShapeError::Transport)?;
    let sum = Checksum::default().with(summed).finished_not_zero();
    let place = packet.get_mut(place..place + 2).ok_or(ShapeError::Transport)?;
    place.copy_from_slice(&sum);
    Ok(())
}

/// Computes the virtio header of a packet that is to be written, from the packet itself and the kind that travelled. Sets the
/// lengths in the IP and UDP headers to what the packet has now (it may be the part of a superpacket that arrived), and the
/// unfinished checksum accordingly.
///
/// # Errors
/// [`ShapeError`]: the packet is dropped; but [`ShapeError::Segments`] only says that it must be segmented.
pub fn rebuild(kind: Kind, packet: &mut [u8]) -> Result<VirtioHeader, ShapeError> {
    let len = packet.len();
    rebuild_parts(kind, packet, len)
}

/// As [`rebuild`], for a packet of `len` bytes in several pieces, of which `headers` is the first: at least all headers.
///
/// # Errors
/// As [`rebuild`].
pub fn rebuild_parts(
    kind: Kind,
    headers: &mut [u8],
    len: usize,
) -> Result<VirtioHeader, ShapeError> {
    if kind == Kind::Whole {
        return Ok(VirtioHeader::default());
    }
    let found = Headers::find(headers)?;
    let segment = match kind {
        Kind::Whole | Kind::Unfinished => 0,
        Kind::Tcp(segment) if found.is_tcp => segment,
        Kind::Udp(segment) if !found.is_tcp => segment,
        Kind::Tcp(_) | Kind::Udp(_) => return Err(ShapeError::Transport),
    };
    found.set_len(headers, len)?;
    let payload = len - found.end;
    // What fits one segment is no superpacket: kernels refuse a GSO type on it.
    let segment = if payload > usize::from(segment) { segment } else { 0 };
    let gso_type = match found {
        _ if segment == 0 => GSO_NONE,
        Headers { is_tcp: false, .. } => {
            if payload > usize::from(segment) * MAX_UDP_SEGMENTS {
                return Err(ShapeError::Segments);
            }
            GSO_UDP_L4
        }
        Headers { is_tcp: true, is_v6, transport, .. } => {
            let gso = if is_v6 { GSO_TCPV6 } else { GSO_TCPV4 };
            if headers[transport + FLAGS] & CWR == 0 { gso } else { gso | GSO_ECN }
        }
    };
    let sum = found.pseudo_header(headers, len).unfinished();
    headers[found.checksum()].copy_from_slice(&sum);
    Ok(VirtioHeader {
        flags: NEEDS_CHECKSUM,
        gso_type,
        header_len: found.end as u16,
        segment,
        checksum_start: found.transport as u16,
        checksum_offset: (found.checksum().start - found.transport) as u16,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::packets::{Recipe, is_right, naive, payload};

    const GSO_OLD_UDP: u8 = 3;

    fn asks_to_finish(start: u16, offset: u16) -> VirtioHeader {
        VirtioHeader {
            flags: NEEDS_CHECKSUM,
            checksum_start: start,
            checksum_offset: offset,
            ..VirtioHeader::default()
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "minutes; smaller ones do the same")]
    fn a_rebuilt_packet_is_what_a_kernel_would_have_made() {
        for recipe in Recipe::all() {
            let super_kind = if recipe.is_tcp { Kind::Tcp(1340) } else { Kind::Udp(1200) };
            for (kind, len) in [super_kind, Kind::Unfinished]
                .into_iter()
                .flat_map(|kind| [0, 1, 1200, 1340, 1341, 20_000, 60_001].map(|len| (kind, len)))
            {
                let made = recipe.unfinished(&payload(len));
                // As it may have come: lengths and checksums of another packet, or somebody's lies.
                let mut packet = made.clone();
                let lengths = if recipe.is_v6 { [4, 5] } else { [2, 10] };
                lengths.iter().for_each(|place| packet[*place] ^= 0x55);
                packet[recipe.headers() - 2] = if recipe.is_tcp { 0 } else { 0x55 };
                let (_, segment) = kind.to_wire();
                let is_super = segment != 0 && len > usize::from(segment);
                let header = rebuild(kind, &mut packet).expect("well-formed");
                assert_eq!(packet, made, "{recipe:?} {kind:?} {len}");
                let again = super::kind(&header, &mut packet).expect("as made");
                assert_eq!(again, if is_super { kind } else { Kind::Unfinished });
                finish(&header, &mut packet).expect("as made");
                assert!(is_right(&packet));
                // Of a packet in pieces only the first is looked at.
                let mut first = made[..recipe.headers()].to_vec();
                assert_eq!(rebuild_parts(kind, &mut first, made.len()), Ok(header));
                assert_eq!(first, made[..recipe.headers()]);
            }
        }
    }

    #[test]
    fn the_header_says_what_linux_asks_for() {
        let options = vec![1; 12];
        let recipe = Recipe { options, flags: 0x90, ..Recipe::new(true, true) };
        let header = rebuild(Kind::Tcp(1000), &mut recipe.unfinished(&payload(1001)));
        let tcp = VirtioHeader {
            gso_type: 0x80 | 4,
            header_len: 72,
            segment: 1000,
            ..asks_to_finish(40, 16)
        };
        assert_eq!(header, Ok(tcp), "with CWR");
        let header = rebuild(Kind::Udp(100), &mut Recipe::new(false, false).unfinished(&[7; 6400]));
        let udp =
            VirtioHeader { gso_type: 5, header_len: 28, segment: 100, ..asks_to_finish(20, 6) };
        assert_eq!(header, Ok(udp), "64 datagrams");
        let header = rebuild(Kind::Udp(100), &mut Recipe::new(false, false).unfinished(&[7; 6401]));
        assert_eq!(header, Err(ShapeError::Segments));
    }

    #[test]
    fn a_kind_that_does_not_fit_the_packet_is_refused() {
        let refused = Err(ShapeError::Transport);
        let [tcp4, mut udp4, tcp6, mut udp6] =
            Recipe::all().map(|recipe| recipe.packet(&payload(5000)));
        assert_eq!(rebuild(Kind::Udp(1200), &mut tcp4.clone()), refused);
        assert_eq!(rebuild(Kind::Tcp(1200), &mut udp6), refused);
        let mut icmp = tcp6;
        icmp[6] = 58;
        assert_eq!(rebuild(Kind::Unfinished, &mut icmp), refused);
        let mut fragment = tcp4.clone();
        fragment[6] = 0x20;
        assert_eq!(rebuild(Kind::Tcp(1200), &mut fragment), refused);
        let mut liar = tcp4[..40].to_vec();
        liar[32] = 0xf0; // a TCP header of 60 bytes in a packet with 20
        assert_eq!(rebuild(Kind::Unfinished, &mut liar), refused);
        let truncated = Err(ShapeError::Ip(IpError::Truncated));
        assert_eq!(rebuild_parts(Kind::Unfinished, &mut udp4, 27), truncated);
        let malformed = Err(ShapeError::Ip(IpError::Malformed));
        assert_eq!(rebuild_parts(Kind::Unfinished, &mut udp6, 65_536), malformed);
        assert_eq!(Kind::from_wire(2, MIN_SEGMENT - 1), None);
        assert_eq!(Kind::from_wire(3, 0), None);
        assert_eq!(Kind::from_wire(9, 0), None);
    }

    #[test]
    #[cfg_attr(miri, ignore = "minutes; smaller ones do the same")]
    fn what_the_kernel_hands_over_is_told_by_its_header() {
        let [mut tcp4, mut udp4, mut tcp6, mut udp6] =
            Recipe::all().map(|recipe| recipe.unfinished(&payload(5000)));
        let mut tcp4_again = tcp4.clone();
        let header = |gso_type, segment| VirtioHeader { gso_type, segment, ..asks_to_finish(0, 0) };
        assert_eq!(kind(&VirtioHeader::default(), &mut tcp4), Ok(Kind::Whole));
        assert_eq!(kind(&VirtioHeader::default(), &mut [0]), Ok(Kind::Whole), "not looked at");
        assert_eq!(kind(&asks_to_finish(20, 16), &mut tcp4), Ok(Kind::Unfinished));
        assert_eq!(kind(&header(1, 1340), &mut tcp4), Ok(Kind::Tcp(1340)));
        assert_eq!(kind(&header(0x81, 1340), &mut tcp4), Ok(Kind::Tcp(1340)));
        assert_eq!(kind(&header(4, 1340), &mut tcp6), Ok(Kind::Tcp(1340)));
        assert_eq!(kind(&header(5, 1), &mut udp4), Ok(Kind::Udp(1)));
        assert_eq!(kind(&header(5, 1200), &mut udp6), Ok(Kind::Udp(1200)));
        for (gso, packet) in [(1, &mut tcp6), (4, &mut tcp4), (5, &mut tcp4_again), (1, &mut udp4)]
        {
            assert_eq!(kind(&header(gso, 1340), packet), Err(ShapeError::Transport));
        }
        assert_eq!(kind(&header(GSO_OLD_UDP, 1200), &mut udp4), Err(ShapeError::Gso));
        assert_eq!(kind(&header(1, MIN_SEGMENT - 1), &mut tcp4), Err(ShapeError::Gso));
        tcp4.push(0);
        let truncated = Err(ShapeError::Ip(IpError::Truncated));
        assert_eq!(kind(&header(1, 1340), &mut tcp4), truncated, "padding is no payload");
    }

    #[test]
    fn a_checksum_that_nobody_could_finish_later_is_finished_at_once() {
        // A destination option in front of the TCP header.
        let inner = Recipe::new(true, true).unfinished(&payload(99));
        let mut packet = inner[..40].to_vec();
        packet[6] = 60;
        packet[4..6].copy_from_slice(&(inner.len() as u16 - 32).to_be_bytes());
        packet.extend([6, 0, 1, 4, 0, 0, 0, 0]);
        packet.extend(&inner[40..]);
        assert_eq!(kind(&asks_to_finish(48, 16), &mut packet), Ok(Kind::Whole));
        let mut plain = inner[..40].to_vec();
        plain.extend(&packet[48..]);
        assert!(is_right(&plain));
        // Somebody else's checksum: not where ours would be.
        let mut tunnelled = [inner.as_slice(), &inner].concat();
        tunnelled[6] = 41;
        let place = inner.len() as u16 + 40;
        assert_eq!(kind(&asks_to_finish(place, 16), &mut tunnelled), Ok(Kind::Whole));
        assert!(is_right(&tunnelled[inner.len()..]));
        let last = tunnelled.len() as u16;
        for (start, offset) in
            [(last + 1, 0), (last, 0), (last - 1, 0), (0, last - 1), (0, u16::MAX)]
        {
            let refused = Err(ShapeError::Transport);
            assert_eq!(finish(&asks_to_finish(start, offset), &mut tunnelled), refused);
        }
        // Zero would say that there is none.
        let mut zero = [0xff; 2];
        assert_eq!(finish(&asks_to_finish(0, 0), &mut zero), Ok(()));
        assert_eq!(zero, [0xff; 2]);
    }

    #[test]
    fn a_header_survives_its_bytes() {
        let header = VirtioHeader {
            flags: 1,
            gso_type: 4,
            header_len: 60,
            segment: 1340,
            checksum_start: 40,
            checksum_offset: 16,
        };
        let bytes = [header.to_bytes().as_slice(), b"rest"].concat();
        assert_eq!(VirtioHeader::parse(&bytes), Some((header, b"rest".as_slice())));
        assert_eq!(VirtioHeader::parse(&bytes[..9]), None);
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
            first in prop_oneof![Just(0x45u8), Just(0x60), Just(0x4f), any::<u8>()],
            protocol in prop_oneof![Just(TCP), Just(UDP), any::<u8>()],
            wire in (0u8..5, any::<u16>()),
            places in (0..250_u16, 0..250_u16),
            gso_type in any::<u8>(),
        ) {
            if let Some(byte) = bytes.first_mut() { *byte = first; }
            for place in [6, 9] {
                if let Some(byte) = bytes.get_mut(place) { *byte = protocol; }
            }
            let header = VirtioHeader { gso_type, segment: wire.1, ..asks_to_finish(places.0, places.1) };
            let _ = kind(&header, &mut bytes);
            let summed = bytes.get(usize::from(places.0)..).map(naive);
            if finish(&header, &mut bytes).is_ok() {
                let start = usize::from(places.0);
                let place = start + usize::from(places.1);
                let sum = u16::from_be_bytes([bytes[place], bytes[place + 1]]);
                prop_assert_eq!(!sum % 0xffff, summed.unwrap_or(0) % 0xffff);
            }
            if let Some(kind) = Kind::from_wire(wire.0, wire.1)
                && let Ok(header) = rebuild(kind, &mut bytes)
                && kind != Kind::Whole
            {
                prop_assert!(usize::from(header.header_len) <= bytes.len());
                prop_assert!(usize::from(header.checksum_start + header.checksum_offset) + 2 <= bytes.len());
                let found = Headers::find(&bytes).expect("rebuilt");
                found.finish(&mut bytes);
                prop_assert!(found.is_finished(&bytes));
                prop_assert!(is_right(&bytes));
            }
        }
    }
}
