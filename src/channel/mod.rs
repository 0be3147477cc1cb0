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
pub mod message;
pub mod replay;
pub mod state;

use std::time::Duration;

pub use crate::wire::exchange::{Suite, Suites};

/// Age at which new keys are made: WireGuard's REKEY_AFTER_TIME.
pub const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);

/// Age at which keys are refused, for sealing and for opening: WireGuard's REJECT_AFTER_TIME.
pub const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);

/// Messages after which new keys are made.
pub const REKEY_AFTER_MESSAGES: u64 = 1 << 28;

/// Messages after which a key seals no more. AES-GCM's bound, not ChaCha's: with 2^32 messages of up to 2^12 blocks each an
/// attacker's advantage stays below 2^-40 (RFC 8446 §5.5 allows 2^24.5 full-size records for a far smaller one).
pub const REJECT_AFTER_MESSAGES: u64 = 1 << 32;

/// What this machine can use.
pub fn suites_here() -> Suites {
    #[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
    let has_aes = std::arch::is_x86_feature_detected!("aes")
        && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    let has_aes = std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "x86", target_arch = "aarch64")))]
    let has_aes = false;
    Suites::of(has_aes)
}
