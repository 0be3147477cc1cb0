//! Two nodes on a link, and the traffic between them.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use netns_tests::command::{Background, Cmd};
use netns_tests::lab::{Family, Lab, Tun};
use netns_tests::link::{self, Frames, SIDES};
use netns_tests::network::{Network, SOON};
use netns_tests::traffic;

/// Where the master listens.
const PORT: u16 = 4242;

/// What the cables take.
const UNDERLAY_MTU: u16 = 1500;

/// Two nodes and what lies between them.
#[derive(Clone, Copy)]
pub(crate) struct Stage {
    /// Whether they have a TUN.
    pub(crate) tun: Tun,
    /// What the underlay speaks.
    pub(crate) family: Family,
    /// Whether it carries superpackets.
    pub(crate) frames: Frames,
    /// Whether rules can be set for it.
    pub(crate) has_middle: bool,
}

/// Nodes `a`, the master, and `b`, joined, with a server of the traffic program in each.
pub(crate) struct Pair {
    pub(crate) network: Network,
    _servers: Vec<Background>,
}

impl Stage {
    /// Joins both nodes with these lines in their `[node]` tables.
    pub(crate) fn join(&self, node: &str) -> Result<Pair> {
        let mut lab = Lab::new(self.family, self.tun);
        for side in SIDES {
            lab.lone_host(side)?;
        }
        if self.has_middle {
            link::lay_middle(&mut lab, self.frames, UNDERLAY_MTU)?;
        } else {
            link::lay_cable(&lab, self.frames, UNDERLAY_MTU)?;
        }
        let (addresses, length, nodad) = match self.family {
            Family::V4 => (["10.77.0.1", "10.77.0.2"], 24, ""),
            Family::V6 => (["fd77::1", "fd77::2"], 64, " nodad"),
        };
        for (side, address) in SIDES.into_iter().zip(addresses) {
            lab.ip(side, &format!("addr add {address}/{length} dev eth0{nodad}\n"))?;
        }
        let [a, b] = SIDES;
        let endpoint = SocketAddr::new(addresses[0].parse()?, PORT);
        let mut network = Network::begin(lab, a, endpoint, &SIDES)?;
        for side in SIDES {
            network.tune(side, node)?;
            network.join(side)?;
        }
        for option in ["-4", "-6"] {
            // The very first packet must arrive.
            network
                .inside(a, &format!("ping {option} -c1 -W20 {b}"))
                .ok()
                .with_context(|| format!("{:?}, {:?}", drops(&network, a), drops(&network, b)))?;
        }
        network.wait_seen(a, b, "direct", SOON, |seen| {
            seen.path.as_deref().is_some_and(|path| path.starts_with("direct"))
        })?;
        let servers = SIDES.map(|side| traffic::serve(network.inside(side, "traffic serve")));
        Ok(Pair { network, _servers: servers.into_iter().collect::<Result<_>>()? })
    }
}

impl Pair {
    /// An overlay address.
    pub(crate) fn address(&self, side: &str, family: Family) -> Result<IpAddr> {
        Ok(self.network.overlay(side, family)?.parse()?)
    }

    /// A part of the traffic program inside a node, to the server in another.
    pub(crate) fn traffic(
        &self,
        from: &str,
        part: &str,
        to: (&str, Family),
        options: &str,
    ) -> Result<Cmd<'_>> {
        let address = self.address(to.0, to.1)?;
        Ok(self.network.inside(from, &format!("traffic {part} {address} {options}")).limit(300))
    }

    /// Number of a node's `serve`.
    pub(crate) fn serve(&self, side: &str) -> Result<u32> {
        let found = self.network.lab.on(side).sh("pgrep -f 'clusternetd( .*)? serve( |$)'").ok()?;
        found.lines().next().and_then(|line| line.parse().ok()).context("no serve")
    }

    /// What both nodes have dropped and why; fails where a reason is none of `usual`, which every network has.
    pub(crate) fn check_drops(&self, usual: &[&str]) -> Result<()> {
        for side in SIDES {
            let drops = drops(&self.network, side)?;
            let odd: Vec<_> =
                drops.iter().filter(|(reason, _)| !usual.contains(&reason.as_str())).collect();
            ensure!(odd.is_empty(), "{side} dropped {odd:?}");
        }
        Ok(())
    }
}

/// What a node has dropped, and why.
fn drops(network: &Network, side: &str) -> Result<Vec<(String, u64)>> {
    Ok(network.status(side)?.drops)
}
