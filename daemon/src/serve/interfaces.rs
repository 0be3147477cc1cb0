//! Changes of this machine's addresses and routes, as the kernel tells them.

use std::{
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use anyhow::Context;
use clusternet::sys::interfaces::Watcher;
use tokio::{
    io::unix::AsyncFd,
    time::{Instant, sleep_until},
};

/// Changes come in bursts, and an address takes a moment to be usable.
const SETTLE: Duration = Duration::from_millis(300);

/// Watches the network namespace of this process: the host's.
#[derive(Debug)]
pub(super) struct Interfaces {
    watcher: Watcher,
    readable: AsyncFd<OwnedFd>,
    /// When the burst that is going on counts as over.
    settled: Option<Instant>,
}

impl Interfaces {
    pub(super) fn watch() -> anyhow::Result<Self> {
        let what = "watch this machine's addresses";
        let watcher = Watcher::open().context(what)?;
        let fd = watcher.as_fd().try_clone_to_owned().context(what)?;
        let readable = super::readable(fd).context(what)?;
        Ok(Self { watcher, readable, settled: None })
    }

    /// Comes back when something has changed and a moment has passed. Cancel safety: nothing is lost.
    pub(super) async fn changed(&mut self) -> anyhow::Result<()> {
        let settled = match self.settled {
            Some(settled) => settled,
            None => {
                let mut ready = self.readable.readable().await.context("watch addresses")?;
                ready.clear_ready();
                drop(ready);
                let settled = Instant::now() + SETTLE;
                self.settled = Some(settled);
                settled
            }
        };
        sleep_until(settled).await;
        self.settled = None;
        self.watcher.drain().context("hear which addresses have changed")?;
        Ok(())
    }
}
