//! What is killed, what survives it, and that nothing is left.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netns_tests::clock::wait_until;
use netns_tests::harness::{Check, Suite};
use netns_tests::lab::{Family, Tun};
use netns_tests::network::{Network, SOON};
use netns_tests::programs;

fn main() -> ExitCode {
    Suite::new()
        .group("tun", || Network::up(Family::V4, Tun::Open), checks())
        .group("packet_socket", || Network::up(Family::V4, Tun::RootOnly), checks())
        .main()
}

fn checks() -> Vec<Check<Network>> {
    vec![
        Check::new("a_killed_serve_comes_back_and_ping_goes_on", serve_ping),
        Check::new("an_mpi_run_outlives_its_serve", serve_mpi),
        Check::new("an_ssh_session_outlives_its_serve", serve_ssh),
        Check::new("a_killed_inside_is_started_again", inside),
        Check::new("a_killed_keeper_leaves_nothing", keeper),
        Check::new("all_three_killed_at_once_is_cleaned_up_by_the_next_join", all_three),
        Check::new("leave_kill_ends_programs_and_leaves_nothing", leave_kill),
        Check::new("a_deleted_control_socket_comes_back", deleted_socket),
        Check::new("the_end_of_the_day_leaves_nothing", end_of_day),
    ]
}

/// Number of the process of one role on a node.
fn role(network: &Network, node: &str, role: &str) -> Result<u32> {
    let found = network
        .lab
        .on(node)
        .sh(&format!("pgrep -f 'clusternetd( .*)? {role}( |$)|clusternetd: {role}'"))
        .root()
        .run()?;
    let processes = network.lab.on(node).processes()?;
    let daemons: Vec<u32> = processes
        .iter()
        .filter(|line| line.contains("clusternetd") && !line.contains("pgrep"))
        .filter_map(|line| line.split_whitespace().next())
        .filter_map(|pid| pid.parse().ok())
        .collect();
    found
        .stdout
        .lines()
        .filter_map(|line| line.parse().ok())
        .find(|pid| daemons.contains(pid))
        .with_context(|| format!("no {role} among {processes:#?}"))
}

fn kill(network: &Network, node: &str, name: &str) -> Result<u32> {
    let pid = role(network, node, name)?;
    network.lab.on(node).sh(&format!("kill -KILL {pid}")).root().ok()?;
    Ok(pid)
}

fn wait_back(network: &Network, node: &str, name: &str, old: u32) -> Result<()> {
    wait_until(&format!("{name} of {node} to come back"), SOON, || {
        Ok(role(network, node, name).ok().filter(|pid| *pid != old).map(|_| ()))
    })
}

fn serve_ping(network: &mut Network) -> Result<()> {
    for node in ["a", "b", "head"] {
        let mut talk = network.inside("a", "ping -i 0.2 -c 60 -W 2 b").limit(90).spawn()?;
        talk.wait_for("icmp_seq=2 ", 30)?;
        let old = kill(network, node, "serve")?;
        wait_back(network, node, "serve", old)?;
        talk.wait_for("packet loss", 90)?;
        let text = talk.stdout();
        let last: u32 = text
            .lines()
            .filter_map(|line| line.split("icmp_seq=").nth(1)?.split(' ').next()?.parse().ok())
            .max()
            .unwrap_or(0);
        ensure!(last >= 59, "{node}: it did not come back: {text}");
    }
    Ok(())
}

fn serve_mpi(network: &mut Network) -> Result<()> {
    let ring = programs::compile("ring", "mpicc.openmpi", &[])?;
    let mut run = network
        .inside("head", &format!("mpirun.openmpi -host head,a,b,c -np 4 {ring} 300 25"))
        .limit(300)
        .spawn()?;
    run.wait_for("lap 100 ", 120)?;
    for node in ["a", "head", "b"] {
        let old = kill(network, node, "serve")?;
        wait_back(network, node, "serve", old)?;
    }
    let outcome = run.wait(Duration::from_secs(300))?;
    ensure!(outcome.status.success() && outcome.stdout.contains("ring is right"), "{outcome}");
    Ok(())
}

fn serve_ssh(network: &mut Network) -> Result<()> {
    let mut session =
        network.inside("a", "ssh b 'while read line; do echo got $line; done'").spawn()?;
    session.write("one\n")?;
    session.wait_for("got one", 30)?;
    for (number, node) in ["a", "b"].into_iter().enumerate() {
        let old = kill(network, node, "serve")?;
        session.write(&format!("after{number}\n"))?;
        wait_back(network, node, "serve", old)?;
        session.wait_for(&format!("got after{number}"), 60)?;
    }
    session.end_of_file();
    let outcome = session.wait(SOON)?;
    ensure!(outcome.status.success(), "{outcome}");
    Ok(())
}

fn inside(network: &mut Network) -> Result<()> {
    let old = kill(network, "b", "inside")?;
    wait_back(network, "b", "inside", old)?;
    wait_until("ssh to b to work again", SOON, || {
        Ok(network.inside("a", "ssh b true").run()?.status.success().then_some(()))
    })
}

fn keeper(network: &mut Network) -> Result<()> {
    let mut program = network.inside("c", "sleep 3000").spawn()?;
    wait_until("the program to run", SOON, || {
        Ok(network.lab.on("c").sh("pgrep -f 'sleep 3000'").run()?.status.success().then_some(()))
    })?;
    kill(network, "c", "keeper")?;
    wait_until("the other two to end", SOON, || {
        let left = network.lab.on("c").sh("pgrep clusternetd").run()?;
        Ok((!left.status.success()).then_some(()))
    })?;
    ensure!(program.is_running()?, "the program was killed, too: {}", program.so_far());
    drop(program);
    network.nothing_left("c")?;
    network.join("c")?;
    network.inside("c", "ping -c2 -W20 a").ok()?;
    Ok(())
}

fn all_three(network: &mut Network) -> Result<()> {
    network.lab.on("c").sh("kill -KILL $(pgrep clusternetd)").root().ok()?;
    wait_until("all to be dead", SOON, || {
        Ok((!network.lab.on("c").sh("pgrep clusternetd").run()?.status.success()).then_some(()))
    })?;
    network.lab.on("c").sh("clusternet status").fails(3)?;
    network.join("c")?;
    network.inside("c", "ping -c2 -W20 a").ok()?;
    Ok(())
}

fn leave_kill(network: &mut Network) -> Result<()> {
    let polite = network.inside("c", "sleep 3001").spawn()?;
    let script = "trap '' TERM; echo stubborn; while :; do sleep 0.2; done";
    let mut stubborn = network.inside_sh("c", script).spawn()?;
    stubborn.wait_for("stubborn", 20)?;
    network.lab.on("c").sh("clusternet leave --kill").ok()?;
    polite.wait(SOON)?;
    stubborn.wait(SOON)?;
    network.nothing_left("c")?;
    network.join("c").map(|_| ())
}

fn deleted_socket(network: &mut Network) -> Result<()> {
    network.lab.on("c").sh("find $XDG_RUNTIME_DIR -type s -name 'control*' -delete").ok()?;
    wait_until("the control socket to come back", SOON, || {
        Ok(network.lab.on("c").sh("clusternet status").run()?.status.success().then_some(()))
    })
}

fn end_of_day(network: &mut Network) -> Result<()> {
    for node in ["c", "b", "a", "head"] {
        network.leave(node)?;
        network.nothing_left(node)?;
    }
    Ok(())
}
