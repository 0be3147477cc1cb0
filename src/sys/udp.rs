//! The UDP socket of the underlay: one socket for both families where the machine allows, never blocking.
//!
//! Sizes. The outer datagram of a full overlay packet is up to 1488 bytes with an IPv6 header and a relay prefix, and underlays
//! with a smaller MTU exist (PPPoE, VPNs, VXLAN). A datagram that does not fit must then travel in fragments rather than vanish:
//! over IPv4 the don't-fragment bit is off and what ICMP claims about the path is not believed (`IP_PMTUDISC_OMIT`: fragments are
//! made here for the interface's MTU, and by routers after that; nobody can shrink the path by a forged message). Over IPv6 only
//! the sender makes fragments, so there ICMP must be heard (`IPV6_PMTUDISC_WANT`, never below 1280).
//!
//! Addresses. What is sent to an endpoint leaves from the address of ours that the endpoint last wrote to.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, getsockopt, setsockopt, socket,
        sockopt,
    },
};

use super::{OsError, clock, datagram, source::Sources};

/// What the socket asks for, bytes: about 3 ms of ten gigabits. Without privilege the kernel grants `net.core.rmem_max`.
const BUFFER: usize = 4 << 20;

/// What became of a datagram. Only [`Self::Failed`] is worth a line in the log: the rest is what networks do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SendOutcome {
    /// The kernel has it.
    Sent,
    /// No room just now: poll for writing, or let it be lost.
    Full,
    /// A local firewall drops what goes there (`EPERM`): the path is down, this process is not.
    Filtered,
    /// No way there now: no route, no address of that family, interface down, or the port there is closed.
    Unreachable,
    /// Larger than the socket or the path takes even in fragments.
    TooBig,
    /// Something else.
    Failed(OsError),
}

/// A bound, non-blocking UDP socket. Addresses are plain: IPv4 is never written as mapped IPv6, in neither direction.
#[derive(Debug)]
pub struct Udp {
    socket: UdpSocket,
    family: Family,
    /// Where the socket is bound to every address.
    sources: Option<Sources>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Family {
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
    /// An IPv6 socket that carries both.
    Dual,
}

impl Udp {
    /// Binds `port` (0: any free one) on every address, both families on one socket; on IPv4 alone where the machine has no IPv6.
    ///
    /// # Errors
    /// `AddrInUse`: the port is taken; else the system's.
    pub fn bind(port: u16) -> io::Result<Self> {
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        Self::open(any, Family::Dual).or_else(|error| match error.raw_os_error() {
            Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL) => {
                Self::open((Ipv4Addr::UNSPECIFIED, port).into(), Family::V4)
            }
            Some(_) | None => Err(error),
        })
    }

    /// Binds one address, and its family alone, except for `[::]`, which is both.
    ///
    /// # Errors
    /// `AddrInUse`, `AddrNotAvailable`; else the system's.
    pub fn bind_to(address: SocketAddr) -> io::Result<Self> {
        match address.ip() {
            IpAddr::V4(_) => Self::open(address, Family::V4),
            IpAddr::V6(ip) if ip.is_unspecified() => Self::bind(address.port()),
            IpAddr::V6(_) => Self::open(address, Family::V6),
        }
    }

    fn open(address: SocketAddr, family: Family) -> io::Result<Self> {
        let domain = if family == Family::V4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(domain, SockType::Datagram, flags, None)?;
        if family != Family::V4 {
            setsockopt(&socket, sockopt::Ipv6V6Only, &(family == Family::V6))?;
        }
        bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
        for step in [sockopt_rcvbuf as fn(&OwnedFd), sockopt_sndbuf] {
            step(&socket);
        }
        if family != Family::V6 {
            // Before Linux 3.15 there is no OMIT; DONT differs in what it believes.
            set_number(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_OMIT)
                .or_else(|_| {
                    let dont = libc::IP_PMTUDISC_DONT;
                    set_number(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, dont)
                })?;
        }
        if family != Family::V4 {
            let want = libc::IPV6_PMTUDISC_WANT;
            set_number(&socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, want)?;
        }
        let sources = address.ip().is_unspecified().then(Sources::new);
        if sources.is_some() {
            let (level, option) = match family {
                Family::V4 => (libc::IPPROTO_IP, libc::IP_PKTINFO),
                // IPv4 datagrams tell their address in the mapped form.
                Family::V6 | Family::Dual => (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
            };
            set_number(&socket, level, option, 1)?;
        }
        Ok(Self { socket: socket.into(), family, sources })
    }

    /// The port it is bound to.
    ///
    /// # Errors
    /// The system's.
    pub fn port(&self) -> io::Result<u16> {
        Ok(self.socket.local_addr()?.port())
    }

    /// Bytes the kernel holds for us at most before it drops datagrams, as it counts them (overhead included).
    ///
    /// # Errors
    /// The system's.
    pub fn receive_buffer(&self) -> io::Result<usize> {
        Ok(getsockopt(&self.socket, sockopt::RcvBuf)?)
    }

    /// To be called when this machine's addresses or routes have changed: what is sent next leaves from where routing says.
    pub fn forget_sources(&self) {
        self.sources.iter().for_each(Sources::forget_all);
    }

    /// Sends one datagram.
    pub fn send_to(&self, datagram: &[u8], endpoint: SocketAddr) -> SendOutcome {
        let name = match (self.family, endpoint) {
            (Family::V4, SocketAddr::V6(_)) | (Family::V6, SocketAddr::V4(_)) => {
                return SendOutcome::Unreachable;
            }
            (Family::V4, SocketAddr::V4(_)) | (Family::V6 | Family::Dual, SocketAddr::V6(_)) => {
                endpoint
            }
            (Family::Dual, SocketAddr::V4(v4)) => {
                SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into()
            }
        };
        let mut own = self.sources.as_ref().and_then(|s| s.towards(endpoint, clock::since_boot()));
        loop {
            let Err(error) = datagram::send(self.socket.as_fd(), datagram, name, own) else {
                return SendOutcome::Sent;
            };
            let error = OsError::of(&error);
            if error.is(libc::EINTR) {
                continue;
            }
            let outcome = outcome(error);
            if outcome != SendOutcome::Unreachable || own.take().is_none() {
                return outcome;
            }
            // The address may be ours no more: once again from whichever there is.
            self.sources.iter().for_each(|sources| sources.forget(endpoint));
        }
    }

    /// Receives one datagram into `buf`: its length and origin. One longer than `buf` is cut.
    ///
    /// # Errors
    /// `WouldBlock`: there is none; anything else: the socket is of no more use.
    pub fn receive_from(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        loop {
            match datagram::receive(self.socket.as_fd(), buf) {
                Ok((length, origin, own)) => {
                    let origin = canonical(origin);
                    if let (Some(sources), Some(own)) = (&self.sources, own)
                        && may_be_source(own)
                    {
                        sources.heard(origin, own, clock::since_boot());
                    }
                    return Ok((length, origin));
                }
                // News about a datagram sent before (ICMP), not about this socket.
                Err(error) if is_hearsay(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Link-local addresses belong to an interface, which the endpoint's scope names already.
fn may_be_source(own: IpAddr) -> bool {
    match own {
        IpAddr::V4(ip) => !ip.is_multicast() && !ip.is_broadcast() && !ip.is_unspecified(),
        IpAddr::V6(ip) => !ip.is_multicast() && !ip.is_unicast_link_local() && !ip.is_unspecified(),
    }
}

impl AsFd for Udp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Mapped IPv6 addresses as the IPv4 addresses they are; flow labels, which say nothing of an endpoint, as zero.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(_) => address,
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => (v4, v6.port()).into(),
            None => SocketAddrV6::new(*v6.ip(), v6.port(), 0, v6.scope_id()).into(),
        },
    }
}

fn outcome(error: OsError) -> SendOutcome {
    match error.0 {
        libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM => SendOutcome::Full,
        libc::EPERM | libc::EACCES => SendOutcome::Filtered,
        libc::ENETUNREACH
        | libc::EHOSTUNREACH
        | libc::ENETDOWN
        | libc::EHOSTDOWN
        | libc::EADDRNOTAVAIL
        | libc::ECONNREFUSED
        | libc::ENODEV
        | libc::EINVAL => SendOutcome::Unreachable,
        libc::EMSGSIZE => SendOutcome::TooBig,
        _ => SendOutcome::Failed(error),
    }
}

fn is_hearsay(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Interrupted
        || matches!(
            error.raw_os_error(),
            Some(
                libc::ECONNREFUSED
                    | libc::EHOSTUNREACH
                    | libc::ENETUNREACH
                    | libc::EMSGSIZE
                    | libc::EHOSTDOWN
                    | libc::EPROTO
                    | libc::ENOPROTOOPT
                    | libc::EACCES
            )
        )
}

/// With privilege past the limit, else up to it; a refusal leaves the default.
fn sockopt_rcvbuf(socket: &OwnedFd) {
    let _ = setsockopt(socket, sockopt::RcvBufForce, &BUFFER)
        .or_else(|_: Errno| setsockopt(socket, sockopt::RcvBuf, &BUFFER));
}

fn sockopt_sndbuf(socket: &OwnedFd) {
    let _ = setsockopt(socket, sockopt::SndBufForce, &BUFFER)
        .or_else(|_: Errno| setsockopt(socket, sockopt::SndBuf, &BUFFER));
}

fn set_number(socket: &OwnedFd, level: i32, option: i32, value: i32) -> io::Result<()> {
    // SAFETY: these options read one int behind a valid pointer.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<i32>() as u32,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{super::poll::readable, *};

    fn receive(udp: &Udp) -> (Vec<u8>, SocketAddr) {
        assert!(readable([udp.as_fd()], Some(Duration::from_secs(10))).unwrap()[0]);
        let mut buf = [0; 2048];
        let (length, origin) = udp.receive_from(&mut buf).unwrap();
        (buf[..length].to_vec(), origin)
    }

    #[test]
    fn one_socket_speaks_both_families_and_names_them_plainly() {
        let server = Udp::bind(0).unwrap();
        let port = server.port().unwrap();
        if server.family != Family::Dual {
            println!("skipped: no IPv6 here");
            return;
        }
        for localhost in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            let client = Udp::bind_to((localhost, 0).into()).unwrap();
            assert_eq!(client.send_to(b"hello", (localhost, port).into()), SendOutcome::Sent);
            let (bytes, origin) = receive(&server);
            assert_eq!(bytes, b"hello");
            assert_eq!(origin, (localhost, client.port().unwrap()).into());
            assert_eq!(server.send_to(b"again", origin), SendOutcome::Sent);
            assert_eq!(receive(&client), (b"again".to_vec(), (localhost, port).into()));
        }
    }

    #[test]
    fn an_answer_leaves_from_the_address_that_was_asked() {
        // 127.0.0.0/8 is all ours; routing alone would answer 127.0.0.1 from 127.0.0.1.
        let one_family = Udp::bind_to((Ipv4Addr::UNSPECIFIED, 0).into()).unwrap();
        for server in [Udp::bind(0).unwrap(), one_family] {
            let client = Udp::bind_to((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
            let asked = (Ipv4Addr::new(127, 0, 0, 9), server.port().unwrap()).into();
            assert_eq!(client.send_to(b"question", asked), SendOutcome::Sent);
            let (_, origin) = receive(&server);
            assert_eq!(server.send_to(b"answer", origin), SendOutcome::Sent);
            assert_eq!(receive(&client), (b"answer".to_vec(), asked));
            server.forget_sources();
            // An address that is not ours (any more) is given up at once.
            let (sources, now) = (server.sources.as_ref().unwrap(), clock::since_boot());
            sources.heard(origin, Ipv4Addr::new(192, 0, 2, 1).into(), now);
            assert_eq!(server.send_to(b"again", origin), SendOutcome::Sent);
            assert_eq!(receive(&client).1.ip(), IpAddr::from(Ipv4Addr::LOCALHOST));
            assert_eq!(sources.towards(origin, now), None);
        }
    }

    #[test]
    fn what_cannot_be_sent_is_an_outcome_and_not_an_error() {
        let v4 = Udp::bind_to((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let v6_endpoint = (Ipv6Addr::LOCALHOST, 9).into();
        assert_eq!(v4.send_to(b"x", v6_endpoint), SendOutcome::Unreachable);
        let outside = "203.0.113.1:9".parse().unwrap();
        assert_eq!(v4.send_to(b"x", outside), SendOutcome::Unreachable, "bound to loopback");
        let own = (Ipv4Addr::LOCALHOST, v4.port().unwrap()).into();
        assert_eq!(v4.send_to(&[0; 65_508], own), SendOutcome::TooBig);
        assert_eq!(v4.receive_from(&mut [0; 9]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(outcome(OsError(libc::EPERM)), SendOutcome::Filtered);
        assert_eq!(outcome(OsError(libc::EBADF)), SendOutcome::Failed(OsError(libc::EBADF)));
    }

    #[test]
    fn a_taken_port_is_said_to_be() {
        let first = Udp::bind(0).unwrap();
        let error = Udp::bind(first.port().unwrap()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn flow_labels_do_not_make_another_endpoint() {
        let flow = SocketAddrV6::new(Ipv6Addr::LOCALHOST, 1, 7, 3);
        assert_eq!(canonical(flow.into()), SocketAddrV6::new(Ipv6Addr::LOCALHOST, 1, 0, 3).into());
        let mapped = "[::ffff:192.0.2.1]:5".parse().unwrap();
        assert_eq!(canonical(mapped), "192.0.2.1:5".parse().unwrap());
    }
}
