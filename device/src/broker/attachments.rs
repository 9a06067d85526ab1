// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The attachments of one peer, by handle and by buffer.

use std::collections::BTreeMap;

use bufshare_protocol::types::{BufferId, Rights, Way};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::backing::{Attached, BackingId, Buffer};
use super::records::{Record, Records, Slot};
use super::types::PeerId;
use super::windows::WindowId;
use super::{SyncCounts, refcount};

/// One peer's use of one buffer. In this order: the end of a buffer looks at the first fields
/// of each, which the caches mostly do not hold.
#[derive(Debug, Serialize, Deserialize)]
#[repr(C)]
pub(super) struct Attachment {
    pub(super) handle: u64,
    /// The peer's neighbours of the same buffer, until that is revoked.
    pub(super) before: Option<Slot>,
    pub(super) after: Option<Slot>,
    pub(super) revoked: bool,
    /// It is given the frames of the buffer.
    pub(super) consumer: bool,
    pub(super) way: Way,
    pub(super) rights: Rights,
    /// Where the buffer is, if it is not gone: see [`buffer_of`].
    pub(super) buffer: Slot,
    pub(super) generation: u64,
    pub(super) backing: BackingId,
    pub(super) id: BufferId,
    pub(super) size: u64,
    /// Answered MAPs less UNMAPs.
    pub(super) maps: u32,
    /// MAPs that wait for their answer.
    pub(super) pending: u32,
    /// Where those maps are.
    pub(super) window: Option<WindowId>,
    /// What the guest calls that, 0 unless it is mapped.
    pub(super) number: u64,
    pub(super) sync: SyncCounts,
}

impl Record for Attachment {
    type Key = u64;

    fn key(&self) -> u64 {
        self.handle
    }
}

/// Those of one peer. Neither a handle nor the number of a mapping is ever used again.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Attachments {
    table: Records<Attachment>,
    /// Handles of those that are mapped, by the number of that.
    mapped: BTreeMap<u64, u64>,
    /// The last handle or number.
    last: u64,
}

impl Attachments {
    /// None, the first of which has a number above `last`.
    pub(super) fn new(last: u64) -> Self {
        Self {
            table: Records::default(),
            mapped: BTreeMap::new(),
            last,
        }
    }

    fn number(&mut self) -> u64 {
        self.last = self.last.wrapping_add(1);
        self.last
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    pub(super) fn get(&self, handle: u64) -> Option<&Attachment> {
        self.table.get(self.table.find(&handle)?)
    }

    pub(super) fn get_mut(&mut self, handle: u64) -> Option<&mut Attachment> {
        self.table.get_mut(self.table.find(&handle)?)
    }

    /// How many are mapped.
    pub(super) fn mapped(&self) -> usize {
        self.mapped.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Attachment)> {
        self.table.iter().map(|(_, one)| (one.handle, one))
    }

    /// A new one, linked to the peer's others of its buffer: its handle. `None` if there is
    /// no room for its number.
    pub(super) fn add(&mut self, attachment: Attachment, others: &mut Attached) -> Option<u64> {
        let handle = self.number();
        let slot = self.table.insert(Attachment {
            handle,
            before: None,
            after: others.first,
            ..attachment
        })?;
        if let Some(first) = others.first.and_then(|first| self.table.get_mut(first)) {
            first.before = Some(slot);
        }
        others.first = Some(slot);
        Some(handle)
    }

    /// Removes one that is not mapped. The buffer has to be told of it.
    pub(super) fn remove(&mut self, handle: u64) -> Option<Attachment> {
        let attachment = self.table.remove(self.table.find(&handle)?)?;
        let (before, after) = (attachment.before, attachment.after);
        if let Some(before) = before.and_then(|slot| self.table.get_mut(slot)) {
            before.after = after;
        }
        if let Some(after) = after.and_then(|slot| self.table.get_mut(slot)) {
            after.before = before;
        }
        Some(attachment)
    }

    /// One map more, in this window: its number.
    pub(super) fn map(
        &mut self,
        handle: u64,
        peer: PeerId,
        window: WindowId,
        buffers: &mut Records<Buffer>,
    ) -> Option<u64> {
        let next = self.last.wrapping_add(1);
        let attachment = self.table.get_mut(self.table.find(&handle)?)?;
        refcount::more(&mut attachment.maps, 1, "maps");
        attachment.window = Some(window);
        if attachment.maps == 1 {
            attachment.number = next;
            self.last = next;
            self.mapped.insert(next, handle);
            if let Some(buffer) = buffer_of(buffers, attachment) {
                buffer.set_mapped(peer, true);
            }
        }
        Some(attachment.number)
    }

    /// How many maps have this number.
    pub(super) fn maps(&self, number: u64) -> u32 {
        let handle = self.mapped.get(&number);
        handle.map_or(0, |handle| self.get(*handle).map_or(0, |one| one.maps))
    }

    /// One map less. Returns where it was.
    pub(super) fn unmap(
        &mut self,
        number: u64,
        peer: PeerId,
        buffers: &mut Records<Buffer>,
    ) -> Option<WindowId> {
        let attachment = self
            .table
            .get_mut(self.table.find(self.mapped.get(&number)?)?)?;
        refcount::fewer(&mut attachment.maps, 1, "maps");
        if attachment.maps > 0 {
            return attachment.window;
        }
        attachment.number = 0;
        self.mapped.remove(&number);
        if let Some(buffer) = buffer_of(buffers, attachment) {
            buffer.set_mapped(peer, false);
        }
        attachment.window.take()
    }

    /// Removes all.
    pub(super) fn take(&mut self) -> impl Iterator<Item = Attachment> + use<> {
        self.mapped.clear();
        core::mem::take(&mut self.table).into_iter()
    }

    /// The buffer of which `first` is one is revoked: the handles of all of them, in order.
    pub(super) fn revoke(&mut self, first: Option<Slot>) -> SmallVec<[u64; 2]> {
        let mut handles = SmallVec::new();
        let mut next = first;
        while let Some(attachment) = next.and_then(|slot| self.table.get_mut(slot)) {
            attachment.revoked = true;
            attachment.before = None;
            next = attachment.after.take();
            handles.push(attachment.handle);
        }
        handles.sort_unstable();
        handles
    }

    /// How many of a buffer are found from `first`; `None` if one of them is not of it.
    #[cfg(test)]
    pub(super) fn linked(&self, first: Option<Slot>, generation: u64) -> Option<usize> {
        let (mut found, mut before, mut next) = (0_usize, None, first);
        while let Some(slot) = next {
            let one = self.table.get(slot)?;
            if one.before != before || one.generation != generation || one.revoked {
                return None;
            }
            found = found.checked_add(1)?;
            (before, next) = (Some(slot), one.after);
        }
        Some(found)
    }

    /// What must hold at all times; names what does not.
    #[cfg(test)]
    pub(super) fn check(&self) -> Result<(), String> {
        if !self.table.check() {
            return Err("attachments are not found by their handle".into());
        }
        let mapped = self.iter().filter(|(_, one)| one.maps > 0);
        if self.mapped != mapped.map(|(handle, one)| (one.number, handle)).collect() {
            return Err("attachments are not found by the number of their mapping".into());
        }
        let mut last = self.iter().flat_map(|(handle, one)| [handle, one.number]);
        match last.find(|number| *number > self.last) {
            None => Ok(()),
            Some(number) => Err(format!("{number} is to be given out yet")),
        }
    }
}

/// The buffer, if it is not gone.
pub(super) fn buffer_of<'a>(
    buffers: &'a mut Records<Buffer>,
    attachment: &Attachment,
) -> Option<&'a mut Buffer> {
    let buffer = buffers.get_mut(attachment.buffer);
    buffer.filter(|buffer| buffer.generation == attachment.generation)
}
