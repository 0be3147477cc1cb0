//! Round trips over one TCP connection, with nothing around them that takes time.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netns_tests::clock::now;
use serde::{Deserialize, Serialize};

/// Before anything is counted: processors wake, congestion windows and pollers settle.
const WARM_UP: Duration = Duration::from_millis(200);

/// What a `ping` prints: microseconds.
#[derive(Serialize, Deserialize)]
pub(crate) struct RoundTrips {
    pub(crate) count: usize,
    pub(crate) median: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
}

/// Answers each connection in turn, until killed.
pub(crate) fn serve(port: u16) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).context("listen")?;
    for connection in listener.incoming().flatten() {
        // A client that goes away is its own end, not ours.
        echo(connection).ok();
    }
    Ok(())
}

fn echo(mut connection: TcpStream) -> Result<()> {
    connection.set_nodelay(true)?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let size = match connection.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(size) => size,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        connection.write_all(&buffer[..size])?;
    }
}

/// Sends a message when the answer to the one before has come, and prints how long that took.
pub(crate) fn ping(to: SocketAddr, size: usize, milliseconds: u64) -> Result<()> {
    let mut connection = TcpStream::connect(to).with_context(|| format!("connect to {to}"))?;
    connection.set_nodelay(true)?;
    let mut message = vec![0x5a; size.max(1)];
    let mut nanoseconds = Vec::with_capacity(1 << 20);
    let start = now();
    let end = WARM_UP + Duration::from_millis(milliseconds);
    loop {
        let sent = now();
        connection.write_all(&message)?;
        connection.read_exact(&mut message)?;
        let took = sent.elapsed();
        let passed = start.elapsed();
        if passed > WARM_UP {
            nanoseconds.push(took.as_nanos() as u64);
        }
        if passed >= end {
            break;
        }
    }
    ensure!(!nanoseconds.is_empty(), "no message came back in time");
    nanoseconds.sort_unstable();
    let at = |share: f64| {
        let index = (nanoseconds.len() as f64 * share) as usize;
        nanoseconds[index.min(nanoseconds.len() - 1)] as f64 / 1e3
    };
    let found =
        RoundTrips { count: nanoseconds.len(), median: at(0.5), p99: at(0.99), p999: at(0.999) };
    println!("{}", serde_json::to_string(&found)?);
    Ok(())
}
