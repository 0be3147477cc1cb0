//! The one place where the command line reads the wall clock.

use clusternet::words::time::Timestamp;

/// The time of day.
#[expect(clippy::disallowed_methods, reason = "the shell's one reading of the wall clock")]
pub(crate) fn wall() -> Timestamp {
    Timestamp::from_system(std::time::SystemTime::now())
}
