//! `clusternet run` and `clusternet shell`: a command sees the LAN, and nothing else is different.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use netns_tests::command::ended_by;
use netns_tests::harness::{Check, Suite};
use netns_tests::lab::{Family, Tun};
use netns_tests::network::Network;
use nix::sys::signal::Signal;

fn main() -> ExitCode {
    Suite::new()
        .group("tun", || Network::up(Family::V4, Tun::Open), checks())
        .group("packet_socket", || Network::up(Family::V4, Tun::RootOnly), checks())
        .main()
}

fn checks() -> Vec<Check<Network>> {
    vec![
        Check::new("the_exit_status_is_the_commands", exit_status),
        Check::new("own_failures_are_125_126_and_127", own_failures),
        Check::new("a_signal_that_ends_the_command_is_seen", ended_by_signal),
        Check::new("signals_reach_the_command", signals_reach),
        Check::new("the_command_has_the_users_own_identity", identity),
        Check::new("the_command_has_no_privileges", no_privileges),
        Check::new("files_and_working_directory_are_the_callers", files),
        Check::new("standard_streams_pass_through", streams),
        Check::new("a_terminal_passes_through", terminal),
        Check::new("shell_is_the_login_shell_inside", shell),
        Check::new("there_is_lo_and_the_overlay_and_nothing_else", interfaces),
        Check::new("low_ports_can_be_bound", low_ports),
        Check::new("the_launchers_find_their_remote_shell", launchers),
        Check::new("sysfs_shows_the_namespace", sysfs),
        Check::new("settings_keep_strangers_packets_out", sysctls),
        Check::new("twenty_at_once", twenty),
    ]
}

fn exit_status(network: &mut Network) -> Result<()> {
    for code in [0, 1, 7, 124, 255] {
        network.inside_sh("a", &format!("exit {code}")).fails(code)?;
    }
    Ok(())
}

fn own_failures(network: &mut Network) -> Result<()> {
    network.inside("a", "/no/such/program").fails(127)?;
    network.inside("a", "nosuchprogram").fails(127)?;
    network.inside("a", "/etc/passwd").fails(126)?;
    let unknown = network.lab.on("a").sh("clusternet run --on nowhere -- true").fails(125)?;
    ensure!(unknown.contains("nowhere"), "{unknown}");
    Ok(())
}

fn ended_by_signal(network: &mut Network) -> Result<()> {
    let outcome = network.inside_sh("a", "kill -TERM $$").run()?;
    ensure!(ended_by(outcome.status, Signal::SIGTERM), "{outcome}");
    Ok(())
}

fn signals_reach(network: &mut Network) -> Result<()> {
    for (signal, name) in
        [(Signal::SIGINT, "INT"), (Signal::SIGTERM, "TERM"), (Signal::SIGUSR1, "USR1")]
    {
        let script = format!(
            "trap 'echo got {name}; exit 9' {name}; echo ready; while :; do sleep 0.1; done"
        );
        let cmd = network.lab.on("a").sh(&format!(
            "exec clusternet run -- bash -c {}",
            netns_tests::command::quote(&script)
        ));
        let mut running = cmd.spawn()?;
        running.wait_for("ready", 20)?;
        running.signal(signal)?;
        let outcome = running.wait(Duration::from_secs(20))?;
        ensure!(outcome.stdout.contains(&format!("got {name}")), "{outcome}");
        ensure!(outcome.status.code() == Some(9), "{outcome}");
    }
    Ok(())
}

fn identity(network: &mut Network) -> Result<()> {
    let script = "id -u; id -un; id -g; echo $HOME; whoami; umask; ulimit -n";
    let outside = network.lab.on("a").sh(script).ok()?;
    let inside = network.inside_sh("a", script).ok()?;
    ensure!(inside == outside, "outside: {outside}\ninside: {inside}");
    Ok(())
}

fn no_privileges(network: &mut Network) -> Result<()> {
    let said = network.inside_sh("a", "grep ^Cap /proc/self/status").ok()?;
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        ensure!(said.contains(&format!("{set}:\t0000000000000000")), "{said}");
    }
    for forbidden in ["ip link add dummy0 type dummy", "ip addr add 10.99.77.1/16 dev lo"] {
        let tried = network
            .inside_sh("a", forbidden)
            .env("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .run()?;
        ensure!(!tried.status.success(), "{tried}");
    }
    Ok(())
}

fn files(network: &mut Network) -> Result<()> {
    let script = "mkdir -p 'deep/er dir' && cd 'deep/er dir' && echo text > file &&
                  clusternet run -- sh -c 'pwd; cat file; echo more >> file' && cat file &&
                  cat /etc/hosts && clusternet run -- tail -n1 /etc/passwd";
    let said = network.lab.on("a").sh(script).ok()?;
    ensure!(said.starts_with("/home/ann/deep/er dir\ntext\ntext\nmore\n"), "{said}");
    ensure!(said.contains("127.0.1.1\ta"), "the host's own hosts file has changed: {said}");
    Ok(())
}

fn streams(network: &mut Network) -> Result<()> {
    let outcome = network.inside_sh("a", "cat; echo problem >&2").stdin("some input").run()?;
    ensure!(outcome.stdout == "some input" && outcome.stderr == "problem\n", "{outcome}");
    let count = "ls -l /proc/self/fd | grep -c -- '->'";
    let outside = network.lab.on("a").sh(count).ok()?;
    let inside = network.inside_sh("a", count).ok()?;
    ensure!(inside == outside, "descriptors leak into the command: {inside} instead of {outside}");
    Ok(())
}

fn terminal(network: &mut Network) -> Result<()> {
    let script = "script -qec \"clusternet run -- bash -c 'stty rows 33 cols 99; test -t 0 && test -t 1 && stty size && tty'\" /dev/null";
    let said = network.lab.on("a").sh(script).ok()?;
    ensure!(said.contains("33 99") && said.contains("/dev/pts/"), "{said}");
    // Control-C typed at the terminal ends the command.
    let mut running = network
        .lab
        .on("a")
        .sh("script -qec \"clusternet run -- bash -c 'echo ready; sleep 100; echo not reached'\" /dev/null")
        .spawn()?;
    running.wait_for("ready", 20)?;
    running.write("\u{3}")?;
    let outcome = running.wait(Duration::from_secs(20))?;
    ensure!(!outcome.stdout.contains("not reached"), "{outcome}");
    Ok(())
}

fn shell(network: &mut Network) -> Result<()> {
    let said =
        network.lab.on("a").sh("clusternet shell").stdin("hostname; echo $0; exit 3\n").fails(3)?;
    ensure!(said.starts_with("a\n") && said.contains("bash"), "{said}");
    let mut running = network.lab.on("a").sh("script -qec 'clusternet shell' /dev/null").spawn()?;
    running.write("echo $((6*7)) from $(hostname)\n")?;
    running.wait_for("42 from a", 20)?;
    running.write("exit\n")?;
    running.wait(Duration::from_secs(20))?;
    Ok(())
}

fn interfaces(network: &mut Network) -> Result<()> {
    let script = "ip -o link; ip -o addr; ip route; ip -6 route";
    let said = network
        .inside_sh("a", script)
        .env("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .ok()?;
    let links: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("mtu"))
        .filter_map(|line| line.split(':').nth(1))
        .map(str::trim)
        .collect();
    ensure!(links.len() == 2 && links.contains(&"lo"), "{said}");
    ensure!(said.contains("LOOPBACK,UP"), "lo is down: {said}");
    ensure!(said.contains("mtu 1400"), "{said}");
    for address in [network.overlay("a", Family::V4)?, network.overlay("a", Family::V6)?] {
        ensure!(said.contains(&address), "no {address}: {said}");
    }
    network.inside_sh("a", "ping -c1 127.0.0.1 && ping -c1 ::1 && ping -c1 $(hostname)").ok()?;
    Ok(())
}

fn low_ports(network: &mut Network) -> Result<()> {
    let mut server = network
        .inside_sh("b", "cd /run/lab && exec python3 -u -m http.server --bind :: 80")
        .spawn()?;
    server.wait_for("Serving", 20)?;
    let fetch = "python3 -c 'import urllib.request as r; print(r.urlopen(\"http://b/\", timeout=20).status)'";
    let said = network.inside_sh("a", fetch).run()?;
    ensure!(said.stdout == "200\n", "{said}\n{}", server.so_far());
    Ok(())
}

fn launchers(network: &mut Network) -> Result<()> {
    let said = network.inside_sh("a", "env; command -v ssh").env("LANG", "C").ok()?;
    for name in [
        "PVM_RSH=",
        "PVM_TMP=",
        "OMPI_MCA_plm_rsh_agent=",
        "PRTE_MCA_plm_ssh_agent=",
        "HYDRA_LAUNCHER=ssh",
        "HYDRA_LAUNCHER_EXEC=",
        "LAMRSH=",
    ] {
        ensure!(said.contains(name), "no {name} in {said}");
    }
    let first = said.lines().last().unwrap_or_default();
    ensure!(first.ends_with("/ssh") && first != "/usr/bin/ssh", "ssh is {first}");
    let kept = network.inside_sh("a", "echo $MINE").env("MINE", "kept").ok()?;
    ensure!(kept == "kept\n", "{kept}");
    Ok(())
}

fn sysfs(network: &mut Network) -> Result<()> {
    let said = network.inside_sh("a", "ls /sys/class/net; ls /sys/fs/cgroup").ok()?;
    ensure!(!said.contains("eth0") && said.contains("lo\n"), "{said}");
    let cgroups = network.lab.on("a").sh("ls /sys/fs/cgroup").ok()?;
    ensure!(said.ends_with(&cgroups), "control groups: {said}\noutside: {cgroups}");
    Ok(())
}

fn sysctls(network: &mut Network) -> Result<()> {
    let script = "cd /proc/sys/net && cat ipv4/ip_forward ipv6/conf/all/forwarding \
                  ipv4/ip_unprivileged_port_start; \
                  for i in ipv6/conf/[!l]*; do cat $i/accept_ra $i/accept_redirects; done";
    let said = network.inside_sh("a", script).ok()?;
    ensure!(said.lines().all(|line| line == "0"), "{said}");
    Ok(())
}

fn twenty(network: &mut Network) -> Result<()> {
    let script = "for i in $(seq 20); do clusternet run -- sh -c 'sleep 1; hostname' & done; wait";
    let said = network.lab.on("a").sh(script).ok()?;
    ensure!(said == "a\n".repeat(20), "{said}");
    Ok(())
}
