//! `clusternet init`: a network begins.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::bail;
use clusternet::{
    config::{
        authority::{Authority, Beginning, check_name},
        cert::CertFile,
        key::{AuthorityFile, KeyFile, Secrets},
    },
    sys::{clock, file},
    words::{id::Owner, key::SigningSecret},
};
use nix::unistd::{Uid, User};

use super::{
    InitArgs, OwnerArg,
    directory::{self, Directory, PRIVATE},
};
use crate::{exit, output};

pub(super) fn run(args: InitArgs) -> anyhow::Result<u8> {
    let now = clock::now().wall;
    let not_after = super::validity(&args.valid, now)?;
    let owner = match args.owner {
        Some(OwnerArg(owner)) => owner,
        None => Some(login_name()?),
    };
    check_name(&args.master)?;
    let path = args.dir.unwrap_or_else(|| PathBuf::from(args.network.as_str()));
    let made = file::make_private_directory(&path)?;
    let lock = directory::lock(&path)?;
    let key_path = path.join(format!("{}.key", args.master));
    refuse_what_is_there(&path, &key_path)?;

    let secret = SigningSecret::generate();
    let secrets = Secrets::generate();
    let beginning = Beginning {
        name: args.network.clone(),
        ipv4: args.ipv4,
        owner: owner.clone(),
        master: args.master.clone(),
        keys: secrets.public(),
        endpoints: args.endpoints,
        not_after,
    };
    let begun = Authority::begin(secret.clone(), beginning, now).map_err(super::refused);
    let (authority, issued) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            clean_up(&path, &[], made);
            return Err(error);
        }
    };
    let certificate = CertFile {
        authority: authority.ledger().authority,
        certificate: issued.certificate.clone(),
    };
    let key = KeyFile { name: args.master.clone(), secrets, certificate: Some(certificate) };
    let authority_file = AuthorityFile { network: args.network.clone(), secret };
    let authority_path = path.join("authority.key");
    // The ledger comes last: without it there is no network yet.
    let written = file::replace(&authority_path, authority_file.render().as_bytes(), PRIVATE)
        .and_then(|()| file::replace(&key_path, key.render().as_bytes(), PRIVATE))
        .map_err(anyhow::Error::from);
    let directory = Directory::begun(path.clone(), authority, lock);
    if let Err(error) = written.and_then(|()| directory.publish()).and_then(|()| directory.commit())
    {
        clean_up(&path, &[authority_path, key_path, path.join("master.toml")], made);
        return Err(error);
    }

    let ledger = directory.authority.ledger();
    let master = &args.master;
    output::say(format!(
        "network {}: {} and {}, authority {}\n\
         {master}: master, {} and {}, until {}\n\
         {}\n",
        args.network,
        ledger.network.ipv4,
        ledger.id().prefix(),
        ledger.authority,
        issued.certificate.ipv4,
        issued.certificate.ipv6(),
        issued.certificate.not_after,
        super::who_may_execute(&directory.authority, now),
    ))?;
    output::say(format!(
        "{}  give it to every node\n\
         {}  secret: take it to {master}, and there alone\n\
         {}  secret: decides who is a member; nothing that runs needs it\n\n\
         next: clusternet issue NAME --dir {}   for every other node\n\
         and on each machine: clusternet join master.toml",
        path.join("master.toml").display(),
        path.join(format!("{master}.key")).display(),
        path.join("authority.key").display(),
        path.display(),
    ))?;
    output::warn(&format!(
        "{} lies on this machine. If this is {master}, it lies beside the most exposed node of the network: whoever breaks \
         in there could make nodes of their own. Move {} to a machine that no other can reach",
        path.join("authority.key").display(),
        path.display(),
    ));
    if let Some(owner) = owner {
        output::warn(&format!(
            "{master} has the owner {owner}, so whoever breaks into it can run commands on every other node of {owner}. \
             To leave it without owner: clusternet issue {master} --dir {} --owner none",
            path.display()
        ));
    }
    Ok(0)
}

fn refuse_what_is_there(path: &Path, key: &Path) -> anyhow::Result<()> {
    let ledger = path.join("ledger.toml");
    if ledger.exists() {
        bail!("{}: here is a network already; choose another name, or --dir", ledger.display());
    }
    for secret in [path.join("authority.key"), key.to_owned()] {
        if secret.exists() {
            bail!(
                "{}: is there already, without a ledger: left by an init that was interrupted (then remove it), or \
                 another network's (then choose another --dir)",
                secret.display()
            );
        }
    }
    Ok(())
}

fn clean_up(path: &Path, files: &[PathBuf], made: bool) {
    for file in files {
        let _ = fs::remove_file(file);
    }
    if made {
        let _ = fs::remove_file(path.join(".ledger.lock"));
        let _ = fs::remove_dir(path);
    }
}

/// The name of the user who runs this command.
fn login_name() -> anyhow::Result<Owner> {
    let by_uid = User::from_uid(Uid::current()).ok().flatten().map(|user| user.name);
    let name =
        by_uid.or_else(|| std::env::var("LOGNAME").ok()).or_else(|| std::env::var("USER").ok());
    let Some(name) = name else {
        return Err(exit::wrong_use(
            "this user has no login name: say who may run commands on the nodes with --owner NAME or --owner none",
        ));
    };
    name.parse().map_err(|error| {
        exit::wrong_use(format!(
            "your login name cannot be an owner: {error}; give --owner NAME or --owner none"
        ))
    })
}
