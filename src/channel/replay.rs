//! The replay window: which counters have been seen, among the newest [`WINDOW`].
//!
//! RFC 6479's ring of words: advancing clears whole words, so the cost per message does not depend on the window's size.
//! Larger than WireGuard's 2048 because several slices of many superpackets are under way at once.

/// Counters that may be late and are still told from seen ones.
pub const WINDOW: u64 = 8192;

const WORD: u64 = 64;
/// One word more than the window: the newest word is only partly used.
const WORDS: usize = (WINDOW / WORD) as usize + 1;

/// Why a counter is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayError {
    /// It has been seen.
    Duplicate,
    /// It is older than the window.
    TooOld,
}

/// Where a counter stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Position {
    /// Newer than all seen.
    Ahead,
    /// Within the window.
    Within,
    /// Older than the window.
    Behind,
}

/// Which counters have been seen.
#[derive(Debug, Clone)]
pub struct Window {
    /// The newest counter seen, plus one; 0: none yet.
    next: u64,
    words: [u64; WORDS],
}

impl Default for Window {
    fn default() -> Self {
        Self { next: 0, words: [0; WORDS] }
    }
}

impl Window {
    fn position(&self, counter: u64) -> Position {
        if counter >= self.next {
            Position::Ahead
        } else if self.next - counter > WINDOW {
            Position::Behind
        } else {
            Position::Within
        }
    }

    fn place(counter: u64) -> (usize, u64) {
        let word = (counter / WORD) % WORDS as u64;
        (word as usize, 1 << (counter % WORD))
    }

    /// Whether a message with this counter may be opened. Changes nothing: only an opened message counts as seen.
    ///
    /// # Errors
    /// [`ReplayError`].
    pub fn check(&self, counter: u64) -> Result<(), ReplayError> {
        match self.position(counter) {
            Position::Ahead => Ok(()),
            Position::Behind => Err(ReplayError::TooOld),
            Position::Within => {
                let (word, bit) = Self::place(counter);
                if self.words[word] & bit == 0 { Ok(()) } else { Err(ReplayError::Duplicate) }
            }
        }
    }

    /// Marks an opened message's counter as seen. Checks again: two threads may have opened the same message.
    ///
    /// # Errors
    /// [`ReplayError`]: it must not be delivered.
    pub fn mark(&mut self, counter: u64) -> Result<(), ReplayError> {
        self.check(counter)?;
        if self.position(counter) == Position::Ahead {
            let newest = self.next.saturating_sub(1) / WORD;
            let steps = (counter / WORD - newest).min(WORDS as u64);
            for step in 1..=steps {
                self.words[((newest + step) % WORDS as u64) as usize] = 0;
            }
            self.next = counter + 1;
        }
        let (word, bit) = Self::place(counter);
        self.words[word] |= bit;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// What the window should do, by the simplest means.
    #[derive(Default)]
    struct Model {
        seen: BTreeSet<u64>,
    }

    impl Model {
        fn mark(&mut self, counter: u64) -> Result<(), ReplayError> {
            let next = self.seen.last().map_or(0, |newest| newest + 1);
            if counter < next && next - counter > WINDOW {
                return Err(ReplayError::TooOld);
            }
            if self.seen.insert(counter) { Ok(()) } else { Err(ReplayError::Duplicate) }
        }
    }

    #[test]
    fn edges_of_the_window() {
        let mut window = Window::default();
        assert_eq!(window.mark(0), Ok(()));
        assert_eq!(window.mark(0), Err(ReplayError::Duplicate));
        assert_eq!(window.mark(WINDOW), Ok(()));
        assert_eq!(window.mark(1), Ok(()), "the oldest in the window");
        assert_eq!(window.mark(0), Err(ReplayError::TooOld));
        assert_eq!(window.mark(WINDOW + 1), Ok(()));
        assert_eq!(window.mark(1), Err(ReplayError::TooOld));
        assert_eq!(window.mark(2), Ok(()));
    }

    #[test]
    fn a_leap_forgets_everything_before_it() {
        let mut window = Window::default();
        (0..200).for_each(|counter| assert_eq!(window.mark(counter), Ok(())));
        let far = 1 << 40;
        assert_eq!(window.mark(far), Ok(()));
        for counter in far - WINDOW + 1..far {
            assert_eq!(window.check(counter), Ok(()), "{counter}");
        }
        assert_eq!(window.mark(199), Err(ReplayError::TooOld));
    }

    proptest! {
        #[test]
        fn the_window_is_a_set_with_a_horizon(
            steps in proptest::collection::vec((0u64..4, 0u64..20_000), 1..if cfg!(miri) { 50 } else { 600 })
        ) {
            let (mut window, mut model) = (Window::default(), Model::default());
            let mut newest = 0u64;
            for (kind, by) in steps {
                let counter = match kind {
                    0 => newest + by % 5,
                    1 => newest.saturating_sub(by % 70),
                    2 => newest.saturating_sub(by),
                    _ => newest + by,
                };
                prop_assert_eq!(window.check(counter), window.clone().mark(counter));
                prop_assert_eq!(window.mark(counter), model.mark(counter), "{}", counter);
                newest = newest.max(counter);
            }
        }
    }
}
