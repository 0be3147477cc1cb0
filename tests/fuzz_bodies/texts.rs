//! Short texts that people and files write: names, keys, endpoints, durations.

use std::{fmt::Display, str::FromStr};

use clusternet::words::{
    endpoint::Endpoint,
    id::{Name, Owner},
    key::{Signature, SigningSecret, TransportKey, TransportSecret, VerifyKey},
    signed::RawSigned,
    time::parse_validity,
};

use super::network::NOW;

/// One text, read as each of them.
pub fn text(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let known = [
        goes_round::<Name>(text),
        goes_round::<Owner>(text),
        goes_round::<Endpoint>(text),
        goes_round::<TransportKey>(text),
        goes_round::<VerifyKey>(text),
        goes_round::<Signature>(text),
        goes_round::<RawSigned>(text),
    ];
    if let Ok(name) = text.parse::<Name>() {
        let ok = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        assert!(name.as_str().len() <= 63 && name.as_str().chars().all(ok));
    }
    if let Ok(Endpoint::Ssh { user, host, .. }) = text.parse() {
        // Nothing that ssh could take for an option, nor a shell for anything.
        for word in user.iter().chain([&host]) {
            assert!(!word.starts_with('-'));
            assert!(!word.contains(|c: char| !(c.is_ascii_alphanumeric() || "._-:".contains(c))));
        }
    }
    let validity = parse_validity(text, NOW);
    if let Ok(end) = validity {
        assert!(end > NOW);
    }
    if let Ok(secret) = SigningSecret::from_text(text) {
        assert_eq!(secret.to_text().as_str(), text.trim());
    }
    if let Ok(secret) = TransportSecret::from_text(text) {
        assert!(!format!("{secret:?}").contains(text.trim()));
    }
    validity.is_ok() || known.contains(&true)
}

fn goes_round<T: FromStr + Display + PartialEq>(text: &str) -> bool {
    let Ok(value) = text.parse::<T>() else { return false };
    assert!(value.to_string().parse::<T>().is_ok_and(|again| again == value));
    true
}

/// One of each.
pub fn texts() -> Vec<Vec<u8>> {
    let key = TransportSecret::from_bytes([7; 32]).public().to_string();
    let texts = [
        "node-1",
        "alice.b",
        "udp://login.example.org:51820",
        "tcp://[2001:db8::1]:443",
        "ssh://alice@login.example.org:22",
        "600m",
        "2026-12-31T18:00:01Z",
        key.as_str(),
    ];
    texts.into_iter().map(|text| text.as_bytes().to_vec()).collect()
}
