//! The one place where the library reads the clocks. Everything above is given the time as an argument.

use std::time::{Duration, Instant, SystemTime};

use nix::time::{ClockId, clock_gettime};

use crate::words::time::{Now, Timestamp};

/// Both clocks, now.
#[expect(clippy::disallowed_methods, reason = "the marked place: shells and workers ask here")]
pub fn now() -> Now {
    Now { instant: Instant::now(), wall: Timestamp::from_system(SystemTime::now()) }
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
    fn the_clocks_run() {
        let (a, boot) = (now(), since_boot());
        let b = now();
        assert!(b.instant >= a.instant);
        assert!(a.wall > Timestamp(1_700_000_000_000), "the wall clock is after 2023");
        assert!(since_boot() >= boot && boot > Duration::ZERO);
    }
}
