//! Commands on pipes: words, environment, streams, ends.

use std::{
    fmt::Write as _,
    io::{Read as _, Write as _},
    process::Stdio,
    time::Duration,
};

use crate::harness::{Running, Server, finish, have, lives, poll, until, wait};

#[test]
fn a_command_runs_and_its_status_comes_back() {
    if !have("ssh") {
        return;
    }
    let server = Server::start();
    assert_eq!(server.says("echo hello; pwd"), format!("hello\n{}\n", server.home().display()));
    for (words, status) in
        [("exit 7", 7), ("exit 255", 255), ("true", 0), ("nosuchcommand 2>/dev/null", 127)]
    {
        assert_eq!(server.run(&["127.0.0.1", words], b"").status.code(), Some(status), "{words}");
    }
}

#[test]
fn both_families_and_any_user_name_are_answered() {
    if !have("ssh") {
        return;
    }
    let server = Server::start();
    assert_eq!(server.run(&["::1", "echo six"], b"").stdout, b"six\n");
    // Accounts of one person differ between machines: the session is the daemon's user whatever the name.
    let output = server.run(&["-l", "somebody", "127.0.0.1", "echo $USER $LOGNAME"], b"");
    assert_eq!(output.stdout, b"tester tester\n");
}

#[test]
fn options_may_come_before_and_after_the_host() {
    if !have("ssh") {
        return;
    }
    let server = Server::start();
    // As Open MPI, MPICH, LAM and PVM call it.
    for arguments in [
        &["-x", "-q", "127.0.0.1", "-n", "echo $SHELL"][..],
        &["127.0.0.1", "-n", "echo $SHELL"],
        &["127.0.0.1", "-n", "-x", "-l", "me", "-o", "Compression=no", "echo", "$SHELL"],
        &["-x", "127.0.0.1", "echo", "\"$SHELL\""],
        &["127.0.0.1", "( [ -e ./.profile ] && . ./.profile; echo $SHELL )"],
    ] {
        let output = server.run(arguments, b"");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "/bin/bash\n", "{arguments:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{arguments:?}");
        assert!(output.status.success());
    }
}

#[test]
fn the_environment_is_that_of_a_login_and_ours() {
    if !have("ssh") {
        return;
    }
    let variables = vec![
        ("PVM_TMP".into(), "/somewhere".into()),
        ("PATH".into(), "/x/bin:/usr/bin:/bin".into()),
    ];
    let server = Server::start_with(variables);
    let mut command = server.ssh(&["-o", "SendEnv=SECRET LC_* LANG", "127.0.0.1", "env"]);
    command.env("LC_CTYPE", "C.UTF-8").env("LANG", "C").env("SECRET", "1");
    let output = finish(command, b"");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let text = String::from_utf8(output.stdout).unwrap();
    let value = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned)
    };
    let of = |text: &str| Some(text.to_owned());
    assert_eq!(value("HOME"), of(server.home().to_str().unwrap()));
    assert_eq!(value("USER"), of("tester"));
    assert_eq!(value("SHELL"), of("/bin/bash"));
    assert_eq!(value("PVM_TMP"), of("/somewhere"));
    assert_eq!(value("PATH"), of("/x/bin:/usr/bin:/bin"));
    assert_eq!(value("LANG"), of("C"));
    assert_eq!(value("LC_CTYPE"), of("C.UTF-8"));
    assert_eq!(value("SECRET"), None);
    assert_eq!(value("MAIL"), None);
    assert!(value("SSH_CONNECTION").unwrap().starts_with("127.0.0.1 "));
    assert!(value("SSH_CLIENT").unwrap().ends_with(&format!(" {}", server.port)));
    // Nothing of the daemon's own environment.
    assert_eq!(value("CARGO_MANIFEST_DIR"), None);
}

#[test]
fn a_command_inherits_its_streams_and_nothing_else() {
    if !have("ssh") {
        return;
    }
    // What careless starters leave open in a daemon: it has no close-on-exec flag.
    let _left_open = nix::unistd::pipe().unwrap();
    let server = Server::start();
    assert_eq!(server.says("exec ls /proc/self/fd"), "0\n1\n2\n3\n", "3 is the directory");
}

#[test]
fn bash_reads_its_start_up_file_for_a_command() {
    if !have("ssh") {
        return;
    }
    let server = Server::start();
    std::fs::write(server.home().join(".bashrc"), "export FROM_BASHRC=yes\n").unwrap();
    assert_eq!(server.says("echo $FROM_BASHRC"), "yes\n");
}

#[test]
fn streams_stay_apart_and_the_end_of_input_arrives() {
    if !have("ssh") {
        return;
    }
    let server = Server::start();
    let output = server.run(&["127.0.0.1", "cat; echo oops >&2; exit 3"], b"x");
    assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"x"[..], &b"oops\n"[..]));
    assert_eq!(output.status.code(), Some(3));
    // A child that closes its output before it ends.
    let output = server.run(&["127.0.0.1", "echo a; exec >&- 2>&-; sleep 0.2; exit 4"], b"");
    assert_eq!((output.stdout, output.status.code()), (b"a\n".to_vec(), Some(4)));
}

#[test]
fn a_child_that_blocks_for_one_byte_of_input_gets_it() {
    if !have("ssh") {
        return;
    }
    // What a slave pvmd does: a line, then one byte read, then a daemon that closes its streams and stays.
    let server = Server::start();
    let words = "echo ddpro; head -c1 >/dev/null; (exec <&- >&- 2>&-; echo $BASHPID > daemon; exec sleep 300) & exit 0";
    let mut child = server.ssh(&["127.0.0.1", words]);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    assert_eq!(&line, b"ddpro\n");
    assert!(child.try_wait().unwrap().is_none());
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert!(wait(&mut child, "pvmd's start").success());
    let daemon = server.home().join("daemon");
    until("the daemon's number", || {
        std::fs::read_to_string(&daemon).is_ok_and(|text| text.ends_with('\n'))
    });
    let pid: u32 = std::fs::read_to_string(daemon).unwrap().trim().parse().unwrap();
    assert!(lives(pid), "a daemon that closed its streams outlives the session");
    kill(pid, "KILL");
}

fn kill(pid: u32, signal: &str) {
    let status = std::process::Command::new("kill").args(["-s", signal, &pid.to_string()]).status();
    assert!(status.unwrap().success());
}

#[test]
fn a_background_process_that_holds_the_output_keeps_the_session() {
    if !have("ssh") {
        return;
    }
    let server = Server::start();
    let mut command = server.ssh(&["127.0.0.1", "sleep 300 & echo $!; exit 5"]);
    let mut child = Running(command.stdout(Stdio::piped()).spawn().unwrap());
    let text = crate::harness::read_until(&mut child.0, "\n");
    let pid: u32 = text.trim().parse().unwrap();
    assert!(!poll(Duration::from_millis(700), || child.0.try_wait().unwrap().is_some()));
    kill(pid, "TERM");
    assert_eq!(wait(&mut child.0, "the session").code(), Some(5));
}

#[test]
fn a_command_outlives_its_connection_and_loses_its_pipes() {
    if !have("ssh") {
        return;
    }
    let server = Server::start();
    let mut command = server.ssh(&[
        "127.0.0.1",
        "trap '' PIPE; echo $$; sleep 1; echo more 2>/dev/null; echo $? > done; exec sleep 300",
    ]);
    let mut child = Running(command.stdout(Stdio::piped()).spawn().unwrap());
    let pid: u32 = crate::harness::read_until(&mut child.0, "\n").trim().parse().unwrap();
    drop(child);
    // As OpenSSH: no signal. Writing is what fails.
    let done = server.home().join("done");
    until("the command went on", || std::fs::read_to_string(&done).is_ok_and(|text| text == "1\n"));
    assert!(lives(pid));
    kill(pid, "KILL");
    until("the child was waited for", || !std::path::Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn death_by_a_signal_is_told() {
    if !have("ssh") {
        return;
    }
    let server = Server::start();
    let output = server.run(&["-v", "127.0.0.1", "kill -TERM $$"], b"");
    assert_eq!(output.status.code(), Some(255));
    assert!(String::from_utf8_lossy(&output.stderr).contains("exit-signal"));
}

/// Numbers that repeat late and do not compress into a pattern.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

#[test]
fn much_passes_through_in_both_directions_at_once() {
    if !have("ssh") {
        return;
    }
    let server = Server::start();
    let data = noise(48 << 20);
    let output = server.run(&["127.0.0.1", "cat"], &data);
    assert!(output.stdout == data, "{} of {} bytes", output.stdout.len(), data.len());
    // A reader that is slow at first, so that windows close and open again.
    let output = server.run(&["127.0.0.1", "sleep 1; cat"], &data);
    assert!(output.stdout == data);
}

#[test]
fn twenty_sessions_at_once_keep_their_streams() {
    if !have("ssh") {
        return;
    }
    let server = Server::start();
    std::thread::scope(|scope| {
        for n in 0..20 {
            let server = &server;
            scope.spawn(move || {
                let mut input = String::new();
                for line in 0..2000 {
                    writeln!(input, "{n} {line}").unwrap();
                }
                let output =
                    server.run(&["127.0.0.1", "cat; exit", &n.to_string()], input.as_bytes());
                assert_eq!(String::from_utf8(output.stdout).unwrap(), input);
                assert_eq!(output.status.code(), Some(n));
            });
        }
    });
}

#[test]
fn sessions_of_one_connection_do_not_wait_for_each_other() {
    if !have("ssh") {
        return;
    }
    let server = Server::start();
    let socket = server.scratch.path().join("m");
    let socket = socket.to_str().unwrap();
    let _master = Running(server.ssh(&["-M", "-N", "-S", socket, "127.0.0.1"]).spawn().unwrap());
    until("the shared connection", || std::path::Path::new(socket).exists());
    // One that nobody reads from, one that reads nothing.
    let mut command = server.ssh(&["-S", socket, "127.0.0.1", "yes"]);
    let mut untaken = Running(command.stdout(Stdio::piped()).spawn().unwrap());
    crate::harness::read_until(&mut untaken.0, "y\n");
    let mut command = server.ssh(&["-S", socket, "127.0.0.1", "exec sleep 300"]);
    let _unread =
        Running(command.stdin(std::fs::File::open("/dev/zero").unwrap()).spawn().unwrap());
    std::thread::sleep(Duration::from_secs(1));
    let data = noise(300_000);
    for n in 0..3 {
        let words = format!("cat; exit {n}");
        let output = server.run(&["-S", socket, "127.0.0.1", &words], &data);
        assert!(output.stdout == data);
        assert_eq!(output.status.code(), Some(n));
    }
}
