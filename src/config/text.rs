//! Reading TOML so that every refusal names line and field, and no message shows more of the file than that.

use std::{fmt, marker::PhantomData, ops::Range, str::FromStr};

use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::words::signed::SignedError;

/// Longer messages are cut: they repeat what the file says.
const MAX_MESSAGE: usize = 300;

/// Why the text of a file was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// Refused before it was parsed.
    #[error("longer than the {} KiB that such a file may have", .0 / 1024)]
    TooLong(usize),
    /// Not TOML, or something is missing or wrong that belongs to no one field.
    #[error("line {line}: {message}")]
    Line {
        /// From 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// A field is unknown or its value is refused.
    #[error("line {line}, field `{field}`: {message}")]
    Field {
        /// From 1.
        line: usize,
        /// Path of the field, as `master[0].endpoints[1]`.
        field: String,
        /// What is wrong.
        message: String,
    },
    /// A field holds something signed that does not hold.
    #[error("line {line}, field `{field}`: {error}")]
    Signed {
        /// From 1.
        line: usize,
        /// Path of the field.
        field: String,
        /// Why it was refused.
        error: SignedError,
    },
}

/// The names of the top-level tables and fields.
///
/// # Errors
/// [`FileError`] where the text is too long or not TOML.
pub(super) fn tables(text: &str, limit: usize) -> Result<Vec<String>, FileError> {
    let tree = tree(text, limit)?;
    Ok(tree.get_ref().keys().map(|key| key.get_ref().to_string()).collect())
}

/// Parses a whole file.
///
/// # Errors
/// [`FileError`].
pub(super) fn parse<T: DeserializeOwned>(text: &str, limit: usize) -> Result<T, FileError> {
    let tree = tree(text, limit)?;
    T::deserialize(toml::Deserializer::from(tree))
        .map_err(|error| refuse(text, error.span(), error.message()))
}

/// Refuses the value at `span`, as `parse` does.
pub(super) fn refuse(text: &str, span: Option<Range<usize>>, message: &str) -> FileError {
    let message = printable(message);
    let Some(span) = span else { return FileError::Line { line: 1, message } };
    let line = line_of(text, span.start);
    match field_at(text, &span) {
        Some(field) => FileError::Field { line, field, message },
        None => FileError::Line { line, message },
    }
}

/// Refuses the signed thing at `span`.
pub(super) fn refuse_signed(text: &str, span: Range<usize>, error: SignedError) -> FileError {
    FileError::Signed {
        line: line_of(text, span.start),
        field: field_at(text, &span).unwrap_or_default(),
        error,
    }
}

fn tree(text: &str, limit: usize) -> Result<Spanned<DeTable<'_>>, FileError> {
    if text.len() > limit {
        return Err(FileError::TooLong(limit));
    }
    DeTable::parse(text).map_err(|error| {
        let line = error.span().map_or(1, |span| line_of(text, span.start));
        FileError::Line { line, message: printable(error.message()) }
    })
}

/// What a terminal shows as it is, and not too much of it: file contents stand in messages.
fn printable(message: &str) -> String {
    let clean = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    message.chars().take(MAX_MESSAGE).map(clean).collect()
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

/// The path of the innermost key or value that holds `span`; `None` for the file as a whole.
fn field_at(text: &str, span: &Range<usize>) -> Option<String> {
    let tree = DeTable::parse(text).ok()?;
    let mut best: Option<(usize, String)> = None;
    search(tree.get_ref(), "", span, &mut best);
    best.map(|(_, path)| printable(&path))
}

// The span of a `[table]` is its header's, not its content's: everything is visited, the narrowest wins.
fn search(
    table: &DeTable<'_>,
    at: &str,
    wanted: &Range<usize>,
    best: &mut Option<(usize, String)>,
) {
    for (key, value) in table {
        let path = if at.is_empty() {
            key.get_ref().to_string()
        } else {
            format!("{at}.{}", key.get_ref())
        };
        offer(&path, &key.span(), wanted, best);
        visit(value, &path, wanted, best);
    }
}

fn visit(
    value: &Spanned<DeValue<'_>>,
    path: &str,
    wanted: &Range<usize>,
    best: &mut Option<(usize, String)>,
) {
    offer(path, &value.span(), wanted, best);
    if let Some(table) = value.get_ref().as_table() {
        search(table, path, wanted, best);
    } else if let Some(array) = value.get_ref().as_array() {
        for (n, item) in array.iter().enumerate() {
            visit(item, &format!("{path}[{n}]"), wanted, best);
        }
    }
}

fn offer(
    path: &str,
    span: &Range<usize>,
    wanted: &Range<usize>,
    best: &mut Option<(usize, String)>,
) {
    let holds = span.start <= wanted.start && wanted.end <= span.end;
    if holds && best.as_ref().is_none_or(|(width, _)| span.len() <= *width) {
        *best = Some((span.len(), path.to_owned()));
    }
}

/// A value written as a string that its type knows how to read.
#[derive(Debug, Clone)]
pub(super) struct Text<T>(pub(super) T);

impl<'de, T> Deserialize<'de> for Text<T>
where
    T: FromStr,
    T::Err: fmt::Display,
{
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        string(from, T::from_str).map(Self)
    }
}

/// Reads a string through `read`, without a copy of it in between: it may be a secret.
pub(super) fn string<'de, D, T, E>(from: D, read: fn(&str) -> Result<T, E>) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    E: fmt::Display,
{
    struct Visitor<T, E>(fn(&str) -> Result<T, E>, PhantomData<T>);
    impl<T, E: fmt::Display> serde::de::Visitor<'_> for Visitor<T, E> {
        type Value = T;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string")
        }
        fn visit_str<Error: serde::de::Error>(self, text: &str) -> Result<T, Error> {
            self.0(text).map_err(Error::custom)
        }
    }
    from.deserialize_str(Visitor(read, PhantomData))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::id::Name;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only its refusals are looked at")]
    struct File {
        table: Table,
        #[serde(default)]
        list: Vec<Table>,
    }
    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only its refusals are looked at")]
    struct Table {
        name: Text<Name>,
        #[serde(default)]
        more: Vec<Text<Name>>,
        count: Option<u8>,
    }

    fn refusal(text: &str) -> String {
        parse::<File>(text, 1000).expect_err(text).to_string()
    }

    #[test]
    fn refusals_name_line_and_field() {
        let cases = [
            ("", "missing field `table`"),
            (
                "[table]\nname = \"a\"\ncolour = 3",
                "line 3, field `table.colour`: unknown field `colour`",
            ),
            ("\n[table]\n", "line 2, field `table`: missing field `name`"),
            (
                "[table]\nname = 3",
                "line 2, field `table.name`: invalid type: integer `3`, expected a string",
            ),
            ("[table]\nname = \"A\"", "line 2, field `table.name`: `A` is not a name"),
            ("[table]\nname = \"a\"\ncount = 300", "line 3, field `table.count`: invalid value"),
            (
                "[table]\nname = \"a\"\nmore = [\"b\",\n\"C\"]",
                "line 4, field `table.more[1]`: `C` is not",
            ),
            (
                "[table]\nname = \"a\"\n[[list]]\nname=\"b\"\n[[list]]\n\nname=\"-\"",
                "line 7, field `list[1].name`",
            ),
            ("[table]\nname = \"a\"\n[other]\n", "line 3, field `other`: unknown field `other`"),
            ("[table\n", "line 1: "),
            ("[table]\nname = \"a\"\nname = \"b\"", "line 3: duplicate key"),
            ("[table]\nname = \"a\n", "line 2: "),
        ];
        for (text, wanted) in cases {
            let told = refusal(text);
            assert!(told.contains(wanted), "{text:?}: {told}");
        }
    }

    #[test]
    fn long_files_are_refused_before_they_are_parsed() {
        assert_eq!(
            parse::<File>(&"[".repeat(1001), 1000).expect_err("long"),
            FileError::TooLong(1000)
        );
    }

    #[test]
    fn deep_nesting_is_refused_without_a_crash() {
        let text = format!("x = {}", "[".repeat(200_000));
        assert!(parse::<File>(&text, 300_000).is_err());
        let text = format!("x = {}1{}", "{a=".repeat(100_000), "}".repeat(100_000));
        assert!(parse::<File>(&text, 900_000).is_err());
        let text = format!("{}x = 1", "a.".repeat(100_000));
        assert!(parse::<File>(&text, 900_000).is_err());
    }

    #[test]
    fn messages_carry_no_terminal_codes() {
        let told = refusal("[table]\nname = \"\\u001b[31mred\"");
        assert!(!told.contains('\u{1b}'), "{told:?}");
    }
}
