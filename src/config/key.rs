//! Secrets on disk: `NAME.key`, a node's two secrets and (unless requested) its certificate; and `authority.key`.
//!
//! Secrets are zeroized when dropped, as must be the text given to `parse`; no message and no `Debug` shows one.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

use super::{
    MAX_FILE,
    cert::{self, CertFile},
    text::{self, FileError, Text},
};
use crate::words::{
    certificate::{Certificate, Validity},
    id::{Name, NetworkId},
    key::{SigningSecret, TransportKey, TransportSecret, VerifyKey},
    network::Network,
    signed::Signed,
    time::Timestamp,
};

/// A node's two secrets.
#[derive(Debug, Clone)]
pub struct Secrets {
    /// Of its tunnels.
    pub transport: TransportSecret,
    /// Of its announcements and its ssh server.
    pub host: SigningSecret,
}

impl Secrets {
    /// Fresh ones.
    pub fn generate() -> Self {
        Self { transport: TransportSecret::generate(), host: SigningSecret::generate() }
    }

    /// The public halves.
    pub fn public(&self) -> (TransportKey, VerifyKey) {
        (self.transport.public(), self.host.public())
    }
}

/// A whole `NAME.key`.
#[derive(Debug, Clone)]
pub struct KeyFile {
    /// The node's name, as the file says.
    pub name: Name,
    /// The secrets.
    pub secrets: Secrets,
    /// The certificate, which holds under the authority beside it; `None` while it is asked for.
    pub certificate: Option<CertFile>,
}

/// All that a node needs to be a member: secrets and a certificate that belongs to them.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The secrets.
    pub secrets: Secrets,
    /// The network's authority.
    pub authority: VerifyKey,
    /// Verified under the network's authority, valid, for these very keys.
    pub certificate: Signed<Certificate>,
}

impl Identity {
    /// As a key file that needs nothing beside it: what the keeper holds.
    pub fn key_file(&self) -> KeyFile {
        let Self { secrets, authority, certificate } = self.clone();
        KeyFile {
            name: certificate.name.clone(),
            secrets,
            certificate: Some(CertFile { authority, certificate }),
        }
    }
}

/// Why a key file does not make its holder a member of a network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// No certificate in the file, none beside it.
    #[error(
        "it holds no certificate yet, and none lies beside it: give {0}.request to the network's admin, and lay the {0}.cert that comes back beside the key"
    )]
    NoCertificate(Name),
    /// The certificate is of another authority than `master.toml`.
    #[error(
        "its certificate is of another network: master.toml is of network `{name}` with authority {expected}, the certificate was signed by {found}"
    )]
    OtherNetwork {
        /// Name of the network in `master.toml`.
        name: Name,
        /// Authority in `master.toml`.
        expected: VerifyKey,
        /// Authority beside the certificate.
        found: VerifyKey,
    },
    /// The certificate names other keys than the file holds.
    #[error("the certificate (serial {0}) is for other keys than the key file holds")]
    OtherKeys(u64),
    /// Its time has not come.
    #[error(
        "its certificate is not valid before {0} and it is {1} here: is this machine's clock right?"
    )]
    NotYet(Timestamp, Timestamp),
    /// Its time is over.
    #[error(
        "its certificate has expired on {0}: ask the network's admin for a new one (clusternet issue {1})"
    )]
    Expired(Timestamp, Name),
}

impl KeyFile {
    /// Reads the file; a certificate in it is verified under the authority it names.
    ///
    /// # Errors
    /// [`FileError`], with line and field, never with a secret.
    pub fn parse(text: &str) -> Result<Self, FileError> {
        let file: KeyFileText = text::parse(text, MAX_FILE)?;
        let certificate = file.certificate.map(|table| table.verify(text)).transpose()?;
        let KeyText { name, transport, host } = file.key;
        Ok(Self { name: name.0, secrets: Secrets { transport, host }, certificate })
    }

    /// Writes the file: parsing it gives the same again. The text is secret.
    pub fn render(&self) -> Zeroizing<String> {
        let mut table = String::new();
        if let Some(certificate) = &self.certificate {
            table.push('\n');
            certificate.render_table(&mut table);
        }
        // Sized at once: a String that grows leaves copies of secrets behind.
        let mut out = Zeroizing::new(String::with_capacity(table.len() + 1024));
        // Writing to a String cannot fail.
        let _ = write!(
            out,
            "# SECRET: whoever reads this file is node \"{}\". Only its owner may be able to read it (mode 0600).\n\n\
             [key]\nname = \"{}\"\ntransport = \"{}\"\nhost = \"{}\"\n{table}",
            self.name,
            self.name,
            *self.secrets.transport.to_text(),
            *self.secrets.host.to_text(),
        );
        out
    }

    /// Puts secrets and certificate together: its own one, or the newer of that and the one `beside` it (`NAME.cert`).
    ///
    /// # Errors
    /// [`IdentityError`]: no certificate, another network's, for other keys, or not valid at `now`.
    pub fn identity(
        &self,
        beside: Option<&CertFile>,
        network: &Network,
        now: Timestamp,
    ) -> Result<Identity, IdentityError> {
        let both = [self.certificate.as_ref(), beside];
        let Some(found) = both.iter().flatten().next() else {
            return Err(IdentityError::NoCertificate(self.name.clone()));
        };
        let of_network: Vec<&CertFile> =
            both.into_iter().flatten().filter(|f| f.authority == network.authority).collect();
        let Some(other) = of_network.first() else {
            return Err(IdentityError::OtherNetwork {
                name: network.name.clone(),
                expected: network.authority,
                found: found.authority,
            });
        };
        let (transport, host) = self.secrets.public();
        let ours = |file: &&CertFile| {
            file.certificate.transport == transport && file.certificate.host == Some(host)
        };
        let Some(file) =
            of_network.iter().copied().filter(ours).max_by_key(|f| f.certificate.serial)
        else {
            return Err(IdentityError::OtherKeys(other.certificate.serial.0));
        };
        let certificate = file.certificate.clone();
        if certificate.validity(now) == Validity::NotYet {
            return Err(IdentityError::NotYet(certificate.not_before, now));
        }
        if certificate.has_ended(now) {
            return Err(IdentityError::Expired(certificate.not_after, certificate.name.clone()));
        }
        Ok(Identity { secrets: self.secrets.clone(), authority: file.authority, certificate })
    }
}

/// What a search for a node's key file starts from.
#[derive(Debug, Clone, Copy)]
pub struct Search<'a> {
    /// `--key`.
    pub key: Option<&'a Path>,
    /// `[node] key` of `master.toml`.
    pub node_key: Option<&'a Path>,
    /// The directory of `master.toml`.
    pub directory: &'a Path,
    /// The machine's name; what follows the first dot does not count.
    pub hostname: &'a str,
    /// Every file `*.key` in that directory.
    pub keys_there: &'a [PathBuf],
    /// `$XDG_CONFIG_HOME`, or what stands for it.
    pub config_home: Option<&'a Path>,
    /// Name of the network.
    pub network: &'a Name,
}

/// One place where a key file may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file; for [`Self::why`] "the only .key" the directory, where there is not exactly one.
    pub path: PathBuf,
    /// Why it was looked for there, as told to people.
    pub why: &'static str,
    /// Whether it was named: then a missing file is an error, and no other place is tried.
    pub named: bool,
}

/// Where a node's key file is looked for, in order: `--key`, `[node] key`, `HOSTNAME.key` beside `master.toml`, the only
/// `.key` there (`authority.key` aside), `$XDG_CONFIG_HOME/clusternet/NETWORK/node.key`.
pub fn places(search: &Search<'_>) -> Vec<Place> {
    let place = |path: PathBuf, why, named| Place { path, why, named };
    if let Some(key) = search.key {
        return vec![place(key.to_owned(), "--key", true)];
    }
    if let Some(key) = search.node_key {
        return vec![place(search.directory.join(key), "[node] key of master.toml", true)];
    }
    let short = search.hostname.split('.').next().unwrap_or_default();
    let mut places = vec![place(
        search.directory.join(format!("{short}.key")),
        "named as this machine, beside master.toml",
        false,
    )];
    let mut others =
        search.keys_there.iter().filter(|path| path.file_name() != Some("authority.key".as_ref()));
    match (others.next(), others.next()) {
        (Some(only), None) => {
            places.push(place(only.clone(), "the only .key beside master.toml", false));
        }
        (None, _) => places.push(place(
            search.directory.join("*.key"),
            "the only .key beside master.toml: there is none",
            false,
        )),
        (Some(_), Some(_)) => places.push(place(
            search.directory.join("*.key"),
            "the only .key beside master.toml: there are several, say which with --key",
            false,
        )),
    }
    if let Some(config) = search.config_home {
        let path = config.join("clusternet").join(search.network.as_str()).join("node.key");
        places.push(place(path, "this user's configuration", false));
    }
    places
}

/// A whole `authority.key`.
#[derive(Debug, Clone)]
pub struct AuthorityFile {
    /// Name of the network, for people.
    pub network: Name,
    /// The network's secret.
    pub secret: SigningSecret,
}

impl AuthorityFile {
    /// Reads the file.
    ///
    /// # Errors
    /// [`FileError`], with line and field, never with the secret.
    pub fn parse(text: &str) -> Result<Self, FileError> {
        let file: AuthorityFileText = text::parse(text, MAX_FILE)?;
        Ok(Self { network: file.authority.network.0, secret: file.authority.secret })
    }

    /// Writes the file: parsing it gives the same again. The text is secret.
    pub fn render(&self) -> Zeroizing<String> {
        let mut out = Zeroizing::new(String::with_capacity(1024));
        // Writing to a String cannot fail.
        let _ = write!(
            out,
            "# SECRET: whoever reads this file decides who is a member of network \"{}\".\n\
             # No running node needs it: keep it offline if you can, and keep a copy.\n\n\
             [authority]\nnetwork = \"{}\"\nsecret = \"{}\"\n",
            self.network,
            self.network,
            *self.secret.to_text(),
        );
        out
    }

    /// The id of its network.
    pub fn id(&self) -> NetworkId {
        NetworkId::of(&self.secret.public())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFileText {
    key: KeyText,
    certificate: Option<cert::TableText>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyText {
    name: Text<Name>,
    #[serde(deserialize_with = "transport_secret")]
    transport: TransportSecret,
    #[serde(deserialize_with = "signing_secret")]
    host: SigningSecret,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AuthorityFileText {
    authority: AuthorityText,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AuthorityText {
    network: Text<Name>,
    #[serde(deserialize_with = "signing_secret")]
    secret: SigningSecret,
}

fn transport_secret<'de, D: Deserializer<'de>>(from: D) -> Result<TransportSecret, D::Error> {
    text::string(from, TransportSecret::from_text)
}

fn signing_secret<'de, D: Deserializer<'de>>(from: D) -> Result<SigningSecret, D::Error> {
    text::string(from, SigningSecret::from_text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(search: &Search<'_>) -> Vec<(String, bool)> {
        places(search).into_iter().map(|p| (p.path.display().to_string(), p.named)).collect()
    }

    #[test]
    fn keys_are_looked_for_in_the_documented_order() {
        let network: Name = "lab".parse().unwrap();
        let there = [PathBuf::from("/n/authority.key"), PathBuf::from("/n/a.key")];
        let search = Search {
            key: Some(Path::new("k")),
            node_key: Some(Path::new("own.key")),
            directory: Path::new("/n"),
            hostname: "host.example.org",
            keys_there: &there,
            config_home: Some(Path::new("/c")),
            network: &network,
        };
        assert_eq!(found(&search), [("k".to_owned(), true)]);
        let search = Search { key: None, ..search };
        assert_eq!(found(&search), [("/n/own.key".to_owned(), true)]);
        let search = Search { node_key: None, ..search };
        let by_name = ("/n/host.key".to_owned(), false);
        let config = ("/c/clusternet/lab/node.key".to_owned(), false);
        let only = ("/n/a.key".to_owned(), false);
        assert_eq!(found(&search), [by_name.clone(), only, config.clone()]);
        let several = [there[1].clone(), PathBuf::from("/n/b.key")];
        for keys_there in [&several[..], &there[..1], &[]] {
            let search = Search { keys_there, ..search };
            let none = ("/n/*.key".to_owned(), false);
            assert_eq!(found(&search), [by_name.clone(), none, config.clone()]);
        }
    }
}
