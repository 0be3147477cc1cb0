//! The process in the namespace: answers ssh there. Knows the host key and who may execute, no tunnel keys.
//!
//! It enters while it has one thread (the kernel lets no other in), so every socket it makes is inside; gives up every
//! capability; only then starts tokio. Who may execute comes from `serve`, a line of JSON at a time, over a stream whose both
//! ends the keeper holds: either process may die and come back. A line cut short by a death is told from a whole one because
//! every `serve` begins with an empty line.

use anyhow::Context;
use clusternet::{
    sys::{account, enter, process},
    words::key::SigningSecret,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixStream, unix::OwnedWriteHalf},
    sync::watch,
};

use crate::{
    logging, runtime,
    ssh::{self, Account, Execute, Member, OwnerTable, SshSettings, client},
    start::{InheritedInside, Link},
};

/// The owner table of a network as large as a network may be.
const MAX_LINE: u64 = 32 << 20;

/// Ssh at network speed keeps one thread busy; a second one keeps sessions alive beside it.
const THREADS: usize = 2;

/// Runs to the keeper's end, and cleans up after it.
///
/// # Errors
/// What could not be done at the start; the keeper tries again.
pub(crate) fn run() -> anyhow::Result<()> {
    let inherited = InheritedInside::take()?;
    logging::start(None);
    process::forbid_core_files().context("forbid core files")?;
    let InheritedInside { about, keeper, serve, namespaces, listeners, lock } = inherited;
    let view = enter::View {
        hosts: about.view.hosts.clone(),
        ssh_config: about.view.bin.parent().map(client::configuration_file),
    };
    for warning in enter::enter(&namespaces, &view)?.warnings {
        tracing::warn!(warning, "inside is not quite as it should be");
    }
    drop(namespaces);
    enter::drop_privileges().context("give up privileges")?;
    process::forbid_inspection().context("forbid inspection")?;

    let host_secret = SigningSecret::from_text(&about.host.0).context("read the host key")?;
    let settings = SshSettings {
        host_secret,
        session_environment: about.view.environment.clone(),
        account: account(),
    };
    let nobody = OwnerTable {
        here: Member { name: about.view.hostname.clone(), owner: None },
        execute: Execute::Nobody,
        members: std::collections::HashMap::new(),
    };
    let tokio = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()
        .context("start tokio")?;
    let done = tokio.block_on(async {
        let (table, owners) = watch::channel(nobody);
        let listeners = listeners.into_iter().map(Into::into).collect();
        tokio::select! {
            done = ssh::serve(listeners, settings, owners) => done.context("answer ssh"),
            done = hear_owners(serve, &table) => done.context("hear who may execute"),
            () = keeper_ends(keeper) => Ok(()),
        }
    });
    // Sessions end with the runtime; nobody waits for a blocking read.
    tokio.shutdown_background();
    if done.is_ok() {
        runtime::remove_if_ours(&about.runtime, &lock);
    }
    drop(lock);
    done
}

/// Whose sessions these are. A uid without an entry in the user database gets by with what it has.
fn account() -> Account {
    match account::own() {
        Ok(own) => Account { name: own.name, home: own.home, shell: own.shell },
        Err(_) => Account {
            name: account::ids().0.to_string(),
            home: std::env::var_os("HOME").map_or_else(|| "/".into(), Into::into),
            shell: "/bin/sh".into(),
        },
    }
}

/// Comes back when the keeper has died or says that it is over.
async fn keeper_ends(link: Link) {
    let Ok(link) = link.into_tokio() else { return };
    // The keeper never says anything: readable is the end.
    let _ = link.readable().await;
}

async fn hear_owners(
    stream: std::os::unix::net::UnixStream,
    table: &watch::Sender<OwnerTable>,
) -> anyhow::Result<()> {
    stream.set_nonblocking(true).context("prepare the stream")?;
    let stream = UnixStream::from_std(stream).context("watch the stream")?;
    let (reader, mut writer) = stream.into_split();
    ask_again(&mut writer).await?;
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        let length = (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line).await?;
        anyhow::ensure!(length > 0, "the stream has ended");
        if line.trim_ascii().is_empty() {
            continue;
        }
        match serde_json::from_slice::<OwnerTable>(&line) {
            Ok(new) => {
                table.send_if_modified(|old| {
                    let differs = *old != new;
                    *old = new;
                    differs
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a line about who may execute cannot be understood");
            }
        }
    }
}

async fn ask_again(writer: &mut OwnedWriteHalf) -> anyhow::Result<()> {
    writer.write_all(b"\n").await.context("ask for the owner table")
}
