//! The real binaries and the real programs on hosts with firewalls.
//!
//! A *lab* is a handful of hosts on this machine. Each host is a set of namespaces (network, mount,
//! host name, IPC, processes) with its own `/tmp`, `/run`, `/home`, `/etc/passwd` and users, its own
//! nftables firewall, and virtual cables to routers that may translate addresses. What runs on a
//! host is started there as an ordinary user; nothing of the real machine but its installed
//! programs can be seen.
//!
//! ```text
//!                   ┌────────────── internet ──────────────┐
//!                   │                  │                   │
//!              head │                a │               nat │ masquerade, nothing comes in
//!        one UDP port open     nothing comes in        ┌───┴───┐
//!                                                      b       c
//! ```
//!
//! That is what [`campus`] makes, the lab most tests use, with an IPv4-only or an IPv6-only underlay.
//!
//! # How it stays clean
//!
//! Nothing has a name outside of a process: every namespace is held by the first process of its
//! host, which dies with the test binary (`PR_SET_PDEATHSIG`), and takes with it every process,
//! mount, interface and file of the host. A killed run therefore leaves nothing to sweep, and any
//! number of runs may go on at once.
//!
//! # How it is run
//!
//! `cargo test -p netns-tests` and `cargo nextest run -p netns-tests` both work, as root. The first
//! makes one lab for many checks, the second one lab for each. Without root every check prints
//! `skipped: needs root to make network namespaces; run: sudo make test`. The binaries under test
//! are built from the current tree before the first lab is made: see [`binaries`].

pub mod binaries;
pub mod campus;
pub mod clock;
pub mod command;
pub mod harness;
mod host_init;
pub mod lab;
pub mod link;
pub mod network;
pub mod programs;
pub mod traffic;
