//! How many probes any one unproven address may get, over all peers.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

/// Probes a second to one address that has not answered yet: enough to find a path, too few to be a nuisance.
pub const PER_ADDRESS: u32 = 4;

/// Addresses remembered at once; beyond that new ones wait a second.
const MAX_ADDRESSES: usize = 4096;

/// Counts probes per address and second.
#[derive(Debug, Default)]
pub struct Budget {
    windows: BTreeMap<SocketAddr, (Instant, u32)>,
}

impl Budget {
    /// Whether one more probe may go to this address now; counts it if so.
    pub fn spend(&mut self, address: SocketAddr, now: Instant) -> bool {
        let is_over = |start: Instant| now.duration_since(start) >= Duration::from_secs(1);
        if self.windows.len() >= MAX_ADDRESSES {
            self.windows.retain(|_, (start, _)| !is_over(*start));
            if self.windows.len() >= MAX_ADDRESSES && !self.windows.contains_key(&address) {
                return false;
            }
        }
        let window = self.windows.entry(address).or_insert((now, 0));
        if is_over(window.0) {
            *window = (now, 0);
        }
        window.1 += 1;
        window.1 <= PER_ADDRESS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do")]
    fn an_address_gets_four_probes_a_second_whoever_asks() {
        let start = Instant::now();
        let mut budget = Budget::default();
        let victim: SocketAddr = "192.0.2.1:53".parse().expect("literal");
        let sent = (0..100).filter(|_| budget.spend(victim, start)).count();
        assert_eq!(sent, 4);
        assert!(budget.spend("192.0.2.2:53".parse().expect("literal"), start));
        assert!(budget.spend(victim, start + Duration::from_secs(1)));
    }
}
