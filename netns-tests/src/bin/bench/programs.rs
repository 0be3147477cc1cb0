//! NetPIPE over PVM, by both of its routes, and over Open MPI.
//!
//! On the bare link the remote shell is a private ssh server's; inside clusternet it is what `run`
//! brings along, and nothing is configured.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netns_tests::clock::wait_until;
use netns_tests::command::{Background, Cmd};
use netns_tests::programs::{compile, need};

use crate::measures::{NetpipeLine, Stage, Values, netpipe_lines, values};
use crate::peers::ssh_server;

/// Sizes of messages and how often each is sent: for the latency and for the throughput.
const SIZES: [(u64, u32); 2] = [(64, 1000), (1 << 20, 10)];

/// Long enough for starting a virtual machine or ending a task.
const SOON: Duration = Duration::from_secs(20);

/// The way between tasks of PVM.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// Through the daemons, by UDP.
    Default,
    /// From task to task, by TCP.
    Direct,
}

/// What the programs need on a stage: a way to start others on `b`.
pub(crate) struct Programs<'s> {
    stage: &'s Stage<'s>,
    /// The bare link has none of its own.
    shell: Option<Background>,
}

impl<'s> Programs<'s> {
    /// Makes sure that programs on `a` can start others on `b`.
    pub(crate) fn new(stage: &'s Stage<'s>) -> Result<Self> {
        let shell =
            if stage.tunnel.prefix.is_empty() { Some(ssh_server(stage.pair)?) } else { None };
        Ok(Self { stage, shell })
    }

    fn inside(&self, side: &str, command: &str) -> Cmd<'_> {
        let command = self.stage.inside(side, command);
        if self.shell.is_none() {
            return command;
        }
        command.env("PVM_RSH", "/home/ann/rsh").env("OMPI_MCA_plm_rsh_agent", "/home/ann/rsh")
    }

    /// NetPIPE's PVM module between the hosts.
    pub(crate) fn pvm(&self, route: Route) -> Result<Values> {
        need(&["pvm", "NPpvm"])?;
        let said = self.inside("a", "pvm").stdin("add b\nconf\nquit\n").run()?;
        ensure!(said.stdout.contains("2 hosts"), "{said}");
        let found = SIZES.into_iter().map(|size| self.pvm_size(route, size)).collect();
        // The console is ended by the daemon it halts: its exit status says nothing.
        self.inside("a", "pvm").stdin("halt\n").run()?;
        summary(found)
    }

    fn pvm_size(&self, route: Route, (bytes, times): (u64, u32)) -> Result<NetpipeLine> {
        // Debian's asks for the direct route; what it asks can be kept from PVM.
        let preload = match route {
            Route::Direct => String::new(),
            Route::Default => {
                let library = compile("pvm_default_route", "gcc", &["-shared", "-fPIC"])?;
                format!("env LD_PRELOAD={library} ")
            }
        };
        let options = format!("-l {bytes} -u {bytes} -n {times} -p 0 -o /tmp/np.out");
        let receiver = self.inside("b", &format!("{preload}NPpvm {options}")).spawn()?;
        self.wait_for_tasks("b", 1)?;
        let outcome = self.inside("a", &format!("{preload}NPpvm -h b {options}")).run()?;
        let line = netpipe_lines(&outcome.text()).find(|line| line.bytes == bytes);
        let line = line.with_context(|| format!("{outcome}\n{}", receiver.so_far()))?;
        drop(receiver);
        self.wait_for_tasks("b", 0)?;
        Ok(line)
    }

    /// Waits until PVM lists so many tasks of NetPIPE on one host.
    fn wait_for_tasks(&self, side: &str, count: usize) -> Result<()> {
        wait_until(&format!("{count} tasks of PVM on {side}"), SOON, || {
            let listed = self.inside(side, "pvm").stdin("ps -x\nquit\n").run()?;
            let on_it = |line: &&str| line.split_whitespace().next() == Some(side);
            let tasks = listed.stdout.lines().filter(on_it);
            // The console that lists is one too.
            let seen = tasks.filter(|line| !line.contains("(cons)")).count();
            ensure!(seen == count, "{seen} in {listed}");
            Ok(Some(()))
        })
    }

    /// NetPIPE's MPI module between the hosts, by Open MPI.
    pub(crate) fn open_mpi(&self) -> Result<Values> {
        need(&["mpirun.openmpi", "NPopenmpi"])?;
        let size = |(bytes, times): (u64, u32)| -> Result<NetpipeLine> {
            // Ranks that wait give way: here both hosts share the cores that the tunnel needs too.
            let command = format!(
                "mpirun.openmpi --mca mpi_yield_when_idle 1 -host a,b -np 2 NPopenmpi -l {bytes} -u {bytes} -n {times} -p 0 -o /tmp/np.out"
            );
            let outcome = self.inside("a", &command).run()?;
            let line = netpipe_lines(&outcome.text()).find(|line| line.bytes == bytes);
            line.with_context(|| format!("{outcome}"))
        };
        summary(SIZES.into_iter().map(size).collect())
    }
}

fn summary(lines: Result<Vec<NetpipeLine>>) -> Result<Values> {
    let lines = lines?;
    let [small, large] = lines.as_slice() else { anyhow::bail!("not two sizes") };
    Ok(values([("half_round_trip", small.microseconds), ("gbit", large.mbit / 1e3)]))
}
