//! A network that is simulated: hosts, NATs, firewalls and lossy links on a virtual clock, decided by a seed.
//!
//! Time moves only in [`Net::run_for`] and [`Net::run_until`], from event to event; whatever a [`Host`] sends is routed,
//! translated, delayed, doubled or lost, and written to [`Net::log`]. The same seed gives the same log.
//!
//! ```text
//!                    the internet (Site 0): any host with a public address
//!                   /            |            \
//!          gateway (NAT)   gateway (firewall)   host
//!             /     \            |
//!          host    gateway     host              sites nest: carrier-grade NAT is a NAT inside a NAT
//!                     |
//!                    host
//! ```
#![allow(dead_code, unreachable_pub, reason = "each test binary includes this and uses its part")]

pub mod clock;
pub mod gateway;
pub mod net;

#[allow(unused_imports, reason = "each test binary uses its part of this")]
pub use self::{
    clock::{Clock, Rng},
    gateway::{Filtering, Gateway, Mapping},
    net::{Condition, Fate, Host, HostId, Net, Output, SiteId, Transmit},
};

/// Runs a simulation on a thread of its own, so that nothing of an earlier one (clock, randomness, the keys of hash maps)
/// is left in it. Panics in it are the caller's.
pub fn simulate<T: Send>(seed: u64, body: impl FnOnce(Clock) -> T + Send) -> T {
    std::thread::scope(|scope| match scope.spawn(|| body(Clock::start(seed))).join() {
        Ok(value) => value,
        Err(panic) => {
            eprintln!("in the simulation with seed {seed}");
            std::panic::resume_unwind(panic)
        }
    })
}
