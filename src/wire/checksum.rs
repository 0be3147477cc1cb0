//! The Internet checksum (RFC 1071), over many packets a second.
//!
//! Sums are kept in the machine's byte order and unfolded: a one's complement sum comes out with its bytes swapped if its
//! words go in swapped (RFC 1071 §2 B), and wider words may be added as well (§2 C). So the loop is plain additions of 32-bit words,
//! which compilers turn into vector instructions, and nothing is swapped anywhere.

/// A sum in the making.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Checksum(u64);

impl Checksum {
    /// Adds bytes that stand at an even place of what is summed; an odd number of them only at its end.
    pub fn with(self, bytes: &[u8]) -> Self {
        let (words, rest) = bytes.as_chunks::<4>();
        // 64 bits cannot overflow before 16 GiB.
        let sum: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        Self(self.0 + sum + u64::from(u32::from_ne_bytes(last)))
    }

    /// Adds a number as it would stand in a header.
    pub fn with_number(self, number: u16) -> Self {
        Self(self.0 + u64::from(number.to_be()))
    }

    /// Adds the pseudo-header of TCP and UDP: source and destination address (one behind the other), protocol, and the
    /// length of transport header and payload. RFC 9293 §3.1, RFC 8200 §8.1.
    pub fn with_pseudo_header(self, addresses: &[u8], protocol: u8, len: u16) -> Self {
        self.with(addresses).with_number(protocol.into()).with_number(len)
    }

    /// The sum itself, as it stands in a packet whose checksum is to be finished by others.
    pub fn unfinished(self) -> [u8; 2] {
        self.fold().to_ne_bytes()
    }

    /// The checksum as it stands in a packet.
    pub fn finished(self) -> [u8; 2] {
        (!self.fold()).to_ne_bytes()
    }

    /// The checksum as it stands in a UDP packet, where zero would say that there is none (RFC 768). The same number to
    /// every other protocol.
    pub fn finished_not_zero(self) -> [u8; 2] {
        match self.finished() {
            [0, 0] => [0xff, 0xff],
            sum => sum,
        }
    }

    /// Whether what was summed, with the checksum in it, is whole.
    pub fn is_valid(self) -> bool {
        self.fold() == 0xffff
    }

    fn fold(self) -> u16 {
        let Self(sum) = self;
        // Less than 2^33, then 2^17, then at most 2^16, then less.
        let sum = (sum & 0xffff_ffff) + (sum >> 32);
        let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        sum as u16
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071's own definition, word by word in the order of the network.
    fn naive(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn the_example_of_the_rfc() {
        let sum = Checksum::default().with(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.unfinished(), [0xdd, 0xf2]);
        assert_eq!(sum.finished(), [0x22, 0x0d]);
    }

    #[test]
    fn zero_is_said_otherwise_where_it_means_none() {
        let sum = Checksum::default().with(&[0xff, 0xff]);
        assert_eq!((sum.finished(), sum.finished_not_zero()), ([0, 0], [0xff, 0xff]));
        assert_eq!(Checksum::default().finished_not_zero(), [0xff, 0xff]);
    }

    #[test]
    fn the_largest_sums_fold() {
        for sum in [u64::MAX, 0xffff_ffff_ffff_0000, 0x1_0000_ffff, 0xffff_0001] {
            let fold = Checksum(sum).fold();
            assert_eq!(u64::from(fold) % 0xffff, sum % 0xffff, "{sum:x}");
            assert_ne!(fold, 0, "only nothing sums up to nothing");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_sum_as_defined(
            bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in 0..300_usize, number in any::<u16>(),
        ) {
            let sum = Checksum::default().with(&bytes);
            prop_assert_eq!(u16::from_be_bytes(sum.unfinished()), naive(&bytes));
            let (front, back) = bytes.split_at((cut & !1).min(bytes.len() & !1));
            let in_parts = Checksum::default().with(back).with(front).with_number(number);
            let other = [number.to_be_bytes().as_slice(), &bytes].concat();
            prop_assert_eq!(in_parts.unfinished(), naive(&other).to_be_bytes());
            if bytes.len().is_multiple_of(2) {
                prop_assert!(sum.with(&sum.finished()).is_valid());
            }
        }
    }
}
