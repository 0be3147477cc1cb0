//! `master.toml`: the public description of a network, signed, and the optional local `[node]` table, which is not.

use std::{
    fmt,
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

use ipnet::Ipv4Net;
use serde::{
    Deserialize, Deserializer,
    de::{self, SeqAccess},
};
use toml::{Spanned, value::Datetime};

use super::{
    MAX_FILE,
    text::{self, FileError, Text},
    tuning::{self, Tuning},
};
use crate::words::{
    endpoint::{Endpoint, EndpointError},
    id::{Name, NetworkId, NodeNumber, Owner},
    key::{Signature, TransportKey, VerifyKey},
    network::{MAX_ENDPOINTS, Master, Network},
    signed::Signed,
    time::Timestamp,
};

/// The overlay's MTU unless `[node] mtu` says otherwise: sealed and relayed it still crosses a 1500-byte underlay.
pub const DEFAULT_MTU: u16 = 1400;

/// IPv6 wants no less of any link (RFC 8200 §5).
pub const MIN_MTU: u16 = 1280;

/// A packet of this size, cut and sealed, still leaves in one system call.
pub const MAX_MTU: u16 = 60_000;

/// A whole `master.toml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MasterFile {
    /// What the authority signed; verified under the authority that the file itself names.
    pub network: Signed<Network>,
    /// What this machine adds for itself.
    pub node: NodeTable,
}

/// The `[node]` table: local, unsigned, never passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeTable {
    /// The key file; relative to the directory of `master.toml`.
    pub key: Option<PathBuf>,
    /// Where UDP is received; an ephemeral port that is kept across restarts unless given.
    pub listen: Option<Listen>,
    /// `udp://` endpoints at which this node can be reached; announced as candidates.
    pub endpoints: Vec<Endpoint>,
    /// MTU of the overlay interface, bytes.
    pub mtu: u16,
    /// Speed and what it costs.
    pub tuning: Tuning,
    /// Who may execute here over ssh, whatever certificates say.
    pub execute: Execute,
    /// Name of the instance, unless the command line gives one; the network's name if neither does.
    pub instance: Option<Name>,
    /// What the daemon logs, as a `tracing` filter (`info`, `debug`, `clusternet::path=trace`).
    pub log: Option<String>,
}

impl Default for NodeTable {
    fn default() -> Self {
        Self {
            key: None,
            listen: None,
            endpoints: Vec::new(),
            mtu: DEFAULT_MTU,
            tuning: Tuning::default(),
            execute: Execute::Owner,
            instance: None,
            log: None,
        }
    }
}

/// Where UDP is received: a port on every address of both families, or on one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen {
    /// The one address (an unspecified one means every address of its family); `None` means every address.
    pub address: Option<IpAddr>,
    /// UDP port; 0 lets the system choose.
    pub port: u16,
}

impl FromStr for Listen {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let socket: SocketAddr = text.parse().map_err(
            |_| "listen is a port (51820) or ADDRESS:PORT (\"0.0.0.0:51820\", \"[::]:51820\")",
        )?;
        Ok(Self { address: Some(socket.ip()), port: socket.port() })
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => SocketAddr::new(address, self.port).fmt(f),
            None => self.port.fmt(f),
        }
    }
}

/// The machine's user has the last word on who may execute here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Execute {
    /// Nodes whose certificate names the same owner as ours.
    #[default]
    Owner,
    /// Nobody.
    None,
    /// Nodes of these owners.
    Owners(Vec<Owner>),
}

impl Execute {
    /// Whether a node of `peer` may execute on a node of `own`. No owner matches nobody, itself included.
    pub fn allows(&self, own: Option<&Owner>, peer: Option<&Owner>) -> bool {
        let Some(peer) = peer else { return false };
        match self {
            Self::Owner => own == Some(peer),
            Self::None => false,
            Self::Owners(owners) => owners.contains(peer),
        }
    }
}

impl MasterFile {
    /// Reads the file and verifies its signature under the authority it names. That proves only that nobody has changed
    /// it since: whoever joins must hold a certificate of the same authority.
    ///
    /// # Errors
    /// [`FileError`], with line and field.
    pub fn parse(text: &str) -> Result<Self, FileError> {
        let file: FileText = text::parse(text, MAX_FILE)?;
        let table = file.network;
        let date = timestamp(text, &table.date)?;
        let masters = file.master.into_iter().map(MasterText::into_master).collect();
        let statement = Network {
            version: table.version,
            name: table.name.0,
            authority: table.authority.0,
            ipv4: table.ipv4.0,
            date,
            masters,
        };
        let authority = statement.authority;
        let network = Signed::assemble(
            statement,
            table.signature.get_ref().0,
            &NetworkId::of(&authority),
            &authority,
        )
        .map_err(|error| text::refuse_signed(text, table.signature.span(), error))?;
        Ok(Self { network, node: file.node })
    }

    /// Writes the file: parsing it gives the same again. Comments of an older one are not kept.
    pub fn render(&self) -> String {
        let network = self.network.statement();
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = write!(
            out,
            "# The network \"{}\", as its authority describes it: give the same file to every node.\n\
             # What [network] and [[master]] say is signed; `clusternet issue --role master` changes it.\n\
             # A [node] table may be added on each machine; it is local and not signed.\n\n\
             [network]\nname = \"{}\"\nauthority = \"{}\"\nipv4 = \"{}\"\nversion = {}\ndate = {}\n\
             signature = \"{}\"\n",
            network.name,
            network.name,
            network.authority,
            network.ipv4,
            network.version,
            network.date,
            self.network.raw().signature,
        );
        for master in &network.masters {
            let _ = write!(
                out,
                "\n[[master]]\nname = \"{}\"\nnumber = {}\ntransport = \"{}\"\nhost = \"{}\"\nendpoints = {}\n",
                master.name,
                master.number,
                master.transport,
                master.host,
                list(&master.endpoints),
            );
        }
        self.node.render(&mut out);
        out
    }
}

impl NodeTable {
    fn render(&self, out: &mut String) {
        if *self == Self::default() {
            return;
        }
        out.push_str("\n[node]\n");
        if let Some(key) = &self.key {
            let _ = writeln!(out, "key = {}", quoted(&key.to_string_lossy()));
        }
        match self.listen {
            Some(listen) if listen.address.is_some() => {
                let _ = writeln!(out, "listen = \"{listen}\"");
            }
            Some(listen) => {
                let _ = writeln!(out, "listen = {listen}");
            }
            None => {}
        }
        if !self.endpoints.is_empty() {
            let _ = writeln!(out, "endpoints = {}", list(&self.endpoints));
        }
        if self.mtu != DEFAULT_MTU {
            let _ = writeln!(out, "mtu = {}", self.mtu);
        }
        self.tuning.render(out);
        match &self.execute {
            Execute::Owner => {}
            Execute::None => out.push_str("execute = \"none\"\n"),
            Execute::Owners(owners) => {
                let _ = writeln!(out, "execute = {}", list(owners));
            }
        }
        if let Some(instance) = &self.instance {
            let _ = writeln!(out, "instance = \"{instance}\"");
        }
        if let Some(log) = &self.log {
            let _ = writeln!(out, "log = {}", quoted(log));
        }
    }
}

/// A TOML list of things whose text needs no escapes.
fn list<T: fmt::Display>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(|item| format!("\"{item}\"")).collect();
    format!("[{}]", items.join(", "))
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn timestamp(text: &str, date: &Spanned<Datetime>) -> Result<Timestamp, FileError> {
    let refuse = || {
        let message = "not a date and time with offset, in whole seconds (2026-12-31T18:00:00Z)";
        text::refuse(text, Some(date.span()), message)
    };
    let time: jiff::Timestamp = date.get_ref().to_string().parse().map_err(|_| refuse())?;
    let millis = u64::try_from(time.as_millisecond()).map_err(|_| refuse())?;
    if time.subsec_nanosecond() == 0 { Ok(Timestamp(millis)) } else { Err(refuse()) }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileText {
    network: NetworkText,
    master: Vec<MasterText>,
    #[serde(default)]
    node: NodeTable,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NetworkText {
    name: Text<Name>,
    authority: Text<VerifyKey>,
    ipv4: Text<Ipv4Net>,
    version: u64,
    date: Spanned<Datetime>,
    signature: Spanned<Text<Signature>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MasterText {
    name: Text<Name>,
    number: u32,
    transport: Text<TransportKey>,
    host: Text<VerifyKey>,
    endpoints: Vec<Text<Endpoint>>,
}

impl MasterText {
    fn into_master(self) -> Master {
        Master {
            name: self.name.0,
            number: NodeNumber(self.number),
            transport: self.transport.0,
            host: self.host.0,
            endpoints: self.endpoints.into_iter().map(|Text(endpoint)| endpoint).collect(),
        }
    }
}

impl<'de> Deserialize<'de> for NodeTable {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Fields {
            key: Option<PathBuf>,
            listen: Option<Listen>,
            #[serde(default)]
            endpoints: Vec<Text<UdpEndpoint>>,
            mtu: Option<Mtu>,
            workers: Option<tuning::Workers>,
            #[serde(default)]
            cores: Vec<u16>,
            poll: Option<tuning::Poll>,
            suite: Option<tuning::SuiteName>,
            offload: Option<bool>,
            #[serde(rename = "socket-buffer")]
            socket_buffer: Option<tuning::Buffer>,
            #[serde(rename = "underlay-mtu")]
            underlay_mtu: Option<tuning::UnderlayMtu>,
            #[serde(default)]
            execute: Execute,
            instance: Option<Text<Name>>,
            log: Option<String>,
        }
        let fields = Fields::deserialize(from)?;
        if fields.endpoints.len() > MAX_ENDPOINTS {
            return Err(de::Error::custom("more than 8 endpoints"));
        }
        Ok(Self {
            key: fields.key,
            listen: fields.listen,
            endpoints: fields
                .endpoints
                .into_iter()
                .map(|Text(UdpEndpoint(endpoint))| endpoint)
                .collect(),
            mtu: fields.mtu.map_or(DEFAULT_MTU, |Mtu(mtu)| mtu),
            tuning: Tuning {
                workers: fields.workers.map(|tuning::Workers(workers)| workers),
                cores: fields.cores,
                poll: fields.poll.map(|tuning::Poll(poll)| poll),
                suite: fields.suite.map(|tuning::SuiteName(suite)| suite),
                offload: fields.offload,
                socket_buffer: fields.socket_buffer.map(|tuning::Buffer(bytes)| bytes),
                underlay_mtu: fields.underlay_mtu.map(|tuning::UnderlayMtu(mtu)| mtu),
            },
            execute: fields.execute,
            instance: fields.instance.map(|Text(name)| name),
            log: fields.log,
        })
    }
}

struct Mtu(u16);

impl<'de> Deserialize<'de> for Mtu {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match u16::deserialize(from)? {
            mtu @ MIN_MTU..=MAX_MTU => Ok(Self(mtu)),
            _ => Err(de::Error::custom("an MTU is between 1280 (IPv6 needs that) and 60000")),
        }
    }
}

struct UdpEndpoint(Endpoint);

impl FromStr for UdpEndpoint {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse().map_err(|error: EndpointError| error.to_string())? {
            udp @ Endpoint::Udp { .. } => Ok(Self(udp)),
            Endpoint::Tcp { .. } | Endpoint::Ssh { .. } => {
                Err("only udp:// endpoints can be announced".to_owned())
            }
        }
    }
}

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Listen;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port (51820) or ADDRESS:PORT (\"0.0.0.0:51820\", \"[::]:51820\")")
            }
            fn visit_i64<E: de::Error>(self, port: i64) -> Result<Listen, E> {
                let port = u16::try_from(port)
                    .map_err(|_| E::custom("a port is a number from 0 to 65535"))?;
                Ok(Listen { address: None, port })
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Listen, E> {
                text.parse().map_err(E::custom)
            }
        }
        from.deserialize_any(Visitor)
    }
}

impl<'de> Deserialize<'de> for Execute {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Execute;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"owner\", \"none\" or a list of owners ([\"alice\", \"bob\"])")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Execute, E> {
                match text {
                    "owner" => Ok(Execute::Owner),
                    "none" => Ok(Execute::None),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Execute, A::Error> {
                let mut owners = Vec::new();
                while let Some(Text(owner)) = items.next_element()? {
                    owners.push(owner);
                }
                Ok(Execute::Owners(owners))
            }
        }
        from.deserialize_any(Visitor)
    }
}
