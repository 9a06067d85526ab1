// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reads and signals eventfds that a front end holds too, without ever waiting.
//!
//! An eventfd whose count is at its maximum holds up whoever writes, an empty one
//! whoever reads, unless O_NONBLOCK is set; and that is a flag of the open file
//! description, which any holder can take away again. A read can be asked not
//! to wait. A write cannot. But the kernel signals an eventfd when an asynchronous read
//! ends, and that neither waits nor fails, whatever the count. So for each signal
//! nothing is read from /dev/null.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::OnceLock;

/// Completions that the kernel has room for before they have to be thrown away. More
/// than there are threads that signal.
const EVENTS: usize = 1024;

/// How often room is made for one signal. Others may take it first, but each of them
/// once.
const TRIES: usize = 64;

/// `struct iocb`.
#[repr(C)]
#[derive(Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    result_fd: u32,
}

const _: () = assert!(size_of::<Iocb>() == 64);

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct IoEvent([u64; 4]);

/// `IOCB_CMD_PREAD`.
const PREAD: u16 = 0;

/// `IOCB_FLAG_RESFD`: `result_fd` is an eventfd to be signalled.
const SIGNAL_RESULT: u32 = 1;

/// The process's asynchronous reads of nothing.
struct Reads {
    context: libc::c_ulong,
    null: File,
}

impl Reads {
    fn new() -> io::Result<Self> {
        let null = File::open("/dev/null")?;
        let mut context: libc::c_ulong = 0;
        // SAFETY: the context is writable and 0, as the call demands.
        let rc = unsafe { libc::syscall(libc::SYS_io_setup, EVENTS, &raw mut context) };
        if rc < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { context, null })
    }

    /// Reads nothing, and so signals `eventfd`.
    fn signal(&self, eventfd: RawFd) -> io::Result<()> {
        let number = |fd| u32::try_from(fd).map_err(io::Error::other);
        let mut read = Iocb {
            opcode: PREAD,
            fd: number(self.null.as_raw_fd())?,
            flags: SIGNAL_RESULT,
            result_fd: number(eventfd)?,
            ..Iocb::default()
        };
        for _ in 0..TRIES {
            let mut list = [&raw mut read];
            // SAFETY: the list has one entry, which outlives the call; the read has no
            // buffer, and is over when the call returns.
            let rc =
                unsafe { libc::syscall(libc::SYS_io_submit, self.context, 1, list.as_mut_ptr()) };
            if rc == 1 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::WouldBlock {
                return Err(error);
            }
            self.throw_away()?;
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Throws completions away: they say nothing.
    fn throw_away(&self) -> io::Result<()> {
        let mut events = [IoEvent::default(); 128];
        let mut now = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: at most as many events are written as there is room for, and the
        // timeout of 0 outlives the call.
        let rc = unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.context,
                0,
                events.len(),
                events.as_mut_ptr(),
                &raw mut now,
            )
        };
        if rc < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

/// The process's, made at the first call. A failure is final: else the program could
/// begin to wait later.
fn reads() -> io::Result<&'static Reads> {
    static READS: OnceLock<Result<Reads, Option<i32>>> = OnceLock::new();
    let reads = READS.get_or_init(|| Reads::new().map_err(|error| error.raw_os_error()));
    reads.as_ref().map_err(|code| {
        code.map_or_else(
            || io::ErrorKind::Unsupported.into(),
            io::Error::from_raw_os_error,
        )
    })
}

/// Makes ready what [`signal`] needs. There is no other way to signal that cannot be
/// made to wait.
///
/// # Errors
/// As `io_setup`.
pub fn prepare() -> io::Result<()> {
    reads().map(drop)
}

/// Signals an eventfd.
///
/// # Errors
/// As `io_setup` and `io_submit`.
pub fn signal(eventfd: RawFd) -> io::Result<()> {
    reads()?.signal(eventfd)
}

/// Reads an eventfd, so that it is not signalled any more.
///
/// # Errors
/// As `preadv2`: `WouldBlock` if it was not signalled.
pub fn read(eventfd: RawFd) -> io::Result<()> {
    let mut count = [0_u8; 8];
    let buffer = libc::iovec {
        iov_base: count.as_mut_ptr().cast(),
        iov_len: count.len(),
    };
    // SAFETY: the one buffer is writable for its length. At -1 the offset is the
    // file's, and an eventfd has none.
    let n = unsafe { libc::preadv2(eventfd, &raw const buffer, 1, -1, libc::RWF_NOWAIT) };
    if n < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::locks::tests::ends_elsewhere;
    use vmm_sys_util::eventfd::EventFd;

    #[test]
    fn signal_adds_one_and_never_runs_out_of_room() {
        let eventfd = EventFd::new(libc::EFD_NONBLOCK).unwrap();

        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..EVENTS {
                        signal(eventfd.as_raw_fd()).unwrap();
                    }
                });
            }
        });

        assert_eq!(eventfd.read().unwrap(), 4 * 1024);
    }

    #[test]
    fn signal_of_a_full_eventfd_that_blocks_does_not_wait() {
        let eventfd = EventFd::new(0).unwrap();
        eventfd.write(u64::MAX - 1).unwrap();
        let full = eventfd.try_clone().unwrap();

        assert!(ends_elsewhere(move || {
            signal(full.as_raw_fd()).unwrap();
            signal(full.as_raw_fd()).unwrap();
        }));

        assert_eq!(eventfd.read().unwrap(), u64::MAX);
    }

    #[test]
    fn read_of_an_empty_eventfd_that_blocks_does_not_wait() {
        let eventfd = EventFd::new(0).unwrap();
        let empty = eventfd.try_clone().unwrap();

        assert!(ends_elsewhere(move || {
            let error = read(empty.as_raw_fd()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        }));
        eventfd.write(3).unwrap();
        read(eventfd.as_raw_fd()).unwrap();
        assert!(read(eventfd.as_raw_fd()).is_err());
    }

    #[test]
    fn signal_of_something_else_is_an_error() {
        let (_reader, writer) = io::pipe().unwrap();

        assert!(signal(writer.as_raw_fd()).is_err());
    }
}
