//! The one gate in front of all handshakes: mac1, then cookies under load, then a token bucket per origin.
//!
//! # Theory of operation
//!
//! 1. A handshake message without a right mac1 is refused: its sender does not know whom it writes to.
//! 2. Messages from addresses are counted. More than [`CALM_LIMIT`] in a second is *load*, which lasts until a second
//!    has passed without that. Under load an address must prove by a cookie that it receives what is sent to it.
//! 3. Only an origin that has proved itself has a bucket ([`RATE`], [`BURST`]): were unproved addresses given one, who
//!    forges a member's address could empty that member's bucket.
//! 4. Links and relay indexes cannot be forged. They have their buckets always, are never asked for a cookie (boringtun
//!    refuses every message without an address under load) and are never counted as load.
//!
//! boringtun's `RateLimiter` makes and checks the cookies; one with a limit of zero always asks, so that *when* to ask is
//! decided here, by the time that is given, and each tunnel's own limiter never limits: else each message counts twice.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use boringtun::noise::{TunnResult, rate_limiter::RateLimiter};

use crate::{
    wire::message::{COOKIE_REPLY_LEN, Mac1Key, Message},
    words::{key::TransportKey, time::Now},
};

/// Handshake messages a second, over all addresses, that are answered without a cookie. Each costs about a fifth of a
/// millisecond to answer, so this is 2 % of one core.
pub const CALM_LIMIT: u32 = 100;
/// Handshake messages a second from one proved origin.
pub const RATE: u32 = 20;
/// As many as that may come at once.
pub const BURST: u32 = 5;
/// Origins remembered at most; a bucket is forgotten when it is full again. When all are in use, new origins wait.
pub const ORIGINS_MAX: usize = 4096;

/// Counting and load are per second. WireGuard §5.3 leaves the measure to the implementation.
const SECOND: Duration = Duration::from_secs(1);
/// The time in which one token comes back.
const TOKEN: Duration = Duration::from_millis(1000 / RATE as u64);

/// Where a datagram came from, as far as limits care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// An underlay address; anyone can forge it until a cookie has come back.
    Address(IpAddr),
    /// A link, by the number its owner gave it.
    Link(u64),
    /// A relay's index; the relay accepts an index only from the origin it was given to.
    Relay(u32),
}

/// What to do with a handshake message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// Hand it on.
    Pass,
    /// Send this cookie reply back to where it came from, and drop it.
    CookieReply(Vec<u8>),
    /// Drop it.
    Refuse(Refusal),
}

/// Why a handshake message was dropped at the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It is no message, or its mac1 is wrong.
    Mac1,
    /// Its origin sends too many.
    Rate,
    /// Too many origins at once.
    Full,
}

/// The gate; one for all sockets, links and relays of a node.
pub struct Gate {
    mac1: Mac1Key,
    cookies: RateLimiter,
    counted_since: Option<Instant>,
    count: u32,
    loaded_until: Option<Instant>,
    buckets: BTreeMap<Place, Bucket>,
    swept: Option<Instant>,
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gate({} origins)", self.buckets.len())
    }
}

impl Gate {
    /// A gate for the holder of `key`, which is our own transport key.
    pub fn new(key: &TransportKey) -> Self {
        Self {
            mac1: Mac1Key::of(key),
            cookies: RateLimiter::new(&key.0.into(), 0),
            counted_since: None,
            count: 0,
            loaded_until: None,
            buckets: BTreeMap::new(),
            swept: None,
        }
    }

    /// Judges one datagram. Anything but an initiation or a response passes: it costs no public-key cryptography.
    pub fn admit(&mut self, datagram: &[u8], origin: Origin, now: Now) -> Admission {
        match Message::parse(datagram) {
            Ok(message) if !message.is_handshake() => return Admission::Pass,
            Ok(_) => {}
            Err(_) => return Admission::Refuse(Refusal::Mac1),
        }
        if !self.mac1.is_valid_in(datagram) {
            return Admission::Refuse(Refusal::Mac1);
        }
        if let Origin::Address(address) = origin {
            if !self.count_is_load(now.instant) {
                return Admission::Pass;
            }
            let mut reply = [0; COOKIE_REPLY_LEN];
            match self.cookies.verify_packet(Some(address), datagram, &mut reply) {
                Ok(_) => {}
                Err(TunnResult::WriteToNetwork(reply)) => {
                    return Admission::CookieReply(reply.to_vec());
                }
                Err(
                    TunnResult::Done
                    | TunnResult::Err(_)
                    | TunnResult::WriteToTunnelV4(..)
                    | TunnResult::WriteToTunnelV6(..),
                ) => return Admission::Refuse(Refusal::Mac1),
            }
        }
        match self.take_token(Place::of(origin), now.instant) {
            Ok(()) => Admission::Pass,
            Err(refusal) => Admission::Refuse(refusal),
        }
    }

    /// How many origins are remembered now; never more than [`ORIGINS_MAX`].
    pub fn origins(&self) -> usize {
        self.buckets.len()
    }

    fn count_is_load(&mut self, now: Instant) -> bool {
        if self.counted_since.is_none_or(|since| now.saturating_duration_since(since) >= SECOND) {
            self.counted_since = Some(now);
            self.count = 0;
        }
        self.count = self.count.saturating_add(1);
        if self.count > CALM_LIMIT {
            self.loaded_until = Some(now + SECOND);
        }
        self.loaded_until.is_some_and(|until| now < until)
    }

    fn take_token(&mut self, place: Place, now: Instant) -> Result<(), Refusal> {
        if let Some(bucket) = self.buckets.get_mut(&place) {
            return if bucket.take(now) { Ok(()) } else { Err(Refusal::Rate) };
        }
        if self.buckets.len() >= ORIGINS_MAX {
            // Looking at all of them costs 4096 steps: not for each datagram of a flood.
            if self.swept.is_some_and(|at| now.saturating_duration_since(at) < TOKEN) {
                return Err(Refusal::Full);
            }
            self.swept = Some(now);
            self.buckets.retain(|_, bucket| !bucket.is_full(now));
            if self.buckets.len() >= ORIGINS_MAX {
                return Err(Refusal::Full);
            }
        }
        let mut bucket = Bucket { full_at: now };
        bucket.take(now);
        self.buckets.insert(place, bucket);
        Ok(())
    }
}

/// Whose bucket it is: an IPv6 host has a whole /64 of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    V4([u8; 4]),
    V6([u8; 8]),
    Link(u64),
    Relay(u32),
}

impl Place {
    fn of(origin: Origin) -> Self {
        match origin {
            Origin::Address(address) => match address.to_canonical() {
                IpAddr::V4(v4) => Self::V4(v4.octets()),
                IpAddr::V6(v6) => {
                    let [a, b, c, d, e, f, g, h, ..] = v6.octets();
                    Self::V6([a, b, c, d, e, f, g, h])
                }
            },
            Origin::Link(number) => Self::Link(number),
            Origin::Relay(index) => Self::Relay(index),
        }
    }
}

/// A token bucket as one instant: when it will be full again.
struct Bucket {
    full_at: Instant,
}

impl Bucket {
    fn is_full(&self, now: Instant) -> bool {
        self.full_at <= now
    }

    fn take(&mut self, now: Instant) -> bool {
        let full_at = self.full_at.max(now) + TOKEN;
        let fits = full_at.saturating_duration_since(now) <= TOKEN * BURST;
        if fits {
            self.full_at = full_at;
        }
        fits
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
mod tests {
    use super::*;
    use crate::{
        tunnel::{Sink, Tunnel},
        words::{key::TransportSecret, time::Timestamp},
    };

    fn now() -> Now {
        Now { instant: Instant::now(), wall: Timestamp(0) }
    }

    fn later(now: Now, by: Duration) -> Now {
        Now { instant: now.instant + by, wall: now.wall.plus(by) }
    }

    /// A gate, and an initiation for it that is right in all but the cookie.
    fn gate_and_initiation() -> (Gate, Vec<u8>) {
        let us = TransportSecret::generate();
        let mut sink = Sink::default();
        Tunnel::new(&TransportSecret::generate(), &us.public(), 1, now())
            .initiate(now(), &mut sink);
        (Gate::new(&us.public()), sink.datagrams.remove(0))
    }

    fn v4(last: u8) -> Origin {
        Origin::Address(IpAddr::from([192, 0, 2, last]))
    }

    #[test]
    fn a_wrong_mac1_never_passes_nor_counts() {
        let (mut gate, mut initiation) = gate_and_initiation();
        initiation[20] ^= 1;
        for _ in 0..10 * CALM_LIMIT {
            assert_eq!(gate.admit(&initiation, v4(1), now()), Admission::Refuse(Refusal::Mac1));
        }
        assert_eq!(gate.origins(), 0);
        initiation[20] ^= 1;
        assert_eq!(gate.admit(&initiation, v4(1), now()), Admission::Pass);
    }

    #[test]
    fn transport_data_is_not_the_gates_business() {
        let (mut gate, _) = gate_and_initiation();
        let data = [&[4, 0, 0, 0][..], &[0; 60]].concat();
        for _ in 0..10 * CALM_LIMIT {
            assert_eq!(gate.admit(&data, v4(1), now()), Admission::Pass);
        }
    }

    #[test]
    fn load_asks_addresses_for_a_cookie_and_passes_with_the_second() {
        let (mut gate, initiation) = gate_and_initiation();
        let start = now();
        for _ in 0..CALM_LIMIT {
            assert_eq!(gate.admit(&initiation, v4(1), start), Admission::Pass);
        }
        let Admission::CookieReply(reply) = gate.admit(&initiation, v4(1), start) else {
            panic!("no cookie asked for");
        };
        assert_eq!((reply.len(), reply[0]), (64, 3));
        let half = later(start, SECOND / 2);
        assert!(matches!(gate.admit(&initiation, v4(2), half), Admission::CookieReply(_)));
        let calm = later(half, SECOND);
        assert_eq!(gate.admit(&initiation, v4(1), calm), Admission::Pass);
    }

    #[test]
    fn links_and_relays_have_buckets_and_no_part_in_the_load() {
        let (mut gate, initiation) = gate_and_initiation();
        let start = now();
        for origin in [Origin::Link(3), Origin::Relay(3)] {
            for _ in 0..BURST {
                assert_eq!(gate.admit(&initiation, origin, start), Admission::Pass);
            }
            let refused = Admission::Refuse(Refusal::Rate);
            assert_eq!(gate.admit(&initiation, origin, start), refused);
            let one = later(start, SECOND / RATE);
            assert_eq!(gate.admit(&initiation, origin, one), Admission::Pass);
            assert_eq!(gate.admit(&initiation, origin, one), refused);
        }
        for number in 0..1000 {
            assert_eq!(gate.admit(&initiation, Origin::Link(100 + number), start), Admission::Pass);
        }
        assert_eq!(gate.admit(&initiation, v4(1), start), Admission::Pass);
    }

    #[test]
    fn an_ipv6_host_has_one_bucket_for_its_whole_64() {
        let one = Place::of(Origin::Address("2001:db8::1".parse().unwrap()));
        let other = Place::of(Origin::Address("2001:db8::ffff:1:2:3".parse().unwrap()));
        let next = Place::of(Origin::Address("2001:db8:0:1::1".parse().unwrap()));
        assert_eq!(one, other);
        assert_ne!(one, next);
        let mapped = Place::of(Origin::Address("::ffff:192.0.2.1".parse().unwrap()));
        assert_eq!(mapped, Place::of(v4(1)));
    }

    #[test]
    fn origins_are_bounded_and_forgotten() {
        let (mut gate, initiation) = gate_and_initiation();
        let start = now();
        for number in 0..ORIGINS_MAX as u64 {
            assert_eq!(gate.admit(&initiation, Origin::Link(number), start), Admission::Pass);
        }
        let refused = Admission::Refuse(Refusal::Full);
        assert_eq!(gate.admit(&initiation, Origin::Link(u64::MAX), start), refused);
        assert_eq!(gate.origins(), ORIGINS_MAX);
        let next = later(start, SECOND);
        assert_eq!(gate.admit(&initiation, Origin::Link(u64::MAX), next), Admission::Pass);
        assert_eq!(gate.origins(), 1);
    }
}
