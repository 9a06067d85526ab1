// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The attachments of one peer, by handle and by buffer.

use std::collections::{BTreeMap, BTreeSet};

use bufshare_protocol::types::{BufferId, Rights, Way};

use super::SyncCounts;
use super::windows::WindowId;

/// One peer's use of one buffer.
#[derive(Debug)]
pub(super) struct Attachment {
    pub(super) generation: u64,
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

/// Those of one peer. A handle is never used again.
#[derive(Debug, Default)]
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

    /// Handles of the buffer of this generation.
    fn handles(&self, generation: u64) -> impl Iterator<Item = u64> {
        let of = self
            .of_buffer
            .range((generation, 0)..=(generation, u64::MAX));
        of.map(|(_, handle)| *handle)
    }

    /// Whether there are any of it.
    pub(super) fn has(&self, generation: u64) -> bool {
        self.handles(generation).next().is_some()
    }

    /// All of it.
    pub(super) fn of(&self, generation: u64) -> impl Iterator<Item = &Attachment> {
        let handles = self.handles(generation);
        handles.filter_map(|handle| self.table.get(&handle))
    }

    /// The buffer is revoked: their handles.
    pub(super) fn revoke(&mut self, generation: u64) -> Vec<u64> {
        let handles: Vec<u64> = self.handles(generation).collect();
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
