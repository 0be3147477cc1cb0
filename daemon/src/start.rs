//! What the keeper hands the processes it starts, and what they say to each other afterwards.
//!
//! A child is started with one end of a message socket (`SOCK_SEQPACKET`) as its standard input. The first message on it
//! is JSON ([`ServeStart`] or [`InsideStart`]) with the descriptors that belong to it: secrets and descriptors thus never
//! show in arguments or in the environment. Then the socket carries [`FromServe`] and [`ToServe`]. Its end means that the
//! keeper has died: the child removes the runtime directory and exits.

use std::{
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
};

use anyhow::{Context, bail};
use clusternet::{
    api::{Progress, Reply, SecretText, Start, View},
    config::{
        key::{Identity, KeyFile},
        master::MasterFile,
    },
    node::output::Neighbour,
    sys::{
        fd,
        namespace::Namespaces,
        tun::{Device, DeviceKind},
    },
    words::{id::Name, time::Timestamp},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

/// Well below what the kernel lets one message hold (`net.core.wmem_default`, 208 KiB): two files and a key fit.
pub(crate) const MAX_MESSAGE: usize = 160 * 1024;

/// The first message to `serve`; with it come, in this order: the control listener, the stream to `inside`, the lock, the
/// namespaces, and the device's queues.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ServeStart {
    /// As `join` gave it: files, instance, directories.
    pub(crate) start: Start,
    /// The keeper's process id.
    pub(crate) keeper: i32,
    /// What stands behind the overlay device.
    pub(crate) device: DeviceKind,
    /// What a command inside needs beside the namespaces.
    pub(crate) view: View,
    /// Whether this is not the first `serve` of this keeper.
    pub(crate) restarted: bool,
}

/// The first message to `inside`; with it come, in this order: the stream from `serve`, the lock, the
/// namespaces, and the ssh listeners.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct InsideStart {
    /// The instance's name.
    pub(crate) instance: Name,
    /// The runtime directory, removed when the keeper dies.
    pub(crate) runtime: PathBuf,
    /// The secret that proves the ssh server, in base64.
    pub(crate) host: SecretText,
    /// What its programs see.
    pub(crate) view: View,
}

/// What `serve` tells the keeper.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FromServe {
    /// For `join`. [`Progress::Failed`] ends everything.
    Progress(Progress),
    /// Somebody asks to stop; answered by [`ToServe::Leave`].
    Leave {
        /// TERM, then KILL, for the programs inside.
        kill: bool,
    },
}

/// What the keeper tells `serve`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ToServe {
    /// The answer to [`FromServe::Leave`].
    Leave(Reply),
    /// End in good order, now: tell the peers.
    Stop,
    /// The control socket had disappeared; its new listener comes with this message. The files in the runtime directory
    /// must be written again.
    Control,
}

/// What `serve` starts with.
#[derive(Debug)]
pub(crate) struct Inherited {
    /// In words and files.
    pub(crate) about: ServeStart,
    /// The socket to the keeper.
    pub(crate) keeper: Link,
    /// Where `clusternet` asks.
    pub(crate) control: UnixListener,
    /// To `inside`: a line of JSON (an owner table) whenever it changes and whenever `inside` sends a line.
    pub(crate) inside: UnixStream,
    /// Handed out, never entered.
    pub(crate) namespaces: Namespaces,
    /// The overlay device.
    pub(crate) device: Device,
    /// Held as long as this process may touch the runtime directory.
    pub(crate) lock: OwnedFd,
}

/// What `inside` starts with.
#[derive(Debug)]
pub(crate) struct InheritedInside {
    /// In words.
    pub(crate) about: InsideStart,
    /// The socket to the keeper.
    pub(crate) keeper: Link,
    /// From `serve`: a line of JSON, an owner table, whenever it changes; any line to it asks for it again.
    pub(crate) serve: UnixStream,
    /// To be entered.
    pub(crate) namespaces: Namespaces,
    /// Where ssh clients connect.
    pub(crate) listeners: Vec<OwnedFd>,
    /// Held as long as this process may touch the runtime directory.
    pub(crate) lock: OwnedFd,
}

/// The files of a [`Start`], read.
#[derive(Debug)]
pub(crate) struct Files {
    /// The network and this machine's own settings.
    pub(crate) master: MasterFile,
    /// Secrets and a certificate that is valid now.
    pub(crate) identity: Identity,
}

impl Files {
    /// Reads them and checks that they belong together at `wall`. `join` has done so too, to tell the person early.
    ///
    /// # Errors
    /// Which file, and why.
    pub(crate) fn parse(start: &Start, wall: Timestamp) -> anyhow::Result<Self> {
        let master = MasterFile::parse(&start.master).context("read master.toml")?;
        let key = KeyFile::parse(&start.key.0).context("read the key file")?;
        let identity = key.identity(None, &master.network, wall).context("use the key file")?;
        Ok(Self { master, identity })
    }

    /// This node as it sees itself before it knows any other.
    pub(crate) fn own(&self) -> Neighbour {
        let own = &self.identity.certificate;
        Neighbour {
            name: own.name.clone(),
            ipv4: own.ipv4,
            ipv6: own.ipv6(),
            host: own.host,
            owner: own.owner.clone(),
            is_self: true,
        }
    }
}

/// One end of a message socket between the keeper and a child.
#[derive(Debug)]
pub(crate) struct Link(OwnedFd);

impl Link {
    /// Both ends.
    pub(crate) fn pair() -> anyhow::Result<(Self, Self)> {
        let (ours, theirs) = fd::message_pair().context("make a socket pair")?;
        Ok((Self(ours), Self(theirs)))
    }

    /// The keeper's end, which this process was started with as its standard input.
    pub(crate) fn from_keeper() -> anyhow::Result<Self> {
        take_standard_input().map(Self)
    }

    /// As [`send`].
    pub(crate) fn send(
        &self,
        message: &impl Serialize,
        fds: &[BorrowedFd<'_>],
    ) -> anyhow::Result<()> {
        send(self, message, fds)
    }

    /// As [`receive`].
    pub(crate) fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        receive(self)
    }

    /// For tokio, which asks no more of a stream than that it is a Unix socket.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn into_tokio(self) -> io::Result<tokio::net::UnixStream> {
        let stream = UnixStream::from(self.0);
        stream.set_nonblocking(true)?;
        tokio::net::UnixStream::from_std(stream)
    }

    /// The socket, to be given to a child.
    pub(crate) fn into_fd(self) -> OwnedFd {
        self.0
    }
}

/// Sends one message.
pub(crate) fn send(
    socket: impl AsFd,
    message: &impl Serialize,
    fds: &[BorrowedFd<'_>],
) -> anyhow::Result<()> {
    let text = Zeroizing::new(serde_json::to_vec(message)?);
    if text.len() > MAX_MESSAGE {
        bail!("a message of {} bytes is too long", text.len());
    }
    fd::send_with_fds(socket, &text, fds).context("send to the other process")
}

/// Waits for one message; `None` is the end.
///
/// # Errors
/// `InvalidData`: not such a message; else the system's.
pub(crate) fn receive<T: DeserializeOwned>(
    socket: impl AsFd,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut buffer = Zeroizing::new(vec![0; MAX_MESSAGE]);
    let (length, fds) = match fd::receive_with_fds(socket, &mut buffer) {
        Ok(received) => received,
        // The other end was closed with something of ours unread.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
        Err(error) => return Err(error),
    };
    if length == 0 {
        return Ok(None);
    }
    let message = serde_json::from_slice(&buffer[..length])
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(Some((message, fds)))
}

/// Takes the descriptor that this process was started with as its standard input, which is `/dev/null` from then on.
pub(crate) fn take_standard_input() -> anyhow::Result<OwnedFd> {
    let input = io::stdin().as_fd().try_clone_to_owned().context("take standard input")?;
    let null = std::fs::File::open("/dev/null").context("open /dev/null")?;
    nix::unistd::dup2_stdin(&null).context("replace standard input")?;
    Ok(input)
}

impl AsRawFd for Link {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Inherited {
    /// Takes over what the keeper sends.
    pub(crate) fn take() -> anyhow::Result<Self> {
        let keeper = Link::from_keeper()?;
        let (about, fds) = keeper.receive::<ServeStart>()?.context("the keeper has gone")?;
        let mut fds = Taken(fds.into_iter());
        let kind = about.device;
        Ok(Self {
            about,
            control: fds.next()?.into(),
            inside: fds.next()?.into(),
            lock: fds.next()?,
            namespaces: fds.namespaces()?,
            device: Device { kind, fds: fds.0.collect() },
            keeper,
        })
    }
}

impl InheritedInside {
    /// Takes over what the keeper sends.
    pub(crate) fn take() -> anyhow::Result<Self> {
        let keeper = Link::from_keeper()?;
        let (about, fds) = keeper.receive()?.context("the keeper has gone")?;
        let mut fds = Taken(fds.into_iter());
        Ok(Self {
            about,
            serve: fds.next()?.into(),
            lock: fds.next()?,
            namespaces: fds.namespaces()?,
            listeners: fds.0.collect(),
            keeper,
        })
    }
}

struct Taken(std::vec::IntoIter<OwnedFd>);

impl Taken {
    fn next(&mut self) -> anyhow::Result<OwnedFd> {
        self.0.next().context("the keeper has sent too few descriptors")
    }

    fn namespaces(&mut self) -> anyhow::Result<Namespaces> {
        Ok(Namespaces::from_fds([
            self.next()?,
            self.next()?,
            self.next()?,
            self.next()?,
            self.next()?,
        ]))
    }
}
