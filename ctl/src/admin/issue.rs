//! `clusternet issue`: keys and certificates for nodes.
//!
//! A killed `issue` loses nothing: new secrets are on disk before the ledger names them, the ledger is written before any
//! certificate is shown, and the same command given again takes up the same keys.

use std::{
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use clusternet::{
    config::{
        FileKind, MAX_FILE,
        authority::{Issue, Issued, Keys, check_name},
        cert::CertFile,
        key::{KeyFile, Secrets},
        request::RequestFile,
    },
    sys::{
        clock,
        file::{self, FileAccessError},
    },
    words::{id::Name, time::Timestamp},
};

use super::{
    IssueArgs,
    directory::{Directory, PRIVATE, PUBLIC},
    hand_over, wireguard,
};
use crate::{Context, exit, output};

/// What the certificate is for, and where it goes.
enum Work {
    /// Secrets that we hold: they go with the certificate into a key file.
    Key { secrets: Secrets, path: PathBuf, new: bool },
    /// Keys of which we know the public halves: a certificate is all there is to write.
    Certificate { keys: Keys, path: PathBuf },
}

pub(super) fn run(args: IssueArgs, context: Context) -> anyhow::Result<u8> {
    check_name(&args.name)?;
    let now = clock::now().wall;
    let not_after = super::validity(&args.valid, now)?;
    let mut directory = Directory::open(&args.ledger)?;
    if args.wireguard.is_some() {
        if args.output.as_deref().is_some_and(is_standard_stream) {
            return Err(exit::wrong_use(
                "with --wireguard standard output carries the wg-quick file: give -o a file for the certificate",
            ));
        }
        // Refused before anything is signed.
        wireguard::gateway(directory.authority.ledger())?;
    }
    let work = plan(&args, &directory, now)?;
    let keys = match &work {
        Work::Key { secrets, .. } => {
            let (transport, host) = secrets.public();
            Keys::Node(transport, host)
        }
        Work::Certificate { keys, .. } => *keys,
    };
    let issue = Issue {
        name: args.name.clone(),
        keys,
        not_after,
        role: args.role.map(Into::into),
        owner: args.owner.map(|owner| owner.0),
        endpoints: args.endpoints,
    };
    let issued = directory.authority.issue(issue, now).map_err(super::refused)?;
    let cert = CertFile {
        authority: directory.authority.ledger().authority,
        certificate: issued.certificate.clone(),
    };
    let written = write(&directory, work, &cert, issued.renewed)?;
    tell(&directory, &issued, &written, args.wireguard.is_some(), now, context)?;
    Ok(0)
}

fn plan(args: &IssueArgs, directory: &Directory, now: Timestamp) -> anyhow::Result<Work> {
    let name = &args.name;
    let cert_path =
        || args.output.clone().unwrap_or_else(|| directory.file(&format!("{name}.cert")));
    if let Some(path) = &args.request {
        let request = read_request(path)?.request;
        if request.name != *name {
            bail!(
                "{}: the request is for the name `{}`, not `{name}`",
                path.display(),
                request.name
            );
        }
        let keys = Keys::Node(request.transport, request.host);
        return Ok(Work::Certificate { keys, path: cert_path() });
    }
    if let Some(key) = args.wireguard {
        return Ok(Work::Certificate { keys: Keys::Wireguard(key), path: cert_path() });
    }

    let ledger = directory.authority.ledger();
    let path = args.output.clone().unwrap_or_else(|| directory.file(&format!("{name}.key")));
    let secrets = match read_key(&path)? {
        Existing::Key(key) if key.name == *name => Some(key.secrets),
        Existing::Key(key) => bail!("{}: is the key file of `{}`", path.display(), key.name),
        Existing::Other => None,
    };
    let revoked = |secrets: &Secrets| {
        let (transport, host) = secrets.public();
        ledger.revocations.iter().any(|r| r.transport == transport || r.host == Some(host))
    };
    match secrets {
        Some(secrets) if !revoked(&secrets) => Ok(Work::Key { secrets, path, new: false }),
        // Secrets that were revoked are of no use to anybody: new ones take their place.
        Some(_) => Ok(Work::Key { secrets: Secrets::generate(), path, new: true }),
        None if ledger.newest(name).is_some_and(|newest| ledger.is_live(newest, now)) => {
            Ok(Work::Certificate { keys: Keys::Known, path: cert_path() })
        }
        None => Ok(Work::Key { secrets: Secrets::generate(), path, new: true }),
    }
}

fn read_request(path: &Path) -> anyhow::Result<RequestFile> {
    let text = if is_standard_stream(path) {
        file::read_stream(io::stdin().lock(), "standard input", MAX_FILE)?
    } else {
        file::read_text(path, MAX_FILE)?
    };
    RequestFile::parse(&text).with_context(|| path.display().to_string())
}

enum Existing {
    Key(Box<KeyFile>),
    /// Nothing, or something that may be written over: standard output, a certificate.
    Other,
}

fn read_key(path: &Path) -> anyhow::Result<Existing> {
    if is_standard_stream(path) {
        return Ok(Existing::Other);
    }
    let is_certificate = |text: String| matches!(FileKind::of(&text), Ok(Some(FileKind::Cert)));
    if file::read_text(path, MAX_FILE).is_ok_and(is_certificate) {
        return Ok(Existing::Other);
    }
    match file::read_private(path, MAX_FILE) {
        Ok(text) => {
            let key = KeyFile::parse(&text).with_context(|| {
                format!("{}: is there already and is no key file", path.display())
            })?;
            Ok(Existing::Key(Box::new(key)))
        }
        Err(FileAccessError::Missing(_)) => Ok(Existing::Other),
        Err(error) => Err(error.into()),
    }
}

/// `-`.
pub(super) fn is_standard_stream(path: &Path) -> bool {
    path == Path::new("-")
}

/// Where things were written; `None` for standard output.
struct Written {
    key: Option<PathBuf>,
    certificate: Option<PathBuf>,
    /// They went to standard output, where nothing else may be said then.
    streamed: bool,
}

fn write(
    directory: &Directory,
    work: Work,
    cert: &CertFile,
    renewed: bool,
) -> anyhow::Result<Written> {
    let name: &Name = &cert.certificate.name;
    match work {
        Work::Key { secrets, path, new } => {
            let streamed = is_standard_stream(&path);
            let mut key = KeyFile { name: name.clone(), secrets, certificate: None };
            if new && !streamed {
                file::replace(&path, key.render().as_bytes(), PRIVATE)?;
            }
            directory.commit()?;
            key.certificate = Some(cert.clone());
            if streamed {
                output::print_bytes(key.render().as_bytes())?;
                return Ok(Written { key: None, certificate: None, streamed });
            }
            file::replace(&path, key.render().as_bytes(), PRIVATE)?;
            let mut written = Written { key: Some(path.clone()), certificate: None, streamed };
            let beside = path.with_file_name(format!("{name}.cert"));
            if renewed && beside != path {
                file::replace(&beside, cert.render().as_bytes(), PUBLIC)?;
                written.certificate = Some(beside);
            }
            Ok(written)
        }
        Work::Certificate { path, .. } => {
            directory.commit()?;
            if is_standard_stream(&path) {
                output::print_bytes(cert.render().as_bytes())?;
                return Ok(Written { key: None, certificate: None, streamed: true });
            }
            file::replace(&path, cert.render().as_bytes(), PUBLIC)?;
            Ok(Written { key: None, certificate: Some(path), streamed: false })
        }
    }
}

fn tell(
    directory: &Directory,
    issued: &Issued,
    written: &Written,
    wireguard: bool,
    now: Timestamp,
    context: Context,
) -> anyhow::Result<()> {
    let certificate = &issued.certificate;
    let ledger = directory.authority.ledger();
    let mut lines = vec![format!(
        "{} {}: {}, serial {}, {} and {}, until {}",
        if issued.renewed { "renewed" } else { "issued" },
        certificate.name,
        certificate.roles,
        certificate.serial,
        certificate.ipv4,
        certificate.ipv6(),
        certificate.not_after,
    )];
    if context.verbose > 0 {
        lines.push(format!("transport key {}", certificate.transport));
        lines.extend(certificate.host.map(|host| format!("host key {host}")));
    }
    if let Some(key) = &written.key {
        lines.push(format!(
            "{}  secret: take it to {}, and there alone, beside master.toml",
            key.display(),
            certificate.name
        ));
    }
    let plain = certificate.roles.is_wireguard();
    let spread = plain || issued.renewed;
    if let Some(path) = &written.certificate {
        let shown = path.display();
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        lines.push(if plain {
            format!("{shown}  the gateway learns it by: clusternet update {file}")
        } else if issued.renewed {
            format!("{shown}  for {} while it runs: clusternet update {file}", certificate.name)
        } else {
            format!("{shown}  lay it beside the key that asked for it, then: clusternet join master.toml")
        });
        if written.key.is_none() && issued.renewed {
            lines.push(format!(
                "its keys are those it has had; for new ones: clusternet revoke {}, then issue it again",
                certificate.name
            ));
        }
    }
    if !plain {
        lines.push(super::who_may_execute(&directory.authority, now));
    }
    let master = directory.file("master.toml");
    if issued.network_changed {
        lines.push(format!(
            "{} is version {} now: the running nodes learn it by: clusternet update master.toml",
            master.display(),
            ledger.network.version
        ));
    }
    let cert = CertFile { authority: ledger.authority, certificate: certificate.clone() };
    let texts = [
        spread.then(|| cert.render()),
        issued.network_changed.then(|| file::read_text(&master, MAX_FILE)).transpose()?,
    ];
    let texts = texts.into_iter().flatten();
    let handed: Vec<_> =
        texts.flat_map(|text| hand_over::to_local_daemons(&ledger.id(), &text)).collect();
    if !handed.is_empty() {
        lines.push("handed over already:".to_owned());
        lines.extend(handed);
    }
    // What is meant for a file on standard output is not mixed with what is meant for people.
    if wireguard {
        output::note(&lines.join("\n"));
        output::print_bytes(wireguard::configuration(ledger, certificate)?.as_bytes())
    } else if written.streamed {
        output::note(&lines.join("\n"));
        Ok(())
    } else {
        output::say(lines.join("\n"))
    }
}
