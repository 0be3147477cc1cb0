//! Whole `serve`s in one process, over real sockets of the loopback, without any privilege: a message socket stands for the
//! overlay device, and this test for the keeper and for `clusternet`.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::IpAddr,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    thread::JoinHandle,
    time::Duration,
};

use clusternet::{
    api::{Reply, Request, SecretText, Start, Status, View},
    config::{
        authority::{Authority, Beginning, Issue, Keys, Target},
        cert::CertFile,
        key::{KeyFile, Secrets},
        master::{MasterFile, NodeTable},
    },
    sys::{
        clock::now,
        fd::{message_pair, set_nonblocking},
        namespace::Namespaces,
        poll::readable,
        tun::{Device, DeviceKind},
        udp::Udp,
    },
    words::{key::SigningSecret, time::Timestamp},
};

use super::*;
use crate::start::{FromServe, Link, ToServe};

const PATIENCE: Duration = Duration::from_secs(30);

/// A network whose master `head` listens on the loopback.
struct Lab {
    authority: Authority,
    port: u16,
    head: Secrets,
    directory: tempfile::TempDir,
}

fn not_after() -> Timestamp {
    now().wall.plus(Duration::from_secs(3600))
}

impl Lab {
    fn new() -> Self {
        // Free a moment ago, and nobody else here asks for certain ports.
        let port = Udp::bind(0).unwrap().port().unwrap();
        let head = Secrets::generate();
        let beginning = Beginning {
            name: "lab".parse().unwrap(),
            ipv4: "10.99.0.0/16".parse().unwrap(),
            owner: Some("alice".parse().unwrap()),
            master: "head".parse().unwrap(),
            keys: head.public(),
            endpoints: vec![format!("udp://127.0.0.1:{port}").parse().unwrap()],
            not_after: not_after(),
        };
        let secret = SigningSecret::generate();
        let (authority, _) = Authority::begin(secret, beginning, now().wall).unwrap();
        Self { authority, port, head, directory: tempfile::tempdir().unwrap() }
    }

    /// A certificate for these keys, a renewed one if there was one.
    fn certificate(&mut self, name: &str, secrets: &Secrets) -> CertFile {
        let (transport, host) = secrets.public();
        let issue = Issue {
            name: name.parse().unwrap(),
            keys: Keys::Node(transport, host),
            not_after: not_after(),
            role: None,
            owner: None,
            endpoints: Vec::new(),
        };
        let certificate = self.authority.issue(issue, now().wall).unwrap().certificate;
        CertFile { authority: self.authority.ledger().authority, certificate }
    }

    fn start_head(&mut self) -> Running {
        let authority = self.authority.ledger().authority;
        let certificate = self.authority.ledger().certificates[0].clone();
        let listen = Some(format!("{}", self.port));
        self.start("head", self.head.clone(), CertFile { authority, certificate }, listen)
    }

    fn start(
        &mut self,
        name: &str,
        secrets: Secrets,
        certificate: CertFile,
        listen: Option<String>,
    ) -> Running {
        let network = self.authority.ledger().network.clone();
        let mut master = MasterFile { network, node: NodeTable::default() }.render();
        if let Some(listen) = listen {
            master.push_str(&format!("\n[node]\nlisten = {listen}\n"));
        }
        let addresses =
            [certificate.certificate.ipv4.into(), certificate.certificate.ipv6().into()];
        let key = KeyFile { name: name.parse().unwrap(), secrets, certificate: Some(certificate) };
        let place = self.directory.path().join(name);
        std::fs::create_dir_all(place.join("state")).unwrap();
        let start = start_of(name, &place, master, &key);
        Running::start(start, &place, addresses, false)
    }
}

fn start_of(name: &str, place: &Path, master: String, key: &KeyFile) -> Start {
    Start {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        instance: name.parse().unwrap(),
        runtime: place.to_owned(),
        state: place.join("state"),
        master,
        key: SecretText(key.render()),
        foreground: true,
    }
}

/// A `serve` in a thread of its own.
struct Running {
    keeper: Link,
    control: PathBuf,
    inside: BufReader<UnixStream>,
    device: OwnedFd,
    addresses: [IpAddr; 2],
    place: PathBuf,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Running {
    fn start(start: Start, place: &Path, addresses: [IpAddr; 2], restarted: bool) -> Self {
        let (keeper, theirs) = Link::pair().unwrap();
        let (inside, to_inside) = UnixStream::pair().unwrap();
        inside.set_read_timeout(Some(PATIENCE)).unwrap();
        let (device, programs) = message_pair().unwrap();
        set_nonblocking(&device).unwrap();
        let control = place.join("control");
        let _ = std::fs::remove_file(&control);
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let view = View {
            hostname: start.instance.clone(),
            hosts: place.join("hosts"),
            environment: Vec::new(),
            bin: place.join("bin"),
        };
        let inherited = Inherited {
            about: ServeStart { start, keeper: 1, device: DeviceKind::Tun, view, restarted },
            keeper: theirs,
            control: UnixListener::bind(&control).unwrap(),
            inside: to_inside,
            namespaces: Namespaces::from_fds([null(), null(), null(), null(), null()]),
            device: Device { kind: DeviceKind::Tun, fds: vec![device] },
            lock: null(),
        };
        let thread = std::thread::spawn(move || {
            let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            tokio.block_on(run(inherited))
        });
        let place = place.to_owned();
        let (inside, thread) = (BufReader::new(inside), Some(thread));
        Self { keeper, control, inside, device: programs, addresses, place, thread }
    }

    /// The next word to the keeper.
    fn progress(&self) -> Progress {
        assert!(readable([self.keeper.as_fd()], Some(PATIENCE)).unwrap()[0], "serve says nothing");
        match self.keeper.receive::<FromServe>().unwrap().unwrap().0 {
            FromServe::Progress(progress) => progress,
            leave @ FromServe::Leave { .. } => panic!("{leave:?}"),
        }
    }

    fn ask(&self, request: &Request) -> Reply {
        let mut stream = UnixStream::connect(&self.control).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let line = serde_json::to_string(request).unwrap() + "\n";
        stream.write_all(line.as_bytes()).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        serde_json::from_str(&reply).unwrap()
    }

    fn status(&self) -> Status {
        let Reply::Status(status) = self.ask(&Request::Status) else { panic!("no status") };
        *status
    }

    /// Waits until `status` shows it.
    #[track_caller]
    fn until(&self, what: &str, shows: impl Fn(&Status) -> bool) -> Status {
        let deadline = now().instant + PATIENCE;
        loop {
            let status = self.status();
            if shows(&status) {
                return status;
            }
            assert!(now().instant < deadline, "never {what}: {status:#?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn knows(&self, node: &str) -> Status {
        self.until(node, |s| s.peers.iter().any(|p| p.name.as_str() == node))
    }

    /// The next owner table.
    fn owners(&mut self) -> serde_json::Value {
        loop {
            let mut line = String::new();
            self.inside.read_line(&mut line).unwrap();
            if !line.trim().is_empty() {
                return serde_json::from_str(&line).unwrap();
            }
        }
    }

    /// A program sends to another node.
    fn send(&self, to: &Self, family: usize, text: &[u8]) {
        let packet = packet(self.addresses[family], to.addresses[family], text);
        assert_eq!(nix::unistd::write(&self.device, &packet).unwrap(), packet.len());
    }

    /// A program receives.
    #[track_caller]
    fn receive(&self) -> Vec<u8> {
        assert!(readable([self.device.as_fd()], Some(PATIENCE)).unwrap()[0], "no packet came");
        let mut buffer = vec![0; 2000];
        let length = nix::unistd::read(&self.device, &mut buffer).unwrap();
        buffer[..length].to_vec()
    }

    fn hosts(&self) -> String {
        std::fs::read_to_string(self.place.join("hosts")).unwrap()
    }

    fn stop(mut self) -> anyhow::Result<()> {
        self.keeper.send(&ToServe::Stop, &[]).unwrap();
        self.thread.take().unwrap().join().unwrap()
    }
}

fn packet(from: IpAddr, to: IpAddr, text: &[u8]) -> Vec<u8> {
    let mut packet = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
            packet[2..4].copy_from_slice(&(20 + text.len() as u16).to_be_bytes());
            packet.extend(from.octets());
            packet.extend(to.octets());
            packet
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut packet = vec![0x60, 0, 0, 0, 0, 0, 17, 64];
            packet[4..6].copy_from_slice(&(text.len() as u16).to_be_bytes());
            packet.extend(from.octets());
            packet.extend(to.octets());
            packet
        }
        _ => panic!("mixed families"),
    };
    packet.extend(text);
    packet
}

/// `head` and `a`, accepted.
fn pair() -> (Lab, Running, Running, Secrets) {
    let mut lab = Lab::new();
    let head = lab.start_head();
    assert!(matches!(head.progress(), Progress::Listening { cached: false, .. }));
    let secrets = Secrets::generate();
    let certificate = lab.certificate("a", &secrets);
    let a = lab.start("a", secrets.clone(), certificate, None);
    assert!(matches!(a.progress(), Progress::Listening { cached: false, .. }));
    let Progress::Accepted { by, path } = a.progress() else { panic!("not accepted") };
    assert_eq!((by.as_str(), path), ("head", format!("direct udp 127.0.0.1:{}", lab.port)));
    head.knows("a");
    (lab, head, a, secrets)
}

#[test]
fn two_nodes_meet_and_packets_pass_both_ways_in_both_families() {
    let (lab, head, a, _) = pair();
    for family in 0..2 {
        a.send(&head, family, b"to head");
        let got = head.receive();
        assert_eq!(got, packet(a.addresses[family], head.addresses[family], b"to head"));
        head.send(&a, family, b"to a");
        assert_eq!(a.receive(), packet(head.addresses[family], a.addresses[family], b"to a"));
    }
    // Nobody has this address: the program hears it.
    let nobody = packet(a.addresses[0], "10.99.9.9".parse().unwrap(), b"hello");
    nix::unistd::write(&a.device, &nobody).unwrap();
    assert_eq!(a.receive()[20..22], [3, 1], "host unreachable");

    let status = a.knows("head");
    assert_eq!((status.instance.as_str(), status.device.as_str()), ("a", "tun"));
    assert!(status.accepted && status.listen.is_some_and(|l| l.starts_with("udp port ")));
    assert_eq!(status.drops, [("outgoing packet to no member".to_owned(), 1)]);
    assert_eq!(status.peers[0].state, "connected");
    // What workers count is looked at now and then.
    a.until("counted", |s| s.peers[0].sent > 0 && s.peers[0].received > 0);

    let Reply::Ping(ping) = a.ask(&Request::Ping { node: "head.lab".into(), timeout_ms: 20_000 })
    else {
        panic!("no ping")
    };
    assert!(ping.round_trip.is_some(), "{ping:?}");
    assert_eq!(ping.path, Some(format!("direct udp 127.0.0.1:{}", lab.port)));
    let own = a.ask(&Request::Ping { node: "a".into(), timeout_ms: 1 });
    assert!(matches!(own, Reply::Ping(ping) if ping.path.as_deref() == Some("this node")));
    let unknown = a.ask(&Request::Ping { node: "nobody".into(), timeout_ms: 1 });
    assert!(matches!(unknown, Reply::Error { message } if message.contains("`nobody`")));
    a.stop().unwrap();
    head.until("left", |s| s.peers[0].state != "connected");
    head.stop().unwrap();
}

#[test]
fn the_first_packet_under_new_keys_is_opened() {
    // A peer may answer before the thread that has told it the keys runs again.
    for round in 0..8 {
        let (_lab, head, a, _) = pair();
        let (from, to) = if round % 2 == 0 { (&a, &head) } else { (&head, &a) };
        from.send(to, 0, b"first");
        assert_eq!(to.receive(), packet(from.addresses[0], to.addresses[0], b"first"));
        a.stop().unwrap();
        head.stop().unwrap();
    }
}

#[test]
fn the_inside_learns_of_every_node() {
    let (_lab, mut head, mut a, _) = pair();
    let line = format!("{} a a.lab\n", a.addresses[0]);
    head.until("in the hosts file", |_| head.hosts().contains(&line));
    let hosts = a.hosts();
    for address in head.addresses {
        assert!(hosts.contains(&format!("{address} head head.lab\n")), "{hosts}");
    }
    for own in ["127.0.0.1 localhost\n", "::1 localhost"] {
        assert!(hosts.contains(own), "{hosts}");
    }
    let known = std::fs::read_to_string(a.place.join("known_hosts")).unwrap();
    assert!(known.contains("head,head.lab,") && known.contains("ssh-ed25519 "), "{known}");
    for (node, other) in [(&mut head, "a"), (&mut a, "head")] {
        let mut table = node.owners();
        while !table["members"].to_string().contains(&format!("\"{other}\"")) {
            table = node.owners();
        }
        assert_eq!(table["here"]["owner"], "alice");
    }
    // The keeper has made the directory again: everything in it too.
    std::fs::remove_file(a.place.join("hosts")).unwrap();
    a.keeper.send(&ToServe::Control, &[]).unwrap();
    a.until("written again", |_| a.place.join("hosts").exists());
    a.stop().unwrap();
    head.stop().unwrap();
}

#[test]
fn a_revocation_given_to_one_node_ends_the_other() {
    let (mut lab, head, a, _) = pair();
    let other_network = Lab::new().authority.ledger().revocations_file().render();
    let refused = head.ask(&Request::Update { text: other_network, timeout_ms: 0 });
    assert!(matches!(refused, Reply::Error { message } if message.contains("another network")));
    let junk = head.ask(&Request::Update { text: "junk".into(), timeout_ms: 0 });
    assert!(matches!(junk, Reply::Error { .. }));

    lab.authority.revoke(&Target::Name("a".parse().unwrap()), now().wall).unwrap();
    let text = lab.authority.ledger().revocations_file().render();
    let reply = head.ask(&Request::Update { text, timeout_ms: 5_000 });
    let Reply::Update { taken, .. } = reply else { panic!("{reply:?}") };
    assert_eq!(taken, "revocations up to 1");
    // It may hear first that its peer refuses it.
    let failed = loop {
        let progress = a.progress();
        if let Progress::Failed { message } = progress {
            break message;
        }
        assert!(matches!(progress, Progress::Refused { .. }), "{progress:?}");
    };
    assert_eq!(failed, "the certificate has been revoked");
    head.until("gone", |s| s.peers.iter().all(|p| p.state != "connected"));
    drop(a);
    head.stop().unwrap();
}

#[test]
fn a_renewed_certificate_and_the_roster_outlive_a_restart() {
    let (mut lab, head, a, secrets) = pair();
    let old = a.status().node.serial;
    let renewed = lab.certificate("a", &secrets);
    let reply = a.ask(&Request::Update { text: renewed.render(), timeout_ms: 20_000 });
    let Reply::Update { confirmed, nodes, .. } = reply else { panic!("{reply:?}") };
    assert_eq!((confirmed, nodes), (1, 1));
    let serial = a.status().node.serial;
    assert!(serial > old);
    let port = a.status().listen;
    a.stop().unwrap();
    head.stop().unwrap();

    // The same key file as before, and nobody answers.
    let first = CertFile {
        authority: renewed.authority,
        certificate: lab.authority.ledger().certificate(old).unwrap().clone(),
    };
    let a = lab.start("a", secrets, first, None);
    assert!(matches!(a.progress(), Progress::Listening { cached: true, .. }));
    let status = a.knows("head");
    assert_eq!((status.node.serial, status.listen), (serial, port));
    assert!(a.hosts().contains(" head head.lab\n"), "known before anybody answers");
    // The master comes back.
    let head = lab.start_head();
    assert!(matches!(a.progress(), Progress::Accepted { .. }));
    a.stop().unwrap();
    head.stop().unwrap();
}

#[test]
fn a_port_in_use_ends_the_start_with_advice() {
    let mut lab = Lab::new();
    let _taken = Udp::bind(lab.port).unwrap();
    let head = lab.start_head();
    let Progress::Failed { message } = head.progress() else { panic!("it started") };
    assert!(message.contains("another program has this port"), "{message}");
}

#[test]
fn the_end_of_keeper_or_device_is_the_end() {
    let mut lab = Lab::new();
    let head = lab.start_head();
    head.progress();
    let Running { keeper, thread, .. } = head;
    drop(keeper);
    thread.unwrap().join().unwrap().unwrap();

    let head = lab.start_head();
    head.progress();
    let Running { keeper, device, thread, .. } = head;
    drop(device);
    let error = thread.unwrap().join().unwrap().unwrap_err();
    assert!(format!("{error:#}").starts_with("read packets and datagrams"), "{error:#}");
    drop(keeper);
}

#[test]
fn junk_at_every_door_neither_crashes_nor_stalls_a_node() {
    let (lab, head, a, _) = pair();
    let stranger = Udp::bind_to(([127, 0, 0, 1], 0).into()).unwrap();
    let door = ([127, 0, 0, 1], lab.port).into();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move || {
        // xorshift64*: the same junk every time.
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    };
    for round in 0..3000_u64 {
        let length = [0, 1, 3, 4, 31, 32, 64, 92, 148, 149, 600, 1500][random() as usize % 12];
        let mut datagram: Vec<u8> = (0..length).map(|_| random() as u8).collect();
        if let Some(header) = datagram.first_chunk_mut::<4>()
            && round % 4 > 0
        {
            *header = [[1, 2, 3, 4, 0x20][random() as usize % 5], 0, 0, 0];
        }
        stranger.send_to(&datagram, door);
        if round % 100 == 0 {
            let mut stream = UnixStream::connect(&head.control).unwrap();
            // It may hang up in the middle: that is its right.
            let _ =
                stream.write_all(&datagram).and_then(|()| stream.write_all(b"{\"request\":1}\n"));
        }
    }
    for text in ["", "{}", "[network]\nname = 1", "\u{0}", "[revocations]\nhead = \"\""] {
        let reply = head.ask(&Request::Update { text: text.to_owned(), timeout_ms: 1 });
        assert!(matches!(reply, Reply::Error { .. }), "{text}: {reply:?}");
    }
    // Some may be lost with the junk.
    let deadline = now().instant + PATIENCE;
    loop {
        a.send(&head, 0, b"still there?");
        if readable([head.device.as_fd()], Some(Duration::from_millis(100))).unwrap()[0] {
            break;
        }
        assert!(now().instant < deadline, "it stalls");
    }
    assert_eq!(head.receive(), packet(a.addresses[0], head.addresses[0], b"still there?"));
    let drops = head.status().drops;
    let dropped = |name: &str| drops.iter().any(|(reason, count)| reason == name && *count > 0);
    assert!(dropped("datagram of unknown type") && dropped("handshake by a stranger"), "{drops:?}");
    a.stop().unwrap();
    head.stop().unwrap();
}
