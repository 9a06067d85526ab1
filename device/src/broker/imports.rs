// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The importer's side: ATTACH, MAP, SYNC, and their ends.

use std::collections::{BTreeMap, BTreeSet};

use bufshare_protocol::request::{Attach, SyncOp, SyncTarget};
use bufshare_protocol::response::{Reply, Response};
use bufshare_protocol::status::Status;
use bufshare_protocol::types::{BufferId, Extent, Properties, Rights, Way, Ways};

use super::attachments::{Attachment, buffer_of};
use super::backing::{Backing, Buffer};
use super::limits::{MAX_NESTING, UDMABUF_MAX_EXTENTS, UDMABUF_MAX_SIZE};
use super::types::{Effect, PeerId, Token};
use super::windows::{Key, State, Waiter, WindowId};
use super::{Broker, DONE, SyncCounts, refcount, region_of};

impl Broker {
    /// Makes `peer` an importer of a buffer. Asks the VMM for nothing.
    pub(super) fn attach(&mut self, peer: PeerId, attach: &Attach) -> Reply {
        let (id, wanted) = (attach.id, attach.rights);
        if !wanted.contains(Rights::READ) {
            return Err(Status::BadField);
        }
        let served = !attach.ways.intersection(Ways::SERVED).is_empty();
        if !Properties::KNOWN.contains(attach.required) || !(served || attach.ways.is_empty()) {
            return Err(Status::Unsupported);
        }
        let slot = self.visible(peer, id).ok_or(Status::NotFound)?;
        let buffer = self.buffers.get(slot).ok_or(Status::NotFound)?;
        if buffer.owner == peer {
            return Err(Status::Denied);
        }
        let granted = self.grant(peer, buffer).ok_or(Status::Denied)?;
        if !granted.rights.contains(wanted) {
            return Err(Status::Denied);
        }
        let Chosen {
            way,
            properties,
            windows,
        } = self.check_attach(peer, buffer, attach)?;
        let state = self.peers.get_mut(&peer).ok_or(Status::HostError)?;
        let buffer = self.buffers.get_mut(slot).ok_or(Status::NotFound)?;
        let (owner, size, generation) = (buffer.owner, buffer.size, buffer.generation);
        if attach.consumer && !buffer.has_room_for_consumer(peer) {
            return Err(Status::TooMany);
        }
        state.usage.attachments.charge()?;
        let attachment = Attachment {
            handle: 0,
            generation,
            backing: buffer.backing,
            id,
            buffer: slot,
            size,
            rights: wanted,
            way,
            maps: 0,
            pending: 0,
            window: None,
            number: 0,
            sync: SyncCounts::default(),
            revoked: false,
            consumer: attach.consumer,
            before: None,
            after: None,
        };
        let others = buffer.attach(peer).ok_or(Status::HostError)?;
        let handle = state.attachments.add(attachment, others);
        let handle = handle.ok_or(Status::HostError)?;
        if attach.consumer {
            buffer.add_consumer(peer, handle);
        }
        Ok(Response::Attached {
            handle,
            size,
            generation,
            owner: owner.to_wire(),
            rights: wanted,
            way,
            properties,
            windows,
        })
    }

    /// How a buffer is shown to an importer, if it can be; a stream is not shown.
    fn check_attach(
        &self,
        peer: PeerId,
        buffer: &Buffer,
        attach: &Attach,
    ) -> Result<Chosen, Status> {
        if buffer.is_stream() {
            if !attach.ways.accept(Way::None) {
                return Err(Status::NoWay);
            }
            if attach.consumer {
                return Err(Status::BadField);
            }
            let none = Chosen {
                way: Way::None,
                properties: Properties::NONE,
                windows: 0,
            };
            let nothing = attach.required == Properties::NONE;
            return nothing.then_some(none).ok_or(Status::NoWay);
        }
        let state = self.peers.get(&peer).ok_or(Status::HostError)?;
        if !state.can_map {
            return Err(Status::NoShmem);
        }
        if !attach.rights.contains(Rights::WRITE) && !state.config.enforces_ro {
            return Err(Status::RoNotEnforced);
        }
        let backing = self.backings.of(buffer).ok_or(Status::NotFound)?;
        self.choose(backing, attach)
    }

    /// How a backing is shown to this importer. A udmabuf holds just the shared pages, so
    /// it goes first.
    fn choose(&self, backing: &Backing, attach: &Attach) -> Result<Chosen, Status> {
        // Where a VMM does not hold read-only mappings, none is made.
        let properties = if attach.rights.contains(Rights::WRITE) {
            Properties::COHERENT
        } else {
            Properties::COHERENT | Properties::RO_HELD
        };
        if !properties.contains(attach.required) {
            return Err(Status::NoWay);
        }
        let chosen = |way, windows| Chosen {
            way,
            properties,
            windows,
        };
        let owner = self.peers.get(&backing.owner).ok_or(Status::HostError)?;
        let sealed = |extent: &Extent| {
            let region = region_of(&owner.ram, *extent);
            region.is_some_and(|region| region.sealed)
        };
        if self.host_udmabuf
            && backing.extents.len() <= UDMABUF_MAX_EXTENTS
            && backing.size <= UDMABUF_MAX_SIZE
            && backing.extents.iter().all(sealed)
        {
            // An importer cannot have its VMM given more than that takes.
            let accepted = attach.ways.accept(Way::Udmabuf);
            return accepted
                .then(|| chosen(Way::Udmabuf, 1))
                .ok_or(Status::NoWay);
        }
        if !owner.config.raw_ram || !attach.ways.accept(Way::Direct) {
            return Err(Status::NoWay);
        }
        let windows = u32::try_from(backing.extents.len()).map_err(|_| Status::TooFragmented)?;
        let max = match attach.max_windows {
            0 => self.limits.max_windows,
            most => self.limits.max_windows.min(most),
        };
        if windows > max {
            return Err(Status::TooFragmented);
        }
        Ok(chosen(Way::Direct, windows))
    }

    /// Ends attachments that are not mapped: all of them, or none.
    pub(super) fn detach(&mut self, peer: PeerId, handles: &[u64]) -> Reply {
        let state = self.peers.get(&peer).ok_or(Status::HostError)?;
        let mut named = BTreeSet::new();
        let wrong = |handle: u64| match state.attachments.get(handle) {
            Some(attachment) if attachment.maps > 0 || attachment.pending > 0 => Status::Busy,
            // It would be gone by then.
            Some(_) if !named.insert(handle) => Status::NotFound,
            Some(_) => Status::Ok,
            None => Status::NotFound,
        };
        let checked = check_batch(handles, wrong);
        if is_done(&checked) {
            for handle in handles {
                self.detach_one(peer, *handle);
            }
        }
        Ok(checked)
    }

    fn detach_one(&mut self, peer: PeerId, handle: u64) {
        self.end_consumer(peer, handle);
        let Some(state) = self.peers.get_mut(&peer) else {
            return;
        };
        let Some(attachment) = state.attachments.remove(handle) else {
            return;
        };
        state.usage.attachments.give(1);
        if attachment.revoked {
            state.events.detached(attachment.id, handle);
        }
        let Some(buffer) = buffer_of(&mut self.buffers, &attachment) else {
            return;
        };
        if buffer.detach(peer, &attachment) && !attachment.revoked {
            let (owner, id, generation) = (buffer.owner, buffer.id, buffer.generation);
            self.report_released(peer, owner, id, generation);
        }
    }

    /// Releases everything that `peer` attached. Its windows are the caller's.
    pub(super) fn drop_attachments(&mut self, peer: PeerId) {
        self.end_consumers(peer);
        let Some(state) = self.peers.get_mut(&peer) else {
            return;
        };
        let attachments = state.attachments.take();
        state.usage.attachments.clear();
        // In the order of the exports; of several attachments of a buffer the first removes.
        let mut ended: Vec<Attachment> = attachments.collect();
        ended.sort_unstable_by_key(|attachment| attachment.generation);
        for attachment in &ended {
            let Some(buffer) = buffer_of(&mut self.buffers, attachment) else {
                continue;
            };
            if buffer.attached.remove(peer).is_some() && !attachment.revoked {
                let (owner, id, generation) = (buffer.owner, buffer.id, buffer.generation);
                self.report_released(peer, owner, id, generation);
            }
        }
    }

    /// The owner learns that the peer has no attachment of the buffer any more.
    fn report_released(&mut self, importer: PeerId, owner: PeerId, id: BufferId, generation: u64) {
        self.notify(owner, |events| {
            events.released(importer.to_wire(), id, generation);
        });
    }

    /// Makes the buffer visible in the peer's region. Answered at once only if it
    /// already is: one window serves all maps of a backing with the same rights, and
    /// an idle one is used again.
    pub(super) fn map(
        &mut self,
        peer: PeerId,
        token: Token,
        handle: u64,
        offset: u64,
        len: u64,
    ) -> Result<Option<Response>, Status> {
        let state = self.peers.get_mut(&peer).ok_or(Status::HostError)?;
        state.counters.map_requests = state.counters.map_requests.saturating_add(1);
        let attachment = state.attachments.get(handle).ok_or(Status::NotFound)?;
        let (revoked, backing) = (attachment.revoked, attachment.backing);
        if revoked || !self.is_offered(backing) {
            return Err(Status::Revoked);
        }
        let state = self.peers.get_mut(&peer).ok_or(Status::HostError)?;
        let attachment = state.attachments.get_mut(handle).ok_or(Status::NotFound)?;
        if attachment.way == Way::None {
            return Err(Status::BadField);
        }
        if offset != 0 || len != attachment.size {
            return Err(Status::Unsupported);
        }
        let nested = attachment.maps.saturating_add(attachment.pending);
        if nested >= MAX_NESTING {
            return Err(Status::TooMany);
        }
        let key = Key {
            backing,
            writable: attachment.rights.contains(Rights::WRITE),
            way: attachment.way,
        };
        let waiter = Waiter { token, handle };
        if let Some(id) = state.windows.current(key)
            && let Some(window) = state.windows.get(id)
        {
            if matches!(window.state, State::Live | State::Idle(_)) {
                let (shm_offset, len) = (window.offset, window.size);
                let number = state
                    .attachments
                    .map(handle, peer, id, &mut self.buffers)
                    .ok_or(Status::NotFound)?;
                let reply = Response::Mapped {
                    window: number,
                    shm_offset,
                    len,
                    cached: true,
                };
                state.windows.enter(id);
                state.counters.map_cached = state.counters.map_cached.saturating_add(1);
                return Ok(Some(reply));
            }
            refcount::more(&mut attachment.pending, 1, "waiting maps");
            state.windows.wait(id, waiter);
            return Ok(None);
        }
        let backing = self.backings.get_mut(backing).ok_or(Status::Revoked)?;
        backing.reach(peer);
        refcount::more(&mut attachment.pending, 1, "waiting maps");
        let way = attachment.way;
        let (owner, extents) = (backing.owner, &backing.extents);
        state.windows.request(key, owner, way, extents, waiter);
        self.with_windows(peer, |windows, out| windows.pump(out));
        Ok(None)
    }

    /// A window is visible and that is proved: its waiters get their answer.
    pub(super) fn window_ready(&mut self, peer: PeerId, id: WindowId) {
        let Some(state) = self.peers.get_mut(&peer) else {
            return;
        };
        let waiters = state.windows.take_waiters(id);
        let Some(window) = state.windows.get(id) else {
            return;
        };
        let (shm_offset, len) = (window.offset, window.size);
        let mut used = false;
        for waiter in waiters {
            if let Some(attachment) = state.attachments.get_mut(waiter.handle) {
                refcount::fewer(&mut attachment.pending, 1, "waiting maps");
            }
            let mapped = state
                .attachments
                .map(waiter.handle, peer, id, &mut self.buffers);
            if mapped.is_some() {
                state.windows.enter(id);
                used = true;
            }
            let reply = mapped
                .ok_or(Status::NotFound)
                .map(|window| Response::Mapped {
                    window,
                    shm_offset,
                    len,
                    cached: false,
                });
            self.out.push(Effect::Reply {
                peer,
                token: waiter.token,
                reply,
            });
        }
        if !used {
            self.with_windows(peer, |windows, out| windows.leave(id, 0, out));
        }
    }

    /// One map less for each entry, or none. After the last one a window is kept for
    /// reuse, unless its backing is being revoked: then this is what the host waits for.
    pub(super) fn unmap(&mut self, peer: PeerId, numbers: &[u64]) -> Reply {
        let state = self.peers.get(&peer).ok_or(Status::HostError)?;
        let mut ended: BTreeMap<u64, u32> = BTreeMap::new();
        let wrong = |number: u64| {
            let ended = ended.entry(number).or_default();
            if *ended >= state.attachments.maps(number) {
                return Status::NotFound;
            }
            *ended = ended.saturating_add(1);
            Status::Ok
        };
        let checked = check_batch(numbers, wrong);
        if is_done(&checked) {
            for number in numbers {
                self.unmap_one(peer, *number);
            }
        }
        Ok(checked)
    }

    fn unmap_one(&mut self, peer: PeerId, number: u64) {
        let Some(state) = self.peers.get_mut(&peer) else {
            return;
        };
        if let Some(window) = state.attachments.unmap(number, peer, &mut self.buffers) {
            self.with_windows(peer, |windows, out| windows.leave(window, 1, out));
        }
    }

    /// Gives up the windows that are kept for reuse; answered when that is
    /// proved. A driver asks for it before it resets its device.
    pub(super) fn flush(&mut self, peer: PeerId, token: Token) {
        if let Some(state) = self.peers.get_mut(&peer) {
            state.flushes.push(token);
        }
        self.with_windows(peer, |windows, out| windows.flush(out));
    }

    /// Begin or end of CPU access. Moves no data: what is served is coherent.
    pub(super) fn sync(
        &mut self,
        peer: PeerId,
        target: SyncTarget,
        op: SyncOp,
        access: Rights,
        offset: u64,
        len: u64,
    ) -> Reply {
        let (counts, size, rights) = match target {
            SyncTarget::Handle(handle) => {
                let state = self.peers.get_mut(&peer).ok_or(Status::HostError)?;
                let attachment = state.attachments.get_mut(handle).ok_or(Status::NotFound)?;
                // The end of an access always balances its begin.
                if attachment.revoked && matches!(op, SyncOp::Begin) {
                    return Err(Status::Revoked);
                }
                (&mut attachment.sync, attachment.size, attachment.rights)
            }
            SyncTarget::Owned(id) => {
                let slot = self.owned(peer, id).ok_or(Status::NotFound)?;
                let buffer = self.buffers.get_mut(slot).ok_or(Status::NotFound)?;
                (&mut buffer.sync, buffer.size, Rights::RW)
            }
        };
        if access.is_empty() || offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(Status::BadField);
        }
        if !rights.contains(access) {
            return Err(Status::Denied);
        }
        counts.change(op, access)?;
        DONE
    }
}

/// How an attachment is to be served.
struct Chosen {
    way: Way,
    properties: Properties,
    /// VMM mappings that a map takes.
    windows: u32,
}

/// The answer to a batch: the first entry that is wrong, or that none is.
pub(super) fn check_batch<T: Copy>(entries: &[T], wrong: impl FnMut(T) -> Status) -> Response {
    let statuses = entries.iter().copied().map(wrong);
    let first = (0..)
        .zip(statuses)
        .find(|(_, status)| *status != Status::Ok);
    let all = || (u32::try_from(entries.len()).unwrap_or(u32::MAX), Status::Ok);
    let (entry, status) = first.unwrap_or_else(all);
    Response::Batch { status, entry }
}

pub(super) fn is_done(response: &Response) -> bool {
    matches!(
        response,
        Response::Batch {
            status: Status::Ok,
            ..
        }
    )
}

impl SyncCounts {
    /// Counts one begin or end for each class in `access`, or nothing.
    fn change(&mut self, op: SyncOp, access: Rights) -> Result<(), Status> {
        let step = |count: u32, class: Rights| {
            if !access.contains(class) {
                return Ok(count);
            }
            match op {
                SyncOp::Begin if count >= MAX_NESTING => Err(Status::TooMany),
                SyncOp::Begin => Ok(count.saturating_add(1)),
                SyncOp::End => count.checked_sub(1).ok_or(Status::Unbalanced),
            }
        };
        let read = step(self.read, Rights::READ)?;
        let write = step(self.write, Rights::WRITE)?;
        (self.read, self.write) = (read, write);
        Ok(())
    }
}
