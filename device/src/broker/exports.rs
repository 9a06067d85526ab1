// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The exporter's side: EXPORT, UNEXPORT, metadata, and taking buffers back.

use core::ops::RangeInclusive;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use bufshare_protocol::request::Export;
use bufshare_protocol::response::{Reply, Response};
use bufshare_protocol::status::Status;
use bufshare_protocol::types::{Access, BufferId, Extent, Meta, Rights};

use super::limits::{self, GENERATION_BITS, MAP_ALIGN};
use super::types::{DeadlineId, Effect, PeerId, Token};
use super::{Broker, Buffer, DONE, Deadline, Peer, Revoking, SyncCounts, balance, region_of};

impl Broker {
    /// Offers a buffer. Everything is checked before anything changes.
    pub(super) fn export(&mut self, owner: PeerId, export: Export) -> Reply {
        self.check_extents(owner, &export)?;
        self.check_meta(&export.meta, export.size)?;
        let access = self.narrow(owner, &export.acl)?;
        if self.closed {
            return Err(Status::HostError);
        }
        let state = self.peers.get_mut(&owner).ok_or(Status::HostError)?;
        // A driver that does not take its events cannot make them grow either.
        let max = self.limits.max_buffers;
        if state.exports >= max || state.events.ended_exports() >= max {
            return Err(Status::TooMany);
        }
        let generation = generation(owner, state.exported).ok_or(Status::HostError)?;
        let id = self.ids.fresh().ok_or(Status::HostError)?;
        if id == BufferId::ZERO || self.generations.contains_key(&id.0) {
            return Err(Status::HostError);
        }
        balance::more(&mut state.exports, 1, "exports");
        state.exported = state.exported.saturating_add(1);
        self.generations.insert(id.0, generation);
        let size = export.size;
        let offered: Vec<PeerId> = access.keys().copied().collect();
        self.buffers.insert(
            generation,
            Buffer {
                id,
                owner,
                size,
                extents: export.extents,
                access,
                meta: export.meta,
                meta_seq: 1,
                sync: SyncCounts::default(),
                reached_by: BTreeMap::new(),
                revoking: None,
            },
        );
        if let Some(state) = self.peers.get_mut(&owner) {
            state.known.insert(generation);
        }
        for peer in offered {
            let Some(state) = self.peers.get_mut(&peer) else {
                continue;
            };
            state.known.insert(generation);
            if state.up {
                self.notify(peer, |events| events.offer(owner.to_wire(), id, size));
            }
        }
        Ok(Response::Exported { id, generation })
    }

    fn check_extents(&self, owner: PeerId, export: &Export) -> Result<(), Status> {
        let state = self.peers.get(&owner).ok_or(Status::HostError)?;
        let max = usize::try_from(self.limits.max_extents).unwrap_or(usize::MAX);
        if export.extents.len() > max {
            return Err(Status::TooFragmented);
        }
        if export.extents.is_empty() || export.size == 0 {
            return Err(Status::BadField);
        }
        let mut sum = 0u64;
        for extent in &export.extents {
            if extent.len == 0 {
                return Err(Status::BadField);
            }
            if !extent.addr.is_multiple_of(MAP_ALIGN) || !extent.len.is_multiple_of(MAP_ALIGN) {
                return Err(Status::Unaligned);
            }
            sum = sum.checked_add(extent.len).ok_or(Status::BadField)?;
        }
        if sum != export.size {
            return Err(Status::BadField);
        }
        if export.size > self.max_buffer_size() {
            return Err(Status::TooLarge);
        }
        if export
            .extents
            .iter()
            .any(|extent| region_of(&state.ram, *extent).is_none())
        {
            return Err(Status::NotRam);
        }
        if overlap(&export.extents) {
            return Err(Status::Overlap);
        }
        Ok(())
    }

    fn check_meta(&self, meta: &Meta, size: u64) -> Result<(), Status> {
        let max = usize::try_from(self.limits.max_blob).unwrap_or(usize::MAX);
        if meta.blob.len() > max {
            return Err(Status::MetaTooLarge);
        }
        match &meta.image {
            Some(image) if !image.fits(size) => Err(Status::BadMeta),
            _ => Ok(()),
        }
    }

    /// The exporter's access list within the operator's policy. An exporter
    /// can only narrow that: a line beyond it is an error, not cut.
    fn narrow(&self, owner: PeerId, acl: &[Access]) -> Result<BTreeMap<PeerId, Rights>, Status> {
        let mut access = BTreeMap::new();
        if acl.is_empty() {
            for ((exporter, importer), rights) in &self.policy {
                if *exporter == owner {
                    access.insert(*importer, *rights);
                }
            }
            if access.is_empty() {
                return Err(Status::Denied);
            }
        }
        for line in acl {
            let peer = PeerId(u32::try_from(line.peer).map_err(|_| Status::Denied)?);
            if !line.rights.contains(Rights::READ) {
                return Err(Status::BadField);
            }
            if !self.allowed(owner, peer).contains(line.rights) {
                return Err(Status::Denied);
            }
            if access.insert(peer, line.rights).is_some() {
                return Err(Status::BadField);
            }
        }
        Ok(access)
    }

    /// Ends an export. Answered at once only if nobody maps the buffer. One that is
    /// being taken back already is waited for, by one request. A driver that left the
    /// device before the answer has it in a later session.
    pub(super) fn unexport(&mut self, owner: PeerId, token: Token, id: BufferId) -> Option<Reply> {
        let Some(generation) = self.owned(owner, id) else {
            let owed = &mut self.peers.get_mut(&owner)?.owed;
            let before = owed.len();
            owed.retain(|ended| *ended != id);
            return Some(if owed.len() < before {
                DONE
            } else {
                Err(Status::NotFound)
            });
        };
        match self.revoking(generation) {
            Some(revoking) if revoking.waiter.is_some() => return Some(Err(Status::Busy)),
            Some(revoking) => revoking.waiter = Some(token),
            None => self.revoke(generation, Some(token)),
        }
        None
    }

    /// Replaces the metadata and tells everybody who may attach.
    pub(super) fn set_meta(&mut self, owner: PeerId, id: BufferId, meta: Meta) -> Reply {
        let generation = self.owned(owner, id).ok_or(Status::NotFound)?;
        let size = self.buffers.get(&generation).ok_or(Status::NotFound)?.size;
        self.check_meta(&meta, size)?;
        let buffer = self.buffers.get_mut(&generation).ok_or(Status::NotFound)?;
        if buffer.revoking.is_some() {
            return Err(Status::Revoked);
        }
        buffer.meta = meta;
        buffer.meta_seq = buffer.meta_seq.saturating_add(1);
        let seq = buffer.meta_seq;
        let notified: Vec<PeerId> = buffer.access.keys().copied().collect();
        for peer in notified {
            if self.peers.get(&peer).is_some_and(|p| p.up) {
                self.notify(peer, |events| events.meta(owner.to_wire(), id, seq));
            }
        }
        Ok(Response::MetaSet { seq })
    }

    /// The metadata, for the owner and whoever may attach.
    pub(super) fn get_meta(&mut self, peer: PeerId, id: BufferId) -> Reply {
        let generation = self.visible(peer, id).ok_or(Status::NotFound)?;
        let buffer = self.buffers.get(&generation).ok_or(Status::NotFound)?;
        Ok(Response::Meta {
            seq: buffer.meta_seq,
            meta: buffer.meta.clone(),
        })
    }

    /// The buffer `id`, if `peer` exported it.
    pub(super) fn owned(&self, peer: PeerId, id: BufferId) -> Option<u64> {
        let generation = *self.generations.get(&id.0)?;
        (self.buffers.get(&generation)?.owner == peer).then_some(generation)
    }

    /// The buffer `id`, if `peer` exported it or may attach to it. Anything
    /// else looks as if it were not there.
    pub(super) fn visible(&self, peer: PeerId, id: BufferId) -> Option<u64> {
        let generation = *self.generations.get(&id.0)?;
        let buffer = self.buffers.get(&generation)?;
        let visible = buffer.owner == peer
            || (self.is_offered(generation) && buffer.access.contains_key(&peer));
        visible.then_some(generation)
    }

    /// Whether a buffer is there for importers: not being taken back, nor to be in one of
    /// the next steps, because its owner has stopped or it is in no RAM.
    pub(super) fn is_offered(&self, generation: u64) -> bool {
        self.buffers.get(&generation).is_some_and(|buffer| {
            let offers = |owner: &Peer| owner.up && !owner.lost.contains(&generation);
            buffer.revoking.is_none() && self.peers.get(&buffer.owner).is_some_and(offers)
        })
    }

    /// The owner's driver learns that its export ended without its asking.
    pub(super) fn tell_owner_revoked(&mut self, generation: u64) {
        if let Some(buffer) = self.buffers.get(&generation) {
            let (owner, id) = (buffer.owner, buffer.id);
            self.notify(owner, |events| events.ended(owner.to_wire(), id));
        }
    }

    /// Takes a buffer back: nobody may attach or map it from now on, those who
    /// have it mapped are told and given until the deadline, idle windows go
    /// at once. It is gone when its last window is proved to be.
    pub(super) fn revoke(&mut self, generation: u64, waiter: Option<Token>) {
        let Some(buffer) = self.buffers.get_mut(&generation) else {
            return;
        };
        buffer.revoking = Some(Revoking {
            waiter,
            ..Revoking::default()
        });
        let (id, owner) = (buffer.id, buffer.owner);
        let notified: Vec<PeerId> = buffer.access.keys().copied().collect();
        if let Some(state) = self.peers.get_mut(&owner) {
            state.counters.revocations = state.counters.revocations.saturating_add(1);
            state
                .events
                .forget(id, notified.iter().map(|peer| peer.to_wire()));
        }
        for peer in notified {
            let Some(state) = self.peers.get_mut(&peer) else {
                continue;
            };
            let handles = state.attachments.revoke(generation);
            // One that is stopped may yet go on with what it has.
            if state.up || !handles.is_empty() {
                self.notify(peer, |events| {
                    if handles.is_empty() {
                        events.withdrawn(owner.to_wire(), id);
                    } else {
                        events.forget(id, core::iter::empty());
                    }
                    for handle in handles {
                        events.revoked(owner.to_wire(), id, handle);
                    }
                });
            } else {
                state.events.forget(id, core::iter::empty());
            }
            self.with_windows(peer, |windows, ids, out| {
                for window in windows.of(generation..=generation) {
                    windows.revoke(window, false, Status::Revoked, ids, out);
                }
            });
        }
        self.arm(generation, None);
        self.free_if_unreached(generation);
    }

    /// Gives those who use a buffer that is being taken back, or `only` one of
    /// them, until a deadline.
    pub(super) fn arm(&mut self, generation: u64, only: Option<PeerId>) {
        let Some(buffer) = self.buffers.get(&generation) else {
            return;
        };
        let mut reached_by = buffer.reached_by.keys();
        let uses = |peer: &PeerId| {
            let state = self.peers.get(peer);
            only.is_none_or(|only| only == *peer)
                && state.is_some_and(|state| state.windows.use_buffer(generation))
        };
        if !reached_by.any(uses) {
            return;
        }
        let id = DeadlineId(self.next_deadline);
        self.next_deadline = self.next_deadline.wrapping_add(1);
        let deadline = Deadline::Release { generation, only };
        self.deadlines.insert(id, deadline);
        if let Some(revoking) = self.revoking(generation) {
            revoking.deadlines.push(id);
        }
        self.out.push(Effect::Arm {
            id,
            after: self.revoke_ack,
        });
    }

    /// Goes on with what is to be taken back of `peer`, because it is in no RAM or for its
    /// stop: at most `most` buffers are looked at. Returns whether none is left.
    pub(super) fn revoke_some(&mut self, peer: PeerId, most: usize) -> bool {
        let Some(state) = self.peers.get_mut(&peer) else {
            return true;
        };
        let lost = std::iter::from_fn(|| state.lost.pop_first());
        let mut next: Vec<u64> = lost.take(most).collect();
        let rest = most.saturating_sub(next.len());
        let mut last = rest > 0;
        if let Some(from) = state.revoked_below.filter(|_| last) {
            let own = self.buffers.range(from..=*generations_of(peer).end());
            let own: Vec<u64> = own.map(|(generation, _)| *generation).take(rest).collect();
            last = own.len() < rest;
            let looked_at = own.last().map(|generation| generation.saturating_add(1));
            state.revoked_below = looked_at.filter(|_| !last);
            next.extend(own);
        }
        for generation in next {
            let there = self.buffers.get(&generation);
            if there.is_some_and(|buffer| buffer.revoking.is_none()) {
                self.tell_owner_revoked(generation);
                self.revoke(generation, None);
            }
        }
        last
    }

    pub(super) fn revoking(&mut self, generation: u64) -> Option<&mut Revoking> {
        self.buffers.get_mut(&generation)?.revoking.as_mut()
    }

    /// Importers that have not let go by now lose the window all the same. Those
    /// that are stopped cannot have, and cannot look; theirs comes when they go on.
    pub(super) fn release_is_late(&mut self, generation: u64, only: Option<PeerId>) {
        let Some(buffer) = self.buffers.get(&generation) else {
            return;
        };
        let Some(revoking) = &buffer.revoking else {
            return;
        };
        let is_over = |peer: &PeerId| {
            let over = match only {
                Some(only) => only == *peer,
                None => !revoking.late.contains(peer),
            };
            over && self.peers.get(peer).is_some_and(|state| !state.stopped)
        };
        let reached_by = buffer.reached_by.keys().copied();
        let peers: Vec<PeerId> = reached_by.filter(is_over).collect();
        for peer in peers {
            self.unmap_windows(peer, generation..=generation);
        }
    }

    /// Removes a buffer that is being taken back and that no VMM maps.
    pub(super) fn free_if_unreached(&mut self, generation: u64) {
        let Entry::Occupied(buffer) = self.buffers.entry(generation) else {
            return;
        };
        if buffer.get().revoking.is_none() || !buffer.get().reached_by.is_empty() {
            return;
        }
        let buffer = buffer.remove();
        self.generations.remove(&buffer.id.0);
        for peer in buffer.access.keys().chain([&buffer.owner]) {
            if let Some(state) = self.peers.get_mut(peer) {
                state.known.remove(&generation);
            }
        }
        for id in buffer.revoking.iter().flat_map(|r| &r.deadlines) {
            self.deadlines.remove(id);
            self.out.push(Effect::Disarm { id: *id });
        }
        let left = buffer.revoking.as_ref().is_some_and(|r| r.left);
        if let Some(state) = self.peers.get_mut(&buffer.owner) {
            balance::fewer(&mut state.exports, 1, "exports");
            if left || state.stopped {
                let max = usize::try_from(self.limits.max_buffers).unwrap_or(usize::MAX);
                if state.owed.len() >= max {
                    state.owed.pop_front();
                }
                state.owed.push_back(buffer.id);
            }
        }
        if let Some(token) = buffer.revoking.and_then(|revoking| revoking.waiter) {
            self.reply(buffer.owner, token, DONE);
        }
    }

    /// Largest buffer, bytes: what one window can hold.
    pub(super) fn max_buffer_size(&self) -> u64 {
        self.shm_size.saturating_sub(limits::GUARD)
    }
}

/// All numbers that exports of a peer may have: its own buffers are found by them.
pub(super) fn generations_of(owner: PeerId) -> RangeInclusive<u64> {
    let first = owner.to_wire().checked_shl(GENERATION_BITS);
    let first = first.unwrap_or(u64::MAX);
    let last = 1_u64
        .checked_shl(GENERATION_BITS)
        .and_then(|count| first.checked_add(count));
    first..=last.map_or(u64::MAX, |next| next.saturating_sub(1))
}

/// The number of a peer's next export. Each peer counts its own: from a common count
/// those that may not know of each other would learn how much the others export.
fn generation(owner: PeerId, exported: u64) -> Option<u64> {
    let own = exported.checked_add(1)?;
    let first = 1_u64.checked_shl(GENERATION_BITS)?;
    let base = first.checked_mul(owner.to_wire())?;
    if own < first {
        base.checked_add(own)
    } else {
        None
    }
}

/// Whether any two extents share a byte. None of them overflows.
fn overlap(extents: &[Extent]) -> bool {
    let mut sorted = extents.to_vec();
    sorted.sort_unstable_by_key(|extent| extent.addr);
    sorted.windows(2).any(|pair| match pair {
        [a, b] => a.addr.saturating_add(a.len) > b.addr,
        _ => false,
    })
}
