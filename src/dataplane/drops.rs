//! Where packets and datagrams end, and how many did: one relaxed counter for each reason.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::wire::{filter::FilterError, message::MessageError};

/// Why a packet or datagram ended here. Counted, never formatted on the hot path.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum DropReason {
    /// A datagram of no type that we know.
    UnknownType,
    /// A datagram whose length does not fit its type.
    Length,
    /// A datagram that did not fit the buffer.
    Truncated,
    /// A relayed datagram in a relayed datagram.
    RelayNested,
    /// A relay index of ours from another origin than it was given to.
    RelayOrigin,
    /// A handshake message made by somebody who does not know our key.
    Mac1,
    /// Transport data or an answer for a tunnel that does not exist (any more).
    UnknownTunnel,
    /// Transport data whose counter no honest sender reaches.
    Counter,
    /// Too many handshake messages waited for control.
    HandshakeQueueFull,
    /// Too many datagrams with sealed packets waited for control.
    TunnelQueueFull,
    /// Too many packets of programs waited for control.
    PacketQueueFull,
    /// A program's packet that is not well-formed.
    PacketMalformed,
    /// A program's packet that looks like a control record.
    PacketReserved,
    /// A program's packet whose source is not ours.
    PacketSource,
    /// A program's packet to a multicast or broadcast address: the overlay carries none.
    PacketMulticast,
    /// A program's packet to an address that no member has.
    PacketNoMember,
    /// A peer's packet that is not well-formed.
    PeerMalformed,
    /// A peer's packet that looks like a control record and is none.
    PeerReserved,
    /// A peer's packet whose source is not the peer's.
    PeerSource,
    /// A peer's packet whose destination is not ours.
    PeerDestination,
    /// The kernel took a datagram no further: firewall, no route, interface down.
    SendRefused,
    /// The UDP socket's buffer was full.
    SendBufferFull,
    /// A route over a link or a socket that is gone.
    SendNoEgress,
    /// The TUN took no packet: full, or the device is down.
    DeliverRefused,
    /// A channel message whose seal does not open.
    Unauthentic,
    /// A channel message for keys that do not exist (any more).
    UnknownChannel,
    /// A channel message under keys that have ended.
    KeysEnded,
    /// A channel message that has been seen, or is too old to know.
    Replay,
    /// A slice that contradicts itself or its neighbours.
    Misplaced,
    /// Too many notices waited for control.
    NoticeQueueFull,
}

impl DropReason {
    /// Each once, in the order of their counters.
    pub const ALL: [Self; 30] = [
        Self::UnknownType,
        Self::Length,
        Self::Truncated,
        Self::RelayNested,
        Self::RelayOrigin,
        Self::Mac1,
        Self::UnknownTunnel,
        Self::Counter,
        Self::HandshakeQueueFull,
        Self::TunnelQueueFull,
        Self::PacketQueueFull,
        Self::PacketMalformed,
        Self::PacketReserved,
        Self::PacketSource,
        Self::PacketMulticast,
        Self::PacketNoMember,
        Self::PeerMalformed,
        Self::PeerReserved,
        Self::PeerSource,
        Self::PeerDestination,
        Self::SendRefused,
        Self::SendBufferFull,
        Self::SendNoEgress,
        Self::DeliverRefused,
        Self::Unauthentic,
        Self::UnknownChannel,
        Self::KeysEnded,
        Self::Replay,
        Self::Misplaced,
        Self::NoticeQueueFull,
    ];

    /// The words for it in `status`.
    pub fn name(self) -> &'static str {
        match self {
            Self::UnknownType => "datagram of unknown type",
            Self::Length => "datagram of wrong length",
            Self::Truncated => "datagram too long",
            Self::RelayNested => "relayed datagram in a relayed datagram",
            Self::RelayOrigin => "relay index from a foreign origin",
            Self::Mac1 => "handshake by a stranger",
            Self::UnknownTunnel => "datagram for an unknown tunnel",
            Self::Counter => "datagram with an impossible counter",
            Self::HandshakeQueueFull => "handshake queue full",
            Self::TunnelQueueFull => "tunnel queue full",
            Self::PacketQueueFull => "packet queue full",
            Self::PacketMalformed => "outgoing packet malformed",
            Self::PacketReserved => "outgoing packet of reserved kind",
            Self::PacketSource => "outgoing packet from a foreign address",
            Self::PacketMulticast => "outgoing packet to multicast or broadcast",
            Self::PacketNoMember => "outgoing packet to no member",
            Self::PeerMalformed => "peer's packet malformed",
            Self::PeerReserved => "peer's packet of reserved kind",
            Self::PeerSource => "peer's packet from a foreign address",
            Self::PeerDestination => "peer's packet to a foreign address",
            Self::SendRefused => "sending refused",
            Self::SendBufferFull => "send buffer full",
            Self::SendNoEgress => "nothing to send over",
            Self::DeliverRefused => "device takes no packet",
            Self::Unauthentic => "channel message that does not open",
            Self::UnknownChannel => "channel message under unknown keys",
            Self::KeysEnded => "channel message under ended keys",
            Self::Replay => "channel message seen before",
            Self::Misplaced => "slice out of place",
            Self::NoticeQueueFull => "notice queue full",
        }
    }

    /// For a packet that a peer has sent.
    pub fn of_peer(error: FilterError) -> Self {
        match error {
            FilterError::Malformed => Self::PeerMalformed,
            FilterError::Reserved => Self::PeerReserved,
            FilterError::Source => Self::PeerSource,
            FilterError::Destination => Self::PeerDestination,
        }
    }

    /// For a packet that a program of this node has sent.
    pub fn of_program(error: FilterError) -> Self {
        match error {
            FilterError::Malformed => Self::PacketMalformed,
            FilterError::Reserved => Self::PacketReserved,
            FilterError::Source => Self::PacketSource,
            FilterError::Destination => Self::PacketNoMember,
        }
    }
}

impl From<MessageError> for DropReason {
    fn from(error: MessageError) -> Self {
        match error {
            MessageError::UnknownType => Self::UnknownType,
            MessageError::Length => Self::Length,
            MessageError::Nested => Self::RelayNested,
        }
    }
}

/// Everything the data plane counts. Shared by workers and control; relaxed, so that sums are right and orders are not.
#[derive(Debug, Default)]
pub struct Counters {
    drops: [AtomicU64; DropReason::ALL.len()],
    /// What this node forwarded as a relay.
    pub forwarded: Activity,
}

impl Counters {
    /// One more.
    pub fn count(&self, reason: DropReason) {
        self.drops[reason as usize].fetch_add(1, Relaxed);
    }

    /// How many of one kind.
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize].load(Relaxed)
    }

    /// The reasons that have happened, with their numbers, in fixed order: for `status`.
    pub fn report(&self) -> impl Iterator<Item = (DropReason, u64)> {
        DropReason::ALL
            .into_iter()
            .map(|reason| (reason, self.drops(reason)))
            .filter(|(_, count)| *count > 0)
    }
}

/// How much passed: relaxed counters.
#[derive(Debug, Default)]
pub struct Activity {
    units: AtomicU64,
    bytes: AtomicU64,
}

impl Activity {
    /// One more packet or datagram.
    pub fn count(&self, bytes: usize) {
        self.units.fetch_add(1, Relaxed);
        self.bytes.fetch_add(bytes as u64, Relaxed);
    }
    /// So many more, of so many bytes in all.
    pub fn count_many(&self, units: u64, bytes: u64) {
        self.units.fetch_add(units, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
    }
    /// How many packets or datagrams.
    pub fn units(&self) -> u64 {
        self.units.load(Relaxed)
    }
    /// How many bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_reason_has_its_own_counter_and_name() {
        let counters = Counters::default();
        for (place, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(place, reason as usize, "{reason:?} stands where its counter is");
            counters.count(reason);
        }
        assert_eq!(counters.report().count(), DropReason::ALL.len());
        assert!(counters.report().all(|(_, count)| count == 1));
        let names: HashSet<_> = DropReason::ALL.into_iter().map(DropReason::name).collect();
        assert_eq!(names.len(), DropReason::ALL.len());
    }

    #[test]
    fn only_what_happened_is_reported() {
        let counters = Counters::default();
        counters.count(DropReason::Mac1);
        counters.count(DropReason::Mac1);
        assert_eq!(counters.report().collect::<Vec<_>>(), [(DropReason::Mac1, 2)]);
    }
}
