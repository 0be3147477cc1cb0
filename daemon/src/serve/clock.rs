//! Word of jumps: of a wall clock that has been set, of a machine that has slept.

use std::os::fd::OwnedFd;

use anyhow::Context;
use clusternet::sys::clock::now;
use nix::{
    errno::Errno,
    sys::{
        time::TimeSpec,
        timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    },
};
use tokio::io::unix::AsyncFd;

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
