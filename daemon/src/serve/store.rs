//! What `serve` keeps on disk between runs, in the state directory: roster cache, port, resolved names, renewed certificate.
//!
//! None of it is needed to come up; whatever cannot be read is as if it were not there. Files are replaced whole.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _},
    net::IpAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clusternet::{config::cert::CertFile, sys::file};

/// More than the roster of the largest network.
const MAX_CACHE: u64 = 64 << 20;

/// More than any of the small files.
const MAX_SMALL: u64 = 1 << 20;

/// A log longer than this is set aside while we run, as at the start.
const MAX_LOG: u64 = 4 << 20;

/// Addresses that names had when they were last asked for, by name.
pub(super) type Resolved = BTreeMap<String, Vec<IpAddr>>;

/// The state directory of an instance.
#[derive(Debug, Clone)]
pub(super) struct Store(PathBuf);

impl Store {
    pub(super) fn new(directory: &Path) -> Self {
        Self(directory.to_owned())
    }

    /// The roster, as the node gave it.
    pub(super) fn cache(&self) -> Option<Vec<u8>> {
        self.read("roster", MAX_CACHE)
    }

    pub(super) fn keep_cache(&self, cache: &[u8]) -> anyhow::Result<()> {
        self.write("roster", cache)
    }

    /// The port of last time.
    pub(super) fn port(&self) -> Option<u16> {
        String::from_utf8(self.read("port", MAX_SMALL)?).ok()?.trim().parse().ok()
    }

    pub(super) fn keep_port(&self, port: u16) -> anyhow::Result<()> {
        self.write("port", format!("{port}\n").as_bytes())
    }

    pub(super) fn resolved(&self) -> Resolved {
        let text = self.read("resolved", MAX_SMALL);
        text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    pub(super) fn keep_resolved(&self, resolved: &Resolved) -> anyhow::Result<()> {
        self.write("resolved", &serde_json::to_vec(resolved)?)
    }

    /// A newer certificate of this node than the one in its key file, from `update`.
    pub(super) fn certificate(&self) -> Option<CertFile> {
        let text = String::from_utf8(self.read("renewed.cert", MAX_SMALL)?).ok()?;
        CertFile::parse(&text).ok()
    }

    pub(super) fn keep_certificate(&self, certificate: &CertFile) -> anyhow::Result<()> {
        self.write("renewed.cert", certificate.render().as_bytes())
    }

    /// Keeps the log from growing for ever: a long one is copied aside and begun anew. Its writers append, so they go on at the
    /// new end. Only where standard error *is* that file.
    pub(super) fn bound_log(&self) -> io::Result<()> {
        let path = self.0.join("log");
        let log = match fs::metadata(&path) {
            Ok(log) if log.len() > MAX_LOG => log,
            Ok(_) | Err(_) => return Ok(()),
        };
        let ours = nix::sys::stat::fstat(io::stderr())?;
        if (ours.st_dev, ours.st_ino) != (log.dev(), log.ino()) {
            return Ok(());
        }
        fs::copy(&path, self.0.join("log.old"))?;
        File::options().write(true).open(&path)?.set_len(0)
    }

    fn read(&self, name: &str, limit: u64) -> Option<Vec<u8>> {
        let file = File::open(self.0.join(name)).ok()?;
        let mut bytes = Vec::new();
        let length = file.take(limit + 1).read_to_end(&mut bytes).ok()?;
        (length as u64 <= limit).then_some(bytes)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let path = self.0.join(name);
        file::replace(&path, bytes, 0o600).with_context(|| format!("write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_is_there_and_nonsense_is_as_if_it_were_not() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path());
        assert_eq!((store.cache(), store.port(), store.resolved().len()), (None, None, 0));
        assert!(store.certificate().is_none());
        store.keep_cache(b"roster").unwrap();
        store.keep_port(51820).unwrap();
        let resolved = Resolved::from([("head".to_owned(), vec!["192.0.2.1".parse().unwrap()])]);
        store.keep_resolved(&resolved).unwrap();
        assert_eq!(store.cache().as_deref(), Some(&b"roster"[..]));
        assert_eq!((store.port(), store.resolved()), (Some(51820), resolved));
        for name in ["port", "resolved", "renewed.cert"] {
            fs::write(directory.path().join(name), b"\xff nonsense").unwrap();
        }
        assert_eq!((store.port(), store.resolved().len()), (None, 0));
        assert!(store.certificate().is_none());
        fs::write(directory.path().join("port"), vec![b'1'; 2 << 20]).unwrap();
        assert_eq!(store.port(), None, "reading is bounded");
    }

    #[test]
    fn a_log_that_is_somebody_elses_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path());
        store.bound_log().unwrap();
        let log = File::create(directory.path().join("log")).unwrap();
        log.set_len(MAX_LOG + 1).unwrap();
        store.bound_log().unwrap();
        assert_eq!(log.metadata().unwrap().len(), MAX_LOG + 1);
        assert!(!directory.path().join("log.old").exists());
    }
}
