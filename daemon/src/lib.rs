//! The daemon `clusternetd`. One binary, three roles: keeper, serve, inside. A library so that tests reach its parts; no API.

#[doc(hidden)]
pub mod builder;
mod control;
mod inside;
mod keeper;
mod logging;
mod runtime;
mod serve;
#[doc(hidden)]
pub mod ssh;
mod start;

use std::{ffi::OsString, process::ExitCode};

/// What the binary does: takes the role that its first argument names.
pub fn main() -> ExitCode {
    clusternet::sys::process::forget_callers_signals();
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let role = arguments.first().and_then(|role| role.to_str());
    let done = match role {
        Some("keeper") => keeper::run(),
        Some("serve") => serve::start(),
        Some("inside") => inside::run(),
        Some("--version" | "-V") => {
            println!("clusternetd {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Some(_) | None => {
            println!("{USAGE}");
            let asked = role.is_some_and(|role| role == "--help" || role == "-h");
            return ExitCode::from(if asked { 0 } else { 2 });
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("clusternetd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

const USAGE: &str = "\
clusternetd is the daemon of clusternet. `clusternet join` starts it; there is nothing to start by hand.

Usage: clusternetd keeper|serve|inside INSTANCE
       clusternetd --version";
