//! The node and what it works with: feeds it, drains it, does what it says.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use clusternet::{
    api,
    config::cert::CertFile,
    dataplane::{
        drops::{Counters, DropReason},
        punt::{Notice, Punt},
        table::{self, Builder},
    },
    node::{
        InterfaceAddress, Node, Traffic,
        output::{Directive, Event, Output, PeerSlot},
    },
    path::route::{Egress, Route},
    sys::{
        clock::Clock,
        fd::Wake,
        interfaces,
        tun::{DeviceKind, HEADER, Queue},
        udp::{SendOutcome, Udp},
    },
    words::{id::NetworkId, time::Now},
};

use super::{store::Store, update::Parsed};

/// Failures of one kind are logged once in this time, with their number.
const QUIET: Duration = Duration::from_secs(60);

/// In front of a packet that is whole and finished.
const NO_HEADER: [u8; HEADER] = [0; HEADER];

/// How often the numbers of members with traffic are looked at: what paths need to notice silence in time.
const LOOK: Duration = Duration::from_millis(500);

/// The numbers of a member as the node was last told them.
#[derive(Debug)]
struct Seen {
    traffic: Arc<table::Traffic>,
    told: Traffic,
}

/// What the drained node said that is not done here.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) events: Vec<Event>,
    pub(super) lookups: Vec<(String, u16)>,
}

/// The node and what it works with.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) node: Node,
    clock: Clock,
    instance: String,
    table: Builder,
    udp: Arc<Udp>,
    port: u16,
    queue: Arc<Queue>,
    counters: Arc<Counters>,
    /// Of the workers: to let go of what was removed.
    wakes: Vec<Arc<Wake>>,
    store: Store,
    /// When the node wants to be called.
    due: Instant,
    /// Members with traffic, and when their numbers are looked at next.
    active: HashMap<PeerSlot, Seen>,
    look: Option<Instant>,
    said: Said,
    /// Routes over which a datagram of this drain could not be sent.
    failed: Vec<Route>,
    scratch: Vec<u8>,
    noise: HashMap<&'static str, (Instant, u64)>,
    /// Things that `status` shows until they are mended.
    warnings: Vec<String>,
}

impl Seen {
    /// What has passed since the last time. Two counters are not read at one moment: what is missed now comes next time.
    fn take(&mut self) -> Traffic {
        let (out, into) = (&self.traffic.outbound, &self.traffic.inbound);
        let (sent_packets, sent_bytes) = (out.units(), out.bytes());
        let (received_packets, received_bytes) = (into.units(), into.bytes());
        let now = Traffic { sent_packets, sent_bytes, received_packets, received_bytes };
        let told = std::mem::replace(&mut self.told, now);
        Traffic {
            sent_packets: sent_packets - told.sent_packets,
            sent_bytes: sent_bytes - told.sent_bytes,
            received_packets: received_packets - told.received_packets,
            received_bytes: received_bytes - told.received_bytes,
        }
    }
}

/// What a [`Core`] is made of.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) node: Node,
    pub(super) clock: Clock,
    pub(super) instance: String,
    pub(super) table: Builder,
    pub(super) udp: Arc<Udp>,
    pub(super) port: u16,
    pub(super) queue: Arc<Queue>,
    pub(super) counters: Arc<Counters>,
    pub(super) wakes: Vec<Arc<Wake>>,
    pub(super) store: Store,
}

impl Core {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { node, clock, instance, table, udp, port, queue, counters, wakes, store } =
            parts;
        Self {
            node,
            clock,
            instance,
            table,
            udp,
            port,
            queue,
            counters,
            wakes,
            store,
            due: clock.instant(),
            active: HashMap::new(),
            look: None,
            said: Said::default(),
            failed: Vec::new(),
            scratch: Vec::new(),
            noise: HashMap::new(),
            warnings: Vec::new(),
        }
    }

    // ---- feeding

    pub(super) fn punt(&mut self, punt: Punt<'_>) {
        let now = self.now();
        match punt {
            Punt::Datagram(origin, datagram) => self.node.handle_datagram(origin, datagram, now),
            Punt::Packet(packet) => self.node.handle_packet(packet, now),
            Punt::Transit(slot, packet) => self.node.handle_transit(slot, packet, now),
            Punt::Notice(Notice::Confirmed { index }) => self.node.handle_confirmed(index, now),
            Punt::Notice(Notice::Heard { slot, origin }) => {
                self.node.handle_heard(slot, origin, now)
            }
            Punt::Notice(Notice::Active { slot }) => self.watch(slot, now),
        }
        self.drain();
    }

    /// A member's traffic has begun: its numbers are looked at until nothing passes.
    fn watch(&mut self, slot: PeerSlot, now: Now) {
        let Some(peer) = self.table.table().peer(slot) else { return };
        let traffic = Arc::clone(&peer.traffic);
        self.active.entry(slot).or_insert_with(|| Seen { traffic, told: Traffic::default() });
        if self.look.is_none() {
            // The first packet matters: it may show that a path is worth checking.
            self.look(now);
        }
    }

    /// Tells the node what has passed.
    fn look(&mut self, now: Now) {
        let table = self.table.table();
        let mut passed = Vec::new();
        self.active.retain(|slot, seen| {
            let traffic = seen.take();
            let peer = table.peer(*slot);
            let is_there = peer.is_some_and(|peer| Arc::ptr_eq(&peer.traffic, &seen.traffic));
            if is_there && traffic != Traffic::default() {
                passed.push((*slot, traffic));
                return true;
            }
            seen.traffic.rest();
            false
        });
        self.look = (!self.active.is_empty()).then(|| now.instant + LOOK);
        for (slot, traffic) in passed {
            self.node.handle_traffic(slot, traffic, now);
            self.drain();
        }
    }

    /// Calls the node if it is time.
    pub(super) fn timeout(&mut self) {
        let now = self.now();
        if self.look.is_some_and(|time| time <= now.instant) {
            self.look(now);
        }
        if self.due <= now.instant {
            self.node.handle_timeout(now);
            self.drain();
        }
    }

    /// The clock has jumped or the machine has slept: whatever was due, and every path, is looked at now.
    pub(super) fn jumped(&mut self) {
        self.node.handle_timeout(self.now());
        self.drain();
    }

    /// Tells the node which addresses this machine has now.
    pub(super) fn interfaces(&mut self) -> anyhow::Result<()> {
        let mut addresses: Vec<InterfaceAddress> = Vec::new();
        for found in interfaces::addresses().context("list this machine's addresses")? {
            let address = InterfaceAddress { address: found.address, prefix_len: found.prefix_len };
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        self.node.handle_interfaces(&addresses, self.port, self.now());
        self.drain();
        Ok(())
    }

    pub(super) fn resolved(
        &mut self,
        host: &str,
        port: u16,
        found: Result<Vec<SocketAddr>, String>,
    ) {
        self.node.handle_resolved(host, port, found, self.now());
        self.drain();
    }

    pub(super) fn echo(&mut self, address: std::net::IpAddr) -> Option<u64> {
        let id = self.node.handle_echo(address, self.now());
        self.drain();
        id
    }

    /// Takes in what a file brought; says what was new, in words.
    pub(super) fn update(&mut self, parsed: Parsed) -> anyhow::Result<String> {
        let taken = self.node.handle_update(&parsed.update, self.now());
        self.drain();
        let taken = taken?.taken;
        if let Some(certificate) = parsed.certificate {
            self.keep_if_own(&certificate);
        }
        Ok(taken)
    }

    /// A certificate that is ours now must be ours after a restart too.
    fn keep_if_own(&mut self, file: &CertFile) {
        if self.node.certificate().raw() == file.certificate.raw()
            && let Err(error) = self.store.keep_certificate(file)
        {
            self.warn(format!("the renewed certificate will be forgotten at a restart: {error:#}"));
        }
    }

    /// Tells the peers that we are going.
    pub(super) fn leave(&mut self) {
        self.node.handle_leave(self.now());
        self.drain();
    }

    // ---- draining

    /// Does what the node says until it waits for a time. After every change, before the next.
    pub(super) fn drain(&mut self) {
        let mut reported = 0;
        let (mut removed, mut published) = (false, false);
        loop {
            match self.node.poll_output() {
                Output::Timeout(due) => {
                    // A route is reported once a drain, whatever the node tries instead.
                    if let Some(route) = self.failed.get(reported).copied() {
                        reported += 1;
                        self.node.handle_send_failure(route, self.now());
                        continue;
                    }
                    self.due = due;
                    break;
                }
                Output::Transmit { route, datagram } => {
                    // Before a peer can answer under new keys, the workers must know them.
                    published |= self.table.publish();
                    self.transmit(route, &datagram);
                }
                Output::Deliver { packet } => {
                    if self.queue.write(&NO_HEADER, [&*packet]).is_err() {
                        self.counters.count(DropReason::DeliverRefused);
                    }
                }
                Output::Directive(directive) => {
                    removed |= is_removal(&directive);
                    self.table.apply(&directive);
                }
                Output::Event(event) => self.said.events.push(event),
                Output::Resolve { host, port } => self.said.lookups.push((host, port)),
            }
        }
        self.failed.clear();
        published |= self.table.publish();
        if published && removed {
            // An idle worker holds no table; a busy one looks at the new one now.
            self.wakes.iter().for_each(|wake| wake.wake());
        }
    }

    fn transmit(&mut self, route: Route, datagram: &[u8]) {
        let Egress::Udp { endpoint, .. } = route.egress else {
            return self.counters.count(DropReason::SendNoEgress);
        };
        let datagram = match route.relay {
            Some(index) => {
                self.scratch.clear();
                self.scratch.extend_from_slice(&index.prefix());
                self.scratch.extend_from_slice(datagram);
                &self.scratch
            }
            None => datagram,
        };
        match self.udp.send_to(datagram, endpoint) {
            SendOutcome::Sent => {}
            SendOutcome::Full => self.counters.count(DropReason::SendBufferFull),
            SendOutcome::Filtered | SendOutcome::Unreachable => {
                self.counters.count(DropReason::SendRefused);
                if !self.failed.contains(&route) {
                    self.failed.push(route);
                }
            }
            SendOutcome::TooBig => {
                self.counters.count(DropReason::SendRefused);
                self.noisy("datagrams too big to send");
            }
            SendOutcome::Failed(error) => {
                self.counters.count(DropReason::SendRefused);
                tracing::debug!(%error, "send failed");
                self.noisy("datagrams that cannot be sent");
            }
        }
    }

    /// Logs at most once a minute per kind, with a count.
    fn noisy(&mut self, what: &'static str) {
        let now = self.now().instant;
        let (last, count) = self.noise.entry(what).or_insert((now, 0));
        *count += 1;
        if *count == 1 || now.duration_since(*last) >= QUIET {
            tracing::warn!(count, "{what}");
            (*last, *count) = (now, 1);
        }
    }

    // ---- what others ask

    pub(super) fn now(&self) -> Now {
        self.clock.now()
    }

    /// When the node wants to be called.
    pub(super) fn due(&self) -> Instant {
        self.look.map_or(self.due, |look| look.min(self.due))
    }

    /// What the node has said since the last time.
    pub(super) fn take_said(&mut self) -> Said {
        std::mem::take(&mut self.said)
    }

    pub(super) fn network_id(&self) -> NetworkId {
        self.node.network().id()
    }

    /// Shown by `status` from now on.
    pub(super) fn warn(&mut self, warning: String) {
        tracing::warn!(warning);
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    /// What should survive.
    pub(super) fn cache(&mut self) -> Vec<u8> {
        self.node.cache(self.now())
    }

    pub(super) fn status(&self) -> api::Status {
        let mut status = self.node.status(self.now());
        status.instance.clone_from(&self.instance);
        device_name(self.queue.kind()).clone_into(&mut status.device);
        status.listen = Some(format!("udp port {}", self.port));
        let drops = self.counters.report();
        status.drops.extend(drops.map(|(reason, count)| (reason.name().to_owned(), count)));
        status.warnings.extend(self.warnings.iter().cloned());
        status
    }
}

/// As `status` shows it.
fn device_name(kind: DeviceKind) -> &'static str {
    match kind {
        DeviceKind::Tun => "tun",
        DeviceKind::Packet => "packet socket",
    }
}

fn is_removal(directive: &Directive) -> bool {
    match directive {
        Directive::RemoveTunnel { .. }
        | Directive::RemovePeer { .. }
        | Directive::RemoveKeypairs { .. }
        | Directive::RemoveRelay { .. } => true,
        Directive::InstallTunnel { .. }
        | Directive::InstallPeer { .. }
        | Directive::SetCarrier { .. }
        | Directive::InstallKeypairs { .. }
        | Directive::SealWith { .. }
        | Directive::SetRoute { .. }
        | Directive::InstallRelay { .. } => false,
    }
}
