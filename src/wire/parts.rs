//! Parts: cuts records that are too large for one control packet, and puts them together again.
//!
//! Every control payload begins with `[version, count, number, 0, id (u32 LE)]`; a record that fits has count 1. The
//! receiver holds at most one unfinished record of [`MAX_PARTS`] parts per peer: a new id drops the old one, since
//! the sender repeats until answered anyway.

use super::record::{MAX_PAYLOAD, Record, RecordError, packet, payload};

/// First byte of every control payload.
const VERSION: u8 = 1;

/// Length of the part header.
const HEADER: usize = 8;

/// The most parts of one record: 4 KiB hold the largest network description and a channel offer.
pub const MAX_PARTS: usize = 4;

/// The most bytes of one encoded record.
pub const MAX_RECORD: usize = MAX_PARTS * (MAX_PAYLOAD - HEADER);

/// The most encoded bytes that still travel in a single packet.
pub const MAX_SINGLE: usize = MAX_PAYLOAD - HEADER;

/// Cuts a record into control packets. A record above [`MAX_RECORD`] yields nothing: its makers keep to budgets.
pub fn split(record: &Record, id: u32) -> Vec<Vec<u8>> {
    let bytes = record.encode();
    if bytes.len() > MAX_RECORD {
        debug_assert!(false, "{} of {} bytes", record.kind(), bytes.len());
        return Vec::new();
    }
    let chunks: Vec<&[u8]> = bytes.chunks(MAX_SINGLE).collect();
    let count = chunks.len() as u8;
    let part = |(number, chunk): (usize, &&[u8])| {
        let mut part = Vec::with_capacity(HEADER + chunk.len());
        part.extend_from_slice(&[VERSION, count, number as u8, 0]);
        part.extend_from_slice(&id.to_le_bytes());
        part.extend_from_slice(chunk);
        packet(&part)
    };
    chunks.iter().enumerate().map(part).collect()
}

/// Puts parts together: one per peer.
#[derive(Debug, Default)]
pub struct Assembler {
    id: u32,
    parts: Vec<Option<Vec<u8>>>,
}

impl Assembler {
    /// Takes a control packet. `Ok(None)`: a part, others are missing still.
    ///
    /// # Errors
    /// [`RecordError`]: the packet is dropped, an unfinished record is kept.
    pub fn handle_packet(&mut self, bytes: &[u8]) -> Result<Option<Record>, RecordError> {
        let payload = payload(bytes).ok_or(RecordError::Malformed)?;
        let (header, chunk) =
            payload.split_first_chunk::<HEADER>().ok_or(RecordError::Malformed)?;
        let [VERSION, count, number, 0, a, b, c, d] = *header else {
            return Err(RecordError::Malformed);
        };
        let (count, number) = (usize::from(count), usize::from(number));
        let id = u32::from_le_bytes([a, b, c, d]);
        if count == 1 && number == 0 {
            return Record::decode(chunk).map(Some);
        }
        if !(2..=MAX_PARTS).contains(&count) || number >= count || chunk.is_empty() {
            return Err(RecordError::Malformed);
        }
        if self.id != id || self.parts.len() != count {
            self.id = id;
            self.parts = vec![None; count];
        }
        self.parts[number] = Some(chunk.to_vec());
        if self.parts.iter().any(Option::is_none) {
            return Ok(None);
        }
        let whole: Vec<u8> =
            std::mem::take(&mut self.parts).into_iter().flatten().flatten().collect();
        Record::decode(&whole).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        wire::record::Entry,
        words::{key::Signature, signed::RawSigned},
    };

    fn large() -> Record {
        let raw = RawSigned {
            bytes: (0..=255).cycle().take(3000).collect(),
            signature: Signature([7; 64]),
        };
        Record::News { entries: vec![Entry::Network(raw)] }
    }

    #[test]
    fn parts_in_any_order_make_the_record() {
        let mut packets = split(&large(), 9);
        assert_eq!(packets.len(), 3);
        assert!(packets.iter().all(|packet| packet.len() <= crate::wire::record::MAX_PACKET));
        packets.reverse();
        let mut assembler = Assembler::default();
        assert_eq!(assembler.handle_packet(&packets[0]), Ok(None));
        assert_eq!(assembler.handle_packet(&packets[0]), Ok(None), "twice");
        assert_eq!(assembler.handle_packet(&packets[1]), Ok(None));
        assert_eq!(assembler.handle_packet(&packets[2]), Ok(Some(large())));
    }

    #[test]
    fn a_new_record_drops_an_unfinished_one() {
        let (first, second) = (split(&large(), 1), split(&large(), 2));
        let mut assembler = Assembler::default();
        assert_eq!(assembler.handle_packet(&first[0]), Ok(None));
        assert_eq!(assembler.handle_packet(&second[1]), Ok(None));
        assert_eq!(assembler.handle_packet(&second[2]), Ok(None));
        assert_eq!(assembler.handle_packet(&second[0]), Ok(Some(large())));
    }

    #[test]
    fn single_records_do_not_disturb_an_unfinished_one() {
        let parts = split(&large(), 1);
        let mut assembler = Assembler::default();
        assert_eq!(assembler.handle_packet(&parts[0]), Ok(None));
        let small = split(&Record::Leaving, 2);
        assert_eq!(assembler.handle_packet(&small[0]), Ok(Some(Record::Leaving)));
        assert_eq!(assembler.handle_packet(&parts[1]), Ok(None));
        assert_eq!(assembler.handle_packet(&parts[2]), Ok(Some(large())));
    }
}
