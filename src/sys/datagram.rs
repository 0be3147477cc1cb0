//! `sendmsg` and `recvmsg` for UDP datagrams of one peer, one or many at once (`UDP_SEGMENT`, `UDP_GRO`), with the address of ours
//! that they came to or leave from (`IP_PKTINFO`, `IPV6_PKTINFO`), without allocation.

use std::{
    io, mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    os::fd::{AsRawFd, BorrowedFd},
};

/// Bytes for control messages, aligned as `cmsghdr` wants; one `in6_pktinfo` takes 40.
#[repr(C, align(8))]
struct Control([u8; 128]);

/// What one call has received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Raw {
    /// Bytes, of all datagrams together.
    pub(super) len: usize,
    /// Length of each datagram but the last, which may be shorter; the whole length where there is one.
    pub(super) segment: usize,
    /// Who seems to have sent them.
    pub(super) origin: SocketAddr,
    /// To which address of ours, where the kernel says so.
    pub(super) own: Option<IpAddr>,
    /// `buf` was too short: the rest is lost.
    pub(super) is_cut: bool,
}

/// Receives one datagram, or where the socket has `UDP_GRO` several of equal length that came together.
pub(super) fn receive(socket: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<Raw> {
    // SAFETY: plain C structures for which zero is valid.
    let (mut name, mut header): (libc::sockaddr_storage, libc::msghdr) =
        unsafe { (mem::zeroed(), mem::zeroed()) };
    let mut control = Control([0; 128]);
    let mut part = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    header.msg_name = (&raw mut name).cast();
    header.msg_namelen = size_of::<libc::sockaddr_storage>() as u32;
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = control.0.len() as _;
    // SAFETY: every pointer in the header is to a live local (or `buf`) of the length given with it.
    let len = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, 0) };
    let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
    let origin = address_of(&name).ok_or(io::ErrorKind::InvalidData)?;
    let mut raw = Raw {
        len,
        segment: len,
        origin,
        own: None,
        is_cut: header.msg_flags & libc::MSG_TRUNC != 0,
    };
    // SAFETY: the kernel has filled the control buffer and set its length; the macros stay within it.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    while !message.is_null() {
        // SAFETY: not null: the macros return pointers to whole headers only.
        let (level, kind) = unsafe { ((*message).cmsg_level, (*message).cmsg_type) };
        // SAFETY: as above; the data behind is only read after its kind is known.
        let data = unsafe { libc::CMSG_DATA(message) };
        match (level, kind) {
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                // SAFETY: this kind carries an in6_pktinfo; read without alignment.
                let info: libc::in6_pktinfo =
                    unsafe { data.cast::<libc::in6_pktinfo>().read_unaligned() };
                raw.own = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).to_canonical());
            }
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                // SAFETY: this kind carries an in_pktinfo; read without alignment.
                let info: libc::in_pktinfo =
                    unsafe { data.cast::<libc::in_pktinfo>().read_unaligned() };
                raw.own = Some(Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr)).into());
            }
            (libc::SOL_UDP, libc::UDP_GRO) => {
                // SAFETY: this kind carries an int (udp_cmsg_recv); read without alignment.
                let segment = unsafe { data.cast::<i32>().read_unaligned() };
                raw.segment = usize::try_from(segment).ok().filter(|s| *s > 0).unwrap_or(len);
            }
            _ => {}
        }
        // SAFETY: the same header and a message of it.
        message = unsafe { libc::CMSG_NXTHDR(&raw const header, message) };
    }
    Ok(raw)
}

/// Sends to `endpoint`, whose family must be the socket's, from our address `own` if one is given: `bytes` as one datagram, or,
/// where a `segment` is given, cut by the kernel into datagrams of that length, the last perhaps shorter.
pub(super) fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    segment: Option<u16>,
    endpoint: SocketAddr,
    own: Option<IpAddr>,
) -> io::Result<()> {
    // SAFETY: plain C structures for which zero is valid.
    let (mut name, mut header): (libc::sockaddr_storage, libc::msghdr) =
        unsafe { (mem::zeroed(), mem::zeroed()) };
    let mut control = Control([0; 128]);
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    header.msg_name = (&raw mut name).cast();
    header.msg_namelen = write_address(endpoint, &mut name);
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    match (endpoint, own) {
        (_, None) => {}
        (SocketAddr::V4(_), Some(IpAddr::V4(own))) => {
            // SAFETY: plain C structure.
            let mut info: libc::in_pktinfo = unsafe { mem::zeroed() };
            info.ipi_spec_dst.s_addr = u32::from(own).to_be();
            attach(&mut header, &mut control, (libc::IPPROTO_IP, libc::IP_PKTINFO), info);
        }
        (SocketAddr::V6(_), Some(own)) => {
            let own = match own {
                IpAddr::V4(own) => own.to_ipv6_mapped(),
                IpAddr::V6(own) => own,
            };
            let address = libc::in6_addr { s6_addr: own.octets() };
            let info = libc::in6_pktinfo { ipi6_addr: address, ipi6_ifindex: 0 };
            attach(&mut header, &mut control, (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO), info);
        }
        (SocketAddr::V4(_), Some(IpAddr::V6(_))) => return Err(io::ErrorKind::InvalidInput.into()),
    }
    if let Some(segment) = segment {
        attach(&mut header, &mut control, (libc::SOL_UDP, libc::UDP_SEGMENT), segment);
    }
    // SAFETY: every pointer in the header is to a live local (or `bytes`, which is only read) of the length given with it.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Puts one more control message behind those in the buffer.
fn attach<T: Copy>(
    header: &mut libc::msghdr,
    control: &mut Control,
    (level, kind): (i32, i32),
    value: T,
) {
    let size = size_of::<T>() as u32;
    // SAFETY: arithmetic only.
    let (space, length) = unsafe { (libc::CMSG_SPACE(size), libc::CMSG_LEN(size)) };
    // The same type with glibc; another with musl.
    #[allow(clippy::unnecessary_cast, reason = "the type differs between C libraries")]
    let used = header.msg_controllen as usize;
    assert!(used + space as usize <= control.0.len(), "the largest two take 64 bytes");
    // SAFETY: within the buffer (asserted), whose messages all begin at multiples of eight (CMSG_SPACE pads), as a cmsghdr wants;
    // the value is written without alignment.
    unsafe {
        let message = control.0.as_mut_ptr().add(used).cast::<libc::cmsghdr>();
        (*message).cmsg_level = level;
        (*message).cmsg_type = kind;
        (*message).cmsg_len = length as _;
        libc::CMSG_DATA(message).cast::<T>().write_unaligned(value);
    }
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = (used + space as usize) as _;
}

fn address_of(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match i32::from(name.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says so, and the storage is larger and more strictly aligned.
            let v4 = unsafe { &*std::ptr::from_ref(name).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
            Some((ip, u16::from_be(v4.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: the family says so, and the storage is larger and more strictly aligned.
            let v6 = unsafe { &*std::ptr::from_ref(name).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(ip, u16::from_be(v6.sin6_port), 0, v6.sin6_scope_id).into())
        }
        _ => None,
    }
}

fn write_address(address: SocketAddr, name: &mut libc::sockaddr_storage) -> u32 {
    match address {
        SocketAddr::V4(v4) => {
            // SAFETY: the storage is larger and more strictly aligned than any address.
            let to = unsafe { &mut *std::ptr::from_mut(name).cast::<libc::sockaddr_in>() };
            to.sin_family = libc::AF_INET as u16;
            to.sin_port = v4.port().to_be();
            to.sin_addr.s_addr = u32::from(*v4.ip()).to_be();
            size_of::<libc::sockaddr_in>() as u32
        }
        SocketAddr::V6(v6) => {
            // SAFETY: the storage is larger and more strictly aligned than any address.
            let to = unsafe { &mut *std::ptr::from_mut(name).cast::<libc::sockaddr_in6>() };
            to.sin6_family = libc::AF_INET6 as u16;
            to.sin6_port = v6.port().to_be();
            to.sin6_addr.s6_addr = v6.ip().octets();
            to.sin6_scope_id = v6.scope_id();
            size_of::<libc::sockaddr_in6>() as u32
        }
    }
}
