//! Announcements: what a node last said of itself, signed by its host key.

use std::{net::SocketAddr, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    id::{Incarnation, Serial},
    signed::{Kind, SignedError, Statement},
    time::Timestamp,
};

/// The most candidates one announcement may name.
pub const MAX_CANDIDATES: usize = 16;

/// The most relays one announcement may name: more masters than that no node keeps tunnels to.
pub const MAX_RELAYS: usize = 8;

/// An announcement says nothing any more after this long.
pub const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// A sequence further ahead of the receiver's clock than this is refused: it would silence its node for as long.
pub const MAX_AHEAD: Duration = Duration::from_secs(3600);

/// What a node says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Announcement {
    /// Of which certificate.
    pub serial: Serial,
    /// max(own last one seen anywhere + 1, Unix milliseconds): the higher one is newer.
    pub sequence: u64,
    /// Of which start of the node.
    pub incarnation: Incarnation,
    /// Underlay addresses it may be reached at: interfaces, reflexive, configured.
    pub candidates: Vec<SocketAddr>,
    /// Masters and relays it holds a tunnel to.
    pub relays: Vec<Serial>,
    /// What it can do, as bits; informative only (never a reason to downgrade).
    pub features: u32,
    /// How many revocations it knows.
    pub head: u64,
    /// It is leaving: nobody need try to reach it any more.
    pub leaving: bool,
}

impl Announcement {
    /// Whether its [`LIFETIME`] is over, by its own sequence.
    pub fn is_over(&self, wall: Timestamp) -> bool {
        wall.since(Timestamp(self.sequence)) > LIFETIME
    }

    /// Whether its sequence is too far ahead to be accepted.
    pub fn is_ahead(&self, wall: Timestamp) -> bool {
        Timestamp(self.sequence).since(wall) > MAX_AHEAD
    }
}

impl Statement for Announcement {
    const KIND: Kind = Kind::Announcement;
    const MAX_BYTES: usize = 1000;

    fn check(&self) -> Result<(), SignedError> {
        if self.candidates.len() > MAX_CANDIDATES {
            return Err(SignedError::Invalid("more than 16 candidates"));
        }
        if self.relays.len() > MAX_RELAYS {
            return Err(SignedError::Invalid("more than 8 relays"));
        }
        Ok(())
    }
}
