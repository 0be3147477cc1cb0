//! Certificates: what the authority signed about one node.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    id::{Name, NetworkId, NodeNumber, Owner, Serial},
    key::{TransportKey, VerifyKey},
    signed::{Kind, SignedError, Statement},
    time::Timestamp,
};

/// Clock skew that is forgiven, both ways.
pub const SKEW: Duration = Duration::from_secs(5 * 60);

/// How far `not_before` is set back when a certificate is issued, for nodes whose clocks are behind.
pub const BACKDATE: Duration = Duration::from_secs(10 * 60);

/// How long a record outlives its certificate, so that late-comers still learn that it ended.
pub const RECORD_GRACE: Duration = Duration::from_secs(7 * 86_400);

/// What a node may be beside a member. Bits, so that later versions can add some; unknown bits are refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct Roles(u8);

impl Roles {
    /// A member, nothing more.
    pub const NODE: Self = Self(0);
    /// A meeting place and relay.
    pub const MASTER: Self = Self(1);
    /// Forwards sealed datagrams for others, without being in `master.toml`.
    pub const RELAY: Self = Self(2);
    /// A plain WireGuard program behind a gateway: no host key, no control records, no owner.
    pub const WIREGUARD: Self = Self(4);

    /// Whether this is a master.
    pub fn is_master(self) -> bool {
        self.0 & Self::MASTER.0 != 0
    }
    /// Whether this node relays for others: masters do too.
    pub fn is_relay(self) -> bool {
        self.0 & (Self::RELAY.0 | Self::MASTER.0) != 0
    }
    /// Whether this is a plain WireGuard program.
    pub fn is_wireguard(self) -> bool {
        self.0 & Self::WIREGUARD.0 != 0
    }
}

impl std::fmt::Display for Roles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match *self {
            Self::MASTER => "master",
            Self::RELAY => "relay",
            Self::WIREGUARD => "wireguard",
            Self(_) => "node",
        })
    }
}

/// One node's certificate.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Certificate {
    /// The network it is of.
    pub network: NetworkId,
    /// Its number; of two valid ones for one name or number the higher wins.
    pub serial: Serial,
    /// The node's name.
    pub name: Name,
    /// The node's number.
    pub number: NodeNumber,
    /// The node's overlay IPv4 address.
    pub ipv4: Ipv4Addr,
    /// The static key of its tunnels.
    pub transport: TransportKey,
    /// What signs its announcements and proves its ssh server; `None` for plain WireGuard.
    pub host: Option<VerifyKey>,
    /// Who owns it; `None` matches nobody.
    pub owner: Option<Owner>,
    /// What it may be beside a member.
    pub roles: Roles,
    /// Valid from here on.
    pub not_before: Timestamp,
    /// Valid until here.
    pub not_after: Timestamp,
}

/// Whether a certificate holds at some moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// It does.
    Valid,
    /// Its time has not come, skew forgiven.
    NotYet,
    /// Its time is over, skew forgiven.
    Expired,
}

impl Certificate {
    /// The node's overlay IPv6 address: `PREFIX::number`.
    pub fn ipv6(&self) -> Ipv6Addr {
        self.number.ipv6(&self.network)
    }

    /// Whether a *peer's* certificate holds at `wall`, [`SKEW`] forgiven at both ends.
    pub fn validity(&self, wall: Timestamp) -> Validity {
        if wall.plus(SKEW) < self.not_before {
            Validity::NotYet
        } else if wall > self.not_after.plus(SKEW) {
            Validity::Expired
        } else {
            Validity::Valid
        }
    }

    /// Whether our *own* certificate has ended: to the second, by our own clock, so that an honest node is gone on time.
    pub fn has_ended(&self, wall: Timestamp) -> bool {
        wall >= self.not_after
    }
}

impl Statement for Certificate {
    const KIND: Kind = Kind::Certificate;
    const MAX_BYTES: usize = 400;

    fn check(&self) -> Result<(), SignedError> {
        if self.roles.0 > 7 || self.roles.0.count_ones() > 1 {
            return Err(SignedError::Invalid("roles that this program does not know"));
        }
        if self.number.0 == 0 || self.serial.0 == 0 {
            return Err(SignedError::Invalid("numbers and serials begin at 1"));
        }
        if self.host.is_none() != self.roles.is_wireguard() {
            return Err(SignedError::Invalid("a host key belongs to every role but wireguard"));
        }
        if self.roles.is_wireguard() && self.owner.is_some() {
            return Err(SignedError::Invalid("a wireguard member has no owner"));
        }
        if self.not_after <= self.not_before {
            return Err(SignedError::Invalid("it ends before it begins"));
        }
        if self.transport.check().is_err() {
            return Err(SignedError::Invalid("its transport key is of low order"));
        }
        Ok(())
    }
}
