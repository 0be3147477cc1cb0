//! The two hosts of a measurement and the link between them.
//!
//! ```text
//!     a ────────────── b           throughput, packets, round trips
//!     a ──── middle ──── b         loss and reordering, packet by packet
//! ```
//!
//! Why a middle: on a cable between two hosts superpackets cross whole, or are joined again before
//! any rule sees them, so that one lost would be forty lost. The middle forwards what `a` has cut.

use std::time::Duration;

use anyhow::{Context, Result};
use netns_tests::binaries;
use netns_tests::clock::wait_until;
use netns_tests::command::Cmd;
use netns_tests::lab::{Family, Lab, Tun};
use netns_tests::link::{self, Frames, Rule};

use crate::options::{Device, Offload, Options};

/// Addresses of the hosts on the link; a /24.
pub(crate) const UNDERLAY: [&str; 2] = ["10.77.0.1", "10.77.0.2"];

/// The names of the hosts.
pub(crate) const SIDES: [&str; 2] = link::SIDES;

/// Where hosts find this program.
pub(crate) const BENCH: &str = "/run/lab/bench/bench";

/// Where hosts find what `peers.sh` has fetched.
pub(crate) const PEERS: &str = "/run/lab/peers";

/// What lies between the hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Medium {
    /// A cable.
    Cable,
    /// Two cables, and rules that single packets meet.
    Middle,
}

/// What the middle does to packets, in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    /// As measurements are called.
    pub(crate) name: &'static str,
    /// What befalls them.
    rule: Option<Rule>,
}

/// The conditions that are measured. One packet in a hundred that takes a detour comes out after
/// several that left later.
pub(crate) const CONDITIONS: [Condition; 5] = [
    Condition { name: "loss-0", rule: None },
    Condition { name: "loss-0.01", rule: Some("numgen random mod 10000 < 1 drop") },
    Condition { name: "loss-0.1", rule: Some("numgen random mod 1000 < 1 drop") },
    Condition { name: "loss-1", rule: Some("numgen random mod 100 < 1 drop") },
    Condition { name: "reorder", rule: Some("numgen random mod 100 < 1 fwd to DETOUR") },
];

/// The hosts and their link. Dropping it ends everything on them.
pub(crate) struct Pair {
    lab: Lab,
}

impl Pair {
    /// Two fresh hosts on a link as the options say.
    pub(crate) fn new(options: &Options, medium: Medium) -> Result<Self> {
        let tun = match options.device {
            Device::Tun => Tun::Open,
            Device::Packet => Tun::RootOnly,
        };
        let mut lab = Lab::new(Family::V4, tun);
        let target = binaries::target_directory()?;
        let peers = peers_directory()?;
        std::fs::create_dir_all(&peers).with_context(|| format!("make {}", peers.display()))?;
        lab.share(target, "bench");
        lab.share(peers, "peers");
        for side in SIDES {
            lab.lone_host(side)?;
        }
        let is_cut = medium == Medium::Middle || options.offload == Offload::Nic;
        let frames = if is_cut { Frames::Cut } else { Frames::Whole };
        match medium {
            Medium::Cable => link::lay_cable(&lab, frames, options.mtu)?,
            Medium::Middle => link::lay_middle(&mut lab, frames, options.mtu)?,
        }
        let pair = Self { lab };
        for (side, address) in SIDES.into_iter().zip(UNDERLAY) {
            pair.lab.ip(side, &format!("addr add {address}/24 dev eth0\n"))?;
        }
        for side in SIDES {
            let hosts = format!("127.0.0.1 localhost\n{} a\n{} b\n", UNDERLAY[0], UNDERLAY[1]);
            pair.root(side, "cat > /etc/hosts").stdin(hosts).ok()?;
        }
        Ok(pair)
    }

    /// Makes the middle do to packets what `condition` says, and nothing else.
    pub(crate) fn set(&self, condition: Condition) -> Result<()> {
        link::set_rule(&self.lab, condition.rule)
    }

    /// Waits until a program on a host listens on a TCP port; `prefix` leads into its network.
    pub(crate) fn wait_for_listener(&self, side: &str, prefix: &str, port: u16) -> Result<()> {
        // A socket that listens is in state 0A.
        let pattern = format!(":{port:04X} [0-9A-F]*:0000 0A");
        let script = format!("{prefix}cat /proc/net/tcp /proc/net/tcp6 | grep -q '{pattern}'");
        let what = format!("port {port} of {side}");
        wait_until(&what, Duration::from_secs(20), || {
            Ok(self.user(side, &script).run()?.status.success().then_some(()))
        })
    }

    /// The lab itself.
    pub(crate) const fn lab(&self) -> &Lab {
        &self.lab
    }

    /// A command of root's on a host.
    pub(crate) fn root(&self, side: &str, script: &str) -> Cmd<'_> {
        self.lab.on(side).sh(script).root()
    }

    /// A command of an ordinary user's on a host.
    pub(crate) fn user(&self, side: &str, script: &str) -> Cmd<'_> {
        self.lab.on(side).sh(script)
    }
}

/// Where `peers.sh` has put what it fetched: beside the profiles, since no build of ours changes it.
pub(crate) fn peers_directory() -> Result<std::path::PathBuf> {
    let target = binaries::target_directory()?;
    Ok(target.parent().unwrap_or(&target).join("peers"))
}
