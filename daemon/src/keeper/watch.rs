//! The keeper at work: starts `inside` and `serve`, starts them again when they die, passes on how the start goes, ends all.
//!
//! One loop waits for four things (signals, the caller, `serve`'s and `inside`'s sockets) and for the next moment at which
//! something is due: a restart, a look at the control socket, the next step of leaving.

use std::{
    fs::DirBuilder,
    os::{
        fd::AsFd,
        unix::{
            fs::DirBuilderExt,
            net::{UnixListener, UnixStream},
        },
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use clusternet::{
    api::{Progress, Reply, SecretText, Start, View},
    sys::{
        clock,
        fd::FileId,
        namespace::Built,
        poll,
        process::{self, Found},
    },
};
use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};

use super::{
    caller::{Caller, Heard},
    child::{Backoff, Running},
};
use crate::{
    runtime::{self, Runtime},
    start::{Files, FromServe, InsideStart, ServeStart, ToServe},
};

/// How often the control socket is looked at: cleaners of /tmp and the end of a login session remove it.
const LOOK: Duration = Duration::from_secs(2);

/// Programs that got TERM have this long.
const MERCY: Duration = Duration::from_secs(5);

/// After KILL: whatever is still there hangs in the kernel and will end when that lets it.
const DEATH: Duration = Duration::from_secs(5);

/// How often the programs that are being ended are counted.
const COUNT: Duration = Duration::from_millis(50);

/// `serve` tells the peers, `inside` closes its sessions: both are quick.
const PARTING: Duration = Duration::from_secs(3);

/// `leave` lists no more programs than a screen holds.
const MAX_LISTED: usize = 100;

/// One of the two children.
#[derive(Debug)]
struct Role {
    name: &'static str,
    running: Option<Running>,
    backoff: Backoff,
}

impl Role {
    fn new(name: &'static str, now: Instant) -> Self {
        Self { name, running: None, backoff: Backoff::new(now) }
    }
}

/// The programs inside are being ended.
#[derive(Debug, Clone, Copy)]
struct Leaving {
    /// When KILL follows TERM.
    kill_at: Instant,
    /// When nobody is waited for any more.
    give_up_at: Instant,
    killed: bool,
    next: Instant,
}

/// The keeper with all it holds.
#[derive(Debug)]
pub(super) struct Keeper<'a> {
    start: &'a Start,
    host: SecretText,
    view: View,
    built: Built,
    runtime: &'a mut Runtime,
    caller: &'a mut Caller,
    detached: bool,
    control: UnixListener,
    /// The socket's file as we made it.
    control_file: Option<FileId>,
    /// From `serve` to `inside`: both ends stay here, so that either can die and come back.
    owners: (UnixStream, UnixStream),
    signals: SignalFd,
    serve: Role,
    inside: Role,
    served_before: bool,
    leaving: Option<Leaving>,
    look_at: Instant,
}

impl<'a> Keeper<'a> {
    /// Binds the control socket and takes over.
    pub(super) fn new(
        start: &'a Start,
        files: &Files,
        view: View,
        built: Built,
        runtime: &'a mut Runtime,
        caller: &'a mut Caller,
    ) -> anyhow::Result<Self> {
        let mut wanted = SigSet::empty();
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            wanted.add(signal);
        }
        wanted.thread_block().context("block signals")?;
        let signals = SignalFd::with_flags(&wanted, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .context("receive signals")?;
        let control = runtime.bind_control()?;
        let now = clock::now().instant;
        Ok(Self {
            start,
            host: SecretText(files.identity.secrets.host.to_text()),
            view,
            built,
            control_file: FileId::of_path(&runtime.path().join(runtime::CONTROL)).ok(),
            runtime,
            caller,
            detached: false,
            control,
            owners: UnixStream::pair().context("make a socket pair")?,
            signals,
            serve: Role::new("serve", now),
            inside: Role::new("inside", now),
            served_before: false,
            leaving: None,
            look_at: now + LOOK,
        })
    }

    /// Looks after everything until it is time to end, and ends it.
    ///
    /// # Errors
    /// Why it had to end: `serve` said so.
    pub(super) fn run(mut self) -> anyhow::Result<()> {
        let why = self.watch();
        self.end();
        why
    }

    fn watch(&mut self) -> anyhow::Result<()> {
        loop {
            let now = clock::now().instant;
            self.start_due(now);
            if now >= self.look_at {
                self.look_at = now + LOOK;
                self.look_after_socket();
            }
            if self.leave_step(now)? {
                return Ok(());
            }
            let [signals, caller, serve, inside] = self.wait(now)?;
            if signals && self.hear_signals() {
                return Ok(());
            }
            if caller && self.hear_caller() {
                return Ok(());
            }
            if serve && self.hear_serve()? {
                return Ok(());
            }
            if inside {
                self.hear_inside();
            }
        }
    }

    fn wait(&self, now: Instant) -> anyhow::Result<[bool; 4]> {
        let due = [
            Some(self.look_at),
            self.serve.backoff.due(),
            self.inside.backoff.due(),
            self.leaving.map(|leaving| leaving.next),
        ];
        let next = due.into_iter().flatten().min().unwrap_or(self.look_at);
        // In the place of one who is not there stand the signals: hearing nobody does nothing.
        let signals = self.signals.as_fd();
        let fds = [
            signals,
            self.caller.fd().unwrap_or(signals),
            self.serve.running.as_ref().map_or(signals, AsFd::as_fd),
            self.inside.running.as_ref().map_or(signals, AsFd::as_fd),
        ];
        poll::readable(fds, Some(next.saturating_duration_since(now)))
            .context("wait for the next thing")
    }

    /// Starts what is due. `inside` first: a command that comes in at once finds its ssh server.
    fn start_due(&mut self, now: Instant) {
        if self.inside.backoff.due().is_some_and(|due| due <= now) {
            let started = self.start_inside();
            settle(&mut self.inside, started, now);
        }
        if self.serve.backoff.due().is_some_and(|due| due <= now) {
            let started = self.start_serve();
            settle(&mut self.serve, started, now);
            self.served_before = true;
        }
    }

    fn start_serve(&self) -> anyhow::Result<Running> {
        let about = ServeStart {
            start: self.start.clone(),
            keeper: std::process::id().cast_signed(),
            device: self.built.device.kind,
            view: self.view.clone(),
            restarted: self.served_before,
        };
        let mut fds = vec![self.control.as_fd(), self.owners.0.as_fd(), self.runtime.lock()];
        fds.extend(self.built.namespaces.as_fds());
        fds.extend(self.built.device.fds.iter().map(AsFd::as_fd));
        Running::start(self.serve.name, self.start.instance.as_str(), &about, &fds)
    }

    fn start_inside(&self) -> anyhow::Result<Running> {
        let about = InsideStart {
            instance: self.start.instance.clone(),
            runtime: self.runtime.path().to_owned(),
            host: self.host.clone(),
            view: self.view.clone(),
        };
        let mut fds = vec![self.owners.1.as_fd(), self.runtime.lock()];
        fds.extend(self.built.namespaces.as_fds());
        fds.extend(self.built.ssh_listeners.iter().map(AsFd::as_fd));
        Running::start(self.inside.name, self.start.instance.as_str(), &about, &fds)
    }

    /// Makes the control socket again when its file has gone or is another one, as far as that can be done.
    fn look_after_socket(&mut self) {
        let path = self.runtime.path().join(runtime::CONTROL);
        let there = FileId::of_path(&path).ok();
        if there.is_some() && there == self.control_file {
            return;
        }
        let made = self
            .runtime
            .lock_again(&self.start.instance)
            .and_then(|()| self.runtime.bind_control());
        match made {
            Ok(control) => {
                tracing::warn!("the control socket had disappeared and was made again");
                self.control = control;
                self.control_file = FileId::of_path(&path).ok();
                for name in [runtime::SSH, runtime::PVM] {
                    // Where it is still there, nothing is to be done.
                    let path = self.runtime.path().join(name);
                    let _ = DirBuilder::new().mode(0o700).create(path);
                }
                let hosts = self.view.hosts.clone();
                if !hosts.exists() {
                    // `serve` fills it; until then a command finds at least something to bind.
                    let _ = runtime::write_hosts(&hosts, "127.0.0.1 localhost\n::1 localhost\n");
                }
                if let Some(serve) = &self.serve.running {
                    let _ = serve.link().send(&ToServe::Control, &[self.control.as_fd()]);
                }
            }
            Err(error) => {
                tracing::debug!(
                    error = format!("{error:#}"),
                    "the control socket is not made again yet"
                );
            }
        }
    }

    /// Whether it is time to end.
    fn hear_signals(&mut self) -> bool {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            match Signal::try_from(signal.ssi_signo.cast_signed()) {
                Ok(Signal::SIGCHLD) => self.bury(),
                // A terminal that goes away ends what it holds in the foreground, nothing else.
                Ok(Signal::SIGHUP) if !self.start.foreground => {}
                Ok(signal) => {
                    tracing::info!(signal = signal.as_str(), "ending");
                    return true;
                }
                Err(_) => {}
            }
        }
        false
    }

    fn bury(&mut self) {
        let now = clock::now().instant;
        for role in [&mut self.serve, &mut self.inside] {
            let Some(status) = role.running.as_mut().and_then(Running::ended) else { continue };
            role.running = None;
            let wait = role.backoff.ended(now);
            tracing::warn!(
                role = role.name,
                %status,
                milliseconds = u64::try_from(wait.as_millis()).unwrap_or(0),
                "a process has died and is started again"
            );
        }
    }

    /// Whether it is time to end.
    fn hear_caller(&mut self) -> bool {
        match self.caller.hear() {
            Heard::Nothing => false,
            Heard::Detach => {
                self.detached = true;
                false
            }
            Heard::Gone => {
                if !self.detached {
                    tracing::info!("join has gone: ending");
                }
                !self.detached
            }
        }
    }

    /// Whether it is time to end.
    fn hear_serve(&mut self) -> anyhow::Result<bool> {
        let Some(serve) = &self.serve.running else { return Ok(false) };
        match serve.link().receive() {
            Ok(Some((FromServe::Progress(Progress::Failed { message }), _))) => {
                // For whoever asks later why the instance is not there.
                let _ = std::fs::write(self.start.state.join(super::ENDED), &message);
                bail!(message)
            }
            Ok(Some((FromServe::Progress(progress), _))) => {
                self.caller.tell(&progress);
                Ok(false)
            }
            Ok(Some((FromServe::Leave { kill }, _))) => self.hear_leave(kill),
            Ok(None) | Err(_) => {
                self.drop_silent(false);
                Ok(false)
            }
        }
    }

    fn hear_inside(&mut self) {
        // It says nothing: this is its end, or nonsense.
        self.drop_silent(true);
    }

    /// A child whose socket has ended is dying, or worse: it is ended, and started again later.
    fn drop_silent(&mut self, inside: bool) {
        let role = if inside { &mut self.inside } else { &mut self.serve };
        if let Some(running) = role.running.take() {
            let status = running.kill();
            let wait = role.backoff.ended(clock::now().instant);
            tracing::warn!(
                role = role.name,
                status = status.map(tracing::field::display),
                milliseconds = u64::try_from(wait.as_millis()).unwrap_or(0),
                "a process has died and is started again"
            );
        }
    }

    /// Somebody wants to leave; whether it is time to end.
    fn hear_leave(&mut self, kill: bool) -> anyhow::Result<bool> {
        let programs = self.programs()?;
        if programs.is_empty() {
            self.answer(Reply::Leaving);
            return Ok(true);
        }
        if !kill {
            let programs = programs.into_iter().take(MAX_LISTED).map(|p| (p.pid, p.command));
            self.answer(Reply::Busy { programs: programs.collect() });
            return Ok(false);
        }
        if self.leaving.is_none() {
            self.signal(Signal::SIGTERM);
            let now = clock::now().instant;
            self.leaving = Some(Leaving {
                kill_at: now + MERCY,
                give_up_at: now + MERCY + DEATH,
                killed: false,
                next: now,
            });
        }
        Ok(false)
    }

    /// Goes on with ending the programs inside; whether all is done.
    fn leave_step(&mut self, now: Instant) -> anyhow::Result<bool> {
        let Some(mut leaving) = self.leaving.filter(|leaving| leaving.next <= now) else {
            return Ok(false);
        };
        if self.programs()?.is_empty() || now >= leaving.give_up_at {
            self.answer(Reply::Leaving);
            return Ok(true);
        }
        if now >= leaving.kill_at {
            if !leaving.killed {
                tracing::info!("programs inside did not end at TERM: killing them");
                leaving.killed = true;
            }
            // Again and again: some may have been started meanwhile.
            self.signal(Signal::SIGKILL);
        }
        leaving.next = now + COUNT;
        self.leaving = Some(leaving);
        Ok(false)
    }

    /// What runs inside, our own process there aside.
    fn programs(&self) -> anyhow::Result<Vec<Found>> {
        let own = self.inside.running.as_ref().map_or(0, Running::pid);
        let mut found =
            process::inside(&self.built.namespaces.net).context("look for programs inside")?;
        found.retain(|process| process.pid != own);
        Ok(found)
    }

    fn signal(&self, signal: Signal) {
        let own = self.inside.running.as_ref().map_or(0, Running::pid);
        let net = &self.built.namespaces.net;
        if let Err(error) = process::end_inside(net, signal, &[own], Duration::ZERO) {
            tracing::warn!(%error, "end the programs inside");
        }
    }

    fn answer(&self, reply: Reply) {
        if let Some(serve) = &self.serve.running {
            let _ = serve.link().send(&ToServe::Leave(reply), &[]);
        }
    }

    /// Ends both children in good order, then the hard way.
    fn end(&mut self) {
        if let Some(serve) = &self.serve.running {
            let _ = serve.link().send(&ToServe::Stop, &[]);
        }
        let deadline = clock::now().instant + PARTING;
        if let Some(serve) = self.serve.running.take() {
            wait_for_end(serve, deadline);
        }
        if let Some(inside) = self.inside.running.take() {
            inside.hang_up();
            wait_for_end(inside, deadline);
        }
    }
}

fn settle(role: &mut Role, started: anyhow::Result<Running>, now: Instant) {
    match started {
        Ok(running) => {
            tracing::info!(role = role.name, pid = running.pid(), "started");
            role.running = Some(running);
            role.backoff.started(now);
        }
        Err(error) => {
            role.backoff.ended(now);
            tracing::error!(role = role.name, error = format!("{error:#}"), "cannot be started");
        }
    }
}

fn wait_for_end(mut running: Running, deadline: Instant) {
    while running.ended().is_none() {
        let now = clock::now().instant;
        if now >= deadline {
            running.kill();
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
