//! The control socket: what `clusternet` asks the daemon and what it answers. JSON, one object a line.
//!
//! The socket is a Unix stream, mode 0600 in a 0700 directory; the daemon answers only its own uid and root
//! (SO_PEERCRED). A connection carries one request and its reply, or a stream of replies; file descriptors ride with
//! the reply that names them (SCM_RIGHTS).

use std::{
    ffi::OsString,
    net::{Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::words::{
    id::{Name, NodeNumber, Owner, Serial},
    time::Timestamp,
};

/// The longest request line the daemon reads: an `Update` carries a whole file.
pub const MAX_REQUEST: usize = 1 << 20;

/// What `clusternet` asks.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Which version, process and network answers here.
    Hello,
    /// Everything `status` shows.
    Status,
    /// Namespace file descriptors, in the order user, net, uts, ipc, mount, and what is needed to set up a command.
    Enter,
    /// One ping; answered by one [`Reply::Ping`] when it came back or `timeout_ms` has passed.
    Ping {
        /// Node name, `NAME.NETWORK`, or overlay address.
        node: String,
        /// How long to wait.
        timeout_ms: u64,
    },
    /// Newer signed data: the text of a `revocations`, `master.toml` or `.cert` file.
    Update {
        /// The whole file.
        text: String,
        /// How long to wait for other nodes' confirmation.
        timeout_ms: u64,
    },
    /// Stop this instance. Refused while programs run inside, unless `kill`.
    Leave {
        /// TERM, then KILL after 5 s.
        kill: bool,
    },
}

/// What the daemon answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// To [`Request::Hello`].
    Hello {
        /// The daemon's version, which must be the caller's.
        version: String,
        /// The keeper's process id.
        keeper: i32,
        /// The network's name.
        network: Name,
        /// The network's id in hexadecimal.
        network_id: String,
        /// The instance's name.
        instance: String,
    },
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Enter`]; five descriptors come with it.
    Enter(Box<View>),
    /// To [`Request::Ping`].
    Ping(PingReply),
    /// To [`Request::Update`].
    Update {
        /// What was taken from the file, in words.
        taken: String,
        /// Nodes that have confirmed it.
        confirmed: usize,
        /// Nodes that could have.
        nodes: usize,
    },
    /// To [`Request::Leave`]: it is going.
    Leaving,
    /// To [`Request::Leave`]: these programs run inside.
    Busy {
        /// Their process ids and command names.
        programs: Vec<(i32, String)>,
    },
    /// The request cannot be answered.
    Error {
        /// What was tried, why it failed, what to do.
        message: String,
    },
}

/// What a command inside needs beside the namespaces.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct View {
    /// The node's name.
    pub hostname: Name,
    /// The file to bind over `/etc/hosts`.
    pub hosts: PathBuf,
    /// Environment to add (`PATH` is put in front of the caller's own).
    pub environment: Vec<(OsString, OsString)>,
    /// Directory that goes in front on `PATH`.
    pub bin: PathBuf,
}

/// Everything `status` shows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// The instance's name.
    pub instance: String,
    /// The network's name.
    pub network: Name,
    /// The network's IPv6 prefix and IPv4 network.
    pub prefixes: (String, String),
    /// This node.
    pub node: NodeStatus,
    /// How packets enter and leave: `tun` or `packet socket`.
    pub device: String,
    /// The underlay port it listens on.
    pub listen: Option<String>,
    /// When the own certificate ends.
    pub not_after: Timestamp,
    /// Whether some member has accepted us since the start.
    pub accepted: bool,
    /// What has been tried to reach the masters, and how it ended, in words.
    pub masters: Vec<MasterStatus>,
    /// The other nodes.
    pub peers: Vec<NodeStatus>,
    /// Number of the newest revocation known.
    pub revocations: u64,
    /// Dropped packets and datagrams by reason.
    pub drops: Vec<(String, u64)>,
    /// Things someone should look at, in words.
    pub warnings: Vec<String>,
}

/// One master endpoint and how it went.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MasterStatus {
    /// The master's name.
    pub name: Name,
    /// What was tried.
    pub endpoint: String,
    /// How it ended, in words: `answers`, `no answer`, `refused: ...`, `cannot be resolved: ...`.
    pub outcome: String,
    /// Whether it answers now.
    pub answers: bool,
}

/// One node in `status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: Name,
    /// Its number.
    pub number: NodeNumber,
    /// Of its certificate.
    pub serial: Serial,
    /// Its overlay addresses.
    pub ipv4: Ipv4Addr,
    /// Its overlay addresses.
    pub ipv6: Ipv6Addr,
    /// `node`, `master`, `relay` or `wireguard`.
    pub role: String,
    /// Who owns it.
    pub owner: Option<Owner>,
    /// `this node`, `connected`, `connecting`, `idle`, `behind its gateway`, `left`, `not seen`; of former members
    /// `expired`, `revoked`, `superseded`, `not valid yet`.
    pub state: String,
    /// `direct udp 192.0.2.1:5`, `relayed via head`, ...; `None` without tunnel.
    pub path: Option<String>,
    /// Smoothed round trip.
    pub round_trip: Option<Duration>,
    /// Share of probes unanswered lately, 0 to 1.
    pub loss: Option<f32>,
    /// Since anything was received from it.
    pub last_received: Option<Duration>,
    /// Bytes of IP packets sent to it.
    pub sent: u64,
    /// Bytes of IP packets received from it.
    pub received: u64,
    /// How far its clock is ahead of ours, in seconds, where more than 60.
    pub clock_skew: Option<i64>,
}

/// One ping.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PingReply {
    /// Who was asked.
    pub name: Name,
    /// Its overlay address.
    pub ipv6: Ipv6Addr,
    /// Round trip; `None`: no answer in time.
    pub round_trip: Option<Duration>,
    /// Which way it went.
    pub path: Option<String>,
}

/// What `join` writes to the keeper that it has started, as one line on its standard input, a Unix stream socket; the keeper
/// answers on it with [`Progress`], a line each. The end of the stream makes the keeper stop, unless [`DETACH`] came before it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// The caller's version, which must be the daemon's.
    pub version: String,
    /// The instance's name.
    pub instance: Name,
    /// The runtime directory of this instance. The keeper makes it (0700) and removes it.
    pub runtime: PathBuf,
    /// Where cache, log and the port in use stay between runs.
    pub state: PathBuf,
    /// The text of `master.toml`.
    pub master: String,
    /// The text of a key file that holds the certificate too.
    pub key: SecretText,
    /// Whether the keeper ends with its caller, and logs to standard error.
    pub foreground: bool,
}

/// The longest line that starts a keeper: two files of a network and a key.
pub const MAX_START: usize = 1 << 20;

/// The line by which `join` lets the keeper go on alone.
pub const DETACH: &str = "detach";

/// Text that is erased when dropped and never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(pub Zeroizing<String>);

impl std::fmt::Debug for SecretText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretText")
    }
}

impl Serialize for SecretText {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from).map(|text| Self(Zeroizing::new(text)))
    }
}

/// How a start goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "progress", rename_all = "snake_case")]
pub enum Progress {
    /// The namespace and its device stand.
    Built {
        /// `tun` or `packet socket`.
        device: String,
    },
    /// The control socket answers.
    Listening {
        /// The underlay port.
        listen: String,
        /// Whether a valid cached roster lets the node come up without an answer.
        cached: bool,
    },
    /// Some member has accepted us.
    Accepted {
        /// Who.
        by: Name,
        /// Which way, in words.
        path: String,
    },
    /// A member refused us; others may not.
    Refused {
        /// Who, where known.
        by: Option<Name>,
        /// Why, in words.
        why: String,
    },
    /// It ends here: what was tried and why it failed. Nothing is left behind.
    Failed {
        /// What was tried, why it failed, what to do.
        message: String,
    },
}
