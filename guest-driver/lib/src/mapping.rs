// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The CPU's view of a dma-buf, with begin and end of access

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::ioctl::{self, Edge};
use crate::region::Region;
use crate::{Operation, Rights};

/// Bytes copied out at a time by [`CpuAccess::chunks`]: within a core's cache.
const CHUNK: usize = 64 * 1024;

/// A dma-buf mapped into this process
///
/// Its bytes can be reached while a [`CpuAccess`] from [`begin`](Self::begin)
/// is held. It is unmapped when dropped.
///
/// Another VM may write the same memory at any time, so no reference to it is
/// ever given out: bytes are copied in and out. It may go from thread to
/// thread, but not be used by two at once; for that, map the buffer twice.
///
/// # When the exporter revokes the buffer
/// Its pages disappear, and touching them is `SIGBUS`, which ends the process
/// unless it handles that. Where this VM is too slow in that, the host puts zero pages in their
/// place before: what is written there is lost. [`CpuAccess::read_at_checked`] and
/// [`CpuAccess::write_at_checked`] give an error instead, at the cost of a
/// system call: about a microsecond, and half the speed of `memcpy` or more
/// with pieces of 64 KiB. A program that must survive other VMs uses these.
/// Begin and end of access give an error, too; [`Error::is_revoked`] is true
/// for all of them. `examples/survivor.rs`:
///
/// ```no_run
#[doc = include_str!("../examples/survivor.rs")]
/// ```
#[derive(Debug)]
pub struct Mapping {
    region: Region,
    fd: OwnedFd,
    rights: Rights,
}

impl Mapping {
    /// `ask`: it is an import, which may have to be mapped into this VM first.
    pub(crate) fn new(fd: BorrowedFd<'_>, len: usize, rights: Rights, ask: bool) -> Result<Self> {
        let op = Operation::Map;
        if rights.is_empty() {
            return Err(Error::new(op, Errno::INVAL));
        }
        let fd = fd
            .try_clone_to_owned()
            .map_err(|errno| Error::new(op, errno))?;
        // Only this says why there is nothing to map; the first access would be SIGBUS. Other
        // drivers' buffers are spared: they may move data, and Linux's udmabuf keeps to the
        // direction of the first access.
        if ask {
            probe(fd.as_fd()).map_err(|errno| match errno {
                GONE => Error::revoked(op, errno),
                _ => Error::new(op, errno),
            })?;
        }
        let region = Region::map(fd.as_fd(), len, rights).map_err(|errno| {
            // What cannot be mapped at all is ENODEV, too, but no dma-buf.
            match errno {
                GONE if is_gone(fd.as_fd()) => Error::revoked(op, errno),
                _ => Error::new(op, errno),
            }
        })?;
        Ok(Self { region, fd, rights })
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.region.len()
    }

    /// Whether there are no bytes; never so.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What it was mapped for.
    #[must_use]
    pub fn rights(&self) -> Rights {
        self.rights
    }

    /// Announces CPU access (`DMA_BUF_IOCTL_SYNC`), so that the driver makes
    /// visible what devices wrote, and waits until they are done: until those that write are,
    /// and if `rights` have [`Rights::WRITE`], those that read. No time limits that wait, and no
    /// signal but one that kills ends it; `poll` of the [`DmaBuf`](crate::DmaBuf) says whether
    /// there is anything to wait for. An import that is not coherent asks the host, too, see
    /// [`Device`](crate::Device).
    ///
    /// # Errors
    /// `EACCES` if the buffer is not mapped for `rights`, `EINVAL` if they are
    /// none, else the driver's reason.
    pub fn begin(&self, rights: Rights) -> Result<CpuAccess<'_>> {
        let op = Operation::Begin;
        if rights.is_empty() {
            return Err(Error::new(op, Errno::INVAL));
        }
        if !self.rights.contains(rights) {
            return Err(Error::new(op, Errno::ACCESS));
        }
        self.sync(rights, Edge::Start, op)?;
        Ok(CpuAccess {
            mapping: self,
            rights,
            begun: true,
        })
    }

    /// Ends an access that was begun for these rights and [forgotten](std::mem::forget): for
    /// whoever cannot hold a [`CpuAccess`], as programs in C, which hold its
    /// [address](CpuAccess::as_ptr) alone.
    ///
    /// # Errors
    /// As [`CpuAccess::finish`].
    pub fn end(&self, rights: Rights) -> Result<()> {
        self.sync(rights, Edge::End, Operation::End)
    }

    fn sync(&self, rights: Rights, edge: Edge, op: Operation) -> Result<()> {
        ioctl::sync(self.fd.as_fd(), rights, edge).map_err(|error| {
            match Errno::from_io_error(&error) {
                Some(errno @ GONE) => Error::revoked(op, errno),
                _ => Error::new(op, error),
            }
        })
    }
}

/// CPU access to a [`Mapping`] that has begun
///
/// Ends when dropped, or with [`finish`](Self::finish), which reports
/// whether that worked. Accesses may overlap; the driver counts them.
///
/// Offsets and lengths are in bytes. An access beyond the end of the buffer is
/// `ERANGE` and one without the right `EACCES`; neither copies anything.
///
/// Another VM may write at the same time. Then what is read may be partly old
/// and partly new, but the copy does not change any more: check the copy, and
/// use the copy.
#[must_use = "dropping it ends the access"]
pub struct CpuAccess<'a> {
    mapping: &'a Mapping,
    rights: Rights,
    /// The driver has to be notified of the end.
    begun: bool,
}

impl CpuAccess<'_> {
    /// Copies bytes out of the buffer. As fast as `memcpy`.
    ///
    /// If the exporter revokes the buffer, this raises `SIGBUS`; see
    /// [`Mapping`].
    ///
    /// # Errors
    /// See [`CpuAccess`].
    pub fn read_at(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let op = Operation::Read;
        self.check(Rights::READ, op)?;
        self.mapping
            .region
            .read(offset, bytes)
            .map_err(|errno| Error::new(op, errno))
    }

    /// Copies bytes into the buffer. As fast as `memcpy`.
    ///
    /// If the exporter revokes the buffer, this raises `SIGBUS`; see
    /// [`Mapping`].
    ///
    /// # Errors
    /// See [`CpuAccess`].
    pub fn write_at(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        let op = Operation::Write;
        self.check(Rights::WRITE, op)?;
        self.mapping
            .region
            .write(offset, bytes)
            .map_err(|errno| Error::new(op, errno))
    }

    /// Sets `len` bytes to `value`.
    ///
    /// If the exporter revokes the buffer, this raises `SIGBUS`; see
    /// [`Mapping`].
    ///
    /// # Errors
    /// See [`CpuAccess`].
    pub fn fill(&self, offset: usize, len: usize, value: u8) -> Result<()> {
        let op = Operation::Fill;
        self.check(Rights::WRITE, op)?;
        self.mapping
            .region
            .fill(offset, len, value)
            .map_err(|errno| Error::new(op, errno))
    }

    /// Passes a copy of `len` bytes to `take`, piece by piece and in order;
    /// made for hashes, checksums and files. It ends at the first error of
    /// `take`.
    ///
    /// If the exporter revokes the buffer, this raises `SIGBUS`; see
    /// [`Mapping`].
    ///
    /// # Errors
    /// That of `take`. Else see [`CpuAccess`].
    pub fn chunks<E: From<Error>>(
        &self,
        offset: usize,
        len: usize,
        mut take: impl FnMut(&[u8]) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let op = Operation::Read;
        self.check(Rights::READ, op)?;
        let region = &self.mapping.region;
        let pieces = region
            .pieces(offset, len, CHUNK)
            .map_err(|errno| Error::new(op, errno))?;
        let mut copy = vec![0; CHUNK.min(len)];
        for (offset, len) in pieces {
            let bytes = copy.get_mut(..len).unwrap_or_default();
            region
                .read(offset, bytes)
                .map_err(|errno| Error::new(op, errno))?;
            take(bytes)?;
        }
        Ok(())
    }

    /// As [`read_at`](Self::read_at), but survives that the exporter revokes the
    /// buffer. Costs a system call (`process_vm_writev` on ourselves).
    ///
    /// # Errors
    /// [`Error::is_revoked`] if bytes are gone; those before them may have been
    /// copied. Else see [`CpuAccess`]; `ENOSYS` or `EPERM` if the kernel or a
    /// sandbox has no such call.
    pub fn read_at_checked(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let op = Operation::Read;
        self.check(Rights::READ, op)?;
        self.mapping
            .region
            .read_checked(offset, bytes)
            .map_err(|errno| checked(op, errno))
    }

    /// As [`write_at`](Self::write_at), but survives that the exporter revokes
    /// the buffer. Costs a system call (`process_vm_readv` on ourselves).
    ///
    /// # Errors
    /// As [`read_at_checked`](Self::read_at_checked).
    pub fn write_at_checked(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        let op = Operation::Write;
        self.check(Rights::WRITE, op)?;
        self.mapping
            .region
            .write_checked(offset, bytes)
            .map_err(|errno| checked(op, errno))
    }

    /// Where the buffer begins in this process, for code that copies itself or
    /// passes the address to the kernel. It is good for
    /// [`Mapping::len`] bytes as long as the mapping is held; other VMs may
    /// write there, so no Rust reference may be made of it.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.mapping.region.as_ptr()
    }

    /// What was announced.
    #[must_use]
    pub fn rights(&self) -> Rights {
        self.rights
    }

    /// Ends the access, so that devices and other VMs see what was written. An import that is
    /// not coherent asks the host for that.
    ///
    /// # Errors
    /// The driver's reason. It cannot be tried again, and the driver of the buffer may count
    /// the access as begun until the buffer is closed.
    pub fn finish(mut self) -> Result<()> {
        self.begun = false;
        self.mapping.end(self.rights)
    }

    fn check(&self, needed: Rights, op: Operation) -> Result<()> {
        if self.rights.contains(needed) {
            Ok(())
        } else {
            Err(Error::new(op, Errno::ACCESS))
        }
    }
}

/// What the driver answers for a dma-buf whose memory is gone.
const GONE: Errno = Errno::NODEV;

/// Whether a descriptor is a dma-buf whose memory is gone.
pub(crate) fn is_gone(fd: BorrowedFd<'_>) -> bool {
    probe(fd) == Err(GONE)
}

/// As [`is_gone`], of an import. Its driver refuses to map one that is gone into a process, and
/// neither asks the host nor takes a window before the first access.
pub(crate) fn is_import_gone(fd: BorrowedFd<'_>) -> bool {
    // Less than a page is a page.
    matches!(Region::map(fd, 1, Rights::READ), Err(GONE))
}

/// Begins and ends an access, which has an import mapped into this VM.
fn probe(fd: BorrowedFd<'_>) -> std::result::Result<(), Errno> {
    let errno = |error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    ioctl::sync(fd, Rights::READ, Edge::Start).map_err(errno)?;
    // Nothing depends on how this ends.
    let _ = ioctl::sync(fd, Rights::READ, Edge::End);
    Ok(())
}

fn checked(op: Operation, errno: Errno) -> Error {
    if errno == Errno::FAULT {
        Error::revoked(op, errno)
    } else {
        Error::new(op, errno)
    }
}

impl Drop for CpuAccess<'_> {
    fn drop(&mut self) {
        if self.begun {
            // Whoever wants to know calls finish().
            let _ = self.mapping.end(self.rights);
        }
    }
}

impl fmt::Debug for CpuAccess<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CpuAccess")
            .field("rights", &self.rights)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;

    const LEN: usize = 3 * CHUNK;

    fn memfd() -> OwnedFd {
        let fd = memfd_create("mapping", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, LEN as u64).unwrap();
        fd
    }

    fn mapping(rights: Rights) -> Mapping {
        Mapping::new(memfd().as_fd(), LEN, rights, false).unwrap()
    }

    /// Access that no driver was notified of: a memfd knows no SYNC.
    fn access(mapping: &Mapping, rights: Rights) -> CpuAccess<'_> {
        CpuAccess {
            mapping,
            rights,
            begun: false,
        }
    }

    fn errno<T>(result: Result<T>) -> Option<Errno> {
        result
            .err()
            .and_then(|error| Errno::from_io_error(&error.errno))
    }

    #[test]
    fn begin_without_a_right_of_the_mapping_is_eacces() {
        let mapping = mapping(Rights::READ);
        assert_eq!(errno(mapping.begin(Rights::RW)), Some(Errno::ACCESS));
        assert_eq!(errno(mapping.begin(Rights::NONE)), Some(Errno::INVAL));
        assert_eq!(
            errno(mapping.begin(Rights::READ)),
            Some(Errno::NOTTY),
            "not a dma-buf"
        );
    }

    #[test]
    fn map_for_nothing_is_refused() {
        assert_eq!(
            errno(Mapping::new(memfd().as_fd(), LEN, Rights::NONE, false)),
            Some(Errno::INVAL)
        );
    }

    #[test]
    fn access_without_the_right_copies_nothing() {
        let mapping = mapping(Rights::RW);
        let read = access(&mapping, Rights::READ);
        assert_eq!(errno(read.write_at(0, b"x")), Some(Errno::ACCESS));
        assert_eq!(errno(read.write_at_checked(0, b"x")), Some(Errno::ACCESS));
        assert_eq!(errno(read.fill(0, 1, 7)), Some(Errno::ACCESS));
        let write = access(&mapping, Rights::WRITE);
        let mut byte = [9];
        assert_eq!(errno(write.read_at(0, &mut byte)), Some(Errno::ACCESS));
        assert_eq!(
            errno(write.read_at_checked(0, &mut byte)),
            Some(Errno::ACCESS)
        );
        assert_eq!(
            errno(write.chunks(0, 1, |_| -> Result<()> { panic!("called") })),
            Some(Errno::ACCESS)
        );
        assert_eq!(byte, [9]);
    }

    #[test]
    fn two_mappings_see_the_same_bytes() {
        let fd = memfd();
        let [one, two] =
            [(); 2].map(|()| Mapping::new(fd.as_fd(), LEN, Rights::RW, false).unwrap());
        access(&one, Rights::WRITE).write_at(5, b"hello").unwrap();
        let mut bytes = [0; 5];
        access(&two, Rights::READ).read_at(5, &mut bytes).unwrap();
        assert_eq!(&bytes, b"hello");
    }

    #[test]
    fn an_address_is_of_the_same_bytes() {
        let mapping = mapping(Rights::RW);
        assert_eq!((mapping.rights(), mapping.is_empty()), (Rights::RW, false));
        let access = access(&mapping, Rights::WRITE);
        assert_eq!(access.rights(), Rights::WRITE);
        access.fill(3, 2, 7).unwrap();
        assert_eq!(errno(access.fill(LEN, 1, 7)), Some(Errno::RANGE));
        // SAFETY: within the mapping, which is held, and nobody else writes it.
        let bytes: [u8; 6] = unsafe { access.as_ptr().cast::<[u8; 6]>().read() };
        assert_eq!(bytes, [0, 0, 0, 7, 7, 0]);
    }

    #[test]
    fn chunks_cover_the_range_once_and_in_order() {
        let mapping = mapping(Rights::RW);
        let access = access(&mapping, Rights::RW);
        let bytes: Vec<u8> = (0..=250).cycle().take(LEN).collect();
        access.write_at(0, &bytes).unwrap();
        for range in [0..LEN, 1..LEN, 7..CHUNK, 3..3, 100..100 + CHUNK + 1] {
            let mut seen = Vec::new();
            access
                .chunks(range.start, range.len(), |piece| {
                    seen.extend_from_slice(piece);
                    Ok::<(), Error>(())
                })
                .unwrap();
            assert_eq!(seen, bytes[range]);
        }
        assert_eq!(
            errno(access.chunks(1, LEN, |_| -> Result<()> { panic!("called") })),
            Some(Errno::RANGE)
        );
    }

    #[test]
    fn chunks_end_at_the_first_error_of_their_taker() {
        let mapping = mapping(Rights::RW);
        let access = access(&mapping, Rights::READ);
        let mut calls = 0;
        let result = access.chunks(0, LEN, |_| {
            calls += 1;
            Err(Error::new(Operation::Read, Errno::IO))
        });
        assert_eq!((errno(result), calls), (Some(Errno::IO), 1));
    }

    #[test]
    fn gone_pages_are_revoked_where_access_is_checked() {
        let fd = memfd();
        let mapping = Mapping::new(fd.as_fd(), LEN, Rights::RW, false).unwrap();
        let access = access(&mapping, Rights::RW);
        ftruncate(&fd, 0).unwrap();
        assert!(
            access
                .read_at_checked(0, &mut [0])
                .unwrap_err()
                .is_revoked()
        );
        assert!(access.write_at_checked(0, &[0]).unwrap_err().is_revoked());
    }

    #[test]
    fn mapping_outlives_its_descriptor_and_moves_to_a_thread() {
        let mapping = mapping(Rights::RW);
        let bytes = std::thread::spawn(move || {
            let mut bytes = [1; 4];
            access(&mapping, Rights::READ)
                .read_at(LEN - 4, &mut bytes)
                .unwrap();
            bytes
        });
        assert_eq!(bytes.join().unwrap(), [0; 4]);
    }
}
