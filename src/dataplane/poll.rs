//! How long a worker looks about before it sleeps.
//!
//! Theory of operation. Waking a thread whose core has halted costs some 20 µs on virtual machines; a packet costs one or two. After
//! the last packet a worker therefore looks for the next for a while, yielding its core between looks. How long is learned as
//! hypervisors learn it (KVM's `halt_poll_ns`): a sleep that ends soon after it began would have been worth waiting for, so the time
//! grows; one that lasts was right, so it shrinks. When a yielded core comes back late somebody else has work for it: then nothing is
//! looked for at all, for a while that doubles each time.

use std::time::{Duration, Instant};

/// The longest look: what was measured to catch the answer of a peer in the next rack.
pub const LONGEST: Duration = Duration::from_micros(200);

/// The first look after none.
const FIRST: Duration = Duration::from_micros(25);

/// A yielded core that comes back later than this was wanted by somebody else.
const WANTED: Duration = Duration::from_micros(250);

/// How long nothing is looked for after that; doubles up to [`RESPECT_MOST`].
const RESPECT: Duration = Duration::from_millis(5);

/// The longest of these times.
const RESPECT_MOST: Duration = Duration::from_millis(640);

/// What a worker has learned.
#[derive(Debug, Clone)]
pub struct Poll {
    longest: Duration,
    /// How long to look now.
    window: Duration,
    /// Since when, and when the core was last given away.
    looking: Option<(Instant, Instant)>,
    asleep: Option<Instant>,
    respect: Duration,
    not_before: Option<Instant>,
}

impl Poll {
    /// Looks for at most `longest`; zero: never.
    pub fn new(longest: Duration) -> Self {
        let window = longest.min(FIRST);
        Self { longest, window, looking: None, asleep: None, respect: RESPECT, not_before: None }
    }

    /// Something was there.
    pub fn found(&mut self) {
        self.looking = None;
    }

    /// Nothing was there: whether to look again (after yielding), or to sleep.
    pub fn may_look_again(&mut self, now: Instant) -> bool {
        if self.window.is_zero() {
            self.asleep = (!self.longest.is_zero()).then_some(now);
            return false;
        }
        if self.not_before.is_some_and(|time| now < time) {
            self.asleep = Some(now);
            return false;
        }
        let (since, yielded) = *self.looking.get_or_insert((now, now));
        if now.saturating_duration_since(yielded) > WANTED {
            self.not_before = Some(now + self.respect);
            self.respect = (self.respect * 2).min(RESPECT_MOST);
            self.looking = None;
            self.asleep = Some(now);
            return false;
        }
        if now.saturating_duration_since(since) > self.window {
            self.looking = None;
            self.asleep = Some(now);
            return false;
        }
        self.looking = Some((since, now));
        true
    }

    /// Comes back from sleep.
    pub fn woken(&mut self, now: Instant) {
        let Some(since) = self.asleep.take() else { return };
        let slept = now.saturating_duration_since(since);
        self.window = if slept <= self.longest {
            (self.window * 2).clamp(FIRST, self.longest)
        } else {
            let half = self.window / 2;
            if half < FIRST { Duration::ZERO } else { half }
        };
        if self.not_before.is_none_or(|time| since + slept >= time + self.respect) {
            self.respect = RESPECT;
            self.not_before = None;
        }
    }
}
