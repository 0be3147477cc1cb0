//! One data-plane thread: sleeps until packets or datagrams are there, takes them in batches, sleeps again.
//!
//! Alone in the data plane in using system calls. Each turn: one `poll`; load the table; at most [`BATCH`] datagrams
//! through [`inbound`]; at most [`BATCH`] packets through [`outbound`]; let go of the table. Neither side can starve
//! the other, and nothing is allocated after the start but by the punts' bounded pool.

use std::{
    io,
    net::SocketAddr,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use super::{
    drops::{Counters, DropReason},
    inbound::{self, Arrival},
    outbound,
    punt::{Class, Sender},
    table::Reader,
};
use crate::{
    path::route::{Egress, SocketId},
    sys::{
        fd::Wake,
        poll::{self, Ready},
        tun::Queue,
        udp::{SendOutcome, Udp},
    },
    wire::message::Mac1Key,
};

/// Datagrams or packets a turn: enough to spread the cost of `poll`, few enough that none waits long behind the others.
const BATCH: usize = 32;

/// The largest overlay MTU (9000) with all that goes around it, and a byte to tell what did not fit.
const SLOT: usize = 9216;

/// What a worker works with. Queue and socket are shared with control, which writes to both.
#[expect(missing_debug_implementations, reason = "holds a callback")]
pub struct Worker {
    /// Packets of programs.
    pub queue: Arc<Queue>,
    /// Datagrams of the underlay.
    pub udp: Arc<Udp>,
    /// Which socket that is in routes.
    pub socket: SocketId,
    /// What is looked up.
    pub table: Reader,
    /// Tells handshakes made for us.
    pub mac1: Mac1Key,
    /// To control.
    pub punts: Sender,
    /// What is counted.
    pub counters: Arc<Counters>,
    /// Wakes it: to stop, to let go of an old table, and because there is room for packets again.
    pub wake: Arc<Wake>,
}

/// A running worker. Dropping it stops the thread and waits for its end.
#[derive(Debug)]
pub struct Handle {
    stop: Arc<AtomicBool>,
    wake: Arc<Wake>,
    thread: Option<JoinHandle<()>>,
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
            .name(format!("worker{}", self.socket.0))
            .spawn(move || ended(self.run(&stopped)))?;
        Ok(Handle { stop, wake, thread: Some(thread) })
    }

    fn run(mut self, stop: &AtomicBool) -> io::Result<()> {
        let mut arena = vec![0; BATCH * SLOT];
        let mut stalled = false;
        loop {
            let ready = self.sleep(stalled)?;
            if ready.wake {
                self.wake.clear();
                stalled = false;
            }
            if stop.load(Ordering::Acquire) {
                return Ok(());
            }
            if ready.udp {
                self.take_datagrams(&mut arena)?;
            }
            if ready.tun {
                stalled = self.take_packets(&mut arena)?;
            }
        }
    }

    /// While control has no room for packets the device is not looked at.
    fn sleep(&self, stalled: bool) -> io::Result<Ready> {
        if stalled {
            let [udp, wake] = poll::readable([self.udp.as_fd(), self.wake.as_fd()], None)?;
            Ok(Ready { tun: false, udp, wake })
        } else {
            poll::worker(&*self.queue, &*self.udp, &*self.wake, None)
        }
    }

    fn take_datagrams(&mut self, arena: &mut [u8]) -> io::Result<()> {
        let mut received: [Option<(usize, SocketAddr)>; BATCH] = [None; BATCH];
        for (slot, received) in arena.chunks_exact_mut(SLOT).zip(&mut received) {
            match self.udp.receive_from(slot) {
                Ok((SLOT.., _)) => self.counters.count(DropReason::Truncated),
                Ok(found) => *received = Some(found),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        let socket = self.socket;
        let arrivals = arena.chunks_exact_mut(SLOT).zip(received).filter_map(|(slot, received)| {
            let (len, endpoint) = received?;
            Some(Arrival { origin: Egress::Udp { socket, endpoint }, datagram: &mut slot[..len] })
        });
        let table = self.table.load();
        let (udp, counters) = (&self.udp, &self.counters);
        inbound::batch(&table, &self.mac1, arrivals, &mut self.punts, counters, |to, datagram| {
            send(udp, socket, counters, to, datagram);
        });
        Ok(())
    }

    /// Says whether packets were left behind for want of room at control's.
    fn take_packets(&mut self, arena: &mut [u8]) -> io::Result<bool> {
        let room = self.punts.room(Class::Packet).min(BATCH);
        if room == 0 {
            return Ok(self.punts.stall());
        }
        let mut lengths = [0; BATCH];
        for (slot, length) in arena.chunks_exact_mut(SLOT).zip(&mut lengths).take(room) {
            match self.queue.read(slot) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(len) => *length = len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        let packets = arena
            .chunks_exact(SLOT)
            .zip(lengths)
            .filter(|(_, length)| *length > 0)
            .map(|(slot, length)| &slot[..length]);
        let table = self.table.load();
        let (queue, counters) = (&self.queue, &self.counters);
        outbound::batch(&table, packets, &mut self.punts, counters, |reply| {
            if queue.write(reply).is_err() {
                counters.count(DropReason::DeliverRefused);
            }
        });
        Ok(false)
    }
}

/// Forwards for others: what cannot go at once is lost, as on any network.
fn send(udp: &Udp, socket: SocketId, counters: &Counters, to: Egress, datagram: &[u8]) {
    let Egress::Udp { socket: from, endpoint } = to else {
        return counters.count(DropReason::SendNoEgress);
    };
    if from != socket {
        return counters.count(DropReason::SendNoEgress);
    }
    match udp.send_to(datagram, endpoint) {
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
        net::{IpAddr, Ipv4Addr},
        os::fd::OwnedFd,
        sync::mpsc,
        time::Duration,
    };

    use super::*;
    use crate::{
        dataplane::{
            punt::{Punt, Receiver, queue},
            table::Builder,
        },
        node::output::{Directive, PeerSlot},
        path::route::Route,
        sys::{
            fd::{message_pair, set_nonblocking},
            tun::{Device, DeviceKind},
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
        let resume = Arc::clone(&wake);
        let (punts, receiver) = queue(
            Arc::clone(&counters),
            move || told.send(()).unwrap_or(()),
            move || resume.wake(),
        );
        let worker = Worker {
            queue: Arc::new(Queue::new(Device { kind: DeviceKind::Tun, fd: device })),
            udp: Arc::new(udp),
            socket: SocketId(0),
            table: table.reader(),
            mac1: Mac1Key::of(&TransportSecret::generate().public()),
            punts,
            counters: Arc::clone(&counters),
            wake,
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
        assert!(poll::readable([bob.as_fd()], PATIENCE).unwrap()[0]);
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
        assert!(poll::readable([world.programs.as_fd()], PATIENCE).unwrap()[0]);
        let mut reply = [0; 200];
        let len = nix::unistd::read(&world.programs, &mut reply).unwrap();
        assert_eq!(len, 128);
        assert_eq!(&reply[9..20], [1, reply[10], reply[11], 10, 99, 0, 77, 10, 99, 0, 1]);
    }

    #[test]
    fn packets_wait_in_the_device_while_control_is_busy_and_none_is_lost() {
        let mut world = world();
        let sent = Class::Packet.quota() + 100;
        // From a thread of its own: a socket pair wakes a blocked writer only when it is three quarters empty again, which a
        // worker that waits for control does not bring about.
        let programs = world.programs.try_clone().unwrap();
        let writer = thread::spawn(move || {
            (0..sent).for_each(|n| write(&programs, &packet(2, 100 + n)));
        });
        // Control is busy until no more of them are taken.
        while world.punts.waiting(Class::Packet) < Class::Packet.quota() {
            world.punted.recv_timeout(PATIENCE.unwrap()).unwrap();
        }
        for n in 0..sent {
            assert_eq!(world.next().1.len(), 100 + n);
        }
        writer.join().unwrap();
        assert_eq!(world.counters.report().count(), 0, "nothing was dropped");
    }

    #[test]
    fn what_is_too_long_is_counted_and_stops_nothing() {
        let mut world = world();
        let peer = localhost();
        assert_eq!(peer.send_to(&[4; 20_000], world.endpoint), SendOutcome::Sent);
        peer.send_to(&data(5), world.endpoint);
        assert_eq!(world.next().1, data(5));
        assert_eq!(world.counters.drops(DropReason::Truncated), 1);
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
