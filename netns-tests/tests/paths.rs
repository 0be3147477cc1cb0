//! Which way packets go: direct where one can be reached, else through the master, which reads
//! nothing; and on without the master once they go.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use netns_tests::campus;
use netns_tests::clock::wait_until;
use netns_tests::harness::{Check, Suite};
use netns_tests::lab::{Family, Nat, Tun};
use netns_tests::network::{Network, SOON};
use netns_tests::programs::need;

fn main() -> ExitCode {
    Suite::new()
        .group("v4", || Network::up(Family::V4, Tun::Open), checks())
        .group("v6", || Network::up(Family::V6, Tun::Open), checks())
        .group(
            "opening",
            closed_lan,
            vec![Check::new("a_route_found_later_takes_over_without_loss", takes_over)],
        )
        .main()
}

fn checks() -> Vec<Check<Network>> {
    vec![
        Check::new("nodes_that_cannot_reach_each_other_use_the_master", relayed),
        Check::new("nodes_that_can_do_without_it", direct),
        Check::new("the_relay_and_the_wire_see_no_plain_text", no_plain_text),
        Check::new("a_killed_master_does_not_disturb_those_who_talk", master_killed),
        Check::new("a_master_that_comes_back_is_used_again", master_back),
        Check::new("an_unplugged_node_comes_back_by_itself", unplugged),
        Check::new("an_address_that_changes_is_followed", address_changes),
    ]
}

fn relayed(network: &mut Network) -> Result<()> {
    network.inside("a", "ping -c3 -W10 b").ok()?;
    for (from, to) in [("a", "b"), ("b", "a")] {
        let seen = network.wait_seen(from, to, "relayed", SOON, |seen| {
            seen.path.as_deref().is_some_and(|path| path.contains("relayed via head"))
        })?;
        ensure!(seen.state == "connected", "{seen:?}");
    }
    Ok(())
}

fn is_direct(path: Option<&str>) -> bool {
    path.is_some_and(|path| path.starts_with("direct"))
}

fn direct(network: &mut Network) -> Result<()> {
    network.inside("b", "ping -c3 -W10 c").ok()?;
    for (from, to) in [("b", "c"), ("c", "b"), ("a", "head"), ("b", "head"), ("head", "a")] {
        network.wait_seen(from, to, "direct", SOON, |seen| is_direct(seen.path.as_deref()))?;
    }
    Ok(())
}

fn no_plain_text(network: &mut Network) -> Result<()> {
    need(&["tcpdump"])?;
    const PATTERN: &str = "the quick brown fox jumps over the lazy dog";
    let mut capture =
        network.lab.on("head").sh("tcpdump -Z root -i eth0 -U -s 0 -w -").root().spawn()?;
    capture.wait_for("listening on", 20)?;
    let mut server =
        network.inside("b", "socat -u TCP-LISTEN:7777,reuseaddr CREATE:received").spawn()?;
    wait_until("the server", Duration::from_secs(20), || {
        let bound =
            network.inside_sh("b", "grep -qi ':1E61 ' /proc/net/tcp /proc/net/tcp6").run()?;
        Ok(bound.status.success().then_some(()))
    })?;
    let text = format!("{PATTERN}\n").repeat(2000);
    network.inside("a", "socat -u - TCP:b:7777").stdin(text.clone()).ok()?;
    wait_until("the end of the transfer", SOON, || Ok((!server.is_running()?).then_some(())))?;
    ensure!(network.lab.on("b").sh("cat received").ok()? == text, "the text came out different");
    let seen = wait_until("tcpdump to have seen it all", SOON, || {
        let seen = capture.stdout_bytes();
        Ok((seen.len() > text.len()).then_some(seen))
    })?;
    capture.stop()?;
    let found = seen.windows(20).any(|window| window == &PATTERN.as_bytes()[..20]);
    ensure!(!found, "plain text passed the master");
    Ok(())
}

/// Stops the master as a power cut would: every process at once.
fn kill_master(network: &Network) -> Result<()> {
    network.lab.on("head").sh("pkill -KILL -u ann clusternetd; true").root().ok()?;
    wait_until("the master to be gone", SOON, || {
        let left = network.lab.on("head").sh("pgrep clusternetd").run()?;
        Ok((!left.status.success()).then_some(()))
    })
}

fn master_killed(network: &mut Network) -> Result<()> {
    network.inside("b", "ping -c3 -W10 c").ok()?;
    network.wait_seen("b", "c", "direct", SOON, |seen| is_direct(seen.path.as_deref()))?;
    let mut talk = network.inside("b", "ping -i 0.2 -c 100 -W 2 c").limit(120).spawn()?;
    talk.wait_for("icmp_seq=3 ", 30)?;
    kill_master(network)?;
    talk.wait_for("packet loss", 90)?;
    ensure!(talk.stdout().contains(" 0% packet loss"), "{}", talk.so_far());
    // And those who talked can start new conversations.
    network.inside("c", "ping -c3 -W10 b").ok()?;
    Ok(())
}

fn master_back(network: &mut Network) -> Result<()> {
    kill_master(network)?;
    network.join("head")?;
    for (from, to) in [("a", "head"), ("a", "b"), ("b", "a"), ("head", "c")] {
        network.inside(from, &format!("ping -c3 -W20 {to}")).limit(120).ok()?;
    }
    network.wait_seen("a", "b", "relayed", SOON, |seen| {
        seen.path.as_deref().is_some_and(|path| path.contains("relayed via head"))
    })?;
    Ok(())
}

fn unplugged(network: &mut Network) -> Result<()> {
    network.inside("a", "ping -c2 -W10 c").ok()?;
    network.lab.cable("a", false)?;
    network.inside("a", "ping -c3 -i 0.2 -W1 c").fails(1)?;
    network.lab.cable("a", true)?;
    wait_until("a to reach c again", Duration::from_secs(60), || {
        let tried = network.inside("a", "ping -c1 -W2 c").run()?;
        Ok(tried.status.success().then_some(()))
    })
}

fn address_changes(network: &mut Network) -> Result<()> {
    network.inside("a", "ping -c2 -W10 head").ok()?;
    let (old, new, length, gateway, nodad) = match network.lab.family() {
        Family::V4 => ("198.51.100.20", "198.51.100.77", 24, "198.51.100.1", ""),
        Family::V6 => ("2001:db8:2::14", "2001:db8:2::77", 64, "2001:db8:2::1", "nodad"),
    };
    let change = |from: &str, to: &str| {
        network
            .lab
            .on("a")
            .sh(&format!(
                "ip addr del {from}/{length} dev eth0 && ip addr add {to}/{length} dev eth0 {nodad} &&
                 ip route replace default via {gateway}"
            ))
            .root()
            .ok()
    };
    change(old, new)?;
    let outcome =
        wait_until("a to reach head from its new address", Duration::from_secs(60), || {
            let tried = network.inside("a", "ping -c1 -W2 head").run()?;
            Ok(tried.status.success().then_some(()))
        });
    change(new, old)?;
    outcome?;
    wait_until("a to reach head from its old address", Duration::from_secs(60), || {
        let tried = network.inside("a", "ping -c1 -W2 head").run()?;
        Ok(tried.status.success().then_some(()))
    })
}

/// b and c keep each other out, so that only the master is left to them.
fn closed_lan() -> Result<Network> {
    let lab = campus::build(Family::V4, Tun::Open, Nat::RandomPorts)?;
    campus::quarrel(&lab)?;
    let mut network = Network::init(lab)?;
    network.join_all()?;
    Ok(network)
}

fn takes_over(network: &mut Network) -> Result<()> {
    network.inside("b", "ping -c3 -W10 c").ok()?;
    network.wait_seen("b", "c", "relayed", SOON, |seen| {
        seen.path.as_deref().is_some_and(|path| path.contains("relayed"))
    })?;
    let mut talk = network.inside("b", "ping -i 0.05 -c 1200 -W 2 c").limit(150).spawn()?;
    talk.wait_for("icmp_seq=20 ", 30)?;
    campus::make_up(&network.lab)?;
    network.wait_seen("b", "c", "direct", Duration::from_secs(55), |seen| {
        is_direct(seen.path.as_deref())
    })?;
    talk.wait_for("packet loss", 120)?;
    ensure!(
        talk.stdout().contains(" 0% packet loss"),
        "{}",
        talk.stdout().lines().last().unwrap_or_default()
    );
    Ok(())
}
