//! A report as pictures: bars in SVG, one file for each subject.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::peers::is_ours;
use crate::report::Report;

/// Widths and heights, in SVG's units.
const LABELS: f64 = 150.0;
const BARS: f64 = 520.0;
const BAR: f64 = 14.0;
const GAP: f64 = 10.0;
const HEAD: f64 = 44.0;

/// What one picture shows: for each peer a bar for each series.
struct Plot {
    file: &'static str,
    title: &'static str,
    /// What a series is called, and where its values are.
    series: &'static [(&'static str, &'static str, &'static str)],
}

const PLOTS: [Plot; 7] = [
    Plot { file: "tcp", title: "TCP, one flow, Gbit/s", series: &[("", "tcp", "gbit")] },
    Plot {
        file: "cpu",
        title: "Processor seconds per GB of TCP, both ends",
        series: &[("", "tcp", "cpu")],
    },
    Plot {
        file: "netpipe",
        title: "NetPIPE over TCP, peak, Gbit/s",
        series: &[("", "netpipe-tcp", "gbit")],
    },
    Plot {
        file: "udp",
        title: "Packets of 1,400 bytes, thousands a second",
        series: &[
            ("highest rate with 0.5 % lost at most", "udp-rate", "kpps"),
            ("delivered of a flood", "udp-flood", "kpps"),
        ],
    },
    Plot {
        file: "round-trip",
        title: "Round trip, TCP ping-pong, µs, median",
        series: &[("64 bytes", "rtt-64", "median"), ("1 KiB", "rtt-1024", "median")],
    },
    Plot {
        file: "memory",
        title: "Resident memory of one node, MiB",
        series: &[("idle", "memory", "idle"), ("loaded", "memory", "loaded")],
    },
    Plot {
        file: "loss",
        title: "TCP, one flow, over a link that loses packets, Gbit/s",
        series: &[
            ("no loss", "loss-0", "gbit"),
            ("0.01 %", "loss-0.01", "gbit"),
            ("0.1 %", "loss-0.1", "gbit"),
            ("1 %", "loss-1", "gbit"),
            ("1 % out of order", "reorder", "gbit"),
        ],
    },
];

/// Writes a picture for each subject that was measured, named after the JSON beside them.
pub(crate) fn write(report: &Report, json: &Path) -> Result<()> {
    for plot in &PLOTS {
        if let Some(svg) = plot.draw(report) {
            let stem = json.file_stem().unwrap_or_default().to_string_lossy();
            let path = json.with_file_name(format!("{stem}-{}.svg", plot.file));
            fs::write(&path, svg).with_context(|| format!("write {}", path.display()))?;
        }
    }
    Ok(())
}

impl Plot {
    fn subtitle(&self, report: &Report) -> String {
        if self.file == "loss" {
            return format!("the link cuts packets, MTU {}", report.setting.mtu);
        }
        report.setting.words()
    }

    fn draw(&self, report: &Report) -> Option<String> {
        let value = |peer: &str, index: usize| {
            let (_, measure, key) = self.series[index];
            report.median(peer, measure, key)
        };
        let every = 0..self.series.len();
        let peers: Vec<&str> = report
            .names()
            .filter(|peer| every.clone().any(|index| value(peer, index).is_some()))
            .collect();
        let most = peers
            .iter()
            .flat_map(|peer| every.clone().filter_map(|index| Some(value(peer, index)?.high)))
            .fold(0.0, f64::max);
        if most <= 0.0 {
            return None;
        }
        let group = BAR * self.series.len() as f64 + GAP;
        let legend = if self.series.len() > 1 { 20.0 } else { 0.0 };
        let height = HEAD + legend + group * peers.len() as f64 + GAP;
        let width = LABELS + BARS + 80.0;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
             <text x=\"10\" y=\"18\" font-size=\"14\" font-weight=\"bold\">{}</text>\n\
             <text x=\"10\" y=\"34\" fill=\"#666\">{}</text>\n",
            escape(self.title),
            escape(&self.subtitle(report)),
        );
        if self.series.len() > 1 {
            let mut x = 10.0;
            for (index, (name, _, _)) in self.series.iter().enumerate() {
                let (shade, y) = (opacity(index), HEAD + 4.0);
                writeln!(
                    svg,
                    "<rect x=\"{x}\" y=\"{y}\" width=\"10\" height=\"10\" fill=\"#444\" fill-opacity=\"{shade}\"/>\
                     <text x=\"{}\" y=\"{}\">{}</text>",
                    x + 14.0,
                    y + 10.0,
                    escape(name)
                )
                .ok();
                x += 30.0 + 7.0 * name.chars().count() as f64;
            }
        }
        for (row, peer) in peers.iter().enumerate() {
            let top = HEAD + legend + GAP + group * row as f64;
            let colour = match *peer {
                "bare" => "#888888",
                ours if is_ours(ours) => "#c2410c",
                _ => "#1d4ed8",
            };
            let middle = top + (group - GAP) / 2.0 + 4.0;
            writeln!(
                svg,
                "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\">{}</text>",
                LABELS - 8.0,
                escape(peer)
            )
            .ok();
            for index in every.clone() {
                let Some(found) = value(peer, index) else { continue };
                let (y, shade) = (top + BAR * index as f64, opacity(index));
                let at = |value: f64| value / most * BARS;
                let (length, low, high) = (at(found.value), at(found.low), at(found.high));
                let (line, end) = (y + BAR / 2.0, LABELS + high.max(length) + 6.0);
                let (bar, digits) = (BAR - 2.0, if found.value < 100.0 { 2 } else { 0 });
                writeln!(
                    svg,
                    "<rect x=\"{LABELS}\" y=\"{y}\" width=\"{length:.1}\" height=\"{bar}\" fill=\"{colour}\" fill-opacity=\"{shade}\"/>\
                     <line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{line}\" y2=\"{line}\" stroke=\"black\"/>\
                     <text x=\"{end:.1}\" y=\"{:.1}\" font-size=\"11\">{:.digits$}</text>",
                    LABELS + low,
                    LABELS + high,
                    y + BAR - 3.0,
                    found.value
                )
                .ok();
            }
        }
        svg += "</svg>\n";
        Some(svg)
    }
}

/// Later series are paler.
fn opacity(index: usize) -> f64 {
    [1.0, 0.75, 0.55, 0.4, 0.28].get(index).copied().unwrap_or(0.2)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
