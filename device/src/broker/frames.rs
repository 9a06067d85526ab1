// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Frames: PUSH hands them over, RETURN gives them back.
//!
//! A frame is in one to four buffers of its exporter, and is given to the consumers of the
//! first: attachments that asked for that. From PUSH until all of them have given it back its
//! buffers are *out*, and cannot be pushed again; nor can the first, until the exporter has
//! taken the RETURNED. So what waits for a consumer is bounded by the buffers of its
//! exporters, and what waits for an exporter by its own. A consumer has a frame until it
//! knows that it has not: by its own RETURN or DETACH, or because the first buffer is revoked.

use std::collections::BTreeSet;
use std::sync::Arc;

use bufshare_protocol::event::{Event, EventKind};
use bufshare_protocol::limits::MAX_CONSUMERS;
use bufshare_protocol::response::{Reply, Response};
use bufshare_protocol::status::Status;
use bufshare_protocol::types::{BufferId, Push, Pushed};

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::attachments::buffer_of;
use super::backing::Buffer;
use super::imports::{check_batch, is_done};
use super::records::Slot;
use super::types::PeerId;
use super::{Broker, Peer, refcount};

/// The buffers of a frame beside its first.
type Others = SmallVec<[Slot; 3]>;

/// What a buffer has to do with a frame that was pushed and not returned.
#[derive(Debug, Serialize, Deserialize)]
enum Out {
    /// It is the frame's first.
    First {
        number: u64,
        others: Others,
        /// How many consumers have it.
        holders: u32,
    },
    /// It is another one; the first is there.
    Other(Slot),
}

/// An attachment that is given the frames of its buffer.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Consumer {
    peer: PeerId,
    handle: u64,
    /// It has the frame that is out.
    holds: bool,
}

/// What PUSH and RETURN know of a buffer.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Frames {
    out: Option<Out>,
    /// In the order of their peers.
    consumers: SmallVec<[Consumer; 2]>,
}

impl Frames {
    fn consumer(&mut self, peer: PeerId, handle: u64) -> Option<&mut Consumer> {
        let mut consumers = self.consumers.iter_mut();
        consumers.find(|one| (one.peer, one.handle) == (peer, handle))
    }

    fn is_needless(&self) -> bool {
        self.out.is_none() && self.consumers.is_empty()
    }
}

impl Buffer {
    /// Whether a frame that it is part of was pushed and not returned.
    pub(super) fn is_out(&self) -> bool {
        self.frames
            .as_ref()
            .is_some_and(|frames| frames.out.is_some())
    }

    /// Whether another attachment of `peer` can be given its frames.
    pub(super) fn has_room_for_consumer(&self, peer: PeerId) -> bool {
        let frames = self.frames.as_ref();
        let own = frames.map_or(0, |frames| {
            let consumers = frames.consumers.iter();
            consumers.filter(|one| one.peer == peer).count()
        });
        own < MAX_CONSUMERS
    }

    /// Gives its frames to an attachment of `peer` from now on.
    pub(super) fn add_consumer(&mut self, peer: PeerId, handle: u64) {
        let consumers = &mut self.frames.get_or_insert_default().consumers;
        let place = consumers.partition_point(|one| one.peer <= peer);
        let consumer = Consumer {
            peer,
            handle,
            holds: false,
        };
        consumers.insert(place, consumer);
    }

    fn change_frames<T>(&mut self, change: impl FnOnce(&mut Frames) -> T) -> T {
        let frames = self.frames.get_or_insert_default();
        let changed = change(frames);
        if frames.is_needless() {
            self.frames = None;
        }
        changed
    }
}

/// A frame that is to be pushed, when all of its request were found right.
struct Ready {
    first: Slot,
    others: Others,
    max_held: u32,
    pushed: Pushed,
}

impl Broker {
    /// Hands frames over: all of them, or none.
    pub(super) fn push(&mut self, peer: PeerId, frames: Vec<Push>) -> Reply {
        let mut ready = Vec::with_capacity(frames.len());
        let mut named = BTreeSet::new();
        for (entry, frame) in (0_u32..).zip(frames) {
            match self.check_push(peer, frame, &mut named) {
                Ok(frame) => ready.push(frame),
                Err(status) => {
                    let frame = 0;
                    return Ok(Response::Pushed {
                        status,
                        entry,
                        frame,
                    });
                }
            }
        }
        let state = self.peers.get_mut(&peer).ok_or(Status::HostError)?;
        let entry = u32::try_from(ready.len()).map_err(|_| Status::HostError)?;
        let frame = state.frames.saturating_add(1);
        state.frames = state.frames.saturating_add(entry.into());
        for (number, ready) in (frame..).zip(ready) {
            self.hand_over(peer, number, ready);
        }
        Ok(Response::Pushed {
            status: Status::Ok,
            entry,
            frame,
        })
    }

    /// One frame of a PUSH. `named`: buffers of those before, and then of this one.
    fn check_push(
        &self,
        peer: PeerId,
        frame: Push,
        named: &mut BTreeSet<BufferId>,
    ) -> Result<Ready, Status> {
        let state = self.peers.get(&peer).ok_or(Status::HostError)?;
        let mut slots = Others::new();
        let mut sizes: SmallVec<[u64; 4]> = SmallVec::new();
        for id in &frame.buffers {
            let slot = self.owned(peer, *id).ok_or(Status::NotFound)?;
            let buffer = self.buffers.get(slot).ok_or(Status::NotFound)?;
            let backing = self.backings.of(buffer).ok_or(Status::NotFound)?;
            if buffer.is_stream() {
                return Err(Status::BadField);
            }
            if !self.offers(backing) {
                return Err(Status::Revoked);
            }
            if buffer.is_out() || !named.insert(*id) {
                return Err(Status::Busy);
            }
            slots.push(slot);
            sizes.push(buffer.size);
        }
        let (first, others) = slots.split_first().ok_or(Status::BadField)?;
        let (id, more) = frame.buffers.split_first().ok_or(Status::BadField)?;
        if state.events.is_returned(*id) {
            return Err(Status::Busy);
        }
        let buffer = self.buffers.get(*first).ok_or(Status::NotFound)?;
        let image = buffer.image();
        if !frame.record.fits(&sizes) || !image.is_none_or(|image| image.fits_frame(&sizes)) {
            return Err(Status::BadMeta);
        }
        Ok(Ready {
            first: *first,
            others: Others::from_slice(others),
            max_held: frame.max_held,
            pushed: Pushed {
                others: more.to_vec(),
                meta_seq: buffer.meta_seq,
                record: frame.record,
            },
        })
    }

    fn hand_over(&mut self, owner: PeerId, number: u64, ready: Ready) {
        let Ready {
            first,
            others,
            max_held,
            pushed,
        } = ready;
        let Some(buffer) = self.buffers.get_mut(first) else {
            return;
        };
        let (id, generation) = (buffer.id, buffer.generation);
        let stream = (owner, buffer.stream());
        let mut given = Vec::new();
        if let Some(frames) = &mut buffer.frames {
            for consumer in &mut frames.consumers {
                let state = self.peers.get(&consumer.peer);
                let held = state.and_then(|state| state.held.get(&stream));
                if max_held == 0 || held.is_none_or(|held| *held < max_held) {
                    consumer.holds = true;
                    given.push((consumer.peer, consumer.handle));
                }
            }
        }
        if given.is_empty() {
            return self.report_returned(owner, id, generation, number);
        }
        let holders = u32::try_from(given.len()).unwrap_or(u32::MAX);
        for slot in &others {
            if let Some(buffer) = self.buffers.get_mut(*slot) {
                buffer.change_frames(|frames| frames.out = Some(Out::Other(first)));
            }
        }
        if let Some(buffer) = self.buffers.get_mut(first) {
            buffer.change_frames(|frames| {
                frames.out = Some(Out::First {
                    number,
                    others,
                    holders,
                });
            });
        }
        let pushed = Arc::new(pushed);
        let mut before = None;
        for (peer, handle) in given {
            // Several attachments of one peer have one frame.
            if before.replace(peer) != Some(peer)
                && let Some(state) = self.peers.get_mut(&peer)
            {
                let held = state.held.entry(stream).or_default();
                refcount::more(held, 1, "frames of a stream");
            }
            let event = Event {
                kind: EventKind::Pushed,
                seq: 0,
                peer: owner.to_wire(),
                id,
                handle,
                generation,
                value: number,
                frame: Some(pushed.clone()),
            };
            self.notify(peer, |events| events.pushed(event));
        }
    }

    /// Gives frames back: all of them, or none.
    pub(super) fn give_back(&mut self, peer: PeerId, frames: &[(u64, u64)]) -> Reply {
        let state = self.peers.get(&peer).ok_or(Status::HostError)?;
        let mut named = BTreeSet::new();
        let wrong = |(handle, number): (u64, u64)| {
            let Some(attachment) = state.attachments.get(handle) else {
                return Status::NotFound;
            };
            let buffer = self.buffers.get(attachment.buffer);
            let buffer = buffer.filter(|buffer| buffer.generation == attachment.generation);
            let held = buffer.and_then(|buffer| buffer.holder(peer, handle));
            if held == Some(number) && named.insert(handle) {
                Status::Ok
            } else {
                Status::Unbalanced
            }
        };
        let checked = check_batch(frames, wrong);
        if is_done(&checked) {
            for (handle, _) in frames {
                self.let_go(peer, *handle);
            }
        }
        Ok(checked)
    }

    /// An attachment has nothing of a frame any more, if it had.
    pub(super) fn let_go(&mut self, peer: PeerId, handle: u64) {
        let Some(state) = self.peers.get(&peer) else {
            return;
        };
        let Some(attachment) = state.attachments.get(handle) else {
            return;
        };
        let slot = attachment.buffer;
        if buffer_of(&mut self.buffers, attachment).is_some() {
            self.release_frame(slot, peer, handle);
        }
    }

    /// A consumer of a buffer does not have the frame that is out any more, if it had.
    fn release_frame(&mut self, slot: Slot, peer: PeerId, handle: u64) {
        let Some(buffer) = self.buffers.get_mut(slot) else {
            return;
        };
        let (id, stream) = (buffer.id, (buffer.owner, buffer.stream()));
        let Some(frames) = &mut buffer.frames else {
            return;
        };
        let Some(consumer) = frames.consumer(peer, handle).filter(|one| one.holds) else {
            return;
        };
        consumer.holds = false;
        let mut consumers = frames.consumers.iter();
        let has_it = consumers.any(|one| one.peer == peer && one.holds);
        let mut last = false;
        if let Some(Out::First { holders, .. }) = &mut frames.out {
            refcount::fewer(holders, 1, "holders of a frame");
            last = *holders == 0;
        }
        if let Some(state) = self.peers.get_mut(&peer) {
            state.events.not_pushed(id, handle);
            if !has_it {
                state.holds_one_less(stream);
            }
        }
        if last {
            self.end_frame(slot);
        }
    }

    /// Nobody has the frame any more of which this buffer is the first.
    fn end_frame(&mut self, slot: Slot) {
        let Some(buffer) = self.buffers.get_mut(slot) else {
            return;
        };
        let (id, owner, generation) = (buffer.id, buffer.owner, buffer.generation);
        let Some(Out::First { number, others, .. }) =
            buffer.change_frames(|frames| frames.out.take())
        else {
            return;
        };
        for other in others {
            if let Some(buffer) = self.buffers.get_mut(other) {
                buffer.change_frames(|frames| frames.out = None);
            }
        }
        self.report_returned(owner, id, generation, number);
    }

    fn report_returned(&mut self, owner: PeerId, id: BufferId, generation: u64, number: u64) {
        self.notify(owner, |events| {
            events.returned(owner.to_wire(), id, generation, number);
        });
    }

    /// A buffer is about to be revoked. If it is the first of a frame, its consumers learn of
    /// that, and do not have the frame any more. If it is another one, they may still use the
    /// first: the frame goes on without it.
    pub(super) fn recall_frame(&mut self, slot: Slot) {
        let Some(buffer) = self.buffers.get_mut(slot) else {
            return;
        };
        let (id, stream) = (buffer.id, (buffer.owner, buffer.stream()));
        let Some(frames) = &mut buffer.frames else {
            return;
        };
        if let Some(Out::Other(first)) = frames.out {
            buffer.change_frames(|frames| frames.out = None);
            let first = self.buffers.get_mut(first);
            let frames = first.and_then(|one| one.frames.as_mut());
            if let Some(Out::First { others, .. }) = frames.and_then(|one| one.out.as_mut()) {
                others.retain(|other| *other != slot);
            }
            return;
        }
        let mut before = None;
        for consumer in &mut frames.consumers {
            let peer = consumer.peer;
            if core::mem::take(&mut consumer.holds)
                && let Some(state) = self.peers.get_mut(&peer)
            {
                state.events.not_pushed(id, consumer.handle);
                // Several attachments of one peer have one frame.
                if before.replace(peer) != Some(peer) {
                    state.holds_one_less(stream);
                }
            }
        }
        self.end_frame(slot);
    }

    /// An attachment is about to end: it has nothing of a frame, and is given none any more.
    pub(super) fn end_consumer(&mut self, peer: PeerId, handle: u64) {
        self.let_go(peer, handle);
        let Some(state) = self.peers.get(&peer) else {
            return;
        };
        let Some(attachment) = state.attachments.get(handle) else {
            return;
        };
        if let Some(buffer) = buffer_of(&mut self.buffers, attachment)
            && buffer.frames.is_some()
        {
            buffer.change_frames(|frames| {
                let consumers = &mut frames.consumers;
                consumers.retain(|one| (one.peer, one.handle) != (peer, handle));
            });
        }
    }

    /// All attachments of `peer` are about to end, or can give nothing back any more.
    pub(super) fn end_consumers(&mut self, peer: PeerId) {
        let Some(state) = self.peers.get(&peer) else {
            return;
        };
        let consumers = state.attachments.iter().filter(|(_, one)| one.consumer);
        let consumers: Vec<u64> = consumers.map(|(handle, _)| handle).collect();
        for handle in consumers {
            self.end_consumer(peer, handle);
        }
    }
}

impl Peer {
    /// It has one frame less of a stream of another peer.
    fn holds_one_less(&mut self, stream: (PeerId, BufferId)) {
        if let Some(held) = self.held.get_mut(&stream) {
            refcount::fewer(held, 1, "frames of a stream");
            if *held == 0 {
                self.held.remove(&stream);
            }
        }
    }
}

impl Buffer {
    /// Whether an attachment has a frame, whatever its number, of which it is the first.
    fn holder(&self, peer: PeerId, handle: u64) -> Option<u64> {
        let frames = self.frames.as_ref()?;
        let mut consumers = frames.consumers.iter();
        let holds = consumers.any(|one| (one.peer, one.handle) == (peer, handle) && one.holds);
        match frames.out {
            Some(Out::First { number, .. }) if holds => Some(number),
            _ => None,
        }
    }
}

#[cfg(test)]
#[allow(
    clippy::arithmetic_side_effects,
    reason = "a test that overflows fails"
)]
impl Broker {
    /// Whether an attachment has the frame of its buffer.
    pub(super) fn has_frame(&self, peer: PeerId, handle: u64) -> bool {
        let Some(attachment) = self.peers[&peer].attachments.get(handle) else {
            return false;
        };
        let buffer = self.buffers.get(attachment.buffer);
        let buffer = buffer.filter(|buffer| buffer.generation == attachment.generation);
        buffer.is_some_and(|buffer| buffer.holder(peer, handle).is_some())
    }

    /// What must hold of frames at all times; names what does not.
    pub(super) fn check_frames(&self) -> Result<(), String> {
        let mut held = std::collections::BTreeMap::<(PeerId, (PeerId, BufferId)), u32>::new();
        for (slot, buffer) in self.buffers.iter() {
            let Some(frames) = &buffer.frames else {
                continue;
            };
            if frames.is_needless() {
                return Err("frames are kept for nothing".into());
            }
            let mut holding = 0;
            let mut holders = BTreeSet::new();
            if !frames.consumers.is_sorted_by_key(|one| one.peer) {
                return Err("consumers are in no order".into());
            }
            for consumer in &frames.consumers {
                let peer = consumer.peer;
                let attachment = self.peers[&peer].attachments.get(consumer.handle);
                if !attachment.is_some_and(|one| one.consumer && one.id == buffer.id) {
                    return Err(format!("{peer} consumes by an attachment that is gone"));
                }
                if consumer.holds {
                    holding += 1;
                    if holders.insert(peer) {
                        let stream = (buffer.owner, buffer.stream());
                        *held.entry((peer, stream)).or_default() += 1;
                    }
                }
            }
            let found = match &frames.out {
                None => holding == 0,
                Some(Out::First {
                    others, holders, ..
                }) => {
                    let out = |other: &Slot| {
                        let frames = self.buffers.get(*other).and_then(|one| one.frames.as_ref());
                        let out = frames.and_then(|frames| frames.out.as_ref());
                        matches!(out, Some(Out::Other(first)) if *first == slot)
                    };
                    holding == *holders && *holders > 0 && others.iter().all(out)
                }
                Some(Out::Other(first)) => {
                    let frames = self.buffers.get(*first).and_then(|one| one.frames.as_ref());
                    let out = frames.and_then(|frames| frames.out.as_ref());
                    let lists = matches!(
                        out,
                        Some(Out::First { others, .. }) if others.contains(&slot)
                    );
                    holding == 0 && lists
                }
            };
            let offered = self
                .backings
                .of(buffer)
                .is_some_and(|b| b.revoking.is_none());
            if !found || (frames.out.is_some() && !offered) {
                return Err(format!("buffer {} is out wrongly", buffer.id));
            }
        }
        for (peer, state) in &self.peers {
            let counted = state
                .held
                .iter()
                .map(|(stream, count)| ((*peer, *stream), *count));
            let found = held.iter().filter(|((of, _), _)| of == peer);
            if !counted.eq(found.map(|(key, count)| (*key, *count))) {
                return Err(format!("{peer} has another number of frames"));
            }
        }
        Ok(())
    }
}
