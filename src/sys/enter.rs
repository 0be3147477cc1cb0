//! Taking this process into a node's namespace, and giving up what that grants.
//!
//! In order: [`enter`] joins the user namespace (which grants every capability *in it*), then network, hostname and IPC; makes a
//! mount namespace of the caller's own mounts with the node's names in it; [`drop_privileges`] then leaves nothing that would
//! survive into a program. Between the two the process may still do what needs capabilities inside.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd},
};

use nix::sched::{CloneFlags, setns};

pub use super::view::View;
use super::{OsError, fd::FileId, namespace::Namespaces, process::thread_count};

/// A step that failed: what was tried, and the system's reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {os}")]
pub struct Failed {
    /// What was tried.
    pub what: String,
    /// Why it failed.
    pub os: OsError,
}

impl Failed {
    pub(super) fn new(what: impl Into<String>, os: impl Into<OsError>) -> Self {
        Self { what: what.into(), os: os.into() }
    }
}

/// Why a namespace could not be entered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnterError {
    /// Only a process with one thread can.
    #[error("enter the namespace: this process has several threads")]
    Threads,
    /// It belongs to another user.
    #[error("enter the namespace: it belongs to user {0}, and only that user may enter")]
    Foreign(u32),
    /// This process is inside another one already, from which there is no way to a sibling.
    #[error(
        "enter the namespace: this process is inside another namespace; start it from outside of that"
    )]
    Nested,
    /// Something else.
    #[error("enter the namespace: {0}")]
    Step(#[from] Failed),
}

/// How it went.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Entered {
    /// This process was inside already; nothing was done.
    pub already: bool,
    /// What could not be had and can be done without, for people to read.
    pub warnings: Vec<String>,
}

/// Enters. On failure this process may be half inside: it should end.
///
/// # Errors
/// [`EnterError`].
pub fn enter(namespaces: &Namespaces, view: &View) -> Result<Entered, EnterError> {
    let same = |path: &str, fd| -> io::Result<bool> {
        Ok(FileId::of(File::open(path)?)? == FileId::of(fd)?)
    };
    let already = same("/proc/self/ns/user", namespaces.user.as_fd())
        .and_then(|user| Ok(user && same("/proc/self/ns/net", namespaces.net.as_fd())?))
        .map_err(|e| Failed::new("look at /proc/self/ns", e))?;
    if already {
        return Ok(Entered { already, warnings: Vec::new() });
    }
    match thread_count() {
        Ok(1) => {}
        Ok(_) => return Err(EnterError::Threads),
        Err(error) => return Err(Failed::new("count the threads of this process", error).into()),
    }
    if let Err(error) = setns(&namespaces.user, CloneFlags::CLONE_NEWUSER) {
        return Err(why_not(namespaces, error.into()));
    }
    for (fd, kind, what) in [
        (&namespaces.net, CloneFlags::CLONE_NEWNET, "enter the network namespace"),
        (&namespaces.uts, CloneFlags::CLONE_NEWUTS, "enter the hostname's namespace"),
        (&namespaces.ipc, CloneFlags::CLONE_NEWIPC, "enter the IPC namespace"),
    ] {
        setns(fd, kind).map_err(|e| Failed::new(what, e))?;
    }
    let warnings = super::view::put_on(view)?;
    Ok(Entered { already, warnings })
}

fn why_not(namespaces: &Namespaces, os: OsError) -> EnterError {
    if os.is(libc::EPERM) {
        let own = nix::unistd::geteuid().as_raw();
        return match owner(namespaces) {
            Some(owner) if own != 0 && owner != own => EnterError::Foreign(owner),
            Some(_) | None => EnterError::Nested,
        };
    }
    Failed::new("enter the user namespace", os).into()
}

/// The user who made the user namespace, as seen from this process's.
fn owner(namespaces: &Namespaces) -> Option<u32> {
    /// `NS_GET_OWNER_UID` of linux/nsfs.h: `_IO(0xb7, 4)`.
    const NS_GET_OWNER_UID: libc::c_ulong = 0xb704;
    let mut uid: libc::uid_t = 0;
    // SAFETY: the request writes one uid_t behind the pointer, or fails.
    let done =
        unsafe { libc::ioctl(namespaces.user.as_raw_fd(), NS_GET_OWNER_UID as _, &raw mut uid) };
    (done == 0).then_some(uid)
}

/// `_LINUX_CAPABILITY_VERSION_3`.
const CAPABILITY_VERSION: u32 = 0x2008_0522;
const CAP_SETPCAP: u32 = 8;
const CAP_NET_RAW: u32 = 13;

/// Gives up every capability for this process and all it will start: none is permitted, none is ambient or inheritable, and being
/// uid 0 grants none (`SECBIT_NOROOT`, locked). For uid 0 the bounding set is emptied too, so that no file grants any, except for
/// `CAP_NET_RAW`: a program whose file asks for what the bounding set lacks cannot be started at all, and that would be `ping`.
///
/// # Errors
/// Something could not be given up: the caller must not go on.
pub fn drop_privileges() -> io::Result<()> {
    let root = nix::unistd::geteuid().is_root();
    let bits = libc::SECBIT_NOROOT
        | libc::SECBIT_NOROOT_LOCKED
        | libc::SECBIT_NO_CAP_AMBIENT_RAISE
        | libc::SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED;
    if permitted()? & (1 << CAP_SETPCAP) != 0 {
        prctl(libc::PR_SET_SECUREBITS, bits.cast_unsigned().into(), 0)?;
        if root {
            empty_bounding_set()?;
        }
    } else if root && prctl(libc::PR_GET_SECUREBITS, 0, 0)? & libc::SECBIT_NOROOT == 0 {
        // Uid 0 without the means to give up its power: exec would give it all back.
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL.cast_unsigned().into(), 0)?;
    set_no_capabilities()
}

fn empty_bounding_set() -> io::Result<()> {
    for capability in 0..64_u32 {
        match prctl(libc::PR_CAPBSET_READ, capability.into(), 0) {
            // Past the last one this kernel knows.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(()),
            Err(error) => return Err(error),
            Ok(0) => {}
            Ok(_) if capability == CAP_NET_RAW => {}
            Ok(_) => {
                prctl(libc::PR_CAPBSET_DROP, capability.into(), 0)?;
            }
        }
    }
    Ok(())
}

fn prctl(option: i32, argument: libc::c_ulong, more: libc::c_ulong) -> io::Result<i32> {
    // SAFETY: only used with options that take numbers, no pointers.
    let answer = unsafe { libc::prctl(option, argument, more, 0, 0) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

/// `struct __user_cap_header_struct`.
#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

/// `struct __user_cap_data_struct`: the low or high 32 capabilities of each set.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

fn permitted() -> io::Result<u64> {
    let mut header = CapHeader { version: CAPABILITY_VERSION, pid: 0 };
    let mut data = [CapData::default(); 2];
    // SAFETY: version 3 reads one header and writes two data structures.
    let done = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u64::from(data[0].permitted) | u64::from(data[1].permitted) << 32)
}

fn set_no_capabilities() -> io::Result<()> {
    let mut header = CapHeader { version: CAPABILITY_VERSION, pid: 0 };
    let data = [CapData::default(); 2];
    // SAFETY: version 3 reads one header and two data structures.
    let done = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
