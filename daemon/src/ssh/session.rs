//! A session while it runs: child and channel joined, as OpenSSH's server does it.
//!
//! - Standard output and error stay apart (without a terminal). When both have ended the channel gets its end of file.
//! - The client's end of file closes the child's standard input.
//! - The exit status, or the signal, goes out as soon as the child has ended. The channel is closed when its output has ended too:
//!   a process in the background that still holds it keeps the session open.
//!   With a terminal it is closed when what the child has written is sent.
//! - When the client goes first, a terminal hangs up (SIGHUP from the kernel); a child on pipes just loses them. A child of a node
//!   that may no longer execute gets SIGHUP in either case, and SIGKILL after five seconds.

use std::{io, os::fd::OwnedFd, sync::Arc, time::Duration};

use clusternet::sys::session::set_window_size;

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use russh::{
    ChannelWriteHalf, Sig,
    server::{Handle, Msg},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    net::unix::pipe,
    process::Child,
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

use super::{
    channels::{Channels, Owned},
    command::{Started, Streams, WindowSize},
    input::Input,
};

/// Bytes read from a child at once: what fits one packet of the protocol.
const CHUNK: usize = 32768;
/// Extended data of type 1 is standard error (RFC 4254 §5.2).
const STDERR: u32 = 1;
/// From SIGHUP to SIGKILL for children of a node that may no longer execute.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the connection tells a running session.
pub(super) enum Order {
    Signal(Signal),
    Resize(WindowSize),
}

/// What joins a session to its connection.
pub(super) struct Wires {
    pub(super) input: Input,
    pub(super) output: Arc<ChannelWriteHalf<Msg>>,
    pub(super) handle: Handle,
    /// Ends when the channel or the connection has.
    pub(super) orders: mpsc::Receiver<Order>,
    /// The peer may no longer execute.
    pub(super) revoked: watch::Receiver<bool>,
    pub(super) channels: Channels,
}

/// Carries a started session to its end.
pub(super) async fn run(started: Started, mut wires: Wires) {
    let Started { mut child, streams } = started;
    let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
    let mut from = wires.input.clone();
    let to = Arc::clone(&wires.output);
    let (told_end, end) = oneshot::channel();
    let (terminal, feed, drain) = match streams {
        Streams::Pipes(mut input, output, error) => {
            let feed = tokio::spawn(async move {
                // An error means that the child takes no more.
                let _ = tokio::io::copy(&mut from, &mut input).await;
                from.close();
            });
            let drain = tokio::spawn(async move {
                tokio::join!(pump(output, &to, None), pump(error, &to, Some(STDERR)));
            });
            (None, feed, drain)
        }
        Streams::Terminal(mut input, output, terminal) => {
            let feed = tokio::spawn(async move {
                let _ = tokio::io::copy(&mut from, &mut input).await;
            });
            let terminal = Arc::new(terminal);
            let drain = tokio::spawn(pump_terminal(output, Arc::clone(&terminal), to, end));
            (Some(terminal), feed, drain)
        }
    };
    let drain_ender = Owned(drain.abort_handle());
    let feed_ender = feed.abort_handle();
    let closed = join(&mut child, group, terminal.as_deref(), told_end, drain, &mut wires).await;
    drop(drain_ender);
    let revoked = *wires.revoked.borrow();
    if terminal.is_some() || revoked {
        // The terminal hangs up when nothing of ours has it open. On pipes, what the client has sent is still for the child to read.
        feed_ender.abort();
    }
    drop(terminal);
    if closed == Closed::ByUs {
        let _ = wires.output.close().await;
    } else {
        tokio::spawn(async move {
            // Not waited for yet, so the number is still its group's, whoever of the group has ended.
            if revoked
                && child.id().is_some()
                && let Some(group) = group
            {
                let _ = killpg(group, Signal::SIGHUP);
                let _ = killpg(group, Signal::SIGCONT);
                tokio::time::sleep(PATIENCE).await;
                let _ = killpg(group, Signal::SIGKILL);
            }
            // However long it lives on, it does not stay a zombie.
            let _ = child.wait().await;
        });
    }
    wires.channels.remove(wires.output.id());
}

#[derive(PartialEq, Eq)]
enum Closed {
    ByUs,
    ByClient,
}

async fn join(
    child: &mut Child,
    group: Option<Pid>,
    terminal: Option<&OwnedFd>,
    told_end: oneshot::Sender<()>,
    mut drain: JoinHandle<()>,
    wires: &mut Wires,
) -> Closed {
    let mut told_end = Some(told_end);
    let mut drained = false;
    while told_end.is_some() || !drained {
        tokio::select! {
            order = wires.orders.recv() => match (order, group) {
                (None, _) => return Closed::ByClient,
                (Some(Order::Resize(size)), _) => {
                    if let Some(Err(error)) = terminal.map(|terminal| set_window_size(terminal, size)) {
                        tracing::debug!("resizing a terminal: {error}");
                    }
                }
                // A number is its process's own until it has been waited for.
                (Some(Order::Signal(signal)), Some(group)) if told_end.is_some() => {
                    let _ = killpg(group, signal);
                }
                (Some(Order::Signal(_)), _) => {}
            },
            status = child.wait(), if told_end.is_some() => {
                tell_end(status, wires).await;
                // Nobody is left to read what still comes.
                wires.input.close();
                told_end = None;
            }
            _ = &mut drain, if !drained => {
                drained = true;
                let _ = wires.output.eof().await;
            }
        }
    }
    Closed::ByUs
}

/// Tells the client how the child ended.
async fn tell_end(status: io::Result<std::process::ExitStatus>, wires: &Wires) {
    use std::os::unix::process::ExitStatusExt as _;
    let id = wires.output.id();
    let told = match status {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => wires.handle.exit_status_request(id, code.unsigned_abs()).await,
            (None, signal) => {
                let name = signal.and_then(|number| Signal::try_from(number).ok());
                let name = name.map_or("KILL", |signal| signal.as_str().trim_start_matches("SIG"));
                let dumped = status.core_dumped();
                let name = Sig::Custom(name.to_owned());
                wires
                    .handle
                    .exit_signal_request(id, name, dumped, String::new(), String::new())
                    .await
            }
        },
        Err(error) => {
            tracing::warn!("waiting for a session's child: {error}");
            wires.handle.exit_status_request(id, 255).await
        }
    };
    if told.is_err() {
        tracing::debug!("the connection ended before the child did");
    }
}

/// Copies a child's output to the channel, no faster than the client takes it.
async fn pump(mut from: impl AsyncRead + Unpin, to: &ChannelWriteHalf<Msg>, extended: Option<u32>) {
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        match from.read_buf(&mut chunk).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let sent = match extended {
            None => to.data_bytes(chunk).await,
            Some(kind) => to.extended_data_bytes(kind, chunk).await,
        };
        if sent.is_err() {
            return;
        }
    }
}

/// The same for a terminal. Its output ends when no program has it open, or with the child (`end`): then what has been written is
/// sent, and background processes keep nothing open, as with OpenSSH.
async fn pump_terminal(
    mut from: pipe::Receiver,
    terminal: Arc<OwnedFd>,
    to: Arc<ChannelWriteHalf<Msg>>,
    mut end: oneshot::Receiver<()>,
) {
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        tokio::select! {
            biased;
            read = from.read_buf(&mut chunk) => match read {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            },
            _ = &mut end => break,
        }
        if to.data_bytes(chunk).await.is_err() {
            return;
        }
    }
    loop {
        // Asks the system itself: the runtime may not have heard yet that there is something to read.
        let mut chunk = vec![0; CHUNK];
        match nix::unistd::read(&*terminal, &mut chunk) {
            Ok(0) | Err(_) => return,
            Ok(n) => chunk.truncate(n),
        }
        if to.data_bytes(chunk).await.is_err() {
            return;
        }
    }
}

/// Tells the client that nothing could be started, and why.
pub(super) async fn fail(text: String, status: u32, wires: Wires) {
    let text = format!("clusternet: {text}\n");
    let _ = wires.output.extended_data_bytes(STDERR, text.into_bytes()).await;
    let _ = wires.output.eof().await;
    let _ = wires.output.exit_status(status).await;
    let _ = wires.output.close().await;
    wires.channels.remove(wires.output.id());
}

/// The signals that a client may send (RFC 4254 §6.9, and what OpenSSH adds).
pub(super) fn signal(asked: &Sig) -> Option<Signal> {
    match asked {
        Sig::ABRT => Some(Signal::SIGABRT),
        Sig::ALRM => Some(Signal::SIGALRM),
        Sig::FPE => Some(Signal::SIGFPE),
        Sig::HUP => Some(Signal::SIGHUP),
        Sig::ILL => Some(Signal::SIGILL),
        Sig::INT => Some(Signal::SIGINT),
        Sig::KILL => Some(Signal::SIGKILL),
        Sig::PIPE => Some(Signal::SIGPIPE),
        Sig::QUIT => Some(Signal::SIGQUIT),
        Sig::SEGV => Some(Signal::SIGSEGV),
        Sig::TERM => Some(Signal::SIGTERM),
        Sig::USR1 => Some(Signal::SIGUSR1),
        Sig::Custom(name) => match name.as_str() {
            "USR2" => Some(Signal::SIGUSR2),
            "INFO@openssh.com" => None,
            _ => None,
        },
    }
}
