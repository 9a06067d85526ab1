// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Another VM's buffer

use bufshare_protocol::types::{BufferId, Rights, Way};

use crate::DmaBuf;

/// Another VM's buffer as a dma-buf of this VM
///
/// It is released when [`buffer`](Self::buffer), its copies and its mappings
/// are dropped.
#[derive(Debug)]
#[non_exhaustive]
pub struct Import {
    /// The dma-buf.
    pub buffer: DmaBuf,
    /// The buffer's name.
    pub id: BufferId,
    /// What was granted.
    pub rights: Rights,
    /// Number of the export. Another one under the same id cannot be.
    pub generation: u64,
    /// The exporting peer.
    pub owner: u64,
    /// How the bytes become visible here.
    pub way: Way,
    /// VMM mappings that mapping it takes, of
    /// [`Info::max_windows`](crate::Info::max_windows).
    pub windows: u32,
}
