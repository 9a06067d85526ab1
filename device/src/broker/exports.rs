// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The exporter's side: EXPORT, QUIESCE, UNEXPORT and metadata.

use bufshare_protocol::limits::MAX_FRAME_BUFFERS;
use bufshare_protocol::request::Export;
use bufshare_protocol::response::{Reply, Response};
use bufshare_protocol::status::Status;
use bufshare_protocol::types::{BufferId, Extent, Meta, Name, StreamState};

use smallvec::SmallVec;

use super::backing::{Backing, BackingId, Buffer, Grant, PeerMap, generation};
use super::limits::{self, MAP_ALIGN};
use super::records::Slot;
use super::types::{PeerId, Token};
use super::{Broker, DONE, region_of};

impl Broker {
    /// Offers a buffer. Everything is checked before anything changes.
    pub(super) fn export(&mut self, owner: PeerId, export: Export) -> Reply {
        if export.is_stream() {
            self.check_stream(owner, &export.meta.name)?;
        } else {
            self.check_extents(owner, &export)?;
        }
        self.check_meta(&export.meta, export.size, export.is_stream())?;
        let grants = self.grants_of(owner, &export)?;
        if self.closed {
            return Err(Status::HostError);
        }
        let state = self.peers.get_mut(&owner).ok_or(Status::HostError)?;
        // A driver that does not take its events cannot make them grow either.
        let max = self.limits.max_buffers;
        if !state.usage.buffers.fits(1) || state.events.ended_exports() >= max {
            return Err(Status::TooMany);
        }
        let generation = generation(owner, state.exported).ok_or(Status::HostError)?;
        let id = self.ids.fresh().ok_or(Status::HostError)?;
        if id == BufferId::ZERO || self.buffers.find(&id).is_some() {
            return Err(Status::HostError);
        }
        let size = export.size;
        let offered: Vec<PeerId> = grants.peers().collect();
        // A backing of extents holds one buffer, and has its number.
        let backing = Backing {
            number: BackingId(generation),
            owner,
            size,
            extents: SmallVec::from_slice(&export.extents),
            grants,
            buffers: SmallVec::new(),
            revoking: None,
        };
        let number = backing.number;
        let place = self.backings.insert(backing).ok_or(Status::HostError)?;
        let backing = self.backings.get_mut(number).ok_or(Status::HostError)?;
        let mut buffer = Buffer::new(id, generation, backing, place);
        buffer.set_stream(export.stream);
        if export.is_stream() {
            state.streams.insert(export.meta.name);
        }
        buffer.set_meta(export.meta);
        let slot = self.buffers.insert(buffer).ok_or(Status::HostError)?;
        backing.buffers.push(slot);
        state.usage.buffers.take(1);
        state.exported = state.exported.saturating_add(1);
        state.known.insert(generation, slot);
        for peer in offered {
            let Some(state) = self.peers.get_mut(&peer) else {
                continue;
            };
            state.known.insert(generation, slot);
            if state.life.runs() {
                self.notify(peer, |events| {
                    events.offer(owner.to_wire(), id, generation, size);
                });
            }
        }
        Ok(Response::Exported { id, generation })
    }

    /// Who may attach what is exported.
    fn grants_of(&self, owner: PeerId, export: &Export) -> Result<PeerMap<Grant>, Status> {
        if export.stream.is_zero() {
            return self.policy.narrow(owner, &export.acl);
        }
        let slot = self.owned(owner, export.stream).ok_or(Status::NotFound)?;
        let stream = self.buffers.get(slot).ok_or(Status::NotFound)?;
        let backing = self.backings.of(stream).ok_or(Status::NotFound)?;
        if !stream.is_stream() {
            return Err(Status::BadField);
        }
        if !self.offers(backing) {
            return Err(Status::Revoked);
        }
        Ok(backing.grants.clone())
    }

    /// A stream is found by its name.
    fn check_stream(&self, owner: PeerId, name: &Name) -> Result<(), Status> {
        let state = self.peers.get(&owner).ok_or(Status::HostError)?;
        if name.as_str().is_empty() {
            return Err(Status::BadMeta);
        }
        if state.streams.contains(name) {
            return Err(Status::Exists);
        }
        Ok(())
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

    /// Whether it may be the metadata of a buffer of `size` bytes, or of a stream.
    fn check_meta(&self, meta: &Meta, size: u64, is_stream: bool) -> Result<(), Status> {
        let max = usize::try_from(self.limits.max_blob).unwrap_or(usize::MAX);
        if meta.blob.len() > max {
            return Err(Status::MetaTooLarge);
        }
        let fits = meta.image.as_ref().is_none_or(|image| {
            if is_stream {
                // It is that of the stream's frames, of whatever size.
                image.fits_frame(&[u64::MAX; MAX_FRAME_BUFFERS])
            } else {
                image.fits(size)
            }
        });
        if !fits || !(is_stream || meta.stream == StreamState::default()) {
            return Err(Status::BadMeta);
        }
        Ok(())
    }

    /// Ends an export. Answered at once only if nobody maps the buffer. One that is
    /// being revoked already is waited for, by one request. A driver that left the device
    /// before the answer has it in a later session.
    pub(super) fn unexport(
        &mut self,
        owner: PeerId,
        token: Token,
        id: BufferId,
        quiesced: bool,
    ) -> Option<Reply> {
        let Some(slot) = self.owned(owner, id) else {
            let owed = &mut self.peers.get_mut(&owner)?.owed;
            let before = owed.len();
            owed.retain(|ended| *ended != id);
            return Some(if owed.len() < before {
                DONE
            } else {
                Err(Status::NotFound)
            });
        };
        let buffer = self.buffers.get(slot)?;
        let (backing, lies) = (buffer.backing, quiesced && !buffer.quiesced);
        match self.revoking(backing) {
            Some(revoking) if revoking.waiter.is_some() => return Some(Err(Status::Busy)),
            Some(revoking) => revoking.waiter = Some(token),
            None if lies => return Some(Err(Status::BadField)),
            // Of a quiesced one, the owner's pages could be replaced here: importers would
            // keep the old ones, and nobody would wait for them.
            None => self.revoke(backing, Some(token)),
        }
        if quiesced
            && !lies
            && let Some(state) = self.peers.get_mut(&owner)
        {
            let count = &mut state.counters.unexports_quiesced;
            *count = count.saturating_add(1);
        }
        None
    }

    /// Notes whether anything of the owner's VM writes to a buffer, also to one that is being
    /// revoked. Nothing here relies on that yet, so there is nothing to end either.
    pub(super) fn quiesce(&mut self, owner: PeerId, id: BufferId, quiesced: bool) -> Reply {
        let slot = self.owned(owner, id).ok_or(Status::NotFound)?;
        let buffer = self.buffers.get_mut(slot).ok_or(Status::NotFound)?;
        buffer.quiesced = quiesced;
        DONE
    }

    /// Whether nothing of the owner's VM writes to a buffer. What a driver that does not run
    /// has promised may have ended with it.
    pub(super) fn is_quiesced(&self, buffer: &Buffer) -> bool {
        buffer.quiesced && self.runs(buffer.owner)
    }

    /// Replaces the metadata and notifies everybody who may attach.
    pub(super) fn set_meta(&mut self, owner: PeerId, id: BufferId, meta: Meta) -> Reply {
        let slot = self.owned(owner, id).ok_or(Status::NotFound)?;
        let buffer = self.buffers.get(slot).ok_or(Status::NotFound)?;
        self.check_meta(&meta, buffer.size, buffer.is_stream())?;
        let buffer = self.buffers.get_mut(slot).ok_or(Status::NotFound)?;
        // It is found by its name.
        if buffer.is_stream() && meta.name != buffer.name {
            return Err(Status::BadMeta);
        }
        let backing = self.backings.of(buffer).ok_or(Status::NotFound)?;
        if backing.revoking.is_some() {
            return Err(Status::Revoked);
        }
        buffer.set_meta(meta);
        let (generation, seq) = (buffer.generation, buffer.meta_seq);
        let notified: Vec<PeerId> = backing.grants.peers().collect();
        for peer in notified {
            if self.runs(peer) {
                self.notify(peer, |events| {
                    events.meta(owner.to_wire(), id, generation, seq);
                });
            }
        }
        Ok(Response::MetaSet { seq })
    }

    /// The metadata, for the owner and whoever may attach.
    pub(super) fn get_meta(&mut self, peer: PeerId, id: BufferId) -> Reply {
        let slot = self.visible(peer, id).ok_or(Status::NotFound)?;
        let buffer = self.buffers.get(slot).ok_or(Status::NotFound)?;
        Ok(Response::Meta {
            seq: buffer.meta_seq,
            meta: buffer.meta(),
        })
    }

    /// The buffer `id`, if `peer` exported it.
    pub(super) fn owned(&self, peer: PeerId, id: BufferId) -> Option<Slot> {
        let slot = self.buffers.find(&id)?;
        (self.buffers.get(slot)?.owner == peer).then_some(slot)
    }

    /// The buffer `id`, if `peer` exported it or may attach to it. Anything
    /// else looks as if it were not there.
    pub(super) fn visible(&self, peer: PeerId, id: BufferId) -> Option<Slot> {
        let slot = self.buffers.find(&id)?;
        let buffer = self.buffers.get(slot)?;
        let visible = buffer.owner == peer
            || self
                .backings
                .of(buffer)
                .is_some_and(|backing| backing.grants.get(peer).is_some() && self.offers(backing));
        visible.then_some(slot)
    }

    /// What `peer` may do with a buffer, if that was granted.
    pub(super) fn grant(&self, peer: PeerId, buffer: &Buffer) -> Option<&Grant> {
        self.backings.of(buffer)?.grants.get(peer)
    }

    /// Largest buffer, bytes: what one window can hold.
    pub(super) fn max_buffer_size(&self) -> u64 {
        self.shm_size.saturating_sub(limits::GUARD)
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
