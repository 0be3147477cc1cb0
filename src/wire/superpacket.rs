//! Superpackets: what a kernel with offloads hands over and takes, and the virtio header beside it.
//!
//! A superpacket is one GSO unit of up to 64 KiB: one IP header, one TCP or UDP header, and the payload of many segments.
//! Between two clusternet nodes it stays one. Of the virtio header only the *kind* and the *segment size* travel; whoever
//! writes the packet computes everything else from the packet itself ([`rebuild`]), so that nothing a peer sends can make
//! the kernel read a header where there is none.
//!
//! Checksums: a packet that its sender's kernel has left unfinished (`NEEDS_CSUM`) carries the sum over the pseudo-header; the
//! same is written again here for the length the packet has now, and the receiving kernel takes it as its own.

use std::ops::Range;

use super::ip::{IpError, IpView};

/// Length of `struct virtio_net_hdr` as a TUN uses it (linux/virtio_net.h).
pub const VIRTIO_HEADER: usize = 10;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the checksum from `checksum_start` on is to be finished.
pub const NEEDS_CHECKSUM: u8 = 1;

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// Set beside the type when a segment had CWR: a matter of congestion that receivers find in the TCP header itself.
const GSO_ECN: u8 = 0x80;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// The smallest segment size accepted: below it one superpacket would be thousands of packets. RFC 9293's default MSS for
/// IPv4 is 536; real programs go lower over odd links, never this low.
pub const MIN_SEGMENT: u16 = 64;

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
    /// Reads what a TUN put in front of a packet. `None`: fewer bytes than a header has.
    pub fn parse(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (header, rest) = bytes.split_first_chunk::<VIRTIO_HEADER>()?;
        let [flags, gso_type, a, b, c, d, e, f, g, h] = *header;
        let parsed = Self {
            flags,
            gso_type,
            header_len: u16::from_ne_bytes([a, b]),
            segment: u16::from_ne_bytes([c, d]),
            checksum_start: u16::from_ne_bytes([e, f]),
            checksum_offset: u16::from_ne_bytes([g, h]),
        };
        Some((parsed, rest))
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
            (3, MIN_SEGMENT..) => Some(Self::Udp(segment)),
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
}

/// Where the transport header of a packet is.
struct Transport {
    is_v6: bool,
    protocol: u8,
    header: Range<usize>,
    checksum: usize,
}

/// Finds the transport header. IPv6 extension headers and IPv4 fragments have none for our purposes: kernels do not build
/// superpackets of them.
fn transport(packet: &[u8]) -> Result<Transport, ShapeError> {
    let view = IpView::parse(packet).map_err(ShapeError::Ip)?;
    let is_v6 = view.source().is_ipv6();
    let start = if is_v6 { 40 } else { usize::from(packet[0] & 0xf) * 4 };
    if !is_v6 && u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff != 0 {
        return Err(ShapeError::Transport);
    }
    let protocol = view.protocol();
    let rest = view.bytes().get(start..).ok_or(ShapeError::Transport)?;
    let (len, checksum) = match protocol {
        TCP => {
            let offset = *rest.get(12).ok_or(ShapeError::Transport)?;
            (usize::from(offset >> 4) * 4, 16)
        }
        UDP => (8, 6),
        _ => return Err(ShapeError::Transport),
    };
    if rest.len() < len || len < 8 || (protocol == TCP && len < 20) {
        return Err(ShapeError::Transport);
    }
    Ok(Transport { is_v6, protocol, header: start..start + len, checksum: start + checksum })
}

/// What kind of packet the kernel has handed over.
///
/// # Errors
/// [`ShapeError`]: the packet is dropped.
pub fn kind(header: &VirtioHeader, packet: &[u8]) -> Result<Kind, ShapeError> {
    match header.gso_type & !GSO_ECN {
        GSO_NONE if header.flags & NEEDS_CHECKSUM == 0 => Ok(Kind::Whole),
        GSO_NONE => transport(packet).map(|_| Kind::Unfinished),
        gso @ (GSO_TCPV4 | GSO_TCPV6 | GSO_UDP_L4) => {
            let found = transport(packet)?;
            let expected = match gso {
                GSO_TCPV4 => (TCP, Some(false)),
                GSO_TCPV6 => (TCP, Some(true)),
                _ => (UDP, None),
            };
            if found.protocol != expected.0 || expected.1.is_some_and(|v6| v6 != found.is_v6) {
                return Err(ShapeError::Transport);
            }
            // A segment size below the least is a whole packet in disguise: nobody sends such.
            let kind = if expected.0 == TCP { 2 } else { 3 };
            Kind::from_wire(kind, header.segment).ok_or(ShapeError::Gso)
        }
        _ => Err(ShapeError::Gso),
    }
}

/// Computes the virtio header of a packet that is to be written, from the packet itself and the kind that travelled. Sets the
/// lengths in the IP and UDP headers to what the packet has now (it may be the part of a superpacket that arrived), and the
/// unfinished checksum accordingly.
///
/// # Errors
/// [`ShapeError`]: the packet is dropped.
pub fn rebuild(kind: Kind, packet: &mut [u8]) -> Result<VirtioHeader, ShapeError> {
    if kind == Kind::Whole {
        return Ok(VirtioHeader::default());
    }
    set_length(packet)?;
    let found = transport(packet)?;
    let (gso_type, segment) = match kind {
        Kind::Whole | Kind::Unfinished => (GSO_NONE, 0),
        Kind::Tcp(segment) if found.protocol == TCP => {
            (if found.is_v6 { GSO_TCPV6 } else { GSO_TCPV4 }, segment)
        }
        Kind::Udp(segment) if found.protocol == UDP => (GSO_UDP_L4, segment),
        Kind::Tcp(_) | Kind::Udp(_) => return Err(ShapeError::Transport),
    };
    let payload = packet.len() - found.header.end;
    if found.protocol == UDP {
        let len = packet.len() - found.header.start;
        let len = u16::try_from(len).map_err(|_| ShapeError::Transport)?;
        packet[found.header.start + 4..found.header.start + 6].copy_from_slice(&len.to_be_bytes());
    }
    let sum = pseudo_header_sum(packet, &found);
    packet[found.checksum..found.checksum + 2].copy_from_slice(&sum.to_be_bytes());
    // What fits one segment is no superpacket: kernels refuse a GSO type on it.
    let is_super = segment != 0 && payload > usize::from(segment);
    Ok(VirtioHeader {
        flags: NEEDS_CHECKSUM,
        gso_type: if is_super { gso_type } else { GSO_NONE },
        header_len: found.header.end as u16,
        segment: if is_super { segment } else { 0 },
        checksum_start: found.header.start as u16,
        checksum_offset: (found.checksum - found.header.start) as u16,
    })
}

/// Writes the packet's length into its IP header, and the IPv4 header's checksum.
fn set_length(packet: &mut [u8]) -> Result<(), ShapeError> {
    let truncated = ShapeError::Ip(IpError::Truncated);
    match packet.first().ok_or(truncated)? >> 4 {
        4 => {
            let header_len = usize::from(packet[0] & 0xf) * 4;
            let total = u16::try_from(packet.len()).map_err(|_| ShapeError::Transport)?;
            if header_len < 20 || packet.len() < header_len {
                return Err(truncated);
            }
            packet[2..4].copy_from_slice(&total.to_be_bytes());
            packet[10..12].fill(0);
            let sum = !fold(sum_of(&packet[..header_len]));
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
            Ok(())
        }
        6 => {
            let payload = packet.len().checked_sub(40).ok_or(truncated)?;
            let payload = u16::try_from(payload).map_err(|_| ShapeError::Transport)?;
            packet[4..6].copy_from_slice(&payload.to_be_bytes());
            Ok(())
        }
        _ => Err(ShapeError::Ip(IpError::Malformed)),
    }
}

/// The sum over the pseudo-header (RFC 9293 §3.1, RFC 8200 §8.1), folded, not complemented: what `NEEDS_CSUM` expects.
fn pseudo_header_sum(packet: &[u8], found: &Transport) -> u16 {
    let addresses = if found.is_v6 { &packet[8..40] } else { &packet[12..20] };
    let len = (packet.len() - found.header.start) as u64;
    fold(sum_of(addresses) + u64::from(found.protocol) + len)
}

fn sum_of(bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(2);
    let sum: u64 = words.by_ref().map(|w| u64::from(u16::from_be_bytes([w[0], w[1]]))).sum();
    sum + words.remainder().first().map_or(0, |last| u64::from(*last) << 8)
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A packet with this much payload, headers filled in but for lengths and checksums.
    fn packet(is_v6: bool, protocol: u8, payload: usize) -> Vec<u8> {
        let mut packet = if is_v6 { vec![0; 40] } else { vec![0; 20] };
        if is_v6 {
            packet[0] = 0x60;
            packet[6] = protocol;
            packet[7] = 64;
            packet[8] = 0xfd;
            packet[24] = 0xfd;
        } else {
            packet[0] = 0x45;
            packet[8] = 64;
            packet[9] = protocol;
            packet[12..16].copy_from_slice(&[10, 99, 0, 1]);
            packet[16..20].copy_from_slice(&[10, 99, 0, 2]);
        }
        let mut header = vec![0; if protocol == TCP { 20 } else { 8 }];
        if protocol == TCP {
            header[12] = 0x50;
        }
        packet.extend_from_slice(&header);
        packet.extend((0..payload).map(|n| n as u8));
        packet
    }

    /// Finishes the checksum as the kernel would, and says whether the packet is right then.
    fn finishes_right(header: &VirtioHeader, packet: &[u8]) -> bool {
        let mut packet = packet.to_vec();
        let start = usize::from(header.checksum_start);
        let place = start + usize::from(header.checksum_offset);
        let sum = !fold(sum_of(&packet[start..]));
        packet[place..place + 2].copy_from_slice(&sum.to_be_bytes());
        let found = transport(&packet).expect("well-formed");
        let total = u64::from(pseudo_header_sum(&packet, &found)) + sum_of(&packet[start..]);
        fold(total) == 0xffff
    }

    #[test]
    fn a_rebuilt_packet_is_what_a_kernel_would_have_made() {
        for is_v6 in [false, true] {
            for (protocol, kind) in [
                (TCP, Kind::Tcp(1340)),
                (UDP, Kind::Udp(1200)),
                (TCP, Kind::Unfinished),
                (UDP, Kind::Unfinished),
            ] {
                for payload in [0, 1, 1340, 1341, 20_000, 60_001] {
                    let mut packet = packet(is_v6, protocol, payload);
                    let header = rebuild(kind, &mut packet).expect("well-formed");
                    assert!(finishes_right(&header, &packet), "{kind:?} {payload}");
                    let view = IpView::parse(&packet).expect("well-formed");
                    assert_eq!(view.bytes().len(), packet.len());
                    if !is_v6 {
                        assert_eq!(fold(sum_of(&packet[..20])), 0xffff, "IPv4 checksum");
                    }
                    let again = super::kind(&header, &packet).expect("as made");
                    let (_, segment) = kind.to_wire();
                    let is_super = segment != 0 && payload > usize::from(segment);
                    assert_eq!(again, if is_super { kind } else { Kind::Unfinished });
                }
            }
        }
    }

    #[test]
    fn a_kind_that_does_not_fit_the_packet_is_refused() {
        let refused = Err(ShapeError::Transport);
        assert_eq!(rebuild(Kind::Udp(1200), &mut packet(false, TCP, 5000)), refused);
        assert_eq!(rebuild(Kind::Tcp(1200), &mut packet(true, UDP, 5000)), refused);
        assert_eq!(rebuild(Kind::Unfinished, &mut packet(true, 58, 50)), refused);
        let mut fragment = packet(false, TCP, 5000);
        fragment[6] = 0x20;
        assert_eq!(rebuild(Kind::Tcp(1200), &mut fragment), refused);
        let mut liar = packet(false, TCP, 0);
        liar[32] = 0xf0; // a TCP header of 60 bytes in a packet with 20
        assert_eq!(rebuild(Kind::Unfinished, &mut liar), refused);
        assert_eq!(Kind::from_wire(2, MIN_SEGMENT - 1), None);
        assert_eq!(Kind::from_wire(9, 0), None);
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
            gso_type in any::<u8>(),
        ) {
            if let Some(byte) = bytes.first_mut() { *byte = first; }
            for place in [6, 9] {
                if let Some(byte) = bytes.get_mut(place) { *byte = protocol; }
            }
            let header = VirtioHeader { flags: 1, gso_type, segment: wire.1, ..VirtioHeader::default() };
            let _ = kind(&header, &bytes);
            if let Some(kind) = Kind::from_wire(wire.0, wire.1)
                && let Ok(header) = rebuild(kind, &mut bytes)
                && kind != Kind::Whole
            {
                prop_assert!(usize::from(header.header_len) <= bytes.len());
                prop_assert!(usize::from(header.checksum_start + header.checksum_offset) + 2 <= bytes.len());
            }
        }
    }
}
