// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Another VM's buffer

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use crate::{BufferId, DmaBuf, Properties, Rights, Way};

/// Another VM's buffer as a dma-buf of this VM
///
/// It is released when [`buffer`](Self::buffer), its copies and its mappings
/// are dropped. That does not wait for the host.
///
/// It ends before when its exporter revokes it, when this VM is suspended, and with the device.
/// An event reports the first ([`Revoked`](crate::EventKind::Revoked)), and
/// [`Overflow`](crate::EventKind::Overflow) alone stands for the second; no `poll` of the
/// dma-buf does. [`DmaBuf::is_revoked`] says whether it has.
#[derive(Debug)]
#[non_exhaustive]
pub struct Import {
    /// The dma-buf.
    pub buffer: DmaBuf,
    /// The buffer's name.
    pub id: BufferId,
    /// What was granted.
    pub rights: Rights,
    /// Number of the export, as [`BufferInfo::generation`](crate::BufferInfo::generation).
    pub generation: u64,
    /// The exporting peer's id.
    pub owner: u64,
    /// How the bytes become visible here, for people.
    pub way: Way,
    /// What holds of it, whatever the way.
    pub properties: Properties,
    /// VMM mappings that mapping it takes, of
    /// [`Info::max_windows`](crate::Info::max_windows).
    pub windows: u32,
}

impl AsRawFd for Import {
    fn as_raw_fd(&self) -> RawFd {
        self.buffer.as_raw_fd()
    }
}

impl AsFd for Import {
    /// That of the [dma-buf](DmaBuf).
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.buffer.as_fd()
    }
}
