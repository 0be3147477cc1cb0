//! `status`: who is in the network and how they are reached.

use std::{fmt::Write as _, io::IsTerminal, time::Duration};

use clusternet::{
    api::{NodeStatus, Reply, Request, Status as Facts},
    sys::clock,
    words::time::Timestamp,
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
            show(&status, context.verbose > 0, clock::now().wall)?;
        }
        if !arguments.watch {
            return Ok(0);
        }
        std::thread::sleep(AGAIN);
    }
}

fn show(status: &Facts, verbose: bool, now: Timestamp) -> anyhow::Result<()> {
    output::say(head(status, now))?;
    let mut table =
        output::table(["NODE", "ADDRESSES", "STATE", "PATH", "RTT", "LOSS", "SENT", "RECEIVED"]);
    for node in std::iter::once(&status.node).chain(&status.peers) {
        table.add_row(row(node));
    }
    output::say_table(table)?;
    let tail = tail(status, verbose);
    if tail.is_empty() { Ok(()) } else { output::say(tail.trim_end()) }
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
    for master in status.masters.iter().filter(|master| verbose || !master.answers) {
        let _ = writeln!(text, "master {} at {}: {}", master.name, master.endpoint, master.outcome);
    }
    for node in status.peers.iter() {
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
