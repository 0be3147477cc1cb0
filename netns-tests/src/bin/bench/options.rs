//! The command line, and what it means for a run.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

/// Measures clusternet beside other tunnels, on hosts of its own making (needs root).
#[derive(Parser)]
#[command(name = "bench", args_conflicts_with_subcommands = true)]
pub(crate) struct Cli {
    /// What this process is a part of a measurement for.
    #[command(subcommand)]
    pub(crate) part: Option<Part>,
    /// The run.
    #[command(flatten)]
    pub(crate) options: Options,
}

/// The parts that a run starts on its hosts.
#[derive(Subcommand)]
pub(crate) enum Part {
    /// Answers every message with itself.
    #[command(hide = true)]
    Pong {
        /// TCP port.
        port: u16,
    },
    /// Times round trips to a `pong` and prints them as JSON.
    #[command(hide = true)]
    Ping {
        /// Where the `pong` listens.
        to: SocketAddr,
        /// Bytes of a message.
        size: usize,
        /// How long.
        milliseconds: u64,
    },
}

/// A group of measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Group {
    /// One flow: throughput, and processor time per gigabyte.
    Tcp,
    /// Packets of 1,400 bytes: a flood, and the highest rate with 0.5 % loss at most.
    Udp,
    /// Round trips of 64 bytes and 1 KiB.
    Rtt,
    /// The peak of NetPIPE over TCP.
    Netpipe,
    /// Resident memory, idle and loaded.
    Memory,
    /// One flow over a link that loses or reorders.
    Loss,
    /// NetPIPE over PVM and Open MPI.
    Programs,
}

/// Whether superpackets cross the link whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Offload {
    /// A virtual cable as it comes: they do.
    Whole,
    /// As over a plain Ethernet card: the link cuts every packet, the receiver joins them again.
    Nic,
}

/// Which device carries the LAN on a clusternet node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Device {
    /// A TUN.
    Tun,
    /// A packet socket, as where `/dev/net/tun` may not be opened.
    Packet,
}

/// What a person asks for.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Under three minutes: fewer peers, rounds and measurements, each shorter
    #[arg(long)]
    quick: bool,
    /// Who takes part: bare, boringtun, gotatun, wireguard-go, wireguard-go-old, ssh, clusternet, and
    /// clusternet with suffixes -chacha, -packet, -held (socket buffers of 212,992 bytes)
    #[arg(long, value_delimiter = ',')]
    peers: Option<Vec<String>>,
    /// How often each is measured
    #[arg(long)]
    rounds: Option<usize>,
    /// What is measured
    #[arg(long, value_delimiter = ',')]
    only: Option<Vec<Group>>,
    /// Whether superpackets cross the link whole
    #[arg(long, default_value = "whole")]
    pub(crate) offload: Offload,
    /// MTU of the link
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u16).range(1500..=9000))]
    pub(crate) mtu: u16,
    /// Both ends and the programs on one core
    #[arg(long)]
    pub(crate) pin: bool,
    /// Holds clusternet's socket buffers to so many bytes
    #[arg(long)]
    pub(crate) buffers: Option<u32>,
    /// The suite that clusternet is configured to use
    #[arg(long)]
    pub(crate) suite: Option<String>,
    /// Which device carries clusternet's LAN
    #[arg(long, default_value = "tun")]
    pub(crate) device: Device,
    /// A line for the `[node]` table of clusternet's configuration; may be given more than once
    #[arg(long, value_name = "LINE")]
    pub(crate) node: Vec<String>,
    /// Seconds of one TCP flow; the other measurements follow it
    #[arg(long)]
    seconds: Option<u32>,
    /// Where the JSON goes; the plots go beside it [default: target/bench/TIME.json]
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
    /// Prints the tables of earlier runs again, from their JSON
    #[arg(long, num_args = 1.., value_name = "FILE")]
    pub(crate) show: Vec<PathBuf>,
}

/// How long each measurement takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Durations {
    /// One TCP flow, seconds.
    pub(crate) tcp: u32,
    /// A UDP flood, seconds.
    pub(crate) flood: u32,
    /// At most so many probes of a second for the highest UDP rate.
    pub(crate) probes: u32,
    /// Round trips of one size, milliseconds.
    pub(crate) round_trips: u64,
    /// How long NetPIPE may take before what it reached counts, seconds.
    pub(crate) netpipe: u64,
}

impl Options {
    /// Who takes part, in the order of the tables.
    pub(crate) fn peers(&self) -> Vec<String> {
        let names: &[&str] = if self.quick {
            &["bare", "gotatun", "wireguard-go", "clusternet"]
        } else {
            &[
                "bare",
                "boringtun",
                "gotatun",
                "wireguard-go-old",
                "wireguard-go",
                "ssh",
                "clusternet",
                "clusternet-chacha",
                "clusternet-held",
            ]
        };
        let default = || names.iter().map(|name| (*name).to_owned()).collect();
        self.peers.clone().unwrap_or_else(default)
    }

    /// How many rounds.
    pub(crate) fn rounds(&self) -> usize {
        self.rounds.unwrap_or(if self.quick { 2 } else { 5 })
    }

    /// Whether a group is measured.
    pub(crate) fn wants(&self, group: Group) -> bool {
        match &self.only {
            Some(only) => only.contains(&group),
            None => !self.quick || !matches!(group, Group::Loss | Group::Programs),
        }
    }

    /// How long each measurement takes.
    pub(crate) fn durations(&self) -> Durations {
        let tcp = self.seconds.unwrap_or(if self.quick { 2 } else { 5 }).max(1);
        let long = !self.quick && tcp > 2;
        Durations {
            tcp,
            flood: if long { 3 } else { 1 },
            probes: if long { 9 } else { 5 },
            round_trips: u64::from(tcp) * if long { 400 } else { 350 },
            netpipe: if long { 15 } else { 4 },
        }
    }
}
