//! What can be told on the real clock; what takes minutes is in `tests/tunnel.rs`, on a virtual one.
#![expect(
    clippy::disallowed_methods,
    reason = "boringtun reads the real clock here, so the tests must"
)]

use std::time::{Instant, SystemTime};

use proptest::prelude::*;

use super::*;
use crate::words::time::{Now, Timestamp};

fn now() -> Now {
    Now { instant: Instant::now(), wall: Timestamp::from_system(SystemTime::now()) }
}

/// Two ends of a tunnel and the datagrams between them.
struct Pair {
    secrets: [TransportSecret; 2],
    ends: [Tunnel; 2],
}

impl Pair {
    fn new() -> Self {
        let secrets = [TransportSecret::generate(), TransportSecret::generate()];
        let ends = [
            Tunnel::new(&secrets[0], &secrets[1].public(), 0xa0_0001, now()),
            Tunnel::new(&secrets[1], &secrets[0].public(), 0xb0_0002, now()),
        ];
        Self { secrets, ends }
    }

    fn established() -> Self {
        let mut pair = Self::new();
        let mut out = Sink::default();
        pair.ends[0].initiate(now(), &mut out);
        pair.carry(0, out);
        assert!(pair.ends.iter().all(Tunnel::is_established));
        pair
    }

    /// Delivers what `from` sent, and the answers, until nothing is sent any more; returns what each end was given.
    fn carry(&mut self, from: usize, mut out: Sink) -> [Sink; 2] {
        let mut given = [Sink::default(), Sink::default()];
        let mut from = from;
        while !out.datagrams.is_empty() {
            let to = 1 - from;
            let mut answers = Sink::default();
            for datagram in out.datagrams.drain(..) {
                self.ends[to].handle_datagram(&datagram, now(), &mut answers).unwrap();
            }
            given[to].packets.append(&mut answers.packets);
            given[to].established |= answers.established;
            given[to].opened |= answers.opened;
            out = answers;
            from = to;
        }
        given
    }

    fn seal(&mut self, end: usize, packet: &[u8]) -> Vec<u8> {
        let mut out = Sink::default();
        assert_eq!(self.ends[end].seal(packet, now(), &mut out), Sealed::Sent);
        assert_eq!(out.datagrams.len(), 1);
        out.datagrams.remove(0)
    }
}

/// An IPv6 packet with `len` bytes behind its header.
fn packet(len: u16) -> Vec<u8> {
    let mut packet = vec![0x5a; 40 + usize::from(len)];
    packet[..4].copy_from_slice(&[0x60, 0, 0, 0]);
    packet[4..6].copy_from_slice(&len.to_be_bytes());
    packet[6] = 253;
    packet
}

#[test]
fn a_packet_without_a_session_starts_a_handshake_and_follows_it() {
    let mut pair = Pair::new();
    let mut out = Sink::default();
    assert_eq!(pair.ends[0].seal(&packet(10), now(), &mut out), Sealed::Staged);
    assert_eq!(pair.ends[0].seal(&packet(20), now(), &mut out), Sealed::Staged);
    assert_eq!(out.datagrams.len(), 1, "one initiation for both");
    let [first, second] = pair.carry(0, out);
    assert!(first.established && second.established);
    assert_eq!(second.packets, [packet(10), packet(20)]);
}

#[test]
fn the_responder_sends_nothing_but_the_response_until_it_has_opened_a_message() {
    let mut pair = Pair::new();
    let mut initiation = Sink::default();
    pair.ends[0].initiate(now(), &mut initiation);
    let mut response = Sink::default();
    pair.ends[1].handle_datagram(&initiation.datagrams[0], now(), &mut response).unwrap();
    assert_eq!((response.datagrams.len(), response.datagrams[0][0]), (1, 2));
    assert!(!response.established && !pair.ends[1].is_established());
    let mut out = Sink::default();
    assert_eq!(pair.ends[1].seal(&packet(1), now(), &mut out), Sealed::Staged);
    assert!(out.datagrams.is_empty());
    let [first, second] = pair.carry(1, response);
    assert!(second.established && second.opened);
    assert_eq!(first.packets, [packet(1)]);
}

#[test]
fn data_goes_both_ways_at_every_size() {
    let mut pair = Pair::established();
    for len in [0, 1, 1060, 1400, 9000, u16::MAX - 8 - 40 - 32] {
        for end in [0, 1] {
            let datagram = pair.seal(end, &packet(len));
            let mut out = Sink::default();
            pair.ends[1 - end].handle_datagram(&datagram, now(), &mut out).unwrap();
            assert_eq!(out.packets, [packet(len)]);
            assert!(out.opened && !out.established);
        }
    }
    let mut out = Sink::default();
    assert_eq!(pair.ends[0].seal(&vec![0x60; PACKET_MAX + 1], now(), &mut out), Sealed::TooLarge);
}

#[test]
fn what_is_not_ip_shows_that_the_peer_lives_and_is_not_handed_out() {
    let mut pair = Pair::established();
    for not_ip in [&[0_u8; 64][..], &[0x60; 30], &[0x45; 400]] {
        let datagram = pair.seal(0, not_ip);
        let mut out = Sink::default();
        let result = pair.ends[1].handle_datagram(&datagram, now(), &mut out);
        assert_eq!(result, Err(TunnelError::NotIp));
        assert!(out.opened && out.packets.is_empty());
    }
}

#[test]
fn a_replay_is_refused() {
    let mut pair = Pair::established();
    let datagram = pair.seal(0, &packet(100));
    let mut out = Sink::default();
    assert_eq!(pair.ends[1].handle_datagram(&datagram, now(), &mut out), Ok(()));
    let mut out = Sink::default();
    let again = pair.ends[1].handle_datagram(&datagram, now(), &mut out);
    assert_eq!(again, Err(TunnelError::Replayed));
    assert!(!out.opened && out.packets.is_empty());
}

#[test]
fn copies_of_an_initiation_get_the_same_answer_until_it_has_arrived() {
    let mut pair = Pair::new();
    let mut out = Sink::default();
    pair.ends[0].initiate(now(), &mut out);
    let initiation = out.datagrams.remove(0);
    let mut responses = Sink::default();
    for _ in 0..3 {
        let copy = pair.ends[1].handle_datagram(&initiation, now(), &mut responses);
        assert_eq!(copy, Ok(()));
    }
    assert_eq!(responses.datagrams.len(), 3);
    assert_eq!(responses.datagrams[0], responses.datagrams[2]);
    let response = responses.datagrams.remove(2);
    pair.carry(1, Sink { datagrams: vec![response], ..Sink::default() });
    assert!(pair.ends.iter().all(Tunnel::is_established));
    let mut out = Sink::default();
    let late = pair.ends[1].handle_datagram(&initiation, now(), &mut out);
    assert_eq!(late, Err(TunnelError::Duplicate));
    let second = pair.ends[0].handle_datagram(&responses.datagrams[0], now(), &mut out);
    assert_eq!(second, Err(TunnelError::Unexpected));
    assert!(out.datagrams.is_empty() && !out.wrong_timestamp && !out.established);
}

#[test]
fn an_old_initiation_says_that_a_clock_went_back() {
    let mut pair = Pair::new();
    let mut old = Sink::default();
    pair.ends[0].initiate(now(), &mut old);
    // The peer restarts: a new tunnel, whose stamps are later.
    pair.ends[0] = Tunnel::new(&pair.secrets[0], &pair.secrets[1].public(), 7, now());
    let mut new = Sink::default();
    pair.ends[0].initiate(now(), &mut new);
    let mut out = Sink::default();
    assert_eq!(pair.ends[1].handle_datagram(&new.datagrams[0], now(), &mut out), Ok(()));
    assert!(!out.wrong_timestamp);
    assert_eq!(
        pair.ends[1].handle_datagram(&old.datagrams[0], now(), &mut out),
        Err(TunnelError::WrongTimestamp)
    );
    assert!(out.wrong_timestamp);
    let mut answer = Sink::default();
    pair.ends[1].initiate(now(), &mut answer);
    pair.ends[1].initiate(now(), &mut answer);
    assert_eq!(answer.datagrams.len(), 1, "at most one in five seconds");
}

#[test]
fn a_restarted_peer_is_heard_at_once() {
    let mut pair = Pair::established();
    pair.ends[1] = Tunnel::new(&pair.secrets[1], &pair.secrets[0].public(), 9, now());
    let mut out = Sink::default();
    pair.ends[1].seal(&packet(5), now(), &mut out);
    let [first, second] = pair.carry(1, out);
    assert!(first.established && second.established);
    assert_eq!(first.packets, [packet(5)]);
    let datagram = pair.seal(0, &packet(6));
    assert_eq!(pair.ends[1].handle_datagram(&datagram, now(), &mut Sink::default()), Ok(()));
}

#[test]
fn both_ends_initiating_at_once_agree() {
    let mut pair = Pair::new();
    let (mut from_0, mut from_1) = (Sink::default(), Sink::default());
    pair.ends[0].seal(&packet(1), now(), &mut from_0);
    pair.ends[1].seal(&packet(2), now(), &mut from_1);
    let (mut to_0, mut to_1) = (Sink::default(), Sink::default());
    pair.ends[1].handle_datagram(&from_0.datagrams[0], now(), &mut to_0).unwrap();
    pair.ends[0].handle_datagram(&from_1.datagrams[0], now(), &mut to_1).unwrap();
    let [got_0, got_1] = pair.carry(0, to_1);
    assert_eq!((got_0.packets, got_1.packets), (vec![packet(2)], vec![packet(1)]));
    pair.carry(1, to_0);
    for end in [0, 1] {
        let datagram = pair.seal(end, &packet(3));
        let mut out = Sink::default();
        assert_eq!(pair.ends[1 - end].handle_datagram(&datagram, now(), &mut out), Ok(()));
        assert_eq!(out.packets, [packet(3)]);
    }
}

#[test]
fn an_initiation_names_its_sender_before_there_is_a_tunnel() {
    let mut pair = Pair::new();
    let mut out = Sink::default();
    pair.ends[0].initiate(now(), &mut out);
    let initiation = out.datagrams.remove(0);
    assert_eq!(anonymous(&initiation, &pair.secrets[1]), Ok(pair.secrets[0].public()));
    assert_eq!(anonymous(&initiation, &pair.secrets[0]), Err(TunnelError::Unauthentic));
    assert_eq!(anonymous(&initiation[1..], &pair.secrets[1]), Err(TunnelError::Malformed));
}

#[test]
fn another_nodes_initiation_is_refused() {
    let mut pair = Pair::new();
    let stranger = TransportSecret::generate();
    let mut out = Sink::default();
    Tunnel::new(&stranger, &pair.secrets[1].public(), 3, now()).initiate(now(), &mut out);
    let result = pair.ends[1].handle_datagram(&out.datagrams[0], now(), &mut Sink::default());
    assert_eq!(result, Err(TunnelError::WrongKey));
}

#[test]
fn counters_at_the_end_of_time_and_foreign_indexes_are_refused_unopened() {
    let mut pair = Pair::established();
    let mut datagram = pair.seal(0, &packet(8));
    let mut out = Sink::default();
    for counter in [1 << 63, u64::MAX - 1, u64::MAX] {
        datagram[8..16].copy_from_slice(&counter.to_le_bytes());
        let result = pair.ends[1].handle_datagram(&datagram, now(), &mut out);
        assert_eq!(result, Err(TunnelError::Replayed));
    }
    datagram[7] ^= 0x80;
    let result = pair.ends[1].handle_datagram(&datagram, now(), &mut out);
    assert_eq!(result, Err(TunnelError::NoSession));
}

#[test]
fn empty_tiny_and_oversize_datagrams_are_refused() {
    let mut pair = Pair::established();
    let mut out = Sink::default();
    for len in [0, 1, 3, 4, 31, 65_528, 70_000] {
        let mut datagram = vec![0; len];
        if let Some(first) = datagram.first_mut() {
            *first = 4;
        }
        let result = pair.ends[1].handle_datagram(&datagram, now(), &mut out);
        assert_eq!(result, Err(TunnelError::Malformed), "{len}");
    }
    assert!(out.datagrams.is_empty() && out.packets.is_empty());
}

#[test]
fn what_is_staged_is_bounded_and_the_oldest_goes_first() {
    let mut pair = Pair::new();
    let mut out = Sink::default();
    for number in 0..300 {
        pair.ends[0].seal(&packet(number), now(), &mut out);
    }
    let [_, second] = pair.carry(0, out);
    let expected: Vec<_> = (300 - 128..300).map(packet).collect();
    assert_eq!(second.packets, expected);

    let mut pair = Pair::new();
    let mut out = Sink::default();
    for _ in 0..300 {
        pair.ends[0].seal(&packet(60_000), now(), &mut out);
    }
    let [_, second] = pair.carry(0, out);
    assert_eq!(second.packets.len(), 192 * 1024 / 60_040);
}

#[test]
fn debug_shows_no_secret() {
    let pair = Pair::established();
    let text = format!("{:?}", pair.ends[0]);
    assert!(text.contains("established: true"), "{text}");
    assert!(!text.contains(&pair.secrets[0].to_text()[..8]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn damaged_datagrams_never_panic_nor_open(
        which in 0_usize..4,
        at in any::<prop::sample::Index>(),
        flip in 1_u8..,
        cut in any::<prop::sample::Index>(),
    ) {
        let mut pair = Pair::new();
        let mut out = Sink::default();
        pair.ends[0].seal(&packet(64), now(), &mut out);
        let initiation = out.datagrams.remove(0);
        let mut response = Sink::default();
        pair.ends[1].handle_datagram(&initiation, now(), &mut response).unwrap();
        let response = response.datagrams.remove(0);
        let mut data = Sink::default();
        pair.ends[0].handle_datagram(&response, now(), &mut data).unwrap();
        let datagrams = [initiation, response, data.datagrams.remove(0), data.datagrams.remove(0)];
        let mut datagram = datagrams[which].clone();
        // mac2 is not looked at when there is no load.
        let looked_at = datagram.len() - if which < 2 { 16 } else { 0 };
        datagram[at.index(looked_at)] ^= flip;
        for end in &mut pair.ends {
            let mut out = Sink::default();
            prop_assert!(end.handle_datagram(&datagram, now(), &mut out).is_err());
            prop_assert!(!out.opened && !out.established && out.datagrams.is_empty());
            let cut = &datagrams[which][..cut.index(datagrams[which].len())];
            prop_assert!(end.handle_datagram(cut, now(), &mut out).is_err());
        }
    }
}
