//! The wg-quick file of a plain WireGuard member.

use anyhow::bail;
use clusternet::{
    config::{ledger::Ledger, master::DEFAULT_MTU},
    words::{certificate::Certificate, endpoint::Endpoint, network::Master},
};

/// The master that takes plain WireGuard members in: the first, as every node knows it, and its UDP endpoint.
pub(super) fn gateway(ledger: &Ledger) -> anyhow::Result<(&Master, &Endpoint)> {
    let Some(master) = ledger.network.masters.first() else {
        bail!("the network has no master that could be the gateway");
    };
    let udp = master.endpoints.iter().find(|endpoint| matches!(endpoint, Endpoint::Udp { .. }));
    match udp {
        Some(endpoint) => Ok((master, endpoint)),
        None => bail!(
            "{} has no udp:// endpoint, and plain WireGuard speaks nothing else: give it one (clusternet issue {} \
             --endpoint udp://HOST:PORT)",
            master.name,
            master.name
        ),
    }
}

/// What `wg-quick` reads. The secret is the holder's own and not known here.
pub(super) fn configuration(ledger: &Ledger, certificate: &Certificate) -> anyhow::Result<String> {
    let (master, endpoint) = gateway(ledger)?;
    let endpoint = endpoint.to_string();
    let place = endpoint.strip_prefix("udp://").unwrap_or(&endpoint);
    Ok(format!(
        "# {} in network {}, until {}\n\
         [Interface]\n\
         # The secret whose public key is {}\n\
         PrivateKey = REPLACE-WITH-THE-SECRET-KEY\n\
         Address = {}/32, {}/128\n\
         MTU = {DEFAULT_MTU}\n\n\
         [Peer]\n\
         # {}\n\
         PublicKey = {}\n\
         Endpoint = {place}\n\
         AllowedIPs = {}, {}\n\
         PersistentKeepalive = 25\n",
        certificate.name,
        ledger.network.name,
        certificate.not_after,
        certificate.transport,
        certificate.ipv4,
        certificate.ipv6(),
        master.name,
        master.transport,
        ledger.network.ipv4,
        ledger.id().prefix(),
    ))
}
