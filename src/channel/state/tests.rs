//! Two channels that talk: every message is carried by hand, and time passes when a test says so.
#![expect(clippy::disallowed_methods, reason = "any instant will do")]

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{
    channel::{Suites, message},
    words::{
        id::{Incarnation, Serial},
        key::TransportKey,
    },
};

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);

/// What travels between the two.
#[derive(Debug, Clone)]
enum Words {
    Offer(Offer),
    Accept(Accept),
    /// A channel message.
    Message(Vec<u8>),
}

/// One side, with what a node keeps for it.
struct Side {
    channel: Channel,
    terms: Terms,
    next_index: u32,
    number: u64,
    open: BTreeMap<u32, Arc<Keypairs>>,
    out: Vec<Words>,
    /// How many times it was told to seal with others, or none.
    switches: u32,
    offers: u32,
}

struct Pair {
    /// The lower key, then the higher.
    sides: [Side; 2],
    start: Instant,
    now: Instant,
}

const LOW: usize = 0;
const HIGH: usize = 1;

impl Side {
    fn new(ours: Party, theirs: Party) -> Self {
        let terms = Terms { network: NetworkId([9; 16]), ours, theirs, stripes: 2 };
        Self {
            channel: Channel::default(),
            terms,
            next_index: u32::from(ours.key.0[0]) << 16,
            number: 0,
            open: BTreeMap::new(),
            out: Vec::new(),
            switches: 0,
            offers: 0,
        }
    }

    /// Does what a node does with steps.
    fn apply(&mut self, steps: Vec<Step>, now: Instant) {
        for step in steps {
            match step {
                Step::Offer(offer) => {
                    self.offers += 1;
                    self.out.push(Words::Offer(offer));
                }
                Step::Accept(accept) => self.out.push(Words::Accept(accept)),
                Step::Install(keypairs) => {
                    assert!(self.open.insert(keypairs.index(), keypairs).is_none());
                }
                Step::Remove(index) => {
                    let removed = self.open.remove(&index);
                    assert!(removed.is_none_or(|keypairs| keypairs.is_dead(now)));
                }
                Step::Seal => self.switches += 1,
                Step::Greet(keypairs) => {
                    let own = keypairs.stripe(1).expect("two stripes");
                    self.out.extend(message::seal_empty(own, now).map(Words::Message));
                }
            }
        }
        assert!(self.open.len() <= 3, "next, current, previous");
        let held: Vec<u32> = self.channel.keypairs().map(|keypairs| keypairs.index()).collect();
        assert!(
            held.iter().all(|index| self.open.contains_key(index)) && held.len() == self.open.len()
        );
    }

    fn index(&mut self) -> u32 {
        self.next_index += 1;
        self.next_index
    }

    fn work(&mut self, now: Instant) {
        let mut steps = Vec::new();
        self.channel.handle_timeout(true, now, &mut steps);
        if self.channel.needs_offer(now) {
            self.number += 1;
            let (number, index) = (self.number, self.index());
            self.channel.offer(number, index, now, &mut steps).expect("the library works");
        }
        self.apply(steps, now);
    }

    fn hear(&mut self, words: Words, now: Instant) -> Result<(), ExchangeError> {
        let mut steps = Vec::new();
        let terms = self.terms;
        let result = match words {
            Words::Offer(offer) => {
                let index = self.index();
                self.channel.handle_offer(&offer, index, &terms, now, &mut steps)
            }
            Words::Accept(accept) => self.channel.handle_accept(&accept, &terms, now, &mut steps),
            Words::Message(mut bytes) => {
                self.open_message(&mut bytes, now, &mut steps);
                Ok(())
            }
        };
        self.apply(steps, now);
        result
    }

    /// Whether it opened.
    fn open_message(&mut self, bytes: &mut [u8], now: Instant, steps: &mut Vec<Step>) -> bool {
        let receiver = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        let Some(keypairs) = self.open.get(&(receiver >> 8)).cloned() else { return false };
        let Some(keypair) = keypairs.stripe(receiver as u8) else { return false };
        let opened = message::open(keypair, bytes, now).is_ok();
        if opened && keypairs.confirm() {
            self.channel.handle_confirmed(keypairs.index(), steps);
        }
        opened
    }

    fn seals(&self, now: Instant) -> Option<u32> {
        self.channel.sealing(now).map(|keypairs| keypairs.index())
    }

    /// A packet, if there are keys for it.
    fn packet(&mut self, now: Instant) -> Option<Vec<u8>> {
        let keypairs = Arc::clone(self.channel.sealing(now)?);
        self.channel.handle_use(now);
        message::seal_empty(keypairs.stripe(0)?, now).ok()
    }
}

impl Pair {
    fn new() -> Self {
        let party = |n: u8| Party {
            serial: Serial(n.into()),
            key: TransportKey([n; 32]),
            incarnation: Incarnation(n.into()),
            suites: Suites::of(true),
        };
        let now = Instant::now();
        let sides = [Side::new(party(1), party(2)), Side::new(party(2), party(1))];
        Self { sides, start: now, now }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    /// What one side wants to say.
    fn take(&mut self, side: usize) -> Vec<Words> {
        self.sides[side].work(self.now);
        std::mem::take(&mut self.sides[side].out)
    }

    fn give(&mut self, side: usize, words: &Words) {
        let now = self.now;
        // What is refused is dropped, as a node does.
        let _ = self.sides[side].hear(words.clone(), now);
    }

    /// Carries everything both ways until both are silent.
    fn talk(&mut self) {
        loop {
            let words = [self.take(LOW), self.take(HIGH)];
            if words.iter().all(Vec::is_empty) {
                return;
            }
            for (from, words) in words.iter().enumerate() {
                words.iter().for_each(|words| self.give(1 - from, words));
            }
        }
    }

    fn want(&mut self, side: usize) {
        self.sides[side].channel.want(self.now);
    }

    /// Keys that one side has offered, in use by both.
    fn agreed(offerer: usize) -> Self {
        let mut pair = Self::new();
        pair.want(offerer);
        pair.talk();
        assert!(pair.passes(LOW) && pair.passes(HIGH));
        pair
    }

    /// Whether a packet of this side opens at the other.
    fn passes(&mut self, from: usize) -> bool {
        let now = self.now;
        let Some(mut packet) = self.sides[from].packet(now) else { return false };
        let mut steps = Vec::new();
        let opened = self.sides[1 - from].open_message(&mut packet, now, &mut steps);
        self.sides[1 - from].channel.handle_use(now);
        self.sides[1 - from].apply(steps, now);
        opened
    }

    fn keys(&self, side: usize) -> Arc<Keypairs> {
        Arc::clone(self.sides[side].channel.sealing(self.now).expect("keys"))
    }
}

#[test]
fn the_offerer_seals_at_once_and_the_answerer_after_opening() {
    let mut pair = Pair::new();
    pair.want(LOW);
    let offer = pair.take(LOW);
    assert!(matches!(&offer[..], [Words::Offer(_)]));
    pair.give(HIGH, &offer[0]);
    let accept = pair.take(HIGH);
    assert!(matches!(&accept[..], [Words::Accept(_)]));
    assert_eq!(pair.sides[HIGH].seals(pair.now), None);
    assert_eq!(pair.sides[HIGH].open.len(), 1, "but it opens already");
    pair.give(LOW, &accept[0]);
    assert!(pair.sides[LOW].seals(pair.now).is_some());
    let greeting = pair.take(LOW);
    let [Words::Message(bytes)] = &greeting[..] else { panic!("{greeting:?}") };
    assert_eq!(bytes.len(), 32, "nothing in it");
    assert_eq!(pair.sides[HIGH].seals(pair.now), None);
    pair.give(HIGH, &greeting[0]);
    assert!(pair.sides[HIGH].seals(pair.now).is_some());
    assert!(pair.passes(LOW) && pair.passes(HIGH));
}

#[test]
fn the_same_offer_gets_the_byte_same_answer() {
    let mut pair = Pair::new();
    pair.want(LOW);
    let offer = pair.take(LOW).remove(0);
    let answer = |pair: &mut Pair| {
        pair.give(HIGH, &offer);
        pair.take(HIGH).into_iter().find_map(|words| match words {
            Words::Accept(accept) => Some(accept),
            Words::Offer(_) | Words::Message(_) => None,
        })
    };
    let first = answer(&mut pair).expect("answered");
    assert_eq!(pair.sides[HIGH].open.len(), 1);
    for _ in 0..3 {
        pair.pass(SECOND * 4);
        assert_eq!(answer(&mut pair), Some(first.clone()));
        assert_eq!(pair.sides[HIGH].open.len(), 1, "no keys but the first");
    }
    pair.pass(SECOND * 4);
    assert_eq!(answer(&mut pair), None, "forgotten after 15 s, and not answered anew");
    assert_eq!(pair.sides[HIGH].open.len(), 1);
}

#[test]
fn numbers_that_were_answered_or_are_lower_are_ignored() {
    let mut pair = Pair::new();
    let offer =
        |number, index: u32| exchange::offer(number, index << 8).expect("works").offer().clone();
    pair.give(HIGH, &Words::Offer(offer(7, 1)));
    assert_eq!(pair.take(HIGH).len(), 1);
    pair.pass(SECOND * 6);
    for number in [7, 6, 0] {
        pair.give(HIGH, &Words::Offer(offer(number, 2)));
        assert_eq!(pair.take(HIGH).len(), 0, "{number}");
    }
    pair.give(HIGH, &Words::Offer(offer(8, 3)));
    assert_eq!(pair.take(HIGH).len(), 1);
}

#[test]
fn of_simultaneous_offers_that_of_the_lower_key_stands() {
    for first in [LOW, HIGH] {
        let mut pair = Pair::new();
        pair.want(LOW);
        pair.want(HIGH);
        let offers = [pair.take(LOW).remove(0), pair.take(HIGH).remove(0)];
        for to in [first, 1 - first] {
            pair.give(to, &offers[1 - to]);
        }
        assert!(pair.take(LOW).is_empty(), "it waits for its own answer");
        assert!(pair.sides[LOW].open.is_empty());
        let answer = pair.take(HIGH);
        assert!(matches!(&answer[..], [Words::Accept(_)]), "its own is dropped");
        pair.give(LOW, &answer[0]);
        pair.talk();
        assert!(pair.passes(LOW) && pair.passes(HIGH));
        assert_eq!((pair.sides[LOW].open.len(), pair.sides[HIGH].open.len()), (1, 1));
        assert_eq!((pair.sides[LOW].offers, pair.sides[HIGH].offers), (1, 1));
    }
}

#[test]
fn there_is_one_exchange_in_five_seconds() {
    let mut pair = Pair::agreed(LOW);
    let offers = |pair: &Pair| pair.sides[LOW].offers + pair.sides[HIGH].offers;
    assert_eq!(offers(&pair), 1);
    pair.pass(MILLISECOND * 4_999);
    pair.want(LOW);
    pair.want(HIGH);
    pair.talk();
    assert_eq!(offers(&pair), 1, "neither offers");
    let eager = exchange::offer(99, 0x100).expect("works").offer().clone();
    pair.give(HIGH, &Words::Offer(eager.clone()));
    assert_eq!(pair.take(HIGH).len(), 0, "nor is one answered");
    pair.pass(MILLISECOND);
    assert_eq!(pair.sides[LOW].channel.next_timeout(true), Some(pair.now));
    pair.give(HIGH, &Words::Offer(eager));
    let answer = pair.take(HIGH);
    assert!(matches!(answer.first(), Some(Words::Accept(_))));
}

#[test]
fn an_offer_is_repeated_with_growing_pauses_and_erased_after_fifteen_seconds() {
    let mut pair = Pair::new();
    pair.want(LOW);
    let mut sent: Vec<(u128, Offer)> = Vec::new();
    while pair.now < pair.start + SECOND * 15 {
        for words in pair.take(LOW) {
            let Words::Offer(offer) = words else { panic!("{words:?}") };
            sent.push(((pair.now - pair.start).as_millis(), offer));
        }
        pair.pass(MILLISECOND * 50);
    }
    let times: Vec<u128> = sent.iter().map(|(at, _)| *at).collect();
    assert_eq!(times, [0, 250, 750, 1750, 3750, 5750, 7750, 9750, 11750, 13750]);
    assert!(sent.iter().all(|(_, offer)| *offer == sent[0].1), "the same one");
    pair.give(HIGH, &Words::Offer(sent[0].1.clone()));
    let late = pair.take(HIGH).remove(0);
    let offered = pair.take(LOW);
    let [Words::Offer(second)] = &offered[..] else { panic!("{offered:?}") };
    assert!(second.number > sent[0].1.number && second.x25519 != sent[0].1.x25519);
    pair.give(LOW, &late);
    assert!(pair.sides[LOW].open.is_empty(), "what the answer needs is erased");
    // Also where nothing can be sent and nobody waits any more.
    let mut steps = Vec::new();
    pair.sides[LOW].channel.rest(&mut steps);
    assert!(matches!(&steps[..], [Step::Remove(_)]));
    assert!(pair.sides[LOW].channel.offering.is_none());
}

#[test]
fn an_offer_ends_in_time_though_the_tunnel_cannot_send() {
    let mut pair = Pair::new();
    pair.want(LOW);
    pair.take(LOW);
    let channel = &mut pair.sides[LOW].channel;
    assert_eq!(channel.next_timeout(false), Some(pair.start + SECOND * 15));
    let mut steps = Vec::new();
    channel.handle_timeout(false, pair.start + SECOND * 15, &mut steps);
    assert!(channel.offering.is_none());
    assert_eq!(channel.next_timeout(false), None);
}

#[test]
fn the_offerer_renews_after_two_minutes_and_the_answerer_somewhat_later() {
    for (side, seconds) in [(LOW, 120), (HIGH, 130)] {
        let mut pair = Pair::agreed(LOW);
        let old = pair.keys(side).index();
        pair.pass(SECOND * seconds - MILLISECOND);
        pair.passes(side);
        pair.sides[1 - side].channel.wanted = None;
        pair.talk();
        assert_eq!(pair.keys(side).index(), old);
        pair.pass(MILLISECOND);
        pair.talk();
        assert_eq!(pair.keys(side).index(), old, "not unless packets pass");
        pair.sides[side].channel.handle_use(pair.now);
        pair.talk();
        assert_ne!(pair.keys(side).index(), old);
        assert!(pair.passes(LOW) && pair.passes(HIGH));
    }
}

#[test]
fn worn_keys_are_renewed_at_once() {
    for side in [LOW, HIGH] {
        let mut pair = Pair::agreed(LOW);
        pair.pass(SECOND * 6);
        let old = pair.keys(side);
        let used = old.stripe(0).expect("a stripe").reserve(1 << 27, pair.now).expect("young");
        pair.sides[side].channel.handle_use(pair.now);
        pair.talk();
        assert_eq!(pair.keys(side).index(), old.index());
        // 2^28 messages: one more than half of it twice.
        assert!(
            old.stripe(0)
                .expect("a stripe")
                .reserve((1 << 28) - (1 << 27) - used, pair.now)
                .is_ok()
        );
        pair.sides[side].channel.handle_use(pair.now);
        pair.talk();
        assert_ne!(pair.keys(side).index(), old.index());
    }
}

#[test]
fn keys_end_three_minutes_after_their_making() {
    let mut pair = Pair::agreed(LOW);
    let (low, high) = (pair.keys(LOW), pair.keys(HIGH));
    pair.pass(SECOND * 180 - MILLISECOND);
    assert!(pair.passes(LOW) && pair.passes(HIGH));
    for side in &mut pair.sides {
        side.channel.wanted = None;
        side.work(pair.now);
        assert_eq!(side.channel.next_timeout(false), Some(pair.start + SECOND * 180));
    }
    pair.pass(MILLISECOND);
    assert!(!pair.passes(LOW) && !pair.passes(HIGH), "even before anybody was woken");
    pair.talk();
    for (side, keypairs) in pair.sides.iter().zip([low, high]) {
        assert!(side.open.is_empty());
        assert!(keypairs.stripe(0).expect("one").is_dead(pair.start), "killed, not only old");
        assert_eq!(side.switches, 2, "to them, and to none");
        assert_eq!(side.channel.next_timeout(true), None);
    }
}

#[test]
fn renewed_keys_take_over_while_the_old_ones_still_open() {
    let mut pair = Pair::agreed(LOW);
    pair.pass(SECOND * 120);
    pair.sides[LOW].channel.handle_use(pair.now);
    let offer = pair.take(LOW).remove(0);
    let mut under_old = pair.sides[HIGH].packet(pair.now).expect("keys");
    pair.give(HIGH, &offer);
    let accept = pair.take(HIGH).remove(0);
    assert!(pair.passes(HIGH), "the old ones go on");
    pair.give(LOW, &accept);
    let mut steps = Vec::new();
    assert!(pair.sides[LOW].open_message(&mut under_old, pair.now, &mut steps));
    assert!(pair.passes(LOW) && pair.passes(HIGH));
    for side in &pair.sides {
        assert_eq!((side.open.len(), side.switches), (2, 2));
    }
    // The next ones displace the first.
    pair.pass(SECOND * 120);
    pair.talk();
    assert!(pair.sides.iter().all(|side| side.open.len() == 1));
}

#[test]
fn a_greeting_is_repeated_until_something_opens() {
    let mut pair = Pair::new();
    pair.want(LOW);
    let offer = pair.take(LOW).remove(0);
    pair.give(HIGH, &offer);
    let accept = pair.take(HIGH).remove(0);
    pair.give(LOW, &accept);
    assert_eq!(pair.take(LOW).len(), 1, "lost");
    pair.pass(MILLISECOND * 250);
    let again = pair.take(LOW);
    assert_eq!(again.len(), 1);
    pair.give(HIGH, &again[0]);
    let back = pair.take(HIGH);
    assert!(matches!(&back[..], [Words::Message(_)]), "it says that it has got them");
    pair.give(LOW, &back[0]);
    pair.pass(SECOND * 100);
    assert_eq!(pair.take(LOW).len(), 0);
    assert_eq!(pair.take(HIGH).len(), 0);
}

#[test]
fn keys_that_do_not_fit_are_replaced() {
    let mut pair = Pair::new();
    pair.want(LOW);
    let offer = pair.take(LOW).remove(0);
    pair.give(HIGH, &offer);
    let Words::Accept(mut accept) = pair.take(HIGH).remove(0) else { panic!("no answer") };
    accept.mlkem[9] ^= 1;
    pair.give(LOW, &Words::Accept(accept));
    assert!(!pair.passes(LOW), "rejected in silence: the keys are wrong");
    while pair.now < pair.start + SECOND * 8 {
        pair.talk();
        pair.pass(MILLISECOND * 50);
    }
    assert!(pair.passes(LOW) && pair.passes(HIGH));
}

#[test]
fn keys_that_the_peer_has_lost_are_dropped_when_it_says_so() {
    let mut pair = Pair::agreed(LOW);
    pair.pass(SECOND * 20);
    let mut steps = Vec::new();
    pair.sides[HIGH].channel.end(&mut steps);
    assert_eq!(steps.len(), 2, "seal no more, remove");
    let now = pair.now;
    pair.sides[HIGH].apply(steps, now);
    assert!(!pair.passes(LOW));
    let (other, lost) = (0x77, pair.keys(LOW).send_index());
    for (index, keeps) in [(other, true), (0, true), (lost, false)] {
        let mut steps = Vec::new();
        pair.sides[LOW].channel.handle_unknown(index, now, &mut steps);
        pair.sides[LOW].apply(steps, now);
        assert_eq!(pair.sides[LOW].seals(now).is_some(), keeps);
    }
    pair.talk();
    assert!(pair.passes(LOW) && pair.passes(HIGH));
}

#[test]
fn an_end_is_at_once_and_for_all() {
    let mut pair = Pair::agreed(LOW);
    pair.pass(SECOND * 120);
    pair.talk();
    pair.pass(SECOND * 10);
    // Previous, current and next, and an offer of our own.
    let offer = exchange::offer(99, 0x500).expect("works").offer().clone();
    pair.give(HIGH, &Words::Offer(offer));
    let all: Vec<Arc<Keypairs>> = pair.sides[HIGH].channel.keypairs().cloned().collect();
    let mut steps = Vec::new();
    pair.sides[HIGH].channel.end(&mut steps);
    assert!(all.len() >= 2 && all.iter().all(|keypairs| keypairs.is_dead(pair.now)));
    assert!(pair.sides[HIGH].channel.sealing(pair.now).is_none());
    assert_eq!(pair.sides[HIGH].channel.next_timeout(true), None);
    let now = pair.now;
    pair.sides[HIGH].apply(steps, now);
    assert!(pair.sides[HIGH].open.is_empty());
}

#[test]
fn unconfirmed_keys_make_room_for_newer_ones_and_still_open() {
    let mut pair = Pair::agreed(LOW);
    pair.pass(SECOND * 120);
    pair.sides[LOW].channel.handle_use(pair.now);
    let first = pair.take(LOW).remove(0);
    pair.give(HIGH, &first);
    let accept = pair.take(HIGH).remove(0);
    pair.give(LOW, &accept);
    pair.take(LOW);
    // Everything from there is lost; it offers again, and its packets are late.
    let mut late = pair.sides[LOW].packet(pair.now).expect("keys");
    pair.pass(SECOND * 6);
    let second = pair.take(LOW).into_iter().find(|words| matches!(words, Words::Offer(_)));
    pair.give(HIGH, &second.expect("its greeting was not answered"));
    assert_eq!(pair.sides[HIGH].open.len(), 3);
    let mut steps = Vec::new();
    assert!(pair.sides[HIGH].open_message(&mut late, pair.now, &mut steps));
    pair.talk();
    assert!(pair.passes(LOW) && pair.passes(HIGH));
}

#[derive(Debug, Clone, Copy)]
enum Event {
    /// Packets go from a side.
    Send(usize),
    /// Milliseconds pass.
    Pass(u64),
    /// The nth word under way to a side: arrives, is lost, or arrives and stays under way.
    Arrive(usize, usize),
    Lose(usize, usize),
    Double(usize, usize),
}

fn events() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0..2_usize).prop_map(Event::Send),
        3 => prop_oneof![0..50_u64, 100..3_000_u64, 20_000..70_000_u64].prop_map(Event::Pass),
        6 => (0..2_usize, 0..4_usize).prop_map(|(to, n)| Event::Arrive(to, n)),
        1 => (0..2_usize, 0..4_usize).prop_map(|(to, n)| Event::Lose(to, n)),
        1 => (0..2_usize, 0..4_usize).prop_map(|(to, n)| Event::Double(to, n)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is lost, doubled or overtaken: what a side seals opens at the other while its keys live there, and when
    /// everything is well again both talk.
    #[test]
    fn after_any_loss_both_talk_again(story in proptest::collection::vec(events(), 1..120)) {
        let mut pair = Pair::new();
        let mut under_way: [Vec<Words>; 2] = [Vec::new(), Vec::new()];
        for event in story {
            match event {
                Event::Send(from) => {
                    let now = pair.now;
                    match pair.sides[from].packet(now) {
                        Some(packet) => under_way[1 - from].push(Words::Message(packet)),
                        None => pair.want(from),
                    }
                }
                Event::Pass(time) => pair.pass(MILLISECOND * time as u32),
                Event::Arrive(to, n) if n < under_way[to].len() => {
                    let words = under_way[to].remove(n);
                    pair.give(to, &words);
                }
                Event::Double(to, n) if n < under_way[to].len() => {
                    let words = under_way[to][n].clone();
                    pair.give(to, &words);
                }
                Event::Lose(to, n) if n < under_way[to].len() => {
                    under_way[to].remove(n);
                }
                Event::Arrive(..) | Event::Double(..) | Event::Lose(..) => {}
            }
            for from in [LOW, HIGH] {
                let words = pair.take(from);
                under_way[1 - from].extend(words);
                let next = pair.sides[from].channel.next_timeout(true);
                prop_assert!(next.is_none_or(|next| next > pair.now), "it would never sleep");
            }
        }
        // All is well: within the time that the other side's keys may outlive ours, both talk.
        let healed = pair.now;
        while pair.now < healed + SECOND * 185 {
            for side in [LOW, HIGH] {
                if !pair.passes(side) && pair.sides[side].seals(pair.now).is_none() {
                    pair.want(side);
                }
            }
            pair.talk();
            pair.pass(SECOND);
        }
        prop_assert!(pair.passes(LOW) && pair.passes(HIGH));
    }
}
