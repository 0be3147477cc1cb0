//! What the parts of the data plane cost by themselves: `cargo bench -p clusternet`, and a name to run only those that have it.
//!
//! No system calls, one thread, everything in the nearest caches: bounds, not predictions. What they add up to is measured by
//! `make bench`.

use std::{
    hint::black_box,
    net::IpAddr,
    ops::Range,
    time::{Duration, Instant},
};

use clusternet::{
    channel::{
        Suite,
        keypair::{Keypair, TAG},
    },
    dataplane::{coalesce::Coalescer, outbound, segment::segment, table::Builder},
    node::output::{Directive, PeerSlot},
    wire::{
        channel::{HEADER, Header, PLACE},
        checksum::Checksum,
        superpacket::Kind,
    },
};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use packets::{Recipe, payload};

#[path = "../tests/ends/mod.rs"]
mod ends;
#[path = "../tests/packets/mod.rs"]
mod packets;

/// Messages that leave together: one packet of 1420 bytes, a large one, a superpacket in slices for an underlay of 1500.
const SHAPES: [(usize, usize); 3] = [(1, 1420), (1, 8192), (45, 1404)];

const SUITES: [Suite; 2] = [Suite::Aes256Gcm, Suite::ChaCha20Poly1305];

/// Payload of a TCP segment and of a datagram.
const SEGMENT: u16 = 1340;

fn shape((count, len): (usize, usize)) -> String {
    format!("{count}x{len}")
}

/// Reserves counters and seals every message where it lies.
fn seal(keypair: &Keypair, now: Instant, arena: &mut [u8], stride: usize) -> u64 {
    let messages = arena.chunks_exact_mut(stride);
    let first = keypair.reserve(messages.len() as u64, now).expect("young keys");
    for (message, counter) in messages.zip(first..) {
        let header = Header { receiver: keypair.send_index(), counter }.to_bytes();
        let (front, text) = message.split_at_mut(HEADER);
        front.copy_from_slice(&header);
        let (text, tag) = text.split_at_mut(text.len() - TAG);
        tag.copy_from_slice(&keypair.seal(counter, &header, text));
    }
    first
}

fn sealing(c: &mut Criterion) {
    let now = clusternet::sys::clock::now().instant;
    let mut group = c.benchmark_group("seal");
    for suite in SUITES {
        let [ours, _] = ends::keypairs(suite, 1, now);
        let keypair = ours.stripe(0).expect("the first of one");
        for (count, len) in SHAPES {
            let stride = HEADER + PLACE + len + TAG;
            let mut arena = vec![7; count * stride];
            group.throughput(Throughput::Bytes((count * len) as u64));
            let id = BenchmarkId::new(format!("{suite:?}"), shape((count, len)));
            group.bench_function(id, |b| b.iter(|| seal(keypair, now, &mut arena, stride)));
        }
    }
    group.finish();
    let mut group = c.benchmark_group("open");
    for suite in SUITES {
        let [ours, theirs] = ends::keypairs(suite, 1, now);
        let keys = [&ours, &theirs].map(|keypairs| keypairs.stripe(0).expect("the first of one"));
        for (count, len) in SHAPES {
            let stride = HEADER + PLACE + len + TAG;
            let mut arena = vec![7; count * stride];
            seal(keys[0], now, &mut arena, stride);
            let open = |arena: &mut Vec<u8>| {
                for message in arena.chunks_exact_mut(stride) {
                    let (header, text) = message.split_at_mut(HEADER);
                    let (parsed, _) = Header::parse(header).expect("just written");
                    black_box(keys[1].open(parsed.counter, header, text).expect("just sealed"));
                }
            };
            group.throughput(Throughput::Bytes((count * len) as u64));
            let id = BenchmarkId::new(format!("{suite:?}"), shape((count, len)));
            group.bench_function(id, |b| {
                b.iter_batched_ref(|| arena.clone(), open, BatchSize::SmallInput);
            });
        }
    }
}

fn name(recipe: &Recipe) -> String {
    let ip = if recipe.is_v6 { "v6" } else { "v4" };
    let transport = if recipe.is_tcp { "tcp" } else { "udp" };
    format!("{transport}-{ip}")
}

fn superpackets() -> [(Recipe, Kind); 4] {
    Recipe::all().map(|recipe| {
        let kind = if recipe.is_tcp { Kind::Tcp(SEGMENT) } else { Kind::Udp(SEGMENT) };
        (recipe, kind)
    })
}

fn segmenting(c: &mut Criterion) {
    let mut group = c.benchmark_group("segment");
    group.throughput(Throughput::Bytes(60_000));
    for (recipe, kind) in superpackets() {
        let packet = recipe.unfinished(&payload(60_000));
        let cut = |packet: &mut Vec<u8>| {
            segment(kind, packet, |segment| {
                black_box(segment);
            })
            .expect("well-formed");
        };
        group.bench_function(name(&recipe), |b| {
            b.iter_batched_ref(|| packet.clone(), cut, BatchSize::SmallInput);
        });
    }
}

fn coalescing(c: &mut Criterion) {
    let mut group = c.benchmark_group("coalesce");
    for (recipe, kind) in superpackets() {
        let mut arena = Vec::new();
        let mut places: Vec<Range<usize>> = Vec::new();
        segment(kind, &mut recipe.unfinished(&payload(60_000)), |segment| {
            places.push(arena.len()..arena.len() + segment.len());
            arena.extend_from_slice(segment);
        })
        .expect("well-formed");
        group.throughput(Throughput::Elements(places.len() as u64));
        // With a checksum to check, and without.
        for kind in [Kind::Whole, Kind::Unfinished] {
            let mut coalescer = Coalescer::new(true, 64);
            let mut join = || {
                for place in &places {
                    coalescer.push(&mut arena, place.clone(), kind);
                }
                coalescer.flush(|kind, pieces| {
                    assert_eq!(pieces.len(), 45);
                    black_box((kind, pieces));
                });
            };
            let id = BenchmarkId::new(name(&recipe), format!("{kind:?}"));
            group.bench_function(id, |b| b.iter(&mut join));
        }
    }
    group.finish();
    let mut group = c.benchmark_group("checksum");
    for len in [20, 1420, 60_000] {
        let bytes = payload(len);
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(len.to_string(), |b| {
            b.iter(|| Checksum::default().with(black_box(&bytes)).finished());
        });
    }
}

/// The n-th member, the others' addresses spread as an authority numbers them.
fn member(n: u16) -> [IpAddr; 2] {
    let [high, low] = n.to_be_bytes();
    [[10, 99, high, low].into(), [0xfd00, 0, 0, 0, 0, 0, 0, n].into()]
}

/// What a packet costs must not depend on how many peers are known.
fn looking_up(c: &mut Criterion) {
    let mut group = c.benchmark_group("look-up");
    for peers in [2, 1000, 10_000] {
        let mut table = Builder::new(member(1));
        for n in 2..=peers + 1 {
            table.apply(&Directive::InstallPeer {
                slot: PeerSlot(u32::from(n)),
                addresses: member(n),
            });
        }
        for recipe in [Recipe::new(false, true), Recipe::new(true, true)] {
            let packet = recipe.packet(&payload(1000));
            let decide = || {
                let packet = black_box(&packet);
                outbound::decide(table.table(), packet, packet.len()).map(|found| found.slot)
            };
            assert_eq!(decide().ok(), Some(PeerSlot(2)));
            let id = BenchmarkId::new(name(&recipe), peers);
            group.bench_function(id, |b| b.iter(decide));
        }
    }
}

fn brief() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(50)
}

criterion_group! {
    name = dataplane;
    config = brief();
    targets = sealing, segmenting, coalescing, looking_up
}
criterion_main!(dataplane);
