// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the model knows of frames: who has which, and who has yet to hear of it.

use std::collections::{BTreeMap, BTreeSet};

use bufshare_protocol::event::{Event, EventKind};
use bufshare_protocol::status::Status;
use bufshare_protocol::types::{BufferId, Push};

use crate::broker::PeerId;

/// A peer and one of its attachments.
type Holder = (PeerId, u64);

/// A frame that was pushed and not returned.
#[derive(Debug)]
struct Frame {
    buffers: Vec<BufferId>,
    holders: BTreeSet<Holder>,
}

/// A PUSHED that waits.
#[derive(Debug, PartialEq)]
struct News {
    exporter: u64,
    number: u64,
    handle: u64,
    others: Vec<BufferId>,
}

/// Frames by exporter and number, the rest by who holds or hears.
#[derive(Debug, Default)]
pub(super) struct Frames {
    out: BTreeMap<(PeerId, u64), Frame>,
    /// With the buffer.
    consumers: BTreeMap<Holder, BufferId>,
    pushed: BTreeMap<PeerId, Vec<News>>,
    returned: BTreeMap<PeerId, Vec<(BufferId, u64)>>,
}

impl Frames {
    /// How many attachments of `peer` are given the frames of a buffer.
    pub(super) fn consumers(&self, peer: PeerId, id: BufferId) -> usize {
        let consumers = self.consumers.iter();
        let own = consumers.filter(|((p, _), buffer)| (*p, **buffer) == (peer, id));
        own.count()
    }

    pub(super) fn attach(&mut self, peer: PeerId, handle: u64, buffer: BufferId) {
        self.consumers.insert((peer, handle), buffer);
    }

    pub(super) fn detach(&mut self, holder: Holder) {
        self.release(holder);
        self.consumers.remove(&holder);
    }

    /// The driver of `peer` can give nothing back any more.
    pub(super) fn leave(&mut self, peer: PeerId) {
        let gone = self.consumers.keys().filter(|(p, _)| *p == peer);
        for holder in gone.copied().collect::<Vec<_>>() {
            self.detach(holder);
        }
    }

    /// The driver of `peer` knows nothing any more.
    pub(super) fn forget(&mut self, peer: PeerId) {
        self.leave(peer);
        self.pushed.remove(&peer);
        self.returned.remove(&peer);
    }

    /// Why a buffer cannot be part of another frame, or be the first of one.
    pub(super) fn busy(&self, owner: PeerId, id: BufferId, first: bool) -> Status {
        let returned = self.returned.get(&owner).into_iter().flatten();
        let mut out = self.out.values();
        if out.any(|frame| frame.buffers.contains(&id))
            || (first && returned.into_iter().any(|(buffer, _)| *buffer == id))
        {
            Status::Busy
        } else {
            Status::Ok
        }
    }

    /// The frame that an attachment has.
    pub(super) fn held(&self, holder: Holder) -> Option<u64> {
        let mut out = self.out.iter();
        out.find_map(|((_, number), frame)| frame.holders.contains(&holder).then_some(*number))
    }

    /// `same`: whether the first buffer of another frame is of the same stream.
    pub(super) fn push(
        &mut self,
        owner: PeerId,
        number: u64,
        frame: &Push,
        same: impl Fn(BufferId) -> bool,
    ) {
        let held: BTreeMap<PeerId, u32> = {
            let own = self
                .out
                .iter()
                .filter(|((exporter, _), frame)| *exporter == owner && same(frame.buffers[0]));
            let mut held = BTreeMap::new();
            for (_, frame) in own {
                let peers: BTreeSet<PeerId> = frame.holders.iter().map(|(p, _)| *p).collect();
                for peer in peers {
                    *held.entry(peer).or_default() += 1;
                }
            }
            held
        };
        let mut holders = BTreeSet::new();
        for ((peer, handle), buffer) in &self.consumers {
            if *buffer != frame.buffers[0] {
                continue;
            }
            let has = held.get(peer).copied().unwrap_or_default();
            if frame.max_held != 0 && has >= frame.max_held {
                continue;
            }
            holders.insert((*peer, *handle));
            self.pushed.entry(*peer).or_default().push(News {
                exporter: owner.to_wire(),
                number,
                handle: *handle,
                others: frame.buffers[1..].to_vec(),
            });
        }
        let buffers = frame.buffers.clone();
        if holders.is_empty() {
            let returned = self.returned.entry(owner).or_default();
            returned.push((buffers[0], number));
        } else {
            self.out.insert((owner, number), Frame { buffers, holders });
        }
    }

    /// An attachment has no frame any more, if it had.
    pub(super) fn release(&mut self, holder: Holder) {
        let (peer, handle) = holder;
        if let Some(news) = self.pushed.get_mut(&peer) {
            news.retain(|news| news.handle != handle);
        }
        for frame in self.out.values_mut() {
            frame.holders.remove(&holder);
        }
        self.end(|frame| frame.holders.is_empty());
    }

    /// These frames are with nobody any more.
    fn end(&mut self, ended: impl Fn(&Frame) -> bool) {
        let all = core::mem::take(&mut self.out).into_iter();
        let (over, out) = all.partition(|(_, frame)| ended(frame));
        self.out = out;
        let over: BTreeMap<(PeerId, u64), Frame> = over;
        for ((owner, number), frame) in over {
            let returned = self.returned.entry(owner).or_default();
            returned.push((frame.buffers[0], number));
            for (peer, handle) in frame.holders {
                let news = self.pushed.get_mut(&peer).into_iter();
                news.for_each(|news| news.retain(|news| news.handle != handle));
            }
        }
    }

    /// Only these buffers are neither gone nor being revoked.
    pub(super) fn revoke_but(&mut self, offered: &BTreeSet<BufferId>) {
        let there = |id: &BufferId| offered.contains(id);
        self.end(|frame| !there(&frame.buffers[0]));
        for frame in self.out.values_mut() {
            frame.buffers.retain(there);
        }
        for returned in self.returned.values_mut() {
            returned.retain(|(id, _)| there(id));
        }
    }

    /// Compares all events that `peer` had waiting with what it is to hear.
    pub(super) fn heard(&mut self, peer: PeerId, events: &[Event]) {
        let of = |kind| events.iter().filter(move |event| event.kind == kind);
        let pushed: Vec<News> = of(EventKind::Pushed)
            .map(|event| {
                let frame = event.frame.as_ref().expect("with its frame");
                News {
                    exporter: event.peer,
                    number: event.value,
                    handle: event.handle,
                    others: frame.others.clone(),
                }
            })
            .collect();
        assert_eq!(pushed, self.pushed.remove(&peer).unwrap_or_default());
        let returned = of(EventKind::Returned).map(|event| (event.id, event.value));
        let mut returned: Vec<_> = returned.collect();
        let mut wanted = self.returned.remove(&peer).unwrap_or_default();
        // Those of one step come in any order.
        returned.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(returned, wanted);
    }

    /// All frames that are out have somebody who can return them.
    pub(super) fn is_idle(&self) -> bool {
        self.out.is_empty()
    }
}
