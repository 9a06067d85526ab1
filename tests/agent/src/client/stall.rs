// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A call of the kernel that touches memory which is not there until we say so

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::ptr::{NonNull, null_mut};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::ioctl::{self, Argument};

const LEN: usize = 4096;

/// `struct uffdio_api`.
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_range`.
#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
struct Register {
    range: Range,
    mode: u64,
    ioctls: u64,
}

// SAFETY: plain data without padding.
unsafe impl Argument for Api {}
// SAFETY: plain data without padding.
unsafe impl Argument for Range {}
// SAFETY: plain data without padding.
unsafe impl Argument for Register {}

const UFFD_API: u64 = 0xaa;
const UFFDIO_API: u32 = ioctl::read_write::<Api>(0xaa, 0x3f);
const UFFDIO_REGISTER: u32 = ioctl::read_write::<Register>(0xaa, 0);
const UFFDIO_UNREGISTER: u32 = ioctl::read::<Range>(0xaa, 1);
const MODE_MISSING: u64 = 1;

/// A page whose first access waits for us.
pub(crate) struct Page {
    faults: OwnedFd,
    start: NonNull<u8>,
}

// SAFETY: only an address; nothing is borrowed from it.
unsafe impl Send for Page {}

impl Page {
    pub(crate) fn new() -> Result<Self> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        // SAFETY: no memory is involved.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error()).context("userfaultfd");
        }
        // SAFETY: the kernel has just made this descriptor for us.
        let faults = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd)?) };
        let mut api = Api {
            api: UFFD_API,
            features: 0,
            ioctls: 0,
        };
        ioctl::call(&faults, UFFDIO_API, &mut api).context("UFFDIO_API")?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: at an address of the kernel's choice.
        let start = unsafe { libc::mmap(null_mut(), LEN, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error()).context("mmap");
        }
        let start = NonNull::new(start.cast()).context("mmap")?;
        let page = Self { faults, start };
        let mut register = Register {
            range: page.range(),
            mode: MODE_MISSING,
            ioctls: 0,
        };
        ioctl::call(&page.faults, UFFDIO_REGISTER, &mut register).context("UFFDIO_REGISTER")?;
        Ok(page)
    }

    pub(crate) fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    fn range(&self) -> Range {
        Range {
            start: self.address(),
            len: LEN as u64,
        }
    }

    /// Wait until somebody touches it.
    fn wait_touched(&self, limit: Duration) -> Result<()> {
        let mut poll = libc::pollfd {
            fd: self.faults.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let limit = libc::c_int::try_from(limit.as_millis())?;
        // SAFETY: one entry, which lives during the call.
        match unsafe { libc::poll(&raw mut poll, 1, limit) } {
            1 if poll.revents == libc::POLLIN => Ok(()),
            0 => bail!("the call has not touched the memory in time"),
            _ => Err(io::Error::last_os_error()).context("waiting for the call to touch it"),
        }
    }

    /// From now on it is a page of zeros like any other.
    fn release(&self) -> Result<()> {
        ioctl::call(&self.faults, UFFDIO_UNREGISTER, &mut self.range())
            .context("UFFDIO_UNREGISTER")?;
        Ok(())
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: mapped by us; nothing borrows it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), LEN) };
    }
}

/// A call that waits for its page, on a thread of its own.
pub(crate) struct Stalled<T> {
    page: Page,
    thread: JoinHandle<T>,
}

impl<T: Send + 'static> Stalled<T> {
    /// Begins the call and waits until it has touched the page.
    pub(crate) fn begin(
        page: Page,
        limit: Duration,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Self> {
        let thread = thread::spawn(call);
        page.wait_touched(limit)?;
        Ok(Self { page, thread })
    }

    /// Lets it go on and end.
    pub(crate) fn end(self) -> Result<T> {
        self.page.release()?;
        self.thread.join().ok().context("its thread has ended")
    }
}
