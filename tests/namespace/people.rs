//! Who may enter: the owner; no other user; and root as nobody special.

use std::{
    fs,
    io::{self, Read},
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
};

use clusternet::sys::{
    enter::{EnterError, drop_privileges, enter},
    fd,
    namespace::{Backend, Namespaces},
    process::{self, fork_child},
};
use nix::{
    sys::signal::Signal,
    unistd::{dup2_stdout, execvp},
};

use crate::desk::{Desk, PATIENCE, STRANGER, Tun, USER, become_user, stage};

/// Builds as the ordinary user in a child; what it made comes to this process, which stays root.
pub(crate) fn build_as_user(desk: &Desk) -> Namespaces {
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

pub(crate) fn readable_desk() -> Desk {
    let desk = Desk::new();
    fs::set_permissions(desk.hosts.path(), PermissionsExt::from_mode(0o644)).unwrap();
    desk
}

pub(crate) fn strangers() {
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

pub(crate) fn strangers_by_path() {
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

pub(crate) fn root_user() {
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
