//! What a machine's user may set about speed: `[node]` fields that change nothing but cost and pace.

use std::fmt::Write;

use serde::{Deserialize, Deserializer, de};

use crate::wire::exchange::Suite;

/// The most workers of one node; the channel's messages have room for 16 stripes, one of them control's.
pub const MAX_WORKERS: u8 = 15;

/// The longest a worker may look about before it sleeps, microseconds.
const MAX_POLL: u16 = 10_000;

/// The least a socket must hold: a few superpackets.
const MIN_BUFFER: u32 = 65_536;

/// Bytes of an IPv6 and a UDP header.
const IPV6_UDP: u16 = 48;

/// Speed and what it costs. `None`: chosen from the machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tuning {
    /// Threads that carry packets.
    pub workers: Option<u8>,
    /// Cores they are bound to, one each, in turn; none: wherever the system likes.
    pub cores: Vec<u16>,
    /// How long a worker looks for the next packet before it sleeps, microseconds; 0: not at all.
    pub poll: Option<u16>,
    /// The only AEAD to offer to peers.
    pub suite: Option<Suite>,
    /// `Some(false)`: as if the kernel could neither cut nor join packets.
    pub offload: Option<bool>,
    /// Bytes that the UDP sockets hold, in either direction.
    pub socket_buffer: Option<u32>,
    /// MTU of the network between the machines.
    pub underlay_mtu: Option<u16>,
}

impl Tuning {
    /// The largest datagram for the network between the machines: what its MTU leaves over IPv6.
    pub fn datagram(&self) -> Option<u16> {
        self.underlay_mtu.map(|mtu| mtu - IPV6_UDP)
    }

    /// How many threads carry packets. One moves more than ten gigabits a second, and a second one can reorder what a peer gets
    /// over two ways; so more than one only where cores abound.
    pub fn workers(&self) -> u8 {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        self.workers.unwrap_or_else(|| (cores / 8).clamp(1, 4) as u8)
    }

    /// Writes the fields that are set.
    pub(super) fn render(&self, out: &mut String) {
        // Writing to a String cannot fail.
        if let Some(workers) = self.workers {
            let _ = writeln!(out, "workers = {workers}");
        }
        if !self.cores.is_empty() {
            let _ = writeln!(out, "cores = {:?}", self.cores);
        }
        if let Some(poll) = self.poll {
            let _ = writeln!(out, "poll = {poll}");
        }
        if let Some(suite) = self.suite {
            let _ = writeln!(out, "suite = \"{}\"", suite_name(suite));
        }
        if let Some(offload) = self.offload {
            let _ = writeln!(out, "offload = {offload}");
        }
        if let Some(bytes) = self.socket_buffer {
            let _ = writeln!(out, "socket-buffer = {bytes}");
        }
        if let Some(mtu) = self.underlay_mtu {
            let _ = writeln!(out, "underlay-mtu = {mtu}");
        }
    }
}

/// As it is written in files.
pub fn suite_name(suite: Suite) -> &'static str {
    match suite {
        Suite::ChaCha20Poly1305 => "chacha20poly1305",
        Suite::Aes256Gcm => "aes256gcm",
    }
}

/// A number of workers.
pub(super) struct Workers(pub(super) u8);

impl<'de> Deserialize<'de> for Workers {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match u8::deserialize(from)? {
            workers @ 1..=MAX_WORKERS => Ok(Self(workers)),
            _ => Err(de::Error::custom("the number of workers is between 1 and 15")),
        }
    }
}

/// Microseconds.
pub(super) struct Poll(pub(super) u16);

impl<'de> Deserialize<'de> for Poll {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match u16::deserialize(from)? {
            poll @ 0..=MAX_POLL => Ok(Self(poll)),
            _ => Err(de::Error::custom("poll is in microseconds, at most 10000 (0: not at all)")),
        }
    }
}

/// Bytes.
pub(super) struct Buffer(pub(super) u32);

impl<'de> Deserialize<'de> for Buffer {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match u32::deserialize(from)? {
            bytes @ MIN_BUFFER.. => Ok(Self(bytes)),
            _ => Err(de::Error::custom("socket-buffer is in bytes, at least 65536")),
        }
    }
}

/// The MTU of an underlay.
pub(super) struct UnderlayMtu(pub(super) u16);

impl<'de> Deserialize<'de> for UnderlayMtu {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match u16::deserialize(from)? {
            mtu @ 1280..=9216 => Ok(Self(mtu)),
            _ => Err(de::Error::custom("an underlay's MTU is between 1280 and 9216")),
        }
    }
}

/// An AEAD by its name.
pub(super) struct SuiteName(pub(super) Suite);

impl<'de> Deserialize<'de> for SuiteName {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let name = String::deserialize(from)?;
        [Suite::ChaCha20Poly1305, Suite::Aes256Gcm]
            .into_iter()
            .find(|suite| suite_name(*suite) == name)
            .map(Self)
            .ok_or_else(|| de::Error::custom("suite is \"aes256gcm\" or \"chacha20poly1305\""))
    }
}
