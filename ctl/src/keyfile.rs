//! Finds and reads a node's key file, and the `.cert` that may lie beside it.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clusternet::{
    config::{
        MAX_FILE,
        cert::CertFile,
        key::{self, Identity, KeyFile, Search},
        master::MasterFile,
    },
    sys::file::{self, FileAccessError},
    words::time::Timestamp,
};

use crate::place;

/// A key file that was found.
#[derive(Debug)]
pub(crate) struct Found {
    /// Where.
    pub(crate) path: PathBuf,
    /// Its content.
    pub(crate) key: KeyFile,
    /// What the `.cert` beside it holds, if there is one.
    pub(crate) beside: Option<CertFile>,
}

impl Found {
    /// Reads a key file and the `.cert` beside it.
    ///
    /// # Errors
    /// Missing, readable by others, malformed.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = file::read_private(path, MAX_FILE)?;
        let key = KeyFile::parse(&text).with_context(|| path.display().to_string())?;
        let by_name = path.with_file_name(format!("{}.cert", key.name));
        let mut beside: Option<CertFile> = None;
        for path in [path.with_extension("cert"), by_name] {
            let text = match file::read_text(&path, MAX_FILE) {
                Ok(text) => text,
                Err(FileAccessError::Missing(_)) => continue,
                Err(error) => return Err(error.into()),
            };
            let cert = CertFile::parse(&text).with_context(|| path.display().to_string())?;
            if beside.as_ref().is_none_or(|old| old.certificate.serial < cert.certificate.serial) {
                beside = Some(cert);
            }
        }
        Ok(Self { path: path.to_owned(), key, beside })
    }

    /// What makes its holder a member of the network of `master`.
    ///
    /// # Errors
    /// No certificate, another network's, for other keys, or not valid `now`.
    pub(crate) fn identity(&self, master: &MasterFile, now: Timestamp) -> anyhow::Result<Identity> {
        self.key
            .identity(self.beside.as_ref(), master.network.statement(), now)
            .with_context(|| self.path.display().to_string())
    }
}

/// Finds the key file to join the network of `master` with, which was read from `path`: `--key`, else `[node] key`, else
/// beside `master.toml`, else in this user's configuration.
///
/// # Errors
/// None found (the error lists where it was looked for), or the one found cannot be used.
pub(crate) fn find(
    path: &Path,
    master: &MasterFile,
    explicit: Option<&Path>,
) -> anyhow::Result<Found> {
    let directory = file::directory_of(path);
    let hostname = nix::unistd::gethostname().unwrap_or_default();
    let keys_there = keys_in(&directory);
    let config_home = place::config_home();
    let places = key::places(&Search {
        key: explicit,
        node_key: master.node.key.as_deref(),
        directory: &directory,
        hostname: &hostname.to_string_lossy(),
        keys_there: &keys_there,
        config_home: config_home.as_deref(),
        network: &master.network.name,
    });
    let mut looked = String::new();
    for place in places {
        match Found::read(&place.path) {
            Ok(found) => return Ok(found),
            Err(error) => match error.downcast_ref::<FileAccessError>() {
                Some(FileAccessError::Missing(missing)) if *missing == place.path => {
                    looked.push_str(&format!("\n  {} ({})", place.path.display(), place.why));
                }
                Some(_) | None => return Err(error),
            },
        }
    }
    bail!(
        "no key file for network {}; looked for\n  {}\nthe network's admin makes one (clusternet issue NAME), or \
         answers your request (clusternet request NAME)",
        master.network.name,
        looked.trim_start()
    )
}

fn keys_in(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut keys: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| directory.join(entry.file_name()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "key"))
        .collect();
    keys.sort();
    keys
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

    use clusternet::{
        config::{
            authority::{Authority, Beginning},
            key::Secrets,
            master::NodeTable,
        },
        words::key::SigningSecret,
    };

    use super::*;

    const NOW: Timestamp = Timestamp(1_767_225_600_000);

    fn network(directory: &Path) -> (PathBuf, MasterFile, KeyFile) {
        let secrets = Secrets::generate();
        let beginning = Beginning {
            name: "lab".parse().unwrap(),
            ipv4: "10.99.0.0/16".parse().unwrap(),
            owner: None,
            master: "head".parse().unwrap(),
            keys: secrets.public(),
            endpoints: vec!["udp://192.0.2.1:51820".parse().unwrap()],
            not_after: NOW.plus(Duration::from_secs(3600)),
        };
        let (authority, issued) =
            Authority::begin(SigningSecret::generate(), beginning, NOW).unwrap();
        let ledger = authority.ledger();
        let cert = CertFile { authority: ledger.authority, certificate: issued.certificate };
        let key = KeyFile { name: "head".parse().unwrap(), secrets, certificate: Some(cert) };
        let master = MasterFile { network: ledger.network.clone(), node: NodeTable::default() };
        let path = directory.join("master.toml");
        fs::write(&path, master.render()).unwrap();
        (path, master, key)
    }

    #[test]
    fn the_key_beside_the_master_file_is_found_and_read() {
        let directory = tempfile::tempdir().unwrap();
        let (path, master, key) = network(directory.path());
        let there = directory.path().join("head.key");
        file::replace(&there, key.render().as_bytes(), 0o600).unwrap();
        let found = find(&path, &master, None).unwrap();
        assert_eq!(found.path, there);
        let identity = found.identity(&master, NOW).unwrap();
        assert_eq!(identity.key_file().render().as_str(), key.render().as_str());

        fs::set_permissions(&there, fs::Permissions::from_mode(0o644)).unwrap();
        let told = format!("{:#}", find(&path, &master, None).unwrap_err());
        assert!(told.contains("chmod 600"), "{told}");
    }

    #[test]
    fn the_certificate_beside_a_key_completes_it() {
        let directory = tempfile::tempdir().unwrap();
        let (path, master, key) = network(directory.path());
        let bare = KeyFile { certificate: None, ..key.clone() };
        let there = directory.path().join("other.key");
        file::replace(&there, bare.render().as_bytes(), 0o600).unwrap();
        let found = find(&path, &master, Some(&there)).unwrap();
        let told = format!("{:#}", found.identity(&master, NOW).unwrap_err());
        assert!(told.contains("head.request"), "{told}");
        for beside in ["head.cert", "other.cert"] {
            let beside = directory.path().join(beside);
            fs::write(&beside, key.certificate.as_ref().unwrap().render()).unwrap();
            let found = find(&path, &master, None).unwrap();
            assert_eq!(found.identity(&master, NOW).unwrap().certificate.serial.0, 1);
            fs::remove_file(beside).unwrap();
        }
    }

    #[test]
    fn a_missing_key_is_told_with_every_place_that_was_tried() {
        let directory = tempfile::tempdir().unwrap();
        let (path, master, _) = network(directory.path());
        let told = format!("{:#}", find(&path, &master, None).unwrap_err());
        for place in ["named as this machine", "there is none", "no key file for network lab"] {
            assert!(told.contains(place), "{told}");
        }
        let named = find(&path, &master, Some(Path::new("/nowhere/a.key"))).unwrap_err();
        assert!(format!("{named:#}").contains("/nowhere/a.key (--key)"));
    }
}
