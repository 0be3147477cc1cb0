//! The sessions that boringtun has, mirrored: it says neither how old they are nor which one it seals with.

use std::time::Instant;

use super::deadlines::REJECT_AFTER_TIME;

/// boringtun keeps this many, each in the place that the low bits of its index say.
const PLACES: usize = 8;

/// One pair of keys.
#[derive(Debug, Clone, Copy)]
pub(super) struct Session {
    /// Our receiver index.
    pub(super) index: u32,
    /// When its handshake was completed on our side.
    pub(super) made: Instant,
    /// Whether the peer has shown that it has them too.
    pub(super) confirmed: bool,
}

/// The ring of sessions.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    ring: [Option<Session>; PLACES],
    /// Which one seals: the index of the newest that was used.
    current: Option<u32>,
}

impl Sessions {
    pub(super) fn add(&mut self, session: Session) {
        self.ring[place(session.index)] = Some(session);
    }

    pub(super) fn get(&self, index: u32) -> Option<&Session> {
        self.ring[place(index)].as_ref().filter(|session| session.index == index)
    }

    /// The one that seals.
    pub(super) fn current(&self) -> Option<&Session> {
        self.get(self.current?)
    }

    /// A session was used: it becomes the current one unless that is newer (boringtun's rule). Says whether the use was the
    /// first by the peer.
    pub(super) fn note_use(&mut self, index: u32) -> bool {
        let Some(used) = self.get(index).copied() else { return false };
        if self.current().is_none_or(|current| used.made >= current.made) {
            self.current = Some(index);
        }
        self.ring[place(index)] = Some(Session { confirmed: true, ..used });
        !used.confirmed
    }

    /// Forgets those whose keys are to be refused.
    pub(super) fn drop_old(&mut self, now: Instant) {
        for place in &mut self.ring {
            *place = place
                .filter(|session| now.saturating_duration_since(session.made) < REJECT_AFTER_TIME);
        }
    }

    /// When the oldest was made.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.ring.iter().flatten().map(|session| session.made).min()
    }

    /// When the newest was made that the peer has begun and not used yet, unless we have begun a handshake since.
    pub(super) fn unconfirmed_since(&self, last_initiation: Option<Instant>) -> Option<Instant> {
        let newer = |made| last_initiation.is_none_or(|last| last <= made);
        let waiting = self.ring.iter().flatten().filter(|session| !session.confirmed);
        waiting.map(|session| session.made).filter(|made| newer(*made)).max()
    }
}

fn place(index: u32) -> usize {
    index as usize % PLACES
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_newest_session_that_was_used_seals() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut sessions = Sessions::default();
        sessions.add(Session { index: 1, made: after(0), confirmed: true });
        assert!(!sessions.note_use(1));
        sessions.add(Session { index: 2, made: after(9), confirmed: false });
        assert_eq!(sessions.current().map(|session| session.index), Some(1));
        assert_eq!(sessions.unconfirmed_since(None), Some(after(9)));
        assert_eq!(sessions.unconfirmed_since(Some(after(10))), None);
        assert!(sessions.note_use(2));
        assert!(!sessions.note_use(2));
        assert!(!sessions.note_use(1), "late data under older keys");
        assert_eq!(sessions.current().map(|session| session.index), Some(2));
        assert!(!sessions.note_use(10), "the place of 2, but not its index");
    }

    #[test]
    fn sessions_end_at_their_age_and_not_before() {
        let start = Instant::now();
        let mut sessions = Sessions::default();
        sessions.add(Session { index: 1, made: start, confirmed: true });
        sessions.note_use(1);
        // WireGuard §6.1.
        sessions.drop_old(start + Duration::from_millis(179_999));
        assert_eq!(sessions.oldest(), Some(start));
        sessions.drop_old(start + Duration::from_secs(180));
        assert!(sessions.current().is_none() && sessions.oldest().is_none());
    }
}
