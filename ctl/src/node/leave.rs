//! `leave`: ends an instance.

use std::{fmt::Write as _, fs, time::Duration};

use anyhow::{Context, bail};
use clusternet::{
    api::{Reply, Request},
    sys::process::PidFd,
};
use nix::sys::signal::Signal;

use super::Leave;
use crate::{
    control::{self, Instance, PATIENCE},
    output,
};

/// TERM, 5 s, KILL, and 5 s for what hangs in the kernel.
const KILL_PATIENCE: Duration = Duration::from_secs(20);

/// What the keeper needs to end its children.
const END_PATIENCE: Duration = Duration::from_secs(15);

/// Leaves; 0 when everything is gone.
pub(super) fn run(arguments: &Leave) -> anyhow::Result<u8> {
    let instance = Instance::pick(arguments.instance.as_ref())?;
    leave(&instance, arguments.kill)?;
    output::say(format!("{}: left", instance.name))?;
    Ok(0)
}

/// Ends `instance` and waits until nothing of it is left.
pub(super) fn leave(instance: &Instance, kill: bool) -> anyhow::Result<()> {
    let (hello, _) = match instance.ask(&Request::Hello, PATIENCE) {
        Err(error) if kill => return end_keeper(instance).context(format!("{error:#}")),
        other => other?,
    };
    let Reply::Hello { keeper, .. } = hello else { return Err(control::unexpected(&hello)) };
    let keeper = PidFd::open(keeper).context("hold the keeper")?;
    let patience = if kill { KILL_PATIENCE } else { PATIENCE };
    match instance.ask(&Request::Leave { kill }, patience)?.0 {
        Reply::Leaving => {}
        Reply::Busy { programs } => {
            let mut text = format!("programs run inside {}:\n", instance.name);
            for (pid, command) in &programs {
                // Writing into a string cannot fail.
                let _ = writeln!(text, "  {pid:>7}  {command}");
            }
            bail!("{text}end them first, or let `clusternet leave {} --kill` do it", instance.name);
        }
        other @ (Reply::Hello { .. }
        | Reply::Status(_)
        | Reply::Enter(_)
        | Reply::Ping(_)
        | Reply::Update { .. }
        | Reply::Error { .. }) => return Err(control::unexpected(&other)),
    }
    if keeper.wait(END_PATIENCE).context("wait for the keeper")? {
        Ok(())
    } else {
        bail!("the keeper of {} has not ended within {} s", instance.name, END_PATIENCE.as_secs())
    }
}

/// The last resort, where nobody answers: the keeper is asked by signal. Programs inside stay, in a network that is dead.
fn end_keeper(instance: &Instance) -> anyhow::Result<()> {
    let path = instance.directory.join("lock");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let pid: i32 = text.trim().parse().with_context(|| format!("understand {}", path.display()))?;
    let keeper = PidFd::open(pid).context("hold the keeper")?;
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let wanted = format!("\0keeper\0{}\0", instance.name);
    if !String::from_utf8_lossy(&words).ends_with(&wanted) {
        bail!("process {pid} is not the keeper of {}", instance.name);
    }
    keeper.signal(Signal::SIGTERM).context("ask the keeper to end")?;
    if keeper.wait(END_PATIENCE).context("wait for the keeper")? {
        return Ok(());
    }
    // Its children see that, and clean up.
    keeper.signal(Signal::SIGKILL).context("end the keeper")
}
