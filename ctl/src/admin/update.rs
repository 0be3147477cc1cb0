//! `clusternet update`: a running node is given newer signed data.

use anyhow::{Context, bail};
use clusternet::{
    config::{
        FileKind, MAX_FILE, MAX_REVOCATIONS, cert::CertFile, key::KeyFile, master::MasterFile,
        revocations::RevocationsFile,
    },
    sys::file,
    words::id::NetworkId,
};

use super::{UpdateArgs, hand_over};
use crate::output;

pub(super) fn run(args: UpdateArgs) -> anyhow::Result<u8> {
    let path = &args.file;
    let text = file::read_text(path, MAX_REVOCATIONS)?;
    let in_file = || path.display().to_string();
    // What is malformed is refused here, with line and field; the daemon verifies again under its own authority.
    let (authority, text) = match FileKind::of(&text).with_context(in_file)? {
        Some(FileKind::Revocations) => {
            (RevocationsFile::parse(&text).with_context(in_file)?.authority, text)
        }
        Some(FileKind::Master) => {
            let master = MasterFile::parse(&text).with_context(in_file)?;
            (master.network.authority, text)
        }
        Some(FileKind::Cert) => (CertFile::parse(&text).with_context(in_file)?.authority, text),
        Some(FileKind::Key) => {
            let secret = file::read_private(path, MAX_FILE)?;
            let key = KeyFile::parse(&secret).with_context(in_file)?;
            let Some(cert) = key.certificate else {
                bail!("{}: holds no certificate that could be handed over", path.display());
            };
            (cert.authority, cert.render())
        }
        Some(kind @ (FileKind::Authority | FileKind::Request | FileKind::Ledger)) => {
            bail!(
                "{}: is {kind}; a node takes revocations, a master.toml or a .cert",
                path.display()
            )
        }
        None => bail!("{}: is no file of a network", path.display()),
    };
    let told = hand_over::to_instances(args.on.as_ref(), &NetworkId::of(&authority), &text)?;
    output::say(told.join("\n"))?;
    Ok(0)
}
