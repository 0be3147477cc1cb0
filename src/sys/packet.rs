//! The device where no TUN can be opened: a veth pair whose far end nobody lives behind, and a packet socket on it.
//!
//! Theory of operation. The near end, named like a TUN would be, is the one device of the node's namespace. The far end is in a
//! second network namespace of the same user namespace, which nobody enters: it has no address, IPv6 is off, and all that listens
//! there is the packet socket. The pair speaks Ethernet, which nobody wants: the near end resolves no neighbours (`IFF_NOARP`), so
//! the kernel sends every frame to the near end's own hardware address, and [`receive`] takes the 14 bytes off. [`send`] puts them
//! on again, addressed to the near end, where the kernel takes the frame for its own. Checksum and segmentation offloads are off at
//! the near end, so what arrives is what a wire would carry. The socket keeps its namespace alive, and with it the pair.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut},
    mem,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use nix::{
    errno::Errno,
    net::if_::if_nametoindex,
    sched::{CloneFlags, setns, unshare},
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, setsockopt, socket, sockopt,
    },
};

use super::{
    fd::set_nonblocking,
    netlink::{LinkChange, Netlink, VethEnd},
};

/// Hardware addresses of the two ends, locally administered. Every pair may have the same: no two ever meet.
const NEAR: [u8; 6] = [0x02, 0x63, 0x6e, 0, 0, 1];
const FAR: [u8; 6] = [0x02, 0x63, 0x6e, 0, 0, 2];

/// Name of the far end, alone in its namespace but for lo.
const FAR_NAME: &str = "far0";

/// Bytes of an Ethernet header: destination, source, type.
const ETHERNET: usize = 14;

/// `SOL_PACKET` option that spares us our own frames (Linux 4.20).
const PACKET_IGNORE_OUTGOING: i32 = 23;

/// `ethtool` commands that turn one offload off (linux/ethtool.h).
const OFFLOADS: [u32; 3] = [
    0x17, // ETHTOOL_STXCSUM: with it off, TCP segmentation by the device is off as well
    0x1f, // ETHTOOL_STSO
    0x24, // ETHTOOL_SGSO
];

/// What the socket asks for: room for about a millisecond of ten gigabits. The kernel grants up to `net.core.rmem_max`.
const BUFFER: usize = 4 << 20;

/// Makes the pair: the near end `name` in this network namespace, down and without addresses, and the socket on the far end.
/// Leaves this thread in the namespace it was in.
///
/// # Errors
/// What was being done, and the system's reason.
pub(super) fn make(name: &str, mtu: u16) -> Result<OwnedFd, (&'static str, io::Error)> {
    let near = File::open("/proc/self/ns/net").map_err(|e| ("open /proc/self/ns/net", e))?;
    unshare(CloneFlags::CLONE_NEWNET).map_err(|e| ("make a second network namespace", e.into()))?;
    let far = File::open("/proc/self/ns/net").map_err(|e| ("open /proc/self/ns/net", e))?;
    // Before the device exists: new devices take the default. There is no such file where the kernel has no IPv6.
    for which in ["all", "default"] {
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1");
    }
    let back =
        |step| setns(&near, CloneFlags::CLONE_NEWNET).map_err(|e| (step, io::Error::from(e)));
    back("return to the network namespace")?;
    Netlink::open()
        .and_then(|mut netlink| {
            let near = VethEnd { name, mac: NEAR, mtu };
            netlink.add_veth(near, VethEnd { name: FAR_NAME, mac: FAR, mtu }, far.as_fd())?;
            netlink.change_link(name, LinkChange { arp: Some(false), ..LinkChange::default() })
        })
        .map_err(|e| ("make a veth pair", e))?;
    offloads_off(name).map_err(|e| ("turn off the offloads of the veth pair", e))?;
    setns(&far, CloneFlags::CLONE_NEWNET)
        .map_err(|e| ("enter the second network namespace", e.into()))?;
    let socket = open_far_end().map_err(|e| ("open a packet socket", e));
    back("return to the network namespace")?;
    socket
}

fn open_far_end() -> io::Result<OwnedFd> {
    let up = LinkChange { up: Some(true), arp: Some(false), ..LinkChange::default() };
    Netlink::open()?.change_link(FAR_NAME, up)?;
    // Protocol 0: nothing arrives before the socket is bound to the one device.
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
    bind(socket.as_fd(), if_nametoindex(FAR_NAME)?)?;
    let on: i32 = 1;
    // SAFETY: the option reads one int behind a valid pointer. An older kernel refuses it; `receive` knows our frames anyway.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            PACKET_IGNORE_OUTGOING,
            (&raw const on).cast(),
            size_of::<i32>() as u32,
        )
    };
    // Refusals leave the default size.
    let _ = setsockopt(&socket, sockopt::RcvBuf, &BUFFER);
    let _ = setsockopt(&socket, sockopt::SndBuf, &BUFFER);
    set_nonblocking(&socket)?;
    Ok(socket)
}

fn bind(socket: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    // SAFETY: all fields are plain numbers, for which zero is valid.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index.cast_signed();
    // SAFETY: a valid sockaddr_ll and its size.
    let done = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn offloads_off(name: &str) -> io::Result<()> {
    /// `struct ethtool_value`.
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    for command in OFFLOADS {
        let mut value = Value { command, data: 0 };
        // SAFETY: all fields are plain numbers or pointers, for which zero is valid.
        let mut request: libc::ifreq = unsafe { mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_data = (&raw mut value).cast();
        // SAFETY: SIOCETHTOOL reads an ifreq with a zero-terminated name whose data points to the command's structure; both live here.
        let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Reads one IP packet into `buf`; skips what is none. Never blocks.
pub(super) fn receive(socket: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<usize> {
    let mut header = [0; ETHERNET];
    loop {
        let mut parts = [IoSliceMut::new(&mut header), IoSliceMut::new(&mut *buf)];
        let length = recvmsg::<()>(socket.as_raw_fd(), &mut parts, None, MsgFlags::empty());
        let length = match length {
            Ok(message) if message.flags.contains(MsgFlags::MSG_TRUNC) => continue,
            Ok(message) => message.bytes,
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        };
        let from_near = header[6..12] == NEAR;
        let is_ip = matches!(header[12..], [0x08, 0x00] | [0x86, 0xdd]);
        if length > ETHERNET && from_near && is_ip {
            return Ok(length - ETHERNET);
        }
    }
}

/// Writes one IP packet. Never blocks.
pub(super) fn send(socket: BorrowedFd<'_>, packet: &[u8]) -> io::Result<usize> {
    let kind: [u8; 2] = match packet.first().map(|byte| byte >> 4) {
        Some(4) => [0x08, 0x00],
        Some(6) => [0x86, 0xdd],
        Some(_) | None => return Err(io::ErrorKind::InvalidInput.into()),
    };
    let mut header = [0; ETHERNET];
    header[..6].copy_from_slice(&NEAR);
    header[6..12].copy_from_slice(&FAR);
    header[12..].copy_from_slice(&kind);
    let parts = [IoSlice::new(&header), IoSlice::new(packet)];
    loop {
        match sendmsg::<()>(socket.as_raw_fd(), &parts, &[], MsgFlags::empty(), None) {
            Ok(length) => return Ok(length.saturating_sub(ETHERNET)),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
