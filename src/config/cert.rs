//! `NAME.cert`: a certificate and the authority it is of; what answers a request, and what a renewal is handed over as.

use std::fmt::Write as _;

use serde::Deserialize;
use toml::Spanned;

use super::{
    MAX_FILE,
    text::{self, FileError, Text},
};
use crate::words::{
    certificate::Certificate,
    id::NetworkId,
    key::VerifyKey,
    signed::{RawSigned, Signed},
};

/// A certificate that holds under the authority beside it. Whether that is *our* authority is the caller's question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertFile {
    /// Who signed.
    pub authority: VerifyKey,
    /// What was signed.
    pub certificate: Signed<Certificate>,
}

impl CertFile {
    /// Reads the file and verifies the certificate under the authority it names.
    ///
    /// # Errors
    /// [`FileError`], with line and field.
    pub fn parse(text: &str) -> Result<Self, FileError> {
        let file: FileText = text::parse(text, MAX_FILE)?;
        file.certificate.verify(text)
    }

    /// Writes the file: parsing it gives the same again.
    pub fn render(&self) -> String {
        let mut out = format!(
            "# Certificate of node \"{}\": public. Lay it beside {}.key, or hand it to the running node:\n\
             # clusternet update {}.cert\n\n",
            self.certificate.name, self.certificate.name, self.certificate.name,
        );
        self.render_table(&mut out);
        out
    }

    /// Writes the table alone, as it stands in key files too.
    pub(super) fn render_table(&self, out: &mut String) {
        // Writing to a String cannot fail.
        let _ = write!(
            out,
            "[certificate]\n# {}\nauthority = \"{}\"\nsigned = \"{}\"\n",
            describe(&self.certificate),
            self.authority,
            self.certificate.raw()
        );
    }
}

/// One line for people.
pub(super) fn describe(certificate: &Certificate) -> String {
    format!(
        "serial {}: {} ({}), {}, {}, {}, until {}",
        certificate.serial,
        certificate.name,
        certificate.roles,
        certificate.owner.as_ref().map_or_else(|| "no owner".to_owned(), |o| format!("owner {o}")),
        certificate.ipv4,
        certificate.ipv6(),
        certificate.not_after,
    )
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileText {
    certificate: TableText,
}

/// The `[certificate]` table.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TableText {
    authority: Text<VerifyKey>,
    signed: Spanned<Text<RawSigned>>,
}

impl TableText {
    pub(super) fn verify(self, text: &str) -> Result<CertFile, FileError> {
        let authority = self.authority.0;
        let network = NetworkId::of(&authority);
        let certificate = Signed::verify(&self.signed.get_ref().0, &network, &authority)
            .map_err(|error| text::refuse_signed(text, self.signed.span(), error))?;
        Ok(CertFile { authority, certificate })
    }
}
