//! Numbered datagrams of all sizes over UDP; the server tells how they came.
//!
//! A datagram of 16 bytes or more says its number, its length and whose it is, and the rest follows from these; of a shorter
//! one the bytes follow from its length. The server answers every receive with the highest number it has seen, so that
//! the client never has more under way than a socket holds, and the last one, which is repeated, with its report.

use std::collections::{HashMap, VecDeque};
use std::io::{ErrorKind, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use netns_tests::clock::now;
use netns_tests::traffic::{Arrived, Datagrams, PORT, Stream};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt,
    sockopt,
};

use crate::at;

/// Number, length, whose.
const HEADER: usize = 16;

/// The number that asks for the report.
const END: u64 = u64::MAX;

/// The largest datagram.
const LARGEST: u64 = 60_000;

/// The most bytes under way: a fifth of what a socket holds at least, as kernels count.
const UNDER_WAY: u64 = 200_000;

/// What is not answered after this is lost.
const LOST_AFTER: Duration = Duration::from_millis(60);

/// Sizes about which something may go wrong: around the payloads of the overlay's and the underlay's MTUs, of slices, of
/// PVM's packets, and at both ends.
const SIZES: [u64; 26] = [
    1,
    2,
    15,
    16,
    17,
    1212,
    1232,
    1252,
    1253,
    1352,
    1372,
    1373,
    1380,
    1392,
    1393,
    1404,
    1405,
    1412,
    2800,
    4080,
    8872,
    8892,
    8893,
    30_000,
    LARGEST - 1,
    LARGEST,
];

#[derive(Args)]
pub(crate) struct Options {
    /// Where a server runs.
    to: IpAddr,
    /// For how long, milliseconds.
    #[arg(long, default_value_t = 3000)]
    milliseconds: u64,
    /// How fast, datagrams a second; 0: as fast as they are answered.
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// All of this size, instead of all sizes.
    #[arg(long)]
    size: Option<u64>,
    /// Asks the server for what its kernel has joined.
    #[arg(long)]
    joined: bool,
}

/// The bytes that all datagrams are taken from.
struct Contents(Stream);

impl Contents {
    fn new() -> Self {
        Self(Stream::new(0xda7a))
    }

    /// What follows the header.
    fn of(&self, number: u64, whose: u32, len: usize) -> &[u8] {
        let place = number.wrapping_mul(7919).wrapping_add(u64::from(whose) * 104_729);
        self.0.at(place, len)
    }

    fn short(&self, len: usize) -> &[u8] {
        self.0.at(len as u64 * 31, len)
    }

    fn write(&self, number: u64, whose: u32, len: usize, to: &mut Vec<u8>) {
        if len < HEADER {
            return to.extend_from_slice(self.short(len));
        }
        to.extend(number.to_le_bytes());
        to.extend((len as u32).to_le_bytes());
        to.extend(whose.to_le_bytes());
        to.extend_from_slice(self.of(number, whose, len - HEADER));
    }
}

pub(crate) fn run(options: &Options) -> Result<Datagrams> {
    let contents = Contents::new();
    let whose = std::process::id();
    let to = at(options.to, if options.joined { PORT + 1 } else { PORT });
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    let socket = UdpSocket::bind(any).context("make a socket")?;
    // The socket speaks both families; addresses of version 4 in the mapped form.
    let to = match to.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), to.port()),
        IpAddr::V6(_) => to,
    };
    socket.connect(to).with_context(|| format!("connect to {to}"))?;
    socket.set_read_timeout(Some(LOST_AFTER))?;
    let (mut sent, mut sent_joined, mut under_way) = (0, 0, Window::default());
    let started = now();
    let mut buffer = Vec::new();
    let mut round = 0_u64;
    while started.elapsed() < Duration::from_millis(options.milliseconds) {
        if let Some(due) = (sent * 1_000_000_u64).checked_div(options.rate)
            && let Some(wait) = Duration::from_micros(due).checked_sub(started.elapsed())
        {
            std::thread::sleep(wait);
        }
        round += 1;
        // Every fifth send leaves as a superpacket, one of two lengths.
        let group = if options.size.is_none() && round.is_multiple_of(5) { 40 } else { 1 };
        let size = match options.size {
            Some(size) => size,
            None if group > 1 => [1200, 400][(round % 2) as usize],
            None => SIZES.get((round % 64) as usize).copied().unwrap_or_else(|| {
                round * 7907 % if round.is_multiple_of(7) { LARGEST } else { 3000 } + 1
            }),
        };
        buffer.clear();
        for _ in 0..group {
            contents.write(sent, whose, size as usize, &mut buffer);
            sent += 1;
        }
        let segment = size as u16;
        let cut = ControlMessage::UdpGsoSegments(&segment);
        let control = if group > 1 { std::slice::from_ref(&cut) } else { &[] };
        let bytes = [IoSlice::new(&buffer)];
        loop {
            match sendmsg::<()>(socket.as_raw_fd(), &bytes, control, MsgFlags::empty(), None) {
                Ok(_) => break,
                Err(nix::Error::EINTR | nix::Error::ENOBUFS) => {}
                Err(error) => bail!("send {group} of {size} bytes: {error}"),
            }
        }
        if group > 1 {
            sent_joined += group;
        }
        if size >= HEADER as u64 {
            under_way.sent(sent - 1, buffer.len() as u64);
        }
        while under_way.is_full() {
            under_way.wait(&socket)?;
        }
    }
    for _ in 0..200 {
        buffer.clear();
        buffer.extend(END.to_le_bytes());
        buffer.extend((HEADER as u32).to_le_bytes());
        buffer.extend(whose.to_le_bytes());
        socket.send(&buffer).context("send the end")?;
        let mut answer = [0; 1024];
        while let Ok(len) = socket.recv(&mut answer) {
            if let Ok(arrived) = serde_json::from_slice::<Arrived>(&answer[..len]) {
                return Ok(Datagrams { sent, sent_joined, arrived });
            }
        }
    }
    bail!("the server does not answer")
}

/// What may be under way.
#[derive(Default)]
struct Window {
    /// Number and bytes of what has not been answered.
    sends: VecDeque<(u64, u64)>,
    bytes: u64,
}

impl Window {
    fn sent(&mut self, number: u64, bytes: u64) {
        self.sends.push_back((number, bytes));
        self.bytes += bytes;
    }

    fn is_full(&self) -> bool {
        self.bytes > UNDER_WAY
    }

    /// Waits for an answer; what has none after a while is lost.
    fn wait(&mut self, socket: &UdpSocket) -> Result<()> {
        let mut answer = [0; 8];
        match socket.recv(&mut answer) {
            Ok(_) => {
                let highest = u64::from_le_bytes(answer);
                while self.sends.front().is_some_and(|(number, _)| *number <= highest) {
                    let answered = self.sends.pop_front();
                    self.bytes -= answered.map_or(0, |(_, bytes)| bytes);
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                *self = Self::default();
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("wait for an answer"),
        }
        Ok(())
    }
}

/// What one client has sent.
#[derive(Default)]
struct Session {
    seen: Vec<bool>,
    highest: u64,
    arrived: Arrived,
}

pub(crate) struct Server {
    socket: UdpSocket,
    contents: Contents,
}

impl Server {
    pub(crate) fn new(port: u16) -> Result<Self> {
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).context("make a socket")?;
        setsockopt(&socket, sockopt::RcvBuf, &(4 << 20)).context("set the size of its buffer")?;
        Ok(Self { socket, contents: Contents::new() })
    }

    /// One that takes datagrams as the kernel has joined them.
    pub(crate) fn joined(port: u16) -> Result<Self> {
        let server = Self::new(port)?;
        setsockopt(&server.socket, sockopt::UdpGroSegment, &true)
            .context("ask for joined datagrams")?;
        Ok(server)
    }

    pub(crate) fn run(&self) {
        let mut sessions = HashMap::<(SocketAddr, u32), Session>::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            let mut control = nix::cmsg_space!(i32);
            let mut parts = [IoSliceMut::new(&mut buffer)];
            let fd = self.socket.as_raw_fd();
            let Ok(message) =
                recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut control), MsgFlags::empty())
            else {
                continue;
            };
            let len = message.bytes;
            let segment = message.cmsgs().ok().and_then(|mut all| {
                all.find_map(|one| {
                    let ControlMessageOwned::UdpGroSegments(size) = one else { return None };
                    usize::try_from(size).ok()
                })
            });
            let origin = message.address.and_then(|address| {
                address
                    .as_sockaddr_in6()
                    .map(|address| SocketAddr::from(std::net::SocketAddrV6::from(*address)))
            });
            let Some(origin) = origin else { continue };
            let segment = segment.filter(|segment| *segment > 0).unwrap_or_else(|| len.max(1));
            let mut answer = None;
            for datagram in buffer[..len].chunks(segment) {
                answer = self.take(&mut sessions, origin, datagram, segment < len).or(answer);
            }
            if let Some(answer) = answer {
                // As any datagram it may be lost.
                self.socket.send_to(&answer, origin).ok();
            }
        }
    }

    /// One datagram, and what is to be answered.
    fn take(
        &self,
        sessions: &mut HashMap<(SocketAddr, u32), Session>,
        origin: SocketAddr,
        datagram: &[u8],
        is_joined: bool,
    ) -> Option<Vec<u8>> {
        let Some((header, rest)) = datagram.split_first_chunk::<HEADER>() else {
            let is_right = datagram == self.contents.short(datagram.len());
            // Whose it is it cannot say: of a client there is one session.
            for (_, session) in sessions.iter_mut().filter(|((from, _), _)| *from == origin) {
                session.arrived.received += 1;
                session.arrived.wrong += u64::from(!is_right);
            }
            return None;
        };
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *header;
        let number = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        let len = u32::from_le_bytes([i, j, k, l]) as usize;
        let whose = u32::from_le_bytes([m, n, o, p]);
        let session = sessions.entry((origin, whose)).or_default();
        if number == END {
            return serde_json::to_vec(&session.arrived).ok();
        }
        let arrived = &mut session.arrived;
        arrived.received += 1;
        arrived.joined += u64::from(is_joined);
        if len != datagram.len() || rest != self.contents.of(number, whose, len - HEADER) {
            arrived.wrong += 1;
            eprintln!(
                "traffic: datagram {number} of {len} bytes came wrong, with {}",
                datagram.len()
            );
            return None;
        }
        let place = number as usize;
        if session.seen.len() <= place {
            session.seen.resize(place + 1, false);
        }
        arrived.repeated += u64::from(std::mem::replace(&mut session.seen[place], true));
        if number < session.highest {
            arrived.late += 1;
            arrived.latest_by = arrived.latest_by.max(session.highest - number);
        }
        session.highest = session.highest.max(number);
        Some(session.highest.to_le_bytes().to_vec())
    }
}
