//! The process on the host network: tunnels, the data plane, the control socket's answers. Never enters the namespace.
//!
//! *Start-up in stages*, going on from the keeper's. 6 take what the keeper hands over, give up core files and inspection.
//! 7 read the files and the state directory. 8 bind the UDP socket. 9 make the node and feed it this machine's addresses.
//! 10 start the worker, publish what the inside sees, answer requests.
//!
//! Then one loop on one thread: punts, timeouts, names, changes of addresses or clock, requests; after each the node is drained
//! ([`core`]) and what it said is heard. The end comes from the keeper (it says so, or has died), by SIGTERM, or from the node
//! (nobody will have us any more).

mod clock;
mod core;
mod interfaces;
mod publish;
mod requests;
mod resolve;
mod socket;
mod store;
#[cfg(test)]
mod tests;
mod update;
mod workers;

use std::{
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use clusternet::{
    api::Progress,
    channel::{Suites, suites_here},
    config::{
        key::KeyFile,
        master::{Listen, MasterFile},
    },
    dataplane::{drops::Counters, table::Builder},
    node::{Node, Settings, output::Event},
    sys::{clock::Clock, process, tun::Device},
    wire::{message::Mac1Key, record::Refusal},
    words::{certificate::Certificate, endpoint::Endpoint, id::Name, time::Now},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    time::{sleep, timeout},
};

use self::{
    clock::Jumps,
    core::{Core, Parts, Said},
    interfaces::Interfaces,
    publish::{AFTER_RESTART, Publisher, tell_owners},
    requests::Waiting,
    resolve::{Resolver, look_up},
    store::Store,
    workers::Workers,
};
use crate::{
    control::{self, Desk, Keeper, Question},
    logging, runtime,
    start::{Inherited, ServeStart},
};

/// Punts of each class taken before anything else has its turn.
const TURN: usize = 64;

/// A changed roster is on disk this much later.
const CACHE_DELAY: Duration = Duration::from_secs(3);

/// A changed set of nodes is on disk this much later: a `serve` that is killed and comes back must know whose ssh sessions go on.
const NODES_DELAY: Duration = Duration::from_millis(200);

/// How often the log's length is looked at.
const LOOK: Duration = Duration::from_secs(60);

/// `[node] endpoints` that are names: the start does not wait longer for them.
const NAMES_PATIENCE: Duration = Duration::from_secs(5);

/// Requests that wait to be looked at.
const QUESTIONS: usize = 64;

/// A keeper that has been told of a failure ends everything at once.
const KEEPER_PATIENCE: Duration = Duration::from_secs(5);

/// Nothing is so urgent that the node is called more often than this by its own timeouts.
const SHORTEST: Duration = Duration::from_millis(1);

/// Runs to the end.
///
/// # Errors
/// Why it had to end; the keeper starts it again.
pub(crate) fn start() -> anyhow::Result<()> {
    let inherited = Inherited::take()?;
    // A file that cannot be read is complained of later, to more ears.
    let master = MasterFile::parse(&inherited.about.start.master).ok();
    logging::start(master.and_then(|master| master.node.log).as_deref());
    process::forbid_core_files().context("forbid core files")?;
    process::forbid_inspection().context("forbid inspection")?;
    let runtime = inherited.about.start.runtime.clone();
    let parent = inherited.about.keeper;
    let lock = inherited.lock.try_clone().context("keep the lock of the runtime directory")?;
    let tokio = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start tokio")?;
    let done = tokio.block_on(run(inherited));
    // A lookup that hangs is not waited for.
    tokio.shutdown_background();
    if nix::unistd::getppid().as_raw() != parent {
        // The keeper has died: nobody else cleans up.
        runtime::remove_if_ours(&runtime, lock);
    }
    done
}

async fn run(inherited: Inherited) -> anyhow::Result<()> {
    let Inherited { about, keeper, control, inside, namespaces, device, lock } = inherited;
    let about = Arc::new(about);
    let keeper = Keeper::new(keeper)?;
    let (prepared, owners) = match prepare(&about, device).await {
        Ok(prepared) => prepared,
        // The first time somebody waits to hear it; later on it may pass.
        Err(error) if !about.restarted => {
            keeper.report(Progress::Failed { message: format!("{error:#}") });
            // The keeper ends us; an exit of ours before that would only start us again.
            sleep(KEEPER_PATIENCE).await;
            return Err(error);
        }
        Err(error) => return Err(error),
    };
    let (sender, questions) = mpsc::channel(QUESTIONS);
    let desk = Desk {
        about: Arc::clone(&about),
        network: prepared.core.node.network().name.clone(),
        network_id: prepared.core.network_id(),
        namespaces,
        keeper: keeper.clone(),
        questions: sender,
    };
    let waiting = Waiting::default();
    let wait = if about.restarted { AFTER_RESTART } else { Duration::ZERO };
    let mut serve = Serve { about, keeper, waiting, cache_due: None, refused: None, prepared };
    serve.announce_start();
    let telling = tell_owners(inside, owners, wait);
    let ended = serve.live(control::run(desk, control), telling, questions);
    let ended = ended.await;
    serve.part();
    drop(lock);
    ended
}

/// Everything that runs.
struct Serve {
    about: Arc<ServeStart>,
    keeper: Keeper,
    waiting: Waiting,
    cache_due: Option<Instant>,
    /// The last refusal that was logged.
    refused: Option<(Option<Name>, Refusal)>,
    prepared: Prepared,
}

/// What stages 7 to 10 make.
struct Prepared {
    core: Core,
    publisher: Publisher,
    store: Store,
    resolver: Resolver,
    /// Stop when dropped.
    workers: Workers,
    interfaces: Interfaces,
    jumps: Jumps,
    port: u16,
}

/// A master is looked for at the port of its first UDP endpoint, so that is where it listens unless `[node] listen` says otherwise
/// (a port that a router forwards).
fn listen_as_master(master: &MasterFile, own: &Certificate) -> Option<Listen> {
    let entry = master.network.master(&own.transport)?;
    entry.endpoints.iter().find_map(|endpoint| match endpoint {
        Endpoint::Udp { port, .. } => Some(Listen { address: None, port: *port }),
        Endpoint::Tcp { .. } | Endpoint::Ssh { .. } => None,
    })
}

async fn prepare(
    about: &ServeStart,
    device: Device,
) -> anyhow::Result<(Prepared, watch::Receiver<String>)> {
    // Stage 7.
    let start = &about.start;
    let clock = Clock::new();
    let now = clock.now();
    let store = Store::new(&start.state);
    let workers = u8::try_from(device.fds.len()).context("count the device's queues")?;
    let (master, settings) = settings(about, &store, workers, now).await?;
    let certificate = settings.certificate.clone();
    let own = [certificate.ipv4.into(), certificate.ipv6().into()];

    // Stage 8.
    let listen = master.node.listen.or_else(|| listen_as_master(&master, &certificate));
    let (udp, port) = socket::bind(listen, &store)?;

    // Stage 9.
    let interfaces = Interfaces::watch()?;
    let node = Node::new(settings, now);
    let mut table = Builder::new(own);
    if let Some(datagram) = master.node.tuning.datagram() {
        table.set_datagram(datagram);
    }
    let counters = Arc::<Counters>::default();
    let shared = workers::Shared {
        table: &table,
        mac1: Mac1Key::of(&node.transport_key()),
        counters: Arc::clone(&counters),
        clock,
        tuning: &master.node.tuning,
    };
    let mut workers = Workers::prepare(&shared, udp, device.into_queues())?;
    let mut core = Core::new(Parts {
        node,
        clock,
        instance: start.instance.to_string(),
        table,
        udp: Arc::clone(&workers.udp),
        port,
        queue: Arc::clone(&workers.queue),
        counters,
        wakes: workers.wakes.clone(),
        store: store.clone(),
    });
    core.drain();
    core.interfaces()?;
    core.jumped();

    // Stage 10.
    let policy = master.node.execute;
    let own = (certificate.name.clone(), certificate.owner.clone());
    let network = master.network.name.clone();
    let (mut publisher, owners) = Publisher::new(network, &about.view, policy, own);
    for error in publisher.update(core.node.neighbours()) {
        core.warn(format!("{error:#}"));
    }
    workers.start()?;
    let resolver = Resolver::new(store.resolved());
    let jumps = Jumps::watch()?;
    let prepared = Prepared { core, publisher, store, resolver, workers, interfaces, jumps, port };
    Ok((prepared, owners))
}

/// Reads what `join` has handed over, and what we kept ourselves.
async fn settings(
    about: &ServeStart,
    store: &Store,
    workers: u8,
    now: Now,
) -> anyhow::Result<(MasterFile, Settings)> {
    let start = &about.start;
    let master = MasterFile::parse(&start.master).context("read master.toml")?;
    let key = KeyFile::parse(&start.key.0).context("read the key file")?;
    // One of other keys is of a life before: `join` was given another key since.
    let (transport, host) = key.secrets.public();
    let renewed = store.certificate().filter(|file| {
        file.certificate.transport == transport && file.certificate.host == Some(host)
    });
    let identity =
        key.identity(renewed.as_ref(), &master.network, now.wall).context("use the key file")?;
    let endpoints = endpoints(&master.node.endpoints).await;
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| anyhow::anyhow!("get randomness: {error}"))?;
    let settings = Settings {
        network: master.network.clone(),
        certificate: identity.certificate,
        transport: identity.secrets.transport,
        host: identity.secrets.host,
        seed,
        endpoints,
        cache: store.cache(),
        suites: master.node.tuning.suite.map_or_else(suites_here, Suites::only),
        // The workers, and control.
        stripes: workers + 1,
    };
    Ok((master, settings))
}

/// The addresses of `[node] endpoints`; what cannot be resolved now is left out, and said to be.
async fn endpoints(endpoints: &[Endpoint]) -> Vec<SocketAddr> {
    let mut found = Vec::new();
    for endpoint in endpoints {
        let Endpoint::Udp { host, port } = endpoint else { continue };
        let resolved = match host.parse() {
            Ok(ip) => Ok(vec![SocketAddr::new(ip, *port)]),
            Err(_) => timeout(NAMES_PATIENCE, look_up(host, *port))
                .await
                .unwrap_or_else(|_| Err("the name service does not answer".to_owned())),
        };
        match resolved {
            Ok(addresses) => found.extend(addresses),
            Err(reason) => {
                tracing::warn!(%endpoint, reason, "an endpoint of ours is not announced")
            }
        }
    }
    found
}

impl Serve {
    fn announce_start(&self) {
        let core = &self.prepared.core;
        let cached = core.node.neighbours().iter().any(|node| !node.is_self);
        tracing::info!(restarted = self.about.restarted, cached, "serving");
        let listen = format!("udp port {}", self.prepared.port);
        self.keeper.report(Progress::Listening { listen, cached });
    }

    /// The loop. Comes back when it is time to end.
    async fn live(
        &mut self,
        control: impl Future<Output = anyhow::Result<()>>,
        owners: impl Future<Output = anyhow::Result<()>>,
        mut questions: mpsc::Receiver<Question>,
    ) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate()).context("receive signals")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("receive signals")?;
        let mut look = tokio::time::interval(LOOK);
        tokio::pin!(control, owners);
        loop {
            self.prepared.core.timeout();
            self.waiting.settle(&self.prepared.core);
            self.hear()?;
            self.keep(false);
            let wait = self.wait();
            let prepared = &mut self.prepared;
            let punted = prepared.workers.punted();
            tokio::select! {
                ended = &mut control => return ended.context("answer the control socket"),
                ended = &mut owners => {
                    ended.context("tell inside who may execute")?;
                    bail!("the stream to inside has ended");
                }
                ended = prepared.workers.ended() => {
                    ended.context("read packets and datagrams")?;
                    bail!("a worker has ended");
                }
                _ = terminate.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
                () = punted.notified() => {
                    let core = &mut prepared.core;
                    if prepared.workers.drain(TURN, |punt| core.punt(punt)) {
                        // Requests and signals have their turn too.
                        tokio::task::yield_now().await;
                    }
                }
                () = sleep(wait) => {}
                answer = prepared.resolver.next() => {
                    prepared.core.resolved(&answer.host, answer.port, answer.found);
                    if let Some(resolved) = prepared.resolver.take_changed()
                        && let Err(error) = prepared.store.keep_resolved(resolved)
                    {
                        tracing::debug!(error = format!("{error:#}"), "addresses of names are not kept");
                    }
                }
                changed = prepared.interfaces.changed() => {
                    changed?;
                    prepared.core.interfaces()?;
                }
                () = prepared.jumps.next() => {
                    tracing::info!("the clock was set, or the machine has slept");
                    prepared.core.interfaces()?;
                    prepared.core.jumped();
                }
                Some(question) = questions.recv() => match question {
                    Question::Ask { request, answer } => {
                        self.waiting.take(request, answer, &mut prepared.core);
                    }
                    Question::Publish => {
                        for error in prepared.publisher.write() {
                            tracing::warn!(error = format!("{error:#}"), "the inside is out of date");
                        }
                    }
                },
                _ = look.tick() => {
                    if let Err(error) = prepared.store.bound_log() {
                        tracing::debug!(%error, "the log is not shortened");
                    }
                }
            }
        }
    }

    /// How long nothing is due.
    fn wait(&self) -> Duration {
        let now = self.prepared.core.now().instant;
        let due = [Some(self.prepared.core.due()), self.waiting.due(), self.cache_due];
        let first = due.into_iter().flatten().min().unwrap_or(now);
        first.saturating_duration_since(now).max(SHORTEST)
    }

    /// Hears what the node has said.
    fn hear(&mut self) -> anyhow::Result<()> {
        let Said { events, lookups } = self.prepared.core.take_said();
        for (host, port) in lookups {
            self.prepared.resolver.ask(host, port);
        }
        // First: whoever hears that we are accepted looks for the names at once.
        if events.iter().any(|event| matches!(event, Event::NeighboursChanged)) {
            let nodes = self.prepared.core.node.neighbours();
            tracing::debug!(nodes = nodes.len(), "the set of nodes has changed");
            let soon = self.prepared.core.now().instant + NODES_DELAY;
            self.cache_due = Some(self.cache_due.map_or(soon, |due| due.min(soon)));
            for error in self.prepared.publisher.update(nodes) {
                tracing::warn!(error = format!("{error:#}"), "the inside is out of date");
            }
        }
        for event in events {
            match event {
                Event::Accepted { by, route } => {
                    tracing::info!(peer = %by, direct = route.is_direct(), "accepted");
                    tracing::debug!(peer = %by, %route, "accepted");
                    let path = self.prepared.core.node.describe_route(&route);
                    self.keeper.report(Progress::Accepted { by, path });
                }
                Event::Ended { why } => {
                    tracing::error!(reason = %why, "this node is no member any more");
                    self.keeper.report(Progress::Failed { message: why.to_string() });
                }
                Event::RefusedBy { by, why } => {
                    // It may say so again and again.
                    let refusal = (by.clone(), why);
                    if self.refused.as_ref() != Some(&refusal) {
                        let peer = by.as_ref().map(tracing::field::display);
                        tracing::warn!(peer, reason = %why, "a node refuses us");
                        self.refused = Some(refusal);
                    }
                    self.keeper.report(Progress::Refused { by, why: why.to_string() });
                }
                Event::NeighboursChanged => {}
                Event::CacheChanged => {
                    let due = self.prepared.core.now().instant + CACHE_DELAY;
                    self.cache_due.get_or_insert(due);
                }
                Event::EchoReply { id, route, direct, round_trip } => {
                    self.waiting.echo(id, route, direct, round_trip, &self.prepared.core);
                }
                Event::PeerUp { peer, route } => {
                    tracing::info!(%peer, direct = route.is_direct(), "tunnel up");
                    tracing::debug!(%peer, %route, "tunnel up");
                }
                Event::PeerDown { peer } => tracing::info!(%peer, "tunnel gone"),
                Event::RouteChanged { peer, route } => {
                    let direct = route.as_ref().map(|route| route.is_direct());
                    tracing::info!(%peer, direct, "route changed");
                    let route = route.as_ref().map(tracing::field::display);
                    tracing::debug!(%peer, route, "route changed");
                }
            }
        }
        Ok(())
    }

    /// Puts the roster on disk if it is time, or `at_once`.
    fn keep(&mut self, at_once: bool) {
        let now = self.prepared.core.now().instant;
        if !self.cache_due.is_some_and(|due| at_once || due <= now) {
            return;
        }
        self.cache_due = None;
        let cache = self.prepared.core.cache();
        let store = self.prepared.store.clone();
        let keep = move || {
            if let Err(error) = store.keep_cache(&cache) {
                tracing::warn!(error = format!("{error:#}"), "the roster is not kept");
            }
        };
        if at_once {
            keep();
        } else {
            // A home directory on a slow file server must not stop the tunnels.
            tokio::task::spawn_blocking(keep);
        }
    }

    /// Ends in good order: tells the peers, keeps what is known.
    fn part(&mut self) {
        self.prepared.core.leave();
        self.keep(true);
        tracing::info!("ending");
    }
}

/// Lets tokio watch a descriptor for something to read.
#[expect(
    deprecated,
    reason = "its unsafe successor asks for what an owned descriptor gives: to stay the same one"
)]
fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, Interest::READABLE)
}
