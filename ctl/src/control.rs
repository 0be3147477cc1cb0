//! Speaking to a daemon: which instances run on this machine, and one request with its reply.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            fs::{FileTypeExt, MetadataExt},
            net::UnixStream,
        },
    },
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use clusternet::{
    api::{Reply, Request},
    sys::fd,
    words::id::Name,
};

use crate::{exit, place};

/// The environment variable that picks an instance.
pub(crate) const INSTANCE: &str = "CLUSTERNET_INSTANCE";

/// How long a daemon may take that only has to look something up: a `serve` that has died is back by then.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// How often, and after which pause, somebody who died while being asked is asked again: longer than the keeper takes to
/// start another `serve`.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(100);

/// Replies are JSON of a size that grows with the network: this is one of a hundred thousand nodes.
const MAX_REPLY: usize = 64 << 20;

/// A daemon of this user on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Instance {
    /// Its name.
    pub(crate) name: Name,
    /// Its runtime directory.
    pub(crate) directory: PathBuf,
}

impl Instance {
    /// The instance that is meant: `on`, else `CLUSTERNET_INSTANCE`, else the only one that runs.
    ///
    /// # Errors
    /// None runs, or not that one (exit status 3); several run and none was named (2).
    pub(crate) fn pick(on: Option<&Name>) -> anyhow::Result<Self> {
        let from_environment = match std::env::var(INSTANCE) {
            Ok(text) if !text.is_empty() && on.is_none() => {
                let name = text.parse::<Name>();
                Some(name.map_err(|e| exit::wrong_use(format!("{INSTANCE}: {e}")))?)
            }
            Ok(_) | Err(_) => None,
        };
        let wanted = on.or(from_environment.as_ref());
        let mut running = running();
        match wanted {
            Some(wanted) => match running.iter().position(|instance| instance.name == *wanted) {
                Some(place) => Ok(running.swap_remove(place)),
                None => Err(not_running(wanted, &running)),
            },
            None if running.len() > 1 => Err(exit::wrong_use(format!(
                "several instances run here: {}; say which one with --on or {INSTANCE}",
                names(&running)
            ))),
            None => running.pop().ok_or_else(none_runs),
        }
    }

    /// Whether something listens on its control socket.
    pub(crate) fn is_alive(&self) -> bool {
        connect(&self.directory).is_ok()
    }

    /// Asks one thing and waits for the reply, and for the descriptors that come with it.
    ///
    /// # Errors
    /// Nobody answers (exit status 3); the daemon's own [`Reply::Error`], in its words.
    pub(crate) fn ask(
        &self,
        request: &Request,
        patience: Duration,
    ) -> anyhow::Result<(Reply, Vec<OwnedFd>)> {
        let silent = |error: io::Error| {
            exit::no_daemon(format!(
                "ask instance {} through {}: {}; its log is {}",
                self.name,
                self.directory.join("control").display(),
                if error.kind() == io::ErrorKind::WouldBlock {
                    format!("no answer within {} s", patience.as_secs())
                } else {
                    error.to_string()
                },
                place::state(&self.name).map_or_else(
                    |_| "not known".to_owned(),
                    |state| state.join("log").display().to_string()
                ),
            ))
        };
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        let mut tries = if is_repeatable(request) { TRIES } else { 1 };
        let (reply, fds) = loop {
            tries -= 1;
            match self.exchange(&line, patience) {
                Ok(answered) => break answered,
                Err(error) if tries > 0 && has_died(&error) => std::thread::sleep(PAUSE),
                // It was there a moment ago.
                Err(error) if is_gone(&error) => {
                    let others = running();
                    return Err(if others.is_empty() {
                        none_runs()
                    } else {
                        not_running(&self.name, &others)
                    });
                }
                Err(error) => return Err(silent(error)),
            }
        };
        match serde_json::from_slice(&reply).context("understand the daemon's reply")? {
            Reply::Error { message } => bail!(message),
            reply @ (Reply::Hello { .. }
            | Reply::Status(_)
            | Reply::Enter(_)
            | Reply::Ping(_)
            | Reply::Update { .. }
            | Reply::Leaving
            | Reply::Busy { .. }) => Ok((reply, fds)),
        }
    }
}

impl Instance {
    fn exchange(&self, line: &[u8], patience: Duration) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
        let mut stream = connect(&self.directory)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        stream.write_all(line)?;
        read_reply(&stream)
    }
}

/// Whether asking twice is the same as asking once.
fn is_repeatable(request: &Request) -> bool {
    match request {
        Request::Hello | Request::Status | Request::Enter | Request::Ping { .. } => true,
        Request::Update { .. } | Request::Leave { .. } => false,
    }
}

/// Whether whoever was asked ended before it answered: a `serve` that died, and will be back.
fn has_died(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof
    )
}

/// Whether nobody listens any more.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
}

/// The daemon answered something else than was asked for.
pub(crate) fn unexpected(reply: &Reply) -> anyhow::Error {
    anyhow::anyhow!("the daemon gave an answer to another question: {reply:?}")
}

/// The instances of this user that run on this machine, by name.
pub(crate) fn running() -> Vec<Instance> {
    let mut found: Vec<Instance> = Vec::new();
    for base in place::candidates() {
        let Ok(entries) = fs::read_dir(&base) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name().to_str().and_then(|name| name.parse::<Name>().ok());
            let Some(name) = name else { continue };
            let instance = Instance { name, directory: entry.path() };
            // The same name in a less preferred place is another one's: the better place wins.
            if found.iter().all(|known| known.name != instance.name) && instance.is_alive() {
                found.push(instance);
            }
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// Through the directory's descriptor: the path of a socket is at most 107 bytes long, that of a directory may be longer.
fn connect(directory: &Path) -> io::Result<UnixStream> {
    let about = fs::symlink_metadata(directory.join("control"))?;
    let (own, _) = clusternet::sys::account::ids();
    if !about.file_type().is_socket() || (about.uid() != own && own != 0) {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "not a socket of this user"));
    }
    let directory = File::open(directory)?;
    UnixStream::connect(format!("/proc/self/fd/{}/control", directory.as_raw_fd()))
}

fn read_reply(stream: &UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let (mut reply, mut descriptors) = (Vec::new(), Vec::new());
    let mut piece = vec![0; 1 << 16];
    while !reply.ends_with(b"\n") {
        let (length, fds) = match fd::receive_with_fds(stream, &mut piece) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        if length == 0 {
            let text = "the daemon closed the connection without an answer";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        reply.extend_from_slice(&piece[..length]);
        descriptors.extend(fds);
        if reply.len() > MAX_REPLY {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer has no end"));
        }
    }
    Ok((reply, descriptors))
}

fn none_runs() -> anyhow::Error {
    exit::no_daemon(format!(
        "no instance runs on this machine (looked in {}); `clusternet join MASTER.TOML` starts one{}",
        listed(&place::places()),
        last_words(None),
    ))
}

fn not_running(wanted: &Name, running: &[Instance]) -> anyhow::Error {
    let others =
        if running.is_empty() { String::new() } else { format!("; these do: {}", names(running)) };
    exit::no_daemon(format!(
        "instance {wanted} does not run on this machine{others} (looked in {}){}",
        listed(&place::places()),
        last_words(Some(wanted)),
    ))
}

/// Why an instance ended by itself, if one did.
fn last_words(instance: Option<&Name>) -> String {
    let Ok(states) = place::states() else { return String::new() };
    let read = |name: &str| {
        let text = fs::read_to_string(states.join(name).join("ended")).ok()?;
        Some(format!("\ninstance {name} ended by itself: {}", text.trim()))
    };
    match instance {
        Some(name) => read(name.as_str()).unwrap_or_default(),
        None => fs::read_dir(&states)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| read(entry.file_name().to_str()?))
            .collect(),
    }
}

fn names(instances: &[Instance]) -> String {
    instances.iter().map(|instance| instance.name.as_str()).collect::<Vec<_>>().join(", ")
}

fn listed(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}
