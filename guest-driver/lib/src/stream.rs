// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Streams: what one VM offers to others of frames that it is going to push

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use bufshare_protocol::ioctl as abi;
use bufshare_protocol::types::{Way, Ways};

use crate::error::{Error, Result};
use crate::{BufferId, Export, Operation, Rights, ioctl};

/// A stream offered to other VMs
///
/// It has a name, by which they find it, and a record, which is its [metadata](crate::Meta):
/// what its frames are, and whether more of them come. Dropping it ends it; the buffers that are
/// [part](crate::Device::export_part) of it are exports of their own.
///
/// As an [`Export`] it can end while it is held: [`has_ended`](Self::has_ended) says so, and
/// `poll` of the descriptor by `POLLHUP`.
///
/// No event says that a VM joins: [`BufferInfo::attachments`](crate::BufferInfo::attachments) of
/// [`Device::query`](crate::Device::query) is how many have. That one has left is an event
/// [`Released`](crate::EventKind::Released). A frame for which nobody is there is returned at once.
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

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Stream {
    /// As that of an [`Export`].
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Stream> for OwnedFd {
    /// The stream lives on until the descriptor and its copies are closed.
    fn from(stream: Stream) -> Self {
        stream.0.into()
    }
}

/// Another VM's stream, which this program has joined
///
/// Dropping it leaves the stream, and does not wait. A VM has joined as long as one of its
/// programs has.
///
/// It can end while it is held, which the device's events say:
/// - [`Revoked`](crate::EventKind::Revoked) of this [`id`](Self::id): the stream is over. The
///   number is not used again.
/// - [`Overflow`](crate::EventKind::Overflow): this VM may have been suspended or its device reset,
///   which ends each join, or a `Revoked` may be lost: [`renew`](Self::renew) it.
/// - that the device is gone (`ENODEV`).
///
/// [`Meta`](crate::EventKind::Meta) of the id says that the record has changed, maybe to say that
/// no frame comes any more.
#[derive(Debug)]
#[must_use = "dropping it leaves the stream"]
pub struct Joined {
    device: Arc<OwnedFd>,
    handle: u32,
    id: BufferId,
    owner: u64,
}

impl Joined {
    /// Joins what is known to be a stream.
    pub(crate) fn new(device: Arc<OwnedFd>, id: BufferId) -> Result<Self> {
        let mut raw = abi::Import {
            id: id.to_wire(),
            rights: Rights::READ.to_wire(),
            flags: abi::IMPORT_HANDLE,
            ways: Ways::NONE.with(Way::None).to_wire(),
            ..abi::Import::default()
        };
        let handle = ioctl::import_handle(device.as_fd(), &mut raw)
            .map_err(|errno| Error::of_host(Operation::Join, errno, raw.status))?;
        Ok(Self {
            device,
            handle,
            id,
            owner: raw.owner,
        })
    }

    /// For tests: what a handle of an earlier join would be.
    #[cfg(test)]
    pub(crate) fn of_handle(device: Arc<OwnedFd>, handle: u32, id: BufferId, owner: u64) -> Self {
        Self {
            device,
            handle,
            id,
            owner,
        }
    }

    /// Joins the stream again if this has ended though the stream is not over; else it changes
    /// nothing. To be called after an [`Overflow`](crate::EventKind::Overflow). Asks the host,
    /// unless this, or another program of this VM, has joined it still.
    ///
    /// # Errors
    /// As those of [`Device::join`](crate::Device::join): if the stream is over, that it
    /// [is absent](Error::is_absent). This is what it was before then, and may be tried again.
    pub fn renew(&mut self) -> Result<()> {
        // Of what this VM has joined still that is one handle more, else a join of its own.
        let renewed = Self::new(self.device.clone(), self.id)?;
        // The old one leaves when the new one is there: its exporter does not see it go.
        *self = renewed;
        Ok(())
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

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_join_that_cannot_be_renewed_is_what_it_was() {
        let device: Arc<OwnedFd> = Arc::new(File::open("/dev/null").unwrap().into());
        let id = BufferId([7; 16]);
        let mut joined = Joined::of_handle(device.clone(), 3, id, 2);
        let error = joined.renew().unwrap_err();
        assert_eq!(error.op, Operation::Join);
        assert_eq!((joined.handle, joined.id(), joined.owner()), (3, id, 2));
        drop(joined);
        assert_eq!(Arc::strong_count(&device), 1);
    }
}
