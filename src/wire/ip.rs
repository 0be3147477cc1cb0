//! A read-only view of an IP packet: just what routing and filters need.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Next header of control records (RFC 3692: for experiments); never allowed through the TUN.
pub const CONTROL: u8 = 253;

/// Why bytes are not a packet that may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IpError {
    /// Shorter than its header says, or no header at all.
    Truncated,
    /// Neither IPv4 nor IPv6, or a header that contradicts itself.
    Malformed,
}

/// An IP packet whose header has been checked. Borrowed: lives as long as the bytes.
#[derive(Debug, Clone, Copy)]
pub struct IpView<'a> {
    bytes: &'a [u8],
    len: usize,
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
}

impl<'a> IpView<'a> {
    /// Checks the header; bytes behind the packet's own length are cut off.
    ///
    /// # Errors
    /// [`IpError`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, IpError> {
        Self::parse_front(bytes, bytes.len())
    }

    /// The same for the first bytes of a packet of which `available` bytes are at hand, the rest elsewhere.
    ///
    /// # Errors
    /// [`IpError`].
    pub fn parse_front(bytes: &'a [u8], available: usize) -> Result<Self, IpError> {
        let front = |total: usize| {
            if total > available {
                Err(IpError::Truncated)
            } else {
                Ok(&bytes[..total.min(bytes.len())])
            }
        };
        match bytes.first().ok_or(IpError::Truncated)? >> 4 {
            4 => {
                let header: &[u8; 20] = bytes.first_chunk().ok_or(IpError::Truncated)?;
                let header_len = usize::from(header[0] & 0xf) * 4;
                let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
                if header_len < 20 || total < header_len {
                    return Err(IpError::Malformed);
                }
                let address = |at: usize| {
                    Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3])
                };
                Ok(Self {
                    bytes: front(total)?,
                    len: total,
                    source: address(12).into(),
                    destination: address(16).into(),
                    protocol: header[9],
                })
            }
            6 => {
                let header: &[u8; 40] = bytes.first_chunk().ok_or(IpError::Truncated)?;
                let total = 40 + usize::from(u16::from_be_bytes([header[4], header[5]]));
                let address = |at: usize| {
                    let mut octets = [0; 16];
                    octets.copy_from_slice(&header[at..at + 16]);
                    Ipv6Addr::from(octets)
                };
                Ok(Self {
                    bytes: front(total)?,
                    len: total,
                    source: address(8).into(),
                    destination: address(24).into(),
                    protocol: header[6],
                })
            }
            _ => Err(IpError::Malformed),
        }
    }

    /// The whole packet, cut to its own length (or its first bytes, where no more were given).
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
    /// Its length, as its header says.
    pub fn total_len(&self) -> usize {
        self.len
    }
    /// Source address of the header.
    pub fn source(&self) -> IpAddr {
        self.source
    }
    /// Destination address of the header.
    pub fn destination(&self) -> IpAddr {
        self.destination
    }
    /// IPv4 protocol or IPv6 next header.
    pub fn protocol(&self) -> u8 {
        self.protocol
    }
    /// Whether it looks like a control record, which no program may send: next header 253, or from or to the unspecified address.
    pub fn is_reserved(&self) -> bool {
        self.protocol == CONTROL
            || self.source.is_unspecified()
            || self.destination.is_unspecified()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(total: u16) -> Vec<u8> {
        let mut packet = vec![0; 28];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        packet[9] = 17;
        packet[12..16].copy_from_slice(&[10, 99, 0, 1]);
        packet[16..20].copy_from_slice(&[10, 99, 0, 2]);
        packet
    }

    #[test]
    fn a_packet_is_cut_to_its_length() {
        let packet = v4(24);
        let view = IpView::parse(&packet).expect("well-formed");
        assert_eq!(view.bytes().len(), 24);
        assert_eq!(view.source().to_string(), "10.99.0.1");
        assert_eq!(view.destination().to_string(), "10.99.0.2");
        assert_eq!(view.protocol(), 17);
        assert!(!view.is_reserved());
    }

    #[test]
    fn headers_that_lie_are_refused() {
        assert_eq!(IpView::parse(&[]).err(), Some(IpError::Truncated));
        assert_eq!(IpView::parse(&v4(29)).err(), Some(IpError::Truncated));
        assert_eq!(IpView::parse(&v4(19)).err(), Some(IpError::Malformed));
        assert_eq!(IpView::parse(&[0x60; 39]).err(), Some(IpError::Truncated));
        assert_eq!(IpView::parse(&[0x10; 60]).err(), Some(IpError::Malformed));
    }

    #[test]
    fn next_header_253_is_reserved_in_both_families() {
        let mut packet = v4(28);
        packet[9] = 253;
        assert!(IpView::parse(&packet).expect("well-formed").is_reserved());
        let mut packet = vec![0; 40];
        packet[0] = 0x60;
        packet[6] = 58;
        packet[39] = 1;
        assert!(IpView::parse(&packet).expect("well-formed").is_reserved(), "from ::");
    }
}
