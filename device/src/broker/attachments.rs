// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The attachments of one peer, by handle and by buffer.

use std::collections::{BTreeMap, BTreeSet};

use bufshare_protocol::types::{BufferId, Rights, Way};

use serde::{Deserialize, Serialize};

use super::backing::{BackingId, Buffer};
use super::types::PeerId;
use super::windows::WindowId;
use super::{SyncCounts, refcount};

/// One peer's use of one buffer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Attachment {
    pub(super) generation: u64,
    pub(super) backing: BackingId,
    pub(super) id: BufferId,
    pub(super) size: u64,
    pub(super) rights: Rights,
    pub(super) way: Way,
    /// Answered MAPs less UNMAPs.
    pub(super) maps: u32,
    /// MAPs that wait for their answer.
    pub(super) pending: u32,
    /// Where those maps are.
    pub(super) window: Option<WindowId>,
    /// What the guest calls that, 0 unless it is mapped.
    pub(super) number: u64,
    pub(super) sync: SyncCounts,
    pub(super) revoked: bool,
}

/// Those of one peer. Neither a handle nor the number of a mapping is ever used again.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Attachments {
    table: BTreeMap<u64, Attachment>,
    /// By the generation of the buffer.
    of_buffer: BTreeSet<(u64, u64)>,
    /// Handles of those that are mapped, by the number of that.
    mapped: BTreeMap<u64, u64>,
    /// The last handle or number.
    last: u64,
}

impl Attachments {
    /// None, the first of which has a number above `last`.
    pub(super) fn new(last: u64) -> Self {
        Self {
            table: BTreeMap::new(),
            of_buffer: BTreeSet::new(),
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
        self.table.get(&handle)
    }

    pub(super) fn get_mut(&mut self, handle: u64) -> Option<&mut Attachment> {
        self.table.get_mut(&handle)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Attachment)> {
        self.table.iter().map(|(handle, one)| (*handle, one))
    }

    /// A new one: its handle.
    pub(super) fn add(&mut self, attachment: Attachment) -> u64 {
        let handle = self.number();
        self.of_buffer.insert((attachment.generation, handle));
        self.table.insert(handle, attachment);
        handle
    }

    /// Removes one that is not mapped.
    pub(super) fn remove(&mut self, handle: u64) -> Option<Attachment> {
        let attachment = self.table.remove(&handle)?;
        self.of_buffer.remove(&(attachment.generation, handle));
        Some(attachment)
    }

    /// One map more, in this window: its number.
    pub(super) fn map(
        &mut self,
        handle: u64,
        peer: PeerId,
        window: WindowId,
        buffers: &mut BTreeMap<u64, Box<Buffer>>,
    ) -> Option<u64> {
        let next = self.last.wrapping_add(1);
        let attachment = self.table.get_mut(&handle)?;
        refcount::more(&mut attachment.maps, 1, "maps");
        attachment.window = Some(window);
        if attachment.maps == 1 {
            attachment.number = next;
            self.last = next;
            self.mapped.insert(next, handle);
            if let Some(buffer) = buffers.get_mut(&attachment.generation) {
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
        buffers: &mut BTreeMap<u64, Box<Buffer>>,
    ) -> Option<WindowId> {
        let attachment = self.table.get_mut(self.mapped.get(&number)?)?;
        refcount::fewer(&mut attachment.maps, 1, "maps");
        if attachment.maps > 0 {
            return attachment.window;
        }
        attachment.number = 0;
        self.mapped.remove(&number);
        if let Some(buffer) = buffers.get_mut(&attachment.generation) {
            buffer.set_mapped(peer, false);
        }
        attachment.window.take()
    }

    /// Removes all.
    pub(super) fn take(&mut self) -> impl Iterator<Item = Attachment> + use<> {
        self.of_buffer.clear();
        self.mapped.clear();
        core::mem::take(&mut self.table).into_values()
    }

    /// The buffer of this generation is revoked: their handles.
    pub(super) fn revoke(&mut self, generation: u64) -> Vec<u64> {
        let of = self
            .of_buffer
            .range((generation, 0)..=(generation, u64::MAX));
        let handles: Vec<u64> = of.map(|(_, handle)| *handle).collect();
        for handle in &handles {
            if let Some(attachment) = self.table.get_mut(handle) {
                attachment.revoked = true;
            }
        }
        handles
    }

    /// What must hold at all times; names what does not.
    #[cfg(test)]
    pub(super) fn check(&self) -> Result<(), String> {
        let of_buffer = self.iter().map(|(handle, one)| (one.generation, handle));
        if self.of_buffer != of_buffer.collect() {
            return Err("attachments are not found by their buffer".into());
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
