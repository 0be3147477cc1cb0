//! The bench itself: that it measures, whatever comes out.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use netns_tests::harness::{Check, Suite};
use netns_tests::programs::{fresh_suffix, need};
use serde_json::Value;

fn main() -> ExitCode {
    let checks = vec![
        Check::new("a_short_round_gives_tables_raw_figures_and_plots", short_round),
        Check::new("loss_and_reordering_meet_single_packets", lossy_link),
    ];
    Suite::new().group("bench", Results::new, checks).main()
}

/// A directory for what runs write.
struct Results {
    directory: PathBuf,
}

impl Results {
    fn new() -> Result<Self> {
        need(&["iperf3", "ethtool"])?;
        let directory = std::env::temp_dir().join(format!("clusternet-bench-{}", fresh_suffix()));
        std::fs::create_dir_all(&directory).context("make a directory for results")?;
        Ok(Self { directory })
    }

    /// Runs the bench for a second of each measurement, and gives its output and its JSON.
    fn run(&self, name: &str, arguments: &[&str]) -> Result<(String, Value)> {
        let json = self.directory.join(format!("{name}.json"));
        let output = Command::new(env!("CARGO_BIN_EXE_bench"))
            .args(["--quick", "--rounds", "1", "--seconds", "1"])
            .args(arguments)
            .arg("--json")
            .arg(&json)
            .output()
            .context("run the bench")?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success() && !said.contains("not measured"),
            "{said}\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let text = std::fs::read_to_string(&json).context("read what it wrote")?;
        Ok((said, serde_json::from_str(&text).context("read its JSON")?))
    }
}

impl Drop for Results {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.directory).ok();
    }
}

/// One value of one peer from the records of a run.
fn value(report: &Value, peer: &str, measure: &str, key: &str) -> Result<f64> {
    report["records"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|record| record["peer"] == peer && record["measure"] == measure)
        .and_then(|record| record["values"][key].as_f64())
        .with_context(|| format!("no {key} of {measure} of {peer} in {report:#}"))
}

fn short_round(results: &mut Results) -> Result<()> {
    let (said, report) =
        results.run("short", &["--peers", "bare,clusternet", "--only", "tcp,rtt,memory"])?;
    for peer in ["bare", "clusternet"] {
        ensure!(value(&report, peer, "tcp", "gbit")? > 0.0);
        ensure!(value(&report, peer, "rtt-64", "median")? > 0.0);
    }
    ensure!(value(&report, "clusternet", "tcp", "cpu")? > 0.0, "{report:#}");
    ensure!(value(&report, "clusternet", "memory", "loaded")? > 1.0, "{report:#}");
    for heading in ["### TCP, one flow", "### Round trip", "### Resident memory", "### Targets"] {
        ensure!(said.contains(heading), "no {heading} in {said}");
    }
    let plot = std::fs::read_to_string(results.directory.join("short-tcp.svg"));
    ensure!(plot.context("read a plot")?.contains(">clusternet</text>"));
    Ok(())
}

fn lossy_link(results: &mut Results) -> Result<()> {
    let (_, report) = results.run("loss", &["--peers", "bare", "--only", "loss"])?;
    let sent_again = |measure| value(&report, "bare", measure, "retransmits");
    ensure!(sent_again("loss-1")? > 10.0, "{report:#}");
    ensure!(value(&report, "bare", "reorder", "gbit")? > 0.0);
    Ok(())
}
