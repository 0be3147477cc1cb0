//! Punts: what workers hand to control because they must not handle it.
//!
//! Theory of operation. Each worker has one queue to control, made of three bounded ones, a quota for each class: a
//! flood of handshakes takes no place from the packets of members, nor the other way round. The queues are lock-free
//! on the worker's side. A full one drops the newest and counts it; only packets of programs are not dropped: the
//! worker asks [`Sender::room`] first and leaves them in the TUN, where the kernel slows the programs down, until
//! control calls it back. Buffers come from a bounded pool and go back to it. Control is woken once per batch.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
    mpsc,
};

use super::drops::{Counters, DropReason};
use crate::path::route::Route;

/// What is punted, each with its own quota.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Class {
    /// Handshake messages with a valid mac1, and cookie replies.
    Handshake,
    /// Transport data with a known tunnel index.
    Tunnel,
    /// IP packets of programs for a member.
    Packet,
}

impl Class {
    /// In the order in which control takes them: an answered handshake makes the data behind it readable.
    pub const ALL: [Self; 3] = [Self::Handshake, Self::Tunnel, Self::Packet];

    /// How many may wait. Handshakes cost control some 0.2 ms each, so 256 are a twentieth of a second of work, and
    /// more of them are a flood. Data and packets: a few milliseconds of a gigabit, so that bursts pass and queues
    /// stay short.
    pub fn quota(self) -> usize {
        match self {
            Self::Handshake => 256,
            Self::Tunnel => 1024,
            Self::Packet => 512,
        }
    }

    fn full(self) -> DropReason {
        match self {
            Self::Handshake => DropReason::HandshakeQueueFull,
            Self::Tunnel => DropReason::TunnelQueueFull,
            Self::Packet => DropReason::PacketQueueFull,
        }
    }
}

/// Something that control must handle. Borrowed: until the callback of [`Receiver::drain`] returns.
#[derive(Debug, Clone, Copy)]
pub enum Punt<'a> {
    /// A datagram, relay prefix cut off, and where it came from.
    Datagram(Route, &'a [u8]),
    /// A packet of a program.
    Packet(&'a [u8]),
}

/// A buffer that has grown beyond this is not kept: one jumbo packet must not hold memory for ever.
const KEEP_CAPACITY: usize = 2048;

#[derive(Debug)]
struct Item {
    origin: Option<Route>,
    bytes: Vec<u8>,
}

#[derive(Debug, Default)]
struct Shared {
    waiting: [AtomicUsize; 3],
    /// The worker has left packets in the TUN and wants to be called.
    stalled: AtomicBool,
}

/// The worker's end. Dropping it ends the queue.
#[expect(missing_debug_implementations, reason = "holds a callback")]
pub struct Sender {
    queues: [mpsc::SyncSender<Item>; 3],
    pool: mpsc::Receiver<Vec<u8>>,
    shared: Arc<Shared>,
    counters: Arc<Counters>,
    wake: Box<dyn Fn() + Send>,
    pending: bool,
}

/// Control's end.
#[expect(missing_debug_implementations, reason = "holds a callback")]
pub struct Receiver {
    queues: [mpsc::Receiver<Item>; 3],
    pool: mpsc::SyncSender<Vec<u8>>,
    shared: Arc<Shared>,
    resume: Box<dyn Fn() + Send>,
}

/// A queue from one worker to control. `wake` wakes control, `resume` wakes the worker; neither may block.
pub fn queue(
    counters: Arc<Counters>,
    wake: impl Fn() + Send + 'static,
    resume: impl Fn() + Send + 'static,
) -> (Sender, Receiver) {
    let pairs = Class::ALL.map(|class| mpsc::sync_channel(class.quota()));
    let (senders, receivers): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    let total = Class::ALL.into_iter().map(Class::quota).sum();
    let (to_pool, pool) = mpsc::sync_channel(total);
    let shared = Arc::<Shared>::default();
    let sender = Sender {
        queues: senders.try_into().expect("made of three"),
        pool,
        shared: Arc::clone(&shared),
        counters,
        wake: Box::new(wake),
        pending: false,
    };
    let receiver = Receiver {
        queues: receivers.try_into().expect("made of three"),
        pool: to_pool,
        shared,
        resume: Box::new(resume),
    };
    (sender, receiver)
}

impl Sender {
    /// Hands over a datagram, copied. Full: dropped and counted.
    pub fn datagram(&mut self, class: Class, origin: Route, bytes: &[u8]) {
        self.push(class, Some(origin), bytes);
    }

    /// Hands over a packet, copied. Full: dropped and counted; ask [`Self::room`] first.
    pub fn packet(&mut self, bytes: &[u8]) {
        self.push(Class::Packet, None, bytes);
    }

    /// How many more of this class would be taken.
    pub fn room(&self, class: Class) -> usize {
        class.quota().saturating_sub(self.shared.waiting[class as usize].load(Ordering::Acquire))
    }

    /// To be called when a packet was left in the TUN for want of room: `true`, and control will call the worker back when
    /// there is; `false` where there is room again already.
    pub fn stall(&self) -> bool {
        self.shared.stalled.store(true, Ordering::SeqCst);
        // Looked at again after the flag is up: whoever made room in between has either seen the flag or is seen here.
        if self.shared.waiting[Class::Packet as usize].load(Ordering::SeqCst)
            < Class::Packet.quota()
        {
            self.shared.stalled.store(false, Ordering::SeqCst);
            return false;
        }
        true
    }

    /// Ends a batch: wakes control if there is anything for it.
    pub fn flush(&mut self) {
        if std::mem::take(&mut self.pending) {
            (self.wake)();
        }
    }

    fn push(&mut self, class: Class, origin: Option<Route>, bytes: &[u8]) {
        let waiting = &self.shared.waiting[class as usize];
        if waiting.fetch_add(1, Ordering::SeqCst) >= class.quota() {
            waiting.fetch_sub(1, Ordering::SeqCst);
            self.counters.count(class.full());
            return;
        }
        let mut buffer = self.pool.try_recv().unwrap_or_default();
        buffer.extend_from_slice(bytes);
        match self.queues[class as usize].try_send(Item { origin, bytes: buffer }) {
            Ok(()) => self.pending = true,
            Err(_) => {
                waiting.fetch_sub(1, Ordering::SeqCst);
                self.counters.count(class.full());
            }
        }
    }
}

impl Receiver {
    /// How many of a class wait.
    #[cfg(test)]
    pub(super) fn waiting(&self, class: Class) -> usize {
        self.shared.waiting[class as usize].load(Ordering::SeqCst)
    }

    /// Hands over what waits, at most `limit` of each class, handshakes first. Says whether more may be waiting.
    pub fn drain(&mut self, limit: usize, mut handle: impl FnMut(Punt<'_>)) -> bool {
        let mut more = false;
        for class in Class::ALL {
            let mut taken = 0;
            while taken < limit {
                let Ok(Item { origin, mut bytes }) = self.queues[class as usize].try_recv() else {
                    break;
                };
                self.shared.waiting[class as usize].fetch_sub(1, Ordering::SeqCst);
                taken += 1;
                handle(match origin {
                    Some(origin) => Punt::Datagram(origin, &bytes),
                    None => Punt::Packet(&bytes),
                });
                bytes.clear();
                if bytes.capacity() <= KEEP_CAPACITY {
                    let _ = self.pool.try_send(bytes);
                }
            }
            more |= taken == limit;
        }
        // Half empty before the worker is called back: not for each packet.
        let waiting = self.shared.waiting[Class::Packet as usize].load(Ordering::SeqCst);
        if waiting <= Class::Packet.quota() / 2 && self.shared.stalled.swap(false, Ordering::SeqCst)
        {
            (self.resume)();
        }
        more
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin() -> Route {
        Route::direct(([192, 0, 2, 9], 9).into())
    }

    fn counted() -> (Arc<AtomicUsize>, impl Fn() + Send + 'static) {
        let count = Arc::<AtomicUsize>::default();
        let called = Arc::clone(&count);
        (count, move || {
            called.fetch_add(1, Ordering::SeqCst);
        })
    }

    fn drain(receiver: &mut Receiver) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        receiver.drain(usize::MAX, |punt| match punt {
            Punt::Datagram(_, bytes) | Punt::Packet(bytes) => all.push(bytes.to_vec()),
        });
        all
    }

    #[test]
    fn each_class_has_its_own_quota_and_the_newest_is_dropped() {
        let counters = Arc::<Counters>::default();
        let (mut sender, mut receiver) = queue(Arc::clone(&counters), || (), || ());
        for n in 0..Class::Handshake.quota() + 10 {
            sender.datagram(Class::Handshake, origin(), &n.to_be_bytes());
        }
        assert_eq!(sender.room(Class::Handshake), 0);
        assert_eq!(counters.drops(DropReason::HandshakeQueueFull), 10);
        sender.packet(b"packet");
        sender.datagram(Class::Tunnel, origin(), b"data");
        assert_eq!(counters.report().count(), 1, "the others still had room");
        let all = drain(&mut receiver);
        assert_eq!(all.len(), Class::Handshake.quota() + 2);
        assert_eq!(all[0], 0_usize.to_be_bytes());
        assert_eq!(all[Class::Handshake.quota() - 1], (Class::Handshake.quota() - 1).to_be_bytes());
        assert_eq!(&all[Class::Handshake.quota()..], [b"data".to_vec(), b"packet".to_vec()]);
        assert!(sender.room(Class::Handshake) > 0);
    }

    #[test]
    fn control_is_woken_once_per_batch_and_not_for_nothing() {
        let (wakes, wake) = counted();
        let (mut sender, _receiver) = queue(Arc::default(), wake, || ());
        sender.flush();
        assert_eq!(wakes.load(Ordering::SeqCst), 0);
        for _ in 0..50 {
            sender.packet(b"packet");
        }
        sender.flush();
        sender.flush();
        assert_eq!(wakes.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_worker_that_left_packets_behind_is_called_back() {
        let (calls, resume) = counted();
        let (mut sender, mut receiver) = queue(Arc::default(), || (), resume);
        assert!(!sender.stall(), "there is room");
        for _ in 0..Class::Packet.quota() {
            sender.packet(b"packet");
        }
        assert!(sender.stall());
        receiver.drain(1, |_| ());
        assert_eq!(calls.load(Ordering::SeqCst), 0, "not for one");
        drain(&mut receiver);
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        drain(&mut receiver);
        assert_eq!(calls.load(Ordering::SeqCst), 1, "once");
    }

    #[test]
    fn buffers_come_back_but_big_ones_do_not() {
        let (mut sender, mut receiver) = queue(Arc::default(), || (), || ());
        sender.packet(&[7; 1400]);
        sender.packet(&[8; 60_000]);
        drain(&mut receiver);
        let kept = sender.pool.try_recv().unwrap();
        assert!(kept.is_empty() && kept.capacity() >= 1400);
        assert!(sender.pool.try_recv().is_err());
    }

    #[test]
    fn nothing_is_lost_or_doubled_between_threads() {
        let counters = Arc::<Counters>::default();
        let (mut sender, mut receiver) = queue(Arc::clone(&counters), || (), || ());
        const ALL: u32 = 200_000;
        let worker = std::thread::spawn(move || {
            for n in 0..ALL {
                sender.datagram(Class::Tunnel, origin(), &n.to_be_bytes());
            }
        });
        let (mut got, mut last) = (0_u64, None);
        let mut take = |receiver: &mut Receiver| {
            receiver.drain(64, |punt| {
                let Punt::Datagram(_, bytes) = punt else { panic!("only datagrams were sent") };
                let n = u32::from_be_bytes(bytes.try_into().unwrap());
                assert!(last < Some(n), "in order, each once");
                last = Some(n);
                got += 1;
            })
        };
        while !worker.is_finished() {
            take(&mut receiver);
        }
        worker.join().unwrap();
        while take(&mut receiver) {}
        assert_eq!(got + counters.drops(DropReason::TunnelQueueFull), u64::from(ALL));
    }
}
