//! Revocations: the authority takes certificates back. Numbered 1..N without gaps, counted by a signed head.

use serde::{Deserialize, Serialize};

use super::{
    certificate::Certificate,
    id::Serial,
    key::{TransportKey, VerifyKey},
    signed::{Kind, SignedError, Statement},
    time::Timestamp,
};

/// One revocation. A certificate is refused if its serial *or* its transport key *or* its host key is named.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Revocation {
    /// Its place in the list, from 1.
    pub number: u64,
    /// The serial that ends.
    pub serial: Serial,
    /// The transport key that ends.
    pub transport: TransportKey,
    /// The host key that ends, where the certificate had one.
    pub host: Option<VerifyKey>,
    /// When it was signed.
    pub date: Timestamp,
}

impl Revocation {
    /// Whether this certificate is refused because of it.
    pub fn names(&self, certificate: &Certificate) -> bool {
        self.serial == certificate.serial
            || self.transport == certificate.transport
            || (self.host.is_some() && self.host == certificate.host)
    }
}

impl Statement for Revocation {
    const KIND: Kind = Kind::Revocation;
    const MAX_BYTES: usize = 120;

    fn check(&self) -> Result<(), SignedError> {
        if self.number == 0 {
            return Err(SignedError::Invalid("revocations are numbered from 1"));
        }
        Ok(())
    }
}

/// How many revocations there are: nobody can withhold one from a node that knows the head without showing it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Head {
    /// The number of the newest revocation; 0 while there is none.
    pub count: u64,
    /// When it was signed: a floor for every clock that sees it.
    pub date: Timestamp,
}

impl Statement for Head {
    const KIND: Kind = Kind::Head;
    const MAX_BYTES: usize = 32;

    fn check(&self) -> Result<(), SignedError> {
        Ok(())
    }
}
