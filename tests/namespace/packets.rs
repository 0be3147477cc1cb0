//! What crosses the device, byte by byte.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd,
    process::Command,
    time::Duration,
};

use clusternet::{
    sys::{
        enter::{drop_privileges, enter},
        netlink::{LinkChange, Netlink},
        poll,
        process::fork_child,
        tun::{Device, HEADER, Queue, Slots},
        udp::{SendOutcome, Udp},
    },
    wire::superpacket::{self, NEEDS_CHECKSUM, VirtioHeader},
};
use nix::{
    sched::{CloneFlags, unshare},
    unistd::execvp,
};

use crate::desk::{Desk, PATIENCE, PEER4, PEER6, Tun, USER, become_user, skip, stage};

/// Plays the peer: answers one echo request that a program inside sends, and checks what UDP and TCP put on the wire.
pub(crate) fn packets(tun: Tun) {
    let backend = stage(tun);
    become_user(USER);
    let desk = Desk::new();
    let built = desk.build(backend);
    let queue = queue(built.device.try_clone().unwrap());
    for (option, peer, size) in [
        ("-4", PEER4.to_string(), 56),
        ("-6", PEER6.to_string(), 56),
        // To the last byte of the MTU: 1400 less the headers.
        ("-4", PEER4.to_string(), 1400 - 20 - 8),
        ("-6", PEER6.to_string(), 1400 - 40 - 8),
    ] {
        let ping = fork_child(|| {
            enter(&built.namespaces, &desk.view()).unwrap();
            drop_privileges().unwrap();
            let words = format!("ping -n -c 1 -W 15 -s {size} {option} {peer} >/dev/null");
            let words = std::ffi::CString::new(words).unwrap();
            let _ = execvp(c"sh", &[c"sh", c"-c", &words]);
            127
        })
        .unwrap();
        let mut request = await_packet(&queue, |packet| {
            matches!((packet[0] >> 4, protocol(packet)), (4, 1) | (6, 58))
                && payload(packet)[0] & 0x7f <= 8
                && [8, 128].contains(&payload(packet)[0])
        });
        assert!(checksum_is_right(&request), "what leaves is what a wire would carry");
        turn_round(&mut request);
        assert!(checksum_is_right(&request));
        queue.write(&[0; HEADER], [&*request]).unwrap();
        assert_eq!(ping.wait().unwrap(), 0, "ping {option} -s {size}");
    }
    for (kind, number) in [("udp", 17), ("tcp", 6)] {
        for peer in [PEER4.to_string(), format!("[{PEER6}]")] {
            let sender = fork_child(|| {
                enter(&built.namespaces, &desk.view()).unwrap();
                let (to, patience) =
                    (format!("{peer}:9").parse().unwrap(), Duration::from_millis(1));
                if number == 6 {
                    let _ = std::net::TcpStream::connect_timeout(&to, patience);
                } else {
                    let from = if peer.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
                    let socket = std::net::UdpSocket::bind(from).unwrap();
                    socket.send_to(&[7; 1300], to).unwrap();
                }
                0
            })
            .unwrap();
            let packet = await_packet(&queue, |packet| protocol(packet) == number);
            assert!(checksum_is_right(&packet), "{kind} to {peer}");
            sender.wait().unwrap();
        }
    }
    // Nothing that was written comes back.
    while let Ok(packet) = read(&queue) {
        assert_ne!(source(&packet), PEER4.octets().to_vec());
    }
    assert_eq!(read(&queue).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    let nothing = queue.write(&[0; HEADER], [[].as_slice()]);
    assert_eq!(nothing.unwrap_err().kind(), io::ErrorKind::InvalidInput);
}

/// The one queue of a device.
pub(crate) fn queue(device: Device) -> Queue {
    device.into_queues().remove(0)
}

/// The next packet, finished as its kernel would have without offloads.
pub(crate) fn read(queue: &Queue) -> io::Result<Vec<u8>> {
    let (mut header, mut packet) = ([0; HEADER], vec![0; 65_535]);
    let slots = Slots { front: 0, slice: packet.len(), back: 0 };
    let length = queue.read(&mut header, &mut packet, slots)?;
    packet.truncate(length);
    let header = VirtioHeader::of(header);
    if header.flags & NEEDS_CHECKSUM != 0 {
        assert!(queue.has_offloads());
        superpacket::finish(&header, &mut packet).expect("what a kernel hands over");
    }
    Ok(packet)
}

pub(crate) fn await_packet(queue: &Queue, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    loop {
        assert!(poll::readable([queue.as_fd()], Some(PATIENCE)).unwrap()[0], "no packet came");
        match read(queue) {
            Ok(packet) if wanted(&packet) => return packet,
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
    }
}

pub(crate) fn protocol(packet: &[u8]) -> u8 {
    if packet[0] >> 4 == 4 { packet[9] } else { packet[6] }
}

pub(crate) fn source(packet: &[u8]) -> Vec<u8> {
    if packet[0] >> 4 == 4 { packet[12..16].to_vec() } else { packet[8..24].to_vec() }
}

pub(crate) fn payload(packet: &[u8]) -> &[u8] {
    if packet[0] >> 4 == 4 { &packet[20..] } else { &packet[40..] }
}

/// Ones' complement sum over pseudo header and payload: zero where the checksum is right.
pub(crate) fn checksum_is_right(packet: &[u8]) -> bool {
    let pseudo = !(packet[0] >> 4 == 4 && protocol(packet) == 1);
    let mut bytes = payload(packet).to_vec();
    if !bytes.len().is_multiple_of(2) {
        bytes.push(0);
    }
    if pseudo {
        let addresses = if packet[0] >> 4 == 4 { &packet[12..20] } else { &packet[8..40] };
        bytes.extend(addresses);
        bytes.extend([0, protocol(packet)]);
        bytes.extend(u16::try_from(payload(packet).len()).unwrap().to_be_bytes());
    }
    let sum: u64 = bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(pair[1])).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    (folded & 0xffff) + (folded >> 16) == 0xffff
}

/// Makes a reply of an echo request: swapping the addresses leaves sums as they are, the type does not.
pub(crate) fn turn_round(packet: &mut [u8]) {
    let v4 = packet[0] >> 4 == 4;
    let (from, bytes, icmp) = if v4 { (12, 4, 20) } else { (8, 16, 40) };
    let (a, b) = packet[from..from + 2 * bytes].split_at_mut(bytes);
    a.swap_with_slice(b);
    let (was, is) = (packet[icmp], if v4 { 0 } else { 129 });
    packet[icmp] = is;
    // RFC 1624: HC' = ~(~HC + ~m + m').
    let old = u16::from_be_bytes([packet[icmp + 2], packet[icmp + 3]]);
    let sum = u32::from(!old) + u32::from(!(u16::from(was) << 8)) + (u32::from(is) << 8);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    packet[icmp + 2..icmp + 4].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

/// A network of this test's own, with lo up: where firewalls and links may be what the test needs.
fn own_network() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    let up = LinkChange { up: Some(true), mtu: Some(1280), ..LinkChange::default() };
    Netlink::open().unwrap().change_link("lo", up).unwrap();
}

fn localhosts(port: u16) -> [SocketAddr; 2] {
    [(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()]
}

pub(crate) fn fragments() {
    own_network();
    let (a, b) = (Udp::bind(0).unwrap(), Udp::bind(0).unwrap());
    // A full overlay packet in a tunnel, through a relay.
    let datagram = [7; 1400 + 32 + 8];
    for endpoint in localhosts(b.port().unwrap()) {
        assert_eq!(a.send_to(&datagram, endpoint), SendOutcome::Sent);
        assert!(poll::readable([b.as_fd()], Some(PATIENCE)).unwrap()[0]);
        let mut buf = [0; 2048];
        let (length, origin) = b.receive_from(&mut buf).unwrap();
        assert_eq!((&buf[..length], origin.ip()), (&datagram[..], endpoint.ip()));
    }
}

pub(crate) fn firewall() {
    own_network();
    let rules = "add table inet f; add chain inet f o { type filter hook output priority 0; }; add rule inet f o udp dport 9 drop";
    match Command::new("nft").arg(rules).status() {
        Ok(status) => assert!(status.success()),
        Err(error) => skip(&format!("nft: {error}")),
    }
    let udp = Udp::bind(0).unwrap();
    for endpoint in localhosts(9) {
        assert_eq!(udp.send_to(b"x", endpoint), SendOutcome::Filtered);
    }
    for endpoint in localhosts(udp.port().unwrap()) {
        assert_eq!(udp.send_to(b"x", endpoint), SendOutcome::Sent, "the socket lives on");
    }
    for nowhere in ["192.0.2.1:9", "[2001:db8::1]:9"] {
        assert_eq!(udp.send_to(b"x", nowhere.parse().unwrap()), SendOutcome::Unreachable);
    }
}
