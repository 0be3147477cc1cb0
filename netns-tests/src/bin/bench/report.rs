//! All that a run has seen, as it goes to the JSON file and comes back from it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::measures::Values;
use crate::meter::Spent;
use crate::options::{Device, Offload, Options};

/// A round is quiet if others worked for less than this share of one core meanwhile.
const QUIET: f64 = 0.5;

/// One run.
#[derive(Serialize, Deserialize)]
pub(crate) struct Report {
    /// Where and when.
    pub(crate) machine: Machine,
    /// How the link and clusternet were set.
    pub(crate) setting: Setting,
    /// Who took part, in the order of the tables, with versions.
    pub(crate) peers: Vec<(String, String)>,
    /// Who did not, and why.
    pub(crate) skipped: Vec<String>,
    /// Every measurement of every round.
    pub(crate) records: Vec<Record>,
}

/// The machine of a run.
#[derive(Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) date: String,
    pub(crate) commit: String,
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) kernel: String,
}

/// What differs between runs.
#[derive(Serialize, Deserialize)]
pub(crate) struct Setting {
    pub(crate) offload: Offload,
    pub(crate) mtu: u16,
    pub(crate) pinned: bool,
    /// What clusternet was told beyond what users tell it.
    pub(crate) clusternet: Vec<String>,
}

/// One measurement.
#[derive(Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) round: usize,
    pub(crate) peer: String,
    pub(crate) measure: String,
    /// Empty if it failed.
    pub(crate) values: Values,
    pub(crate) spent: Option<Spent>,
    pub(crate) error: Option<String>,
}

/// The middle of what the rounds gave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Median {
    pub(crate) value: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
    /// Whether it is made of quiet rounds.
    pub(crate) quiet: bool,
}

impl Report {
    /// A run that has seen nothing yet.
    pub(crate) fn new(options: &Options) -> Self {
        let mut clusternet = options.node.clone();
        clusternet.extend(options.suite.iter().map(|suite| format!("suite {suite}")));
        clusternet.extend(options.buffers.iter().map(|bytes| format!("buffers of {bytes} bytes")));
        if options.device == Device::Packet {
            clusternet.push("packet socket".to_owned());
        }
        Self {
            machine: Machine::this(),
            setting: Setting {
                offload: options.offload,
                mtu: options.mtu,
                pinned: options.pin,
                clusternet,
            },
            peers: Vec::new(),
            skipped: Vec::new(),
            records: Vec::new(),
        }
    }

    /// Reads one that was written.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("understand {}", path.display()))
    }

    /// Writes it.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))
    }

    /// The median of one value, over quiet rounds if there are any.
    pub(crate) fn median(&self, peer: &str, measure: &str, key: &str) -> Option<Median> {
        let found: Vec<(f64, bool)> = self
            .records
            .iter()
            .filter(|record| record.peer == peer && record.measure == measure)
            .filter_map(|record| {
                let quiet =
                    record.spent.is_none_or(|spent| spent.others < QUIET * spent.wall.max(0.1));
                Some((*record.values.get(key)?, quiet))
            })
            .collect();
        let quiet = found.iter().any(|(_, quiet)| *quiet);
        let mut values: Vec<f64> =
            found.into_iter().filter(|(_, q)| *q == quiet).map(|(value, _)| value).collect();
        values.sort_by(f64::total_cmp);
        let (low, high) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let value = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Some(Median { value, low, high, quiet })
    }

    /// The names of those who took part.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.peers.iter().map(|(name, _)| name.as_str())
    }

    /// Whether a measurement was made at all.
    pub(crate) fn has(&self, measure: &str) -> bool {
        self.records.iter().any(|record| record.measure == measure && !record.values.is_empty())
    }

    /// What failed and why, once each.
    pub(crate) fn failures(&self) -> BTreeSet<String> {
        let mut counts: BTreeMap<(&str, &str, &str), usize> = BTreeMap::new();
        for record in &self.records {
            if let Some(error) = &record.error {
                let line = error.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
                *counts.entry((&record.peer, &record.measure, line)).or_default() += 1;
            }
        }
        counts
            .into_iter()
            .map(|((peer, measure, line), times)| format!("{peer}, {measure} ({times} x): {line}"))
            .collect()
    }
}

impl Setting {
    /// In words, for headings.
    pub(crate) fn words(&self) -> String {
        let mut words = vec![match self.offload {
            Offload::Whole => "superpackets cross the link whole".to_owned(),
            Offload::Nic => "the link cuts packets".to_owned(),
        }];
        words.push(format!("MTU {}", self.mtu));
        if self.pinned {
            words.push("everything on one core".to_owned());
        }
        if !self.clusternet.is_empty() {
            words.push(format!("clusternet with {}", self.clusternet.join(", ")));
        }
        words.join(", ")
    }
}

impl Machine {
    fn this() -> Self {
        let said = |command: &mut Command| -> String {
            let output = command.output().ok().filter(|output| output.status.success());
            let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
            text.unwrap_or_default().trim().to_owned()
        };
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let processor = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
            .map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned());
        let here = env!("CARGO_MANIFEST_DIR");
        Self {
            date: said(Command::new("date").arg("+%Y-%m-%d %H:%M")),
            commit: said(Command::new("git").args(["-C", here, "describe", "--always", "--dirty"])),
            processor,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: said(Command::new("uname").arg("-r")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measures::values;

    fn report(rounds: &[(f64, f64)]) -> Report {
        let record = |(round, (value, others)): (usize, &(f64, f64))| Record {
            round,
            peer: "bare".to_owned(),
            measure: "tcp".to_owned(),
            values: values([("gbit", *value)]),
            spent: Some(Spent { tunnel: 0.0, programs: 0.0, others: *others, wall: 1.0 }),
            error: None,
        };
        Report {
            machine: Machine::this(),
            setting: Setting {
                offload: Offload::Whole,
                mtu: 1500,
                pinned: false,
                clusternet: Vec::new(),
            },
            peers: Vec::new(),
            skipped: Vec::new(),
            records: rounds.iter().enumerate().map(record).collect(),
        }
    }

    #[test]
    fn quiet_rounds_count_alone() {
        let found = report(&[(9.0, 1.9), (4.0, 0.1), (2.0, 0.2), (3.0, 0.0)]);
        let found = found.median("bare", "tcp", "gbit").unwrap();
        assert!(found.quiet);
        assert_eq!((found.value, found.low, found.high), (3.0, 2.0, 4.0));
    }

    #[test]
    fn without_quiet_rounds_all_count() {
        let found = report(&[(9.0, 1.9), (4.0, 1.1)]).median("bare", "tcp", "gbit").unwrap();
        assert!(!found.quiet);
        assert_eq!(found.value, 6.5);
        assert!(report(&[]).median("bare", "tcp", "gbit").is_none());
    }
}
