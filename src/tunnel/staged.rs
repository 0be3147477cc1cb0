//! What waits for a session: bounded in number and bytes, the oldest dropped first.

use std::collections::VecDeque;

/// Packets staged for a session at most; the oldest is dropped first. What a TCP window of 180 KB would send.
pub const STAGED_MAX: usize = 128;
/// Bytes staged at most: 128 packets of an ordinary MTU.
pub const STAGED_BYTES_MAX: usize = 192 * 1024;

/// Packets in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Staged {
    packets: VecDeque<Vec<u8>>,
    bytes: usize,
}

impl Staged {
    pub(super) fn push(&mut self, packet: &[u8]) {
        self.bytes += packet.len();
        self.packets.push_back(packet.to_vec());
        while self.packets.len() > STAGED_MAX || self.bytes > STAGED_BYTES_MAX {
            self.pop();
        }
    }

    pub(super) fn pop(&mut self) -> Option<Vec<u8>> {
        let packet = self.packets.pop_front()?;
        self.bytes -= packet.len();
        Some(packet)
    }

    pub(super) fn len(&self) -> usize {
        self.packets.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }
}
