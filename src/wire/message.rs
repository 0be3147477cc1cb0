//! The headers of the messages that travel as datagrams: WireGuard's four, the channel's, and the relay prefix around one of
//! them.
//!
//! ```text
//! initiation    1 0 0 0 | sender u32 | ephemeral 32 | static 48 | timestamp 28 | mac1 16 | mac2 16              148 bytes
//! response      2 0 0 0 | sender u32 | receiver u32 | ephemeral 32 | empty 16  | mac1 16 | mac2 16               92 bytes
//! cookie reply  3 0 0 0 | receiver u32 | nonce 24 | cookie 32                                                    64 bytes
//! data          4 0 0 0 | receiver u32 | counter u64 | sealed packet, tag 16                                  >= 32 bytes
//! channel    0x10 0 0 0 | receiver u32 | counter u64 | sealed text, tag 16                                   >= 32 bytes
//! relay      0x20 0 0 0 | index u32 | one of the above, never another relay             > 8 bytes
//! ```
//!
//! Integers are little endian (WireGuard §5.4). Nothing here is authenticated but what [`Mac1Key`] checks.

use blake2::{
    Blake2s256, Blake2sMac, Digest,
    digest::{Mac, consts::U16},
};

use crate::{
    wire::{
        channel,
        relay::{self, RelayIndex},
    },
    words::key::TransportKey,
};

/// Length of an initiation, exactly. WireGuard §5.4.2.
pub const INITIATION_LEN: usize = 148;
/// Length of a response, exactly. WireGuard §5.4.3.
pub const RESPONSE_LEN: usize = 92;
/// Length of a cookie reply, exactly. WireGuard §5.4.7.
pub const COOKIE_REPLY_LEN: usize = 64;
/// What transport data adds to a packet: 16 bytes of header and 16 of tag. A keepalive is nothing else. WireGuard §5.4.6.
pub const DATA_OVERHEAD: usize = 32;
/// Length of the prefix that tells a relay whose datagram this is.
pub const RELAY_PREFIX: usize = relay::PREFIX;

/// First byte of an initiation.
pub const TYPE_INITIATION: u8 = 1;
/// First byte of a response.
pub const TYPE_RESPONSE: u8 = 2;
/// First byte of a cookie reply.
pub const TYPE_COOKIE_REPLY: u8 = 3;
/// First byte of transport data.
pub const TYPE_DATA: u8 = 4;
/// First byte of a message of the data channel.
pub const TYPE_CHANNEL: u8 = channel::TYPE;
/// First byte of the relay prefix; far from WireGuard's types, so that neither is ever taken for the other.
pub const TYPE_RELAY: u8 = relay::TYPE;

/// Both macs close a handshake message: mac1, then mac2. WireGuard §5.4.4.
const MAC_LEN: usize = 16;
/// WireGuard §5.4: `LABEL-MAC1`.
const LABEL_MAC1: &[u8] = b"mac1----";

/// Why a datagram is no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// The first four bytes name no message of ours, or the reserved ones are not zero.
    #[error("a datagram of no known type")]
    UnknownType,
    /// The type is known, the length is not what it must be.
    #[error("a message of the wrong length")]
    Length,
    /// A relayed datagram inside a relayed datagram: a relay never forwards onto another relayed route.
    #[error("a relayed datagram inside a relayed datagram")]
    Nested,
}

/// One message, seen through its header. Borrowed: as long as the datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// The first message of a handshake.
    Initiation {
        /// The index by which the initiator wants to be answered.
        sender: u32,
    },
    /// The second message of a handshake.
    Response {
        /// The index by which the responder wants to be sent data.
        sender: u32,
        /// The initiator's index.
        receiver: u32,
    },
    /// "Prove that you receive at the address you send from".
    CookieReply {
        /// The index that the handshake message named as its sender.
        receiver: u32,
    },
    /// Transport data, or a keepalive if nothing is sealed in it.
    Data {
        /// Session index of the receiver.
        receiver: u32,
        /// The counter, from which the nonce is made.
        counter: u64,
        /// Whether an empty packet is sealed in it.
        keepalive: bool,
    },
    /// A message of the data channel.
    Channel {
        /// Index of the keys, and their stripe.
        receiver: u32,
        /// The counter, from which the nonce is made.
        counter: u64,
    },
    /// A datagram that is, or was, forwarded by a relay.
    Relay {
        /// The index that the relay gave to its sender (on the way to the relay) or knows its receiver by.
        index: RelayIndex,
        /// The forwarded datagram, not looked into.
        inner: &'a [u8],
    },
}

impl<'a> Message<'a> {
    /// Reads the header; the length must fit the type exactly.
    ///
    /// # Errors
    /// [`MessageError`]: unknown type, wrong length, nested relay prefix.
    pub fn parse(datagram: &'a [u8]) -> Result<Self, MessageError> {
        let Some((&[kind, 0, 0, 0], rest)) = datagram.split_first_chunk::<4>() else {
            return Err(MessageError::UnknownType);
        };
        let u32_at = |at: usize| {
            rest.get(at..)
                .and_then(|rest| rest.first_chunk::<4>())
                .map(|bytes| u32::from_le_bytes(*bytes))
                .ok_or(MessageError::Length)
        };
        let exactly = |len: usize| {
            if datagram.len() == len { Ok(()) } else { Err(MessageError::Length) }
        };
        match kind {
            TYPE_INITIATION => {
                exactly(INITIATION_LEN)?;
                Ok(Self::Initiation { sender: u32_at(0)? })
            }
            TYPE_RESPONSE => {
                exactly(RESPONSE_LEN)?;
                Ok(Self::Response { sender: u32_at(0)?, receiver: u32_at(4)? })
            }
            TYPE_COOKIE_REPLY => {
                exactly(COOKIE_REPLY_LEN)?;
                Ok(Self::CookieReply { receiver: u32_at(0)? })
            }
            TYPE_DATA => {
                if datagram.len() < DATA_OVERHEAD {
                    return Err(MessageError::Length);
                }
                Ok(Self::Data {
                    receiver: u32_at(0)?,
                    counter: u64::from(u32_at(4)?) | u64::from(u32_at(8)?) << 32,
                    keepalive: datagram.len() == DATA_OVERHEAD,
                })
            }
            TYPE_CHANNEL => {
                if datagram.len() < DATA_OVERHEAD {
                    return Err(MessageError::Length);
                }
                let counter = u64::from(u32_at(4)?) | u64::from(u32_at(8)?) << 32;
                Ok(Self::Channel { receiver: u32_at(0)?, counter })
            }
            TYPE_RELAY => {
                let (index, inner) = relay::split(datagram).ok_or(MessageError::Length)?;
                if inner[0] == TYPE_RELAY {
                    return Err(MessageError::Nested);
                }
                Ok(Self::Relay { index, inner })
            }
            0 | 5..TYPE_CHANNEL | 0x11..TYPE_RELAY | 0x21.. => Err(MessageError::UnknownType),
        }
    }

    /// The session index by which the receiver finds its tunnel: none in an initiation, in a relayed datagram, or in a message
    /// beside the tunnel.
    pub fn receiver(&self) -> Option<u32> {
        match *self {
            Self::Response { receiver, .. }
            | Self::CookieReply { receiver }
            | Self::Data { receiver, .. } => Some(receiver),
            Self::Initiation { .. } | Self::Channel { .. } | Self::Relay { .. } => None,
        }
    }

    /// Whether this is one of the two messages that carry macs and cost public-key cryptography to answer.
    pub fn is_handshake(&self) -> bool {
        match self {
            Self::Initiation { .. } | Self::Response { .. } => true,
            Self::CookieReply { .. }
            | Self::Data { .. }
            | Self::Channel { .. }
            | Self::Relay { .. } => false,
        }
    }
}

/// The key of mac1 for messages *to* the holder of one transport key: no secret, but a sender must know that key.
#[derive(Clone)]
pub struct Mac1Key([u8; 32]);

impl Mac1Key {
    /// `HASH(LABEL-MAC1 ‖ key)`. WireGuard §5.4.4.
    pub fn of(key: &TransportKey) -> Self {
        Self(Blake2s256::new().chain_update(LABEL_MAC1).chain_update(key.0).finalize().into())
    }

    /// Whether `datagram`, a handshake message by its type and length, carries a right mac1; `false` for all else.
    ///
    /// This is the cheap check (one hash over at most 132 bytes) that comes before anything that costs more.
    pub fn is_valid_in(&self, datagram: &[u8]) -> bool {
        if !Message::parse(datagram).is_ok_and(|message| message.is_handshake()) {
            return false;
        }
        let (signed, macs) = datagram.split_at(datagram.len() - 2 * MAC_LEN);
        let Ok(mac) = <Blake2sMac<U16> as Mac>::new_from_slice(&self.0) else {
            return false;
        };
        mac.chain_update(signed).verify_slice(&macs[..MAC_LEN]).is_ok()
    }
}

/// Whether a handshake message carries a right mac1 for the holder of `key`; see [`Mac1Key::is_valid_in`].
pub fn mac1_is_valid(datagram: &[u8], key: &Mac1Key) -> bool {
    key.is_valid_in(datagram)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::words::key::TransportSecret;

    fn message(kind: u8, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        bytes[0] = kind;
        for (byte, value) in bytes[4..].iter_mut().zip((1..=u8::MAX).cycle()) {
            *byte = value;
        }
        bytes
    }

    #[test]
    fn each_type_is_read_at_its_own_length_only() {
        // Lengths re-typed from the paper.
        for (kind, len) in [(1, 148), (2, 92), (3, 64)] {
            assert!(Message::parse(&message(kind, len)).is_ok(), "{kind}");
            for wrong in [len - 1, len + 1] {
                assert_eq!(Message::parse(&message(kind, wrong)), Err(MessageError::Length));
            }
        }
        for kind in [4, 0x10] {
            assert_eq!(Message::parse(&message(kind, 31)), Err(MessageError::Length));
            assert!(Message::parse(&message(kind, 32)).is_ok());
            assert!(Message::parse(&message(kind, 65_535)).is_ok());
        }
    }

    #[test]
    fn indexes_and_counters_are_little_endian() {
        assert_eq!(Message::parse(&message(2, 92)).unwrap().receiver(), Some(0x0807_0605));
        assert_eq!(
            Message::parse(&message(4, 32)),
            Ok(Message::Data {
                receiver: 0x0403_0201,
                counter: 0x0c0b_0a09_0807_0605,
                keepalive: true
            })
        );
        assert_eq!(Message::parse(&message(3, 64)).unwrap().receiver(), Some(0x0403_0201));
        assert_eq!(Message::parse(&message(1, 148)).unwrap().receiver(), None);
        assert_eq!(
            Message::parse(&message(0x10, 40)),
            Ok(Message::Channel { receiver: 0x0403_0201, counter: 0x0c0b_0a09_0807_0605 })
        );
    }

    #[test]
    fn reserved_bytes_and_unknown_types_are_refused() {
        for reserved in 1..4 {
            let mut bytes = message(4, 64);
            bytes[reserved] = 1;
            assert_eq!(Message::parse(&bytes), Err(MessageError::UnknownType));
        }
        for kind in [0, 5, 0xf, 0x11, 0x1f, 0x21, 0xff] {
            assert_eq!(Message::parse(&message(kind, 64)), Err(MessageError::UnknownType));
        }
        for len in 0..4 {
            assert_eq!(Message::parse(&vec![4; len]), Err(MessageError::UnknownType));
        }
    }

    #[test]
    fn a_relay_prefix_goes_round_and_never_nests() {
        let inner = message(4, 40);
        let mut relayed = RelayIndex(0xdead_beef).prefix().to_vec();
        assert_eq!(relayed.len(), 8);
        assert_eq!(Message::parse(&relayed), Err(MessageError::Length));
        relayed.extend_from_slice(&inner);
        assert_eq!(
            Message::parse(&relayed),
            Ok(Message::Relay { index: RelayIndex(0xdead_beef), inner: &inner })
        );
        let twice = [RelayIndex(1).prefix().to_vec(), relayed].concat();
        assert_eq!(Message::parse(&twice), Err(MessageError::Nested));
    }

    #[test]
    #[cfg_attr(miri, ignore = "boringtun asks for a clock that miri has not")]
    fn mac1_is_the_one_boringtun_writes() {
        let us = TransportSecret::generate();
        let mut tunn = boringtun::noise::Tunn::new(
            TransportSecret::generate().expose().to_owned().into(),
            us.public().0.into(),
            None,
            None,
            7,
            None,
        );
        let mut buffer = [0; 148];
        tunn.format_handshake_initiation(&mut buffer, false);
        assert!(mac1_is_valid(&buffer, &Mac1Key::of(&us.public())));
        let other = TransportSecret::generate().public();
        assert!(!mac1_is_valid(&buffer, &Mac1Key::of(&other)));
        buffer[50] ^= 1;
        assert!(!mac1_is_valid(&buffer, &Mac1Key::of(&us.public())));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0_u8..0x24) {
            let key = Mac1Key([1; 32]);
            let _ = Message::parse(&bytes);
            prop_assert!(!key.is_valid_in(&bytes));
            let mut typed = bytes;
            if typed.len() >= 4 {
                typed[..4].copy_from_slice(&[kind, 0, 0, 0]);
            }
            let _ = Message::parse(&typed);
            let _ = key.is_valid_in(&typed);
        }
    }
}
