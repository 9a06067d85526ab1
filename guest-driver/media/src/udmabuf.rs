// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Dma-bufs of an anonymous file's pages, by `/dev/udmabuf`

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::ioctl::opcode;

#[repr(C)]
#[derive(Clone, Copy)]
struct UdmabufCreate {
    memfd: u32,
    flags: u32,
    offset: u64,
    size: u64,
}

const _: () = assert!(size_of::<UdmabufCreate>() == 24);

const UDMABUF_FLAGS_CLOEXEC: u32 = 1;

/// Makes a dma-buf of at least `size` bytes, whole pages.
pub fn allocate(size: u64) -> io::Result<OwnedFd> {
    let driver = rustix::fs::open(
        "/dev/udmabuf",
        OFlags::RDWR | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let memory =
        rustix::fs::memfd_create("bufshare", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let size = size
        .checked_next_multiple_of(4096)
        .ok_or(io::ErrorKind::InvalidInput)?;
    rustix::fs::ftruncate(&memory, size)?;
    rustix::fs::fcntl_add_seals(&memory, SealFlags::SHRINK)?;
    let request = UdmabufCreate {
        memfd: u32::try_from(memory.as_raw_fd()).map_err(io::Error::other)?,
        flags: UDMABUF_FLAGS_CLOEXEC,
        offset: 0,
        size,
    };
    create(&driver, &request)
}

/// This ioctl returns its descriptor as result, which [`Call`](crate::ioctl::Call) does not pass
/// on.
fn create(driver: &OwnedFd, request: &UdmabufCreate) -> io::Result<OwnedFd> {
    let number = opcode::write::<UdmabufCreate>(b'u', 0x42);
    // SAFETY: UDMABUF_CREATE reads one struct udmabuf_create.
    let fd = unsafe { libc::ioctl(driver.as_raw_fd(), libc::Ioctl::from(number), request) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;
    use crate::ctest;

    #[test]
    fn layout_and_numbers_are_those_of_the_kernel_headers() {
        ctest::check(
            &["linux/udmabuf.h"],
            &[
                ("sizeof(struct udmabuf_create)", size_of::<UdmabufCreate>()),
                (
                    "offsetof(struct udmabuf_create, offset)",
                    offset_of!(UdmabufCreate, offset),
                ),
                (
                    "UDMABUF_CREATE",
                    opcode::write::<UdmabufCreate>(b'u', 0x42) as usize,
                ),
                ("UDMABUF_FLAGS_CLOEXEC", UDMABUF_FLAGS_CLOEXEC as usize),
            ],
        );
    }
}
