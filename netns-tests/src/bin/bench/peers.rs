//! Who is measured, and how each is brought up between two hosts.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use netns_tests::clock::wait_until;
use netns_tests::command::Background;
use netns_tests::lab::ANN;

use crate::measures::PORTS;
use crate::options::{Device, Options};
use crate::pair::{PEERS, Pair, SIDES, UNDERLAY, peers_directory};

/// Overlay addresses of the WireGuard programs; a /24.
const OVERLAY: [&str; 2] = ["10.88.0.1", "10.88.0.2"];

/// Where tunnels receive on the underlay.
const PORT: u16 = 51820;

/// What `ssh -L` adds to a port at its near end.
const SSH_SHIFT: u16 = 1000;

/// Old kernels' limit for socket buffers, which only root can change.
const HELD: u32 = 212_992;

/// Long enough for any tunnel on a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// Somebody who is measured.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// As tables call it.
    pub(crate) name: String,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Bare,
    WireGuard { program: &'static str, options: &'static str },
    Ssh,
    Clusternet { options: Options },
}

/// A tunnel between two hosts that has been seen to carry packets.
pub(crate) struct Tunnel {
    /// Where programs on `a` reach those on `b`.
    pub(crate) target: String,
    /// What is typed before a command to run it inside.
    pub(crate) prefix: &'static str,
    /// What is added to a port at the near end.
    pub(crate) port_shift: u16,
    /// Whether it carries packets, and not only connections.
    pub(crate) carries_packets: bool,
    _running: Vec<Background>,
}

impl Peer {
    /// The peer called `name`, under the options of this run.
    pub(crate) fn named(name: &str, options: &Options) -> Result<Self> {
        let wireguard = |program, options| Kind::WireGuard { program, options };
        let rust = "--disable-drop-privileges --foreground";
        let kind = match name {
            "bare" => Kind::Bare,
            "boringtun" => wireguard("boringtun-cli", rust),
            "gotatun" => wireguard("gotatun", rust),
            "wireguard-go" => wireguard("wireguard-go-trixie", "-f"),
            "wireguard-go-old" => wireguard("wireguard-go", "-f"),
            "ssh" => Kind::Ssh,
            _ => {
                let mut words = name.split('-');
                if words.next() != Some("clusternet") {
                    bail!("there is no peer {name}");
                }
                let mut options = options.clone();
                for word in words {
                    match word {
                        "chacha" => options.suite = Some("chacha20poly1305".to_owned()),
                        "packet" => options.device = Device::Packet,
                        "held" => options.buffers = Some(HELD),
                        _ => bail!("there is no variant {word} of clusternet"),
                    }
                }
                Kind::Clusternet { options }
            }
        };
        Ok(Self { name: name.to_owned(), kind })
    }

    /// The options that its hosts are made with.
    pub(crate) const fn options<'o>(&'o self, run: &'o Options) -> &'o Options {
        match &self.kind {
            Kind::Clusternet { options } => options,
            Kind::Bare | Kind::WireGuard { .. } | Kind::Ssh => run,
        }
    }

    /// Whether NetPIPE over PVM and MPI is measured: only where hosts have the tunnel as their one network.
    pub(crate) const fn runs_programs(&self) -> bool {
        matches!(self.kind, Kind::Bare | Kind::Clusternet { .. })
    }

    /// Its version, or why it cannot be measured.
    pub(crate) fn version(&self) -> Result<String> {
        let (program, option) = match &self.kind {
            Kind::Bare => ("uname", "-r"),
            Kind::WireGuard { program, .. } => (*program, "--version"),
            Kind::Ssh => ("ssh", "-V"),
            Kind::Clusternet { .. } => ("clusternet", "--version"),
        };
        let path = match &self.kind {
            Kind::Clusternet { .. } => netns_tests::binaries::path(program)?,
            Kind::Ssh if !sshd_paths()?.iter().any(|path| Path::new(path).is_file()) => {
                bail!("sshd is not installed")
            }
            Kind::Bare | Kind::WireGuard { .. } | Kind::Ssh => find(program)?,
        };
        let output = std::process::Command::new(&path)
            .arg(option)
            .env("WG_PROCESS_FOREGROUND", "1")
            .output()
            .with_context(|| format!("run {}", path.display()))?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        let version = said.lines().next().unwrap_or_default().trim().to_owned();
        // From this release on it has the offloads, and is what the other name stands for.
        if self.name == "wireguard-go-old" && !version.contains("v0.0.2022") {
            bail!("the wireguard-go installed here is {version}, no old one");
        }
        Ok(version)
    }

    /// Brings it up between the hosts of `pair`.
    pub(crate) fn up(&self, pair: &Pair, mtu: u16) -> Result<Tunnel> {
        match &self.kind {
            Kind::Bare => {
                let tunnel = Tunnel::to(UNDERLAY[1]);
                tunnel.wait_for_ping(pair)?;
                Ok(tunnel)
            }
            Kind::WireGuard { program, options } => wireguard(pair, program, options, mtu),
            Kind::Ssh => ssh(pair),
            Kind::Clusternet { options } => clusternet(pair, options),
        }
    }
}

impl Tunnel {
    fn to(target: &str) -> Self {
        Self {
            target: target.to_owned(),
            prefix: "",
            port_shift: 0,
            carries_packets: true,
            _running: Vec::new(),
        }
    }

    fn wait_for_ping(&self, pair: &Pair) -> Result<()> {
        let script = format!("{}ping -c1 -W1 {}", self.prefix, self.target);
        wait_until("the tunnel to carry a packet", SOON, || {
            let outcome = pair.user("a", &script).run()?;
            ensure!(outcome.status.success(), "{outcome}");
            Ok(Some(()))
        })
    }
}

/// Where this machine has a program: what was fetched for the bench goes first.
fn find(program: &str) -> Result<std::path::PathBuf> {
    let own = peers_directory()?.join("bin");
    let places = [own.as_path(), Path::new("/usr/bin"), Path::new("/usr/sbin"), Path::new("/bin")];
    let found = places.iter().map(|place| place.join(program)).find(|path| path.is_file());
    found.with_context(|| format!("{program} is not installed"))
}

/// Any WireGuard program that `wg` can configure.
fn wireguard(pair: &Pair, program: &str, options: &str, mtu: u16) -> Result<Tunnel> {
    // Headers of IPv6, UDP and WireGuard, and its padding: 80 bytes, as everybody reckons.
    let mtu = mtu - 80;
    let path = format!("{PEERS}/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    let mut running = Vec::new();
    for side in SIDES {
        let daemon = pair
            .root(side, &format!("exec {program} {options} wg0"))
            .env("PATH", &path)
            .env("WG_LOG_LEVEL", "error")
            .env("LOG_LEVEL", "error")
            .env("WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD", "1")
            .spawn()?;
        wait_until("wg0", SOON, || {
            let outcome = pair.root(side, "wg show wg0 && ip link show wg0").run()?;
            Ok(outcome.status.success().then_some(()))
        })
        .with_context(|| daemon.so_far())?;
        running.push(daemon);
    }
    let mut public = Vec::new();
    for side in SIDES {
        let script = "umask 077; wg genkey > /run/wg.key; wg pubkey < /run/wg.key";
        public.push(pair.root(side, script).ok()?.trim().to_owned());
    }
    for (own, side) in SIDES.into_iter().enumerate() {
        let other = 1 - own;
        let script = format!(
            "set -e
            wg set wg0 private-key /run/wg.key listen-port {PORT} peer {} endpoint {}:{PORT} allowed-ips {}/32
            ip addr add {}/24 dev wg0
            ip link set wg0 mtu {mtu} up",
            public[other], UNDERLAY[other], OVERLAY[other], OVERLAY[own]
        );
        pair.root(side, &script).ok()?;
    }
    let tunnel = Tunnel { _running: running, ..Tunnel::to(OVERLAY[1]) };
    tunnel.wait_for_ping(pair)?;
    Ok(tunnel)
}

/// One connection that ssh forwards; it carries no packets.
fn ssh(pair: &Pair) -> Result<Tunnel> {
    let mut running = vec![ssh_server(pair)?];
    let forwards: String = PORTS
        .iter()
        .map(|port| format!(" -L 127.0.0.1:{}:127.0.0.1:{port}", port + SSH_SHIFT))
        .collect();
    let client = pair.user("a", &format!("exec ~/rsh -N{forwards} b")).spawn()?;
    for port in PORTS {
        pair.wait_for_listener("a", "", port + SSH_SHIFT).with_context(|| client.so_far())?;
    }
    running.push(client);
    Ok(Tunnel {
        port_shift: SSH_SHIFT,
        carries_packets: false,
        _running: running,
        ..Tunnel::to("127.0.0.1")
    })
}

/// Where sshd may be on this machine.
fn sshd_paths() -> Result<[String; 2]> {
    let unpacked = peers_directory()?.join("sshd/usr/sbin/sshd");
    Ok(["/usr/sbin/sshd".to_owned(), unpacked.display().to_string()])
}

/// An ssh server on `b` that lets in its own user, and `~/rsh` on `a` that asks it.
pub(crate) fn ssh_server(pair: &Pair) -> Result<Background> {
    let port = 2222;
    let key = pair.user("a", "ssh-keygen -q -t ed25519 -N '' -f ~/id && cat ~/id.pub").ok()?;
    let rsh = format!(
        "#!/bin/sh\nexec ssh -F none -i $HOME/id -p {port} -o BatchMode=yes -o LogLevel=ERROR \
         -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \"$@\"\n"
    );
    // Open MPI looks for it on every host.
    for side in SIDES {
        pair.lab().on(side).write_file(ANN, "rsh", 0o755, rsh.as_bytes())?;
    }
    pair.lab().on("b").write_file(ANN, "authorized", 0o600, key.as_bytes())?;
    let script = format!(
        "set -e
        ssh-keygen -q -t ed25519 -N '' -f ~/hostkey
        sshd=/usr/sbin/sshd
        [ -x $sshd ] || export LD_LIBRARY_PATH=$(echo {PEERS}/sshd/usr/lib/*-linux-gnu)
        [ -x $sshd ] || sshd={PEERS}/sshd/usr/sbin/sshd
        exec $sshd -D -e -f /dev/null -h ~/hostkey -o Port={port} -o AuthorizedKeysFile=$HOME/authorized \
            -o StrictModes=no -o UsePAM=no -o PidFile=none"
    );
    let mut server = pair.user("b", &script).spawn()?;
    server.wait_for("Server listening", SOON.as_secs())?;
    Ok(server)
}

/// Ours, by the commands that a user types.
fn clusternet(pair: &Pair, options: &Options) -> Result<Tunnel> {
    let network = "bench";
    let endpoint = format!("udp://{}:{PORT}", UNDERLAY[0]);
    pair.user("a", &format!("clusternet init {network} --master a --endpoint {endpoint}")).ok()?;
    pair.user("a", &format!("clusternet issue b --dir {network}")).ok()?;
    let mut lines = options.node.clone();
    lines.extend(options.suite.iter().map(|suite| format!("suite = \"{suite}\"")));
    lines.extend(options.buffers.iter().map(|bytes| format!("socket-buffer = {bytes}")));
    if !lines.is_empty() {
        let table = format!("\n[node]\n{}\n", lines.join("\n"));
        pair.user("a", &format!("cat >> {network}/master.toml")).stdin(table).ok()?;
    }
    pair.user("b", &format!("mkdir -p {network}")).ok()?;
    for (file, mode) in [("master.toml", 0o644), ("b.key", 0o600)] {
        let path = format!("{network}/{file}");
        let text = pair.lab().on("a").read_file(ANN, &path)?;
        pair.lab().on("b").write_file(ANN, &path, mode, text.as_bytes())?;
    }
    for side in SIDES {
        pair.user(side, &format!("clusternet join {network}/master.toml")).ok()?;
    }
    let status = pair.user("b", "clusternet status --json").ok()?;
    let status: clusternet::api::Status =
        serde_json::from_str(&status).context("read the status of b")?;
    let tunnel =
        Tunnel { prefix: "clusternet run -- ", ..Tunnel::to(&status.node.ipv4.to_string()) };
    tunnel.wait_for_ping(pair)?;
    Ok(tunnel)
}

/// Names of peers that are somebody else's tunnels of packets, among which the best is sought.
pub(crate) fn is_rival(name: &str) -> bool {
    !is_ours(name) && !["bare", "ssh"].contains(&name)
}

/// Whether a name is clusternet or a variant of it.
pub(crate) fn is_ours(name: &str) -> bool {
    name == "clusternet" || name.starts_with("clusternet-")
}
