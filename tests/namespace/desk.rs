//! What the tests share: the stage (who, and what `/dev/net/tun` is like) and the desk (one node's files, and programs run inside).

use std::{
    fs,
    io::{self, Read},
    net::{Ipv4Addr, Ipv6Addr},
    os::unix::fs::PermissionsExt,
    time::Duration,
};

use clusternet::sys::{
    enter::{View, drop_privileges, enter},
    namespace::{Backend, BuildSpec, Built, Namespaces, build_in_child},
    process::{self, fork_child},
    tun::DeviceKind,
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::{
        prctl,
        stat::{Mode, SFlag, makedev, mknod},
    },
    unistd::{
        Gid, Uid, dup2_stderr, dup2_stdout, execvp, geteuid, setgroups, setresgid, setresuid,
    },
};

/// The ordinary user, and another one.
pub(crate) const USER: u32 = 4242;
pub(crate) const STRANGER: u32 = 4243;

pub(crate) const IPV4: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 5);
pub(crate) const PEER4: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 7);
pub(crate) const IPV6: Ipv6Addr = Ipv6Addr::new(0xfdcc, 1, 2, 0, 0, 0, 0, 5);
pub(crate) const PEER6: Ipv6Addr = Ipv6Addr::new(0xfdcc, 1, 2, 0, 0, 0, 0, 7);

/// How long anything here may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) fn skip(why: &str) -> ! {
    println!("skipped: {why}");
    process::exit_now(77)
}

/// What `/dev/net/tun` is like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Tun {
    Open,
    Closed,
}

impl Tun {
    pub(crate) fn kind(self) -> DeviceKind {
        match self {
            Self::Open => DeviceKind::Tun,
            Self::Closed => DeviceKind::Packet,
        }
    }
}

/// Puts a node of that mode over `/dev/net/tun`, for this process and its children alone. Without root, makes do with what is there:
/// returns the backend to ask for.
pub(crate) fn stage(tun: Tun) -> Backend {
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
    // OpenSSH's client wants to know who calls it.
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let entry = format!("ordinary:x:{USER}:{USER}::/:/bin/sh\n");
    fs::write("/mnt/passwd", entry + &passwd).unwrap();
    mount(Some("/mnt/passwd"), "/etc/passwd", none, MsFlags::MS_BIND, none).unwrap();
    Backend::Auto
}

/// Becomes that user, if this is root.
pub(crate) fn become_user(uid: u32) {
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
pub(crate) struct Desk {
    pub(crate) hosts: tempfile::NamedTempFile,
    pub(crate) ssh_config: tempfile::NamedTempFile,
}

impl Desk {
    pub(crate) fn new() -> Self {
        let mut hosts = tempfile::NamedTempFile::new().unwrap();
        let text = format!(
            "127.0.0.1 localhost\n::1 localhost\n{IPV4} nodea nodea.lab\n{IPV6} nodea nodea.lab\n{PEER4} nodeb\n{PEER6} nodeb\n"
        );
        io::Write::write_all(&mut hosts, text.as_bytes()).unwrap();
        let mut ssh_config = tempfile::NamedTempFile::new().unwrap();
        io::Write::write_all(&mut ssh_config, b"Host *\n    Port 4242\n").unwrap();
        Self { hosts, ssh_config }
    }

    pub(crate) fn spec(&self, backend: Backend) -> BuildSpec {
        BuildSpec {
            hostname: "nodea".to_owned(),
            ipv4: IPV4,
            ipv4_prefix: 16,
            ipv6: IPV6,
            ipv6_prefix: 48,
            mtu: 1400,
            queues: 1,
            hosts: self.hosts.path().to_owned(),
            backend,
            ssh_port: true,
        }
    }

    pub(crate) fn view(&self) -> View {
        View {
            hosts: self.hosts.path().to_owned(),
            ssh_config: Some(self.ssh_config.path().to_owned()),
        }
    }

    pub(crate) fn build(&self, backend: Backend) -> Built {
        build_in_child(&self.spec(backend)).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Runs a shell script inside, as `run` would: its status and all it printed.
    pub(crate) fn run(&self, namespaces: &Namespaces, script: &str) -> (i32, String) {
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
    pub(crate) fn expect(&self, namespaces: &Namespaces, script: &str, wanted: &str) {
        let (status, text) = self.run(namespaces, script);
        assert_eq!(text.trim(), wanted, "{script} (status {status})");
    }
}

pub(crate) fn read_all(mut from: impl Read) -> String {
    let mut text = String::new();
    from.read_to_string(&mut text).unwrap();
    text
}
