//! Tunnels on a virtual clock: the conduct that WireGuard's paper demands, over hours, loss and partitions.
//!
//! Protocol constants are re-typed from the paper (§6), so that the code is held to the paper and not to itself.

mod sim;

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use clusternet::{
    tunnel::{
        Sealed, Sink, Timer, Tunnel, TunnelError,
        gate::{Admission, Gate, Origin},
    },
    words::{
        key::{TransportKey, TransportSecret},
        time::Now,
    },
};
use sim::{
    Clock, Condition, Fate, Gateway, Host, HostId, Net, Output, Transmit, net::INTERNET, simulate,
};

const SECOND: Duration = Duration::from_secs(1);

/// An IPv6 packet that carries a number.
fn packet(number: u64) -> Vec<u8> {
    let mut packet = vec![0; 48];
    packet[0] = 0x60;
    packet[5] = 8;
    packet[6] = 253;
    packet[40..].copy_from_slice(&number.to_be_bytes());
    packet
}

fn number(packet: &[u8]) -> u64 {
    u64::from_be_bytes(packet[40..48].try_into().expect("eight bytes"))
}

/// One end: a tunnel behind a gate, sending to wherever the peer was last heard from.
struct End {
    secret: TransportSecret,
    tunnel: Tunnel,
    gate: Gate,
    peer: SocketAddr,
    sink: Sink,
    outbox: Vec<(SocketAddr, Vec<u8>)>,
    got: Vec<u64>,
    established: Vec<Instant>,
    expired: usize,
    errors: Vec<TunnelError>,
}

impl End {
    fn new(secret: u8, peer: u8, endpoint: &str, now: Now) -> Self {
        let secret = TransportSecret::from_bytes([secret; 32]);
        let peer_key = TransportSecret::from_bytes([peer; 32]).public();
        Self {
            tunnel: Tunnel::new(&secret, &peer_key, 0x10, now),
            gate: Gate::new(&secret.public()),
            secret,
            peer: endpoint.parse().expect("an endpoint"),
            sink: Sink::default(),
            outbox: Vec::new(),
            got: Vec::new(),
            established: Vec::new(),
            expired: 0,
            errors: Vec::new(),
        }
    }

    fn seal(&mut self, number: u64, now: Now) -> Sealed {
        self.tunnel.seal(&packet(number), now, &mut self.sink)
    }

    fn restart(&mut self, peer: TransportKey, now: Now) {
        self.tunnel = Tunnel::new(&self.secret, &peer, 0x11, now);
    }

    fn drain(&mut self, now: Now) {
        let sink = std::mem::take(&mut self.sink);
        for datagram in sink.datagrams {
            self.outbox.push((self.peer, datagram));
        }
        self.got.extend(sink.packets.iter().map(|packet| number(packet)));
        if sink.established {
            self.established.push(now.instant);
        }
        self.expired += usize::from(sink.expired);
        if sink.wrong_timestamp {
            self.tunnel.initiate(now, &mut self.sink);
            self.drain(now);
        }
    }
}

impl Host for End {
    fn handle_datagram(&mut self, _: SocketAddr, from: SocketAddr, bytes: &[u8], now: Now) {
        match self.gate.admit(bytes, Origin::Address(from.ip()), now) {
            Admission::Pass => {}
            Admission::CookieReply(reply) => return self.outbox.push((from, reply)),
            Admission::Refuse(_) => return,
        }
        self.errors.extend(self.tunnel.handle_datagram(bytes, now, &mut self.sink).err());
        if self.sink.opened {
            self.peer = from;
        }
        self.drain(now);
    }

    fn poll(&mut self, now: Now) -> Output {
        self.tunnel.handle_timeout(now, &mut self.sink);
        self.drain(now);
        let local = if self.peer.is_ipv4() { "0.0.0.0:51820" } else { "[::]:51820" };
        let local = local.parse().expect("an endpoint");
        let transmit = |(to, bytes)| Transmit { local, to, bytes };
        Output {
            transmits: self.outbox.drain(..).map(transmit).collect(),
            wake: self.tunnel.next_timeout(),
        }
    }
}

const A: HostId = HostId(0);
const B: HostId = HostId(1);

/// Two ends on the internet that know each other's endpoint.
fn two(clock: Clock, seed: u64) -> Net<End> {
    let mut net = Net::new(clock, seed);
    let now = net.now();
    let a = End::new(1, 2, "203.0.113.2:51820", now);
    let b = End::new(2, 1, "203.0.113.1:51820", now);
    net.host(INTERNET, &[IpAddr::from([203, 0, 113, 1])], a);
    net.host(INTERNET, &[IpAddr::from([203, 0, 113, 2])], b);
    net
}

fn established(clock: Clock, seed: u64) -> Net<End> {
    let mut net = two(clock, seed);
    net.with(A, |end, now| end.tunnel.initiate(now, &mut end.sink));
    let both = |net: &Net<End>| net.hosts().all(|(_, end)| end.tunnel.is_established());
    assert!(net.run_until(SECOND, both));
    net.log.clear();
    net
}

fn seal(net: &mut Net<End>, host: HostId, number: u64) -> Sealed {
    net.with(host, |end, now| end.seal(number, now))
}

/// The kinds delivered or lost, in order, with the second in which they were sent or arrived.
fn story(net: &Net<End>) -> Vec<(u64, usize, &str)> {
    net.log.iter().map(|entry| (entry.at.as_secs(), entry.from.0, entry.kind.as_str())).collect()
}

#[test]
fn a_handshake_takes_one_round_trip_and_the_staged_packet_follows() {
    simulate(1, |clock| {
        let mut net = two(clock, 1);
        assert_eq!(seal(&mut net, A, 42), Sealed::Staged);
        net.run_for(SECOND);
        let kinds: Vec<_> = net.log.iter().map(|entry| (entry.from.0, &*entry.kind)).collect();
        assert_eq!(kinds, [(0, "initiation"), (1, "response"), (0, "keepalive"), (0, "data")]);
        assert_eq!(net.peek(B).got, [42]);
        assert_eq!(net.peek(A).tunnel.handshake_round_trip(), Some(Duration::from_millis(20)));
        // Five milliseconds at each end of a line.
        assert_eq!(net.log[3].at, Duration::from_millis(30));
    });
}

#[test]
fn the_initiator_makes_new_keys_after_two_minutes_and_no_packet_is_lost() {
    simulate(1, |clock| {
        let mut net = established(clock, 1);
        for number in 0..600 {
            seal(&mut net, A, number);
            seal(&mut net, B, number);
            net.run_for(SECOND);
        }
        for host in [A, B] {
            assert_eq!(net.peek(host).got, (0..600).collect::<Vec<_>>());
        }
        let initiations = net.log.iter().filter(|entry| entry.kind == "initiation");
        let at: Vec<_> = initiations.map(|entry| (entry.from, entry.at.as_secs())).collect();
        // WireGuard §6.2: by the initiator alone, with the first packet 120 s after the last.
        assert_eq!(at, [(A, 120), (A, 241), (A, 362), (A, 483)]);
    });
}

#[test]
fn an_initiator_that_only_receives_makes_new_keys_when_it_sends_a_keepalive() {
    simulate(1, |clock| {
        let mut net = established(clock, 1);
        for number in 0..400 {
            seal(&mut net, B, number);
            net.run_for(SECOND);
        }
        assert_eq!(net.peek(A).got, (0..400).collect::<Vec<_>>());
        let initiations = net.log.iter().filter(|entry| entry.kind == "initiation");
        let at: Vec<_> = initiations.map(|entry| (entry.from, entry.at.as_secs())).collect();
        assert_eq!(at, [(A, 120), (A, 241), (A, 362)]);
    });
}

#[test]
fn an_initiator_that_receives_under_keys_about_to_end_makes_new_ones() {
    // WireGuard §6.2: 180 - 10 - 5 = 165 s.
    for (age, initiations) in [(164, 0), (166, 1)] {
        simulate(1, |clock| {
            let mut net = established(clock, 1);
            net.run_for(age * SECOND);
            seal(&mut net, B, 1);
            net.run_for(SECOND);
            assert_eq!(net.delivered("initiation"), initiations, "at {age} s");
            assert_eq!(net.peek(A).got, [1]);
        });
    }
}

#[test]
fn a_responder_leaves_it_to_the_initiator() {
    simulate(1, |clock| {
        let mut net = established(clock, 1);
        net.run_for(130 * SECOND);
        seal(&mut net, B, 1);
        net.run_for(5 * SECOND);
        assert_eq!(net.delivered("initiation"), 0);
        seal(&mut net, A, 1);
        net.run_for(SECOND);
        assert_eq!(net.delivered("initiation"), 1);
    });
}

#[test]
fn an_idle_tunnel_is_silent_and_its_keys_end_after_three_minutes() {
    simulate(1, |clock| {
        let mut net = established(clock, 1);
        net.run_for(179 * SECOND);
        assert!(net.hosts().all(|(_, end)| end.tunnel.is_established()));
        net.run_for(2 * SECOND);
        assert!(net.hosts().all(|(_, end)| !end.tunnel.is_established()));
        assert!(net.hosts().all(|(_, end)| !end.tunnel.is_expired()));
        net.run_for(365 * SECOND);
        assert!(net.hosts().all(|(_, end)| end.tunnel.is_expired()));
        assert!(net.hosts().all(|(_, end)| end.tunnel.next_timeout().is_none()));
        net.run_for(86_400 * SECOND);
        assert_eq!(story(&net), []);
        assert!(net.hosts().all(|(_, end)| end.expired == 0), "nobody failed to answer");
    });
}

#[test]
fn after_any_silence_traffic_starts_again_in_one_round_trip() {
    // Around each of the ages at which something ends, and long after.
    for silence in [1, 9, 11, 14, 16, 119, 121, 164, 166, 179, 181, 500, 538, 539, 540, 541, 86_400]
    {
        for from in [A, B] {
            simulate(1, |clock| {
                let mut net = established(clock, 1);
                net.run_for(silence * SECOND);
                seal(&mut net, from, 1);
                net.run_for(Duration::from_millis(35));
                let to = if from == A { B } else { A };
                assert_eq!(net.peek(to).got, [1], "after {silence} s from {from:?}");
                // And it stays up: nothing of before ends what has just been begun.
                for number in 2..20 {
                    net.run_for(SECOND);
                    seal(&mut net, to, number);
                }
                net.run_for(SECOND);
                assert_eq!(net.peek(from).got.len(), 18, "after {silence} s from {from:?}");
            });
        }
    }
}

#[test]
fn a_handshake_begun_on_a_long_idle_tunnel_is_not_given_up_for_what_was_before() {
    simulate(1, |clock| {
        let mut net = two(clock, 1);
        // boringtun counts 540 s without keys from its making, also when a handshake is under way.
        net.run_for(Duration::from_millis(539_500));
        net.cut(A, B);
        seal(&mut net, A, 7);
        net.run_for(12 * SECOND);
        assert!(!net.peek(A).tunnel.is_expired());
        assert_eq!(net.peek(A).expired, 0);
        net.heal(A, B);
        net.run_for(6 * SECOND);
        assert_eq!(net.peek(B).got, [7]);
    });
}

#[test]
fn an_unanswered_handshake_is_repeated_every_five_seconds_and_given_up_after_ninety() {
    simulate(1, |clock| {
        let mut net = two(clock, 1);
        net.cut(A, B);
        seal(&mut net, A, 1);
        net.run_for(400 * SECOND);
        let at: Vec<_> = net.log.iter().map(|entry| entry.at.as_secs()).collect();
        assert_eq!(at, (0..18).map(|attempt| 5 * attempt).collect::<Vec<_>>());
        assert!(net.peek(A).tunnel.is_expired());
        assert_eq!(net.peek(A).expired, 1);
        net.heal(A, B);
        seal(&mut net, A, 2);
        net.run_for(SECOND);
        assert_eq!(net.peek(B).got, [2], "what was staged before is dropped");
    });
}

#[test]
fn whoever_asks_there_are_five_seconds_between_initiations() {
    simulate(1, |clock| {
        let mut net = two(clock, 1);
        net.cut(A, B);
        for _ in 0..60 {
            net.with(A, |end, now| end.tunnel.initiate(now, &mut end.sink));
            seal(&mut net, A, 1);
            net.run_for(SECOND / 2);
        }
        let at: Vec<_> = net.log.iter().map(|entry| entry.at.as_secs()).collect();
        assert_eq!(at, [0, 5, 10, 15, 20, 25, 30]);
    });
}

#[test]
fn data_is_answered_by_a_keepalive_after_ten_seconds_and_a_keepalive_by_nothing() {
    simulate(1, |clock| {
        let mut net = established(clock, 1);
        net.run_for(20 * SECOND);
        seal(&mut net, A, 1);
        net.run_for(100 * SECOND);
        assert_eq!(story(&net), [(20, 0, "data"), (30, 1, "keepalive")]);
    });
}

#[test]
fn data_that_nothing_answers_starts_a_handshake_after_fifteen_seconds() {
    simulate(1, |clock| {
        let mut net = established(clock, 1);
        net.run_for(20 * SECOND);
        net.cut(A, B);
        seal(&mut net, A, 1);
        net.run_for(14 * SECOND);
        assert_eq!(story(&net), [(20, 0, "data")]);
        net.run_for(2 * SECOND);
        assert_eq!(story(&net), [(20, 0, "data"), (35, 0, "initiation")]);
    });
}

#[test]
fn a_burst_after_a_silence_does_not_start_a_handshake() {
    simulate(1, |clock| {
        let mut net = established(clock, 1);
        net.run_for(60 * SECOND);
        for number in 0..100 {
            seal(&mut net, A, number);
            net.run_for(Duration::from_micros(100));
            seal(&mut net, B, number);
        }
        net.run_for(SECOND);
        assert_eq!(net.delivered("initiation"), 0);
        assert_eq!(net.delivered("data"), 200);
    });
}

#[test]
fn a_late_poll_still_sees_the_expiry() {
    for late in [0, 1, 100, 10_000] {
        simulate(1, |clock| {
            let secrets = [1, 2].map(|byte| TransportSecret::from_bytes([byte; 32]));
            let mut tunnel = Tunnel::new(&secrets[0], &secrets[1].public(), 1, clock.now());
            let mut sink = Sink::default();
            tunnel.seal(&packet(1), clock.now(), &mut sink);
            let (due, timer) = tunnel.next_deadline().unwrap();
            assert_eq!((due, timer), (clock.now().instant + 5 * SECOND, Timer::Retransmit));
            clock.advance(90 * SECOND + late * SECOND);
            tunnel.handle_timeout(clock.now(), &mut sink);
            assert!(sink.expired && tunnel.is_expired(), "{late} s late");
            assert_eq!(tunnel.next_timeout(), None);
        });
    }
}

#[test]
fn a_late_poll_still_sees_the_end_of_the_keys() {
    simulate(1, |clock| {
        let mut net = established(clock, 1);
        let end = |net: &mut Net<End>| net.with(A, |end, _| end.tunnel.next_deadline());
        assert_eq!(end(&mut net).map(|(_, timer)| timer), Some(Timer::Reject));
        net.set_up(A, false);
        net.run_for(300 * SECOND);
        assert!(net.peek(A).tunnel.is_established(), "it was not asked");
        net.set_up(A, true);
        net.run_for(Duration::ZERO);
        assert!(!net.peek(A).tunnel.is_established());
    });
}

#[test]
fn timeouts_are_in_the_future_once_they_have_been_handled() {
    for seed in 0..20 {
        simulate(seed, |clock| {
            let mut net = established(clock, seed);
            let loss = 0.3;
            net.set_conditions(Condition { loss, ..Condition::default() });
            for step in 0..400 {
                if step % 7 == seed % 7 {
                    seal(&mut net, if step % 2 == 0 { A } else { B }, step);
                }
                net.run_for(SECOND);
                let now = net.now().instant;
                for (_, end) in net.hosts() {
                    assert!(end.tunnel.next_timeout().is_none_or(|at| at > now));
                }
            }
        });
    }
}

#[test]
fn calling_before_anything_is_due_does_nothing() {
    simulate(1, |clock| {
        let mut net = established(clock, 1);
        for _ in 0..1000 {
            net.with(A, |end, now| {
                end.tunnel.handle_timeout(now, &mut end.sink);
                assert!(end.sink.datagrams.is_empty());
            });
            net.run_for(Duration::from_millis(7));
        }
    });
}

#[test]
fn new_keys_are_made_through_heavy_loss_and_traffic_goes_on() {
    for seed in 0..10 {
        simulate(seed, |clock| {
            let mut net = established(clock, seed);
            net.set_conditions(Condition {
                latency: Duration::from_millis(20),
                jitter: Duration::from_millis(15),
                loss: 0.2,
                duplicate: 0.05,
            });
            for number in 0..7200 {
                seal(&mut net, A, number);
                seal(&mut net, B, number);
                net.run_for(SECOND / 2);
            }
            net.run_for(SECOND);
            for host in [A, B] {
                let end = net.peek(host);
                // Two lines that lose a fifth each leave 64 %.
                let got = end.got.len();
                assert!((4300..4900).contains(&got), "seed {seed}: {got} of 7200");
                // Nothing comes twice. (Staged packets come late, never again.)
                let mut unique = end.got.clone();
                unique.sort_unstable();
                unique.dedup();
                assert_eq!(unique.len(), got, "seed {seed}");
                let gap = end.got.windows(2).map(|pair| pair[1].abs_diff(pair[0])).max().unwrap();
                assert!(gap < 30, "seed {seed}: {gap} packets in a row lost");
                assert_eq!(end.expired, 0);
            }
        });
    }
}

#[test]
fn both_ends_initiating_at_once_agree_whatever_is_lost_or_late() {
    for seed in 0..200 {
        simulate(seed, |clock| {
            let mut net = two(clock, seed);
            let jitter = Duration::from_millis(seed % 40);
            net.set_conditions(Condition { loss: 0.2, jitter, ..Condition::default() });
            seal(&mut net, A, 1);
            net.run_for(Duration::from_millis(seed % 30));
            seal(&mut net, B, 2);
            let both = |net: &Net<End>| net.hosts().all(|(_, end)| end.tunnel.is_established());
            assert!(net.run_until(60 * SECOND, both), "seed {seed}\n{}", net.log_text());
            net.set_conditions(Condition::default());
            seal(&mut net, A, 3);
            seal(&mut net, B, 4);
            net.run_for(SECOND);
            assert!(net.peek(A).got.contains(&4), "seed {seed}\n{}", net.log_text());
            assert!(net.peek(B).got.contains(&3), "seed {seed}\n{}", net.log_text());
        });
    }
}

#[test]
fn a_restarted_end_is_heard_at_once_when_it_speaks() {
    simulate(1, |clock| {
        let mut net = established(clock, 1);
        net.run_for(30 * SECOND);
        let a = TransportSecret::from_bytes([1; 32]).public();
        net.with(B, |end, now| {
            end.restart(a, now);
            end.tunnel.initiate(now, &mut end.sink);
        });
        net.run_for(Duration::from_millis(31));
        assert!(net.hosts().all(|(_, end)| end.tunnel.is_established()));
        seal(&mut net, A, 5);
        net.run_for(SECOND);
        assert_eq!(net.peek(B).got, [5]);
    });
}

#[test]
fn an_end_that_restarted_silently_is_found_by_the_other_ones_data() {
    simulate(1, |clock| {
        let mut net = established(clock, 1);
        net.run_for(30 * SECOND);
        let a = TransportSecret::from_bytes([1; 32]).public();
        net.with(B, |end, now| end.restart(a, now));
        for number in 0..20 {
            seal(&mut net, A, number);
            net.run_for(SECOND);
        }
        // Fifteen seconds without an answer, then a handshake.
        assert_eq!(net.peek(B).got, (16..20).collect::<Vec<_>>());
    });
}

#[test]
fn a_clock_that_went_back_across_a_restart_is_healed_by_the_other_end() {
    simulate(1, |clock| {
        let mut net = established(clock, 1);
        net.run_for(30 * SECOND);
        net.set_wall_error(B, -3_600_000);
        let a = TransportSecret::from_bytes([1; 32]).public();
        // B was never an initiator, so its stamps are new to A; the second restart's are older than the first's.
        for error in [0, -3_600_000] {
            net.set_wall_error(B, error);
            net.with(B, |end, now| {
                end.restart(a, now);
                end.tunnel.initiate(now, &mut end.sink);
            });
            net.run_for(6 * SECOND);
            assert!(net.hosts().all(|(_, end)| end.tunnel.is_established()), "{error}");
        }
        assert!(net.peek(A).errors.contains(&TunnelError::WrongTimestamp));
        seal(&mut net, A, 1);
        seal(&mut net, B, 2);
        net.run_for(SECOND);
        assert_eq!((&*net.peek(B).got, &*net.peek(A).got), (&[1][..], &[2][..]));
    });
}

#[test]
fn a_wall_clock_that_jumps_while_running_changes_nothing() {
    simulate(1, |clock| {
        let mut net = established(clock, 1);
        for number in 0..600 {
            net.set_wall_error(A, if number % 100 < 50 { -86_400_000 } else { 86_400_000 });
            seal(&mut net, A, number);
            net.run_for(SECOND);
        }
        assert_eq!(net.peek(B).got, (0..600).collect::<Vec<_>>());
        assert_eq!(net.peek(B).errors, []);
    });
}

#[test]
fn a_handshake_under_load_passes_by_its_cookie() {
    simulate(1, |clock| {
        let mut net = two(clock, 1);
        // Another node floods B from A's own address with initiations that are right in all but the cookie.
        let flood = |net: &mut Net<End>, salt: u8| {
            let b = TransportSecret::from_bytes([2; 32]).public();
            let from = IpAddr::from([203, 0, 113, 1]);
            net.with(B, |end, now| {
                let mut sink = Sink::default();
                let stranger = TransportSecret::from_bytes([salt; 32]);
                Tunnel::new(&stranger, &b, 9, now).initiate(now, &mut sink);
                let mut passed = 0;
                for _ in 0..150 {
                    let admission = end.gate.admit(&sink.datagrams[0], Origin::Address(from), now);
                    passed += usize::from(admission == Admission::Pass);
                }
                passed
            })
        };
        let mut passed = Vec::new();
        for tenth in 0..200 {
            passed.push(flood(&mut net, 3));
            if tenth == 5 {
                seal(&mut net, A, 1);
            }
            net.run_for(SECOND / 10);
        }
        assert_eq!(passed[0], 100);
        assert_eq!(passed[1..].iter().sum::<usize>(), 0, "load lasts as long as the flood");
        assert_eq!(net.peek(B).got, [1]);
        let kinds: Vec<_> = story(&net).into_iter().map(|(_, from, kind)| (from, kind)).collect();
        assert_eq!(
            kinds[..4],
            [(0, "initiation"), (1, "cookie reply"), (0, "initiation"), (1, "response")]
        );
    });
}

#[test]
fn a_persistent_keepalive_keeps_a_nat_open_and_makes_handshakes_by_itself() {
    simulate(1, |clock| {
        let mut net = Net::new(clock, 1);
        let now = net.now();
        let site = net.site(INTERNET, Gateway::home(&[IpAddr::from([198, 51, 100, 1])]));
        let a = End::new(1, 2, "203.0.113.2:51820", now);
        let b = End::new(2, 1, "192.0.2.99:9", now);
        let a = net.host(site, &[IpAddr::from([192, 168, 0, 2])], a);
        let b = net.host(INTERNET, &[IpAddr::from([203, 0, 113, 2])], b);
        net.with(a, |end, now| {
            end.tunnel.set_keepalive(Some(25 * SECOND), now);
            end.tunnel.initiate(now, &mut end.sink);
        });
        // The response must go where the initiation came from; here the test's own end knows no better than that.
        net.with(b, |end, _| end.peer = "198.51.100.1:51820".parse().unwrap());
        net.run_for(SECOND);
        for number in 0..20 {
            net.run_for(200 * SECOND);
            assert_eq!(seal(&mut net, b, number), Sealed::Sent);
        }
        net.run_for(SECOND);
        assert_eq!(net.peek(a).got, (0..20).collect::<Vec<_>>());
        assert!(net.log.iter().all(|entry| entry.fate == Fate::Delivered));

        net.with(a, |end, now| end.tunnel.set_keepalive(None, now));
        net.run_for(150 * SECOND);
        seal(&mut net, b, 99);
        net.run_for(SECOND);
        assert_ne!(net.peek(a).got.last(), Some(&99), "without it the NAT forgets");
    });
}

#[test]
fn recorded_datagrams_change_nothing_when_played_again() {
    simulate(1, |clock| {
        let secrets = [1, 2].map(|byte| TransportSecret::from_bytes([byte; 32]));
        let mut ends = [
            Tunnel::new(&secrets[0], &secrets[1].public(), 1, clock.now()),
            Tunnel::new(&secrets[1], &secrets[0].public(), 2, clock.now()),
        ];
        let mut recorded = Vec::new();
        for round in 0..300 {
            clock.advance(SECOND);
            let mut sink = Sink::default();
            ends[0].handle_timeout(clock.now(), &mut sink);
            ends[0].seal(&packet(round), clock.now(), &mut sink);
            let mut from = 0;
            while !sink.datagrams.is_empty() {
                let mut answers = Sink::default();
                for datagram in sink.datagrams.drain(..) {
                    ends[1 - from].handle_datagram(&datagram, clock.now(), &mut answers).unwrap();
                    recorded.push((1 - from, datagram));
                }
                sink = answers;
                from = 1 - from;
            }
        }
        for (to, datagram) in recorded {
            let mut sink = Sink::default();
            let result = ends[to].handle_datagram(&datagram, clock.now(), &mut sink);
            assert!(result.is_err());
            assert!(!sink.opened && !sink.established && sink.packets.is_empty());
            assert!(sink.datagrams.is_empty());
        }
    });
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        simulate(seed, |clock| {
            let mut net = two(clock, seed);
            net.set_conditions(Condition {
                jitter: Duration::from_millis(30),
                loss: 0.2,
                duplicate: 0.1,
                ..Condition::default()
            });
            for number in 0..500 {
                seal(&mut net, if number % 3 == 0 { A } else { B }, number);
                net.run_for(SECOND);
            }
            net.log_text()
        })
    };
    assert_eq!(run(11), run(11));
    assert_ne!(run(11), run(12));
}
