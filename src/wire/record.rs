//! Control records: what two nodes tell each other inside a tunnel.
//!
//! Theory of operation. A record is postcard-encoded and travels as the payload of an IPv6 packet from `::` to `::`
//! with next header 253, because boringtun hands nothing but IP versions 4 and 6 to its caller. A packet is at most
//! [`MAX_PACKET`] bytes; larger records are cut into numbered parts by [`super::parts`]. Such packets never reach the
//! TUN, and what a program sends that looks like one is dropped before it is sealed.
//!
//! No record needs a reliable stream: each is repeated until the answer that ends it, and each is idempotent.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{
    exchange::{Accept, Features, Offer, Suites},
    ip,
    relay::RelayIndex,
};
use crate::words::{
    id::{Incarnation, Serial},
    signed::RawSigned,
    time::Timestamp,
};

/// The largest control packet, IPv6 header included: relayed and sealed it still crosses a 1280-byte underlay.
pub const MAX_PACKET: usize = 1100;

/// Length of an IPv6 header.
const IPV6_HEADER: usize = 40;

/// The most payload one control packet has.
pub const MAX_PAYLOAD: usize = MAX_PACKET - IPV6_HEADER;

/// The most roster entries one record may carry, and one sync request is answered with.
pub const MAX_ENTRIES: usize = 64;

/// Something that spreads: self-verifying, idempotent, passed on by anyone.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Entry {
    /// A certificate, signed by the authority.
    Certificate(RawSigned),
    /// A node's announcement, signed by its host key.
    Announcement(RawSigned),
    /// One revocation, signed by the authority.
    Revocation(RawSigned),
    /// How many revocations there are, signed by the authority.
    Head(RawSigned),
    /// The public description of the network, signed by the authority.
    Network(RawSigned),
}

impl Entry {
    /// The signed bytes.
    pub fn raw(&self) -> &RawSigned {
        match self {
            Self::Certificate(raw)
            | Self::Announcement(raw)
            | Self::Revocation(raw)
            | Self::Head(raw)
            | Self::Network(raw) => raw,
        }
    }

    /// Length on the wire, for budgets.
    pub fn wire_len(&self) -> usize {
        1 + self.raw().wire_len()
    }
}

/// How far a node's knowledge goes; whoever is behind asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, Default)]
pub struct Knowledge {
    /// Number of the newest revocation it holds, all before it included.
    pub head: u64,
    /// Version of the network description it holds.
    pub network: u64,
    /// XOR of hashes of all roster entries it holds: equal means that there is nothing to ask for.
    pub digest: u64,
}

/// The first record of every tunnel, repeated (250 ms, doubling) until the peer's says `accepted`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Introduction {
    /// The sender's certificate.
    pub certificate: RawSigned,
    /// "I have accepted yours."
    pub accepted: bool,
    /// Drawn by every start of the sender, later ones larger; a new one resets acceptance.
    pub incarnation: Incarnation,
    /// The incarnation that was accepted, where `accepted`.
    pub accepted_incarnation: Incarnation,
    /// The sender has not been told yet that it is accepted: answer with your own.
    pub wants_answer: bool,
    /// What the sender knows.
    pub knowledge: Knowledge,
    /// Channel suites it can use.
    pub suites: Suites,
    /// What it can do.
    pub features: Features,
    /// Its wall clock, so that `status` can show skew.
    pub time: Timestamp,
}

/// Why a node will not talk to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// Not signed by this network's authority, or malformed.
    #[error("the certificate is not of this network")]
    OtherNetwork,
    /// Its time has not come.
    #[error("the certificate is not valid yet (is this machine's clock behind?)")]
    NotYet,
    /// Its time is over.
    #[error("the certificate has expired")]
    Expired,
    /// The authority has taken it back.
    #[error("the certificate has been revoked")]
    Revoked,
    /// A certificate with a higher serial holds the name or the number.
    #[error("a newer certificate has been issued for this name")]
    Superseded,
    /// The certificate is for another key than the tunnel's.
    #[error("the certificate is for another key")]
    OtherKey,
    /// Another machine has joined with the same certificate since.
    #[error("the same key has joined from another machine since")]
    InUseElsewhere,
}

/// Why a relay does not relay.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
pub enum RelayRefusal {
    /// The relay has no live tunnel with that node.
    #[error("it has no tunnel with that node now")]
    NotConnected,
    /// This node's role does not make it a relay.
    #[error("it is no relay")]
    NoRelay,
    /// The asker has used up its quota.
    #[error("too many relayed pairs")]
    Quota,
}

/// A control record.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Record {
    /// Who the sender is.
    Introduction(Box<Introduction>),
    /// The sender will not talk to us, and why.
    Refused(Refusal),
    /// The sender is leaving: its tunnels may be put away at once.
    Leaving,
    /// "Everything after version `after` of your epoch `epoch`, please."
    Sync {
        /// The answerer's epoch as last heard; an unknown one means from 0.
        epoch: u64,
        /// Everything up to here is known.
        after: u64,
    },
    /// Part of the answer to `Sync`: what happened from `after` to `upto`.
    Page {
        /// The sender's epoch.
        epoch: u64,
        /// This page continues from here.
        after: u64,
        /// With this page everything up to here is known.
        upto: u64,
        /// The sender's newest version: beyond `upto` there is more to ask for.
        latest: u64,
        /// What is new.
        entries: Vec<Entry>,
    },
    /// Unasked: something that has just become known. Answered by `Known`.
    News {
        /// What is new.
        entries: Vec<Entry>,
    },
    /// What the sender knows now.
    Known(Knowledge),
    /// Is this path alive? Answered over the path it came by.
    Probe {
        /// Drawn at random.
        id: u64,
        /// The index under which the prober sends on the channel now; 0: it has no keys.
        keys: u32,
    },
    /// It is.
    ProbeReply {
        /// Of the probe.
        id: u64,
        /// Where the probe seemed to come from (`None` through a relay or a link).
        seen: Option<SocketAddr>,
        /// The index that the probe named, where it means nothing to the sender (any more); else 0.
        unknown: u32,
    },
    /// `clusternet ping`: answered over the route that packets take.
    Echo {
        /// Drawn at random.
        id: u64,
    },
    /// The answer to `Echo`.
    EchoReply {
        /// Of the echo.
        id: u64,
        /// Whether the answerer's own route to us is direct.
        direct: bool,
    },
    /// To a relay: "forward between me and that node", repeated until granted or denied; renews what exists.
    RelayAsk {
        /// The other node.
        peer: Serial,
    },
    /// From a relay to the other node: who asks, and the index that stands for it.
    RelayOffer {
        /// Index between the relay and the receiver of this record.
        index: RelayIndex,
        /// Certificate of the node that asks.
        certificate: RawSigned,
    },
    /// The other node has taken the offer.
    RelayTake {
        /// Of the offer.
        index: RelayIndex,
    },
    /// From the relay to the asker: use this index.
    RelayGrant {
        /// The other node.
        peer: Serial,
        /// Index between the relay and the receiver of this record.
        index: RelayIndex,
    },
    /// From the relay to the asker: no.
    RelayDeny {
        /// The other node.
        peer: Serial,
        /// Why not.
        why: RelayRefusal,
    },
    /// Either side closes an index.
    RelayClose {
        /// Which.
        index: RelayIndex,
    },
    /// New keys for the channel, repeated until answered.
    Offer(Box<Offer>),
    /// The answer to `Offer`.
    Accept(Box<Accept>),
}

/// Why bytes are not a control record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Not an encoding of a record, or not the only one.
    #[error("malformed control record")]
    Malformed,
    /// More entries than a record may carry.
    #[error("control record with too many entries")]
    TooMany,
}

impl Record {
    /// The encoding, which [`super::parts`] puts into packets.
    pub fn encode(&self) -> Vec<u8> {
        // Records hold no maps, floats or unsized sequences, the only things postcard cannot encode.
        postcard::to_extend(self, Vec::new()).expect("records are plain data")
    }

    /// Decodes the whole of `bytes`.
    ///
    /// # Errors
    /// [`RecordError`], also for left-over bytes and second encodings of the same record.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let (record, rest) =
            postcard::take_from_bytes::<Self>(bytes).map_err(|_| RecordError::Malformed)?;
        if let Self::Page { entries, .. } | Self::News { entries } = &record
            && entries.len() > MAX_ENTRIES
        {
            return Err(RecordError::TooMany);
        }
        if !rest.is_empty() || record.encode() != bytes {
            return Err(RecordError::Malformed);
        }
        Ok(record)
    }

    /// A word for logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Introduction(_) => "introduction",
            Self::Refused(_) => "refused",
            Self::Leaving => "leaving",
            Self::Sync { .. } => "sync",
            Self::Page { .. } => "page",
            Self::News { .. } => "news",
            Self::Known(_) => "known",
            Self::Probe { .. } => "probe",
            Self::ProbeReply { .. } => "probe reply",
            Self::Echo { .. } => "echo",
            Self::EchoReply { .. } => "echo reply",
            Self::RelayAsk { .. } => "relay ask",
            Self::RelayOffer { .. } => "relay offer",
            Self::RelayTake { .. } => "relay take",
            Self::RelayGrant { .. } => "relay grant",
            Self::RelayDeny { .. } => "relay deny",
            Self::RelayClose { .. } => "relay close",
            Self::Offer(_) => "offer",
            Self::Accept(_) => "accept",
        }
    }
}

/// Puts a payload of at most [`MAX_PAYLOAD`] bytes into a control packet.
pub fn packet(payload: &[u8]) -> Vec<u8> {
    debug_assert!(payload.len() <= MAX_PAYLOAD, "cut by parts");
    let mut packet = vec![0; IPV6_HEADER];
    packet[0] = 0x60;
    packet[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
    packet[6] = ip::CONTROL;
    packet[7] = 1; // hop limit: it is not forwarded
    packet.extend_from_slice(payload);
    packet
}

/// The payload of a control packet; `None` if it is any other packet.
pub fn payload(packet: &[u8]) -> Option<&[u8]> {
    let view = ip::IpView::parse(packet).ok()?;
    let is_control = view.protocol() == ip::CONTROL
        && view.source().is_ipv6()
        && view.source().is_unspecified()
        && view.destination().is_unspecified();
    (is_control && view.bytes().len() <= MAX_PACKET).then(|| &view.bytes()[IPV6_HEADER..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_has_one_encoding() {
        let record = Record::Sync { epoch: 5, after: 300 };
        let bytes = record.encode();
        assert_eq!(Record::decode(&bytes), Ok(record));
        let mut longer = bytes.clone();
        longer.push(0);
        assert_eq!(Record::decode(&longer), Err(RecordError::Malformed));
        // The varint 5 written in two bytes.
        let overlong = [&bytes[..1], &[0x85, 0x00], &bytes[2..]].concat();
        assert_eq!(Record::decode(&overlong), Err(RecordError::Malformed));
    }

    #[test]
    fn control_packets_are_told_from_programs_packets() {
        let packet = packet(b"payload");
        assert_eq!(payload(&packet), Some(b"payload".as_slice()));
        let mut foreign = packet.clone();
        foreign[39] = 1;
        assert_eq!(payload(&foreign), None);
        let mut foreign = packet;
        foreign[6] = 17;
        assert_eq!(payload(&foreign), None);
    }
}
