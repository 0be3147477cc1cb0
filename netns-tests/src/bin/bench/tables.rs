//! A report as text: tables that read well in a terminal and are Markdown besides.

use std::fmt::Write as _;

use crate::pair::CONDITIONS;
use crate::report::Report;
use crate::targets::{best_rival, reached};

/// Rows of cells, the first of them the heading.
struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new<const N: usize>(heading: [&str; N]) -> Self {
        Self { rows: vec![heading.map(str::to_owned).to_vec()] }
    }

    /// The table below a title; nothing if no row holds a figure.
    fn render(&self, title: &str) -> String {
        let columns = self.rows[0].len();
        let width = |column: usize| {
            self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = format!("\n### {title}\n\n");
        for (index, row) in self.rows.iter().enumerate() {
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let pad = " ".repeat(width - cell.chars().count());
                let (before, after) =
                    if column == 0 { ("", pad) } else { (pad.as_str(), String::new()) };
                write!(text, "| {before}{cell}{after} ").ok();
            }
            text += "|\n";
            if index == 0 {
                for (column, width) in widths.iter().enumerate() {
                    let dashes = "-".repeat(width + 1);
                    text +=
                        &if column == 0 { format!("|{dashes}-") } else { format!("|{dashes}:") };
                }
                text += "|\n";
            }
        }
        text
    }
}

/// A cell's source: a measurement and one of its values, with so many decimals.
#[derive(Clone, Copy)]
struct Figure(&'static str, &'static str, usize);

impl Figure {
    /// The median of a peer; marked if no round was quiet.
    fn cell(self, report: &Report, peer: &str) -> String {
        let Self(measure, key, decimals) = self;
        match report.median(peer, measure, key) {
            Some(found) => {
                format!("{:.decimals$}{}", found.value, if found.quiet { "" } else { "*" })
            }
            None => "-".to_owned(),
        }
    }

    fn range(self, report: &Report, peer: &str) -> String {
        let Self(measure, key, decimals) = self;
        match report.median(peer, measure, key) {
            Some(found) => format!("{:.decimals$}-{:.decimals$}", found.low, found.high),
            None => "-".to_owned(),
        }
    }

    /// How many times another's it is.
    fn over(self, report: &Report, peer: &str, other: Option<f64>) -> String {
        let Self(measure, key, _) = self;
        match (report.median(peer, measure, key), other) {
            (Some(found), Some(other)) if other > 0.0 => ratio(found.value / other),
            (Some(_) | None, _) => "-".to_owned(),
        }
    }

    fn of_bare(self, report: &Report) -> Option<f64> {
        Some(report.median("bare", self.0, self.1)?.value)
    }

    fn of_best(self, report: &Report, more_is_better: bool) -> Option<f64> {
        Some(best_rival(report, self.0, self.1, more_is_better)?.1)
    }
}

fn ratio(value: f64) -> String {
    if value < 0.1 { format!("{value:.3} x") } else { format!("{value:.2} x") }
}

/// The whole report.
pub(crate) fn all(report: &Report) -> String {
    let machine = &report.machine;
    let mut text = format!(
        "\n## {}\n\n{}, {} cores, Linux {}, commit {}; {}\n",
        report.setting.words(),
        machine.processor,
        machine.cores,
        machine.kernel,
        machine.commit,
        machine.date
    );
    for (name, version) in &report.peers {
        writeln!(text, "- {name}: {version}").ok();
    }
    let sections: [fn(&Report) -> Option<String>; 7] =
        [tcp, udp, round_trips, memory, loss, programs, targets];
    for section in sections {
        text += &section(report).unwrap_or_default();
    }
    if text.contains('*') {
        text += "\n`*` no quiet round: others took more than half a core in each.\n";
    }
    for skipped in &report.skipped {
        writeln!(text, "\nskipped: {skipped}").ok();
    }
    for failure in report.failures() {
        writeln!(text, "\nnot measured: {failure}").ok();
    }
    text
}

fn tcp(report: &Report) -> Option<String> {
    if !report.has("tcp") && !report.has("netpipe-tcp") {
        return None;
    }
    let (gbit, cpu) = (Figure("tcp", "gbit", 2), Figure("tcp", "cpu", 2));
    let netpipe = Figure("netpipe-tcp", "gbit", 2);
    let mut table = Table::new([
        "peer",
        "Gbit/s",
        "range",
        "of bare",
        "of best peer",
        "CPU s/GB",
        "of best peer",
        "NetPIPE peak",
        "of bare",
    ]);
    for peer in report.names() {
        table.rows.push(vec![
            peer.to_owned(),
            gbit.cell(report, peer),
            gbit.range(report, peer),
            gbit.over(report, peer, gbit.of_bare(report)),
            gbit.over(report, peer, gbit.of_best(report, true)),
            cpu.cell(report, peer),
            cpu.over(report, peer, cpu.of_best(report, false)),
            netpipe.cell(report, peer),
            netpipe.over(report, peer, netpipe.of_bare(report)),
        ]);
    }
    Some(table.render("TCP, one flow (CPU: the tunnel's processes, both ends)"))
}

fn udp(report: &Report) -> Option<String> {
    if !report.has("udp-rate") && !report.has("udp-flood") {
        return None;
    }
    let (rate, flood) = (Figure("udp-rate", "kpps", 1), Figure("udp-flood", "kpps", 1));
    let lost = Figure("udp-flood", "loss", 1);
    let mut table = Table::new([
        "peer",
        "highest rate, kpps",
        "of bare",
        "of best peer",
        "flood delivered, kpps",
        "of bare",
        "of best peer",
        "lost, %",
    ]);
    for peer in report.names() {
        let mut row = vec![peer.to_owned()];
        for figure in [rate, flood] {
            row.push(figure.cell(report, peer));
            row.push(figure.over(report, peer, figure.of_bare(report)));
            row.push(figure.over(report, peer, figure.of_best(report, true)));
        }
        row.push(lost.cell(report, peer));
        table.rows.push(row);
    }
    Some(table.render("UDP, packets of 1,400 bytes (highest rate: at most 0.5 % lost)"))
}

fn round_trips(report: &Report) -> Option<String> {
    if !report.has("rtt-64") {
        return None;
    }
    let mut table = Table::new([
        "peer",
        "64 B median",
        "of bare",
        "of best peer",
        "p99",
        "1 KiB median",
        "of bare",
        "of best peer",
        "p99",
    ]);
    for peer in report.names() {
        let mut row = vec![peer.to_owned()];
        for measure in ["rtt-64", "rtt-1024"] {
            let median = Figure(measure, "median", 1);
            row.push(median.cell(report, peer));
            row.push(median.over(report, peer, median.of_bare(report)));
            row.push(median.over(report, peer, median.of_best(report, false)));
            row.push(Figure(measure, "p99", 1).cell(report, peer));
        }
        table.rows.push(row);
    }
    Some(table.render("Round trip, TCP ping-pong, µs"))
}

fn memory(report: &Report) -> Option<String> {
    if !report.has("memory") {
        return None;
    }
    let mut table = Table::new(["peer", "idle", "loaded"]);
    for peer in report.names().filter(|peer| report.median(peer, "memory", "idle").is_some()) {
        let cell = |key| Figure("memory", key, 1).cell(report, peer);
        table.rows.push(vec![peer.to_owned(), cell("idle"), cell("loaded")]);
    }
    Some(table.render("Resident memory of all processes of one node, MiB"))
}

fn loss(report: &Report) -> Option<String> {
    if !CONDITIONS.iter().any(|condition| report.has(condition.name)) {
        return None;
    }
    let mut table = Table::new([
        "peer",
        "no loss",
        "CPU",
        "0.01 %",
        "CPU",
        "0.1 %",
        "CPU",
        "1 %",
        "CPU",
        "reordering",
        "CPU",
    ]);
    for peer in report.names() {
        let mut row = vec![peer.to_owned()];
        for condition in CONDITIONS {
            row.push(Figure(condition.name, "gbit", 2).cell(report, peer));
            row.push(Figure(condition.name, "cpu", 2).cell(report, peer));
        }
        table.rows.push(row);
    }
    Some(
        table.render("TCP, one flow, over a link that cuts and loses packets, Gbit/s and CPU s/GB"),
    )
}

fn programs(report: &Report) -> Option<String> {
    let measures = ["pvm-default", "pvm-direct", "open-mpi"];
    if !measures.iter().any(|measure| report.has(measure)) {
        return None;
    }
    let mut table = Table::new([
        "peer",
        "PVM default, 64 B",
        "1 MiB",
        "of bare",
        "PVM direct, 64 B",
        "1 MiB",
        "of bare",
        "Open MPI, 64 B",
        "1 MiB",
        "of bare",
    ]);
    for peer in report.names() {
        let mut row = vec![peer.to_owned()];
        for measure in measures {
            let gbit = Figure(measure, "gbit", 2);
            row.push(Figure(measure, "half_round_trip", 1).cell(report, peer));
            row.push(gbit.cell(report, peer));
            row.push(gbit.over(report, peer, gbit.of_bare(report)));
        }
        if row.iter().skip(1).any(|cell| cell != "-") {
            table.rows.push(row);
        }
    }
    Some(table.render("NetPIPE: half round trip of 64 B in µs, throughput of 1 MiB in Gbit/s"))
}

fn targets(report: &Report) -> Option<String> {
    let reached = reached(report);
    if reached.is_empty() {
        return None;
    }
    let mut table = Table::new(["target", "clusternet", "against", "ratio", "wanted", "met"]);
    for row in reached {
        table.rows.push(vec![
            row.what.to_owned(),
            format!("{:.2}", row.value),
            row.against,
            row.ratio.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}")),
            row.target,
            if row.met { "yes" } else { "no" }.to_owned(),
        ]);
    }
    Some(table.render("Targets"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_whatever_they_hold() {
        let mut table = Table::new(["peer", "µs"]);
        table.rows.push(vec!["somebody".to_owned(), "12.5*".to_owned()]);
        let text = table.render("Round trip");
        let lines: Vec<&str> = text.lines().skip(3).collect();
        assert_eq!(lines, ["| peer     |    µs |", "|----------|------:|", "| somebody | 12.5* |"]);
    }
}
