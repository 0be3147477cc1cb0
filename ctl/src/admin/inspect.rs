//! `clusternet inspect`: any file of a network, never a secret.

use std::{io, path::Path};

use anyhow::{Context, bail};
use clusternet::{
    config::{
        FileKind, MAX_FILE, MAX_LEDGER,
        cert::CertFile,
        key::{AuthorityFile, KeyFile},
        ledger::Ledger,
        master::{Execute, MasterFile, NodeTable},
        request::RequestFile,
        revocations::RevocationsFile,
        tuning::{Tuning, suite_name},
    },
    sys::{clock, file},
    words::{
        certificate::{Certificate, Validity},
        id::NetworkId,
        key::VerifyKey,
        network::Network,
        revocation::Revocation,
        time::Timestamp,
    },
};
use zeroize::Zeroizing;

use super::{InspectArgs, fields::Fields, issue::is_standard_stream};
use crate::output;

pub(super) fn run(args: InspectArgs) -> anyhow::Result<u8> {
    let path = &args.file;
    // Any of these may hold secrets.
    let text = Zeroizing::new(if is_standard_stream(path) {
        file::read_stream(io::stdin().lock(), "standard input", MAX_LEDGER)?
    } else {
        file::read_text(path, MAX_LEDGER)?
    });
    let fields = describe(path, &text).with_context(|| path.display().to_string())?;
    if args.json {
        output::say_json(&fields)?
    } else {
        output::say(fields.to_text())?
    }
    Ok(0)
}

fn describe(path: &Path, text: &str) -> anyhow::Result<Fields> {
    let now = clock::now().wall;
    let Some(kind) = FileKind::of(text)? else {
        bail!("is no file of a network: it has none of the tables that those begin with");
    };
    let mut fields = Fields::default();
    fields.text("file", kind);
    match kind {
        FileKind::Master => {
            let file = MasterFile::parse(text)?;
            network(&mut fields, &file.network);
            fields.text("signature", "verifies under this authority");
            if file.node != NodeTable::default() {
                fields.list("node", vec![node(&file.node)]);
            }
        }
        FileKind::Authority => {
            let file = AuthorityFile::parse(text)?;
            fields.text("network", &file.network).text("secret", "present, not shown");
            authority(&mut fields, &file.secret.public());
            privacy(&mut fields, path);
        }
        FileKind::Key => {
            let file = KeyFile::parse(text)?;
            let (transport, host) = file.secrets.public();
            fields.text("name", &file.name).text("secrets", "present, not shown");
            fields.text("transport_key", transport).text("host_key", host);
            privacy(&mut fields, path);
            match &file.certificate {
                Some(cert) => {
                    let ours = cert.certificate.transport == transport
                        && cert.certificate.host == Some(host);
                    let mut table = certificate_file(cert, path, now);
                    table.text(
                        "keys",
                        if ours { "those of this file" } else { "NOT those of this file" },
                    );
                    fields.list("certificate", vec![table]);
                }
                None => {
                    fields.text("certificate", "none yet: it comes with a .cert beside this file");
                }
            }
        }
        FileKind::Cert => {
            let file = CertFile::parse(text)?;
            fields.list("certificate", vec![certificate_file(&file, path, now)]);
        }
        FileKind::Request => {
            let request = RequestFile::parse(text)?.request;
            fields.text("name", &request.name);
            fields.text("transport_key", request.transport).text("host_key", request.host);
            fields.text("signature", "verifies: whoever asks holds the host key");
        }
        FileKind::Revocations => {
            let file = RevocationsFile::parse(text)?;
            authority(&mut fields, &file.authority);
            fields.text("signature", verdict(&file.authority, path));
            fields.number("count", file.head.count).text("date", file.head.date);
            fields.list("revocations", file.list.iter().map(|r| revocation(r)).collect());
        }
        FileKind::Ledger => {
            let ledger = Ledger::parse(text)?;
            network(&mut fields, &ledger.network);
            fields.text("signature", "everything in it verifies under this authority");
            fields.text("owner", or_none(ledger.owner.as_ref()));
            fields.number("next_number", ledger.next_number.into());
            fields.number("next_serial", ledger.next_serial);
            let certificates = ledger.certificates.iter().map(|c| {
                let mut table = certificate(c);
                table.text("state", ledger.standing(c, now));
                table
            });
            fields.list("certificates", certificates.collect());
            fields.list("revocations", ledger.revocations.iter().map(|r| revocation(r)).collect());
        }
    }
    Ok(fields)
}

fn or_none<T: ToString>(value: Option<&T>) -> String {
    value.map_or_else(|| "none".to_owned(), ToString::to_string)
}

fn authority(fields: &mut Fields, key: &VerifyKey) {
    fields.text("authority", key).text("ipv6", NetworkId::of(key).prefix());
}

fn network(fields: &mut Fields, network: &Network) {
    fields.text("network", &network.name);
    authority(fields, &network.authority);
    fields.text("ipv4", network.ipv4).number("version", network.version);
    fields.text("date", network.date);
    let masters = network.masters.iter().map(|master| {
        let mut table = Fields::default();
        table.text("name", &master.name).number("number", master.number.0.into());
        table.text("transport_key", master.transport).text("host_key", master.host);
        table.texts("endpoints", &master.endpoints);
        table
    });
    fields.list("masters", masters.collect());
}

fn node(node: &NodeTable) -> Fields {
    let mut table = Fields::default();
    if let Some(key) = &node.key {
        table.text("key", key.display());
    }
    if let Some(listen) = node.listen {
        table.text("listen", listen);
    }
    if !node.endpoints.is_empty() {
        table.texts("endpoints", &node.endpoints);
    }
    table.number("mtu", node.mtu.into());
    tuning(&node.tuning, &mut table);
    match &node.execute {
        Execute::Owner => table.text("execute", "owner"),
        Execute::None => table.text("execute", "none"),
        Execute::Owners(owners) => table.texts("execute", owners),
    };
    if let Some(instance) = &node.instance {
        table.text("instance", instance);
    }
    if let Some(log) = &node.log {
        table.text("log", log);
    }
    table
}

fn tuning(tuning: &Tuning, table: &mut Fields) {
    if let Some(workers) = tuning.workers {
        table.number("workers", workers.into());
    }
    if !tuning.cores.is_empty() {
        table.texts("cores", &tuning.cores);
    }
    if let Some(poll) = tuning.poll {
        table.number("poll", poll.into());
    }
    if let Some(suite) = tuning.suite {
        table.text("suite", suite_name(suite));
    }
    if let Some(offload) = tuning.offload {
        table.text("offload", offload);
    }
    if let Some(bytes) = tuning.socket_buffer {
        table.number("socket-buffer", bytes.into());
    }
    if let Some(mtu) = tuning.underlay_mtu {
        table.number("underlay-mtu", mtu.into());
    }
}

fn certificate(certificate: &Certificate) -> Fields {
    let mut table = Fields::default();
    table.text("name", &certificate.name).number("serial", certificate.serial.0);
    table.number("number", certificate.number.0.into());
    table.text("ipv4", certificate.ipv4).text("ipv6", certificate.ipv6());
    table.text("role", certificate.roles).text("owner", or_none(certificate.owner.as_ref()));
    table.text("transport_key", certificate.transport);
    table.text("host_key", or_none(certificate.host.as_ref()));
    table.text("not_before", certificate.not_before).text("not_after", certificate.not_after);
    table
}

fn certificate_file(file: &CertFile, path: &Path, now: Timestamp) -> Fields {
    let mut table = certificate(&file.certificate);
    let validity = match file.certificate.validity(now) {
        Validity::NotYet => "not yet valid",
        _ if file.certificate.has_ended(now) => "expired",
        Validity::Valid | Validity::Expired => "valid now, unless it was revoked",
    };
    table.text("validity", validity).text("authority", file.authority);
    table.text("signature", verdict(&file.authority, path));
    table
}

fn revocation(revocation: &Revocation) -> Fields {
    let mut table = Fields::default();
    table.number("number", revocation.number).number("serial", revocation.serial.0);
    table.text("transport_key", revocation.transport);
    table.text("host_key", or_none(revocation.host.as_ref())).text("date", revocation.date);
    table
}

/// It verifies, or we would not be here; whether under the right authority, only a `master.toml` beside it can tell.
fn verdict(authority: &VerifyKey, path: &Path) -> String {
    let beside = path.with_file_name("master.toml");
    let master = file::read_text(&beside, MAX_FILE).ok().and_then(|t| MasterFile::parse(&t).ok());
    match master {
        Some(master) if master.network.authority == *authority => {
            format!("verifies under the authority of {}", beside.display())
        }
        Some(_) => format!("verifies, but under ANOTHER authority than {}'s", beside.display()),
        None => {
            "verifies under the authority it names (no master.toml beside it to compare)".to_owned()
        }
    }
}

fn privacy(fields: &mut Fields, path: &Path) {
    if is_standard_stream(path) {
        return;
    }
    let told = match file::read_private(path, MAX_FILE) {
        Ok(_) => "private".to_owned(),
        Err(error) => error.to_string(),
    };
    fields.text("access", told);
}
