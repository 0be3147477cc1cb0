//! The relay prefix: eight bytes in front of a sealed datagram that a third node forwards.
//!
//! ```text
//!  0        1        2        3        4                 8
//! +--------+--------+--------+--------+-----------------+---------
//! |  0x20  |        zero              |  index (LE)     | datagram
//! +--------+--------+--------+--------+-----------------+---------
//! ```
//! The first byte is none of WireGuard's four message types. A relay swaps the index and does no cryptography.

/// First byte of a relayed datagram.
pub const TYPE: u8 = 0x20;

/// Length of the prefix.
pub const PREFIX: usize = 8;

/// A number that a relay gave to one direction of one pair of nodes.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct RelayIndex(pub u32);

impl RelayIndex {
    /// The prefix that carries it.
    pub fn prefix(self) -> [u8; PREFIX] {
        let index = self.0.to_le_bytes();
        [TYPE, 0, 0, 0, index[0], index[1], index[2], index[3]]
    }
}

/// Splits a relayed datagram into index and what is inside. `None`: it is not one, or there is nothing inside.
pub fn split(datagram: &[u8]) -> Option<(RelayIndex, &[u8])> {
    let (prefix, inner) = datagram.split_first_chunk::<PREFIX>()?;
    let [TYPE, 0, 0, 0, a, b, c, d] = *prefix else { return None };
    (!inner.is_empty()).then_some((RelayIndex(u32::from_le_bytes([a, b, c, d])), inner))
}

/// Puts the prefix in front of a datagram.
pub fn wrap(index: RelayIndex, datagram: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(PREFIX + datagram.len());
    out.extend_from_slice(&index.prefix());
    out.extend_from_slice(datagram);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_wrapped_is_split_again() {
        let wrapped = wrap(RelayIndex(0x0102_0304), b"inner");
        assert_eq!(split(&wrapped), Some((RelayIndex(0x0102_0304), b"inner".as_slice())));
    }

    #[test]
    fn a_bare_prefix_and_foreign_types_are_not_relayed() {
        assert_eq!(split(&RelayIndex(7).prefix()), None);
        assert_eq!(split(&[4, 0, 0, 0, 1, 0, 0, 0, 9]), None);
        assert_eq!(split(&[TYPE, 1, 0, 0, 1, 0, 0, 0, 9]), None);
        assert_eq!(split(&[]), None);
    }
}
