//! The daemon `clusternetd`. One binary, several roles: keeper, serve, inside. A library so that tests reach its parts; no API.

use std::process::ExitCode;

#[doc(hidden)]
pub mod builder;
#[doc(hidden)]
pub mod ssh;

/// What the binary does: takes the role that its arguments name.
pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
