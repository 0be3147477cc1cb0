//! Segment: a superpacket becomes the finished packets that its sender's kernel would have sent without offloads. No I/O.
//!
//! For those who take nothing else: plain WireGuard peers, control, and kernels to whom a superpacket has too many datagrams.
//! The segments are made where the superpacket stands: each gets its headers right in front of its payload, over the end of
//! the one before, which has been handed on by then. So no payload is copied.

use crate::wire::superpacket::{CWR, FIN, FLAGS, Headers, Kind, PSH, ShapeError};

/// IPv4 header with all options, TCP header with all options.
const MAX_HEADERS: usize = 60 + 60;

/// The most segments of one superpacket: 64 KiB in the smallest segments of TCP; of UDP kernels make 128.
const MAX_SEGMENTS: usize = 1024;

/// Hands each segment, in order, to `each`; a packet that is none of many just finished, or as it is if it is
/// [`Kind::Whole`]. What is in `packet` afterwards is of no use.
///
/// # Errors
/// [`ShapeError`]: no packet of that kind; nothing has been handed on.
pub fn segment(
    kind: Kind,
    packet: &mut [u8],
    mut each: impl FnMut(&[u8]),
) -> Result<(), ShapeError> {
    if kind == Kind::Whole {
        each(packet);
        return Ok(());
    }
    let found = Headers::find(packet)?;
    let payload = packet.len() - found.end;
    let size = match kind {
        Kind::Whole | Kind::Unfinished => payload,
        Kind::Tcp(size) if found.is_tcp => size.into(),
        Kind::Udp(size) if !found.is_tcp => size.into(),
        Kind::Tcp(_) | Kind::Udp(_) => return Err(ShapeError::Transport),
    };
    let size = size.max(1);
    if payload.div_ceil(size) > MAX_SEGMENTS {
        return Err(ShapeError::Segments);
    }
    let mut headers = [0; MAX_HEADERS];
    let headers = &mut headers[..found.end];
    headers.copy_from_slice(&packet[..found.end]);
    for (number, start) in (0..payload.max(1)).step_by(size).enumerate() {
        let end = (start + size).min(payload);
        let segment = &mut packet[start..found.end + end];
        segment[..found.end].copy_from_slice(headers);
        if found.is_tcp {
            advance(&mut segment[found.transport..], start, end == payload);
        }
        if !found.is_v6 {
            let id = u16::from_be_bytes([headers[4], headers[5]]).wrapping_add(number as u16);
            segment[4..6].copy_from_slice(&id.to_be_bytes());
        }
        let len = segment.len();
        found.set_len(segment, len)?;
        found.finish(segment);
        each(segment);
    }
    Ok(())
}

/// Makes the TCP header of a superpacket that of the segment whose payload begins at `offset`: CWR is said by the first
/// alone, FIN and PSH by the last.
fn advance(tcp: &mut [u8], offset: usize, is_last: bool) {
    let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]).wrapping_add(offset as u32);
    tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
    if offset > 0 {
        tcp[FLAGS] &= !CWR;
    }
    if !is_last {
        tcp[FLAGS] &= !(FIN | PSH);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::{
        ip::IpError,
        packets::{self, Recipe, is_right, payload},
    };

    fn segments(kind: Kind, packet: &[u8]) -> Result<Vec<Vec<u8>>, ShapeError> {
        let mut all = Vec::new();
        segment(kind, &mut packet.to_vec(), |segment| all.push(segment.to_vec()))?;
        Ok(all)
    }

    fn super_kind(recipe: &Recipe, size: u16) -> Kind {
        if recipe.is_tcp { Kind::Tcp(size) } else { Kind::Udp(size) }
    }

    /// What the sender would have sent without offloads.
    fn expected(recipe: &Recipe, payload: &[u8], size: usize) -> Vec<Vec<u8>> {
        let count = payload.len().div_ceil(size);
        let one = |(number, part): (usize, &[u8])| {
            let mut recipe = recipe.clone();
            recipe.id = recipe.id.wrapping_add(number as u16);
            recipe.sequence = recipe.sequence.wrapping_add((number * size) as u32);
            if number > 0 {
                recipe.flags &= !packets::CWR;
            }
            if number + 1 < count {
                recipe.flags &= !(packets::FIN | packets::PSH);
            }
            recipe.packet(part)
        };
        payload.chunks(size).enumerate().map(one).collect()
    }

    #[test]
    #[cfg_attr(miri, ignore = "minutes; smaller ones do the same")]
    fn a_superpacket_becomes_what_its_sender_would_have_sent() {
        for mut recipe in Recipe::all() {
            if recipe.is_tcp {
                recipe.flags = packets::CWR | packets::ACK | packets::PSH | packets::FIN;
                recipe.options = (1..=12).collect();
            }
            for size in [100, 536, 1340, 8948] {
                for len in [1, 99, 100, 101, 1340, 1341, 2680, 30_001] {
                    let payload = payload(len);
                    let made = segments(super_kind(&recipe, size), &recipe.unfinished(&payload));
                    assert_eq!(
                        made,
                        Ok(expected(&recipe, &payload, size.into())),
                        "{recipe:?} {size} {len}"
                    );
                }
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "minutes; smaller ones do the same")]
    fn a_single_packet_is_finished_or_left_as_it_is() {
        for recipe in Recipe::all() {
            for len in [0, 1, 1400, 60_000] {
                let payload = payload(len);
                let made = recipe.unfinished(&payload);
                assert_eq!(segments(Kind::Unfinished, &made), Ok(vec![recipe.packet(&payload)]));
                let small = segments(super_kind(&recipe, 60_000), &made);
                assert_eq!(small, Ok(vec![recipe.packet(&payload)]), "not longer than a segment");
            }
        }
        assert_eq!(segments(Kind::Whole, b"anything"), Ok(vec![b"anything".to_vec()]));
    }

    #[test]
    #[cfg_attr(miri, ignore = "minutes; smaller ones do the same")]
    fn what_is_no_such_superpacket_is_refused() {
        let [tcp, udp, ..] = Recipe::all().map(|recipe| recipe.unfinished(&payload(2000)));
        assert_eq!(segments(Kind::Udp(500), &tcp), Err(ShapeError::Transport));
        assert_eq!(segments(Kind::Tcp(500), &udp), Err(ShapeError::Transport));
        assert_eq!(segments(Kind::Udp(1), &udp), Err(ShapeError::Segments));
        assert_eq!(segments(Kind::Udp(0), &udp), Err(ShapeError::Segments));
        assert_eq!(segments(Kind::Udp(2), &udp).map(|all| all.len()), Ok(1000));
        let mut fragment = udp;
        fragment[7] = 1;
        assert_eq!(segments(Kind::Udp(500), &fragment), Err(ShapeError::Transport));
        let truncated = Err(ShapeError::Ip(IpError::Truncated));
        assert_eq!(segments(Kind::Tcp(500), &tcp[..19]), truncated);
    }

    proptest! {
        #[test]
        fn any_superpacket_becomes_what_its_sender_would_have_sent(
            kind in (any::<bool>(), any::<bool>()), numbers in any::<(u16, u32, u8)>(), words in 0..10_usize,
            size in 64..2000_u16, len in 0..if cfg!(miri) { 500_usize } else { 5000 },
        ) {
            let (id, sequence, flags) = numbers;
            let recipe = Recipe::new(kind.0, kind.1);
            let options = if kind.1 { vec![7; words * 4] } else { Vec::new() };
            let recipe = Recipe { id, sequence, flags, options, ..recipe };
            let payload = payload(len + 1);
            let made = segments(super_kind(&recipe, size), &recipe.unfinished(&payload));
            prop_assert_eq!(made, Ok(expected(&recipe, &payload, size.into())));
        }

        #[test]
        fn hostile_bytes_become_right_packets_or_none(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..400),
            first in prop::sample::select(vec![0x45_u8, 0x46, 0x4f, 0x60, 0]),
            protocol in prop::sample::select(vec![6_u8, 17, 1]),
            kind in (1..4_u8, 1..200_u16),
        ) {
            if let Some(byte) = bytes.first_mut() { *byte = first; }
            for place in [6, 9] {
                if let Some(byte) = bytes.get_mut(place) { *byte = protocol; }
            }
            if first >> 4 == 4 && bytes.len() > 8 {
                bytes[6..8].copy_from_slice(&[0x40, 0]);
            }
            let kind = match kind {
                (1, _) => Kind::Unfinished,
                (2, size) => Kind::Tcp(size),
                (_, size) => Kind::Udp(size),
            };
            let mut all = true;
            let result = segment(kind, &mut bytes, |segment| all &= is_right(segment));
            prop_assert!(all, "{:?}", result);
        }
    }
}
