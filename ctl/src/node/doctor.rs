//! `doctor`: what this machine allows, what is installed, and the line an administrator could change.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use clusternet::sys::probe::{self, Probe};
use nix::sys::statfs::{CODA_SUPER_MAGIC, FsType, NFS_SUPER_MAGIC, SMB_SUPER_MAGIC, statfs};
use serde::Serialize;

use super::Doctor;
use crate::{exit, output, place};

/// A program that does not say its version in this time has no version.
const VERSION_PATIENCE: Duration = Duration::from_secs(3);

/// Programs that are known to run over the network, how they tell their version, and their Debian packages.
const PROGRAMS: [(&str, &[&str], &str); 6] = [
    ("ssh", &["-V"], "openssh-client"),
    ("pvm", &[], "pvm"),
    ("mpirun.openmpi", &["--version"], "openmpi-bin"),
    ("mpirun.mpich", &["--version"], "mpich"),
    ("mpirun.lam", &["-V"], "lam-runtime"),
    ("iperf3", &["--version"], "iperf3"),
];

/// Everything that was found.
#[derive(Debug, Serialize)]
struct Findings {
    version: &'static str,
    /// How a node would run here.
    tier: String,
    /// Whether a node can run here.
    ok: bool,
    probes: Vec<Probe>,
    programs: Vec<Program>,
    places: Vec<Place>,
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Program {
    name: &'static str,
    path: Option<PathBuf>,
    version: Option<String>,
    package: &'static str,
}

#[derive(Debug, Serialize)]
struct Place {
    what: &'static str,
    path: PathBuf,
}

/// Tries everything; 0 where a node can run.
pub(super) fn run(arguments: &Doctor) -> anyhow::Result<u8> {
    let findings = Findings::collect()?;
    if arguments.json {
        output::say_json(&findings)?;
    } else {
        findings.show()?;
    }
    Ok(if findings.ok { 0 } else { exit::NO })
}

impl Findings {
    fn collect() -> anyhow::Result<Self> {
        // First: it forks, which wants a process with one thread.
        let probes = probe::all().context("try what this machine allows")?;
        let works = |name: &str| probes.iter().any(|probe| probe.name == name && probe.ok);
        let [user, tun, packet, namespace, ..] = probe::NAMES;
        let ok = works(user) && works(namespace);
        let tier = match (ok, works(tun), works(packet)) {
            (true, true, _) => "a namespace with a TUN device: everything works, at full speed",
            (true, false, true) => {
                "a namespace with a packet socket, because /dev/net/tun cannot be opened: everything works, more slowly"
            }
            (true, false, false) | (false, _, _) => "none: a node cannot run here",
        };
        let mut warnings = Vec::new();
        let mut places = Vec::new();
        let nobody = "doctor".parse().context("name an instance")?;
        for (what, path) in
            [("runtime files", place::runtime(&nobody)), ("state", place::state(&nobody))]
        {
            match path {
                Ok(path) => {
                    places.push(Place { what, path: path.parent().unwrap_or(&path).to_owned() })
                }
                Err(error) => warnings.push(format!("no place for {what}: {error:#}")),
            }
        }
        warnings.extend(key_places().iter().filter_map(|directory| on_network(directory)));
        Ok(Self {
            version: env!("CARGO_PKG_VERSION"),
            tier: tier.to_owned(),
            ok,
            probes,
            programs: PROGRAMS
                .iter()
                .map(|(name, ask, package)| look_for(name, ask, package))
                .collect(),
            places,
            warnings,
        })
    }

    fn show(&self) -> anyhow::Result<()> {
        output::say(format!("clusternet {}\na node here runs in: {}\n", self.version, self.tier))?;
        let mut table = output::table(["TRIED", "", "HOW IT WENT"]);
        for probe in &self.probes {
            let mark = if probe.ok { "ok" } else { "no" };
            table.add_row([probe.name.as_str(), mark, probe.detail.as_str()]);
        }
        output::say_table(table)?;
        output::say("")?;
        let mut table = output::table(["PROGRAM", "VERSION", "WHERE"]);
        for program in &self.programs {
            let missing = || format!("not installed (Debian package {})", program.package);
            table.add_row([
                program.name.to_owned(),
                program.version.clone().unwrap_or_else(|| "-".to_owned()),
                program.path.as_ref().map_or_else(missing, |path| path.display().to_string()),
            ]);
        }
        output::say_table(table)?;
        output::say("")?;
        for place in &self.places {
            output::say(format!("{}: {}", place.what, place.path.display()))?;
        }
        for warning in &self.warnings {
            output::say(format!("warning: {warning}"))?;
        }
        let remedies = self.probes.iter().filter_map(|probe| Some((probe, probe.remedy.as_ref()?)));
        for (probe, remedy) in remedies {
            output::say(format!("an administrator could help ({}): {remedy}", probe.name))?;
        }
        Ok(())
    }
}

fn look_for(name: &'static str, ask: &[&str], package: &'static str) -> Program {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(name)).find(|path| path.is_file());
    let version = found.as_deref().filter(|_| !ask.is_empty()).and_then(|path| version(path, ask));
    Program { name, path: found, version, package }
}

/// The first line with a number in it that a program says, cut to what fits a table.
fn version(program: &Path, ask: &[&str]) -> Option<String> {
    let mut child = Command::new(program)
        .args(ask)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .ok()?;
    let pidfd = clusternet::sys::process::PidFd::open(i32::try_from(child.id()).ok()?).ok()?;
    if !pidfd.wait(VERSION_PATIENCE).unwrap_or(false) {
        let _ = child.kill();
    }
    let output = child.wait_with_output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().find(|line| line.contains(|c: char| c.is_ascii_digit()))?;
    Some(line.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(60).collect())
}

/// Where this user may keep keys.
fn key_places() -> Vec<PathBuf> {
    let here = std::env::current_dir().ok();
    let config = place::config_home().map(|home| home.join("clusternet"));
    let keys = |directory: &PathBuf| {
        std::fs::read_dir(directory).into_iter().flatten().flatten().any(|entry| {
            let path = entry.path();
            path.extension().is_some_and(|extension| extension == "key")
                || path.join("node.key").exists()
        })
    };
    here.into_iter().chain(config).filter(keys).collect()
}

/// A warning where a directory with keys is on a network file system.
fn on_network(directory: &Path) -> Option<String> {
    /// cifs and smb3, which nix does not name; FUSE may be anything, sshfs among it.
    const OTHERS: [(FsType, &str); 3] = [
        (FsType(0xff53_4d42), "CIFS"),
        (FsType(0xfe53_4d42), "SMB"),
        (FsType(0x6573_5546), "FUSE"),
    ];
    let kind = statfs(directory).ok()?.filesystem_type();
    let known = [(NFS_SUPER_MAGIC, "NFS"), (SMB_SUPER_MAGIC, "SMB"), (CODA_SUPER_MAGIC, "Coda")];
    let (_, name) = known.iter().chain(&OTHERS).find(|(magic, _)| *magic == kind)?;
    Some(format!(
        "keys lie on {name}, in {}: whoever may read that file system, its server and its network included, can become this node",
        directory.display()
    ))
}
