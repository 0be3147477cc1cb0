//! A network on a lab: what an admin and the nodes' users type, in one place.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clusternet::api::{NodeStatus, Status};

use crate::campus::{self, HOSTS};
use crate::clock::wait_until;
use crate::command::{Cmd, quote};
use crate::lab::{ANN, Family, Lab, Nat, Tun};

/// Long enough for any path to be found and any news to get around on a busy machine.
pub const SOON: Duration = Duration::from_secs(30);

/// The name of the network that [`Network`] makes.
pub const NETWORK: &str = "lab";

/// A lab and the network [`NETWORK`] on it, whose admin and user is [`ANN`].
pub struct Network {
    /// Where it runs.
    pub lab: Lab,
    /// The host that is the master, and where the admin works.
    master: &'static str,
    /// What each `join` printed, by node.
    pub joined: Vec<(String, String)>,
}

impl Network {
    /// The usual lab with keys handed out and nobody joined.
    ///
    /// # Errors
    ///
    /// The lab cannot be made, or the admin's commands fail.
    pub fn unjoined(family: Family, tun: Tun) -> Result<Self> {
        Self::init(campus::build(family, tun, Nat::RandomPorts)?)
    }

    /// The usual lab with all of its hosts in the network, each sure to have seen every other.
    ///
    /// # Errors
    ///
    /// As [`Self::unjoined`], or a node does not get in.
    pub fn up(family: Family, tun: Tun) -> Result<Self> {
        let mut network = Self::unjoined(family, tun)?;
        network.join_all()?;
        Ok(network)
    }

    /// Begins a network on `head` of the usual lab, issues a key for each host and carries it there.
    ///
    /// # Errors
    ///
    /// One of the admin's commands fails.
    pub fn init(lab: Lab) -> Result<Self> {
        let endpoint = campus::head_endpoint(&lab);
        Self::begin(lab, "head", endpoint, &HOSTS)
    }

    /// Begins a network on `master`, which can be reached at `endpoint`, issues a key for each of `hosts` and
    /// carries it there.
    ///
    /// # Errors
    ///
    /// One of the admin's commands fails.
    pub fn begin(
        lab: Lab,
        master: &'static str,
        endpoint: SocketAddr,
        hosts: &[&str],
    ) -> Result<Self> {
        let network = Self { lab, master, joined: Vec::new() };
        network.admin(&format!(
            "clusternet init {NETWORK} --master {master} --endpoint udp://{endpoint}"
        ))?;
        for node in hosts.iter().filter(|node| **node != master) {
            network.issue(node, "")?;
            network.carry(node, node)?;
        }
        Ok(network)
    }

    /// Writes lines into the `[node]` table of a host that has not joined yet.
    ///
    /// # Errors
    ///
    /// They cannot be written.
    pub fn tune(&self, host: &str, lines: &str) -> Result<()> {
        let script =
            format!("printf '\\n[node]\\n%s\\n' {} >> {NETWORK}/master.toml", quote(lines));
        self.lab.on(host).sh(&script).ok().map(|_| ())
    }

    /// Has the admin issue `node` a key, with further `options`.
    ///
    /// # Errors
    ///
    /// `clusternet issue` fails.
    pub fn issue(&self, node: &str, options: &str) -> Result<String> {
        self.admin(&format!("clusternet issue {node} --dir {NETWORK} {options}"))
    }

    /// Runs a command of the admin's, on the master.
    ///
    /// # Errors
    ///
    /// It fails.
    pub fn admin(&self, script: &str) -> Result<String> {
        self.lab.on(self.master).sh(script).ok()
    }

    /// Copies `master.toml` and the key of `node` to `host`, as a person would with scp.
    ///
    /// # Errors
    ///
    /// They cannot be read or written.
    pub fn carry(&self, node: &str, host: &str) -> Result<()> {
        self.carry_for(ANN, node, host)
    }

    /// The same into the home of another user.
    ///
    /// # Errors
    ///
    /// They cannot be read or written.
    pub fn carry_for(&self, user: &str, node: &str, host: &str) -> Result<()> {
        self.lab.on(host).sh(&format!("mkdir -p {NETWORK}")).user(user).ok()?;
        for (file, mode) in [("master.toml".to_owned(), 0o644), (format!("{node}.key"), 0o600)] {
            let path = format!("{NETWORK}/{file}");
            let text = self.lab.on(self.master).read_file(ANN, &path)?;
            self.lab.on(host).write_file(user, &path, mode, text.as_bytes())?;
        }
        Ok(())
    }

    /// Joins every host and waits until each knows every other.
    ///
    /// # Errors
    ///
    /// A node does not get in, or does not hear of another.
    pub fn join_all(&mut self) -> Result<()> {
        for node in HOSTS {
            self.join(node)?;
        }
        for node in HOSTS {
            self.wait_for_roster(node, &HOSTS)?;
        }
        Ok(())
    }

    /// Joins one host; what `join` printed is kept in [`Self::joined`].
    ///
    /// # Errors
    ///
    /// `join` fails, or does not let go of its output.
    pub fn join(&mut self, node: &str) -> Result<String> {
        let outcome =
            self.lab.on(node).sh(&format!("clusternet join {NETWORK}/master.toml")).run()?;
        ensure!(outcome.status.success(), "{outcome}\n{}", self.log(node));
        ensure!(!outcome.held_open, "the daemon holds the output of join open\n{outcome}");
        self.joined.retain(|(name, _)| name != node);
        self.joined.push((node.to_owned(), outcome.stdout.clone()));
        Ok(outcome.stdout)
    }

    /// Stops one node.
    ///
    /// # Errors
    ///
    /// `leave` fails.
    pub fn leave(&self, node: &str) -> Result<String> {
        self.lab.on(node).sh("clusternet leave").ok()
    }

    /// `clusternet run -- COMMAND` on a node, words as the shell there reads them.
    pub fn inside(&self, node: &str, command: &str) -> Cmd<'_> {
        self.lab.on(node).sh(&format!("clusternet run -- {command}"))
    }

    /// A shell script inside, on a node.
    pub fn inside_sh(&self, node: &str, script: &str) -> Cmd<'_> {
        self.inside(node, &format!("bash -c {}", quote(script)))
    }

    /// What `clusternet status --json` says on a node.
    ///
    /// # Errors
    ///
    /// It fails or is not what the library says it is.
    pub fn status(&self, node: &str) -> Result<Status> {
        let text = self.lab.on(node).sh("clusternet status --json").ok()?;
        serde_json::from_str(&text).with_context(|| format!("read the status {text}"))
    }

    /// How one node sees another.
    ///
    /// # Errors
    ///
    /// It does not know it.
    pub fn seen(&self, from: &str, node: &str) -> Result<NodeStatus> {
        let status = self.status(from)?;
        status
            .peers
            .into_iter()
            .find(|peer| peer.name.as_str() == node)
            .with_context(|| format!("{from} does not know {node}"))
    }

    /// Waits until `node` knows all of `nodes`.
    ///
    /// # Errors
    ///
    /// It does not hear of one.
    pub fn wait_for_roster(&self, node: &str, nodes: &[&str]) -> Result<()> {
        wait_until(&format!("{node} to know {nodes:?}"), SOON, || {
            let status = self.status(node)?;
            let knows = |name: &str| {
                status.node.name.as_str() == name
                    || status.peers.iter().any(|peer| peer.name.as_str() == name)
            };
            Ok(nodes.iter().all(|name| knows(name)).then_some(()))
        })
    }

    /// Waits until one node sees another as `holds` wants it.
    ///
    /// # Errors
    ///
    /// It does not come to that; how it was seen last is in the message.
    pub fn wait_seen(
        &self,
        from: &str,
        node: &str,
        what: &str,
        limit: Duration,
        holds: impl Fn(&NodeStatus) -> bool,
    ) -> Result<NodeStatus> {
        wait_until(&format!("{from} to see {node} {what}"), limit, || {
            let seen = self.seen(from, node)?;
            if holds(&seen) {
                return Ok(Some(seen));
            }
            anyhow::bail!("last seen: state {}, path {:?}", seen.state, seen.path)
        })
    }

    /// The overlay address of a node, by family.
    ///
    /// # Errors
    ///
    /// The node is not up.
    pub fn overlay(&self, node: &str, family: Family) -> Result<String> {
        let own = self.status(node)?.node;
        Ok(match family {
            Family::V4 => own.ipv4.to_string(),
            Family::V6 => own.ipv6.to_string(),
        })
    }

    /// The daemon's log on a node, for messages.
    pub fn log(&self, node: &str) -> String {
        let script = "cat ${XDG_STATE_HOME:-$HOME/.local/state}/clusternet/*/log* \
                      ${XDG_STATE_HOME:-$HOME/.local/state}/clusternet/*log* \
                      ${XDG_STATE_HOME:-$HOME/.local/state}/clusternet/*/*/*log* 2>/dev/null \
                      | tail -n 60";
        match self.lab.on(node).sh(script).run() {
            Ok(outcome) => format!("--- log of {node}:\n{}", outcome.stdout),
            Err(error) => format!("--- log of {node}: {error:#}"),
        }
    }

    /// Fails unless a user has no process of ours, no mount, namespace, or runtime file on a host.
    ///
    /// # Errors
    ///
    /// Says what is left.
    pub fn nothing_left(&self, host: &str) -> Result<()> {
        wait_until(&format!("nothing to be left on {host}"), SOON, || {
            let left = self.leftovers(host)?;
            ensure!(left.is_empty(), "left: {left:#?}");
            Ok(Some(()))
        })
    }

    fn leftovers(&self, host: &str) -> Result<Vec<String>> {
        let machine = self.lab.on(host);
        let mut left: Vec<String> = machine
            .processes()?
            .into_iter()
            .filter(|line| line.contains("clusternet") || line.contains("/run/lab/programs"))
            .collect();
        // Namespaces are ours where a process is in another network than the host's first one.
        let script = "own=$(readlink /proc/1/ns/net)
            for process in /proc/[0-9]*; do
              net=$(readlink $process/ns/net) || continue
              [ -z \"$net\" ] || [ \"$net\" = \"$own\" ] || echo \"namespace of $(cat $process/comm)\"
            done
            grep clusternet /proc/mounts | grep -v -e ' /usr/local/bin/' -e ' /run/lab/' | sed 's/^/mount: /'
            find /run/user /tmp /dev/shm /run/lock ! -type d -path '*clusternet*' 2>/dev/null | sed 's/^/file: /'
            true";
        left.extend(machine.sh(script).root().ok()?.lines().map(str::to_owned));
        Ok(left)
    }
}
