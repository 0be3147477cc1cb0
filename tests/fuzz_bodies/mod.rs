//! What is done to every decoder of hostile bytes: one body each, for the fuzzer and for `cargo test` alike.
//!
//! A body gets bytes and asserts more than that nothing panics: what is accepted reads back as it is written again. The
//! seeds are valid inputs, from which a fuzzer (or the seeded mutations of `tests/fuzz.rs`) departs.
#![allow(dead_code, unreachable_pub, reason = "each target includes this and uses its part")]

pub mod files;
pub mod network;
pub mod nodes;
pub mod packets;
#[path = "../packets/mod.rs"]
pub mod recipes;
pub mod superpackets;
pub mod texts;
pub mod tunnels;
pub mod words;

/// One body.
pub struct Body {
    /// Name of the fuzz target.
    pub name: &'static str,
    /// What is done with the bytes; says whether anything took them for something.
    pub run: fn(&[u8]) -> bool,
    /// Valid inputs, for which `run` says true.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// How many inputs `cargo test` makes: fewer where each costs more.
    pub rounds: u32,
}

/// All of them.
pub const BODIES: [Body; 16] = [
    Body { name: "message", run: packets::message, seeds: packets::messages, rounds: 30_000 },
    Body { name: "ip", run: packets::ip, seeds: packets::ips, rounds: 30_000 },
    Body { name: "record", run: packets::record, seeds: packets::records, rounds: 20_000 },
    Body { name: "parts", run: packets::parts, seeds: packets::part_streams, rounds: 10_000 },
    Body { name: "dataplane", run: packets::dataplane, seeds: packets::arrivals, rounds: 10_000 },
    Body {
        name: "virtio",
        run: superpackets::virtio,
        seeds: superpackets::handed_over,
        rounds: 20_000,
    },
    Body {
        name: "segment",
        run: superpackets::segment,
        seeds: superpackets::to_segment,
        rounds: 10_000,
    },
    Body {
        name: "coalesce",
        run: superpackets::coalesce,
        seeds: superpackets::batches,
        rounds: 10_000,
    },
    Body {
        name: "channel_header",
        run: superpackets::channel_header,
        seeds: superpackets::channel_messages,
        rounds: 10_000,
    },
    Body { name: "place", run: superpackets::place, seeds: superpackets::places, rounds: 10_000 },
    Body { name: "tunnel", run: tunnels::tunnel, seeds: tunnels::programs, rounds: 200 },
    Body { name: "member", run: nodes::member, seeds: nodes::attacks, rounds: 400 },
    Body { name: "cache", run: nodes::cache, seeds: nodes::caches, rounds: 400 },
    Body { name: "statement", run: words::statement, seeds: words::statements, rounds: 10_000 },
    Body { name: "file", run: files::file, seeds: files::files, rounds: 4_000 },
    Body { name: "text", run: texts::text, seeds: texts::texts, rounds: 20_000 },
];

/// Runs the body of this name; for fuzz targets.
///
/// # Panics
/// If there is none, or if it finds something.
pub fn run(name: &str, data: &[u8]) {
    let body = BODIES.iter().find(|body| body.name == name).expect("a body of this name");
    (body.run)(data);
}
