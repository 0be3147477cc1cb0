//! What a member with valid keys may send who keeps to no rule: texts under right seals that contradict themselves and each other.
#![allow(dead_code, unreachable_pub, reason = "each user takes its part")]

#[path = "../ends/mod.rs"]
pub mod ends;
#[path = "../packets/mod.rs"]
pub mod packets;

use clusternet::{
    channel::keypair::{Keypairs, TAG},
    wire::channel::{HEADER, Header, PLACE},
};
use ends::{address, addresses};
use packets::{CWR, FIN, PSH, Recipe, payload};

/// Numbers that look random; the same seed, the same numbers.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// SplitMix64.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.number() % end.max(1) as u64) as usize
    }

    /// Once in `n` times.
    pub fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

/// Seals a text under any counter.
pub fn seal(keypairs: &Keypairs, counter: u64, text: &[u8]) -> Vec<u8> {
    let keypair = keypairs.stripe(0).expect("there is one");
    let header = Header { receiver: keypair.send_index(), counter }.to_bytes();
    let mut message = [header.as_slice(), text].concat();
    let tag = keypair.seal(counter, &header, &mut message[HEADER..]);
    message.extend_from_slice(&tag);
    assert_eq!(message.len(), HEADER + text.len() + TAG);
    message
}

/// A place, sensible or not.
pub fn place(number: u16, count: u16, kind: u8, segment: u16) -> [u8; PLACE] {
    let ([a, b], [c, d], [e, f]) =
        (number.to_le_bytes(), count.to_le_bytes(), segment.to_le_bytes());
    [a, b, c, d, kind, 0, e, f]
}

/// Somebody who has keys, and no manners.
pub struct Forger {
    dice: Dice,
    /// The next counter.
    counter: u64,
}

impl Forger {
    pub fn new(seed: u64) -> Self {
        Self { dice: Dice::new(seed), counter: 0 }
    }

    /// The counter that an honest sender would use next.
    pub fn counter(&self) -> u64 {
        self.counter
    }

    /// Datagrams that may arrive together.
    pub fn batch(&mut self, keypairs: &Keypairs) -> Vec<Vec<u8>> {
        let mut batch = Vec::new();
        for _ in 0..=self.dice.below(4) {
            batch.extend(match self.dice.below(8) {
                0 => vec![self.noise(keypairs)],
                _ => self.superpacket(keypairs),
            });
        }
        if self.dice.once_in(4) {
            for n in (1..batch.len()).rev() {
                batch.swap(n, self.dice.below(n + 1));
            }
        }
        if self.dice.once_in(4) && !batch.is_empty() {
            let gone = self.dice.below(batch.len());
            batch.remove(gone);
        }
        batch
    }

    /// A text of any bytes, some of which may be a place.
    fn noise(&mut self, keypairs: &Keypairs) -> Vec<u8> {
        let len = self.dice.below(200);
        let mut text: Vec<u8> = (0..len).map(|_| self.dice.number() as u8).collect();
        if self.dice.once_in(2) && len >= PLACE {
            text[..PLACE].copy_from_slice(&place(0, 1, (len % 4) as u8, 0));
        }
        self.counter += 1;
        seal(keypairs, self.counter - 1, &text)
    }

    /// A packet with lies in it, cut as no honest sender would.
    fn superpacket(&mut self, keypairs: &Keypairs) -> Vec<Vec<u8>> {
        let packet = self.packet();
        let dice = &mut self.dice;
        let kind = dice.of(&[0, 1, 2, 2, 2, 3, 3, 3, 4, 255]);
        let segment = dice.of(&[0, 1, 2, 7, 63, 64, 65, 100, 536, 1340, 1400, 9000, 65_535]);
        let segment = if dice.once_in(20) || kind > 1 { segment } else { 0 };
        let slice =
            dice.of(&[1, 8, 19, 20, 27, 28, 39, 40, 41, 60, 700, 1412, 1412, 1412, 1412, 8000]);
        let mut parts: Vec<&[u8]> = Vec::new();
        let mut rest = &*packet;
        while !rest.is_empty() && parts.len() < 64 {
            // A slice of another length than its neighbours tells a wrong place.
            let len = if dice.once_in(40) { dice.below(1500) + 1 } else { slice };
            let (part, more) = rest.split_at(len.min(rest.len()));
            parts.push(part);
            rest = more;
        }
        let count = match dice.below(12) {
            0 => dice.number() as u16,
            1 => parts.len() as u16 + 1,
            2 => 64,
            _ => parts.len() as u16,
        };
        let first = self.counter;
        self.counter += parts.len() as u64;
        let parts = parts.into_iter().zip(first..).zip(0..).map(|((part, mut counter), number)| {
            let mut stated = [number, count, segment];
            if dice.once_in(60) {
                stated[dice.below(3)] = dice.number() as u16;
            }
            if dice.once_in(200) {
                counter = dice.of(&[0, 1, counter / 2, counter + 5000]);
            }
            let kind = if dice.once_in(60) { dice.number() as u8 } else { kind };
            let [number, count, segment] = stated;
            seal(keypairs, counter, &[&place(number, count, kind, segment), part].concat())
        });
        parts.collect()
    }

    fn packet(&mut self) -> Vec<u8> {
        let dice = &mut self.dice;
        let mut recipe = Recipe::new(dice.once_in(2), dice.once_in(2));
        recipe.flags |= dice.of(&[0, 0, PSH, FIN, CWR, 0xff]);
        if dice.once_in(4) {
            recipe.options = vec![1; 4 * dice.below(11)];
        }
        let len = match dice.below(6) {
            0 => dice.below(64),
            1 => dice.below(1500),
            2 => 65_000,
            3 => dice.below(70_000).min(65_400),
            _ => dice.below(20_000),
        };
        let mut packet = recipe.unfinished(&payload(len));
        // Mostly from whom and to whom it may be: else nothing else about it matters.
        let (from, to) =
            if dice.once_in(20) { (9, 2) } else { (1, if dice.once_in(20) { 9 } else { 2 }) };
        address(&mut packet, from, to);
        if dice.once_in(3) {
            let headers = recipe.headers();
            for _ in 0..=dice.below(3) {
                let place = dice.below(headers.min(packet.len()));
                packet[place] = dice.of(&[0, 1, 0x0f, 0x45, 0x4f, 0x60, 253, 255, dice.0 as u8]);
            }
        }
        if dice.once_in(10) {
            let len = dice.below(packet.len() + 1).max(1);
            packet.truncate(len);
        }
        packet
    }
}

/// Whether the node with these addresses may get this from node 1, by the bytes alone.
pub fn is_from_1_to_2(packet: &[u8]) -> bool {
    let between = |from: std::net::IpAddr, to: std::net::IpAddr| {
        addresses(1).contains(&from) && addresses(2).contains(&to)
    };
    match packet.first().map(|first| first >> 4) {
        Some(4) if packet.len() >= 20 => {
            let at = |n: usize| <[u8; 4]>::try_from(&packet[n..n + 4]).expect("four bytes");
            packet[9] != 253 && between(at(12).into(), at(16).into())
        }
        Some(6) if packet.len() >= 40 => {
            let at = |n: usize| <[u8; 16]>::try_from(&packet[n..n + 16]).expect("sixteen bytes");
            packet[6] != 253 && between(at(8).into(), at(24).into())
        }
        _ => false,
    }
}
