//! Requests of the control socket that need the node: status, ping, update. Some wait for other nodes.

use std::{
    collections::BTreeMap,
    net::Ipv6Addr,
    time::{Duration, Instant},
};

use clusternet::{
    api::{PingReply, Reply, Request},
    path::route::Route,
    words::{id::Name, time::Now},
};
use tokio::sync::oneshot;

use super::{core::Core, update};
use crate::control::LONGEST_WAIT;

/// Confirmations are counted this often while somebody waits for them.
const COUNT: Duration = Duration::from_millis(100);

/// After an update, the nodes that are slow to connect may still be on their way: "all of none" is believed only after this.
const SETTLE: Duration = Duration::from_millis(500);

/// Those who wait.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    pings: BTreeMap<u64, Ping>,
    updates: Vec<Confirming>,
    /// When the confirmations are counted next.
    count_at: Option<Instant>,
}

#[derive(Debug)]
struct Ping {
    name: Name,
    ipv6: Ipv6Addr,
    until: Instant,
    answer: oneshot::Sender<Reply>,
}

#[derive(Debug)]
struct Confirming {
    taken: String,
    since: Instant,
    until: Instant,
    answer: oneshot::Sender<Reply>,
}

impl Waiting {
    /// Answers at once, or takes the asker in.
    pub(super) fn take(
        &mut self,
        request: Request,
        answer: oneshot::Sender<Reply>,
        core: &mut Core,
    ) {
        match request {
            Request::Status => drop(answer.send(Reply::Status(Box::new(core.status())))),
            Request::Ping { node, timeout_ms } => self.ping(&node, timeout_ms, answer, core),
            Request::Update { text, timeout_ms } => self.update(&text, timeout_ms, answer, core),
            // The control socket answers these itself.
            Request::Hello | Request::Enter | Request::Leave { .. } => {
                drop(answer.send(error("this request is not for the node".to_owned())));
            }
        }
    }

    /// An echo came back.
    pub(super) fn echo(
        &mut self,
        id: u64,
        route: Route,
        direct: bool,
        round_trip: Duration,
        core: &Core,
    ) {
        let Some(ping) = self.pings.remove(&id) else { return };
        let there = core.node.describe_route(&route);
        // The way back is the other node's choice.
        let path =
            if route.is_direct() && !direct { format!("{there}, back relayed") } else { there };
        let reply = PingReply {
            name: ping.name,
            ipv6: ping.ipv6,
            round_trip: Some(round_trip),
            path: Some(path),
        };
        let _ = ping.answer.send(Reply::Ping(reply));
    }

    /// When [`Self::settle`] has something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        self.pings.values().map(|ping| ping.until).chain(self.count_at).min()
    }

    /// Answers those whose time is over, or who have what they wait for.
    pub(super) fn settle(&mut self, core: &Core) {
        let now = core.now();
        let over: Vec<u64> = self
            .pings
            .iter()
            .filter(|(_, ping)| ping.until <= now.instant || ping.answer.is_closed())
            .map(|(id, _)| *id)
            .collect();
        for ping in over.into_iter().filter_map(|id| self.pings.remove(&id)) {
            let reply =
                PingReply { name: ping.name, ipv6: ping.ipv6, round_trip: None, path: None };
            let _ = ping.answer.send(Reply::Ping(reply));
        }
        if self.count_at.is_some_and(|at| at <= now.instant) {
            let (nodes, confirmed) = core.node.confirmations(now);
            for update in std::mem::take(&mut self.updates) {
                if update.is_done(nodes, confirmed, &now) {
                    let reply = Reply::Update { taken: update.taken, confirmed, nodes };
                    let _ = update.answer.send(reply);
                } else {
                    self.updates.push(update);
                }
            }
            self.count_at = (!self.updates.is_empty()).then(|| now.instant + COUNT);
        }
    }

    fn ping(
        &mut self,
        node: &str,
        timeout_ms: u64,
        answer: oneshot::Sender<Reply>,
        core: &mut Core,
    ) {
        let now = core.now();
        let neighbours = core.node.neighbours();
        let found = core.node.lookup(node).and_then(|(name, address)| {
            Some((neighbours.iter().find(|n| n.name == name)?, address))
        });
        let Some((target, address)) = found else {
            let message = format!(
                "no node of the network is called `{node}` or has that address: `clusternet status` lists them"
            );
            return drop(answer.send(error(message)));
        };
        if target.is_self {
            let reply = PingReply {
                name: target.name.clone(),
                ipv6: target.ipv6,
                round_trip: Some(Duration::ZERO),
                path: Some("this node".to_owned()),
            };
            return drop(answer.send(Reply::Ping(reply)));
        }
        let ipv6 = target.ipv6;
        match core.echo(address) {
            Some(id) => {
                let until = now.instant + patience(timeout_ms);
                let ping = Ping { name: target.name.clone(), ipv6, until, answer };
                self.pings.insert(id, ping);
            }
            None => {
                let message = format!(
                    "node {} answers no pings of this kind, or too many wait already: try ping(8) inside",
                    target.name
                );
                drop(answer.send(error(message)));
            }
        }
    }

    fn update(
        &mut self,
        text: &str,
        timeout_ms: u64,
        answer: oneshot::Sender<Reply>,
        core: &mut Core,
    ) {
        let network = core.network_id();
        let taken = update::parse(text, network).and_then(|parsed| core.update(parsed));
        match taken {
            Ok(taken) => {
                let since = core.now().instant;
                let until = since + patience(timeout_ms);
                self.updates.push(Confirming { taken, since, until, answer });
                self.count_at.get_or_insert(since);
            }
            Err(refused) => drop(answer.send(error(format!("{refused:#}")))),
        }
    }
}

impl Confirming {
    fn is_done(&self, nodes: usize, confirmed: usize, now: &Now) -> bool {
        let settled = nodes > 0 || now.instant >= self.since + SETTLE;
        now.instant >= self.until || self.answer.is_closed() || (settled && confirmed >= nodes)
    }
}

fn patience(timeout_ms: u64) -> Duration {
    // A little less than the socket's own patience, so that the answer is ours.
    Duration::from_millis(timeout_ms).min(LONGEST_WAIT - Duration::from_secs(1))
}

fn error(message: String) -> Reply {
    Reply::Error { message }
}
