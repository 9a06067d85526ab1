// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Mapped memory that others write, too
//!
//! Bytes are copied between it and private memory with
//! `copy_nonoverlapping` on raw pointers, as VMMs do: no reference to the
//! shared memory ever exists. Compiler fences around each copy keep the
//! compiler from reading the shared memory again where the copy is used.
//!
//! The copies can hit a page that is gone, which is `SIGBUS`. The checked ones
//! have the kernel do it: `process_vm_writev` and `process_vm_readv` on our own
//! process treat the shared memory as their *local* side, which the kernel
//! reaches through ordinary page faults (the remote side is pinned instead,
//! which drivers' mappings do not allow), and a fault that cannot be served is
//! `EFAULT`.

use std::ffi::c_void;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{Ordering, compiler_fence};

use rustix::io::{Errno, Result};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::Rights;

/// A shared mapping, unmapped when dropped
#[derive(Debug)]
pub(crate) struct Region {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread. `Region` is not
// `Sync`, so two threads never copy through the same mapping at once.
unsafe impl Send for Region {}

impl Region {
    /// Maps the first `len` bytes of a file.
    pub(crate) fn map(fd: BorrowedFd<'_>, len: usize, rights: Rights) -> Result<Self> {
        let mut prot = ProtFlags::empty();
        prot.set(ProtFlags::READ, rights.contains(Rights::READ));
        prot.set(ProtFlags::WRITE, rights.contains(Rights::WRITE));
        // SAFETY: the kernel picks an address range that nothing else uses.
        let base = unsafe { mmap(ptr::null_mut(), len, prot, MapFlags::SHARED, fd, 0) }?;
        let base = NonNull::new(base.cast()).ok_or(Errno::FAULT)?;
        Ok(Self { base, len })
    }

    /// Bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Where it begins.
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// The address of `len` bytes at `offset`, `ERANGE` if they are not all
    /// inside.
    fn at(&self, offset: usize, len: usize) -> Result<*mut u8> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(self.base.as_ptr().wrapping_add(offset)),
            _ => Err(Errno::RANGE),
        }
    }

    /// Copies out.
    pub(crate) fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let from = self.at(offset, bytes.len())?;
        compiler_fence(Ordering::SeqCst);
        // SAFETY: `from` is good for so many bytes, which are mapped and never
        // part of a Rust object, so that `bytes` does not overlap them.
        unsafe { ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
        compiler_fence(Ordering::SeqCst);
        Ok(())
    }

    /// Copies in. The mapping must be writable.
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        let to = self.at(offset, bytes.len())?;
        compiler_fence(Ordering::SeqCst);
        // SAFETY: as in `read`.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        compiler_fence(Ordering::SeqCst);
        Ok(())
    }

    /// Sets bytes. The mapping must be writable.
    pub(crate) fn fill(&self, offset: usize, len: usize, value: u8) -> Result<()> {
        let to = self.at(offset, len)?;
        compiler_fence(Ordering::SeqCst);
        // SAFETY: `to` is good for `len` bytes, which are part of no object.
        unsafe { ptr::write_bytes(to, value, len) };
        compiler_fence(Ordering::SeqCst);
        Ok(())
    }

    /// Copies out; `EFAULT` if bytes are gone.
    pub(crate) fn read_checked(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let shared = self.at(offset, bytes.len())?;
        let private = bytes.as_mut_ptr();
        whole(bytes.len(), |done, len| {
            let local = iovec(shared.wrapping_add(done), len);
            let remote = iovec(private.wrapping_add(done), len);
            // SAFETY: this writes `len` bytes at `remote`, which is within
            // `bytes`; the kernel checks both ranges.
            unsafe { libc::process_vm_writev(this_process(), &local, 1, &remote, 1, 0) }
        })
    }

    /// Copies in; `EFAULT` if bytes are gone or the mapping is not writable.
    pub(crate) fn write_checked(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        let shared = self.at(offset, bytes.len())?;
        let private = bytes.as_ptr();
        whole(bytes.len(), |done, len| {
            let local = iovec(shared.wrapping_add(done), len);
            let remote = iovec(private.wrapping_add(done).cast_mut(), len);
            // SAFETY: this only reads at `remote` and writes within the
            // region, which is part of no object; the kernel checks both.
            unsafe { libc::process_vm_readv(this_process(), &local, 1, &remote, 1, 0) }
        })
    }

    /// (offset, length) of the pieces of a range, `ERANGE` if it is not all
    /// inside.
    pub(crate) fn pieces(
        &self,
        offset: usize,
        len: usize,
        piece: usize,
    ) -> Result<impl Iterator<Item = (usize, usize)> + use<>> {
        self.at(offset, len)?;
        let end = offset.saturating_add(len);
        let starts = (offset..end).step_by(piece);
        Ok(starts.map(move |start| (start, piece.min(end.saturating_sub(start)))))
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        let base: *mut c_void = self.base.as_ptr().cast();
        // SAFETY: exactly what `map` mapped; nothing refers to it any more.
        // That cannot fail.
        let _ = unsafe { munmap(base, self.len) };
    }
}

fn iovec(base: *mut u8, len: usize) -> libc::iovec {
    libc::iovec {
        iov_base: base.cast(),
        iov_len: len,
    }
}

fn this_process() -> libc::pid_t {
    // SAFETY: has no arguments and cannot fail.
    unsafe { libc::getpid() }
}

/// Calls `copy` with (bytes done, bytes left) until `len` bytes are done.
fn whole(len: usize, copy: impl Fn(usize, usize) -> isize) -> Result<()> {
    let mut done = 0usize;
    while let Some(left) = len.checked_sub(done).filter(|left| *left != 0) {
        match usize::try_from(copy(done, left)) {
            Ok(0) => return Err(Errno::FAULT),
            Ok(copied) => done = done.saturating_add(copied),
            Err(_) => {
                let error = std::io::Error::last_os_error();
                match Errno::from_io_error(&error) {
                    Some(Errno::INTR) => {}
                    errno => return Err(errno.unwrap_or(Errno::IO)),
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::mem::ManuallyDrop;
    use std::os::fd::{AsFd, OwnedFd};

    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;

    const PAGE: usize = 4096;

    fn file(len: usize) -> OwnedFd {
        let fd = memfd_create("region", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, len as u64).unwrap();
        fd
    }

    fn region(len: usize) -> Region {
        Region::map(file(len).as_fd(), len, Rights::RW).unwrap()
    }

    #[test]
    fn what_was_written_is_read() {
        let region = region(2 * PAGE);
        region.write(PAGE - 2, b"abcd").unwrap();
        let mut bytes = [0; 6];
        region.read(PAGE - 3, &mut bytes).unwrap();
        assert_eq!(&bytes, b"\0abcd\0");
        region.write_checked(PAGE - 2, b"efgh").unwrap();
        region.read_checked(PAGE - 3, &mut bytes).unwrap();
        assert_eq!(&bytes, b"\0efgh\0");
        region.fill(PAGE - 1, 2, b'x').unwrap();
        region.read(PAGE - 3, &mut bytes).unwrap();
        assert_eq!(&bytes, b"\0exxh\0");
    }

    #[test]
    fn range_beyond_the_end_is_erange() {
        let region = region(PAGE);
        for (offset, len) in [(0, PAGE + 1), (PAGE, 1), (PAGE + 1, 0), (usize::MAX, 2)] {
            let mut bytes = vec![0; len];
            assert_eq!(region.read(offset, &mut bytes), Err(Errno::RANGE));
            assert_eq!(region.write(offset, &bytes), Err(Errno::RANGE));
            assert_eq!(region.fill(offset, len, 0), Err(Errno::RANGE));
            assert_eq!(region.read_checked(offset, &mut bytes), Err(Errno::RANGE));
            assert_eq!(region.write_checked(offset, &bytes), Err(Errno::RANGE));
            assert!(region.pieces(offset, len, PAGE).is_err());
        }
        assert_eq!(region.read(PAGE, &mut []), Ok(()));
        assert_eq!(region.read_checked(PAGE, &mut []), Ok(()));
    }

    #[test]
    fn checked_copy_stops_at_the_first_page_that_is_gone() {
        let fd = file(2 * PAGE);
        let region = Region::map(fd.as_fd(), 2 * PAGE, Rights::RW).unwrap();
        region.fill(0, 2 * PAGE, 7).unwrap();
        ftruncate(&fd, PAGE as u64).unwrap();
        let mut bytes = vec![0; 2 * PAGE];
        assert_eq!(region.read_checked(0, &mut bytes), Err(Errno::FAULT));
        assert_eq!(
            region.read_checked(PAGE, &mut bytes[..1]),
            Err(Errno::FAULT)
        );
        assert_eq!(region.write_checked(PAGE, &[1]), Err(Errno::FAULT));
        assert_eq!(region.read_checked(0, &mut bytes[..PAGE]), Ok(()));
        assert!(bytes[..PAGE].iter().all(|byte| *byte == 7));
    }

    #[test]
    fn checked_write_to_a_read_only_mapping_is_efault() {
        let region = Region::map(file(PAGE).as_fd(), PAGE, Rights::READ).unwrap();
        assert_eq!(region.write_checked(0, b"x"), Err(Errno::FAULT));
        assert_eq!(region.read_checked(0, &mut [0]), Ok(()));
    }

    #[test]
    fn checked_copy_reaches_memory_that_cannot_be_pinned() {
        // The kernel's own data page is such memory (VM_PFNMAP), as the
        // mappings of many drivers are.
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let line = maps.lines().find(|line| line.contains("[vvar]"));
        let line = line.expect("Linux maps [vvar] into every process, unless booted with vdso=0");
        let (start, rest) = line.split_once('-').unwrap();
        let (end, _) = rest.split_once(' ').unwrap();
        let [start, end] = [start, end].map(|hex| usize::from_str_radix(hex, 16).unwrap());
        // Which of its pages can be read depends on the machine.
        let pages: Vec<_> = (start..end)
            .step_by(PAGE)
            .map(|page| NonNull::new(ptr::with_exposed_provenance_mut(page)).unwrap())
            .map(|base| ManuallyDrop::new(Region { base, len: PAGE }))
            .map(|page| page.read_checked(0, &mut [0; 64]))
            .collect();
        assert!(pages.contains(&Ok(())), "{pages:?}");
    }

    #[test]
    fn pieces_are_whole_but_the_last() {
        let region = region(2 * PAGE);
        let pieces: Vec<_> = region.pieces(10, 100, 40).unwrap().collect();
        assert_eq!(pieces, [(10, 40), (50, 40), (90, 20)]);
        assert_eq!(region.pieces(0, 0, 40).unwrap().count(), 0);
    }

    #[test]
    fn dropped_region_is_unmapped() {
        // A name of its own, since other tests map at the same time.
        let fd = memfd_create("dropped-region", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, PAGE as u64).unwrap();
        let maps = || std::fs::read_to_string("/proc/self/maps").unwrap();
        let region = Region::map(fd.as_fd(), PAGE, Rights::RW).unwrap();
        assert!(maps().contains("dropped-region"));
        drop(region);
        assert!(!maps().contains("dropped-region"));
    }
}
