//! Superpackets across real devices: what a program's system hands over whole, another's takes whole, and nothing of it is lost.

use std::{
    io::{self, IoSlice, PipeReader, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd},
    time::{Duration, Instant},
};

use clusternet::{
    channel::Suite,
    sys::{
        clock,
        enter::enter,
        namespace::{Backend, BuildSpec, Built, build_in_child},
        poll,
        process::fork_child,
        tun::{HEADER, Queue, Slots},
    },
    wire::superpacket::{self, Kind, VirtioHeader},
};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use crate::{
    desk::{Desk, IPV4, IPV6, PATIENCE, PEER4, PEER6, Tun, USER, become_user, stage},
    forge::{
        Forger,
        ends::{self, endpoint},
        packets::payload,
    },
    packets::queue,
};

const MTU: u16 = 1400;

/// Bytes of a stream: a few dozen superpackets.
const STREAM: usize = 3_000_000;

/// Datagrams of one send, and their size.
const DATAGRAMS: (usize, usize) = (40, 1000);

const PORT: u16 = 5001;

/// A node and its peer, each in its own namespaces.
struct Pair {
    desk: Desk,
    nodes: [Built; 2],
    queues: [Queue; 2],
}

fn pair(tun: Tun) -> Pair {
    let backend = stage(tun);
    become_user(USER);
    let desk = Desk::new();
    let nodes = [(IPV4, IPV6), (PEER4, PEER6)].map(|own| build(&desk, backend, own, MTU));
    let queues = [&nodes[0], &nodes[1]].map(|node| queue(node.device.try_clone().unwrap()));
    assert!(queues[0].has_offloads());
    Pair { desk, nodes, queues }
}

fn build(desk: &Desk, backend: Backend, (ipv4, ipv6): (Ipv4Addr, Ipv6Addr), mtu: u16) -> Built {
    let spec = BuildSpec { ipv4, ipv6, mtu, ..desk.spec(backend) };
    build_in_child(&spec).unwrap_or_else(|error| panic!("{error}"))
}

/// What one read gave.
fn read(queue: &Queue, packet: &mut [u8]) -> io::Result<(VirtioHeader, usize)> {
    let mut header = [0; HEADER];
    let slots = Slots { front: 0, slice: packet.len(), back: 0 };
    let len = queue.read(&mut header, packet, slots)?;
    Ok((VirtioHeader::of(header), len))
}

impl Pair {
    /// Carries packets between the nodes as two workers do, by kind alone, until the programs have ended. Gives all
    /// kinds that were seen, with the lengths.
    fn carry(&self, mut programs: PipeReader) -> Vec<(Kind, usize)> {
        let [a, b] = &self.queues;
        let mut buffer = vec![0; 65_535];
        let mut seen = Vec::new();
        let deadline: Instant = clock::now().instant + PATIENCE;
        loop {
            let ready = [a.as_fd(), b.as_fd(), programs.as_fd()];
            let [_, _, has_ended] = poll::readable(ready, Some(Duration::from_secs(1))).unwrap();
            for (from, to) in [(a, b), (b, a)] {
                while let Ok((header, len)) = read(from, &mut buffer) {
                    let packet = &mut buffer[..len];
                    let kind =
                        superpacket::kind(&header, packet).expect("what a kernel hands over");
                    seen.push((kind, len));
                    let header = superpacket::rebuild(kind, packet).expect("what a kernel made");
                    // Full queues lose packets, as anywhere.
                    let _ = to.write(&header.to_bytes(), [&*packet]);
                }
            }
            if has_ended {
                assert_eq!(programs.read(&mut [0]).unwrap(), 0);
                return seen;
            }
            assert!(clock::now().instant < deadline, "the programs do not end: {}", seen.len());
        }
    }

    /// Runs a program in each node and carries what they say to each other.
    fn run(&self, programs: [&dyn Fn(); 2]) -> Vec<(Kind, usize)> {
        let (reader, writer) = io::pipe().unwrap();
        let children = [0, 1].map(|n| {
            fork_child(|| {
                enter(&self.nodes[n].namespaces, &self.desk.view()).unwrap();
                programs[n]();
                0
            })
            .unwrap()
        });
        drop(writer);
        let seen = self.carry(reader);
        assert_eq!(children.map(|child| child.wait().unwrap()), [0, 0]);
        seen
    }
}

/// Calls until somebody answers.
fn connect(to: IpAddr) -> TcpStream {
    let deadline = clock::now().instant + PATIENCE;
    loop {
        match TcpStream::connect_timeout(&(to, PORT).into(), Duration::from_secs(1)) {
            Ok(stream) => return stream,
            Err(error) => assert!(clock::now().instant < deadline, "{error}"),
        }
    }
}

pub(crate) fn tcp(tun: Tun) {
    let pair = pair(tun);
    let data = payload(STREAM);
    for peer in [IpAddr::V4(PEER4), IpAddr::V6(PEER6)] {
        let seen = pair.run([
            &|| {
                let mut stream = connect(peer);
                stream.write_all(&data).unwrap();
                stream.shutdown(std::net::Shutdown::Write).unwrap();
                assert_eq!(stream.read(&mut [0]).unwrap(), 0);
            },
            &|| {
                let listener = TcpListener::bind((peer, PORT)).unwrap();
                let mut received = Vec::new();
                listener.accept().unwrap().0.read_to_end(&mut received).unwrap();
                assert!(received == data, "{} bytes", received.len());
            },
        ]);
        let large = seen.iter().filter(|(kind, len)| {
            let segment = MTU - if peer.is_ipv4() { 52 } else { 72 };
            *len > usize::from(MTU) && *kind == Kind::Tcp(segment)
        });
        let (count, bytes) = large.fold((0, 0), |(n, sum), (_, len)| (n + 1, sum + len));
        assert!(count > 10 && bytes > STREAM / 2, "{count} superpackets of {bytes} bytes");
    }
}

pub(crate) fn udp(tun: Tun) {
    let pair = pair(tun);
    let (count, size) = DATAGRAMS;
    let data = payload(count * size - 1);
    for peer in [IpAddr::V4(PEER4), IpAddr::V6(PEER6)] {
        let any: IpAddr = if peer.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let seen = pair.run([
            &|| {
                let socket = UdpSocket::bind((any, 0)).unwrap();
                socket.connect((peer, PORT)).unwrap();
                socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
                let segment = size as u16;
                // Until the other program runs and says so.
                loop {
                    let bytes = [IoSlice::new(&data)];
                    let cut = [ControlMessage::UdpGsoSegments(&segment)];
                    let _ =
                        sendmsg::<()>(socket.as_raw_fd(), &bytes, &cut, MsgFlags::empty(), None);
                    if socket.recv(&mut [0]).is_ok() {
                        return;
                    }
                }
            },
            &|| {
                let socket = UdpSocket::bind((peer, PORT)).unwrap();
                let mut buffer = vec![0; 65_535];
                // The first may have come before there was a socket: the beginning is known by its bytes.
                let mut received = Vec::new();
                while received.len() < count {
                    let (len, from) = socket.recv_from(&mut buffer).unwrap();
                    if buffer[..len] == data[..size] {
                        received.clear();
                    }
                    received.push(buffer[..len].to_vec());
                    if received.len() == count {
                        socket.send_to(b"!", from).unwrap();
                    }
                }
                assert!(received.concat() == data);
            },
        ]);
        let is_whole =
            |(kind, len): &(Kind, usize)| *kind == Kind::Udp(size as u16) && *len > data.len();
        if pair.queues[0].takes_udp() {
            assert!(seen.iter().any(is_whole), "{seen:?}");
        } else {
            println!("(this kernel has no superpackets of UDP: they came cut)");
        }
    }
}

/// The addresses of the forger's victim.
const VICTIM: u8 = 2;

/// Whatever passes the checks of the data plane, the kernel takes; and it goes on working.
pub(crate) fn forged(tun: Tun) {
    let backend = stage(tun);
    become_user(USER);
    let desk = Desk::new();
    let [IpAddr::V4(ipv4), IpAddr::V6(ipv6)] = ends::addresses(VICTIM) else {
        panic!("one of each family")
    };
    let node = build(&desk, backend, (ipv4, ipv6), MTU);
    let queue = queue(node.device.try_clone().unwrap());
    let mut delivered = 0;
    for seed in 1000..1100 {
        let [a, mut b] = ends::ends(Suite::Aes256Gcm, None, clock::now().instant);
        let mut forger = Forger::new(seed);
        for _ in 0..12 {
            let batch = forger.batch(&a.keypairs);
            let batch: Vec<_> = batch.into_iter().map(|one| (one.clone(), one.len())).collect();
            for (header, packet) in b.receive(endpoint(1), &batch) {
                let taken = queue.write(&header.to_bytes(), [&*packet]);
                let front = &packet[..packet.len().min(60)];
                // An Ethernet, which the packet socket is on, takes nothing above its MTU.
                let is_large = tun == Tun::Closed && packet.len() > usize::from(MTU);
                let no_room = |error: &io::Error| match error.raw_os_error() {
                    Some(libc::EAGAIN | libc::ENOBUFS) => true,
                    Some(libc::EMSGSIZE) => is_large,
                    Some(_) | None => false,
                };
                assert!(
                    taken.as_ref().err().is_none_or(no_room),
                    "{taken:?}: {header:?} before {front:02x?} of {} bytes, seed {seed}",
                    packet.len()
                );
                delivered += 1;
            }
            // What the kernel answers must not fill the queue.
            let mut buffer = vec![0; 65_535];
            while read(&queue, &mut buffer).is_ok() {}
        }
    }
    assert!(delivered > 500, "{delivered}");
    let (status, text) = desk.run(&node.namespaces, &format!("ping -n -c 1 -W 5 {ipv4}"));
    assert_eq!(status, 0, "{text}");
}
