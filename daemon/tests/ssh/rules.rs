//! Who may execute, what a refusal looks like, and what happens when the right ends.

use std::{
    net::{IpAddr, Ipv4Addr},
    process::Stdio,
};

use clusternet_daemon::ssh::Execute;

use crate::harness::{Running, Server, finish, have, lives, read_until, until, wait};

#[test]
fn another_owner_is_refused_and_told_why_on_the_terminal() {
    if !have("ssh") {
        return;
    }
    let server = Server::start();
    for (from, reason) in [
        (
            "127.0.0.3",
            "clusternet: node c (owner bob) may not execute on a (owner alice): only nodes of the same owner may",
        ),
        (
            "127.0.0.4",
            "clusternet: node d (no owner) may not execute on a: its certificate names no owner",
        ),
        (
            "127.0.0.9",
            "clusternet: 127.0.0.9 may not execute on a: a knows no valid certificate with this address",
        ),
    ] {
        let output = server.run(&["-b", from, "127.0.0.1", "echo in"], b"");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(255));
        assert!(error.starts_with(reason), "{error}");
        assert!(output.stdout.is_empty());
    }
    // A command is not the only way in.
    if have("sftp") {
        let mut command = server.program("sftp");
        command.args(["-o", "BindAddress=127.0.0.3", "-b", "-", "127.0.0.1"]);
        let output = finish(command, b"pwd\n");
        assert!(String::from_utf8_lossy(&output.stderr).contains("may not execute"));
        assert!(!output.status.success());
    }
    let output = server.run(&["-b", "127.0.0.3", "-N", "-L", "0:127.0.0.1:1", "127.0.0.1"], b"");
    assert_eq!(output.status.code(), Some(255));
    assert_eq!(server.run(&["-b", "127.0.0.2", "127.0.0.1", "echo in"], b"").stdout, b"in\n");
}

#[test]
fn the_machine_s_user_has_the_last_word() {
    if !have("ssh") {
        return;
    }
    let server = Server::start();
    server.owners.send_modify(|table| table.execute = Execute::Nobody);
    let output = server.run(&["127.0.0.1", "true"], b"");
    assert!(String::from_utf8_lossy(&output.stderr).contains("allows nobody"));
    server
        .owners
        .send_modify(|table| table.execute = Execute::Owners(vec!["bob".parse().unwrap()]));
    assert!(server.run(&["-b", "127.0.0.3", "127.0.0.1", "true"], b"").status.success());
    assert!(!server.run(&["-b", "127.0.0.2", "127.0.0.1", "true"], b"").status.success());
}

#[test]
fn sessions_end_at_once_when_the_certificate_does() {
    if !have("ssh") {
        return;
    }
    let server = Server::start();
    let start = |options: &[&str], words: &str| {
        let mut arguments = options.to_vec();
        arguments.extend(["127.0.0.1", words]);
        let mut command = server.ssh(&arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = Running(command.spawn().unwrap());
        let text = read_until(&mut child.0, ".");
        let pid: u32 = text.split("pid=").nth(1).unwrap().trim_end_matches('.').parse().unwrap();
        (child, pid)
    };
    let (mut plain, plain_pid) = start(&["-b", "127.0.0.2"], "echo pid=$$.; exec sleep 300");
    // Its output stands still because the client takes none, and it does not care for SIGHUP.
    let (mut stuck, stuck_pid) = start(
        &["-b", "127.0.0.2"],
        "trap '' HUP PIPE; echo pid=$$.; while :; do echo; done 2>/dev/null",
    );
    let (mut shell, shell_pid) = start(&["-b", "127.0.0.2", "-tt"], "echo pid=$$.; exec sleep 300");
    let (mut other, other_pid) = start(&[], "echo pid=$$.; exec sleep 300");

    // Drops one address of b: the others stay.
    server.owners.send_modify(|table| {
        table.members.remove(&IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2)));
    });
    for (child, pid) in [(&mut plain, plain_pid), (&mut shell, shell_pid)] {
        assert_eq!(wait(&mut child.0, "a session whose node was revoked").code(), Some(255));
        until("its process ended", || !lives(pid));
    }
    let mut error = String::new();
    std::io::Read::read_to_string(plain.0.stderr.as_mut().unwrap(), &mut error).unwrap();
    assert!(error.contains("knows no valid certificate"), "{error}");
    until("the one that ignores SIGHUP was killed", || !lives(stuck_pid));
    let _ = stuck.0.kill();
    assert!(lives(other_pid) && other.0.try_wait().unwrap().is_none());
}

#[test]
fn a_host_key_that_is_not_the_node_s_is_refused() {
    if !have("ssh") {
        return;
    }
    let server = Server::start();
    let other = Server::start();
    let output = server.run(&["-p", &other.port.to_string(), "127.0.0.1", "true"], b"");
    assert_eq!(output.status.code(), Some(255));
    assert!(String::from_utf8_lossy(&output.stderr).contains("Host key verification failed"));
}

#[test]
fn nothing_is_asked_and_no_file_of_the_user_is_read() {
    if !have("ssh") {
        return;
    }
    let server = Server::start();
    // A configuration that would break everything, and a known host that contradicts.
    let home = server.scratch.path().join("user");
    std::fs::create_dir_all(home.join(".ssh")).unwrap();
    std::fs::write(home.join(".ssh/config"), "Host *\n  ProxyCommand false\n  Port 1\n").unwrap();
    let mut command = server.ssh(&["127.0.0.1", "echo fine"]);
    command
        .env("HOME", &home)
        .env("SSH_AUTH_SOCK", "/nonexistent")
        .env("SSH_ASKPASS", "/bin/false");
    let output = finish(command, b"");
    assert_eq!((output.stdout, output.stderr), (b"fine\n".to_vec(), Vec::new()));
    assert!(!home.join(".ssh/known_hosts").exists());
}

#[test]
fn without_an_openssh_client_the_front_names_the_package() {
    let server = Server::start();
    let mut command = std::process::Command::new("/bin/sh");
    command.arg(server.bin().join("ssh")).args(["127.0.0.1", "true"]).env("PATH", server.bin());
    let output = finish(command, b"");
    assert_eq!(output.status.code(), Some(127));
    assert!(String::from_utf8_lossy(&output.stderr).contains("openssh-client"));
}

#[test]
fn fronts_of_two_networks_do_not_call_each_other_in_a_circle() {
    if !have("ssh") {
        return;
    }
    let (one, two) = (Server::start(), Server::start());
    let inherited = std::env::var("PATH").unwrap();
    let (a, b) = (one.bin(), two.bin());
    for path in [
        format!("{0}:{1}:{0}", a.display(), b.display()),
        format!("{}:{}", a.display(), b.display()),
    ] {
        let mut command = one.ssh(&["127.0.0.1", "echo fine"]);
        command.env("PATH", format!("{path}:{inherited}"));
        let output = finish(command, b"");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        assert_eq!(output.stdout, b"fine\n");
    }
}
