//! Which packets may pass between a peer and this node: cryptokey routing reduced to whole addresses.
//!
//! Both directions are decided here, so that the data plane and control cannot disagree. A node is an end point, never
//! a router: what goes out comes from one of its own addresses, what comes in is for one of them and comes from one of
//! the peer's.

use std::net::IpAddr;

use super::ip::{IpError, IpView};

/// Why a packet may not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// Not an IP packet, or one whose header lies.
    #[error("not a well-formed IP packet")]
    Malformed,
    /// Looks like a control record: next header 253, or from or to the unspecified address.
    #[error("reserved for control records")]
    Reserved,
    /// The source is not an address of the sender.
    #[error("its source is not an address of its sender")]
    Source,
    /// The destination is not an address of this node.
    #[error("its destination is not an address of this node")]
    Destination,
}

impl From<IpError> for FilterError {
    fn from(error: IpError) -> Self {
        match error {
            IpError::Truncated | IpError::Malformed => Self::Malformed,
        }
    }
}

/// A packet that a peer has sent: its source belongs to that peer, its destination to this node.
///
/// # Errors
/// [`FilterError`], the first rule that it breaks.
pub fn inbound<'a>(
    packet: &'a [u8],
    own: &[IpAddr],
    peer: &[IpAddr],
) -> Result<IpView<'a>, FilterError> {
    let view = IpView::parse(packet)?;
    check_inbound(&view, own, |source| peer.contains(&source)).map(|()| view)
}

/// The same for a packet whose header has been read; `belongs` says whether an address is the sender's.
///
/// # Errors
/// [`FilterError`].
pub fn check_inbound(
    view: &IpView<'_>,
    own: &[IpAddr],
    belongs: impl Fn(IpAddr) -> bool,
) -> Result<(), FilterError> {
    if view.is_reserved() {
        return Err(FilterError::Reserved);
    }
    if !belongs(view.source()) {
        return Err(FilterError::Source);
    }
    if !own.contains(&view.destination()) {
        return Err(FilterError::Destination);
    }
    Ok(())
}

/// A packet that a program of this node has sent: its source belongs to this node. Whose its destination is, the caller
/// looks up.
///
/// # Errors
/// [`FilterError`], the first rule that it breaks.
pub fn outbound<'a>(packet: &'a [u8], own: &[IpAddr]) -> Result<IpView<'a>, FilterError> {
    let view = IpView::parse(packet)?;
    check_outbound(&view, own).map(|()| view)
}

/// The same for a packet whose header has been read.
///
/// # Errors
/// [`FilterError`].
pub fn check_outbound(view: &IpView<'_>, own: &[IpAddr]) -> Result<(), FilterError> {
    if view.is_reserved() {
        return Err(FilterError::Reserved);
    }
    if !own.contains(&view.source()) {
        return Err(FilterError::Source);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: [&str; 2] = ["10.99.0.1", "fd00::1"];
    const PEER: [&str; 2] = ["10.99.0.2", "fd00::2"];

    fn both(addresses: [&str; 2]) -> [IpAddr; 2] {
        addresses.map(|address| address.parse().unwrap())
    }

    fn packet(source: &str, destination: &str, protocol: u8) -> Vec<u8> {
        match (source.parse().unwrap(), destination.parse().unwrap()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut packet = vec![0x45, 0, 0, 20, 0, 0, 0, 0, 64, protocol, 0, 0];
                packet.extend(source.octets());
                packet.extend(destination.octets());
                packet
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut packet = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
                packet.extend(source.octets());
                packet.extend(destination.octets());
                packet
            }
            _ => panic!("mixed families"),
        }
    }

    #[test]
    fn a_peer_speaks_only_for_itself_and_only_to_us() {
        let check = |source, destination, protocol| {
            inbound(&packet(source, destination, protocol), &both(OWN), &both(PEER)).map(|_| ())
        };
        for (source, destination) in [("10.99.0.2", "10.99.0.1"), ("fd00::2", "fd00::1")] {
            assert_eq!(check(source, destination, 17), Ok(()));
            assert_eq!(check(source, destination, 253), Err(FilterError::Reserved));
        }
        assert_eq!(check("10.99.0.3", "10.99.0.1", 17), Err(FilterError::Source));
        assert_eq!(
            check("10.99.0.1", "10.99.0.1", 17),
            Err(FilterError::Source),
            "ours, reflected"
        );
        assert_eq!(check("fd00::3", "fd00::1", 17), Err(FilterError::Source));
        assert_eq!(check("10.99.0.2", "10.99.0.3", 17), Err(FilterError::Destination));
        assert_eq!(check("10.99.0.2", "224.0.0.1", 17), Err(FilterError::Destination));
        assert_eq!(check("fd00::2", "ff02::1", 58), Err(FilterError::Destination));
        assert_eq!(check("::", "::", 17), Err(FilterError::Reserved));
        assert_eq!(inbound(b"junk", &both(OWN), &both(PEER)).err(), Some(FilterError::Malformed));
    }

    #[test]
    fn programs_speak_only_for_this_node() {
        let check = |source, destination, protocol| {
            outbound(&packet(source, destination, protocol), &both(OWN)).map(|_| ())
        };
        assert_eq!(check("10.99.0.1", "10.99.0.2", 6), Ok(()));
        assert_eq!(check("fd00::1", "fd00::9", 6), Ok(()));
        assert_eq!(check("10.99.0.2", "10.99.0.3", 6), Err(FilterError::Source));
        assert_eq!(check("fe80::1", "ff02::2", 58), Err(FilterError::Source));
        assert_eq!(check("10.99.0.1", "10.99.0.2", 253), Err(FilterError::Reserved));
        assert_eq!(check("fd00::1", "::", 6), Err(FilterError::Reserved));
    }
}
