//! Stock PVM 3.4.6 across firewalled hosts: the console, the examples, groups, both routes between
//! tasks, hosts that come and go, and an end without remains.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use netns_tests::campus::HOSTS;
use netns_tests::clock::wait_until;
use netns_tests::command::{Background, quote};
use netns_tests::harness::{Check, Suite};
use netns_tests::lab::{ANN, Family, Tun};
use netns_tests::network::{Network, SOON};
use netns_tests::programs::{compile, need};

fn main() -> ExitCode {
    Suite::new()
        .group("v4", || up(Family::V4, Tun::Open), everything())
        .group("v6", || up(Family::V6, Tun::Open), everything())
        .group(
            "v4_pair",
            || up_pair(Family::V4),
            vec![Check::new("netpipe_between_firewalled_hosts", netpipe)],
        )
        .group(
            "v6_pair",
            || up_pair(Family::V6),
            vec![Check::new("netpipe_between_firewalled_hosts", netpipe)],
        )
        .group(
            "v4_packet_socket",
            || up(Family::V4, Tun::RootOnly),
            vec![
                Check::new("the_console_shows_four_hosts", four_hosts),
                Check::new("slaves_talk_in_pairs_by_default_route", pairs_default),
                Check::new("slaves_talk_in_pairs_by_direct_route", pairs_direct),
                Check::new("halt_leaves_nothing_running", halt),
            ],
        )
        .main()
}

fn everything() -> Vec<Check<Machine>> {
    vec![
        Check::new("the_console_shows_four_hosts", four_hosts),
        Check::new("the_console_spawns_and_shows_output", console_spawns),
        Check::new("hello_and_timing_find_their_other_half", hello_and_timing),
        Check::new("spmd_passes_its_token_round", spmd),
        Check::new("gexample_uses_groups", gexample),
        Check::new("slaves_talk_in_pairs_by_default_route", pairs_default),
        Check::new("slaves_talk_in_pairs_by_direct_route", pairs_direct),
        Check::new("a_host_goes_and_comes_while_a_job_runs", add_and_delete),
        Check::new("halt_leaves_nothing_running", halt),
    ]
}

/// The network and the console of the virtual machine on `head`.
struct Machine {
    // First, so that it is dropped before its hosts.
    console: Background,
    network: Network,
    /// How many prompts the console has shown.
    prompts: usize,
}

impl Machine {
    /// Types a line at the console and gives what it prints until the next prompt.
    fn say(&mut self, line: &str) -> Result<String> {
        let before = self.console.stdout().len();
        self.console.write(&format!("{line}\n"))?;
        self.prompts += 1;
        self.console.wait_for_count("pvm> ", self.prompts, 90)?;
        let all = self.console.stdout();
        Ok(all.get(before..).unwrap_or_default().to_owned())
    }
}

/// The virtual machine over all hosts.
fn up(family: Family, tun: Tun) -> Result<Machine> {
    start(Network::up(family, tun)?, "head", &["a", "b", "c"])
}

/// One over two hosts that only the relay connects: NetPIPE wants no more than two.
fn up_pair(family: Family) -> Result<Machine> {
    start(Network::up(family, Tun::Open)?, "a", &["b"])
}

/// Starts the console as a person does, at a terminal, and adds the other hosts.
fn start(network: Network, first: &str, others: &[&str]) -> Result<Machine> {
    need(&["pvm", "hello.pvm"])?;
    // Where Debian keeps the examples and the group server; and ours.
    let hosts = HOSTS.map(|host| format!("&{host}\n")).concat();
    let hosts = format!("* ep=/usr/bin:/run/lab/programs\n{hosts}");
    network.lab.on(first).write_file(ANN, "hostfile", 0o644, hosts.as_bytes())?;
    let console = quote("stty -echo; clusternet run -- pvm hostfile");
    let console = network.lab.on(first).sh(&format!("script -qefc {console} /dev/null")).spawn()?;
    let mut machine = Machine { console, network, prompts: 1 };
    machine.console.wait_for("pvm> ", 60)?;
    for host in others {
        let said = machine.say(&format!("add {host}"))?;
        ensure!(said.contains("1 successful"), "{said}\n{}", machine.network.log(host));
    }
    Ok(machine)
}

fn four_hosts(machine: &mut Machine) -> Result<()> {
    let said = machine.say("conf")?;
    ensure!(said.contains("4 hosts"), "{said}");
    for host in HOSTS {
        ensure!(said.lines().any(|line| line.trim().starts_with(host)), "no {host}: {said}");
    }
    Ok(())
}

fn console_spawns(machine: &mut Machine) -> Result<()> {
    let spawned = machine.say("spawn -4 -> hitc_slave")?;
    ensure!(!spawned.contains("not found"), "{spawned}");
    let said = machine.say("spawn -c -> hello.pvm")?;
    ensure!(said.contains("1 successful"), "{said}");
    machine.console.wait_for("hello, world from", 60)?;
    machine.say("ps -a")?;
    let said = machine.say("reset")?;
    ensure!(!said.contains("error"), "{said}");
    Ok(())
}

fn hello_and_timing(machine: &mut Machine) -> Result<()> {
    // The slave lands on another host each time.
    for _ in 0..4 {
        let said = machine.network.inside("head", "hello.pvm").ok()?;
        ensure!(said.contains("hello, world from"), "{said}");
    }
    // Its exit status says nothing: it is 1 in any case.
    for node in ["head", "b"] {
        let said = machine.network.inside(node, "timing").limit(200).run()?;
        ensure!(said.stdout.contains("Round Trip") && said.stdout.contains("done"), "{said}");
    }
    Ok(())
}

fn spmd(machine: &mut Machine) -> Result<()> {
    machine.say("spawn -4 -> spmd")?;
    machine.console.wait_for("token ring done", 60)?;
    Ok(())
}

fn gexample(machine: &mut Machine) -> Result<()> {
    let said = machine.network.inside("head", "gexample").stdin("64\n4\n").limit(120).run()?;
    ensure!(said.status.success() && said.stdout.contains("Using 4 processors"), "{said}");
    ensure!(said.stdout.contains("1-norm"), "{said}");
    Ok(())
}

fn pairs(machine: &Machine, route: &str) -> Result<()> {
    let pairs = compile("pairs", "gcc", &["-lpvm3"])?;
    let said = machine.network.inside("head", &format!("{pairs} {route}")).limit(300).run()?;
    ensure!(said.status.success() && said.stdout.contains("pairs of 4 hosts are right"), "{said}");
    for host in HOSTS {
        ensure!(said.stdout.contains(&format!("{host}: 120 exchanged, 0 wrong")), "{said}");
    }
    Ok(())
}

fn pairs_default(machine: &mut Machine) -> Result<()> {
    pairs(machine, "default")
}

fn pairs_direct(machine: &mut Machine) -> Result<()> {
    pairs(machine, "direct")
}

fn add_and_delete(machine: &mut Machine) -> Result<()> {
    let job = machine.network.inside("a", "timing").limit(200).spawn()?;
    let said = machine.say("delete c")?;
    ensure!(said.contains("1 successful"), "{said}");
    let said = machine.say("conf")?;
    ensure!(said.contains("3 hosts"), "{said}");
    let said = machine.say("add c")?;
    ensure!(said.contains("1 successful"), "{said}");
    let said = machine.say("conf")?;
    ensure!(said.contains("4 hosts"), "{said}");
    // The job's other half may have been on the host that went: then it is run once more.
    let outcome = job.wait(std::time::Duration::from_secs(200));
    if !outcome.is_ok_and(|outcome| outcome.stdout.contains("done")) {
        machine.say("reset")?;
        let again = machine.network.inside("a", "timing").limit(200).run()?;
        ensure!(again.stdout.contains("done"), "{again}");
    }
    pairs(machine, "default")
}

/// NetPIPE wants to be alone in the virtual machine: the console quits, which leaves PVM running.
fn netpipe(machine: &mut Machine) -> Result<()> {
    need(&["NPpvm"])?;
    machine.console.write("quit\n")?;
    wait_until("the console to end", SOON, || Ok((!machine.console.is_running()?).then_some(())))?;
    let receiver = machine.network.inside("b", "NPpvm -p 0 -u 100000").spawn()?;
    wait_until("the receiver", SOON, || {
        let listed = machine.network.lab.on("b").sh("pgrep -x NPpvm").run()?;
        Ok(listed.status.success().then_some(()))
    })?;
    let said =
        machine.network.inside("a", "NPpvm -h b -p 0 -u 100000 -o /tmp/np.out").limit(300).run()?;
    ensure!(said.status.success(), "{said}\n{}", receiver.so_far());
    let results = machine.network.lab.on("a").read_file(ANN, "/tmp/np.out")?;
    ensure!(results.lines().count() > 20, "{results}\n{said}");
    // It is ended by a signal of its own daemon.
    machine.network.inside("a", "pvm").stdin("halt\n").run()?;
    Ok(())
}

fn halt(machine: &mut Machine) -> Result<()> {
    machine.console.write("halt\n")?;
    wait_until("the console to end", SOON, || Ok((!machine.console.is_running()?).then_some(())))?;
    for host in HOSTS {
        wait_until(&format!("PVM's processes on {host} to end"), SOON, || {
            let left: Vec<String> = machine
                .network
                .lab
                .on(host)
                .processes()?
                .into_iter()
                .filter(|line| line.contains("pvm") || line.contains("/run/lab/programs"))
                .collect();
            ensure!(left.is_empty(), "{left:?}");
            Ok(Some(()))
        })?;
        let sockets = machine
            .network
            .inside_sh(host, "ls ${PVM_TMP:-/tmp} | grep '^pvm[dt]' || true")
            .ok()?;
        ensure!(sockets.is_empty(), "left on {host}: {sockets}");
        machine.network.leave(host)?;
        machine.network.nothing_left(host)?;
    }
    Ok(())
}
