//! The clocks of `serve`: time that runs on while the machine sleeps, and word of jumps.
//!
//! `Instant` is `CLOCK_MONOTONIC`, which stands still during suspend: a laptop opened after a night would believe its tunnels
//! to be a moment old. Instants made here advance with `CLOCK_BOOTTIME` instead.

use std::{
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use anyhow::Context;
use clusternet::{
    sys::clock::{now, since_boot},
    words::time::Now,
};
use nix::{
    errno::Errno,
    sys::{
        time::TimeSpec,
        timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    },
};
use tokio::io::unix::AsyncFd;

/// Tells the time to everything in `serve`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    start: Instant,
    boot: Duration,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self { start: now().instant, boot: since_boot() }
    }

    /// Both clocks, now.
    pub(super) fn now(&self) -> Now {
        let instant = self.start + since_boot().saturating_sub(self.boot);
        Now { instant, wall: now().wall }
    }
}

/// Far enough that it never comes.
const FAR: i64 = 100 * 366 * 86_400;

/// Says when the wall clock has been set, or the machine has slept.
#[derive(Debug)]
pub(super) struct Jumps(AsyncFd<OwnedFd>);

impl Jumps {
    pub(super) fn watch() -> anyhow::Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer =
            TimerFd::new(ClockId::CLOCK_REALTIME, flags).context("make a timer for the clock")?;
        // Cancelled whenever somebody sets the clock, which waking up from sleep does too.
        timer
            .set(
                Expiration::OneShot(TimeSpec::new(now_seconds() + FAR, 0)),
                TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET,
            )
            .context("watch the clock")?;
        let timer = super::readable(timer.into()).context("watch the clock")?;
        Ok(Self(timer))
    }

    /// Comes back after a jump.
    pub(super) async fn next(&self) {
        loop {
            let Ok(mut ready) = self.0.readable().await else {
                return std::future::pending().await;
            };
            match nix::unistd::read(self.0.get_ref(), &mut [0; 8]) {
                // The timer stays armed: the next jump cancels it again.
                Err(Errno::ECANCELED) => return,
                Ok(_) | Err(_) => ready.clear_ready(),
            }
        }
    }
}

fn now_seconds() -> i64 {
    i64::try_from(now().wall.0 / 1000).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_runs_on_without_steps() {
        let clock = Clock::new();
        let (a, b) = (clock.now(), clock.now());
        assert!(b.instant >= a.instant);
        assert!(b.instant.duration_since(a.instant) < Duration::from_secs(60));
        assert!(a.instant.duration_since(now().instant) < Duration::from_secs(60));
    }
}
