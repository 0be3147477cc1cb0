//! The table of a tunnel's deadlines: boringtun can say that something is due, never when it will be.

use std::time::{Duration, Instant};

/// WireGuard §6.1: data sent under keys of this age makes their initiator ask for new ones.
pub const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
/// WireGuard §6.1: keys of this age are refused.
pub const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
/// WireGuard §6.1: how long to go on asking for new keys without an answer.
pub const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(90);
/// WireGuard §6.1: how long to wait for a response before the next initiation; never more than one in this time.
pub const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// WireGuard §6.1: how soon received data is answered, if by nothing else then by a keepalive.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// What a tunnel may be waiting for. The order is the order in which due ones are handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timer {
    /// When to send the next initiation, since the last was not answered (`REKEY_TIMEOUT` after it).
    Retransmit = 0,
    /// When to give up a handshake that nobody answers (`REKEY_ATTEMPT_TIME` after its first initiation).
    GiveUp = 1,
    /// When the initiator asks for new keys: at once when it has sent under old ones (`REKEY_AFTER_TIME`).
    RekeyAfterSend = 2,
    /// The same when it has received under keys that are about to be refused.
    RekeyAfterReceive = 3,
    /// When to start a handshake because data was sent and nothing came back.
    Silence = 4,
    /// When to start a handshake of our own (again), since the peer who started one has not used it.
    Confirm = 5,
    /// When to answer received data with a keepalive.
    Keepalive = 6,
    /// When to send a keepalive whatever happened, so that a NAT remembers us.
    Persistent = 7,
    /// When the oldest keys are to be refused (`REJECT_AFTER_TIME`); with the last ones the tunnel is not established.
    Reject = 8,
    /// When boringtun erases everything (three times `REJECT_AFTER_TIME` without new keys): the tunnel has expired.
    Forget = 9,
}

impl Timer {
    /// All of them, in order.
    pub const VALUES: [Self; 10] = [
        Self::Retransmit,
        Self::GiveUp,
        Self::RekeyAfterSend,
        Self::RekeyAfterReceive,
        Self::Silence,
        Self::Confirm,
        Self::Keepalive,
        Self::Persistent,
        Self::Reject,
        Self::Forget,
    ];
}

/// One optional deadline per [`Timer`].
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    data: [Option<Instant>; Timer::VALUES.len()],
}

impl Deadlines {
    pub(super) fn set(&mut self, timer: Timer, at: Instant) {
        self.data[timer as usize] = Some(at);
    }

    /// Sets unless it runs already: for deadlines counted from the *first* event of a kind.
    pub(super) fn start(&mut self, timer: Timer, at: Instant) {
        self.data[timer as usize].get_or_insert(at);
    }

    pub(super) fn stop(&mut self, timer: Timer) {
        self.data[timer as usize] = None;
    }

    pub(super) fn stop_all(&mut self) {
        self.data = Default::default();
    }

    pub(super) fn is_due(&self, timer: Timer, now: Instant) -> bool {
        self.data[timer as usize].is_some_and(|at| at <= now)
    }

    pub(super) fn any_due(&self, now: Instant) -> bool {
        Timer::VALUES.iter().any(|timer| self.is_due(*timer, now))
    }

    /// Stops the timer if it is due, and says whether it was.
    pub(super) fn take_due(&mut self, timer: Timer, now: Instant) -> bool {
        let due = self.is_due(timer, now);
        if due {
            self.stop(timer);
        }
        due
    }

    /// The earliest deadline, and whose it is: so that a log can say why we woke.
    pub(super) fn next(&self) -> Option<(Instant, Timer)> {
        Timer::VALUES
            .iter()
            .filter_map(|timer| self.data[*timer as usize].map(|at| (at, *timer)))
            .min_by_key(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
    fn the_earliest_deadline_comes_first_and_only_once() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut table = Deadlines::default();
        assert_eq!(table.next(), None);
        table.set(Timer::Forget, after(9));
        table.set(Timer::Keepalive, after(2));
        table.start(Timer::Keepalive, after(1));
        assert_eq!(table.next(), Some((after(2), Timer::Keepalive)));
        assert!(!table.any_due(after(1)));
        assert!(table.take_due(Timer::Keepalive, after(3)));
        assert!(!table.take_due(Timer::Keepalive, after(3)));
        assert_eq!(table.next(), Some((after(9), Timer::Forget)));
        table.stop_all();
        assert_eq!(table.next(), None);
    }

    #[test]
    fn every_timer_has_its_own_place() {
        for (place, timer) in Timer::VALUES.iter().enumerate() {
            assert_eq!(*timer as usize, place);
        }
    }
}
