//! What a measurement costs: processor time and memory of the tunnel's processes, and how much the
//! rest of the machine was doing meanwhile.
//!
//! Every process of a host is in the host's process namespace, by which it is found wherever its
//! parent is. Those that were there when the tunnel had come up, and their children, are the tunnel;
//! the others are programs that measure. What the kernel does in threads of its own is in neither.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use netns_tests::clock::now;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde::{Deserialize, Serialize};

use crate::pair::{Pair, SIDES};

/// Processor seconds over a measurement.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Spent {
    /// All processes of the tunnel, both ends.
    pub(crate) tunnel: f64,
    /// The programs that measured, and this one.
    pub(crate) programs: f64,
    /// Everything else: other people's work, and the kernel's own threads.
    pub(crate) others: f64,
    /// Seconds that it took.
    pub(crate) wall: f64,
}

/// Counts for one tunnel on one pair of hosts.
pub(crate) struct Meter {
    /// The process namespaces of the hosts, and their first processes.
    hosts: [(PathBuf, i32); 2],
    tunnel: BTreeSet<i32>,
}

/// A process on one of the hosts.
struct Process {
    side: usize,
    parent: i32,
    seconds: f64,
}

impl Meter {
    /// Takes everything that runs on the hosts now for the tunnel.
    pub(crate) fn new(pair: &Pair) -> Result<Self> {
        let host = |side: &str| -> Result<(PathBuf, i32)> {
            let pid = pair.lab().on(side).pid();
            let namespace = fs::read_link(format!("/proc/{pid}/ns/pid"))
                .with_context(|| format!("find the process namespace of {side}"))?;
            Ok((namespace, pid.try_into().context("process number")?))
        };
        let mut meter = Self { hosts: [host(SIDES[0])?, host(SIDES[1])?], tunnel: BTreeSet::new() };
        meter.tunnel = meter.processes().into_keys().collect();
        Ok(meter)
    }

    /// Runs a measurement and tells what it cost.
    pub(crate) fn around<T>(&self, measure: impl FnOnce() -> Result<T>) -> Result<(T, Spent)> {
        let before = self.snapshot()?;
        let found = measure()?;
        let after = self.snapshot()?;
        let (tunnel, programs) = (after.tunnel - before.tunnel, after.programs - before.programs);
        let spent = Spent {
            tunnel,
            programs,
            others: (after.busy - before.busy - tunnel - programs).max(0.0),
            wall: after.at.duration_since(before.at).as_secs_f64(),
        };
        Ok((found, spent))
    }

    /// Resident memory of the tunnel's processes on the end that has more of it, MiB.
    pub(crate) fn memory(&self) -> f64 {
        let processes = self.processes();
        let mut sums = [0.0; 2];
        for pid in self.tunnel_of(&processes) {
            let Some(process) = processes.get(&pid) else { continue };
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let kib = status
                .lines()
                .find_map(|line| line.strip_prefix("VmRSS:"))
                .and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
            sums[process.side] += kib.unwrap_or(0.0) / 1024.0;
        }
        sums[0].max(sums[1])
    }

    fn snapshot(&self) -> Result<Snapshot> {
        let processes = self.processes();
        let tunnel_pids = self.tunnel_of(&processes);
        let (mut tunnel, mut programs) = (0.0, 0.0);
        for (pid, process) in &processes {
            let sum = if tunnel_pids.contains(pid) { &mut tunnel } else { &mut programs };
            *sum += process.seconds;
        }
        for who in [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN] {
            let usage = getrusage(who).context("ask for our own processor time")?;
            let time = usage.user_time() + usage.system_time();
            programs += time.num_microseconds() as f64 / 1e6;
        }
        Ok(Snapshot { tunnel, programs, busy: busy()?, at: now() })
    }

    /// The processes on both hosts, but for the first of each.
    fn processes(&self) -> BTreeMap<i32, Process> {
        let mut found = BTreeMap::new();
        let Ok(directory) = fs::read_dir("/proc") else { return found };
        for entry in directory.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // A process may be gone by the time we look.
            let Ok(namespace) = fs::read_link(entry.path().join("ns/pid")) else { continue };
            let side = self.hosts.iter().position(|host| host.0 == namespace && host.1 != pid);
            let Some(side) = side else { continue };
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            if let Some((parent, seconds)) = parse_stat(&stat) {
                found.insert(pid, Process { side, parent, seconds });
            }
        }
        found
    }

    /// Those of `processes` that are the tunnel or come from it.
    fn tunnel_of(&self, processes: &BTreeMap<i32, Process>) -> BTreeSet<i32> {
        let mut tunnel = self.tunnel.clone();
        loop {
            let children: Vec<i32> = processes
                .iter()
                .filter(|(pid, process)| tunnel.contains(&process.parent) && !tunnel.contains(pid))
                .map(|(pid, _)| *pid)
                .collect();
            if children.is_empty() {
                return tunnel;
            }
            tunnel.extend(children);
        }
    }
}

struct Snapshot {
    tunnel: f64,
    programs: f64,
    busy: f64,
    at: std::time::Instant,
}

/// Parent and processor seconds from `/proc/PID/stat`; the name before them may hold anything.
fn parse_stat(stat: &str) -> Option<(i32, f64)> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: f64 = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
    Some((fields.get(1)?.parse().ok()?, ticks / ticks_per_second()))
}

/// Seconds that the machine's processors have worked in all.
fn busy() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    let numbers: Vec<f64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|word| word.parse().ok())
        .collect();
    // user, nice, system, irq, softirq, and what the machine below gave to others.
    let worked: f64 = [0, 1, 2, 5, 6, 7].iter().filter_map(|index| numbers.get(*index)).sum();
    Ok(worked / ticks_per_second())
}

fn ticks_per_second() -> f64 {
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK);
    ticks.ok().flatten().map_or(100.0, |ticks| ticks as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_hide_the_fields() {
        let stat = "12 (a) b (c)) S 7 12 12 0 -1 4 1 2 3 4 150 50 9 9 20 0 1 0 5 6 7";
        let (parent, seconds) = parse_stat(stat).unwrap();
        assert_eq!(parent, 7);
        assert!((seconds - 200.0 / ticks_per_second()).abs() < 1e-9);
        assert!(parse_stat("12 (gone").is_none());
    }
}
