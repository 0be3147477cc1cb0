//! The open channels of a connection, and what serves each.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use russh::{ChannelId, ChannelWriteHalf, server::Msg};
use tokio::{
    sync::{mpsc, oneshot},
    task::AbortHandle,
};

use super::{command::Asked, input::Input, session::Order};

/// Channels of one connection, forwards included.
const MAX_CHANNELS: usize = 256;

/// A task that ends when this is dropped.
pub(super) struct Owned(pub(super) AbortHandle);

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What there is to know about an open channel. Dropping it ends what serves the channel.
pub(super) struct Entry {
    pub(super) input: Input,
    pub(super) kind: Kind,
}

pub(super) enum Kind {
    /// A session that has not been told what to run.
    Waiting(Waiting),
    /// A session that runs: where its orders go.
    Running(mpsc::Sender<Order>),
    /// A forward. What carries it hears of the end by this being dropped.
    Forward(#[expect(dead_code, reason = "held for its drop")] oneshot::Sender<()>),
}

/// A session before it starts.
pub(super) struct Waiting {
    pub(super) output: ChannelWriteHalf<Msg>,
    pub(super) asked: Asked,
}

impl Drop for Entry {
    /// No more will come. What has come is still read.
    fn drop(&mut self) {
        self.input.end();
    }
}

/// The open channels of a connection. The task that serves a channel removes it, since the library does not tell of a close that
/// answers ours.
#[derive(Clone, Default)]
pub(super) struct Channels(Arc<Mutex<HashMap<ChannelId, Entry>>>);

impl Channels {
    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<ChannelId, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn remove(&self, id: ChannelId) {
        // Dropped outside the lock: an entry's end wakes others.
        let entry = self.lock().remove(&id);
        drop(entry);
    }

    /// The input of a forward that may or may not be known already, and the end of a new one.
    pub(super) fn forward(&self, id: ChannelId) -> (Input, Option<oneshot::Receiver<()>>) {
        let mut closed = None;
        let mut channels = self.lock();
        let entry = channels.entry(id).or_insert_with(|| {
            let (close, receiver) = oneshot::channel();
            closed = Some(receiver);
            Entry { input: Input::default(), kind: Kind::Forward(close) }
        });
        (entry.input.clone(), closed)
    }

    pub(super) fn are_full(&self) -> bool {
        self.lock().len() >= MAX_CHANNELS
    }
}
