//! Processes: found and ended inside, detached, hardened, and what they inherit.

use std::{
    fs,
    io::{self, Read, Write},
    path::Path,
    process::{Command, ExitCode},
    time::Duration,
};

use clusternet::sys::{
    clock,
    enter::{drop_privileges, enter},
    fd,
    process::{self, PidFd, fork_child},
};
use nix::{
    sys::{
        prctl,
        resource::{Resource, getrlimit},
        signal::Signal,
    },
    unistd::{dup2_stdout, execvp, getpid, getsid, pause},
};

use crate::desk::{Desk, PATIENCE, Tun, USER, become_user, stage};

pub(crate) fn leave() {
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
    let started = clock::now().instant;
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

pub(crate) fn detached() {
    let child = fork_child(|| {
        process::detach().unwrap();
        let null = |fd: u32| {
            fs::read_link(format!("/proc/self/fd/{fd}")).unwrap() == Path::new("/dev/null")
        };
        let leads = getsid(None).unwrap() == getpid();
        let here = std::env::current_dir().unwrap() == Path::new("/");
        i32::from(!(leads && here && (0..3).all(null)))
    });
    assert_eq!(child.unwrap().wait().unwrap(), 0);
}

pub(crate) fn hardened() {
    become_user(USER);
    process::forbid_core_files().unwrap();
    process::forbid_inspection().unwrap();
    assert_eq!(getrlimit(Resource::RLIMIT_CORE).unwrap(), (0, 0));
    // Another process of the same user.
    let path = format!("/proc/{}/mem", getpid());
    let child = fork_child(|| {
        // As a program that was started anew.
        prctl::set_dumpable(true).unwrap();
        let error = fs::File::open(&path).unwrap_err();
        i32::from(error.kind() != io::ErrorKind::PermissionDenied)
    });
    assert_eq!(child.unwrap().wait().unwrap(), 0);
}

pub(crate) fn orphan() {
    let (mut reader, writer) = io::pipe().unwrap();
    let parent = fork_child(|| {
        let own = getpid().as_raw();
        let _child = fork_child(|| {
            process::die_with_parent(own).unwrap();
            (&writer).write_all(b"up").unwrap();
            pause();
            0
        })
        .unwrap();
        pause();
        0
    })
    .unwrap();
    drop(writer);
    reader.read_exact(&mut [0; 2]).unwrap();
    PidFd::open(parent.pid()).unwrap().signal(Signal::SIGKILL).unwrap();
    parent.wait().unwrap();
    // The last writer is gone: the child has ended too.
    assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0);
}

pub(crate) fn heir() {
    let (reader, writer) = io::pipe().unwrap();
    let (_stray, unwanted) = io::pipe().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    let numbers = process::pass_fds(&mut command, vec![writer.into(), unwanted.into()]);
    command.arg("--inherited").args(numbers.iter().map(i32::to_string));
    assert!(command.status().unwrap().success());
    drop(command);
    assert_eq!(io::read_to_string(reader).unwrap(), "mine");
}

/// What the program of [`heir`] does: takes the first number, closes all else that it was handed.
pub(crate) fn heir_program(mut numbers: impl Iterator<Item = String>) -> ExitCode {
    let mut number = || numbers.next().unwrap().parse::<i32>().unwrap();
    let (wanted, unwanted) = (number(), number());
    process::close_from(3, &[wanted]).unwrap();
    let closed = fd::inherited(unwanted).unwrap_err();
    assert_eq!(closed.raw_os_error(), Some(libc::EBADF));
    let mine = fd::inherited(wanted).unwrap();
    assert_eq!(fd::inherited(wanted).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    fs::File::from(mine).write_all(b"mine").unwrap();
    ExitCode::SUCCESS
}
