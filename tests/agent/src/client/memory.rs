// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Shared memory that may be taken away while it is used
//!
//! All access is by string instructions. When one is refused with SIGBUS, the
//! handler steps over it, and its count register then says how far it came.
//! Nothing is unmapped: the next access asks the kernel again.

use std::arch::asm;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{NonNull, null_mut};

/// `rep movsb` and `rep movsq`, as the assembler makes them, and their lengths.
const COPIES: [(&[u8], libc::greg_t); 2] = [(&[0xf3, 0xa4], 2), (&[0xf3, 0x48, 0xa5], 3)];

/// A file that is mapped.
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: only an address; the memory is shared with other machines anyway, and
// never borrowed.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

/// The access at this offset was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) offset: usize,
}

impl Mapping {
    pub(crate) fn new(fd: BorrowedFd<'_>, len: usize, write: bool) -> io::Result<Self> {
        let protection = if write {
            libc::PROT_READ | libc::PROT_WRITE
        } else {
            libc::PROT_READ
        };
        Self::with(fd, 0, len, protection, libc::MAP_SHARED)
    }

    /// To read and write, from `offset` of the file on.
    pub(crate) fn part(fd: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        Self::with(fd, offset, len, protection, libc::MAP_SHARED)
    }

    /// What is written stays with this mapping.
    pub(crate) fn private(fd: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        Self::with(fd, 0, len, protection, libc::MAP_PRIVATE)
    }

    fn with(
        fd: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        protection: libc::c_int,
        flags: libc::c_int,
    ) -> io::Result<Self> {
        let offset = offset.try_into().map_err(io::Error::other)?;
        let fd = fd.as_raw_fd();
        // SAFETY: at an address of the kernel's choice.
        let start = unsafe { libc::mmap(null_mut(), len, protection, flags, fd, offset) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    fn at(&self, offset: usize, len: usize) -> io::Result<*mut u8> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: within the mapping.
        Ok(unsafe { self.start.as_ptr().add(offset) })
    }

    /// Copy out of the memory.
    pub(crate) fn read(&self, offset: usize, into: &mut [u8]) -> io::Result<Result<(), Refused>> {
        let from = self.at(offset, into.len())?;
        // SAFETY: both are that long.
        let left = unsafe { copy(into.as_mut_ptr(), from, into.len()) };
        Ok(if left == 0 {
            Ok(())
        } else {
            Err(Refused {
                offset: offset + into.len() - left,
            })
        })
    }

    /// Copy into the memory.
    pub(crate) fn write(&self, offset: usize, from: &[u8]) -> io::Result<Result<(), Refused>> {
        let into = self.at(offset, from.len())?;
        // SAFETY: both are that long.
        let left = unsafe { copy(into, from.as_ptr(), from.len()) };
        Ok(if left == 0 {
            Ok(())
        } else {
            Err(Refused {
                offset: offset + from.len() - left,
            })
        })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by us; nothing borrows it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// Copy, and return how many bytes were not because the access was refused.
///
/// # Safety
///
/// Both must be that long; they do not overlap.
unsafe fn copy(into: *mut u8, from: *const u8, len: usize) -> usize {
    let left;
    // An emulated machine takes its time for each step, so take long ones.
    if len.is_multiple_of(8) {
        let words: usize;
        // SAFETY: the caller's promise; the handler leaves the registers alone.
        unsafe {
            asm!(
                "rep movsq",
                inout("rcx") len / 8 => words,
                inout("rdi") into => _,
                inout("rsi") from => _,
                options(nostack, preserves_flags),
            );
        }
        left = words * 8;
    } else {
        // SAFETY: as above.
        unsafe {
            asm!(
                "rep movsb",
                inout("rcx") len => left,
                inout("rdi") into => _,
                inout("rsi") from => _,
                options(nostack, preserves_flags),
            );
        }
    }
    left
}

/// Have refused accesses reported instead of ending the process.
pub(crate) fn catch_refusals() -> io::Result<()> {
    // SAFETY: all zero is a valid value.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    let function: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = handler;
    action.sa_sigaction = function as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the handler does only what a handler may.
    if unsafe { libc::sigaction(libc::SIGBUS, &raw const action, null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

extern "C" fn handler(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let registers = context.cast::<libc::ucontext_t>();
    // SAFETY: the kernel passes a valid context.
    let place = unsafe { &raw mut (*registers).uc_mcontext.gregs };
    // SAFETY: as above; nobody else has it.
    let Some(pointer) = (unsafe { &mut *place }).get_mut(libc::REG_RIP as usize) else {
        return;
    };
    let Ok(address) = usize::try_from(*pointer) else {
        return;
    };
    let code = std::ptr::with_exposed_provenance::<[u8; 3]>(address);
    // SAFETY: the code that was just being executed; our functions go on after it.
    let code = unsafe { code.read_unaligned() };
    if let Some((_, len)) = COPIES.iter().find(|(copy, _)| code.starts_with(copy)) {
        *pointer += len;
    } else {
        // Not one of ours: again, and then for good.
        // SAFETY: no memory is involved.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
    }
}
