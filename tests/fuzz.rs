//! The fuzz targets' bodies on stable Rust: seeded random and mutated inputs, a bounded number of them.
//!
//! `FUZZ_TIMES=100 cargo test --test fuzz` tries so many times as many; `make fuzz` lets a real fuzzer loose on the same
//! bodies. A failure prints the input, to be kept as a test.

mod fuzz_bodies;
mod sim;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use fuzz_bodies::{BODIES, Body};
use sim::Rng;

/// Integers that lengths and counts go wrong at.
const INTERESTING: [u8; 8] = [0, 1, 0x7f, 0x80, 0xfe, 0xff, 0x20, b'"'];

fn fuzz(name: &str) {
    let body = BODIES.iter().find(|body| body.name == name).expect("a body of this name");
    let seeds = (body.seeds)();
    assert!(!seeds.is_empty());
    for seed in &seeds {
        assert!(try_one(body, seed), "not a valid seed of {name}: {seed:?}");
    }
    try_one(body, &[]);
    let times = std::env::var("FUZZ_TIMES").map_or(1, |times| times.parse().expect("a number"));
    let mut rng = Rng::new(0x5eed);
    for _ in 0..body.rounds * times {
        let input = if rng.chance(0.1) {
            let len = rng.below(200) as usize;
            (0..len).map(|_| rng.next_u64() as u8).collect()
        } else {
            mutated(&seeds, &mut rng)
        };
        try_one(body, &input);
    }
}

fn try_one(body: &Body, input: &[u8]) -> bool {
    match catch_unwind(AssertUnwindSafe(|| (body.run)(input))) {
        Ok(taken) => taken,
        Err(panic) => {
            eprintln!("{}: {:?}\n{:?}", body.name, input, String::from_utf8_lossy(input));
            resume_unwind(panic)
        }
    }
}

/// A seed after one to eight of: flip a bit, set a byte, insert, delete, double, cut, splice with another seed.
fn mutated(seeds: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let pick = |rng: &mut Rng| seeds[rng.below(seeds.len() as u64) as usize].clone();
    let mut input = pick(rng);
    for _ in 0..=rng.below(8) {
        if input.is_empty() {
            return input;
        }
        let at = rng.below(input.len() as u64) as usize;
        let end = at + rng.below((input.len() - at) as u64 + 1).min(40) as usize;
        match rng.below(8) {
            0 | 1 => input[at] ^= 1 << rng.below(8),
            2 => input[at] = INTERESTING[rng.below(8) as usize],
            3 => input[at] = rng.next_u64() as u8,
            4 => input.insert(at, INTERESTING[rng.below(8) as usize]),
            5 => drop(input.drain(at..end)),
            6 => {
                let doubled = input[at..end].to_vec();
                input.splice(at..at, doubled);
            }
            _ => {
                let other = pick(rng);
                input.truncate(at);
                if rng.chance(0.5) {
                    let from = rng.below(other.len() as u64 + 1) as usize;
                    input.extend_from_slice(&other[from..]);
                }
            }
        }
    }
    input
}

#[test]
fn message_headers_survive_anything() {
    fuzz("message");
}

#[test]
fn ip_packets_survive_anything() {
    fuzz("ip");
}

#[test]
fn control_records_survive_anything() {
    fuzz("record");
}

#[test]
fn parts_of_records_survive_anything() {
    fuzz("parts");
}

#[test]
fn the_data_plane_survives_anything() {
    fuzz("dataplane");
}

#[test]
fn virtio_headers_survive_anything() {
    fuzz("virtio");
}

#[test]
fn superpackets_survive_being_segmented() {
    fuzz("segment");
}

#[test]
fn neighbours_survive_being_joined() {
    fuzz("coalesce");
}

#[test]
fn headers_of_the_channel_survive_anything() {
    fuzz("channel_header");
}

#[test]
fn places_of_slices_survive_anything() {
    fuzz("place");
}

#[test]
fn tunnels_survive_an_attacker_who_owns_the_network() {
    fuzz("tunnel");
}

#[test]
fn a_node_survives_a_master_that_lies() {
    fuzz("member");
}

#[test]
fn a_node_starts_whatever_its_cache_holds() {
    fuzz("cache");
}

#[test]
fn signed_statements_survive_anything() {
    fuzz("statement");
}

#[test]
fn files_and_control_requests_survive_anything() {
    fuzz("file");
}

#[test]
fn short_texts_survive_anything() {
    fuzz("text");
}

#[test]
fn every_body_is_run_here_and_is_a_fuzz_target() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| std::fs::read_to_string(root.join(path)).expect(path);
    let (here, manifest) = (read("tests/fuzz.rs"), read("fuzz/Cargo.toml"));
    for Body { name, .. } in &BODIES {
        assert!(here.contains(&format!("    fuzz(\"{name}\");")), "{name} is not run here");
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} is no target");
        let target = read(&format!("fuzz/fuzz_targets/{name}.rs"));
        assert!(target.contains(&format!("run(\"{name}\"")), "{name} runs something else");
    }
}

#[test]
#[ignore = "writes fuzz/corpus; `make fuzz` runs it"]
fn write_the_seeds() {
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for body in &BODIES {
        let directory = corpus.join(body.name);
        std::fs::create_dir_all(&directory).expect("a directory");
        for (number, seed) in (body.seeds)().iter().enumerate() {
            std::fs::write(directory.join(format!("seed-{number}")), seed).expect("a file");
        }
    }
}
