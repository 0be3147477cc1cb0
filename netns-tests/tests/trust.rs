//! Who gets in, who does not, and what each is told; and what noise does to those who are in.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use netns_tests::campus::HEAD_PORT;
use netns_tests::clock::wait_until;
use netns_tests::harness::{Check, Suite};
use netns_tests::lab::{ANN, Family, Tun};
use netns_tests::network::{NETWORK, Network, SOON};
use netns_tests::programs;

fn main() -> ExitCode {
    Suite::new()
        .group(
            "admin",
            || Network::unjoined(Family::V4, Tun::Open),
            vec![
                Check::new("two_admins_at_once_never_clash", two_admins),
                Check::new("a_name_is_given_once", name_clash),
            ],
        )
        .group(
            "refused",
            || {
                let mut network = Network::unjoined(Family::V4, Tun::Open)?;
                network.join("head")?;
                Ok(network)
            },
            vec![
                Check::new("a_missing_file_says_where_it_looked", missing_file),
                Check::new("a_malformed_file_names_line_and_field", malformed_file),
                Check::new("an_oversize_file_is_refused", oversize_file),
                Check::new("a_key_that_others_can_read_is_refused", readable_key),
                Check::new("a_key_of_another_network_is_refused", other_network),
                Check::new("a_changed_master_toml_is_refused", changed_master),
                Check::new("a_key_whose_secret_was_swapped_is_refused", swapped_secret),
                Check::new("an_expired_certificate_is_refused", expired_before_join),
                Check::new("a_certificate_of_the_future_is_refused", not_yet_valid),
                Check::new("a_revoked_node_is_refused_by_the_others", revoked_before_join),
                Check::new("a_port_in_use_is_named", port_in_use),
                Check::new("a_master_that_does_not_answer_is_named", no_answer),
                Check::new("no_user_namespaces_is_explained", no_user_namespaces),
                Check::new("the_request_flow_keeps_secrets_at_home", request_flow),
                Check::new("secrets_are_private_and_never_shown", secrets),
            ],
        )
        .group(
            "ended",
            || Network::up(Family::V4, Tun::Open),
            vec![
                Check::new("a_node_leaves_when_its_certificate_ends", expiry),
                Check::new("peers_cut_a_node_whose_clock_is_behind", expiry_at_peers),
                Check::new("a_renewed_certificate_goes_on", renewal),
                Check::new("revocation_spreads_and_cuts", revocation),
                Check::new("a_key_in_use_elsewhere_stops_the_older", two_incarnations),
            ],
        )
        .group(
            "noise",
            || Network::up(Family::V4, Tun::Open),
            vec![
                Check::new("garbage_to_every_port_disturbs_nobody", garbage),
                Check::new("garbage_to_the_control_socket_disturbs_nobody", socket_garbage),
                Check::new("a_flood_of_handshakes_disturbs_nobody", flood),
            ],
        )
        .main()
}

/// `join` with these arguments is refused on a, leaves nothing behind, and what it said is given.
fn refused(network: &Network, node: &str, arguments: &str) -> Result<String> {
    let said = network.lab.on(node).sh(&format!("clusternet join {arguments}")).fails(1)?;
    network.nothing_left(node)?;
    Ok(said)
}

fn missing_file(network: &mut Network) -> Result<()> {
    let said = refused(network, "a", "nowhere.toml")?;
    ensure!(said.contains("nowhere.toml"), "{said}");
    network.lab.on("a").sh("mkdir -p empty && cp lab/master.toml empty/").ok()?;
    let said = refused(network, "a", "empty/master.toml")?;
    for place in ["a.key", ".config/clusternet/lab/node.key"] {
        ensure!(said.contains(place), "it does not say that it looked for {place}: {said}");
    }
    let said = refused(network, "a", "lab/master.toml --key other.key")?;
    ensure!(said.contains("other.key"), "{said}");
    Ok(())
}

fn malformed_file(network: &mut Network) -> Result<()> {
    let host = network.lab.on("a");
    for (edit, expected) in [
        ("sed -i '1,/name/ s/^name.*/nmae = \"lab\"/'", "nmae"),
        ("sed -i '$ a [node]\\nlissten = 4'", "lissten"),
        ("sed -i '$ a [node]\\nmtu = \"large\"'", "mtu"),
        ("sed -i '$ a [node'", "line"),
        ("truncate -s 100", "line"),
    ] {
        host.sh(&format!("cp lab/master.toml lab/bad.toml && {edit} lab/bad.toml")).ok()?;
        let said = refused(network, "a", "lab/bad.toml")?;
        ensure!(said.contains(expected) && said.contains("line"), "after {edit}: {said}");
    }
    host.sh("head -c 5000 /dev/urandom > lab/bad.toml").ok()?;
    refused(network, "a", "lab/bad.toml")?;
    Ok(())
}

fn oversize_file(network: &mut Network) -> Result<()> {
    network
        .lab
        .on("a")
        .sh("cp lab/master.toml lab/big.toml; yes '# more' | head -c 300M >> lab/big.toml")
        .ok()?;
    let said = refused(network, "a", "lab/big.toml")?;
    network.lab.on("a").sh("rm lab/big.toml").ok()?;
    ensure!(said.contains("big.toml"), "{said}");
    Ok(())
}

fn readable_key(network: &mut Network) -> Result<()> {
    for mode in ["644", "640", "660"] {
        network.lab.on("a").sh(&format!("chmod {mode} lab/a.key")).ok()?;
        let said = refused(network, "a", "lab/master.toml")?;
        ensure!(said.contains("a.key") && said.contains("chmod"), "{said}");
    }
    network.lab.on("a").sh("chmod 600 lab/a.key").ok()?;
    Ok(())
}

fn other_network(network: &mut Network) -> Result<()> {
    network
        .lab
        .on("a")
        .sh("clusternet init other --master a --endpoint udp://198.51.100.20:5000")
        .ok()?;
    let said = refused(network, "a", "lab/master.toml --key other/a.key")?;
    ensure!(said.contains("another network") || said.contains("other"), "{said}");
    Ok(())
}

fn changed_master(network: &mut Network) -> Result<()> {
    let host = network.lab.on("a");
    host.sh("sed 's/203.0.113.10/203.0.113.11/' lab/master.toml > lab/changed.toml").ok()?;
    let differs = host.sh("cmp lab/master.toml lab/changed.toml").run()?;
    ensure!(!differs.status.success(), "the address is not in the file");
    let said = refused(network, "a", "lab/changed.toml")?;
    ensure!(said.contains("sign") || said.contains("changed"), "{said}");
    Ok(())
}

fn swapped_secret(network: &mut Network) -> Result<()> {
    // The certificate of a with the secrets of b.
    let (a, b) = (
        network.lab.on("a").read_file(ANN, "lab/a.key")?,
        network.lab.on("b").read_file(ANN, "lab/b.key")?,
    );
    let secrets = |text: &str| -> Vec<String> {
        text.lines()
            .filter(|l| l.starts_with("transport") || l.starts_with("host"))
            .map(str::to_owned)
            .collect()
    };
    let mut mixed = a.clone();
    for (own, other) in secrets(&a).iter().zip(secrets(&b)) {
        mixed = mixed.replace(own, &other);
    }
    ensure!(mixed != a, "no secrets found in the key file");
    network.lab.on("a").write_file(ANN, "lab/mixed.key", 0o600, mixed.as_bytes())?;
    refused(network, "a", "lab/master.toml --key lab/mixed.key")?;
    Ok(())
}

fn expired_before_join(network: &mut Network) -> Result<()> {
    network.issue("short", "--valid 1s")?;
    network.carry("short", "a")?;
    let said = wait_until("the certificate to end", SOON, || {
        let tried =
            network.lab.on("a").sh("clusternet join lab/master.toml --key lab/short.key").run()?;
        if tried.status.success() {
            network.lab.on("a").sh("clusternet leave").run()?;
            return Ok(None);
        }
        Ok(tried.text().contains("expired").then(|| tried.text()))
    })?;
    ensure!(said.contains("short"), "{said}");
    network.nothing_left("a")
}

fn not_yet_valid(network: &mut Network) -> Result<()> {
    let clock = programs::compile("shift", "gcc", &["-shared", "-fPIC"])?;
    network
        .lab
        .on("head")
        .sh("clusternet issue late --dir lab")
        .env("LD_PRELOAD", &clock)
        .env("CLOCK_SHIFT", "86400")
        .ok()?;
    network.carry("late", "a")?;
    let said = refused(network, "a", "lab/master.toml --key lab/late.key")?;
    ensure!(said.contains("not yet valid") || said.contains("not valid before"), "{said}");
    Ok(())
}

fn revoked_before_join(network: &mut Network) -> Result<()> {
    network.issue("gone", "")?;
    network.carry("gone", "a")?;
    network.admin("clusternet revoke gone --dir lab")?;
    let said = refused(network, "a", "lab/master.toml --key lab/gone.key --wait 10s")?;
    ensure!(said.contains("revoked"), "{said}");
    Ok(())
}

fn name_clash(network: &mut Network) -> Result<()> {
    let admin = network.lab.on("head");
    let said = admin.sh("clusternet request a -o elsewhere.request && clusternet issue a --dir lab --request elsewhere.request").fails(1)?;
    ensure!(said.contains("`a`") && said.contains("revoke"), "{said}");
    for bad in ["localhost", "Upper", "9lives", "a_b", "-x", ""] {
        let said = admin.sh(&format!("clusternet issue --dir lab -- '{bad}'")).run()?;
        ensure!(!said.status.success(), "{bad:?} is no name: {said}");
    }
    Ok(())
}

fn port_in_use(network: &mut Network) -> Result<()> {
    let host = network.lab.on("a");
    host.sh("cp lab/master.toml lab/listen.toml && printf '\\n[node]\\nlisten = 4777\\n' >> lab/listen.toml").ok()?;
    let mut holder = host.sh("socat -d -d UDP4-LISTEN:4777 -").spawn()?;
    holder.wait_for("listening on", 20)?;
    let said = refused(network, "a", "lab/listen.toml")?;
    ensure!(said.contains("4777"), "{said}");
    drop(holder);
    host.sh("clusternet join lab/listen.toml && clusternet leave").ok()?;
    Ok(())
}

fn no_answer(network: &mut Network) -> Result<()> {
    network.leave("head")?;
    // A node that has never been a member: others come up and go on trying.
    let said = refused(network, "b", "lab/master.toml --wait 3s")?;
    network.join("head")?;
    ensure!(said.contains("head") && said.contains(&format!("203.0.113.10:{HEAD_PORT}")), "{said}");
    Ok(())
}

/// In a user namespace that allows no further ones: what a machine that forbids them does.
fn no_user_namespaces(network: &mut Network) -> Result<()> {
    let inside = |script: &str| {
        format!(
            "unshare --map-current-user --keep-caps bash -c 'echo 0 > /proc/sys/user/max_user_namespaces &&
             exec setpriv --inh-caps=-all --ambient-caps=-all {script}'"
        )
    };
    let host = network.lab.on("a");
    let said = host.sh(&inside("clusternet join lab/master.toml")).fails(1)?;
    ensure!(said.contains("user namespace"), "{said}");
    network.nothing_left("a")?;
    let doctor = host.sh(&inside("clusternet doctor")).run()?;
    ensure!(doctor.text().contains("user namespace"), "{doctor}");
    let content = host.sh("clusternet doctor").run()?;
    ensure!(content.status.success(), "{content}");
    Ok(())
}

fn request_flow(network: &mut Network) -> Result<()> {
    let (node, admin) = (network.lab.on("c"), network.lab.on("head"));
    node.sh("mkdir -p mine && cp lab/master.toml mine/ && cd mine && clusternet request fresh")
        .ok()?;
    let request = node.read_file(ANN, "mine/fresh.request")?;
    admin.write_file(ANN, "fresh.request", 0o644, request.as_bytes())?;
    admin.sh("clusternet issue fresh --dir lab --request fresh.request -o fresh.cert").ok()?;
    let early = node.sh("clusternet join mine/master.toml --key mine/fresh.key").fails(1)?;
    ensure!(early.contains("fresh.request"), "{early}");
    let certificate = admin.read_file(ANN, "fresh.cert")?;
    node.write_file(ANN, "mine/fresh.cert", 0o644, certificate.as_bytes())?;
    node.sh("clusternet join mine/master.toml --key mine/fresh.key").ok()?;
    node.sh("clusternet run -- ping -c2 -W20 head && clusternet leave").ok()?;
    Ok(())
}

fn secrets(network: &mut Network) -> Result<()> {
    let host = network.lab.on("head");
    let modes = host
        .sh("cd lab && stat -c '%a %n' authority.key ledger.toml head.key master.toml a.key")
        .ok()?;
    ensure!(
        modes == "600 authority.key\n600 ledger.toml\n600 head.key\n644 master.toml\n600 a.key\n",
        "{modes}"
    );
    let script = "cd lab
        for file in authority.key a.key head.key; do clusternet inspect $file; clusternet inspect --json $file; done > shown 2>&1
        clusternet list --dir . >> shown; clusternet -v status >> shown 2>&1
        cat ~/.local/state/clusternet/*/* ~/.local/state/clusternet/* >> shown 2>/dev/null
        grep -hE '^(secret|transport|host) ' authority.key a.key head.key | grep -oE '[A-Za-z0-9+/]{43}=' > secrets
        grep -c . secrets; grep -F -f secrets shown | head";
    let said = host.sh(script).ok()?;
    let lines: Vec<&str> = said.lines().collect();
    ensure!(lines.first() == Some(&"5"), "found not all of the secrets: {said}");
    ensure!(lines.len() == 1, "a secret is shown: {said}");
    Ok(())
}

fn pings(network: &Network, from: &str, to: &str) -> Result<bool> {
    Ok(network.inside(from, &format!("ping -c1 -W2 {to}")).run()?.status.success())
}

fn runs(network: &Network, node: &str, command: &str) -> Result<bool> {
    Ok(network.lab.on(node).processes()?.iter().any(|line| line.ends_with(command)))
}

fn wait_cut(network: &Network, from: &str, to: &str, seconds: u64) -> Result<()> {
    wait_until(&format!("{from} to be cut off from {to}"), Duration::from_secs(seconds), || {
        Ok((!pings(network, from, to)?).then_some(()))
    })
}

/// Waits until `status` either does not list a node or says why it is none.
fn wait_not_a_member(network: &Network, from: &str, node: &str) -> Result<()> {
    wait_until(&format!("{from} not to count {node} as a member"), SOON, || {
        let gone = match network.status(from)?.peers.iter().find(|peer| peer.name.as_str() == node)
        {
            Some(peer) => ["expired", "revoked", "left"].contains(&peer.state.as_str()),
            None => true,
        };
        Ok(gone.then_some(()))
    })
}

fn expiry(network: &mut Network) -> Result<()> {
    network.issue("brief", "--valid 20s")?;
    network.carry("brief", "c")?;
    let host = network.lab.on("c");
    host.sh("clusternet join lab/master.toml --key lab/brief.key --name brief").ok()?;
    wait_until("a to reach it", SOON, || Ok(pings(network, "a", "brief")?.then_some(())))?;
    wait_cut(network, "a", "brief", 40)?;
    wait_not_a_member(network, "a", "brief")?;
    wait_until("its daemon to leave by itself", SOON, || {
        Ok((!host.sh("clusternet status --on brief").run()?.status.success()).then_some(()))
    })?;
    Ok(())
}

/// The node's clock is 5 minutes slow and those of its peers 5 minutes fast: the skew that is
/// forgiven is used up, so that its peers end it, to the second, while it believes to be valid.
fn expiry_at_peers(network: &mut Network) -> Result<()> {
    let clock = programs::compile("shift", "gcc", &["-shared", "-fPIC"])?;
    network.issue("slow", "--valid 40s")?;
    network.carry("slow", "c")?;
    network.leave("a")?;
    let join = |node: &str, arguments: &str, shift: &str| {
        network
            .lab
            .on(node)
            .sh(&format!("clusternet join lab/master.toml {arguments}"))
            .env("LD_PRELOAD", &clock)
            .env("CLOCK_SHIFT", shift)
            .ok()
    };
    join("a", "", "295")?;
    join("c", "--key lab/slow.key --name slow", "-250")?;
    wait_until("a to reach it", SOON, || Ok(pings(network, "a", "slow")?.then_some(())))?;
    let _session =
        network.lab.on("c").sh("clusternet run --on slow -- ssh a sleep 4711").spawn()?;
    wait_until("its session", SOON, || Ok(runs(network, "a", "sleep 4711")?.then_some(())))?;
    let skewed = network.status("head")?.peers.into_iter().any(|peer| peer.clock_skew.is_some());
    ensure!(skewed, "head does not notice wrong clocks");
    wait_cut(network, "a", "slow", 80)?;
    wait_not_a_member(network, "a", "slow")?;
    // Its own end of the session hangs in a dead network; what it ran on a must be gone.
    wait_until("its command on a to end", SOON, || {
        Ok((!runs(network, "a", "sleep 4711")?).then_some(()))
    })?;
    network.lab.on("c").sh("clusternet leave slow --kill").run()?;
    network.leave("a")?;
    network.join("a").map(|_| ())
}

fn renewal(network: &mut Network) -> Result<()> {
    network.admin("clusternet issue term --dir lab --valid 25s")?;
    network.carry("term", "c")?;
    let host = network.lab.on("c");
    host.sh("clusternet join lab/master.toml --key lab/term.key --name term").ok()?;
    wait_until("a to reach it", SOON, || Ok(pings(network, "a", "term")?.then_some(())))?;
    let mut talk = host.sh("clusternet run --on term -- ping -i 0.2 -c 250 -W 2 a").spawn()?;
    talk.wait_for("icmp_seq=2 ", 30)?;
    network.admin("clusternet issue term --dir lab --valid 1h -o lab/term.cert")?;
    let certificate = network.lab.on("head").read_file(ANN, "lab/term.cert")?;
    host.write_file(ANN, "term.cert", 0o644, certificate.as_bytes())?;
    host.sh("clusternet update term.cert --on term").ok()?;
    talk.wait_for("packet loss", 90)?;
    ensure!(talk.stdout().contains(" 0% packet loss"), "{}", talk.so_far());
    host.sh("clusternet leave term").ok()?;
    Ok(())
}

fn revocation(network: &mut Network) -> Result<()> {
    ensure!(pings(network, "a", "b")?, "a does not reach b to begin with");
    let mut session = network.inside("b", "ssh a 'echo ready; sleep 4712'").spawn()?;
    session.wait_for("ready", 30)?;
    let said = network.admin(&format!("clusternet revoke b --dir {NETWORK}"))?;
    ensure!(said.contains('b'), "{said}");
    for node in ["a", "c", "head"] {
        wait_cut(network, node, "b", 30)?;
        wait_not_a_member(network, node, "b")?;
    }
    wait_until("its command on a to end", SOON, || {
        Ok((!runs(network, "a", "sleep 4712")?).then_some(()))
    })?;
    ensure!(pings(network, "a", "c")? && pings(network, "c", "head")?, "others were cut, too");
    // Once more by hand, to a node that knows already: how many confirm is said.
    let file = network.lab.on("head").read_file(ANN, "lab/revocations")?;
    network.lab.on("a").write_file(ANN, "revocations", 0o644, file.as_bytes())?;
    let said = network.lab.on("a").sh("clusternet update revocations").ok()?;
    ensure!(said.contains("confirmed") || said.contains("nodes"), "{said}");
    // It does not come back.
    network.lab.on("b").sh("clusternet leave --kill").run()?;
    drop(session);
    let again = network.lab.on("b").sh("clusternet join lab/master.toml --wait 10s").fails(1)?;
    ensure!(again.contains("revoked"), "{again}");
    network.nothing_left("b")
}

fn two_incarnations(network: &mut Network) -> Result<()> {
    network.carry("c", "a")?;
    let copy = network
        .lab
        .on("a")
        .sh("clusternet join lab/master.toml --key lab/c.key --name copy")
        .run()?;
    ensure!(copy.status.success(), "{copy}");
    wait_until("the older to stop", SOON, || {
        Ok((!network.lab.on("c").sh("clusternet status").run()?.status.success()).then_some(()))
    })?;
    let log = network.log("c");
    let why = "the same key has joined from another machine since";
    ensure!(log.contains(why), "{log}");
    network.lab.on("a").sh("clusternet leave copy").ok()?;
    network.join("c").map(|_| ())
}

/// Sends random and mutated datagrams for a few seconds from a host to an address and port.
const NOISE: &str = "import os, random, socket, sys, time
address, port, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
kind = sys.argv[4]
s = socket.socket(socket.AF_INET6 if ':' in address else socket.AF_INET, socket.SOCK_DGRAM)
end = time.monotonic() + seconds
sent = 0
while time.monotonic() < end:
    if kind == 'random':
        message = os.urandom(random.choice([0, 1, 3, 4, 15, 16, 31, 32, 63, 64, 91, 92, 147, 148, 149, 600, 1472]))
        if len(message) >= 4 and random.random() < 0.7:
            message = bytes([random.randrange(1, 9), 0, 0, 0]) + message[4:]
    else:
        message = b'\\1\\0\\0\\0' + os.urandom(144)
    try:
        s.sendto(message, (address, port))
        sent += 1
    except OSError:
        pass
    if sent % 50 == 0:
        time.sleep(0.005)
print(sent)";

/// Pings b from a while `disturb` runs, and fails if more than a few are lost or a daemon is gone.
fn undisturbed(network: &Network, disturb: impl FnOnce() -> Result<()>) -> Result<()> {
    let pids = |node: &str| network.lab.on(node).sh("pgrep clusternetd | sort").ok();
    let before = ["head", "a", "b", "c"].map(pids);
    let mut talk = network.inside("a", "ping -i 0.1 -c 150 -W 3 b").limit(90).spawn()?;
    talk.wait_for("icmp_seq=2 ", 30)?;
    disturb()?;
    talk.wait_for("packet loss", 90)?;
    let lost = talk
        .stdout()
        .split(", ")
        .find_map(|part| part.split_once("% packet loss").and_then(|(n, _)| n.parse::<f64>().ok()))
        .unwrap_or(100.0);
    ensure!(lost <= 5.0, "{}", talk.so_far());
    for (node, before) in ["head", "a", "b", "c"].into_iter().zip(before) {
        let (before, after) = (before?, pids(node)?);
        ensure!(
            before == after,
            "daemons of {node} were {before:?}, are {after:?}\n{}",
            network.log(node)
        );
    }
    Ok(())
}

fn noise(network: &Network, from: &str, to: &str, port: &str, kind: &str) -> Result<()> {
    let address = network.lab.on(to).address();
    let sent = network
        .lab
        .on(from)
        .sh(&format!("python3 -c \"{NOISE}\" {address} {port} 4 {kind}"))
        .ok()?;
    ensure!(sent.trim().parse::<u64>().is_ok_and(|count| count > 100), "only {sent} were sent");
    Ok(())
}

fn garbage(network: &mut Network) -> Result<()> {
    undisturbed(network, || {
        noise(network, "a", "head", &HEAD_PORT.to_string(), "random")?;
        for (from, to) in [("c", "b"), ("a", "a")] {
            // Such as `udp port 4242`.
            let listen = network.status(to)?.listen.unwrap_or_default();
            let port = listen.rsplit(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
            noise(network, from, to, port, "random")?;
        }
        Ok(())
    })
}

fn flood(network: &mut Network) -> Result<()> {
    undisturbed(network, || {
        noise(network, "c", "head", &HEAD_PORT.to_string(), "initiation")?;
        noise(network, "a", "head", &HEAD_PORT.to_string(), "initiation")
    })
}

fn socket_garbage(network: &mut Network) -> Result<()> {
    let script = "import glob, os, random, socket, subprocess
sockets = subprocess.run(['find', os.environ['XDG_RUNTIME_DIR'], '-type', 's'], capture_output=True, text=True).stdout.split()
assert sockets
for n in range(300):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(0.05)
    s.connect(random.choice(sockets))
    try:
        for _ in range(random.randrange(1, 4)):
            s.send(random.choice([os.urandom(random.randrange(1, 4000)), b'{\\\"request\\\":\\\"', b'\\n', b'{}\\n', b'[' * 5000 + b'\\n', b'\\0' * 4000]))
        s.recv(100)
    except OSError:
        pass
    if n % 3:
        s.close()
s = socket.socket(socket.AF_UNIX)
s.connect(sockets[0])
try:
    for _ in range(600):
        s.send(b'x' * 65536)
except OSError as e:
    print('closed')";
    undisturbed(network, || {
        network.lab.on("a").sh(&format!("python3 -c \"{script}\"")).limit(120).ok()?;
        network.status("a").map(|_| ())
    })
}

fn two_admins(network: &mut Network) -> Result<()> {
    let script = "for i in $(seq 10); do
            clusternet issue x$i --dir lab > /dev/null & clusternet issue y$i --dir lab > /dev/null &
            clusternet issue z$i --dir lab > /dev/null 2>&1 & kill -KILL $! & wait
        done; clusternet list --dir lab --json";
    let listed = network.lab.on("head").sh(script).limit(120).ok()?;
    for name in (1..=10).flat_map(|n| [format!("x{n}"), format!("y{n}")]) {
        ensure!(listed.contains(&format!("\"{name}\"")), "{name} is missing: {listed}");
    }
    let addresses: Vec<&str> =
        listed.split('"').filter(|word| word.starts_with("10.99.")).collect();
    let mut unique = addresses.clone();
    unique.sort_unstable();
    unique.dedup();
    ensure!(unique.len() == addresses.len() && unique.len() >= 24, "{listed}");
    Ok(())
}
