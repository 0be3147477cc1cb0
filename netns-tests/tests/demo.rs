//! `clusternet demo`: what a newcomer runs first, as an ordinary user, with a TUN and without.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use netns_tests::harness::{Check, Suite};
use netns_tests::lab::{Family, Tun};
use netns_tests::network::Network;
use netns_tests::programs::need;

fn main() -> ExitCode {
    Suite::new()
        .group("tun", || Network::unjoined(Family::V4, Tun::Open), checks())
        .group("packet_socket", || Network::unjoined(Family::V4, Tun::RootOnly), checks())
        .main()
}

fn checks() -> Vec<Check<Network>> {
    vec![
        Check::new("three_nodes_run_pvm_and_open_mpi", three_nodes),
        Check::new("an_interrupted_demo_leaves_nothing", interrupted),
    ]
}

fn three_nodes(network: &mut Network) -> Result<()> {
    need(&["pvm", "mpirun.openmpi"])?;
    let outcome = network.lab.on("a").sh("clusternet demo").limit(240).run()?;
    ensure!(outcome.status.success() && !outcome.held_open, "{outcome}");
    for word in ["PVM", "Open MPI"] {
        ensure!(outcome.text().contains(word), "no word of {word}: {outcome}");
    }
    network.nothing_left("a")
}

fn interrupted(network: &mut Network) -> Result<()> {
    let mut demo = network.lab.on("a").sh("script -qefc 'clusternet demo' /dev/null").spawn()?;
    demo.wait_for("PVM", 120)?;
    demo.write("\u{3}")?;
    let outcome = demo.wait(std::time::Duration::from_secs(60))?;
    ensure!(!outcome.status.success(), "{outcome}");
    network.nothing_left("a")
}
