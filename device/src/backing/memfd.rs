// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory files of our own.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;

/// A file of `len` zero bytes that nobody can make shorter. It takes memory
/// only where it is touched.
///
/// # Errors
/// As `memfd_create`, `ftruncate` and `fcntl`.
pub fn sealed(name: &CStr, len: u64) -> io::Result<File> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is NUL-terminated.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, owned by nobody else.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len)?;
    // SAFETY: F_ADD_SEALS takes no pointer.
    if unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_SHRINK) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}
