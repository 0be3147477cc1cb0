//! What `clusternet status` shows of the control plane.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::Node;
use crate::{
    api::{NodeStatus, Status},
    path::route::{Egress, Route},
    roster::Member,
    wire::record::Refusal,
    words::{certificate::Certificate, id::Name, time::Now},
};

impl Node {
    /// Everything the node knows; what only the shell knows (`instance`, `device`, `listen`, its drops) is left empty.
    pub fn status(&self, now: Now) -> Status {
        let network = self.roster.network();
        let wall = self.roster.clock(now.wall);
        let mut warnings = Vec::new();
        if wall > now.wall {
            let behind = wall.since(now.wall).as_secs();
            warnings.push(format!(
                "this machine's clock is {behind} s behind a date the authority has signed: set it"
            ));
        }
        if self.roster.is_behind() {
            warnings.push("there are revocations this node has not seen yet".to_owned());
        }
        let left = self.certificate.not_after.since(wall);
        if left < Duration::from_secs(86_400) {
            warnings.push(format!(
                "the certificate ends in {} h {} min: ask the admin for a new one (`clusternet issue {}`) and `clusternet update` it",
                left.as_secs() / 3600,
                left.as_secs() / 60 % 60,
                self.certificate.name
            ));
        }
        let mut peers: Vec<NodeStatus> = Vec::new();
        for member in self.roster.members(now.wall) {
            if member.certificate().transport != self.key {
                peers.push(self.peer_status(member, now));
            }
        }
        peers.extend(self.former_members(now));
        Status {
            instance: String::new(),
            network: network.name.clone(),
            prefixes: (network.id().prefix().to_string(), network.ipv4.to_string()),
            node: NodeStatus { state: "this node".to_owned(), ..blank(&self.certificate) },
            device: String::new(),
            listen: None,
            not_after: self.certificate.not_after,
            accepted: self.is_accepted,
            masters: self.master_status(),
            peers,
            revocations: self.roster.head_count(),
            drops: self.counters.list(),
            warnings,
        }
    }

    /// Who was a member and is none now: the last certificate of each name that nobody has.
    fn former_members(&self, now: Now) -> impl Iterator<Item = NodeStatus> {
        let mut former: BTreeMap<&Name, NodeStatus> = BTreeMap::new();
        let names: BTreeSet<&Name> =
            self.roster.members(now.wall).iter().map(|member| &member.certificate().name).collect();
        for member in self.roster.all() {
            let certificate: &Certificate = member.certificate();
            if names.contains(&certificate.name) {
                continue;
            }
            let state = match self.roster.standing(certificate, now.wall) {
                Err(Refusal::Revoked) => "revoked",
                Err(Refusal::Expired) => "expired",
                Err(Refusal::NotYet) => "not valid yet",
                Ok(()) | Err(_) => "superseded",
            };
            former.insert(
                &certificate.name,
                NodeStatus { state: state.to_owned(), ..blank(certificate) },
            );
        }
        former.into_values().collect::<Vec<_>>().into_iter()
    }

    fn peer_status(&self, member: &Member, now: Now) -> NodeStatus {
        let certificate = member.certificate();
        let blank = blank(certificate);
        let announcement = member.announcement(now.wall);
        let Some(contact) = self.contacts.get(&certificate.transport) else {
            let through = self
                .members
                .by_key
                .get(&certificate.transport)
                .filter(|info| info.next_hop != certificate.transport)
                .and_then(|info| self.name_of(&info.next_hop));
            let state = match (announcement, &through) {
                (_, Some(_)) => "behind its gateway",
                (Some(announcement), None) if announcement.leaving => "left",
                (Some(_), None) => "idle",
                (None, None) => "not seen",
            };
            let path = through.map(|gateway| format!("through gateway {gateway}"));
            return NodeStatus { state: state.to_owned(), path, ..blank };
        };
        let is_ready = contact.is_ready();
        let suites = contact.channel.as_ref().map(|_| self.suites.choose(contact.trust.suites));
        // Somebody here may go on asking for it.
        let has_left = announcement.is_some_and(|announcement| announcement.leaving);
        let state = match (is_ready, suites) {
            (false, _) if has_left => "left",
            (false, _) => "connecting",
            (true, Some(None)) => "no cipher in common",
            (true, Some(Some(_)) | None) => "connected",
        };
        NodeStatus {
            state: state.to_owned(),
            path: contact
                .paths
                .primary()
                .filter(|_| is_ready)
                .map(|route| self.describe_route(&route)),
            round_trip: contact.paths.round_trip().filter(|_| is_ready),
            loss: contact.paths.loss().filter(|_| is_ready),
            last_received: contact.last_opened.map(|last| now.instant.duration_since(last)),
            sent: contact.sent,
            received: contact.received,
            clock_skew: contact.skew,
            ..blank
        }
    }

    /// A route in words: `direct udp 192.0.2.1:5`, `relayed via head`.
    pub fn describe_route(&self, route: &Route) -> String {
        if let Some(index) = route.relay {
            let relay = self.relayed.get(&index).and_then(|relayed| self.name_of(&relayed.relay));
            return relay
                .map_or_else(|| "relayed".to_owned(), |name| format!("relayed via {name}"));
        }
        match route.egress {
            Egress::Udp { endpoint, .. } => format!("direct udp {endpoint}"),
            Egress::Link(link) => format!("link {}", link.0),
        }
    }
}

fn blank(certificate: &Certificate) -> NodeStatus {
    NodeStatus {
        name: certificate.name.clone(),
        number: certificate.number,
        serial: certificate.serial,
        ipv4: certificate.ipv4,
        ipv6: certificate.ipv6(),
        role: certificate.roles.to_string(),
        owner: certificate.owner.clone(),
        state: String::new(),
        path: None,
        round_trip: None,
        loss: None,
        last_received: None,
        sent: 0,
        received: 0,
        clock_skew: None,
    }
}

/// Per-datagram facts: counted, not logged.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) early_records: u64,
    pub(super) refused_entries: u64,
    pub(super) malformed: u64,
    pub(super) gate: u64,
    pub(super) guests: u64,
    pub(super) unopened: u64,
    pub(super) wrong_source: u64,
    pub(super) wrong_destination: u64,
    pub(super) staged_out: u64,
    pub(super) no_member: u64,
    pub(super) reserved: u64,
    pub(super) before_acceptance: u64,
    pub(super) beside_channel: u64,
    pub(super) exchanges: u64,
}

impl Counters {
    fn list(&self) -> Vec<(String, u64)> {
        [
            ("control record before acceptance", self.early_records),
            ("signed entry refused", self.refused_entries),
            ("malformed", self.malformed),
            ("handshake refused at the gate", self.gate),
            ("stranger refused", self.guests),
            ("datagram did not open", self.unopened),
            ("source is not the peer's", self.wrong_source),
            ("destination is not ours", self.wrong_destination),
            ("dropped while waiting for a peer", self.staged_out),
            ("no such node", self.no_member),
            ("reserved packet", self.reserved),
            ("packet before acceptance", self.before_acceptance),
            ("packet beside the channel", self.beside_channel),
            ("channel exchange refused", self.exchanges),
        ]
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(reason, count)| (reason.to_owned(), count))
        .collect()
    }
}
