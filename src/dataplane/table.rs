//! The table: everything a worker looks up. Immutable; control builds the next one and publishes it whole.
//!
//! Theory of operation. Control applies directives to a [`Builder`] and publishes when a batch of them is done. A worker
//! loads the table after its blocking call has returned and lets go of it before the next, so what was removed is in
//! nobody's hands a moment after the workers were woken. Parts that did not change are shared between one table and
//! the next.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::{ArcSwap, Guard};

use super::drops::Activity;
use crate::{
    channel::keypair::Keypairs,
    node::output::{Carrier, Directive, PeerSlot},
    path::route::{Egress, Route},
    wire::relay::RelayIndex,
};

/// The largest datagram that is sent where nothing is known of the way: what an Ethernet's 1500 bytes leave over IPv6.
pub const DATAGRAM: u16 = 1452;

/// One member in the table.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its overlay addresses: packets to them are for it.
    pub addresses: [IpAddr; 2],
    /// How to send to it now; `None` while there is no way.
    pub route: Option<Route>,
    /// Whose tunnel and channel carry its packets.
    pub carrier: Carrier,
    /// What its packets are sealed with; `None`: they go to control.
    pub seal_with: Option<Arc<Keypairs>>,
    /// The largest datagram on the way to it.
    pub datagram: u16,
    /// What went to it and came from it.
    pub traffic: Arc<Traffic>,
}

/// What passes between programs here and one member, and whether control knows that something does.
#[derive(Debug, Default)]
pub struct Traffic {
    /// What programs have sent to it.
    pub outbound: Activity,
    /// What it has sent to programs, as far as workers opened it.
    pub inbound: Activity,
    /// Control has been told that something passes, and looks at the numbers by itself until nothing does.
    is_told: AtomicBool,
}

impl Traffic {
    /// Says whether control must be told; once, until [`Self::rest`].
    pub fn is_news(&self) -> bool {
        !self.is_told.load(Ordering::Relaxed) && !self.is_told.swap(true, Ordering::Relaxed)
    }

    /// Control stops looking: what passes next is news.
    pub fn rest(&self) {
        self.is_told.store(false, Ordering::Relaxed);
    }
}

/// Keys that messages are opened with, and whose they are.
#[derive(Debug, Clone)]
pub struct Opener {
    /// The peer's place.
    pub slot: PeerSlot,
    /// The keys.
    pub keypairs: Arc<Keypairs>,
}

/// One direction of one relayed pair.
#[derive(Debug, Clone)]
pub struct Relay {
    /// The only origin it is accepted from.
    pub from: Egress,
    /// Where it goes.
    pub to: Egress,
    /// The index that replaces the one it came with.
    pub index: RelayIndex,
    /// What went through.
    pub forwarded: Arc<Activity>,
}

/// Everything a worker looks up, at one moment.
#[derive(Debug, Clone)]
pub struct Table {
    own: [IpAddr; 2],
    members: Arc<HashMap<IpAddr, PeerSlot>>,
    peers: Arc<HashMap<PeerSlot, Peer>>,
    tunnels: Arc<HashSet<u32>>,
    openers: Arc<HashMap<u32, Opener>>,
    relays: Arc<HashMap<RelayIndex, Relay>>,
}

impl Table {
    /// This node's own overlay addresses.
    pub fn own(&self) -> &[IpAddr; 2] {
        &self.own
    }

    /// The member that has this overlay address.
    pub fn member(&self, address: IpAddr) -> Option<(PeerSlot, &Peer)> {
        let slot = *self.members.get(&address)?;
        Some((slot, self.peers.get(&slot)?))
    }

    /// The member in this place.
    pub fn peer(&self, slot: PeerSlot) -> Option<&Peer> {
        self.peers.get(&slot)
    }

    /// Whether a tunnel has this index: the upper 24 bits of `receiver`.
    pub fn knows_tunnel(&self, receiver: u32) -> bool {
        self.tunnels.contains(&(receiver >> 8))
    }

    /// The keys for a message with this receiver index, and whose they are.
    pub fn opener(&self, receiver: u32) -> Option<&Opener> {
        self.openers.get(&(receiver >> 8))
    }

    /// Whether a packet from this address may come from the peer in this place: its own address, or that of somebody behind it.
    pub fn belongs(&self, source: IpAddr, slot: PeerSlot) -> bool {
        self.member(source).is_some_and(|(member, peer)| match peer.carrier {
            Carrier::Own => member == slot,
            Carrier::Us => false,
            Carrier::Gateway(gateway) => gateway == slot,
        })
    }

    /// Whether packets to this address go on from here, to a plain WireGuard member that this node is the gateway of.
    pub fn carries(&self, destination: IpAddr) -> bool {
        self.member(destination).is_some_and(|(_, peer)| peer.carrier == Carrier::Us)
    }

    /// What to forward under an index that this node gave out as a relay.
    pub fn relay(&self, index: RelayIndex) -> Option<&Relay> {
        self.relays.get(&index)
    }

    /// How many members, tunnels and relay entries it has.
    pub fn sizes(&self) -> (usize, usize, usize) {
        (self.peers.len(), self.tunnels.len(), self.relays.len())
    }
}

/// The next table in the making. Single writer: control.
#[derive(Debug)]
pub struct Builder {
    next: Table,
    changed: bool,
    shared: Arc<ArcSwap<Table>>,
    datagram: u16,
}

/// Where workers find the table.
#[derive(Debug, Clone)]
pub struct Reader(Arc<ArcSwap<Table>>);

impl Builder {
    /// An empty table, published, for a node with these overlay addresses.
    pub fn new(own: [IpAddr; 2]) -> Self {
        let next = Table {
            own,
            members: Arc::default(),
            peers: Arc::default(),
            tunnels: Arc::default(),
            openers: Arc::default(),
            relays: Arc::default(),
        };
        let shared = Arc::new(ArcSwap::from_pointee(next.clone()));
        Self { next, changed: false, shared, datagram: DATAGRAM }
    }

    /// For one worker.
    pub fn reader(&self) -> Reader {
        Reader(Arc::clone(&self.shared))
    }

    /// The table as it will be published.
    pub fn table(&self) -> &Table {
        &self.next
    }

    /// Takes in one change; seen by nobody before [`Self::publish`].
    pub fn apply(&mut self, directive: &Directive) {
        self.changed = true;
        let next = &mut self.next;
        match *directive {
            Directive::InstallTunnel { index } => {
                Arc::make_mut(&mut next.tunnels).insert(index);
            }
            Directive::RemoveTunnel { index } => {
                Arc::make_mut(&mut next.tunnels).remove(&index);
            }
            Directive::InstallPeer { slot, addresses } => {
                self.remove_peer(slot);
                // An address that another member held is this one's from now on: the newer certificate has won.
                let members = Arc::make_mut(&mut self.next.members);
                members.extend(addresses.map(|address| (address, slot)));
                let peer = Peer {
                    addresses,
                    route: None,
                    carrier: Carrier::Own,
                    seal_with: None,
                    datagram: self.datagram,
                    traffic: Arc::default(),
                };
                Arc::make_mut(&mut self.next.peers).insert(slot, peer);
            }
            Directive::SetCarrier { slot, carrier } => {
                if let Some(peer) = Arc::make_mut(&mut next.peers).get_mut(&slot) {
                    peer.carrier = carrier;
                }
            }
            Directive::InstallKeypairs { slot, ref keypairs } => {
                let opener = Opener { slot, keypairs: Arc::clone(keypairs) };
                Arc::make_mut(&mut next.openers).insert(keypairs.index(), opener);
            }
            Directive::RemoveKeypairs { index } => {
                Arc::make_mut(&mut next.openers).remove(&index);
            }
            Directive::SealWith { slot, ref keypairs } => {
                if let Some(peer) = Arc::make_mut(&mut next.peers).get_mut(&slot) {
                    peer.seal_with.clone_from(keypairs);
                }
            }
            Directive::SetRoute { slot, route } => {
                if let Some(peer) = Arc::make_mut(&mut next.peers).get_mut(&slot) {
                    peer.route = route;
                }
            }
            Directive::RemovePeer { slot } => self.remove_peer(slot),
            Directive::InstallRelay { index, from, to } => {
                // Without the other side's index there is nobody to forward to; what cannot be forwarded is not kept.
                let relays = Arc::make_mut(&mut next.relays);
                let Some(other) = to.relay else {
                    relays.remove(&index);
                    return;
                };
                let forwarded =
                    relays.get(&index).map_or_else(Arc::default, |old| Arc::clone(&old.forwarded));
                let relay = Relay { from: from.egress, to: to.egress, index: other, forwarded };
                relays.insert(index, relay);
            }
            Directive::RemoveRelay { index } => {
                Arc::make_mut(&mut next.relays).remove(&index);
            }
        }
    }

    /// The largest datagram on the way to whoever is installed from now on, if it is not [`DATAGRAM`].
    pub fn set_datagram(&mut self, datagram: u16) {
        self.datagram = datagram;
    }

    /// Shows workers what has changed since the last time. Says whether anything had.
    pub fn publish(&mut self) -> bool {
        let changed = std::mem::take(&mut self.changed);
        if changed {
            self.shared.store(Arc::new(self.next.clone()));
        }
        changed
    }

    fn remove_peer(&mut self, slot: PeerSlot) {
        let Some(peer) = Arc::make_mut(&mut self.next.peers).remove(&slot) else { return };
        Arc::make_mut(&mut self.next.openers).retain(|_, opener| opener.slot != slot);
        let members = Arc::make_mut(&mut self.next.members);
        for address in peer.addresses {
            if members.get(&address) == Some(&slot) {
                members.remove(&address);
            }
        }
    }
}

impl Reader {
    /// The table as it is now. Let go of it before blocking.
    pub fn load(&self) -> Guard<Arc<Table>> {
        self.0.load()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn own() -> [IpAddr; 2] {
        ["10.99.0.1".parse().unwrap(), "fd00::1".parse().unwrap()]
    }

    fn addresses(n: u8) -> [IpAddr; 2] {
        [[10, 99, 0, n].into(), [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(n)].into()]
    }

    fn route(port: u16) -> Route {
        Route::direct(([192, 0, 2, 1], port).into())
    }

    #[test]
    fn nothing_shows_before_it_is_published() {
        let mut builder = Builder::new(own());
        let reader = builder.reader();
        let slot = PeerSlot(3);
        builder.apply(&Directive::InstallPeer { slot, addresses: addresses(2) });
        builder.apply(&Directive::SetRoute { slot, route: Some(route(5)) });
        assert!(reader.load().member(addresses(2)[0]).is_none());
        assert!(builder.publish());
        assert!(!builder.publish(), "nothing new");
        for address in addresses(2) {
            let table = reader.load();
            let (found, peer) = table.member(address).unwrap();
            assert_eq!((found, peer.route), (slot, Some(route(5))));
        }
        builder.apply(&Directive::RemovePeer { slot });
        builder.publish();
        assert!(reader.load().member(addresses(2)[1]).is_none());
        assert!(reader.load().peer(slot).is_none());
    }

    #[test]
    fn a_superseded_member_takes_no_address_with_it() {
        let mut builder = Builder::new(own());
        let (old, new) = (PeerSlot(1), PeerSlot(2));
        builder.apply(&Directive::InstallPeer { slot: old, addresses: addresses(7) });
        builder.apply(&Directive::InstallPeer { slot: new, addresses: addresses(7) });
        builder.apply(&Directive::RemovePeer { slot: old });
        assert_eq!(builder.table().member(addresses(7)[0]).map(|(slot, _)| slot), Some(new));
    }

    #[test]
    fn a_place_that_is_used_again_forgets_its_past() {
        let mut builder = Builder::new(own());
        let slot = PeerSlot(1);
        builder.apply(&Directive::InstallPeer { slot, addresses: addresses(7) });
        builder.apply(&Directive::SetRoute { slot, route: Some(route(1)) });
        builder.apply(&Directive::InstallPeer { slot, addresses: addresses(8) });
        assert!(builder.table().member(addresses(7)[0]).is_none());
        assert_eq!(builder.table().peer(slot).unwrap().route, None);
        builder.apply(&Directive::SetRoute { slot: PeerSlot(9), route: None });
        builder.apply(&Directive::RemovePeer { slot: PeerSlot(9) });
        assert_eq!(builder.table().sizes(), (1, 0, 0));
    }

    #[test]
    fn tunnels_are_known_by_the_upper_24_bits() {
        let mut builder = Builder::new(own());
        builder.apply(&Directive::InstallTunnel { index: 0x00ab_cdef });
        assert!(builder.table().knows_tunnel(0xabcd_ef00));
        assert!(builder.table().knows_tunnel(0xabcd_efff));
        assert!(!builder.table().knows_tunnel(0xabcd_ee00));
        builder.apply(&Directive::RemoveTunnel { index: 0x00ab_cdef });
        assert!(!builder.table().knows_tunnel(0xabcd_ef00));
    }

    #[test]
    fn a_relay_entry_without_the_other_index_is_not_kept() {
        let mut builder = Builder::new(own());
        let index = RelayIndex(5);
        let to = Route { relay: Some(RelayIndex(6)), ..route(2) };
        builder.apply(&Directive::InstallRelay { index, from: route(1), to });
        assert_eq!(builder.table().relay(index).unwrap().index, RelayIndex(6));
        builder.apply(&Directive::InstallRelay { index, from: route(1), to: route(2) });
        assert!(builder.table().relay(index).is_none());
        builder.apply(&Directive::InstallRelay { index, from: route(1), to });
        builder.apply(&Directive::RemoveRelay { index });
        assert!(builder.table().relay(index).is_none());
    }

    #[test]
    fn workers_never_see_half_a_change() {
        // Control installs a tunnel and a member of the same number together; a table with one must have the other.
        let mut builder = Builder::new(own());
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..3)
                .map(|_| {
                    let (reader, stop) = (builder.reader(), &stop);
                    scope.spawn(move || {
                        let (mut seen, mut last) = (0_u64, 0);
                        while !stop.load(Ordering::Relaxed) || seen == 0 {
                            let table = reader.load();
                            let (peers, tunnels, _) = table.sizes();
                            assert_eq!(peers, tunnels);
                            assert!(peers >= last, "never an older table");
                            last = peers;
                            for n in 1..=peers {
                                let n = u8::try_from(n).unwrap();
                                assert!(table.knows_tunnel(u32::from(n) << 8));
                                assert!(table.member(addresses(n)[1]).is_some());
                            }
                            seen += 1;
                        }
                    })
                })
                .collect();
            for n in 1..=100_u8 {
                builder.apply(&Directive::InstallTunnel { index: n.into() });
                builder.apply(&Directive::InstallPeer {
                    slot: PeerSlot(n.into()),
                    addresses: addresses(n),
                });
                builder.publish();
                std::thread::yield_now();
            }
            stop.store(true, Ordering::Relaxed);
            for reader in readers {
                reader.join().unwrap();
            }
        });
        assert_eq!(builder.reader().load().sizes(), (100, 100, 0));
    }
}
