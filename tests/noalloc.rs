//! The data plane's batch functions allocate nothing per packet: counted by an allocator of this test's own.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use clusternet::{
    dataplane::{
        coalesce::Coalescer,
        drops::{Counters, DropReason},
        inbound::{self, Inbound, Sink, Takes},
        outbound::{self, Batch},
        punt::{self, Punt},
        segment::segment,
        table::Builder,
    },
    node::output::{Directive, PeerSlot},
    path::route::{Egress, Route},
    wire::{
        message::Mac1Key,
        relay::{RelayIndex, wrap},
        superpacket::{Kind, VirtioHeader, rebuild_parts},
    },
    words::key::TransportSecret,
};

mod ends;
mod packets;

use packets::{Recipe, payload};

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: hands everything on to the system's allocator; the counter is a plain thread-local cell without destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps the system allocator's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above; it came from there.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(work: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

fn pair(n: u8) -> [IpAddr; 2] {
    [[10, 99, 0, n].into(), [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(n)].into()]
}

/// Counts what comes and keeps nothing.
#[derive(Default)]
struct Count {
    forwarded: usize,
    delivered: usize,
    bytes: usize,
}

impl Sink for Count {
    fn forward(&mut self, _: Egress, _: &[u8], _: usize) {
        self.forwarded += 1;
    }
    fn deliver<'a>(&mut self, _: VirtioHeader, packet: impl Iterator<Item = &'a [u8]>) {
        self.delivered += 1;
        self.bytes += packet.map(<[u8]>::len).sum::<usize>();
    }
}

fn data(tunnel: u32, size: usize) -> Vec<u8> {
    let mut datagram = vec![4, 0, 0, 0];
    datagram.extend((tunnel << 8).to_le_bytes());
    datagram.resize(32 + size, 0);
    datagram
}

fn packet(to: u8, size: u16) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 99, 0, 1, 10, 99, 0, to];
    packet[2..4].copy_from_slice(&size.to_be_bytes());
    packet.resize(size.into(), 0);
    packet
}

#[test]
fn mixed_batches_allocate_nothing_once_the_pool_is_warm() {
    let mut table = Builder::new(pair(1));
    table.apply(&Directive::InstallPeer { slot: PeerSlot(0), addresses: pair(2) });
    table.apply(&Directive::InstallTunnel { index: 5 });
    let endpoint = |n: u8| SocketAddr::from(([192, 0, 2, n], 5));
    let [alice, bob] = [1, 2].map(|n| Route::direct(endpoint(n)));
    let (ours, others) = (RelayIndex(7), RelayIndex(8));
    let to = Route { relay: Some(others), ..bob };
    table.apply(&Directive::InstallRelay { index: ours, from: alice, to });
    table.apply(&Directive::InstallRelay {
        index: others,
        from: bob,
        to: Route { relay: Some(ours), ..alice },
    });
    table.publish();
    let reader = table.reader();

    let counters = Arc::<Counters>::default();
    let (mut sender, mut receiver) = punt::queue(Arc::clone(&counters), || ());
    let mac1 = Mac1Key::of(&TransportSecret::generate().public());
    // Data for us, straight and relayed; for others; a handshake for somebody else; junk.
    let mut initiation = vec![0; 148];
    initiation[0] = 1;
    let datagrams = [
        data(5, 1400),
        wrap(RelayIndex(99), &data(5, 1400)),
        wrap(ours, &data(1, 1400)),
        initiation,
        data(6, 100),
        vec![9; 20],
    ];
    let packets = [packet(2, 1400), packet(9, 1400), packet(2, 40), vec![7; 30]];
    let (mut inbound, mut batch) = (Inbound::new(Takes::ALL), Batch::default());
    let now = clusternet::sys::clock::now().instant;

    let mut round = || {
        let loaded = reader.load();
        let context = inbound::Context { table: &loaded, mac1: &mac1, now, counters: &counters };
        let mut sink = Count::default();
        for datagram in &datagrams {
            let room = inbound.room().expect("few and small");
            room[..datagram.len()].copy_from_slice(datagram);
            let size = (datagram.len(), datagram.len());
            inbound.take(&context, alice.egress, size, &mut sender, &mut sink);
        }
        inbound.finish(&context, &mut sender, &mut sink);
        assert_eq!(sink.forwarded, 1);
        let mut answered = 0;
        let context = outbound::Context { table: &loaded, stripe: 0, now, counters: &counters };
        for packet in &packets {
            let (room, spread) = batch.room();
            room[spread.front..spread.front + packet.len()].copy_from_slice(packet);
            let header = VirtioHeader::default();
            batch.take(&context, &header, packet.len(), &mut sender, |_| answered += 1);
        }
        assert!(batch.is_empty());
        sender.flush();
        assert_eq!(answered, 1);
        let mut punted = 0;
        receiver.drain(100, |punt| match punt {
            Punt::Datagram(..) | Punt::Packet(_) | Punt::Transit(..) | Punt::Notice(_) => {
                punted += 1
            }
        });
        assert_eq!(punted, 4);
    };
    // The pool fills, thread-locals and queues come to be.
    for _ in 0..10 {
        round();
    }
    let count = allocations(|| {
        for _ in 0..1000 {
            round();
        }
    });
    assert_eq!(count, 0);
    assert_eq!(counters.drops(DropReason::UnknownTunnel), 1010);
}

#[test]
fn sealing_and_opening_allocate_nothing() {
    let now = clusternet::sys::clock::now().instant;
    let [mut a, mut b] = ends::ends(clusternet::channel::Suite::Aes256Gcm, None, now);
    let traffic: Vec<(VirtioHeader, Vec<u8>)> = Recipe::all()
        .iter()
        .flat_map(|recipe| [10, 1300, 20_000, 60_000].map(|len| ends::from_1_to_2(recipe, len)))
        .collect();
    let mut round = || {
        let mut sink = Count::default();
        let (out, into) = (a.table.reader(), b.table.reader());
        a.table.publish();
        b.table.publish();
        let (out, into) = (out.load(), into.load());
        let sending = outbound::Context { table: &out, stripe: 0, now, counters: &a.counters };
        let receiving =
            inbound::Context { table: &into, mac1: &b.mac1, now, counters: &b.counters };
        for (header, packet) in &traffic {
            ends::lay_out(&mut a.batch, packet);
            a.batch.take(&sending, header, packet.len(), &mut a.punts, |_| ());
            if !a.batch.is_full() {
                continue;
            }
            for (bytes, segment, _) in a.batch.sends() {
                if b.inbound.room().is_none() {
                    b.inbound.finish(&receiving, &mut b.punts, &mut sink);
                }
                b.inbound.room().expect("a new batch")[..bytes.len()].copy_from_slice(bytes);
                let origin = Route::direct(ends::endpoint(1)).egress;
                let size = (bytes.len(), segment);
                b.inbound.take(&receiving, origin, size, &mut b.punts, &mut sink);
            }
            a.batch.clear();
        }
        b.inbound.finish(&receiving, &mut b.punts, &mut sink);
        assert!(sink.delivered >= 8 && sink.bytes > 8 * 60_000 / 2);
    };
    for _ in 0..10 {
        round();
    }
    assert_eq!(allocations(|| (0..100).for_each(|_| round())), 0);
}

#[test]
fn segmenting_and_joining_allocate_nothing() {
    // Superpackets of 45 segments; what they become is joined again, four flows at a time.
    let superpackets = Recipe::all().map(|recipe| {
        let kind = if recipe.is_tcp { Kind::Tcp(1340) } else { Kind::Udp(1340) };
        (kind, recipe.unfinished(&payload(60_000)))
    });
    let mut scratch = vec![0; 1 << 16];
    let mut arena = vec![0; 1 << 19];
    let mut coalescer = Coalescer::new(true, 256);
    let mut round = || {
        let mut end = 0;
        for (kind, packet) in &superpackets {
            let scratch = &mut scratch[..packet.len()];
            scratch.copy_from_slice(packet);
            let each = |segment: &[u8]| {
                let start = end;
                end += segment.len();
                arena[start..end].copy_from_slice(segment);
                coalescer.push(&mut arena, start..end, Kind::Whole);
            };
            segment(*kind, scratch, each).expect("well-formed");
        }
        let mut writes = 0;
        coalescer.flush(|kind, pieces| {
            let len = pieces.iter().map(ExactSizeIterator::len).sum();
            rebuild_parts(kind, &mut arena[pieces[0].clone()], len).expect("well-formed");
            assert_eq!(pieces.len(), 45);
            writes += 1;
        });
        assert_eq!(writes, 4);
    };
    let count = allocations(|| {
        for _ in 0..20 {
            round();
        }
    });
    assert_eq!(count, 0, "not even in the first round");
}
