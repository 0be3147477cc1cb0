//! Files that `clusternet update` brings: what is in them for a running node.

use anyhow::{Context, bail, ensure};
use clusternet::{
    config::{FileKind, cert::CertFile, master::MasterFile, revocations::RevocationsFile},
    node::Update,
    wire::record::Entry,
    words::{id::NetworkId, key::VerifyKey},
};

/// A file, read and verified under the authority it names, which is ours.
#[derive(Debug)]
pub(super) struct Parsed {
    /// For the node.
    pub(super) update: Update,
    /// Where it was a certificate: it may be our own.
    pub(super) certificate: Option<CertFile>,
}

/// Reads a `revocations`, `master.toml` or `.cert` file of the network with this id.
///
/// # Errors
/// What it is instead, or what is wrong with it.
pub(super) fn parse(text: &str, network: NetworkId) -> anyhow::Result<Parsed> {
    let ours = |authority: &VerifyKey| {
        ensure!(
            NetworkId::of(authority) == network,
            "it is of another network: its authority is {authority}"
        );
        Ok(())
    };
    let kind = FileKind::of(text).context("read the file")?;
    let mut certificate = None;
    let entries = match kind {
        Some(FileKind::Master) => {
            let file = MasterFile::parse(text).context("read master.toml")?;
            ours(&file.network.authority)?;
            vec![Entry::Network(file.network.raw().clone())]
        }
        Some(FileKind::Revocations) => {
            let file = RevocationsFile::parse(text).context("read the revocations")?;
            ours(&file.authority)?;
            let list = file.list.iter().map(|one| Entry::Revocation(one.raw().clone()));
            list.chain([Entry::Head(file.head.raw().clone())]).collect()
        }
        Some(FileKind::Cert) => {
            let file = CertFile::parse(text).context("read the certificate")?;
            ours(&file.authority)?;
            let entry = Entry::Certificate(file.certificate.raw().clone());
            certificate = Some(file);
            vec![entry]
        }
        Some(
            kind @ (FileKind::Authority | FileKind::Key | FileKind::Request | FileKind::Ledger),
        ) => bail!("this is {kind}: a running node takes revocations, master.toml or a .cert file"),
        None => bail!("this is no file of clusternet"),
    };
    Ok(Parsed { update: Update { entries }, certificate })
}
