//! All contacts, and when each of them wants attention.
//!
//! Theory of operation. A node may hold thousands of tunnels, of which a packet or a datagram concerns one. So the earliest
//! deadline of all is not looked for among them: whoever takes a contact to change it puts it on a list, and before the
//! node says when to wake it, the deadlines of those on the list are read again. An event costs as much with ten
//! thousand contacts as with two.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use super::contact::Contact;
use crate::words::key::TransportKey;

/// Contacts by tunnel key, with their deadlines in order.
#[derive(Debug, Default)]
pub(super) struct Contacts {
    by_key: BTreeMap<TransportKey, Contact>,
    /// The deadline under which each stands in the queue.
    deadlines: BTreeMap<TransportKey, Instant>,
    queue: BTreeSet<(Instant, TransportKey)>,
    /// Taken to be changed since their deadlines were last read; the same may be here twice.
    touched: Vec<TransportKey>,
}

impl Contacts {
    pub(super) fn get(&self, key: &TransportKey) -> Option<&Contact> {
        self.by_key.get(key)
    }

    pub(super) fn get_mut(&mut self, key: &TransportKey) -> Option<&mut Contact> {
        let contact = self.by_key.get_mut(key)?;
        // One event touches one contact many times over.
        if self.touched.last() != Some(key) {
            self.touched.push(*key);
        }
        Some(contact)
    }

    pub(super) fn contains_key(&self, key: &TransportKey) -> bool {
        self.by_key.contains_key(key)
    }

    pub(super) fn insert(&mut self, key: TransportKey, contact: Contact) {
        self.by_key.insert(key, contact);
        self.touched.push(key);
    }

    pub(super) fn remove(&mut self, key: &TransportKey) -> Option<Contact> {
        self.set_deadline(key, None);
        self.by_key.remove(key)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&TransportKey, &Contact)> {
        self.by_key.iter()
    }

    /// All keys, to change one contact after the other.
    pub(super) fn keys(&self) -> Vec<TransportKey> {
        self.by_key.keys().copied().collect()
    }

    /// All of them, to be changed: all deadlines are read again.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&TransportKey, &mut Contact)> {
        self.touched = self.keys();
        self.by_key.iter_mut()
    }

    /// Reads the deadlines of those that were touched.
    pub(super) fn refresh(&mut self, deadline: impl Fn(&Contact) -> Option<Instant>) {
        let mut touched = std::mem::take(&mut self.touched);
        for key in touched.drain(..) {
            let next = self.by_key.get(&key).and_then(&deadline);
            self.set_deadline(&key, next);
        }
        self.touched = touched;
    }

    /// The earliest deadline of all.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.queue.first().map(|(deadline, _)| *deadline)
    }

    /// Those whose deadline has come.
    pub(super) fn due(&self, now: Instant) -> Vec<TransportKey> {
        self.queue
            .iter()
            .take_while(|(deadline, _)| *deadline <= now)
            .map(|(_, key)| *key)
            .collect()
    }

    fn set_deadline(&mut self, key: &TransportKey, deadline: Option<Instant>) {
        let old = match deadline {
            Some(deadline) => self.deadlines.insert(*key, deadline),
            None => self.deadlines.remove(key),
        };
        if old != deadline {
            old.map(|old| self.queue.remove(&(old, *key)));
            deadline.map(|deadline| self.queue.insert((deadline, *key)));
        }
    }
}
