//! One data-plane thread: takes packets and datagrams as long as any are at hand, looks about for a moment, sleeps.
//!
//! Alone in the data plane in using system calls. Each turn: load the table; receive datagrams through [`inbound`] until there are
//! none or the arena is full; read packets through [`outbound`] until there are none or the batch is full, and send them; let go of
//! the table. Neither side can starve the other, nothing waits for a batch to fill, and nothing is allocated after the start.
//!
//! *Sleeping.* To wake a thread on a halted core costs ten times what a packet costs. So after the last packet the worker looks
//! about for a while ([`Poll`]) before it sleeps, yielding the core between looks.
//!
//! *Backpressure.* While the socket has no room, packets stay in the device, whose queue slows the programs down.

use std::{
    io,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use super::{
    drops::{Counters, DropReason},
    inbound::{self, Inbound, Sink, Takes},
    outbound::{self, Batch, Spread},
    poll::Poll,
    punt::Sender,
    table::Reader,
};
use crate::{
    path::route::{Egress, SocketId},
    sys::{
        clock::Clock,
        fd::Wake,
        poll::{self, Interest},
        process,
        tun::{HEADER, Queue, Slots},
        udp::{SendOutcome, Udp},
    },
    wire::{message::Mac1Key, superpacket::VirtioHeader},
};

/// What a worker works with. Queue and socket are shared with control, which writes to both.
#[expect(missing_debug_implementations, reason = "holds a callback")]
pub struct Worker {
    /// Packets of programs.
    pub queue: Arc<Queue>,
    /// Datagrams of the underlay.
    pub udp: Arc<Udp>,
    /// Which socket that is in routes.
    pub socket: SocketId,
    /// Which stripe it seals, alone.
    pub stripe: u8,
    /// The core it is bound to, if any.
    pub core: Option<u16>,
    /// What is looked up.
    pub table: Reader,
    /// Tells handshakes made for us.
    pub mac1: Mac1Key,
    /// To control.
    pub punts: Sender,
    /// What is counted.
    pub counters: Arc<Counters>,
    /// Wakes it: to stop, and to let go of an old table.
    pub wake: Arc<Wake>,
    /// By which keys live.
    pub clock: Clock,
    /// How long it looks about before it sleeps.
    pub poll: Poll,
}

/// A running worker. Dropping it stops the thread and waits for its end.
#[derive(Debug)]
pub struct Handle {
    stop: Arc<AtomicBool>,
    wake: Arc<Wake>,
    thread: Option<JoinHandle<()>>,
}

/// How far the sending of a batch has come.
#[derive(Default)]
struct Left {
    /// Sends that are done.
    sent: usize,
    /// The next has found no room before.
    has_waited: bool,
}

/// What a turn found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    /// There may be more.
    Something,
    /// There was nothing.
    Nothing,
    /// The socket has no room for what waits.
    Blocked,
}

impl Worker {
    /// Starts the thread. `ended` is called at its end, with the reason if it was not asked to stop: the device or the
    /// socket is of no more use.
    ///
    /// # Errors
    /// No more threads.
    pub fn spawn(self, ended: impl FnOnce(io::Result<()>) + Send + 'static) -> io::Result<Handle> {
        let stop = Arc::<AtomicBool>::default();
        let wake = Arc::clone(&self.wake);
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name(format!("worker{}", self.stripe))
            .spawn(move || ended(self.run(&stopped)))?;
        Ok(Handle { stop, wake, thread: Some(thread) })
    }

    fn run(mut self, stop: &AtomicBool) -> io::Result<()> {
        if let Some(core) = self.core
            && let Err(error) = process::bind_to_core(core)
        {
            tracing::warn!(%error, core, "a worker is not bound to its core");
        }
        let mut batch = Batch::default();
        let mut inbound =
            Inbound::new(Takes { tcp: self.queue.has_offloads(), udp: self.queue.takes_udp() });
        let mut left = Left::default();
        loop {
            let found = self.turn(&mut inbound, &mut batch, &mut left)?;
            if found == Found::Something {
                self.poll.found();
                continue;
            }
            if found == Found::Nothing && self.poll.may_look_again(self.clock.instant()) {
                thread::yield_now();
                continue;
            }
            let udp = if found == Found::Blocked { Interest::Both } else { Interest::Read };
            let wake = (self.wake.as_fd(), Interest::Read);
            let udp = (self.udp.as_fd(), udp);
            let woken = if found == Found::Blocked {
                poll::wait([wake, udp], None)?[0]
            } else {
                poll::wait([wake, udp, (self.queue.as_fd(), Interest::Read)], None)?[0]
            };
            self.poll.woken(self.clock.instant());
            if woken {
                self.wake.clear();
                if stop.load(Ordering::Acquire) {
                    return Ok(());
                }
            }
        }
    }

    fn turn(
        &mut self,
        inbound: &mut Inbound,
        batch: &mut Batch,
        left: &mut Left,
    ) -> io::Result<Found> {
        let received = self.take_datagrams(inbound)?;
        if !batch.is_empty() && !self.flush(batch, left) {
            return Ok(if received { Found::Something } else { Found::Blocked });
        }
        let read = self.take_packets(batch, left)?;
        Ok(if received || read { Found::Something } else { Found::Nothing })
    }

    fn take_datagrams(&mut self, inbound: &mut Inbound) -> io::Result<bool> {
        let mut received = match inbound.room().map(|room| self.udp.receive(room)) {
            Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Some(received) => received?,
            None => return Ok(false),
        };
        let table = self.table.load();
        let now = self.clock.instant();
        let context =
            inbound::Context { table: &table, mac1: &self.mac1, now, counters: &self.counters };
        let mut sink = Ends {
            udp: &self.udp,
            queue: &self.queue,
            socket: self.socket,
            counters: &self.counters,
        };
        loop {
            if received.is_cut {
                self.counters.count(DropReason::Truncated);
            }
            let origin = Egress::Udp { socket: self.socket, endpoint: received.origin };
            let size = (received.len, received.segment);
            inbound.take(&context, origin, size, &mut self.punts, &mut sink);
            let Some(room) = inbound.room() else { break };
            received = match self.udp.receive(room) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            };
        }
        inbound.finish(&context, &mut self.punts, &mut sink);
        Ok(true)
    }

    fn take_packets(&mut self, batch: &mut Batch, left: &mut Left) -> io::Result<bool> {
        let mut header = [0; HEADER];
        let mut table = None;
        while !batch.is_full() {
            let (room, Spread { front, slice, back }) = batch.room();
            let len = match self.queue.read(&mut header, room, Slots { front, slice, back }) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            };
            // Loaded after the packet has come: what was removed before is not used for it.
            let table = table.get_or_insert_with(|| (self.table.load(), self.clock.instant()));
            let context = outbound::Context {
                table: &table.0,
                stripe: self.stripe,
                now: table.1,
                counters: &self.counters,
            };
            let header = VirtioHeader::of(header);
            batch.take(&context, &header, len, &mut self.punts, |reply| {
                deliver(&self.queue, &self.counters, VirtioHeader::default(), [reply].into_iter());
            });
        }
        if table.is_none() {
            return Ok(false);
        }
        self.punts.flush();
        self.flush(batch, left);
        Ok(true)
    }

    /// Sends what the batch holds, from where it was left. `false`: the socket has no more room just now.
    fn flush(&mut self, batch: &mut Batch, left: &mut Left) -> bool {
        for (datagrams, segment, to) in batch.sends().skip(left.sent) {
            match self.udp.send_segments(datagrams, segment, to) {
                SendOutcome::Full if !left.has_waited => {
                    left.has_waited = true;
                    return false;
                }
                // There still is none: the datagrams are lost, as on any network.
                SendOutcome::Full => self.counters.count(DropReason::SendBufferFull),
                outcome @ (SendOutcome::Sent
                | SendOutcome::Filtered
                | SendOutcome::Unreachable
                | SendOutcome::TooBig
                | SendOutcome::Failed(_)) => count_send(&self.counters, outcome),
            }
            left.has_waited = false;
            left.sent += 1;
        }
        left.sent = 0;
        batch.clear();
        true
    }
}

/// Where inbound's results go.
struct Ends<'a> {
    udp: &'a Udp,
    queue: &'a Queue,
    socket: SocketId,
    counters: &'a Counters,
}

impl Sink for Ends<'_> {
    /// What cannot go at once is lost, as on any network.
    fn forward(&mut self, to: Egress, datagrams: &[u8], segment: usize) {
        match to {
            Egress::Udp { socket, endpoint } if socket == self.socket => {
                count_send(self.counters, self.udp.send_segments(datagrams, segment, endpoint));
            }
            Egress::Udp { .. } | Egress::Link(_) => self.counters.count(DropReason::SendNoEgress),
        }
    }

    fn deliver<'a>(&mut self, header: VirtioHeader, packet: impl Iterator<Item = &'a [u8]>) {
        deliver(self.queue, self.counters, header, packet);
    }
}

fn deliver<'a>(
    queue: &Queue,
    counters: &Counters,
    header: VirtioHeader,
    packet: impl Iterator<Item = &'a [u8]>,
) {
    if queue.write(&header.to_bytes(), packet).is_err() {
        counters.count(DropReason::DeliverRefused);
    }
}

fn count_send(counters: &Counters, outcome: SendOutcome) {
    match outcome {
        SendOutcome::Sent => {}
        SendOutcome::Full => counters.count(DropReason::SendBufferFull),
        SendOutcome::Filtered
        | SendOutcome::Unreachable
        | SendOutcome::TooBig
        | SendOutcome::Failed(_) => counters.count(DropReason::SendRefused),
    }
}

impl Handle {
    /// Makes the worker look at the table anew even if nothing arrives.
    pub fn wake(&self) {
        self.wake.wake();
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.wake.wake();
        if let Some(thread) = self.thread.take() {
            // A panic in it has been reported by `ended` not being called.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{IpAddr, Ipv4Addr, SocketAddr},
        os::fd::OwnedFd,
        sync::mpsc,
        time::Duration,
    };

    use super::*;
    use crate::{
        dataplane::{
            poll,
            punt::{Punt, Receiver, queue},
            table::Builder,
        },
        node::output::{Directive, PeerSlot},
        path::route::Route,
        sys::{
            fd::{message_pair, set_nonblocking},
            poll::readable,
            tun::DeviceKind,
        },
        wire::relay::{RelayIndex, wrap},
        words::key::TransportSecret,
    };

    const PATIENCE: Option<Duration> = Some(Duration::from_secs(10));

    struct World {
        table: Builder,
        /// The namespace's side of the device.
        programs: OwnedFd,
        endpoint: SocketAddr,
        punts: Receiver,
        punted: mpsc::Receiver<()>,
        ended: mpsc::Receiver<io::Result<()>>,
        counters: Arc<Counters>,
        handle: Handle,
    }

    fn pair(n: u8) -> [IpAddr; 2] {
        [[10, 99, 0, n].into(), [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(n)].into()]
    }

    fn localhost() -> Udp {
        Udp::bind_to((Ipv4Addr::LOCALHOST, 0).into()).unwrap()
    }

    /// We are 1, 2 is a member, tunnel 5 is known.
    fn world() -> World {
        let mut table = Builder::new(pair(1));
        table.apply(&Directive::InstallPeer { slot: PeerSlot(0), addresses: pair(2) });
        table.apply(&Directive::InstallTunnel { index: 5 });
        table.publish();
        let (device, programs) = message_pair().unwrap();
        set_nonblocking(&device).unwrap();
        let udp = localhost();
        let endpoint = (Ipv4Addr::LOCALHOST, udp.port().unwrap()).into();
        let counters = Arc::<Counters>::default();
        let wake = Arc::new(Wake::new().unwrap());
        let (told, punted) = mpsc::channel();
        let (punts, receiver) = queue(Arc::clone(&counters), move || told.send(()).unwrap_or(()));
        let worker = Worker {
            queue: Arc::new(Queue::new(DeviceKind::Tun, device)),
            udp: Arc::new(udp),
            socket: SocketId(0),
            stripe: 0,
            core: None,
            table: table.reader(),
            mac1: Mac1Key::of(&TransportSecret::generate().public()),
            punts,
            counters: Arc::clone(&counters),
            wake,
            clock: Clock::new(),
            poll: Poll::new(poll::LONGEST),
        };
        let (end, ended) = mpsc::channel();
        let handle = worker.spawn(move |result| end.send(result).unwrap_or(())).unwrap();
        World { table, programs, endpoint, punts: receiver, punted, ended, counters, handle }
    }

    impl World {
        /// Waits for a punt.
        fn next(&mut self) -> (Option<Route>, Vec<u8>) {
            let mut found = None;
            while found.is_none() {
                self.punts.drain(1, |punt| {
                    found = Some(match punt {
                        Punt::Datagram(origin, bytes) => (Some(origin), bytes.to_vec()),
                        Punt::Packet(bytes) => (None, bytes.to_vec()),
                        other @ (Punt::Transit(..) | Punt::Notice(_)) => panic!("{other:?}"),
                    });
                });
                if found.is_none() {
                    self.punted.recv_timeout(PATIENCE.unwrap()).unwrap();
                }
            }
            found.unwrap()
        }
    }

    fn data(tunnel: u32) -> Vec<u8> {
        let mut datagram = vec![4, 0, 0, 0];
        datagram.extend((tunnel << 8).to_le_bytes());
        datagram.resize(80, 0);
        datagram
    }

    fn packet(to: u8, size: usize) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 99, 0, 1, 10, 99, 0, to];
        packet.resize(size, 7);
        packet[2..4].copy_from_slice(&(size as u16).to_be_bytes());
        packet
    }

    fn write(fd: &OwnedFd, bytes: &[u8]) {
        assert_eq!(nix::unistd::write(fd, bytes).unwrap(), bytes.len());
    }

    #[test]
    fn packets_and_datagrams_find_their_way_to_control() {
        let mut world = world();
        let peer = localhost();
        write(&world.programs, &packet(2, 1400));
        assert_eq!(world.next(), (None, packet(2, 1400)));
        assert_eq!(peer.send_to(&data(5), world.endpoint), SendOutcome::Sent);
        let origin = Route::direct((Ipv4Addr::LOCALHOST, peer.port().unwrap()).into());
        assert_eq!(world.next(), (Some(origin), data(5)));
        // A change is seen without a restart.
        world.table.apply(&Directive::RemoveTunnel { index: 5 });
        world.table.apply(&Directive::InstallTunnel { index: 6 });
        world.table.publish();
        peer.send_to(&data(5), world.endpoint);
        peer.send_to(&data(6), world.endpoint);
        assert_eq!(world.next(), (Some(origin), data(6)));
        assert_eq!(world.counters.drops(DropReason::UnknownTunnel), 1);
    }

    #[test]
    fn a_relay_forwards_without_asking_control() {
        let mut world = world();
        let [alice, bob] = [localhost(), localhost()];
        let [from, to] =
            [&alice, &bob].map(|udp| (Ipv4Addr::LOCALHOST, udp.port().unwrap()).into());
        let [ours, others] = [RelayIndex(1), RelayIndex(2)];
        world.table.apply(&Directive::InstallRelay {
            index: ours,
            from: Route::direct(from),
            to: Route { relay: Some(others), ..Route::direct(to) },
        });
        world.table.publish();
        let inner = data(99);
        alice.send_to(&wrap(ours, &inner), world.endpoint);
        let mut buf = [0; 200];
        assert!(readable([bob.as_fd()], PATIENCE).unwrap()[0]);
        let (len, origin) = bob.receive_from(&mut buf).unwrap();
        assert_eq!((&buf[..len], origin), (wrap(others, &inner).as_slice(), world.endpoint));
        assert_eq!(world.counters.forwarded.units(), 1);
        // Bob has no such index: what he sends under it goes nowhere.
        bob.send_to(&wrap(ours, &inner), world.endpoint);
        alice.send_to(&data(5), world.endpoint);
        world.next();
        assert_eq!(world.counters.drops(DropReason::RelayOrigin), 1);
    }

    #[test]
    fn a_program_hears_at_once_that_nobody_has_an_address() {
        let world = world();
        write(&world.programs, &packet(77, 100));
        assert!(readable([world.programs.as_fd()], PATIENCE).unwrap()[0]);
        let mut reply = [0; 200];
        let len = nix::unistd::read(&world.programs, &mut reply).unwrap();
        assert_eq!(len, 128);
        assert_eq!(&reply[9..20], [1, reply[10], reply[11], 10, 99, 0, 77, 10, 99, 0, 1]);
    }

    #[test]
    fn a_worker_stops_when_told_and_says_when_its_device_is_gone() {
        let world_1 = world();
        drop(world_1.handle);
        assert!(world_1.ended.recv_timeout(PATIENCE.unwrap()).unwrap().is_ok());
        let world_2 = world();
        drop(world_2.programs);
        let ended = world_2.ended.recv_timeout(PATIENCE.unwrap()).unwrap();
        assert!(ended.is_err(), "{ended:?}");
    }
}
