//! clusternet: a rootless, userspace, encrypted virtual LAN for cluster nodes.
//!
//! This is the library: words, wire formats, the control plane as a pure state machine, the data plane, and every
//! system call. The daemon (`clusternetd`) and the command line (`clusternet`) are shells around it. What follows is the
//! architecture document; the README says how to use what it describes.
//!
//! # The picture
//!
//! ```text
//!            node a                                                     node b
//!  ┌──────────────────────────┐                               ┌──────────────────────────┐
//!  │ namespace: cn0, lo, user │                               │ namespace: cn0, lo, user │
//!  │  pvmd ── socket ── cn0 ──┼──┐                         ┌──┼── cn0 ── socket ── pvmd  │
//!  └──────────────────────────┘  │ TUN fd (or veth+packet) │  └──────────────────────────┘
//!   serve, on the host network   ▼                         ▼
//!     worker: table lookup, punt                        worker: index known? punt
//!     control: Node (sans-IO), seals                    control: Node opens, filters
//!        │  UDP: WireGuard transport data                  ▲
//!        └──────────────── direct, if a path answers ──────┤
//!        └──▶ relay (a master): swaps an 8-byte index ─────┘   never opens anything
//! ```
//!
//! # Layers
//!
//! Lowest first; each uses only what stands above it here, and siblings never import each other (`tests/layering.rs`).
//!
//! | module | owns |
//! |---|---|
//! | [`words`] | keys, names and numbers, time as an argument, and the signed statements |
//! | [`wire`] | message headers, IP views, control records and their parts, the relay prefix |
//! | [`sys`] | every system call and every `unsafe`: namespaces, devices, descriptors, sockets |
//! | [`tunnel`] | one peer's WireGuard state: a facade over boringtun, its deadlines, the gate before handshakes |
//! | [`path`] | which way to reach one peer: candidates, probes, choice, routes |
//! | [`roster`] | who is in the network, what was taken back, and how that spreads |
//! | [`node`] | the whole control plane of one member, sans-IO |
//! | [`dataplane`] | table, classification, punts, the worker thread |
//! | [`config`], [`api`] | files and the authority's ledger; the control socket |
//!
//! The library has no async and no tokio. `Instant::now`, randomness, files and sockets are touched at marked places
//! only (`sys`, `dataplane::worker`, `words::key`), so that whole networks run on a virtual clock (`tests/lan.rs`).
//!
//! # Processes
//!
//! ```text
//! clusternet join ──starts──▶ keeper ──forks once──▶ builder: user, net, mount, uts, ipc namespaces; cn0; sends the fds; exits
//!                               ├── holds namespace, device and listener fds and the key; no network code
//!                               ├── spawns ▶ serve   tunnels, on the host network; never enters the namespace
//!                               └── spawns ▶ inside  enters it while single-threaded; ssh server; no tunnel keys
//! clusternet run ──control socket──▶ namespace fds ──setns──▶ own mount namespace ──▶ exec as the user's own uid
//! ```
//!
//! `serve` may die: the keeper starts it again with the same device, and it calls at once every peer that was active.
//! When the keeper dies, `serve` and `inside` see its pipe close, remove the runtime directory and exit.
//!
//! # The way of a packet
//!
//! Out: a program writes to a socket in the namespace; the kernel puts the packet on `cn0`; the worker reads it,
//! looks its destination up in the table, drops what may not pass (reserved, foreign source, unknown destination) and
//! punts the rest to control; [`node::Node::handle_packet`] seals it in the peer's tunnel, or stages it while one is made,
//! and names the route; the shell sends the datagram, with the relay's prefix in front where a relay forwards.
//!
//! In: the worker receives a datagram; a relay prefix of ours is swapped and forwarded at once; handshakes with a
//! right mac1 and data of a known tunnel are punted, everything else is dropped and counted;
//! [`node::Node::handle_datagram`] opens it, checks that the source belongs to the peer and the destination is ours, and the shell
//! writes it to the device.
//!
//! # Trust
//!
//! An Ed25519 authority, kept offline, signs certificates, revocations and the description of the network. Two nodes
//! show each other their certificates in the first control records of a tunnel; nothing else passes before both have
//! accepted. Every record is self-verifying, so it does not matter who passes it on: a master is a meeting place, not a
//! judge.
//!
//! # Decisions
//!
//! Each: what, why, what would change our mind.
//!
//! * **Control records are IPv6 packets from `::` to `::` with next header 253.** boringtun hands its caller nothing but IP
//!   packets. A WireGuard library with a payload type of its own would change this.
//! * **A certificate's end is judged with five minutes of skew by others, and to the second by its own node.** An honest node
//!   is gone on time and says so to its peers, so tunnels end within seconds; only a node that lies about its own clock gets the five minutes.
//!   Clusters whose clocks are known to be right could do without.
//! * **An incarnation begins with the clock.** Of two machines that joined with one key the later one wins, which needs an order
//!   among starts; the low 20 bits are random. A start after the clock was set back uses the cached predecessor plus one.
//! * **The first introduction asks for an answer (`wants_answer`).** "Repeat until the flag comes back" alone does not tell a
//!   node that the other side is still waiting; one bit does, and two open peers stay quiet.
//! * **The initiator introduces itself under all new keys, not only the first.** So a peer that has lost its memory, and another machine
//!   with the same key, are noticed at the next handshake without any probing of identity.
//! * **An initiation is sent over all known ways while none is proven.** The receiver answers the first copy and ignores the
//!   others; that saves a round of timeouts per dead way. Unproven addresses have a budget of four datagrams a second over all peers.
//! * **The digest of knowledge leaves announcements out.** They change often and expire by themselves; masters are asked for them every
//!   20 s, news brings them at once.
//! * **Plain WireGuard members are reached through the first master of the description.** The certificate format has no gateway field;
//!   one fixed rule needs no agreement. Several gateways would need that field.
//! * **boringtun's timers run before handshake messages and when keys or handshakes end, not before every packet.** It takes the time
//!   of their last run for the time of the last datagram; run per packet they start a handshake with every burst after 15 idle seconds.
//!   [`tunnel`] keeps its own table of deadlines and tells the whole story.
//! * **Overlay packets that control has no room for wait in the device.** Dropping them would cost a retransmission; the kernel's
//!   own queue pushes back on the program instead. Everything else that is punted is dropped when its quota is full.
//! * **sftp and ssh's flow control are our own on top of russh.** russh-sftp knows only UTF-8 names; russh's windows deadlock when
//!   a command reads and writes much at once. Both reasons stand in `daemon/src/ssh`.
//! * **The bounding set of a command that root runs keeps `CAP_NET_RAW`.** Debian's `ping` has it as a file capability, and exec fails
//!   where the bounding set lacks what a file asks for; permitted, effective and ambient sets are empty all the same.
//! * **Reflexive addresses are a master's or relay's word.** Our address as seen from outside is taken from masters and relays only; a lie there costs probes
//!   that [`path::budget`] bounds.
//! * **boringtun's own sessions are not zeroized.** It keeps its keys in `ring` types that are not; ours are. RLIMIT_CORE is 0
//!   and the process is not dumpable.
//! * **The pre-shared key of tunnels is zero.** Recorded traffic is as safe as X25519; the data channel to come adds ML-KEM-768.
//! * **Revocations are in force as soon as one is seen, in order or not.** They are only *counted* in order.

pub mod api;
pub mod channel;
pub mod config;
pub mod dataplane;
pub mod node;
pub mod path;
pub mod roster;
pub mod sys;
pub mod tunnel;
pub mod wire;
pub mod words;
