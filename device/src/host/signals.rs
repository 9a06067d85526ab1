// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The signals that end the program, as a descriptor.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::os::stop::Stop;

/// The signals that end the daemon: all by which people and service managers end
/// programs. By any other nothing would be revoked.
const SIGNALS: [(libc::c_int, &str); 4] = [
    (libc::SIGTERM, "SIGTERM"),
    (libc::SIGINT, "SIGINT"),
    (libc::SIGHUP, "SIGHUP"),
    (libc::SIGQUIT, "SIGQUIT"),
];

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
            if signal == libc::SIGHUP && is_ignored(signal) {
                continue;
            }
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

    /// Waits for one of them and returns its name; none if the stop was requested
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

    /// The name of one that has come and was not returned yet. Does not wait.
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

/// Whether whoever started the program has it ignore a signal, as nohup does. A blocked
/// one would come all the same.
fn is_ignored(signal: libc::c_int) -> bool {
    // SAFETY: all zeroes is a valid action; it is plain data.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: no new action; the old one is writable.
    let rc = unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut action) };
    rc == 0 && action.sa_sigaction == libc::SIG_IGN
}
