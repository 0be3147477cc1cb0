//! The one place where the tests read the clock, and the one way in which they wait.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a condition is looked at again.
const POLL: Duration = Duration::from_millis(50);

/// The time now.
#[expect(clippy::disallowed_methods, reason = "tests of real programs run on real time")]
pub fn now() -> Instant {
    Instant::now()
}

/// Waits until `condition` gives a value, or fails after `limit` naming `what` was waited for and
/// what the last look gave.
///
/// # Errors
///
/// The condition never held; the last error it gave is in the message.
pub fn wait_until<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = now() + limit;
    loop {
        let last = match condition() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if now() >= deadline {
            match last {
                Some(error) => bail!("waited {limit:?} for {what}: {error:#}"),
                None => bail!("waited {limit:?} for {what}"),
            }
        }
        std::thread::sleep(POLL);
    }
}
