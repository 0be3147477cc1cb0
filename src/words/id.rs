//! Names and numbers: networks, nodes, serials, and the addresses that follow from them.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::key::VerifyKey;

/// Which network: the first 16 bytes of SHA-256 over a label and the authority's key. Part of every signed text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NetworkId(pub [u8; 16]);

impl NetworkId {
    /// Stands in a *request*, whose maker need not know the network yet.
    pub const NONE: Self = Self([0; 16]);

    /// The id of the network whose authority has this key.
    pub fn of(authority: &VerifyKey) -> Self {
        let hash = Sha256::new().chain_update(b"clusternet network id").chain_update(authority.0);
        let mut id = [0; 16];
        id.copy_from_slice(&hash.finalize()[..16]);
        Self(id)
    }

    /// The overlay's IPv6 prefix: a ULA /48 (RFC 4193) whose 40-bit global id comes from this id.
    pub fn prefix(&self) -> Ipv6Net {
        let mut octets = [0; 16];
        octets[0] = 0xfd;
        octets[1..6].copy_from_slice(&self.0[..5]);
        Ipv6Net::new_assert(Ipv6Addr::from(octets), 48)
    }
}

impl fmt::Debug for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in &self.0[..4] {
            write!(f, "{byte:02x}")?;
        }
        f.write_str("…")
    }
}

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not of the form `[a-z][a-z0-9-]{0,62}`.
    #[error("`{0}` is not a name: a lower-case letter, then up to 62 letters, digits or `-`")]
    Form(String),
    /// `localhost` means the machine itself everywhere.
    #[error("`localhost` cannot name a node: everywhere it means the machine itself")]
    Localhost,
}

/// A node's or a network's name: `[a-z][a-z0-9-]{0,62}`, not `localhost`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let form = text.len() <= 63
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !form {
            return Err(NameError::Form(text.chars().take(80).collect()));
        }
        if text == "localhost" {
            return Err(NameError::Localhost);
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An owner: who may execute on a node's behalf. A login name as Unix knows them, at most 32 bytes of
/// `[A-Za-z0-9_][A-Za-z0-9._-]*`. A certificate without owner matches nobody, itself included.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Owner(String);

/// The text is not a login name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a login name: 1 to 32 of A-Z a-z 0-9 . _ -, not beginning with . or -")]
pub struct OwnerError(String);

impl Owner {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Owner {
    type Err = OwnerError;
    fn from_str(text: &str) -> Result<Self, OwnerError> {
        let form = (1..=32).contains(&text.len())
            && !text.starts_with(['.', '-'])
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if form {
            Ok(Self(text.to_owned()))
        } else {
            Err(OwnerError(text.chars().take(80).collect()))
        }
    }
}

impl TryFrom<String> for Owner {
    type Error = OwnerError;
    fn try_from(text: String) -> Result<Self, OwnerError> {
        text.parse()
    }
}

impl From<Owner> for String {
    fn from(owner: Owner) -> Self {
        owner.0
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A certificate's number in its network: 1, 2, 3, ...; never reused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Debug)]
#[serde(transparent)]
pub struct Serial(pub u64);

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A node's number in its network, from 1; never reused. Both overlay addresses follow from it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Debug)]
#[serde(transparent)]
pub struct NodeNumber(pub u32);

impl NodeNumber {
    /// `PREFIX::n`.
    pub fn ipv6(self, network: &NetworkId) -> Ipv6Addr {
        Ipv6Addr::from(u128::from(network.prefix().network()) | u128::from(self.0))
    }

    /// The n-th address of the IPv4 network; `None` where the network is too small (its broadcast address is never used).
    pub fn ipv4(self, net: &Ipv4Net) -> Option<Ipv4Addr> {
        let address = Ipv4Addr::from(u32::from(net.network()).checked_add(self.0)?);
        (self.0 > 0 && net.contains(&address) && address != net.broadcast()).then_some(address)
    }
}

impl fmt::Display for NodeNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Drawn by every start of `serve`, partly from the clock, so that a later start has a larger one: a new one means that
/// the peer has forgotten everything, and of two machines with one key the later join wins.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Debug, Default,
)]
#[serde(transparent)]
pub struct Incarnation(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_lower_case_words() {
        for good in ["a", "node-1", "x9"] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        let long = "a".repeat(64);
        for bad in ["", "A", "1a", "-a", "a.b", "a_b", "localhost", long.as_str(), "ä"] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_follow_from_the_number() {
        let net: Ipv4Net = "10.99.0.0/30".parse().expect("literal");
        assert_eq!(NodeNumber(1).ipv4(&net), Some(Ipv4Addr::new(10, 99, 0, 1)));
        assert_eq!(NodeNumber(2).ipv4(&net), Some(Ipv4Addr::new(10, 99, 0, 2)));
        assert_eq!(NodeNumber(3).ipv4(&net), None, "broadcast");
        assert_eq!(NodeNumber(4).ipv4(&net), None, "outside");
        let id = NetworkId([1, 2, 3, 4, 5, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(NodeNumber(0x1_0002).ipv6(&id).to_string(), "fd01:203:405::1:2");
    }
}
