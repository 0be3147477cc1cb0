//! "Nobody has this address": ICMP and ICMPv6 destination unreachable, so that `connect` fails at once instead of timing out.
//!
//! The answer goes to our own programs alone, never to the underlay. It claims to come from the address that was asked
//! for: an address of our own would be refused by the kernel as spoofed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::wire::{checksum::Checksum, ip::IpView};

/// The longest answer: RFC 4443 wants no more than 1280 bytes; less quotes enough headers for any program.
pub const MAX_LEN: usize = 576;

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const ICMP_HEADER: usize = 8;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// RFC 792: destination unreachable, host unreachable.
const ICMP_TYPE_CODE: [u8; 2] = [3, 1];
/// RFC 4443 §3.1: destination unreachable, address unreachable.
const ICMPV6_TYPE_CODE: [u8; 2] = [1, 3];

/// Writes the answer to `packet` into `buffer`. `None` where none may be sent: to ICMP errors (an answer to an answer),
/// later fragments, multicast, and what is not well-formed.
pub fn reply<'b>(packet: &[u8], buffer: &'b mut [u8; MAX_LEN]) -> Option<&'b [u8]> {
    let view = IpView::parse(packet).ok()?;
    if view.is_reserved() || view.destination().is_multicast() {
        return None;
    }
    let bytes = view.bytes();
    match (view.source(), view.destination()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let header_len = usize::from(bytes[0] & 0xf) * 4;
            let later_fragment = u16::from_be_bytes([bytes[6], bytes[7]]) & 0x1fff != 0;
            // Only echo requests are questions among ICMP messages.
            let answer = view.protocol() == ICMP && bytes.get(header_len) != Some(&8);
            (!later_fragment && !answer).then(|| v4(source, destination, bytes, buffer))
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            // RFC 4443: types below 128 are errors; of the others only echo requests are questions.
            let answer = view.protocol() == ICMPV6 && bytes.get(IPV6_HEADER) != Some(&128);
            (!answer).then(|| v6(source, destination, bytes, buffer))
        }
        _ => None,
    }
}

fn v4<'b>(
    asker: Ipv4Addr,
    asked: Ipv4Addr,
    packet: &[u8],
    buffer: &'b mut [u8; MAX_LEN],
) -> &'b [u8] {
    let quoted = packet.len().min(MAX_LEN - IPV4_HEADER - ICMP_HEADER);
    let total = IPV4_HEADER + ICMP_HEADER + quoted;
    buffer[..IPV4_HEADER + ICMP_HEADER].fill(0);
    buffer[0] = 0x45;
    buffer[2..4].copy_from_slice(&(total as u16).to_be_bytes());
    buffer[8] = 64;
    buffer[9] = ICMP;
    buffer[12..16].copy_from_slice(&asked.octets());
    buffer[16..20].copy_from_slice(&asker.octets());
    let sum = Checksum::default().with(&buffer[..IPV4_HEADER]);
    buffer[10..12].copy_from_slice(&sum.finished());
    let icmp = &mut buffer[IPV4_HEADER..total];
    icmp[..2].copy_from_slice(&ICMP_TYPE_CODE);
    icmp[ICMP_HEADER..].copy_from_slice(&packet[..quoted]);
    let sum = Checksum::default().with(icmp);
    icmp[2..4].copy_from_slice(&sum.finished());
    &buffer[..total]
}

fn v6<'b>(
    asker: Ipv6Addr,
    asked: Ipv6Addr,
    packet: &[u8],
    buffer: &'b mut [u8; MAX_LEN],
) -> &'b [u8] {
    let quoted = packet.len().min(MAX_LEN - IPV6_HEADER - ICMP_HEADER);
    let payload = ICMP_HEADER + quoted;
    let total = IPV6_HEADER + payload;
    buffer[..IPV6_HEADER + ICMP_HEADER].fill(0);
    buffer[0] = 0x60;
    buffer[4..6].copy_from_slice(&(payload as u16).to_be_bytes());
    buffer[6] = ICMPV6;
    buffer[7] = 64;
    buffer[8..24].copy_from_slice(&asked.octets());
    buffer[24..40].copy_from_slice(&asker.octets());
    let sum = Checksum::default().with_pseudo_header(&buffer[8..40], ICMPV6, payload as u16);
    let icmp = &mut buffer[IPV6_HEADER..total];
    icmp[..2].copy_from_slice(&ICMPV6_TYPE_CODE);
    icmp[ICMP_HEADER..].copy_from_slice(&packet[..quoted]);
    let sum = sum.with(icmp);
    icmp[2..4].copy_from_slice(&sum.finished());
    &buffer[..total]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::packets::naive;

    fn echo_v4() -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0, 10, 99, 0, 1, 10, 99, 0, 9];
        packet.extend([8, 0, 0, 0, 0, 1, 0, 1]);
        packet
    }

    #[test]
    fn the_program_is_told_in_its_own_family() {
        let mut buffer = [0; MAX_LEN];
        let reply4 = reply(&echo_v4(), &mut buffer).unwrap();
        let view = IpView::parse(reply4).unwrap();
        assert_eq!(view.source().to_string(), "10.99.0.9");
        assert_eq!(view.destination().to_string(), "10.99.0.1");
        assert_eq!(view.protocol(), 1);
        assert_eq!(&reply4[20..22], [3, 1]);
        assert_eq!(&reply4[28..], echo_v4());
        assert_eq!(naive(&reply4[..20]), 0xffff);
        assert_eq!(naive(&reply4[20..]), 0xffff);

        let mut packet = vec![0x60, 0, 0, 0, 0x04, 0, 6, 64];
        packet.extend("fd00::1".parse::<Ipv6Addr>().unwrap().octets());
        packet.extend("fd00::9".parse::<Ipv6Addr>().unwrap().octets());
        packet.extend([7; 1024]);
        let reply6 = reply(&packet, &mut buffer).unwrap();
        let view = IpView::parse(reply6).unwrap();
        assert_eq!(view.source().to_string(), "fd00::9");
        assert_eq!(reply6.len(), MAX_LEN, "long packets are quoted in part");
        assert_eq!(&reply6[40..42], [1, 3]);
        assert_eq!(&reply6[48..], &packet[..MAX_LEN - 48]);
        let pseudo =
            [&reply6[8..40], &[0, 0, 0, 58], &(reply6.len() as u32 - 40).to_be_bytes()].concat();
        assert_eq!(naive(&[&pseudo, &reply6[40..]].concat()), 0xffff);
    }

    #[test]
    fn answers_and_fragments_are_not_answered() {
        let mut buffer = [0; MAX_LEN];
        let mut error = echo_v4();
        error[20] = 3;
        assert_eq!(reply(&error, &mut buffer), None);
        let mut fragment = echo_v4();
        fragment[7] = 1;
        assert_eq!(reply(&fragment, &mut buffer), None);
        let mut multicast = echo_v4();
        multicast[16] = 224;
        assert_eq!(reply(&multicast, &mut buffer), None);
        assert_eq!(reply(b"", &mut buffer), None);
    }
}
