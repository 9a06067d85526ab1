// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Dma-bufs of other drivers

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context as _, Result};

use super::ioctl::{self, Argument};

const PAGE: u64 = 4096;

/// `struct udmabuf_create_item`.
#[repr(C)]
struct Item {
    memfd: u32,
    reserved: u32,
    offset: u64,
    size: u64,
}

/// `struct udmabuf_create_list` of `COUNT` items.
#[repr(C)]
struct List<const COUNT: usize> {
    flags: u32,
    count: u32,
    items: [Item; COUNT],
}

// SAFETY: plain data without padding.
unsafe impl<const COUNT: usize> Argument for List<COUNT> {}

/// As many pieces as udmabuf takes by default.
const MOST: usize = 1024;
const UDMABUF_CREATE_LIST: u32 = ioctl::write::<List<0>>(b'u', 0x43);

/// Of the pages of an anonymous file.
pub(crate) fn udmabuf(size: u64, scattered: bool) -> Result<OwnedFd> {
    let driver = File::options()
        .read(true)
        .write(true)
        .open("/dev/udmabuf")
        .context("opening /dev/udmabuf")?;
    let flags = libc::MFD_ALLOW_SEALING | libc::MFD_CLOEXEC;
    // SAFETY: a terminated string.
    let memory = unsafe { libc::memfd_create(c"test".as_ptr(), flags) };
    if memory < 0 {
        return Err(io::Error::last_os_error()).context("memfd_create");
    }
    // SAFETY: the kernel has just made this descriptor for us.
    let memory = unsafe { File::from_raw_fd(memory) };
    let size = size.next_multiple_of(PAGE);
    // Its pages are made now, in the order of the file, and not by the driver in the order of the list.
    (&memory).write_all(&vec![0; usize::try_from(size)?])?;
    // SAFETY: no memory is involved.
    if unsafe { libc::fcntl(memory.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK) } != 0 {
        return Err(io::Error::last_os_error()).context("sealing");
    }
    let memfd = u32::try_from(memory.as_raw_fd())?;
    let item = |offset, size| Item {
        memfd,
        reserved: 0,
        offset,
        size,
    };
    let mut list = List::<MOST> {
        flags: 1,
        count: 1,
        items: [const {
            Item {
                memfd: 0,
                reserved: 0,
                offset: 0,
                size: 0,
            }
        }; MOST],
    };
    let pages = if scattered { size / PAGE } else { 1 };
    let piece = size / pages;
    list.count = u32::try_from(pages)?;
    // A prime step: no page follows its neighbour, neither up nor down.
    for (index, place) in (0..pages).zip(&mut list.items) {
        *place = item(index * 37 % pages * piece, piece);
    }
    let fd = ioctl::call(&driver, UDMABUF_CREATE_LIST, &mut list).context("UDMABUF_CREATE_LIST")?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A dma-buf that another process has open: the one of that place among all of
/// them, by their lowest descriptors.
pub(crate) fn adopt(pid: i32, index: usize) -> Result<OwnedFd> {
    let folder = format!("/proc/{pid}/fd");
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("reading {folder}"))? {
        let entry = entry?;
        let link = std::fs::read_link(entry.path())?;
        if link.to_string_lossy().starts_with("/dmabuf:") {
            let inode = std::fs::metadata(entry.path())?.ino();
            numbers.push((entry.file_name().to_string_lossy().parse::<i32>()?, inode));
        }
    }
    numbers.sort_unstable();
    let mut seen = HashSet::new();
    numbers.retain(|(_, inode)| seen.insert(*inode));
    let (number, _) = numbers
        .get(index)
        .with_context(|| format!("process {pid} has {} dma-bufs", numbers.len()))?;
    // SAFETY: no memory is involved.
    let process = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let process = new_descriptor(process).context("pidfd_open")?;
    // SAFETY: no memory is involved.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), *number, 0) };
    new_descriptor(fd).context("pidfd_getfd")
}

/// What a system call returned that makes a descriptor.
fn new_descriptor(result: libc::c_long) -> Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error().into());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(result)?) })
}
