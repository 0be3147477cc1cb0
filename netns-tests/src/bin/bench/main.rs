//! `make bench`: this tunnel beside others, side by side in one run on one machine.
//!
//! Two hosts of a lab, joined by a virtual cable, get one tunnel after the other, in random order,
//! round after round; the same programs measure each. What was measured goes to standard output as
//! tables, to `target/bench` as JSON with every round in it, and as plots. `docs/performance.md`
//! says how to read them.
//!
//! Nothing outlives a run, however it ends: everything happens inside the hosts of the lab, which
//! end with this process.

mod measures;
mod meter;
mod options;
mod pair;
mod peers;
mod pingpong;
mod plots;
mod programs;
mod report;
mod rounds;
mod tables;
mod targets;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use netns_tests::harness;

use crate::options::{Cli, Part};

fn main() -> ExitCode {
    if let Some(code) = harness::be_host_if_wanted() {
        return code;
    }
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    match cli.part {
        Some(Part::Pong { port }) => pingpong::serve(port),
        Some(Part::Ping { to, size, milliseconds }) => pingpong::ping(to, size, milliseconds),
        None if !cli.options.show.is_empty() => rounds::show(&cli.options.show),
        None => rounds::run(&cli.options),
    }
}
