//! `join`: checks files, starts the keeper, and waits until the node has been accepted.

use std::{
    io::{BufRead, BufReader, IsTerminal, Write as _},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clusternet::{
    api::{DETACH, Progress, Reply, Request, SecretText, Start},
    config::{MAX_FILE, key::Identity, master::MasterFile},
    sys::{clock, file, poll},
};
use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};

use super::Join;
use crate::{
    Context,
    control::{Instance, PATIENCE},
    exit, keyfile, output, place,
};

/// Making a namespace takes a tenth of a second; a machine under load takes longer.
const BUILD_PATIENCE: Duration = Duration::from_secs(60);

/// The keeper ends its children in 3 s, or kills them.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// Joins; 0 when the node has been accepted, or may come up without.
pub(super) fn run(arguments: &Join, context: Context) -> anyhow::Result<u8> {
    let plan = Plan::make(arguments)?;
    let daemon = find_daemon()?;
    let mut keeper = Keeper::start(&daemon, &plan.start)?;
    let quiet = context.verbose == 0 && !std::io::stderr().is_terminal();
    let came = keeper.wait_until_up(&plan, arguments.wait, quiet)?;
    output::say(plan.summary(&came))?;
    if arguments.foreground { keeper.stay() } else { keeper.let_go() }
}

/// All that is known before anything is started.
struct Plan {
    start: Start,
    master: MasterFile,
    identity: Identity,
    instance: Instance,
}

impl Plan {
    /// Reads and checks the files: whoever could not be accepted is told at once, and nothing is started.
    fn make(arguments: &Join) -> anyhow::Result<Self> {
        let path = &arguments.master;
        let text = file::read_text(path, MAX_FILE)?;
        let master = MasterFile::parse(&text).with_context(|| path.display().to_string())?;
        let found = keyfile::find(path, &master, arguments.key.as_deref())?;
        let identity = found.identity(&master, clock::now().wall)?;
        let name = arguments
            .name
            .clone()
            .or_else(|| master.node.instance.clone())
            .unwrap_or_else(|| master.network.name.clone());
        let start = Start {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            instance: name.clone(),
            runtime: place::runtime(&name)?,
            state: place::state(&name)?,
            master: text,
            key: SecretText(identity.key_file().render()),
            foreground: arguments.foreground,
        };
        let instance = Instance { name, directory: start.runtime.clone() };
        Ok(Self { start, master, identity, instance })
    }

    fn is_master(&self) -> bool {
        self.identity.certificate.roles.is_master()
    }

    /// Whether there is any master to ask beside this node itself.
    fn is_alone(&self) -> bool {
        let own = self.identity.certificate.transport;
        self.is_master() && self.master.network.masters.iter().all(|master| master.transport == own)
    }

    fn summary(&self, came: &Came) -> String {
        let own = &self.identity.certificate;
        let how = match came {
            Came::Accepted { by, path } => format!("accepted by {by}, {path}"),
            Came::Alone => "this is the only master: waiting for others".to_owned(),
            Came::Unanswered => "no member answers yet; this node goes on trying".to_owned(),
        };
        format!(
            "{}: joined network {} as {}\n  addresses  {}, {}\n  answer     {how}",
            self.start.instance,
            self.master.network.name,
            own.name,
            own.ipv4,
            own.ipv6()
        )
    }
}

/// How the node came up.
enum Came {
    /// A member has accepted it.
    Accepted { by: String, path: String },
    /// There is nobody to ask.
    Alone,
    /// Nobody has answered, and it may go on without.
    Unanswered,
}

/// `clusternetd`, beside this program or on PATH, of the same version.
fn find_daemon() -> anyhow::Result<PathBuf> {
    const NAME: &str = "clusternetd";
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join(NAME)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = beside.into_iter().chain(std::env::split_paths(&path).map(|dir| dir.join(NAME)));
    let found = places.into_iter().find(|place| place.is_file());
    let found =
        found.context("clusternetd is neither beside clusternet nor on PATH: install both")?;
    let output = Command::new(&found)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {}", found.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.trim().strip_prefix("clusternetd ").unwrap_or_default().to_owned();
    if version != env!("CARGO_PKG_VERSION") {
        bail!(
            "{} is version {version}, clusternet is {}: the versions must match, install both from one build",
            found.display(),
            env!("CARGO_PKG_VERSION")
        );
    }
    Ok(found)
}

/// The keeper while it is still ours.
struct Keeper {
    child: Child,
    stream: UnixStream,
    reader: BufReader<UnixStream>,
    /// In the foreground: the signals that end it.
    signals: Option<SignalFd>,
}

impl Keeper {
    fn start(daemon: &Path, start: &Start) -> anyhow::Result<Self> {
        let signals = if start.foreground { Some(catch_signals()?) } else { None };
        let (ours, theirs) = UnixStream::pair().context("make a socket pair")?;
        let mut command = Command::new(daemon);
        command.args(["keeper", start.instance.as_str()]).stdin(Stdio::from(OwnedFd::from(theirs)));
        if !start.foreground {
            command.stdout(Stdio::null()).stderr(Stdio::null());
        }
        let child = command.spawn().with_context(|| format!("start {}", daemon.display()))?;
        // It keeps our end of the pair open as long as it lives.
        drop(command);
        let mut line = zeroize::Zeroizing::new(serde_json::to_vec(start)?);
        line.push(b'\n');
        let reader = BufReader::new(ours.try_clone().context("duplicate a socket")?);
        let mut keeper = Self { child, stream: ours, reader, signals };
        // If it has died already, its last words or its status say why.
        let _ = keeper.stream.write_all(&line);
        Ok(keeper)
    }

    fn wait_until_up(&mut self, plan: &Plan, wait: Duration, quiet: bool) -> anyhow::Result<Came> {
        let note = |text: &str| {
            if !quiet {
                let _ = writeln!(std::io::stderr(), "{}: {text}", plan.start.instance);
            }
        };
        let mut refusals = Vec::new();
        let mut may_come_up = plan.is_master();
        let mut deadline = clock::now().instant + BUILD_PATIENCE;
        let mut listening = false;
        loop {
            let Some(progress) = self.next(deadline)? else {
                if !listening {
                    bail!("the daemon has not come up within {} s", BUILD_PATIENCE.as_secs());
                }
                if may_come_up {
                    return Ok(Came::Unanswered);
                }
                let why = tried(plan, &refusals, wait);
                self.end();
                return Err(why);
            };
            match progress {
                Progress::Built { device } => note(&format!("namespace made, device: {device}")),
                Progress::Listening { listen, cached } => {
                    note(&format!("listening on {listen}, looking for a member"));
                    listening = true;
                    may_come_up |= cached;
                    deadline = clock::now().instant + wait;
                    if plan.is_alone() {
                        return Ok(Came::Alone);
                    }
                }
                Progress::Accepted { by, path } => {
                    return Ok(Came::Accepted { by: by.to_string(), path });
                }
                Progress::Refused { by, why } => {
                    let by = by.map_or_else(|| "a node".to_owned(), |by| by.to_string());
                    note(&format!("refused by {by}: {why}"));
                    refusals.push(format!("{by} refused: {why}"));
                }
                Progress::Failed { message } => {
                    self.end();
                    bail!(message);
                }
            }
        }
    }

    /// The next progress; `None` at the deadline.
    fn next(&mut self, deadline: Instant) -> anyhow::Result<Option<Progress>> {
        while !self.reader.buffer().contains(&b'\n') {
            let left = deadline.saturating_duration_since(clock::now().instant);
            let signals = self.signals.as_ref().map_or_else(|| self.stream.as_fd(), AsFd::as_fd);
            let [readable, signal] = poll::readable([self.stream.as_fd(), signals], Some(left))
                .context("wait for the daemon")?;
            if signal && self.signals.is_some() {
                self.end();
                bail!("interrupted");
            }
            if !readable {
                if clock::now().instant >= deadline {
                    return Ok(None);
                }
                continue;
            }
            let before = self.reader.buffer().len();
            // One read at most: what is buffered stays in front of what comes.
            if before == 0 && self.reader.fill_buf().is_ok_and(<[u8]>::is_empty) {
                return self.ended_early();
            }
            if before > 0 {
                break;
            }
        }
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(length) if length > 0 => {
                Ok(Some(serde_json::from_str(&line).context("understand the daemon")?))
            }
            Ok(_) | Err(_) => self.ended_early(),
        }
    }

    fn ended_early<T>(&mut self) -> anyhow::Result<T> {
        let status = self.child.wait().context("wait for the daemon")?;
        bail!("the daemon ended without a word ({status})")
    }

    /// Has it end, and waits until nothing of it is left.
    fn end(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        let deadline = clock::now().instant + END_PATIENCE;
        while let Ok(None) = self.child.try_wait() {
            if clock::now().instant >= deadline {
                // SIGKILL: its children end with it, and clean up.
                let _ = self.child.kill();
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// It goes on alone.
    fn let_go(mut self) -> anyhow::Result<u8> {
        writeln!(self.stream, "{DETACH}").context("let the daemon go on alone")?;
        Ok(0)
    }

    /// Stays with it to its end.
    fn stay(mut self) -> anyhow::Result<u8> {
        loop {
            let deadline = clock::now().instant + Duration::from_secs(3600);
            match self.next(deadline) {
                Ok(Some(Progress::Failed { message })) => {
                    self.end();
                    bail!(message);
                }
                Ok(_) => {}
                // A signal of ours, or its end in good order: both are what was wanted.
                Err(_) => {
                    let status = self.child.wait().context("wait for the daemon")?;
                    return Ok(if status.success() { 0 } else { exit::NO });
                }
            }
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // The socket ends with us: a keeper that was not let go ends too.
        let _ = self.child.try_wait();
    }
}

fn catch_signals() -> anyhow::Result<SignalFd> {
    let mut wanted = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        wanted.add(signal);
    }
    wanted.thread_block().context("block signals")?;
    SignalFd::with_flags(&wanted, SfdFlags::SFD_CLOEXEC).context("receive signals")
}

/// What was tried to reach a member, and how each try ended.
fn tried(plan: &Plan, refusals: &[String], wait: Duration) -> anyhow::Error {
    let mut lines = Vec::new();
    if let Ok((Reply::Status(status), _)) = plan.instance.ask(&Request::Status, PATIENCE) {
        let tries =
            status.masters.iter().map(|m| format!("{} at {}: {}", m.name, m.endpoint, m.outcome));
        lines.extend(tries);
        lines.extend(status.warnings);
    }
    lines.extend(refusals.iter().cloned());
    if lines.is_empty() {
        let all = plan.master.network.masters.iter();
        lines.extend(all.flat_map(|master| {
            master.endpoints.iter().map(move |at| format!("{} at {at}: no answer", master.name))
        }));
    }
    anyhow::anyhow!(
        "no member of {} has accepted this node within {} s; nothing was left running\n  {}",
        plan.master.network.name,
        wait.as_secs_f32(),
        lines.join("\n  ")
    )
}
