//! Sessions and terminals for commands that others ask us to run.

use std::{
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::PathBuf,
    process::Command,
};

use nix::{
    fcntl::{OFlag, open},
    pty::{Winsize, grantpt, posix_openpt, ptsname_r, unlockpt},
    sys::stat::Mode,
    unistd::setsid,
};

/// A terminal's size in characters and in pixels (0: unknown).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WindowSize {
    /// Characters in a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
    /// Pixels across.
    pub pixels_across: u16,
    /// Pixels down.
    pub pixels_down: u16,
}

/// A new pseudo-terminal. Both ends are closed on exec.
pub struct Terminal {
    /// Our end, non-blocking.
    pub master: OwnedFd,
    /// The program's end.
    pub slave: OwnedFd,
    /// What `ttyname` says of the program's end.
    pub path: PathBuf,
}

/// Opens a pseudo-terminal of this size.
///
/// # Errors
/// The system's: no `/dev/ptmx`, or no more terminals.
pub fn open_terminal(size: WindowSize) -> io::Result<Terminal> {
    let master =
        posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let path = PathBuf::from(ptsname_r(&master)?);
    let slave = open(&path, OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC, Mode::empty())?;
    set_window_size(&slave, size)?;
    Ok(Terminal { master: master.as_fd().try_clone_to_owned()?, slave, path })
}

/// Sets a terminal's size; its foreground programs get SIGWINCH if that changes it.
///
/// # Errors
/// The system's: `ENOTTY` for what is no terminal.
pub fn set_window_size(terminal: impl AsFd, size: WindowSize) -> io::Result<()> {
    let size = Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: size.pixels_across,
        ws_ypixel: size.pixels_down,
    };
    // SAFETY: TIOCSWINSZ reads one `winsize` through the pointer, which outlives the call.
    let result =
        unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes `command` start as leader of a session of its own; with `controlling_terminal`, its standard input, a terminal, becomes
/// that of the session. It inherits nothing but its standard streams, whatever this process was started with: a pipe of whoever
/// started the daemon would never end.
pub fn lead_session(command: &mut Command, controlling_terminal: bool) {
    let enter = move || {
        setsid()?;
        if controlling_terminal {
            // SAFETY: TIOCSCTTY takes a number and touches no memory of ours.
            if unsafe { libc::ioctl(libc::STDIN_FILENO, libc::TIOCSCTTY, 0) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // SAFETY: the call changes flags of descriptors, which no code between here and exec uses. On kernels before 5.11 it
        // fails and what was inherited stays open, as it always did.
        unsafe {
            libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
        };
        Ok(())
    };
    // SAFETY: between fork and exec only setsid, ioctl and close_range are called: async-signal-safe, no allocation, no locks.
    unsafe { command.pre_exec(enter) };
}
