//! The UDP socket of the underlay: one socket for both families where the machine allows, never blocking.
//!
//! Sizes. The outer datagram of a full overlay packet is up to 1488 bytes with an IPv6 header and a relay prefix, and underlays
//! with a smaller MTU exist (PPPoE, VPNs, VXLAN). A datagram that does not fit must then travel in fragments rather than vanish:
//! over IPv4 the don't-fragment bit is off and what ICMP claims about the path is not believed (`IP_PMTUDISC_OMIT`: fragments are
//! made here for the interface's MTU, and by routers after that; nobody can shrink the path by a forged message). Over IPv6 only
//! the sender makes fragments, so there ICMP must be heard (`IPV6_PMTUDISC_WANT`, never below 1280).
//!
//! Addresses. What is sent to an endpoint leaves from the address of ours that the endpoint last wrote to.
//!
//! Offloads. Many datagrams for one endpoint go to the kernel in one call (`UDP_SEGMENT`, Linux 4.18) and come from it in one
//! (`UDP_GRO`, 5.0). Both are probed when the socket is made. Segmentation is refused where the device cannot finish checksums
//! (`EIO`): given up for this socket; and where the route's MTU is below a datagram's size (`EINVAL`, `EMSGSIZE`): that batch then
//! leaves one by one, in fragments.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
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

/// The most datagrams the kernel cuts from one call: UDP_MAX_SEGMENTS before Linux 6.8, 128 since.
pub const MAX_SEGMENTS: usize = 64;

/// The most bytes of datagrams in one call: a UDP payload's limit over IPv4.
pub const MAX_BYTES: usize = 65_507;

/// Which offloads a socket uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Offloads {
    /// Many datagrams in one call out.
    pub segment: bool,
    /// Many datagrams in one call in.
    pub gro: bool,
}

impl Offloads {
    /// Whatever the kernel can.
    pub const ALL: Self = Self { segment: true, gro: true };
    /// As if the kernel could nothing.
    pub const NONE: Self = Self { segment: false, gro: false };
}

/// What one call has received: datagrams of one origin, all but the last of one length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Bytes of all together.
    pub len: usize,
    /// Length of each but the last.
    pub segment: usize,
    /// Who seems to have sent them.
    pub origin: SocketAddr,
    /// The buffer was too short: the end is lost.
    pub is_cut: bool,
}

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
    can_segment: AtomicBool,
    can_gro: AtomicBool,
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

    /// Another socket on the same address and port: the kernel gives each peer's datagrams to one of them, always the same.
    ///
    /// # Errors
    /// The system's.
    pub fn another(&self) -> io::Result<Self> {
        // Only now: whoever binds first must find out that the port is taken.
        setsockopt(&self.socket, sockopt::ReusePort, &true)?;
        Self::open_as(self.socket.local_addr()?, self.family, true)
    }

    fn open(address: SocketAddr, family: Family) -> io::Result<Self> {
        Self::open_as(address, family, false)
    }

    fn open_as(address: SocketAddr, family: Family, shares: bool) -> io::Result<Self> {
        let domain = if family == Family::V4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(domain, SockType::Datagram, flags, None)?;
        if family != Family::V4 {
            setsockopt(&socket, sockopt::Ipv6V6Only, &(family == Family::V6))?;
        }
        if shares {
            setsockopt(&socket, sockopt::ReusePort, &true)?;
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
        // Asking for no segmentation shows whether there is any.
        let can_segment = set_number(&socket, libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_ok();
        let can_gro = set_number(&socket, libc::SOL_UDP, libc::UDP_GRO, 1).is_ok();
        Ok(Self {
            socket: socket.into(),
            family,
            sources,
            can_segment: AtomicBool::new(can_segment),
            can_gro: AtomicBool::new(can_gro),
        })
    }

    /// Which offloads it uses now.
    pub fn offloads(&self) -> Offloads {
        Offloads { segment: self.can_segment.load(Relaxed), gro: self.can_gro.load(Relaxed) }
    }

    /// Uses no other offloads than these from now on.
    pub fn restrict(&self, offloads: Offloads) {
        self.can_segment.fetch_and(offloads.segment, Relaxed);
        if !offloads.gro && self.can_gro.swap(false, Relaxed) {
            let _ = set_number(&self.socket, libc::SOL_UDP, libc::UDP_GRO, 0);
        }
    }

    /// Holds no more than this many bytes in either direction, as a machine with small limits would.
    ///
    /// # Errors
    /// The system's.
    pub fn limit_buffers(&self, bytes: usize) -> io::Result<()> {
        setsockopt(&self.socket, sockopt::RcvBuf, &bytes)?;
        setsockopt(&self.socket, sockopt::SndBuf, &bytes)?;
        Ok(())
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
        self.send(datagram, None, endpoint)
    }

    /// Sends `bytes` as datagrams of `segment` bytes, the last perhaps shorter: at most [`MAX_SEGMENTS`] and [`MAX_BYTES`]. Where
    /// the kernel does not cut them itself, one by one; the worst outcome counts then.
    pub fn send_segments(&self, bytes: &[u8], segment: usize, endpoint: SocketAddr) -> SendOutcome {
        if bytes.len() <= segment {
            return self.send(bytes, None, endpoint);
        }
        if self.can_segment.load(Relaxed)
            && let Ok(size) = u16::try_from(segment)
        {
            match self.send(bytes, Some(size), endpoint) {
                // Whether it was the segmentation or the way, the datagrams one by one will tell.
                SendOutcome::Failed(error) if error.is(libc::EIO) => {
                    self.can_segment.store(false, Relaxed);
                }
                SendOutcome::Unreachable | SendOutcome::TooBig => {}
                outcome @ (SendOutcome::Sent
                | SendOutcome::Full
                | SendOutcome::Filtered
                | SendOutcome::Failed(_)) => return outcome,
            }
        }
        let outcomes = bytes.chunks(segment).map(|datagram| self.send(datagram, None, endpoint));
        outcomes.fold(
            SendOutcome::Sent,
            |worst, outcome| {
                if outcome == SendOutcome::Sent { worst } else { outcome }
            },
        )
    }

    fn send(&self, bytes: &[u8], segment: Option<u16>, endpoint: SocketAddr) -> SendOutcome {
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
            let Err(error) = datagram::send(self.socket.as_fd(), bytes, segment, name, own) else {
                return SendOutcome::Sent;
            };
            let error = OsError::of(&error);
            if error.is(libc::EINTR) {
                continue;
            }
            let outcome = outcome(error);
            // A batch that does not fit the route says so by EINVAL as well: no reason to forget an address.
            let is_size = segment.is_some() && error.is(libc::EINVAL);
            if outcome != SendOutcome::Unreachable || is_size || own.take().is_none() {
                return outcome;
            }
            // The address may be ours no more: once again from whichever there is.
            self.sources.iter().for_each(|sources| sources.forget(endpoint));
        }
    }

    /// Receives one datagram into `buf`: its length and origin. One longer than `buf` is cut. For sockets without `UDP_GRO`
    /// ([`Self::restrict`]), or buffers for many datagrams.
    ///
    /// # Errors
    /// `WouldBlock`: there is none; anything else: the socket is of no more use.
    pub fn receive_from(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.receive(buf).map(|received| (received.len, received.origin))
    }

    /// Receives what came together from one origin into `buf`, which should hold 64 KiB.
    ///
    /// # Errors
    /// `WouldBlock`: there is nothing; anything else: the socket is of no more use.
    pub fn receive(&self, buf: &mut [u8]) -> io::Result<Received> {
        loop {
            match datagram::receive(self.socket.as_fd(), buf) {
                Ok(raw) => {
                    let origin = canonical(raw.origin);
                    if let (Some(sources), Some(own)) = (&self.sources, raw.own)
                        && may_be_source(own)
                    {
                        sources.heard(origin, own, clock::since_boot());
                    }
                    let datagram::Raw { len, segment, is_cut, .. } = raw;
                    return Ok(Received { len, segment, origin, is_cut });
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

fn set_number(socket: &impl AsRawFd, level: i32, option: i32, value: i32) -> io::Result<()> {
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

    /// All datagrams that came, one by one, and in how many calls.
    fn receive_all(udp: &Udp, bytes: usize) -> (Vec<Vec<u8>>, usize) {
        let (mut datagrams, mut calls, mut got) = (Vec::new(), 0, 0);
        let mut buf = vec![0; 65_536];
        while got < bytes {
            assert!(readable([udp.as_fd()], Some(Duration::from_secs(10))).unwrap()[0]);
            let received = udp.receive(&mut buf).unwrap();
            assert!(!received.is_cut);
            got += received.len;
            calls += 1;
            datagrams.extend(buf[..received.len].chunks(received.segment).map(<[u8]>::to_vec));
        }
        (datagrams, calls)
    }

    #[test]
    fn many_datagrams_leave_and_come_in_one_call_and_one_by_one_where_the_kernel_cannot() {
        let bytes: Vec<u8> = (0..40 * 1452 + 100).map(|n| (n / 7) as u8).collect();
        let wanted: Vec<Vec<u8>> = bytes.chunks(1452).map(<[u8]>::to_vec).collect();
        for sender_can in [true, false] {
            for receiver_can in [true, false] {
                let sender = Udp::bind_to((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
                let receiver = Udp::bind_to((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
                let possible = sender.offloads();
                for (udp, can) in [(&sender, sender_can), (&receiver, receiver_can)] {
                    if !can {
                        udp.restrict(Offloads::NONE);
                        assert_eq!(udp.offloads(), Offloads::NONE);
                    }
                }
                let to = (Ipv4Addr::LOCALHOST, receiver.port().unwrap()).into();
                assert_eq!(sender.send_segments(&bytes, 1452, to), SendOutcome::Sent);
                let (datagrams, calls) = receive_all(&receiver, bytes.len());
                assert_eq!(datagrams, wanted);
                if sender_can && receiver_can && possible == Offloads::ALL {
                    assert_eq!(calls, 1, "loopback carries them whole");
                }
                if !receiver_can {
                    assert_eq!(calls, wanted.len());
                }
            }
        }
    }

    #[test]
    fn sockets_on_one_port_share_the_peers_and_each_stays_with_one() {
        let first = Udp::bind_to((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let port = first.port().unwrap();
        let second = first.another().unwrap();
        assert_eq!(second.port().unwrap(), port);
        let to = (Ipv4Addr::LOCALHOST, port).into();
        for _ in 0..8 {
            let peer = Udp::bind_to((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
            assert_eq!(peer.send_to(b"one", to), SendOutcome::Sent);
            let ready = readable([first.as_fd(), second.as_fd()], Some(Duration::from_secs(10)));
            let mine = if ready.unwrap()[0] { &first } else { &second };
            receive(mine);
            assert_eq!(peer.send_to(b"two", to), SendOutcome::Sent);
            assert_eq!(receive(mine).0, b"two");
        }
        assert!(Udp::bind_to(to).is_err(), "nobody else gets in");
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
