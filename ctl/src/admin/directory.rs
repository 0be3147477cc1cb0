//! A network's directory: found, locked, read, and written so that a killed command leaves the old ledger whole.
//!
//! Theory of operation. Whoever changes anything holds `.ledger.lock` from before reading the ledger until after writing
//! it. The ledger is replaced whole; that is the moment a change takes place. `master.toml` and `revocations` are written
//! from the ledger after that, and again by the next command if this one is killed in between.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use clusternet::{
    config::{
        MAX_FILE, MAX_LEDGER, MAX_REVOCATIONS,
        authority::Authority,
        key::AuthorityFile,
        ledger::Ledger,
        master::{MasterFile, NodeTable},
        revocations::RevocationsFile,
    },
    sys::file::{self, FileAccessError, Lock},
};

use super::LedgerArgs;
use crate::output;

/// Secrets, and what tells who is a member.
pub(super) const PRIVATE: u32 = 0o600;
/// What may be given to everybody.
pub(super) const PUBLIC: u32 = 0o644;

/// A network's directory, locked, with its authority at work.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) path: PathBuf,
    pub(super) authority: Authority,
    _lock: Lock,
}

impl Directory {
    /// Finds, locks and reads a network's directory, and completes what a killed command has left unwritten.
    pub(super) fn open(args: &LedgerArgs) -> anyhow::Result<Self> {
        let path = find(args)?;
        let lock = lock(&path)?;
        let ledger = read(&path)?;
        let key = path.join("authority.key");
        let text = match file::read_private(&key, MAX_FILE) {
            Ok(text) => text,
            Err(FileAccessError::Missing(_)) => bail!(
                "{}: there is no such file, and nothing is signed without it; if it is kept elsewhere, bring it (or a \
                 link to it) here",
                key.display()
            ),
            Err(error) => return Err(error.into()),
        };
        let secret = AuthorityFile::parse(&text).with_context(|| key.display().to_string())?.secret;
        let authority =
            Authority::open(secret, ledger).with_context(|| path.display().to_string())?;
        let directory = Self { path, authority, _lock: lock };
        directory.publish()?;
        Ok(directory)
    }

    /// Takes a directory in which a network has just begun.
    pub(super) fn begun(path: PathBuf, authority: Authority, lock: Lock) -> Self {
        Self { path, authority, _lock: lock }
    }

    /// Writes the ledger, then what is written from it.
    pub(super) fn commit(&self) -> anyhow::Result<()> {
        let text = self.authority.ledger().render();
        file::replace(&self.path.join("ledger.toml"), text.as_bytes(), PRIVATE)?;
        self.publish()
    }

    /// Brings `master.toml` and `revocations` up to the ledger.
    pub(super) fn publish(&self) -> anyhow::Result<()> {
        let ledger = self.authority.ledger();
        let path = self.path.join("master.toml");
        let old = match file::read_text(&path, MAX_FILE) {
            Ok(text) => Some(MasterFile::parse(&text).with_context(|| {
                format!("{} (repair it, or remove it to have it written anew)", path.display())
            })?),
            Err(FileAccessError::Missing(_)) => None,
            Err(error) => return Err(error.into()),
        };
        if old.as_ref().map(|old| &old.network) != Some(&ledger.network) {
            let node = old.map_or_else(NodeTable::default, |old| old.node);
            let text = MasterFile { network: ledger.network.clone(), node }.render();
            file::replace(&path, text.as_bytes(), PUBLIC)?;
        }

        let path = self.path.join("revocations");
        let whole = ledger.revocations_file();
        let old = match file::read_text(&path, MAX_REVOCATIONS) {
            Ok(text) => RevocationsFile::parse(&text).ok(),
            Err(FileAccessError::Missing(_)) => None,
            Err(error) => return Err(error.into()),
        };
        if old.as_ref() != Some(&whole) && !whole.list.is_empty() {
            file::replace(&path, whole.render().as_bytes(), PUBLIC)?;
        }
        Ok(())
    }

    /// A file of this directory.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        // `./x` reads worse than `x`.
        if self.path == Path::new(".") { PathBuf::from(name) } else { self.path.join(name) }
    }
}

/// Locks a network's directory and removes what killed commands have left in it.
pub(super) fn lock(path: &Path) -> anyhow::Result<Lock> {
    let waiting = || {
        output::complain(&format!("waiting for another clusternet command in {}", path.display()));
    };
    let lock = Lock::take(&path.join(".ledger.lock"), waiting)?;
    file::sweep(path);
    Ok(lock)
}

/// Reads a ledger; needs no lock, since it is only ever replaced whole.
pub(super) fn read(path: &Path) -> anyhow::Result<Ledger> {
    let path = path.join("ledger.toml");
    let text = file::read_text(&path, MAX_LEDGER)?;
    Ledger::parse(&text).with_context(|| path.display().to_string())
}

/// `--dir`, else `.` where that holds a ledger, else the only directory here that does.
pub(super) fn find(args: &LedgerArgs) -> anyhow::Result<PathBuf> {
    let is_one = |path: &Path| path.join("ledger.toml").is_file();
    if let Some(path) = &args.dir {
        if !is_one(path) {
            bail!(
                "{}: there is no ledger.toml, so this is not the directory of a network (clusternet init NETWORK makes one)",
                path.display()
            );
        }
        return Ok(path.clone());
    }
    if is_one(Path::new(".")) {
        return Ok(PathBuf::from("."));
    }
    let mut found: Vec<PathBuf> = fs::read_dir(".")
        .context("read the current directory")?
        .flatten()
        .map(|entry| PathBuf::from(entry.file_name()))
        .filter(|path| is_one(path))
        .collect();
    found.sort();
    match found.as_slice() {
        [only] => Ok(only.clone()),
        [] => bail!(
            "neither this directory nor one in it holds a ledger.toml: say where the network's directory is with --dir, \
             or begin a network with clusternet init"
        ),
        several => bail!(
            "several directories here hold a ledger.toml ({}): say which with --dir",
            several.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
        ),
    }
}
