//! Bulk between two nodes that cannot reach each other: through the master, and on without it as soon as they can.

use std::time::Duration;

use anyhow::{Result, ensure};
use netns_tests::campus::{self, HOSTS};
use netns_tests::command::{Background, Cmd};
use netns_tests::harness::Check;
use netns_tests::lab::{Family, Nat, Tun};
use netns_tests::network::{Network, SOON};
use netns_tests::traffic::{self, Datagrams, Streams};

/// A path that is found while packets flow may cost no more than this.
const STALL: Duration = Duration::from_secs(3);

/// The campus, where b and c have only the master.
pub(crate) struct Parted {
    network: Network,
    _server: Background,
}

pub(crate) fn parted() -> Result<Parted> {
    let lab = campus::build(Family::V4, Tun::Open, Nat::RandomPorts)?;
    campus::quarrel(&lab)?;
    let mut network = Network::init(lab)?;
    for host in HOSTS {
        network.tune(host, "mtu = 1420")?;
    }
    network.join_all()?;
    network.inside("b", "ping -c1 -W20 c").ok()?;
    let server = traffic::serve(network.inside("c", "traffic serve"))?;
    Ok(Parted { network, _server: server })
}

pub(crate) fn checks() -> Vec<Check<Parted>> {
    vec![
        Check::new("a_relayed_pair_carries_bulk", carries_bulk),
        Check::new("a_direct_path_takes_over_while_bulk_flows", taken_over),
    ]
}

impl Parted {
    fn traffic(&self, part: &str, inner: Family, options: &str) -> Result<Cmd<'_>> {
        let address = self.network.overlay("c", inner)?;
        Ok(self.network.inside("b", &format!("traffic {part} {address} {options}")).limit(300))
    }

    fn path(&self, what: &str) -> Result<()> {
        let shows = |path: Option<&str>| path.is_some_and(|path| path.starts_with(what));
        for (from, to) in [("b", "c"), ("c", "b")] {
            let patience = Duration::from_secs(55);
            self.network.wait_seen(from, to, what, patience, |seen| shows(seen.path.as_deref()))?;
        }
        Ok(())
    }
}

fn carries_bulk(parted: &mut Parted) -> Result<()> {
    parted.path("relayed via head")?;
    let options = "--streams 2 --milliseconds 2000 --at-least 8000000";
    let running =
        [Family::V4, Family::V6].map(|inner| parted.traffic("tcp", inner, options)?.spawn());
    for running in running {
        let streams: Streams = traffic::finished(running?, SOON * 6)?;
        ensure!(streams.longest_pause() < STALL, "{streams:?}");
    }
    for (inner, joined) in [(Family::V4, ""), (Family::V6, " --joined")] {
        let options = format!("--milliseconds 1000{joined}");
        let Datagrams { sent, arrived, .. } =
            traffic::report(parted.traffic("udp", inner, &options)?)?;
        ensure!(arrived.wrong + arrived.repeated == 0, "{arrived:?}");
        ensure!(
            arrived.received * 100 > sent * 90 && arrived.late * 100 < sent,
            "{sent}: {arrived:?}"
        );
    }
    parted.path("relayed via head")
}

fn taken_over(parted: &mut Parted) -> Result<()> {
    parted.path("relayed via head")?;
    let options = "--streams 2 --until-told --rate 4000000";
    let mut running = parted.traffic("tcp", Family::V4, options)?.spawn()?;
    traffic::wait_under_way(&mut running)?;
    campus::make_up(&parted.network.lab)?;
    parted.path("direct")?;
    running.end_of_file();
    let streams: Streams = traffic::finished(running, SOON * 6)?;
    ensure!(streams.longest_pause() < STALL, "{streams:?}");
    ensure!(streams.bytes() > 1_000_000, "{streams:?}");
    // As fast as it goes, on the path that it has now.
    let options = "--streams 2 --milliseconds 1000 --at-least 8000000";
    let _: Streams = traffic::report(parted.traffic("tcp", Family::V6, options)?)?;
    parted.path("direct")
}
