//! What a client has sent on one channel and nobody has read yet; and how the client is slowed down.
//!
//! The ssh library widens a channel's window as soon as data *arrives*, and passes the data on through a bounded queue that stops
//! the whole connection when it is full. For `ssh NODE cat < large` that is a deadlock: `cat` reads no more because its output
//! is not taken, and its output is not taken because the connection waits for `cat` to read. So here data is always taken at
//! once ([`Input::push`] never waits), and the client is slowed by its window alone:
//!
//! 1. The library asks after each widening how wide windows shall be from now on. While much lies unread we answer
//!    [`TRICKLE`]: a window is then widened only when it is used up, and by two bytes.
//! 2. So the client sends at most one more [`WINDOW`], then two bytes per round trip. Each such pair asks again; when what
//!    lies unread has been read, the answer is [`WINDOW`] again.
//! 3. A channel that stays unread is asked ever more rarely ([`Input::patience`]), so that not even the pairs add up.
//!
//! What a channel holds is bounded by about 1.5 windows; a client that ignores its window is cut off at [`LIMIT`]. The width
//! is one for all channels of a connection (the library's limit): a forward whose reader stalls slows what the client sends
//! on its other channels, never what it receives.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    sync::Notify,
};

/// A channel's window in bytes, as wide as OpenSSH's.
pub(super) const WINDOW: u32 = 2 << 20;

/// The window of a connection with an unread channel, the smallest that the library ever widens.
pub(super) const TRICKLE: u32 = 2;

/// Above this many unread bytes a channel counts as unread.
const CONGESTED: usize = WINDOW as usize / 2;

/// No client that keeps to its windows gets here.
const LIMIT: usize = 4 * WINDOW as usize;

/// The client sent more than its windows allowed, by far.
#[derive(Debug)]
pub(super) struct WindowIgnored;

#[derive(Default)]
struct State {
    chunks: VecDeque<Vec<u8>>,
    /// Bytes of the first chunk that have been read.
    taken: usize,
    /// Unread bytes in all chunks.
    unread: usize,
    /// Bytes that came while congested, in pairs.
    trickled: usize,
    /// No more will come.
    ended: bool,
    /// Nobody reads any more: what comes is thrown away.
    closed: bool,
    reader: Option<Waker>,
}

/// The unread input of one channel. One reader; clones share it.
#[derive(Clone, Default)]
pub(super) struct Input {
    state: Arc<Mutex<State>>,
    read: Arc<Notify>,
}

impl Input {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what arrived. Never waits.
    pub(super) fn push(&self, data: &[u8]) -> Result<(), WindowIgnored> {
        let mut state = self.state();
        if state.closed || state.ended || data.is_empty() {
            return Ok(());
        }
        if state.unread + data.len() > LIMIT {
            return Err(WindowIgnored);
        }
        if state.unread >= CONGESTED && data.len() <= TRICKLE as usize {
            state.trickled += data.len();
        }
        state.unread += data.len();
        match state.chunks.back_mut() {
            // Pairs of bytes share a chunk.
            Some(last) if last.len() + data.len() <= 512 => last.extend_from_slice(data),
            _ => state.chunks.push_back(data.to_vec()),
        }
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
        Ok(())
    }

    /// The client will send no more.
    pub(super) fn end(&self) {
        let mut state = self.state();
        state.ended = true;
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
    }

    /// Nobody will read any more.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.chunks.clear();
        state.unread = 0;
        state.trickled = 0;
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
        drop(state);
        self.read.notify_one();
    }

    /// Whether so much lies unread that the client must be slowed.
    pub(super) fn is_congested(&self) -> bool {
        self.state().unread >= CONGESTED
    }

    /// Waits a little with the next pair of bytes of a congested channel: until it has been read, or 5 ms at first, and up
    /// to a second for a channel that is not read at all, so that the pairs of a day come to some hundred kilobytes.
    pub(super) async fn patience(&self) {
        let trickled = {
            let state = self.state();
            if state.unread < CONGESTED {
                return;
            }
            state.trickled
        };
        let wait = Duration::from_millis(5 << (trickled / 64).min(8)).min(Duration::from_secs(1));
        let _ = tokio::time::timeout(wait, self.read.notified()).await;
    }
}

impl AsyncRead for Input {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut guard = self.state();
        let state = &mut *guard;
        if state.chunks.is_empty() && !state.ended && !state.closed {
            state.reader = Some(context.waker().clone());
            return Poll::Pending;
        }
        let was_congested = state.unread >= CONGESTED;
        while let Some(chunk) = state.chunks.front() {
            let n = buffer.remaining().min(chunk.len() - state.taken);
            buffer.put_slice(&chunk[state.taken..state.taken + n]);
            state.taken += n;
            state.unread -= n;
            if state.taken < chunk.len() {
                break;
            }
            state.taken = 0;
            state.chunks.pop_front();
        }
        if was_congested && state.unread < CONGESTED {
            state.trickled = 0;
            drop(guard);
            self.read.notify_one();
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn bytes_come_out_as_they_went_in_and_then_the_end() {
        let mut input = Input::default();
        for part in [&b"ab"[..], b"", b"cde", &[b'f'; 600]] {
            input.push(part).unwrap();
        }
        input.end();
        let mut out = Vec::new();
        input.read_to_end(&mut out).await.unwrap();
        assert_eq!(out.len(), 605);
        assert_eq!(&out[..6], b"abcdef");
    }

    #[tokio::test]
    async fn reading_wakes_when_something_comes() {
        let mut input = Input::default();
        let writer = input.clone();
        let reading = tokio::spawn(async move { input.read_u8().await.unwrap() });
        tokio::task::yield_now().await;
        writer.push(b"x").unwrap();
        assert_eq!(reading.await.unwrap(), b'x');
    }

    #[tokio::test]
    async fn a_channel_is_congested_until_it_has_been_read() {
        let mut input = Input::default();
        let chunk = vec![0; 32768];
        while !input.is_congested() {
            input.push(&chunk).unwrap();
        }
        let waiting = {
            let input = input.clone();
            tokio::spawn(async move { input.patience().await })
        };
        let mut sink = vec![0; 65536];
        while input.is_congested() {
            input.read_exact(&mut sink).await.unwrap();
        }
        waiting.await.unwrap();
    }

    #[test]
    fn a_client_that_ignores_its_window_is_found_out() {
        let input = Input::default();
        let chunk = vec![0; 32768];
        assert!((0..1000).any(|_| input.push(&chunk).is_err()));
        assert!(input.state().unread <= LIMIT);
    }

    #[test]
    fn what_comes_after_the_reader_has_gone_is_thrown_away() {
        let input = Input::default();
        input.push(&[0; 1000]).unwrap();
        input.close();
        input.push(&[0; 1000]).unwrap();
        assert_eq!(input.state().unread, 0);
        assert!(input.state().chunks.is_empty());
    }
}
