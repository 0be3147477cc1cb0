//! The ssh server's memory does not grow with what nobody reads. Alone in its program: what is measured is the whole process.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]
#![allow(dead_code, reason = "the other tests use the rest of the harness")]

use std::{
    io::{Read as _, Write as _},
    process::Stdio,
    time::Duration,
};

use harness::{Running, Server, have, read_until, wait};

#[path = "ssh/harness.rs"]
mod harness;

#[test]
fn what_nobody_reads_waits_where_it_comes_from() {
    if !have("ssh") {
        return;
    }
    let server = Server::start();
    input_that_nobody_reads_waits_at_the_client(&server);
    output_that_nobody_reads_waits_at_the_child(&server);
}

fn input_that_nobody_reads_waits_at_the_client(server: &Server) {
    // 64 MB into a child that reads nothing for two seconds, then all: the daemon (this process) must not take it in.
    let data = vec![b'x'; 64 << 20];
    let before = resident();
    let mut child = server
        .ssh(&["127.0.0.1", "sleep 2; cat | wc -c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writing = std::thread::spawn(move || {
        let _ = stdin.write_all(&data);
    });
    std::thread::sleep(Duration::from_millis(1500));
    let grown = resident().saturating_sub(before);
    assert!(grown < 24 << 20, "{grown} bytes more");
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    writing.join().unwrap();
    assert_eq!(text.trim(), (64 << 20).to_string());
    wait(&mut child, "wc");
}

fn output_that_nobody_reads_waits_at_the_child(server: &Server) {
    let mut child =
        Running(server.ssh(&["127.0.0.1", "yes"]).stdout(Stdio::piped()).spawn().unwrap());
    read_until(&mut child.0, "y\ny\n");
    std::thread::sleep(Duration::from_millis(300));
    let before = resident();
    std::thread::sleep(Duration::from_millis(1000));
    let grown = resident().saturating_sub(before);
    assert!(grown < 8 << 20, "{grown} bytes more");
}

/// Bytes of memory that this process uses.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}
