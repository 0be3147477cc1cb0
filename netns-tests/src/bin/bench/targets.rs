//! What this product has set itself, row by row, and whether a run reached it.

use crate::options::Offload;
use crate::peers::is_rival;
use crate::report::{Report, Setting};

/// What a value is held against.
#[derive(Clone, Copy)]
enum Against {
    /// The same of one peer.
    Peer(&'static str),
    /// The same of the best tunnel that is not ours.
    BestRival,
    /// A number.
    Nothing,
}

/// Which side of the bound is good.
#[derive(Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// One row.
struct Target {
    what: &'static str,
    peer: &'static str,
    measure: &'static str,
    key: &'static str,
    against: Against,
    bound: Bound,
}

/// A row as it came out.
pub(crate) struct Reached {
    pub(crate) what: &'static str,
    pub(crate) value: f64,
    /// Whom it was held against.
    pub(crate) against: String,
    /// The value over theirs.
    pub(crate) ratio: Option<f64>,
    /// In words.
    pub(crate) target: String,
    pub(crate) met: bool,
}

const GO: Against = Against::Peer("wireguard-go");
const BARE: Against = Against::Peer("bare");
const OURS: &str = "clusternet";

const fn row(
    what: &'static str,
    (measure, key): (&'static str, &'static str),
    against: Against,
    bound: Bound,
) -> Target {
    Target { what, peer: OURS, measure, key, against, bound }
}

impl Target {
    const fn of(self, peer: &'static str) -> Self {
        Self { peer, ..self }
    }
}

const TCP: (&str, &str) = ("tcp", "gbit");
const CPU: (&str, &str) = ("tcp", "cpu");

/// The rows of a setting.
fn targets(setting: &Setting) -> Vec<Target> {
    use Against::{BestRival, Nothing, Peer};
    use Bound::{AtLeast, AtMost};
    let plain = setting.offload == Offload::Whole;
    match (setting.pinned, setting.mtu > 1500, plain) {
        (false, false, true) => {}
        (true, false, true) => {
            return vec![
                row("TCP, one core", TCP, BARE, AtLeast(0.4)),
                row("TCP, one core", TCP, BestRival, AtLeast(2.5)),
            ];
        }
        (false, true, true) => return vec![row("TCP, large MTU", TCP, BestRival, AtLeast(1.8))],
        (false, false, false) => {
            return vec![
                row("TCP, link that cuts", TCP, BARE, AtLeast(0.55)),
                row("TCP, link that cuts", TCP, BestRival, AtLeast(2.0)),
            ];
        }
        // Of several at once nothing was asked.
        (true, _, false) | (_, true, false) | (true, true, true) => return Vec::new(),
    }
    let mut rows = vec![
        row("TCP", TCP, BARE, AtLeast(0.5)),
        row("TCP", TCP, GO, AtLeast(2.5)),
        row("TCP", TCP, Peer("ssh"), AtLeast(1.0)),
        row("NetPIPE-TCP peak", ("netpipe-tcp", "gbit"), BARE, AtLeast(0.2)),
        row("NetPIPE-TCP peak", ("netpipe-tcp", "gbit"), GO, AtLeast(2.5)),
        row("CPU s per GB", CPU, GO, AtMost(1.0 / 3.0)),
        row("CPU s per GB", CPU, Peer("boringtun"), AtMost(0.1)),
        row("TCP, ChaCha20-Poly1305", TCP, GO, AtLeast(1.3)).of("clusternet-chacha"),
        row("UDP, highest rate", ("udp-rate", "kpps"), BestRival, AtLeast(1.1)),
        row("UDP, flood", ("udp-flood", "kpps"), BestRival, AtLeast(1.3)),
    ];
    for (median, p99, measure) in [
        ("round trip 64 B, median", "round trip 64 B, p99", "rtt-64"),
        ("round trip 1 KiB, median", "round trip 1 KiB, p99", "rtt-1024"),
    ] {
        rows.push(row(median, (measure, "median"), BestRival, AtMost(0.65)));
        rows.push(row(median, (measure, "median"), Peer("boringtun"), AtMost(0.4)));
        rows.push(row(p99, (measure, "p99"), BestRival, AtMost(1.0)));
    }
    rows.push(row("memory idle, MiB", ("memory", "idle"), Nothing, AtMost(24.0)));
    rows.push(row("memory loaded, MiB", ("memory", "loaded"), Nothing, AtMost(48.0)));
    for (what, measure, key) in [
        ("TCP, small buffers", "tcp", "gbit"),
        ("UDP rate, small buffers", "udp-rate", "kpps"),
        ("UDP flood, small buffers", "udp-flood", "kpps"),
        ("TCP 0.01 % loss, small buffers", "loss-0.01", "gbit"),
        ("TCP 0.1 % loss, small buffers", "loss-0.1", "gbit"),
        ("TCP 1 % loss, small buffers", "loss-1", "gbit"),
    ] {
        rows.push(row(what, (measure, key), Peer(OURS), AtLeast(0.8)).of("clusternet-held"));
    }
    for (large, small, measure) in [
        ("PVM default route, 1 MiB", "PVM default route, 64 B", "pvm-default"),
        ("PVM direct route, 1 MiB", "PVM direct route, 64 B", "pvm-direct"),
        ("Open MPI, 1 MiB", "Open MPI, 64 B", "open-mpi"),
    ] {
        rows.push(row(large, (measure, "gbit"), BARE, AtLeast(0.3)));
        rows.push(row(small, (measure, "half_round_trip"), BARE, AtMost(2.5)));
    }
    rows
}

/// The best of the rivals in one value: who, and how much.
pub(crate) fn best_rival<'r>(
    report: &'r Report,
    measure: &str,
    key: &str,
    more_is_better: bool,
) -> Option<(&'r str, f64)> {
    report
        .names()
        .filter(|name| is_rival(name))
        .filter_map(|name| Some((name, report.median(name, measure, key)?.value)))
        .max_by(|(_, one), (_, other)| {
            let order = one.total_cmp(other);
            if more_is_better { order } else { order.reverse() }
        })
}

/// Every row of the run's setting that it has figures for.
pub(crate) fn reached(report: &Report) -> Vec<Reached> {
    targets(&report.setting)
        .into_iter()
        .filter_map(|target| {
            let Target { what, peer, measure, key, against, bound } = target;
            let value = report.median(peer, measure, key)?.value;
            let (who, other) = match against {
                Against::Nothing => (String::new(), None),
                Against::Peer(name) => {
                    (name.to_owned(), Some(report.median(name, measure, key)?.value))
                }
                Against::BestRival => {
                    let more = matches!(bound, Bound::AtLeast(_));
                    let (name, value) = best_rival(report, measure, key, more)?;
                    (format!("best: {name}"), Some(value))
                }
            };
            let ratio = other.map(|other| value / other);
            let held = ratio.unwrap_or(value);
            let (target, met) = match bound {
                Bound::AtLeast(bound) => (format!("≥ {bound:.2}"), held >= bound),
                Bound::AtMost(bound) => (format!("≤ {bound:.2}"), held <= bound),
            };
            Some(Reached { what, value, against: who, ratio, target, met })
        })
        .collect()
}
