//! A small writer of rtnetlink requests: links, addresses and veth pairs, each acknowledged before the next.
//!
//! By hand, because the crates for it are asynchronous or as large as this whole layer, and the builder needs seven requests,
//! once, in a process of one thread. Layout: `nlmsghdr` (16 bytes), a fixed structure, then attributes of length, type and value,
//! each padded to 4 bytes (rtnetlink(7)); numbers in the machine's byte order.

use std::{
    ffi::CString,
    io,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use nix::{
    net::if_::if_nametoindex,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto,
        socket,
    },
};

/// `IFLA_GSO_MAX_SIZE` (linux/if_link.h, Linux 4.6 to read and 4.16 to set).
const IFLA_GSO_MAX_SIZE: u16 = 41;
/// `IFLA_INET6_ADDR_GEN_MODE` (linux/if_link.h), which libc does not name.
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
/// `IN6_ADDR_GEN_MODE_NONE`: no link-local address of the kernel's own.
const ADDR_GEN_MODE_NONE: u8 = 1;
/// `VETH_INFO_PEER` (linux/veth.h).
const VETH_INFO_PEER: u16 = 1;
/// Bit 15 of an attribute's type: it holds attributes.
const NESTED: u16 = libc::NLA_F_NESTED as u16;

/// A request socket in the network namespace this thread was in when it was opened.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

/// What to change about a link; `None` leaves it.
#[derive(Clone, Copy, Debug, Default)]
pub struct LinkChange {
    /// Largest packet, bytes.
    pub mtu: Option<u16>,
    /// Bytes of the largest superpacket.
    pub gso_max_size: Option<u32>,
    /// Up or down.
    pub up: Option<bool>,
    /// Whether neighbours are resolved; off on a device with exactly one other end.
    pub arp: Option<bool>,
    /// Whether multicast is carried.
    pub multicast: Option<bool>,
    /// Set to `true`, the kernel makes no IPv6 link-local address of its own.
    pub no_link_local: bool,
}

/// One end of a veth pair.
#[derive(Clone, Copy, Debug)]
pub struct VethEnd<'a> {
    /// Device name.
    pub name: &'a str,
    /// Hardware address.
    pub mac: [u8; 6],
    /// Largest packet, bytes, Ethernet header aside.
    pub mtu: u16,
}

impl Netlink {
    /// Opens a request socket here.
    ///
    /// # Errors
    /// The system's.
    pub fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Changes the link named `name`.
    ///
    /// # Errors
    /// `ENODEV`: no such link; else the system's.
    pub fn change_link(&mut self, name: &str, change: LinkChange) -> io::Result<()> {
        let (mut flags, mut mask) = (0_u32, 0_u32);
        let bits = [
            (change.up, libc::IFF_UP),
            (change.arp.map(|arp| !arp), libc::IFF_NOARP),
            (change.multicast, libc::IFF_MULTICAST),
        ];
        for (wanted, bit) in bits {
            if let Some(on) = wanted {
                mask |= bit.cast_unsigned();
                flags |= if on { bit.cast_unsigned() } else { 0 };
            }
        }
        let mut request = Request::new(libc::RTM_NEWLINK, 0);
        request.link_header(index(name)?, flags, mask);
        if let Some(mtu) = change.mtu {
            request.attribute(libc::IFLA_MTU, &u32::from(mtu).to_ne_bytes());
        }
        if let Some(size) = change.gso_max_size {
            request.attribute(IFLA_GSO_MAX_SIZE, &size.to_ne_bytes());
        }
        if change.no_link_local {
            request.nested(libc::IFLA_AF_SPEC, |request| {
                request.nested(libc::AF_INET6 as u16, |request| {
                    request.attribute(IFLA_INET6_ADDR_GEN_MODE, &[ADDR_GEN_MODE_NONE]);
                });
            });
        }
        self.send(request)
    }

    /// Gives the link named `name` an address with its on-link prefix, usable at once (no duplicate detection).
    ///
    /// # Errors
    /// `EEXIST`: it has it; `EOPNOTSUPP`, `EACCES`: no such family here; else the system's.
    pub fn add_address(&mut self, name: &str, address: IpAddr, prefix: u8) -> io::Result<()> {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let mut request = Request::new(libc::RTM_NEWADDR, flags);
        let (family, bytes) = octets(address);
        let nodad = if address.is_ipv6() { libc::IFA_F_NODAD as u8 } else { 0 };
        request.body.extend([family, prefix, nodad, libc::RT_SCOPE_UNIVERSE]);
        request.body.extend(index(name)?.to_ne_bytes());
        request.attribute(libc::IFA_LOCAL, &bytes);
        request.attribute(libc::IFA_ADDRESS, &bytes);
        self.send(request)
    }

    /// Adds a route to `destination`/`prefix` out of the link named `name`, without a gateway.
    ///
    /// # Errors
    /// `EEXIST`: it is there; else the system's.
    pub fn add_route(&mut self, name: &str, destination: IpAddr, prefix: u8) -> io::Result<()> {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let mut request = Request::new(libc::RTM_NEWROUTE, flags);
        let (family, bytes) = octets(destination);
        request.body.extend([family, prefix, 0, 0]);
        request.body.extend([
            libc::RT_TABLE_MAIN,
            libc::RTPROT_STATIC,
            libc::RT_SCOPE_LINK,
            libc::RTN_UNICAST,
        ]);
        request.body.extend(0_u32.to_ne_bytes());
        request.attribute(libc::RTA_DST, &bytes);
        request.attribute(libc::RTA_OIF, &index(name)?.to_ne_bytes());
        self.send(request)
    }

    /// Makes a pair of virtual Ethernet devices: `near` here, `far` in the network namespace `far_namespace`. Both are down.
    ///
    /// # Errors
    /// `EOPNOTSUPP`: the kernel has no veth; `EEXIST`: a name is taken; else the system's.
    pub fn add_veth(
        &mut self,
        near: VethEnd<'_>,
        far: VethEnd<'_>,
        far_namespace: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let mut request = Request::new(libc::RTM_NEWLINK, flags);
        request.link_header(0, 0, 0);
        request.veth_end(near);
        request.nested(libc::IFLA_LINKINFO, |request| {
            request.attribute(libc::IFLA_INFO_KIND, b"veth");
            request.nested(libc::IFLA_INFO_DATA, |request| {
                request.nested(VETH_INFO_PEER, |request| {
                    request.link_header(0, 0, 0);
                    request.veth_end(far);
                    let namespace = far_namespace.as_raw_fd().to_ne_bytes();
                    request.attribute(libc::IFLA_NET_NS_FD, &namespace);
                });
            });
        });
        self.send(request)
    }

    /// Sends a request and waits for its acknowledgement.
    fn send(&mut self, request: Request) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let message = request.finish(self.sequence);
        let fd = self.socket.as_fd().as_raw_fd();
        sendto(fd, &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        let mut answer = [0; 8192];
        loop {
            let length = recv(fd, &mut answer, MsgFlags::empty())?;
            if let Some(outcome) = acknowledgement(&answer[..length], self.sequence) {
                return outcome;
            }
        }
    }
}

/// The answer to request `sequence` in what the kernel sent, if it is there.
fn acknowledgement(mut messages: &[u8], sequence: u32) -> Option<io::Result<()>> {
    let number = |at: &[u8], offset: usize| -> Option<u32> {
        Some(u32::from_ne_bytes(at.get(offset..offset + 4)?.try_into().ok()?))
    };
    while messages.len() >= HEADER {
        let length = usize::try_from(number(messages, 0)?).ok()?;
        let kind = u16::from_ne_bytes(messages.get(4..6)?.try_into().ok()?);
        if i32::from(kind) == libc::NLMSG_ERROR && number(messages, 8)? == sequence {
            let code = number(messages, HEADER)?.cast_signed();
            return Some(match code {
                0 => Ok(()),
                code => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
            });
        }
        messages = messages.get(length.max(HEADER).next_multiple_of(4)..)?;
    }
    None
}

/// Bytes of `nlmsghdr`.
const HEADER: usize = 16;

/// One message under construction, without its header.
struct Request {
    kind: u16,
    flags: u16,
    body: Vec<u8>,
}

impl Request {
    fn new(kind: u16, flags: i32) -> Self {
        let flags = flags | libc::NLM_F_REQUEST | libc::NLM_F_ACK;
        Self { kind, flags: flags as u16, body: Vec::with_capacity(256) }
    }

    /// `struct ifinfomsg`.
    fn link_header(&mut self, index: u32, flags: u32, mask: u32) {
        self.body.extend([libc::AF_UNSPEC as u8, 0, 0, 0]);
        for number in [index, flags, mask] {
            self.body.extend(number.to_ne_bytes());
        }
    }

    fn veth_end(&mut self, end: VethEnd<'_>) {
        let mut name = end.name.as_bytes().to_vec();
        name.push(0);
        self.attribute(libc::IFLA_IFNAME, &name);
        self.attribute(libc::IFLA_ADDRESS, &end.mac);
        self.attribute(libc::IFLA_MTU, &u32::from(end.mtu).to_ne_bytes());
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let start = self.open(kind);
        self.body.extend(value);
        self.close(start);
    }

    fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.open(kind | NESTED);
        fill(self);
        self.close(start);
    }

    fn open(&mut self, kind: u16) -> usize {
        let start = self.body.len();
        self.body.extend([0; 2]);
        self.body.extend(kind.to_ne_bytes());
        start
    }

    /// Writes the length of the attribute that began at `start` and pads. Attributes here are far below 64 KiB.
    fn close(&mut self, start: usize) {
        let length = (self.body.len() - start) as u16;
        self.body[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.body.resize(self.body.len().next_multiple_of(4), 0);
    }

    fn finish(self, sequence: u32) -> Vec<u8> {
        let mut message = Vec::with_capacity(HEADER + self.body.len());
        message.extend(((HEADER + self.body.len()) as u32).to_ne_bytes());
        message.extend(self.kind.to_ne_bytes());
        message.extend(self.flags.to_ne_bytes());
        message.extend(sequence.to_ne_bytes());
        message.extend(0_u32.to_ne_bytes());
        message.extend(self.body);
        message
    }
}

fn octets(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(v4) => (libc::AF_INET as u8, v4.octets().to_vec()),
        IpAddr::V6(v6) => (libc::AF_INET6 as u8, v6.octets().to_vec()),
    }
}

fn index(name: &str) -> io::Result<u32> {
    let name = CString::new(name).map_err(|_| io::ErrorKind::InvalidInput)?;
    Ok(if_nametoindex(name.as_c_str())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_nest_and_are_padded() {
        let mut request = Request::new(libc::RTM_NEWLINK, 0);
        request.nested(18, |request| request.attribute(1, b"veth0"));
        let mut wanted = Vec::new();
        wanted.extend(16_u16.to_ne_bytes());
        wanted.extend((18 | 0x8000_u16).to_ne_bytes());
        wanted.extend(9_u16.to_ne_bytes());
        wanted.extend(1_u16.to_ne_bytes());
        wanted.extend(b"veth0\0\0\0");
        assert_eq!(request.body, wanted);
        let message = request.finish(7);
        assert_eq!(message[..4], 32_u32.to_ne_bytes());
        assert_eq!(message[8..12], 7_u32.to_ne_bytes());
    }

    #[test]
    fn the_kernel_answers_with_its_reason() {
        let mut netlink = Netlink::open().unwrap();
        let missing = netlink.change_link("nosuch0", LinkChange::default()).unwrap_err();
        assert_eq!(missing.raw_os_error(), Some(libc::ENODEV));
        // An address that lo has already, or, without privilege, may not be given: either way the kernel speaks.
        let error = netlink.add_address("lo", [127, 0, 0, 1].into(), 8).unwrap_err();
        assert!([libc::EEXIST, libc::EPERM].contains(&error.raw_os_error().unwrap()), "{error}");
    }

    #[test]
    fn a_cut_or_foreign_answer_is_no_answer() {
        assert!(acknowledgement(&[], 1).is_none());
        assert!(acknowledgement(&[2; 15], 1).is_none());
        let mut answer = Vec::new();
        answer.extend(20_u32.to_ne_bytes());
        answer.extend((libc::NLMSG_ERROR as u16).to_ne_bytes());
        answer.extend([0; 2]);
        answer.extend(9_u32.to_ne_bytes());
        answer.extend([0; 4]);
        assert!(acknowledgement(&answer, 9).is_none(), "the code is missing");
        answer.extend((-libc::EPERM).to_ne_bytes());
        assert!(acknowledgement(&answer, 8).is_none());
        let error = acknowledgement(&answer, 9).unwrap().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    }
}
