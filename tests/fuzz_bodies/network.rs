//! A small network whose signed things are the seeds.

use std::time::Duration;

use clusternet::{
    config::{
        authority::{Authority, Beginning, Issue, Issued, Keys, Target},
        key::Secrets,
    },
    words::{
        id::Name,
        key::{SigningSecret, TransportSecret},
        time::Timestamp,
    },
};

/// 2026-01-01T00:00:00Z.
pub const NOW: Timestamp = Timestamp(1_767_225_600_000);

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

/// Secrets that are always the same, so that a run can be repeated.
pub fn secrets(byte: u8) -> Secrets {
    Secrets {
        transport: TransportSecret::from_bytes([byte; 32]),
        host: SigningSecret::from_bytes([byte; 32]),
    }
}

/// An authority with the master `head` and the nodes `a` and `b`, of which `b` is revoked; and the certificate of `a`.
pub fn authority() -> (Authority, Issued) {
    let not_after = NOW.plus(Duration::from_secs(30 * 86_400));
    let beginning = Beginning {
        name: name("lab"),
        ipv4: "10.99.0.0/16".parse().expect("a network"),
        owner: Some("alice".parse().expect("an owner")),
        master: name("head"),
        keys: secrets(2).public(),
        endpoints: vec![
            "udp://login.example.org:51820".parse().expect("an endpoint"),
            "ssh://alice@login.example.org".parse().expect("an endpoint"),
        ],
        not_after,
    };
    let (mut authority, _) =
        Authority::begin(SigningSecret::from_bytes([1; 32]), beginning, NOW).expect("begun");
    let mut issue = |text, byte| {
        let (transport, host) = secrets(byte).public();
        let issue = Issue {
            name: name(text),
            keys: Keys::Node(transport, host),
            not_after,
            role: None,
            owner: None,
            endpoints: Vec::new(),
        };
        authority.issue(issue, NOW).expect("issued")
    };
    issue("b", 3);
    let a = issue("a", 4);
    authority.revoke(&Target::Name(name("b")), NOW).expect("revoked");
    (authority, a)
}
