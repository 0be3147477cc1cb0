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
pub(crate) fn say_table(table: Table) -> anyhow::Result<()> {
    say(table_text(table, colour()))
}

/// What [`say_table`] writes, without the last line's end.
pub(crate) fn table_text(mut table: Table, colour: bool) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let text = table.trim_fmt();
    match text.split_once('\n') {
        Some((heads, rows)) if colour => format!("\u{1b}[1m{heads}\u{1b}[0m\n{rows}"),
        Some(_) | None => text,
    }
}

/// A short time as people read it: three digits and a unit.
pub(crate) fn milliseconds(time: std::time::Duration) -> String {
    let milliseconds = time.as_secs_f64() * 1e3;
    let digits = match milliseconds {
        m if m < 10.0 => 2,
        m if m < 100.0 => 1,
        _ => 0,
    };
    format!("{milliseconds:.digits$} ms")
}

/// Bytes as people read them, in binary units.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    // Precision is lost where nobody looks.
    #[allow(clippy::cast_precision_loss, reason = "shown with one digit")]
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// How long ago, in the largest unit that says something.
pub(crate) fn ago(time: std::time::Duration) -> String {
    match time.as_secs() {
        s @ 0..120 => format!("{s} s"),
        s @ 120..7200 => format!("{} min", s / 60),
        s @ 7200..172_800 => format!("{} h", s / 3600),
        s => format!("{} d", s / 86_400),
    }
}
