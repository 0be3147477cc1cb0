//! A run: rounds, in each of which every peer is brought up, measured and ended, in random order.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use netns_tests::binaries;
use netns_tests::clock::now;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::measures::{Stage, Values, values};
use crate::meter::{Meter, Spent};
use crate::options::{Group, Options};
use crate::pair::{CONDITIONS, Medium, Pair};
use crate::peers::Peer;
use crate::programs::{Programs, Route};
use crate::report::{Record, Report};
use crate::{plots, tables};

/// Before memory is taken as idle: daemons give back what their start needed.
const SETTLE: Duration = Duration::from_millis(500);

/// Prints the tables of reports that were written.
pub(crate) fn show(paths: &[PathBuf]) -> Result<()> {
    for path in paths {
        print(&Report::read(path)?)?;
    }
    Ok(())
}

/// Measures, prints and writes.
pub(crate) fn run(options: &Options) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: needs root to make network namespaces; run: sudo make bench");
        return Ok(());
    }
    let started = now();
    binaries::build_once()?;
    let mut report = Report::new(options);
    if options.pin {
        // Before anything is started: children and their children keep to it.
        let mut core = CpuSet::new();
        core.set(0).context("name the first core")?;
        sched_setaffinity(Pid::from_raw(0), &core).context("keep to the first core")?;
    }
    let path = place(options)?;
    let mut peers = Vec::new();
    for name in options.peers() {
        let peer = Peer::named(&name, options)?;
        match peer.version() {
            Ok(version) => {
                report.peers.push((name, version));
                peers.push(peer);
            }
            Err(why) => {
                println!("skipped: {name}: {why:#}");
                report.skipped.push(format!("{name}: {why:#}"));
            }
        }
    }
    for round in 0..options.rounds() {
        shuffle(&mut peers);
        for peer in &peers {
            Turn { options, peer, round, report: &mut report }.take()?;
        }
        // What a run that is interrupted has seen is not lost.
        report.write(&path)?;
    }
    print(&report)?;
    plots::write(&report, &path)?;
    println!("\n{:.0} s; every round: {}", started.elapsed().as_secs_f64(), path.display());
    Ok(())
}

fn print(report: &Report) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(tables::all(report).as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Where the JSON goes.
fn place(options: &Options) -> Result<PathBuf> {
    let path = match &options.json {
        Some(path) => path.clone(),
        None => {
            let target = binaries::target_directory()?;
            let stamp = std::process::Command::new("date").arg("+%Y%m%d-%H%M%S").output();
            let stamp = stamp.context("ask for the date")?.stdout;
            let name = format!("{}.json", String::from_utf8_lossy(&stamp).trim());
            target.parent().unwrap_or(&target).join("bench").join(name)
        }
    };
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("make {}", directory.display()))?;
    }
    Ok(path)
}

/// Fisher and Yates; the standard library's hasher is seeded by the system.
fn shuffle<T>(items: &mut [T]) {
    for last in (1..items.len()).rev() {
        let random = RandomState::new().build_hasher().finish();
        items.swap(last, (random % (last as u64 + 1)) as usize);
    }
}

/// One peer's turn in a round.
struct Turn<'r> {
    options: &'r Options,
    peer: &'r Peer,
    round: usize,
    report: &'r mut Report,
}

impl Turn<'_> {
    fn take(&mut self) -> Result<()> {
        let wants = |group| self.options.wants(group);
        let on_a_cable =
            [Group::Tcp, Group::Udp, Group::Rtt, Group::Netpipe, Group::Memory, Group::Programs];
        let (on_a_cable, lossy) = (on_a_cable.into_iter().any(wants), wants(Group::Loss));
        if on_a_cable {
            self.on(Medium::Cable, Self::cable)?;
        }
        if lossy {
            self.on(Medium::Middle, Self::middle)?;
        }
        Ok(())
    }

    /// Brings the peer up on fresh hosts and measures; a tunnel that does not come up is recorded as such.
    fn on(
        &mut self,
        medium: Medium,
        measure: impl FnOnce(&mut Self, &Stage<'_>, &Meter) -> Result<()>,
    ) -> Result<()> {
        let pair = Pair::new(self.peer.options(self.options), medium).context("make the hosts")?;
        let tunnel = match self.peer.up(&pair, self.options.mtu) {
            Ok(tunnel) => tunnel,
            Err(error) => {
                self.record("up", Err(error));
                return Ok(());
            }
        };
        let meter = Meter::new(&pair)?;
        let durations = self.options.durations();
        let stage = Stage { pair: &pair, tunnel: &tunnel, durations };
        match stage.servers() {
            Ok(_servers) => measure(self, &stage, &meter),
            Err(error) => {
                self.record("servers", Err(error));
                Ok(())
            }
        }
    }

    fn cable(&mut self, stage: &Stage<'_>, meter: &Meter) -> Result<()> {
        let wants = |group| self.options.wants(group);
        let [tcp, udp, rtt, netpipe, memory, programs] = [
            wants(Group::Tcp),
            wants(Group::Udp) && stage.tunnel.carries_packets,
            wants(Group::Rtt),
            wants(Group::Netpipe),
            wants(Group::Memory),
            wants(Group::Programs) && self.peer.runs_programs(),
        ];
        std::thread::sleep(SETTLE);
        let idle = meter.memory();
        if tcp {
            self.measure("tcp", meter, || stage.tcp());
        }
        if udp {
            self.measure("udp-flood", meter, || stage.udp_flood());
            self.measure("udp-rate", meter, || stage.udp_rate());
        }
        if rtt {
            self.measure("rtt-64", meter, || stage.round_trips(64));
            self.measure("rtt-1024", meter, || stage.round_trips(1024));
        }
        if netpipe {
            self.measure("netpipe-tcp", meter, || stage.netpipe());
        }
        if memory && idle > 0.0 {
            let found = values([("idle", idle), ("loaded", meter.memory())]);
            self.record("memory", Ok((found, None)));
        }
        if programs {
            match Programs::new(stage) {
                Ok(programs) => {
                    let pvm = |route| programs.pvm(route);
                    self.measure("pvm-default", meter, || pvm(Route::Default));
                    self.measure("pvm-direct", meter, || pvm(Route::Direct));
                    self.measure("open-mpi", meter, || programs.open_mpi());
                }
                Err(error) => self.record("programs", Err(error)),
            }
        }
        Ok(())
    }

    fn middle(&mut self, stage: &Stage<'_>, meter: &Meter) -> Result<()> {
        for condition in CONDITIONS {
            stage.pair.set(condition)?;
            self.measure(condition.name, meter, || stage.tcp());
        }
        Ok(())
    }

    fn measure(&mut self, name: &str, meter: &Meter, measure: impl FnOnce() -> Result<Values>) {
        let outcome = meter.around(measure);
        self.record(name, outcome.map(|(values, spent)| (values, Some(spent))));
    }

    fn record(&mut self, measure: &str, outcome: Result<(Values, Option<Spent>)>) {
        let mut record = Record {
            round: self.round,
            peer: self.peer.name.clone(),
            measure: measure.to_owned(),
            values: Values::new(),
            spent: None,
            error: None,
        };
        match outcome {
            Ok((mut values, spent)) => {
                if let Some(gigabytes) = values.get("gigabytes").filter(|value| **value > 0.0)
                    && let Some(spent) = spent.filter(|spent| spent.tunnel > 0.0)
                {
                    let cost = spent.tunnel / gigabytes;
                    values.insert("cpu".to_owned(), cost);
                }
                record.values = values;
                record.spent = spent;
            }
            Err(error) => record.error = Some(format!("{error:#}")),
        }
        eprintln!("{}", progress(&record));
        self.report.records.push(record);
    }
}

/// A line for whoever waits.
fn progress(record: &Record) -> String {
    let mut line = format!("{} {:<18} {:<12}", record.round + 1, record.peer, record.measure);
    for (name, value) in &record.values {
        line += &format!(" {name} {value:.2}");
    }
    if let Some(spent) = record.spent {
        line += &format!(" others {:.2}/s", spent.others / spent.wall.max(0.01));
    }
    if let Some(error) = &record.error {
        line += &format!(" failed: {error}");
    }
    line
}
