//! The node's commands: join, leave, run, shell, ssh, status, ping, doctor, demo.

use clap::Subcommand;

use crate::Context;

/// What a node's user does.
#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {}

/// Runs one of them; the exit status.
pub(crate) fn run(command: NodeCommand, _context: Context) -> anyhow::Result<u8> {
    match command {}
}
