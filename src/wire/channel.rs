//! Messages of the data channel: a header like that of WireGuard's transport data under a type of its own, then a sealed text.
//!
//! ```text
//!  0        1        2        4                 8                        16
//! +--------+--------+--------+-----------------+------------------------+----------------------
//! |  0x10  |      zero       | receiver (LE)   |  counter (LE)          | sealed text, tag
//! +--------+--------+--------+-----------------+------------------------+----------------------
//!
//! the text:  0        2        4      5      6          8
//!           +--------+--------+------+------+----------+---------------------------------
//!           | number | count  | kind | zero | segment  | a packet, or one slice of it
//!           +--------+--------+------+------+----------+---------------------------------
//! ```
//! The header is authenticated with the text. An empty text is a keepalive, and confirms new keys. The slices of one
//! superpacket have consecutive counters, so number and counter name the superpacket; all slices but the last are equally
//! long, so the number tells a slice's place.

use super::superpacket::Kind;

/// First byte of a message: none of WireGuard's, nor the relay prefix's.
pub const TYPE: u8 = 0x10;

/// Length of the header.
pub const HEADER: usize = 16;

/// Length of what stands before the packet in a text that is not empty.
pub const PLACE: usize = 8;

/// The most slices of one superpacket: 64 KiB over a 1280-byte underlay make 55.
pub const MAX_SLICES: u16 = 64;

/// The header of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Index by which the receiver finds its keypair.
    pub receiver: u32,
    /// The nonce is made of it; each is used once.
    pub counter: u64,
}

impl Header {
    /// As it stands in front of a message.
    pub fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0] = TYPE;
        bytes[4..8].copy_from_slice(&self.receiver.to_le_bytes());
        bytes[8..].copy_from_slice(&self.counter.to_le_bytes());
        bytes
    }

    /// Splits a message into header and sealed text. `None`: it is not one.
    pub fn parse(message: &[u8]) -> Option<(Self, &[u8])> {
        let (header, sealed) = message.split_first_chunk::<HEADER>()?;
        let [TYPE, 0, 0, 0, a, b, c, d, counter @ ..] = *header else { return None };
        let receiver = u32::from_le_bytes([a, b, c, d]);
        Some((Self { receiver, counter: u64::from_le_bytes(counter) }, sealed))
    }
}

/// Where a text belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Which slice, from 0.
    pub number: u16,
    /// Of how many; 1 for a packet that needs no cutting.
    pub count: u16,
    /// What the whole is.
    pub kind: Kind,
}

impl Place {
    /// As it stands in front of the packet.
    pub fn to_bytes(self) -> [u8; PLACE] {
        let (kind, segment) = self.kind.to_wire();
        let [a, b] = self.number.to_le_bytes();
        let [c, d] = self.count.to_le_bytes();
        let [e, f] = segment.to_le_bytes();
        [a, b, c, d, kind, 0, e, f]
    }

    /// Splits an opened text that is not empty. `None`: it contradicts itself.
    pub fn parse(text: &[u8]) -> Option<(Self, &[u8])> {
        let (place, rest) = text.split_first_chunk::<PLACE>()?;
        let [a, b, c, d, kind, 0, e, f] = *place else { return None };
        let kind = Kind::from_wire(kind, u16::from_le_bytes([e, f]))?;
        let (number, count) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
        let is_possible = number < count && count <= MAX_SLICES && !rest.is_empty();
        is_possible.then_some((Self { number, count, kind }, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_its_bytes_and_foreign_ones_are_refused() {
        let header = Header { receiver: 0x0102_0304, counter: u64::MAX - 1 };
        let message = [header.to_bytes().as_slice(), b"sealed"].concat();
        assert_eq!(Header::parse(&message), Some((header, b"sealed".as_slice())));
        assert_eq!(Header::parse(&message[..15]), None);
        for place in 0..4 {
            let mut foreign = message.clone();
            foreign[place] ^= 4;
            assert_eq!(Header::parse(&foreign), None, "{place}");
        }
    }

    #[test]
    fn a_place_survives_its_bytes_and_impossible_ones_are_refused() {
        let place = Place { number: 2, count: 45, kind: Kind::Tcp(1340) };
        let text = [place.to_bytes().as_slice(), b"slice"].concat();
        assert_eq!(Place::parse(&text), Some((place, b"slice".as_slice())));
        assert_eq!(Place::parse(&text[..PLACE]), None, "an empty slice");
        for (at, byte) in [(0, 45), (2, 2), (2, MAX_SLICES as u8 + 1), (4, 9), (5, 1), (7, 0)] {
            let mut wrong = text.clone();
            wrong[at] = byte;
            if at == 7 {
                wrong[6] = 1; // a segment of one byte
            }
            assert_eq!(Place::parse(&wrong), None, "byte {at} = {byte}");
        }
    }
}
