//! Every system call and every `unsafe` of the project, behind small safe functions. Of ours it uses only the words.
//!
//! [`namespace`] makes what a node is on this machine: a network namespace with one device, and its names. [`enter`] takes a
//! process into it. [`tun`], [`udp`] and [`poll`] are what a data-plane worker reads and writes; [`fd`] and [`process`] are what
//! the processes of the daemon hand each other and ask of the machine; [`probe`] tries everything and says what is missing.

use std::{fmt, io};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

pub mod account;
pub mod clock;
mod datagram;
pub mod enter;
pub mod fd;
pub mod file;
pub mod interfaces;
pub mod namespace;
pub mod netlink;
mod packet;
pub mod poll;
pub mod probe;
pub mod process;
pub mod session;
mod source;
pub mod tun;
pub mod udp;
mod view;

/// An error number of the operating system; travels between processes, prints as `errno(3)` describes it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OsError(pub i32);

impl OsError {
    /// The number in `error`; one without a number counts as an input/output error.
    pub fn of(error: &io::Error) -> Self {
        Self(error.raw_os_error().unwrap_or(libc::EIO))
    }

    /// Whether it is that number of `libc`.
    pub fn is(self, number: i32) -> bool {
        self.0 == number
    }
}

impl From<io::Error> for OsError {
    fn from(error: io::Error) -> Self {
        Self::of(&error)
    }
}

impl From<Errno> for OsError {
    fn from(error: Errno) -> Self {
        Self(error as i32)
    }
}

impl From<OsError> for io::Error {
    fn from(error: OsError) -> Self {
        Self::from_raw_os_error(error.0)
    }
}

impl fmt::Display for OsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&Errno::from_raw(self.0).desc().to_lowercase())
    }
}

impl fmt::Debug for OsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", Errno::from_raw(self.0))
    }
}
