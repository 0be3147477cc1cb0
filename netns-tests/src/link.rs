//! Two hosts joined by one link, on which packets may be lost, doubled or overtaken.
//!
//! ```text
//!     a ────────────── b           a cable
//!     a ──── middle ──── b         a middle, whose rules meet every frame
//! ```
//!
//! The middle is a bridge, with one more cable for each direction on which frames can go round: what takes this detour comes out
//! after several that left later. This kernel needs no module for that.

use anyhow::Result;

use crate::lab::Lab;

/// The hosts that a link joins, each by its `eth0`.
pub const SIDES: [&str; 2] = ["a", "b"];

/// What frames cross a link: superpackets as they are, or single packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frames {
    /// Superpackets cross whole; a lost one is many lost packets.
    Whole,
    /// As network cards do it: superpackets are cut where they leave, and joined again where they arrive.
    Cut,
}

/// What befalls frames in both directions: what an nftables rule says, where `DETOUR` is the beginning of the way round.
pub type Rule = &'static str;

/// Lays a cable between hosts that have none.
///
/// # Errors
///
/// It cannot be made.
pub fn lay_cable(lab: &Lab, frames: Frames, mtu: u16) -> Result<()> {
    let [a, b] = SIDES;
    let other = lab.on(b).pid();
    lab.ip(a, &format!("link add eth0 type veth peer name eth0 netns {other}\n"))?;
    SIDES.iter().try_for_each(|side| plug(lab, side, frames, mtu))
}

/// Lays cables from both hosts to a new host `middle`.
///
/// # Errors
///
/// It cannot be made.
pub fn lay_middle(lab: &mut Lab, frames: Frames, mtu: u16) -> Result<()> {
    lab.lone_host("middle")?;
    let middle = lab.on("middle").pid();
    let mut lines = "link add br0 type bridge\nlink set br0 up\n".to_owned();
    for side in SIDES {
        lab.ip(side, &format!("link add eth0 type veth peer name to-{side} netns {middle}\n"))?;
        lines += &format!("link add way-{side} type veth peer name round-{side}\n");
        for end in ["to", "round"] {
            lines += &format!("link set {end}-{side} master br0\n");
        }
        for end in ["to", "way", "round"] {
            lines += &format!("link set {end}-{side} mtu {mtu} up\n");
        }
    }
    lines += &format!("link set br0 mtu {mtu}\n");
    lab.ip("middle", &lines)?;
    for side in SIDES {
        let mut script = String::new();
        if frames == Frames::Cut {
            for end in ["to", "way", "round"] {
                script += &format!("ethtool -K {end}-{side} tso off gso off gro off && ");
            }
        }
        // The hosts are not where the detours end.
        script += &format!("bridge link set dev round-{side} learning off");
        lab.on("middle").sh(&script).root().ok()?;
        plug(lab, side, frames, mtu)?;
    }
    Ok(())
}

/// Makes a host's end of its cable ready.
fn plug(lab: &Lab, side: &str, frames: Frames, mtu: u16) -> Result<()> {
    if frames == Frames::Cut {
        lab.on(side).sh("ethtool -K eth0 tso off gso off gro on").root().ok()?;
        // Older kernels lack this one, and cut such packets with the others.
        lab.on(side).sh("ethtool -K eth0 tx-udp-segmentation off").root().run()?;
    }
    lab.ip(side, &format!("link set eth0 mtu {mtu} up\n"))
}

/// Makes the detours slow, so that even a superpacket which takes one is overtaken by the next.
///
/// # Errors
///
/// This kernel cannot.
pub fn slow_detours(lab: &Lab) -> Result<()> {
    for side in SIDES {
        let script =
            format!("tc qdisc add dev way-{side} root tbf rate 400mbit burst 4kb limit 8mb");
        lab.on("middle").sh(&script).root().ok()?;
    }
    Ok(())
}

/// Makes the middle do to frames what `rule` says, and nothing else.
///
/// # Errors
///
/// This kernel knows no such rule.
pub fn set_rule(lab: &Lab, rule: Option<Rule>) -> Result<()> {
    let mut rules = "flush ruleset\n".to_owned();
    if let Some(rule) = rule {
        rules += "table netdev link {\n";
        for side in SIDES {
            let rule = rule.replace("DETOUR", &format!("\"way-{side}\""));
            rules += &format!(
                "chain from-{side} {{\n\
                 type filter hook ingress device \"to-{side}\" priority 0\n\
                 {rule}\n\
                 }}\n"
            );
        }
        rules += "}\n";
    }
    lab.firewall("middle", &rules)
}
