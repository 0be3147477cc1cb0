//! Streams over TCP, both ways at once, in chunks of changing size; each receiver tells how they came.
//!
//! The client says which stream, for how long and how fast. Each side then sends chunks, `length u32, bytes`, the last of
//! length 0; the server puts behind its last one what it has received.

use std::io::{BufReader, Read, Write};
use std::net::{IpAddr, Ipv6Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use netns_tests::clock::now;
use netns_tests::traffic::{PORT, Received, Stream, Streams, UNDER_WAY};
use serde::{Deserialize, Serialize};

use crate::{PATIENCE, at, tell};

/// The largest chunk.
const MAX_CHUNK: u64 = 150_000;

#[derive(Args)]
pub(crate) struct Options {
    /// Where a server runs.
    to: IpAddr,
    /// Connections at once.
    #[arg(long, default_value_t = 1)]
    streams: u64,
    /// For how long each side sends, milliseconds.
    #[arg(long, default_value_t = 3000)]
    milliseconds: u64,
    /// Instead, until the end of standard input.
    #[arg(long, conflicts_with = "milliseconds")]
    until_told: bool,
    /// But no less than so many bytes.
    #[arg(long, default_value_t = 0)]
    at_least: u64,
    /// How fast, bytes a second; 0: as fast as it goes.
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// Sends this, again and again, instead of pseudo-random bytes.
    #[arg(long)]
    text: Option<String>,
}

/// What a client says first, as a line of JSON.
#[derive(Clone, Serialize, Deserialize)]
struct Greeting {
    stream: u64,
    /// Until the other side has said all, if none.
    milliseconds: Option<u64>,
    at_least: u64,
    rate: u64,
    text: Option<String>,
}

impl Greeting {
    /// What one side sends.
    fn data(&self, is_server: bool) -> Stream {
        match &self.text {
            Some(text) => Stream::of_text(text),
            None => Stream::new(self.stream << 1 | u64::from(is_server)),
        }
    }
}

pub(crate) fn run(options: &Options) -> Result<Streams> {
    let is_over = Arc::new(AtomicBool::new(false));
    if options.until_told {
        let is_over = Arc::clone(&is_over);
        std::thread::spawn(move || {
            std::io::stdin().read_to_end(&mut Vec::new()).ok();
            is_over.store(true, Ordering::Relaxed);
        });
    }
    let waiting = Arc::new(AtomicUsize::new(options.streams as usize));
    let threads = (0..options.streams).map(|stream| {
        let greeting = Greeting {
            stream: stream << 16 | u64::from(std::process::id() & 0xffff),
            milliseconds: (!options.until_told).then_some(options.milliseconds),
            at_least: options.at_least,
            rate: options.rate,
            text: options.text.clone(),
        };
        let (to, waiting) = (at(options.to, PORT), Arc::clone(&waiting));
        let is_over = Arc::clone(&is_over);
        std::thread::spawn(move || -> Result<[Received; 2]> {
            let mut connection = TcpStream::connect(to).with_context(|| format!("connect {to}"))?;
            let mut line = serde_json::to_string(&greeting).context("write the greeting")?;
            line.push('\n');
            connection.write_all(line.as_bytes()).context("greet")?;
            let reader = BufReader::with_capacity(1 << 18, connection.try_clone()?);
            let began = move || {
                if waiting.fetch_sub(1, Ordering::Relaxed) == 1 {
                    tell(UNDER_WAY);
                }
            };
            let (here, mut reader) =
                exchange(connection, reader, &greeting, Side::Client(&is_over), began)?;
            let mut there = String::new();
            reader.read_to_string(&mut there).context("read what the server received")?;
            let there = serde_json::from_str(&there)
                .with_context(|| format!("the server found: {there:?}"))?;
            Ok([here, there])
        })
    });
    let threads: Vec<_> = threads.collect();
    let received = threads
        .into_iter()
        .map(|thread| thread.join().map_err(|_| anyhow!("a stream's thread panicked"))?);
    Ok(Streams { received: received.collect::<Result<_>>()? })
}

pub(crate) struct Server(TcpListener);

impl Server {
    pub(crate) fn new(port: u16) -> Result<Self> {
        TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).map(Self).context("listen")
    }

    pub(crate) fn run(&self) {
        for connection in self.0.incoming().flatten() {
            std::thread::spawn(move || {
                if let Err(error) = answer(&connection) {
                    let text = format!("{error:#}");
                    eprintln!("traffic: {text}");
                    // The client wants to know as well.
                    (&connection).write_all(text.as_bytes()).ok();
                }
            });
        }
    }
}

fn answer(connection: &TcpStream) -> Result<()> {
    let mut reader = BufReader::with_capacity(1 << 18, connection.try_clone()?);
    let mut line = Vec::new();
    let mut byte = [0];
    while byte != *b"\n" {
        reader.read_exact(&mut byte).context("read the greeting")?;
        line.push(byte[0]);
    }
    let greeting: Greeting = serde_json::from_slice(&line).context("read the greeting")?;
    let (received, _) = exchange(connection.try_clone()?, reader, &greeting, Side::Server, || ())?;
    let report = serde_json::to_string(&received).context("write the report")?;
    let mut connection = connection;
    connection.write_all(report.as_bytes()).context("tell what came")
}

/// Who is at this end.
#[derive(Clone, Copy)]
enum Side<'a> {
    /// Told when it is over, if it has not said for how long.
    Client(&'a AtomicBool),
    Server,
}

/// Sends and receives until both sides have said all.
fn exchange(
    connection: TcpStream,
    reader: BufReader<TcpStream>,
    greeting: &Greeting,
    side: Side<'_>,
    began: impl FnOnce(),
) -> Result<(Received, BufReader<TcpStream>)> {
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    let has_received = AtomicBool::new(false);
    let (is_over, is_server) = match side {
        Side::Client(is_over) => (is_over, false),
        Side::Server => (&has_received, true),
    };
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| send(connection, greeting, &greeting.data(is_server), is_over));
        let received = receive(reader, &greeting.data(!is_server), began);
        has_received.store(true, Ordering::Relaxed);
        let sent = sender.join().map_err(|_| anyhow!("the sender panicked"))?;
        let received = received.context("receive")?;
        sent.context("send")?;
        Ok(received)
    })
}

/// For how long this process has been running, and was not stopped: a machine that does something else makes no pause.
fn running() -> Duration {
    const TICK: Duration = Duration::from_millis(5);
    static TICKS: AtomicU32 = AtomicU32::new(0);
    static TICKING: Once = Once::new();
    TICKING.call_once(|| {
        std::thread::spawn(|| {
            loop {
                std::thread::sleep(TICK);
                TICKS.fetch_add(1, Ordering::Relaxed);
            }
        });
    });
    TICK * TICKS.load(Ordering::Relaxed)
}

fn send(
    mut connection: TcpStream,
    greeting: &Greeting,
    data: &Stream,
    is_over: &AtomicBool,
) -> Result<()> {
    let started = now();
    let (mut sent, mut number) = (0, 0_u64);
    let mut chunk = Vec::new();
    loop {
        let elapsed = started.elapsed();
        let is_over = match greeting.milliseconds {
            Some(milliseconds) => elapsed >= Duration::from_millis(milliseconds),
            None => is_over.load(Ordering::Relaxed),
        };
        if is_over && sent >= greeting.at_least {
            break;
        }
        if let Some(due) = (sent * 1_000_000).checked_div(greeting.rate)
            && let Some(wait) = Duration::from_micros(due).checked_sub(elapsed)
        {
            std::thread::sleep(wait);
        }
        // Of one byte and of many, of sizes that meet no boundary twice.
        number += 1;
        let len = match number % 4 {
            0 => number * 13 % 1500 + 1,
            1 => number * 17 % 9000 + 1,
            _ => number * 4999 % MAX_CHUNK + 1,
        };
        chunk.clear();
        chunk.extend((len as u32).to_le_bytes());
        chunk.extend_from_slice(data.at(sent, len as usize));
        connection.write_all(&chunk).with_context(|| format!("after {sent} bytes"))?;
        sent += len;
    }
    connection.write_all(&0_u32.to_le_bytes()).context("say that this is all")
}

fn receive(
    mut reader: BufReader<TcpStream>,
    data: &Stream,
    began: impl FnOnce(),
) -> Result<(Received, BufReader<TcpStream>)> {
    let mut began = Some(began);
    let mut buffer = vec![0; MAX_CHUNK as usize];
    let mut received = Received { bytes: 0, longest_pause: Duration::ZERO };
    let mut last = running();
    let mut take = |reader: &mut BufReader<TcpStream>, mut bytes: &mut [u8], place: u64| {
        while !bytes.is_empty() {
            let count = match reader.read(bytes) {
                Ok(0) => bail!("the stream ended after {place} bytes"),
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).with_context(|| format!("after {place} bytes")),
            };
            received.longest_pause = received.longest_pause.max(running() - last);
            last = running();
            bytes = &mut bytes[count..];
        }
        Ok(())
    };
    let mut place = 0;
    loop {
        let mut len = [0; 4];
        take(&mut reader, &mut len, place)?;
        let len = u32::from_le_bytes(len);
        if len == 0 {
            received.bytes = place;
            return Ok((received, reader));
        }
        ensure!(u64::from(len) <= MAX_CHUNK, "a chunk of {len} bytes after {place} bytes");
        let chunk = &mut buffer[..len as usize];
        take(&mut reader, chunk, place)?;
        if let Some(wrong) = data.first_wrong(place, chunk) {
            bail!("byte {wrong} is wrong, in a chunk of {len} bytes from {place} on");
        }
        place += u64::from(len);
        if let Some(began) = began.take() {
            began();
        }
    }
}
