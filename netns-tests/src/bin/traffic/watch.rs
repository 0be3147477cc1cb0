//! Looks at every frame on a cable, as root: what kinds of datagrams there are, and whether anything is readable or said twice.

use std::collections::HashMap;
use std::io::Read;
use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use netns_tests::traffic::{Channel, Watched};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket, sockopt,
};

use crate::tell;

const ETHERNET: usize = 14;

/// What a cable of the lab takes, with its Ethernet header.
const LONGEST_FRAME: usize = ETHERNET + 1500;

/// First bytes of messages, and the length of what stands in front of them; typed from the protocol.
const CHANNEL: u8 = 0x10;
const RELAY: (u8, usize) = (0x20, 8);

/// How much of a text is looked for: what is split between two frames is found in neither.
const FOUND: usize = 16;

pub(crate) fn run(interface: &str, text: Option<&str>) -> Result<Watched> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)
        .context("make a packet socket")?;
    setsockopt(&socket, sockopt::RcvBufForce, &(512 << 20)).context("make room")?;
    setsockopt(&socket, sockopt::BindToDevice, &interface.into())
        .with_context(|| format!("watch {interface}"))?;
    // Reading is the same for sockets of any kind.
    let socket = UdpSocket::from(socket);
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let is_over = Arc::new(AtomicBool::new(false));
    let over = Arc::clone(&is_over);
    std::thread::spawn(move || {
        std::io::stdin().read_to_end(&mut Vec::new()).ok();
        over.store(true, Ordering::Relaxed);
    });
    tell("ready");
    let text = text.map(|text| text.bytes().take(FOUND).collect());
    let mut watcher = Watcher { text, ..Watcher::default() };
    let mut frame = vec![0; 1 << 17];
    loop {
        match socket.recv(&mut frame) {
            Ok(len) => watcher.take(&frame[..len]),
            // What was there when it was to end has been read.
            Err(_) if is_over.load(Ordering::Relaxed) => return Ok(watcher.watched),
            Err(_) => {}
        }
    }
}

#[derive(Default)]
struct Watcher {
    watched: Watched,
    text: Option<Vec<u8>>,
    /// Counters seen, by receiver index.
    seen: HashMap<u32, Vec<u64>>,
}

impl Watcher {
    fn take(&mut self, frame: &[u8]) {
        if let Some(text) = &self.text
            && contains(frame, text)
        {
            self.watched.readable += 1;
        }
        if frame.len() > LONGEST_FRAME {
            self.watched.joined += 1;
            return;
        }
        match datagram(frame) {
            Ok((from, bytes)) => self.datagram(from, bytes),
            Err(what) => *self.watched.others.entry(what).or_default() += 1,
        }
    }

    fn datagram(&mut self, from: IpAddr, datagram: &[u8]) {
        let mut message = datagram;
        if message.first() == Some(&RELAY.0) {
            self.watched.relayed += 1;
            message = message.get(RELAY.1..).unwrap_or_default();
        }
        let kind = message.first().copied().unwrap_or_default();
        let tally = self.watched.types.entry(kind).or_default();
        tally.datagrams += 1;
        tally.bytes += datagram.len() as u64;
        tally.largest = tally.largest.max(datagram.len() as u64);
        if let [CHANNEL, 0, 0, 0, a, b, c, d, e, f, g, h, i, j, k, l, ..] = *message {
            let receiver = u32::from_le_bytes([a, b, c, d]);
            let counter = u64::from_le_bytes([e, f, g, h, i, j, k, l]);
            let channel = self.watched.channels.entry(receiver);
            channel.or_insert(Channel { from, messages: 0 }).messages += 1;
            let (word, bit) = ((counter / 64) as usize, 1 << (counter % 64));
            let seen = self.seen.entry(receiver).or_default();
            if seen.len() <= word {
                seen.resize(word + 1, 0);
            }
            self.watched.repeated += u64::from(seen[word] & bit != 0);
            seen[word] |= bit;
        }
    }
}

/// Who sent a frame's UDP datagram, and what is in it.
///
/// # Errors
/// What the frame is instead.
fn datagram(frame: &[u8]) -> Result<(IpAddr, &[u8]), String> {
    let cut = || "cut off".to_owned();
    let (header, packet) = frame.split_at_checked(ETHERNET).ok_or_else(cut)?;
    let (from, protocol, transport): (IpAddr, u8, &[u8]) = match [header[12], header[13]] {
        [0x08, 0x00] => {
            let ip: &[u8; 20] = packet.first_chunk().ok_or_else(cut)?;
            if u16::from_be_bytes([ip[6], ip[7]]) & 0x3fff != 0 {
                return Err("fragment".to_owned());
            }
            let len = usize::from(ip[0] & 0xf) * 4;
            let from = [ip[12], ip[13], ip[14], ip[15]];
            (from.into(), ip[9], packet.get(len..).ok_or_else(cut)?)
        }
        [0x86, 0xdd] => {
            let (ip, rest) = packet.split_first_chunk::<40>().ok_or_else(cut)?;
            let from = ip[8..].first_chunk::<16>().ok_or_else(cut)?;
            ((*from).into(), ip[6], rest)
        }
        [a, b] => return Err(format!("ethernet {a:02x}{b:02x}")),
    };
    if protocol != 17 {
        return Err(format!("protocol {protocol}"));
    }
    let (udp, rest) = transport.split_first_chunk::<8>().ok_or_else(cut)?;
    let len = usize::from(u16::from_be_bytes([udp[4], udp[5]]));
    let bytes = len.checked_sub(8).and_then(|len| rest.get(..len)).ok_or_else(cut)?;
    Ok((from, bytes))
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    let Some(first) = text.first() else { return false };
    let mut rest = bytes;
    while let Some(place) = rest.iter().position(|byte| byte == first) {
        rest = &rest[place..];
        if rest.starts_with(text) {
            return true;
        }
        rest = &rest[1..];
    }
    false
}
