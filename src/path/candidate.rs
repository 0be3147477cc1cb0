//! Which addresses somebody else claims may be probed at all.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// What is known of our own place, to judge other nodes' claims by.
#[derive(Debug, Clone, Default)]
pub struct Vantage {
    /// Networks of our own interfaces: directly connected.
    pub connected: Vec<IpNet>,
    /// Our own addresses on those interfaces.
    pub own: Vec<IpAddr>,
    /// Our addresses as others have seen them.
    pub reflexive: Vec<IpAddr>,
    /// The overlay, which must never carry itself.
    pub overlay: Vec<IpNet>,
}

impl Vantage {
    /// Whether `claim`, one of the candidates `all` of a peer, may be probed.
    ///
    /// Refused: port 0, unspecified, multicast, broadcast, the overlay's own prefixes, and addresses of this machine's
    /// loopback unless the peer is on this machine. Private, unique-local and link-local ones only when both nodes
    /// share a reflexive address (so they are behind one NAT) or the network is directly connected.
    pub fn accepts(&self, claim: SocketAddr, all: &[SocketAddr]) -> bool {
        let ip = claim.ip().to_canonical();
        if claim.port() == 0
            || ip.is_unspecified()
            || ip.is_multicast()
            || self.overlay.iter().any(|net| net.contains(&ip))
        {
            return false;
        }
        let is_broadcast = |ip: IpAddr| {
            match ip {
            IpAddr::V4(v4) => {
                v4.is_broadcast()
                    || self.connected.iter().any(|net| {
                        matches!(net, IpNet::V4(net) if net.prefix_len() < 31 && net.broadcast() == v4)
                    })
            }
            IpAddr::V6(_) => false,
        }
        };
        if is_broadcast(ip) {
            return false;
        }
        if ip.is_loopback() {
            return self.shares_host(all);
        }
        if is_local(ip) {
            return self.connected.iter().any(|net| net.contains(&ip))
                || self.shares_reflexive(all)
                || self.shares_host(all);
        }
        true
    }

    /// Whether the peer claims an address that others have seen us at.
    fn shares_reflexive(&self, all: &[SocketAddr]) -> bool {
        all.iter().any(|claim| self.reflexive.contains(&claim.ip().to_canonical()))
    }

    /// Whether the peer claims an address of this very machine, or has like us been seen coming from loopback.
    fn shares_host(&self, all: &[SocketAddr]) -> bool {
        all.iter().any(|claim| {
            let ip = claim.ip().to_canonical();
            if ip.is_loopback() { self.reflexive.contains(&ip) } else { self.own.contains(&ip) }
        })
    }
}

/// Private (RFC 1918), shared (RFC 6598), link-local and unique-local addresses.
fn is_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            let shared = Ipv4Net::new_assert([100, 64, 0, 0].into(), 10);
            v4.is_private() || v4.is_link_local() || shared.contains(&v4)
        }
        IpAddr::V6(v6) => {
            let unique_local = Ipv6Net::new_assert(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7);
            let link_local = Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10);
            unique_local.contains(&v6) || link_local.contains(&v6)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vantage() -> Vantage {
        Vantage {
            connected: vec!["192.168.1.0/24".parse().expect("literal")],
            own: vec!["192.168.1.5".parse().expect("literal")],
            reflexive: vec!["203.0.113.9".parse().expect("literal")],
            overlay: vec![
                "10.99.0.0/16".parse().expect("literal"),
                "fd01::/48".parse().expect("literal"),
            ],
        }
    }

    fn accepts(claims: &[&str]) -> bool {
        let all: Vec<SocketAddr> = claims.iter().map(|c| c.parse().expect("literal")).collect();
        vantage().accepts(all[0], &all)
    }

    #[test]
    fn public_addresses_are_probed() {
        assert!(accepts(&["198.51.100.1:5"]));
        assert!(accepts(&["[2001:db8::1]:5"]));
    }

    #[test]
    fn what_could_hit_everybody_or_nobody_is_not() {
        for claim in [
            "198.51.100.1:0",
            "0.0.0.0:5",
            "[::]:5",
            "224.0.0.1:5",
            "[ff02::1]:5",
            "255.255.255.255:5",
            "192.168.1.255:5",
            "10.99.0.7:5",
            "[fd01::7]:5",
            "127.0.0.1:5",
            "[::1]:5",
            "[::ffff:127.0.0.1]:5",
        ] {
            assert!(!accepts(&[claim]), "{claim}");
        }
    }

    #[test]
    fn private_addresses_only_next_door() {
        assert!(accepts(&["192.168.1.77:5"]), "directly connected");
        assert!(!accepts(&["10.0.0.1:5"]));
        assert!(!accepts(&["[fd77::1]:5"]));
        assert!(!accepts(&["169.254.1.1:5"]));
        assert!(accepts(&["10.0.0.1:5", "203.0.113.9:700"]), "behind the same NAT");
    }

    #[test]
    fn loopback_only_on_the_same_machine() {
        assert!(accepts(&["127.0.0.1:5", "192.168.1.5:5"]));
        let mut vantage = vantage();
        vantage.reflexive = vec!["127.0.0.1".parse().expect("literal")];
        let claim = "127.0.0.1:5".parse().expect("literal");
        assert!(vantage.accepts(claim, &[claim]), "both were seen coming from loopback");
    }
}
