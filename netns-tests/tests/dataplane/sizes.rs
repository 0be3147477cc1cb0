//! Packets of every size cross whole, up to the overlay's MTU, however far apart their parts arrive.

use anyhow::{Context, Result, ensure};
use netns_tests::harness::Check;
use netns_tests::lab::{Family, Tun};
use netns_tests::link::{Frames, SIDES};
use netns_tests::traffic::{self, Datagrams, Echoes};

use crate::pair::{Pair, Stage};

/// What PVM's daemons send at most.
const PVM: u64 = 4080;

/// On a link of cards that cut and join.
pub(crate) fn on_a_link() -> Result<Pair> {
    stage(true).join("mtu = 8920")
}

/// The largest overlay MTU.
pub(crate) fn with_the_largest() -> Result<Pair> {
    stage(false).join("mtu = 60000")
}

fn stage(has_middle: bool) -> Stage {
    Stage { tun: Tun::Open, family: Family::V4, frames: Frames::Cut, has_middle }
}

pub(crate) fn checks() -> Vec<Check<Pair>> {
    vec![
        Check::new("pings_of_every_size_come_back", every_size),
        Check::new("packets_of_the_whole_mtu_are_not_fragmented", |pair| unfragmented(pair, 8920)),
        Check::new("a_slow_link_that_spreads_their_parts_loses_none", slow),
    ]
}

pub(crate) fn largest_checks() -> Vec<Check<Pair>> {
    vec![Check::new("packets_of_60000_bytes_are_not_fragmented", |pair| unfragmented(pair, 60_000))]
}

/// How many fragments a node's programs have seen, made or sent.
fn fragments(pair: &Pair, side: &str) -> Result<Vec<u64>> {
    // The file of version 4 has names in one line and numbers in the next.
    let script = "awk '/^Ip:/ { if (++line == 1) split($0, names); else for (n in names) \
                  if (names[n] ~ /^(ReasmReqds|FragCreates)$/) print $n }' /proc/net/snmp; \
                  awk '/^Ip6(ReasmReqds|FragCreates)/ { print $2 }' /proc/net/snmp6";
    let found = pair.network.inside_sh(side, script).ok()?;
    let numbers: Vec<u64> = found.lines().filter_map(|line| line.parse().ok()).collect();
    ensure!(numbers.len() == 4, "{found}");
    Ok(numbers)
}

fn unfragmented(pair: &mut Pair, mtu: u64) -> Result<()> {
    let before = SIDES.map(|side| fragments(pair, side));
    for (family, headers) in [("-4", 28), ("-6", 48)] {
        // To the last byte, and not one more.
        let fits = format!("ping {family} -c3 -i0.2 -W10 -M do -s {} b", mtu - headers);
        pair.network.inside("a", &fits).ok()?;
        let too_large = format!("ping {family} -c1 -W2 -M do -s {} b", mtu - headers + 1);
        let outcome = pair.network.inside("a", &too_large).run()?;
        ensure!(!outcome.status.success(), "{outcome}");
    }
    for (inner, size) in
        [(Family::V4, PVM), (Family::V6, PVM), (Family::V4, mtu - 28), (Family::V6, mtu - 48)]
    {
        let options = format!("--milliseconds 300 --rate 1000 --size {size}");
        let datagrams: Datagrams =
            traffic::report(pair.traffic("a", "udp", ("b", inner), &options)?)?;
        let Datagrams { sent, arrived, .. } = datagrams;
        ensure!(sent > 100 && arrived.received == sent, "{size} bytes by {inner:?}: {datagrams:?}");
        ensure!(arrived.wrong + arrived.repeated + arrived.late == 0, "{datagrams:?}");
    }
    for (side, before) in SIDES.into_iter().zip(before) {
        let (before, after) = (before?, fragments(pair, side)?);
        ensure!(before == after, "{side} has seen fragments: {before:?}, then {after:?}");
    }
    if mtu > 30_000 {
        return Ok(());
    }
    // What is larger is cut by the sender's own system, and comes together again.
    for family in ["-4", "-6"] {
        pair.network.inside("a", &format!("ping {family} -c3 -i0.2 -W10 -s 30000 b")).ok()?;
    }
    pair.check_drops(&["outgoing packet to multicast or broadcast"])
}

fn every_size(pair: &mut Pair) -> Result<()> {
    for inner in [Family::V4, Family::V6] {
        let options = "--from 0 --up-to 9000";
        let echoes: Echoes = traffic::report(pair.traffic("a", "ping", ("b", inner), options)?)?;
        ensure!(echoes.right == 9001 && echoes.wrong == 0, "{echoes:?}");
        // Nothing is lost on this link but what finds no room for a moment.
        ensure!(echoes.repeated < 20, "{echoes:?}");
    }
    Ok(())
}

/// Parts of a packet that arrive one by one belong together all the same.
fn slow(pair: &mut Pair) -> Result<()> {
    let qdisc = |what: &str| {
        SIDES.iter().try_for_each(|side| {
            let rate = if what == "add" { "tbf rate 50mbit burst 2kb limit 1mb" } else { "" };
            let script = format!("tc qdisc {what} dev to-{side} root {rate}");
            pair.network.lab.on("middle").sh(&script).root().ok().map(|_| ())
        })
    };
    qdisc("add")?;
    let outcome = (|| {
        let options = "--milliseconds 1000 --rate 100";
        for inner in [Family::V4, Family::V6] {
            for size in [PVM, 8000] {
                let options = format!("{options} --size {size}");
                let datagrams: Datagrams =
                    traffic::report(pair.traffic("a", "udp", ("b", inner), &options)?)?;
                let Datagrams { sent, arrived, .. } = datagrams;
                ensure!(arrived.received == sent, "{size} bytes by {inner:?}: {datagrams:?}");
            }
            // Superpackets of datagrams that end where no slice does.
            let datagrams: Datagrams =
                traffic::report(pair.traffic("b", "udp", ("a", inner), "--milliseconds 1000")?)?;
            let Datagrams { sent, arrived, .. } = datagrams;
            ensure!(sent > 100 && arrived.received * 100 >= sent * 98, "{datagrams:?}");
            ensure!(arrived.wrong + arrived.repeated + arrived.late == 0, "{datagrams:?}");
            let options = "--from 3 --up-to 8800 --step 97";
            let echoes: Echoes =
                traffic::report(pair.traffic("a", "ping", ("b", inner), options)?)?;
            ensure!(echoes.wrong == 0 && echoes.repeated < 5, "{echoes:?}");
        }
        Ok(())
    })();
    qdisc("del")?;
    outcome.context("at 50 Mbit/s")
}
