//! Traffic that is checked byte for byte: what the program `traffic` sends and reports, and how tests call it.
//!
//! Every byte that is sent follows from a *seed* and its place ([`Stream`]), so whoever receives it needs no sum to compare:
//! he knows what must come, and says which byte came wrong. A wrong, missing, repeated or displaced stretch all show.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::clock::wait_until;
use crate::command::{Background, Cmd};
use crate::lab::Lab;

/// Where its servers listen; UDP also one port above, where datagrams come joined by the kernel.
pub const PORT: u16 = 7600;

/// What is printed when every stream of a transfer has brought something.
pub const UNDER_WAY: &str = "under way";

/// No stretch of a superpacket's length is like another: a prime, so that nothing that is cut into equal parts
/// falls on the same place again.
const PERIOD: usize = 1_048_573;

/// Bytes that follow from a seed: pseudo-random, and the same again after [`PERIOD`].
pub struct Stream(Vec<u8>);

impl Stream {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        // SplitMix64.
        let mut state = seed;
        let words = (0..PERIOD.div_ceil(8)).flat_map(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z ^ (z >> 31)).to_le_bytes()
        });
        let mut bytes: Vec<u8> = words.take(PERIOD).collect();
        // What begins near the end goes on at the beginning without a seam.
        bytes.extend_from_within(..PERIOD / 4);
        Self(bytes)
    }

    /// A text, again and again: to be looked for on the wire.
    pub fn of_text(text: &str) -> Self {
        let mut bytes: Vec<u8> = text.bytes().cycle().take(PERIOD).collect();
        bytes.extend_from_within(..PERIOD / 4);
        Self(bytes)
    }

    /// Bytes from a place on; at most a quarter of a period.
    ///
    /// # Panics
    ///
    /// More was asked for.
    pub fn at(&self, place: u64, len: usize) -> &[u8] {
        let start = (place % PERIOD as u64) as usize;
        &self.0[start..start + len]
    }

    /// Where `bytes`, which should be those from `place` on, are wrong first.
    pub fn first_wrong(&self, place: u64, bytes: &[u8]) -> Option<u64> {
        let right = self.at(place, bytes.len());
        if right == bytes {
            return None;
        }
        right
            .iter()
            .zip(bytes)
            .zip(place..)
            .find(|((right, came), _)| right != came)
            .map(|(_, at)| at)
    }
}

/// One direction of one TCP connection, as its receiver saw it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Received {
    /// Bytes, all of them right.
    pub bytes: u64,
    /// The longest time in which nothing came, though this program ran.
    pub longest_pause: Duration,
}

/// What `traffic tcp` prints: both directions of each connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Streams {
    /// Here, then there.
    pub received: Vec<[Received; 2]>,
}

impl Streams {
    /// Bytes of all, both ways.
    pub fn bytes(&self) -> u64 {
        self.received.iter().flatten().map(|one| one.bytes).sum()
    }

    /// The longest pause of any.
    pub fn longest_pause(&self) -> Duration {
        self.received.iter().flatten().map(|one| one.longest_pause).max().unwrap_or_default()
    }
}

/// Datagrams as their receiver saw them.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Arrived {
    /// All that came.
    pub received: u64,
    /// Of another length or with other bytes than were sent.
    pub wrong: u64,
    /// Seen before.
    pub repeated: u64,
    /// After one that was sent later.
    pub late: u64,
    /// How many places the latest of these came late.
    pub latest_by: u64,
    /// Receives that brought several at once.
    pub joined: u64,
}

/// What `traffic udp` prints.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Datagrams {
    /// How many were sent.
    pub sent: u64,
    /// Of these in superpackets that the kernel cut.
    pub sent_joined: u64,
    /// What came of them.
    pub arrived: Arrived,
}

/// What `traffic ping` prints.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Echoes {
    /// Sizes that came back right.
    pub right: u64,
    /// Requests that had to be repeated.
    pub repeated: u64,
    /// Replies with other bytes than were sent.
    pub wrong: u64,
}

/// What `traffic watch` prints: the datagrams on a host's cable, without those that it was told to leave out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Watched {
    /// By their first byte; what a relay forwards counts under the byte behind the prefix.
    pub types: BTreeMap<u8, Tally>,
    /// Of these, how many had a relay's prefix.
    pub relayed: u64,
    /// Messages of channels, by receiver index.
    pub channels: BTreeMap<u32, Channel>,
    /// Channel messages whose receiver index and counter had been seen before.
    pub repeated: u64,
    /// Frames that are not IP with UDP, by what they are.
    pub others: BTreeMap<String, u64>,
    /// Frames longer than the cable takes: joined, so that what is in them was not looked at.
    pub joined: u64,
    /// Frames in which the text was found.
    pub readable: u64,
}

/// Datagrams of one type.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Tally {
    /// How many.
    pub datagrams: u64,
    /// Bytes of all.
    pub bytes: u64,
    /// The largest.
    pub largest: u64,
}

/// Messages of a channel under one receiver index.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Channel {
    /// Who sent the first.
    pub from: IpAddr,
    /// How many.
    pub messages: u64,
}

/// Starts `command`, which must run `traffic serve`, and waits until it listens.
///
/// # Errors
///
/// It does not start.
pub fn serve(command: Cmd<'_>) -> Result<Background> {
    let mut server = command.spawn()?;
    server.wait_for("ready", 30)?;
    Ok(server)
}

/// What a part of the program has printed as its last line.
///
/// # Errors
///
/// It failed, or printed something else.
pub fn report<T: DeserializeOwned>(command: Cmd<'_>) -> Result<T> {
    finished(command.spawn()?, Duration::from_secs(300))
}

/// The same of one that runs already.
///
/// # Errors
///
/// As [`report`].
pub fn finished<T: DeserializeOwned>(running: Background, limit: Duration) -> Result<T> {
    let outcome = running.wait(limit)?;
    ensure!(outcome.status.success(), "{outcome}");
    let last = outcome.stdout.lines().last().unwrap_or_default();
    serde_json::from_str(last).with_context(|| format!("{outcome}"))
}

/// Watches a host's cable until [`Watch::stop`].
pub struct Watch(Background);

impl Watch {
    /// Begins, as root on the host; `text` is looked for in every frame.
    ///
    /// # Errors
    ///
    /// It does not start.
    pub fn start(lab: &Lab, host: &str, text: Option<&str>) -> Result<Self> {
        let text = text.map(|text| format!(" --text '{text}'")).unwrap_or_default();
        let mut watch =
            lab.on(host).sh(&format!("exec traffic watch eth0{text}")).root().spawn()?;
        watch.wait_for("ready", 30)?;
        Ok(Self(watch))
    }

    /// Ends it.
    ///
    /// # Errors
    ///
    /// It failed.
    pub fn stop(mut self) -> Result<Watched> {
        self.0.end_of_file();
        finished(self.0, Duration::from_secs(60))
    }
}

/// Waits until a transfer is under way.
///
/// # Errors
///
/// It is not.
pub fn wait_under_way(transfer: &mut Background) -> Result<()> {
    wait_until("the transfer to be under way", Duration::from_secs(60), || {
        if transfer.stdout().contains(UNDER_WAY) {
            return Ok(Some(()));
        }
        ensure!(transfer.is_running()?, "it ended: {}", transfer.so_far());
        Ok(None)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_the_same_from_every_place_and_tells_a_wrong_byte() {
        let (one, other) = (Stream::new(1), Stream::new(2));
        assert_ne!(one.at(0, 64), other.at(0, 64));
        let near_the_end = PERIOD as u64 - 10;
        assert_eq!(one.at(near_the_end, 30)[10..], one.at(0, 20)[..]);
        let mut bytes = one.at(near_the_end, 30).to_vec();
        assert_eq!(one.first_wrong(near_the_end, &bytes), None);
        bytes[17] ^= 1;
        assert_eq!(one.first_wrong(near_the_end, &bytes), Some(near_the_end + 17));
        assert_eq!(Stream::of_text("abc").at(3, 6), b"abcabc");
    }
}
