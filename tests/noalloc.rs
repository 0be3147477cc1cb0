//! The data plane's batch functions allocate nothing per packet: counted by an allocator of this test's own.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use clusternet::{
    dataplane::{
        drops::{Counters, DropReason},
        inbound::{self, Arrival},
        outbound,
        punt::{self, Punt},
        table::Builder,
    },
    node::output::{Directive, PeerSlot},
    path::route::Route,
    wire::{
        message::Mac1Key,
        relay::{RelayIndex, wrap},
    },
    words::key::TransportSecret,
};

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
    let (mut sender, mut receiver) = punt::queue(Arc::clone(&counters), || (), || ());
    let mac1 = Mac1Key::of(&TransportSecret::generate().public());
    // Data for us, straight and relayed; for others; a handshake for somebody else; junk.
    let mut initiation = vec![0; 148];
    initiation[0] = 1;
    let mut datagrams = [
        data(5, 1400),
        wrap(RelayIndex(99), &data(5, 1400)),
        wrap(ours, &data(1, 1400)),
        initiation,
        data(6, 100),
        vec![9; 20],
    ];
    let packets = [packet(2, 1400), packet(9, 1400), packet(2, 40), vec![7; 30]];

    let mut round = || {
        let loaded = reader.load();
        // Forwarding swaps the index in place: put it back.
        datagrams[2][..8].copy_from_slice(&ours.prefix());
        let arrivals = datagrams
            .iter_mut()
            .map(|datagram| Arrival { origin: alice.egress, datagram: datagram.as_mut_slice() });
        let mut forwarded = 0;
        inbound::batch(&loaded, &mac1, arrivals, &mut sender, &counters, |_, _| forwarded += 1);
        assert_eq!(forwarded, 1);
        let mut answered = 0;
        let packets = packets.iter().map(Vec::as_slice);
        outbound::batch(&loaded, packets, &mut sender, &counters, |_| answered += 1);
        assert_eq!(answered, 1);
        let mut punted = 0;
        receiver.drain(100, |punt| match punt {
            Punt::Datagram(..) | Punt::Packet(_) => punted += 1,
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
