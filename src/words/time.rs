//! Time as an argument: wall-clock timestamps, the pair of clocks every `handle_*` is given, and `--valid`.

use std::{
    fmt,
    time::{Duration, Instant, SystemTime},
};

use jiff::{civil, tz::TimeZone};
use serde::{Deserialize, Serialize};

/// Wall-clock time in milliseconds since the Unix epoch.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// From the operating system's type; times before 1970 become 0.
    pub fn from_system(time: SystemTime) -> Self {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
    /// The whole second it falls in: dates that are written in files have no smaller part.
    #[must_use]
    pub fn whole_second(self) -> Self {
        Self(self.0 - self.0 % 1000)
    }
    /// Later by `by`, never past the end of time.
    #[must_use]
    pub fn plus(self, by: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(by.as_millis()).unwrap_or(u64::MAX)))
    }
    /// Earlier by `by`, never before 1970.
    #[must_use]
    pub fn minus(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(by.as_millis()).unwrap_or(u64::MAX)))
    }
    /// How much later this is than `other`; zero if it is not.
    pub fn since(self, other: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(other.0))
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC, to the second.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = i64::try_from(self.0 / 1000).unwrap_or(i64::MAX);
        match jiff::Timestamp::from_second(seconds) {
            Ok(time) => write!(f, "{time}"),
            Err(_) => f.write_str("the end of time"),
        }
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Both clocks at one moment: `instant` orders and measures, `wall` is compared with dates that were signed.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Monotonic clock; runs on during suspend where the caller can arrange that.
    pub instant: Instant,
    /// Wall clock.
    pub wall: Timestamp,
}

/// Something repeated with growing pauses until it is answered.
#[derive(Debug, Clone, Copy)]
pub struct Repeat {
    /// When it is due next.
    pub next: Instant,
    pause: Duration,
    slowest: Duration,
}

impl Repeat {
    /// Due at once, then after `first`, twice that, ... at most `slowest`.
    pub fn new(first: Duration, slowest: Duration, now: Instant) -> Self {
        Self { next: now, pause: first, slowest }
    }

    /// Whether it is due; if so the next time is set.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let due = now >= self.next;
        if due {
            self.next = now + self.pause;
            self.pause = (self.pause * 2).min(self.slowest);
        }
        due
    }
}

/// `--valid` could not be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValidityError {
    /// Neither a number with s, m, h or d, nor a date.
    #[error(
        "`{0}` is neither a duration (600m, 12h, 30d) nor a date (2026-12-31, 2026-12-31T18:00)"
    )]
    Form(String),
    /// The end is not in the future.
    #[error("`{0}` is not in the future")]
    Past(String),
    /// Further off than 100 years: surely a mistake.
    #[error("`{0}` is more than 100 years from now")]
    Far(String),
}

/// The longest validity that is not taken for a mistake.
const CENTURY: Duration = Duration::from_secs(100 * 366 * 86_400);

/// Reads `--valid`: a number with s, m, h or d counted from `now`, or a date (its midnight) or date and time, in UTC.
///
/// # Errors
/// [`ValidityError`]: form, past, or absurdly far.
pub fn parse_validity(text: &str, now: Timestamp) -> Result<Timestamp, ValidityError> {
    let form = || ValidityError::Form(text.to_owned());
    let unit = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        Some('d') => 86_400,
        Some(_) | None => 0,
    };
    let end = if unit > 0 {
        let count: u64 = text[..text.len() - 1].parse().map_err(|_| form())?;
        let seconds = count.checked_mul(unit).ok_or_else(|| ValidityError::Far(text.to_owned()))?;
        now.plus(Duration::from_secs(seconds))
    } else {
        let plain = text.strip_suffix('Z').unwrap_or(text);
        let date_time = match plain.parse::<civil::Date>() {
            Ok(date) if !plain.contains(['T', ' ']) => date.to_datetime(civil::Time::midnight()),
            Ok(_) | Err(_) => plain.parse::<civil::DateTime>().map_err(|_| form())?,
        };
        let zoned = date_time.to_zoned(TimeZone::UTC).map_err(|_| form())?;
        let millis = zoned.timestamp().as_millisecond();
        Timestamp(u64::try_from(millis).map_err(|_| ValidityError::Past(text.to_owned()))?)
    };
    if end <= now {
        return Err(ValidityError::Past(text.to_owned()));
    }
    if end.since(now) > CENTURY {
        return Err(ValidityError::Far(text.to_owned()));
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn validity_takes_durations_and_dates() {
        let now = Timestamp(1_000_000_000_000); // 2001-09-09T01:46:40Z
        assert_eq!(parse_validity("600m", now), Ok(Timestamp(1_000_036_000_000)));
        assert_eq!(parse_validity("30d", now), Ok(Timestamp(1_002_592_000_000)));
        assert_eq!(parse_validity("2001-09-10", now), Ok(Timestamp(1_000_080_000_000)));
        assert_eq!(parse_validity("2001-09-10T00:00:01", now), Ok(Timestamp(1_000_080_001_000)));
        assert_eq!(parse_validity("2001-09-10T00:00:01Z", now), Ok(Timestamp(1_000_080_001_000)));
    }

    #[test]
    fn validity_refuses_the_past_and_nonsense() {
        let now = Timestamp(1_000_000_000_000);
        for past in ["0s", "2000-01-01", "1960-01-01"] {
            assert!(matches!(parse_validity(past, now), Err(ValidityError::Past(_))), "{past}");
        }
        for far in ["99999999d", "999999999999999999d", "2200-01-01"] {
            assert!(matches!(parse_validity(far, now), Err(ValidityError::Far(_))), "{far}");
        }
        for bad in ["", "d", "-5d", "5", "5w", "tomorrow", "2001-13-01", "5ä"] {
            assert!(matches!(parse_validity(bad, now), Err(ValidityError::Form(_))), "{bad}");
        }
    }
}
