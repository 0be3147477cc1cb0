//! Keys: Ed25519 for signing, X25519 for tunnels. Secrets are zeroized, never printed, never serialised by accident.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Why a key in text or bytes was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not 32 bytes of standard base64 (44 characters).
    #[error("a key is 32 bytes in base64 (44 characters, the last one `=`)")]
    Encoding,
    /// Not 64 bytes of standard base64 (88 characters).
    #[error("a signature is 64 bytes in base64 (88 characters, the last two `==`)")]
    Signature,
    /// An X25519 point of low order: its shared secrets are known to everybody.
    #[error(
        "this X25519 key is a point of low order: every secret made with it would be known to everybody"
    )]
    LowOrder,
    /// The bytes are not a point of the curve.
    #[error("these bytes are not an Ed25519 public key")]
    NotAPoint,
}

fn decode_32(text: &str) -> Result<[u8; 32], KeyError> {
    let mut bytes = STANDARD.decode(text.trim()).map_err(|_| KeyError::Encoding)?;
    let key = <[u8; 32]>::try_from(bytes.as_slice()).map_err(|_| KeyError::Encoding);
    bytes.zeroize();
    key
}

fn random_32() -> [u8; 32] {
    let mut bytes = [0; 32];
    // A machine without randomness can do nothing safely: there is no error to return to a caller who could go on.
    getrandom::fill(&mut bytes).expect("the operating system has randomness");
    bytes
}

/// Fills a fresh 64-bit random number, for incarnations, epochs and probe ids.
pub fn random_u64() -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).expect("the operating system has randomness");
    u64::from_le_bytes(bytes)
}

macro_rules! public_key_text {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&STANDARD.encode(self.0))
            }
        }
        impl fmt::Debug for $name {
            /// Short form: enough to tell keys apart in a log.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}…", &STANDARD.encode(self.0)[..8])
            }
        }
        impl std::str::FromStr for $name {
            type Err = KeyError;
            fn from_str(text: &str) -> Result<Self, KeyError> {
                decode_32(text).map(Self)
            }
        }
    };
}

/// An Ed25519 public key: the authority's, or a node's *host key*.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct VerifyKey(pub [u8; 32]);
public_key_text!(VerifyKey);

/// An X25519 public key: the static key of a tunnel.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TransportKey(pub [u8; 32]);
public_key_text!(TransportKey);

/// An Ed25519 signature, 64 bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature(pub [u8; 64]);

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl std::str::FromStr for Signature {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        let bytes = STANDARD.decode(text.trim()).map_err(|_| KeyError::Signature)?;
        <[u8; 64]>::try_from(bytes.as_slice()).map(Self).map_err(|_| KeyError::Signature)
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}…", &STANDARD.encode(self.0)[..8])
    }
}

impl VerifyKey {
    /// Verifies strictly (no malleable signatures, no weak keys). `false` for any failure: callers need no more.
    pub fn verify(&self, text: &[u8], signature: &Signature) -> bool {
        VerifyingKey::from_bytes(&self.0).is_ok_and(|key| {
            key.verify_strict(text, &ed25519_dalek::Signature::from_bytes(&signature.0)).is_ok()
        })
    }

    /// Checks that the bytes are a point of the curve and not a weak one.
    ///
    /// # Errors
    /// [`KeyError::NotAPoint`].
    pub fn check(&self) -> Result<(), KeyError> {
        match VerifyingKey::from_bytes(&self.0) {
            Ok(key) if !key.is_weak() => Ok(()),
            Ok(_) | Err(_) => Err(KeyError::NotAPoint),
        }
    }
}

impl TransportKey {
    /// Refuses points of low order (protocol: such keys are never certified).
    ///
    /// # Errors
    /// [`KeyError::LowOrder`].
    pub fn check(&self) -> Result<(), KeyError> {
        // Any clamped scalar sends a low-order point to zero, whatever the scalar.
        let probe = x25519_dalek::StaticSecret::from([0x42; 32]);
        if probe.diffie_hellman(&x25519_dalek::PublicKey::from(self.0)).was_contributory() {
            Ok(())
        } else {
            Err(KeyError::LowOrder)
        }
    }
}

/// An Ed25519 secret. `Debug` shows the public half only.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SigningSecret([u8; 32]);

impl SigningSecret {
    /// A fresh secret from the operating system's randomness.
    pub fn generate() -> Self {
        Self(random_32())
    }
    /// From 32 stored bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
    /// The 32 secret bytes, for the ssh host key and for key files alone.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
    /// The public half.
    pub fn public(&self) -> VerifyKey {
        VerifyKey(SigningKey::from_bytes(&self.0).verifying_key().to_bytes())
    }
    /// Signs `text` as it is; [`super::signed`] adds the prefix that tells kinds apart.
    pub fn sign(&self, text: &[u8]) -> Signature {
        Signature(SigningKey::from_bytes(&self.0).sign(text).to_bytes())
    }
}

/// An X25519 secret. `Debug` shows the public half only.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct TransportSecret([u8; 32]);

impl TransportSecret {
    /// A fresh secret from the operating system's randomness.
    pub fn generate() -> Self {
        Self(random_32())
    }
    /// From 32 stored bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
    /// The 32 secret bytes, for the tunnel and for key files alone.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
    /// The public half.
    pub fn public(&self) -> TransportKey {
        TransportKey(
            x25519_dalek::PublicKey::from(&x25519_dalek::StaticSecret::from(self.0)).to_bytes(),
        )
    }
}

macro_rules! secret_text {
    ($name:ident) => {
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "(of {:?})"), self.public())
            }
        }
        impl $name {
            /// The secret in base64, for a key file; the string is zeroized when dropped.
            pub fn to_text(&self) -> zeroize::Zeroizing<String> {
                zeroize::Zeroizing::new(STANDARD.encode(self.0))
            }
            /// Reads what [`Self::to_text`] wrote.
            ///
            /// # Errors
            /// [`KeyError::Encoding`].
            pub fn from_text(text: &str) -> Result<Self, KeyError> {
                decode_32(text).map(Self)
            }
        }
    };
}
secret_text!(SigningSecret);
secret_text!(TransportSecret);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_never_show_in_debug() {
        let secret = SigningSecret::generate();
        assert!(!format!("{secret:?}").contains(&secret.to_text()[..8]));
        let secret = TransportSecret::generate();
        assert!(!format!("{secret:?}").contains(&secret.to_text()[..8]));
    }

    #[test]
    fn low_order_points_are_refused() {
        // RFC 7748 §6.1 and the list in Bernstein's "validate" notes: 0, 1 and a point of order 8.
        let order_8 = [
            0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f,
            0xc4, 0x6a, 0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16,
            0x5f, 0x49, 0xb8, 0x00,
        ];
        let mut one = [0; 32];
        one[0] = 1;
        for point in [[0; 32], one, order_8] {
            assert_eq!(TransportKey(point).check(), Err(KeyError::LowOrder));
        }
        assert_eq!(TransportSecret::generate().public().check(), Ok(()));
    }

    #[test]
    fn keys_survive_text() {
        let key = TransportSecret::generate().public();
        assert_eq!(key.to_string().parse(), Ok(key));
        assert_eq!("short".parse::<TransportKey>(), Err(KeyError::Encoding));
    }
}
