// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The events that wait for one peer: in order, coalesced, bounded.

use std::collections::BTreeMap;

use bufshare_protocol::event::{Event, EventKind, SIZE};
use bufshare_protocol::types::BufferId;

use serde::{Deserialize, Serialize};

use super::records::{Record, Records, Slot};
use super::refcount;

/// What an event is about. Two events with one key coalesce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    kind: EventKind,
    id: BufferId,
    /// The handle of a REVOKED; the peer of a RELEASED, a PEER_UP or PEER_DOWN.
    number: u64,
}

impl Key {
    fn of(event: &Event) -> Self {
        let number = match event.kind {
            EventKind::Revoked | EventKind::Pushed => event.handle,
            EventKind::Released | EventKind::PeerUp | EventKind::PeerDown => event.peer,
            EventKind::Offer | EventKind::Meta | EventKind::Overflow | EventKind::Returned => 0,
        };
        Self::new(event.kind, event.id, number)
    }

    fn new(kind: EventKind, id: BufferId, number: u64) -> Self {
        Self { kind, id, number }
    }
}

/// What bounds the number of events of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Class {
    /// Dropped beyond `max_events` about one peer.
    Droppable,
    /// An own export that ended unasked. No buffer is exported while as many of them
    /// wait as buffers may be exported, so there are at most twice as many.
    Ended,
    /// Another limit; see [`EventQueue`].
    Kept,
}

#[derive(Debug, Serialize, Deserialize)]
struct Waiting {
    event: Event,
    class: Class,
    /// An OFFER whose buffer an answer has shown meanwhile.
    shown: bool,
    before: Option<Slot>,
    after: Option<Slot>,
}

impl Record for Waiting {
    type Key = Key;

    fn key(&self) -> Key {
        Key::of(&self.event)
    }
}

/// The queue of one peer.
///
/// What a peer may cause without end is limited for each that causes it, so
/// that nobody can make it lose the news of others. Never dropped are
/// - REVOKED of an attachment: one for each that is held;
/// - RELEASED: one for each own export, as long as it is one, and importer;
/// - PEER_UP and PEER_DOWN: one of each for each peer;
/// - REVOKED of an own export, see [`EventQueue::ended_exports`];
/// - PUSHED: one for each attachment that is a consumer;
/// - RETURNED: one for each own export.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct EventQueue {
    /// Of one peer.
    max_droppable: usize,
    waiting: Records<Waiting>,
    /// Those that came first and last of them; each knows its neighbours.
    first: Option<Slot>,
    last: Option<Slot>,
    /// Droppable events by the peer that they are about.
    droppable: BTreeMap<u64, usize>,
    /// Events of own exports that ended.
    ended: u32,
    dropped: u64,
    sequence: u64,
    /// Dropped since the start, for people.
    pub(super) total_dropped: u64,
}

impl EventQueue {
    /// With at most so many droppable events about one peer.
    pub(super) fn new(max_droppable: u32) -> Self {
        Self {
            max_droppable: usize::try_from(max_droppable).unwrap_or(usize::MAX),
            ..Self::default()
        }
    }

    fn push(&mut self, class: Class, event: Event) {
        let waiting = self.waiting.find(&Key::of(&event));
        if let Some(waiting) = waiting.and_then(|slot| self.waiting.get_mut(slot)) {
            waiting.event = event;
            return;
        }
        match class {
            Class::Droppable => {
                let count = self.droppable.entry(event.peer).or_default();
                if *count >= self.max_droppable {
                    self.dropped = self.dropped.saturating_add(1);
                    self.total_dropped = self.total_dropped.saturating_add(1);
                    return;
                }
                refcount::more(count, 1, "droppable events");
            }
            Class::Ended => refcount::more(&mut self.ended, 1, "ended exports"),
            Class::Kept => {}
        }
        let peer = event.peer;
        let slot = self.waiting.insert(Waiting {
            event,
            class,
            shown: false,
            before: self.last,
            after: None,
        });
        if slot.is_none() {
            return self.uncount(class, peer);
        }
        match self.last.and_then(|last| self.waiting.get_mut(last)) {
            Some(last) => last.after = slot,
            None => self.first = slot,
        }
        self.last = slot;
    }

    fn take(&mut self, slot: Slot) -> Option<Waiting> {
        let waiting = self.waiting.remove(slot)?;
        match waiting.before.and_then(|slot| self.waiting.get_mut(slot)) {
            Some(before) => before.after = waiting.after,
            None => self.first = waiting.after,
        }
        match waiting.after.and_then(|slot| self.waiting.get_mut(slot)) {
            Some(after) => after.before = waiting.before,
            None => self.last = waiting.before,
        }
        self.uncount(waiting.class, waiting.event.peer);
        Some(waiting)
    }

    fn remove(&mut self, kind: EventKind, id: BufferId, number: u64) -> Option<Waiting> {
        let slot = self.waiting.find(&Key::new(kind, id, number))?;
        self.take(slot)
    }

    /// An answer has shown a buffer to the peer, maybe before its OFFER came.
    pub(super) fn show(&mut self, id: BufferId) {
        let offer = self.waiting.find(&Key::new(EventKind::Offer, id, 0));
        if let Some(offer) = offer.and_then(|slot| self.waiting.get_mut(slot)) {
            offer.shown = true;
        }
    }

    fn uncount(&mut self, class: Class, peer: u64) {
        match class {
            Class::Droppable => {
                let count = self.droppable.entry(peer).or_default();
                refcount::fewer(count, 1, "droppable events");
            }
            Class::Ended => refcount::fewer(&mut self.ended, 1, "ended exports"),
            Class::Kept => {}
        }
    }

    /// A peer came up or went down. Of what has not been seen yet the first
    /// going is kept, before what was revoked by it, and a last coming.
    pub(super) fn peer(&mut self, peer: u64, up: bool) {
        self.remove(EventKind::PeerUp, BufferId::ZERO, peer);
        if up {
            let event = blank(EventKind::PeerUp, peer, BufferId::ZERO, 0);
            self.push(Class::Kept, event);
        } else {
            let event = blank(EventKind::PeerDown, peer, BufferId::ZERO, 0);
            self.push(Class::Kept, event);
        }
    }

    /// `owner` offers a buffer.
    pub(super) fn offer(&mut self, owner: u64, id: BufferId, generation: u64, size: u64) {
        let mut event = blank(EventKind::Offer, owner, id, generation);
        event.value = size;
        self.push(Class::Droppable, event);
    }

    /// The metadata of a buffer changed.
    pub(super) fn meta(&mut self, owner: u64, id: BufferId, generation: u64, sequence: u64) {
        let mut event = blank(EventKind::Meta, owner, id, generation);
        event.value = sequence;
        self.push(Class::Droppable, event);
    }

    /// `importer` has no attachment of our buffer any more.
    pub(super) fn released(&mut self, importer: u64, id: BufferId, generation: u64) {
        let event = blank(EventKind::Released, importer, id, generation);
        self.push(Class::Kept, event);
    }

    /// A frame is given to an attachment.
    pub(super) fn pushed(&mut self, event: Event) {
        self.push(Class::Kept, event);
    }

    /// It does not have the frame any more.
    pub(super) fn not_pushed(&mut self, id: BufferId, handle: u64) {
        self.remove(EventKind::Pushed, id, handle);
    }

    /// Nobody has the frame any more whose first buffer is this one of the peer's own.
    pub(super) fn returned(&mut self, owner: u64, id: BufferId, generation: u64, frame: u64) {
        let mut event = blank(EventKind::Returned, owner, id, generation);
        event.value = frame;
        self.push(Class::Kept, event);
    }

    /// Whether the peer is yet to learn that.
    pub(super) fn is_returned(&self, id: BufferId) -> bool {
        let key = Key::new(EventKind::Returned, id, 0);
        self.waiting.find(&key).is_some()
    }

    /// An attachment is gone.
    pub(super) fn revoked(&mut self, owner: u64, id: BufferId, generation: u64, handle: u64) {
        let mut event = blank(EventKind::Revoked, owner, id, generation);
        event.handle = handle;
        self.push(Class::Kept, event);
    }

    /// The holder of an attachment that is gone has given it up. That the buffer is
    /// gone is news to others of the peer, who may know it by its offer.
    pub(super) fn detached(&mut self, id: BufferId, handle: u64) {
        if let Some(mut waiting) = self.remove(EventKind::Revoked, id, handle) {
            waiting.event.handle = 0;
            self.push(Class::Droppable, waiting.event);
        }
    }

    /// An own export ended, and nobody asked for that.
    pub(super) fn ended(&mut self, owner: u64, id: BufferId, generation: u64) {
        let event = blank(EventKind::Revoked, owner, id, generation);
        self.push(Class::Ended, event);
    }

    /// Of how many own exports that ended unasked nobody has taken the event.
    pub(super) fn ended_exports(&self) -> u32 {
        self.ended
    }

    /// A buffer that was offered but never attached is gone. An offer of which
    /// the peer knows nothing yet just disappears.
    pub(super) fn withdrawn(&mut self, owner: u64, id: BufferId, generation: u64) {
        self.remove(EventKind::Meta, id, 0);
        let known = self
            .remove(EventKind::Offer, id, 0)
            .is_none_or(|offer| offer.shown);
        if known {
            let event = blank(EventKind::Revoked, owner, id, generation);
            self.push(Class::Droppable, event);
        }
    }

    /// Forgets news of a buffer that is gone, but not that it is gone.
    pub(super) fn forget(&mut self, id: BufferId, importers: impl Iterator<Item = u64>) {
        self.remove(EventKind::Offer, id, 0);
        self.remove(EventKind::Meta, id, 0);
        self.remove(EventKind::Returned, id, 0);
        for importer in importers {
            self.remove(EventKind::Released, id, importer);
        }
    }

    /// Some event may not have been queued.
    pub(super) fn missed(&mut self) {
        self.dropped = self.dropped.saturating_add(1);
    }

    /// Forgets everything; the next session numbers its events from 1 again.
    pub(super) fn clear(&mut self) {
        *self = Self {
            max_droppable: self.max_droppable,
            total_dropped: self.total_dropped,
            ..Self::default()
        };
    }

    /// Bytes of the next event.
    pub(super) fn next_length(&self) -> Option<usize> {
        if self.dropped > 0 {
            return Some(SIZE);
        }
        Some(self.waiting.get(self.first?)?.event.length())
    }

    /// Takes the next event.
    pub(super) fn next(&mut self) -> Option<Event> {
        let mut event = if self.dropped > 0 {
            let mut event = blank(EventKind::Overflow, 0, BufferId::ZERO, 0);
            event.value = core::mem::take(&mut self.dropped);
            event
        } else {
            self.take(self.first?)?.event
        };
        self.sequence = self.sequence.wrapping_add(1);
        event.seq = self.sequence;
        Some(event)
    }

    /// What must hold at all times; names what does not. `attached`: whether a handle
    /// is one of a revoked attachment. `holds`: whether it is of one that has a frame.
    /// `exported`: whether a buffer is an own export.
    #[cfg(test)]
    #[allow(
        clippy::arithmetic_side_effects,
        reason = "a test that overflows fails"
    )]
    pub(super) fn check(
        &self,
        attached: impl Fn(u64) -> bool,
        holds: impl Fn(u64) -> bool,
        exported: impl Fn(BufferId) -> bool,
    ) -> Result<(), String> {
        if !self.waiting.check() {
            return Err("an event is not found by what it is about".into());
        }
        let (mut queued, mut before, mut next) = (0, None, self.first);
        while let Some(slot) = next {
            let waiting = self.waiting.get(slot).ok_or("a gap in the queue")?;
            if waiting.before != before {
                return Err("an event does not know the one before".into());
            }
            (before, next) = (Some(slot), waiting.after);
            queued += 1;
        }
        if before != self.last || queued != self.waiting.len() {
            return Err("an event is lost, or in two places".into());
        }
        let mut droppable = BTreeMap::new();
        let mut ended = 0;
        for (_, Waiting { class, event, .. }) in self.waiting.iter() {
            match class {
                Class::Droppable => *droppable.entry(event.peer).or_insert(0) += 1,
                Class::Ended => ended += 1,
                Class::Kept => {}
            }
            match event.kind {
                EventKind::Revoked if event.handle != 0 && !attached(event.handle) => {
                    return Err(format!(
                        "an event of handle {}, which is gone",
                        event.handle
                    ));
                }
                EventKind::Pushed if !holds(event.handle) => {
                    return Err(format!(
                        "a frame for handle {}, which is gone",
                        event.handle
                    ));
                }
                EventKind::Released | EventKind::Returned if !exported(event.id) => {
                    return Err(format!("{} of no export", event.kind.name()));
                }
                _ => {}
            }
        }
        if droppable.values().any(|count| *count > self.max_droppable) {
            return Err("too many droppable events".into());
        }
        self.droppable.iter().try_for_each(|(peer, count)| {
            match droppable.get(peer).unwrap_or(&0) {
                found if found == count => Ok(()),
                found => Err(format!(
                    "{found} droppable events of {peer}, {count} counted"
                )),
            }
        })?;
        match self.ended {
            counted if counted == ended => Ok(()),
            counted => Err(format!("{ended} exports ended, {counted} counted")),
        }
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.waiting
            .len()
            .saturating_add(usize::from(self.dropped > 0))
    }
}

fn blank(kind: EventKind, peer: u64, id: BufferId, generation: u64) -> Event {
    Event {
        kind,
        seq: 0,
        peer,
        id,
        handle: 0,
        generation,
        value: 0,
        frame: None,
    }
}

#[cfg(test)]
#[allow(
    clippy::arithmetic_side_effects,
    reason = "a test that overflows fails"
)]
mod tests {
    use super::*;

    const ID: BufferId = BufferId([1; 16]);

    /// Droppable events about one peer.
    const MAX: u32 = 512;

    #[test]
    fn metadata_of_one_buffer_coalesces_and_the_newest_counts() {
        let mut queue = EventQueue::new(MAX);
        queue.meta(1, ID, 1, 2);
        queue.meta(1, ID, 1, 3);
        assert_eq!(queue.next().unwrap().value, 3);
        assert!(queue.next().is_none());
    }

    /// As many offers of `owner` as are kept, and `more`.
    fn flood(queue: &mut EventQueue, owner: u64, more: u64) {
        for n in 0..u64::from(MAX) + more {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&n.to_le_bytes());
            id[8..].copy_from_slice(&owner.to_le_bytes());
            queue.offer(owner, BufferId(id), 1, 4096);
        }
    }

    #[test]
    fn an_overflow_is_reported_with_its_count_and_numbers_have_no_gap() {
        let mut queue = EventQueue::new(MAX);
        flood(&mut queue, 2, 5);
        let first = queue.next().unwrap();
        assert_eq!((first.kind, first.value), (EventKind::Overflow, 5));
        let mut expected = 1;
        while let Some(event) = queue.next() {
            expected += 1;
            assert_eq!(event.seq, expected);
        }
        assert_eq!(expected, u64::from(MAX) + 1);
    }

    #[test]
    fn revocations_are_kept_when_droppable_events_overflow() {
        let mut queue = EventQueue::new(MAX);
        flood(&mut queue, 2, 1);
        queue.revoked(2, ID, 1, 7);
        let mut seen = false;
        while let Some(event) = queue.next() {
            seen |= event.kind == EventKind::Revoked && event.handle == 7;
        }
        assert!(seen);
    }

    #[test]
    fn a_peer_that_floods_the_queue_does_not_drop_the_offers_of_others() {
        let mut queue = EventQueue::new(MAX);
        flood(&mut queue, 2, 100);
        queue.offer(3, ID, 1, 4096);
        let mut seen = false;
        while let Some(event) = queue.next() {
            seen |= event.peer == 3;
        }
        assert!(seen);
    }

    #[test]
    fn a_peer_that_comes_and_goes_leaves_its_last_going_and_coming() {
        let mut queue = EventQueue::new(MAX);
        for _ in 0..5 {
            queue.peer(2, true);
            queue.peer(2, false);
        }
        queue.peer(2, true);
        let kinds: Vec<EventKind> = std::iter::from_fn(|| queue.next())
            .map(|event| event.kind)
            .collect();
        assert_eq!(kinds, [EventKind::PeerDown, EventKind::PeerUp]);
    }

    #[test]
    fn an_offer_that_was_not_seen_disappears_with_its_buffer() {
        let mut queue = EventQueue::new(MAX);
        queue.offer(1, ID, 1, 4096);
        queue.withdrawn(1, ID, 1);
        assert_eq!(queue.len(), 0);
        queue.offer(1, ID, 1, 4096);
        queue.next();
        queue.withdrawn(1, ID, 1);
        assert_eq!(queue.next().unwrap().kind, EventKind::Revoked);
    }

    #[test]
    fn a_revocation_is_reported_also_when_the_attachment_is_given_up_first() {
        let mut queue = EventQueue::new(MAX);
        queue.revoked(2, ID, 1, 7);
        queue.detached(ID, 7);
        let event = queue.next().unwrap();
        assert_eq!((event.kind, event.id), (EventKind::Revoked, ID));
        assert_eq!((event.peer, event.handle), (2, 0));
        assert!(queue.next().is_none());
    }

    #[test]
    fn revocations_that_nobody_waits_for_do_not_pile_up() {
        let mut queue = EventQueue::new(MAX);
        for n in 0..2 * u64::from(MAX) {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&n.to_le_bytes());
            queue.revoked(2, BufferId(id), n + 1, n + 1);
            queue.detached(BufferId(id), n + 1);
        }
        assert_eq!(queue.len(), MAX as usize + 1);
    }

    #[test]
    fn an_offer_that_a_list_showed_is_revoked_with_its_buffer() {
        let mut queue = EventQueue::new(MAX);
        queue.offer(1, ID, 1, 4096);
        queue.show(ID);
        queue.withdrawn(1, ID, 1);
        assert_eq!(queue.next().unwrap().kind, EventKind::Revoked);
        assert_eq!(queue.len(), 0);
    }
}
