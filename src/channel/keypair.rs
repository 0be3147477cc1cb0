//! A keypair: seals and opens, immutable but for a counter, a window and a flag. Shared by `Arc`, used without locks.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

use super::{
    REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME, REKEY_AFTER_MESSAGES, Suite,
    exchange::{Agreed, Keys},
    replay::{ReplayError, Window},
};

/// Bytes of an authentication tag.
pub const TAG: usize = 16;

/// Why a message is not sealed or not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyError {
    /// The keypair is too old, used up, or its peer has been revoked.
    Dead,
    /// The seal does not open.
    Unauthentic,
    /// The counter has been seen or is too old.
    Replay(ReplayError),
}

/// Keys of one stripe with one peer.
pub struct Keypair {
    seal: LessSafeKey,
    open: LessSafeKey,
    send_index: u32,
    made: Instant,
    /// The next counter. *Single writer* per stripe: one thread seals; atomic because control reads it.
    counter: AtomicU64,
    window: Mutex<Window>,
    dead: AtomicBool,
}

impl std::fmt::Debug for Keypair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keypair({:08x})", self.send_index)
    }
}

/// What one exchange has given: a keypair for each stripe, under one index. Shared by `Arc` between control and workers.
#[derive(Debug)]
pub struct Keypairs {
    index: u32,
    stripes: Box<[Keypair]>,
    is_confirmed: AtomicBool,
}

impl Keypairs {
    /// From an exchange; indexes in it have 24 bits, shifted left by 8, where the stripe's number goes. `made`: by a clock that
    /// runs during suspend.
    pub fn new(agreed: &Agreed, stripes: u8, made: Instant) -> Self {
        let stripes = (0..stripes.max(1)).map(|stripe| {
            let send_index = agreed.send_index | u32::from(stripe);
            Keypair::new(agreed.suite, &agreed.keys(stripe), send_index, made)
        });
        Self {
            index: agreed.receive_index >> 8,
            stripes: stripes.collect(),
            is_confirmed: AtomicBool::new(false),
        }
    }

    /// The upper 24 bits of the receiver index in messages to us.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The upper 24 bits of the receiver index in messages to the peer.
    pub fn send_index(&self) -> u32 {
        self.stripes[0].send_index() >> 8
    }

    /// The keypair of one stripe: of the sending thread's own, or of the lower 8 bits of a message's receiver index.
    pub fn stripe(&self, stripe: u8) -> Option<&Keypair> {
        self.stripes.get(usize::from(stripe))
    }

    /// A message has been opened under them: `true` the first time, which control must hear of.
    pub fn confirm(&self) -> bool {
        !self.is_confirmed.load(Ordering::Relaxed)
            && !self.is_confirmed.swap(true, Ordering::Relaxed)
    }

    /// Control could not be told: the next message is the first again.
    pub fn unconfirm(&self) {
        self.is_confirmed.store(false, Ordering::Relaxed);
    }

    /// Ends them at once.
    pub fn kill(&self) {
        self.stripes.iter().for_each(Keypair::kill);
    }

    /// Whether they may be used no more.
    pub fn is_dead(&self, now: Instant) -> bool {
        self.stripes.iter().any(|keypair| keypair.is_dead(now))
    }

    /// Whether so many messages have been sealed that it is time for new ones, whatever their age.
    pub fn is_worn(&self) -> bool {
        self.stripes.iter().any(Keypair::is_worn)
    }
}

/// One exchange, one value.
impl PartialEq for Keypairs {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for Keypairs {}

fn aead(suite: Suite, key: &[u8; 32]) -> LessSafeKey {
    let algorithm = match suite {
        Suite::Aes256Gcm => &AES_256_GCM,
        Suite::ChaCha20Poly1305 => &CHACHA20_POLY1305,
    };
    LessSafeKey::new(UnboundKey::new(algorithm, key).expect("both take keys of 32 bytes"))
}

/// 32 zero bits, then the counter, little endian. WireGuard §5.4.6.
fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

impl Keypair {
    /// From the keys of an exchange. `send_index` goes into every header; `made`: by a clock that runs during suspend.
    pub fn new(suite: Suite, keys: &Keys, send_index: u32, made: Instant) -> Self {
        Self {
            seal: aead(suite, &keys.seal),
            open: aead(suite, &keys.open),
            send_index,
            made,
            counter: AtomicU64::new(0),
            window: Mutex::new(Window::default()),
            dead: AtomicBool::new(false),
        }
    }

    /// By which index the peer finds it.
    pub fn send_index(&self) -> u32 {
        self.send_index
    }

    /// Reserves `count` consecutive counters for a batch and gives the first. Checked on the end of the reservation, before
    /// anything is sealed.
    ///
    /// # Errors
    /// [`KeyError::Dead`].
    pub fn reserve(&self, count: u64, now: Instant) -> Result<u64, KeyError> {
        let first = self.counter.fetch_add(count, Ordering::Relaxed);
        let is_used_up = first.saturating_add(count) > REJECT_AFTER_MESSAGES;
        if is_used_up || self.is_dead(now) { Err(KeyError::Dead) } else { Ok(first) }
    }

    /// Seals in place: `text` is replaced by ciphertext; the tag is returned for the caller to put behind it. `counter` comes from
    /// [`Self::reserve`] and is used once; `header` is authenticated.
    pub fn seal(&self, counter: u64, header: &[u8], text: &mut [u8]) -> [u8; TAG] {
        let tag = self
            .seal
            .seal_in_place_separate_tag(nonce(counter), Aad::from(header), text)
            .expect("a slice within AEAD limits");
        let mut bytes = [0; TAG];
        bytes.copy_from_slice(tag.as_ref());
        bytes
    }

    /// Opens in place: of `text` (ciphertext and tag) the plaintext at its beginning is returned. Does not look at the window:
    /// [`Self::check`] before, [`Self::mark`] after, both per batch.
    ///
    /// # Errors
    /// [`KeyError::Unauthentic`]: `text` is garbage now.
    pub fn open<'a>(
        &self,
        counter: u64,
        header: &[u8],
        text: &'a mut [u8],
    ) -> Result<&'a mut [u8], KeyError> {
        self.open
            .open_in_place(nonce(counter), Aad::from(header), text)
            .map_err(|_| KeyError::Unauthentic)
    }

    /// Whether messages with these counters may be opened: the window under its own short lock, once a batch. Writes the
    /// verdicts beside the counters. No honest sender reaches [`REJECT_AFTER_MESSAGES`].
    pub fn check(&self, counters: &mut [(u64, Result<(), KeyError>)]) {
        let window = self.window.lock().expect("nobody panics while holding it");
        for (counter, verdict) in counters {
            *verdict = if *counter < REJECT_AFTER_MESSAGES {
                window.check(*counter).map_err(KeyError::Replay)
            } else {
                Err(KeyError::Dead)
            };
        }
    }

    /// Marks opened messages as seen; a message that was opened twice at once is refused here.
    pub fn mark(&self, counters: &mut [(u64, Result<(), KeyError>)]) {
        let mut window = self.window.lock().expect("nobody panics while holding it");
        for (counter, verdict) in counters.iter_mut().filter(|(_, verdict)| verdict.is_ok()) {
            *verdict = window.mark(*counter).map_err(KeyError::Replay);
        }
    }

    /// Ends it at once: its peer was revoked, or a newer keypair has taken over for good.
    pub fn kill(&self) {
        self.dead.store(true, Ordering::Release);
    }

    /// Whether it may be used no more: tested once a batch.
    pub fn is_dead(&self, now: Instant) -> bool {
        self.dead.load(Ordering::Acquire) || self.age(now) >= REJECT_AFTER_TIME
    }

    /// Whether it has sealed so many messages that it is time for new keys.
    pub fn is_worn(&self) -> bool {
        self.counter.load(Ordering::Relaxed) >= REKEY_AFTER_MESSAGES
    }

    fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.made)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use zeroize::Zeroizing;

    use super::*;

    fn pair(suite: Suite) -> (Keypair, Keypair, Instant) {
        let (one, two) = ([1; 32], [2; 32]);
        let keys = |seal, open| Keys { seal: Zeroizing::new(seal), open: Zeroizing::new(open) };
        let now = Instant::now();
        (
            Keypair::new(suite, &keys(one, two), 7, now),
            Keypair::new(suite, &keys(two, one), 8, now),
            now,
        )
    }

    fn sealed(keypair: &Keypair, counter: u64, header: &[u8], text: &[u8]) -> Vec<u8> {
        let mut bytes = text.to_vec();
        let tag = keypair.seal(counter, header, &mut bytes);
        bytes.extend_from_slice(&tag);
        bytes
    }

    const SUITES: [Suite; 2] = [Suite::Aes256Gcm, Suite::ChaCha20Poly1305];

    #[test]
    fn what_one_side_seals_the_other_opens() {
        for suite in SUITES {
            let (a, b, now) = pair(suite);
            for text in [b"".as_slice(), b"x", &[9; 65_000]] {
                let counter = a.reserve(1, now).expect("young");
                let mut message = sealed(&a, counter, b"header", text);
                assert_eq!(
                    b.open(counter, b"header", &mut message).map(|t| t.to_vec()),
                    Ok(text.to_vec())
                );
            }
        }
    }

    #[test]
    fn nothing_else_opens() {
        for suite in SUITES {
            let (a, b, _) = pair(suite);
            let good = sealed(&a, 5, b"header", b"text");
            let open = |counter, header: &[u8], mut message: Vec<u8>, by: &Keypair| {
                by.open(counter, header, &mut message).map(|text| text.to_vec())
            };
            assert_eq!(open(6, b"header", good.clone(), &b), Err(KeyError::Unauthentic));
            assert_eq!(open(5, b"Header", good.clone(), &b), Err(KeyError::Unauthentic));
            assert_eq!(
                open(5, b"header", good.clone(), &a),
                Err(KeyError::Unauthentic),
                "reflected"
            );
            for place in 0..good.len() {
                let mut bad = good.clone();
                bad[place] ^= 1;
                assert_eq!(open(5, b"header", bad, &b), Err(KeyError::Unauthentic));
            }
            assert_eq!(
                open(5, b"header", good[..TAG - 1].to_vec(), &b),
                Err(KeyError::Unauthentic)
            );
            assert_eq!(open(5, b"header", good, &b), Ok(b"text".to_vec()));
        }
    }

    #[test]
    fn a_key_ends_with_time_use_or_revocation() {
        let (a, _, now) = pair(Suite::Aes256Gcm);
        assert_eq!(a.reserve(1, now + Duration::from_secs(179)), Ok(0));
        assert_eq!(a.reserve(1, now + Duration::from_secs(180)), Err(KeyError::Dead));
        let (a, _, now) = pair(Suite::Aes256Gcm);
        assert_eq!(a.reserve((1 << 28) - 1, now), Ok(0));
        assert!(!a.is_worn());
        assert_eq!(a.reserve(1, now), Ok((1 << 28) - 1));
        assert!(a.is_worn());
        assert_eq!(a.reserve((1 << 32) - (1 << 28), now), Ok(1 << 28), "up to the very end");
        assert_eq!(a.reserve(1, now), Err(KeyError::Dead));
        let (a, _, now) = pair(Suite::Aes256Gcm);
        a.kill();
        assert_eq!(a.reserve(1, now), Err(KeyError::Dead));
    }

    #[test]
    fn a_counter_that_no_sender_may_reach_is_refused() {
        let (a, _, _) = pair(Suite::Aes256Gcm);
        let mut batch = [(u64::MAX, Ok(())), (1 << 32, Ok(())), ((1 << 32) - 1, Ok(()))];
        a.check(&mut batch);
        assert_eq!(
            batch.map(|(_, verdict)| verdict),
            [Err(KeyError::Dead), Err(KeyError::Dead), Ok(())]
        );
    }

    #[test]
    fn a_batch_is_checked_before_and_marked_after() {
        let (a, _, _) = pair(Suite::Aes256Gcm);
        let mut batch = [(1, Ok(())), (2, Ok(())), (2, Ok(()))];
        a.check(&mut batch);
        assert!(batch.iter().all(|(_, verdict)| verdict.is_ok()), "nothing seen yet");
        a.mark(&mut batch);
        let duplicate = Err(KeyError::Replay(ReplayError::Duplicate));
        assert_eq!(batch, [(1, Ok(())), (2, Ok(())), (2, duplicate)]);
        let mut again = [(1, Ok(())), (3, Ok(()))];
        a.check(&mut again);
        assert_eq!(again, [(1, duplicate), (3, Ok(()))]);
    }
}
