//! The tunnel itself: what the peer and the caller do to it, and what is made of boringtun's answers. The rules are told in
//! the module above.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use boringtun::{
    noise::{Tunn, TunnResult, errors::WireGuardError, rate_limiter::RateLimiter},
    x25519::{PublicKey, StaticSecret},
};

use super::{
    INDEX_MAX, PACKET_MAX, Sealed, Sink, TunnelError,
    deadlines::{
        Deadlines, KEEPALIVE_TIMEOUT, REJECT_AFTER_TIME, REKEY_AFTER_TIME, REKEY_ATTEMPT_TIME,
        REKEY_TIMEOUT, Timer,
    },
    sessions::{Session, Sessions},
    staged::Staged,
};
use crate::{
    wire::message::{DATA_OVERHEAD, INITIATION_LEN, Message, TYPE_DATA, TYPE_INITIATION},
    words::{
        key::{TransportKey, TransportSecret},
        time::Now,
    },
};

/// An initiation without its mac2: all that is proved by mac1 or sealed.
const SIGNED_LEN: usize = INITIATION_LEN - 16;
/// Counters from here on are refused: boringtun adds to them without care (WireGuard §6.1 rejects only the last 2^13).
const COUNTER_END: u64 = 1 << 63;
/// boringtun's clock is read after ours: deadlines at which it must have acted by itself are looked at again so much later.
const AGAIN: Duration = Duration::from_millis(500);
/// Longer than boringtun's own queue: so many times is it asked to drain it.
const QUEUE_MAX: usize = 512;

/// One peer's WireGuard state. About 11 KB, on the heap.
pub struct Tunnel {
    tunn: Box<Tunn>,
    peer: TransportKey,
    index: u32,
    deadlines: Deadlines,
    sessions: Sessions,
    /// The handshake that we have begun and nobody has answered.
    attempt: Option<Attempt>,
    /// When the newest keys were made, by whichever side began; `None` after everything was erased.
    newest: Option<Newest>,
    /// The last initiation that was accepted, without its mac2, and what was answered.
    answered_last: Option<(Vec<u8>, Vec<u8>)>,
    last_initiation: Option<Instant>,
    last_established: Option<Instant>,
    last_received: Option<Instant>,
    keepalive: Option<Duration>,
    staged: Staged,
    expired: bool,
}

#[derive(Debug, Clone, Copy)]
struct Attempt {
    index: u32,
    began: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Newest {
    made: Instant,
    initiator: bool,
}

impl Tunnel {
    /// A tunnel of the holder of `secret` with `peer`. `index` (24 bits; higher ones are cut off) must be no other
    /// tunnel's: [`Self::receives`] finds a tunnel by it. Sends nothing yet.
    pub fn new(secret: &TransportSecret, peer: &TransportKey, index: u32, now: Now) -> Self {
        let index = index & INDEX_MAX;
        let secret = StaticSecret::from(*secret.expose());
        // Handshakes have passed the gate: a limit here would count them twice, and this one is shared with nobody.
        let unlimited = Arc::new(RateLimiter::new(&PublicKey::from(&secret), u64::MAX));
        let peer_key = PublicKey::from(peer.0);
        let mut deadlines = Deadlines::default();
        deadlines.set(Timer::Forget, now.instant + 3 * REJECT_AFTER_TIME);
        Self {
            tunn: Box::new(Tunn::new(secret, peer_key, None, None, index, Some(unlimited))),
            peer: *peer,
            index,
            deadlines,
            sessions: Sessions::default(),
            attempt: None,
            newest: None,
            answered_last: None,
            last_initiation: None,
            last_established: None,
            last_received: None,
            keepalive: None,
            staged: Staged::default(),
            expired: false,
        }
    }

    /// Sends a keepalive whenever `every` has passed without a datagram either way (`None`: never), so that a NAT does
    /// not forget us; starts handshakes for it if there is no session. Whole seconds above zero make sense.
    pub fn set_keepalive(&mut self, every: Option<Duration>, now: Now) {
        self.keepalive = every.filter(|every| !every.is_zero());
        self.deadlines.stop(Timer::Persistent);
        self.arm_persistent(now.instant);
    }

    /// Takes a handshake message, cookie reply or transport data that came for this tunnel. Handshake messages have
    /// passed the [`super::gate::Gate`] before. Whatever the result, `out` may have been appended to.
    ///
    /// # Errors
    /// [`TunnelError`]: why the datagram did not do what its type says. Nothing needs to be done about it, but count it.
    pub fn handle_datagram(
        &mut self,
        datagram: &[u8],
        now: Now,
        out: &mut Sink,
    ) -> Result<(), TunnelError> {
        if datagram.len() > PACKET_MAX + DATA_OVERHEAD {
            return Err(TunnelError::Malformed);
        }
        let message = Message::parse(datagram).map_err(|_| TunnelError::Malformed)?;
        if message.receiver().is_some_and(|receiver| !self.receives(receiver)) {
            return Err(TunnelError::NoSession);
        }
        match message {
            Message::Channel { .. } | Message::Relay { .. } => return Err(TunnelError::Malformed),
            Message::Data { counter: COUNTER_END.., .. } => return Err(TunnelError::Replayed),
            Message::Initiation { .. } if self.has_answered(datagram) => {
                let again = self.answer_again(now).ok_or(TunnelError::Duplicate)?;
                out.datagrams.push(again);
                return Ok(());
            }
            Message::Initiation { .. }
            | Message::Response { .. }
            | Message::CookieReply { .. }
            | Message::Data { .. } => {}
        }
        match message {
            Message::Data { receiver, .. } => {
                self.tick_if_due(now, out);
                if self.sessions.get(receiver).is_none() {
                    return Err(TunnelError::NoSession);
                }
            }
            Message::Initiation { .. }
            | Message::Response { .. }
            | Message::CookieReply { .. }
            | Message::Channel { .. }
            | Message::Relay { .. } => self.tick(now, out),
        }
        let mut buffer = vec![0; datagram.len().max(INITIATION_LEN)];
        let result = match self.tunn.decapsulate(None, datagram, &mut buffer) {
            TunnResult::Done => Ok(None),
            TunnResult::WriteToNetwork(datagram) => Ok(Some((datagram.len(), false))),
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                Ok(Some((packet.len(), true)))
            }
            TunnResult::Err(error) => Err(error),
        };
        let result = match (message, result) {
            // The header was read above, so here it is what was sealed that boringtun does not know.
            (Message::Data { receiver, .. }, Err(WireGuardError::InvalidPacket)) => {
                self.opened(receiver, false, now, out);
                Err(TunnelError::NotIp)
            }
            (_, Err(error)) => {
                let error = TunnelError::from(error);
                out.wrong_timestamp |= error == TunnelError::WrongTimestamp;
                Err(error)
            }
            (Message::Data { receiver, .. }, Ok(None)) => {
                self.opened(receiver, false, now, out);
                Ok(())
            }
            (Message::Data { receiver, .. }, Ok(Some((len, true)))) => {
                self.opened(receiver, true, now, out);
                buffer.truncate(len);
                out.packets.push(buffer);
                Ok(())
            }
            (Message::Initiation { .. }, Ok(Some((len, false)))) => {
                buffer.truncate(len);
                self.responded(datagram, &buffer, now);
                out.datagrams.push(buffer);
                Ok(())
            }
            (Message::Response { receiver, .. }, Ok(Some((len, false)))) => {
                buffer.truncate(len);
                self.answered(receiver, now, out);
                self.push(buffer, now, out);
                Ok(())
            }
            (Message::CookieReply { .. }, Ok(None)) => Ok(()),
            (
                Message::Initiation { .. }
                | Message::Response { .. }
                | Message::CookieReply { .. }
                | Message::Data { .. }
                | Message::Channel { .. }
                | Message::Relay { .. },
                Ok(_),
            ) => Err(TunnelError::Internal),
        };
        if out.established && self.is_established() {
            self.flush(now, out);
        }
        result
    }

    /// Seals one packet: an IP packet of either version, or nothing for a keepalive. Without a session the packet is
    /// staged (oldest dropped) and a handshake is started.
    ///
    /// Staged packets go to whoever holds the peer's *key*. So the caller seals IP packets only while
    /// [`Self::is_established`] and both sides have accepted, and keeps them itself until then; control records may wait here.
    pub fn seal(&mut self, packet: &[u8], now: Now, out: &mut Sink) -> Sealed {
        if packet.len() > PACKET_MAX {
            return Sealed::TooLarge;
        }
        self.tick_if_due(now, out);
        if self.is_established() {
            self.encapsulate(packet, now, out);
            return Sealed::Sent;
        }
        self.staged.push(packet);
        match self.sessions.unconfirmed_since(self.last_initiation) {
            Some(made) => self.deadlines.start(Timer::Confirm, made + REKEY_TIMEOUT),
            None => self.initiate_if_idle(now, out),
        }
        Sealed::Staged
    }

    /// Begins a new handshake whatever the state, unless an initiation was sent less than [`REKEY_TIMEOUT`] ago.
    /// For a peer whose clock went back, after a restart, and for a peer that a new route has been found to.
    pub fn initiate(&mut self, now: Now, out: &mut Sink) {
        self.tick_if_due(now, out);
        let since = self.last_initiation.map(|at| now.instant.saturating_duration_since(at));
        if since.is_none_or(|since| since >= REKEY_TIMEOUT) {
            self.send_initiation(now, out);
        }
    }

    /// Does what is due; a late call does it late, and nothing is lost. Does nothing when nothing is due.
    pub fn handle_timeout(&mut self, now: Now, out: &mut Sink) {
        if !self.deadlines.any_due(now.instant) {
            return;
        }
        // boringtun first: what it does moves our deadlines as well.
        self.tick_if_due(now, out);
        for timer in Timer::VALUES {
            if !self.deadlines.take_due(timer, now.instant) {
                continue;
            }
            match timer {
                Timer::Retransmit => self.send_initiation(now, out),
                Timer::RekeyAfterSend
                | Timer::RekeyAfterReceive
                | Timer::Silence
                | Timer::Confirm => self.initiate_if_idle(now, out),
                Timer::Keepalive => {
                    if self.is_established() {
                        self.encapsulate(&[], now, out);
                    }
                }
                Timer::Persistent => {
                    if self.is_established() {
                        self.encapsulate(&[], now, out);
                    } else {
                        self.initiate_if_idle(now, out);
                    }
                    self.arm_persistent(now.instant);
                }
                // boringtun erases by itself, on its own clock: if it has not yet, that clock was read later than ours.
                Timer::GiveUp | Timer::Forget => self.deadlines.set(timer, now.instant + AGAIN),
                // Has been seen to by `tick_if_due`.
                Timer::Reject => self.arm_reject(),
            }
        }
    }

    /// When to call [`Self::handle_timeout`] next; never in the past once it has been called.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.next_deadline().map(|(at, _)| at)
    }

    /// The same, with what will be due then.
    pub fn next_deadline(&self) -> Option<(Instant, Timer)> {
        self.deadlines.next()
    }

    /// Whether packets are sealed at once: there are keys, and the peer has shown that it has them too.
    pub fn is_established(&self) -> bool {
        self.sessions.current().is_some_and(|session| session.confirmed)
            && self.tunn.time_since_last_handshake().is_some()
    }

    /// Whether nothing is left that a later message could refer to: no keys, and no handshake begun. Such a tunnel may be
    /// dropped or used again; dropping it forgets the peer's last timestamp, so old initiations will be answered again.
    pub fn is_expired(&self) -> bool {
        self.expired
    }

    /// When a handshake was last completed, however it ended since.
    pub fn last_established(&self) -> Option<Instant> {
        self.last_established
    }

    /// When transport data or a response was last opened.
    pub fn last_received(&self) -> Option<Instant> {
        self.last_received
    }

    /// How long the last handshake that we began took to be answered.
    pub fn handshake_round_trip(&self) -> Option<Duration> {
        let (_, _, _, _, milliseconds) = self.tunn.stats();
        milliseconds.map(|milliseconds| Duration::from_millis(milliseconds.into()))
    }

    /// The peer's static key.
    pub fn peer(&self) -> TransportKey {
        self.peer
    }

    /// The 24-bit index given to [`Self::new`].
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Whether a message with this receiver index is for this tunnel.
    pub fn receives(&self, receiver: u32) -> bool {
        receiver >> 8 == self.index
    }

    // ---- what boringtun did

    /// Lets boringtun see to what ends: handshakes and keys.
    fn tick_if_due(&mut self, now: Now, out: &mut Sink) {
        let ends = [Timer::Retransmit, Timer::GiveUp, Timer::Reject, Timer::Forget];
        if ends.iter().any(|timer| self.deadlines.is_due(*timer, now.instant)) {
            self.tick(now, out);
        }
    }

    /// Lets boringtun read its clock and do what it finds due.
    fn tick(&mut self, now: Now, out: &mut Sink) {
        self.sessions.drop_old(now.instant);
        self.arm_reject();
        let mut buffer = vec![0; INITIATION_LEN];
        let len = match self.tunn.update_timers(&mut buffer) {
            TunnResult::WriteToNetwork(datagram) => datagram.len(),
            TunnResult::Err(WireGuardError::ConnectionExpired) => {
                self.erased(now, out);
                return;
            }
            TunnResult::Done
            | TunnResult::Err(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => return,
        };
        buffer.truncate(len);
        self.push(buffer, now, out);
    }

    /// boringtun has erased all it had: nobody answered, or there were no new keys for too long.
    fn erased(&mut self, now: Now, out: &mut Sink) {
        if self.expired {
            return;
        }
        let attempt = self.attempt.take();
        self.expired = true;
        self.newest = None;
        self.sessions = Sessions::default();
        self.deadlines.stop_all();
        self.arm_persistent(now.instant);
        let young = |attempt: Attempt| {
            now.instant.saturating_duration_since(attempt.began) + AGAIN < REKEY_ATTEMPT_TIME
        };
        if attempt.is_some_and(young) {
            // Not this handshake is too old but what was before it.
            self.send_initiation(now, out);
            return;
        }
        out.expired |= attempt.is_some();
        self.staged = Staged::default();
    }

    /// A response was made: new keys, which the initiator has yet to use.
    fn responded(&mut self, initiation: &[u8], response: &[u8], now: Now) {
        self.answered_last = Some((initiation[..SIGNED_LEN].to_vec(), response.to_vec()));
        if self.attempt.take().is_some() || !self.staged.is_empty() {
            // Both have initiated: boringtun repeats its own initiation no more, and if both responses are lost neither end
            // would begin again.
            self.deadlines.start(Timer::Confirm, now.instant + REKEY_TIMEOUT);
        }
        self.deadlines.stop(Timer::Retransmit);
        self.deadlines.stop(Timer::GiveUp);
        self.made_keys(sender(response), false, now);
        self.sent_authenticated(now);
    }

    /// Whether this is the initiation that was answered last; mac2 aside, which may differ and proves nothing.
    fn has_answered(&self, initiation: &[u8]) -> bool {
        self.answered_last
            .as_ref()
            .is_some_and(|(answered, _)| initiation.get(..SIGNED_LEN) == Some(answered))
    }

    /// The same response for the same initiation, while the initiator may still be waiting for it: copies come over
    /// several ways at once, and not every way leads back.
    fn answer_again(&self, now: Now) -> Option<Vec<u8>> {
        let (_, response) = self.answered_last.as_ref()?;
        let session = self.sessions.get(sender(response))?;
        let waits = !session.confirmed
            && now.instant.saturating_duration_since(session.made) < REKEY_TIMEOUT;
        waits.then(|| response.clone())
    }

    /// A response to our initiation `index` was accepted.
    fn answered(&mut self, index: u32, now: Now, out: &mut Sink) {
        // A late answer to the initiation before leaves the newest one waiting.
        if self.attempt.is_some_and(|attempt| attempt.index == index) {
            self.attempt = None;
            self.deadlines.stop(Timer::Retransmit);
            self.deadlines.stop(Timer::GiveUp);
        }
        self.made_keys(index, true, now);
        self.sessions.note_use(index);
        self.received_authenticated(now);
        self.established(now, out);
    }

    fn made_keys(&mut self, index: u32, initiator: bool, now: Now) {
        let made = now.instant;
        self.sessions.add(Session { index, made, confirmed: initiator });
        self.newest = Some(Newest { made, initiator });
        self.expired = false;
        self.deadlines.stop(Timer::RekeyAfterSend);
        self.deadlines.stop(Timer::RekeyAfterReceive);
        self.deadlines.set(Timer::Forget, made + 3 * REJECT_AFTER_TIME);
        self.arm_reject();
    }

    fn arm_reject(&mut self) {
        match self.sessions.oldest() {
            Some(oldest) => self.deadlines.set(Timer::Reject, oldest + REJECT_AFTER_TIME),
            None => self.deadlines.stop(Timer::Reject),
        }
    }

    fn established(&mut self, now: Now, out: &mut Sink) {
        self.last_established = Some(now.instant);
        self.deadlines.stop(Timer::Confirm);
        out.established = true;
    }

    /// Transport data under our session `receiver` was opened, `data` if it was more than a keepalive.
    fn opened(&mut self, receiver: u32, data: bool, now: Now, out: &mut Sink) {
        out.opened = true;
        self.received_authenticated(now);
        if self.sessions.note_use(receiver) {
            self.established(now, out);
        }
        if !data {
            return;
        }
        self.deadlines.start(Timer::Keepalive, now.instant + KEEPALIVE_TIMEOUT);
        let last_moment = REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT;
        if self.should_rekey(last_moment, now) {
            self.deadlines.start(Timer::RekeyAfterReceive, now.instant);
        }
    }

    fn received_authenticated(&mut self, now: Now) {
        self.last_received = Some(now.instant);
        self.deadlines.stop(Timer::Silence);
        self.arm_persistent(now.instant);
    }

    fn sent_authenticated(&mut self, now: Now) {
        self.deadlines.stop(Timer::Keepalive);
        self.arm_persistent(now.instant);
    }

    fn arm_persistent(&mut self, now: Instant) {
        if let Some(every) = self.keepalive {
            self.deadlines.set(Timer::Persistent, now + every);
        }
    }

    // ---- what boringtun is made to do

    fn initiate_if_idle(&mut self, now: Now, out: &mut Sink) {
        if self.attempt.is_none() {
            self.send_initiation(now, out);
        }
    }

    fn send_initiation(&mut self, now: Now, out: &mut Sink) {
        self.tick(now, out);
        if self.last_initiation == Some(now.instant) {
            // boringtun has just come to it by itself.
            return;
        }
        let mut buffer = vec![0; INITIATION_LEN];
        if let TunnResult::WriteToNetwork(datagram) =
            self.tunn.format_handshake_initiation(&mut buffer, true)
        {
            let len = datagram.len();
            buffer.truncate(len);
            self.push(buffer, now, out);
        }
    }

    fn encapsulate(&mut self, packet: &[u8], now: Now, out: &mut Sink) {
        let mut buffer = vec![0; (packet.len() + DATA_OVERHEAD).max(INITIATION_LEN)];
        if let TunnResult::WriteToNetwork(datagram) = self.tunn.encapsulate(packet, &mut buffer) {
            let len = datagram.len();
            buffer.truncate(len);
            self.push(buffer, now, out);
        }
    }

    /// Hands out an initiation or transport data, and sets the deadlines that follow from it.
    fn push(&mut self, datagram: Vec<u8>, now: Now, out: &mut Sink) {
        match datagram.first() {
            Some(&TYPE_INITIATION) => self.initiated(sender(&datagram), now),
            Some(&TYPE_DATA) => {
                if datagram.len() > DATA_OVERHEAD {
                    let silence = KEEPALIVE_TIMEOUT + REKEY_TIMEOUT;
                    self.deadlines.start(Timer::Silence, now.instant + silence);
                }
                if self.should_rekey(REKEY_AFTER_TIME, now) {
                    self.deadlines.start(Timer::RekeyAfterSend, now.instant);
                }
            }
            Some(_) | None => {}
        }
        self.sent_authenticated(now);
        out.datagrams.push(datagram);
    }

    /// WireGuard §6.2: only the initiator of the newest keys asks for newer ones, so that not both do.
    fn should_rekey(&self, age: Duration, now: Now) -> bool {
        self.attempt.is_none()
            && self.newest.is_some_and(|Newest { made, initiator }| {
                initiator && now.instant.saturating_duration_since(made) >= age
            })
    }

    fn initiated(&mut self, index: u32, now: Now) {
        let began = self.attempt.map_or(now.instant, |attempt| attempt.began);
        self.attempt = Some(Attempt { index, began });
        self.last_initiation = Some(now.instant);
        for timer in
            [Timer::RekeyAfterSend, Timer::RekeyAfterReceive, Timer::Silence, Timer::Confirm]
        {
            self.deadlines.stop(timer);
        }
        self.deadlines.set(Timer::Retransmit, now.instant + REKEY_TIMEOUT);
        self.deadlines.set(Timer::GiveUp, began + REKEY_ATTEMPT_TIME);
        if self.expired {
            // boringtun has begun to count anew.
            self.expired = false;
            self.deadlines.set(Timer::Forget, now.instant + 3 * REJECT_AFTER_TIME);
        }
    }

    /// Sends what waited for the session.
    fn flush(&mut self, now: Now, out: &mut Sink) {
        // Only keepalives of its own are ever in boringtun's queue; an empty datagram asks for the next one.
        for _ in 0..QUEUE_MAX {
            let mut buffer = vec![0; INITIATION_LEN];
            let TunnResult::WriteToNetwork(datagram) =
                self.tunn.decapsulate(None, &[], &mut buffer)
            else {
                break;
            };
            let len = datagram.len();
            buffer.truncate(len);
            self.push(buffer, now, out);
        }
        while self.is_established() {
            let Some(packet) = self.staged.pop() else { break };
            self.encapsulate(&packet, now, out);
        }
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel")
            .field("peer", &self.peer)
            .field("index", &self.index)
            .field("established", &self.is_established())
            .field("staged", &self.staged.len())
            .finish_non_exhaustive()
    }
}

/// The sender index of an initiation or response that boringtun made.
fn sender(message: &[u8]) -> u32 {
    message.get(4..).and_then(|rest| rest.first_chunk().copied()).map_or(0, u32::from_le_bytes)
}
