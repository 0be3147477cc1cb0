//! The channel with one peer: which keys there are, which of them seal, and when there must be new ones. Sans-IO.
//!
//! Theory of operation. Nobody makes keys for a peer that nothing is sent to: they are *wanted* once a packet waits, or once
//! the ones in use are [`REKEY_AFTER_TIME`] old (who answered the last exchange waits [`ANSWERER_LATER`] more, so that not
//! both ask) or worn. Then an offer is made, repeated until it is answered, and given up after [`EXCHANGE_PATIENCE`].
//!
//! ```text
//!              Accept comes                      a message opens under them
//!  offered ──────────────────▶ current ◀──────────────────────────────────── next ◀── Offer comes
//!                                 │  newer ones become current
//!                                 ▼
//!                              previous ── displaced, or REJECT_AFTER_TIME after their making ──▶ dead
//! ```
//! *Current* keys seal; all three open. Who offered seals at once and *greets*: it sends an empty message, and again
//! until something opens under the new keys, since the other side must not seal before that. That side greets back once.
//! Keys may be lost on one side alone (it was put to sleep, or its clock leapt): each probe of a path asks whether the peer still has what
//! we seal with. A greeting that stays without answer for [`EXCHANGE_INTERVAL`] means that the keys do not fit (ML-KEM says so in no other way):
//! new ones are wanted.
//!
//! Who offers numbers its offers; an offer that is not above all that were answered is ignored, and the same one gets the
//! same answer. Of two offers under way at once the one from the lower static key stands: the other side answers it and drops its own.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    REJECT_AFTER_TIME, REKEY_AFTER_TIME,
    exchange::{self, Agreed, Context, ExchangeError, Offered, Party},
    keypair::Keypairs,
    message::Joiner,
};
use crate::{
    wire::exchange::{Accept, Offer},
    words::{id::NetworkId, time::Repeat},
};

/// No more than one exchange with a peer in this time: each costs both a few hundred microseconds. WireGuard's REKEY_TIMEOUT.
pub const EXCHANGE_INTERVAL: Duration = Duration::from_secs(5);

/// The secrets of an exchange are erased after this, finished or not.
pub const EXCHANGE_PATIENCE: Duration = Duration::from_secs(15);

/// Who answered the last exchange lets so much more time pass before it asks for the next.
pub const ANSWERER_LATER: Duration = Duration::from_secs(10);

/// First pause between repeated offers and greetings; doubles.
const REPEAT_FIRST: Duration = Duration::from_millis(250);

/// Slowest pace of them.
const REPEAT_SLOWEST: Duration = Duration::from_secs(2);

/// What an exchange with this peer is about, as both sides' introductions have told it.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// Which network.
    pub network: NetworkId,
    /// This node.
    pub ours: Party,
    /// The peer.
    pub theirs: Party,
    /// How many keypairs: as many as the side with more stripes has.
    pub stripes: u8,
}

/// Something to do, in this order.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Send this offer.
    Offer(Offer),
    /// Send this answer.
    Accept(Accept),
    /// Messages under these keys are to be opened.
    Install(Arc<Keypairs>),
    /// An index (24 bits) is free again, and keys that had it are dead.
    Remove(u32),
    /// What [`Channel::sealing`] says has changed.
    Seal,
    /// Send an empty message under these.
    Greet(Arc<Keypairs>),
}

/// Keys that open, and perhaps seal.
#[derive(Debug)]
struct Held {
    keypairs: Arc<Keypairs>,
    made: Instant,
    /// We offered.
    is_ours: bool,
}

impl Held {
    fn new(agreed: &Agreed, stripes: u8, is_ours: bool, now: Instant) -> Self {
        let keypairs = Arc::new(Keypairs::new(agreed, stripes, now));
        Self { keypairs, made: now, is_ours }
    }

    fn end(self, steps: &mut Vec<Step>) {
        self.keypairs.kill();
        steps.push(Step::Remove(self.keypairs.index()));
    }
}

/// An offer of ours that waits for its answer.
#[derive(Debug)]
struct Offering {
    offered: Offered,
    repeat: Repeat,
    ends: Instant,
}

impl Offering {
    fn index(&self) -> u32 {
        self.offered.offer().receiver >> 8
    }
}

/// An offer of theirs, and what we said to it.
#[derive(Debug)]
struct Answered {
    offer: Offer,
    accept: Accept,
    ends: Instant,
}

/// What is known of the data channel with one peer.
#[derive(Debug, Default)]
pub struct Channel {
    offering: Option<Offering>,
    answered: Option<Answered>,
    next: Option<Held>,
    current: Option<Held>,
    previous: Option<Held>,
    /// Until something has opened under the current keys, or for [`EXCHANGE_INTERVAL`].
    greeting: Option<(Repeat, Instant)>,
    /// Since when new keys are wanted.
    wanted: Option<Instant>,
    /// The number of our newest offer, and of the newest one that we have answered.
    numbers: (u64, u64),
    offered_last: Option<Instant>,
    done_last: Option<Instant>,
    /// What control itself receives in slices.
    pub joiner: Joiner,
}

impl Channel {
    /// Packets wait: there must be keys.
    pub fn want(&mut self, now: Instant) {
        self.wanted.get_or_insert(now);
    }

    /// Nothing waits any more: what has been begun is given up.
    pub fn rest(&mut self, steps: &mut Vec<Step>) {
        self.wanted = None;
        self.give_up(steps);
    }

    /// Packets pass, either way: new keys are wanted in good time.
    pub fn handle_use(&mut self, now: Instant) {
        let Some(current) = &self.current else { return };
        let later = if current.is_ours { Duration::ZERO } else { ANSWERER_LATER };
        let age = now.saturating_duration_since(current.made);
        if age >= REKEY_AFTER_TIME + later || current.keypairs.is_worn() {
            self.want(now);
        }
    }

    /// Whether [`Self::offer`] is to be called.
    pub fn needs_offer(&self, now: Instant) -> bool {
        self.offer_at().is_some_and(|at| now >= at)
    }

    /// Makes an offer: `index` (24 bits) is no other's, `number` above all that this start of the node has used.
    ///
    /// # Errors
    /// [`ExchangeError::Library`].
    pub fn offer(
        &mut self,
        number: u64,
        index: u32,
        now: Instant,
        steps: &mut Vec<Step>,
    ) -> Result<(), ExchangeError> {
        self.offered_last = Some(now);
        self.numbers.0 = number.max(self.numbers.0 + 1);
        let offered = exchange::offer(self.numbers.0, index << 8)?;
        let mut repeat = Repeat::new(REPEAT_FIRST, REPEAT_SLOWEST, now);
        repeat.is_due(now);
        steps.push(Step::Offer(offered.offer().clone()));
        self.offering = Some(Offering { offered, repeat, ends: now + EXCHANGE_PATIENCE });
        Ok(())
    }

    /// The peer offers. `index` is taken if there is a [`Step::Install`] with it.
    ///
    /// # Errors
    /// [`ExchangeError`]: the offer is dropped.
    pub fn handle_offer(
        &mut self,
        offer: &Offer,
        index: u32,
        terms: &Terms,
        now: Instant,
        steps: &mut Vec<Step>,
    ) -> Result<(), ExchangeError> {
        if let Some(answered) = &self.answered
            && answered.offer == *offer
            && now < answered.ends
        {
            steps.push(Step::Accept(answered.accept.clone()));
            return Ok(());
        }
        let is_early = self.done_last.is_some_and(|last| now < last + EXCHANGE_INTERVAL);
        let ours_stands = self.offering.is_some() && terms.ours.key < terms.theirs.key;
        if offer.number <= self.numbers.1 || is_early || ours_stands {
            return Ok(());
        }
        let context =
            Context { network: terms.network, offerer: terms.theirs, answerer: terms.ours };
        let (accept, agreed) = exchange::accept(offer, index << 8, &context)?;
        self.give_up(steps);
        self.numbers.1 = offer.number;
        self.done_last = Some(now);
        let held = Held::new(&agreed, terms.stripes, false, now);
        steps.push(Step::Install(Arc::clone(&held.keypairs)));
        if let Some(unconfirmed) = self.next.replace(held) {
            self.retire(unconfirmed, steps);
        }
        steps.push(Step::Accept(accept.clone()));
        let ends = now + EXCHANGE_PATIENCE;
        self.answered = Some(Answered { offer: offer.clone(), accept, ends });
        Ok(())
    }

    /// The peer answers.
    ///
    /// # Errors
    /// [`ExchangeError`]: the answer is dropped.
    pub fn handle_accept(
        &mut self,
        accept: &Accept,
        terms: &Terms,
        now: Instant,
        steps: &mut Vec<Step>,
    ) -> Result<(), ExchangeError> {
        let Some(offering) = &self.offering else { return Ok(()) };
        let context =
            Context { network: terms.network, offerer: terms.ours, answerer: terms.theirs };
        let agreed = offering.offered.complete(accept, &context)?;
        self.offering = None;
        self.done_last = Some(now);
        self.wanted = None;
        let held = Held::new(&agreed, terms.stripes, true, now);
        steps.push(Step::Install(Arc::clone(&held.keypairs)));
        self.lead(held, steps);
        self.greeting =
            Some((Repeat::new(REPEAT_FIRST, REPEAT_SLOWEST, now), now + EXCHANGE_INTERVAL));
        self.greet_if_due(now, steps);
        Ok(())
    }

    /// Something has opened under the keys with this index, for the first time.
    pub fn handle_confirmed(&mut self, index: u32, steps: &mut Vec<Step>) {
        if self.current.as_ref().is_some_and(|held| held.keypairs.index() == index) {
            self.greeting = None;
        }
        let Some(next) = self.next.take_if(|held| held.keypairs.index() == index) else { return };
        if self.current.as_ref().is_some_and(|current| current.made > next.made) {
            self.retire(next, steps);
            return;
        }
        self.wanted = None;
        self.greeting = None;
        let keypairs = Arc::clone(&next.keypairs);
        self.lead(next, steps);
        steps.push(Step::Greet(keypairs));
    }

    /// The peer cannot open what is sealed under this index of its: it has lost the keys, and only new ones help.
    pub fn handle_unknown(&mut self, index: u32, now: Instant, steps: &mut Vec<Step>) {
        if let Some(lost) = self.current.take_if(|held| held.keypairs.send_index() == index) {
            self.greeting = None;
            steps.push(Step::Seal);
            lost.end(steps);
            self.want(now);
        }
    }

    /// Does what is due. Only what must end ends while the tunnel cannot send.
    pub fn handle_timeout(&mut self, can_send: bool, now: Instant, steps: &mut Vec<Step>) {
        if self.answered.as_ref().is_some_and(|answered| now >= answered.ends) {
            self.answered = None;
        }
        if self.offering.as_ref().is_some_and(|offering| now >= offering.ends) {
            self.give_up(steps);
        }
        let is_old = |held: &mut Held| now >= held.made + REJECT_AFTER_TIME;
        for held in [self.next.take_if(is_old), self.previous.take_if(is_old)] {
            held.into_iter().for_each(|held| held.end(steps));
        }
        if let Some(held) = self.current.take_if(is_old) {
            self.greeting = None;
            steps.push(Step::Seal);
            held.end(steps);
        }
        if !can_send {
            return;
        }
        self.greet_if_due(now, steps);
        if let Some(offering) = &mut self.offering
            && offering.repeat.is_due(now)
        {
            steps.push(Step::Offer(offering.offered.offer().clone()));
        }
    }

    /// When [`Self::handle_timeout`] has something to do, or there is an offer to make.
    pub fn next_timeout(&self, can_send: bool) -> Option<Instant> {
        let ends = [&self.next, &self.current, &self.previous]
            .into_iter()
            .flatten()
            .map(|held| held.made + REJECT_AFTER_TIME)
            .chain(self.answered.as_ref().map(|answered| answered.ends))
            .chain(self.offering.as_ref().map(|offering| offering.ends));
        let sends = self
            .offer_at()
            .into_iter()
            .chain(self.offering.as_ref().map(|offering| offering.repeat.next))
            .chain(self.greeting.map(|(repeat, until)| repeat.next.min(until)))
            .filter(|_| can_send);
        ends.chain(sends).min()
    }

    /// What messages are sealed with now.
    pub fn sealing(&self, now: Instant) -> Option<&Arc<Keypairs>> {
        self.current.as_ref().map(|held| &held.keypairs).filter(|keypairs| !keypairs.is_dead(now))
    }

    /// All keys that open.
    pub fn keypairs(&self) -> impl Iterator<Item = &Arc<Keypairs>> {
        [&self.next, &self.current, &self.previous].into_iter().flatten().map(|held| &held.keypairs)
    }

    /// Ends all keys at once, and what has been begun. Numbers and pauses stay.
    pub fn end(&mut self, steps: &mut Vec<Step>) {
        self.give_up(steps);
        self.answered = None;
        self.greeting = None;
        if self.current.is_some() {
            steps.push(Step::Seal);
        }
        for held in [self.next.take(), self.current.take(), self.previous.take()] {
            held.into_iter().for_each(|held| held.end(steps));
        }
    }

    /// When the next offer may be made, if one is wanted.
    fn offer_at(&self) -> Option<Instant> {
        let wanted = self.wanted.filter(|_| self.offering.is_none())?;
        let last = self.offered_last.max(self.done_last);
        Some(last.map_or(wanted, |last| wanted.max(last + EXCHANGE_INTERVAL)))
    }

    fn give_up(&mut self, steps: &mut Vec<Step>) {
        steps.extend(self.offering.take().map(|offering| Step::Remove(offering.index())));
    }

    /// These seal from now on.
    fn lead(&mut self, held: Held, steps: &mut Vec<Step>) {
        let before = self.current.replace(held);
        steps.push(Step::Seal);
        before.into_iter().for_each(|before| self.retire(before, steps));
    }

    /// These only open from now on, what is still under way.
    fn retire(&mut self, held: Held, steps: &mut Vec<Step>) {
        self.previous.replace(held).into_iter().for_each(|older| older.end(steps));
    }

    fn greet_if_due(&mut self, now: Instant, steps: &mut Vec<Step>) {
        let (Some((repeat, until)), Some(current)) = (&mut self.greeting, &self.current) else {
            return;
        };
        if now >= *until {
            self.greeting = None;
            self.wanted.get_or_insert(now);
        } else if repeat.is_due(now) {
            steps.push(Step::Greet(Arc::clone(&current.keypairs)));
        }
    }
}

#[cfg(test)]
mod tests;
