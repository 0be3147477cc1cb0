//! From what a client asked to a started child: environment, login shell, pipes or terminal.

use std::{
    ffi::{OsStr, OsString},
    io,
    net::SocketAddr,
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStringExt as _, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::Stdio,
};

use clusternet::sys;
pub(super) use clusternet::sys::session::WindowSize;
use nix::sys::termios::{self, SetArg};
use russh::Pty;
use tokio::{
    net::unix::pipe,
    process::{Child, ChildStderr, ChildStdin, ChildStdout},
};

use super::modes;

/// Whose sessions these are, as the user database says.
#[derive(Clone, Debug)]
pub struct Account {
    /// Login name.
    pub name: String,
    /// Home directory: where sessions start. Sessions start in `/` while it cannot be entered.
    pub home: PathBuf,
    /// Login shell: what runs the commands.
    pub shell: PathBuf,
}

/// Both ends of a connection, for `SSH_CONNECTION`.
#[derive(Clone, Copy)]
pub(super) struct Addresses {
    pub(super) peer: SocketAddr,
    pub(super) local: SocketAddr,
}

/// What a session runs.
#[derive(Debug)]
pub(super) enum Program {
    /// The login shell as such.
    Shell,
    /// These words, by the login shell's `-c`.
    Words(Vec<u8>),
}

/// The terminal that a session has asked for.
pub(super) struct Terminal {
    pub(super) name: String,
    pub(super) size: WindowSize,
    pub(super) modes: Vec<(Pty, u32)>,
}

/// What a session asked for before it was started.
#[derive(Default)]
pub(super) struct Asked {
    pub(super) environment: Vec<(String, String)>,
    pub(super) terminal: Option<Terminal>,
}

/// A started child, leader of its own session and process group.
pub(super) struct Started {
    pub(super) child: Child,
    pub(super) streams: Streams,
}

/// How to talk to a child.
pub(super) enum Streams {
    Pipes(ChildStdin, ChildStdout, ChildStderr),
    /// Our end of a terminal, to write, to read, to resize. Reading fails when no program has the other end open any more.
    Terminal(pipe::Sender, pipe::Receiver, OwnedFd),
}

/// Starts `program`.
pub(super) fn start(
    account: &Account,
    session_environment: &[(OsString, OsString)],
    addresses: Addresses,
    program: Program,
    asked: Asked,
) -> io::Result<Started> {
    let mut command = std::process::Command::new(&account.shell);
    let shell_name = account.shell.file_name().unwrap_or(account.shell.as_os_str());
    match program {
        Program::Shell => {
            // A login shell is told so by the dash.
            command.arg0([OsStr::new("-"), shell_name].join(OsStr::new("")));
        }
        Program::Words(words) => {
            command.arg0(shell_name).arg("-c").arg(OsString::from_vec(words));
        }
    }
    command.env_clear().envs(environment(account, addresses)).envs(asked.environment);
    command.envs(session_environment.iter().map(|(name, value)| (name, value)));
    command.current_dir(if can_enter(&account.home) { &account.home } else { Path::new("/") });

    let Some(asked) = asked.terminal else {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        sys::session::lead_session(&mut command, false);
        let mut child = tokio::process::Command::from(command).spawn()?;
        let streams = match (child.stdin.take(), child.stdout.take(), child.stderr.take()) {
            (Some(input), Some(output), Some(error)) => Streams::Pipes(input, output, error),
            _ => return Err(io::Error::other("the child has no pipes")),
        };
        return Ok(Started { child, streams });
    };

    let terminal = sys::session::open_terminal(asked.size)?;
    let mut modes = termios::tcgetattr(&terminal.slave)?;
    modes::apply(&mut modes, &asked.modes);
    termios::tcsetattr(&terminal.slave, SetArg::TCSANOW, &modes)?;
    command.env("TERM", asked.name).env("SSH_TTY", &terminal.path);
    command
        .stdin(terminal.slave.try_clone()?)
        .stdout(terminal.slave.try_clone()?)
        .stderr(terminal.slave);
    sys::session::lead_session(&mut command, true);
    // Our copies of the program's end go with the command: once the program has gone, reading ends.
    let child = tokio::process::Command::from(command).spawn()?;
    let ours = terminal.master;
    // Not pipes, but what reads and writes a descriptor that cannot block; `AsyncFd` asks for `unsafe` since tokio 1.54.
    let write = pipe::Sender::from_file_unchecked(ours.try_clone()?.into())?;
    let read = pipe::Receiver::from_file_unchecked(ours.try_clone()?.into())?;
    Ok(Started { child, streams: Streams::Terminal(write, read, ours) })
}

/// What a login would set. `SSH_CLIENT` also makes bash read `~/.bashrc` for a command, as users of ssh and rsh expect.
fn environment(account: &Account, addresses: Addresses) -> Vec<(&'static str, OsString)> {
    let Addresses { peer, local } = addresses;
    let (peer_ip, local_ip) = (peer.ip().to_canonical(), local.ip().to_canonical());
    vec![
        ("USER", account.name.clone().into()),
        ("LOGNAME", account.name.clone().into()),
        ("HOME", account.home.clone().into()),
        ("SHELL", account.shell.clone().into()),
        ("PATH", "/usr/local/bin:/usr/bin:/bin".into()),
        ("SSH_CLIENT", format!("{peer_ip} {} {}", peer.port(), local.port()).into()),
        ("SSH_CONNECTION", format!("{peer_ip} {} {local_ip} {}", peer.port(), local.port()).into()),
    ]
}

fn can_enter(directory: &Path) -> bool {
    nix::unistd::access(directory, nix::unistd::AccessFlags::X_OK).is_ok() && directory.is_dir()
}

/// Whether a client may set this variable: TERM, LANG and LC_*, of reasonable size.
pub(super) fn may_be_sent(name: &str, value: &str) -> bool {
    let locale = |name: &str| {
        name.strip_prefix("LC_").is_some_and(|rest| {
            !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')
        })
    };
    (name == "TERM" || name == "LANG" || (name.len() <= 64 && locale(name)))
        && value.len() <= 1024
        && !value.as_bytes().contains(&0)
}

/// Whether words can be handed to a shell at all.
pub(super) fn are_words(words: &[u8]) -> bool {
    !words.contains(&0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_harmless_variables_may_be_sent() {
        for name in ["TERM", "LANG", "LC_ALL", "LC_CTYPE"] {
            assert!(may_be_sent(name, "C.UTF-8"), "{name}");
        }
        for name in ["PATH", "LD_PRELOAD", "LC_", "LC_a=b", "LANGUAGE", "BASH_ENV", "LC_X Y"] {
            assert!(!may_be_sent(name, "x"), "{name}");
        }
        assert!(!may_be_sent("LANG", "a\0b"));
        assert!(!may_be_sent("LANG", &"x".repeat(2000)));
    }
}
