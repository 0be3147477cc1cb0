//! A child of the keeper: started, restarted with patience, ended.

use std::{
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::process::CommandExt,
    },
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context;
use nix::sys::socket::Shutdown;
use serde::Serialize;

use crate::start::Link;

/// The first wait before a child that has died is started again; doubled each time.
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// The longest.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Whoever has run this long was well: the next wait is the first one again.
const STABLE: Duration = Duration::from_secs(60);

/// When to start a child again.
#[derive(Debug)]
pub(super) struct Backoff {
    wait: Duration,
    started: Option<Instant>,
    due: Option<Instant>,
}

impl Backoff {
    /// Due at once.
    pub(super) fn new(now: Instant) -> Self {
        Self { wait: FIRST_WAIT, started: None, due: Some(now) }
    }

    /// When the child is to be started; `None` while it runs.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// It runs.
    pub(super) fn started(&mut self, now: Instant) {
        self.started = Some(now);
        self.due = None;
    }

    /// It has ended, or could not be started; how long it is left alone.
    pub(super) fn ended(&mut self, now: Instant) -> Duration {
        if self.started.is_some_and(|at| now.duration_since(at) >= STABLE) {
            self.wait = FIRST_WAIT;
        }
        let wait = self.wait;
        self.wait = (wait * 2).min(LONGEST_WAIT);
        self.started = None;
        self.due = Some(now + wait);
        wait
    }
}

/// A child that runs.
#[derive(Debug)]
pub(super) struct Running {
    child: Child,
    link: Link,
}

impl Running {
    /// Starts this very program in another role and sends it its first message.
    pub(super) fn start(
        role: &str,
        instance: &str,
        message: &impl Serialize,
        fds: &[BorrowedFd<'_>],
    ) -> anyhow::Result<Self> {
        let (link, theirs) = Link::pair()?;
        // The file behind this name is the one that runs now, even if another version has taken its place meanwhile.
        let child = Command::new("/proc/self/exe")
            .arg0("clusternetd")
            .args([role, instance])
            .stdin(Stdio::from(theirs.into_fd()))
            // A terminal's Ctrl-C is for the keeper, which ends the others in good order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {role}"))?;
        let running = Self { child, link };
        running.link.send(message, fds).with_context(|| format!("start {role}"))?;
        Ok(running)
    }

    /// Its process id.
    pub(super) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap_or(0)
    }

    /// The line to it.
    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    /// Whether it has ended.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Tells it that it is time to end: its socket does.
    pub(super) fn hang_up(&self) {
        let _ = nix::sys::socket::shutdown(self.link.as_raw_fd(), Shutdown::Both);
    }

    /// Ends it the hard way, unless it has ended; how it ended.
    pub(super) fn kill(mut self) -> Option<ExitStatus> {
        let _ = self.child.kill();
        self.child.wait().ok()
    }
}

impl AsFd for Running {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_half_a_minute_and_start_over_after_a_stable_one() {
        let start = clusternet::sys::clock::now().instant;
        let mut backoff = Backoff::new(start);
        assert_eq!(backoff.due(), Some(start));
        let mut waits = Vec::new();
        for _ in 0..11 {
            backoff.started(start);
            assert_eq!(backoff.due(), None);
            waits.push(backoff.ended(start).as_millis());
        }
        assert_eq!(waits[..4], [100, 200, 400, 800]);
        assert_eq!(waits[9..], [30_000, 30_000]);
        backoff.started(start);
        assert_eq!(backoff.ended(start + Duration::from_secs(60)), Duration::from_millis(100));
        assert_eq!(backoff.due(), Some(start + Duration::from_millis(60_100)));
    }
}
