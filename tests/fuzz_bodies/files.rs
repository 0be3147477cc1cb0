//! Every file, and what comes over the control socket.

use clusternet::{
    api::{Reply, Request},
    config::{
        FileKind,
        cert::CertFile,
        key::{AuthorityFile, KeyFile},
        ledger::Ledger,
        master::{MasterFile, NodeTable},
        request::RequestFile,
        revocations::RevocationsFile,
    },
    words::key::SigningSecret,
};

use super::network::{authority, secrets};

/// Text that may be any file, or a line of the control socket.
pub fn file(data: &[u8]) -> bool {
    if let Ok(request) = serde_json::from_slice::<Request>(data) {
        let text = serde_json::to_string(&request).expect("plain data");
        let again: Request = serde_json::from_str(&text).expect("what was written is read");
        assert_eq!(serde_json::to_string(&again).expect("plain data"), text);
        return true;
    }
    if let Ok(reply) = serde_json::from_slice::<Reply>(data) {
        let text = serde_json::to_string(&reply).expect("plain data");
        assert!(serde_json::from_str::<Reply>(&text).is_ok());
    }
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let _ = FileKind::of(text);
    [
        settles(text, |text| Some(MasterFile::parse(text).ok()?.render())),
        settles(text, |text| Some(AuthorityFile::parse(text).ok()?.render().to_string())),
        settles(text, |text| Some(KeyFile::parse(text).ok()?.render().to_string())),
        settles(text, |text| Some(CertFile::parse(text).ok()?.render())),
        settles(text, |text| Some(RequestFile::parse(text).ok()?.render())),
        settles(text, |text| Some(RevocationsFile::parse(text).ok()?.render())),
        settles(text, |text| Some(Ledger::parse(text).ok()?.render())),
    ]
    .contains(&true)
}

/// What is accepted is accepted again as it is written, and written the same.
fn settles(text: &str, read_and_write: impl Fn(&str) -> Option<String>) -> bool {
    let Some(written) = read_and_write(text) else { return false };
    assert_eq!(read_and_write(&written).as_ref(), Some(&written));
    true
}

/// One of each file, and requests.
pub fn files() -> Vec<Vec<u8>> {
    let (authority, a) = authority();
    let ledger = authority.ledger();
    let secrets = secrets(4);
    let name = a.certificate.name.clone();
    let cert = CertFile { authority: ledger.authority, certificate: a.certificate };
    let key =
        KeyFile { name: name.clone(), secrets: secrets.clone(), certificate: Some(cert.clone()) };
    let secret = SigningSecret::from_bytes([1; 32]);
    let secret = AuthorityFile { network: ledger.network.name.clone(), secret };
    let master = MasterFile { network: ledger.network.clone(), node: NodeTable::default() };
    let master = master.render();
    let local = "\n[node]\nkey = \"a.key\"\nlisten = \"0.0.0.0:51820\"\nmtu = 1400\n\
                 endpoints = [\"udp://192.0.2.1:51820\"]\nexecute = [\"head\"]\n";
    let mut all = vec![
        format!("{master}{local}"),
        master,
        secret.render().to_string(),
        key.render().to_string(),
        cert.render(),
        RequestFile::new(name, &secrets).render(),
        ledger.revocations_file().render(),
        ledger.render(),
    ];
    for request in [
        Request::Hello,
        Request::Ping { node: "head.lab".to_owned(), timeout_ms: 1000 },
        Request::Update { text: "[revocations]".to_owned(), timeout_ms: 1 },
        Request::Leave { kill: true },
    ] {
        all.push(serde_json::to_string(&request).expect("plain data"));
    }
    all.into_iter().map(String::into_bytes).collect()
}
