//! The keeper: holds what must outlive a crash (namespaces, device, listeners, the files of `join`) and looks after the two
//! processes that use it. Single-threaded; no network code.
//!
//! *Start-up in stages.* 1 read what `join` wants on standard input. 2 take the runtime directory's lock, leave the terminal.
//! 3 fork the builder, which needs a process with a single thread that may still be inspected, and receive namespaces, device
//! and ssh listeners. 4 give up core files and inspection. 5 write what a command inside needs and bind the control socket.
//! Then [`watch`] starts `inside` and `serve` and stays with them.

mod caller;
mod child;
mod watch;

use std::{
    fs::{self, DirBuilder, OpenOptions},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
    slice,
};

use anyhow::{Context, ensure};
use clusternet::{
    api::{Progress, Start, View},
    sys::{clock, namespace, process},
};
use nix::unistd::{dup2_stderr, dup2_stdout, setsid};

use self::caller::Caller;
use crate::{
    builder, logging,
    runtime::{self, Runtime},
    ssh::client,
    start::Files,
};

/// In the state directory: why the instance ended by itself, in words.
const ENDED: &str = "ended";

/// A log longer than this is set aside when the instance starts.
const MAX_LOG: u64 = 4 << 20;

/// Runs the keeper to its end.
///
/// # Errors
/// What was tried and why it failed; the caller has been told, and nothing is left behind.
pub(crate) fn run() -> anyhow::Result<()> {
    let mut caller = Caller::take()?;
    let done = stages(&mut caller);
    if let Err(error) = &done {
        caller.tell(&Progress::Failed { message: format!("{error:#}") });
    }
    done
}

fn stages(caller: &mut Caller) -> anyhow::Result<()> {
    // Stage 1: what is wanted. It is not believed only because `join` has checked it.
    let start = caller.read_start()?;
    ensure!(
        start.version == env!("CARGO_PKG_VERSION"),
        "this is clusternetd {}, called by clusternet {}: the versions must match",
        env!("CARGO_PKG_VERSION"),
        start.version
    );
    let files = Files::parse(&start, clock::now().wall)?;

    // Stage 2: a place of our own.
    let mut runtime = Runtime::make(&start.runtime, &start.instance)?;
    let done = live(caller, &start, &files, &mut runtime);
    if let Err(error) = &done {
        tracing::error!(error = format!("{error:#}"), "ending");
    }
    runtime::remove(runtime.path());
    done
}

fn live(
    caller: &mut Caller,
    start: &Start,
    files: &Files,
    runtime: &mut Runtime,
) -> anyhow::Result<()> {
    own_state(&start.state)?;
    // What an earlier one left for whoever asks why it is gone.
    let _ = fs::remove_file(start.state.join(ENDED));
    if !start.foreground {
        leave_terminal(&start.state)?;
    }
    logging::start(files.master.node.log.as_deref());
    tracing::info!(instance = %start.instance, version = start.version, "starting");
    let view = write_view(start, files, runtime)?;

    // Stage 3: needs a single thread, and to be inspected.
    let certificate = &files.identity.certificate;
    let built = builder::run(&namespace::BuildSpec {
        hostname: certificate.name.to_string(),
        ipv4: certificate.ipv4,
        ipv4_prefix: files.master.network.ipv4.prefix_len(),
        ipv6: certificate.ipv6(),
        ipv6_prefix: certificate.network.prefix().prefix_len(),
        mtu: files.master.node.mtu,
        queues: files.master.node.tuning.workers(),
        hosts: view.hosts.clone(),
        backend: namespace::Backend::Auto,
        ssh_port: true,
    })?;
    caller.tell(&Progress::Built { device: built.device.kind.as_str().to_owned() });

    // Stage 4: from here on nobody reads our memory, and no file shows it.
    process::forbid_core_files().context("forbid core files")?;
    process::forbid_inspection().context("forbid inspection")?;

    // Stage 5: the control socket. What comes next needs it, `serve` first of all.
    watch::Keeper::new(start, files, view, built, runtime, caller)?.run()
}

/// The state directory, 0700: roster cache and log say who is in the network.
fn own_state(path: &Path) -> anyhow::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("make the state directory {}", path.display()))
}

/// A session of our own, the log in place of standard output and error.
fn leave_terminal(state: &Path) -> anyhow::Result<()> {
    setsid().context("leave the terminal")?;
    let path = state.join("log");
    if fs::metadata(&path).is_ok_and(|about| about.len() > MAX_LOG) {
        let _ = fs::rename(&path, state.join("log.old"));
    }
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("open the log {}", path.display()))?;
    dup2_stdout(&log).and_then(|()| dup2_stderr(&log)).context("log in place of standard error")?;
    std::env::set_current_dir("/").context("leave the working directory")
}

/// Writes what a command inside needs, as far as it is known before any other node is.
fn write_view(start: &Start, files: &Files, runtime: &Runtime) -> anyhow::Result<View> {
    let own = files.own();
    let network = &files.master.network.name;
    let ssh = runtime.path().join(runtime::SSH);
    let pvm = runtime.path().join(runtime::PVM);
    for directory in [&ssh, &pvm] {
        DirBuilder::new()
            .mode(0o700)
            .create(directory)
            .with_context(|| format!("make {}", directory.display()))?;
    }
    let hosts = runtime.path().join(runtime::HOSTS);
    runtime::write_hosts(&hosts, &runtime::hosts_text(network, slice::from_ref(&own)))?;
    let key = own.host.map(|key| client::NodeKey {
        names: vec![own.name.to_string(), format!("{}.{network}", own.name)],
        addresses: vec![own.ipv4.into(), own.ipv6.into()],
        key,
    });
    client::write(&ssh, key.as_slice(), client::PORT).context("write ssh's configuration")?;
    let bin = client::bin_directory(&ssh);
    let mut environment = client::environment(&bin, &pvm, |_| None);
    environment.push(("CLUSTERNET_INSTANCE".into(), start.instance.as_str().into()));
    Ok(View { hostname: own.name, hosts, environment, bin })
}
