//! Signed statements: the received bytes are what is verified, stored and passed on.
//!
//! Theory of operation. A statement is encoded with postcard behind one version byte. What is signed is
//! `"clusternet/1 " kind 0x00 network-id bytes`, so that no signature made for one purpose or network serves another
//! (the Ed25519 host key also signs ssh exchange hashes). A decoder refuses left-over bytes and anything that does not
//! re-encode to the same bytes, because postcard alone accepts overlong integers: one statement has one encoding.

use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    id::NetworkId,
    key::{Signature, SigningSecret, VerifyKey},
};

/// First byte of every encoded statement.
const VERSION: u8 = 1;

/// What a signature is for. Part of the signed text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The authority about one node.
    Certificate,
    /// The authority takes a certificate back.
    Revocation,
    /// The authority says how many revocations there are.
    Head,
    /// A node about itself.
    Announcement,
    /// The authority about its network.
    Master,
    /// A node asks for a certificate.
    Request,
}

impl Kind {
    /// The word that stands in the signed text.
    pub fn label(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::Revocation => "revocation",
            Self::Head => "head",
            Self::Announcement => "announcement",
            Self::Master => "master",
            Self::Request => "request",
        }
    }
}

/// Something that can be signed.
pub trait Statement: Serialize + DeserializeOwned {
    /// Its kind.
    const KIND: Kind;
    /// The most bytes an encoding may have; more is refused unread.
    const MAX_BYTES: usize;

    /// Checks what the types cannot (ranges, order of dates). Called after decoding.
    ///
    /// # Errors
    /// [`SignedError::Invalid`] with what is wrong.
    fn check(&self) -> Result<(), SignedError>;
}

/// Why a signed statement was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignedError {
    /// Longer than its kind may be.
    #[error("longer than such a statement may be")]
    TooLong,
    /// Written by a newer (or no) version of this program.
    #[error("of version {0}, which this program does not know")]
    Version(u8),
    /// Not base64 of a signature and a statement.
    #[error("not a signed statement in base64: cut off, or changed by an editor")]
    Text,
    /// Not an encoding of such a statement, or not the only one.
    #[error("malformed")]
    Malformed,
    /// The signature is not of this key over these bytes.
    #[error("the signature does not match")]
    Signature,
    /// Well-formed and signed but impossible.
    #[error("{0}")]
    Invalid(&'static str),
}

/// Bytes and signature, nothing checked: as they arrive.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawSigned {
    /// The encoded statement, version byte first.
    pub bytes: Vec<u8>,
    /// Over prefix and bytes.
    #[serde(with = "signature_bytes")]
    pub signature: Signature,
}

impl fmt::Debug for RawSigned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RawSigned({} bytes, {:?})", self.bytes.len(), self.signature)
    }
}

/// Signature, then bytes, in base64: how statements stand in files.
impl fmt::Display for RawSigned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode([self.signature.0.as_slice(), &self.bytes].concat()))
    }
}

impl FromStr for RawSigned {
    type Err = SignedError;
    fn from_str(text: &str) -> Result<Self, SignedError> {
        let all = STANDARD.decode(text.trim()).map_err(|_| SignedError::Text)?;
        let (signature, bytes) = all.split_first_chunk::<64>().ok_or(SignedError::Text)?;
        Ok(Self { bytes: bytes.to_vec(), signature: Signature(*signature) })
    }
}

impl RawSigned {
    /// Decodes without verifying: only to find out which key should have signed.
    ///
    /// # Errors
    /// As [`Signed::verify`], signature aside.
    pub fn peek<T: Statement>(&self) -> Result<T, SignedError> {
        if self.bytes.len() > T::MAX_BYTES {
            return Err(SignedError::TooLong);
        }
        let (version, body) = self.bytes.split_first().ok_or(SignedError::Malformed)?;
        if *version != VERSION {
            return Err(SignedError::Version(*version));
        }
        let (statement, rest) =
            postcard::take_from_bytes::<T>(body).map_err(|_| SignedError::Malformed)?;
        if !rest.is_empty() || encode(&statement) != self.bytes {
            return Err(SignedError::Malformed);
        }
        statement.check()?;
        Ok(statement)
    }

    /// Length on the wire, for budgets.
    pub fn wire_len(&self) -> usize {
        // Length prefix of the bytes (at most two), the bytes, the signature.
        self.bytes.len() + 2 + 64
    }
}

/// A statement whose signature has been verified, with the very bytes that were signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed<T> {
    statement: T,
    raw: RawSigned,
}

impl<T: Statement> Signed<T> {
    /// Signs a statement.
    pub fn sign(statement: T, network: &NetworkId, secret: &SigningSecret) -> Self {
        let bytes = encode(&statement);
        let signature = secret.sign(&signed_text(T::KIND, network, &bytes));
        Self { statement, raw: RawSigned { bytes, signature } }
    }

    /// Decodes and verifies strictly.
    ///
    /// # Errors
    /// [`SignedError`].
    pub fn verify(
        raw: &RawSigned,
        network: &NetworkId,
        key: &VerifyKey,
    ) -> Result<Self, SignedError> {
        let statement = raw.peek::<T>()?;
        if !key.verify(&signed_text(T::KIND, network, &raw.bytes), &raw.signature) {
            return Err(SignedError::Signature);
        }
        Ok(Self { statement, raw: raw.clone() })
    }

    /// Puts a statement that was written in another form (`master.toml`) together with its signature.
    ///
    /// # Errors
    /// [`SignedError`].
    pub fn assemble(
        statement: T,
        signature: Signature,
        network: &NetworkId,
        key: &VerifyKey,
    ) -> Result<Self, SignedError> {
        Self::verify(&RawSigned { bytes: encode(&statement), signature }, network, key)
    }

    /// The statement alone.
    pub fn statement(&self) -> &T {
        &self.statement
    }

    /// As it was received.
    pub fn raw(&self) -> &RawSigned {
        &self.raw
    }
}

impl<T> std::ops::Deref for Signed<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.statement
    }
}

fn encode<T: Statement>(statement: &T) -> Vec<u8> {
    // Statements hold no maps, floats or unsized sequences, the only things postcard cannot encode.
    postcard::to_extend(statement, vec![VERSION]).expect("statements are plain data")
}

fn signed_text(kind: Kind, network: &NetworkId, bytes: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(bytes.len() + 48);
    text.extend_from_slice(b"clusternet/1 ");
    text.extend_from_slice(kind.label().as_bytes());
    text.push(0);
    text.extend_from_slice(&network.0);
    text.extend_from_slice(bytes);
    text
}

mod signature_bytes {
    //! Signatures as 64 plain bytes: serde stops at arrays of 32.
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Signature;

    pub(super) fn serialize<S: Serializer>(value: &Signature, to: S) -> Result<S::Ok, S::Error> {
        let (low, high) = value.0.split_at(32);
        let halves: [[u8; 32]; 2] =
            [low.try_into().expect("half of 64"), high.try_into().expect("half of 64")];
        halves.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Signature, D::Error> {
        let halves = <[[u8; 32]; 2]>::deserialize(from)?;
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&halves[0]);
        bytes[32..].copy_from_slice(&halves[1]);
        Ok(Signature(bytes))
    }
}
