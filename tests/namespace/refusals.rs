//! Machines that do not allow what a node needs, and what they are told.

use std::fs;

use clusternet::sys::{
    namespace::{Backend, BuildError, BuildSpec, build_in_child},
    probe,
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    unistd::{getegid, geteuid},
};

use crate::desk::{Desk, Tun, USER, become_user, stage};

pub(crate) fn tun_refused() {
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

/// In a user namespace of its own a process may set limits for those below.
pub(crate) fn limit(kind: &str, count: u32) {
    let (uid, gid) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER).unwrap();
    fs::write("/proc/self/setgroups", "deny").unwrap();
    fs::write("/proc/self/uid_map", format!("{uid} {uid} 1")).unwrap();
    fs::write("/proc/self/gid_map", format!("{gid} {gid} 1")).unwrap();
    fs::write(format!("/proc/sys/user/max_{kind}_namespaces"), count.to_string()).unwrap();
}

pub(crate) fn no_user_namespaces() {
    become_user(USER);
    limit("user", 0);
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

pub(crate) fn probe_works() {
    let backend = stage(Tun::Open);
    become_user(USER);
    let probes = probe::all().unwrap();
    assert_eq!(probes.iter().map(|probe| probe.name.as_str()).collect::<Vec<_>>(), probe::NAMES);
    for probe in &probes {
        let expected = probe.name != "tun" || backend == Backend::Auto;
        assert_eq!(probe.ok, expected, "{probe:?}");
    }
}

pub(crate) fn probe_refused() {
    stage(Tun::Closed);
    become_user(USER);
    let probes = probe::all().unwrap();
    let tun = probes.iter().find(|probe| probe.name == "tun").unwrap();
    assert!(!tun.ok);
    assert_eq!(tun.remedy.as_deref(), Some("chmod 0666 /dev/net/tun"));
    assert!(probes.iter().all(|probe| probe.ok || probe.name == "tun"), "{probes:?}");
}

/// The look of a machine whose user namespaces come without power, as AppArmor's do: made, and then of no use.
pub(crate) fn nothing_granted() {
    become_user(USER);
    limit("net", 0);
    let desk = Desk::new();
    let error = build_in_child(&desk.spec(Backend::Auto)).unwrap_err();
    assert!(matches!(error, BuildError::Capabilities { .. }));
    assert!(
        error.to_string().starts_with("make a network namespace in the user namespace: no space")
    );
    assert!(error.remedy().unwrap().contains("max_net_namespaces"));
    fs::write("/proc/sys/user/max_net_namespaces", "1").unwrap();
    let error = build_in_child(&desk.spec(Backend::Packet)).unwrap_err();
    assert!(matches!(error, BuildError::Device { .. }));
    assert_eq!(
        error.to_string(),
        "make the overlay device: make a second network namespace: no space left on device"
    );
}

pub(crate) fn no_hosts() {
    let backend = stage(Tun::Open);
    become_user(USER);
    let desk = Desk::new();
    let spec = BuildSpec { hosts: "/nowhere/hosts".into(), ..desk.spec(backend) };
    let error = build_in_child(&spec).unwrap_err();
    assert_eq!(error.to_string(), "bind /nowhere/hosts over /etc/hosts: no such file or directory");
}

/// As containers have it.
pub(crate) fn read_only_settings() {
    let backend = stage(Tun::Open);
    let (none, same) = (None::<&str>, Some("/proc/sys"));
    mount(same, "/proc/sys", none, MsFlags::MS_BIND, none).unwrap();
    let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(same, "/proc/sys", none, read_only, none).unwrap();
    become_user(USER);
    let desk = Desk::new();
    let error = build_in_child(&desk.spec(backend)).unwrap_err().to_string();
    assert!(error.starts_with("set net/ipv"), "{error}");
    assert!(error.ends_with(": read-only file system"), "{error}");
}
