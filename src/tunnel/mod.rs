//! One peer's WireGuard state: a facade over boringtun's `Tunn`, and the gate in front of handshakes.
//!
//! It owns the handshake, the sessions and their deadlines. It does not know routes, certificates or what is sealed.
//!
//! # Theory of operation
//!
//! 1. [`Tunnel::seal`] without a session stages the packet and starts a handshake; [`Tunnel::initiate`] starts one
//!    anyway. [`REKEY_TIMEOUT`] passes between initiations, whoever asks; [`REKEY_ATTEMPT_TIME`] after the first the
//!    attempt is given up and [`Sink::expired`] is said.
//! 2. The initiator is *established* by the response, the responder by the first transport data under the new keys
//!    ([`Sink::established`]): until then it sends nothing but the response, and that again for each copy of the same
//!    initiation, since copies may come over several ways. Staged packets follow at once.
//! 3. The initiator makes new keys when it sends under keys older than [`REKEY_AFTER_TIME`], or receives under keys
//!    about to reach [`REJECT_AFTER_TIME`]. Data that is not answered by data is answered by a keepalive after
//!    [`KEEPALIVE_TIMEOUT`]; data that nothing comes back for starts a handshake, [`REKEY_TIMEOUT`] later than that.
//! 4. Three times [`REJECT_AFTER_TIME`] after the last keys everything is erased; the tunnel can be used again.
//!
//! # How boringtun is kept well
//!
//! - It reads the clock in `update_timers` alone and stamps everything else with that reading; a session stamped long
//!   ago is deleted at once. So that call comes immediately before every handshake message, in or out, and whenever keys
//!   or a handshake reach their end, which is looked at before every packet. It does *not* come before every packet:
//!   boringtun measures silence from the last datagram received, so after 15 idle seconds it would take each first packet
//!   for unanswered at the second, and start a handshake for it.
//! - It has no next deadline. The [`Timer`]s here are set by the same events as in WireGuard's own `timers.c`, and what
//!   they ask for is done here; boringtun's own conditions seldom hold, since for it no time passes between handshakes.
//! - Which session it seals with is mirrored, with the age of each, so that none is used past its end.
//! - It gives a handshake up because of what was before it (no keys for 540 s, one second after an idle tunnel has
//!   begun a handshake): that is noticed, and the handshake is begun again.
//! - It panics when a datagram is larger than the buffer for its content, and can overflow near the last counter: both
//!   are refused before it sees them. Its queue of packets is never used but by its own keepalives.
//! - Its handshake timestamps come from the wall clock at the time of [`Tunnel::new`] plus the time since, so they
//!   never step back within one `Tunnel`. They do across a restart if the wall clock was set back in between: peers then
//!   refuse our initiations ([`Sink::wrong_timestamp`] over there) until the clock has caught up, and must initiate
//!   themselves, back to where the refused initiation came from. Nothing here can give boringtun a later stamp.

pub mod deadlines;
pub mod gate;
mod sessions;
mod staged;
mod state;

use boringtun::{
    noise::{Packet, Tunn, errors::WireGuardError, handshake::parse_handshake_anon},
    x25519::{PublicKey, StaticSecret},
};

pub use self::{
    deadlines::{
        KEEPALIVE_TIMEOUT, REJECT_AFTER_TIME, REKEY_AFTER_TIME, REKEY_ATTEMPT_TIME, REKEY_TIMEOUT,
        Timer,
    },
    staged::{STAGED_BYTES_MAX, STAGED_MAX},
    state::Tunnel,
};
use crate::{
    wire::message::DATA_OVERHEAD,
    words::key::{TransportKey, TransportSecret},
};

/// The largest packet that can be sealed: one UDP datagram (IPv6's limit, 65,535 less its header) less our overhead.
pub const PACKET_MAX: usize = 65_535 - 8 - DATA_OVERHEAD;
/// Session indexes have 24 bits for the tunnel and 8 for the session; boringtun shifts them so.
pub const INDEX_MAX: u32 = (1 << 24) - 1;

/// Why a datagram did nothing, or not all that it could have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TunnelError {
    /// Not one of WireGuard's messages, or larger than any can be.
    #[error("not a WireGuard message")]
    Malformed,
    /// It names no session of this tunnel, or none that still lives.
    #[error("no such session")]
    NoSession,
    /// It answers no handshake of ours.
    #[error("not an answer to anything asked")]
    Unexpected,
    /// Its seal does not open: forged, damaged, or under other keys.
    #[error("the seal does not open")]
    Unauthentic,
    /// Its counter was seen before or is too old.
    #[error("seen before")]
    Replayed,
    /// An initiation by another static key than this peer's.
    #[error("another node's key")]
    WrongKey,
    /// An initiation that is not younger than the last one: a replay, or the peer's clock went back.
    #[error("the initiation is not younger than the last")]
    WrongTimestamp,
    /// The same initiation again, whose answer has arrived or is too old.
    #[error("the same initiation again")]
    Duplicate,
    /// Opened (so the peer lives), but what was sealed is not an IP packet.
    #[error("what was sealed is not an IP packet")]
    NotIp,
    /// boringtun said something that it cannot say here.
    #[error("unexpected state of the tunnel")]
    Internal,
}

impl From<WireGuardError> for TunnelError {
    fn from(error: WireGuardError) -> Self {
        match error {
            WireGuardError::IncorrectPacketLength
            | WireGuardError::WrongPacketType
            | WireGuardError::InvalidPacket
            | WireGuardError::InvalidTai64nTimestamp => Self::Malformed,
            WireGuardError::NoCurrentSession
            | WireGuardError::WrongIndex
            | WireGuardError::ConnectionExpired => Self::NoSession,
            WireGuardError::UnexpectedPacket => Self::Unexpected,
            WireGuardError::InvalidMac | WireGuardError::InvalidAeadTag => Self::Unauthentic,
            WireGuardError::InvalidCounter | WireGuardError::DuplicateCounter => Self::Replayed,
            WireGuardError::WrongKey => Self::WrongKey,
            WireGuardError::WrongTai64nTimestamp => Self::WrongTimestamp,
            WireGuardError::DestinationBufferTooSmall
            | WireGuardError::LockFailed
            | WireGuardError::UnderLoad => Self::Internal,
        }
    }
}

/// Where a tunnel puts what comes of a call. Appended to; the caller drains it and resets the flags.
///
/// Of the datagrams, a response (first byte 2) goes back to where the initiation came from, since an initiation alone
/// never changes a route; all others go over the peer's route.
#[derive(Debug, Default)]
pub struct Sink {
    /// Datagrams to send to the peer, in order, each with its message header.
    pub datagrams: Vec<Vec<u8>>,
    /// Opened IP packets, control records among them, cut to the length that their header says.
    pub packets: Vec<Vec<u8>>,
    /// A handshake is complete: what is sealed from now on goes under new keys. Also said when keys are renewed.
    pub established: bool,
    /// Transport data was opened, a keepalive perhaps: the peer lives, and was where this datagram came from.
    pub opened: bool,
    /// A true initiation of the peer was older than one already seen: its clock went back, or this is a replay. The
    /// caller answers with [`Tunnel::initiate`], which happens at most once in [`REKEY_TIMEOUT`].
    pub wrong_timestamp: bool,
    /// The peer did not answer for [`REKEY_ATTEMPT_TIME`]; what was staged is dropped and nothing more is tried.
    pub expired: bool,
}

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sealed {
    /// It is in [`Sink::datagrams`].
    Sent,
    /// It waits for a session.
    Staged,
    /// It is longer than [`PACKET_MAX`].
    TooLarge,
}

/// Whose initiation this is, before there is any tunnel: opens its static key, which proves nothing yet (the key's
/// holder is proved by the first transport data). Costs one key agreement, so comes behind the gate.
///
/// # Errors
/// [`TunnelError`]: not an initiation, not for the holder of `secret`, or a key of low order.
pub fn anonymous(datagram: &[u8], secret: &TransportSecret) -> Result<TransportKey, TunnelError> {
    let secret = StaticSecret::from(*secret.expose());
    let public = PublicKey::from(&secret);
    match Tunn::parse_incoming_packet(datagram)? {
        Packet::HandshakeInit(initiation) => {
            let half = parse_handshake_anon(&secret, &public, &initiation)?;
            let key = TransportKey(half.peer_static_public);
            key.check().map_err(|_| TunnelError::WrongKey)?;
            Ok(key)
        }
        Packet::HandshakeResponse(_) | Packet::PacketCookieReply(_) | Packet::PacketData(_) => {
            Err(TunnelError::Malformed)
        }
    }
}

#[cfg(test)]
mod tests;
