// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The one word that ends all loops.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

/// Readable, for all who wait, from the moment the daemon has to end.
pub struct Stop {
    requested: AtomicBool,
    event: EventFd,
}

impl Stop {
    /// Not requested yet.
    ///
    /// # Errors
    /// As `eventfd`.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            requested: AtomicBool::new(false),
            event: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
        })
    }

    /// Ends all loops.
    pub fn request(&self) {
        self.requested.store(true, Ordering::Release);
        // Never read, so never full.
        let _ = self.event.write(1);
    }

    /// Whether it was requested.
    #[must_use]
    pub fn requested(&self) -> bool {
        self.requested.load(Ordering::Acquire)
    }

    /// Waits until `fd` is readable (or broken). `false`: stop.
    #[must_use]
    pub fn wait_readable(&self, fd: RawFd) -> bool {
        loop {
            if self.requested() {
                return false;
            }
            if self.poll(Some(fd), None) {
                return !self.requested();
            }
        }
    }

    /// Waits, but not for longer than until the stop.
    pub fn sleep(&self, time: Duration) {
        self.poll(None, Some(time));
    }

    /// Whether `fd` is readable after the wait.
    fn poll(&self, fd: Option<RawFd>, limit: Option<Duration>) -> bool {
        let entry = |fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        // poll ignores entries with a negative descriptor.
        let mut fds = [entry(self.event.as_raw_fd()), entry(fd.unwrap_or(-1))];
        let limit = limit.map_or(-1, |time| {
            i32::try_from(time.as_millis()).unwrap_or(i32::MAX)
        });
        // SAFETY: the array has the given length and outlives the call.
        unsafe { libc::poll(fds.as_mut_ptr(), 2, limit) };
        let [_, entry] = fds;
        entry.revents != 0
    }
}
