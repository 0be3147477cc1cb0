//! The data channel: keys agreed inside a tunnel, for bulk data beside it.
//!
//! Theory of operation. boringtun gives no access to its keys, locks one peer to one core and copies every packet. So
//! two clusternet nodes agree on keys of their own by control records inside the tunnel ([`exchange`]): X25519 together
//! with ML-KEM-768, so that recorded traffic stays safe from a later quantum computer. Each agreement gives one key per
//! direction and stripe; a [`keypair::Keypair`] holds them, immutable but for its counter and its [`replay`] window, and is
//! shared by `Arc`: workers seal and open without a lock that control holds.
//!
//! Keys live only in the memory of the process that agreed on them. Every start is a new incarnation with new keys, and
//! that alone rules out that a nonce is used twice after a crash.

pub mod exchange;
pub mod keypair;
pub mod replay;

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Age at which new keys are made: WireGuard's REKEY_AFTER_TIME.
pub const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);

/// Age at which keys are refused, for sealing and for opening: WireGuard's REJECT_AFTER_TIME.
pub const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);

/// Messages after which new keys are made.
pub const REKEY_AFTER_MESSAGES: u64 = 1 << 28;

/// Messages after which a key seals no more. AES-GCM's bound, not ChaCha's: with 2^32 messages of up to 2^12 blocks each an
/// attacker's advantage stays below 2^-40 (RFC 8446 §5.5 allows 2^24.5 full-size records for a far smaller one).
pub const REJECT_AFTER_MESSAGES: u64 = 1 << 32;

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
}
