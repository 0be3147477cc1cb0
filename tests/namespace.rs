//! Real namespaces, made and entered as an ordinary user, with a readable TUN and without one.
//!
//! A program of its own instead of a test harness: only a process with one thread may make or enter a user namespace, so every
//! test here is a fork of this one. As root the tests run as uid 4242 (and 4243 for the stranger) in a mount namespace of their own
//! where `/dev/net/tun` is what the test needs; otherwise as the user who runs them, and those that need root are skipped.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test program")]

use std::{
    fs,
    io::{self, Read},
    net::{Ipv4Addr, Ipv6Addr, TcpListener},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clusternet::sys::{
    enter::{EnterError, View, drop_privileges, enter},
    fd,
    interfaces::{self, Watcher},
    namespace::{Backend, BuildError, BuildSpec, Built, Namespaces, build_in_child},
    netlink::{LinkChange, Netlink},
    poll, probe,
    process::{self, fork_child},
    tun::{DeviceKind, Queue},
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::{
        prctl,
        signal::Signal,
        stat::{Mode, SFlag, makedev, mknod},
    },
    unistd::{
        Gid, Uid, dup2_stderr, dup2_stdout, execvp, geteuid, getppid, setgroups, setresgid,
        setresuid,
    },
};

/// The ordinary user, and another one.
const USER: u32 = 4242;
const STRANGER: u32 = 4243;

const IPV4: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 5);
const PEER4: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 7);
const IPV6: Ipv6Addr = Ipv6Addr::new(0xfdcc, 1, 2, 0, 0, 0, 0, 5);
const PEER6: Ipv6Addr = Ipv6Addr::new(0xfdcc, 1, 2, 0, 0, 0, 0, 7);

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(20);

enum Needs {
    Nothing,
    Root,
}

type Test = (&'static str, Needs, fn());

const TESTS: &[Test] = &[
    ("a_node_with_a_tun_has_all_that_programs_need", Needs::Nothing, || whole_node(Tun::Open)),
    ("a_node_without_a_tun_has_the_same", Needs::Nothing, || whole_node(Tun::Closed)),
    ("packets_cross_a_tun_with_right_checksums", Needs::Nothing, || packets(Tun::Open)),
    ("packets_cross_a_packet_socket_with_right_checksums", Needs::Nothing, || packets(Tun::Closed)),
    ("a_tun_that_must_be_and_cannot_says_why", Needs::Root, tun_refused),
    ("two_instances_of_one_user_are_strangers_to_each_other", Needs::Nothing, two_instances),
    ("another_user_cannot_enter_even_with_the_descriptors", Needs::Root, strangers),
    ("another_user_cannot_open_the_namespace_of_a_process", Needs::Root, strangers_by_path),
    ("root_gives_up_its_power_before_a_program_starts", Needs::Root, root_user),
    ("a_process_with_threads_is_told_that_it_cannot_enter", Needs::Nothing, threads),
    ("entering_twice_is_once_and_a_sibling_is_out_of_reach", Needs::Nothing, nested),
    ("no_user_namespaces_is_said_with_the_limit_to_raise", Needs::Nothing, no_user_namespaces),
    ("programs_inside_are_found_and_ended", Needs::Nothing, leave),
    ("a_change_of_address_is_noticed", Needs::Nothing, watched),
    ("the_device_outlives_its_first_reader_and_ends_with_the_last", Needs::Nothing, device_life),
    ("the_probe_says_what_works", Needs::Nothing, probe_works),
    ("the_probe_says_what_an_administrator_could_change", Needs::Root, probe_refused),
    ("a_private_mount_of_the_caller_is_kept", Needs::Nothing, callers_mounts),
    ("the_host_is_left_as_it_was", Needs::Nothing, host_untouched),
];

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let mut filters = Vec::new();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--list" => {
                TESTS.iter().for_each(|(name, _, _)| println!("{name}: test"));
                return ExitCode::SUCCESS;
            }
            "--test-threads" | "--skip" | "--format" | "--color" => drop(arguments.next()),
            flag if flag.starts_with('-') => {}
            filter => filters.push(filter.to_owned()),
        }
    }
    let mut failed = 0;
    for (name, needs, test) in TESTS {
        if !filters.is_empty() && !filters.iter().any(|filter| name.contains(filter)) {
            continue;
        }
        if matches!(needs, Needs::Root) && !geteuid().is_root() {
            println!("test {name} ... skipped: it needs root to make other users");
            continue;
        }
        let status = fork_child(|| {
            test();
            0
        })
        .unwrap()
        .wait()
        .unwrap();
        // 77 as automake has it: skipped, and the test has said why.
        let word = match status {
            0 => "ok",
            77 => "skipped",
            _ => {
                failed += 1;
                "FAILED"
            }
        };
        println!("test {name} ... {word}");
    }
    println!("\ntest result: {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn skip(why: &str) -> ! {
    println!("skipped: {why}");
    process::exit_now(77)
}

/// What `/dev/net/tun` is like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Tun {
    Open,
    Closed,
}

impl Tun {
    fn kind(self) -> DeviceKind {
        match self {
            Self::Open => DeviceKind::Tun,
            Self::Closed => DeviceKind::Packet,
        }
    }
}

/// Puts a node of that mode over `/dev/net/tun`, for this process and its children alone. Without root, makes do with what is there:
/// returns the backend to ask for.
fn stage(tun: Tun) -> Backend {
    if !geteuid().is_root() {
        let opens = fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun").is_ok();
        return match tun {
            Tun::Open if opens => Backend::Auto,
            Tun::Open => skip("/dev/net/tun does not open here"),
            Tun::Closed => Backend::Packet,
        };
    }
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(Some("tmpfs"), "/mnt", Some("tmpfs"), MsFlags::empty(), none).unwrap();
    mknod("/mnt/tun", SFlag::S_IFCHR, Mode::empty(), makedev(10, 200)).unwrap();
    let mode = if tun == Tun::Open { 0o666 } else { 0o600 };
    fs::set_permissions("/mnt/tun", PermissionsExt::from_mode(mode)).unwrap();
    mount(Some("/mnt/tun"), "/dev/net/tun", none, MsFlags::MS_BIND, none).unwrap();
    Backend::Auto
}

/// Becomes that user, if this is root.
fn become_user(uid: u32) {
    if !geteuid().is_root() {
        return;
    }
    setgroups(&[]).unwrap();
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
    setresgid(group, group, group).unwrap();
    setresuid(user, user, user).unwrap();
    // As after an exec: the maps of /proc/self belong to us.
    prctl::set_dumpable(true).unwrap();
}

/// Files of one test.
struct Desk {
    hosts: tempfile::NamedTempFile,
}

impl Desk {
    fn new() -> Self {
        let mut hosts = tempfile::NamedTempFile::new().unwrap();
        let text = format!(
            "127.0.0.1 localhost\n::1 localhost\n{IPV4} nodea nodea.lab\n{IPV6} nodea nodea.lab\n{PEER4} nodeb\n{PEER6} nodeb\n"
        );
        io::Write::write_all(&mut hosts, text.as_bytes()).unwrap();
        Self { hosts }
    }

    fn spec(&self, backend: Backend) -> BuildSpec {
        BuildSpec {
            hostname: "nodea".to_owned(),
            ipv4: IPV4,
            ipv4_prefix: 16,
            ipv6: IPV6,
            ipv6_prefix: 48,
            mtu: 1400,
            hosts: self.hosts.path().to_owned(),
            backend,
            ssh_port: true,
        }
    }

    fn view(&self) -> View {
        View { hosts: self.hosts.path().to_owned() }
    }

    fn build(&self, backend: Backend) -> Built {
        build_in_child(&self.spec(backend)).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Runs a shell script inside, as `run` would: its status and all it printed.
    fn run(&self, namespaces: &Namespaces, script: &str) -> (i32, String) {
        let (reader, writer) = io::pipe().unwrap();
        let child = fork_child(|| {
            let entered = enter(namespaces, &self.view()).unwrap();
            assert_eq!(entered.warnings, Vec::<String>::new());
            drop_privileges().unwrap();
            process::restore_sigpipe();
            dup2_stdout(&writer).unwrap();
            dup2_stderr(&writer).unwrap();
            let _ = execvp(c"sh", &[c"sh", c"-c", &std::ffi::CString::new(script).unwrap()]);
            127
        })
        .unwrap();
        drop(writer);
        let text = read_all(reader);
        (child.wait().unwrap(), text)
    }

    #[track_caller]
    fn expect(&self, namespaces: &Namespaces, script: &str, wanted: &str) {
        let (status, text) = self.run(namespaces, script);
        assert_eq!(text.trim(), wanted, "{script} (status {status})");
    }
}

fn read_all(mut from: impl Read) -> String {
    let mut text = String::new();
    from.read_to_string(&mut text).unwrap();
    text
}

fn user_of_test() -> u32 {
    geteuid().as_raw()
}

fn whole_node(tun: Tun) {
    let backend = stage(tun);
    become_user(USER);
    let desk = Desk::new();
    let built = desk.build(backend);
    assert_eq!(built.device.kind, tun.kind());
    if backend == Backend::Auto && tun == Tun::Closed {
        let note = "open /dev/net/tun: permission denied; using veth and a packet socket instead";
        assert_eq!(built.notes, [note]);
    } else {
        assert_eq!(built.notes, Vec::<String>::new());
    }
    let ns = &built.namespaces;
    let expect = |script: &str, wanted: &str| desk.expect(ns, script, wanted);

    expect("id -u", &user_of_test().to_string());
    expect("hostname; uname -n", "nodea\nnodea");
    expect("ls /sys/class/net | xargs", "cn0 lo");
    expect("test -d /sys/fs/cgroup && mountpoint -q /sys/fs/cgroup && echo bound", "bound");
    expect(
        "grep -E '^Cap(Prm|Eff|Inh|Amb)' /proc/self/status | cut -f2 | sort -u",
        "0000000000000000",
    );
    expect(
        "cat /proc/sys/net/ipv6/conf/cn0/accept_ra /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding /proc/sys/net/ipv4/conf/cn0/accept_redirects /proc/sys/net/ipv6/conf/cn0/accept_redirects | sort -u",
        "0",
    );
    // Exactly these addresses: nothing link-local.
    expect(
        "ip -o address | awk '{print $2, $4}' | sort",
        "cn0 10.99.0.5/16\ncn0 fdcc:1:2::5/48\nlo 127.0.0.1/8\nlo ::1/128",
    );
    expect("cat /sys/class/net/cn0/mtu", "1400");
    // Own addresses, lo, both families; by name too.
    for target in
        ["-4 10.99.0.5", "-6 fdcc:1:2::5", "-4 127.0.0.1", "-6 ::1", "-4 nodea", "-6 nodea"]
    {
        let (status, text) = desk.run(ns, &format!("ping -n -c 1 -W 5 {target}"));
        assert_eq!(status, 0, "ping {target}: {text}");
    }
    // Names: ours alone, and no waiting for a server that is not there.
    expect("getent ahostsv4 nodeb | awk '{print $1}' | sort -u", "10.99.0.7");
    expect("getent ahostsv6 nodeb | awk '{print $1}' | sort -u", "fdcc:1:2::7");
    expect("getent hosts 10.99.0.5 | awk '{print $2}'", "nodea");
    let started = clusternet::sys::clock::now().instant;
    let (status, text) = desk.run(ns, "getent ahosts no-such-name; getent ahosts www.example.org");
    let took = started.elapsed();
    assert_ne!(status, 0, "{text}");
    assert!(took < Duration::from_secs(3), "an unknown name took {took:?}");
    // The working directory stays, wherever the process was.
    std::env::set_current_dir("/usr/share").unwrap();
    expect("pwd", "/usr/share");
    // Low ports.
    let low = fork_child(|| {
        enter(ns, &desk.view()).unwrap();
        drop_privileges().unwrap();
        i32::from(TcpListener::bind((IPV4, 80)).is_err() || TcpListener::bind((IPV6, 1)).is_err())
    });
    assert_eq!(low.unwrap().wait().unwrap(), 0, "bind port 80");
    // The ssh listeners answer inside.
    assert_eq!(built.ssh_listeners.len(), 2);
    for (listener, address) in built.ssh_listeners.iter().zip([IPV4.to_string(), IPV6.to_string()])
    {
        let listener = TcpListener::from(listener.try_clone().unwrap());
        let connected = fork_child(|| {
            enter(ns, &desk.view()).unwrap();
            i32::from(std::net::TcpStream::connect((address.as_str(), 22)).is_err())
        });
        assert_eq!(connected.unwrap().wait().unwrap(), 0);
        assert!(poll::readable([listener.as_fd()], Some(PATIENCE)).unwrap()[0]);
        assert_eq!(listener.accept().unwrap().1.ip().to_string(), address);
    }
}

/// Plays the peer: answers one echo request that a program inside sends, and checks what UDP and TCP put on the wire.
fn packets(tun: Tun) {
    let backend = stage(tun);
    become_user(USER);
    let desk = Desk::new();
    let built = desk.build(backend);
    let queue = Queue::new(built.device.try_clone().unwrap());
    for (option, peer, size) in [
        ("-4", PEER4.to_string(), 56),
        ("-6", PEER6.to_string(), 56),
        // To the last byte of the MTU: 1400 less the headers.
        ("-4", PEER4.to_string(), 1400 - 20 - 8),
        ("-6", PEER6.to_string(), 1400 - 40 - 8),
    ] {
        let ping = fork_child(|| {
            enter(&built.namespaces, &desk.view()).unwrap();
            drop_privileges().unwrap();
            let words = format!("ping -n -c 1 -W 15 -s {size} {option} {peer} >/dev/null");
            let words = std::ffi::CString::new(words).unwrap();
            let _ = execvp(c"sh", &[c"sh", c"-c", &words]);
            127
        })
        .unwrap();
        let mut request = await_packet(&queue, |packet| {
            matches!((packet[0] >> 4, protocol(packet)), (4, 1) | (6, 58))
                && payload(packet)[0] & 0x7f <= 8
                && [8, 128].contains(&payload(packet)[0])
        });
        assert!(checksum_is_right(&request), "what leaves is what a wire would carry");
        turn_round(&mut request);
        assert!(checksum_is_right(&request));
        assert_eq!(queue.write(&request).unwrap(), request.len());
        assert_eq!(ping.wait().unwrap(), 0, "ping {option} -s {size}");
    }
    for (kind, number) in [("udp", 17), ("tcp", 6)] {
        for peer in [PEER4.to_string(), format!("[{PEER6}]")] {
            let sender = fork_child(|| {
                enter(&built.namespaces, &desk.view()).unwrap();
                let (to, patience) =
                    (format!("{peer}:9").parse().unwrap(), Duration::from_millis(1));
                if number == 6 {
                    let _ = std::net::TcpStream::connect_timeout(&to, patience);
                } else {
                    let from = if peer.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
                    let socket = std::net::UdpSocket::bind(from).unwrap();
                    socket.send_to(&[7; 1300], to).unwrap();
                }
                0
            })
            .unwrap();
            let packet = await_packet(&queue, |packet| protocol(packet) == number);
            assert!(checksum_is_right(&packet), "{kind} to {peer}");
            sender.wait().unwrap();
        }
    }
    // Nothing that was written comes back.
    let mut buf = [0; 2048];
    while let Ok(length) = queue.read(&mut buf) {
        assert_ne!(source(&buf[..length]), PEER4.octets().to_vec());
    }
    assert_eq!(queue.read(&mut buf).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    assert_eq!(queue.write(&[]).unwrap_err().kind(), io::ErrorKind::InvalidInput);
}

fn await_packet(queue: &Queue, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let mut buf = [0; 2048];
    loop {
        assert!(poll::readable([queue.as_fd()], Some(PATIENCE)).unwrap()[0], "no packet came");
        match queue.read(&mut buf) {
            Ok(length) if wanted(&buf[..length]) => return buf[..length].to_vec(),
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
    }
}

fn protocol(packet: &[u8]) -> u8 {
    if packet[0] >> 4 == 4 { packet[9] } else { packet[6] }
}

fn source(packet: &[u8]) -> Vec<u8> {
    if packet[0] >> 4 == 4 { packet[12..16].to_vec() } else { packet[8..24].to_vec() }
}

fn payload(packet: &[u8]) -> &[u8] {
    if packet[0] >> 4 == 4 { &packet[20..] } else { &packet[40..] }
}

/// Ones' complement sum over pseudo header and payload: zero where the checksum is right.
fn checksum_is_right(packet: &[u8]) -> bool {
    let pseudo = !(packet[0] >> 4 == 4 && protocol(packet) == 1);
    let mut bytes = payload(packet).to_vec();
    if !bytes.len().is_multiple_of(2) {
        bytes.push(0);
    }
    if pseudo {
        let addresses = if packet[0] >> 4 == 4 { &packet[12..20] } else { &packet[8..40] };
        bytes.extend(addresses);
        bytes.extend([0, protocol(packet)]);
        bytes.extend(u16::try_from(payload(packet).len()).unwrap().to_be_bytes());
    }
    let sum: u64 = bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(pair[1])).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    (folded & 0xffff) + (folded >> 16) == 0xffff
}

/// Makes a reply of an echo request: swapping the addresses leaves sums as they are, the type does not.
fn turn_round(packet: &mut [u8]) {
    let v4 = packet[0] >> 4 == 4;
    let (from, bytes, icmp) = if v4 { (12, 4, 20) } else { (8, 16, 40) };
    let (a, b) = packet[from..from + 2 * bytes].split_at_mut(bytes);
    a.swap_with_slice(b);
    let (was, is) = (packet[icmp], if v4 { 0 } else { 129 });
    packet[icmp] = is;
    // RFC 1624: HC' = ~(~HC + ~m + m').
    let old = u16::from_be_bytes([packet[icmp + 2], packet[icmp + 3]]);
    let sum = u32::from(!old) + u32::from(!(u16::from(was) << 8)) + (u32::from(is) << 8);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    packet[icmp + 2..icmp + 4].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

fn tun_refused() {
    stage(Tun::Closed);
    become_user(USER);
    let desk = Desk::new();
    let error = build_in_child(&desk.spec(Backend::Tun)).unwrap_err();
    assert!(matches!(error, BuildError::Device { .. }));
    assert_eq!(
        error.to_string(),
        "make the overlay device: open /dev/net/tun: permission denied; an administrator could allow it: chmod 0666 /dev/net/tun"
    );
}

fn two_instances() {
    let backend = stage(Tun::Open);
    become_user(USER);
    let desk = Desk::new();
    // The same addresses: they share nothing.
    let (a, b) = (desk.build(backend), desk.build(backend));
    for built in [&a, &b] {
        let (status, text) = desk.run(&built.namespaces, "ping -n -c 1 -W 5 10.99.0.5");
        assert_eq!(status, 0, "{text}");
    }
    let (queue_a, queue_b) = (Queue::new(a.device), Queue::new(b.device));
    let (status, _) = desk.run(&a.namespaces, "ping -n -c 1 -W 1 10.99.0.7");
    assert_eq!(status, 1, "nobody answers");
    await_packet(&queue_a, |packet| protocol(packet) == 1);
    let mut buf = [0; 2048];
    while let Ok(length) = queue_b.read(&mut buf) {
        assert_ne!(protocol(&buf[..length]), 1, "a packet of the other instance");
    }
}

/// Builds as the ordinary user in a child; what it made comes to this process, which stays root.
fn build_as_user(desk: &Desk) -> Namespaces {
    let (ours, theirs) = fd::message_pair().unwrap();
    let child = fork_child(|| {
        become_user(USER);
        let built = desk.build(Backend::Auto);
        fd::send_with_fds(&theirs, b"built", &built.namespaces.as_fds()).unwrap();
        0
    })
    .unwrap();
    let (_, fds) = fd::receive_with_fds(&ours, &mut [0; 16]).unwrap();
    assert_eq!(child.wait().unwrap(), 0);
    let fds: [OwnedFd; Namespaces::COUNT] = fds.try_into().unwrap();
    Namespaces::from_fds(fds)
}

fn readable_desk() -> Desk {
    let desk = Desk::new();
    fs::set_permissions(desk.hosts.path(), PermissionsExt::from_mode(0o644)).unwrap();
    desk
}

fn strangers() {
    stage(Tun::Open);
    let desk = readable_desk();
    let namespaces = build_as_user(&desk);
    let stranger = fork_child(|| {
        become_user(STRANGER);
        let error = enter(&namespaces, &desk.view()).unwrap_err();
        assert_eq!(error, EnterError::Foreign(USER));
        0
    });
    assert_eq!(stranger.unwrap().wait().unwrap(), 0);
    let owner = fork_child(|| {
        become_user(USER);
        enter(&namespaces, &desk.view()).unwrap();
        0
    });
    assert_eq!(owner.unwrap().wait().unwrap(), 0);
}

fn strangers_by_path() {
    stage(Tun::Open);
    let desk = readable_desk();
    let namespaces = build_as_user(&desk);
    let (mut reader, writer) = io::pipe().unwrap();
    let sleeper = fork_child(|| {
        become_user(USER);
        enter(&namespaces, &desk.view()).unwrap();
        drop_privileges().unwrap();
        dup2_stdout(&writer).unwrap();
        let _ = execvp(c"sh", &[c"sh", c"-c", c"echo up; exec sleep 600"]);
        127
    })
    .unwrap();
    reader.read_exact(&mut [0; 3]).unwrap();
    let path = format!("/proc/{}/ns/net", sleeper.pid());
    let stranger = fork_child(|| {
        become_user(STRANGER);
        let error = fs::File::open(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(process::inside(&namespaces.net).unwrap(), []);
        0
    });
    let stranger = stranger.unwrap().wait().unwrap();
    assert_eq!(process::inside(&namespaces.net).unwrap().len(), 1, "root sees it");
    process::end_inside(&namespaces.net, Signal::SIGKILL, &[], PATIENCE).unwrap();
    sleeper.wait().unwrap();
    assert_eq!(stranger, 0);
}

fn root_user() {
    stage(Tun::Open);
    let desk = Desk::new();
    let built = desk.build(Backend::Auto);
    let ns = &built.namespaces;
    desk.expect(ns, "id -u", "0");
    desk.expect(
        ns,
        "grep -E '^Cap(Prm|Eff|Inh|Amb)' /proc/self/status | cut -f2 | sort -u",
        "0000000000000000",
    );
    desk.expect(ns, "grep CapBnd /proc/self/status | cut -f2", "0000000000002000");
    let (status, text) = desk.run(ns, "ping -n -c 1 -W 5 10.99.0.5");
    assert_eq!(status, 0, "{text}");
    let (status, _) = desk.run(ns, "mount -t tmpfs tmpfs /mnt || ip link set cn0 down");
    assert_ne!(status, 0, "uid 0 is nobody special inside");
}

fn threads() {
    let backend = stage(Tun::Open);
    become_user(USER);
    let desk = Desk::new();
    let built = desk.build(backend);
    std::thread::scope(|scope| {
        let (send, receive) = std::sync::mpsc::channel::<()>();
        scope.spawn(move || receive.recv());
        let error = enter(&built.namespaces, &desk.view()).unwrap_err();
        assert_eq!(error, EnterError::Threads);
        drop(send);
    });
}

fn nested() {
    let backend = stage(Tun::Open);
    become_user(USER);
    let desk = Desk::new();
    let (a, b) = (desk.build(backend), desk.build(backend));
    let child = fork_child(|| {
        assert!(!enter(&a.namespaces, &desk.view()).unwrap().already);
        drop_privileges().unwrap();
        assert!(enter(&a.namespaces, &desk.view()).unwrap().already);
        drop_privileges().unwrap();
        assert_eq!(enter(&b.namespaces, &desk.view()).unwrap_err(), EnterError::Nested);
        0
    });
    assert_eq!(child.unwrap().wait().unwrap(), 0);
}

/// In a user namespace of its own a process may set limits for those below.
fn forbid_user_namespaces() {
    let (uid, gid) = (geteuid(), nix::unistd::getegid());
    unshare(CloneFlags::CLONE_NEWUSER).unwrap();
    fs::write("/proc/self/setgroups", "deny").unwrap();
    fs::write("/proc/self/uid_map", format!("{uid} {uid} 1")).unwrap();
    fs::write("/proc/self/gid_map", format!("{gid} {gid} 1")).unwrap();
    fs::write("/proc/sys/user/max_user_namespaces", "0").unwrap();
}

fn no_user_namespaces() {
    become_user(USER);
    forbid_user_namespaces();
    let desk = Desk::new();
    let error = build_in_child(&desk.spec(Backend::Auto)).unwrap_err();
    assert!(matches!(error, BuildError::UserNamespace { .. }));
    assert_eq!(error.remedy(), Some("sysctl -w user.max_user_namespaces=15000"));
    let probes = probe::all().unwrap();
    assert_eq!(probes.iter().map(|probe| probe.name.as_str()).collect::<Vec<_>>(), probe::NAMES);
    assert!(!probes[0].ok && !probes[3].ok);
    assert_eq!(probes[0].detail, "make a user namespace: no space left on device");
    assert_eq!(probes[0].remedy.as_deref(), error.remedy());
}

fn leave() {
    let backend = stage(Tun::Open);
    become_user(USER);
    let desk = Desk::new();
    let built = desk.build(backend);
    assert_eq!(process::inside(&built.namespaces.net).unwrap(), [], "the builder is gone");
    let (mut reader, writer) = io::pipe().unwrap();
    let mut children = Vec::new();
    // One ends when asked, the other does not.
    for script in [c"echo up; exec sleep 600", c"trap '' TERM; echo up; while :; do sleep 1; done"]
    {
        let child = fork_child(|| {
            enter(&built.namespaces, &desk.view()).unwrap();
            drop_privileges().unwrap();
            dup2_stdout(&writer).unwrap();
            let _ = execvp(c"sh", &[c"sh", c"-c", script]);
            127
        });
        children.push(child.unwrap());
        reader.read_exact(&mut [0; 3]).unwrap();
    }
    let found = process::inside(&built.namespaces.net).unwrap();
    assert!(found.iter().any(|process| process.command == "sleep 600"), "{found:?}");
    let net = &built.namespaces.net;
    let left = process::end_inside(net, Signal::SIGTERM, &[], Duration::from_millis(300)).unwrap();
    assert!(left.iter().any(|process| process.pid == children[1].pid()), "{left:?}");
    // The shell's sleep may have been started since; as `leave` does, ask until none is left.
    let started = clusternet::sys::clock::now().instant;
    while !process::end_inside(net, Signal::SIGKILL, &[], Duration::from_secs(1))
        .unwrap()
        .is_empty()
    {
        assert!(started.elapsed() < PATIENCE);
    }
    for child in children {
        child.wait().unwrap();
    }
}

fn watched() {
    let backend = stage(Tun::Open);
    become_user(USER);
    let desk = Desk::new();
    let built = desk.build(backend);
    let child = fork_child(|| {
        enter(&built.namespaces, &desk.view()).unwrap();
        let all = interfaces::addresses().unwrap();
        let found = |address: std::net::IpAddr| {
            all.iter().find(|found| found.address == address).unwrap().clone()
        };
        assert_eq!((found(IPV4.into()).prefix_len, found(IPV6.into()).prefix_len), (16, 48));
        assert!(found(IPV4.into()).point_to_point && found(Ipv4Addr::LOCALHOST.into()).loopback);
        let watcher = Watcher::open().unwrap();
        assert!(!watcher.drain().unwrap(), "nothing has changed yet");
        let mut netlink = Netlink::open().unwrap();
        netlink.add_address("cn0", [10, 98, 0, 1].into(), 24).unwrap();
        assert!(poll::readable([watcher.as_fd()], Some(PATIENCE)).unwrap()[0]);
        assert!(watcher.drain().unwrap());
        assert!(!watcher.drain().unwrap());
        let change = LinkChange { mtu: Some(1300), ..LinkChange::default() };
        netlink.change_link("cn0", change).unwrap();
        netlink.add_route("cn0", [10, 97, 0, 0].into(), 16).unwrap();
        assert!(watcher.drain().unwrap());
        0
    });
    assert_eq!(child.unwrap().wait().unwrap(), 0);
}

fn device_life() {
    let backend = stage(Tun::Open);
    become_user(USER);
    let desk = Desk::new();
    let Built { namespaces, device, ssh_listeners, .. } = desk.build(backend);
    let second = device.try_clone().unwrap();
    // A reader that is killed.
    let reader = fork_child(|| {
        let _queue = Queue::new(device.try_clone().unwrap());
        nix::unistd::pause();
        0
    })
    .unwrap();
    process::PidFd::open(reader.pid()).unwrap().signal(Signal::SIGKILL).unwrap();
    reader.wait().unwrap();
    drop(device);
    desk.expect(&namespaces, "ip -o -4 address show cn0 | awk '{print $4}'", "10.99.0.5/16");
    drop((second, ssh_listeners));
    desk.expect(&namespaces, "ls /sys/class/net", "lo");
}

fn probe_works() {
    let backend = stage(Tun::Open);
    become_user(USER);
    let probes = probe::all().unwrap();
    assert_eq!(probes.iter().map(|probe| probe.name.as_str()).collect::<Vec<_>>(), probe::NAMES);
    for probe in &probes {
        let expected = probe.name != "tun" || backend == Backend::Auto;
        assert_eq!(probe.ok, expected, "{probe:?}");
    }
}

fn probe_refused() {
    stage(Tun::Closed);
    become_user(USER);
    let probes = probe::all().unwrap();
    let tun = probes.iter().find(|probe| probe.name == "tun").unwrap();
    assert!(!tun.ok);
    assert_eq!(tun.remedy.as_deref(), Some("chmod 0666 /dev/net/tun"));
    assert!(probes.iter().all(|probe| probe.ok || probe.name == "tun"), "{probes:?}");
}

fn callers_mounts() {
    let backend = stage(Tun::Open);
    if !geteuid().is_root() {
        skip("a mount of one's own needs root here");
    }
    fs::write("/mnt/mark", "mine").unwrap();
    become_user(USER);
    let desk = Desk::new();
    let built = desk.build(backend);
    // Mounted by the caller after the node was built, in a namespace of his own.
    std::env::set_current_dir("/mnt").unwrap();
    desk.expect(&built.namespaces, "pwd; cat mark", "/mnt\nmine");
}

fn host_untouched() {
    let mounts = || fs::read_to_string("/proc/self/mounts").unwrap();
    let hosts = || fs::read(Path::new("/etc/hosts")).unwrap();
    let (mounts_before, hosts_before) = (mounts(), hosts());
    let name = nix::unistd::gethostname().unwrap();
    let interfaces = || -> Vec<PathBuf> {
        let mut all: Vec<_> =
            fs::read_dir("/sys/class/net").unwrap().map(|entry| entry.unwrap().path()).collect();
        all.sort();
        all
    };
    let before = interfaces();
    let inner = fork_child(|| {
        become_user(USER);
        let desk = Desk::new();
        let built = desk.build(Backend::Packet);
        desk.expect(&built.namespaces, "hostname", "nodea");
        0
    });
    assert_eq!(inner.unwrap().wait().unwrap(), 0);
    assert_eq!(mounts(), mounts_before);
    assert_eq!(hosts(), hosts_before);
    assert_eq!(nix::unistd::gethostname().unwrap(), name);
    assert_eq!(interfaces(), before);
    assert!(getppid().as_raw() > 0);
}
