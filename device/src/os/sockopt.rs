// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Values that the kernel keeps of a socket.

use std::io;
use std::os::fd::RawFd;

/// A number that a socket has at its general level.
///
/// # Errors
/// As `getsockopt`.
pub(crate) fn option(fd: RawFd, name: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    // SAFETY: an integer may have any bits.
    unsafe { option_into(fd, name, &mut value) }?;
    Ok(value)
}

/// Has the kernel write a value that a socket has at its general level.
///
/// # Errors
/// As `getsockopt`.
///
/// # Safety
/// A `T` may have any bits.
pub(crate) unsafe fn option_into<T>(fd: RawFd, name: libc::c_int, value: &mut T) -> io::Result<()> {
    let mut len = libc::socklen_t::try_from(size_of::<T>()).unwrap_or_default();
    // SAFETY: value and length are writable and the length is the value's; the rest is
    // the caller's promise.
    let rc = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            name,
            core::ptr::from_mut(value).cast(),
            &raw mut len,
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
