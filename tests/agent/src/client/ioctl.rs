// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Ioctls whose argument is one structure

use std::io;
use std::os::fd::AsRawFd;

/// Plain data that the kernel may read and write.
///
/// # Safety
///
/// Every bytes are a valid value, and there is no padding that matters.
pub(crate) unsafe trait Argument {}

// SAFETY: a number.
unsafe impl Argument for u32 {}
// SAFETY: a number.
unsafe impl Argument for u64 {}
// SAFETY: bytes.
unsafe impl Argument for [u8; 32] {}

/// `_IOWR`.
pub(crate) const fn read_write<T>(letter: u8, number: u8) -> u32 {
    0xc000_0000 | sized::<T>(letter, number)
}

/// `_IOW`.
pub(crate) const fn write<T>(letter: u8, number: u8) -> u32 {
    0x4000_0000 | sized::<T>(letter, number)
}

/// `_IOR`.
pub(crate) const fn read<T>(letter: u8, number: u8) -> u32 {
    0x8000_0000 | sized::<T>(letter, number)
}

/// `_IO`.
pub(crate) const fn none(letter: u8, number: u8) -> u32 {
    sized::<()>(letter, number)
}

const fn sized<T>(letter: u8, number: u8) -> u32 {
    let size = size_of::<T>();
    assert!(size < 1 << 14, "too large for an ioctl's number");
    #[expect(clippy::cast_possible_truncation, reason = "checked above")]
    let size = size as u32;
    (size << 16) | ((letter as u32) << 8) | number as u32
}

/// Do it; gives what the call returned.
pub(crate) fn call<T: Argument>(
    file: &impl AsRawFd,
    request: u32,
    argument: &mut T,
) -> io::Result<i32> {
    loop {
        // SAFETY: the caller names a request that takes a T.
        let result = unsafe {
            libc::ioctl(
                file.as_raw_fd(),
                libc::c_ulong::from(request),
                std::ptr::from_mut(argument),
            )
        };
        if result >= 0 {
            return Ok(result);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINTR) {
            return Err(error);
        }
    }
}
