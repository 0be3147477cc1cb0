//! Echo requests of many sizes, many under way at once, every byte of the replies checked.
//!
//! By a socket of type ICMP datagram, as everybody has them inside: the kernel writes identifier and checksum.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use netns_tests::traffic::{Echoes, Stream};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket, sockopt,
};

use crate::at;

/// Type, code, checksum, identifier, sequence number.
const HEADER: usize = 8;

/// How many are under way at once.
const AT_ONCE: usize = 16;

/// How often a lost one is repeated: a large one that travels as 24 datagrams there and back, one in twenty of them lost, comes
/// through three times in ten.
const TRIES: u32 = 100;

#[derive(Args)]
pub(crate) struct Options {
    /// Whom.
    to: IpAddr,
    /// Bytes behind the header, of the first.
    #[arg(long, default_value_t = 0)]
    from: u16,
    /// Of the last.
    #[arg(long, default_value_t = 9000)]
    up_to: u16,
    /// From one size to the next.
    #[arg(long, default_value_t = 1)]
    step: usize,
}

pub(crate) fn run(options: &Options) -> Result<Echoes> {
    let (family, protocol, request, reply) = match options.to {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 8, 0),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128, 129),
    };
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket =
        socket(family, SockType::Datagram, flags, protocol).context("make an ICMP socket")?;
    setsockopt(&socket, sockopt::RcvBuf, &(4 << 20)).context("set the size of its buffer")?;
    setsockopt(&socket, sockopt::SndBuf, &(4 << 20)).context("set the size of its buffer")?;
    let socket = UdpSocket::from(socket);
    let to: SocketAddr = at(options.to, 0);
    socket.connect(to).with_context(|| format!("connect to {to}"))?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    let data = Stream::new(0xec0);
    let content = |size: u16| data.at(u64::from(size) * 7919, size.into());
    let mut echoes = Echoes::default();
    let mut waiting: VecDeque<(u16, u32)> =
        (options.from..=options.up_to).step_by(options.step).map(|size| (size, 0)).collect();
    let mut buffer = vec![0; 1 << 16];
    while !waiting.is_empty() {
        let mut under_way: Vec<(u16, u32)> = waiting.drain(..AT_ONCE.min(waiting.len())).collect();
        for (size, tries) in &mut under_way {
            ensure!(*tries < TRIES, "{size} bytes never came back");
            echoes.repeated += u64::from(*tries > 0);
            *tries += 1;
            let mut message = vec![request, 0, 0, 0, 0, 0];
            message.extend(size.to_be_bytes());
            message.extend_from_slice(content(*size));
            match socket.send(&message) {
                Err(error) if error.raw_os_error() != Some(nix::libc::ENOBUFS) => {
                    return Err(error).with_context(|| format!("send {size} bytes"));
                }
                Ok(_) | Err(_) => {}
            }
        }
        while !under_way.is_empty() {
            let len = match socket.recv(&mut buffer) {
                Ok(len) => len,
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    break;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).context("receive"),
            };
            let (header, came) = buffer[..len].split_at(HEADER.min(len));
            if header.first() != Some(&reply) || header.len() < HEADER {
                continue;
            }
            let size = u16::from_be_bytes([header[6], header[7]]);
            // One that came too late has been counted as lost, and is right all the same.
            if came.len() != usize::from(size) || came != content(size) {
                echoes.wrong += 1;
            }
            let place = under_way.iter().position(|(sent, _)| *sent == size);
            if let Some(place) = place {
                under_way.swap_remove(place);
                echoes.right += 1;
            }
        }
        waiting.extend(under_way);
    }
    Ok(echoes)
}
