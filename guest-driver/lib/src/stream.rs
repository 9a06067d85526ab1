// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Streams: what one VM offers to others of frames that it is going to push

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use bufshare_protocol::ioctl as abi;

use crate::error::Result;
use crate::{BufferId, Export, ioctl};

/// A stream offered to other VMs
///
/// It has a name, by which they find it, and a record, which is its [metadata](crate::Meta):
/// what its frames are, and whether more of them come. Dropping it ends it; the buffers that are
/// [part](crate::Device::export_part) of it are exports of their own.
///
/// As an [`Export`] it can end while it is held: [`has_ended`](Self::has_ended) says so, and
/// `poll` of the descriptor by `POLLHUP`.
#[derive(Debug)]
#[must_use = "dropping it ends the stream"]
pub struct Stream(Export);

impl Stream {
    pub(crate) fn new(export: Export) -> Self {
        Self(export)
    }

    /// Its number, to be passed to those who are to join it.
    #[must_use]
    pub fn id(&self) -> BufferId {
        self.0.id()
    }

    /// Its export: what [`Device::set_meta`](crate::Device::set_meta) changes the record by. The
    /// new record has to have the same name.
    pub fn export(&self) -> &Export {
        &self.0
    }

    /// As [`Export::has_ended`].
    ///
    /// # Errors
    /// The descriptor cannot be polled.
    pub fn has_ended(&self) -> Result<bool> {
        self.0.has_ended()
    }
}

impl AsFd for Stream {
    /// As that of an [`Export`].
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Another VM's stream, which this program has joined
///
/// Dropping it leaves the stream, and does not wait.
#[derive(Debug)]
#[must_use = "dropping it leaves the stream"]
pub struct Joined {
    device: Arc<OwnedFd>,
    handle: u32,
    id: BufferId,
    owner: u64,
}

impl Joined {
    pub(crate) fn new(device: Arc<OwnedFd>, handle: u32, id: BufferId, owner: u64) -> Self {
        Self {
            device,
            handle,
            id,
            owner,
        }
    }

    /// The stream's number.
    #[must_use]
    pub fn id(&self) -> BufferId {
        self.id
    }

    /// The exporting peer's id.
    #[must_use]
    pub fn owner(&self) -> u64 {
        self.owner
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        let mut close = abi::Close {
            handle: self.handle,
            ..abi::Close::default()
        };
        // Fails only if somebody else closed it.
        let _ = ioctl::close(self.device.as_fd(), &mut close);
    }
}
