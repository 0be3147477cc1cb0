//! Sync: "everything after version n", page by page, each page a single control packet where its entries allow.

use super::{Key, Roster};
use crate::wire::{
    parts::MAX_SINGLE,
    record::{Entry, MAX_ENTRIES, Record},
};

/// Bytes of a record beside its entries: tag, four varints of at most ten bytes, a count.
const OVERHEAD: usize = 48;

impl Roster {
    /// The epoch of our versions.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Our newest version.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Answers a sync request: at most [`MAX_ENTRIES`] entries after `after` (from the beginning if `epoch` is not
    /// ours), as `Page` records that each fit a control record. There is always at least one, be it empty.
    pub fn pages(&self, epoch: u64, after: u64) -> Vec<Record> {
        let after = if epoch == self.epoch { after.min(self.version) } else { 0 };
        let wanted: Vec<(u64, Key)> =
            self.log.range(after + 1..).take(MAX_ENTRIES).map(|(v, key)| (*v, *key)).collect();
        let end = if wanted.len() < MAX_ENTRIES { self.version } else { wanted[MAX_ENTRIES - 1].0 };

        let mut pages = Vec::new();
        let (mut from, mut upto, mut entries) = (after, after, Vec::new());
        let mut room = MAX_SINGLE - OVERHEAD;
        let page = |after, upto, entries| Record::Page {
            epoch: self.epoch,
            after,
            upto,
            latest: self.version,
            entries,
        };
        for (version, key) in wanted {
            let Some(entry) = self.entry(key) else { continue };
            let len = entry.wire_len();
            if len > room && !entries.is_empty() {
                pages.push(page(from, upto, std::mem::take(&mut entries)));
                from = upto;
                room = MAX_SINGLE - OVERHEAD;
            }
            room = room.saturating_sub(len);
            entries.push(entry);
            upto = version;
        }
        pages.push(page(from, end, entries));
        pages
    }
}

/// Puts entries into as many `News` records as are needed for each to fit a control packet where its entries allow.
pub fn news(entries: Vec<Entry>) -> Vec<Record> {
    let mut records = Vec::new();
    let mut current: Vec<Entry> = Vec::new();
    let mut room = MAX_SINGLE - OVERHEAD;
    for entry in entries {
        let len = entry.wire_len();
        if !current.is_empty() && (len > room || current.len() == MAX_ENTRIES) {
            records.push(Record::News { entries: std::mem::take(&mut current) });
            room = MAX_SINGLE - OVERHEAD;
        }
        room = room.saturating_sub(len);
        current.push(entry);
    }
    if !current.is_empty() {
        records.push(Record::News { entries: current });
    }
    records
}
