//! The data plane: what happens to packets and datagrams that need no decision by control.
//!
//! Theory of operation. Each [`worker`] is a plain thread with one queue of the device and one UDP socket. It takes what is at hand
//! until nothing is, looks about for a moment ([`poll`]), sleeps. Each turn it loads the [`table`] once and lets go of it before it
//! sleeps. What it does with packets and datagrams stands in I/O-free functions over borrowed buffers: [`outbound`], [`inbound`].
//!
//! Control (the `node`) is the only writer of the table: it emits directives, the shell applies them to a
//! [`table::Builder`] and publishes. Workers talk back only by relaxed atomics ([`drops`], [`table::Traffic`]) and by [`punt`], a
//! bounded queue of what they must not handle. A worker never awaits, never takes a lock that control holds, never allocates per
//! packet beyond the punts' own bounded pool.
//!
//! ```text
//!  underlay                                                                             overlay
//!  datagrams --> inbound --+-- channel message, keys known --> opened --> slices ----+-> device
//!                          |                                      small --> coalesce-+
//!                          +-- relay index of ours, right origin --> sent on at once
//!                          +-- handshake, mac1 right; known tunnel index --> punt
//!                          +-- anything else: dropped and counted
//!
//!  datagrams <-- send batch <-- sealed in place <-- keys and a route --+-- outbound <-- packet, superpacket
//!  sent by control <----- punt (segmented) <-- a member without keys --+
//!                                    unreachable, told at once <-------+
//!                                    dropped and counted <-------------+
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
