//! The public description of a network: what `master.toml` says and the authority signs.

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::{
    certificate::Certificate,
    endpoint::Endpoint,
    id::{Name, NetworkId, NodeNumber},
    key::{TransportKey, VerifyKey},
    signed::{Kind, SignedError, Statement},
    time::Timestamp,
};

/// The most masters a network may name.
pub const MAX_MASTERS: usize = 8;

/// The most endpoints one master may have.
pub const MAX_ENDPOINTS: usize = 8;

/// A network, as its authority describes it. Proves nothing by itself: the certificate in the key file must verify under the same authority.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Network {
    /// Counts up with every change; the higher one is newer.
    pub version: u64,
    /// The network's name.
    pub name: Name,
    /// Whose signature counts.
    pub authority: VerifyKey,
    /// Where overlay IPv4 addresses come from.
    pub ipv4: Ipv4Net,
    /// When this version was signed: a floor for every clock that sees it.
    pub date: Timestamp,
    /// The meeting places.
    pub masters: Vec<Master>,
}

/// One meeting place.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Master {
    /// The node's name.
    pub name: Name,
    /// Its number, from which its addresses follow.
    pub number: NodeNumber,
    /// The static key of its tunnels.
    pub transport: TransportKey,
    /// What proves its announcements and its ssh server.
    pub host: VerifyKey,
    /// Where it can be met.
    pub endpoints: Vec<Endpoint>,
}

impl Network {
    /// The id that goes into every signed text.
    pub fn id(&self) -> NetworkId {
        NetworkId::of(&self.authority)
    }

    /// The entry of the master with this tunnel key.
    pub fn master(&self, transport: &TransportKey) -> Option<&Master> {
        self.masters.iter().find(|master| master.transport == *transport)
    }

    /// Whether this entry describes the node of that certificate.
    pub fn is_entry_of(entry: &Master, certificate: &Certificate) -> bool {
        entry.transport == certificate.transport && Some(entry.host) == certificate.host
    }
}

impl Statement for Network {
    const KIND: Kind = Kind::Master;
    const MAX_BYTES: usize = 3800; // fits one control record of four parts

    fn check(&self) -> Result<(), SignedError> {
        if self.masters.is_empty() || self.masters.len() > MAX_MASTERS {
            return Err(SignedError::Invalid("a network has 1 to 8 masters"));
        }
        if self.masters.iter().any(|m| m.endpoints.is_empty() || m.endpoints.len() > MAX_ENDPOINTS)
        {
            return Err(SignedError::Invalid("a master has 1 to 8 endpoints"));
        }
        let twice = |a: &Master, b: &Master| {
            a.name == b.name
                || a.number == b.number
                || a.transport == b.transport
                || a.host == b.host
        };
        if self
            .masters
            .iter()
            .enumerate()
            .any(|(n, a)| self.masters[..n].iter().any(|b| twice(a, b)))
        {
            return Err(SignedError::Invalid("two masters share a name, a number or a key"));
        }
        if self.masters.iter().any(|m| m.number.ipv4(&self.ipv4).is_none()) {
            return Err(SignedError::Invalid(
                "a master's number has no address in the IPv4 network",
            ));
        }
        if self.ipv4.prefix_len() > 30 || self.ipv4.prefix_len() < 8 {
            return Err(SignedError::Invalid("the IPv4 network is not between /8 and /30"));
        }
        if self.ipv4.trunc() != self.ipv4 {
            return Err(SignedError::Invalid("the IPv4 network has host bits set"));
        }
        Ok(())
    }
}
