//! `clusternet revoke`: certificates are taken back.

use clusternet::{sys::clock, words::id::Name};

use super::{RevokeArgs, directory::Directory, hand_over};
use crate::{Context, output};

pub(super) fn run(args: RevokeArgs, context: Context) -> anyhow::Result<u8> {
    let now = clock::now().wall;
    let mut directory = Directory::open(&args.ledger)?;
    let revoked = directory.authority.revoke(&args.target, now).map_err(super::refused)?;
    directory.commit()?;

    let ledger = directory.authority.ledger();
    let mut lines = Vec::new();
    if revoked.new.is_empty() {
        lines.push("revoked already: nothing has changed".to_owned());
    } else {
        let names = revoked.names.iter().map(Name::as_str).collect::<Vec<_>>().join(", ");
        let serials: Vec<_> = revoked.ended.iter().map(ToString::to_string).collect();
        lines.push(format!("revoked {names}: serial {}", serials.join(", ")));
    }
    if context.verbose > 0 {
        lines.extend(revoked.new.iter().map(|r| {
            format!(
                "revocation {} of {}: serial {}, key {}",
                r.number, r.date, r.serial, r.transport
            )
        }));
    }
    let path = directory.file("revocations");
    let text = ledger.revocations_file().render();
    let handed = hand_over::to_local_daemons(&ledger.id(), &text);
    if handed.is_empty() {
        lines.push(format!(
            "{}  no node of {} runs here: hand it to any running one (clusternet update revocations); it spreads by itself",
            path.display(),
            ledger.network.name
        ));
    }
    lines.extend(handed);
    if revoked.network_changed {
        lines.push(format!(
            "{} is version {} now, without the master that was revoked: hand it to the running nodes as well",
            directory.file("master.toml").display(),
            ledger.network.version
        ));
        lines.extend(hand_over::master_file(&directory)?);
    }
    output::say(lines.join("\n"))?;
    if revoked.masterless {
        output::warn(
            "the network has no master any more: issue another one (clusternet issue NAME --role master --endpoint URL) and \
             give the new master.toml to every node",
        );
    }
    Ok(0)
}
