//! The control socket: takes requests from `clusternet`, answers those it can, and asks `serve` for the rest.
//!
//! Whoever may connect is let in by the kernel (0600 in a 0700 directory) and then checked again: own uid or root. A request is
//! one line, of bounded length, within a bounded time; the number of open connections is bounded. What cannot be understood is
//! answered with an error and the connection closed: nothing that arrives here disturbs anything else.

use std::{
    io,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::net::UnixListener as StdListener,
    },
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use clusternet::{
    api::{MAX_REQUEST, Progress, Reply, Request},
    sys::{fd, namespace::Namespaces},
    words::id::{Name, NetworkId},
};
use tokio::{
    io::{AsyncReadExt, Interest},
    net::{UnixListener, UnixStream},
    sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::timeout,
};
use zeroize::Zeroizing;

use crate::start::{self, FromServe, Link, ServeStart, ToServe};

/// People and scripts ask one thing at a time; whoever opens more than this at once waits in the listener's queue.
const MAX_CONNECTIONS: usize = 64;

/// A request is written in one go: whoever takes longer is not `clusternet`.
const READ_LIMIT: Duration = Duration::from_secs(5);

/// A reader that has stopped reading.
const WRITE_LIMIT: Duration = Duration::from_secs(5);

/// The longest an asker may have us wait, for a ping or for confirmations.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(120);

/// Programs get TERM, 5 s, KILL; then the keeper answers.
const LEAVE_LIMIT: Duration = Duration::from_secs(30);

/// How long open connections may go on when the keeper says stop.
const PARTING: Duration = Duration::from_millis(300);

/// After a failed accept (no descriptors left): long enough for some to be closed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What `serve` is asked to do.
#[derive(Debug)]
pub(crate) enum Question {
    /// To answer a status, ping or update request within [`LONGEST_WAIT`].
    Ask {
        /// What is asked.
        request: Request,
        /// Where the answer goes; closed when the asker has gone.
        answer: oneshot::Sender<Reply>,
    },
    /// To write the files in the runtime directory again: they had disappeared.
    Publish,
}

/// What the control socket needs to know to answer.
#[derive(Debug)]
pub(crate) struct Desk {
    /// What the keeper said.
    pub(crate) about: Arc<ServeStart>,
    /// The network's name.
    pub(crate) network: Name,
    /// The network's id.
    pub(crate) network_id: NetworkId,
    /// Handed out, never entered.
    pub(crate) namespaces: Namespaces,
    /// The line to the keeper.
    pub(crate) keeper: Keeper,
    /// Who answers what this module cannot.
    pub(crate) questions: mpsc::Sender<Question>,
}

/// The line to the keeper, for everything in `serve` that has something to tell it.
#[derive(Debug, Clone)]
pub(crate) struct Keeper(Arc<UnixStream>);

impl Keeper {
    /// Within a tokio runtime.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn new(link: Link) -> anyhow::Result<Self> {
        Ok(Self(Arc::new(link.into_tokio().context("watch the socket to the keeper")?)))
    }

    /// Tells `join`, if it still listens, how the start goes. [`Progress::Failed`] makes the keeper end everything.
    pub(crate) fn report(&self, progress: Progress) {
        self.tell(&FromServe::Progress(progress));
    }

    fn tell(&self, message: &FromServe) {
        // A keeper that does not read is about to die, which `receive` sees.
        let _ = start::send(&*self.0, message, &[]);
    }

    /// The keeper's next message; `None` when it has died.
    async fn receive(&self) -> Option<(ToServe, Vec<OwnedFd>)> {
        match self.0.async_io(Interest::READABLE, || start::receive(&*self.0)).await {
            Ok(message) => message,
            // A keeper that cannot be understood is as good as dead.
            Err(error) => {
                tracing::error!(%error, "the keeper cannot be understood");
                None
            }
        }
    }
}

/// Answers requests until the keeper says stop or has died; both mean that this process ends in good order.
///
/// # Errors
/// The listener cannot be watched.
pub(crate) async fn run(desk: Desk, listener: StdListener) -> anyhow::Result<()> {
    let mut listener = watch(listener)?;
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let leaving = Arc::new(Mutex::new(None::<oneshot::Sender<Reply>>));
    let desk = Arc::new(desk);
    loop {
        tokio::select! {
            message = desk.keeper.receive() => match message {
                None => return Ok(()),
                Some((ToServe::Stop, _)) => {
                    // Whoever asked for this still waits for the reply to be written.
                    let every = u32::try_from(MAX_CONNECTIONS).unwrap_or(u32::MAX);
                    let _ = timeout(PARTING, places.acquire_many(every)).await;
                    return Ok(());
                }
                Some((ToServe::Leave(reply), _)) => {
                    if let Some(asker) = leaving.lock().await.take() {
                        let _ = asker.send(reply);
                    }
                }
                Some((ToServe::Control, fds)) => {
                    if let Some(fd) = fds.into_iter().next() {
                        listener = watch(fd.into())?;
                    }
                    let _ = desk.questions.send(Question::Publish).await;
                }
            },
            (stream, place) = accept(&listener, &places) => {
                let visit = Visit { desk: desk.clone(), leaving: leaving.clone() };
                tokio::spawn(async move {
                    if let Err(error) = visit.answer(stream).await {
                        tracing::debug!(error = format!("{error:#}"), "a control connection ended early");
                    }
                    drop(place);
                });
            }
        }
    }
}

fn watch(listener: StdListener) -> anyhow::Result<UnixListener> {
    listener.set_nonblocking(true).context("prepare the control socket")?;
    UnixListener::from_std(listener).context("watch the control socket")
}

async fn accept(
    listener: &UnixListener,
    places: &Arc<Semaphore>,
) -> (UnixStream, OwnedSemaphorePermit) {
    loop {
        let place = places.clone().acquire_owned().await.expect("it is never closed");
        match listener.accept().await {
            Ok((stream, _)) => return (stream, place),
            Err(error) => {
                tracing::debug!(%error, "accept on the control socket");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One connection.
struct Visit {
    desk: Arc<Desk>,
    leaving: Arc<Mutex<Option<oneshot::Sender<Reply>>>>,
}

impl Visit {
    async fn answer(self, mut stream: UnixStream) -> anyhow::Result<()> {
        let peer = fd::peer_credentials(&stream).context("ask who is calling")?;
        let own = nix::unistd::geteuid().as_raw();
        if peer.uid != own && peer.uid != 0 {
            tracing::warn!(uid = peer.uid, "another user tried the control socket");
            let message =
                format!("this daemon belongs to user {own}: user {} may not ask it", peer.uid);
            return say(&stream, &Reply::Error { message }, &[]).await;
        }
        let line =
            timeout(READ_LIMIT, read_line(&mut stream)).await.context("no request came")??;
        let request = match serde_json::from_slice(&line) {
            Ok(request) => request,
            Err(error) => {
                let message = format!("the request cannot be understood: {error}");
                return say(&stream, &Reply::Error { message }, &[]).await;
            }
        };
        drop(line);
        let reply = tokio::select! {
            reply = self.reply(request) => reply,
            () = gone(&stream) => return Ok(()),
        };
        let fds: Vec<BorrowedFd<'_>> = match &reply {
            Reply::Enter(_) => self.desk.namespaces.as_fds().to_vec(),
            Reply::Hello { .. }
            | Reply::Status(_)
            | Reply::Ping(_)
            | Reply::Update { .. }
            | Reply::Leaving
            | Reply::Busy { .. }
            | Reply::Error { .. } => Vec::new(),
        };
        say(&stream, &reply, &fds).await
    }

    async fn reply(&self, request: Request) -> Reply {
        let about = &self.desk.about;
        match request {
            Request::Hello => Reply::Hello {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                keeper: about.keeper,
                network: self.desk.network.clone(),
                network_id: self.desk.network_id.0.iter().map(|b| format!("{b:02x}")).collect(),
                instance: about.start.instance.to_string(),
            },
            Request::Enter => Reply::Enter(Box::new(about.view.clone())),
            Request::Leave { kill } => self.leave(kill).await,
            Request::Status | Request::Ping { .. } | Request::Update { .. } => {
                let (answer, answered) = oneshot::channel();
                let asked = self.desk.questions.send(Question::Ask { request, answer }).await;
                match (asked, timeout(LONGEST_WAIT, answered).await) {
                    (Ok(()), Ok(Ok(reply))) => reply,
                    (Ok(()), Err(_)) => error("the daemon did not answer in time"),
                    (Err(_), _) | (_, Ok(Err(_))) => error("the daemon is ending"),
                }
            }
        }
    }

    async fn leave(&self, kill: bool) -> Reply {
        let (answer, answered) = oneshot::channel();
        {
            let mut leaving = self.leaving.lock().await;
            if leaving.as_ref().is_some_and(|asker| !asker.is_closed()) {
                return error("somebody else is stopping this instance");
            }
            *leaving = Some(answer);
        }
        self.desk.keeper.tell(&FromServe::Leave { kill });
        match timeout(LEAVE_LIMIT, answered).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(_)) | Err(_) => error("the keeper did not answer in time"),
        }
    }
}

fn error(message: &str) -> Reply {
    Reply::Error { message: message.to_owned() }
}

/// One line, without its end. Never longer than [`MAX_REQUEST`].
async fn read_line(stream: &mut UnixStream) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let mut line = Zeroizing::new(Vec::new());
    let mut piece = Zeroizing::new([0; 4096]);
    loop {
        let length = stream.read(&mut piece[..]).await.context("read the request")?;
        anyhow::ensure!(length > 0, "the request has no end");
        match piece[..length].iter().position(|byte| *byte == b'\n') {
            Some(end) => {
                line.extend_from_slice(&piece[..end]);
                return Ok(line);
            }
            None => line.extend_from_slice(&piece[..length]),
        }
        anyhow::ensure!(
            line.len() <= MAX_REQUEST,
            "the request is longer than {MAX_REQUEST} bytes"
        );
    }
}

/// Comes back when the asker has closed the connection.
async fn gone(stream: &UnixStream) {
    loop {
        if stream.ready(Interest::READABLE | Interest::ERROR).await.is_err() {
            return;
        }
        match stream.try_read(&mut [0; 64]) {
            // More than one request is not answered; reading it away keeps this from spinning.
            Ok(length) if length > 0 => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(_) | Err(_) => return,
        }
    }
}

/// Writes one reply; descriptors ride with its first byte.
async fn say(stream: &UnixStream, reply: &Reply, fds: &[BorrowedFd<'_>]) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    let write = async {
        // The first byte takes the descriptors along: a whole line might not fit at once.
        let (first, mut rest) = line.split_at(1);
        stream.async_io(Interest::WRITABLE, || fd::send_with_fds(stream, first, fds)).await?;
        while !rest.is_empty() {
            stream.writable().await?;
            match stream.try_write(rest) {
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    };
    timeout(WRITE_LIMIT, write).await.context("the asker does not read")?.context("write the reply")
}
