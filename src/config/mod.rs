//! Every file of a network, as types: text in, types out, and back. Touches no disk; shells read and write.
//!
//! All files are TOML. Their first table says which they are ([`FileKind::of`]), the signed things in them are base64 of
//! signature and statement, and comments beside those are for people: what counts is what was signed. Every refusal
//! names line and field; unknown fields are refused, so that a misspelt one is never silently without effect.

pub mod authority;
pub mod cert;
pub mod key;
pub mod ledger;
pub mod master;
pub mod request;
pub mod revocations;
pub mod text;
pub mod tuning;

pub use text::FileError;

/// The most bytes of a file that a node reads: the largest `master.toml` that can be signed is a tenth of it.
pub const MAX_FILE: usize = 256 * 1024;

/// The most bytes of a `revocations` file, some four thousand of them: it must fit one request to the daemon
/// ([`crate::api::MAX_REQUEST`]), escapes included.
pub const MAX_REVOCATIONS: usize = 960 * 1024;

/// The most bytes of a ledger: a hundred thousand certificates.
pub const MAX_LEDGER: usize = 64 * 1024 * 1024;

/// What a file is, by its tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// `master.toml`.
    Master,
    /// `authority.key`.
    Authority,
    /// `NAME.key`.
    Key,
    /// `NAME.cert`.
    Cert,
    /// `NAME.request`.
    Request,
    /// `revocations`.
    Revocations,
    /// `ledger.toml`.
    Ledger,
}

impl FileKind {
    /// The table each kind has and no other, in the order they are looked for: a key file may hold a certificate too.
    const TABLES: [(&'static str, Self); 7] = [
        ("network", Self::Master),
        ("authority", Self::Authority),
        ("key", Self::Key),
        ("certificate", Self::Cert),
        ("request", Self::Request),
        ("revocations", Self::Revocations),
        ("ledger", Self::Ledger),
    ];

    /// Finds out; `None` for a TOML file of somebody else.
    ///
    /// # Errors
    /// [`FileError`] where the text is not TOML, or longer than a ledger may be.
    pub fn of(text: &str) -> Result<Option<Self>, FileError> {
        let tables = text::tables(text, MAX_LEDGER)?;
        let found = Self::TABLES.iter().find(|(table, _)| tables.iter().any(|name| name == table));
        Ok(found.map(|(_, kind)| *kind))
    }
}

impl std::fmt::Display for FileKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Master => "the description of a network (master.toml)",
            Self::Authority => "an authority's secret (authority.key)",
            Self::Key => "a node's key file",
            Self::Cert => "a certificate",
            Self::Request => "a request for a certificate",
            Self::Revocations => "a list of revocations",
            Self::Ledger => "a ledger",
        })
    }
}

#[cfg(test)]
mod testing {
    //! A network to test with: alice's, begun at [`NOW`], its first master `head`.

    use std::time::Duration;

    use super::{
        authority::{Authority, Beginning, Issue, Issued, Keys},
        key::Secrets,
    };
    use crate::words::{
        id::{Name, Owner},
        key::SigningSecret,
        time::Timestamp,
    };

    /// 2026-01-01T00:00:00Z.
    pub(super) const NOW: Timestamp = Timestamp(1_767_225_600_000);

    pub(super) fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    pub(super) fn owner(text: &str) -> Owner {
        text.parse().unwrap()
    }

    pub(super) fn network() -> (Authority, Issued) {
        network_in("10.99.0.0/16")
    }

    pub(super) fn network_in(ipv4: &str) -> (Authority, Issued) {
        let beginning = Beginning {
            name: name("lab"),
            ipv4: ipv4.parse().unwrap(),
            owner: Some(owner("alice")),
            master: name("head"),
            keys: Secrets::generate().public(),
            endpoints: vec!["udp://login.example.org:51820".parse().unwrap()],
            not_after: NOW.plus(Duration::from_secs(30 * 86_400)),
        };
        Authority::begin(SigningSecret::generate(), beginning, NOW).unwrap()
    }

    pub(super) fn node(text: &str, secrets: &Secrets) -> Issue {
        let (transport, host) = secrets.public();
        Issue {
            name: name(text),
            keys: Keys::Node(transport, host),
            not_after: NOW.plus(Duration::from_secs(30 * 86_400)),
            role: None,
            owner: None,
            endpoints: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{
        authority::Target,
        cert::CertFile,
        key::{AuthorityFile, IdentityError, KeyFile, Secrets},
        ledger::{Ledger, Standing},
        master::{Execute, Listen, MasterFile, NodeTable},
        request::RequestFile,
        revocations::RevocationsFile,
        testing::*,
        *,
    };
    use crate::words::{key::SigningSecret, signed::SignedError};

    /// Every file of a network with two nodes, one of them revoked.
    fn files() -> Vec<(FileKind, String)> {
        let (mut authority, issued) = network();
        let secrets = Secrets::generate();
        authority.issue(node("a", &secrets), NOW).unwrap();
        authority.revoke(&Target::Name(name("a")), NOW).unwrap();
        let ledger = authority.ledger();
        let cert = CertFile { authority: ledger.authority, certificate: issued.certificate };
        let key =
            KeyFile { name: name("a"), secrets: secrets.clone(), certificate: Some(cert.clone()) };
        let secret = AuthorityFile { network: name("lab"), secret: SigningSecret::generate() };
        let master = MasterFile { network: ledger.network.clone(), node: NodeTable::default() };
        vec![
            (FileKind::Master, master.render()),
            (FileKind::Authority, secret.render().to_string()),
            (FileKind::Key, key.render().to_string()),
            (FileKind::Cert, cert.render()),
            (FileKind::Request, RequestFile::new(name("a"), &secrets).render()),
            (FileKind::Revocations, ledger.revocations_file().render()),
            (FileKind::Ledger, ledger.render()),
        ]
    }

    fn read_and_write(kind: FileKind, text: &str) -> Result<String, FileError> {
        Ok(match kind {
            FileKind::Master => MasterFile::parse(text)?.render(),
            FileKind::Authority => AuthorityFile::parse(text)?.render().to_string(),
            FileKind::Key => KeyFile::parse(text)?.render().to_string(),
            FileKind::Cert => CertFile::parse(text)?.render(),
            FileKind::Request => RequestFile::parse(text)?.render(),
            FileKind::Revocations => RevocationsFile::parse(text)?.render(),
            FileKind::Ledger => Ledger::parse(text)?.render(),
        })
    }

    #[test]
    fn every_file_reads_back_as_it_was_written_and_is_recognised() {
        for (kind, text) in files() {
            assert_eq!(FileKind::of(&text), Ok(Some(kind)));
            assert_eq!(read_and_write(kind, &text).as_deref(), Ok(text.as_str()), "{text}");
        }
        assert_eq!(FileKind::of("[package]\nname = 'x'"), Ok(None));
    }

    #[test]
    fn unknown_fields_are_refused_in_every_file() {
        for (kind, text) in files() {
            let wrong = text.replacen("]\n", "]\nmisspelt = 1\n", 1);
            let told = read_and_write(kind, &wrong).unwrap_err().to_string();
            assert!(told.contains("misspelt") && told.starts_with("line "), "{kind:?}: {told}");
            let wrong = format!("{text}\n[extra]\n");
            let told = read_and_write(kind, &wrong).unwrap_err().to_string();
            assert!(told.contains("field `extra`"), "{kind:?}: {told}");
        }
    }

    #[test]
    fn whatever_is_changed_or_cut_off_is_refused_or_without_effect() {
        for (kind, text) in files() {
            // What is not signed may read as something else, if it reads: secrets, and the ledger's own fields.
            let signed = match kind {
                FileKind::Master | FileKind::Cert | FileKind::Request | FileKind::Revocations => {
                    true
                }
                FileKind::Authority | FileKind::Key | FileKind::Ledger => false,
            };
            let check = |changed: &str| {
                let read = read_and_write(kind, changed);
                assert!(!signed || read.is_err() || read.as_ref() == Ok(&text), "{changed}");
            };
            for at in (0..text.len()).step_by(3) {
                check(text.get(..at).unwrap_or_default());
                let mut bytes = text.clone().into_bytes();
                bytes[at] ^= 1 << (at % 7);
                if let Ok(changed) = String::from_utf8(bytes) {
                    check(&changed);
                }
            }
        }
    }

    #[test]
    fn a_flipped_signature_names_line_and_field() {
        for (kind, text) in files() {
            let field = match kind {
                FileKind::Master => "signature",
                FileKind::Revocations => "head",
                FileKind::Ledger => "network",
                FileKind::Cert | FileKind::Key | FileKind::Request => "signed",
                FileKind::Authority => continue,
            };
            let start = text.find(&format!("\n{field} = \"")).unwrap() + field.len() + 5;
            let mut wrong = text.clone();
            let flipped = if &text[start..=start] == "A" { "B" } else { "A" };
            wrong.replace_range(start..=start, flipped);
            let refused = read_and_write(kind, &wrong).unwrap_err();
            let FileError::Signed { line, field: told, error } = refused else {
                panic!("{kind:?}: {refused}")
            };
            assert_eq!(error, SignedError::Signature);
            assert!(told.ends_with(field), "{told}");
            assert_eq!(wrong.lines().nth(line - 1).map(|l| l.starts_with(field)), Some(true));
        }
    }

    #[test]
    fn a_changed_master_file_does_not_verify() {
        let text = files().remove(0).1;
        for (from, to) in [
            ("login.example.org", "evil.example.org"),
            ("version = 1", "version = 2"),
            ("10.99.0.0/16", "10.98.0.0/16"),
            ("2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z"),
        ] {
            let refused = MasterFile::parse(&text.replace(from, to)).unwrap_err();
            assert!(
                matches!(refused, FileError::Signed { error: SignedError::Signature, .. }),
                "{refused}"
            );
        }
        let reordered = format!("# a comment\n\n{}", text.replace("version = 1\n", ""))
            .replace("[network]\n", "[network] # here\nversion = 1\n");
        assert!(MasterFile::parse(&reordered).is_ok(), "order and comments are free");
    }

    #[test]
    fn the_node_table_reads_and_writes_all_its_fields() {
        let text = files().remove(0).1
            + "\n[node]\nkey = 'my \"own\".key'\nlisten = \"[::]:51820\"\n\
               endpoints = [\"udp://192.0.2.1:51820\"]\nmtu = 1280\n\
               workers = 2\ncores = [1, 3]\npoll = 0\nsuite = \"chacha20poly1305\"\noffload = false\n\
               socket-buffer = 212992\nunderlay-mtu = 9000\nexecute = [\"alice\", \"bob\"]\n\
               instance = \"night\"\nlog = \"debug\"\n";
        let file = MasterFile::parse(&text).unwrap();
        assert_eq!(file.render(), text);
        let node = file.node;
        assert_eq!(node.key, Some("my \"own\".key".into()));
        let all = Some(std::net::Ipv6Addr::UNSPECIFIED.into());
        assert_eq!(node.listen, Some(Listen { address: all, port: 51820 }));
        assert_eq!(node.execute, Execute::Owners(vec![owner("alice"), owner("bob")]));
        assert_eq!((node.mtu, node.instance), (1280, Some(name("night"))));
        assert_eq!(node.tuning.cores, [1, 3]);
        assert_eq!(node.tuning.suite, Some(crate::wire::exchange::Suite::ChaCha20Poly1305));
    }

    #[test]
    fn the_node_table_refuses_nonsense_by_line_and_field() {
        let text = files().remove(0).1 + "\n[node]\n";
        let line = text.lines().count() + 1;
        for (wrong, field, why) in [
            ("mtu = 500", "mtu", "between 1280"),
            ("mtu = 100000", "mtu", ""),
            ("workers = 16", "workers", "between 1 and 15"),
            ("workers = 0", "workers", ""),
            ("poll = 10001", "poll", "microseconds"),
            ("suite = \"rot13\"", "suite", "aes256gcm"),
            ("socket-buffer = 1000", "socket-buffer", "at least 65536"),
            ("underlay-mtu = 576", "underlay-mtu", "between 1280 and 9216"),
            ("cores = [-1]", "cores[0]", ""),
            ("listen = 70000", "listen", "0 to 65535"),
            ("listen = \"here\"", "listen", "ADDRESS:PORT"),
            ("endpoints = [\"ssh://h\"]", "endpoints[0]", "only udp://"),
            ("execute = \"everybody\"", "execute", "list of owners"),
            ("execute = [\"-x\"]", "execute[0]", "not a login name"),
            ("instance = \"../x\"", "instance", "not a name"),
            ("keys = 1", "keys", "unknown field"),
        ] {
            let told = MasterFile::parse(&format!("{text}{wrong}\n")).unwrap_err().to_string();
            let wanted = format!("line {line}, field `node.{field}`: ");
            assert!(told.starts_with(&wanted) && told.contains(why), "{wrong}: {told}");
        }
    }

    #[test]
    fn no_refusal_and_no_debug_shows_a_secret() {
        let secrets = Secrets::generate();
        let file = KeyFile { name: name("a"), secrets: secrets.clone(), certificate: None };
        let text = file.render();
        let secret = secrets.transport.to_text();
        assert!(!format!("{file:?}").contains(&secret[..8]));
        for wrong in [
            text.replace(&*secret, &secret[1..]),
            text.replace(&*secret, &format!("{}!", &secret[..40])),
            text.replace(&format!("\"{}\"", *secret), &secret),
            text.replace(&format!("\"{}\"", *secret), &format!("[\"{}\"]", *secret)),
            text.replace("transport =", "transports ="),
            text.replace("= \"", "= "),
            text.replace('"', ""),
            text.replace("[key]", "[key"),
        ] {
            let told = KeyFile::parse(&wrong).unwrap_err();
            assert!(!format!("{told} {told:?}").contains(&secret[8..16]), "{told}");
        }
    }

    #[test]
    fn a_key_file_makes_a_member_only_with_its_own_valid_certificate_of_this_network() {
        let (mut authority, _) = network();
        let secrets = Secrets::generate();
        let certificate = authority.issue(node("a", &secrets), NOW).unwrap().certificate;
        let lab = authority.ledger().network.statement().clone();
        let cert = CertFile { authority: lab.authority, certificate };
        let bare = KeyFile { name: name("a"), secrets: secrets.clone(), certificate: None };
        let full = KeyFile { certificate: Some(cert.clone()), ..bare.clone() };
        assert_eq!(full.identity(None, &lab, NOW).unwrap().certificate.serial.0, 2);
        assert_eq!(bare.identity(Some(&cert), &lab, NOW).unwrap().certificate.serial.0, 2);
        let renewed = authority.issue(node("a", &secrets), NOW).unwrap().certificate;
        let newer = CertFile { authority: lab.authority, certificate: renewed };
        assert_eq!(full.identity(Some(&newer), &lab, NOW).unwrap().certificate.serial.0, 3);

        let stale = CertFile { authority: lab.authority, certificate: network().1.certificate };
        assert_eq!(full.identity(Some(&stale), &lab, NOW).unwrap().certificate.serial.0, 2);
        assert_eq!(full.identity(None, &lab, NOW).unwrap().key_file().render(), full.render());

        let refused = |file: &KeyFile, beside, network, now| {
            file.identity(beside, network, now).map(|_| ()).unwrap_err()
        };
        assert_eq!(refused(&bare, None, &lab, NOW), IdentityError::NoCertificate(name("a")));
        let other = network().0.ledger().network.statement().clone();
        assert!(matches!(refused(&full, None, &other, NOW), IdentityError::OtherNetwork { .. }));
        let stranger = KeyFile { secrets: Secrets::generate(), ..full.clone() };
        assert_eq!(refused(&stranger, None, &lab, NOW), IdentityError::OtherKeys(2));
        let early = NOW.minus(Duration::from_secs(3600));
        assert!(matches!(refused(&full, None, &lab, early), IdentityError::NotYet(..)));
        let late = NOW.plus(Duration::from_secs(30 * 86_400));
        assert!(matches!(refused(&full, None, &lab, late), IdentityError::Expired(..)));
    }

    #[test]
    fn revocations_must_be_complete() {
        let (mut authority, _) = network();
        for text in ["a", "b"] {
            authority.issue(node(text, &Secrets::generate()), NOW).unwrap();
            authority.revoke(&Target::Name(name(text)), NOW).unwrap();
        }
        let whole = authority.ledger().revocations_file();
        let mut short = whole.clone();
        short.list.pop();
        let told = RevocationsFile::parse(&short.render()).unwrap_err().to_string();
        assert!(
            told.contains("field `revocations.head`: says 2 revocations, the list has 1"),
            "{told}"
        );
        let mut swapped = whole;
        swapped.list.swap(0, 1);
        let told = RevocationsFile::parse(&swapped.render()).unwrap_err().to_string();
        assert!(
            told.contains("field `revocations.list[0]`: this is revocation 2, not 1"),
            "{told}"
        );
    }

    #[test]
    fn a_ledger_that_would_give_numbers_out_twice_is_refused() {
        let text = files().pop().unwrap().1;
        for (from, to, why) in [
            ("next_serial = 3", "next_serial = 2", "serial 2 has been given out"),
            ("next_number = 3", "next_number = 2", "node number 2 has been given out"),
        ] {
            let told = Ledger::parse(&text.replace(from, to)).unwrap_err().to_string();
            assert!(told.contains(why), "{told}");
        }
    }

    #[test]
    fn a_ledger_tells_what_became_of_a_certificate() {
        let (mut authority, issued) = network();
        let a = Secrets::generate();
        let first = authority.issue(node("a", &a), NOW).unwrap().certificate;
        let second = authority.issue(node("a", &a), NOW).unwrap().certificate;
        let ledger = authority.ledger();
        assert_eq!(ledger.standing(&issued.certificate, NOW), Standing::Valid);
        assert_eq!(ledger.standing(&first, NOW), Standing::Replaced);
        assert_eq!(ledger.standing(&second, NOW), Standing::Valid);
        assert_eq!(ledger.standing(&second, second.not_after), Standing::Expired);
        authority.revoke(&Target::Serial(second.serial), NOW).unwrap();
        assert_eq!(authority.ledger().standing(&first, NOW), Standing::Revoked(1), "same keys");
    }
}
