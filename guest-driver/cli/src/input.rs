// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The standard input, read by a thread of its own.
//!
//! A read may wait for ever although `poll` has said that there is something: another
//! program with the same input may have taken it. Nobody waits for this thread.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

/// What of the standard input ends the wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// Nothing.
    Ignored,
    /// Its end.
    End,
    /// Its end, or a line.
    Line,
}

/// A thread that reads the input until what ends the wait is there.
#[derive(Debug)]
pub(crate) struct Listener {
    bell: io::PipeReader,
}

/// What a [`Listener`] has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// What was waited for.
    Wanted,
    /// Nothing will ever come.
    Silence,
}

impl Listener {
    /// Starts it; none if nothing of the input counts.
    pub(crate) fn start(
        source: impl AsFd + Send + 'static,
        wanted: Input,
    ) -> io::Result<Option<Self>> {
        if wanted == Input::Ignored {
            return Ok(None);
        }
        let (bell, ringer) = io::pipe()?;
        let work = move || {
            block_sigttin();
            if read_until(source.as_fd(), wanted) == Heard::Wanted {
                let _ = rustix::io::write(&ringer, &[0]);
            }
            // Its end is the news that nothing will come.
            drop(ringer);
        };
        std::thread::Builder::new()
            .name("stdin".to_owned())
            .spawn(work)?;
        Ok(Some(Self { bell }))
    }

    /// What there is. Call it when the descriptor is readable.
    pub(crate) fn heard(&self) -> Heard {
        let mut byte = [0u8; 1];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.bell, &mut byte)) {
            Ok(1) => Heard::Wanted,
            _ => Heard::Silence,
        }
    }
}

impl AsFd for Listener {
    /// Readable when there is something to say.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

/// Has reads of a terminal fail while another job has it, instead of stopping us.
fn block_sigttin() {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: initialises the set.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: initialised above; a valid signal.
    unsafe { libc::sigaddset(set.as_mut_ptr(), libc::SIGTTIN) };
    // SAFETY: the mask is this thread's alone, and the old one is not asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) };
}

fn read_until(source: BorrowedFd<'_>, wanted: Input) -> Heard {
    let mut bytes = [0u8; 256];
    loop {
        match rustix::io::read(source, &mut bytes) {
            Ok(0) => return Heard::Wanted,
            Ok(count) => {
                let read = bytes.get(..count).unwrap_or_default();
                if wanted == Input::Line && read.contains(&b'\n') {
                    return Heard::Wanted;
                }
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let mut fds = [PollFd::from_borrowed_fd(source, PollFlags::IN)];
                if !matches!(
                    rustix::event::poll(&mut fds, None),
                    Ok(_) | Err(Errno::INTR)
                ) {
                    return Heard::Wanted;
                }
            }
            // Another job has the terminal: what is typed is not for us.
            Err(Errno::IO) if rustix::termios::isatty(source) => return Heard::Silence,
            Err(_) => return Heard::Wanted,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::time::Duration;

    use rustix::event::Timespec;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    fn wait(listener: &Listener, limit: Duration) -> Option<Heard> {
        let mut fds = [PollFd::new(listener, PollFlags::IN)];
        let limit = Timespec::try_from(limit).unwrap();
        match rustix::event::poll(&mut fds, Some(&limit)).unwrap() {
            0 => None,
            _ => Some(listener.heard()),
        }
    }

    #[test]
    fn the_end_is_heard_and_a_line_where_one_is_wanted() {
        let (source, mut to) = io::pipe().unwrap();
        let line = Listener::start(source, Input::Line).unwrap().unwrap();
        to.write_all(b"no line").unwrap();
        to.write_all(b" yet\n").unwrap();
        assert_eq!(wait(&line, LIMIT), Some(Heard::Wanted));

        let (source, mut to) = io::pipe().unwrap();
        let end = Listener::start(source, Input::End).unwrap().unwrap();
        to.write_all(b"a line\n").unwrap();
        drop(to);
        assert_eq!(wait(&end, LIMIT), Some(Heard::Wanted));
        let (source, _to) = io::pipe().unwrap();
        assert!(Listener::start(source, Input::Ignored).unwrap().is_none());
    }

    #[test]
    fn an_input_that_does_not_wait_is_waited_for() {
        let (source, to) = io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&source, true).unwrap();
        let end = Listener::start(source, Input::End).unwrap().unwrap();
        assert_eq!(wait(&end, Duration::ZERO), None);
        drop(to);
        assert_eq!(wait(&end, LIMIT), Some(Heard::Wanted));
    }
}
