//! The control plane of whole networks on a virtual clock: joins, relays, direct paths, loss, partitions, restarts,
//! revocation, expiry, clock jumps.

mod sim;
mod world;

use std::time::Duration;

use sim::{Clock, Condition, Gateway, HostId, net::INTERNET, simulate};
use world::{Identity, World};

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);
const HEAD: &str = "udp://198.51.100.1:51820";

struct Campus {
    world: World,
    head: (HostId, Identity),
    a: (HostId, Identity),
    b: (HostId, Identity),
    c: (HostId, Identity),
}

/// `head` can be met by anyone; `a` drops everything inbound; `b` and `c` share a NAT and drop everything inbound.
fn campus(clock: Clock, seed: u64) -> Campus {
    let (mut world, head_id) = World::new(clock, seed, HEAD);
    let head = world.start(&head_id, INTERNET, &["198.51.100.1"]);
    let a_id = world.issue("a", DAY);
    let site_a = world.net.site(INTERNET, Gateway::firewall());
    let a = world.start(&a_id, site_a, &["203.0.113.10"]);
    let nat = world.net.site(INTERNET, Gateway::home(&[world::ip("192.0.2.7")]));
    let (b_id, c_id) = (world.issue("b", DAY), world.issue("c", DAY));
    let site_b = world.net.site(nat, Gateway::firewall());
    let site_c = world.net.site(nat, Gateway::firewall());
    let b = world.start(&b_id, site_b, &["192.168.1.2"]);
    let c = world.start(&c_id, site_c, &["192.168.1.3"]);
    Campus { world, head: (head, head_id), a: (a, a_id), b: (b, b_id), c: (c, c_id) }
}

impl Campus {
    fn members(&self) -> [&(HostId, Identity); 4] {
        [&self.head, &self.a, &self.b, &self.c]
    }

    fn join(&mut self) {
        let hosts = [self.a.0, self.b.0, self.c.0];
        let joined = self
            .world
            .net
            .run_until(SECOND * 5, |net| hosts.iter().all(|host| World::is_accepted(net, *host)));
        assert!(joined, "everybody is accepted\n{}", self.world.net.log_text());
    }

    /// Every node reaches every other.
    fn all_reach_all(&mut self, limit: Duration) {
        for from in 0..4 {
            for to in 0..4 {
                if from != to {
                    let (from, to) = (self.members()[from].clone(), self.members()[to].clone());
                    let took = self.world.reach((from.0, &from.1), (to.0, &to.1), limit);
                    assert!(took.is_some(), "{} reaches {}", from.1.name, to.1.name);
                }
            }
        }
    }

    fn reach(&mut self, from: &(HostId, Identity), to: &(HostId, Identity)) -> Option<Duration> {
        self.world.reach((from.0, &from.1), (to.0, &to.1), SECOND * 20)
    }
}

#[test]
fn nodes_behind_firewalls_join_and_all_reach_all() {
    simulate(1, |clock| {
        let mut campus = campus(clock, 1);
        campus.join();
        campus.all_reach_all(SECOND * 5);
    });
}

#[test]
fn two_firewalled_nodes_talk_within_half_a_second_of_the_first_packet() {
    simulate(2, |clock| {
        let mut campus = campus(clock, 2);
        campus.join();
        campus.world.net.run_for(SECOND);
        let (a, b) = (campus.a.clone(), campus.b.clone());
        let took = campus.reach(&a, &b).expect("reached");
        assert!(took < SECOND / 2, "{took:?}");
    });
}

#[test]
fn everybody_knows_everybodys_name() {
    simulate(3, |clock| {
        let mut campus = campus(clock, 3);
        campus.join();
        campus.world.net.run_for(SECOND * 2);
        for (host, _) in campus.members() {
            let node = campus.world.net.peek(*host).node.as_ref().unwrap();
            let names: Vec<String> = node.neighbours().iter().map(|n| n.name.to_string()).collect();
            assert_eq!(names, ["a", "b", "c", "head"]);
        }
    });
}

#[test]
fn a_cut_between_two_nodes_is_bridged_by_the_master() {
    simulate(4, |clock| {
        let mut campus = campus(clock, 4);
        let (a, b) = (campus.a.clone(), campus.b.clone());
        campus.world.net.cut(a.0, b.0);
        campus.join();
        campus.reach(&a, &b).expect("reached");
        campus.reach(&b, &a).expect("reached");
        campus.world.net.run_for(SECOND * 10);
        assert_eq!(campus.world.path(a.0, &b.1).as_deref(), Some("relayed via head"));
    });
}

#[test]
fn a_direct_path_takes_over_from_the_relay_without_loss() {
    simulate(5, |clock| {
        let mut campus = campus(clock, 5);
        let (a, b) = (campus.a.clone(), campus.b.clone());
        campus.world.net.cut(a.0, b.0);
        campus.join();
        campus.reach(&a, &b).expect("reached");
        assert_eq!(campus.world.path(a.0, &b.1).as_deref(), Some("relayed via head"));
        campus.world.net.heal_all();
        let mut texts = Vec::new();
        for n in 0..600 {
            let text = format!("packet {n}.");
            campus.world.send(a.0, &a.1, &b.1, text.as_bytes());
            campus.world.net.run_for(Duration::from_millis(100));
            texts.push(text);
        }
        campus.world.net.run_for(SECOND);
        let path = campus.world.path(a.0, &b.1).unwrap();
        assert!(path.starts_with("direct"), "{path}");
        for text in texts {
            assert!(World::got(&campus.world.net, b.0, text.as_bytes()), "{text}");
        }
    });
}

#[test]
fn neighbours_behind_one_nat_find_each_others_lan_address() {
    simulate(6, |clock| {
        let mut campus = campus(clock, 6);
        campus.join();
        campus.world.net.run_for(SECOND * 2);
        let (b, c) = (campus.b.clone(), campus.c.clone());
        campus.reach(&b, &c).expect("reached");
        for _ in 0..20 {
            campus.reach(&b, &c).expect("reached");
            campus.world.net.run_for(SECOND / 2);
        }
        let path = campus.world.path(b.0, &c.1).unwrap();
        assert_eq!(path, "direct udp 192.168.1.3:51820");
    });
}

#[test]
fn heavy_loss_and_reordering_delay_but_do_not_prevent_a_join() {
    for seed in 10..16 {
        simulate(seed, |clock| {
            let mut campus = campus(clock, seed);
            campus.world.net.set_conditions(Condition {
                latency: Duration::from_millis(20),
                jitter: Duration::from_millis(60),
                loss: 0.1,
                duplicate: 0.05,
            });
            let hosts = [campus.a.0, campus.b.0, campus.c.0];
            let joined = campus.world.net.run_until(SECOND * 60, |net| {
                hosts.iter().all(|host| World::is_accepted(net, *host))
            });
            assert!(joined, "seed {seed}");
            campus.all_reach_all(SECOND * 30);
        });
    }
}

#[test]
fn a_dead_master_does_not_disturb_nodes_that_talk_directly() {
    simulate(20, |clock| {
        let mut campus = campus(clock, 20);
        campus.join();
        let (b, c) = (campus.b.clone(), campus.c.clone());
        for _ in 0..20 {
            campus.reach(&b, &c).expect("reached");
            campus.world.net.run_for(SECOND / 2);
        }
        campus.world.net.set_up(campus.head.0, false);
        for n in 0..600 {
            let took = campus.reach(&b, &c).expect("reached");
            assert!(took < SECOND / 5, "packet {n} took {took:?}");
            campus.world.net.run_for(SECOND / 2);
        }
    });
}

#[test]
fn a_restarted_master_relays_again_within_seconds() {
    for with_cache in [true, false] {
        simulate(21, |clock| {
            let mut campus = campus(clock, 21);
            let (a, b, head) = (campus.a.clone(), campus.b.clone(), campus.head.clone());
            campus.world.net.cut(a.0, b.0);
            campus.join();
            campus.reach(&a, &b).expect("reached");
            campus.world.restart(head.0, &head.1, with_cache);
            let took = campus.reach(&a, &b).expect("reached again");
            let limit = if with_cache { SECOND * 3 } else { SECOND * 20 };
            assert!(took < limit, "cache {with_cache}: {took:?}");
        });
    }
}

#[test]
fn a_restarted_node_is_back_within_a_second() {
    simulate(22, |clock| {
        let mut campus = campus(clock, 22);
        let (a, b) = (campus.a.clone(), campus.b.clone());
        campus.world.net.cut(a.0, b.0);
        campus.join();
        campus.reach(&a, &b).expect("reached");
        campus.world.net.run_for(SECOND * 10);
        campus.world.restart(b.0, &b.1, true);
        let took = campus.reach(&a, &b).expect("reached again");
        assert!(took < SECOND * 2, "{took:?}");
    });
}

#[test]
fn a_partition_heals() {
    simulate(23, |clock| {
        let mut campus = campus(clock, 23);
        campus.join();
        campus.all_reach_all(SECOND * 5);
        let hosts = [campus.head.0, campus.a.0, campus.b.0, campus.c.0];
        campus.world.net.partition(&hosts[..2], &hosts[2..]);
        campus.world.net.run_for(SECOND * 300);
        campus.world.net.heal_all();
        campus.world.net.run_for(SECOND * 15);
        campus.all_reach_all(SECOND * 5);
    });
}

#[test]
fn a_revocation_given_to_any_node_ends_the_member_everywhere_within_seconds() {
    simulate(24, |clock| {
        let mut campus = campus(clock, 24);
        campus.join();
        campus.all_reach_all(SECOND * 5);
        let (a, b, c) = (campus.a.clone(), campus.b.clone(), campus.c.clone());
        let update = campus.world.revoke(&b.1);
        campus.world.net.with(c.0, |machine, now| {
            let node = machine.node.as_mut().unwrap();
            while !matches!(node.poll_output(), clusternet::node::output::Output::Timeout(_)) {}
            let updated = node.handle_update(&update, now).unwrap();
            assert_eq!(updated.taken, "revocations up to 1");
        });
        campus.world.net.run_for(SECOND * 3);
        for host in [campus.head.0, a.0, c.0] {
            let status = campus.world.net.peek(host).status(campus.world.net.now());
            assert_eq!(status.revocations, 1);
            let states = status.peers.iter().filter(|peer| peer.name.as_str() == "b");
            assert_eq!(states.map(|peer| peer.state.as_str()).collect::<Vec<_>>(), ["revoked"]);
        }
        assert_eq!(
            campus.world.net.peek(b.0).ended().as_deref(),
            Some("the certificate has been revoked"),
            "the node itself stops"
        );
        let now = campus.world.net.now();
        let (could, have) = campus.world.net.peek(c.0).node.as_ref().unwrap().confirmations(now);
        assert_eq!((could, have), (2, 2));
    });
}

#[test]
fn a_revoked_node_that_does_not_stop_reaches_nobody() {
    simulate(25, |clock| {
        let mut campus = campus(clock, 25);
        campus.join();
        campus.all_reach_all(SECOND * 5);
        let (a, b, head) = (campus.a.clone(), campus.b.clone(), campus.head.clone());
        let update = campus.world.revoke(&b.1);
        for host in [head.0, a.0, campus.c.0] {
            campus.world.net.cut_one_way(host, b.0);
        }
        campus.world.net.with(head.0, |machine, now| {
            let node = machine.node.as_mut().unwrap();
            while !matches!(node.poll_output(), clusternet::node::output::Output::Timeout(_)) {}
            node.handle_update(&update, now).unwrap();
        });
        campus.world.net.run_for(SECOND * 3);
        // It has heard nothing and goes on sending under its old keys.
        assert_eq!(campus.world.net.peek(b.0).ended(), None);
        for to in [&head, &a] {
            campus.world.send(b.0, &b.1, &to.1, b"from the revoked");
            campus.world.net.run_for(SECOND);
            assert!(!World::got(&campus.world.net, to.0, b"from the revoked"));
        }
        campus.world.net.heal_all();
        campus.world.restart(b.0, &b.1, false);
        campus.world.net.run_for(SECOND * 30);
        assert!(!World::is_accepted(&campus.world.net, b.0));
        assert!(campus.world.net.peek(b.0).ended().is_some(), "it was shown the revocation");
    });
}

#[test]
fn an_expired_node_leaves_on_time_and_is_gone_everywhere() {
    simulate(26, |clock| {
        let mut campus = campus(clock, 26);
        campus.join();
        let guest = campus.world.issue("guest", SECOND * 60);
        let host = campus.world.start(&guest, INTERNET, &["198.51.100.9"]);
        let joined = campus.world.net.run_until(SECOND * 5, |net| World::is_accepted(net, host));
        assert!(joined);
        let head = campus.head.clone();
        assert!(campus.world.reach((head.0, &head.1), (host, &guest), SECOND * 5).is_some());
        campus.world.net.run_for(SECOND * 60);
        assert_eq!(
            campus.world.net.peek(host).ended().as_deref(),
            Some("the certificate has expired")
        );
        let status = campus.world.net.peek(head.0).status(campus.world.net.now());
        let peer = status.peers.iter().find(|peer| peer.name.as_str() == "guest");
        assert!(peer.is_none_or(|peer| peer.state == "left"), "{peer:?}");
    });
}

#[test]
fn an_expired_node_that_does_not_leave_is_cut_off_when_the_skew_is_over() {
    simulate(27, |clock| {
        let mut campus = campus(clock, 27);
        campus.join();
        let guest = campus.world.issue("guest", SECOND * 60);
        let host = campus.world.start(&guest, INTERNET, &["198.51.100.9"]);
        assert!(campus.world.net.run_until(SECOND * 5, |net| World::is_accepted(net, host)));
        // Its clock stands an hour behind: it does not notice.
        campus.world.net.set_wall_error(host, -3_600_000);
        campus.world.net.run_for(SECOND * (60 + 300 + 10));
        assert_eq!(campus.world.net.peek(host).ended(), None);
        let head = campus.head.clone();
        campus.world.send(host, &guest, &head.1, b"from the expired");
        campus.world.net.run_for(SECOND * 5);
        assert!(!World::got(&campus.world.net, head.0, b"from the expired"));
    });
}

#[test]
fn a_renewed_certificate_given_to_the_node_keeps_it_in() {
    simulate(28, |clock| {
        let mut campus = campus(clock, 28);
        campus.join();
        let guest = campus.world.issue("guest", SECOND * 60);
        let host = campus.world.start(&guest, INTERNET, &["198.51.100.9"]);
        assert!(campus.world.net.run_until(SECOND * 5, |net| World::is_accepted(net, host)));
        let renewed = campus.world.renew(&guest, DAY);
        let entry = clusternet::wire::record::Entry::Certificate(renewed.certificate.raw().clone());
        let update = clusternet::node::Update { entries: vec![entry] };
        campus.world.net.with(host, |machine, now| {
            let node = machine.node.as_mut().unwrap();
            while !matches!(node.poll_output(), clusternet::node::output::Output::Timeout(_)) {}
            node.handle_update(&update, now).unwrap();
        });
        campus.world.net.run_for(SECOND * 400);
        assert_eq!(campus.world.net.peek(host).ended(), None);
        let head = campus.head.clone();
        assert!(campus.world.reach((head.0, &head.1), (host, &renewed), SECOND * 5).is_some());
    });
}

#[test]
fn of_two_machines_with_one_key_the_later_join_wins() {
    simulate(29, |clock| {
        let mut campus = campus(clock, 29);
        campus.join();
        let (a, head) = (campus.a.clone(), campus.head.clone());
        campus.reach(&head, &a).expect("reached");
        campus.world.net.run_for(SECOND * 10);
        let second = campus.world.start(&a.1, INTERNET, &["198.51.100.77"]);
        campus.world.net.run_for(SECOND * 60);
        assert_eq!(
            campus.world.net.peek(a.0).ended().as_deref(),
            Some("the same key has joined from another machine since")
        );
        assert_eq!(campus.world.net.peek(second).ended(), None);
        let now = (second, a.1.clone());
        campus.reach(&head, &now).expect("the later one is reached");
    });
}

#[test]
fn a_node_that_has_lost_its_cache_and_whose_clock_was_set_back_is_let_in_again() {
    simulate(42, |clock| {
        let mut campus = campus(clock, 42);
        campus.join();
        let (a, head) = (campus.a.clone(), campus.head.clone());
        campus.world.net.run_for(SECOND * 10);
        // By its clock it starts before it did the last time.
        campus.world.net.set_wall_error(a.0, -120_000);
        let now = campus.world.net.with(a.0, |_, now| now);
        let machine = campus.world.machine(&a.1, &[world::ip("203.0.113.10")], None, now);
        campus.world.net.replace(a.0, machine);
        campus.world.net.run_for(SECOND * 20);
        assert_eq!(campus.world.net.peek(a.0).ended(), None);
        campus.reach(&head, &a).expect("reached");
    });
}

#[test]
fn the_older_of_two_machines_ends_quietly_and_leaves_the_tunnels_of_the_later_alone() {
    simulate(43, |clock| {
        let mut campus = campus(clock, 43);
        campus.join();
        let (a, head) = (campus.a.clone(), campus.head.clone());
        campus.reach(&head, &a).expect("reached");
        campus.world.net.run_for(SECOND * 10);
        // The older hears of the later only when it has been in use for a while.
        campus.world.net.cut(a.0, head.0);
        let second = campus.world.start(&a.1, INTERNET, &["198.51.100.77"]);
        campus.world.net.run_for(SECOND * 100);
        campus.world.net.heal_all();
        let later = (second, a.1.clone());
        for _ in 0..60 {
            let took = campus.reach(&head, &later).expect("reached");
            // The older one's handshake takes the newest keys with it, until it is refused.
            assert!(took < SECOND * 5, "{took:?}");
            campus.world.net.run_for(SECOND / 2);
        }
        assert!(campus.world.net.peek(a.0).ended().is_some());
        assert_eq!(campus.world.net.peek(second).ended(), None);
    });
}

#[test]
fn a_clock_that_jumps_does_not_end_talk() {
    simulate(30, |clock| {
        let mut campus = campus(clock, 30);
        campus.join();
        campus.all_reach_all(SECOND * 5);
        let a = campus.a.clone();
        for error in [3_600_000, -3_600_000, 0] {
            campus.world.net.set_wall_error(a.0, error);
            campus.world.net.run_for(SECOND * 200);
            campus.all_reach_all(SECOND * 30);
        }
    });
}

#[test]
fn a_ping_waits_for_the_tunnel_and_is_answered() {
    use clusternet::node::output::{Event, Output};
    simulate(41, |clock| {
        let mut campus = campus(clock, 41);
        campus.join();
        campus.world.net.run_for(SECOND);
        let address = campus.b.1.certificate.ipv4.into();
        campus.world.net.with(campus.a.0, |machine, now| {
            let node = machine.node.as_mut().unwrap();
            while !matches!(node.poll_output(), Output::Timeout(_)) {}
            assert!(node.handle_echo(address, now).is_some());
        });
        let is_answered = |net: &sim::Net<world::Machine>| {
            let events = &net.peek(campus.a.0).events;
            events.iter().any(|event| matches!(event, Event::EchoReply { .. }))
        };
        assert!(campus.world.net.run_until(SECOND, is_answered));
    });
}

#[test]
fn the_same_seed_is_the_same_run() {
    let run = || {
        simulate(40, |clock| {
            let mut campus = campus(clock, 40);
            campus.join();
            campus.all_reach_all(SECOND * 5);
            campus.world.net.log_text()
        })
    };
    assert_eq!(run(), run());
}
