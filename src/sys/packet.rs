//! The device where no TUN can be opened: a veth pair whose far end nobody lives behind, and a packet socket on it.
//!
//! Theory of operation. The near end, named like a TUN would be, is the one device of the node's namespace. The far end is in a
//! second network namespace of the same user namespace, which nobody enters: it has no address, IPv6 is off, and all that listens
//! there is the packet socket. The pair speaks Ethernet, which nobody wants: the near end resolves no neighbours (`IFF_NOARP`), so
//! the kernel sends every frame to the near end's own hardware address; reading takes the 14 bytes off, writing puts them on again,
//! addressed to the near end, where the kernel takes the frame for its own. With `PACKET_VNET_HDR` superpackets cross whole, as with
//! a TUN. The socket keeps its namespace alive, and with it the pair.

use std::{
    fs::File,
    io, mem,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use nix::{
    net::if_::if_nametoindex,
    sched::{CloneFlags, setns, unshare},
    sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket, sockopt},
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
pub(super) const ETHERNET: usize = 14;

/// `SOL_PACKET` option: a virtio header in front of every frame (linux/if_packet.h; Linux 2.6.27).
const PACKET_VNET_HDR: i32 = 15;

/// `SOL_PACKET` option: what is sent takes no queue on its way (Linux 3.14).
const PACKET_QDISC_BYPASS: i32 = 20;

/// `SOL_PACKET` option that spares us our own frames (Linux 4.20).
const PACKET_IGNORE_OUTGOING: i32 = 23;

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
    // Before it is bound: no frame may come without the header.
    set(&socket, PACKET_VNET_HDR)?;
    // An older kernel refuses these; reading knows our frames anyway.
    let _ = set(&socket, PACKET_IGNORE_OUTGOING);
    let _ = set(&socket, PACKET_QDISC_BYPASS);
    bind(socket.as_fd(), if_nametoindex(FAR_NAME)?)?;
    // Refusals leave the default size.
    let _ = setsockopt(&socket, sockopt::RcvBuf, &BUFFER);
    let _ = setsockopt(&socket, sockopt::SndBuf, &BUFFER);
    set_nonblocking(&socket)?;
    Ok(socket)
}

fn set(socket: &OwnedFd, option: i32) -> io::Result<()> {
    let on: i32 = 1;
    // SAFETY: the options read one int behind a valid pointer.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            (&raw const on).cast(),
            size_of::<i32>() as u32,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
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

/// Whether the socket puts a virtio header in front of every frame, and with it carries superpackets.
pub(super) fn has_header(socket: BorrowedFd<'_>) -> bool {
    let (mut on, mut size) = (0_i32, size_of::<i32>() as u32);
    // SAFETY: the option writes one int behind a valid pointer, whose size is given.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            PACKET_VNET_HDR,
            (&raw mut on).cast(),
            &raw mut size,
        )
    };
    done == 0 && on != 0
}

/// Whether a frame comes from the near end and holds an IP packet.
pub(super) fn is_for_us(header: &[u8; ETHERNET]) -> bool {
    header[6..12] == NEAR && matches!(header[12..], [0x08, 0x00] | [0x86, 0xdd])
}

/// What goes in front of a packet that is to arrive at the near end. `None`: it is no IP packet.
pub(super) fn header_for(packet: &[u8]) -> Option<[u8; ETHERNET]> {
    let kind: [u8; 2] = match packet.first()? >> 4 {
        4 => [0x08, 0x00],
        6 => [0x86, 0xdd],
        _ => return None,
    };
    let mut header = [0; ETHERNET];
    header[..6].copy_from_slice(&NEAR);
    header[6..12].copy_from_slice(&FAR);
    header[12..].copy_from_slice(&kind);
    Some(header)
}
