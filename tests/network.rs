//! The simulation itself: that its clock is seen, its NATs are what RFC 4787 describes, and a seed repeats a run.

mod sim;

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant, SystemTime},
};

use clusternet::words::{key, time::Now};
use sim::{
    Condition, Fate, Filtering, Gateway, Host, HostId, Mapping, Net, Output, Transmit,
    net::INTERNET, simulate,
};

/// Sends what it is told to, remembers what it got.
#[derive(Default)]
struct Plain {
    outbox: Vec<Transmit>,
    got: Vec<(SocketAddr, Vec<u8>)>,
}

impl Host for Plain {
    fn handle_datagram(&mut self, _: SocketAddr, from: SocketAddr, bytes: &[u8], _: Now) {
        self.got.push((from, bytes.to_vec()));
    }
    fn poll(&mut self, _: Now) -> Output {
        Output { transmits: std::mem::take(&mut self.outbox), wake: None }
    }
}

fn send(net: &mut Net<Plain>, host: HostId, to: &str, bytes: &[u8]) {
    let to: SocketAddr = to.parse().expect("an endpoint");
    let unspecified = if to.is_ipv4() { "0.0.0.0:7" } else { "[::]:7" };
    let local = unspecified.parse().expect("an endpoint");
    let bytes = bytes.to_vec();
    net.with(host, |plain, _| plain.outbox.push(Transmit { local, to, bytes }));
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Sends and says as whom the receiver saw the sender, if it did.
fn seen_as(net: &mut Net<Plain>, from: HostId, to: HostId, endpoint: &str) -> Option<SocketAddr> {
    let before = net.peek(to).got.len();
    send(net, from, endpoint, b"?");
    net.run_for(Duration::from_secs(1));
    net.peek(to).got.get(before).map(|(from, _)| *from)
}

#[test]
#[expect(clippy::disallowed_methods, reason = "that they read the virtual clock is what is tested")]
fn std_and_boringtun_see_the_virtual_clock() {
    simulate(1, |clock| {
        let (instant, wall) = (Instant::now(), SystemTime::now());
        let tunn = |secret: [u8; 32]| {
            let public = boringtun::x25519::PublicKey::from([9; 32]);
            boringtun::noise::Tunn::new(secret.into(), public, None, None, 1, None)
        };
        let mut tunn = tunn([7; 32]);
        let mut buffer = [0; 148];
        tunn.format_handshake_initiation(&mut buffer, false);
        clock.advance(Duration::from_secs(4));
        let quiet = tunn.update_timers(&mut buffer);
        assert!(matches!(quiet, boringtun::noise::TunnResult::Done), "{quiet:?}");
        clock.advance(Duration::from_secs(1));
        let again = tunn.update_timers(&mut buffer);
        assert!(matches!(again, boringtun::noise::TunnResult::WriteToNetwork(_)), "{again:?}");
        clock.advance(Duration::from_secs(86_400));
        assert_eq!(instant.elapsed(), Duration::from_secs(86_405));
        assert_eq!(wall.elapsed().unwrap(), Duration::from_secs(86_405));
        clock.set_wall_error(-3_600_000);
        assert_eq!(wall.elapsed().unwrap(), Duration::from_secs(86_405 - 3600));
        assert_eq!(instant.elapsed(), Duration::from_secs(86_405));
    });
    let real = Instant::now();
    while real.elapsed() < Duration::from_millis(2) {}
}

#[test]
fn randomness_of_words_and_hash_maps_follows_the_seed() {
    let draw = |seed| {
        simulate(seed, |_| {
            let map: std::collections::HashMap<u32, ()> = (0..50).map(|n| (n, ())).collect();
            (key::random_u64(), key::random_u64(), map.into_keys().collect::<Vec<_>>())
        })
    };
    assert_eq!(draw(5), draw(5));
    assert_ne!(draw(5).0, draw(6).0);
    assert_ne!(draw(5).0, draw(5).1);
    assert_ne!(key::random_u64(), key::random_u64());
}

#[test]
fn endpoint_independent_mapping_shows_one_port_to_all() {
    simulate(1, |clock| {
        let mut net = Net::new(clock, 1);
        let site = net.site(INTERNET, Gateway::home(&[ip("198.51.100.1")]));
        let inner = net.host(site, &[ip("192.168.0.2")], Plain::default());
        let a = net.host(INTERNET, &[ip("203.0.113.1")], Plain::default());
        let b = net.host(INTERNET, &[ip("203.0.113.2")], Plain::default());
        let as_a = seen_as(&mut net, inner, a, "203.0.113.1:7").unwrap();
        let as_b = seen_as(&mut net, inner, b, "203.0.113.2:7").unwrap();
        assert_eq!(as_a, as_b);
        assert_eq!(as_a.ip(), ip("198.51.100.1"));
    });
}

#[test]
fn symmetric_mapping_shows_another_port_to_each() {
    simulate(1, |clock| {
        let mut net = Net::new(clock, 1);
        let site = net.site(INTERNET, Gateway::symmetric(&[ip("198.51.100.1")]));
        let inner = net.host(site, &[ip("192.168.0.2")], Plain::default());
        let a = net.host(INTERNET, &[ip("203.0.113.1")], Plain::default());
        let first = seen_as(&mut net, inner, a, "203.0.113.1:7").unwrap();
        let again = seen_as(&mut net, inner, a, "203.0.113.1:7").unwrap();
        let other = seen_as(&mut net, inner, a, "203.0.113.1:8").unwrap();
        assert_eq!(first, again);
        assert_ne!(first.port(), other.port());
    });
}

#[test]
fn filters_let_in_whom_rfc_4787_says() {
    // Who answers: the endpoint written to; another port of the same address; another address.
    for (filtering, expected) in [
        (Filtering::EndpointIndependent, [true, true, true]),
        (Filtering::AddressDependent, [true, true, false]),
        (Filtering::AddressAndPortDependent, [true, false, false]),
    ] {
        simulate(1, |clock| {
            let mut net = Net::new(clock, 1);
            let outside = [ip("198.51.100.1")];
            let nat = Gateway::nat(Mapping::EndpointIndependent, filtering, &outside);
            let site = net.site(INTERNET, nat);
            let inner = net.host(site, &[ip("192.168.0.2")], Plain::default());
            let a = net.host(INTERNET, &[ip("203.0.113.1")], Plain::default());
            let b = net.host(INTERNET, &[ip("203.0.113.2")], Plain::default());
            let outside = seen_as(&mut net, inner, a, "203.0.113.1:7").unwrap();
            let mut passed = Vec::new();
            for (from, port) in [(a, 7), (a, 8), (b, 7)] {
                let before = net.peek(inner).got.len();
                let local = SocketAddr::new("0.0.0.0".parse().unwrap(), port);
                let transmit = Transmit { local, to: outside, bytes: vec![1] };
                net.with(from, |plain, _| plain.outbox.push(transmit));
                net.run_for(Duration::from_secs(1));
                passed.push(net.peek(inner).got.len() > before);
            }
            assert_eq!(passed, expected, "{filtering:?}");
        });
    }
}

#[test]
fn a_gateway_forgets_and_a_reboot_forgets_at_once() {
    simulate(1, |clock| {
        let mut net = Net::new(clock, 1);
        let site = net.site(INTERNET, Gateway::home(&[ip("198.51.100.1")]));
        let inner = net.host(site, &[ip("192.168.0.2")], Plain::default());
        let a = net.host(INTERNET, &[ip("203.0.113.1")], Plain::default());
        let mut answered_after = |wait: u64, reboot: bool| {
            let outside = seen_as(&mut net, inner, a, "203.0.113.1:7").unwrap();
            net.run_for(Duration::from_secs(wait));
            if reboot {
                net.gateway(site).reboot();
            }
            seen_as(&mut net, a, inner, &outside.to_string()).is_some()
        };
        assert!(answered_after(20, false));
        assert!(!answered_after(40, false));
        assert!(!answered_after(0, true));
    });
}

#[test]
fn a_firewall_passes_answers_and_open_ports_untranslated_in_both_families() {
    simulate(1, |clock| {
        let mut net = Net::new(clock, 1);
        let open = "[2001:db8:1::2]:7".parse().unwrap();
        let site = net.site(INTERNET, Gateway::firewall().opening(7, open));
        let v6 = ip("2001:db8:1::2");
        let inner = net.host(site, &[ip("192.0.2.2"), v6], Plain::default());
        let both = [ip("203.0.113.1"), ip("2001:db8:2::1")];
        let a = net.host(INTERNET, &both, Plain::default());
        assert_eq!(seen_as(&mut net, a, inner, "192.0.2.2:7"), None);
        let seen = seen_as(&mut net, inner, a, "203.0.113.1:7").unwrap();
        assert_eq!(seen, "192.0.2.2:7".parse().unwrap());
        assert!(seen_as(&mut net, a, inner, "192.0.2.2:7").is_some());
        assert!(seen_as(&mut net, a, inner, "[2001:db8:1::2]:7").is_some());
        assert_eq!(seen_as(&mut net, a, inner, "[2001:db8:1::2]:8"), None);
    });
}

#[test]
fn nats_nest_and_hairpin_only_where_they_can() {
    simulate(1, |clock| {
        let mut net = Net::new(clock, 1);
        let carrier = net.site(INTERNET, Gateway::home(&[ip("198.51.100.1")]));
        let home = net.site(carrier, Gateway::home(&[ip("100.64.0.9")]));
        let inner = net.host(home, &[ip("192.168.0.2")], Plain::default());
        let other = net.host(home, &[ip("192.168.0.3")], Plain::default());
        let a = net.host(INTERNET, &[ip("203.0.113.1")], Plain::default());
        let outside = seen_as(&mut net, inner, a, "203.0.113.1:7").unwrap();
        assert_eq!(outside.ip(), ip("198.51.100.1"));
        assert!(seen_as(&mut net, a, inner, &outside.to_string()).is_some());
        assert!(seen_as(&mut net, other, inner, "192.168.0.2:7").is_some());
        assert_eq!(seen_as(&mut net, other, inner, "100.64.0.9:7"), None);
        net.gateway(home).hairpin = true;
        net.gateway(home).filtering = Filtering::EndpointIndependent;
        assert!(seen_as(&mut net, other, inner, "100.64.0.9:7").is_some());
    });
}

#[test]
fn partitions_losses_doubles_and_strangers_are_logged_as_such() {
    simulate(1, |clock| {
        let mut net = Net::new(clock, 1);
        let a = net.host(INTERNET, &[ip("203.0.113.1")], Plain::default());
        let b = net.host(INTERNET, &[ip("203.0.113.2")], Plain::default());
        net.cut_one_way(a, b);
        assert_eq!(seen_as(&mut net, a, b, "203.0.113.2:7"), None);
        assert!(seen_as(&mut net, b, a, "203.0.113.1:7").is_some());
        net.heal(a, b);
        assert_eq!(seen_as(&mut net, a, b, "203.0.113.99:7"), None);
        net.set_condition(b, Condition { loss: 1.0, ..Condition::default() });
        assert_eq!(seen_as(&mut net, a, b, "203.0.113.2:7"), None);
        net.set_condition(b, Condition { duplicate: 1.0, ..Condition::default() });
        assert!(seen_as(&mut net, a, b, "203.0.113.2:7").is_some());
        assert_eq!(net.peek(b).got.len(), 2);
        net.set_up(b, false);
        assert_eq!(seen_as(&mut net, a, b, "203.0.113.2:7"), None);
        let fates: Vec<_> = net.log.iter().map(|entry| entry.fate).collect();
        let delivered = Fate::Delivered;
        assert_eq!(
            fates,
            [
                Fate::Cut,
                delivered,
                Fate::Unroutable,
                Fate::Lost,
                delivered,
                delivered,
                Fate::Cut,
                Fate::Cut
            ]
        );
    });
}

#[test]
fn the_same_seed_gives_the_same_log_and_another_seed_another() {
    let run = |seed| {
        simulate(seed, |clock| {
            let mut net = Net::new(clock, seed);
            let a = net.host(INTERNET, &[ip("203.0.113.1")], Plain::default());
            net.host(INTERNET, &[ip("203.0.113.2")], Plain::default());
            net.set_conditions(Condition {
                latency: Duration::from_millis(3),
                jitter: Duration::from_millis(9),
                loss: 0.1,
                duplicate: 0.1,
            });
            for number in 0..200 {
                send(&mut net, a, "203.0.113.2:7", &[number]);
                net.run_for(Duration::from_millis(1));
            }
            net.run_for(Duration::from_secs(1));
            net.log_text()
        })
    };
    assert_eq!(run(3), run(3));
    assert_ne!(run(3), run(4));
}
