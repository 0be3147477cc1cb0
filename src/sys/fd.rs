//! File descriptors on their way between processes: sent over Unix sockets, inherited across exec by number, and the eventfd
//! that wakes a poll.

use std::{
    collections::BTreeSet,
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    sync::Mutex,
};

use nix::{
    cmsg_space,
    fcntl::{FcntlArg, FdFlag, OFlag, fcntl},
    sys::{
        eventfd::{EfdFlags, EventFd},
        socket::{
            AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
            getsockopt, recvmsg, sendmsg, socketpair, sockopt,
        },
    },
};

/// The most descriptors one message carries. Five namespaces, a device and its listeners need ten.
pub const MAX_FDS: usize = 32;

/// The kernel's own limit (net/scm.h).
const SCM_MAX_FD: usize = 253;

/// Who is at the other end of a Unix socket, as the kernel recorded it when the socket was connected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Credentials {
    /// Process id; 0 if it is not visible from here.
    pub pid: i32,
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
}

/// Sends `bytes` and descriptors in one message. The kernel duplicates them: ours stay open.
///
/// # Errors
/// More than [`MAX_FDS`] or no bytes (a stream socket carries none then): `InvalidInput`; a short write: `WriteZero`; else the system's.
pub fn send_with_fds(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if fds.len() > MAX_FDS || bytes.is_empty() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights[..] };
    let sent = retry(|| {
        sendmsg::<()>(
            socket.as_fd().as_raw_fd(),
            &[IoSlice::new(bytes)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )
    })?;
    if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Receives one message into `buf`: how many bytes came, and the descriptors with them, closed on exec. 0 bytes is the end of the stream.
///
/// # Errors
/// `InvalidData` when more than [`MAX_FDS`] descriptors came (all are closed); else the system's.
pub fn receive_with_fds(socket: impl AsFd, buf: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    // Room for all that the kernel ever sends in one message: what is cut off would be open and unknown.
    let mut space = cmsg_space!([RawFd; SCM_MAX_FD]);
    let mut iov = [IoSliceMut::new(buf)];
    let socket = socket.as_fd().as_raw_fd();
    let (bytes, fds) = loop {
        match recvmsg::<()>(socket, &mut iov, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC) {
            Ok(message) => {
                let mut fds = Vec::new();
                for control in message.cmsgs()? {
                    if let ControlMessageOwned::ScmRights(raw) = control {
                        // SAFETY: the kernel has just made these descriptors for us; nobody else knows them.
                        fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                    }
                }
                break (message.bytes, fds);
            }
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    };
    if fds.len() > MAX_FDS {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too many file descriptors"));
    }
    Ok((bytes, fds))
}

/// Who connected this Unix socket (`SO_PEERCRED`).
///
/// # Errors
/// The system's: not a Unix socket.
pub fn peer_credentials(socket: impl AsFd) -> io::Result<Credentials> {
    let peer = getsockopt(&socket.as_fd(), sockopt::PeerCredentials)?;
    Ok(Credentials { pid: peer.pid(), uid: peer.uid(), gid: peer.gid() })
}

/// A connected pair of sockets that keep message boundaries and report the end (`SOCK_SEQPACKET`), closed on exec.
///
/// # Errors
/// The system's: no descriptors left.
pub fn message_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// Sets or clears close-on-exec.
///
/// # Errors
/// The system's.
pub fn set_close_on_exec(fd: impl AsFd, on: bool) -> io::Result<()> {
    let flags = if on { FdFlag::FD_CLOEXEC } else { FdFlag::empty() };
    fcntl(fd, FcntlArg::F_SETFD(flags))?;
    Ok(())
}

/// Makes reads and writes return at once. This is a property of the open file: every process that shares it sees it.
///
/// # Errors
/// The system's.
pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Numbers that [`inherited`] has given out: each may be owned once.
static TAKEN: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());

/// Takes ownership of a descriptor that this process was started with, by its number, and closes it on exec from now on. To be
/// called at the very start, before this process has opened anything itself.
///
/// # Errors
/// `InvalidInput` for 0, 1 and 2, `AlreadyExists` for a number asked for before, `EBADF` where nothing is open.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number < 3 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: only asks for flags; a closed number answers EBADF, which ends here.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    if flags & libc::FD_CLOEXEC != 0 {
        // What exec left open cannot have the flag: this one was opened by somebody in this process.
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    let mut taken = TAKEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !taken.insert(number) {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    // SAFETY: open (asked above), left by exec for us, and given out once (TAKEN): nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    set_close_on_exec(&fd, true)?;
    Ok(fd)
}

/// Wakes a thread out of a poll: an eventfd.
#[derive(Debug)]
pub struct Wake(EventFd);

impl Wake {
    /// A new one, not woken.
    ///
    /// # Errors
    /// The system's: no descriptors left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?))
    }

    /// Makes the descriptor readable until [`Self::clear`]. Never blocks, may be called from any thread.
    pub fn wake(&self) {
        // The only failure is a full counter, which is readable anyway.
        let _ = self.0.write(1);
    }

    /// Takes the wake-up back; says whether there was one.
    pub fn clear(&self) -> bool {
        self.0.read().is_ok()
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Device and inode of an open file: namespaces and files are the same where these are.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct FileId {
    /// Device number.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
}

impl FileId {
    /// Of an open descriptor.
    ///
    /// # Errors
    /// The system's.
    pub fn of(fd: impl AsFd) -> io::Result<Self> {
        let stat = nix::sys::stat::fstat(fd)?;
        Ok(Self { device: stat.st_dev, inode: stat.st_ino })
    }

    /// Of a path, links followed.
    ///
    /// # Errors
    /// The system's.
    pub fn of_path(path: &std::path::Path) -> io::Result<Self> {
        let stat = nix::sys::stat::stat(path)?;
        Ok(Self { device: stat.st_dev, inode: stat.st_ino })
    }
}

fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(nix::errno::Errno::EINTR) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::unix::net::UnixStream,
    };

    use super::*;

    #[test]
    fn descriptors_travel_and_are_closed_on_exec() {
        let (a, b) = UnixStream::pair().unwrap();
        let (mut reader, mut writer) = io::pipe().unwrap();
        send_with_fds(&a, b"here", &[writer.as_fd()]).unwrap();
        writer.write_all(b"x").unwrap();
        drop(writer);
        let mut buf = [0; 16];
        let (n, mut fds) = receive_with_fds(&b, &mut buf).unwrap();
        assert_eq!((&buf[..n], fds.len()), (&b"here"[..], 1));
        let fd = fds.remove(0);
        let flags = fcntl(&fd, FcntlArg::F_GETFD).unwrap();
        assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
        std::fs::File::from(fd).write_all(b"y").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "xy");
    }

    #[test]
    fn too_many_descriptors_are_refused_by_both_sides() {
        let (a, b) = UnixStream::pair().unwrap();
        let many = vec![a.as_fd(); MAX_FDS + 1];
        assert_eq!(send_with_fds(&a, b"x", &many).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        // A sender that keeps no such rule.
        let raw = vec![a.as_raw_fd(); MAX_FDS + 2];
        let rights = [ControlMessage::ScmRights(&raw)];
        let iov = [IoSlice::new(b"x")];
        sendmsg::<()>(a.as_raw_fd(), &iov, &rights, MsgFlags::empty(), None).unwrap();
        assert_eq!(
            receive_with_fds(&b, &mut [0; 4]).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
        drop(a);
        assert_eq!(receive_with_fds(&b, &mut [0; 4]).unwrap().0, 0, "the end");
    }

    #[test]
    fn the_kernel_says_who_connected() {
        let (a, _b) = UnixStream::pair().unwrap();
        let peer = peer_credentials(&a).unwrap();
        assert_eq!(peer.pid, i32::try_from(std::process::id()).unwrap());
        assert_eq!(peer.uid, nix::unistd::geteuid().as_raw());
    }

    #[test]
    fn messages_keep_their_boundaries() {
        let (a, b) = message_pair().unwrap();
        send_with_fds(&a, b"one", &[]).unwrap();
        send_with_fds(&a, b"two", &[a.as_fd()]).unwrap();
        let mut buf = [0; 64];
        assert_eq!(receive_with_fds(&b, &mut buf).unwrap().0, 3);
        assert_eq!(receive_with_fds(&b, &mut buf).unwrap().1.len(), 1);
    }

    #[test]
    fn a_number_is_not_taken_from_under_somebody() {
        let (a, _b) = UnixStream::pair().unwrap();
        assert!(inherited(1).is_err());
        assert!(inherited(a.as_raw_fd()).is_err(), "opened here, close-on-exec is set");
        assert_eq!(inherited(100_000).unwrap_err().raw_os_error(), Some(libc::EBADF));
    }

    #[test]
    fn a_wake_lasts_until_it_is_cleared() {
        let wake = Wake::new().unwrap();
        assert!(!wake.clear());
        wake.wake();
        wake.wake();
        assert!(wake.clear());
        assert!(!wake.clear());
    }
}
