// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Dma-bufs of other drivers.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::ioctl::opcode;

use crate::ioctl::Call;

#[repr(C)]
#[derive(Clone, Copy)]
struct HeapAllocation {
    len: u64,
    fd: u32,
    fd_flags: u32,
    heap_flags: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct UdmabufCreate {
    memfd: u32,
    flags: u32,
    offset: u64,
    size: u64,
}

const UDMABUF_FLAGS_CLOEXEC: u32 = 1;

// SAFETY: struct dma_heap_allocation_data, plain data.
const HEAP_ALLOC: Call<HeapAllocation> =
    unsafe { Call::new(opcode::read_write::<HeapAllocation>(b'H', 0)) };

/// Has a heap of `/dev/dma_heap` allocate.
pub(crate) fn heap(name: &str, size: u64) -> io::Result<OwnedFd> {
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a heap's name has no '/'",
        ));
    }
    let path = Path::new("/dev/dma_heap").join(name);
    let heap = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut request = HeapAllocation {
        len: size,
        fd: 0,
        fd_flags: (OFlags::RDWR | OFlags::CLOEXEC).bits(),
        heap_flags: 0,
    };
    HEAP_ALLOC.run(&heap, &mut request)?;
    let fd = RawFd::try_from(request.fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes a dma-buf of an anonymous file's pages.
pub(crate) fn udmabuf(size: u64) -> io::Result<OwnedFd> {
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
    create_udmabuf(&driver, &request)
}

/// This ioctl returns its descriptor as result, which [`Call`] does not pass on.
fn create_udmabuf(driver: &OwnedFd, request: &UdmabufCreate) -> io::Result<OwnedFd> {
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
    use std::mem::{offset_of, size_of};

    use super::*;
    use crate::ctest;

    #[test]
    fn layout_and_numbers_are_those_of_the_kernel_headers() {
        ctest::check(
            &["linux/dma-heap.h", "linux/udmabuf.h"],
            &[
                (
                    "sizeof(struct dma_heap_allocation_data)",
                    size_of::<HeapAllocation>(),
                ),
                (
                    "offsetof(struct dma_heap_allocation_data, fd)",
                    offset_of!(HeapAllocation, fd),
                ),
                ("DMA_HEAP_IOCTL_ALLOC", HEAP_ALLOC.opcode() as usize),
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

    #[test]
    fn a_heap_is_never_looked_for_elsewhere() {
        for name in ["", "../null", "a/b", ".."] {
            assert_eq!(
                heap(name, 4096).unwrap_err().kind(),
                io::ErrorKind::InvalidInput,
                "{name}"
            );
        }
    }
}
