//! The middlewares of the demo: PVM and Open MPI, unmodified, as the distribution has them.

use std::{fmt::Write as _, path::PathBuf};

use clusternet::sys::account;

use super::stage::{Outcome, Stage};

/// A token goes once around all ranks, on whatever nodes they are.
const RING: &str = r#"#include <mpi.h>
#include <stdio.h>

int main(int argc, char **argv) {
    int rank, size, token = 0, length;
    char name[MPI_MAX_PROCESSOR_NAME];
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Get_processor_name(name, &length);
    if (rank > 0) MPI_Recv(&token, 1, MPI_INT, rank - 1, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    token++;
    MPI_Send(&token, 1, MPI_INT, (rank + 1) % size, 0, MPI_COMM_WORLD);
    if (rank == 0) {
        MPI_Recv(&token, 1, MPI_INT, size - 1, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        printf("the token came back to %s after %d of %d ranks\n", name, token, size);
    }
    MPI_Finalize();
    return 0;
}
"#;

/// What both refuse.
const ROOT: &str = "it refuses to run as root; run the demo as an ordinary user";

/// PVM: hosts added in its console, and its hello program on all of them.
pub(super) fn pvm(stage: &mut Stage, nodes: &[String]) -> anyhow::Result<()> {
    stage.say("PVM: one virtual machine of all nodes")?;
    let Some(first) = nodes.first() else { return Ok(()) };
    if account::ids().0 == 0 {
        return stage.skip("PVM", ROOT);
    }
    if find("pvm").is_none() {
        return stage.skip("PVM", "not installed (Debian package pvm)");
    }
    let mut console = String::new();
    for node in &nodes[1..] {
        // Writing into a string cannot fail.
        let _ = writeln!(console, "add {node}");
    }
    console.push_str("conf\n");
    let hello = find("hello.pvm").is_some();
    if hello {
        console.push_str("spawn -> hello.pvm\n");
    }
    // The console ends with its input, and what was spawned must have answered before.
    let waits_for = if hello { "finished" } else { "DSIG" };
    let hosts = format!("{} hosts", nodes.len());
    stage.console(first, "PVM", &["pvm"], &console, waits_for, "halt\n", move |text| {
        if !text.contains(&hosts) {
            Outcome::Bad(format!("conf does not show {hosts}"))
        } else if hello && !text.contains("hello, world") {
            Outcome::Bad("hello.pvm did not say hello".to_owned())
        } else {
            Outcome::Good
        }
    })?;
    if hello {
        Ok(())
    } else {
        stage.skip("PVM's hello", "not installed (Debian package pvm-examples)")
    }
}

/// Open MPI: a program of the system on all nodes, and a ring, where there is a compiler.
pub(super) fn open_mpi(stage: &mut Stage, nodes: &[String]) -> anyhow::Result<()> {
    stage.say("Open MPI: one job on all nodes")?;
    let Some(first) = nodes.first() else { return Ok(()) };
    if account::ids().0 == 0 {
        return stage.skip("Open MPI", ROOT);
    }
    let Some(mpirun) = find("mpirun.openmpi") else {
        return stage.skip("Open MPI", "not installed (Debian package openmpi-bin)");
    };
    let mpirun = mpirun.display().to_string();
    let (hosts, count) = (nodes.join(","), nodes.len().to_string());
    let names = nodes.to_vec();
    let words = [mpirun.as_str(), "-host", &hosts, "-np", &count, "hostname"];
    stage.inside(first, "Open MPI", &words, move |text| {
        match names.iter().find(|name| !text.lines().any(|line| line.trim() == name.as_str())) {
            Some(missing) => Outcome::Bad(format!("nothing came from {missing}")),
            None => Outcome::Good,
        }
    })?;
    let Some(compiler) = find("mpicc.openmpi") else {
        let why = "no compiler for it (Debian packages libopenmpi-dev and gcc)";
        return stage.skip("Open MPI's ring", why);
    };
    let (source, ring) = (stage.path("ring.c"), stage.path("ring"));
    stage.write("ring.c", RING)?;
    let compiler = compiler.display().to_string();
    stage.plain("compile a ring", &[&compiler, "-o", &ring, &source])?;
    let words = [mpirun.as_str(), "-host", &hosts, "-np", &count, &ring];
    stage.inside(first, "Open MPI's ring", &words, |text| {
        if text.contains("the token came back") {
            Outcome::Good
        } else {
            Outcome::Bad("the token did not come back".to_owned())
        }
    })
}

/// A program on PATH, or where Debian has it.
fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/bin", "/usr/local/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).map(|dir| dir.join(name)).find(|path| path.is_file())
}
