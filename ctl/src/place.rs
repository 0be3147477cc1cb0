//! Where an instance keeps what: runtime files (socket, hosts file; gone when it ends) and state (roster cache, log).
//!
//! Runtime files want a local, private directory that ends with the login or the machine: `$XDG_RUNTIME_DIR`, `/run/user/UID`,
//! `/tmp/clusternet-UID` if it is one's own, else a fresh one in `/tmp`, whose name is kept in the state directory. The home may
//! be shared by many machines, so state has the machine's name in its path.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use anyhow::Context;
use clusternet::{
    sys::account,
    words::{id::Name, key::random_u64},
};

/// Where runtime directories may be, best first.
pub(crate) fn places() -> Vec<PathBuf> {
    let (uid, _) = account::ids();
    let mut bases: Vec<PathBuf> = parents(uid).into_iter().map(|p| p.join("clusternet")).collect();
    bases.push(in_tmp(uid));
    bases.extend(recorded());
    bases.dedup();
    bases
}

/// Those of them that exist and are this user's own.
pub(crate) fn candidates() -> Vec<PathBuf> {
    let (uid, _) = account::ids();
    places().into_iter().filter(|base| is_own(base, uid)).collect()
}

/// The runtime directory for a new instance; it is not made yet, the one above it may be.
///
/// # Errors
/// No place is this user's own.
pub(crate) fn runtime(instance: &Name) -> anyhow::Result<PathBuf> {
    Ok(base()?.join(instance.as_str()))
}

/// Where an instance's cache and log are.
///
/// # Errors
/// This user has no home.
pub(crate) fn state(instance: &Name) -> anyhow::Result<PathBuf> {
    Ok(states()?.join(instance.as_str()))
}

/// Where the states of all instances on this machine are.
///
/// # Errors
/// As [`state`].
pub(crate) fn states() -> anyhow::Result<PathBuf> {
    let home = match absolute("XDG_STATE_HOME") {
        Some(home) => home,
        None => home()?.join(".local/state"),
    };
    let machine = account::short_hostname().context("ask for this machine's name")?;
    Ok(home.join("clusternet").join(machine))
}

/// `$XDG_CONFIG_HOME`, or what stands for it.
pub(crate) fn config_home() -> Option<PathBuf> {
    absolute("XDG_CONFIG_HOME").or_else(|| Some(home().ok()?.join(".config")))
}

fn home() -> anyhow::Result<PathBuf> {
    match absolute("HOME") {
        Some(home) => Ok(home),
        None => Ok(account::own().context("look for a home directory (HOME is not set)")?.home),
    }
}

fn absolute(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute())
}

fn parents(uid: u32) -> Vec<PathBuf> {
    let mut parents: Vec<PathBuf> = absolute("XDG_RUNTIME_DIR").into_iter().collect();
    let run = PathBuf::from(format!("/run/user/{uid}"));
    if !parents.contains(&run) {
        parents.push(run);
    }
    // What belongs to somebody else (`sudo` and `su` leave the variable as it was) is not for us.
    parents.retain(|parent| is_own(parent, uid));
    parents
}

fn in_tmp(uid: u32) -> PathBuf {
    PathBuf::from(format!("/tmp/clusternet-{uid}"))
}

fn base() -> anyhow::Result<PathBuf> {
    let (uid, _) = account::ids();
    if let Some(parent) = parents(uid).into_iter().next() {
        return Ok(parent.join("clusternet"));
    }
    let in_tmp = in_tmp(uid);
    if make_own(&in_tmp, uid) {
        return Ok(in_tmp);
    }
    if let Some(base) = recorded().filter(|base| make_own(base, uid)) {
        return Ok(base);
    }
    // Somebody has put something in our place: a name that nobody can guess, remembered where only we write.
    let fresh = PathBuf::from(format!("/tmp/clusternet-{uid}-{:016x}", random_u64()));
    let record = record()?;
    let write = || -> io::Result<()> {
        if let Some(directory) = record.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        DirBuilder::new().mode(0o700).create(&fresh)?;
        fs::write(&record, fresh.as_os_str().as_encoded_bytes())
    };
    write().with_context(|| {
        format!(
            "make a runtime directory: {} belongs to somebody else, and {} could not be made and noted in {}",
            in_tmp.display(),
            fresh.display(),
            record.display()
        )
    })?;
    Ok(fresh)
}

fn record() -> anyhow::Result<PathBuf> {
    Ok(states()?.join("runtime-directory"))
}

fn recorded() -> Option<PathBuf> {
    let bytes = fs::read(record().ok()?).ok()?;
    let text: OsString = String::from_utf8(bytes).ok()?.trim_end().into();
    Some(PathBuf::from(text)).filter(|path| path.is_absolute())
}

fn is_own(path: &Path, uid: u32) -> bool {
    fs::symlink_metadata(path).is_ok_and(|about| about.is_dir() && about.uid() == uid)
}

fn make_own(path: &Path, uid: u32) -> bool {
    let _ = DirBuilder::new().mode(0o700).create(path);
    is_own(path, uid)
}
