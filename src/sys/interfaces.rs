//! The host's interfaces: their addresses now, and word of every change.

use std::{
    ffi::CString,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use nix::{
    errno::Errno,
    ifaddrs::getifaddrs,
    net::if_::{InterfaceFlags, if_nametoindex},
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, SockaddrStorage,
        bind, recv, socket,
    },
};

/// One address of one interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceAddress {
    /// The interface's name.
    pub interface: String,
    /// Its index, which is the scope of link-local addresses.
    pub index: u32,
    /// The address.
    pub address: IpAddr,
    /// Bits of the prefix that is directly connected.
    pub prefix_len: u8,
    /// `lo` and the like.
    pub loopback: bool,
    /// A link with exactly one other end.
    pub point_to_point: bool,
    /// Up and running: a cable or a carrier is there.
    pub running: bool,
}

/// Every address of every interface that is up, in order of interface and address.
///
/// # Errors
/// The system's.
pub fn addresses() -> io::Result<Vec<InterfaceAddress>> {
    let mut found = Vec::new();
    for entry in getifaddrs()? {
        let Some(address) = entry.address.as_ref().and_then(ip_of) else { continue };
        if !entry.flags.contains(InterfaceFlags::IFF_UP) {
            continue;
        }
        let name = CString::new(entry.interface_name.as_str()).unwrap_or_default();
        found.push(InterfaceAddress {
            // It may have gone since.
            index: if_nametoindex(name.as_c_str()).unwrap_or(0),
            address,
            prefix_len: entry
                .netmask
                .as_ref()
                .and_then(ip_of)
                .map_or_else(|| host_bits(address), mask_len),
            loopback: entry.flags.contains(InterfaceFlags::IFF_LOOPBACK),
            point_to_point: entry.flags.contains(InterfaceFlags::IFF_POINTOPOINT),
            running: entry.flags.contains(InterfaceFlags::IFF_RUNNING),
            interface: entry.interface_name,
        });
    }
    found.sort();
    Ok(found)
}

fn ip_of(address: &SockaddrStorage) -> Option<IpAddr> {
    address
        .as_sockaddr_in()
        .map(|v4| v4.ip().into())
        .or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))
}

fn host_bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn mask_len(mask: IpAddr) -> u8 {
    let ones = match mask {
        IpAddr::V4(mask) => Ipv4Addr::to_bits(mask).leading_ones(),
        IpAddr::V6(mask) => Ipv6Addr::to_bits(mask).leading_ones(),
    };
    ones as u8
}

/// Becomes readable when a link, an address or a route of this machine has changed.
#[derive(Debug)]
pub struct Watcher(OwnedFd);

impl Watcher {
    /// Begins to watch the network namespace this thread is in.
    ///
    /// # Errors
    /// The system's.
    pub fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkRoute,
        )?;
        let groups = libc::RTMGRP_LINK
            | libc::RTMGRP_IPV4_IFADDR
            | libc::RTMGRP_IPV4_ROUTE
            | libc::RTMGRP_IPV6_IFADDR
            | libc::RTMGRP_IPV6_ROUTE;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups.cast_unsigned()))?;
        Ok(Self(socket))
    }

    /// Takes all there is to read; whether something has changed. What it was is best asked anew with [`addresses`]: changes come
    /// in bursts, and the kernel drops what nobody reads in time (which counts as a change).
    ///
    /// # Errors
    /// The system's.
    pub fn drain(&self) -> io::Result<bool> {
        let mut changed = false;
        // Any length will do: a longer message is cut.
        let mut buf = [0; 512];
        loop {
            match recv(self.0.as_raw_fd(), &mut buf, MsgFlags::empty()) {
                Ok(_) | Err(Errno::ENOBUFS) => changed = true,
                Err(Errno::EAGAIN) => return Ok(changed),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Watcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_is_among_the_addresses() {
        let all = addresses().unwrap();
        let Some(lo) = all.iter().find(|a| a.address == IpAddr::V4(Ipv4Addr::LOCALHOST)) else {
            println!("skipped: lo is down here");
            return;
        };
        assert!(lo.loopback && lo.index > 0);
        assert_eq!(lo.prefix_len, 8);
    }
}
