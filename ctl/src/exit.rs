//! Exit statuses, and how an error is told.

use std::process::ExitCode;

/// The answer is no.
pub(crate) const NO: u8 = 1;
/// Wrong use, as clap's own errors.
pub(crate) const WRONG_USE: u8 = 2;
/// The daemon cannot be reached.
pub(crate) const NO_DAEMON: u8 = 3;

/// An error that wants its own exit status: put it anywhere in an `anyhow` chain.
#[derive(Debug)]
pub(crate) enum Special {
    /// The arguments contradict each other in a way that clap cannot see.
    WrongUse(String),
    /// No daemon answers on the control socket.
    NoDaemon(String),
}

impl std::fmt::Display for Special {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::WrongUse(text) | Self::NoDaemon(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Special {}

/// Wrong use, with what is wrong and what to do.
pub(crate) fn wrong_use(text: impl Into<String>) -> anyhow::Error {
    Special::WrongUse(text.into()).into()
}

/// No daemon, with where it was looked for and what to do.
pub(crate) fn no_daemon(text: impl Into<String>) -> anyhow::Error {
    Special::NoDaemon(text.into()).into()
}

/// Tells the error on standard error and chooses the status. A closed standard output is no error.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if error.chain().any(|cause| cause.is::<crate::output::Closed>()) {
        return ExitCode::SUCCESS;
    }
    crate::output::complain(&format!("{error:#}"));
    let status = error.chain().find_map(|cause| cause.downcast_ref::<Special>());
    ExitCode::from(match status {
        Some(Special::WrongUse(_)) => WRONG_USE,
        Some(Special::NoDaemon(_)) => NO_DAEMON,
        None => NO,
    })
}
