//! One ssh connection: who it is, its channels, its end.

use std::{
    collections::HashMap,
    net::{IpAddr, Shutdown, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use clusternet::words::id::Name;
use nix::sys::socket::{setsockopt, sockopt};
use russh::{
    Channel, ChannelId, ChannelOpenFailure, Disconnect, MethodSet, Pty, Sig,
    server::{Auth, ChannelOpenHandle, Handler, Msg, Session},
};
use tokio::{
    net::TcpStream,
    sync::{mpsc, watch},
};

use super::{
    Place, Shared,
    channels::{Channels, Entry, Kind, Owned, Waiting},
    command::{self, Addresses, Asked, Program, Terminal, WindowSize},
    forward,
    input::{Input, TRICKLE, WINDOW},
    session::{self, Order, Wires},
    sftp,
};

/// How long a connection may take to show who it is.
const GRACE: Duration = Duration::from_secs(30);
/// How long a peer is given to take the words of parting.
const PARTING: Duration = Duration::from_millis(500);
/// Ports that one connection may have listened on.
const MAX_LISTENING: usize = 64;
/// Variables that one session may send.
const MAX_VARIABLES: usize = 64;

/// Serves one connection to its end.
pub(super) async fn run(
    config: Arc<russh::server::Config>,
    shared: Arc<Shared>,
    stream: TcpStream,
    from: SocketAddr,
    place: Place,
) -> anyhow::Result<()> {
    let local = stream.local_addr().context("asking for the local address")?;
    stream.set_nodelay(true).context("setting TCP_NODELAY")?;
    keep_alive(&stream).context("setting TCP keepalive")?;
    // A second handle to the socket: the only one that ends a connection whose loop waits for the peer to take data.
    let socket = stream.into_std().context("taking the socket")?;
    let ender = socket.try_clone().context("duplicating the socket")?;
    let stream = TcpStream::from_std(socket).context("giving the socket back")?;

    let address = from.ip().to_canonical();
    let authenticated = Arc::new(AtomicBool::new(false));
    let (revoked, is_revoked) = watch::channel(false);
    let handler = Connection {
        address,
        addresses: Addresses { peer: from, local },
        place,
        authenticated: Arc::clone(&authenticated),
        revoked: is_revoked,
        channels: Channels::default(),
        listening: HashMap::new(),
        shared: Arc::clone(&shared),
    };
    // From here on every change is seen, by the login or below.
    let mut owners = shared.owners.clone();
    owners.mark_unchanged();
    let grace = tokio::time::sleep(GRACE);
    tokio::pin!(grace);
    let mut session = tokio::select! {
        session = russh::server::run_stream(config, stream, handler) => session.context("greeting")?,
        () = &mut grace => anyhow::bail!("no greeting within {GRACE:?}"),
    };

    loop {
        tokio::select! {
            ended = &mut session => return ended.context("serving"),
            () = &mut grace, if !grace.is_elapsed() => {
                if !authenticated.load(Ordering::SeqCst) {
                    let _ = ender.shutdown(Shutdown::Both);
                }
            }
            changed = owners.changed(), if !*revoked.borrow() => {
                let refusal = match changed {
                    Ok(()) => owners.borrow_and_update().admit(address).err().map(|refusal| refusal.to_string()),
                    // Nobody can say any more who may execute.
                    Err(_) => Some("this node is leaving".to_owned()),
                };
                let Some(refusal) = refusal else { continue };
                if changed.is_ok() && !authenticated.load(Ordering::SeqCst) {
                    // The login itself tells why.
                    continue;
                }
                revoked.send_replace(true);
                tracing::info!(%address, "ends its ssh connection: {refusal}");
                let parting = session.handle();
                let text = format!("clusternet: {refusal}");
                let _ = tokio::time::timeout(PARTING, async {
                    let _ = parting.disconnect(Disconnect::ByApplication, text, String::new()).await;
                    let _ = (&mut session).await;
                }).await;
                let _ = ender.shutdown(Shutdown::Both);
                return Ok(());
            }
        }
    }
}

/// Finds a peer that vanished within some 12 minutes, as patient as TCP is with data on its way: an overlay may be away for
/// minutes without any harm.
fn keep_alive(stream: &TcpStream) -> nix::Result<()> {
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &120)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &60)?;
    setsockopt(stream, sockopt::TcpKeepCount, &10)
}

struct Connection {
    address: IpAddr,
    addresses: Addresses,
    place: Place,
    authenticated: Arc<AtomicBool>,
    revoked: watch::Receiver<bool>,
    channels: Channels,
    /// Ports listened on for the client (`-R`), by what it called them.
    listening: HashMap<(String, u32), Owned>,
    shared: Arc<Shared>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        let entries = std::mem::take(&mut *self.channels.lock());
        drop(entries);
    }
}

impl Connection {
    fn admit(&self) -> Result<Name, String> {
        let table = self.shared.owners.borrow();
        table
            .admit(self.address)
            .map(|member| member.name.clone())
            .map_err(|refusal| refusal.to_string())
    }

    /// Takes a session out of waiting; `None` if it runs already, or is a forward.
    fn take(&self, channel: ChannelId, session: &Session) -> Option<(Wires, Asked)> {
        let mut channels = self.channels.lock();
        let entry = channels.get_mut(&channel)?;
        if !matches!(entry.kind, Kind::Waiting(_)) {
            return None;
        }
        let (sender, orders) = mpsc::channel(16);
        let Kind::Waiting(waiting) = std::mem::replace(&mut entry.kind, Kind::Running(sender))
        else {
            return None;
        };
        let Waiting { output, asked } = waiting;
        let wires = Wires {
            input: entry.input.clone(),
            output: Arc::new(output),
            handle: session.handle(),
            orders,
            revoked: self.revoked.clone(),
            channels: self.channels.clone(),
        };
        Some((wires, asked))
    }

    fn start(
        &self,
        channel: ChannelId,
        program: Program,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        let Some((wires, asked)) = self.take(channel, session) else {
            return session.channel_failure(channel);
        };
        session.channel_success(channel)?;
        let shared = &self.shared;
        let started = command::start(
            &shared.account,
            &shared.session_environment,
            self.addresses,
            program,
            asked,
        );
        match started {
            Ok(started) => {
                tokio::spawn(session::run(started, wires));
            }
            Err(error) => {
                let shell = shared.account.shell.display();
                let text = format!("cannot start the login shell {shell}: {error}");
                tracing::warn!("{text}");
                let status = if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 };
                tokio::spawn(session::fail(text, status, wires));
            }
        }
        Ok(())
    }

    /// Changes what a session asks for before it starts.
    fn ask(
        &self,
        channel: ChannelId,
        session: &mut Session,
        change: impl FnOnce(&mut Asked) -> bool,
    ) -> Result<(), russh::Error> {
        let done = match self.channels.lock().get_mut(&channel).map(|entry| &mut entry.kind) {
            Some(Kind::Waiting(waiting)) => change(&mut waiting.asked),
            Some(Kind::Running(_) | Kind::Forward(_)) | None => false,
        };
        if done { session.channel_success(channel) } else { session.channel_failure(channel) }
    }

    /// Tells a running session something. One that takes no orders fast enough misses some.
    fn order(&self, channel: ChannelId, order: Order) {
        if let Some(Kind::Running(orders)) =
            self.channels.lock().get(&channel).map(|entry| &entry.kind)
        {
            let _ = orders.try_send(order);
        }
    }
}

fn window_size(columns: u32, rows: u32, pixels_across: u32, pixels_down: u32) -> WindowSize {
    let fit = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    WindowSize {
        columns: fit(columns),
        rows: fit(rows),
        pixels_across: fit(pixels_across),
        pixels_down: fit(pixels_down),
    }
}

impl Handler for Connection {
    type Error = russh::Error;

    async fn authentication_banner(&mut self) -> Result<Option<String>, Self::Error> {
        Ok(self.admit().err().map(|refusal| format!("clusternet: {refusal}\n")))
    }

    async fn auth_none(&mut self, user: &str) -> Result<Auth, Self::Error> {
        match self.admit() {
            Ok(node) => {
                tracing::info!(%node, address = %self.address, user, "may execute here");
                Ok(Auth::Accept)
            }
            Err(refusal) => {
                tracing::info!(address = %self.address, user, "{refusal}");
                Ok(Auth::Reject {
                    proceed_with_methods: Some(MethodSet::empty()),
                    partial_success: false,
                })
            }
        }
    }

    async fn auth_succeeded(&mut self, session: &mut Session) -> Result<(), Self::Error> {
        self.authenticated.store(true, Ordering::SeqCst);
        self.place.authenticated();
        // The rule may have changed a moment ago, when nobody watched this connection yet.
        match self.admit() {
            Ok(_) => Ok(()),
            Err(refusal) => {
                session.disconnect(Disconnect::ByApplication, &format!("clusternet: {refusal}"), "")
            }
        }
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        if self.channels.are_full() {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        }
        let id = channel.id();
        let (_, output) = channel.split();
        let waiting = Waiting { output, asked: Asked::default() };
        let entry = Entry { input: Input::default(), kind: Kind::Waiting(waiting) };
        self.channels.lock().insert(id, entry);
        reply.accept().await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _originator: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        if self.channels.are_full() {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        }
        let (_, output) = channel.split();
        let (input, Some(closed)) = self.channels.forward(output.id()) else { return Ok(()) };
        let (revoked, channels) = (self.revoked.clone(), self.channels.clone());
        let wires = forward::Wires { input, closed, revoked, channels };
        tokio::spawn(forward::connect(host.to_owned(), port, output, reply, wires));
        Ok(())
    }

    async fn channel_open_confirmation(
        &mut self,
        id: ChannelId,
        _max_packet_size: u32,
        _window_size: u32,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        // A connection to a port that we listen on for the client: its data may come before the task knows the channel.
        self.channels.forward(id);
        Ok(())
    }

    async fn channel_close(
        &mut self,
        channel: ChannelId,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        self.channels.remove(channel);
        Ok(())
    }

    async fn channel_eof(
        &mut self,
        channel: ChannelId,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        if let Some(entry) = self.channels.lock().get(&channel) {
            entry.input.end();
        }
        Ok(())
    }

    async fn data(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        let Some(input) = self.channels.lock().get(&channel).map(|entry| entry.input.clone())
        else {
            return Ok(());
        };
        if input.push(data).is_err() {
            tracing::warn!(address = %self.address, "sends beyond its ssh windows: cut off");
            return Err(russh::Error::Inconsistent);
        }
        if data.len() <= TRICKLE as usize {
            input.patience().await;
        }
        Ok(())
    }

    fn adjust_window(&mut self, _: ChannelId, _: u32) -> u32 {
        let congested = self.channels.lock().values().any(|entry| entry.input.is_congested());
        if congested { TRICKLE } else { WINDOW }
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        columns: u32,
        rows: u32,
        pixels_across: u32,
        pixels_down: u32,
        modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let terminal = Terminal {
            name: name.to_owned(),
            size: window_size(columns, rows, pixels_across, pixels_down),
            modes: modes.to_vec(),
        };
        self.ask(channel, session, |asked| {
            let fit = command::may_be_sent("TERM", name);
            if fit {
                asked.terminal = Some(terminal);
            }
            fit
        })
    }

    async fn env_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        value: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.ask(channel, session, |asked| {
            let fit = command::may_be_sent(name, value) && asked.environment.len() < MAX_VARIABLES;
            if fit {
                asked.environment.push((name.to_owned(), value.to_owned()));
            }
            fit
        })
    }

    async fn shell_request(
        &mut self,
        channel: ChannelId,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.start(channel, Program::Shell, session)
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        words: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        if !command::are_words(words) {
            return session.channel_failure(channel);
        }
        self.start(channel, Program::Words(words.to_vec()), session)
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        if name != "sftp" {
            return session.channel_failure(channel);
        }
        let Some((wires, _)) = self.take(channel, session) else {
            return session.channel_failure(channel);
        };
        session.channel_success(channel)?;
        tokio::spawn(sftp::run(self.shared.account.home.clone(), wires));
        Ok(())
    }

    async fn window_change_request(
        &mut self,
        channel: ChannelId,
        columns: u32,
        rows: u32,
        pixels_across: u32,
        pixels_down: u32,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.order(channel, Order::Resize(window_size(columns, rows, pixels_across, pixels_down)));
        session.channel_success(channel)
    }

    async fn signal(
        &mut self,
        channel: ChannelId,
        signal: Sig,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        match session::signal(&signal) {
            Some(signal) => {
                self.order(channel, Order::Signal(signal));
                session.channel_success(channel)
            }
            None => session.channel_failure(channel),
        }
    }

    async fn x11_request(
        &mut self,
        channel: ChannelId,
        _single: bool,
        _protocol: &str,
        _cookie: &str,
        _screen: u32,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_failure(channel)
    }

    async fn tcpip_forward(
        &mut self,
        address: &str,
        port: &mut u32,
        session: &mut Session,
    ) -> Result<bool, Self::Error> {
        if self.listening.len() >= MAX_LISTENING {
            return Ok(false);
        }
        let listening = forward::listen(address, *port).await;
        match listening {
            Ok(listeners) => {
                *port = u32::from(listeners.port);
                let name = (address.to_owned(), *port);
                let carry = forward::accept(
                    listeners,
                    name.clone(),
                    session.handle(),
                    self.channels.clone(),
                    self.revoked.clone(),
                );
                self.listening.insert(name, Owned(tokio::spawn(carry).abort_handle()));
                Ok(true)
            }
            Err(error) => {
                tracing::info!(address, port, "cannot listen for an ssh client: {error}");
                Ok(false)
            }
        }
    }

    async fn cancel_tcpip_forward(
        &mut self,
        address: &str,
        port: u32,
        _: &mut Session,
    ) -> Result<bool, Self::Error> {
        Ok(self.listening.remove(&(address.to_owned(), port)).is_some())
    }
}
