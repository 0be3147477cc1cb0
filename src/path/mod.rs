//! Which way to reach one peer: routes, candidates, probes, choice.
//!
//! What this layer does not own: sealing (probes are control records, made and opened by the node), relay
//! allocations (they arrive here as one more candidate), names (candidates are addresses).
//!
//! **Probing.** A candidate is probed at once, then with growing pauses, [`paths::PROBE_BUDGET`] times in its life
//! until it answers; over all peers no unproven address gets more than [`budget::PER_ADDRESS`] probes a second, so
//! that a peer that lies about its candidates cannot make us flood somebody.
//!
//! **Choice.** Probes can only promote a route; only silence demotes one ([`paths::SILENCE`] without a reply while
//! we keep asking). A direct route beats a relayed one; among direct ones a clearly shorter round trip wins. A route
//! that was demoted is not promoted again for [`paths::COOLDOWN`], doubling.
//!
//! **Life.** A path is alive *for sending* while the peer answers probes sent on it; receiving on it proves only the
//! other direction. A new origin of opened datagrams becomes a candidate and never moves the route by itself.

pub mod budget;
pub mod candidate;
pub mod paths;
pub mod route;
