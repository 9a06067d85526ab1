// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which slots of a producer are free, and what events make of them

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::offers::MAX_IDLE;
use crate::{BufferId, Event, EventKind, ProducerEvent};

/// What a push made of its slot
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Push {
    /// The frame of that number is out.
    Out(u64),
    /// It was not pushed.
    Refused,
    /// It may have been pushed, or be so yet.
    Doubtful,
    /// An export has ended.
    Gone,
}

/// Where a slot is, and what it consists of where that is not with the program
#[derive(Debug)]
enum State<T, R> {
    Free(T),
    /// The program has it.
    Held,
    Out(T),
    /// It may be out; to be pushed again with this record.
    Doubtful(T, R),
}

#[derive(Debug)]
struct Slot<T, R> {
    state: State<T, R>,
    ids: Vec<BufferId>,
    /// An export has ended: when it comes back, it goes.
    lost: bool,
}

/// The slots of a producer, each of some `T`, whose frames have records `R`
#[derive(Debug)]
pub(crate) struct Slots<T, R> {
    slots: BTreeMap<u32, Slot<T, R>>,
    /// Slot and index of the buffers of all.
    buffers: BTreeMap<BufferId, (u32, usize)>,
    /// In the order in which they became free.
    free: VecDeque<u32>,
    /// In the order in which they were pushed.
    doubtful: VecDeque<u32>,
    ready: VecDeque<ProducerEvent>,
    /// Events since the last of which something came, or that was reported though nothing did.
    idle: u32,
    unsure: bool,
}

impl<T, R> Slots<T, R> {
    pub(crate) fn new() -> Self {
        Self {
            slots: BTreeMap::new(),
            buffers: BTreeMap::new(),
            free: VecDeque::new(),
            doubtful: VecDeque::new(),
            ready: VecDeque::new(),
            idle: 0,
            unsure: false,
        }
    }

    /// One more, which is free. False: a buffer of it is in a slot already, or twice in this one:
    /// a frame in one would be in the other.
    #[must_use]
    pub(crate) fn add(&mut self, number: u32, ids: &[BufferId], content: T) -> bool {
        let once: BTreeSet<_> = ids.iter().collect();
        if once.len() != ids.len() || ids.iter().any(|id| self.buffers.contains_key(id)) {
            return false;
        }
        let slot = Slot {
            state: State::Free(content),
            ids: ids.to_vec(),
            lost: false,
        };
        self.slots.insert(number, slot);
        let buffers = ids.iter().enumerate();
        self.buffers
            .extend(buffers.map(|(index, id)| (*id, (number, index))));
        self.free.push_back(number);
        true
    }

    /// A free one for the program: that of this number, or the longest free.
    pub(crate) fn acquire(&mut self, number: Option<u32>) -> Option<(u32, T)> {
        let number = match number {
            Some(number) => number,
            None => *self.free.front()?,
        };
        let index = self.free.iter().position(|free| *free == number)?;
        self.free.remove(index);
        let slot = self.slots.get_mut(&number)?;
        match std::mem::replace(&mut slot.state, State::Held) {
            State::Free(content) => Some((number, content)),
            other => {
                slot.state = other;
                None
            }
        }
    }

    /// Takes one away for good, also if its frame is out; `None`: there is none, or the program
    /// has it.
    pub(crate) fn remove(&mut self, number: u32) -> Option<T> {
        let slot = self.slots.get_mut(&number)?;
        match std::mem::replace(&mut slot.state, State::Held) {
            State::Held => None,
            State::Free(content) | State::Out(content) | State::Doubtful(content, _) => {
                // What comes back lost, goes.
                slot.lost = true;
                self.come_back(number, None);
                Some(content)
            }
        }
    }

    /// The program has not pushed it.
    pub(crate) fn give_back(&mut self, number: u32, content: T) {
        self.come_back(number, Some(content));
    }

    /// The program has pushed it, or tried to.
    pub(crate) fn pushed(&mut self, number: u32, content: T, record: R, push: Push) {
        let Some(slot) = self.slots.get_mut(&number) else {
            return;
        };
        match push {
            Push::Out(_) => slot.state = State::Out(content),
            Push::Refused => self.come_back(number, Some(content)),
            Push::Doubtful => {
                slot.state = State::Doubtful(content, record);
                self.doubtful.push_back(number);
            }
            Push::Gone => {
                self.lose(number);
                self.come_back(number, Some(content));
            }
        }
    }

    /// What is in doubt, to be pushed again.
    pub(crate) fn take_doubtful(&mut self) -> Vec<(u32, T, R)> {
        let slots = &mut self.slots;
        let numbers = self.doubtful.drain(..);
        let taken = numbers.filter_map(|number| {
            let slot = slots.get_mut(&number)?;
            match std::mem::replace(&mut slot.state, State::Held) {
                State::Doubtful(content, record) => Some((number, content, record)),
                other => {
                    slot.state = other;
                    None
                }
            }
        });
        taken.collect()
    }

    /// Frames that are out, or may be.
    pub(crate) fn out(&self) -> usize {
        let states = self.slots.values().map(|slot| &slot.state);
        states
            .filter(|state| matches!(state, State::Out(_) | State::Doubtful(..)))
            .count()
    }

    /// What is to be reported next.
    pub(crate) fn next_event(&mut self) -> Option<ProducerEvent> {
        self.ready.pop_front()
    }

    /// An event of the producer's device; `stream` is the producer's.
    pub(crate) fn take(&mut self, event: Event, stream: BufferId) {
        let buffer = self.buffers.get(&event.id).copied();
        match (event.kind, buffer) {
            (EventKind::Returned, Some((slot, 0))) => {
                self.ready.push_back(ProducerEvent::Returned {
                    slot,
                    frame: event.value,
                    arrival: event.arrival,
                });
                self.return_frame(slot);
            }
            (EventKind::Revoked, Some((number, index))) => {
                self.lose(number);
                self.end_buffer(number, index);
            }
            (EventKind::Revoked, _) if event.id == stream => {
                self.ready.push_back(ProducerEvent::Ended);
            }
            (EventKind::Released, _) if event.id == stream => {
                let peer = event.peer;
                self.ready.push_back(ProducerEvent::Left { peer });
            }
            // Which VM has an import of it is nothing that counts: its frame is returned by that.
            (EventKind::Released, Some(_)) if self.idle < MAX_IDLE => {
                self.idle = self.idle.saturating_add(1);
                return;
            }
            (EventKind::Overflow, _) => {
                self.unsure = true;
                self.ready.push_back(ProducerEvent::Other(event));
            }
            _ => self.ready.push_back(ProducerEvent::Other(event)),
        }
        self.idle = 0;
    }

    /// Events were lost, so that exports may have ended.
    pub(crate) fn is_unsure(&self) -> bool {
        self.unsure
    }

    /// Makes that good: whether the stream has ended, and which is the first buffer of a slot
    /// that has.
    pub(crate) fn verify(&mut self, stream_ended: bool, ended: impl Fn(&T) -> Option<usize>) {
        self.unsure = false;
        if stream_ended {
            self.ready.push_back(ProducerEvent::Ended);
        }
        let states = self.slots.iter();
        let lost = states.filter_map(|(number, slot)| match &slot.state {
            // Its push will say so.
            State::Held => None,
            State::Free(content) | State::Out(content) | State::Doubtful(content, _) => {
                ended(content).map(|index| (*number, index))
            }
        });
        for (number, index) in lost.collect::<Vec<_>>() {
            self.lose(number);
            self.end_buffer(number, index);
        }
    }

    fn lose(&mut self, number: u32) {
        if let Some(slot) = self.slots.get_mut(&number)
            && !std::mem::replace(&mut slot.lost, true)
        {
            self.ready.push_back(ProducerEvent::Lost { slot: number });
        }
    }

    /// With its first buffer a frame is returned, and no event says so.
    fn end_buffer(&mut self, number: u32, index: usize) {
        let slot = self.slots.get(&number);
        match slot.map(|slot| &slot.state) {
            Some(State::Free(_)) => self.come_back(number, None),
            Some(State::Out(_) | State::Doubtful(..)) if index == 0 => {
                self.come_back(number, None);
            }
            _ => {}
        }
    }

    fn return_frame(&mut self, number: u32) {
        let slot = self.slots.get(&number);
        if let Some(State::Out(_) | State::Doubtful(..)) = slot.map(|slot| &slot.state) {
            self.come_back(number, None);
        }
    }

    /// It is with nobody any more; `None`: what it consists of is here.
    fn come_back(&mut self, number: u32, content: Option<T>) {
        let Some(slot) = self.slots.get_mut(&number) else {
            return;
        };
        self.doubtful.retain(|doubtful| *doubtful != number);
        self.free.retain(|free| *free != number);
        if slot.lost {
            for id in &slot.ids {
                self.buffers.remove(id);
            }
            self.slots.remove(&number);
            return;
        }
        let state = std::mem::replace(&mut slot.state, State::Held);
        let content = content.or(match state {
            State::Free(content) | State::Out(content) | State::Doubtful(content, _) => {
                Some(content)
            }
            State::Held => None,
        });
        if let Some(content) = content {
            slot.state = State::Free(content);
            self.free.push_back(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: BufferId = BufferId([9; 16]);

    fn id(n: u8) -> BufferId {
        BufferId([n; 16])
    }

    /// Slots 0 and 1; the first of buffers 1 and 2, the second of buffer 3.
    fn two() -> Slots<&'static str, u8> {
        let mut slots = Slots::new();
        assert!(slots.add(0, &[id(1), id(2)], "zero"));
        assert!(slots.add(1, &[id(3)], "one"));
        slots
    }

    fn event(kind: EventKind, id: BufferId, value: u64) -> Event {
        Event {
            peer: 2,
            id,
            value,
            ..Event::new(kind)
        }
    }

    fn events(slots: &mut Slots<&'static str, u8>) -> Vec<ProducerEvent> {
        std::iter::from_fn(|| slots.next_event()).collect()
    }

    fn push(slots: &mut Slots<&'static str, u8>, push: Push) -> u32 {
        let (number, content) = slots.acquire(None).unwrap();
        slots.pushed(number, content, 5, push);
        number
    }

    const fn returned(slot: u32, frame: u64) -> ProducerEvent {
        ProducerEvent::Returned {
            slot,
            frame,
            arrival: 0,
        }
    }

    #[test]
    fn the_longest_free_slot_is_next_and_a_frame_that_is_out_is_not() {
        let mut slots = two();
        assert_eq!(push(&mut slots, Push::Out(1)), 0);
        assert_eq!(push(&mut slots, Push::Out(2)), 1);
        assert_eq!((slots.acquire(None), slots.out()), (None, 2));
        slots.take(event(EventKind::Returned, id(3), 2), STREAM);
        slots.take(event(EventKind::Returned, id(1), 1), STREAM);
        assert_eq!(events(&mut slots), [returned(1, 2), returned(0, 1)]);
        assert_eq!(slots.acquire(Some(0)), Some((0, "zero")));
        assert_eq!(slots.acquire(Some(0)), None);
        assert_eq!(slots.acquire(None), Some((1, "one")));
    }

    #[test]
    fn a_buffer_is_in_one_slot_and_there_once() {
        let mut slots = two();
        assert!(!slots.add(2, &[id(4), id(2)], "two"));
        assert!(!slots.add(2, &[id(4), id(4)], "two"));
        assert!(slots.add(2, &[id(4)], "two"));
        slots.take(event(EventKind::Revoked, id(2), 0), STREAM);
        assert!(slots.add(3, &[id(2)], "three"));
    }

    #[test]
    fn a_slot_that_is_not_pushed_or_is_refused_is_free_again() {
        let mut slots = two();
        let (number, content) = slots.acquire(None).unwrap();
        slots.give_back(number, content);
        assert_eq!(push(&mut slots, Push::Refused), 1);
        assert_eq!(slots.acquire(None), Some((0, "zero")));
        assert_eq!(slots.acquire(None), Some((1, "one")));
        assert_eq!(events(&mut slots), []);
    }

    #[test]
    fn what_is_in_doubt_is_pushed_again_unless_it_is_returned() {
        let mut slots = two();
        push(&mut slots, Push::Doubtful);
        push(&mut slots, Push::Doubtful);
        assert_eq!((slots.acquire(None), slots.out()), (None, 2));
        slots.take(event(EventKind::Returned, id(1), 1), STREAM);
        assert_eq!(slots.take_doubtful(), [(1, "one", 5)]);
        slots.pushed(1, "one", 5, Push::Out(2));
        assert_eq!((slots.take_doubtful(), slots.out()), (vec![], 1));
    }

    #[test]
    fn a_revoked_first_buffer_ends_its_slot_at_once_and_another_when_the_frame_is_back() {
        let mut slots = two();
        push(&mut slots, Push::Out(1));
        push(&mut slots, Push::Out(2));
        slots.take(event(EventKind::Revoked, id(2), 0), STREAM);
        slots.take(event(EventKind::Revoked, id(3), 0), STREAM);
        let lost = |slot| ProducerEvent::Lost { slot };
        assert_eq!(events(&mut slots), [lost(0), lost(1)]);
        assert_eq!(slots.out(), 1);
        slots.take(event(EventKind::Returned, id(1), 1), STREAM);
        slots.take(event(EventKind::Revoked, id(1), 0), STREAM);
        assert_eq!((slots.acquire(None), slots.out()), (None, 0));
        // Of a buffer that is none of its own any more.
        let other = event(EventKind::Revoked, id(1), 0);
        assert_eq!(
            events(&mut slots),
            [returned(0, 1), ProducerEvent::Other(other)]
        );
    }

    #[test]
    fn a_slot_is_removed_wherever_it_is_but_with_the_program() {
        let mut slots = two();
        assert!(slots.add(2, &[id(4)], "two"));
        push(&mut slots, Push::Out(1));
        push(&mut slots, Push::Doubtful);
        assert_eq!(slots.remove(0), Some("zero"));
        assert_eq!(slots.remove(0), None);
        assert_eq!(slots.remove(1), Some("one"));
        assert_eq!((slots.out(), slots.take_doubtful()), (0, vec![]));
        let held = slots.acquire(None).unwrap();
        assert_eq!(slots.remove(2), None);
        slots.give_back(held.0, held.1);
        assert_eq!(slots.remove(2), Some("two"));
        assert_eq!(slots.acquire(None), None);
        // What was on its way is of nothing that is known.
        let late = event(EventKind::Returned, id(1), 1);
        slots.take(late.clone(), STREAM);
        assert_eq!(events(&mut slots), [ProducerEvent::Other(late)]);
        assert!(slots.add(3, &[id(1)], "three"));
    }

    #[test]
    fn a_held_slot_that_is_lost_goes_when_it_comes_back() {
        let mut slots = two();
        let (number, content) = slots.acquire(None).unwrap();
        slots.take(event(EventKind::Revoked, id(1), 0), STREAM);
        slots.give_back(number, content);
        let (number, content) = slots.acquire(None).unwrap();
        slots.pushed(number, content, 0, Push::Gone);
        assert_eq!(slots.acquire(None), None);
        let lost = |slot| ProducerEvent::Lost { slot };
        assert_eq!(events(&mut slots), [lost(0), lost(1)]);
    }

    #[test]
    fn one_of_many_events_of_which_nothing_comes_is_reported() {
        let mut slots = two();
        let released = event(EventKind::Released, id(1), 0);
        for _ in 0..2 {
            for _ in 0..MAX_IDLE {
                slots.take(released.clone(), STREAM);
                assert_eq!(slots.next_event(), None);
            }
            slots.take(released.clone(), STREAM);
            let reported = ProducerEvent::Other(released.clone());
            assert_eq!(events(&mut slots), [reported]);
        }
    }

    #[test]
    fn lost_events_are_made_good_by_asking() {
        let mut slots = two();
        push(&mut slots, Push::Out(1));
        let overflow = event(EventKind::Overflow, BufferId::ZERO, 3);
        slots.take(overflow.clone(), STREAM);
        assert!(slots.is_unsure());
        slots.verify(true, |content| (*content == "zero").then_some(0));
        assert!(!slots.is_unsure());
        assert_eq!(
            events(&mut slots),
            [
                ProducerEvent::Other(overflow),
                ProducerEvent::Ended,
                ProducerEvent::Lost { slot: 0 }
            ]
        );
        assert_eq!((slots.out(), slots.acquire(None)), (0, Some((1, "one"))));
    }

    #[test]
    fn who_leaves_the_stream_is_said_once_and_not_of_its_buffers() {
        let mut slots = two();
        slots.take(event(EventKind::Released, id(1), 0), STREAM);
        slots.take(event(EventKind::Released, STREAM, 0), STREAM);
        slots.take(event(EventKind::Revoked, STREAM, 0), STREAM);
        assert_eq!(
            events(&mut slots),
            [ProducerEvent::Left { peer: 2 }, ProducerEvent::Ended]
        );
    }
}
