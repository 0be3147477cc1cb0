//! The admin's commands: init, issue, request, revoke, update, list, inspect.

use clap::Subcommand;

use crate::Context;

/// What a network's admin does.
#[derive(Debug, Subcommand)]
pub(crate) enum AdminCommand {}

/// Runs one of them; the exit status.
pub(crate) fn run(command: AdminCommand, _context: Context) -> anyhow::Result<u8> {
    match command {}
}
