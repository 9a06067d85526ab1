// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! SIGTERM and SIGINT as a descriptor.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::stop::Stop;

/// The signals that end the daemon.
const SIGNALS: [(libc::c_int, &str); 2] = [(libc::SIGTERM, "SIGTERM"), (libc::SIGINT, "SIGINT")];

/// The signals, blocked for this thread and all that it starts.
#[derive(Debug)]
pub struct Signals(OwnedFd);

impl Signals {
    /// To be called before any thread is started.
    ///
    /// # Errors
    /// As `sigprocmask` and `signalfd`.
    pub fn block() -> io::Result<Self> {
        // SAFETY: all zeroes is a valid signal set; it is plain data.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: the set is writable.
        unsafe { libc::sigemptyset(&raw mut set) };
        for (signal, _) in SIGNALS {
            // SAFETY: the set is initialised and the signal exists.
            unsafe { libc::sigaddset(&raw mut set, signal) };
        }
        // SAFETY: the set is initialised; the old one is not wanted.
        let rc =
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if rc != 0 {
            return Err(io::Error::from_raw_os_error(rc));
        }
        // SAFETY: the set is initialised.
        let fd =
            unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made for us.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Waits for one of them and tells its name; none if the stop was requested
    /// by something else.
    ///
    /// # Errors
    /// As `read`.
    pub fn wait(&self, stop: &Stop) -> io::Result<Option<&'static str>> {
        while stop.wait_readable(self.0.as_raw_fd()) {
            if let Some(name) = self.next()? {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    /// The name of one that has come and was not told yet. Does not wait.
    ///
    /// # Errors
    /// As `read`.
    pub fn next(&self) -> io::Result<Option<&'static str>> {
        // SAFETY: all zeroes is a valid record; it is plain data.
        let mut info: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: the kernel writes at most `size` bytes into the record.
        let n = unsafe { libc::read(self.0.as_raw_fd(), (&raw mut info).cast(), size) };
        if n < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => Ok(None),
                _ => Err(error),
            };
        }
        let name = SIGNALS
            .iter()
            .find(|(signal, _)| u32::try_from(*signal) == Ok(info.ssi_signo));
        Ok(name.map(|(_, name)| *name))
    }
}
