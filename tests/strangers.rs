//! Those who are not members, or not quite: plain WireGuard programs behind their gateway, strangers with and without
//! keys, floods of handshakes, garbage.

mod sim;
mod world;

use std::{net::SocketAddr, time::Duration};

use clusternet::{
    node::{MAX_GUESTS, Update, output::Output},
    path::route::Route,
    tunnel::{Sink, Tunnel},
    wire::record::Entry,
    words::{key::TransportSecret, time::Now},
};
use sim::{Gateway, HostId, Rng, net::INTERNET, simulate};
use world::{Identity, Machine, World, udp_packet};

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);
const HEAD: &str = "198.51.100.1:51820";

fn network(clock: sim::Clock, seed: u64) -> (World, (HostId, Identity), (HostId, Identity)) {
    let (mut world, head_id) = World::new(clock, seed, &format!("udp://{HEAD}"));
    let head = world.start(&head_id, INTERNET, &["198.51.100.1"]);
    let a_id = world.issue("a", DAY);
    let site = world.net.site(INTERNET, Gateway::firewall());
    let a = world.start(&a_id, site, &["203.0.113.10"]);
    assert!(world.net.run_until(SECOND * 5, |net| World::is_accepted(net, a)));
    (world, (head, head_id), (a, a_id))
}

/// Hands datagrams to a node as if they came from `from`; gives back what it answers.
fn hand(machine: &mut Machine, from: SocketAddr, datagram: &[u8], now: Now) -> Vec<Vec<u8>> {
    let node = machine.node.as_mut().expect("it runs");
    let drain = |node: &mut clusternet::node::Node| {
        let mut sent = Vec::new();
        loop {
            match node.poll_output() {
                Output::Timeout(_) => return sent,
                Output::Transmit { route, datagram } => {
                    if route == Route::direct(from) {
                        sent.push(datagram);
                    }
                }
                Output::Deliver { .. }
                | Output::Directive(_)
                | Output::Event(_)
                | Output::Resolve { .. } => {}
            }
        }
    };
    drain(node);
    node.handle_datagram(Route::direct(from), datagram, now);
    drain(node)
}

fn initiation(us: &TransportSecret, to: &Identity, now: Now) -> Vec<u8> {
    let mut sink = Sink::default();
    Tunnel::new(us, &to.certificate.transport, 9, now).initiate(now, &mut sink);
    sink.datagrams.remove(0)
}

#[test]
fn a_plain_wireguard_program_is_a_member_through_its_gateway() {
    simulate(50, |clock| {
        let (mut world, head, a) = network(clock, 50);
        let phone = world.issue_plain("phone");
        let entry = Entry::Certificate(phone.certificate.raw().clone());
        world.net.with(head.0, |machine, now| {
            let node = machine.node.as_mut().unwrap();
            while !matches!(node.poll_output(), Output::Timeout(_)) {}
            node.handle_update(&Update { entries: vec![entry] }, now).unwrap();
        });
        let site = world.net.site(INTERNET, Gateway::home(&[world::ip("192.0.2.7")]));
        let host = world.start_plain(&phone, &head.1, HEAD, site, &["192.168.7.7"]);
        world.net.run_for(SECOND);
        for (to, text) in [(&head, "to head"), (&a, "to a")] {
            let packet = udp_packet(&phone, &to.1, text.as_bytes());
            world.net.with(host, |machine, now| machine.send_plain(&packet, now));
            world.net.run_for(SECOND * 2);
            assert!(World::got(&world.net, to.0, text.as_bytes()), "{text}");
        }
        for from in [&head, &a] {
            let text = format!("from {}", from.1.name);
            world.send(from.0, &from.1, &phone, text.as_bytes());
            world.net.run_for(SECOND * 2);
            assert!(World::got(&world.net, host, text.as_bytes()), "{text}");
        }
        // It moves: answers follow it.
        world.net.gateway(site).reboot();
        world.net.rehome(host, INTERNET, &[world::ip("198.51.100.99")]);
        world.net.run_for(SECOND * 2);
        let packet = udp_packet(&phone, &head.1, b"moved");
        world.net.with(host, |machine, now| machine.send_plain(&packet, now));
        world.net.run_for(SECOND);
        world.send(head.0, &head.1, &phone, b"follows");
        world.net.run_for(SECOND);
        assert!(World::got(&world.net, host, b"follows"));
        // What does not come from its own address goes nowhere.
        let forged = udp_packet(&a.1, &head.1, b"forged");
        world.net.with(host, |machine, now| machine.send_plain(&forged, now));
        world.net.run_for(SECOND);
        assert!(!World::got(&world.net, head.0, b"forged"));
    });
}

#[test]
fn a_wireguard_key_without_that_role_passes_nothing() {
    simulate(51, |clock| {
        let (mut world, head, _) = network(clock, 51);
        let stranger = world.issue_plain("stranger"); // certified, but nobody has been told
        let host = world.start_plain(&stranger, &head.1, HEAD, INTERNET, &["198.51.100.66"]);
        let packet = udp_packet(&stranger, &head.1, b"let me in");
        world.net.with(host, |machine, now| machine.send_plain(&packet, now));
        world.net.run_for(SECOND * 10);
        assert!(!World::got(&world.net, head.0, b"let me in"));
    });
}

#[test]
fn a_flood_of_strangers_leaves_room_for_a_member_and_goes() {
    simulate(52, |clock| {
        let (mut world, head, a) = network(clock, 52);
        let mut tunnels = 0;
        for round in 0..40u8 {
            for n in 0..60u8 {
                let now = world.net.now();
                let stranger = TransportSecret::generate();
                let datagram = initiation(&stranger, &head.1, now);
                let from: SocketAddr = ([192, 0, round, n], 9).into();
                let answers = world.net.with(head.0, |m, now| hand(m, from, &datagram, now));
                tunnels += answers.iter().filter(|answer| answer[0] == 2).count();
            }
            world.net.run_for(SECOND / 2);
        }
        let (_, _, per_second) = MAX_GUESTS;
        assert!(tunnels as u32 <= 22 * per_second, "{tunnels} answered");
        let took = world.reach((head.0, &head.1), (a.0, &a.1), SECOND * 10);
        assert!(took.is_some(), "members go on talking");
        let late = world.issue("late", DAY);
        let host = world.start(&late, INTERNET, &["198.51.100.40"]);
        let joined = world.net.run_until(SECOND * 30, |net| World::is_accepted(net, host));
        assert!(joined, "a member that comes late gets in");
    });
}

#[test]
fn one_address_gets_four_strangers() {
    simulate(53, |clock| {
        let (mut world, head, _) = network(clock, 53);
        let mut answered = 0;
        for n in 0..20u16 {
            let now = world.net.now();
            let datagram = initiation(&TransportSecret::generate(), &head.1, now);
            let from: SocketAddr = ([192, 0, 2, 1], 1000 + n).into();
            let answers = world.net.with(head.0, |m, now| hand(m, from, &datagram, now));
            answered += answers.iter().filter(|answer| answer[0] == 2).count();
            world.net.run_for(SECOND / 10);
        }
        assert_eq!(answered, MAX_GUESTS.1);
    });
}

#[test]
fn a_stranger_gets_a_response_and_nothing_more_until_it_has_shown_that_it_listens() {
    simulate(54, |clock| {
        let (mut world, head, _) = network(clock, 54);
        let now = world.net.now();
        let datagram = initiation(&TransportSecret::generate(), &head.1, now);
        let from: SocketAddr = ([192, 0, 2, 1], 1000).into();
        let answers = world.net.with(head.0, |m, now| hand(m, from, &datagram, now));
        assert_eq!(answers.len(), 1);
        assert_eq!(answers[0].len(), 92, "smaller than what was asked: no amplifier");
        let before = world.net.log.len();
        world.net.run_for(SECOND * 10);
        let to_stranger =
            world.net.log[before..].iter().filter(|e| e.from == head.0 && e.to.is_none()).count();
        assert_eq!(to_stranger, 0);
    });
}

#[test]
fn garbage_changes_nothing() {
    simulate(55, |clock| {
        let (mut world, head, a) = network(clock, 55);
        assert!(world.reach((head.0, &head.1), (a.0, &a.1), SECOND * 5).is_some());
        let mut rng = Rng::new(55);
        for round in 0..20_000u32 {
            let len = rng.below(200) as usize;
            let mut datagram: Vec<u8> = (0..len).map(|_| rng.next_u64() as u8).collect();
            if len > 4 && round % 2 == 0 {
                datagram[..4].copy_from_slice(&[(rng.below(5)) as u8, 0, 0, 0]);
            }
            let from: SocketAddr = ([192, 0, 2, rng.below(250) as u8], 1000).into();
            world.net.with(head.0, |machine, now| hand(machine, from, &datagram, now));
        }
        assert!(world.reach((head.0, &head.1), (a.0, &a.1), SECOND * 5).is_some());
        assert!(world.reach((a.0, &a.1), (head.0, &head.1), SECOND * 5).is_some());
    });
}

#[test]
fn a_replayed_initiation_from_elsewhere_does_not_move_the_route() {
    simulate(56, |clock| {
        let (mut world, head, a) = network(clock, 56);
        world.net.run_for(SECOND * 3);
        let before = world.path(head.0, &a.1);
        let now = world.net.now();
        let secret = a.1.transport_secret();
        let datagram = initiation(&secret, &head.1, now);
        let from: SocketAddr = ([192, 0, 2, 66], 1000).into();
        world.net.with(head.0, |m, now| hand(m, from, &datagram, now));
        assert_eq!(world.path(head.0, &a.1), before);
        assert!(world.reach((head.0, &head.1), (a.0, &a.1), SECOND * 10).is_some());
    });
}
