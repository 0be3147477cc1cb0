//! The data plane: what happens to packets and datagrams that need no decision by control.
//!
//! Theory of operation. Each [`worker`] is a plain thread with one TUN queue and one UDP socket. It sleeps in one
//! `poll`; woken, it loads the [`table`] once, hands every datagram that has come to [`inbound`] and every packet to
//! [`outbound`], and lets go of the table before it sleeps again. Those two are I/O-free functions over borrowed
//! buffers: nothing is copied but what is *punted*.
//!
//! Control (the `node`) is the only writer of the table: it emits directives, the shell applies them to a
//! [`table::Builder`] and publishes. Workers talk back only by relaxed atomics ([`drops`]) and by [`punt`], a bounded
//! queue of what they must not handle. A worker never awaits, never takes a lock that control holds, never allocates per packet beyond
//! the punts' own bounded pool.
//!
//! ```text
//!  underlay                                                                  overlay
//!  datagram --> inbound --+-- relay index of ours, right origin --> sent on at once
//!                         +-- handshake, mac1 right -------------> punt (handshakes)
//!                         +-- known tunnel index ----------------> punt (tunnel data)
//!                         +-- anything else: dropped and counted
//!  sent by control <----- punt (packets) <-- a member's address --+-- outbound <-- packet
//!                                  unreachable, told at once <----+
//!                                  dropped and counted <----------+
//! ```

pub mod coalesce;
pub mod drops;
pub mod inbound;
pub mod outbound;
pub mod poll;
pub mod punt;
pub mod segment;
pub mod slices;
pub mod table;
pub mod unreachable;
pub mod worker;
