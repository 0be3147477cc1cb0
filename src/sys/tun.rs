//! The overlay device as a data-plane worker sees it: a queue of plain IP packets, whatever stands behind it.
//!
//! The device lives as long as one descriptor of it is open, so it is not made persistent: the keeper holds the descriptor, each new
//! `serve` is given a duplicate, and when both are gone nothing is left to clean up.

use std::{
    fs::OpenOptions,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd},
};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::{fd::set_nonblocking, packet};

/// What stands behind the overlay device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// `/dev/net/tun`.
    Tun,
    /// A veth pair and a packet socket.
    Packet,
}

impl DeviceKind {
    /// As it is written in files and on command lines.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tun => "tun",
            Self::Packet => "packet",
        }
    }
}

/// The overlay device, open and non-blocking: what the keeper holds and hands out.
#[derive(Debug)]
pub struct Device {
    /// What it is.
    pub kind: DeviceKind,
    /// The TUN queue or the packet socket.
    pub fd: OwnedFd,
}

impl Device {
    /// Another descriptor of the same device.
    ///
    /// # Errors
    /// The system's: no descriptors left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { kind: self.kind, fd: self.fd.try_clone()? })
    }
}

/// One worker's end of the device: one plain IP packet a call, no headers. Never blocks.
#[derive(Debug)]
pub struct Queue(Device);

impl Queue {
    /// Takes the device over.
    pub fn new(device: Device) -> Self {
        Self(device)
    }

    /// What stands behind it.
    pub fn kind(&self) -> DeviceKind {
        self.0.kind
    }

    /// Reads the next packet into `buf`, which must hold the device's MTU: a longer packet is cut (TUN) or lost (packet socket).
    ///
    /// # Errors
    /// `WouldBlock`: there is none; anything else: the device is gone or down.
    pub fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        match self.0.kind {
            DeviceKind::Tun => retry(|| nix::unistd::read(&self.0.fd, buf)),
            DeviceKind::Packet => packet::receive(self.0.fd.as_fd(), buf),
        }
    }

    /// Writes one packet; it is as if it had arrived at the device. A packet is never written in part.
    ///
    /// # Errors
    /// `InvalidInput`: no IP packet (or larger than the device takes); `WouldBlock`, `ENOBUFS`: no room, the packet is lost as on
    /// any network; anything else: the device is gone or down.
    pub fn write(&self, packet: &[u8]) -> io::Result<usize> {
        match self.0.kind {
            DeviceKind::Tun => retry(|| nix::unistd::write(&self.0.fd, packet)),
            DeviceKind::Packet => packet::send(self.0.fd.as_fd(), packet),
        }
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

/// Whether `/dev/net/tun` opens; it is closed again.
pub(super) fn probe() -> io::Result<()> {
    OpenOptions::new().read(true).write(true).open("/dev/net/tun").map(drop)
}

/// Makes a TUN device in this network namespace: down, without address, one queue.
///
/// # Errors
/// `PermissionDenied`, `NotFound`, `ENODEV`: `/dev/net/tun` cannot be opened; else the system's.
pub(super) fn make(name: &str) -> io::Result<Device> {
    // The crate gives one error for both of its steps; opening first tells which.
    probe()?;
    let mut configuration = tun::Configuration::default();
    configuration.tun_name(name).platform_config(|platform| {
        // It would set addresses by requests that we make ourselves.
        platform.ensure_root_privileges(false);
    });
    let device = tun::create(&configuration).map_err(|error| {
        if let tun::Error::Io(error) = error { error } else { io::Error::other(error) }
    })?;
    // SAFETY: the crate has just given up the ownership of this open descriptor.
    let fd = unsafe { OwnedFd::from_raw_fd(device.into_raw_fd()) };
    debug_assert!(fd.as_raw_fd() > 2);
    set_nonblocking(&fd)?;
    Ok(Device { kind: DeviceKind::Tun, fd })
}

/// Makes the veth pair with its packet socket instead.
///
/// # Errors
/// What was being done, and the system's reason.
pub(super) fn make_packet(name: &str, mtu: u16) -> Result<Device, (&'static str, io::Error)> {
    Ok(Device { kind: DeviceKind::Packet, fd: packet::make(name, mtu)? })
}

fn retry(mut call: impl FnMut() -> nix::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            other => return Ok(other?),
        }
    }
}
