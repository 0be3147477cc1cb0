//! The node's commands: join, leave, run, shell, ssh, status, ping, doctor, demo.

mod demo;
mod doctor;
mod join;
mod leave;
mod ping;
mod run;
mod status;

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{Args, Subcommand};
use clusternet::words::id::Name;

use crate::Context;

/// What a node's user does.
#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Join a network: make this machine a node of it, for this user, until `leave`.
    #[command(after_help = "Examples:
  clusternet join lab/master.toml
  clusternet join master.toml --key ~/keys/a.key --name second
  ssh b clusternet join lab/master.toml        returns when b has joined")]
    Join(Join),
    /// Leave a network: end the instance and all that belongs to it.
    #[command(after_help = "Examples:
  clusternet leave
  clusternet leave lab --kill")]
    Leave(Leave),
    /// Run a command in the network; its exit status is this command's.
    #[command(after_help = "Own failures: 125, not executable: 126, not found: 127.

Examples:
  clusternet run -- pvm
  clusternet run -- mpirun -host a,b,c ./ring
  clusternet run --on lab ping b")]
    Run(Run),
    /// Open a shell in the network.
    #[command(after_help = "Example:
  clusternet shell --on lab")]
    Shell(On),
    /// Open a shell, or run a command, on another node.
    #[command(after_help = "Examples:
  clusternet ssh b
  clusternet ssh b uname -a")]
    Ssh(Ssh),
    /// Show nodes, addresses, paths, round trips, loss and bytes.
    #[command(after_help = "Examples:
  clusternet status
  clusternet status --watch
  clusternet status --json | jq '.peers[].name'")]
    Status(Status),
    /// Measure the round trip to a node, and say which path answered.
    #[command(after_help = "Example:
  clusternet ping b -c 3")]
    Ping(Ping),
    /// Try what this machine allows, and name the line an administrator could change.
    #[command(after_help = "Example:
  clusternet doctor")]
    Doctor(Doctor),
    /// Show a whole network on this machine, rootless, with the programs that are installed.
    #[command(after_help = "Example:
  clusternet demo --nodes 4")]
    Demo(Demo),
}

/// Which instance is meant.
#[derive(Debug, Args)]
pub(crate) struct On {
    /// The instance, where several run.
    #[arg(long, value_name = "INSTANCE")]
    pub(crate) on: Option<Name>,
}

/// Arguments of `join`.
#[derive(Debug, Args)]
pub(crate) struct Join {
    /// The network's public description.
    #[arg(value_name = "MASTER.TOML")]
    pub(crate) master: PathBuf,
    /// This node's key file; else it is looked for beside MASTER.TOML.
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// What the instance is called; else as the network.
    #[arg(long, value_name = "INSTANCE")]
    pub(crate) name: Option<Name>,
    /// Stay, log to standard error, and leave when this command ends.
    #[arg(long)]
    pub(crate) foreground: bool,
    /// How long to wait for a member to answer.
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = parse_wait)]
    pub(crate) wait: Duration,
}

/// Arguments of `leave`.
#[derive(Debug, Args)]
pub(crate) struct Leave {
    /// The instance, where several run.
    pub(crate) instance: Option<Name>,
    /// End the programs that run inside: TERM, and KILL after 5 seconds.
    #[arg(long)]
    pub(crate) kill: bool,
}

/// Arguments of `run`.
#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) on: On,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<OsString>,
}

/// Arguments of `ssh`.
#[derive(Debug, Args)]
pub(crate) struct Ssh {
    #[command(flatten)]
    pub(crate) on: On,
    /// The node.
    pub(crate) node: String,
    /// What to run there; a shell without it.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<OsString>,
}

/// Arguments of `status`.
#[derive(Debug, Args)]
pub(crate) struct Status {
    #[command(flatten)]
    pub(crate) on: On,
    /// Everything, for programs.
    #[arg(long)]
    pub(crate) json: bool,
    /// Show it again every second.
    #[arg(long)]
    pub(crate) watch: bool,
}

/// Arguments of `ping`.
#[derive(Debug, Args)]
pub(crate) struct Ping {
    #[command(flatten)]
    pub(crate) on: On,
    /// Name, NAME.NETWORK or overlay address.
    pub(crate) node: String,
    /// Stop after so many.
    #[arg(short = 'c', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) count: Option<u32>,
    /// Time between two.
    #[arg(short = 'i', long, value_name = "TIME", default_value = "1s", value_parser = parse_wait)]
    pub(crate) interval: Duration,
    /// How long an answer may take.
    #[arg(short = 'W', long, value_name = "TIME", default_value = "2s", value_parser = parse_wait)]
    pub(crate) timeout: Duration,
}

/// Arguments of `doctor`.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// For programs.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// How many nodes.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=16))]
    pub(crate) nodes: u8,
}

/// Runs one of them; the exit status.
pub(crate) fn run(command: NodeCommand, context: Context) -> anyhow::Result<u8> {
    match command {
        NodeCommand::Join(arguments) => join::run(&arguments, context),
        NodeCommand::Leave(arguments) => leave::run(&arguments),
        NodeCommand::Run(arguments) => run::run(arguments),
        NodeCommand::Shell(arguments) => run::shell(&arguments),
        NodeCommand::Ssh(arguments) => run::ssh(arguments),
        NodeCommand::Status(arguments) => status::run(&arguments, context),
        NodeCommand::Ping(arguments) => ping::run(&arguments),
        NodeCommand::Doctor(arguments) => doctor::run(&arguments),
        NodeCommand::Demo(arguments) => demo::run(&arguments),
    }
}

/// A time: a number with ms, s (also without unit), m or h.
fn parse_wait(text: &str) -> Result<Duration, String> {
    let digits =
        text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
    let (number, unit) = text.split_at(digits);
    let seconds = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => f64::NAN,
    };
    let number: f64 = number.parse().unwrap_or(f64::NAN);
    let found = number * seconds;
    if (0.0..=86_400.0).contains(&found) {
        Ok(Duration::from_secs_f64(found))
    } else {
        Err("a time is a number with ms, s, m or h, at most a day: 500ms, 15s, 2m".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units_and_an_end() {
        for (text, millis) in [
            ("15s", 15_000),
            ("2", 2_000),
            ("500ms", 500),
            ("0.2s", 200),
            ("2m", 120_000),
            ("0s", 0),
        ] {
            assert_eq!(parse_wait(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for bad in ["", "s", "-1s", "15 s", "1w", "25h", "1.2.3s", "NaN", "inf"] {
            assert!(parse_wait(bad).is_err(), "{bad}");
        }
    }
}
