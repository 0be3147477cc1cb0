//! The ssh server inside the LAN, and the client's configuration that goes with it.
//!
//! Runs in the process `inside`, which has entered the namespace: whatever it starts or connects to is inside too. The way of a
//! connection:
//!
//! 1. [`serve`] accepts it, bounded in number, and starts a [`connection`] with 30 seconds to show who it is.
//! 2. Method `none` is accepted if the peer's overlay address may execute here ([`owners`]); else a banner says why not.
//!    The user name is not looked at: accounts of one person may be called differently on each machine, a session always runs as
//!    the user who joined, and `ssh NODE` sends the caller's local name unasked.
//! 3. A session channel becomes a child of ours through the user's login shell ([`command`], [`session`]), or an sftp server
//!    ([`sftp`]); forwards connect and listen inside ([`forward`]). Agent, X11 and path sockets are refused.
//! 4. When the owner table changes so that the peer may no longer execute, its connections end at once, children included.
//!
//! Children outlive their connection where OpenSSH lets them: a terminal hangs up, a command without one just loses its pipes.

use std::{
    collections::HashMap,
    ffi::OsString,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use clusternet::words::key::SigningSecret;
use russh::{
    MethodKind, MethodSet, Preferred,
    keys::{
        Algorithm, PrivateKey,
        ssh_key::private::{Ed25519Keypair, KeypairData},
    },
};
use tokio::{net::TcpListener, sync::watch};

mod channels;
pub mod client;
mod command;
mod connection;
mod forward;
mod input;
mod modes;
pub mod owners;
mod session;
mod sftp;

pub use command::Account;
pub use owners::{Execute, Member, OwnerTable, Refusal};

/// Connections that have not shown who they are: in all, and from one address.
const MAX_WAITING: usize = 256;
const MAX_WAITING_PER_ADDRESS: usize = 64;
/// Connections of one node. An MPI job that starts flat has one per rank's host, and this node is only one of them.
const MAX_PER_ADDRESS: usize = 512;

/// What the server is told once.
pub struct SshSettings {
    /// The Ed25519 secret of this node's certificate: the host key.
    pub host_secret: SigningSecret,
    /// Set for every session, after the login-like variables: `PATH`, `PVM_TMP`, what the launchers read.
    pub session_environment: Vec<(OsString, OsString)>,
    /// Whose sessions these are.
    pub account: Account,
}

/// What all connections share.
struct Shared {
    session_environment: Vec<(OsString, OsString)>,
    account: Account,
    owners: watch::Receiver<OwnerTable>,
    places: Places,
}

/// Answers ssh on `listeners` until one of them fails for good. Sessions end with the future's runtime.
///
/// # Errors
/// When a listener cannot be used.
pub async fn serve(
    listeners: Vec<std::net::TcpListener>,
    settings: SshSettings,
    owners: watch::Receiver<OwnerTable>,
) -> anyhow::Result<()> {
    let config = Arc::new(configuration(&settings.host_secret));
    let shared = Arc::new(Shared {
        session_environment: settings.session_environment,
        account: settings.account,
        owners,
        places: Places::default(),
    });
    let mut accepting = tokio::task::JoinSet::new();
    for listener in listeners {
        listener.set_nonblocking(true).context("making an ssh listener non-blocking")?;
        let listener = TcpListener::from_std(listener).context("taking over an ssh listener")?;
        accepting.spawn(accept(listener, Arc::clone(&config), Arc::clone(&shared)));
    }
    while let Some(ended) = accepting.join_next().await {
        ended.context("accepting ssh connections")?;
    }
    Ok(())
}

async fn accept(listener: TcpListener, config: Arc<russh::server::Config>, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                let Some(place) = shared.places.take(from.ip().to_canonical()) else {
                    tracing::warn!(%from, "too many ssh connections: refused");
                    continue;
                };
                let (config, shared) = (Arc::clone(&config), Arc::clone(&shared));
                tokio::spawn(async move {
                    if let Err(error) = connection::run(config, shared, stream, from, place).await {
                        tracing::debug!(%from, "ssh connection ended: {error:#}");
                    }
                });
            }
            // The one that hurts is EMFILE, and it passes when others close.
            Err(error) => {
                tracing::warn!("accepting an ssh connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

fn configuration(host_secret: &SigningSecret) -> russh::server::Config {
    let key = PrivateKey::from(Ed25519Keypair::from_seed(host_secret.expose()));
    debug_assert!(matches!(key.key_data(), KeypairData::Ed25519(_)));
    russh::server::Config {
        server_id: russh::SshId::Standard(
            concat!("SSH-2.0-clusternet_", env!("CARGO_PKG_VERSION")).into(),
        ),
        methods: MethodSet::from(&[MethodKind::None][..]),
        // Nothing is guessed here: a refusal has nothing to hide.
        auth_rejection_time: Duration::ZERO,
        auth_rejection_time_initial: Some(Duration::ZERO),
        max_auth_attempts: 3,
        keys: vec![key],
        preferred: Preferred { key: vec![Algorithm::Ed25519].into(), ..Preferred::DEFAULT },
        window_size: input::WINDOW,
        maximum_packet_size: 32768,
        // We read through the handler's callbacks, not through the library's queues: see `input`.
        channel_buffer_size: 4,
        // Chunks of at most 32 KiB on their way out.
        event_buffer_size: 16,
        // mpirun's sessions are silent for hours. A peer that has gone is found by TCP's own probes: see `connection`.
        inactivity_timeout: None,
        keepalive_interval: None,
        nodelay: true,
        ..russh::server::Config::default()
    }
}

/// How many connections there are, from where.
#[derive(Default)]
struct Places(Arc<Mutex<HashMap<IpAddr, Count>>>);

#[derive(Default, Clone, Copy)]
struct Count {
    open: usize,
    waiting: usize,
}

/// A connection's place, given back when dropped.
struct Place {
    counts: Arc<Mutex<HashMap<IpAddr, Count>>>,
    address: IpAddr,
    waiting: bool,
}

impl Places {
    fn take(&self, address: IpAddr) -> Option<Place> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting: usize = counts.values().map(|count| count.waiting).sum();
        let count = counts.get(&address).copied().unwrap_or_default();
        if waiting >= MAX_WAITING
            || count.waiting >= MAX_WAITING_PER_ADDRESS
            || count.open >= MAX_PER_ADDRESS
        {
            return None;
        }
        counts.insert(address, Count { open: count.open + 1, waiting: count.waiting + 1 });
        Some(Place { counts: Arc::clone(&self.0), address, waiting: true })
    }
}

impl Place {
    /// The connection has shown who it is.
    fn authenticated(&mut self) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut self.waiting)
            && let Some(count) = counts.get_mut(&self.address)
        {
            count.waiting -= 1;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.authenticated();
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            count.open -= 1;
            if count.open == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unproven_connections_are_bounded_per_address_and_proven_ones_make_room() {
        let places = Places::default();
        let address = IpAddr::from([10, 99, 0, 1]);
        let mut taken: Vec<_> = (0..).map_while(|_| places.take(address)).collect();
        assert_eq!(taken.len(), MAX_WAITING_PER_ADDRESS);
        assert!(places.take(IpAddr::from([10, 99, 0, 2])).is_some());
        taken[0].authenticated();
        taken.push(places.take(address).unwrap());
        drop(taken);
        assert!(places.0.lock().unwrap().is_empty());
    }
}
