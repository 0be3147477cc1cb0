//! Hosts, routers and the cables between them.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::binaries;
use crate::command::Cmd;
use crate::host_init::{MARK, Spec, SpecUser};

/// The one internet protocol that the underlay of a lab speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4 alone.
    V4,
    /// IPv6 alone.
    V6,
}

/// What a router does to what goes out through its uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nat {
    /// Nothing: it routes.
    None,
    /// Masquerade that keeps the source port where it can, so that one local port has one outer
    /// port whatever the destination, and lets in only answers.
    KeepsPorts,
    /// Masquerade with a random port for every flow: what one peer sees says nothing about what
    /// another will see.
    RandomPorts,
}

/// Which way into its namespace a host offers to ordinary users.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tun {
    /// `/dev/net/tun` can be opened by everybody, as distributions have it.
    Open,
    /// Only root can open it.
    RootOnly,
}

/// Somebody with an account on a host.
#[derive(Clone, Debug)]
pub struct User {
    /// Login name.
    pub name: String,
    /// User and group number.
    pub uid: u32,
}

/// The owner of the cluster's jobs in every lab, on every host.
pub const ANN: &str = "ann";
/// Another person with an account on the same hosts.
pub const BOB: &str = "bob";

/// Numbers that Debian gives to nobody.
const FIRST_UID: u32 = 41_001;

/// A set of hosts and networks. Dropping it ends everything in it.
pub struct Lab {
    family: Family,
    tun: Tun,
    lans: Vec<Lan>,
    hosts: Vec<Host>,
    /// More directories of this machine that every host shows, and under which name.
    shares: Vec<(PathBuf, String)>,
}

/// A bridge in a router's namespace.
struct Lan {
    name: String,
    router: usize,
    prefixes: Prefixes,
    members: usize,
}

/// The addresses of a LAN are these texts followed by a number; the router's number is 1.
#[derive(Clone, Copy)]
pub struct Prefixes {
    /// Such as `192.168.1.`; a /24.
    pub v4: &'static str,
    /// Such as `fd00:1::`; a /64.
    pub v6: &'static str,
}

impl Prefixes {
    fn address(self, family: Family, number: u8) -> String {
        match family {
            Family::V4 => format!("{}{number}", self.v4),
            Family::V6 => format!("{}{number:x}", self.v6),
        }
    }

    const fn length(family: Family) -> u8 {
        match family {
            Family::V4 => 24,
            Family::V6 => 64,
        }
    }
}

/// A machine of the lab.
pub struct Host {
    name: String,
    users: Vec<User>,
    address: Option<IpAddr>,
    pid: u32,
    /// Holds the namespaces; they end with it.
    holder: Child,
}

impl Lab {
    /// A lab without hosts whose underlay speaks `family` alone.
    pub const fn new(family: Family, tun: Tun) -> Self {
        Self { family, tun, lans: Vec::new(), hosts: Vec::new(), shares: Vec::new() }
    }

    /// Which protocol the underlay speaks.
    pub const fn family(&self) -> Family {
        self.family
    }

    /// Shows a directory of this machine at `/run/lab/NAME` of every host added from now on.
    pub fn share(&mut self, directory: PathBuf, name: &str) {
        self.shares.push((directory, name.to_owned()));
    }

    /// Adds a router. Without an uplink it is the internet.
    ///
    /// # Errors
    ///
    /// It cannot be made.
    pub fn router(&mut self, name: &str, uplink: Option<(&str, u8)>, nat: Nat) -> Result<()> {
        let forwarding = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"];
        self.start(name, &[], &forwarding)?;
        if let Some((lan, number)) = uplink {
            self.attach(name, lan, number)?;
        }
        let masquerade = match nat {
            Nat::None => return Ok(()),
            Nat::KeepsPorts => "masquerade",
            Nat::RandomPorts => "masquerade random,fully-random",
        };
        self.firewall(
            name,
            &format!(
                "table inet nat {{
                  chain out {{
                    type nat hook postrouting priority srcnat;
                    oifname \"eth0\" {masquerade}
                  }}
                  chain through {{
                    type filter hook forward priority filter; policy drop;
                    ct state established,related accept
                    iifname != \"eth0\" accept
                  }}
                  chain in {{
                    type filter hook input priority filter; policy drop;
                    ct state established,related accept
                    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
                    iifname != \"eth0\" accept
                  }}
                }}"
            ),
        )
    }

    /// Adds a LAN behind a router.
    ///
    /// # Errors
    ///
    /// There is no such router.
    pub fn lan(&mut self, name: &str, router: &str, prefixes: Prefixes) -> Result<()> {
        let index = self.index(router)?;
        let bridge = format!("br-{name}");
        let (address, length) = (prefixes.address(self.family, 1), Prefixes::length(self.family));
        self.ip(
            router,
            &format!(
                "link add {bridge} type bridge\n\
                 link set {bridge} up\n\
                 addr add {address}/{length} dev {bridge}{}\n",
                self.nodad()
            ),
        )?;
        self.lans.push(Lan { name: name.to_owned(), router: index, prefixes, members: 0 });
        Ok(())
    }

    /// Adds a host with accounts for [`ANN`] and [`BOB`], cabled to a LAN, at its address `number`.
    ///
    /// # Errors
    ///
    /// It cannot be made.
    pub fn host(&mut self, name: &str, lan: &str, number: u8) -> Result<()> {
        self.start(name, &[ANN, BOB], &[])?;
        self.attach(name, lan, number)
    }

    /// Adds a host with accounts for [`ANN`] and [`BOB`] and no cable, for [`Self::ip`] to lay one.
    ///
    /// # Errors
    ///
    /// It cannot be made.
    pub fn lone_host(&mut self, name: &str) -> Result<()> {
        self.start(name, &[ANN, BOB], &[])
    }

    /// Loads an nftables ruleset on a host, beside those it has.
    ///
    /// # Errors
    ///
    /// nft refuses it.
    pub fn firewall(&self, host: &str, rules: &str) -> Result<()> {
        let host = self.get(host)?;
        feed(host.nsenter_net().args(["nft", "-f", "-"]), rules)
            .with_context(|| format!("load the firewall of {}", host.name))
    }

    /// Pulls the cable of a host, or puts it back.
    ///
    /// # Errors
    ///
    /// There is no such host.
    pub fn cable(&self, host: &str, plugged: bool) -> Result<()> {
        // The router's end, as a real cable would show: the host keeps its address and routes.
        let lan = self.lans.iter().find(|lan| {
            self.get(host).ok().and_then(|h| h.address).is_some_and(|address| {
                address.to_string().starts_with(match self.family {
                    Family::V4 => lan.prefixes.v4,
                    Family::V6 => lan.prefixes.v6,
                })
            })
        });
        let lan = lan.with_context(|| format!("{host} is on no LAN"))?;
        let router = self.hosts[lan.router].name.clone();
        let state = if plugged { "up" } else { "down" };
        self.ip(&router, &format!("link set to-{host} {state}\n"))
    }

    /// The host called `name`.
    ///
    /// # Panics
    ///
    /// There is none: the test is wrong.
    pub fn on(&self, name: &str) -> &Host {
        match self.get(name) {
            Ok(host) => host,
            Err(error) => panic!("{error:#}"),
        }
    }

    fn get(&self, name: &str) -> Result<&Host> {
        self.index(name).map(|index| &self.hosts[index])
    }

    fn index(&self, name: &str) -> Result<usize> {
        self.hosts
            .iter()
            .position(|host| host.name == name)
            .with_context(|| format!("the lab has no {name}"))
    }

    fn start(&mut self, name: &str, users: &[&str], switched_on: &[&str]) -> Result<()> {
        let users: Vec<User> = users
            .iter()
            .zip(FIRST_UID..)
            .map(|(name, uid)| User { name: (*name).to_owned(), uid })
            .collect();
        let mut sysctls: Vec<(String, String)> =
            switched_on.iter().map(|name| ((*name).to_owned(), "1".to_owned())).collect();
        // No IPv6 where the underlay has none; else no waiting for duplicates of addresses.
        let (setting, value) = match self.family {
            Family::V4 => ("disable_ipv6", "1"),
            Family::V6 => ("accept_dad", "0"),
        };
        for scope in ["all", "default"] {
            sysctls.push((format!("net/ipv6/conf/{scope}/{setting}"), value.to_owned()));
        }
        let mut binaries = binaries::BINARIES
            .iter()
            .map(|name| binaries::path(name))
            .collect::<Result<Vec<PathBuf>>>()?;
        let own = binaries::target_directory()?;
        binaries
            .extend(binaries::TOOLS.map(|tool| own.join(tool)).into_iter().filter(|p| p.exists()));
        let mut shares = self.shares.clone();
        for directory in ["programs", "tools"] {
            shares.push((binaries::cache_directory(directory)?, directory.to_owned()));
        }
        let spec = Spec {
            hostname: name.to_owned(),
            users: users
                .iter()
                .map(|user| SpecUser { name: user.name.clone(), uid: user.uid })
                .collect(),
            tun_mode: match self.tun {
                Tun::Open => 0o666,
                Tun::RootOnly => 0o600,
            },
            hosts: format!("127.0.0.1\tlocalhost\n127.0.1.1\t{name}\n::1\tlocalhost\n"),
            sysctls,
            binaries,
            shares,
        };
        let host = Host::start(name, users, &spec).with_context(|| format!("start {name}"))?;
        self.hosts.push(host);
        self.ip(name, "link set lo up\n")
    }

    /// Lays a cable from a LAN's bridge to a new `eth0`.
    fn attach(&mut self, host: &str, lan: &str, number: u8) -> Result<()> {
        let (family, nodad) = (self.family, self.nodad());
        let pid = self.get(host)?.pid;
        let lan = self
            .lans
            .iter_mut()
            .find(|candidate| candidate.name == lan)
            .with_context(|| format!("the lab has no LAN {lan}"))?;
        lan.members += 1;
        let (bridge, prefixes) = (format!("br-{}", lan.name), lan.prefixes);
        let router = self.hosts[lan.router].name.clone();
        self.ip(
            &router,
            &format!(
                "link add to-{host} type veth peer name eth0 netns {pid}\n\
                 link set to-{host} master {bridge}\n\
                 link set to-{host} up\n"
            ),
        )?;
        let (address, gateway) = (prefixes.address(family, number), prefixes.address(family, 1));
        let length = Prefixes::length(family);
        self.ip(
            host,
            &format!(
                "link set eth0 up\n\
                 addr add {address}/{length} dev eth0{nodad}\n\
                 route add default via {gateway}\n"
            ),
        )?;
        let address = address.parse().with_context(|| format!("read the address {address}"))?;
        let index = self.index(host)?;
        self.hosts[index].address = Some(address);
        Ok(())
    }

    /// Runs lines of `ip -batch` in the network of a host, with the machine's process numbers.
    ///
    /// # Errors
    ///
    /// `ip` refuses one.
    pub fn ip(&self, host: &str, lines: &str) -> Result<()> {
        let host = self.get(host)?;
        feed(host.nsenter_net().args(["ip", "-batch", "-"]), lines)
            .with_context(|| format!("configure the network of {}", host.name))
    }

    /// Addresses are usable at once: nobody else has them.
    const fn nodad(&self) -> &'static str {
        match self.family {
            Family::V4 => "",
            Family::V6 => " nodad",
        }
    }
}

impl Host {
    fn start(name: &str, users: Vec<User>, spec: &Spec) -> Result<Self> {
        let mut holder = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare"])
            .args(["--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"])
            .arg(std::env::current_exe().context("find this executable")?)
            .arg(MARK)
            .arg(serde_json::to_string(spec).context("describe the host")?)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("start its first process")?;
        let mut line = String::new();
        let mut output = BufReader::new(holder.stdout.take().context("no output")?);
        output.read_line(&mut line).context("wait for its first process")?;
        let Some(pid) = line.trim().strip_prefix("ready ") else {
            holder.kill().ok();
            holder.wait().ok();
            bail!("its first process ended at once");
        };
        let pid = pid.parse().context("read the number of its first process")?;
        Ok(Self { name: name.to_owned(), users, address: None, pid, holder })
    }

    /// Its name, in the lab and its own.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Who has an account here.
    pub fn users(&self) -> &[User] {
        &self.users
    }

    /// Number of the user called `name`.
    ///
    /// # Panics
    ///
    /// There is none: the test is wrong.
    pub fn uid(&self, name: &str) -> u32 {
        match self.users.iter().find(|user| user.name == name) {
            Some(user) => user.uid,
            None => panic!("{} has no user {name}", self.name),
        }
    }

    /// Its address on the underlay.
    ///
    /// # Panics
    ///
    /// It has none: the test is wrong.
    pub fn address(&self) -> IpAddr {
        match self.address {
            Some(address) => address,
            None => panic!("{} is on no network", self.name),
        }
    }

    /// A shell command to be run here, by its first user unless said otherwise.
    pub fn sh(&self, script: &str) -> Cmd<'_> {
        Cmd::new(self, script)
    }

    /// Puts a file into a directory of a user's, readable by its owner alone unless `mode` says
    /// otherwise.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn write_file(&self, user: &str, path: &str, mode: u32, bytes: &[u8]) -> Result<()> {
        self.sh(&format!("umask 077 && cat > '{path}' && chmod {mode:o} '{path}'"))
            .user(user)
            .stdin(bytes)
            .ok()
            .map(|_| ())
    }

    /// Reads a file that a user can read.
    ///
    /// # Errors
    ///
    /// It cannot be read.
    pub fn read_file(&self, user: &str, path: &str) -> Result<String> {
        self.sh(&format!("cat '{path}'")).user(user).ok()
    }

    /// Every process on the host but the first, as `PID UID COMMAND LINE`.
    ///
    /// # Errors
    ///
    /// They cannot be listed.
    pub fn processes(&self) -> Result<Vec<String>> {
        let list = self.sh("ps -e -o pid=,uid=,args= --no-headers").root().ok()?;
        Ok(list
            .lines()
            .map(str::trim)
            .filter(|line| !line.starts_with("1 "))
            .filter(|line| !line.contains("ps -e -o pid="))
            .map(str::to_owned)
            .collect())
    }

    /// The command by which root gets a login shell of its first user here, from another terminal.
    pub fn enter_by_hand(&self) -> String {
        let pid = self.pid;
        let Some(User { name, uid }) = self.users.first() else {
            return format!("nsenter -t {pid} -n -m -u -i -p");
        };
        format!(
            "nsenter -t {pid} -n -m -u -i -p setpriv --reuid {uid} --regid {uid} --init-groups \
             env -i HOME=/home/{name} USER={name} XDG_RUNTIME_DIR=/run/user/{uid} TERM=$TERM bash -l"
        )
    }

    /// The machine's number of its first process, whose namespaces are the host's.
    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// A command in the host's network, but among the machine's files and processes.
    fn nsenter_net(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid.to_string(), "--net", "--"]);
        command
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.holder.kill().ok();
        self.holder.wait().ok();
    }
}

/// Runs a command with `input`, and fails with what it printed.
fn feed(command: &mut Command, input: &str) -> Result<()> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {command:?}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).context("write its input")?;
    }
    let output = child.wait_with_output().context("wait for it")?;
    let mut text = String::new();
    write!(text, "{}", String::from_utf8_lossy(&output.stdout)).ok();
    write!(text, "{}", String::from_utf8_lossy(&output.stderr)).ok();
    ensure!(output.status.success(), "{command:?}: {}: {text}\n{input}", output.status);
    Ok(())
}
