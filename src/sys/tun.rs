//! The overlay device as a data-plane worker sees it: a queue of IP packets and superpackets, whatever stands behind it.
//!
//! The device lives as long as one descriptor of it is open, so it is not made persistent: the keeper holds the descriptor, each new
//! `serve` is given a duplicate, and when both are gone nothing is left to clean up.

use std::{
    fs::OpenOptions,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd},
};

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
    /// The TUN's queues or the one packet socket; at least one.
    pub fds: Vec<OwnedFd>,
}

impl Device {
    /// Other descriptors of the same device.
    ///
    /// # Errors
    /// The system's: no descriptors left.
    pub fn try_clone(&self) -> io::Result<Self> {
        let fds = self.fds.iter().map(OwnedFd::try_clone).collect::<io::Result<_>>()?;
        Ok(Self { kind: self.kind, fds })
    }

    /// One for each worker.
    pub fn into_queues(self) -> Vec<Queue> {
        let kind = self.kind;
        self.fds.into_iter().map(|fd| Queue::new(kind, fd)).collect()
    }
}

/// Length of `struct virtio_net_hdr` as the kernel puts it in front of a packet (linux/virtio_net.h).
pub const HEADER: usize = 10;

/// The most parts that a packet is read into or written from.
pub const MAX_PARTS: usize = 80;

/// `TUNSETOFFLOAD` flags (linux/if_tun.h): what the kernel may leave undone in packets that it hands over.
const TUN_F_CSUM: u32 = 0x01;
const TUN_F_TSO4: u32 = 0x02;
const TUN_F_TSO6: u32 = 0x04;
const TUN_F_TSO_ECN: u32 = 0x08;
/// Linux 6.2.
const TUN_F_USO: u32 = 0x20 | 0x40;
/// Linux 2.6.27.
const TSO: u32 = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;

mod ioctl {
    use nix::{ioctl_read_bad, ioctl_write_int_bad, request_code_read, request_code_write};

    const UINT: usize = size_of::<libc::c_uint>();
    // TUNSETIFF, TUNSETOFFLOAD and TUNGETIFF (linux/if_tun.h).
    nix::ioctl_write_ptr_bad!(set_interface, request_code_write!(b'T', 202, UINT), libc::ifreq);
    ioctl_write_int_bad!(set_offload, request_code_write!(b'T', 208, UINT));
    ioctl_read_bad!(get_interface, request_code_read!(b'T', 210, UINT), libc::ifreq);
}

/// Where a packet goes when it is read: parts of `slice` bytes in a buffer, `front` bytes left free before each and `back` behind,
/// so that each can be made a datagram where it lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slots {
    /// Bytes left free before each part.
    pub front: usize,
    /// Bytes of each part but the last.
    pub slice: usize,
    /// Bytes left free behind each part.
    pub back: usize,
}

impl Slots {
    /// From the beginning of one part's room to that of the next.
    pub fn stride(&self) -> usize {
        self.front + self.slice + self.back
    }
}

/// One worker's end of the device: one IP packet or superpacket a call, with the virtio header beside it. Never blocks.
#[derive(Debug)]
pub struct Queue {
    kind: DeviceKind,
    fd: OwnedFd,
    has_header: bool,
    takes_udp: bool,
}

impl Queue {
    /// Takes one descriptor of a device over.
    pub fn new(kind: DeviceKind, fd: OwnedFd) -> Self {
        let (has_header, takes_udp) = match kind {
            // Asked for once more what it was asked for when it was made: the answer tells.
            DeviceKind::Tun => (tun_has_header(&fd), ask(&fd, TSO | TUN_F_USO)),
            DeviceKind::Packet => (packet::has_header(fd.as_fd()), kernel_is_at_least(6, 2)),
        };
        Self { kind, fd, has_header, takes_udp }
    }

    /// Whether UDP superpackets cross it: the kernel has learned that later than TCP's.
    pub fn takes_udp(&self) -> bool {
        self.has_header && self.takes_udp
    }

    /// What stands behind it.
    pub fn kind(&self) -> DeviceKind {
        self.kind
    }

    /// Whether superpackets cross it; else every packet is whole and finished.
    pub fn has_offloads(&self) -> bool {
        self.has_header
    }

    /// Takes finished packets of one MTU from now on, as if the kernel could nothing else. A packet socket cannot ask for that.
    pub fn forgo_offloads(&self) {
        if self.kind == DeviceKind::Tun {
            let _ = ask(&self.fd, 0);
        }
    }

    /// Reads the next packet into parts of `arena`; gives its length. What does not fit is cut off (TUN) or lost (packet socket).
    ///
    /// # Errors
    /// `WouldBlock`: there is none; anything else: the device is gone or down.
    pub fn read(
        &self,
        header: &mut [u8; HEADER],
        arena: &mut [u8],
        slots: Slots,
    ) -> io::Result<usize> {
        let mut parts = Parts::new();
        let mut around = 0;
        if self.has_header {
            parts.push(header.as_mut_ptr(), HEADER);
            around += HEADER;
        } else {
            header.fill(0);
        }
        let mut ethernet = [0; packet::ETHERNET];
        if self.kind == DeviceKind::Packet {
            parts.push(ethernet.as_mut_ptr(), ethernet.len());
            around += ethernet.len();
        }
        for slot in arena.chunks_mut(slots.stride()) {
            let end = slot.len().min(slots.front + slots.slice);
            if let Some(part) = slot.get_mut(slots.front..end) {
                if parts.len == MAX_PARTS {
                    break;
                }
                parts.push(part.as_mut_ptr(), part.len());
            }
        }
        loop {
            // SAFETY: every part points to live memory of its length that is borrowed mutably for this call.
            let length = unsafe { parts.read(self.fd.as_fd(), self.kind)? };
            // A packet socket sees whatever passes the far end.
            if self.kind == DeviceKind::Packet && !packet::is_for_us(&ethernet) {
                continue;
            }
            if length > around {
                if self.kind == DeviceKind::Packet {
                    shift(header, packet::ETHERNET.wrapping_neg() as u16);
                }
                return Ok(length - around);
            }
            if self.kind == DeviceKind::Tun {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Writes one packet, given in parts; it is as if it had arrived at the device. A packet is never written in part.
    ///
    /// # Errors
    /// `InvalidInput`: no IP packet (or larger than the device takes, or too many parts); `WouldBlock`, `ENOBUFS`: no room, the
    /// packet is lost as on any network; anything else: the device is gone or down.
    pub fn write<'a>(
        &self,
        header: &[u8; HEADER],
        packet: impl IntoIterator<Item = &'a [u8]>,
    ) -> io::Result<()> {
        let mut packet = packet.into_iter();
        let first = packet.next().filter(|first| !first.is_empty());
        let first = first.ok_or(io::ErrorKind::InvalidInput)?;
        let mut parts = Parts::new();
        let mut header = *header;
        if self.kind == DeviceKind::Packet {
            shift(&mut header, packet::ETHERNET as u16);
        }
        if self.has_header {
            parts.push(header.as_ptr().cast_mut(), HEADER);
        }
        let ethernet = packet::header_for(first).ok_or(io::ErrorKind::InvalidInput)?;
        if self.kind == DeviceKind::Packet {
            parts.push(ethernet.as_ptr().cast_mut(), ethernet.len());
        }
        parts.push(first.as_ptr().cast_mut(), first.len());
        for part in packet {
            if parts.len == MAX_PARTS {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            parts.push(part.as_ptr().cast_mut(), part.len());
        }
        // SAFETY: every part points to live memory of its length, which writing only reads.
        unsafe { parts.write(self.fd.as_fd()) }
    }
}

/// Packet sockets count the Ethernet header in: the two numbers of the virtio header that count from the packet's beginning, its
/// headers' length and where the checksum starts, are moved by so much. They mean nothing where no flag asks for them.
fn shift(header: &mut [u8; HEADER], by: u16) {
    for at in [2, 6] {
        let number = u16::from_ne_bytes([header[at], header[at + 1]]);
        let moved = if number == 0 { 0 } else { number.wrapping_add(by) };
        header[at..at + 2].copy_from_slice(&moved.to_ne_bytes());
    }
}

/// A list for `readv` and `writev`, on the stack.
struct Parts {
    list: [libc::iovec; MAX_PARTS],
    len: usize,
}

impl Parts {
    fn new() -> Self {
        let empty = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Self { list: [empty; MAX_PARTS], len: 0 }
    }

    fn push(&mut self, base: *mut u8, len: usize) {
        self.list[self.len] = libc::iovec { iov_base: base.cast(), iov_len: len };
        self.len += 1;
    }

    /// # Safety
    /// Every part points to memory that may be written now.
    unsafe fn read(&mut self, fd: BorrowedFd<'_>, kind: DeviceKind) -> io::Result<usize> {
        loop {
            let (length, is_cut) = match kind {
                DeviceKind::Tun => {
                    // SAFETY: the caller's promise; `len` parts are filled in.
                    let length =
                        unsafe { libc::readv(fd.as_raw_fd(), self.list.as_ptr(), self.len as i32) };
                    (length, false)
                }
                DeviceKind::Packet => {
                    // SAFETY: a plain C structure for which zero is valid.
                    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
                    message.msg_iov = self.list.as_mut_ptr();
                    message.msg_iovlen = self.len as _;
                    // SAFETY: the caller's promise; `len` parts are filled in, and nothing else is asked for.
                    let length = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, 0) };
                    (length, message.msg_flags & libc::MSG_TRUNC != 0)
                }
            };
            match usize::try_from(length) {
                Ok(_) if is_cut => {}
                Ok(length) => return Ok(length),
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// # Safety
    /// Every part points to memory that may be read now.
    unsafe fn write(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        loop {
            // SAFETY: the caller's promise; `len` parts are filled in.
            let done = unsafe { libc::writev(fd.as_raw_fd(), self.list.as_ptr(), self.len as i32) };
            if done >= 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn tun_has_header(fd: &OwnedFd) -> bool {
    // SAFETY: all fields are plain numbers or pointers, for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: TUNGETIFF fills in an ifreq; on anything but a TUN it is refused.
    let found = unsafe { ioctl::get_interface(fd.as_raw_fd(), &raw mut request) };
    // SAFETY: the request's answer is in the flags.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    found.is_ok() && i32::from(flags) & libc::IFF_VNET_HDR != 0
}

/// Lets the kernel hand over superpackets: as many kinds as it can. Refused, packets come whole and finished, behind an empty header.
fn offload(fd: &OwnedFd) {
    for flags in [TSO | TUN_F_USO, TSO, TUN_F_CSUM] {
        if ask(fd, flags) {
            return;
        }
    }
}

fn ask(fd: &OwnedFd, flags: u32) -> bool {
    // SAFETY: TUNSETOFFLOAD takes its flags by value.
    unsafe { ioctl::set_offload(fd.as_raw_fd(), flags as i32) }.is_ok()
}

/// Where there is nothing to ask.
fn kernel_is_at_least(major: u32, minor: u32) -> bool {
    let release = nix::sys::utsname::uname().ok();
    let release = release.as_ref().and_then(|name| name.release().to_str()).unwrap_or("");
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>());
    let mut next = || numbers.next().and_then(Result::ok).unwrap_or(0);
    (next(), next()) >= (major, minor)
}

/// Whether `/dev/net/tun` opens; it is closed again.
pub(super) fn probe() -> io::Result<()> {
    OpenOptions::new().read(true).write(true).open("/dev/net/tun").map(drop)
}

/// Makes a TUN device in this network namespace: down, without address, with so many queues.
///
/// # Errors
/// `PermissionDenied`, `NotFound`, `ENODEV`: `/dev/net/tun` cannot be opened; else the system's.
pub(super) fn make(name: &str, queues: u8) -> io::Result<Device> {
    // The crate gives one error for both of its steps; opening first tells which.
    probe()?;
    let fds = if queues > 1 { make_many(name, queues)? } else { vec![make_one(name)?] };
    for fd in &fds {
        set_nonblocking(fd)?;
        offload(fd);
    }
    Ok(Device { kind: DeviceKind::Tun, fds })
}

fn make_one(name: &str) -> io::Result<OwnedFd> {
    let mut configuration = tun::Configuration::default();
    configuration.tun_name(name).platform_config(|platform| {
        // It would set addresses by requests that we make ourselves.
        platform.ensure_root_privileges(false);
        platform.vnet_hdr(true);
    });
    let device = tun::create(&configuration).map_err(|error| {
        if let tun::Error::Io(error) = error { error } else { io::Error::other(error) }
    })?;
    // SAFETY: the crate has just given up the ownership of this open descriptor.
    let fd = unsafe { OwnedFd::from_raw_fd(device.into_raw_fd()) };
    debug_assert!(fd.as_raw_fd() > 2);
    Ok(fd)
}

/// The crate makes devices of one queue only.
fn make_many(name: &str, queues: u8) -> io::Result<Vec<OwnedFd>> {
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
    let make = |_| {
        let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
        // SAFETY: all fields are plain numbers or pointers, for which zero is valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_flags = flags as i16;
        // SAFETY: TUNSETIFF reads an ifreq with a zero-terminated name and flags.
        unsafe { ioctl::set_interface(file.as_raw_fd(), &raw const request)? };
        Ok(file.into())
    };
    (0..queues).map(make).collect()
}

/// Makes the veth pair with its packet socket instead.
///
/// # Errors
/// What was being done, and the system's reason.
pub(super) fn make_packet(name: &str, mtu: u16) -> Result<Device, (&'static str, io::Error)> {
    Ok(Device { kind: DeviceKind::Packet, fds: vec![packet::make(name, mtu)?] })
}
