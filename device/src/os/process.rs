// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The process that connected a front end, and whether it has ended.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use super::sockopt::{option, option_into};

/// `SO_PEERPIDFD` of Linux 6.5, which libc does not have.
const SO_PEERPIDFD: libc::c_int = 77;

/// Whoever connected a socket. That is the VMM, unless something else connected the
/// socket and handed it over; then its end says nothing about the VMM.
#[derive(Debug, Default)]
pub struct Process {
    pid: Option<u32>,
    /// Stands for this process alone, also when its number belongs to another one.
    pidfd: Option<OwnedFd>,
}

impl Process {
    /// Whoever connected the other end, as the kernel remembers it.
    ///
    /// # Errors
    /// As `getsockopt`.
    pub fn of(stream: &UnixStream) -> io::Result<Self> {
        let mut peer = libc::ucred {
            pid: 0,
            uid: 0,
            gid: 0,
        };
        // SAFETY: three integers may have any bits.
        unsafe { option_into(stream.as_raw_fd(), libc::SO_PEERCRED, &mut peer) }?;
        // 0 if it is in a PID namespace that is not below ours.
        let pid = u32::try_from(peer.pid).ok().filter(|pid| *pid > 0);
        let pidfd = pidfd_of(option(stream.as_raw_fd(), SO_PEERPIDFD), pid).filter(|fd| *fd >= 0);
        // SAFETY: just made by the kernel for us.
        let pidfd = pidfd.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
        // One that is gone already has handed the connection over.
        let pidfd = pidfd.filter(|fd| !has_ended(fd));
        Ok(Self { pid, pidfd })
    }

    /// Its number, if it has one here.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Whether its end will be seen: it ran when the front end connected.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.pidfd.is_some()
    }

    /// Whether it ran then, and has ended. Nothing of it is left, no mapping either.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.pidfd.as_ref().is_some_and(has_ended)
    }
}

/// The process that the kernel `remembers`; a kernel before 6.5 has no such option, and
/// then it is whoever has the number now. If the kernel knows of the option and fails,
/// the process is gone, and its number may be that of another one.
fn pidfd_of(remembers: io::Result<libc::c_int>, pid: Option<u32>) -> Option<libc::c_int> {
    match remembers {
        Ok(fd) => Some(fd),
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => pidfd_open(pid).ok(),
        Err(_) => None,
    }
}

fn pidfd_open(pid: Option<u32>) -> io::Result<libc::c_int> {
    let pid = pid.ok_or(io::ErrorKind::NotFound)?;
    // SAFETY: takes no pointer.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    libc::c_int::try_from(fd).map_err(io::Error::other)
}

/// A pidfd is readable when all threads of its process have ended.
fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut entry = libc::pollfd {
        fd: pidfd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one entry, which outlives the call.
    let n = unsafe { libc::poll(&raw mut entry, 1, 0) };
    n == 1 && entry.revents & libc::POLLIN != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_of_a_connection_is_that_which_made_it() {
        let (ours, _theirs) = UnixStream::pair().unwrap();

        let process = Process::of(&ours).unwrap();

        assert_eq!(process.pid(), Some(std::process::id()));
        assert!(process.is_known());
        assert!(!process.has_ended());
    }

    #[test]
    fn end_of_a_process_is_seen() {
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let fd = pidfd_open(Some(child.id())).unwrap();
        let process = Process {
            pid: Some(child.id()),
            // SAFETY: just made for us.
            pidfd: Some(unsafe { OwnedFd::from_raw_fd(fd) }),
        };
        assert!(!process.has_ended());

        drop(child.stdin.take());
        child.wait().unwrap();

        assert!(process.has_ended());
    }

    #[test]
    fn number_of_a_process_stands_for_it_only_where_the_kernel_knows_nothing_better() {
        let own = Some(std::process::id());
        let failed = |errno| pidfd_of(Err(io::Error::from_raw_os_error(errno)), own);

        let opened = failed(libc::ENOPROTOOPT).unwrap();

        // SAFETY: just made for us.
        drop(unsafe { OwnedFd::from_raw_fd(opened) });
        assert_eq!(failed(libc::ESRCH), None);
        assert_eq!(failed(libc::EINVAL), None);
    }

    #[test]
    fn process_that_nobody_knows_is_not_said_to_have_ended() {
        let process = Process::default();

        assert!(!process.is_known());
        assert!(!process.has_ended());
    }
}
