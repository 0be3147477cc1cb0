//! `NAME.request`: a node asks for a certificate for keys whose secrets never leave it.

use serde::Deserialize;
use toml::Spanned;

use super::{
    MAX_FILE,
    key::Secrets,
    text::{self, FileError, Text},
};
use crate::words::{
    id::{Name, NetworkId},
    request::Request,
    signed::{RawSigned, Signed},
};

/// A whole `NAME.request`, verified to come from whoever holds the host key in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestFile {
    /// What is asked.
    pub request: Signed<Request>,
}

impl RequestFile {
    /// Asks for a certificate.
    pub fn new(name: Name, secrets: &Secrets) -> Self {
        let (transport, host) = secrets.public();
        let request = Request { name, transport, host };
        Self { request: Signed::sign(request, &NetworkId::NONE, &secrets.host) }
    }

    /// Reads the file and verifies it.
    ///
    /// # Errors
    /// [`FileError`], with line and field.
    pub fn parse(text: &str) -> Result<Self, FileError> {
        let file: FileText = text::parse(text, MAX_FILE)?;
        let signed = file.request.signed;
        let request = Request::verify(&signed.get_ref().0)
            .map_err(|error| text::refuse_signed(text, signed.span(), error))?;
        Ok(Self { request })
    }

    /// Writes the file: parsing it gives the same again.
    pub fn render(&self) -> String {
        let request = &self.request;
        format!(
            "# Node \"{}\" asks for a certificate: public. The network's admin answers with\n\
             # clusternet issue {} --request {}.request\n\n\
             [request]\n# transport key {}\n# host key {}\nsigned = \"{}\"\n",
            request.name,
            request.name,
            request.name,
            request.transport,
            request.host,
            request.raw(),
        )
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileText {
    request: TableText,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TableText {
    signed: Spanned<Text<RawSigned>>,
}
