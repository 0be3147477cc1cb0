//! A plain WireGuard program as a member, through its gateway: wireguard-go and boringtun-cli.

use std::process::{Command, ExitCode};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netns_tests::binaries::cache_directory;
use netns_tests::campus::HOSTS;
use netns_tests::clock::wait_until;
use netns_tests::command::Background;
use netns_tests::harness::{Check, Suite, skip};
use netns_tests::lab::{ANN, Family, Tun};
use netns_tests::network::{Network, SOON};
use netns_tests::programs::need;
use netns_tests::traffic::{self, Datagrams, Streams};

fn main() -> ExitCode {
    Suite::new()
        .group("v4", || Network::up(Family::V4, Tun::Open), checks())
        .group("v6", || Network::up(Family::V6, Tun::Open), checks())
        .group("bulk", large_packets, bulk_checks())
        .main()
}

/// Nodes whose superpackets and packets are larger than what a plain member takes.
fn large_packets() -> Result<Network> {
    let mut network = Network::unjoined(Family::V4, Tun::Open)?;
    for host in HOSTS {
        network.tune(host, "mtu = 8920")?;
    }
    network.join_all()?;
    Ok(network)
}

fn bulk_checks() -> Vec<Check<Network>> {
    vec![
        Check::new("bulk_flows_to_and_from_wireguard_go", |network| {
            need(&["wireguard-go", "wg"])?;
            bulk(network, "laptop", "wireguard-go -f")
        }),
        Check::new("bulk_flows_to_and_from_boringtun_cli", |network| {
            need(&["wg"])?;
            bulk(network, "camera", &boringtun()?)
        }),
    ]
}

fn checks() -> Vec<Check<Network>> {
    vec![
        Check::new("wireguard_go_is_a_member", wireguard_go),
        Check::new("boringtun_cli_is_a_member", boringtun_cli),
        Check::new("a_plain_member_may_not_execute", may_not_execute),
        Check::new("a_revoked_plain_member_is_cut", revoked),
    ]
}

/// Makes keys on c, has them certified under `name`, and brings up `wg0` there with `program`.
fn bring_up(network: &Network, name: &str, program: &str) -> Result<Background> {
    let host = network.lab.on("c");
    let public = host
        .sh(&format!("umask 077; wg genkey > {name}.private; wg pubkey < {name}.private"))
        .ok()?;
    let said = network
        .admin(&format!("clusternet issue {name} --dir lab --wireguard {}", public.trim()))?;
    // As `issue` says: that is how the gateway learns of it.
    network.admin(&format!("clusternet update lab/{name}.cert"))?;
    let file = said
        .find("[Interface]")
        .map(|start| said[start..].to_owned())
        .with_context(|| format!("no wg-quick file in: {said}"))?;
    let private = host.read_file(ANN, &format!("{name}.private"))?;
    let mut text = String::new();
    for line in file.lines().filter(|line| !line.contains("PrivateKey")) {
        text += line;
        text += "\n";
        if line.trim() == "[Interface]" {
            text += &format!("PrivateKey = {private}");
        }
    }
    host.sh(&format!("umask 077; mkdir -p /run/wg; cat > /run/wg/{name}.conf"))
        .root()
        .stdin(text.clone())
        .ok()?;
    let daemon = host
        .sh(&format!("exec {program} wg0"))
        .root()
        .env("WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD", "1")
        .env("WG_SUDO", "1")
        .spawn()?;
    wait_until("wg0", Duration::from_secs(20), || {
        Ok(host.sh("wg show wg0").root().run()?.status.success().then_some(()))
    })
    .with_context(|| daemon.so_far())?;
    let values = |key: &str| -> Vec<String> {
        text.lines()
            .filter_map(|line| line.split_once('='))
            .filter(|(name, _)| name.trim() == key)
            .flat_map(|(_, value)| value.split(','))
            .map(|value| value.trim().to_owned())
            .collect()
    };
    let (addresses, routes) = (values("Address"), values("AllowedIPs"));
    ensure!(addresses.len() == 2 && routes.len() >= 2, "both families are not in {text}");
    let mut script = format!("set -e; wg setconf wg0 <(wg-quick strip /run/wg/{name}.conf)\n");
    if network.lab.family() == Family::V4 {
        // The lab's hosts have no IPv6 below; the LAN above has.
        script += "echo 0 > /proc/sys/net/ipv6/conf/wg0/disable_ipv6\n";
    }
    for address in addresses {
        script += &format!("ip addr add {address} dev wg0\n");
    }
    script += "ip link set wg0 mtu 1380 up\n";
    for route in routes {
        script += &format!("ip route replace {route} dev wg0\n");
    }
    host.sh(&script).root().ok()?;
    Ok(daemon)
}

fn is_a_member(network: &Network, name: &str, program: &str) -> Result<()> {
    let daemon = bring_up(network, name, program)?;
    let host = network.lab.on("c");
    let reach = |script: &str| {
        wait_until(script, SOON, || Ok(host.sh(script).run()?.status.success().then_some(())))
            .with_context(|| format!("{}\n{}", daemon.so_far(), network.log("head")))
    };
    for node in ["head", "a", "b"] {
        for (family, option) in [(Family::V4, "-4"), (Family::V6, "-6")] {
            let address = network.overlay(node, family)?;
            reach(&format!("ping {option} -c2 -W3 {address}"))?;
        }
    }
    // The other way, by name, and a connection with some weight in both directions.
    for option in ["-4", "-6"] {
        network.inside("a", &format!("ping {option} -c2 -W10 {name}")).ok()?;
    }
    let address = network.overlay("a", Family::V4)?;
    let mut server = network.inside("a", "socat TCP-LISTEN:7070,reuseaddr EXEC:cat").spawn()?;
    wait_until("the server", SOON, || {
        let bound =
            network.inside_sh("a", "grep -qi ':1B9E ' /proc/net/tcp /proc/net/tcp6").run()?;
        Ok(bound.status.success().then_some(()))
    })?;
    let script = format!(
        "head -c 2000000 /dev/urandom > sent; socat -t20 - TCP:{address}:7070,shut-down < sent | cmp - sent"
    );
    host.sh(&script).limit(120).ok()?;
    wait_until("the server to end", SOON, || Ok((!server.is_running()?).then_some(())))?;
    let seen = network.seen("a", name)?;
    ensure!(seen.role == "wireguard", "{seen:?}");
    Ok(())
}

fn wireguard_go(network: &mut Network) -> Result<()> {
    need(&["wireguard-go", "wg", "socat"])?;
    is_a_member(network, "phone", "wireguard-go -f")
}

fn boringtun_cli(network: &mut Network) -> Result<()> {
    need(&["wg", "socat"])?;
    is_a_member(network, "tablet", &boringtun()?)
}

/// Installs it if need be, and says how it is started.
fn boringtun() -> Result<String> {
    // Groups run side by side, and all of them need it.
    static INSTALLING: Mutex<()> = Mutex::new(());
    let tools = cache_directory("tools")?;
    let _one_at_a_time = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    if !tools.join("bin/boringtun-cli").exists() {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .args([
                "install",
                "--quiet",
                "--locked",
                "boringtun-cli",
                "--version",
                "0.7.1",
                "--root",
            ])
            .arg(&tools)
            .arg("--target-dir")
            .arg(tools.join("target"))
            .env_remove("RUSTFLAGS")
            .output()
            .context("run cargo install")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return skip(format!(
                "cargo cannot install boringtun-cli: {}",
                said.lines().last().unwrap_or_default()
            ));
        }
    }
    Ok("/run/lab/tools/bin/boringtun-cli --foreground --disable-drop-privileges".to_owned())
}

/// Every byte both ways, between a plain member and a node that is not its gateway, and the gateway itself.
fn bulk(network: &Network, name: &str, program: &str) -> Result<()> {
    let _daemon = bring_up(network, name, program)?;
    let host = network.lab.on("c");
    let mut servers = vec![traffic::serve(host.sh("exec traffic serve"))?];
    for node in ["a", "head"] {
        servers.push(traffic::serve(network.inside(node, "traffic serve"))?);
        for family in [Family::V4, Family::V6] {
            let address = network.overlay(node, family)?;
            let ping = format!("ping -c1 -W3 {address}");
            wait_until(&ping, SOON, || Ok(host.sh(&ping).run()?.status.success().then_some(())))?;
            let options = "--streams 2 --milliseconds 1500 --at-least 2000000";
            let _: Streams =
                traffic::report(host.sh(&format!("traffic tcp {address} {options}")).limit(300))?;
            check(traffic::report(host.sh(&format!("traffic udp {address} --milliseconds 700")))?)?;
        }
    }
    // The other way round who calls is another.
    for (node, option) in [("a", "-4"), ("head", "-6")] {
        let database = if option == "-4" { "ahostsv4" } else { "ahostsv6" };
        let found = network.inside_sh(node, &format!("getent {database} {name}")).ok()?;
        let address = found.split_whitespace().next().context("no address")?;
        let options = "--milliseconds 1000 --at-least 2000000";
        let tcp = network.inside(node, &format!("traffic tcp {address} {options}"));
        let _: Streams = traffic::report(tcp.limit(300))?;
        let udp = network.inside(node, &format!("traffic udp {address} --milliseconds 700"));
        check(traffic::report(udp)?)?;
    }
    Ok(())
}

fn check(datagrams: Datagrams) -> Result<()> {
    let Datagrams { sent, arrived, .. } = datagrams;
    ensure!(arrived.wrong == 0 && arrived.repeated == 0, "{datagrams:?}");
    // The tunnel of a plain member takes packets one by one, and lets go of what is too much.
    ensure!(arrived.received * 100 > sent * 60, "{datagrams:?}");
    Ok(())
}

fn may_not_execute(network: &mut Network) -> Result<()> {
    need(&["wireguard-go", "wg", "ssh"])?;
    let _daemon = bring_up(network, "stranger", "wireguard-go -f")?;
    let host = network.lab.on("c");
    let address = network.overlay("a", Family::V4)?;
    wait_until("the stranger to reach a", SOON, || {
        Ok(host.sh(&format!("ping -c1 -W3 {address}")).run()?.status.success().then_some(()))
    })?;
    let script = format!(
        "ssh -F none -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o ConnectTimeout=10 {address} true"
    );
    host.sh(&script).fails(255)?;
    Ok(())
}

fn revoked(network: &mut Network) -> Result<()> {
    need(&["wireguard-go", "wg"])?;
    let _daemon = bring_up(network, "thief", "wireguard-go -f")?;
    let host = network.lab.on("c");
    let address = network.overlay("b", Family::V4)?;
    let ping = format!("ping -c1 -W2 {address}");
    wait_until("the thief to reach b", SOON, || {
        Ok(host.sh(&ping).run()?.status.success().then_some(()))
    })?;
    network.admin("clusternet revoke thief --dir lab")?;
    wait_until("the thief to be cut off", SOON, || {
        Ok((!host.sh(&ping).run()?.status.success()).then_some(()))
    })
}
