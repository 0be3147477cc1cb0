//! Messages: a packet into sealed datagrams, and back. For control, which handles one at a time; workers do the same over
//! their batches.

use std::time::Instant;

use super::keypair::{KeyError, Keypair, TAG};
use crate::wire::{
    channel::{HEADER, Header, MAX_SLICES, PLACE, Place},
    relay,
    superpacket::Kind,
};

/// The largest datagram of control's making: what Ethernet carries (1,500 bytes) under IPv6 and UDP.
pub const MAX_DATAGRAM: usize = 1452;

/// The most bytes of a packet in one such datagram, a relay's prefix in front of it.
pub const MAX_SLICE: usize = MAX_DATAGRAM - relay::PREFIX - HEADER - PLACE - TAG;

/// The most bytes a packet may have when its slices are put together.
const MAX_PACKET: usize = 65_535;

/// What was sealed in a message.
#[derive(Debug, PartialEq, Eq)]
pub enum Text<'a> {
    /// Nothing: a keepalive, or the confirmation of new keys.
    Empty,
    /// A packet or one slice of it, and its place.
    Slice(Place, &'a [u8]),
    /// Something that contradicts itself: the peer is not one of ours.
    Malformed,
}

/// Seals a packet: hands out one datagram, or several with at most `slice` bytes of it each.
///
/// # Errors
/// [`KeyError::Dead`]: nothing was handed out.
pub fn seal_packet(
    keypair: &Keypair,
    packet: &[u8],
    kind: Kind,
    slice: usize,
    now: Instant,
    mut out: impl FnMut(Vec<u8>),
) -> Result<(), KeyError> {
    // Never more slices than the receiver takes, however large the packet is.
    let slice = slice.max(packet.len().div_ceil(MAX_SLICES.into())).max(1);
    let count = packet.len().div_ceil(slice) as u16;
    let first = keypair.reserve(count.into(), now)?;
    for (number, bytes) in (0..).zip(packet.chunks(slice)) {
        let place = Place { number, count, kind };
        out(seal(keypair, first + u64::from(number), &[&place.to_bytes(), bytes]));
    }
    Ok(())
}

/// Seals a message with nothing in it.
///
/// # Errors
/// [`KeyError::Dead`].
pub fn seal_empty(keypair: &Keypair, now: Instant) -> Result<Vec<u8>, KeyError> {
    let counter = keypair.reserve(1, now)?;
    Ok(seal(keypair, counter, &[]))
}

pub(super) fn seal(keypair: &Keypair, counter: u64, text: &[&[u8]]) -> Vec<u8> {
    let len: usize = text.iter().map(|part| part.len()).sum();
    let header = Header { receiver: keypair.send_index(), counter }.to_bytes();
    let mut datagram = Vec::with_capacity(HEADER + len + TAG);
    datagram.extend_from_slice(&header);
    text.iter().for_each(|part| datagram.extend_from_slice(part));
    let tag = keypair.seal(counter, &header, &mut datagram[HEADER..]);
    datagram.extend_from_slice(&tag);
    datagram
}

/// Opens a whole message in place: window, seal, window again.
///
/// # Errors
/// [`KeyError`]: the message is garbage, or seen before.
pub fn open<'a>(
    keypair: &Keypair,
    message: &'a mut [u8],
    now: Instant,
) -> Result<(Header, Text<'a>), KeyError> {
    if keypair.is_dead(now) {
        return Err(KeyError::Dead);
    }
    let (header, _) = Header::parse(message).ok_or(KeyError::Unauthentic)?;
    let (head, sealed) = message.split_at_mut(HEADER);
    let mut verdict = [(header.counter, Ok(()))];
    keypair.check(&mut verdict);
    verdict[0].1?;
    let text = keypair.open(header.counter, head, sealed)?;
    keypair.mark(&mut verdict);
    verdict[0].1?;
    if text.is_empty() {
        return Ok((header, Text::Empty));
    }
    let text =
        Place::parse(text).map_or(Text::Malformed, |(place, slice)| Text::Slice(place, slice));
    Ok((header, text))
}

/// Puts slices together that come in order and without gaps; one packet at a time. Control receives little, and whoever
/// sends much is received by workers.
#[derive(Debug, Default)]
pub struct Joiner {
    /// Header of the next slice, and its place.
    next: Option<(Header, Place)>,
    bytes: Vec<u8>,
}

impl Joiner {
    /// The packet, if this was all or the last of it.
    pub fn join(&mut self, header: Header, place: Place, slice: &[u8]) -> Option<Vec<u8>> {
        if place.number == 0 {
            self.bytes.clear();
        } else if self.next != Some((header, place)) {
            self.next = None;
            return None;
        }
        if self.bytes.len() + slice.len() > MAX_PACKET {
            self.next = None;
            return None;
        }
        self.bytes.extend_from_slice(slice);
        if place.number + 1 == place.count {
            self.next = None;
            return Some(std::mem::take(&mut self.bytes));
        }
        let counter = header.counter.saturating_add(1);
        let place = Place { number: place.number + 1, ..place };
        self.next = Some((Header { counter, ..header }, place));
        None
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use zeroize::Zeroizing;

    use super::*;
    use crate::channel::{Suite, exchange::Keys, replay::ReplayError};

    fn pair() -> (Keypair, Keypair, Instant) {
        let keys = |seal, open| Keys { seal: Zeroizing::new(seal), open: Zeroizing::new(open) };
        let now = Instant::now();
        let make = |seal: u8, open: u8, index| {
            Keypair::new(Suite::Aes256Gcm, &keys([seal; 32], [open; 32]), index, now)
        };
        (make(1, 2, 7), make(2, 1, 8), now)
    }

    fn sealed(keypair: &Keypair, packet: &[u8], slice: usize, now: Instant) -> Vec<Vec<u8>> {
        let mut datagrams = Vec::new();
        seal_packet(keypair, packet, Kind::Whole, slice, now, |d| datagrams.push(d))
            .expect("young keys");
        datagrams
    }

    fn join(by: &Keypair, datagrams: &mut [Vec<u8>], now: Instant) -> Vec<Vec<u8>> {
        let mut joiner = Joiner::default();
        let mut packets = Vec::new();
        for datagram in datagrams {
            let (header, text) = open(by, datagram, now).expect("it opens");
            let Text::Slice(place, slice) = text else { panic!("{text:?}") };
            packets.extend(joiner.join(header, place, slice));
        }
        packets
    }

    #[test]
    fn packets_of_any_length_come_out_as_they_went_in() {
        let (a, b, now) = pair();
        for len in [1, 20, 1404, 1405, 2808, 2809, 65_535] {
            let packet: Vec<u8> = (0..=255).cycle().take(len).collect();
            let mut datagrams = sealed(&a, &packet, MAX_SLICE, now);
            assert_eq!(datagrams.len(), len.div_ceil(1404), "{len}");
            assert!(datagrams.iter().all(|datagram| datagram.len() + 8 <= 1452));
            assert_eq!(join(&b, &mut datagrams, now), [packet]);
        }
        let mut datagrams = sealed(&a, &[7; 65_535], 10, now);
        assert_eq!(datagrams.len(), 64, "never more slices than a receiver takes");
        assert_eq!(join(&b, &mut datagrams, now), [vec![7; 65_535]]);
    }

    #[test]
    fn a_gap_costs_the_packet_and_nothing_after_it() {
        let (a, b, now) = pair();
        let mut datagrams = sealed(&a, &[1; 3000], MAX_SLICE, now);
        datagrams.remove(1);
        datagrams.extend(sealed(&a, &[2; 3000], MAX_SLICE, now));
        // The end of one packet never becomes the end of another.
        let mut other = sealed(&a, &[3; 3000], MAX_SLICE, now);
        datagrams.push(other.remove(2));
        assert_eq!(join(&b, &mut datagrams, now), [vec![2; 3000]]);
    }

    #[test]
    fn a_message_opens_once_and_only_under_its_keys() {
        let (a, b, now) = pair();
        let good = seal_empty(&a, now).expect("young keys");
        assert_eq!(good.len(), 32);
        assert_eq!(open(&a, &mut good.clone(), now).err(), Some(KeyError::Unauthentic));
        let (header, text) =
            open(&b, &mut good.clone(), now).map(|(h, t)| (h, t == Text::Empty)).expect("opens");
        assert_eq!((header.receiver, header.counter, text), (7, 0, true));
        let again = Err(KeyError::Replay(ReplayError::Duplicate));
        assert_eq!(open(&b, &mut good.clone(), now).map(|_| ()), again);
        for cut in 0..good.len() {
            assert!(open(&b, &mut good[..cut].to_vec(), now).is_err());
        }
        b.kill();
        let mut next = seal_empty(&a, now).expect("young keys");
        assert_eq!(open(&b, &mut next, now).err(), Some(KeyError::Dead));
    }

    #[test]
    fn what_contradicts_itself_is_said_to() {
        let (a, b, now) = pair();
        let counter = a.reserve(1, now).expect("young");
        let mut datagram = seal(&a, counter, &[&[9; 20]]);
        assert_eq!(open(&b, &mut datagram, now).map(|(_, text)| text == Text::Malformed), Ok(true));
    }
}
