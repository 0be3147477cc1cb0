//! A lab to play with: makes the hosts, hands out keys, and waits until its input ends.
//!
//! `sudo cargo run -p netns-tests --example lab [v6] [packet] [joined]`, then in other terminals what it prints.

use std::process::ExitCode;

use anyhow::Result;
use netns_tests::campus::HOSTS;
use netns_tests::lab::{Family, Tun};
use netns_tests::network::Network;
use netns_tests::{binaries, harness};

fn main() -> ExitCode {
    if let Some(code) = harness::be_host_if_wanted() {
        return code;
    }
    match play() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn play() -> Result<()> {
    let wanted = |word: &str| std::env::args().any(|argument| argument == word);
    binaries::build_once()?;
    let family = if wanted("v6") { Family::V6 } else { Family::V4 };
    let tun = if wanted("packet") { Tun::RootOnly } else { Tun::Open };
    let mut network = Network::unjoined(family, tun)?;
    if wanted("joined") {
        network.join_all()?;
    }
    for name in HOSTS {
        println!("{name}: {}", network.lab.on(name).enter_by_hand());
    }
    println!("end of file ends it all");
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}
