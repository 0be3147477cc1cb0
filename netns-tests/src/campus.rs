//! The lab that most tests use: four hosts at three sites, none of which lets strangers in.
//!
//! ```text
//!                        internet
//!         ┌─────────────────┼───────────────────┐
//!     203.0.113.0/24   198.51.100.0/24     192.0.2.0/24
//!         │                 │                   │
//!      head .10           a .20              nat .30     masquerade, a random port for each flow
//!      UDP 4242 open      nothing open          │        nothing open
//!                                         192.168.1.0/24
//!                                          ┌────┴────┐
//!                                        b .2      c .3
//! ```
//!
//! With an IPv6-only underlay the same with 2001:db8:1::/64, :2::/64, :3::/64 and fd42:1::/64,
//! address translation included.

use std::net::SocketAddr;

use anyhow::Result;

use crate::lab::{Family, Lab, Nat, Prefixes, Tun};

/// The UDP port that the firewall of `head` leaves open.
pub const HEAD_PORT: u16 = 4242;

/// The hosts of people, in the order in which they join.
pub const HOSTS: [&str; 4] = ["head", "a", "b", "c"];

/// Lets in what was asked for, what IPv6 needs to find neighbours, and `also`.
pub fn closed_but_for(also: &str) -> String {
    format!(
        "table inet firewall {{
          chain in {{
            type filter hook input priority filter; policy drop;
            ct state established,related accept
            iif lo accept
            icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
            {also}
          }}
        }}"
    )
}

/// Makes the hosts, their networks and firewalls.
///
/// # Errors
///
/// Something of it cannot be made on this machine.
pub fn build(family: Family, tun: Tun, nat: Nat) -> Result<Lab> {
    let mut lab = Lab::new(family, tun);
    lab.router("internet", None, Nat::None)?;
    lab.lan("east", "internet", Prefixes { v4: "203.0.113.", v6: "2001:db8:1::" })?;
    lab.lan("west", "internet", Prefixes { v4: "198.51.100.", v6: "2001:db8:2::" })?;
    lab.lan("isp", "internet", Prefixes { v4: "192.0.2.", v6: "2001:db8:3::" })?;
    lab.router("nat", Some(("isp", 30)), nat)?;
    lab.lan("home", "nat", Prefixes { v4: "192.168.1.", v6: "fd42:1::" })?;
    lab.host("head", "east", 10)?;
    lab.host("a", "west", 20)?;
    lab.host("b", "home", 2)?;
    lab.host("c", "home", 3)?;
    lab.firewall("head", &closed_but_for(&format!("udp dport {HEAD_PORT} accept")))?;
    lab.firewall("a", &closed_but_for(""))?;
    Ok(lab)
}

/// Makes b and c keep each other out, so that only the master is left to them. In an IPv4 lab.
///
/// # Errors
///
/// It is another lab.
pub fn quarrel(lab: &Lab) -> Result<()> {
    [("b", "192.168.1.3"), ("c", "192.168.1.2")].into_iter().try_for_each(|(host, neighbour)| {
        lab.firewall(
            host,
            &format!(
                "table inet quarrel {{
                  chain in {{ type filter hook input priority 10; ip saddr {neighbour} drop
                  }}
                  chain out {{ type filter hook output priority 10; ip daddr {neighbour} drop
                  }}
                }}"
            ),
        )
    })
}

/// Ends their [`quarrel`].
///
/// # Errors
///
/// They have none.
pub fn make_up(lab: &Lab) -> Result<()> {
    ["b", "c"].iter().try_for_each(|host| lab.firewall(host, "delete table inet quarrel"))
}

/// Where `head` can be reached from everywhere.
pub fn head_endpoint(lab: &Lab) -> SocketAddr {
    SocketAddr::new(lab.on("head").address(), HEAD_PORT)
}
