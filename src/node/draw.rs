//! Random numbers that are drawn, not read from the machine: one seed a node, so that a simulation can repeat a run.

use sha2::{Digest, Sha256};

/// Numbers that nobody else can guess: SHA-256 over a secret seed and a count.
#[derive(Clone)]
pub(super) struct Draw {
    seed: [u8; 32],
    count: u64,
}

impl std::fmt::Debug for Draw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Draw({})", self.count)
    }
}

impl Draw {
    pub(super) fn new(seed: [u8; 32]) -> Self {
        Self { seed, count: 0 }
    }

    pub(super) fn u64(&mut self) -> u64 {
        self.count += 1;
        let hash =
            Sha256::new().chain_update(self.seed).chain_update(self.count.to_le_bytes()).finalize();
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&hash[..8]);
        u64::from_le_bytes(bytes)
    }

    pub(super) fn u32(&mut self) -> u32 {
        (self.u64() >> 32) as u32
    }
}
