//! Signed statements, as bytes.

use clusternet::words::{
    announcement::Announcement,
    certificate::Certificate,
    id::{Incarnation, NetworkId, Serial},
    key::{Signature, SigningSecret},
    network::Network,
    request::Request,
    revocation::{Head, Revocation},
    signed::{RawSigned, Signed, Statement},
};

use super::network::{NOW, authority, secrets};

/// An encoded statement of any kind.
pub fn statement(data: &[u8]) -> bool {
    [
        as_kind::<Certificate>(data),
        as_kind::<Revocation>(data),
        as_kind::<Head>(data),
        as_kind::<Announcement>(data),
        as_kind::<Network>(data),
        as_kind::<Request>(data),
    ]
    .contains(&true)
}

fn as_kind<T: Statement>(data: &[u8]) -> bool {
    let secret = SigningSecret::from_bytes([9; 32]);
    let network = NetworkId([3; 16]);
    let raw = RawSigned { bytes: data.to_vec(), signature: Signature([0; 64]) };
    assert!(Signed::<T>::verify(&raw, &network, &secret.public()).is_err(), "nobody signed it");
    let Ok(statement) = raw.peek::<T>() else { return false };
    assert!(data.len() <= T::MAX_BYTES);
    let signed = Signed::sign(statement, &network, &secret);
    assert_eq!(signed.raw().bytes, data, "one statement has one encoding");
    assert!(Signed::<T>::verify(signed.raw(), &network, &secret.public()).is_ok());
    assert!(Signed::<T>::verify(signed.raw(), &NetworkId([4; 16]), &secret.public()).is_err());
    let text = signed.raw().to_string();
    assert_eq!(text.parse().as_ref(), Ok(signed.raw()));
    true
}

/// One of each kind.
pub fn statements() -> Vec<Vec<u8>> {
    let (authority, a) = authority();
    let ledger = authority.ledger();
    let announcement = Announcement {
        serial: Serial(3),
        sequence: NOW.0,
        incarnation: Incarnation(5),
        candidates: vec![
            "192.0.2.1:51820".parse().expect("an endpoint"),
            "[2001:db8::1]:51820".parse().expect("an endpoint"),
        ],
        relays: vec![Serial(1)],
        features: 1,
        head: 1,
        leaving: false,
    };
    let secrets = secrets(4);
    let announcement = Signed::sign(announcement, &NetworkId([3; 16]), &secrets.host);
    let revocations = ledger.revocations_file();
    let request =
        clusternet::config::request::RequestFile::new("a".parse().expect("a name"), &secrets);
    let mut all = vec![
        a.certificate.raw().bytes.clone(),
        ledger.network.raw().bytes.clone(),
        announcement.raw().bytes.clone(),
        request.request.raw().bytes.clone(),
    ];
    all.push(revocations.head.raw().bytes.clone());
    all.extend(revocations.list.iter().map(|one| one.raw().bytes.clone()));
    all
}
