//! The admin's commands: init, issue, request, revoke, update, list, inspect.

mod directory;
mod fields;
mod hand_over;
mod init;
mod inspect;
mod issue;
mod list;
mod request;
mod revoke;
mod update;
mod wireguard;

use std::{path::PathBuf, str::FromStr};

use clap::{Args, Subcommand, ValueEnum};
use clusternet::{
    config::authority::{Authority, AuthorityError, Target},
    words::{
        certificate::Roles,
        endpoint::Endpoint,
        id::{Name, Owner, OwnerError, Serial},
        key::TransportKey,
        time::{Timestamp, parse_validity},
    },
};
use ipnet::Ipv4Net;

use crate::{Context, exit};

/// What a network's admin does.
#[derive(Debug, Subcommand)]
pub(crate) enum AdminCommand {
    /// Begin a network: its authority, its first master, and the master.toml that every node gets.
    #[command(after_help = "Example:
  clusternet init lab --master head --endpoint udp://login.example.org:51820")]
    Init(InitArgs),
    /// Issue a node's key and certificate, or renew its certificate.
    #[command(after_help = "Examples:
  clusternet issue a                                  makes a.key, which the node `a` joins with
  clusternet issue a --valid 600m                     only for the length of a job
  clusternet issue b --request b.request              the node keeps its secrets to itself
  clusternet issue gate --role master --endpoint udp://gate.example.org:51820
  clusternet issue phone --wireguard \"$(wg pubkey < phone.secret)\" > phone.conf")]
    Issue(IssueArgs),
    /// Make a node's secrets on the node itself, and the request that the network's admin signs.
    #[command(after_help = "Example:
  clusternet request b      makes b.key, which stays, and b.request, which goes to the admin; lay the b.cert that
                            comes back beside b.key")]
    Request(RequestArgs),
    /// Take certificates back: their nodes lose their membership.
    #[command(after_help = "Examples:
  clusternet revoke a       every certificate of `a`
  clusternet revoke 17      the one with serial 17 (see `clusternet list`), and all others for the same keys")]
    Revoke(RevokeArgs),
    /// Give a running node newer signed data: revocations, a master.toml, a renewed certificate.
    #[command(after_help = "Example:
  clusternet update lab/revocations")]
    Update(UpdateArgs),
    /// Show the ledger: every certificate that was issued, and what has become of it.
    #[command(after_help = "Example:
  clusternet list --dir lab --json")]
    List(ListArgs),
    /// Show any file of a network, never a secret.
    #[command(after_help = "Example:
  clusternet inspect a.key")]
    Inspect(InspectArgs),
}

/// Arguments of `init`.
#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// The network's name.
    network: Name,
    /// Name of the first master, the node that others meet at.
    #[arg(long, value_name = "NAME")]
    master: Name,
    /// Where the master can be met: udp://HOST:PORT, tcp://HOST:PORT or ssh://[USER@]HOST; may be repeated.
    #[arg(long = "endpoint", value_name = "URL", required = true)]
    endpoints: Vec<Endpoint>,
    /// Where the nodes' IPv4 addresses come from.
    #[arg(long, value_name = "CIDR", default_value = "10.99.0.0/16")]
    ipv4: Ipv4Net,
    /// Who may run commands on the nodes over ssh; `none` for nobody [default: your login name].
    #[arg(long, value_name = "NAME")]
    owner: Option<OwnerArg>,
    /// How long the master's certificate is valid: 600m, 12h, 30d, or until a date.
    #[arg(long, value_name = "TIME", default_value = DEFAULT_VALIDITY)]
    valid: String,
    /// Directory to make and to keep the network's files in [default: ./NETWORK].
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// Arguments of `issue`.
#[derive(Debug, Args)]
pub(crate) struct IssueArgs {
    /// The node's name.
    name: Name,
    #[command(flatten)]
    ledger: LedgerArgs,
    /// Answer a request (`-` for standard input) instead of making keys.
    #[arg(long, value_name = "FILE", conflicts_with = "wireguard")]
    request: Option<PathBuf>,
    /// How long the certificate is valid: 600m, 12h, 30d, or until a date.
    #[arg(long, value_name = "TIME", default_value = DEFAULT_VALIDITY)]
    valid: String,
    /// What the node is beside a member [default: as before, or node].
    #[arg(long, conflicts_with = "wireguard")]
    role: Option<RoleArg>,
    /// Where a master can be met; may be repeated [default: as before].
    #[arg(long = "endpoint", value_name = "URL", conflicts_with = "wireguard")]
    endpoints: Vec<Endpoint>,
    /// Who may run commands on it over ssh; `none` for nobody [default: as before, or the network's].
    #[arg(long, value_name = "NAME", conflicts_with = "wireguard")]
    owner: Option<OwnerArg>,
    /// Issue to a plain WireGuard program with this public key, and print the wg-quick file it needs.
    #[arg(long, value_name = "PUBKEY")]
    wireguard: Option<TransportKey>,
    /// Where the key file, or the certificate, goes (`-` for standard output) [default: NAME.key or NAME.cert in the network's directory].
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Arguments of `request`.
#[derive(Debug, Args)]
pub(crate) struct RequestArgs {
    /// The name the node would like.
    name: Name,
    /// Where the request goes (`-` for standard output); the key goes beside it [default: NAME.request].
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Arguments of `revoke`.
#[derive(Debug, Args)]
pub(crate) struct RevokeArgs {
    /// A node's name, or a certificate's serial.
    #[arg(value_name = "NAME|SERIAL", value_parser = parse_target)]
    target: Target,
    #[command(flatten)]
    ledger: LedgerArgs,
}

/// Arguments of `update`.
#[derive(Debug, Args)]
pub(crate) struct UpdateArgs {
    /// A `revocations` file, a `master.toml`, a `.cert` (or a `.key`, of which only the certificate is handed over).
    file: PathBuf,
    /// Which instance gets it [default: those of the file's network].
    #[arg(long, value_name = "INSTANCE")]
    on: Option<Name>,
}

/// Arguments of `list`.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    ledger: LedgerArgs,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// Arguments of `inspect`.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Any file of a network (`-` for standard input).
    file: PathBuf,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// Where the ledger is.
#[derive(Debug, Args)]
pub(crate) struct LedgerArgs {
    /// The network's directory [default: `.` where that holds a ledger.toml, else the only directory here that does].
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// Certificates of a month: a forgotten node is out of the network by itself.
const DEFAULT_VALIDITY: &str = "30d";

/// `--owner`.
#[derive(Debug, Clone)]
pub(crate) struct OwnerArg(Option<Owner>);

impl FromStr for OwnerArg {
    type Err = OwnerError;
    fn from_str(text: &str) -> Result<Self, OwnerError> {
        if text == "none" { Ok(Self(None)) } else { text.parse().map(|owner| Self(Some(owner))) }
    }
}

/// `--role`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum RoleArg {
    /// A member, nothing more.
    Node,
    /// Forwards sealed datagrams for others.
    Relay,
    /// A meeting place, named in master.toml.
    Master,
}

impl From<RoleArg> for Roles {
    fn from(role: RoleArg) -> Self {
        match role {
            RoleArg::Node => Self::NODE,
            RoleArg::Relay => Self::RELAY,
            RoleArg::Master => Self::MASTER,
        }
    }
}

// Names begin with a letter: what is a number is a serial.
fn parse_target(text: &str) -> Result<Target, String> {
    match text.parse() {
        Ok(serial) => Ok(Target::Serial(Serial(serial))),
        Err(_) => text.parse().map(Target::Name).map_err(|error| format!("{error}")),
    }
}

/// Runs one of them; the exit status.
pub(crate) fn run(command: AdminCommand, context: Context) -> anyhow::Result<u8> {
    match command {
        AdminCommand::Init(args) => init::run(args),
        AdminCommand::Issue(args) => issue::run(args, context),
        AdminCommand::Request(args) => request::run(args),
        AdminCommand::Revoke(args) => revoke::run(args, context),
        AdminCommand::Update(args) => update::run(args),
        AdminCommand::List(args) => list::run(args),
        AdminCommand::Inspect(args) => inspect::run(args),
    }
}

fn validity(text: &str, now: Timestamp) -> anyhow::Result<Timestamp> {
    parse_validity(text, now).map_err(|error| exit::wrong_use(format!("--valid: {error}")))
}

/// Refusals that come from the arguments alone are wrong use.
fn refused(error: AuthorityError) -> anyhow::Error {
    match error {
        AuthorityError::Endpoints | AuthorityError::Wireguard => exit::wrong_use(error.to_string()),
        AuthorityError::OtherLedger { .. }
        | AuthorityError::ReservedName
        | AuthorityError::NameTaken { .. }
        | AuthorityError::KeyTaken(..)
        | AuthorityError::KeyMixed(_)
        | AuthorityError::KeyRevoked(_)
        | AuthorityError::AuthorityKey
        | AuthorityError::Key(_)
        | AuthorityError::Unknown(_)
        | AuthorityError::OtherSort(_)
        | AuthorityError::Masters
        | AuthorityError::Full(_)
        | AuthorityError::NoSuchName(_)
        | AuthorityError::NoSuchSerial(_)
        | AuthorityError::Expired(_)
        | AuthorityError::Statement(_) => error.into(),
    }
}

/// Which nodes may execute on which, in words, a line each.
fn who_may_execute(authority: &Authority, now: Timestamp) -> String {
    let join = |names: &[Name]| names.iter().map(Name::as_str).collect::<Vec<_>>().join(", ");
    let mut lines = Vec::new();
    for group in authority.owner_groups(now) {
        let nodes = join(&group.nodes);
        lines.push(match (&group.owner, group.nodes.len()) {
            (Some(owner), 1) => {
                format!("owner {owner}: {nodes} alone; no other node may run commands on it")
            }
            (Some(owner), _) => format!("owner {owner}: {nodes} may run commands on one another"),
            (None, _) => format!("no owner: {nodes} may run commands nowhere, and nobody on them"),
        });
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_number_is_a_serial() {
        assert_eq!(parse_target("17"), Ok(Target::Serial(Serial(17))));
        assert_eq!(parse_target("a17"), Ok(Target::Name("a17".parse().unwrap())));
        assert!(parse_target("-1").is_err() && parse_target("").is_err());
    }
}
