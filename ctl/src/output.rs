//! What people read: standard output that may be closed at any time, tables, colour only on a terminal.

use std::io::{self, IsTerminal, Write};

use comfy_table::{ContentArrangement, Table, presets};

/// Whoever read standard output has gone away (`| head`): the command is over, successfully.
#[derive(Debug)]
pub(crate) struct Closed;

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("standard output was closed")
    }
}

impl std::error::Error for Closed {}

/// Writes bytes to standard output.
///
/// # Errors
/// [`Closed`], or why the writing failed.
pub(crate) fn print_bytes(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Closed.into()),
        Err(error) => Err(anyhow::Error::new(error).context("write standard output")),
    }
}

/// Writes one line (or several, without the last line's end) to standard output.
///
/// # Errors
/// As [`print_bytes`].
pub(crate) fn say(text: impl AsRef<str>) -> anyhow::Result<()> {
    let mut line = text.as_ref().to_owned();
    line.push('\n');
    print_bytes(line.as_bytes())
}

/// Writes a value as indented JSON.
///
/// # Errors
/// As [`print_bytes`].
pub(crate) fn say_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    say(serde_json::to_string_pretty(value)?)
}

/// Writes `clusternet: TEXT` to standard error; nobody can be told if that fails.
pub(crate) fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "clusternet: {text}");
}

/// Writes lines for people to standard error, while standard output carries a file.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Writes `clusternet: warning: TEXT` to standard error.
pub(crate) fn warn(text: &str) {
    complain(&format!("warning: {text}"));
}

/// Whether colour is welcome: standard output is a terminal and `NO_COLOR` is not set.
pub(crate) fn colour() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A table without frames; nothing is cut or wrapped, so that scripts and narrow terminals get the same text.
pub(crate) fn table<const N: usize>(heads: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(heads);
    table
}

/// Writes a table; columns two blanks apart, no blanks at line ends, bold heads where colour is welcome.
///
/// # Errors
/// As [`print_bytes`].
pub(crate) fn say_table(mut table: Table) -> anyhow::Result<()> {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let text = table.trim_fmt();
    match text.split_once('\n') {
        Some((heads, rows)) if colour() => say(format!("\u{1b}[1m{heads}\u{1b}[0m\n{rows}")),
        Some(_) | None => say(text),
    }
}
