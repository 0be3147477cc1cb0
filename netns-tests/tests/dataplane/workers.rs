//! Two workers on each of five nodes, all of which talk to all.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netns_tests::campus::HEAD_PORT;
use netns_tests::command::Background;
use netns_tests::harness::Check;
use netns_tests::lab::{Family, Lab, Nat, Prefixes, Tun};
use netns_tests::network::{Network, SOON};
use netns_tests::traffic::{self, Datagrams, Streams};

const NODES: [&str; 5] = ["head", "a", "b", "c", "d"];

/// They share one LAN.
pub(crate) struct Lan {
    network: Network,
    _servers: Vec<Background>,
}

pub(crate) fn lan() -> Result<Lan> {
    let mut lab = Lab::new(Family::V4, Tun::Open);
    lab.router("switch", None, Nat::None)?;
    lab.lan("east", "switch", Prefixes { v4: "203.0.113.", v6: "2001:db8:1::" })?;
    for (host, number) in NODES.into_iter().zip(10..) {
        lab.host(host, "east", number)?;
    }
    let endpoint = SocketAddr::new(lab.on("head").address(), HEAD_PORT);
    let mut network = Network::begin(lab, "head", endpoint, &NODES)?;
    let mut servers = Vec::new();
    for host in NODES {
        network.tune(host, "workers = 2\nmtu = 1420")?;
        network.join(host)?;
    }
    for host in NODES {
        network.wait_for_roster(host, &NODES)?;
        servers.push(traffic::serve(network.inside(host, "traffic serve"))?);
    }
    Ok(Lan { network, _servers: servers })
}

pub(crate) fn checks() -> Vec<Check<Lan>> {
    vec![Check::new("two_workers_share_the_work_of_many_peers", share)]
}

/// Processor ticks that each worker of a node has used.
fn ticks(network: &Network, node: &str) -> Result<Vec<u64>> {
    let script = "cd /proc/$(pgrep -f 'clusternetd( .*)? serve( |$)' | head -n1)/task
        for n in 0 1; do awk -v name=\"(worker$n)\" '$2 == name { print $14 + $15 }' */stat; done";
    let found = network.lab.on(node).sh(script).root().ok()?;
    found.lines().map(|line| line.parse().with_context(|| found.clone())).collect()
}

fn share(Lan { network, .. }: &mut Lan) -> Result<()> {
    for (n, from) in NODES.into_iter().enumerate() {
        let pings = NODES[n + 1..].iter().map(|to| format!("ping -c1 -W20 {to}"));
        let pings: Vec<_> = pings.chain(["true".to_owned()]).collect();
        network.inside_sh(from, &pings.join(" && ")).limit(120).ok()?;
    }
    let before = NODES.map(|node| ticks(network, node));
    let mut streams = Vec::new();
    let mut datagrams = Vec::new();
    for (n, from) in NODES.into_iter().enumerate() {
        for (m, to) in NODES.into_iter().enumerate().skip(n + 1) {
            let families =
                if (n + m) % 2 == 0 { [Family::V4, Family::V6] } else { [Family::V6, Family::V4] };
            let [tcp, udp] = families.map(|family| network.overlay(to, family));
            let options = "--streams 2 --milliseconds 2500 --at-least 1000000";
            streams.push(network.inside(from, &format!("traffic tcp {} {options}", tcp?)).spawn()?);
            // None that become fragments: these have no ports, by which the kernel chooses the worker.
            let options = "--milliseconds 2500 --rate 300 --size 1300";
            datagrams
                .push(network.inside(from, &format!("traffic udp {} {options}", udp?)).spawn()?);
        }
    }
    for running in streams {
        let _: Streams = traffic::finished(running, SOON * 6)?;
    }
    for running in datagrams {
        let Datagrams { sent, arrived, .. } = traffic::finished(running, Duration::from_secs(60))?;
        ensure!(
            arrived.wrong + arrived.repeated == 0 && arrived.received > 0,
            "{sent}: {arrived:?}"
        );
        // A flow moves to the worker that its answers come to; what the other one holds then is overtaken.
        ensure!(arrived.late * 10 < sent, "{sent}: {arrived:?}");
    }
    let mut busy = Vec::new();
    for (node, before) in NODES.into_iter().zip(before) {
        let (before, after) = (before?, ticks(network, node)?);
        let used: Vec<u64> =
            after.iter().zip(&before).map(|(after, before)| after - before).collect();
        ensure!(used.len() == 2, "{node} has not two workers: {used:?}");
        let drops = network.status(node)?.drops;
        // The last two: messages on ways and in tunnels that one side has just given up.
        let usual = [
            "send buffer full",
            "outgoing packet to multicast or broadcast",
            "datagram did not open",
            "datagram for an unknown tunnel",
        ];
        let is_usual = |reason: &str| usual.contains(&reason);
        ensure!(drops.iter().all(|(reason, _)| is_usual(reason)), "{node} dropped {drops:?}");
        busy.push(used);
    }
    // The kernel gives each peer to one of the workers, by chance: of five nodes with four peers each it gives
    // all of one to one worker so seldom that nobody will see it.
    ensure!(busy.iter().any(|used| used.iter().all(|ticks| *ticks >= 5)), "{busy:?}");
    Ok(())
}
