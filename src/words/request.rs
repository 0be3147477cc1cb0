//! Requests: a node asks for a certificate for keys that never leave it.

use serde::{Deserialize, Serialize};

use super::{
    id::Name,
    key::{TransportKey, VerifyKey},
    signed::{Kind, RawSigned, Signed, SignedError, Statement},
};
use crate::words::id::NetworkId;

/// What a node asks the admin to sign; signed by its own host key over both public keys and the name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Request {
    /// The name it would like.
    pub name: Name,
    /// Its tunnel key.
    pub transport: TransportKey,
    /// Its host key, which signs this.
    pub host: VerifyKey,
}

impl Request {
    /// Verifies that the maker of the request holds the host key it names.
    ///
    /// # Errors
    /// [`SignedError`].
    pub fn verify(raw: &RawSigned) -> Result<Signed<Self>, SignedError> {
        let host = raw.peek::<Self>()?.host;
        Signed::verify(raw, &NetworkId::NONE, &host)
    }
}

impl Statement for Request {
    const KIND: Kind = Kind::Request;
    const MAX_BYTES: usize = 160;

    fn check(&self) -> Result<(), SignedError> {
        if self.transport.check().is_err() {
            return Err(SignedError::Invalid("its transport key is of low order"));
        }
        if self.host.check().is_err() {
            return Err(SignedError::Invalid("its host key is not a usable Ed25519 key"));
        }
        Ok(())
    }
}
