//! Handing signed data to the daemons of this machine, which pass it on to the whole network.

use std::time::Duration;

use anyhow::Context;
use clusternet::{
    api::{Reply, Request},
    config::MAX_FILE,
    sys::file,
    words::id::{Name, NetworkId},
};

use super::directory::Directory;
use crate::{
    control::{self, Instance, PATIENCE},
    exit,
};

/// How long other nodes have to confirm: those that can be reached do so in a round trip or two.
const CONFIRMATION: Duration = Duration::from_secs(5);

/// Hands a file's text to every daemon of this user that is in the network; what came of it, a line each. None runs: no
/// line. A daemon that does not take it is a line too, since what was signed is signed.
pub(super) fn to_local_daemons(network: &NetworkId, text: &str) -> Vec<String> {
    let told = |instance: Instance| {
        hand_over(&instance, text).unwrap_or_else(|error| {
            format!("instance {} did not take it: {error:#}", instance.name)
        })
    };
    in_network(network).into_iter().map(told).collect()
}

/// Hands the directory's `master.toml` over, as [`to_local_daemons`].
pub(super) fn master_file(directory: &Directory) -> anyhow::Result<Vec<String>> {
    let text = file::read_text(&directory.file("master.toml"), MAX_FILE)?;
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
    let instances = match on {
        Some(name) => vec![Instance::pick(Some(name))?],
        None => in_network(network),
    };
    if instances.is_empty() {
        return Err(exit::no_daemon(
            "no instance of this file's network runs here: start one with clusternet join, or take the file to a machine \
             where one runs",
        ));
    }
    instances
        .iter()
        .map(|i| hand_over(i, text).with_context(|| format!("instance {}", i.name)))
        .collect()
}

fn in_network(network: &NetworkId) -> Vec<Instance> {
    let wanted: String = network.0.iter().map(|byte| format!("{byte:02x}")).collect();
    let is_in = |instance: &Instance| {
        matches!(
            instance.ask(&Request::Hello, PATIENCE),
            Ok((Reply::Hello { network_id, .. }, _)) if network_id == wanted
        )
    };
    control::running().into_iter().filter(is_in).collect()
}

fn hand_over(instance: &Instance, text: &str) -> anyhow::Result<String> {
    let timeout_ms = u64::try_from(CONFIRMATION.as_millis()).unwrap_or(u64::MAX);
    let request = Request::Update { text: text.to_owned(), timeout_ms };
    match instance.ask(&request, CONFIRMATION + PATIENCE)?.0 {
        Reply::Update { taken, confirmed, nodes } => Ok(format!(
            "instance {} has taken {taken}; confirmed by {confirmed} of {nodes} nodes",
            instance.name
        )),
        other @ (Reply::Hello { .. }
        | Reply::Status(_)
        | Reply::Enter(_)
        | Reply::Ping(_)
        | Reply::Leaving
        | Reply::Busy { .. }
        | Reply::Error { .. }) => Err(control::unexpected(&other)),
    }
}
