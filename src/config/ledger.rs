//! `ledger.toml`: everything an authority has signed, and the next free numbers. Public in content, private by mode.
//!
//! The ledger is the truth from which `master.toml` and `revocations` are written. Each entry is the signed thing itself,
//! verified when the ledger is read: there is no second copy of a fact that could contradict it.

use std::{collections::HashSet, fmt::Write as _};

use serde::Deserialize;
use toml::Spanned;

use super::{
    MAX_LEDGER, cert,
    revocations::{self, RevocationsFile},
    text::{self, FileError, Text},
};
use crate::words::{
    certificate::{Certificate, Validity},
    id::{Name, NetworkId, Owner, Serial},
    key::VerifyKey,
    network::Network,
    revocation::{Head, Revocation},
    signed::{RawSigned, Signed},
    time::Timestamp,
};

/// A whole ledger. Changed only by [`super::authority::Authority`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ledger {
    /// Whose ledger.
    pub authority: VerifyKey,
    /// Owner of certificates that name none.
    pub owner: Option<Owner>,
    /// The next free node number.
    pub next_number: u32,
    /// The next free serial.
    pub next_serial: u64,
    /// What `master.toml` says.
    pub network: Signed<Network>,
    /// Every certificate ever issued, by serial.
    pub certificates: Vec<Signed<Certificate>>,
    /// How many revocations there are.
    pub head: Signed<Head>,
    /// All of them, in order.
    pub revocations: Vec<Signed<Revocation>>,
}

/// What has become of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It holds.
    Valid,
    /// It will hold.
    NotYet,
    /// It holds, but one with a higher serial has taken its place.
    Replaced,
    /// Its time is over.
    Expired,
    /// Taken back by the revocation of this number.
    Revoked(u64),
}

impl std::fmt::Display for Standing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Valid => f.write_str("valid"),
            Self::NotYet => f.write_str("not yet valid"),
            Self::Replaced => f.write_str("replaced"),
            Self::Expired => f.write_str("expired"),
            Self::Revoked(_) => f.write_str("revoked"),
        }
    }
}

impl Ledger {
    /// Reads the file, verifies every entry, and refuses numbers that have been used already.
    ///
    /// # Errors
    /// [`FileError`], with line and field.
    pub fn parse(text: &str) -> Result<Self, FileError> {
        let FileText { ledger: table } = text::parse(text, MAX_LEDGER)?;
        let authority = table.authority.0;
        let id = NetworkId::of(&authority);
        let network: Signed<Network> = Signed::verify(&table.network.get_ref().0, &id, &authority)
            .map_err(|error| text::refuse_signed(text, table.network.span(), error))?;
        let mut certificates: Vec<Signed<Certificate>> = Vec::new();
        for item in &table.certificates {
            let certificate: Signed<Certificate> =
                Signed::verify(&item.get_ref().0, &id, &authority)
                    .map_err(|error| text::refuse_signed(text, item.span(), error))?;
            if certificates.last().is_some_and(|last| last.serial >= certificate.serial) {
                let message = format!("serial {} is out of order", certificate.serial);
                return Err(text::refuse(text, Some(item.span()), &message));
            }
            certificates.push(certificate);
        }
        let used = certificates.last().map_or(0, |last| last.serial.0);
        if *table.next_serial.get_ref() <= used {
            let message = format!("serial {used} has been given out");
            return Err(text::refuse(text, Some(table.next_serial.span()), &message));
        }
        let used = certificates.iter().map(|c| c.number.0).max().unwrap_or(0);
        if *table.next_number.get_ref() <= used {
            let message = format!("node number {used} has been given out");
            return Err(text::refuse(text, Some(table.next_number.span()), &message));
        }
        let (head, revocations) =
            revocations::verify(text, &authority, &table.head, &table.revocations)?;
        Ok(Self {
            authority,
            owner: table.owner.map(|Text(owner)| owner),
            next_number: table.next_number.into_inner(),
            next_serial: table.next_serial.into_inner(),
            network,
            certificates,
            head,
            revocations,
        })
    }

    /// Writes the file: parsing it gives the same again.
    pub fn render(&self) -> String {
        let mut out = format!(
            "# The ledger of network \"{}\": what its authority has signed. Written by `clusternet`; keep a copy, never\n\
             # bring an older one back: numbers in it must not be given out twice.\n\n[ledger]\n",
            self.network.name
        );
        // Writing to a String cannot fail.
        let _ = writeln!(out, "authority = \"{}\"", self.authority);
        if let Some(owner) = &self.owner {
            let _ = writeln!(out, "owner = \"{owner}\"");
        }
        let _ = write!(
            out,
            "next_number = {}\nnext_serial = {}\n# version {}, {}\nnetwork = \"{}\"\nhead = \"{}\"\n",
            self.next_number,
            self.next_serial,
            self.network.version,
            self.network.date,
            self.network.raw(),
            self.head.raw()
        );
        out.push_str("certificates = [\n");
        for certificate in &self.certificates {
            let _ = writeln!(out, "    # {}", cert::describe(certificate));
            let _ = writeln!(out, "    \"{}\",", certificate.raw());
        }
        out.push_str("]\n");
        revocations::render_list(&mut out, "revocations", &self.revocations);
        out
    }

    /// The network's id.
    pub fn id(&self) -> NetworkId {
        NetworkId::of(&self.authority)
    }

    /// The revocation that takes this certificate back, by serial or by either key.
    pub fn revocation_of(&self, certificate: &Certificate) -> Option<&Signed<Revocation>> {
        self.revocations.iter().find(|revocation| revocation.names(certificate))
    }

    /// Whether it can still be accepted somewhere, now or later: neither revoked nor expired, skew forgiven.
    pub fn is_live(&self, certificate: &Certificate, now: Timestamp) -> bool {
        certificate.validity(now) != Validity::Expired && self.revocation_of(certificate).is_none()
    }

    /// What has become of a certificate of this ledger.
    pub fn standing(&self, certificate: &Certificate, now: Timestamp) -> Standing {
        if let Some(revocation) = self.revocation_of(certificate) {
            return Standing::Revoked(revocation.number);
        }
        if certificate.has_ended(now) {
            return Standing::Expired;
        }
        let newer = |other: &&Signed<Certificate>| {
            other.serial > certificate.serial
                && other.name == certificate.name
                && self.is_live(other, now)
        };
        if self.certificates.iter().rev().find(newer).is_some() {
            return Standing::Replaced;
        }
        match certificate.validity(now) {
            Validity::NotYet => Standing::NotYet,
            Validity::Valid | Validity::Expired => Standing::Valid,
        }
    }

    /// The newest certificate of each name that is neither revoked nor expired: the members.
    pub fn members(&self, now: Timestamp) -> Vec<&Signed<Certificate>> {
        let mut seen = HashSet::new();
        let mut members: Vec<_> = self
            .certificates
            .iter()
            .rev()
            .filter(|c| self.is_live(c, now) && !c.has_ended(now) && seen.insert(c.name.as_str()))
            .collect();
        members.sort_by_key(|c| c.number);
        members
    }

    /// The newest certificate of a name that is not revoked, expired or not.
    pub fn newest(&self, name: &Name) -> Option<&Signed<Certificate>> {
        let named = |c: &&Signed<Certificate>| c.name == *name && self.revocation_of(c).is_none();
        self.certificates.iter().rev().find(named)
    }

    /// The certificate of this serial.
    pub fn certificate(&self, serial: Serial) -> Option<&Signed<Certificate>> {
        let found = self.certificates.binary_search_by_key(&serial, |c| c.serial).ok()?;
        self.certificates.get(found)
    }

    /// What the `revocations` file says.
    pub fn revocations_file(&self) -> RevocationsFile {
        RevocationsFile {
            authority: self.authority,
            head: self.head.clone(),
            list: self.revocations.clone(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileText {
    ledger: TableText,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TableText {
    authority: Text<VerifyKey>,
    owner: Option<Text<Owner>>,
    next_number: Spanned<u32>,
    next_serial: Spanned<u64>,
    network: Spanned<Text<RawSigned>>,
    head: Spanned<Text<RawSigned>>,
    certificates: Vec<Spanned<Text<RawSigned>>>,
    revocations: Vec<Spanned<Text<RawSigned>>>,
}
