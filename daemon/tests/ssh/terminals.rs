//! Shells and terminals.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use crate::harness::{Running, Server, have, lives, read_until, until, wait};

#[test]
fn a_terminal_is_one_and_carries_the_name_it_was_given() {
    if !have("ssh") {
        return;
    }
    let server = Server::start();
    let mut command = server.ssh(&[
        "-tt",
        "127.0.0.1",
        "tty; test -t 0 -a -t 1 -a -t 2 && echo $TERM $SSH_TTY; exit 6",
    ]);
    command.env("TERM", "vt220");
    let output = crate::harness::finish(command, b"");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut lines = text.lines();
    let tty = lines.next().unwrap().trim().to_owned();
    assert!(tty.starts_with("/dev/pts/"), "{text}");
    assert_eq!(lines.next().unwrap().trim(), format!("vt220 {tty}"));
    assert_eq!(output.status.code(), Some(6));
}

#[test]
fn a_shell_is_a_login_shell() {
    if !have("ssh") {
        return;
    }
    let server = Server::start();
    let output =
        server.run(&["-T", "127.0.0.1"], b"echo $0; shopt -q login_shell && echo login; exit 9\n");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "-bash\nlogin\n");
    assert_eq!(output.status.code(), Some(9));
}

#[test]
fn the_size_of_the_window_arrives_and_so_does_its_change() {
    if !have("ssh") || !have("script") {
        return;
    }
    let server = Server::start();
    // `script` gives the client a terminal whose size can be set from outside.
    let words = "trap 'stty size' WINCH; stty size; echo ready; while read -t 20 line; do [ \"$line\" = end ] && break; done; exit 0";
    let ssh = server.bin().join("ssh");
    let inner = format!(
        "stty rows 33 cols 99; echo tty=$(tty); {} -tt 127.0.0.1 \"{}\"",
        ssh.display(),
        words.replace('$', "\\$").replace('"', "\\\"")
    );
    let mut command = Command::new("script");
    command.args(["-qec", &inner, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = Running(command.spawn().unwrap());
    let text = read_until(&mut child.0, "ready");
    assert!(text.contains("33 99"), "{text}");
    let tty = text.split("tty=").nth(1).unwrap().lines().next().unwrap().trim().to_owned();
    let status = Command::new("stty").args(["-F", &tty, "rows", "44", "cols", "111"]).status();
    assert!(status.unwrap().success());
    read_until(&mut child.0, "44 111");
    child.0.stdin.as_mut().unwrap().write_all(b"end\n").unwrap();
    wait(&mut child.0, "the shell");
}

#[test]
fn control_c_reaches_the_program_in_front() {
    if !have("ssh") {
        return;
    }
    let server = Server::start();
    let words = "trap 'echo caught; exit 8' INT; echo ready; while :; do sleep 0.05; done";
    let mut command = server.ssh(&["-tt", "127.0.0.1", words]);
    let mut child = Running(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
    read_until(&mut child.0, "ready");
    child.0.stdin.as_mut().unwrap().write_all(b"\x03").unwrap();
    read_until(&mut child.0, "caught");
    assert_eq!(wait(&mut child.0, "the loop").code(), Some(8));
}

#[test]
fn a_terminal_hangs_up_when_its_client_goes() {
    if !have("ssh") {
        return;
    }
    let server = Server::start();
    let mut command = server.ssh(&["-tt", "127.0.0.1", "echo pid=$$.; exec sleep 300"]);
    let mut child = Running(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
    let text = read_until(&mut child.0, ".");
    let pid: u32 = text.split("pid=").nth(1).unwrap().trim_end_matches('.').parse().unwrap();
    assert!(lives(pid));
    drop(child);
    until("SIGHUP ended it", || !lives(pid));
}

#[test]
fn a_shell_on_a_terminal_ends_although_a_background_process_stays() {
    if !have("ssh") {
        return;
    }
    let server = Server::start();
    let mut command =
        server.ssh(&["-tt", "127.0.0.1", "trap '' HUP; sleep 300 & echo pid=$!.; exit 2"]);
    let mut child = Running(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
    let text = read_until(&mut child.0, ".");
    assert_eq!(wait(&mut child.0, "the shell").code(), Some(2));
    let pid = text.split("pid=").nth(1).unwrap().trim_end_matches('.').to_owned();
    let _ = Command::new("kill").arg(pid).status();
}
