// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The events that wait for one peer: in order, coalesced, bounded.

use std::collections::BTreeMap;

use bufshare_protocol::event::{Event, EventKind};
use bufshare_protocol::types::BufferId;

use super::limits::MAX_DROPPABLE_EVENTS;

/// What an event is about. Two events with one key coalesce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Offer([u8; 16]),
    Meta([u8; 16]),
    Released([u8; 16], u64),
    Revoked([u8; 16], u64),
    /// Never coalesced.
    Single(u64),
}

#[derive(Debug)]
struct Waiting {
    key: Key,
    droppable: bool,
    event: Event,
}

/// The queue of one peer.
///
/// RELEASED and REVOKED of an attachment or an export are never dropped:
/// there is at most one per buffer and peer, or per handle, so that the other
/// limits bound them.
#[derive(Debug, Default)]
pub(super) struct EventQueue {
    waiting: BTreeMap<u64, Waiting>,
    places: BTreeMap<Key, u64>,
    next_place: u64,
    droppable: usize,
    dropped: u64,
    sequence: u64,
    /// Dropped since the start, for people.
    pub(super) total_dropped: u64,
}

impl EventQueue {
    fn push(&mut self, key: Key, droppable: bool, event: Event) {
        if let Some(waiting) = self
            .places
            .get(&key)
            .and_then(|place| self.waiting.get_mut(place))
        {
            waiting.event = event;
            return;
        }
        if droppable {
            if self.droppable >= MAX_DROPPABLE_EVENTS {
                self.dropped = self.dropped.saturating_add(1);
                self.total_dropped = self.total_dropped.saturating_add(1);
                return;
            }
            self.droppable = self.droppable.saturating_add(1);
        }
        let place = self.next_place;
        self.next_place = place.wrapping_add(1);
        self.places.insert(key, place);
        self.waiting.insert(
            place,
            Waiting {
                key,
                droppable,
                event,
            },
        );
    }

    fn remove(&mut self, key: Key) -> bool {
        let Some(waiting) = self
            .places
            .remove(&key)
            .and_then(|place| self.waiting.remove(&place))
        else {
            return false;
        };
        if waiting.droppable {
            self.droppable = self.droppable.saturating_sub(1);
        }
        true
    }

    /// A peer came up or went down.
    pub(super) fn peer(&mut self, peer: u64, up: bool) {
        let kind = if up {
            EventKind::PeerUp
        } else {
            EventKind::PeerDown
        };
        let key = Key::Single(self.next_place);
        self.push(key, true, blank(kind, peer, BufferId::ZERO));
    }

    /// `owner` offers a buffer.
    pub(super) fn offer(&mut self, owner: u64, id: BufferId, size: u64) {
        let mut event = blank(EventKind::Offer, owner, id);
        event.value = size;
        self.push(Key::Offer(id.0), true, event);
    }

    /// The metadata of a buffer changed.
    pub(super) fn meta(&mut self, owner: u64, id: BufferId, sequence: u64) {
        let mut event = blank(EventKind::Meta, owner, id);
        event.value = sequence;
        self.push(Key::Meta(id.0), true, event);
    }

    /// `importer` has no attachment of our buffer any more.
    pub(super) fn released(&mut self, importer: u64, id: BufferId) {
        let event = blank(EventKind::Released, importer, id);
        self.push(Key::Released(id.0, importer), false, event);
    }

    /// An attachment (or, with handle 0, our own export) is gone.
    pub(super) fn revoked(&mut self, owner: u64, id: BufferId, handle: u64) {
        let mut event = blank(EventKind::Revoked, owner, id);
        event.handle = handle;
        self.push(Key::Revoked(id.0, handle), false, event);
    }

    /// A buffer that was offered but never attached is gone. An offer that
    /// nobody has seen yet just disappears.
    pub(super) fn withdrawn(&mut self, owner: u64, id: BufferId) {
        self.remove(Key::Meta(id.0));
        if !self.remove(Key::Offer(id.0)) {
            let event = blank(EventKind::Revoked, owner, id);
            self.push(Key::Revoked(id.0, 0), true, event);
        }
    }

    /// Forgets news of a buffer that is gone, but not that it is gone.
    pub(super) fn forget(&mut self, id: BufferId, importers: impl Iterator<Item = u64>) {
        self.remove(Key::Offer(id.0));
        self.remove(Key::Meta(id.0));
        for importer in importers {
            self.remove(Key::Released(id.0, importer));
        }
    }

    /// Some event may not have been queued.
    pub(super) fn missed(&mut self) {
        self.dropped = self.dropped.saturating_add(1);
    }

    /// Forgets everything; the next session numbers its events from 1 again.
    pub(super) fn clear(&mut self) {
        *self = Self {
            total_dropped: self.total_dropped,
            ..Self::default()
        };
    }

    /// Takes the next event.
    pub(super) fn next(&mut self) -> Option<Event> {
        let mut event = if self.dropped > 0 {
            let mut event = blank(EventKind::Overflow, 0, BufferId::ZERO);
            event.value = core::mem::take(&mut self.dropped);
            event
        } else {
            let (_, waiting) = self.waiting.pop_first()?;
            self.places.remove(&waiting.key);
            if waiting.droppable {
                self.droppable = self.droppable.saturating_sub(1);
            }
            waiting.event
        };
        self.sequence = self.sequence.wrapping_add(1);
        event.seq = self.sequence;
        Some(event)
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.waiting
            .len()
            .saturating_add(usize::from(self.dropped > 0))
    }
}

fn blank(kind: EventKind, peer: u64, id: BufferId) -> Event {
    Event {
        kind,
        seq: 0,
        peer,
        id,
        handle: 0,
        value: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: BufferId = BufferId([1; 16]);

    #[test]
    fn metadata_of_one_buffer_coalesces_and_the_newest_counts() {
        let mut queue = EventQueue::default();
        queue.meta(1, ID, 2);
        queue.meta(1, ID, 3);
        assert_eq!(queue.next().unwrap().value, 3);
        assert!(queue.next().is_none());
    }

    #[test]
    fn an_overflow_is_told_with_its_count_and_numbers_have_no_gap() {
        let mut queue = EventQueue::default();
        for _ in 0..MAX_DROPPABLE_EVENTS + 5 {
            queue.peer(2, true);
        }
        let first = queue.next().unwrap();
        assert_eq!((first.kind, first.value), (EventKind::Overflow, 5));
        let mut expected = 1;
        while let Some(event) = queue.next() {
            expected += 1;
            assert_eq!(event.seq, expected);
        }
        assert_eq!(expected, MAX_DROPPABLE_EVENTS as u64 + 1);
    }

    #[test]
    fn revocations_are_kept_when_droppable_events_overflow() {
        let mut queue = EventQueue::default();
        for _ in 0..=MAX_DROPPABLE_EVENTS {
            queue.peer(2, true);
        }
        queue.revoked(2, ID, 7);
        let mut seen = false;
        while let Some(event) = queue.next() {
            seen |= event.kind == EventKind::Revoked && event.handle == 7;
        }
        assert!(seen);
    }

    #[test]
    fn an_offer_that_was_not_seen_disappears_with_its_buffer() {
        let mut queue = EventQueue::default();
        queue.offer(1, ID, 4096);
        queue.withdrawn(1, ID);
        assert_eq!(queue.len(), 0);
        queue.offer(1, ID, 4096);
        queue.next();
        queue.withdrawn(1, ID);
        assert_eq!(queue.next().unwrap().kind, EventKind::Revoked);
    }
}
