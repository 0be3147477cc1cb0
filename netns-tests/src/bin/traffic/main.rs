//! Sends, receives, echoes and watches traffic on the hosts of a lab: the half of `netns_tests::traffic` that runs there.

mod ping;
mod tcp;
mod udp;
mod watch;

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use netns_tests::traffic::PORT;
use serde::Serialize;

/// Traffic that is checked byte for byte.
#[derive(Parser)]
#[command(name = "traffic")]
struct Cli {
    #[command(subcommand)]
    part: Part,
}

#[derive(Subcommand)]
enum Part {
    /// Answers the others, until killed.
    Serve,
    /// Connections that carry streams both ways at once.
    Tcp(tcp::Options),
    /// Numbered datagrams of all sizes, one way.
    Udp(udp::Options),
    /// Echo requests of many sizes.
    Ping(ping::Options),
    /// Looks at a cable until the end of standard input.
    Watch {
        /// The interface.
        interface: String,
        /// What must not be readable.
        #[arg(long)]
        text: Option<String>,
    },
}

/// How long a part may wait for something from the other side.
const PATIENCE: Duration = Duration::from_secs(150);

fn main() -> ExitCode {
    let outcome = match Cli::parse().part {
        Part::Serve => serve(),
        Part::Tcp(options) => tcp::run(&options).and_then(say),
        Part::Udp(options) => udp::run(&options).and_then(say),
        Part::Ping(options) => ping::run(&options).and_then(say),
        Part::Watch { interface, text } => watch::run(&interface, text.as_deref()).and_then(say),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("traffic: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<()> {
    let (tcp, udp) = (tcp::Server::new(PORT)?, udp::Server::new(PORT)?);
    let joined = udp::Server::joined(PORT + 1)?;
    tell("ready");
    std::thread::scope(|scope| {
        scope.spawn(|| udp.run());
        scope.spawn(|| joined.run());
        tcp.run();
    });
    Ok(())
}

/// The server's place on a host.
fn at(host: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(host, port)
}

fn say(report: impl Serialize) -> Result<()> {
    tell(&serde_json::to_string(&report).context("write the report")?);
    Ok(())
}

/// A line for whoever started this; if he has gone there is nobody to tell.
fn tell(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).ok();
}
