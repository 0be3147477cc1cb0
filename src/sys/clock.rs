//! The one place where the library reads the clocks. Everything above is given the time as an argument.

use std::time::{Duration, Instant, SystemTime};

use nix::time::{ClockId, clock_gettime};

use crate::words::time::{Now, Timestamp};

/// Both clocks, now.
#[expect(clippy::disallowed_methods, reason = "the marked place: shells and workers ask here")]
pub fn now() -> Now {
    Now { instant: Instant::now(), wall: Timestamp::from_system(SystemTime::now()) }
}

/// Tells time that runs on while the machine sleeps. `Instant` is `CLOCK_MONOTONIC`, which stands still during suspend: a laptop
/// opened after a night would believe its keys to be a moment old. Instants made here advance with `CLOCK_BOOTTIME` instead.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
    boot: Duration,
}

impl Clock {
    /// Begins now. All who compare instants share one, or copies of it.
    #[expect(clippy::new_without_default, reason = "reads the clock: not a value out of nothing")]
    pub fn new() -> Self {
        Self { start: now().instant, boot: since_boot() }
    }

    /// Both clocks, now.
    pub fn now(&self) -> Now {
        Now { instant: self.instant(), wall: now().wall }
    }

    /// The clock that keys and paths live by.
    pub fn instant(&self) -> Instant {
        self.start + since_boot().saturating_sub(self.boot)
    }
}

/// Time since the machine started, sleep included (`CLOCK_BOOTTIME`). Compared with the wall clock it shows jumps; compared with
/// the monotonic clock it shows sleep.
pub fn since_boot() -> Duration {
    // Cannot fail: the clock exists since Linux 2.6.39.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
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

    #[test]
    fn the_clocks_run() {
        let (a, boot) = (now(), since_boot());
        let b = now();
        assert!(b.instant >= a.instant);
        assert!(a.wall > Timestamp(1_700_000_000_000), "the wall clock is after 2023");
        assert!(since_boot() >= boot && boot > Duration::ZERO);
    }
}
