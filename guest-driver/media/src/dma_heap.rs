// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Dma-bufs of the heaps in `/dev/dma_heap`

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
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

const _: () = assert!(size_of::<HeapAllocation>() == 24);

// SAFETY: struct dma_heap_allocation_data, plain data.
const HEAP_ALLOC: Call<HeapAllocation> =
    unsafe { Call::new(opcode::read_write::<HeapAllocation>(b'H', 0)) };

/// Has the heap `name` allocate `size` bytes, rounded up to pages. Whoever has the descriptor may
/// write to the memory if it is `writable`.
pub fn allocate(name: &str, size: u64, writable: bool) -> io::Result<OwnedFd> {
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a heap's name has no '/'",
        ));
    }
    let path = Path::new("/dev/dma_heap").join(name);
    let heap = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let access = if writable {
        OFlags::RDWR
    } else {
        OFlags::RDONLY
    };
    let mut request = HeapAllocation {
        len: size,
        fd: 0,
        fd_flags: (access | OFlags::CLOEXEC).bits(),
        heap_flags: 0,
    };
    HEAP_ALLOC.run(&heap, &mut request)?;
    let fd = RawFd::try_from(request.fd).map_err(io::Error::other)?;
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
            &["linux/dma-heap.h"],
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
            ],
        );
    }

    #[test]
    fn a_heap_is_never_looked_for_elsewhere() {
        for name in ["", "../null", "a/b", ".."] {
            assert_eq!(
                allocate(name, 4096, true).unwrap_err().kind(),
                io::ErrorKind::InvalidInput,
                "{name}"
            );
        }
    }
}
