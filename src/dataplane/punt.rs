//! Punts: what workers hand to control because they must not handle it.
//!
//! Theory of operation. Each worker has one queue to control, made of bounded ones, a quota for each class: a
//! flood of handshakes takes no place from the packets of members, nor the other way round. The queues are lock-free
//! on the worker's side. A full one drops the newest and counts it, as any network does: what control is slow to take must
//! not hold up what workers seal by themselves. Buffers come from a bounded pool and go back to it. Control is woken once per batch.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
    mpsc,
};

use super::drops::{Counters, DropReason};
use crate::{node::output::PeerSlot, path::route::Route};

/// What is punted, each with its own quota.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Class {
    /// Handshake messages with a valid mac1, and cookie replies.
    Handshake,
    /// Transport data with a known tunnel index.
    Tunnel,
    /// IP packets that control must send: of programs for a member, and of peers for somebody behind this node.
    Packet,
    /// What a worker has noticed.
    Notice,
}

impl Class {
    /// In the order in which control takes them: an answered handshake makes the data behind it readable.
    pub const ALL: [Self; 4] = [Self::Handshake, Self::Notice, Self::Tunnel, Self::Packet];

    /// In the order of their numbers.
    const BY_NUMBER: [Self; 4] = [Self::Handshake, Self::Tunnel, Self::Packet, Self::Notice];

    /// How many may wait. Handshakes cost control some 0.2 ms each, so 256 are a twentieth of a second of work, and
    /// more of them are a flood. Data and packets: a few milliseconds of a gigabit, so that bursts pass and queues
    /// stay short.
    pub fn quota(self) -> usize {
        match self {
            Self::Handshake => 256,
            Self::Tunnel => 1024,
            Self::Packet => 512,
            // A few for each of a hundred peers that come to life at once; what is lost is noticed again.
            Self::Notice => 512,
        }
    }

    fn full(self) -> DropReason {
        match self {
            Self::Handshake => DropReason::HandshakeQueueFull,
            Self::Tunnel => DropReason::TunnelQueueFull,
            Self::Packet => DropReason::PacketQueueFull,
            Self::Notice => DropReason::NoticeQueueFull,
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
    /// An opened packet of the peer in this place for somebody whose gateway this node is.
    Transit(PeerSlot, &'a [u8]),
    /// Something noticed.
    Notice(Notice),
}

/// What a worker has noticed while it handled messages by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// The first message has been opened under these keys: the peer has them too.
    Confirmed {
        /// [`crate::channel::keypair::Keypairs::index`].
        index: u32,
    },
    /// A message was opened that came by another way than the peer's route.
    Heard {
        /// The peer's place.
        slot: PeerSlot,
        /// Which way.
        origin: Route,
    },
    /// Something passes again: its numbers are worth looking at.
    Active {
        /// The member's place.
        slot: PeerSlot,
    },
}

/// A buffer that has grown beyond this is not kept: one jumbo packet must not hold memory for ever.
const KEEP_CAPACITY: usize = 2048;

#[derive(Debug)]
struct Item {
    what: What,
    bytes: Vec<u8>,
}

#[derive(Debug)]
enum What {
    Datagram(Route),
    Packet,
    Transit(PeerSlot),
    Notice(Notice),
}

#[derive(Debug, Default)]
struct Shared {
    waiting: [AtomicUsize; 4],
}

/// The worker's end. Dropping it ends the queue.
#[expect(missing_debug_implementations, reason = "holds a callback")]
pub struct Sender {
    queues: [mpsc::SyncSender<Item>; 4],
    pool: mpsc::Receiver<Vec<u8>>,
    shared: Arc<Shared>,
    counters: Arc<Counters>,
    wake: Box<dyn Fn() + Send>,
    pending: bool,
}

/// Control's end.
#[expect(missing_debug_implementations, reason = "holds a callback")]
pub struct Receiver {
    queues: [mpsc::Receiver<Item>; 4],
    pool: mpsc::SyncSender<Vec<u8>>,
    shared: Arc<Shared>,
}

/// A queue from one worker to control, which `wake` wakes without blocking.
pub fn queue(counters: Arc<Counters>, wake: impl Fn() + Send + 'static) -> (Sender, Receiver) {
    let pairs = Class::BY_NUMBER.map(|class| mpsc::sync_channel(class.quota()));
    let (senders, receivers): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    let total = Class::ALL.into_iter().map(Class::quota).sum();
    let (to_pool, pool) = mpsc::sync_channel(total);
    let shared = Arc::<Shared>::default();
    let sender = Sender {
        queues: senders.try_into().expect("made of four"),
        pool,
        shared: Arc::clone(&shared),
        counters,
        wake: Box::new(wake),
        pending: false,
    };
    let receiver =
        Receiver { queues: receivers.try_into().expect("made of four"), pool: to_pool, shared };
    (sender, receiver)
}

impl Sender {
    /// Hands over a datagram, copied. Full: dropped and counted.
    pub fn datagram(&mut self, class: Class, origin: Route, bytes: &[u8]) {
        self.push(class, What::Datagram(origin), bytes);
    }

    /// Hands over a packet, copied. Full: dropped and counted.
    pub fn packet(&mut self, bytes: &[u8]) {
        self.push(Class::Packet, What::Packet, bytes);
    }

    /// Hands over an opened packet that goes on from here, copied. Full: dropped and counted.
    pub fn transit(&mut self, from: PeerSlot, bytes: &[u8]) {
        self.push(Class::Packet, What::Transit(from), bytes);
    }

    /// Tells what was noticed. Full: dropped and counted, and `false`: to be told again.
    pub fn notice(&mut self, notice: Notice) -> bool {
        self.push(Class::Notice, What::Notice(notice), &[])
    }

    /// Ends a batch: wakes control if there is anything for it.
    pub fn flush(&mut self) {
        if std::mem::take(&mut self.pending) {
            (self.wake)();
        }
    }

    fn push(&mut self, class: Class, what: What, bytes: &[u8]) -> bool {
        let waiting = &self.shared.waiting[class as usize];
        if waiting.fetch_add(1, Ordering::SeqCst) < class.quota() {
            let mut buffer = self.pool.try_recv().unwrap_or_default();
            buffer.extend_from_slice(bytes);
            if self.queues[class as usize].try_send(Item { what, bytes: buffer }).is_ok() {
                self.pending = true;
                return true;
            }
        }
        waiting.fetch_sub(1, Ordering::SeqCst);
        self.counters.count(class.full());
        false
    }
}

impl Receiver {
    /// Hands over what waits, at most `limit` of each class, handshakes first. Says whether more may be waiting.
    pub fn drain(&mut self, limit: usize, mut handle: impl FnMut(Punt<'_>)) -> bool {
        let mut more = false;
        for class in Class::ALL {
            let mut taken = 0;
            while taken < limit {
                let Ok(Item { what, mut bytes }) = self.queues[class as usize].try_recv() else {
                    break;
                };
                self.shared.waiting[class as usize].fetch_sub(1, Ordering::SeqCst);
                taken += 1;
                handle(match what {
                    What::Datagram(origin) => Punt::Datagram(origin, &bytes),
                    What::Packet => Punt::Packet(&bytes),
                    What::Transit(slot) => Punt::Transit(slot, &bytes),
                    What::Notice(notice) => Punt::Notice(notice),
                });
                bytes.clear();
                if bytes.capacity() <= KEEP_CAPACITY {
                    let _ = self.pool.try_send(bytes);
                }
            }
            more |= taken == limit;
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
            Punt::Datagram(_, bytes) | Punt::Packet(bytes) | Punt::Transit(_, bytes) => {
                all.push(bytes.to_vec());
            }
            Punt::Notice(notice) => panic!("{notice:?}"),
        });
        all
    }

    #[test]
    fn each_class_has_its_own_quota_and_the_newest_is_dropped() {
        let counters = Arc::<Counters>::default();
        let (mut sender, mut receiver) = queue(Arc::clone(&counters), || ());
        for n in 0..Class::Handshake.quota() + 10 {
            sender.datagram(Class::Handshake, origin(), &n.to_be_bytes());
        }
        assert_eq!(counters.drops(DropReason::HandshakeQueueFull), 10);
        sender.packet(b"packet");
        sender.datagram(Class::Tunnel, origin(), b"data");
        assert_eq!(counters.report().count(), 1, "the others still had room");
        let all = drain(&mut receiver);
        assert_eq!(all.len(), Class::Handshake.quota() + 2);
        assert_eq!(all[0], 0_usize.to_be_bytes());
        assert_eq!(all[Class::Handshake.quota() - 1], (Class::Handshake.quota() - 1).to_be_bytes());
        assert_eq!(&all[Class::Handshake.quota()..], [b"data".to_vec(), b"packet".to_vec()]);
        assert!(sender.notice(Notice::Confirmed { index: 1 }), "empty again");
    }

    #[test]
    fn control_is_woken_once_per_batch_and_not_for_nothing() {
        let (wakes, wake) = counted();
        let (mut sender, _receiver) = queue(Arc::default(), wake);
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
    fn buffers_come_back_but_big_ones_do_not() {
        let (mut sender, mut receiver) = queue(Arc::default(), || ());
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
        let (mut sender, mut receiver) = queue(Arc::clone(&counters), || ());
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
