//! Port forwarding.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    process::Stdio,
    thread,
};

use crate::harness::{Running, Server, have, read_until, until};

/// Sends everything back, once it has come to its end.
fn echo_server() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut all = Vec::new();
                let _ = stream.read_to_end(&mut all);
                let _ = stream.write_all(&all);
            });
        }
    });
    port
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn through(port: u16, data: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    let mut writing = stream.try_clone().unwrap();
    let data = data.to_vec();
    let writer = thread::spawn(move || {
        writing.write_all(&data).unwrap();
        writing.shutdown(Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    writer.join().unwrap();
    back
}

/// Starts a forward and waits until the session is up.
fn forward(server: &Server, option: &str, what: &str) -> Running {
    let arguments =
        ["-o", "ExitOnForwardFailure=yes", option, what, "127.0.0.1", "echo up.; exec sleep 300"];
    let mut command = server.ssh(&arguments);
    let mut child = Running(command.stdout(Stdio::piped()).spawn().unwrap());
    read_until(&mut child.0, "up.");
    child
}

#[test]
fn a_local_forward_carries_many_connections_and_their_half_closes() {
    if !have("ssh") {
        return;
    }
    let server = Server::start();
    let port = free_port();
    let _child = forward(&server, "-L", &format!("127.0.0.1:{port}:localhost:{}", echo_server()));
    let data: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    thread::scope(|scope| {
        for n in 0..8 {
            let data = &data;
            scope.spawn(move || assert!(through(port, &data[n..]) == data[n..]));
        }
    });
    for n in 0..300_u32 {
        assert_eq!(
            through(port, &n.to_le_bytes()),
            n.to_le_bytes(),
            "more connections than channels at once"
        );
    }
}

#[test]
fn a_forward_to_nowhere_fails_and_the_session_goes_on() {
    if !have("ssh") {
        return;
    }
    let server = Server::start();
    let port = free_port();
    let nowhere = free_port();
    let mut child = forward(&server, "-L", &format!("127.0.0.1:{port}:127.0.0.1:{nowhere}"));
    assert_eq!(through(port, b""), b"");
    assert!(child.0.try_wait().unwrap().is_none());
}

#[test]
fn a_remote_forward_listens_until_the_session_ends() {
    if !have("ssh") {
        return;
    }
    let server = Server::start();
    let port = free_port();
    let child = forward(&server, "-R", &format!("{port}:127.0.0.1:{}", echo_server()));
    let data = vec![7; 1_000_000];
    assert!(through(port, &data) == data);
    // Without an address it is for this machine alone: loopback.
    let held = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 5), port));
    assert!(held.is_ok(), "listens on more than 127.0.0.1");
    drop(held);
    drop(child);
    until("the port is free again", || TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok());
}

#[test]
fn a_remote_forward_may_leave_the_port_to_the_server() {
    if !have("ssh") {
        return;
    }
    let server = Server::start();
    let target = echo_server();
    let arguments =
        ["-R", &format!("0:127.0.0.1:{target}"), "127.0.0.1", "echo up.; exec sleep 300"];
    let mut command = server.ssh(&arguments);
    let mut child = Running(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    read_until(&mut child.0, "up.");
    let mut text = String::new();
    let stderr = child.0.stderr.as_mut().unwrap();
    while !text.ends_with('\n') {
        let mut byte = [0];
        stderr.read_exact(&mut byte).unwrap();
        text.push(byte[0] as char);
    }
    let port: u16 = text.split_whitespace().nth(2).unwrap().parse().unwrap();
    assert_eq!(through(port, b"hello"), b"hello");
}

#[test]
fn a_port_in_use_is_refused() {
    if !have("ssh") {
        return;
    }
    let server = Server::start();
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let both = TcpListener::bind((std::net::Ipv6Addr::LOCALHOST, port));
    let what = format!("{port}:127.0.0.1:9");
    let output =
        server.run(&["-o", "ExitOnForwardFailure=yes", "-R", &what, "127.0.0.1", "true"], b"");
    assert!(both.is_err() || output.status.code() == Some(255));
}
