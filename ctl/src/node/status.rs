//! `status`: who is in the network and how they are reached.

use std::{fmt::Write as _, io::IsTerminal, time::Duration};

use clusternet::{
    api::{NodeStatus, Reply, Request, Status as Facts},
    sys::clock,
    words::{id::Name, time::Timestamp},
};

use super::Status;
use crate::{
    Context,
    control::{self, Instance, PATIENCE},
    output,
};

/// How often `--watch` looks.
const AGAIN: Duration = Duration::from_secs(1);

/// The end of a certificate is told from here on.
const SOON: Duration = Duration::from_secs(3 * 86_400);

/// Shows the status; always 0.
pub(super) fn run(arguments: &Status, context: Context) -> anyhow::Result<u8> {
    let instance = Instance::pick(arguments.on.on.as_ref())?;
    loop {
        let reply = instance.ask(&Request::Status, PATIENCE)?.0;
        let Reply::Status(status) = reply else { return Err(control::unexpected(&reply)) };
        if arguments.watch && !arguments.json && std::io::stdout().is_terminal() {
            // Home, then erase what follows: no flicker.
            output::print_bytes(b"\x1b[H\x1b[J")?;
        }
        if arguments.json {
            output::say_json(&*status)?;
        } else {
            let now = clock::now().wall;
            output::say(render(&status, context.verbose > 0, now, output::colour()))?;
        }
        if !arguments.watch {
            return Ok(0);
        }
        std::thread::sleep(AGAIN);
    }
}

/// All of it, without the last line's end.
fn render(status: &Facts, verbose: bool, now: Timestamp, colour: bool) -> String {
    let mut table =
        output::table(["NODE", "ADDRESSES", "STATE", "PATH", "RTT", "LOSS", "SENT", "RECEIVED"]);
    for node in std::iter::once(&status.node).chain(&status.peers) {
        table.add_row(row(node));
    }
    let table = output::table_text(table, colour);
    let text = format!("{}\n{table}\n{}", head(status, now), tail(status, verbose));
    text.trim_end().to_owned()
}

fn head(status: &Facts, now: Timestamp) -> String {
    let left = status.not_after.since(now);
    let until = if left < SOON {
        format!("{} (in {})", status.not_after, output::ago(left))
    } else {
        status.not_after.to_string()
    };
    format!(
        "instance {}: node {} of network {} ({}, {}); device {}; listens on {}; certificate until {until}{}",
        status.instance,
        status.node.name,
        status.network,
        status.prefixes.0,
        status.prefixes.1,
        status.device,
        status.listen.as_deref().unwrap_or("nothing"),
        if status.accepted { "" } else { "; no member has answered yet" },
    )
}

fn row(node: &NodeStatus) -> [String; 8] {
    let dash = || "-".to_owned();
    let name = match node.role.as_str() {
        "node" => node.name.to_string(),
        role => format!("{} ({role})", node.name),
    };
    [
        name,
        format!("{} {}", node.ipv4, node.ipv6),
        node.state.clone(),
        node.path.clone().unwrap_or_else(dash),
        node.round_trip.map_or_else(dash, output::milliseconds),
        node.loss.map_or_else(dash, |loss| format!("{:.0}%", loss * 100.0)),
        output::bytes(node.sent),
        output::bytes(node.received),
    ]
}

fn tail(status: &Facts, verbose: bool) -> String {
    let mut text = String::new();
    // Writing into a string cannot fail.
    // A master that is reached another way needs no help.
    let reached = |name: &Name| {
        status.masters.iter().any(|master| master.name == *name && master.answers)
            || status.peers.iter().any(|peer| peer.name == *name && peer.state == "connected")
    };
    for master in status.masters.iter().filter(|master| verbose || !reached(&master.name)) {
        let _ = writeln!(text, "master {} at {}: {}", master.name, master.endpoint, master.outcome);
    }
    for node in &status.peers {
        if let Some(skew) = node.clock_skew {
            let side = if skew > 0 { "ahead of" } else { "behind" };
            let _ = writeln!(text, "the clock of {} is {} s {side} ours", node.name, skew.abs());
        }
    }
    if verbose {
        for node in &status.peers {
            let owner = node.owner.as_ref().map_or("none", |owner| owner.as_str());
            let heard = node
                .last_received
                .map_or_else(|| "never".to_owned(), |t| format!("{} ago", output::ago(t)));
            let _ = writeln!(
                text,
                "{}: number {}, serial {}, owner {owner}, heard {heard}",
                node.name, node.number, node.serial
            );
        }
        let _ = writeln!(text, "revocations known: {}", status.revocations);
        for (reason, count) in status.drops.iter().filter(|(_, count)| *count > 0) {
            let _ = writeln!(text, "dropped, {reason}: {count}");
        }
    }
    for warning in &status.warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    text
}

#[cfg(test)]
mod tests {
    use clusternet::api::MasterStatus;

    use super::*;

    /// 2026-01-01T00:00:00Z.
    const NOW: Timestamp = Timestamp(1_767_225_600_000);

    fn node(name: &str, n: u8, state: &str) -> NodeStatus {
        NodeStatus {
            name: name.parse().unwrap(),
            number: clusternet::words::id::NodeNumber(n.into()),
            serial: clusternet::words::id::Serial(n.into()),
            ipv4: [10, 99, 0, n].into(),
            ipv6: [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(n)].into(),
            role: "node".to_owned(),
            owner: Some("ann".parse().unwrap()),
            state: state.to_owned(),
            path: None,
            round_trip: None,
            loss: None,
            last_received: None,
            sent: 0,
            received: 0,
            clock_skew: None,
        }
    }

    fn facts() -> Facts {
        let master = |endpoint: &str, outcome: &str, answers| MasterStatus {
            name: "head".parse().unwrap(),
            endpoint: endpoint.to_owned(),
            outcome: outcome.to_owned(),
            answers,
        };
        let head = NodeStatus {
            role: "master".to_owned(),
            path: Some("direct udp 192.0.2.1:51820".to_owned()),
            round_trip: Some(Duration::from_micros(1234)),
            loss: Some(0.0),
            last_received: Some(Duration::from_secs(1)),
            sent: 1023,
            received: 5 << 20,
            ..node("head", 1, "connected")
        };
        let late = NodeStatus {
            path: Some("relayed via head".to_owned()),
            round_trip: Some(Duration::from_millis(120)),
            loss: Some(0.25),
            clock_skew: Some(-90),
            ..node("c", 3, "connected")
        };
        Facts {
            instance: "lab".to_owned(),
            network: "lab".parse().unwrap(),
            prefixes: ("fd00::/48".to_owned(), "10.99.0.0/16".to_owned()),
            node: node("a", 2, "this node"),
            device: "tun".to_owned(),
            listen: Some("udp port 5".to_owned()),
            not_after: NOW.plus(Duration::from_secs(30 * 86_400)),
            accepted: true,
            masters: vec![
                master("udp://192.0.2.1:51820", "answers", true),
                master("tcp://192.0.2.1:443", "no answer", false),
            ],
            peers: vec![head, late, node("d", 4, "idle")],
            revocations: 2,
            drops: vec![("source".to_owned(), 3), ("replay".to_owned(), 0)],
            warnings: vec!["something".to_owned()],
        }
    }

    #[test]
    fn a_status_shows_nodes_paths_and_what_is_wrong() {
        insta::assert_snapshot!(render(&facts(), false, NOW, false));
    }

    #[test]
    fn a_verbose_status_shows_the_rest() {
        insta::assert_snapshot!(render(&facts(), true, NOW, false));
    }

    #[test]
    fn a_node_that_nobody_answers_says_what_was_tried() {
        let mut facts = facts();
        facts.accepted = false;
        facts.peers.clear();
        facts.not_after = NOW.plus(Duration::from_secs(3600));
        facts.masters.retain(|master| !master.answers);
        insta::assert_snapshot!(render(&facts, false, NOW, false));
    }
}
