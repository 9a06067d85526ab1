// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A dma-buf: a descriptor and its size

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::mapping::{self, Mapping};
use crate::{Operation, Rights};

/// A dma-buf of any driver
///
/// For `poll`, its descriptor is as every dma-buf's: readable (`POLLIN`) when no device writes
/// it, writable (`POLLOUT`) when no device uses it at all. That is of devices of this VM alone.
/// Source: "Implicit Fence Poll Support" in the kernel's documentation of dma-buf.
///
/// `examples/checksum.rs`:
///
/// ```no_run
#[doc = include_str!("../examples/checksum.rs")]
/// ```
#[derive(Debug)]
pub struct DmaBuf {
    fd: OwnedFd,
    len: usize,
    imported: bool,
}

impl DmaBuf {
    /// Takes a descriptor. Whether it really is a dma-buf shows when it is
    /// exported or its first CPU access begins. Asks nobody and does not wait.
    ///
    /// # Errors
    /// It reports no size (as on kernels whose dma-bufs cannot seek), or one that
    /// the address space cannot hold.
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        let op = Operation::Size;
        let size = rustix::fs::seek(&fd, SeekFrom::End(0)).map_err(|e| Error::new(op, e))?;
        // A dma-buf can be sought to its ends only; it has no position that
        // others could miss.
        let len = usize::try_from(size).map_err(|_| Error::new(op, Errno::OVERFLOW))?;
        let imported = false;
        Ok(Self { fd, len, imported })
    }

    /// Takes that of an import.
    ///
    /// # Errors
    /// As [`from_fd`](Self::from_fd).
    pub(crate) fn imported(fd: OwnedFd) -> Result<Self> {
        Self::from_fd(fd).map(|buffer| Self {
            imported: true,
            ..buffer
        })
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes; no driver makes such a dma-buf.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Maps all of it into this process.
    ///
    /// The mapping is independent: it keeps the dma-buf alive. An import that nothing has
    /// mapped yet is mapped into this VM first, for which the host is asked, see
    /// [`Device`](crate::Device). What says whether that worked is an access for reading, which
    /// is begun and ended, with all that it waits for, see [`Mapping::begin`]. One that came
    /// as a descriptor ([`from_fd`](Self::from_fd)) is not known as an import: its first access
    /// asks, and reports.
    ///
    /// # Errors
    /// The driver cannot, or the descriptor was opened with fewer rights
    /// (`EACCES`). Of an import that the host does not map there is the errno alone, without
    /// its status: `ENOSPC` where this VM has too many mappings, `EIO` where its VMM refuses.
    pub fn map(&self, rights: Rights) -> Result<Mapping> {
        Mapping::new(self.fd.as_fd(), self.len, rights, self.imported)
    }

    /// Whether its memory is gone: it is another VM's buffer, and its exporter revoked
    /// it, or this VM was suspended since, or the device that showed it is gone.
    ///
    /// A program that holds an import asks this when it reads an event
    /// [`Overflow`](crate::EventKind::Overflow), which may stand for a lost `Revoked`. Of an
    /// [`Import`](crate::Import) the driver answers, which asks nobody and maps nothing into this
    /// VM. Of one that came as a descriptor ([`from_fd`](Self::from_fd)) the answer comes from the
    /// begin of a CPU access, with all that it waits for, see [`Mapping::begin`].
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        if self.imported {
            mapping::is_import_gone(self.fd.as_fd())
        } else {
            mapping::is_gone(self.fd.as_fd())
        }
    }

    /// Another descriptor of the same dma-buf.
    ///
    /// # Errors
    /// There are too many descriptors.
    pub fn try_clone(&self) -> Result<Self> {
        let fd = self
            .fd
            .try_clone()
            .map_err(|e| Error::new(Operation::Duplicate, e))?;
        Ok(Self { fd, ..*self })
    }
}

impl AsRawFd for DmaBuf {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl AsFd for DmaBuf {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<DmaBuf> for OwnedFd {
    fn from(buffer: DmaBuf) -> Self {
        buffer.fd
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;

    #[test]
    fn size_is_told_by_the_descriptor() {
        let fd = memfd_create("dmabuf", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, 12288).unwrap();
        let buffer = DmaBuf::from_fd(fd).unwrap();
        assert_eq!((buffer.len(), buffer.is_empty()), (12288, false));
        assert_eq!(buffer.try_clone().unwrap().len(), 12288);
        assert_eq!(buffer.map(Rights::READ).unwrap().len(), 12288);
    }

    #[test]
    fn an_import_is_gone_when_its_driver_maps_no_page_of_it() {
        let of = |fd: OwnedFd, imported| DmaBuf {
            fd,
            len: 4096,
            imported,
        };
        // Mapping it is ENODEV, as that of a revoked import; nothing here knows SYNC.
        let null = || std::fs::File::open("/dev/null").unwrap().into();
        assert!(of(null(), true).is_revoked());
        assert!(!of(null(), false).is_revoked());
        let memory = memfd_create("dmabuf", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&memory, 4096).unwrap();
        assert!(!of(memory, true).is_revoked());
    }

    #[test]
    fn descriptor_that_cannot_seek_is_refused() {
        let (pipe, _) = std::io::pipe().unwrap();
        let error = DmaBuf::from_fd(pipe.into()).unwrap_err();
        assert_eq!(Errno::from_io_error(&error.errno), Some(Errno::SPIPE));
    }
}
