//! `clusternet request`: a node makes its own secrets and asks for a certificate.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clusternet::{
    config::{
        MAX_FILE,
        authority::check_name,
        key::{KeyFile, Secrets},
        request::RequestFile,
    },
    sys::file::{self, FileAccessError},
};

use super::{
    RequestArgs,
    directory::{PRIVATE, PUBLIC},
    issue::is_standard_stream,
};
use crate::output;

pub(super) fn run(args: RequestArgs) -> anyhow::Result<u8> {
    let name = &args.name;
    check_name(name)?;
    let path = args.output.unwrap_or_else(|| PathBuf::from(format!("{name}.request")));
    let key_path = path.with_file_name(format!("{name}.key"));
    let (secrets, old) = match file::read_private(&key_path, MAX_FILE) {
        Ok(text) => {
            let key = KeyFile::parse(&text).with_context(|| key_path.display().to_string())?;
            if key.name != *name {
                bail!("{}: is the key file of `{}`", key_path.display(), key.name);
            }
            (key.secrets, true)
        }
        Err(FileAccessError::Missing(_)) => {
            let secrets = Secrets::generate();
            let key = KeyFile { name: name.clone(), secrets: secrets.clone(), certificate: None };
            file::replace(&key_path, key.render().as_bytes(), PRIVATE)?;
            (secrets, false)
        }
        Err(error) => return Err(error.into()),
    };
    let text = RequestFile::new(name.clone(), &secrets).render();
    let told = format!(
        "{}  secret{}: stays on this machine",
        key_path.display(),
        if old { ", the one that was there" } else { "" }
    );
    if is_standard_stream(&path) {
        output::note(&told);
        output::print_bytes(text.as_bytes())?;
        return Ok(0);
    }
    file::replace(&path, text.as_bytes(), PUBLIC)?;
    output::say(format!(
        "{told}\n{}  give it to the network's admin, who answers with {name}.cert (clusternet issue {name} --request \
         {})\nthen lay {name}.cert and master.toml beside the key, and: clusternet join master.toml",
        path.display(),
        path.file_name().unwrap_or_default().to_string_lossy(),
    ))?;
    Ok(0)
}
