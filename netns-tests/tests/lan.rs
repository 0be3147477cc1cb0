//! One flat LAN for unmodified programs: join, names, addresses, traffic of every kind, and nobody
//! else's business. On an IPv4 and on an IPv6-only underlay, with a TUN and without.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netns_tests::campus::HOSTS;
use netns_tests::harness::{Check, Suite};
use netns_tests::lab::{ANN, BOB, Family, Tun};
use netns_tests::network::{NETWORK, Network};
use netns_tests::programs::need;

fn main() -> ExitCode {
    Suite::new()
        .group("v4_tun", || Network::up(Family::V4, Tun::Open), everything(&[]))
        .group("v6_tun", || Network::up(Family::V6, Tun::Open), everything(&[]))
        .group(
            "v4_packet_socket",
            || Network::up(Family::V4, Tun::RootOnly),
            everything(&[Check::new("status_names_the_packet_socket", names_the_packet_socket)]),
        )
        .group(
            "instances",
            || Network::up(Family::V4, Tun::Open),
            vec![
                Check::new("one_user_has_two_networks_at_once", two_networks),
                Check::new("two_users_of_one_machine_have_their_own", two_users),
            ],
        )
        .group(
            "life",
            || Network::unjoined(Family::V4, Tun::Open),
            vec![
                Check::new("join_and_leave_come_and_go_without_trace", come_and_go),
                Check::new("leave_refuses_while_programs_run", leave_refuses),
                Check::new("a_second_join_says_so", second_join),
                Check::new("a_node_keeps_its_port_across_restarts", keeps_its_port),
                Check::new("a_machine_without_a_runtime_directory_will_do", no_runtime_directory),
                Check::new("root_may_use_it_too", as_root),
            ],
        )
        .main()
}

fn everything(more: &[Check<Network>]) -> Vec<Check<Network>> {
    let mut checks = vec![
        Check::new("join_prints_name_addresses_and_path", join_prints),
        Check::new("status_lists_every_node", status_lists),
        Check::new("every_node_has_a_name_in_both_families", names),
        Check::new("everybody_pings_everybody", pings),
        Check::new("clusternet_ping_says_which_path_answered", own_ping),
        Check::new("tcp_and_udp_on_random_ports_both_ways", random_ports),
        Check::new("iperf3_over_ipv6", iperf),
        Check::new("large_packets_cross", large_packets),
        Check::new("other_users_cannot_enter_the_namespace", cannot_enter),
        Check::new("other_users_cannot_reach_an_overlay_address", cannot_reach),
        Check::new("other_users_cannot_talk_to_the_control_socket", cannot_talk),
    ];
    checks.extend_from_slice(more);
    checks
}

fn join_prints(network: &mut Network) -> Result<()> {
    for (node, said) in &network.joined {
        ensure!(said.contains(node.as_str()), "no name in: {said}");
        for family in [Family::V4, Family::V6] {
            let address = network.overlay(node, family)?;
            ensure!(said.contains(&address), "no {address} in: {said}");
        }
        ensure!(node == "head" || said.contains("direct"), "no path to the master in: {said}");
    }
    Ok(())
}

fn status_lists(network: &mut Network) -> Result<()> {
    for node in HOSTS {
        let shown = network.lab.on(node).sh("clusternet status").ok()?;
        for other in HOSTS {
            ensure!(shown.contains(other), "{other} is missing on {node}: {shown}");
        }
        let status = network.status(node)?;
        ensure!(status.accepted || node == "head", "{node} is not accepted: {status:?}");
        ensure!(status.warnings.is_empty(), "{node} warns: {:?}", status.warnings);
    }
    Ok(())
}

fn names_the_packet_socket(network: &mut Network) -> Result<()> {
    for node in HOSTS {
        let device = network.status(node)?.device;
        ensure!(device.contains("packet"), "{node}: {device}");
    }
    Ok(())
}

fn names(network: &mut Network) -> Result<()> {
    for node in HOSTS {
        for other in HOSTS {
            let (v4, v6) =
                (network.overlay(other, Family::V4)?, network.overlay(other, Family::V6)?);
            for name in [other.to_owned(), format!("{other}.{NETWORK}")] {
                let found = network
                    .inside_sh(node, &format!("getent ahostsv4 {name}; getent ahostsv6 {name}"))
                    .ok()?;
                ensure!(found.contains(&v4), "{node} finds no {v4} for {name}: {found}");
                ensure!(found.contains(&v6), "{node} finds no {v6} for {name}: {found}");
            }
        }
        let own = network.inside_sh(node, "hostname; getent hosts localhost").ok()?;
        ensure!(own.starts_with(&format!("{node}\n")) && own.contains("localhost"), "{own}");
    }
    Ok(())
}

fn pings(network: &mut Network) -> Result<()> {
    for node in HOSTS {
        let script = HOSTS
            .iter()
            .flat_map(|other| {
                ["-4", "-6"].map(|family| format!("ping {family} -c2 -i 0.2 -W10 {other}"))
            })
            .collect::<Vec<_>>()
            .join(" && ");
        network.inside_sh(node, &script).limit(120).ok()?;
    }
    Ok(())
}

fn own_ping(network: &mut Network) -> Result<()> {
    let near = network.lab.on("a").sh("clusternet ping head -c 3").ok()?;
    ensure!(near.contains("direct"), "{near}");
    let far = network.lab.on("a").sh("clusternet ping b -c 3").ok()?;
    ensure!(far.contains("relayed via head") || far.contains("direct"), "{far}");
    network.lab.on("a").sh("clusternet ping nobody -c 1").fails(1)?;
    Ok(())
}

/// Both ways, both families, ports that the system chose.
fn random_ports(network: &mut Network) -> Result<()> {
    need(&["socat"])?;
    for (from, to) in [("a", "b"), ("b", "a"), ("head", "c")] {
        for protocol in ["TCP4", "TCP6", "UDP4", "UDP6"] {
            let transport = &protocol[..3];
            let family = &protocol[3..];
            let mut server = network
                .inside(
                    to,
                    &format!(
                        "socat -d -d {transport}{family}-LISTEN:0,fork,pf=ip{family} EXEC:cat"
                    ),
                )
                .spawn()?;
            server.wait_for("listening on", 20)?;
            let port = port_of(&server.stderr())?;
            // UDP knows no end: two seconds without anything are one.
            let end = if transport == "TCP" { "-t20" } else { "-t2" };
            let said = network
                .inside(from, &format!("socat {end} - {protocol}:{to}:{port}"))
                .stdin("hello there\n")
                .run()?;
            ensure!(
                said.stdout == "hello there\n",
                "{from} to {to} by {protocol}: {said}\n{}",
                server.so_far()
            );
        }
    }
    Ok(())
}

/// Of socat's message `listening on AF=2 0.0.0.0:41017`.
fn port_of(messages: &str) -> Result<u16> {
    messages
        .lines()
        .find(|line| line.contains("listening on"))
        .and_then(|line| line.rsplit(':').next())
        .and_then(|port| port.trim().parse().ok())
        .with_context(|| format!("no port in {messages}"))
}

fn iperf(network: &mut Network) -> Result<()> {
    need(&["iperf3"])?;
    for (from, to, options) in
        [("a", "b", ""), ("a", "b", "-R"), ("b", "c", ""), ("head", "a", "-u -b 5M")]
    {
        let mut server = network.inside(to, "iperf3 -6 -s -1 --forceflush").spawn()?;
        server.wait_for("listening", 20)?;
        let said = network.inside(from, &format!("iperf3 -6 -c {to} -t 2 {options}")).ok()?;
        ensure!(said.contains("receiver"), "{said}");
    }
    Ok(())
}

fn large_packets(network: &mut Network) -> Result<()> {
    // 1372 + 28 and 1352 + 48 fill the overlay's 1400 bytes; 4000 must be cut by the sender's stack.
    let script = "ping -4 -c2 -W10 -M do -s 1372 b && ping -6 -c2 -W10 -M do -s 1352 b &&
                  ping -4 -c2 -W10 -s 4000 b && ping -6 -c2 -W10 -s 4000 b";
    network.inside_sh("a", script).ok()?;
    let too_large = network.inside_sh("a", "ping -4 -c1 -W2 -M do -s 1373 b").run()?;
    ensure!(!too_large.status.success(), "1401 bytes went through whole: {too_large}");
    Ok(())
}

/// Process numbers on a host of what Ann has running in the LAN, or for it.
fn processes_of_ann(network: &Network, node: &str) -> Result<Vec<String>> {
    let found = network.lab.on(node).sh("pgrep clusternetd; pgrep sleep").user(ANN).ok()?;
    Ok(found.lines().map(str::to_owned).collect())
}

fn cannot_enter(network: &mut Network) -> Result<()> {
    let mut inside = network.inside("a", "sleep 300").spawn()?;
    netns_tests::clock::wait_until("sleep to run", Duration::from_secs(20), || {
        let running = network.lab.on("a").sh("pgrep sleep").run()?;
        Ok(running.status.success().then_some(()))
    })?;
    for pid in processes_of_ann(network, "a")? {
        for script in [
            format!("nsenter -U --preserve-credentials -n -t {pid} true"),
            format!("nsenter -n -t {pid} true"),
            format!("cat /proc/{pid}/environ"),
            format!("ls /proc/{pid}/fd"),
        ] {
            let outcome = network.lab.on("a").sh(&script).user(BOB).run()?;
            ensure!(!outcome.status.success(), "bob may: {outcome}");
        }
    }
    let tried = network.lab.on("a").sh("clusternet run -- true").user(BOB).run()?;
    ensure!(tried.status.code() == Some(125), "{tried}");
    ensure!(inside.is_running()?, "{}", inside.so_far());
    Ok(())
}

fn cannot_reach(network: &mut Network) -> Result<()> {
    for (server, intruder) in [("a", "a"), ("b", "a"), ("a", "head")] {
        let mut web = network
            .inside_sh(server, "cd /run/lab && exec python3 -u -m http.server --bind :: 8000")
            .spawn()?;
        web.wait_for("Serving", 20)?;
        for family in [Family::V4, Family::V6] {
            let address = network.overlay(server, family)?;
            let url = match family {
                Family::V4 => format!("http://{address}:8000/"),
                Family::V6 => format!("http://[{address}]:8000/"),
            };
            let fetch = format!(
                "python3 -c 'import urllib.request as r; r.urlopen(\"{url}\", timeout=5); print(200)'"
            );
            let member = network.inside_sh(intruder, &fetch).run()?;
            ensure!(member.stdout == "200\n", "a member is kept out: {member}");
            for user in [ANN, BOB] {
                let outside = network.lab.on(intruder).sh(&fetch).user(user).run()?;
                ensure!(!outside.status.success(), "reached from outside: {outside}");
            }
        }
        ensure!(web.stderr().matches("GET").count() <= 2, "{}", web.so_far());
    }
    Ok(())
}

fn cannot_talk(network: &mut Network) -> Result<()> {
    let host = network.lab.on("a");
    let found = host.sh("find /run/user /tmp -type s -uid $(id -u ann)").root().ok()?;
    ensure!(!found.is_empty(), "no sockets found");
    let connect = |socket: &str| {
        format!(
            "python3 -c 'import socket; s = socket.socket(socket.AF_UNIX); s.settimeout(5)
s.connect(\"{socket}\"); s.send(b\"{{\\\"request\\\":\\\"status\\\"}}\\n\"); print(s.recv(100))'"
        )
    };
    for socket in found.lines() {
        let refused = host.sh(&connect(socket)).user(BOB).run()?;
        ensure!(!refused.status.success() && refused.stdout.is_empty(), "{refused}");
    }
    // Not even if the directories were open to all: the socket itself looks who calls.
    host.sh("chmod -R o+rwX /run/user/$(id -u ann)").root().ok()?;
    let outcome = found.lines().try_for_each(|socket| {
        host.sh(&format!("chmod 666 {socket}")).root().ok()?;
        let refused = host.sh(&connect(socket)).user(BOB).run()?;
        let answered = refused.stdout.contains("instance");
        ensure!(!answered, "{refused}");
        host.sh(&format!("chmod 600 {socket}")).root().ok().map(|_| ())
    });
    host.sh("chmod -R o-rwx /run/user/$(id -u ann)").root().ok()?;
    outcome
}

/// Begins a network of `user` at `port` on one host, with a node `x` that runs there as well.
fn second_network(network: &Network, host: &str, user: &str, name: &str, port: u16) -> Result<()> {
    let machine = network.lab.on(host);
    let address = machine.address();
    for script in [
        format!("clusternet init {name} --master hub --endpoint udp://{address}:{port}"),
        format!("clusternet issue x --dir {name}"),
        format!("clusternet join {name}/master.toml --key {name}/hub.key --name {name}-hub"),
        format!("clusternet join {name}/master.toml --key {name}/x.key --name {name}-x"),
    ] {
        machine.sh(&script).user(user).ok()?;
    }
    Ok(())
}

fn two_networks(network: &mut Network) -> Result<()> {
    second_network(network, "a", ANN, "other", 4300)?;
    let host = network.lab.on("a");
    let which = host.sh("clusternet run -- hostname").fails(125)?;
    for instance in [NETWORK, "other-hub", "other-x"] {
        ensure!(which.contains(instance), "{instance} is not offered: {which}");
        let own = host.sh(&format!("clusternet run --on {instance} -- hostname")).ok()?;
        let name = instance.rsplit('-').next().unwrap_or_default();
        ensure!(own.trim() == if instance == NETWORK { "a" } else { name }, "{instance}: {own}");
    }
    host.sh("clusternet run --on other-x -- ping -c2 -W10 hub").ok()?;
    host.sh("clusternet run -- ping -c2 -W10 x").env("CLUSTERNET_INSTANCE", "other-hub").ok()?;
    host.sh("clusternet run --on lab -- ping -c2 -W10 b").ok()?;
    host.sh("clusternet run --on lab -- ping -c1 -W1 hub").fails(2)?;
    host.sh("clusternet leave other-x && clusternet leave other-hub").ok()?;
    host.sh("clusternet run -- ping -c2 -W10 b").ok()?;
    Ok(())
}

fn two_users(network: &mut Network) -> Result<()> {
    second_network(network, "head", BOB, "bobs", 4301)?;
    let host = network.lab.on("head");
    host.sh("clusternet run --on bobs-x -- ping -c2 -W10 hub").user(BOB).ok()?;
    host.sh("clusternet run -- ping -c2 -W10 a").user(ANN).ok()?;
    host.sh("clusternet run --on bobs-x -- true").user(ANN).fails(125)?;
    host.sh("clusternet run --on lab -- true").user(BOB).fails(125)?;
    host.sh("clusternet leave bobs-x && clusternet leave bobs-hub").user(BOB).ok()?;
    host.sh("clusternet run -- ping -c2 -W10 a").ok()?;
    Ok(())
}

fn come_and_go(network: &mut Network) -> Result<()> {
    for _ in 0..2 {
        network.join_all()?;
        network.inside("a", "ping -c2 -W10 b").ok()?;
        for node in HOSTS.iter().rev() {
            network.leave(node)?;
            network.nothing_left(node)?;
        }
    }
    let gone = network.lab.on("a").sh("clusternet status").fails(3)?;
    ensure!(gone.contains("join"), "it does not say what to do: {gone}");
    Ok(())
}

fn leave_refuses(network: &mut Network) -> Result<()> {
    network.join("head")?;
    let sleeper = network.inside("head", "sleep 4321").spawn()?;
    netns_tests::clock::wait_until("sleep to run", Duration::from_secs(20), || {
        let running = network.lab.on("head").sh("pgrep -f 'sleep 4321'").run()?;
        Ok(running.status.success().then_some(()))
    })?;
    let refused = network.lab.on("head").sh("clusternet leave").fails(1)?;
    ensure!(refused.contains("sleep"), "it does not name the program: {refused}");
    network.lab.on("head").sh("clusternet leave --kill").ok()?;
    sleeper.wait(Duration::from_secs(20))?;
    network.nothing_left("head")
}

fn second_join(network: &mut Network) -> Result<()> {
    network.join("head")?;
    let refused = network.lab.on("head").sh("clusternet join lab/master.toml").fails(1)?;
    ensure!(refused.contains("lab"), "{refused}");
    network.inside("head", "true").ok()?;
    network.leave("head").map(|_| ())
}

fn keeps_its_port(network: &mut Network) -> Result<()> {
    network.join("head")?;
    network.join("a")?;
    let before = network.status("a")?.listen;
    network.leave("a")?;
    network.join("a")?;
    let after = network.status("a")?.listen;
    ensure!(before.is_some() && before == after, "{before:?}, then {after:?}");
    network.leave("a")?;
    network.leave("head").map(|_| ())
}

fn no_runtime_directory(network: &mut Network) -> Result<()> {
    let host = network.lab.on("head");
    host.sh("chmod 700 /run/user && mv /run/user /run/nouser").root().ok()?;
    let outcome = (|| {
        host.sh("clusternet join lab/master.toml").without_env("XDG_RUNTIME_DIR").ok()?;
        let run = "clusternet run -- hostname; clusternet leave";
        let said = host.sh(run).without_env("XDG_RUNTIME_DIR").ok()?;
        ensure!(said.starts_with("head\n"), "{said}");
        Ok(())
    })();
    host.sh("mv /run/nouser /run/user && chmod 755 /run/user").root().ok()?;
    outcome?;
    network.nothing_left("head")
}

fn as_root(network: &mut Network) -> Result<()> {
    network.join("head")?;
    let host = network.lab.on("b");
    host.sh("mkdir -p /run/root && cp -r /home/ann/lab /run/root/ && chown -R 0:0 /run/root/lab")
        .root()
        .ok()?;
    // Not the machine's own home directory of root: that one is shared by all hosts.
    let sh = |script: &str| {
        host.sh(script).root().env("HOME", "/run/root").env("XDG_RUNTIME_DIR", "/run/root")
    };
    sh("clusternet join /run/root/lab/master.toml").ok()?;
    sh("clusternet run -- ping -c2 -W10 head").ok()?;
    let said =
        sh("clusternet run -- sh -c 'id -u; grep Cap /proc/self/status; mount -t tmpfs t /mnt'")
            .run()?;
    ensure!(said.stdout.starts_with("0\n"), "{said}");
    // Of the bounding set there is left what the file of `ping` asks for.
    let bounding = ["0000000000000000", "0000000000002000"];
    ensure!(bounding.iter().any(|set| said.stdout.contains(&format!("CapBnd:\t{set}"))), "{said}");
    for set in ["CapInh", "CapEff", "CapPrm", "CapAmb"] {
        ensure!(said.stdout.contains(&format!("{set}:\t0000000000000000")), "{set}: {said}");
    }
    ensure!(!said.status.success(), "root inside may mount: {said}");
    sh("clusternet leave").ok()?;
    network.leave("head")?;
    network.nothing_left("b")
}
