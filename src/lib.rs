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
//!     worker: whose? cut, seal, send                    worker: receive, open, join, write
//!     control: Node (sans-IO): tunnels, keys, paths     control: the same
//!        │  UDP: channel messages; WireGuard's in front    ▲
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
//! | [`wire`] | message headers, IP views, checksums, superpackets, control records and their parts, the relay prefix |
//! | [`sys`] | every system call and every `unsafe`: namespaces, devices, descriptors, sockets |
//! | [`tunnel`] | one peer's WireGuard state: a facade over boringtun, its deadlines, the gate before handshakes |
//! | [`channel`] | the data channel keyed inside a tunnel: exchange, keypairs (seal, open), replay window |
//! | [`path`] | which way to reach one peer: candidates, probes, choice, routes |
//! | [`roster`] | who is in the network, what was taken back, and how that spreads |
//! | [`node`] | the whole control plane of one member, sans-IO |
//! | [`dataplane`] | table, outbound, inbound, slices, segment, coalesce, punts; the worker threads |
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
//! Out ([`dataplane::outbound`]): a program writes to a socket in the namespace; its kernel puts a superpacket of up to 60,000 bytes on
//! `cn0`. A worker reads it straight into the places of the datagrams that it will be, looks its destination up in the table, drops
//! what may not pass (reserved, foreign source, unknown destination), reserves as many counters as there are slices, writes headers
//! into the gaps, seals each slice where it lies, and hands all to the kernel in one `UDP_SEGMENT` send. Small packets for one peer
//! that are at hand together share a send.
//!
//! In ([`dataplane::inbound`]): one `UDP_GRO` receive brings the datagrams of one peer. Their keys are found by index, the replay
//! window is asked and told once, each is opened in place; the slices are joined as ranges of the buffer, the source must belong to
//! the peer and the destination be ours, the virtio header is computed from the packet itself, and one `writev` hands the superpacket
//! to the device. It was never cut into TCP segments on the way. Small neighbours of one flow are coalesced as the kernel's GRO does.
//!
//! Everything else is punted to control, in queues with a quota each: handshakes with a right mac1, tunnel data, packets for peers
//! without keys (staged until there are some) and for plain WireGuard members (segmented first: they ride the tunnel). A relay
//! prefix of ours is swapped and all datagrams behind it go on in one send. What workers notice (the first message under new keys, a
//! new origin, traffic after a rest) are punts too.
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
//! * **Punts are dropped when their quota is full, packets of programs too.** To leave them in the device would hold up the packets
//!   that workers seal by themselves. Only a socket without room holds the device back, since then nothing could be sent anyway.
//! * **A packet is spread over its datagrams while it is read.** Each part lands where it will be sealed and sent: no copy in user space.
//!   Whose it is, and so how it should be spread, is known only afterwards: the last packet's spread is taken, and a packet that needs
//!   another is moved once. More peers with different spreads than one at a time would make a copy the common case.
//! * **Slices, not segments and not one seal over all.** Each datagram authenticates itself, so a lost one costs itself; the headers of
//!   a superpacket travel once. One seal for the whole gained three per cent with AES when it was tried.
//! * **Workers look about before they sleep, at most 200 µs ([`dataplane::poll`]).** Waking a halted core costs more than a packet. Who
//!   pays by the watt sets `poll = 0`.
//! * **One worker unless there are sixteen cores.** One moves what a ten-gigabit link carries; several share one port by `SO_REUSEPORT`,
//!   so one peer's datagrams stay on one of them. Measured on two cores only: figures from larger machines would change this.
//! * **sftp and ssh's flow control are our own on top of russh.** russh-sftp knows only UTF-8 names; russh's windows deadlock when
//!   a command reads and writes much at once. Both reasons stand in `daemon/src/ssh`.
//! * **The bounding set of a command that root runs keeps `CAP_NET_RAW`.** Debian's `ping` has it as a file capability, and exec fails
//!   where the bounding set lacks what a file asks for; permitted, effective and ambient sets are empty all the same.
//! * **Reflexive addresses are a master's or relay's word.** Our address as seen from outside is taken from masters and relays only; a lie there costs probes
//!   that [`path::budget`] bounds.
//! * **boringtun's own sessions are not zeroized.** It keeps its keys in `ring` types that are not; ours are. RLIMIT_CORE is 0
//!   and the process is not dumpable.
//! * **The pre-shared key of tunnels is zero.** Recorded control records are as safe as X25519; what programs send rides the channel, whose keys add ML-KEM-768.
//! * **An offerer numbers its offers by the milliseconds since it started.** Numbers must rise although a peer may be put away and met
//!   again, and nothing about a peer that was put away is kept. Each side has its own numbers.
//! * **Whoever starts to seal under new keys sends an empty message.** The offerer's makes the other side switch, the other's shows
//!   that it has; the offerer repeats its own until then, so one lost datagram costs 250 ms and a failure of ML-KEM, which is
//!   silent, is noticed.
//! * **A probe asks whether the peer still has the keys.** One side can lose them alone (its clock leapt, it put the other away, a
//!   certificate was renewed in the middle of an exchange); the other would go on sealing for nobody for up to three minutes.
//! * **Keys are made for peers that are sent to, and renewed only while something passes.** A master knows thousands of nodes and
//!   talks with few; the first packet after a silence waits one round trip more.
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
