//! The data plane's threads: one for each queue of the device, each with a socket on the one port.

use std::{io, sync::Arc, time::Duration};

use anyhow::Context;
use clusternet::{
    config::tuning::Tuning,
    dataplane::{
        drops::Counters,
        poll::{self, Poll},
        punt::{self, Punt},
        table::Builder,
        worker::{Handle, Worker},
    },
    path::route::SocketId,
    sys::{
        clock::Clock,
        fd::Wake,
        tun::Queue,
        udp::{Offloads, Udp},
    },
    wire::message::Mac1Key,
};
use tokio::sync::{Notify, mpsc};

/// Tells that a worker has ended, by a panic too.
struct Ended(Option<mpsc::Sender<io::Result<()>>>);

impl Ended {
    fn tell(&mut self, result: io::Result<()>) {
        if let Some(sender) = self.0.take() {
            // Full: another one has ended before, which is enough.
            let _ = sender.try_send(result);
        }
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.tell(Err(io::Error::other("a worker has panicked; the log says where")));
    }
}

/// What the workers share with each other and with control.
pub(super) struct Shared<'a> {
    pub(super) table: &'a Builder,
    pub(super) mac1: Mac1Key,
    pub(super) counters: Arc<Counters>,
    pub(super) clock: Clock,
    pub(super) tuning: &'a Tuning,
}

/// All of them, about to run or running.
pub(super) struct Workers {
    ready: Vec<Worker>,
    running: Vec<Handle>,
    punts: Vec<punt::Receiver>,
    punted: Arc<Notify>,
    ended: (mpsc::Sender<io::Result<()>>, mpsc::Receiver<io::Result<()>>),
    /// The first one's, which control sends by.
    pub(super) udp: Arc<Udp>,
    /// The first one's, which control writes to.
    pub(super) queue: Arc<Queue>,
    /// Every one's: to let go of what was removed.
    pub(super) wakes: Vec<Arc<Wake>>,
}

impl Workers {
    /// Makes everything they need; they do not run yet.
    ///
    /// # Errors
    /// What was being done, and the system's reason.
    pub(super) fn prepare(
        shared: &Shared<'_>,
        udp: Udp,
        queues: Vec<Queue>,
    ) -> anyhow::Result<Self> {
        let tuning = shared.tuning;
        let mut sockets = Vec::new();
        for _ in 1..queues.len() {
            sockets.push(udp.another().context("open another UDP socket on the same port")?);
        }
        sockets.insert(0, udp);
        let longest = tuning.poll.map_or(poll::LONGEST, |poll| Duration::from_micros(poll.into()));
        let punted = Arc::new(Notify::new());
        let (mut ready, mut punts) = (Vec::new(), Vec::new());
        for ((udp, queue), number) in sockets.into_iter().zip(queues).zip(0_u8..) {
            if let Some(bytes) = tuning.socket_buffer {
                udp.limit_buffers(bytes as usize)
                    .context("set the size of the UDP socket's buffers")?;
            }
            if tuning.offload == Some(false) {
                udp.restrict(Offloads::NONE);
                queue.forgo_offloads();
            }
            let tell = Arc::clone(&punted);
            let (sender, receiver) =
                punt::queue(Arc::clone(&shared.counters), move || tell.notify_one());
            punts.push(receiver);
            ready.push(Worker {
                queue: Arc::new(queue),
                udp: Arc::new(udp),
                socket: SocketId(0),
                stripe: number,
                core: tuning.cores.get(usize::from(number) % tuning.cores.len().max(1)).copied(),
                table: shared.table.reader(),
                mac1: shared.mac1.clone(),
                punts: sender,
                counters: Arc::clone(&shared.counters),
                wake: Arc::new(Wake::new().context("make a worker's wake-up call")?),
                clock: shared.clock,
                poll: Poll::new(longest),
            });
        }
        let first = ready.first().context("the device has no queue")?;
        Ok(Self {
            udp: Arc::clone(&first.udp),
            queue: Arc::clone(&first.queue),
            wakes: ready.iter().map(|worker| Arc::clone(&worker.wake)).collect(),
            ready,
            running: Vec::new(),
            punts,
            punted,
            ended: mpsc::channel(1),
        })
    }

    /// Lets them run.
    ///
    /// # Errors
    /// No more threads.
    pub(super) fn start(&mut self) -> anyhow::Result<()> {
        for worker in self.ready.drain(..) {
            let mut ended = Ended(Some(self.ended.0.clone()));
            let end = move |result| ended.tell(result);
            self.running.push(worker.spawn(end).context("start a worker")?);
        }
        Ok(())
    }

    /// Tells when something has been punted.
    pub(super) fn punted(&self) -> Arc<Notify> {
        Arc::clone(&self.punted)
    }

    /// Hands over what was punted, at most `limit` of each class and worker. Says whether more may be waiting; then [`Self::punted`]
    /// comes back at once.
    pub(super) fn drain(&mut self, limit: usize, mut handle: impl FnMut(Punt<'_>)) -> bool {
        let mut more = false;
        for punts in &mut self.punts {
            more |= punts.drain(limit, &mut handle);
        }
        if more {
            self.punted.notify_one();
        }
        more
    }

    /// Comes back when one of them has ended, which none should.
    pub(super) async fn ended(&mut self) -> io::Result<()> {
        self.ended.1.recv().await.unwrap_or(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_panics_is_heard_of() {
        let (sender, mut receiver) = mpsc::channel(1);
        let mut ended = Ended(Some(sender));
        let mut end = move |result| ended.tell(result);
        let thread = std::thread::spawn(move || {
            if std::thread::panicking() {
                end(Ok(()));
            }
            panic!("as a worker might");
        });
        assert!(thread.join().is_err());
        assert!(receiver.try_recv().expect("told").is_err());
    }
}
