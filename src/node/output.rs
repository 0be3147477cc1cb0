//! What a [`super::Node`] wants done: the words between control and the shell that runs it.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Instant,
};

use crate::{
    channel::keypair::Keypairs,
    path::route::Route,
    wire::{record::Refusal, relay::RelayIndex},
    words::{
        id::{Name, Owner},
        key::VerifyKey,
    },
};

/// A peer's place in the data plane's table: small, reused after [`Directive::RemovePeer`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PeerSlot(pub u32);

/// What to do next, from `poll_output`. Drain until [`Output::Timeout`] before the next change.
#[derive(Debug)]
pub enum Output {
    /// Nothing more to do; call `handle_timeout` at this moment, or earlier.
    Timeout(Instant),
    /// Send a datagram (relay prefix not yet in front of it).
    Transmit {
        /// Which way.
        route: Route,
        /// Sealed.
        datagram: Vec<u8>,
    },
    /// Write an IP packet to the TUN.
    Deliver {
        /// Opened and filtered.
        packet: Vec<u8>,
    },
    /// Change the data plane's table.
    Directive(Directive),
    /// Something the shell, a log or a person should know.
    Event(Event),
    /// Look up a DNS name and answer with `handle_resolved`.
    Resolve {
        /// DNS name or address literal.
        host: String,
        /// UDP port.
        port: u16,
    },
}

/// Whose tunnel and channel carry a member's packets.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Carrier {
    /// Its own: a clusternet node.
    #[default]
    Own,
    /// Ours: a plain WireGuard member that this node is the gateway of.
    Us,
    /// Its gateway's: a plain WireGuard member of another gateway.
    Gateway(PeerSlot),
}

/// A change of the data plane's table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Directive {
    /// Datagrams for this tunnel (24-bit index, upper bits of the receiver index) are to be punted.
    InstallTunnel {
        /// `receiver index >> 8`.
        index: u32,
    },
    /// No more.
    RemoveTunnel {
        /// `receiver index >> 8`.
        index: u32,
    },
    /// A member: packets to its addresses belong to it, packets from it must come from them.
    InstallPeer {
        /// Its place.
        slot: PeerSlot,
        /// Its overlay addresses.
        addresses: [IpAddr; 2],
    },
    /// Whose tunnel and channel carry a member's packets; its own unless this has been said.
    SetCarrier {
        /// The member.
        slot: PeerSlot,
        /// Who carries.
        carrier: Carrier,
    },
    /// Messages of this peer under these keys are to be opened.
    InstallKeypairs {
        /// Whose.
        slot: PeerSlot,
        /// Found by [`Keypairs::index`].
        keypairs: Arc<Keypairs>,
    },
    /// No more; they are dead already.
    RemoveKeypairs {
        /// [`Keypairs::index`].
        index: u32,
    },
    /// Packets for this member are sealed with these from now on. `None`: they go to control.
    SealWith {
        /// Its place.
        slot: PeerSlot,
        /// Installed before.
        keypairs: Option<Arc<Keypairs>>,
    },
    /// How to send to it now; `None` while there is no way.
    SetRoute {
        /// Its place.
        slot: PeerSlot,
        /// Which way.
        route: Option<Route>,
    },
    /// It is no member any more: its keys are dead at once.
    RemovePeer {
        /// Its place.
        slot: PeerSlot,
    },
    /// Forward between two origins (this node is a relay): a datagram from `from` under `index` goes out over `to`,
    /// whose relay index replaces it.
    InstallRelay {
        /// The index it arrives with.
        index: RelayIndex,
        /// The only origin it is accepted from (no relay index in it).
        from: Route,
        /// Where it goes, with the other side's index.
        to: Route,
    },
    /// Forward no more.
    RemoveRelay {
        /// The index it arrived with.
        index: RelayIndex,
    },
}

/// One node as the inside sees it: for `/etc/hosts`, known hosts and the owner table.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Neighbour {
    /// Its name.
    pub name: Name,
    /// Its overlay IPv4 address.
    pub ipv4: Ipv4Addr,
    /// Its overlay IPv6 address.
    pub ipv6: Ipv6Addr,
    /// What proves its ssh server; `None` for plain WireGuard members.
    pub host: Option<VerifyKey>,
    /// Who owns it.
    pub owner: Option<Owner>,
    /// Whether this is the node itself.
    pub is_self: bool,
}

/// Something the shell, a log or a person should know.
#[derive(Debug, Clone)]
pub enum Event {
    /// Some member has accepted our certificate for the first time: `join` is done.
    Accepted {
        /// Who.
        by: Name,
        /// Over which route.
        route: Route,
    },
    /// Nobody will: we must stop (our certificate has ended, is revoked, superseded, or used elsewhere).
    Ended {
        /// Why.
        why: Refusal,
    },
    /// A peer refused us; others may not.
    RefusedBy {
        /// Who, where known.
        by: Option<Name>,
        /// Why.
        why: Refusal,
    },
    /// The set of nodes (names, addresses, keys, owners) has changed: ask for `neighbours()`.
    NeighboursChanged,
    /// What should survive a restart has changed: ask for `cache()`, at the latest in a few seconds.
    CacheChanged,
    /// The answer to a ping.
    EchoReply {
        /// Of `handle_echo`.
        id: u64,
        /// Which way it went.
        route: Route,
        /// Whether the answerer's own route to us is direct.
        direct: bool,
        /// Round trip.
        round_trip: std::time::Duration,
    },
    /// For the log: a member's tunnel is up.
    PeerUp {
        /// Who.
        peer: Name,
        /// Which way.
        route: Route,
    },
    /// For the log: a member's tunnel is gone.
    PeerDown {
        /// Who.
        peer: Name,
    },
    /// For the log: packets take another way now.
    RouteChanged {
        /// To whom.
        peer: Name,
        /// Which way.
        route: Option<Route>,
    },
}
