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
            (self.window * 2).max(FIRST).min(self.longest)
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

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use super::*;

    const MICRO: Duration = Duration::from_micros(1);

    /// Looks until it may not, a microsecond a look; how long that was.
    fn look(poll: &mut Poll, from: Instant) -> Duration {
        let looks = (1..).find(|n| !poll.may_look_again(from + MICRO * *n)).expect("it ends");
        MICRO * looks
    }

    #[test]
    fn it_looks_longer_where_sleep_is_short_and_not_at_all_where_it_is_long() {
        let mut poll = Poll::new(LONGEST);
        let start = Instant::now();
        let first = look(&mut poll, start);
        assert!(first > FIRST && first < FIRST + 3 * MICRO);
        let mut at = start + first;
        for _ in 0..5 {
            at += LONGEST / 2;
            poll.woken(at);
            let looked = look(&mut poll, at);
            assert!(looked <= LONGEST + 3 * MICRO);
            at += looked;
        }
        assert_eq!(poll.window, LONGEST);
        for _ in 0..5 {
            at += LONGEST * 10;
            poll.woken(at);
            at += look(&mut poll, at);
        }
        assert!(poll.window.is_zero(), "nothing comes soon: nothing is looked for");
        poll.woken(at + LONGEST / 2);
        assert_eq!(poll.window, FIRST, "and learns again");
    }

    #[test]
    fn a_core_that_others_want_is_left_to_them() {
        let mut poll = Poll::new(LONGEST);
        let now = Instant::now();
        assert!(poll.may_look_again(now));
        // Somebody else ran for three milliseconds.
        let late = now + Duration::from_millis(3);
        assert!(!poll.may_look_again(late));
        poll.woken(late + 50 * MICRO);
        assert!(!poll.may_look_again(late + 60 * MICRO), "for a while");
        poll.woken(late + RESPECT + 50 * MICRO);
        assert!(poll.may_look_again(late + RESPECT + 60 * MICRO));
    }

    #[test]
    fn any_longest_look_will_do() {
        for longest in [0, 1, 10, 24, 25, 26, 10_000] {
            let longest = longest * MICRO;
            let mut poll = Poll::new(longest);
            let mut at = Instant::now();
            for _ in 0..20 {
                let looked = look(&mut poll, at);
                assert!(looked <= longest + 3 * MICRO, "{longest:?}");
                at += looked + longest / 2;
                poll.woken(at);
            }
        }
    }
}
