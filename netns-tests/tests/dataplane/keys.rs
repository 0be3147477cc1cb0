//! Keys in real time: renewed under load, made anew after a crash, and nothing on the wire without them.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use netns_tests::clock::{now, wait_until};
use netns_tests::harness::Check;
use netns_tests::lab::{Family, Tun};
use netns_tests::link::{Frames, SIDES};
use netns_tests::network::SOON;
use netns_tests::traffic::{self, Channel, Datagrams, Streams, Watch, Watched};

use crate::pair::{Pair, Stage};

/// First bytes of datagrams, as the protocol has them: WireGuard's four messages, and the channel's.
const TYPES: [u8; 5] = [1, 2, 3, 4, CHANNEL];
const DATA: u8 = 4;
const CHANNEL: u8 = 0x10;

/// Control records have at most 1,100 bytes, in packets of IPv6 (40), in messages of WireGuard (32).
const LARGEST_RECORD: u64 = 1100 + 40 + 32;

/// After so long keys are renewed (REKEY_AFTER_TIME).
const RENEWED: Duration = Duration::from_secs(120);

/// A pair, and between which times its keys were made.
pub(crate) struct Aged {
    pair: Pair,
    made: [Instant; 2],
}

fn stage() -> Result<Pair> {
    let stage =
        Stage { tun: Tun::Open, family: Family::V4, frames: Frames::Cut, has_middle: false };
    let pair = stage.join("mtu = 1420")?;
    // Each datagram is to be seen by itself.
    for side in SIDES {
        pair.network.lab.on(side).sh("ethtool -K eth0 gro off").root().ok()?;
    }
    Ok(pair)
}

pub(crate) fn fresh() -> Result<Pair> {
    stage()
}

pub(crate) fn aged() -> Result<Aged> {
    let before = now();
    Ok(Aged { pair: stage()?, made: [before, now()] })
}

pub(crate) fn checks() -> Vec<Check<Pair>> {
    vec![
        Check::new("nothing_on_the_wire_is_readable_or_rides_a_weaker_channel", unreadable),
        Check::new("a_crash_under_load_costs_a_pause_and_uses_no_nonce_twice", crash),
    ]
}

pub(crate) fn aged_checks() -> Vec<Check<Aged>> {
    vec![Check::new("keys_are_renewed_under_load_without_loss", renewed)]
}

/// What holds for every cable of a pair; `others` is what may be seen beside datagrams and ARP.
fn check_watched(watched: &Watched, others: &[&str]) -> Result<()> {
    ensure!(watched.joined == 0, "not every datagram was seen: {watched:?}");
    ensure!(watched.repeated == 0, "a nonce was used twice: {watched:?}");
    ensure!(
        watched.types.keys().all(|kind| TYPES.contains(kind)),
        "a strange datagram: {watched:?}"
    );
    let is_odd = |what: &String| what != "ethernet 0806" && !others.contains(&what.as_str());
    ensure!(!watched.others.keys().any(is_odd), "something else: {watched:?}");
    let of = |kind| watched.types.get(&kind).copied().unwrap_or_default();
    let (records, messages) = (of(DATA), of(CHANNEL));
    ensure!(records.largest <= LARGEST_RECORD, "a packet in the tunnel: {watched:?}");
    ensure!(records.datagrams < 400 && records.bytes * 100 < messages.bytes, "{watched:?}");
    Ok(())
}

/// How many channels there were from a host, which brought more than a few messages.
fn channels(watched: &Watched, pair: &Pair, side: &str) -> Result<usize> {
    let addresses = pair.network.lab.on(side).sh("hostname -I").ok()?;
    let is_its = |channel: &&Channel| {
        addresses.split_whitespace().any(|own| own == channel.from.to_string())
    };
    Ok(watched.channels.values().filter(is_its).filter(|channel| channel.messages > 50).count())
}

fn unreadable(pair: &mut Pair) -> Result<()> {
    const TEXT: &str = "the quick brown fox jumps over the lazy dog";
    let lab = &pair.network.lab;
    // Whoever looks would see it.
    let watch = Watch::start(lab, "a", Some(TEXT))?;
    lab.on("a").sh(&format!("echo '{TEXT}' > /dev/udp/10.77.0.2/9")).ok()?;
    ensure!(watch.stop()?.readable > 0, "the watcher sees nothing");

    let watch = Watch::start(lab, "a", Some(TEXT))?;
    let options = format!("--milliseconds 1500 --rate 4000000 --text '{TEXT}'");
    let running = [Family::V4, Family::V6]
        .map(|inner| pair.traffic("a", "tcp", ("b", inner), &options)?.spawn());
    let mut bytes = 0;
    for running in running {
        bytes += traffic::finished::<Streams>(running?, SOON * 2)?.bytes();
    }
    let pattern = "746865717569636b62726f776e666f78";
    pair.network.inside("a", &format!("ping -c3 -i0.2 -s 1200 -p {pattern} b")).ok()?;
    let watched = watch.stop()?;
    ensure!(watched.readable == 0, "plain text on the wire: {watched:?}");
    check_watched(&watched, &[])?;
    ensure!(watched.types[&CHANNEL].bytes > bytes, "{bytes} bytes of streams, and {watched:?}");
    Ok(())
}

fn crash(pair: &mut Pair) -> Result<()> {
    let watch = Watch::start(&pair.network.lab, "a", None)?;
    let options = "--streams 2 --milliseconds 8000 --rate 2000000";
    let mut running = pair.traffic("a", "tcp", ("b", Family::V4), options)?.spawn()?;
    traffic::wait_under_way(&mut running)?;
    for side in ["b", "a"] {
        let old = pair.serve(side)?;
        pair.network.lab.on(side).sh(&format!("kill -KILL {old}")).root().ok()?;
        wait_until("another serve", SOON, || {
            Ok(pair.serve(side).ok().filter(|new| *new != old).map(|_| ()))
        })?;
        // New keys, and packets under them.
        pair.network.inside("a", "ping -c3 -i0.2 -W10 b").run()?;
    }
    let streams: Streams = traffic::finished(running, SOON * 6)?;
    ensure!(streams.bytes() > 8_000_000, "{streams:?}");
    ensure!(streams.longest_pause() < Duration::from_secs(15), "{streams:?}");
    let watched = watch.stop()?;
    // The system answers for a serve that is gone: ICMP.
    check_watched(&watched, &["protocol 1"])?;
    for side in SIDES {
        ensure!(channels(&watched, pair, side)? >= 2, "no new keys from {side}: {watched:?}");
    }
    Ok(())
}

/// Datagrams for which a host's sockets had no room: this machine was doing something else.
fn no_room(pair: &Pair) -> Result<u64> {
    let script = "awk '/^Udp:/ && $6 ~ /^[0-9]/ { print $6 }' /proc/net/snmp";
    SIDES.iter().try_fold(0, |sum, side| {
        let found = pair.network.lab.on(side).sh(script).ok()?;
        Ok(sum + found.trim().parse::<u64>()?)
    })
}

fn renewed(Aged { pair, made: [first, last] }: &mut Aged) -> Result<()> {
    let begin = *first + RENEWED - Duration::from_secs(2);
    std::thread::sleep(begin.saturating_duration_since(now()));
    let watch = Watch::start(&pair.network.lab, "a", None)?;
    // Traffic is looked at every half second.
    let milliseconds = (*last + RENEWED + Duration::from_secs(4)).duration_since(now()).as_millis();
    let options = format!("--streams 2 --milliseconds {milliseconds} --rate 1500000");
    let streams = [Family::V4, Family::V6]
        .map(|inner| pair.traffic("a", "tcp", ("b", inner), &options)?.spawn());
    let options = format!("--milliseconds {milliseconds} --rate 500 --size 1300");
    let ways = [("a", ("b", Family::V4)), ("b", ("a", Family::V6))];
    let datagrams = ways.map(|(from, to)| pair.traffic(from, "udp", to, &options)?.spawn());
    for running in streams {
        let streams: Streams = traffic::finished(running?, SOON * 6)?;
        ensure!(streams.bytes() > 10_000_000, "{streams:?}");
    }
    for running in datagrams {
        let datagrams: Datagrams = traffic::finished(running?, SOON * 2)?;
        let Datagrams { sent, arrived, .. } = datagrams;
        ensure!(arrived.wrong + arrived.repeated + arrived.late == 0, "{datagrams:?}");
        ensure!(sent > 100 && sent - arrived.received <= no_room(pair)?, "lost: {datagrams:?}");
    }
    pair.check_drops(&["outgoing packet to multicast or broadcast"])?;
    let watched = watch.stop()?;
    check_watched(&watched, &[])?;
    for side in SIDES {
        let channels = channels(&watched, pair, side)?;
        ensure!(channels == 2, "{channels} keys from {side}: {watched:?}");
    }
    Ok(())
}
