//! Bulk over every kind of trouble, MTU, cipher suite, device, and with or without the kernel's help: not every combination of these,
//! but every pair.

use std::fmt::{self, Display};

use anyhow::{Context, Result, ensure};
use netns_tests::harness::Check;
use netns_tests::lab::{Family, Tun};
use netns_tests::link::{self, Frames, Rule};
use netns_tests::network::SOON;
use netns_tests::traffic::{self, Datagrams, Echoes, Streams};

use crate::pair::{Pair, Stage};

/// What befalls frames on the link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Trouble {
    None,
    Lost1,
    Lost5,
    Overtaken,
    Doubled,
}

/// One combination.
#[derive(Clone, Copy)]
struct Settings {
    trouble: Trouble,
    mtu: u16,
    suite: &'static str,
    tun: Tun,
    offload: bool,
    frames: Frames,
    family: Family,
}

const AES: &str = "aes256gcm";
const CHACHA: &str = "chacha20poly1305";

/// Each pair of values at least once; the last one is what most people will have.
#[rustfmt::skip]
const COMBINATIONS: [Settings; 16] = {
    use {Family::{V4, V6}, Frames::{Cut, Whole}, Trouble::{Doubled, Lost1, Lost5, None, Overtaken}, Tun::{Open, RootOnly as Packet}};
    const fn with(trouble: Trouble, mtu: u16, suite: &'static str, tun: Tun, offload: bool, frames: Frames, family: Family) -> Settings {
        Settings { trouble, mtu, suite, tun, offload, frames, family }
    }
    [
        with(None,      1280, AES,    Packet, false, Whole, V6),
        with(None,      1420, CHACHA, Open,   true,  Cut,   V4),
        with(None,      8920, AES,    Packet, false, Whole, V4),
        with(Lost1,     1280, AES,    Open,   true,  Cut,   V6),
        with(Lost1,     1420, CHACHA, Packet, true,  Whole, V4),
        with(Lost1,     8920, CHACHA, Packet, false, Cut,   V4),
        with(Lost5,     1280, CHACHA, Packet, true,  Cut,   V4),
        with(Lost5,     1420, CHACHA, Open,   false, Whole, V6),
        with(Lost5,     8920, AES,    Packet, true,  Whole, V4),
        with(Overtaken, 1280, AES,    Packet, true,  Whole, V4),
        with(Overtaken, 1420, AES,    Open,   true,  Cut,   V4),
        with(Overtaken, 8920, CHACHA, Packet, false, Whole, V6),
        with(Doubled,   1280, CHACHA, Open,   true,  Whole, V6),
        with(Doubled,   1420, AES,    Packet, false, Cut,   V4),
        with(Doubled,   8920, CHACHA, Open,   true,  Whole, V6),
        with(Lost1,     8920, AES,    Open,   true,  Cut,   V6),
    ]
};

impl Trouble {
    /// In both directions.
    fn rule(self) -> Option<Rule> {
        match self {
            Self::None => None,
            Self::Lost1 => Some("numgen random mod 100 < 1 drop"),
            Self::Lost5 => Some("numgen random mod 100 < 5 drop"),
            Self::Overtaken => Some("numgen random mod 100 < 3 fwd to DETOUR"),
            Self::Doubled => Some("numgen random mod 100 < 5 dup to DETOUR"),
        }
    }

    /// Bytes that each of the streams must bring, however long it takes.
    fn at_least(self) -> u64 {
        match self {
            Self::None => 16_000_000,
            Self::Overtaken | Self::Doubled => 8_000_000,
            Self::Lost1 => 4_000_000,
            Self::Lost5 => 500_000,
        }
    }
}

impl Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trouble, mtu, suite, tun, offload, frames, family } = self;
        let device = if *tun == Tun::Open { "tun" } else { "packet" };
        let offload = if *offload { "offload" } else { "no_offload" };
        let text = format!("{trouble:?}_{mtu}_{suite}_{device}_{offload}_{frames:?}_{family:?}");
        f.write_str(&text.to_lowercase())
    }
}

/// The checks, in groups of some that run one after the other.
pub(crate) fn groups() -> [(&'static str, Vec<Check<()>>); 2] {
    let check = |settings: &Settings| {
        let settings = *settings;
        Check::new(format!("every_byte_arrives_{settings}"), move |()| run(settings))
    };
    let (one, other) = COMBINATIONS.split_at(COMBINATIONS.len() / 2);
    let mut one: Vec<_> = one.iter().map(check).collect();
    one.push(Check::new("the_combinations_hold_every_pair_of_values", |()| every_pair()));
    [("bulk", one), ("more_bulk", other.iter().map(check).collect())]
}

fn run(settings: Settings) -> Result<()> {
    let Settings { trouble, mtu, suite, tun, offload, frames, family } = settings;
    let pair = Stage { tun, family, frames, has_middle: true }
        .join(&format!("mtu = {mtu}\nsuite = \"{suite}\"\noffload = {offload}"))?;
    let device = pair.network.status("b")?.device;
    ensure!(device.contains("packet") == (tun == Tun::RootOnly), "{device}");
    if trouble == Trouble::Overtaken {
        link::slow_detours(&pair.network.lab)?;
    }
    link::set_rule(&pair.network.lab, trouble.rule())?;

    // First: what is lost of large datagrams fills the memory in which kernels put fragments together, for half a minute.
    for inner in [Family::V4, Family::V6] {
        let options = "--from 0 --up-to 9000 --step 251";
        let echoes: Echoes = traffic::report(pair.traffic("a", "ping", ("b", inner), options)?)?;
        ensure!(echoes.right == 36 && echoes.wrong == 0, "{echoes:?}");
    }

    // Both families, two connections each, all both ways at once.
    let options = format!("--streams 2 --milliseconds 1500 --at-least {}", trouble.at_least());
    let streams = [Family::V4, Family::V6]
        .map(|inner| pair.traffic("a", "tcp", ("b", inner), &options)?.spawn());
    for running in streams {
        let streams: Streams = traffic::finished(running?, SOON * 6).context("streams")?;
        ensure!(streams.received.len() == 2, "{streams:?}");
    }

    // Datagrams both ways at once, to a program that takes them one by one and to one that takes them joined.
    let options = "--milliseconds 1500";
    let ways = [("a", ("b", Family::V4), ""), ("b", ("a", Family::V6), " --joined")];
    let running = ways.map(|(from, to, joined)| {
        pair.traffic(from, "udp", to, &format!("{options}{joined}"))?.spawn()
    });
    for running in running {
        let datagrams: Datagrams = traffic::finished(running?, SOON * 2).context("datagrams")?;
        let Datagrams { sent, arrived, .. } = datagrams;
        ensure!(arrived.wrong == 0, "{datagrams:?}");
        // Whatever the link doubles, a message is opened once.
        ensure!(arrived.repeated == 0, "{datagrams:?}");
        let (of_a_hundred, late) = match trouble {
            // Datagrams may move from one processor's queue to another's.
            Trouble::None | Trouble::Doubled => (97, sent / 100),
            Trouble::Overtaken => (90, sent),
            Trouble::Lost1 => (60, sent / 100),
            Trouble::Lost5 => (10, sent / 100),
        };
        ensure!(sent > 200 && arrived.received * 100 >= sent * of_a_hundred, "{datagrams:?}");
        ensure!(arrived.late <= late, "{datagrams:?}");
    }
    check_drops(&pair, trouble)
}

fn check_drops(pair: &Pair, trouble: Trouble) -> Result<()> {
    // What programs send faster than this machine can carry waits or is lost here as in any device.
    let mut usual = vec![
        "send buffer full",
        "device takes no packet",
        "outgoing packet to multicast or broadcast",
    ];
    if matches!(trouble, Trouble::Doubled | Trouble::Overtaken) {
        usual.extend(["channel message seen before", "datagram did not open"]);
    }
    pair.check_drops(&usual)
}

/// Every value of each setting together with every value of each other one.
fn every_pair() -> Result<()> {
    let values = |settings: &Settings| -> Vec<String> {
        let Settings { trouble, mtu, suite, tun, offload, frames, family } = settings;
        [
            format!("{trouble:?}"),
            format!("{mtu}"),
            (*suite).to_owned(),
            format!("{tun:?}"),
            format!("{offload}"),
            format!("{frames:?}"),
            format!("{family:?}"),
        ]
        .into()
    };
    let all: Vec<_> = COMBINATIONS.iter().map(values).collect();
    for (one, first) in all.iter().flat_map(|row| row.iter().enumerate()) {
        for (other, second) in
            all.iter().flat_map(|row| row.iter().enumerate()).filter(|(n, _)| *n != one)
        {
            let is_there = all.iter().any(|row| row[one] == *first && row[other] == *second);
            ensure!(is_there, "{first} never meets {second}");
        }
    }
    Ok(())
}
