//! `demo`: a whole network on this machine, rootless, with the programs that are installed.
//!
//! Everything is done by this very program's own commands, shown as they are run: `init`, `issue`, `join`, `ping`, `ssh`, `run`.
//! The nodes are instances of one user; their files lie in a directory in /tmp that goes when the demo ends, however it ends.

mod programs;
mod stage;

use std::net::{Ipv4Addr, UdpSocket};

use anyhow::Context as _;
use clusternet::sys::account;

use self::stage::{Outcome, Stage};
use super::Demo;
use crate::{exit, output};

/// Shows everything; 0 when nothing failed.
pub(super) fn run(arguments: &Demo) -> anyhow::Result<u8> {
    let mut stage = Stage::set()?;
    let nodes: Vec<String> = (1..=arguments.nodes).map(|n| format!("n{n}")).collect();
    let done = perform(&mut stage, &nodes);
    // Whatever happened: nothing is left behind.
    stage.clear(&nodes);
    if let Some(signal) = stage.interrupted() {
        output::complain("interrupted; everything was cleared up");
        return Ok(128 + signal);
    }
    done?;
    stage.summary()?;
    Ok(if stage.failures() > 0 { exit::NO } else { 0 })
}

fn perform(stage: &mut Stage, nodes: &[String]) -> anyhow::Result<()> {
    let Some((first, others)) = nodes.split_first() else { return Ok(()) };
    let port = free_port()?;
    let owner = account::own().map_or_else(|_| "demo".to_owned(), |own| own.name);
    let network = stage.path("demo");

    stage.say("a network: its authority, its description, its first master")?;
    let endpoint = format!("udp://127.0.0.1:{port}");
    let init = [
        "init",
        "demo",
        "--master",
        first,
        "--endpoint",
        &endpoint,
        "--owner",
        &owner,
        "--dir",
        &network,
    ];
    stage.must(&init)?;
    stage.say("a certificate for every other node")?;
    for node in others {
        stage.must(&["issue", node, "--dir", &network])?;
    }
    stage.say(
        "join: every node is an instance of this user on this machine, in a namespace of its own",
    )?;
    let master = format!("{network}/master.toml");
    for node in nodes {
        let key = format!("{network}/{node}.key");
        stage.must(&["join", &master, "--key", &key, "--name", node])?;
    }

    stage.say("every node reaches every other one over the encrypted network")?;
    for from in nodes {
        for to in nodes.iter().filter(|to| *to != from) {
            stage.own("ping", &["ping", "--on", from, to, "-c", "3", "-i", "200ms"])?;
        }
    }
    stage.own("status", &["status", "--on", first])?;
    stage.say("ordinary programs know nothing of it")?;
    if let Some(other) = others.first() {
        stage
            .inside(first, "ping by name", &["ping", "-n", "-c", "2", other], |_| Outcome::Good)?;
        stage.own("ssh", &["ssh", "--on", first, other, "echo hello from $(hostname)"])?;
    }
    programs::pvm(stage, nodes)?;
    programs::open_mpi(stage, nodes)?;

    stage.say("leave")?;
    for node in nodes {
        stage.own("leave", &["leave", node])?;
    }
    output::say("")
}

/// A UDP port that nobody has at the moment.
fn free_port() -> anyhow::Result<u16> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("look for a free UDP port")?;
    Ok(socket.local_addr().context("look for a free UDP port")?.port())
}
