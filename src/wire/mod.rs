//! What travels: message headers, views of IP packets, checksums, control records and their parts, the relay prefix.
//!
//! Decoders of hostile bytes: everything is bounded and checked, nothing panics. No state but [`parts::Assembler`].

pub mod channel;
pub mod checksum;
pub mod exchange;
pub mod filter;
pub mod ip;
pub mod message;
pub mod parts;
pub mod record;
pub mod relay;
pub mod superpacket;

#[cfg(test)]
#[path = "../../tests/packets/mod.rs"]
pub(crate) mod packets;
