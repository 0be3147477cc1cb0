//! What two nodes say to each other to agree on channel keys: what they can do, the offer, the answer.
//!
//! What is computed from it is the business of [`crate::channel`]; here are the words alone.

use serde::{Deserialize, Serialize};

/// An AEAD that both sides can use.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash, Serialize, Deserialize)]
pub enum Suite {
    /// ChaCha20-Poly1305 (RFC 8439): fast everywhere.
    ChaCha20Poly1305,
    /// AES-256-GCM (NIST SP 800-38D): several times faster where the CPU has AES instructions.
    Aes256Gcm,
}

/// A set of suites, as bits: bit n is the n-th variant of [`Suite`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Suites(pub u8);

impl Suites {
    /// Only this one.
    pub fn only(suite: Suite) -> Self {
        Self(1 << suite as u8)
    }

    /// What this machine can use: AES only where the CPU does it, since a table-driven AES is slow and leaks by timing.
    pub fn of(has_aes: bool) -> Self {
        let chacha = Self::only(Suite::ChaCha20Poly1305);
        if has_aes { Self(chacha.0 | Self::only(Suite::Aes256Gcm).0) } else { chacha }
    }

    /// Whether a suite is among them.
    pub fn contains(self, suite: Suite) -> bool {
        self.0 & Self::only(suite).0 != 0
    }

    /// The best suite that both have.
    pub fn choose(self, theirs: Self) -> Option<Suite> {
        let both = Self(self.0 & theirs.0);
        [Suite::Aes256Gcm, Suite::ChaCha20Poly1305].into_iter().find(|s| both.contains(*s))
    }
}

/// The most stripes a node may have: more threads than this never feed one peer.
pub const MAX_STRIPES: u8 = 16;

/// What a node can do, as bits: bit 0, it has the data channel; bits 8 to 12, with how many stripes it seals.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Features(pub u32);

impl Features {
    const CHANNEL: u32 = 1;
    const STRIPES: (u32, u32) = (8, 0x1f);

    /// Of a node with the data channel and so many stripes.
    pub fn channel(stripes: u8) -> Self {
        let stripes = u32::from(stripes.clamp(1, MAX_STRIPES));
        Self(Self::CHANNEL | stripes << Self::STRIPES.0)
    }

    /// Whether it has the data channel.
    pub fn has_channel(self) -> bool {
        self.0 & Self::CHANNEL != 0
    }

    /// With how many stripes it seals: whatever it says, at least one and not too many.
    pub fn stripes(self) -> u8 {
        let (shift, mask) = Self::STRIPES;
        ((self.0 >> shift & mask) as u8).clamp(1, MAX_STRIPES)
    }
}

/// "Let us have new keys." About 1.3 KB: two parts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Offer {
    /// Rises with every offer of one start of the offerer; lower ones and answered ones are ignored.
    pub number: u64,
    /// By which index the offerer wants to be sent data.
    pub receiver: u32,
    /// Its X25519 share.
    pub x25519: [u8; 32],
    /// Its ML-KEM-768 encapsulation key.
    pub mlkem: Vec<u8>,
}

/// "So be it." The same offer gets the byte-same answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Accept {
    /// Of the offer.
    pub number: u64,
    /// By which index the answerer wants to be sent data.
    pub receiver: u32,
    /// The suite chosen from both sides' lists.
    pub suite: Suite,
    /// Its X25519 share.
    pub x25519: [u8; 32],
    /// ML-KEM-768 ciphertext.
    pub mlkem: Vec<u8>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aes_is_chosen_only_where_both_have_it() {
        let (with, without) = (Suites::of(true), Suites::of(false));
        assert_eq!(with.choose(with), Some(Suite::Aes256Gcm));
        assert_eq!(with.choose(without), Some(Suite::ChaCha20Poly1305));
        assert_eq!(Suites(0).choose(with), None);
        assert_eq!(Suites(0x80).choose(Suites(0x80)), None, "a suite of the future");
    }

    #[test]
    fn features_survive_their_bits_and_strange_ones_are_bounded() {
        for stripes in 1..=16 {
            let features = Features::channel(stripes);
            assert!(features.has_channel() && features.stripes() == stripes);
        }
        assert!(!Features(0).has_channel());
        assert_eq!(Features(1).stripes(), 1, "none said");
        assert_eq!(Features(u32::MAX).stripes(), 16);
        assert_eq!(Features::channel(200).stripes(), 16);
    }
}
