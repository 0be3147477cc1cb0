//! The lab itself, without the product: what later tests take for granted about hosts, firewalls
//! and address translation.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use netns_tests::campus::{self, HEAD_PORT, HOSTS};
use netns_tests::command::Background;
use netns_tests::harness::{Check, Suite};
use netns_tests::lab::{Family, Lab, Nat, Tun};

fn main() -> ExitCode {
    Suite::new()
        .group("v4", || make(Family::V4), checks())
        .group("v6", || make(Family::V6), checks())
        .main()
}

fn make(family: Family) -> Result<Lab> {
    campus::build(family, Tun::Open, Nat::RandomPorts)
}

fn checks() -> Vec<Check<Lab>> {
    vec![
        Check::new("commands_run_as_an_ordinary_user_at_home", ordinary_user_at_home),
        Check::new("hosts_share_no_files", hosts_share_no_files),
        Check::new("ordinary_users_may_make_namespaces_and_a_tun", namespaces_and_tun),
        Check::new("everybody_reaches_the_open_port_of_head", open_port_of_head),
        Check::new("nobody_reaches_any_other_port", other_ports),
        Check::new("neighbours_behind_the_nat_reach_each_other", neighbours),
        Check::new("the_nat_gives_each_flow_another_port", random_ports),
        Check::new("a_command_that_hangs_is_killed_with_its_children", hanging_command),
    ]
}

fn ordinary_user_at_home(lab: &mut Lab) -> Result<()> {
    for name in HOSTS {
        let said =
            lab.on(name).sh("id -un; pwd; hostname; getent passwd ann | cut -d: -f7").ok()?;
        ensure!(said == format!("ann\n/home/ann\n{name}\n/bin/bash\n"), "{said}");
    }
    let groups = lab.on("a").sh("id -G; grep CapEff /proc/self/status").ok()?;
    ensure!(groups.starts_with("41001\n") && groups.contains("0000000000000000"), "{groups}");
    Ok(())
}

fn hosts_share_no_files(lab: &mut Lab) -> Result<()> {
    for place in ["/tmp", "/var/tmp", "/dev/shm", "/run/user/41001", "/home/ann"] {
        lab.on("a").sh(&format!("touch {place}/here")).ok()?;
        lab.on("b").sh(&format!("test -e {place}/here")).fails(1)?;
    }
    lab.on("a").sh("ls /home/ann").user("bob").fails(2)?;
    Ok(())
}

fn namespaces_and_tun(lab: &mut Lab) -> Result<()> {
    let script = "unshare --map-current-user --keep-caps --net --mount --uts --ipc bash -c '
        set -e
        ip link set lo up
        ip tuntap add cn0 mode tun
        ip link set cn0 up
        mount -t sysfs sysfs /sys
        ls /sys/class/net
        echo 0 > /proc/sys/net/ipv4/ip_unprivileged_port_start'";
    let said = lab.on("b").sh(script).env("PATH", "/usr/sbin:/usr/bin:/bin").ok()?;
    ensure!(said.contains("cn0"), "{said}");
    Ok(())
}

/// Answers every datagram with the port it came from.
const SERVER: &str = "import socket, sys
s = socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
s.bind((sys.argv[1], int(sys.argv[2])))
print('listening', flush=True)
while True:
    peer = s.recvfrom(2048)[1]
    s.sendto(('hello %d' % peer[1]).encode(), peer)";

/// Sends a datagram from port 5555 and prints what comes back within a second.
const CLIENT: &str = "import socket, sys
s = socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(1)
s.bind(('', 5555))
s.connect((sys.argv[1], int(sys.argv[2])))
s.send(b'who is there')
try:
    print(s.recv(2048).decode())
except (TimeoutError, ConnectionRefusedError):
    pass";

fn serve(lab: &Lab, on: &str, port: u16) -> Result<Background> {
    let address = lab.on(on).address();
    let mut server = lab.on(on).sh(&format!("python3 -c \"{SERVER}\" {address} {port}")).spawn()?;
    server.wait_for("listening", 20)?;
    Ok(server)
}

fn ask(lab: &Lab, from: &str, to: &str, port: u16) -> Result<String> {
    let address = lab.on(to).address();
    lab.on(from).sh(&format!("python3 -c \"{CLIENT}\" {address} {port}")).ok()
}

fn open_port_of_head(lab: &mut Lab) -> Result<()> {
    let server = serve(lab, "head", HEAD_PORT)?;
    for from in ["a", "b", "c"] {
        let answer = ask(lab, from, "head", HEAD_PORT)?;
        ensure!(answer.starts_with("hello"), "{from} got {answer:?}\n{}", server.so_far());
    }
    Ok(())
}

fn other_ports(lab: &mut Lab) -> Result<()> {
    for (from, to, port) in [
        ("a", "head", 4243),
        ("head", "a", HEAD_PORT),
        ("b", "a", HEAD_PORT),
        ("a", "b", HEAD_PORT),
        ("a", "nat", HEAD_PORT),
    ] {
        // On the router the question is only whether anything leaks through to b or c.
        let _server = if to == "nat" { None } else { Some(serve(lab, to, port)?) };
        let answer = ask(lab, from, to, port)?;
        ensure!(answer.is_empty(), "{from} reached {to}: {answer:?}");
    }
    Ok(())
}

fn neighbours(lab: &mut Lab) -> Result<()> {
    let _server = serve(lab, "c", HEAD_PORT)?;
    let answer = ask(lab, "b", "c", HEAD_PORT)?;
    ensure!(answer == "hello 5555\n", "{answer:?}");
    Ok(())
}

fn random_ports(lab: &mut Lab) -> Result<()> {
    let _server = serve(lab, "head", HEAD_PORT)?;
    let answer = ask(lab, "b", "head", HEAD_PORT)?;
    ensure!(answer.starts_with("hello ") && answer != "hello 5555\n", "{answer:?}");
    Ok(())
}

fn hanging_command(lab: &mut Lab) -> Result<()> {
    let error = lab.on("a").sh("sleep 1234 & sleep 1234").limit(1).run();
    ensure!(error.is_err_and(|error| error.to_string().contains("still running")));
    let left: Vec<String> = lab.on("a").processes()?;
    ensure!(!left.iter().any(|line| line.contains("sleep 1234")), "{left:?}");
    Ok(())
}
