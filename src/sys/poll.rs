//! Waiting for descriptors: what a data-plane worker sleeps in, and a single wait for anything else.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, ppoll},
    sys::time::TimeSpec,
};

/// Waits until one of `fds` can be read without blocking (an error or the end counts too), or until `patience` has passed; for
/// ever where that is `None`. Says for each whether it can. A signal ends no wait early except by an empty answer.
///
/// # Errors
/// The system's: never for a valid descriptor.
pub fn readable<const N: usize>(
    fds: [BorrowedFd<'_>; N],
    patience: Option<Duration>,
) -> io::Result<[bool; N]> {
    wait(fds.map(|fd| (fd, Interest::Read)), patience)
}

/// What is waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Interest {
    /// Something to read.
    Read,
    /// Room to write.
    Write,
    /// Either.
    Both,
}

/// As [`readable`], with an interest each.
///
/// # Errors
/// The system's.
pub fn wait<const N: usize>(
    fds: [(BorrowedFd<'_>, Interest); N],
    patience: Option<Duration>,
) -> io::Result<[bool; N]> {
    let mut polled = fds.map(|(fd, interest)| {
        let flags = match interest {
            Interest::Read => PollFlags::POLLIN,
            Interest::Write => PollFlags::POLLOUT,
            Interest::Both => PollFlags::POLLIN | PollFlags::POLLOUT,
        };
        PollFd::new(fd, flags)
    });
    match ppoll(&mut polled, patience.map(TimeSpec::from), None) {
        Ok(_) => {}
        Err(Errno::EINTR) => return Ok([false; N]),
        Err(error) => return Err(error.into()),
    }
    let mut ready = [false; N];
    for (ready, polled) in ready.iter_mut().zip(&polled) {
        *ready = polled.any().unwrap_or(true);
    }
    Ok(ready)
}

/// What a worker was woken by.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ready {
    /// The TUN queue has packets.
    pub tun: bool,
    /// The UDP socket has datagrams.
    pub udp: bool,
    /// Control wants something: see [`super::fd::Wake`].
    pub wake: bool,
}

/// Sleeps until a worker has something to do or `patience` has passed (then nothing is ready).
///
/// # Errors
/// The system's.
pub fn worker(
    tun: impl AsFd,
    udp: impl AsFd,
    wake: impl AsFd,
    patience: Option<Duration>,
) -> io::Result<Ready> {
    let [tun, udp, wake] = readable([tun.as_fd(), udp.as_fd(), wake.as_fd()], patience)?;
    Ok(Ready { tun, udp, wake })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::{super::fd::Wake, *};

    #[test]
    fn a_worker_is_told_what_woke_it() {
        let wake = Wake::new().unwrap();
        let (tun, mut packets) = io::pipe().unwrap();
        let (udp, datagrams) = io::pipe().unwrap();
        let now = Some(Duration::ZERO);
        assert_eq!(worker(&tun, &udp, &wake, now).unwrap(), Ready::default());
        packets.write_all(b"x").unwrap();
        assert_eq!(
            worker(&tun, &udp, &wake, None).unwrap(),
            Ready { tun: true, ..Ready::default() }
        );
        wake.wake();
        drop(datagrams);
        assert_eq!(
            worker(&tun, &udp, &wake, None).unwrap(),
            Ready { tun: true, udp: true, wake: true }
        );
        assert_eq!(wait([(packets.as_fd(), Interest::Write)], now).unwrap(), [true]);
    }
}
