//! Which of our own addresses a peer knows us by: an answer leaves from the address that the question was sent to.
//!
//! A machine with several addresses (IPv6 with temporary ones, a server's second address) would else answer from the one its
//! routing prefers, and the firewall or NAT before the peer, which has seen a datagram go to another, drops it. The table is of
//! fixed size, one place per hash of the endpoint: a collision costs only the memory of one of the two. Nothing here is
//! authenticated, so an address that is in use stays until it has been silent for [`HOLD`]: a forged origin cannot move it.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// How long an address stays without being heard on. Longer than a keepalive interval of a live path, short enough that a peer
/// that has changed over to another of our addresses is soon answered from there.
const HOLD: Duration = Duration::from_secs(15);

/// After this silence the routing decides again: what the peer's firewall remembered of us is forgotten by then, and so is its
/// session (`REJECT_AFTER_TIME`).
const STALE: Duration = Duration::from_secs(180);

/// Places; more than a large network's peers that are active at once.
const PLACES: usize = 1024;

#[derive(Clone, Copy, Debug)]
struct Place {
    endpoint: SocketAddr,
    own: IpAddr,
    heard: Duration,
}

/// The table. Sending and receiving never block: a place that another thread holds this moment is passed over.
#[derive(Debug)]
pub(super) struct Sources(Box<[Mutex<Option<Place>>]>);

impl Sources {
    pub(super) fn new() -> Self {
        Self((0..PLACES).map(|_| Mutex::new(None)).collect())
    }

    /// A datagram from `origin` came to our address `own`, at `now` (since boot).
    pub(super) fn heard(&self, origin: SocketAddr, own: IpAddr, now: Duration) {
        let Ok(mut place) = self.place(origin).try_lock() else { return };
        if let Some(held) = place.as_ref()
            && (held.endpoint, held.own) != (origin, own)
            && now.saturating_sub(held.heard) < HOLD
        {
            return;
        }
        *place = Some(Place { endpoint: origin, own, heard: now });
    }

    /// Our address that `endpoint` knows at `now` (since boot), if any.
    pub(super) fn towards(&self, endpoint: SocketAddr, now: Duration) -> Option<IpAddr> {
        let place = (*self.place(endpoint).try_lock().ok()?)?;
        let known = place.endpoint == endpoint && now.saturating_sub(place.heard) < STALE;
        known.then_some(place.own)
    }

    /// That address is ours no more.
    pub(super) fn forget(&self, endpoint: SocketAddr) {
        if let Ok(mut place) = self.place(endpoint).try_lock() {
            *place = place.filter(|place| place.endpoint != endpoint);
        }
    }

    /// Nothing is known any more: this machine's addresses or routes have changed.
    pub(super) fn forget_all(&self) {
        for place in &self.0 {
            *place.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    /// FNV-1a over address and port: quick, and of no use to an attacker, who can only make us forget.
    fn place(&self, endpoint: SocketAddr) -> &Mutex<Option<Place>> {
        let mix = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        let hash = match endpoint.ip() {
            IpAddr::V4(ip) => ip.octets().iter().fold(0xcbf2_9ce4_8422_2325, mix),
            IpAddr::V6(ip) => ip.octets().iter().fold(0xcbf2_9ce4_8422_2325, mix),
        };
        let hash = endpoint.port().to_be_bytes().iter().fold(hash, mix);
        &self.0[(hash % PLACES as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_in_use_is_not_moved_by_a_forged_origin() {
        let sources = Sources::new();
        let peer: SocketAddr = "192.0.2.7:5000".parse().unwrap();
        let [a, b]: [IpAddr; 2] = ["198.51.100.1", "198.51.100.2"].map(|ip| ip.parse().unwrap());
        let second = Duration::from_secs(1);
        assert_eq!(sources.towards(peer, second), None);
        sources.heard(peer, a, second);
        sources.heard(peer, b, 2 * second);
        assert_eq!(sources.towards(peer, 2 * second), Some(a));
        sources.heard(peer, a, 10 * second);
        sources.heard(peer, b, 24 * second);
        assert_eq!(sources.towards(peer, 24 * second), Some(a));
        sources.heard(peer, b, 25 * second);
        let changed = "silent for 15 s: the peer has changed over";
        assert_eq!(sources.towards(peer, 25 * second), Some(b), "{changed}");
        assert_eq!(sources.towards(peer, 205 * second), None, "silent for 3 minutes");
        sources.forget(peer);
        assert_eq!(sources.towards(peer, 25 * second), None);
    }
}
