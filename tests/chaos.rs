//! Random small networks in random trouble: whatever has happened, once it is over every valid node reaches every other
//! within a bound, and nobody reaches a revoked one, nor it anybody.
//!
//! A seed decides everything. `CLUSTERNET_CHAOS=1000..2000` runs those seeds in place of the few of an ordinary test run;
//! `CLUSTERNET_CHAOS=1234` runs one and prints what happened in it.

mod sim;
mod world;

use std::{net::IpAddr, ops::Range, time::Duration};

use clusternet::node::{Update, output::Output};
use sim::{Clock, Condition, Gateway, HostId, Rng, SiteId, net::INTERNET, simulate};
use world::{Identity, World, ip, udp_packet};

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);
const HEAD: &str = "udp://198.51.100.1:51820";

/// Seeds of an ordinary run.
const SEEDS: Range<u64> = 0..16;

/// When everything is well again, all must be back after this: the slowest pace at which masters are called (10 s), an
/// initiation that crossed another (5 s), a contact that was held for alive (15 s).
const RECOVERY: Duration = Duration::from_secs(45);

/// Then each reaches each other within this.
const REACH: Duration = Duration::from_secs(10);

/// Nobody's clock is more wrong than this: certificates allow for five minutes.
const CLOCK_ERROR: i64 = 240_000;

struct Member {
    host: HostId,
    identity: Identity,
    addresses: Vec<IpAddr>,
    stale_cache: Option<Vec<u8>>,
    is_revoked: bool,
}

struct Chaos {
    world: World,
    rng: Rng,
    members: Vec<Member>,
    gateways: Vec<SiteId>,
    news: Option<Update>,
    story: Vec<String>,
}

impl Chaos {
    fn new(clock: Clock, seed: u64) -> Self {
        let (mut world, head) = World::new(clock, seed, HEAD);
        world.has_workers = seed % 2 == 1;
        let rng = Rng::new(seed ^ 0x000c_4a05);
        let addresses = vec![ip("198.51.100.1")];
        let host = world.start(&head, INTERNET, &["198.51.100.1"]);
        let head = Member { host, identity: head, addresses, stale_cache: None, is_revoked: false };
        let mut chaos =
            Self { world, rng, members: vec![head], gateways: vec![], news: None, story: vec![] };
        let others = 2 + chaos.rng.below(5) as usize;
        let mut shared = None;
        for n in 0..others {
            chaos.add(n, &mut shared);
        }
        chaos
    }

    /// One more node: on the internet, behind a firewall, or behind a NAT of its own or shared with others.
    fn add(&mut self, n: usize, shared: &mut Option<SiteId>) {
        let name = format!("n{n}");
        let outside = ip(&format!("192.0.2.{}", 10 + n));
        let private = format!("192.168.{n}.2");
        let (what, site, address) = match self.rng.below(6) {
            0 => ("on the internet", INTERNET, format!("198.51.100.{}", 10 + n)),
            1 => {
                let site = self.world.net.site(INTERNET, Gateway::firewall());
                self.gateways.push(site);
                ("behind a firewall", site, format!("203.0.113.{}", 10 + n))
            }
            2 => {
                let site = self.world.net.site(INTERNET, Gateway::home(&[outside]));
                self.gateways.push(site);
                ("behind a NAT", site, private)
            }
            3 => {
                let site = self.world.net.site(INTERNET, Gateway::symmetric(&[outside]));
                self.gateways.push(site);
                ("behind a symmetric NAT", site, private)
            }
            _ => {
                let net = &mut self.world.net;
                let site =
                    *shared.get_or_insert_with(|| net.site(INTERNET, Gateway::home(&[outside])));
                if !self.gateways.contains(&site) {
                    self.gateways.push(site);
                }
                ("behind the shared NAT", site, format!("192.168.77.{}", 2 + n))
            }
        };
        let identity = self.world.issue(&name, DAY);
        let host = self.world.start(&identity, site, &[&address]);
        self.tell(format!("{name} is {what}"));
        let addresses = vec![ip(&address)];
        self.members.push(Member {
            host,
            identity,
            addresses,
            stale_cache: None,
            is_revoked: false,
        });
    }

    fn tell(&mut self, what: String) {
        self.story.push(format!("{:>9.3} {what}", self.world.net.elapsed().as_secs_f64()));
    }

    fn any(&mut self) -> usize {
        self.rng.below(self.members.len() as u64) as usize
    }

    /// A program somewhere sends something somewhere.
    fn talk(&mut self) {
        let (from, to) = (self.any(), self.any());
        let (from, to) = (&self.members[from], &self.members[to]);
        if self.world.net.peek(from.host).node.is_some() {
            self.world.send(from.host, &from.identity, &to.identity, b"chatter");
        }
    }

    fn trouble(&mut self) {
        let n = self.any();
        let m = self.any();
        let (host, other) = (self.members[n].host, self.members[m].host);
        let (name, other_name) =
            (self.members[n].identity.name.clone(), self.members[m].identity.name.clone());
        match self.rng.below(14) {
            0 => {
                self.tell(format!("{name} and {other_name} are parted"));
                self.world.net.cut(host, other);
            }
            1 => {
                self.tell(format!("{name} is not heard by {other_name}"));
                self.world.net.cut_one_way(host, other);
            }
            2 => {
                self.tell(format!("{name} and {other_name} are joined again"));
                self.world.net.heal(host, other);
            }
            3 => {
                self.tell(format!("{name} falls asleep"));
                self.world.net.set_up(host, false);
            }
            4 | 5 => {
                self.tell(format!("{name} is up"));
                self.world.net.set_up(host, true);
            }
            6 | 7 => self.restart(n),
            8 => {
                let condition = Condition {
                    latency: Duration::from_millis(self.rng.below(100)),
                    jitter: Duration::from_millis(self.rng.below(100)),
                    loss: self.rng.below(40) as f64 / 100.0,
                    duplicate: self.rng.below(20) as f64 / 100.0,
                };
                self.tell(format!("{name}: {condition:?}"));
                self.world.net.set_condition(host, condition);
            }
            9 => {
                let error = self.rng.below(2 * CLOCK_ERROR as u64) as i64 - CLOCK_ERROR;
                self.tell(format!("the clock of {name} is {error} ms ahead"));
                self.world.net.set_wall_error(host, error);
            }
            10 if !self.gateways.is_empty() => {
                let place = self.rng.below(self.gateways.len() as u64) as usize;
                self.tell(format!("gateway {place} reboots"));
                self.world.net.gateway(self.gateways[place]).reboot();
            }
            11 => self.revoke(n),
            12 => {
                self.tell(format!("{name} leaves and joins"));
                self.update(host, |node, now| node.handle_leave(now));
                self.world.net.run_for(Duration::from_millis(self.rng.below(200)));
                self.restart(n);
            }
            _ => {
                let now = self.world.net.with(host, |m, now| m.node.as_mut().map(|n| n.cache(now)));
                self.members[n].stale_cache = now;
            }
        }
    }

    /// Killed and started again, with its cache, an older one, or none.
    fn restart(&mut self, n: usize) {
        let member = &self.members[n];
        let host = member.host;
        let newest =
            self.world.net.with(host, |m, now| m.node.as_mut().map(|node| node.cache(now)));
        let (what, cache) = match self.rng.below(3) {
            0 => ("its cache", newest),
            1 => ("an old cache", member.stale_cache.clone()),
            _ => ("no cache", None),
        };
        let name = member.identity.name.clone();
        self.tell(format!("{name} restarts with {what}"));
        // What it reads of its clock when it starts is as wrong as later on.
        let now = self.world.net.with(host, |_, now| now);
        let member = &self.members[n];
        let machine = self.world.machine(&member.identity, &member.addresses, cache, now);
        self.world.net.replace(host, machine);
    }

    fn update(
        &mut self,
        host: HostId,
        act: impl FnOnce(&mut clusternet::node::Node, clusternet::words::time::Now),
    ) {
        self.world.net.with(host, |machine, now| {
            let Some(node) = &mut machine.node else { return };
            while !matches!(node.poll_output(), Output::Timeout(_)) {}
            act(node, now);
        });
    }

    /// Not the master, and two members stay.
    fn revoke(&mut self, n: usize) {
        let valid = self.members.iter().filter(|member| !member.is_revoked).count();
        if n == 0 || valid <= 3 || self.members[n].is_revoked {
            return;
        }
        self.members[n].is_revoked = true;
        let identity = self.members[n].identity.clone();
        let update = self.world.revoke(&identity);
        self.tell(format!("{} is revoked", identity.name));
        self.news = Some(update.clone());
        // Somebody is told now; it may be told the news that it is revoked itself.
        let first = self.any();
        let host = self.members[first].host;
        self.update(host, |node, now| {
            node.handle_update(&update, now).expect("verifies");
        });
    }

    /// Everything is well again.
    fn heal(&mut self) {
        self.tell("all is well".to_owned());
        self.world.net.heal_all();
        self.world.net.set_conditions(Condition::default());
        for n in 0..self.members.len() {
            let host = self.members[n].host;
            self.world.net.set_up(host, true);
            self.world.net.set_wall_error(host, 0);
        }
        // The admin gives the news to one node that is valid.
        if let Some(update) = self.news.clone() {
            let valid: Vec<HostId> =
                self.members.iter().filter(|m| !m.is_revoked).map(|m| m.host).collect();
            let host = valid[self.rng.below(valid.len() as u64) as usize];
            self.update(host, |node, now| {
                node.handle_update(&update, now).expect("verifies");
            });
        }
    }

    fn check(&mut self) {
        let revoked = self.members.iter().filter(|member| member.is_revoked).count() as u64;
        for n in 0..self.members.len() {
            let Member { host, ref identity, is_revoked, .. } = self.members[n];
            if is_revoked {
                continue;
            }
            let machine = self.world.net.peek(host);
            assert_eq!(machine.ended(), None, "{} goes on", identity.name);
            let status = machine.status(self.world.net.now());
            assert_eq!(status.revocations, revoked, "{} knows of revocations", identity.name);
        }
        for from in 0..self.members.len() {
            for to in 0..self.members.len() {
                if from != to {
                    self.check_pair(from, to);
                }
            }
        }
    }

    fn check_pair(&mut self, from: usize, to: usize) {
        let (from, to) = (&self.members[from], &self.members[to]);
        let may = !from.is_revoked && !to.is_revoked;
        if may {
            let took =
                self.world.reach((from.host, &from.identity), (to.host, &to.identity), REACH);
            assert!(took.is_some(), "{} reaches {}", from.identity.name, to.identity.name);
            return;
        }
        let text = format!("forbidden {} {}", from.identity.name, to.identity.name);
        let packet = udp_packet(&from.identity, &to.identity, text.as_bytes());
        self.world.net.with(from.host, |machine, now| {
            if let Some(node) = &mut machine.node {
                while !matches!(node.poll_output(), Output::Timeout(_)) {}
                node.handle_packet(&packet, now);
            }
        });
        self.world.net.run_for(SECOND * 2);
        assert!(!World::got(&self.world.net, to.host, text.as_bytes()), "{text}");
    }
}

fn run(seed: u64, is_told: bool) {
    simulate(seed, |clock| {
        let mut chaos = Chaos::new(clock, seed);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            chaos.world.net.run_for(SECOND * chaos.rng.below(10) as u32);
            for _ in 0..8 + chaos.rng.below(12) {
                chaos.trouble();
                for _ in 0..chaos.rng.below(6) {
                    chaos.talk();
                    let longest = [200, 2_000, 20_000, 70_000][chaos.rng.below(4) as usize];
                    let pause = Duration::from_millis(chaos.rng.below(longest));
                    chaos.world.net.run_for(pause);
                }
            }
            chaos.heal();
            chaos.world.net.run_for(RECOVERY);
            chaos.check();
        }));
        if is_told || result.is_err() {
            eprintln!("seed {seed}:\n{}", chaos.story.join("\n"));
        }
        if let Err(panic) = result {
            if is_told {
                let log = chaos.world.net.log_text();
                eprintln!("{log}");
            }
            std::panic::resume_unwind(panic);
        }
    });
}

/// The seeds to run, and whether to tell of each.
fn seeds() -> (Range<u64>, bool) {
    let Ok(text) = std::env::var("CLUSTERNET_CHAOS") else { return (SEEDS, false) };
    let number = |text: &str| text.trim().parse::<u64>().expect("a seed, or FIRST..END");
    match text.split_once("..") {
        Some((first, end)) => (number(first)..number(end), false),
        None => (number(&text)..number(&text) + 1, true),
    }
}

#[test]
fn after_any_trouble_all_members_meet_again_and_no_revoked_one_does() {
    let (seeds, is_told) = seeds();
    let mut failed = Vec::new();
    std::thread::scope(|scope| {
        let halves = [0, 1].map(|half| {
            let seeds = seeds.clone();
            scope.spawn(move || {
                let own = seeds.filter(|seed| seed % 2 == half);
                own.filter(|seed| std::panic::catch_unwind(|| run(*seed, is_told)).is_err())
                    .collect::<Vec<u64>>()
            })
        });
        for half in halves {
            failed.extend(half.join().expect("catches what is thrown"));
        }
    });
    assert!(failed.is_empty(), "seeds {failed:?} failed: run each with CLUSTERNET_CHAOS=SEED");
}
