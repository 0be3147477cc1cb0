//! The whole control plane of one member (a master is a node with the role). Sans-IO.

pub mod output;

use std::net::{IpAddr, SocketAddr};

use crate::{
    api,
    node::output::{Neighbour, Output},
    path::route::Route,
    words::{
        certificate::Certificate,
        id::{Incarnation, Name},
        key::{SigningSecret, TransportSecret},
        network::Network,
        signed::Signed,
        time::Now,
    },
};

/// What a node starts with.
#[derive(Debug)]
pub struct Settings {
    /// The network, verified.
    pub network: Signed<Network>,
    /// This node's certificate, verified under the network's authority.
    pub certificate: Signed<Certificate>,
    /// The static key of its tunnels.
    pub transport: TransportSecret,
    /// Signs its announcements.
    pub host: SigningSecret,
    /// Drawn at random by every start.
    pub incarnation: Incarnation,
    /// `[node] endpoints`, resolved: announced as candidates.
    pub endpoints: Vec<SocketAddr>,
    /// What [`Node::cache`] gave before the last stop.
    pub cache: Option<Vec<u8>>,
}

/// An address of this machine, as `handle_interfaces` is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The address.
    pub address: IpAddr,
    /// Length of its network's prefix.
    pub prefix_len: u8,
}

/// Newer signed data for a running node, from `update` (parsed from a file by the shell).
#[derive(Debug, Clone)]
pub struct Update {
    /// Entries to take in; each is verified.
    pub entries: Vec<crate::wire::record::Entry>,
}

/// Why an update was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpdateError {
    /// Something in it does not verify.
    #[error("{0}")]
    Refused(String),
}

/// What an update did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Updated {
    /// In words: `revocations up to 3`, `network version 2`, `certificate 7 of b`, `nothing new`.
    pub taken: String,
}

/// The control plane.
#[derive(Debug)]
pub struct Node {}

#[expect(missing_docs, clippy::unimplemented, unused_variables, reason = "being written")]
impl Node {
    pub fn new(settings: Settings, now: Now) -> Self {
        unimplemented!()
    }
    /// A datagram that a worker punted; the relay prefix, if any, is already in `origin.relay` and cut off.
    pub fn handle_datagram(&mut self, origin: Route, datagram: &[u8], now: Now) {}
    /// An IP packet read from the TUN.
    pub fn handle_packet(&mut self, packet: &[u8], now: Now) {}
    pub fn handle_timeout(&mut self, now: Now) {}
    /// All addresses of this machine, and the local UDP port, at start and whenever they change.
    pub fn handle_interfaces(&mut self, addresses: &[InterfaceAddress], port: u16, now: Now) {}
    /// The answer to `Output::Resolve`; an empty list with the reason when it failed.
    pub fn handle_resolved(
        &mut self,
        host: &str,
        port: u16,
        found: Result<Vec<SocketAddr>, String>,
        now: Now,
    ) {
    }
    /// Sends an echo; the answer is `Event::EchoReply` with the id returned.
    pub fn handle_echo(&mut self, address: IpAddr, now: Now) -> Option<u64> {
        None
    }
    pub fn handle_update(&mut self, update: Update, now: Now) -> Result<Updated, UpdateError> {
        Err(UpdateError::Refused(String::new()))
    }
    /// How many nodes could confirm what we know now (revocations, network), and how many have.
    pub fn confirmations(&self, now: Now) -> (usize, usize) {
        (0, 0)
    }
    /// Tells the peers that we are going; drain once more, then drop.
    pub fn handle_leave(&mut self, now: Now) {}
    /// Sending over this route failed with an error that shows the path down (EPERM, ENETUNREACH, ...).
    pub fn handle_send_failure(&mut self, route: Route, now: Now) {}
    pub fn poll_output(&mut self) -> Output {
        unimplemented!()
    }
    /// Every valid node, itself included, by name.
    pub fn neighbours(&self, now: Now) -> Vec<Neighbour> {
        Vec::new()
    }
    /// Node by name, `NAME.NETWORK` or overlay address.
    pub fn lookup(&self, node: &str) -> Option<(Name, IpAddr)> {
        None
    }
    /// Fills in what the node knows; `instance`, `device`, `listen`, `drops` are the shell's.
    pub fn status(&self, now: Now) -> api::Status {
        unimplemented!()
    }
    /// The roster, for the next start.
    pub fn cache(&self) -> Vec<u8> {
        Vec::new()
    }
}
