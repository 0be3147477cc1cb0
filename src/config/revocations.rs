//! `revocations`: every revocation of a network, numbered 1..N, and the signed head that says how many there are.

use std::fmt::Write as _;

use serde::Deserialize;
use toml::Spanned;

use super::{
    MAX_REVOCATIONS,
    text::{self, FileError, Text},
};
use crate::words::{
    id::NetworkId,
    key::VerifyKey,
    revocation::{Head, Revocation},
    signed::{RawSigned, Signed},
};

/// A whole `revocations` file, complete and verified under the authority that it names. Whether that is *our* authority
/// is the caller's question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevocationsFile {
    /// Who signed.
    pub authority: VerifyKey,
    /// How many there are.
    pub head: Signed<Head>,
    /// All of them, in order.
    pub list: Vec<Signed<Revocation>>,
}

impl RevocationsFile {
    /// Reads the file, verifies everything in it and that nothing is missing.
    ///
    /// # Errors
    /// [`FileError`], with line and field.
    pub fn parse(text: &str) -> Result<Self, FileError> {
        let FileText { revocations: table } = text::parse(text, MAX_REVOCATIONS)?;
        let authority = table.authority.0;
        let (head, list) = verify(text, &authority, &table.head, &table.list)?;
        Ok(Self { authority, head, list })
    }

    /// Writes the file: parsing it gives the same again.
    pub fn render(&self) -> String {
        let mut out = format!(
            "# Certificates that the network's authority has taken back: public. Give it to any running node:\n\
             # clusternet update revocations\n\n\
             [revocations]\nauthority = \"{}\"\nhead = \"{}\"\n",
            self.authority,
            self.head.raw()
        );
        render_list(&mut out, "list", &self.list);
        out
    }
}

/// Verifies head and list under `authority`: numbered from 1 without gaps, as many as the head says.
pub(super) fn verify(
    text: &str,
    authority: &VerifyKey,
    head: &Spanned<Text<RawSigned>>,
    list: &[Spanned<Text<RawSigned>>],
) -> Result<(Signed<Head>, Vec<Signed<Revocation>>), FileError> {
    let network = NetworkId::of(authority);
    let verified_head: Signed<Head> = Signed::verify(&head.get_ref().0, &network, authority)
        .map_err(|error| text::refuse_signed(text, head.span(), error))?;
    let mut verified = Vec::with_capacity(list.len());
    for (number, item) in (1..).zip(list) {
        let revocation: Signed<Revocation> = Signed::verify(&item.get_ref().0, &network, authority)
            .map_err(|error| text::refuse_signed(text, item.span(), error))?;
        if revocation.number != number {
            let message = format!("this is revocation {}, not {number}", revocation.number);
            return Err(text::refuse(text, Some(item.span()), &message));
        }
        verified.push(revocation);
    }
    let count = verified.len() as u64;
    if verified_head.count != count {
        let message = format!("says {} revocations, the list has {count}", verified_head.count);
        return Err(text::refuse(text, Some(head.span()), &message));
    }
    Ok((verified_head, verified))
}

/// Writes `NAME = [...]`, one revocation a line, each described.
pub(super) fn render_list(out: &mut String, field: &str, list: &[Signed<Revocation>]) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{field} = [");
    for item in list {
        let _ = writeln!(
            out,
            "    # {}: serial {}, {}\n    \"{}\",",
            item.number,
            item.serial,
            item.date,
            item.raw()
        );
    }
    out.push_str("]\n");
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileText {
    revocations: TableText,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TableText {
    authority: Text<VerifyKey>,
    head: Spanned<Text<RawSigned>>,
    list: Vec<Spanned<Text<RawSigned>>>,
}
