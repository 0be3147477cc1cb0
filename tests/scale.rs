//! Thousands of members: what each costs that is only known, and that an event costs the same however many there are.
//!
//! The allocator of this binary counts the bytes that are held.

mod sim;
mod world;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    time::Duration,
};

use clusternet::{
    node::{Node, Update, output::Output},
    path::route::Route,
    wire::record::Entry,
    words::{announcement::Announcement, id::Incarnation, signed::Signed, time::Now},
};
use nix::time::{ClockId, clock_gettime};
use sim::{Clock, simulate};
use world::{Identity, Machine, World, udp_packet};

const DAY: Duration = Duration::from_secs(86_400);
const HEAD: &str = "udp://198.51.100.1:51820";

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
}

struct Counting;

fn count(bytes: isize) {
    // While a thread ends there is nothing to count.
    let _ = HELD.try_with(|held| held.set(held.get() + bytes));
}

// SAFETY: hands everything on to the system's allocator; the counter is a plain thread-local cell without destructors.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the system allocator's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as above; it came from there.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A node of a network with so many others, all of which have announced themselves.
struct Large {
    world: World,
    machine: Machine,
    own: Identity,
    others: Vec<Identity>,
    now: Now,
}

impl Large {
    fn new(clock: Clock, seed: u64, others: usize) -> Self {
        let (mut world, _) = World::new(clock, seed, HEAD);
        let own = world.issue("own", DAY);
        let now = world.net.now();
        let others: Vec<Identity> =
            (0..others).map(|n| world.issue(&format!("node-{n}"), DAY)).collect();
        let machine = world.machine(&own, &[world::ip("198.51.100.2")], None, now);
        Self { world, machine, own, others, now }
    }

    /// What spreads about all others, as it is received.
    fn entries(&self) -> Vec<Entry> {
        let mut entries = Vec::new();
        for (n, other) in self.others.iter().enumerate() {
            entries.push(Entry::Certificate(other.certificate.raw().clone()));
            let announcement = Announcement {
                serial: other.certificate.serial,
                sequence: self.now.wall.0,
                incarnation: Incarnation(1),
                candidates: (0..4)
                    .map(|port| ([198, 18, (n >> 8) as u8, n as u8], 1000 + port).into())
                    .collect(),
                relays: vec![other.certificate.serial],
                features: 0,
                head: 0,
                leaving: false,
            };
            let signed = Signed::sign(announcement, &self.world.id, other.host_secret());
            entries.push(Entry::Announcement(signed.raw().clone()));
        }
        entries
    }

    fn take(&mut self, entries: &[Entry]) {
        let now = self.now;
        let update = Update { entries: entries.to_vec() };
        self.drain();
        self.machine.node.as_mut().expect("it runs").handle_update(&update, now).expect("signed");
        self.drain();
    }

    /// Tells the data plane what the node says; nothing else is done.
    fn drain(&mut self) {
        let node = self.machine.node.as_mut().expect("it runs");
        loop {
            match node.poll_output() {
                Output::Timeout(_) => break,
                Output::Directive(directive) => self.machine.table.apply(&directive),
                Output::Transmit { .. }
                | Output::Deliver { .. }
                | Output::Event(_)
                | Output::Resolve { .. } => {}
            }
        }
        self.machine.table.publish();
    }

    /// Makes contact with the first so many others, who never answer.
    fn call(&mut self, count: usize) {
        for n in 0..count {
            let packet = udp_packet(&self.own, &self.others[n], b"are you there?");
            let now = self.now;
            self.machine.node.as_mut().expect("it runs").handle_packet(&packet, now);
            self.drain();
        }
    }

    /// What an event costs with everything it leads to: CPU time in nanoseconds, the least of many.
    fn cost(&mut self, event: impl Fn(&mut Node, Now)) -> u64 {
        const BATCH: u32 = 100;
        let now = self.now;
        let mut least = u64::MAX;
        for _ in 0..20 {
            let before = cpu_time();
            for _ in 0..BATCH {
                event(self.machine.node.as_mut().expect("it runs"), now);
                self.drain();
            }
            least = least.min((cpu_time() - before).as_nanos() as u64 / u64::from(BATCH));
        }
        least
    }
}

/// What this thread has used of the processor, whatever else runs on it and whatever time it believes to be.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("Linux has it").into()
}

#[test]
fn a_member_that_is_only_known_costs_less_than_two_kilobytes() {
    simulate(1, |clock| {
        let mut large = Large::new(clock, 1, 2_000);
        let entries = large.entries();
        let (first, rest) = entries.split_at(200);
        // What comes with the first ones is not counted.
        large.take(first);
        let known = rest.len() / 2;
        let before = HELD.get();
        large.take(rest);
        let each = (HELD.get() - before) / known as isize;
        eprintln!("{each} bytes each");
        assert!(each < 2048, "{each} bytes for each of {known} members");
    });
}

#[test]
fn an_event_costs_the_same_with_two_contacts_and_with_two_thousand() {
    let cost = |others: usize| {
        simulate(2, |clock| {
            let mut large = Large::new(clock, 2, others);
            let entries = large.entries();
            large.take(&entries);
            large.call(others);
            let packet = udp_packet(&large.own, &large.others[0], b"one more");
            let origin = Route::direct("203.0.113.1:9".parse().expect("an endpoint"));
            let unknown = [[4, 0, 0, 0].as_slice(), &[9; 60]].concat();
            [
                large.cost(|node, now| node.handle_packet(&packet, now)),
                large.cost(|node, now| node.handle_datagram(origin, &unknown, now)),
                large.cost(|node, now| node.handle_timeout(now)),
            ]
        })
    };
    let (few, many) = (cost(2), cost(2_000));
    eprintln!("{few:?} and {many:?} ns");
    for (few, many) in few.into_iter().zip(many) {
        // Looking at each of them would take a thousand times as long; caches and deeper trees may take their share.
        assert!(many <= few * 5 + 2_000, "{few} ns became {many}");
    }
}
