//! The `join` that started this keeper: what it wants, how it is told, and its end.

use std::{
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    time::Duration,
};

use anyhow::{Context, bail};
use clusternet::api::{DETACH, MAX_START, Progress, Start};
use zeroize::Zeroizing;

use crate::start;

/// `join` writes what it wants at once.
const START_LIMIT: Duration = Duration::from_secs(10);

/// What the caller did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// Nothing of importance.
    Nothing,
    /// It lets us go on alone.
    Detach,
    /// It has ended, or given up.
    Gone,
}

/// The caller's end of the socket that this process was started with as its standard input.
#[derive(Debug)]
pub(super) struct Caller {
    stream: Option<UnixStream>,
    heard: Vec<u8>,
}

impl Caller {
    /// Takes the socket; standard input is `/dev/null` from then on.
    pub(super) fn take() -> anyhow::Result<Self> {
        let stream = UnixStream::from(start::take_standard_input()?);
        if stream.local_addr().is_err() {
            bail!(
                "the keeper is started by `clusternet join`, with a socket as its standard input"
            );
        }
        Ok(Self { stream: Some(stream), heard: Vec::new() })
    }

    /// Waits for the line that says what is wanted.
    pub(super) fn read_start(&mut self) -> anyhow::Result<Start> {
        let stream = self.stream.as_mut().context("the caller has gone")?;
        stream.set_read_timeout(Some(START_LIMIT)).context("prepare standard input")?;
        // Sized at once: it holds secrets, and a vector that grows leaves copies behind.
        let mut line = Zeroizing::new(Vec::with_capacity(MAX_START));
        let mut piece = Zeroizing::new([0; 4096]);
        let end = loop {
            let length = stream.read(&mut piece[..]).context("read what is wanted")?;
            if length == 0 || line.len() + length > MAX_START {
                bail!("what is wanted did not come as one line of at most {MAX_START} bytes");
            }
            let before = line.len();
            line.extend_from_slice(&piece[..length]);
            if let Some(end) = piece[..length].iter().position(|byte| *byte == b'\n') {
                break before + end;
            }
        };
        stream.set_nonblocking(true).context("prepare standard input")?;
        self.heard = line[end + 1..].to_vec();
        serde_json::from_slice(&line[..end]).context("understand what is wanted")
    }

    /// Tells how it goes on; a caller that has gone or does not read misses it.
    pub(super) fn tell(&mut self, progress: &Progress) {
        let Some(stream) = &mut self.stream else { return };
        if let Ok(mut line) = serde_json::to_vec(progress) {
            line.push(b'\n');
            let _ = stream.write_all(&line);
        }
    }

    /// To be polled, while somebody is there.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.stream.as_ref().map(AsFd::as_fd)
    }

    /// Reads what it said; forgets it when it has gone or let us go.
    pub(super) fn hear(&mut self) -> Heard {
        let Some(stream) = &mut self.stream else { return Heard::Nothing };
        let mut piece = [0; 256];
        match stream.read(&mut piece) {
            Ok(0) => {
                self.stream = None;
                return Heard::Gone;
            }
            Ok(length) => self.heard.extend_from_slice(&piece[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Heard::Nothing,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Heard::Nothing,
            Err(_) => {
                self.stream = None;
                return Heard::Gone;
            }
        }
        let wanted = format!("{DETACH}\n");
        if self.heard.starts_with(wanted.as_bytes()) {
            self.stream = None;
            return Heard::Detach;
        }
        self.heard.truncate(wanted.len());
        Heard::Nothing
    }
}
