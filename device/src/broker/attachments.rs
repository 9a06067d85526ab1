// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The attachments of one peer, by handle and by buffer.

use std::collections::{BTreeMap, BTreeSet};

use bufshare_protocol::types::{BufferId, Rights, Way};

use serde::{Deserialize, Serialize};

use super::backing::{BackingId, Buffer};
use super::types::PeerId;
use super::windows::WindowId;
use super::{SyncCounts, balance};

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
    pub(super) sync: SyncCounts,
    pub(super) revoked: bool,
}

impl Attachment {
    /// One map more, in this window.
    pub(super) fn mapped(
        &mut self,
        peer: PeerId,
        window: WindowId,
        buffers: &mut BTreeMap<u64, Box<Buffer>>,
    ) {
        balance::more(&mut self.maps, 1, "maps");
        self.window = Some(window);
        if self.maps == 1
            && let Some(buffer) = buffers.get_mut(&self.generation)
        {
            buffer.set_mapped(peer, true);
        }
    }

    /// One map less. Returns where it was.
    pub(super) fn unmapped(
        &mut self,
        peer: PeerId,
        buffers: &mut BTreeMap<u64, Box<Buffer>>,
    ) -> Option<WindowId> {
        balance::fewer(&mut self.maps, 1, "maps");
        if self.maps > 0 {
            return self.window;
        }
        if let Some(buffer) = buffers.get_mut(&self.generation) {
            buffer.set_mapped(peer, false);
        }
        self.window.take()
    }
}

/// Those of one peer. A handle is never used again.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Attachments {
    table: BTreeMap<u64, Attachment>,
    /// By the generation of the buffer.
    of_buffer: BTreeSet<(u64, u64)>,
    /// The last handle.
    last: u64,
}

impl Attachments {
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
        self.last = self.last.wrapping_add(1);
        self.of_buffer.insert((attachment.generation, self.last));
        self.table.insert(self.last, attachment);
        self.last
    }

    pub(super) fn remove(&mut self, handle: u64) -> Option<Attachment> {
        let attachment = self.table.remove(&handle)?;
        self.of_buffer.remove(&(attachment.generation, handle));
        Some(attachment)
    }

    /// Removes all.
    pub(super) fn take(&mut self) -> impl Iterator<Item = Attachment> + use<> {
        self.of_buffer.clear();
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
        if self.of_buffer == of_buffer.collect() {
            Ok(())
        } else {
            Err("attachments are not found by their buffer".into())
        }
    }
}
