//! The data channel between whole nodes on a virtual clock: first keys, renewal under traffic, restarts, limits, ends, and that
//! nothing gets in or out beside it.

mod sim;
mod world;

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use clusternet::{
    channel::{Suite, Suites, keypair::Keypairs},
    node::{
        Node, Traffic,
        output::{Carrier, Directive, Output},
    },
    path::route::Route,
    tunnel::{Sink, Tunnel},
    wire::{
        exchange::Features,
        message::Message,
        parts::{self, Assembler},
        record::{Introduction, Knowledge, Record},
    },
    words::{id::Incarnation, time::Now},
};
use sim::{Clock, Condition, HostId, net::INTERNET, simulate};
use world::{Identity, World, udp_packet};

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);
const DAY: Duration = Duration::from_secs(86_400);
const HEAD: &str = "udp://198.51.100.1:51820";

/// A master, and two nodes that anybody can reach.
struct Trio {
    world: World,
    head: (HostId, Identity),
    a: (HostId, Identity),
    b: (HostId, Identity),
}

impl Trio {
    fn new(clock: Clock, seed: u64, has_workers: bool) -> Self {
        Self::with(clock, seed, |world| world.has_workers = has_workers)
    }

    fn with(clock: Clock, seed: u64, change: impl FnOnce(&mut World)) -> Self {
        let (mut world, head_id) = World::new(clock, seed, HEAD);
        change(&mut world);
        let head = world.start(&head_id, INTERNET, &["198.51.100.1"]);
        let (a_id, b_id) = (world.issue("a", DAY), world.issue("b", DAY));
        let a = world.start(&a_id, INTERNET, &["198.51.100.2"]);
        let b = world.start(&b_id, INTERNET, &["198.51.100.3"]);
        let mut trio = Self { world, head: (head, head_id), a: (a, a_id), b: (b, b_id) };
        let hosts = [a, b];
        let is_in = |net: &_| hosts.iter().all(|host| World::is_accepted(net, *host));
        assert!(trio.world.net.run_until(SECOND * 5, is_in));
        trio.world.net.run_for(SECOND * 2);
        trio
    }

    fn send(&mut self, is_from_a: bool, text: &str) {
        let (from, to) = if is_from_a { (&self.a, &self.b) } else { (&self.b, &self.a) };
        let (from, to) = (from.clone(), to.clone());
        self.world.send(from.0, &from.1, &to.1, text.as_bytes());
    }

    /// Sends both ways every `pause`, numbered from `first` on.
    fn talk(&mut self, numbers: std::ops::Range<u32>, pause: Duration) {
        for number in numbers {
            self.send(true, &format!("#{number:08}"));
            self.send(false, &format!("#{number:08}"));
            self.world.net.run_for(pause);
        }
    }

    /// The numbers of what has arrived at a host, in order.
    fn numbers(&self, host: HostId) -> Vec<u32> {
        let texts = self.world.net.peek(host).delivered.iter();
        let texts = texts.filter(|packet| packet[packet.len() - 9] == b'#');
        let number = |packet: &Vec<u8>| {
            let text = std::str::from_utf8(&packet[packet.len() - 8..]).expect("digits");
            text.parse().expect("digits")
        };
        texts.map(number).collect()
    }

    /// What a host's workers seal with to one address.
    fn seals(&self, host: HostId, to: &Identity) -> Option<Arc<Keypairs>> {
        let address: IpAddr = to.certificate.ipv4.into();
        self.world.net.peek(host).table.table().member(address)?.1.seal_with.clone()
    }

    fn keys(&self) -> (Arc<Keypairs>, Arc<Keypairs>) {
        let (a, b) = (self.seals(self.a.0, &self.b.1), self.seals(self.b.0, &self.a.1));
        (a.expect("a has keys"), b.expect("b has keys"))
    }

    fn reach(&mut self) -> Duration {
        let (a, b) = (self.a.clone(), self.b.clone());
        let there = self.world.reach((a.0, &a.1), (b.0, &b.1), SECOND * 30).expect("a reaches b");
        let back = self.world.reach((b.0, &b.1), (a.0, &a.1), SECOND * 30).expect("b reaches a");
        there.max(back)
    }

    fn is_dead(&self, keypairs: &Keypairs) -> bool {
        keypairs.is_dead(self.world.net.now().instant)
    }

    /// No key is ever used twice with one counter.
    fn check_nonces(&self) {
        for host in [self.head.0, self.a.0, self.b.0] {
            let mut seen = BTreeSet::new();
            for message in &self.world.net.peek(host).sealed {
                assert!(seen.insert(message), "{message:x?} twice");
            }
        }
        assert!(self.sealed().count() > 0);
    }

    /// Receiver index and counter of every channel message.
    fn sealed(&self) -> impl Iterator<Item = (u32, u64)> {
        self.world.net.hosts().flat_map(|(_, machine)| machine.sealed.iter().copied())
    }
}

/// With all of it in the node, and with workers beside it.
fn both(seed: u64, body: impl Fn(Clock, bool) + Sync) {
    for has_workers in [false, true] {
        simulate(seed, |clock| body(clock, has_workers));
    }
}

#[test]
fn the_first_packet_makes_keys_and_rides_on_them() {
    both(1, |clock, has_workers| {
        let mut trio = Trio::new(clock, 1, has_workers);
        assert!(trio.seals(trio.a.0, &trio.b.1).is_none(), "nobody has sent anything");
        assert!(trio.reach() < SECOND / 2);
        let (a, b) = trio.keys();
        assert_eq!((a.send_index(), a.index()), (b.index(), b.send_index()));
        // Handshakes, introductions and the exchange are records in the tunnel; the packets are not.
        let channel = trio.world.net.delivered("channel");
        assert!(channel >= 2, "{channel}");
        let before = trio.world.net.delivered("channel");
        trio.talk(0..50, MILLISECOND * 20);
        assert_eq!(trio.world.net.delivered("channel") - before, 100);
        trio.check_nonces();
    });
}

#[test]
fn keys_are_renewed_under_traffic_and_nothing_is_lost_or_reordered() {
    both(2, |clock, has_workers| {
        let mut trio = Trio::new(clock, 2, has_workers);
        let far = Condition { latency: MILLISECOND * 12, ..Condition::default() };
        trio.world.net.set_conditions(far);
        trio.reach();
        let first = trio.keys();
        let mut made = vec![first.0.index()];
        for round in 0..260 {
            trio.talk(round * 50..(round + 1) * 50, MILLISECOND * 20);
            let now = trio.keys().0.index();
            if made.last() != Some(&now) {
                made.push(now);
            }
        }
        trio.world.net.run_for(SECOND);
        assert_eq!(made.len(), 3, "after 120 and 240 s");
        let all: Vec<u32> = (0..260 * 50).collect();
        assert!(trio.numbers(trio.a.0) == all, "in order, each once");
        assert!(trio.numbers(trio.b.0) == all, "in order, each once");
        assert!(trio.is_dead(&first.0) && trio.is_dead(&first.1));
        trio.check_nonces();
    });
}

#[test]
fn hours_of_traffic_go_through_many_renewals() {
    both(3, |clock, has_workers| {
        let mut trio = Trio::new(clock, 3, has_workers);
        trio.reach();
        let hours = 3;
        let mut made = BTreeSet::new();
        for minute in 0..hours * 60 {
            trio.talk(minute * 60..(minute + 1) * 60, SECOND);
            made.insert(trio.keys().0.index());
            let sizes: Vec<usize> =
                [trio.a.0, trio.b.0].map(|host| trio.world.net.peek(host).installed).to_vec();
            assert!(sizes.iter().all(|size| *size <= 3 * 2), "{sizes:?}: two peers each");
        }
        assert!((85..=90).contains(&made.len()), "every two minutes: {}", made.len());
        let all: Vec<u32> = (0..hours * 3600).collect();
        assert!(trio.numbers(trio.a.0) == all && trio.numbers(trio.b.0) == all);
        trio.check_nonces();
    });
}

#[test]
fn both_sides_may_begin_at_once() {
    both(4, |clock, has_workers| {
        let mut trio = Trio::new(clock, 4, has_workers);
        for round in 0..5 {
            trio.send(true, &format!("#{round:08}"));
            trio.send(false, &format!("#{round:08}"));
            trio.world.net.run_for(SECOND);
            assert_eq!(trio.numbers(trio.a.0).len(), round + 1);
            assert_eq!(trio.numbers(trio.b.0).len(), round + 1);
            let (a, b) = trio.keys();
            assert_eq!((a.send_index(), a.index()), (b.index(), b.send_index()));
            // Until both have forgotten all keys.
            trio.world.net.run_for(SECOND * 200);
        }
        trio.check_nonces();
    });
}

#[test]
fn offers_and_answers_may_be_lost_doubled_and_overtaken() {
    for seed in 50..56 {
        simulate(seed, |clock| {
            let mut trio = Trio::new(clock, seed, seed % 2 == 0);
            trio.world.net.set_conditions(Condition {
                latency: MILLISECOND * 20,
                jitter: MILLISECOND * 80,
                loss: 0.12,
                duplicate: 0.1,
            });
            trio.reach();
            trio.talk(0..2_000, MILLISECOND * 300);
            trio.world.net.run_for(SECOND);
            for host in [trio.a.0, trio.b.0] {
                let mut numbers = trio.numbers(host);
                let count = numbers.len();
                numbers.sort_unstable();
                numbers.dedup();
                assert_eq!(numbers.len(), count, "none twice");
                // Two lines lose a quarter of them, and no renewal costs more.
                assert!(count > 1_400, "{count} of 2000, seed {seed}");
            }
            trio.check_nonces();
        });
    }
}

#[test]
fn a_restart_of_either_side_makes_new_keys_at_once() {
    both(6, |clock, has_workers| {
        let mut trio = Trio::new(clock, 6, has_workers);
        for round in 0..4 {
            trio.reach();
            trio.world.net.run_for(SECOND * 20);
            trio.reach();
            let old = trio.keys();
            let who = if round % 2 == 0 { trio.a.clone() } else { trio.b.clone() };
            trio.world.restart(who.0, &who.1, round < 2);
            let took = trio.reach();
            assert!(took < SECOND * 4, "{took:?}");
            let new = trio.keys();
            assert_ne!((old.0.index(), old.1.index()), (new.0.index(), new.1.index()));
            let survivor = if round % 2 == 0 { &old.1 } else { &old.0 };
            assert!(trio.is_dead(survivor), "a new incarnation ends the keys of the old one");
        }
        trio.check_nonces();
    });
}

#[test]
fn worn_keys_are_renewed_and_used_up_ones_lose_nothing() {
    both(7, |clock, has_workers| {
        let mut trio = Trio::new(clock, 7, has_workers);
        trio.reach();
        trio.world.net.run_for(SECOND * 6);
        let now = trio.world.net.now().instant;
        // A worker's stripe has sealed 2^28 messages.
        let worn = trio.keys();
        worn.1.stripe(0).expect("a stripe").reserve(1 << 28, now).expect("young");
        trio.talk(0..20, MILLISECOND * 100);
        let renewed = trio.keys();
        assert_ne!(worn.1.index(), renewed.1.index());
        // All stripes have sealed 2^32.
        trio.world.net.run_for(SECOND * 6);
        let now = trio.world.net.now().instant;
        for stripe in 0..2 {
            let keypair = renewed.0.stripe(stripe).expect("a stripe");
            let left = (1 << 32) - keypair.reserve(0, now).expect("young");
            keypair.reserve(left, now).expect("to the very end");
        }
        trio.send(true, "#00000020");
        trio.world.net.run_for(SECOND);
        assert_eq!(trio.numbers(trio.b.0).last(), Some(&20), "it waited for new keys");
        assert_ne!(trio.keys().0.index(), renewed.0.index());
        trio.check_nonces();
    });
}

#[test]
fn a_wall_clock_that_leaps_ends_all_keys() {
    both(8, |clock, has_workers| {
        let mut trio = Trio::new(clock, 8, has_workers);
        trio.reach();
        let old = trio.keys();
        let error = |trio: &mut Trio, milliseconds| {
            trio.world.net.run_for(SECOND);
            trio.world.net.set_wall_error(trio.a.0, milliseconds);
            trio.world.net.with(trio.a.0, |machine, now| {
                machine.tell(now, |node| node.handle_timeout(now));
                let opener = machine.table.table().opener(old.0.index() << 8);
                (opener.is_none(), old.0.is_dead(now.instant))
            })
        };
        assert_eq!(error(&mut trio, 58_000), (false, false), "by less than a minute");
        trio.reach();
        assert_eq!(trio.keys().0.index(), old.0.index());
        // The two have nothing to say for a while, so nobody probes either.
        trio.world.net.run_for(SECOND * 40);
        assert_eq!(error(&mut trio, 58_000 + 61_000), (true, true));
        // The other side has not heard of it, and does by the first probe beside its first packet.
        trio.world.net.run_for(SECOND * 10);
        let (a, b) = (trio.a.clone(), trio.b.clone());
        assert!(!trio.is_dead(&old.1));
        let took = trio.world.reach((b.0, &b.1), (a.0, &a.1), SECOND * 30).expect("reached");
        assert!(took < SECOND, "{took:?}");
        assert_ne!(trio.keys().0.index(), old.0.index());
        trio.check_nonces();
    });
}

#[test]
fn a_revocation_ends_the_keys_within_the_same_call() {
    both(9, |clock, has_workers| {
        let mut trio = Trio::new(clock, 9, has_workers);
        trio.reach();
        let old = trio.keys();
        let update = trio.world.revoke(&trio.b.1);
        trio.world.net.with(trio.a.0, |machine, now| {
            machine.tell(now, |node| {
                node.handle_update(&update, now).expect("signed");
            });
            assert!(old.0.is_dead(now.instant));
            assert!(machine.table.table().opener(old.0.index() << 8).is_none());
        });
        trio.send(false, "#00000001");
        trio.world.net.run_for(SECOND);
        assert!(!World::got(&trio.world.net, trio.a.0, b"#00000001"));
    });
}

#[test]
fn keys_end_with_the_certificate_and_with_a_farewell() {
    both(10, |clock, has_workers| {
        let mut trio = Trio::new(clock, 10, has_workers);
        let guest = trio.world.issue("guest", SECOND * 60);
        let host = trio.world.start(&guest, INTERNET, &["198.51.100.9"]);
        trio.world.net.run_for(SECOND * 5);
        let a = trio.a.clone();
        for (from, to) in [((a.0, &a.1), (host, &guest)), ((host, &guest), (a.0, &a.1))] {
            trio.world.reach(from, to, SECOND * 5).expect("reached");
        }
        let keys = [trio.seals(a.0, &guest), trio.seals(host, &a.1)].map(|k| k.expect("keys"));
        trio.world.net.run_for(SECOND * 60);
        assert!(trio.world.net.peek(host).ended().is_some());
        assert!(keys.iter().all(|keypairs| trio.is_dead(keypairs)));

        trio.reach();
        let keys = trio.keys();
        trio.world.net.with(trio.b.0, |machine, now| {
            machine.tell(now, |node| node.handle_leave(now));
        });
        assert!(trio.is_dead(&keys.1));
        trio.world.net.run_for(SECOND);
        assert!(trio.is_dead(&keys.0));
    });
}

#[test]
fn a_peer_that_is_put_away_is_met_again() {
    both(11, |clock, has_workers| {
        let mut trio = Trio::new(clock, 11, has_workers);
        for _ in 0..3 {
            trio.reach();
            let keys = trio.keys();
            trio.world.net.run_for(SECOND * 400);
            assert!(trio.seals(trio.a.0, &trio.b.1).is_none());
            assert!(trio.is_dead(&keys.0) && trio.is_dead(&keys.1));
            let status = trio.world.net.peek(trio.a.0).status(trio.world.net.now());
            let b = status.peers.iter().find(|peer| peer.name.as_str() == "b").expect("known");
            assert_eq!(b.state, "idle");
        }
        trio.check_nonces();
    });
}

#[test]
fn one_side_alone_may_forget_the_other() {
    both(12, |clock, has_workers| {
        let mut trio = Trio::new(clock, 12, has_workers);
        trio.reach();
        // b hears nothing for so long that it puts a away; a goes on sending all the time.
        trio.world.net.cut_one_way(trio.a.0, trio.b.0);
        trio.world.net.cut_one_way(trio.head.0, trio.b.0);
        for number in 0..250 {
            trio.send(true, &format!("#{number:08}"));
            trio.world.net.run_for(SECOND);
        }
        trio.world.net.heal_all();
        trio.world.net.run_for(SECOND * 15);
        let took = trio.reach();
        assert!(took < SECOND * 2, "{took:?}");
        trio.check_nonces();
    });
}

#[test]
fn traffic_that_workers_carry_shows_in_status_and_keeps_the_peer() {
    simulate(13, |clock| {
        let mut trio = Trio::new(clock, 13, true);
        trio.reach();
        let before = trio.world.net.peek(trio.a.0).status(trio.world.net.now());
        let find = |status: &clusternet::api::Status| {
            let b = status.peers.iter().find(|peer| peer.name.as_str() == "b").expect("known");
            (b.state.clone(), b.sent, b.received)
        };
        trio.talk(0..400, SECOND);
        trio.world.net.run_for(SECOND * 2);
        let after = trio.world.net.peek(trio.a.0).status(trio.world.net.now());
        let ((_, sent, received), after) = (find(&before), find(&after));
        // 20 bytes of IPv4, 8 of UDP, 9 of text.
        assert_eq!(after, ("connected".to_owned(), sent + 400 * 37, received + 400 * 37));
    });
}

#[test]
fn a_message_from_elsewhere_makes_a_candidate_and_moves_nothing() {
    both(14, |clock, has_workers| {
        let mut trio = Trio::new(clock, 14, has_workers);
        trio.reach();
        let path = trio.world.path(trio.a.0, &trio.b.1);
        // b's machine has a second address, and sends from there: its datagrams arrive, nothing else changes.
        let addresses = [world::ip("198.51.100.33"), world::ip("198.51.100.3")];
        trio.world.net.rehome(trio.b.0, INTERNET, &addresses);
        trio.send(false, "#00000001");
        trio.world.net.run_for(MILLISECOND * 11);
        assert!(World::got(&trio.world.net, trio.a.0, b"#00000001"));
        assert_eq!(trio.world.path(trio.a.0, &trio.b.1), path);
        // Once it has been probed there and the old address is dead, it leads.
        trio.world.net.rehome(trio.b.0, INTERNET, &addresses[..1]);
        trio.talk(2..40, MILLISECOND * 200);
        let path = trio.world.path(trio.a.0, &trio.b.1).expect("a way");
        assert_eq!(path, "direct udp 198.51.100.33:51820");
    });
}

#[test]
fn a_peer_without_the_channel_stays_in_the_tunnel() {
    both(15, |clock, has_workers| {
        let mut trio = Trio::with(clock, 15, |world| {
            world.has_workers = has_workers;
            world.suites = Suites::default();
        });
        // a is of this version; the other two are not.
        trio.world.suites = Suites::of(true);
        let a = trio.a.clone();
        trio.world.restart(a.0, &a.1, false);
        trio.world.net.run_for(SECOND * 5);
        trio.reach();
        trio.talk(0..300, SECOND);
        trio.world.net.run_for(SECOND);
        assert_eq!(trio.numbers(a.0).len(), 300);
        assert_eq!(trio.sealed().count(), 0);
    });
}

#[test]
fn without_a_suite_in_common_nothing_passes_rather_than_something_weaker() {
    simulate(16, |clock| {
        let mut trio = Trio::with(clock, 16, |world| world.suites = Suites::only(Suite::Aes256Gcm));
        trio.world.suites = Suites::only(Suite::ChaCha20Poly1305);
        let a = trio.a.clone();
        trio.world.restart(a.0, &a.1, false);
        trio.world.net.run_for(SECOND * 5);
        trio.talk(0..20, SECOND);
        assert_eq!(trio.world.net.peek(trio.b.0).delivered.len(), 0);
        assert_eq!(trio.sealed().count(), 0);
        let status = trio.world.net.peek(a.0).status(trio.world.net.now());
        let b = status.peers.iter().find(|peer| peer.name.as_str() == "b").expect("known");
        assert_eq!(b.state, "no cipher in common");
    });
}

#[test]
fn there_are_as_many_keypairs_as_the_side_with_more_threads_has() {
    simulate(17, |clock| {
        let mut trio = Trio::with(clock, 17, |world| world.stripes = 5);
        trio.world.stripes = 3;
        let a = trio.a.clone();
        trio.world.restart(a.0, &a.1, false);
        trio.world.net.run_for(SECOND * 5);
        trio.reach();
        let (a, b) = trio.keys();
        for keypairs in [&a, &b] {
            assert!(keypairs.stripe(4).is_some() && keypairs.stripe(5).is_none());
        }
        // Control's own stripe is the last of each: no thread shares it.
        let stripes: BTreeSet<u32> = trio.sealed().map(|(receiver, _)| receiver & 0xff).collect();
        assert_eq!(stripes, BTreeSet::from([2, 4]));
    });
}

#[test]
fn a_member_that_gets_another_address_keeps_its_keys() {
    both(21, |clock, has_workers| {
        let mut trio = Trio::new(clock, 21, has_workers);
        trio.reach();
        let keys = trio.keys();
        let moved = trio.world.readdress(&trio.b.1.clone(), 77);
        let entry = clusternet::wire::record::Entry::Certificate(moved.certificate.raw().clone());
        let update = clusternet::node::Update { entries: vec![entry] };
        for host in [trio.a.0, trio.b.0] {
            trio.world.net.with(host, |machine, now| {
                machine.tell(now, |node| {
                    node.handle_update(&update, now).expect("signed");
                });
            });
        }
        let table = trio.world.net.peek(trio.a.0).table.table();
        let (slot, peer) = table.member(moved.certificate.ipv4.into()).expect("a new place");
        assert!(peer.route.is_some() && peer.seal_with == Some(Arc::clone(&keys.0)));
        let opener = table.opener(keys.0.index() << 8).expect("installed again");
        assert_eq!(opener.slot, slot);
        let a = trio.a.clone();
        trio.world.send(a.0, &a.1, &moved, b"to the new address");
        trio.world.net.run_for(MILLISECOND * 50);
        assert!(World::got(&trio.world.net, trio.b.0, b"to the new address"));
    });
}

#[test]
fn a_plain_member_is_carried_by_its_gateway() {
    both(18, |clock, has_workers| {
        let mut trio = Trio::new(clock, 18, has_workers);
        let phone = trio.world.issue_plain("phone");
        let entry = clusternet::wire::record::Entry::Certificate(phone.certificate.raw().clone());
        let update = clusternet::node::Update { entries: vec![entry] };
        trio.world.net.with(trio.head.0, |machine, now| {
            machine.tell(now, |node| {
                node.handle_update(&update, now).expect("signed");
            });
        });
        let host = trio.world.start_plain(
            &phone,
            &trio.head.1,
            "198.51.100.1:51820",
            INTERNET,
            &["198.51.100.50"],
        );
        trio.world.net.run_for(SECOND);
        let packet = udp_packet(&phone, &trio.a.1, b"from the phone");
        trio.world.net.with(host, |machine, now| machine.send_plain(&packet, now));
        trio.world.net.run_for(SECOND);
        assert!(World::got(&trio.world.net, trio.a.0, b"from the phone"));
        for round in 0..200 {
            let text = format!("to the phone {round}.");
            let a = trio.a.clone();
            trio.world.send(a.0, &a.1, &phone, text.as_bytes());
            trio.world.net.run_for(SECOND);
            assert!(World::got(&trio.world.net, host, text.as_bytes()), "{text}");
        }
        let address: IpAddr = phone.certificate.ipv4.into();
        let gateway: IpAddr = trio.head.1.certificate.ipv4.into();
        let table = trio.world.net.peek(trio.a.0).table.table();
        let (slot, head) = table.member(gateway).expect("the gateway");
        let (_, peer) = table.member(address).expect("the phone");
        assert_eq!(peer.carrier, Carrier::Gateway(slot));
        assert!(peer.seal_with.is_some() && peer.seal_with == head.seal_with);
        assert_eq!(peer.route, head.route);
        let table = trio.world.net.peek(trio.head.0).table.table();
        assert_eq!(table.member(address).expect("the phone").1.carrier, Carrier::Us);
        trio.check_nonces();
    });
}

#[test]
fn an_idle_node_sleeps() {
    simulate(19, |clock| {
        let mut trio = Trio::new(clock, 19, true);
        trio.reach();
        trio.world.net.run_for(SECOND * 400);
        let hosts = [trio.head.0, trio.a.0, trio.b.0];
        let before = hosts.map(|host| trio.world.net.peek(host).wakes);
        trio.world.net.run_for(SECOND * 1000);
        for (host, before) in hosts.iter().zip(before) {
            let wakes = trio.world.net.peek(*host).wakes - before;
            assert!(wakes < 500, "{wakes} times in 1000 s");
        }
    });
}

#[test]
fn a_member_cannot_speak_for_another_nor_through_us_to_a_third() {
    both(20, |clock, has_workers| {
        let mut trio = Trio::new(clock, 20, has_workers);
        trio.reach();
        let (a, b, head) = (trio.a.clone(), trio.b.clone(), trio.head.clone());
        // a has been changed: it seals whatever its programs like.
        for packet in [
            udp_packet(&head.1, &b.1, b"in another's name"),
            udp_packet(&a.1, &head.1, b"for another"),
        ] {
            let keypairs = trio.seals(a.0, &b.1).expect("keys");
            trio.world
                .net
                .with(a.0, |machine, now| machine.seal_under(&keypairs, &b.1, &packet, now));
            trio.world.net.run_for(SECOND);
        }
        for host in [b.0, head.0] {
            assert!(!World::got(&trio.world.net, host, b"in another's name"));
            assert!(!World::got(&trio.world.net, host, b"for another"));
        }
        let drops = trio.world.net.peek(b.0).status(trio.world.net.now()).drops;
        let count = |name: &str| {
            drops.iter().find(|(reason, _)| reason == name).map_or(0, |(_, count)| *count)
        };
        // Workers drop the first by themselves, and ask control about the second.
        assert_eq!(count("source is not the peer's"), u64::from(!has_workers));
        assert_eq!(count("destination is not ours"), 1);
    });
}

/// A master that does what a test says, and the node `a` that has joined it. No network between them.
struct Fake {
    node: Node,
    tunnel: Tunnel,
    head: Identity,
    a: Identity,
    assembler: Assembler,
    records: Vec<Record>,
    /// What the node has sent as IP packets inside the tunnel, and as messages of the channel.
    packets: Vec<Vec<u8>>,
    messages: usize,
    delivered: Vec<Vec<u8>>,
    directives: Vec<Directive>,
    next_record: u32,
}

impl Fake {
    fn new(clock: Clock, seed: u64) -> (Self, Clock) {
        let now = clock.now();
        let (mut world, head) = World::new(clock, seed, HEAD);
        let a = world.issue("a", DAY);
        let mut machine = world.machine(&a, &[world::ip("203.0.113.4")], None, now);
        let tunnel = Tunnel::new(&head.transport_secret(), &a.certificate.transport, 5, now);
        let mut fake = Self {
            node: machine.node.take().expect("a node"),
            tunnel,
            head,
            a,
            assembler: Assembler::default(),
            records: Vec::new(),
            packets: Vec::new(),
            messages: 0,
            delivered: Vec::new(),
            directives: Vec::new(),
            next_record: 0,
        };
        fake.pump(now);
        fake.node.handle_timeout(now);
        fake.pump(now);
        (fake, world.net.into_clock())
    }

    fn route() -> Route {
        Route::direct("198.51.100.1:51820".parse().expect("an endpoint"))
    }

    /// Carries everything both ways until both are silent.
    fn pump(&mut self, now: Now) {
        loop {
            let mut sink = Sink::default();
            loop {
                match self.node.poll_output() {
                    Output::Timeout(_) => break,
                    Output::Transmit { datagram, .. } => match Message::parse(&datagram) {
                        Ok(Message::Channel { .. }) => self.messages += 1,
                        Ok(_) | Err(_) => {
                            let _ = self.tunnel.handle_datagram(&datagram, now, &mut sink);
                        }
                    },
                    Output::Deliver { packet } => self.delivered.push(packet),
                    Output::Directive(directive) => self.directives.push(directive),
                    Output::Event(_) | Output::Resolve { .. } => {}
                }
            }
            for packet in std::mem::take(&mut sink.packets) {
                match self.assembler.handle_packet(&packet) {
                    Ok(record) => self.records.extend(record),
                    Err(_) => self.packets.push(packet),
                }
            }
            if sink.datagrams.is_empty() {
                return;
            }
            self.feed(sink, now);
        }
    }

    fn feed(&mut self, sink: Sink, now: Now) {
        for datagram in sink.datagrams {
            while !matches!(self.node.poll_output(), Output::Timeout(_)) {}
            self.node.handle_datagram(Self::route(), &datagram, now);
        }
    }

    fn say(&mut self, record: &Record, now: Now) {
        self.next_record += 1;
        for packet in parts::split(record, self.next_record) {
            self.say_packet(&packet, now);
        }
    }

    fn say_packet(&mut self, packet: &[u8], now: Now) {
        let mut sink = Sink::default();
        self.tunnel.seal(packet, now, &mut sink);
        for datagram in sink.datagrams {
            self.node.handle_datagram(Self::route(), &datagram, now);
            self.pump(now);
        }
    }

    fn introduce(&mut self, features: Features, incarnation: u64, now: Now) {
        let introduction = Introduction {
            certificate: self.head.certificate.raw().clone(),
            accepted: true,
            incarnation: Incarnation(incarnation),
            accepted_incarnation: self.node.incarnation(),
            wants_answer: true,
            knowledge: Knowledge::default(),
            suites: Suites::of(true),
            features,
            time: now.wall,
        };
        self.say(&Record::Introduction(Box::new(introduction)), now);
    }

    /// A program on the node sends to the master.
    fn send(&mut self, text: &[u8], now: Now) {
        let packet = udp_packet(&self.a, &self.head, text);
        self.node.handle_packet(&packet, now);
        self.pump(now);
    }

    fn offers(&self) -> usize {
        self.records.iter().filter(|record| matches!(record, Record::Offer(_))).count()
    }

    fn drops(&self, name: &str, now: Now) -> u64 {
        let drops = self.node.status(now).drops;
        drops.iter().find(|(reason, _)| reason == name).map_or(0, |(_, count)| *count)
    }
}

#[test]
fn a_packet_in_the_tunnel_is_dropped_once_both_have_the_channel() {
    simulate(30, |clock| {
        let (mut fake, clock) = Fake::new(clock, 30);
        let now = clock.now();
        fake.introduce(Features::channel(2), 9, now);
        let packet = udp_packet(&fake.head, &fake.a, b"beside the channel");
        fake.say_packet(&packet, now);
        assert_eq!(fake.delivered.len(), 0);
        assert_eq!(fake.drops("packet beside the channel", now), 1);
        // What it said first it cannot take back, not even in a new tunnel.
        fake.introduce(Features::default(), 9, now);
        fake.say_packet(&packet, now);
        assert_eq!((fake.delivered.len(), fake.drops("packet beside the channel", now)), (0, 2));
        // Another start of it may be of another version.
        fake.introduce(Features::default(), 10, now);
        fake.say_packet(&packet, now);
        assert_eq!(fake.delivered.len(), 1);
    });
}

#[test]
fn no_packet_goes_into_the_tunnel_while_keys_are_waited_for() {
    simulate(31, |clock| {
        let (mut fake, clock) = Fake::new(clock, 31);
        fake.introduce(Features::channel(2), 9, clock.now());
        for _ in 0..300 {
            fake.send(b"waits", clock.now());
            clock.advance(MILLISECOND * 100);
            fake.node.handle_timeout(clock.now());
            fake.pump(clock.now());
        }
        assert!(fake.offers() > 10, "{}", fake.offers());
        assert_eq!((fake.packets.len(), fake.messages), (0, 0));
        // 128 wait, the newest; the others have made room.
        assert_eq!(fake.drops("dropped while waiting for a peer", clock.now()), 300 - 128);
    });
}

#[test]
fn what_waits_is_bounded_in_bytes_too() {
    simulate(32, |clock| {
        let (mut fake, clock) = Fake::new(clock, 32);
        fake.introduce(Features::channel(2), 9, clock.now());
        for _ in 0..20 {
            fake.send(&[7; 60_000], clock.now());
        }
        // 512 KiB hold eight packets of 60,028 bytes.
        assert_eq!(fake.drops("dropped while waiting for a peer", clock.now()), 20 - 8);
    });
}

#[test]
fn offers_are_given_up_when_nobody_waits_any_more() {
    simulate(33, |clock| {
        let (mut fake, clock) = Fake::new(clock, 33);
        fake.introduce(Features::channel(2), 9, clock.now());
        fake.send(b"waits", clock.now());
        let run = |fake: &mut Fake, seconds| {
            for _ in 0..seconds * 10 {
                clock.advance(MILLISECOND * 100);
                fake.node.handle_timeout(clock.now());
                fake.pump(clock.now());
            }
        };
        run(&mut fake, 36);
        let offers = fake.offers();
        assert!(offers > 10);
        run(&mut fake, 60);
        assert_eq!(fake.offers(), offers);
    });
}

#[test]
fn traffic_of_nobody_and_messages_of_nobody_change_nothing() {
    simulate(34, |clock| {
        let (mut fake, clock) = Fake::new(clock, 34);
        let now = clock.now();
        let slot = clusternet::node::output::PeerSlot(77);
        let traffic = Traffic { sent_packets: 1, sent_bytes: 1, ..Traffic::default() };
        fake.node.handle_traffic(slot, traffic, now);
        fake.pump(now);
        fake.node.handle_heard(slot, Fake::route(), now);
        fake.pump(now);
        fake.node.handle_confirmed(5, now);
        fake.pump(now);
        fake.node.handle_transit(slot, &[0; 40], now);
        fake.pump(now);
        let mut message = vec![0; 48];
        message[0] = 0x10;
        fake.node.handle_datagram(Fake::route(), &message, now);
        fake.pump(now);
        assert_eq!(fake.delivered.len(), 0);
    });
}
