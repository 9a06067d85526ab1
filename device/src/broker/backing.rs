// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Backings: the memory that peers share, and buffers, which are ranges of it.
//!
//! What may be mapped, by whom and until when is a matter of the backing, since a window
//! shows all of it; what a range of it means to those who attach it is the buffer's.

use core::ops::RangeInclusive;
use std::collections::{BTreeMap, BTreeSet};

use bufshare_protocol::types::{BufferId, Extent, Image, Meta, Name, Rights, StreamState};

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::SyncCounts;
use super::attachments::Attachment;
use super::frames::Frames;
use super::limits::GENERATION_BITS;
use super::records::{Record, Records, Slot};
use super::refcount;
use super::types::{DeadlineId, PeerId, Token};

/// Number of a backing, never used again. Its upper bits are its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(super) struct BackingId(pub(super) u64);

impl BackingId {
    pub(super) const ALL: RangeInclusive<Self> = Self(0)..=Self(u64::MAX);

    /// All numbers that backings of a peer may have: its own are found by them.
    pub(super) fn all_of(owner: PeerId) -> RangeInclusive<Self> {
        let first = owner.to_wire().checked_shl(GENERATION_BITS);
        let first = first.unwrap_or(u64::MAX);
        let last = 1_u64
            .checked_shl(GENERATION_BITS)
            .and_then(|count| first.checked_add(count));
        let last = last.map_or(u64::MAX, |next| next.saturating_sub(1));
        Self(first)..=Self(last)
    }

    pub(super) fn only(self) -> RangeInclusive<Self> {
        self..=self
    }

    pub(super) fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// Microseconds for each number that an export may have since 1970: more are not exported
/// for long, so that those of an earlier start are not used again.
const US_PER_EXPORT: u64 = 62;

/// The number before the first export of a daemon that was started then, `None` if that
/// leaves none.
pub(super) fn first_export(started_us: u64) -> Option<u64> {
    let first = started_us.checked_div(US_PER_EXPORT)?;
    (first < 1_u64.checked_shl(GENERATION_BITS.checked_sub(1)?)?).then_some(first)
}

/// The number of a peer's next export. Each peer counts its own: from a common count
/// those that may not know of each other would learn how much the others export.
pub(super) fn generation(owner: PeerId, exported: u64) -> Option<u64> {
    let own = exported.checked_add(1)?;
    let first = 1_u64.checked_shl(GENERATION_BITS)?;
    let base = first.checked_mul(owner.to_wire())?;
    if own < first {
        base.checked_add(own)
    } else {
        None
    }
}

/// Peers that have no memory of their own in a [`PeerMap`]: most buffers are for one or two.
const FEW_PEERS: usize = 4;

/// A few peers, in order: a part of what they are the peers of, if they are few.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound(serialize = "T: Serialize", deserialize = "T: Deserialize<'de>"))]
pub(super) struct PeerMap<T>(SmallVec<[(PeerId, T); FEW_PEERS]>);

impl<T> Default for PeerMap<T> {
    fn default() -> Self {
        Self(SmallVec::new())
    }
}

impl<T> PeerMap<T> {
    fn place(&self, peer: PeerId) -> Result<usize, usize> {
        self.0.binary_search_by_key(&peer, |(one, _)| *one)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn get(&self, peer: PeerId) -> Option<&T> {
        let place = self.place(peer).ok()?;
        self.0.get(place).map(|(_, value)| value)
    }

    pub(super) fn get_mut(&mut self, peer: PeerId) -> Option<&mut T> {
        let place = self.place(peer).ok()?;
        self.0.get_mut(place).map(|(_, value)| value)
    }

    /// Answers whether there was none of this peer before.
    pub(super) fn insert(&mut self, peer: PeerId, value: T) -> bool {
        match self.place(peer) {
            Ok(_) => false,
            Err(place) => {
                self.0.insert(place, (peer, value));
                true
            }
        }
    }

    pub(super) fn remove(&mut self, peer: PeerId) -> Option<T> {
        let place = self.place(peer).ok()?;
        Some(self.0.remove(place).1)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (PeerId, &T)> {
        self.0.iter().map(|(peer, value)| (*peer, value))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (PeerId, &mut T)> {
        self.0.iter_mut().map(|(peer, value)| (*peer, value))
    }

    pub(super) fn peers(&self) -> impl Iterator<Item = PeerId> {
        self.0.iter().map(|(peer, _)| *peer)
    }
}

/// What one peer may do with a backing, and what it has of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Grant {
    pub(super) rights: Rights,
    /// Windows that show it or are to, and file holds of it that no guest sees.
    pub(super) reached: u32,
}

/// Memory that a peer shares.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Backing {
    pub(super) number: BackingId,
    pub(super) owner: PeerId,
    pub(super) size: u64,
    /// Of the owner's RAM.
    pub(super) extents: SmallVec<[Extent; 1]>,
    /// The owner's access list, already narrowed to the operator's policy.
    pub(super) grants: PeerMap<Grant>,
    /// The buffers in it, which end with it.
    pub(super) buffers: SmallVec<[Slot; 4]>,
    /// Set while it is being revoked.
    pub(super) revoking: Option<Box<Revoking>>,
}

impl Record for Backing {
    type Key = BackingId;

    fn key(&self) -> BackingId {
        self.number
    }
}

/// All backings.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Backings {
    records: Records<Backing>,
    order: BTreeMap<BackingId, Slot>,
}

impl Backings {
    pub(super) fn get(&self, id: BackingId) -> Option<&Backing> {
        self.records.get(self.records.find(&id)?)
    }

    pub(super) fn get_mut(&mut self, id: BackingId) -> Option<&mut Backing> {
        self.records.get_mut(self.records.find(&id)?)
    }

    /// The one that a buffer is in.
    pub(super) fn of(&self, buffer: &Buffer) -> Option<&Backing> {
        self.records.get(buffer.backing_slot)
    }

    /// Where it is now. `None` if there is no room for its number.
    pub(super) fn insert(&mut self, backing: Backing) -> Option<Slot> {
        let number = backing.number;
        let slot = self.records.insert(backing)?;
        self.order.insert(number, slot);
        Some(slot)
    }

    pub(super) fn remove(&mut self, id: BackingId) -> Option<Backing> {
        self.records.remove(self.order.remove(&id)?)
    }

    /// Those with these numbers, in their order.
    pub(super) fn range(
        &self,
        numbers: RangeInclusive<BackingId>,
    ) -> impl Iterator<Item = &Backing> {
        let slots = self.order.range(numbers);
        slots.filter_map(|(_, slot)| self.records.get(*slot))
    }

    /// All, in the order of their numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Backing> {
        self.range(BackingId::ALL)
    }

    /// Changes those of `owner` that are being revoked.
    pub(super) fn for_revoking(&mut self, owner: PeerId, mut change: impl FnMut(&mut Revoking)) {
        for (_, slot) in self.order.range(BackingId::all_of(owner)) {
            let backing = self.records.get_mut(*slot);
            if let Some(revoking) = backing.and_then(|backing| backing.revoking.as_mut()) {
                change(revoking);
            }
        }
    }

    /// Whether each is found by its number, and once.
    #[cfg(test)]
    pub(super) fn check(&self) -> bool {
        let in_order = self.order.iter().all(|(id, slot)| {
            let backing = self.records.get(*slot);
            backing.is_some_and(|backing| backing.number == *id)
        });
        self.records.check() && in_order && self.order.len() == self.records.len()
    }
}

impl Backing {
    /// One window or file hold more of `peer`.
    pub(super) fn reach(&mut self, peer: PeerId) {
        match self.grants.get_mut(peer) {
            Some(grant) => refcount::more(&mut grant.reached, 1, "windows of a backing"),
            None => refcount::wrong("windows of a backing"),
        }
    }

    /// One less.
    pub(super) fn leave(&mut self, peer: PeerId) {
        match self.grants.get_mut(peer) {
            Some(grant) => refcount::fewer(&mut grant.reached, 1, "windows of a backing"),
            None => refcount::wrong("windows of a backing"),
        }
    }

    /// The peers whose VMM may reach it.
    pub(super) fn reached_by(&self) -> impl Iterator<Item = PeerId> {
        let reached = self.grants.iter().filter(|(_, grant)| grant.reached > 0);
        reached.map(|(peer, _)| peer)
    }
}

/// How the revocation of a backing goes.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Revoking {
    /// The UNEXPORT that waits for the end of it.
    pub(super) waiter: Option<Token>,
    /// Peers that were stopped meanwhile and have been given a deadline of their
    /// own. A second one is not given: a driver can stop its device at will.
    pub(super) late: BTreeSet<PeerId>,
    /// The owner goes on already, and may put something else there.
    pub(super) unproved: bool,
    /// The owner's driver left the device meanwhile: nobody waits for the end.
    pub(super) left: bool,
    /// Those that have not passed yet.
    pub(super) deadlines: Vec<DeadlineId>,
}

/// The attachments of one peer to one buffer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Attached {
    pub(super) attachments: u32,
    /// How many of them are mapped.
    pub(super) mapped: u32,
    /// One of them, which leads to the others. None of a buffer that is revoked.
    pub(super) first: Option<Slot>,
}

/// What many buffers do not have.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Details {
    image: Option<Image>,
    blob: Vec<u8>,
    /// Of a stream.
    state: StreamState,
    /// The stream that it is part of, or zero.
    stream: BufferId,
}

/// One exported buffer, or a stream: that is one of no bytes.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Buffer {
    pub(super) id: BufferId,
    pub(super) generation: u64,
    pub(super) owner: PeerId,
    pub(super) backing: BackingId,
    /// Where that is.
    pub(super) backing_slot: Slot,
    pub(super) size: u64,
    pub(super) name: Name,
    /// Of the image, 0 if there is none.
    pub(super) fourcc: u32,
    pub(super) meta_seq: u64,
    details: Option<Box<Details>>,
    /// Begun and not ended CPU access of the owner.
    pub(super) sync: SyncCounts,
    /// Its exporter's driver has promised that nothing of that VM writes to it. Counts while
    /// that runs: see [`super::Broker::is_quiesced`].
    pub(super) quiesced: bool,
    pub(super) attached: PeerMap<Attached>,
    /// What PUSH and RETURN know of it, if that is anything.
    pub(super) frames: Option<Box<Frames>>,
}

impl Record for Buffer {
    type Key = BufferId;

    fn key(&self) -> BufferId {
        self.id
    }
}

impl Buffer {
    /// The whole of a backing, which is in this slot, without metadata.
    pub(super) fn new(id: BufferId, generation: u64, backing: &Backing, slot: Slot) -> Self {
        Self {
            backing_slot: slot,
            id,
            generation,
            owner: backing.owner,
            backing: backing.number,
            size: backing.size,
            name: Name::EMPTY,
            fourcc: 0,
            meta_seq: 0,
            details: None,
            sync: SyncCounts::default(),
            quiesced: false,
            attached: PeerMap::default(),
            frames: None,
        }
    }

    pub(super) fn meta(&self) -> Meta {
        let details = self.details.as_ref();
        Meta {
            name: self.name,
            image: details.and_then(|details| details.image.clone()),
            blob: details.map_or_else(Vec::new, |details| details.blob.clone()),
            stream: details.map_or_else(StreamState::default, |details| details.state),
        }
    }

    /// What is no stream has bytes: see [`super::Broker::export`].
    pub(super) fn is_stream(&self) -> bool {
        self.size == 0
    }

    /// The stream that it is part of, or zero.
    pub(super) fn stream(&self) -> BufferId {
        let details = self.details.as_ref();
        details.map_or(BufferId::ZERO, |details| details.stream)
    }

    pub(super) fn set_stream(&mut self, stream: BufferId) {
        self.change_details(|details| details.stream = stream);
    }

    fn change_details(&mut self, change: impl FnOnce(&mut Details)) {
        let details = self.details.get_or_insert_default();
        change(details);
        if **details == Details::default() {
            self.details = None;
        }
    }

    pub(super) fn image(&self) -> Option<&Image> {
        self.details.as_ref()?.image.as_ref()
    }

    /// Replaces the metadata, and counts that.
    pub(super) fn set_meta(&mut self, meta: Meta) {
        let Meta {
            name,
            image,
            blob,
            stream,
        } = meta;
        self.name = name;
        self.fourcc = image.as_ref().map_or(0, |image| image.fourcc);
        self.change_details(|details| {
            (details.image, details.blob, details.state) = (image, blob, stream);
        });
        self.meta_seq = self.meta_seq.saturating_add(1);
    }

    /// One attachment more of `peer`: where it is to be linked to the others.
    pub(super) fn attach(&mut self, peer: PeerId) -> Option<&mut Attached> {
        self.attached.insert(peer, Attached::default());
        let attached = self.attached.get_mut(peer)?;
        refcount::more(&mut attached.attachments, 1, "attachments of a buffer");
        Some(attached)
    }

    /// This one less. Answers whether it was the last of `peer`.
    pub(super) fn detach(&mut self, peer: PeerId, ended: &Attachment) -> bool {
        let Some(attached) = self.attached.get_mut(peer) else {
            refcount::wrong("attachments of a buffer");
            return true;
        };
        refcount::fewer(&mut attached.attachments, 1, "attachments of a buffer");
        if ended.before.is_none() {
            attached.first = ended.after;
        }
        let last = attached.attachments == 0;
        if last {
            self.attached.remove(peer);
        }
        last
    }

    /// An attachment of `peer` is mapped now, or is not any more.
    pub(super) fn set_mapped(&mut self, peer: PeerId, mapped: bool) {
        match self.attached.get_mut(peer) {
            Some(attached) if mapped => {
                refcount::more(&mut attached.mapped, 1, "mapped attachments")
            }
            Some(attached) => refcount::fewer(&mut attached.mapped, 1, "mapped attachments"),
            None => refcount::wrong("mapped attachments"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an idle buffer takes beside this are its places in the indexes, and more than one
    /// extent, or than a few peers, or metadata that is more than a name.
    #[test]
    fn the_records_of_a_buffer_and_of_an_attachment_are_small() {
        let sizes = [
            size_of::<Buffer>(),
            size_of::<Backing>(),
            size_of::<Attachment>(),
        ];
        let most = [192, 136, 112];
        let kept = sizes.iter().zip(&most).all(|(size, most)| size <= most);
        assert!(kept, "{sizes:?} bytes, {most:?} at most");
    }
}
