//! `clusternet list`: the ledger.

use clusternet::{
    config::ledger::{Ledger, Standing},
    sys::clock,
    words::{certificate::Certificate, time::Timestamp},
};
use serde::Serialize;

use super::{ListArgs, directory};
use crate::output;

#[derive(Serialize)]
struct Entry {
    name: String,
    number: u32,
    serial: u64,
    role: String,
    owner: Option<String>,
    ipv4: String,
    ipv6: String,
    not_before: String,
    not_after: String,
    state: String,
    /// Number of the revocation.
    revocation: Option<u64>,
    transport: String,
    host: Option<String>,
}

#[derive(Serialize)]
struct Listing {
    network: String,
    authority: String,
    version: u64,
    ipv4: String,
    ipv6: String,
    revocations: u64,
    certificates: Vec<Entry>,
}

fn entry(ledger: &Ledger, certificate: &Certificate, now: Timestamp) -> Entry {
    let standing = ledger.standing(certificate, now);
    Entry {
        name: certificate.name.to_string(),
        number: certificate.number.0,
        serial: certificate.serial.0,
        role: certificate.roles.to_string(),
        owner: certificate.owner.as_ref().map(ToString::to_string),
        ipv4: certificate.ipv4.to_string(),
        ipv6: certificate.ipv6().to_string(),
        not_before: certificate.not_before.to_string(),
        not_after: certificate.not_after.to_string(),
        state: standing.to_string(),
        revocation: match standing {
            Standing::Revoked(number) => Some(number),
            Standing::Valid | Standing::NotYet | Standing::Replaced | Standing::Expired => None,
        },
        transport: certificate.transport.to_string(),
        host: certificate.host.map(|host| host.to_string()),
    }
}

pub(super) fn run(args: ListArgs) -> anyhow::Result<u8> {
    let now = clock::now().wall;
    let ledger = directory::read(&directory::find(&args.ledger)?)?;
    let mut certificates: Vec<Entry> =
        ledger.certificates.iter().map(|c| entry(&ledger, c, now)).collect();
    certificates.sort_by_key(|entry| (entry.number, entry.serial));
    if args.json {
        output::say_json(&Listing {
            network: ledger.network.name.to_string(),
            authority: ledger.authority.to_string(),
            version: ledger.network.version,
            ipv4: ledger.network.ipv4.to_string(),
            ipv6: ledger.id().prefix().to_string(),
            revocations: ledger.head.count,
            certificates,
        })?;
        return Ok(0);
    }
    let heads = ["NAME", "SERIAL", "ROLE", "OWNER", "IPV4", "IPV6", "UNTIL", "STATE"];
    let mut table = output::table(heads);
    for entry in certificates {
        table.add_row([
            entry.name,
            entry.serial.to_string(),
            entry.role,
            entry.owner.unwrap_or_else(|| "-".to_owned()),
            entry.ipv4,
            entry.ipv6,
            entry.not_after,
            entry.state,
        ]);
    }
    output::say_table(table)?;
    Ok(0)
}
