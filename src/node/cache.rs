//! What survives a restart: the roster, where peers were last, and our own last words. Kept by the shell as bytes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::Node;
use crate::{
    wire::record::Entry,
    words::{id::Incarnation, key::TransportKey, time::Now},
};

/// First byte of the cache.
const VERSION: u8 = 1;

/// The most bytes that are read back: ten thousand members with announcements.
const MAX_BYTES: usize = 16 << 20;

/// Peers talked to within this time are called at once after a restart.
const ACTIVE: Duration = Duration::from_secs(180);

#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Cache {
    pub(super) sequence: u64,
    pub(super) incarnation: u64,
    pub(super) entries: Vec<Entry>,
    /// Where peers were last reached directly.
    pub(super) last_seen: BTreeMap<TransportKey, Vec<SocketAddr>>,
    /// Who was being talked to.
    pub(super) active: Vec<TransportKey>,
    /// Addresses of master endpoints whose names were looked up.
    pub(super) resolved: Vec<(String, u16, Vec<SocketAddr>)>,
}

impl Cache {
    /// Reads what [`Node::cache`] wrote; anything else is as good as nothing. Entries are verified when they are taken.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let (version, body) = bytes.split_first()?;
        if *version != VERSION || bytes.len() > MAX_BYTES {
            return None;
        }
        postcard::from_bytes(body).ok()
    }
}

/// The incarnation that a cache says was ours last, so that the next one is later even if the clock was set back.
pub(super) fn previous_incarnation(cache: Option<&Cache>) -> Incarnation {
    Incarnation(cache.map_or(0, |cache| cache.incarnation))
}

impl Node {
    /// What should survive a restart, for [`super::Settings::cache`].
    pub fn cache(&mut self, now: Now) -> Vec<u8> {
        self.is_cache_dirty = false;
        let is_active = |last| now.instant.duration_since(last) < ACTIVE;
        let mut last_seen = self.last_seen.clone();
        for (key, contact) in self.contacts.iter() {
            let direct = contact.paths.primary().filter(|route| route.is_direct());
            if let Some(endpoint) = direct.and_then(|route| route.endpoint()) {
                last_seen.insert(*key, vec![endpoint]);
            }
        }
        let cache = Cache {
            sequence: self.announcer.sequence,
            incarnation: self.incarnation.0,
            entries: self.roster.entries(),
            last_seen,
            active: self
                .contacts
                .iter()
                .filter(|(_, contact)| contact.is_open() && is_active(contact.last_used))
                .map(|(key, _)| *key)
                .collect(),
            resolved: self
                .master_endpoints
                .iter()
                .filter_map(|entry| match &entry.endpoint {
                    crate::words::endpoint::Endpoint::Udp { host, port } => {
                        Some((host.clone(), *port, entry.addresses.clone()))
                    }
                    crate::words::endpoint::Endpoint::Tcp { .. }
                    | crate::words::endpoint::Endpoint::Ssh { .. } => None,
                })
                .collect(),
        };
        // Plain data: nothing in it that postcard cannot encode.
        postcard::to_extend(&cache, vec![VERSION]).expect("the cache is plain data")
    }

    pub(super) fn load_cache(&mut self, cache: Cache, now: Now) {
        self.announcer.sequence = self.announcer.sequence.max(cache.sequence);
        for entry in &cache.entries {
            self.roster.take(entry, now.wall);
        }
        // Our own announcement in it is history, of whatever machine: this start is the later one.
        let own = self.roster.all().filter(|member| member.certificate().transport == self.key);
        for announcement in own.filter_map(|member| member.announcement(now.wall)) {
            let next = Incarnation(announcement.incarnation.0.saturating_add(1));
            self.incarnation = self.incarnation.max(next);
            self.announcer.sequence = self.announcer.sequence.max(announcement.sequence);
        }
        // The description in it may be newer than the file that we were given.
        self.load_masters();
        let members = self.roster.all().map(|member| member.certificate().transport);
        let members: BTreeSet<TransportKey> = members.collect();
        self.last_seen = cache.last_seen;
        self.last_seen.retain(|key, addresses| members.contains(key) && addresses.len() <= 1);
        for entry in &mut self.master_endpoints {
            for (host, port, addresses) in &cache.resolved {
                let same = matches!(&entry.endpoint, crate::words::endpoint::Endpoint::Udp { host: h, port: p } if h == host && p == port);
                if same {
                    entry.addresses.clone_from(addresses);
                }
            }
        }
        self.call_first = cache.active;
    }
}
