// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A buffer offered to other VMs

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use bufshare_protocol::{types, wire};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::error::{Error, Result};
use crate::{BufferId, Meta, Operation, Rights};

/// One line of an access list: a peer that may import a buffer
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Access {
    /// The peer's id.
    pub peer: u64,
    /// [`Rights::READ`] or [`Rights::RW`].
    pub rights: Rights,
}

impl Access {
    /// Lets the peer with this id import the buffer.
    #[must_use]
    pub fn new(peer: u64, rights: Rights) -> Self {
        Self { peer, rights }
    }

    pub(crate) fn to_wire(&self) -> wire::Access {
        let Self { peer, rights } = *self;
        types::Access { peer, rights }.to_wire()
    }
}

/// What an export says besides its bytes
///
/// ```
/// use bufshare::{ExportOptions, Meta, Name, Rights};
/// let meta = Meta::new().name(Name::new("frame 1")?);
/// let options = ExportOptions::new().allow(2, Rights::READ).meta(meta);
/// assert_eq!(options.access.len(), 1);
/// # Ok::<(), bufshare::InvalidName>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExportOptions {
    /// Who may import it, at most 16 peers, each once. Empty: all peers that the host's operator
    /// allows, as far as he allows.
    pub access: Vec<Access>,
    /// Name, image, opaque bytes.
    pub meta: Meta,
}

impl ExportOptions {
    /// For all peers that the host's operator allows, and without metadata.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets this peer import it, too; those that no call names may not.
    #[must_use]
    pub fn allow(mut self, peer: u64, rights: Rights) -> Self {
        self.access.push(Access::new(peer, rights));
        self
    }

    /// Says what the bytes mean.
    #[must_use]
    pub fn meta(mut self, meta: Meta) -> Self {
        self.meta = meta;
        self
    }
}

/// A buffer offered to other VMs
///
/// Dropping it ends the export: importers are notified, and their mappings end. That does not
/// wait for them: it goes on behind, and the memory stays in use until they are gone.
/// So does the end of the process. Whoever holds a copy of the
/// [descriptor](AsFd) keeps the export alive.
///
/// An export can end while it is held: the host revoked it, this VM was suspended, or the
/// device is gone. [`has_ended`](Self::has_ended) says so. So does `poll` of the descriptor,
/// by `POLLHUP`.
#[derive(Debug)]
#[must_use = "dropping it ends the export"]
pub struct Export {
    fd: OwnedFd,
    id: BufferId,
    generation: u64,
}

impl Export {
    pub(crate) fn new(fd: OwnedFd, id: BufferId, generation: u64) -> Self {
        Self { fd, id, generation }
    }

    /// The buffer's name, to be passed to the importer.
    #[must_use]
    pub fn id(&self) -> BufferId {
        self.id
    }

    /// Number of this export, as [`BufferInfo::generation`](crate::BufferInfo::generation).
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether the export has ended though it is held. What it exported can still be used
    /// here, but no other VM can import it any more. Asks nobody and does not wait.
    ///
    /// # Errors
    /// The descriptor cannot be polled.
    pub fn has_ended(&self) -> Result<bool> {
        let mut fds = [PollFd::new(&self.fd, PollFlags::empty())];
        let now = Timespec::default();
        rustix::io::retry_on_intr(|| poll(&mut fds, Some(&now)))
            .map_err(|errno| Error::new(Operation::HasEnded, errno))?;
        Ok(fds.iter().any(|fd| fd.revents().contains(PollFlags::HUP)))
    }

    /// Ends the export, as dropping it does, without waiting.
    pub fn close(self) {}
}

impl AsRawFd for Export {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl AsFd for Export {
    /// For `poll`: hung up (`POLLHUP`) when the export has ended, and never anything else.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Export> for OwnedFd {
    /// The export lives on until the descriptor and its copies are closed.
    fn from(export: Export) -> Self {
        export.fd
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn an_export_has_ended_when_its_descriptor_hangs_up() {
        // The read end of a pipe hangs up with its last writer.
        let (reader, writer) = std::io::pipe().unwrap();
        let export = Export::new(reader.into(), BufferId([1; 16]), 1);
        assert!(!export.has_ended().unwrap());
        drop(writer);
        assert!(export.has_ended().unwrap());
    }

    #[test]
    fn an_export_lasts_as_long_as_its_descriptor() {
        // A pipe cannot be written any more when its read end is closed.
        let (reader, mut writer) = std::io::pipe().unwrap();
        let descriptor = OwnedFd::from(Export::new(reader.into(), BufferId([1; 16]), 1));
        let copy = descriptor.try_clone().unwrap();
        drop(descriptor);
        writer.write_all(b"lives on").unwrap();
        Export::new(copy, BufferId([1; 16]), 1).close();
        let error = writer.write_all(b"ended").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    }
}
