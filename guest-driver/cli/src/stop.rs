// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! When to end: a signal, or the end of the input. And waiting for that among others.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

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

/// SIGTERM, SIGINT, SIGHUP and the standard input, as something to wait for.
pub(crate) struct Stop {
    signals: OwnedFd,
    input: Input,
    /// What the signal was, once seen.
    told: bool,
}

impl Stop {
    /// Takes over the signals. Call it before any thread is started, so that
    /// those inherit it.
    pub(crate) fn new(input: Input) -> io::Result<Self> {
        let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initialises what it points to.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        // SAFETY: initialised above.
        let mut set = unsafe { set.assume_init() };
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            // SAFETY: a valid set and a valid signal.
            unsafe { libc::sigaddset(&raw mut set, signal) };
        }
        // SAFETY: blocks signals for this thread; the old mask is not asked for.
        let failed =
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if failed != 0 {
            return Err(io::Error::from_raw_os_error(failed));
        }
        // SAFETY: a valid set; -1 asks for a new descriptor.
        let fd =
            unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            // SAFETY: the kernel has just made this descriptor for us.
            signals: unsafe { OwnedFd::from_raw_fd(fd) },
            input,
            told: false,
        })
    }

    /// Changes what of the standard input counts from now on.
    pub(crate) fn listen_to(&mut self, input: Input) {
        self.input = input;
    }

    /// Whether the end was asked for.
    pub(crate) fn told(&self) -> bool {
        self.told
    }

    /// Waits until one of `others` is readable, the end is asked for or the time
    /// is up. Answers which of `others` are ready.
    pub(crate) fn wait<const N: usize>(
        &mut self,
        others: [BorrowedFd<'_>; N],
        timeout: Option<Duration>,
    ) -> io::Result<[bool; N]> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut ready = [false; N];
        while !self.told {
            let stdin = rustix::stdio::stdin();
            let mut fds: Vec<PollFd<'_>> = others
                .iter()
                .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
                .collect();
            fds.push(PollFd::from_borrowed_fd(
                self.signals.as_fd(),
                PollFlags::IN,
            ));
            if self.input != Input::Ignored {
                fds.push(PollFd::from_borrowed_fd(stdin, PollFlags::IN));
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            match rustix::event::poll(&mut fds, left.as_ref()) {
                Ok(0) => return Ok(ready),
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            let woken: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(fds);
            for (to, from) in ready.iter_mut().zip(&woken) {
                *to = *from;
            }
            let signalled = woken.get(N).copied().unwrap_or(false);
            let input = woken.get(N.saturating_add(1)).copied().unwrap_or(false);
            self.told = signalled || (input && self.input_says_so());
            if ready.contains(&true) {
                break;
            }
        }
        Ok(ready)
    }

    /// Waits for nothing but the end. Answers false when the time was up first.
    pub(crate) fn wait_for_it(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        self.wait([], timeout)?;
        Ok(self.told)
    }

    fn input_says_so(&self) -> bool {
        let mut bytes = [0u8; 256];
        match rustix::io::read(rustix::stdio::stdin(), &mut bytes) {
            Ok(0) => true,
            Ok(count) => {
                self.input == Input::Line && bytes.get(..count).unwrap_or_default().contains(&b'\n')
            }
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => false,
            Err(_) => true,
        }
    }
}

/// Why a long command ended, in a word.
pub(crate) fn ended<T, E>(stop: &Stop, result: &Result<T, E>) -> &'static str {
    match result {
        Err(_) => "failed",
        Ok(_) if stop.told() => "told",
        Ok(_) => "done",
    }
}

/// Whether a lost buffer is told in JSON.
static LOST_IN_JSON: AtomicBool = AtomicBool::new(false);

/// Has the loss of a mapped buffer told like any other failure. The kernel sends
/// SIGBUS to who touches a buffer that its owner took back.
pub(crate) fn tell_lost_buffers(json: bool) {
    LOST_IN_JSON.store(json, Ordering::Relaxed);
    let handler: extern "C" fn(libc::c_int) = lost;
    // SAFETY: the handler does only what is allowed in one.
    unsafe { libc::signal(libc::SIGBUS, handler as libc::sighandler_t) };
}

extern "C" fn lost(_: libc::c_int) {
    let text: &[u8] = if LOST_IN_JSON.load(Ordering::Relaxed) {
        b"{\"error\":\"the buffer was taken back while in use\",\"errno\":null,\"status\":\"REVOKED\"}\n"
    } else {
        b"bufshare: the buffer was taken back while in use\n"
    };
    let _ = rustix::io::write(rustix::stdio::stderr(), text);
    // SAFETY: ends the process without running anything else of it.
    unsafe { libc::_exit(1) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_wake_it_and_time_ends_it() {
        let mut stop = Stop::new(Input::Ignored).unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        let short = Some(Duration::from_millis(10));
        assert_eq!(stop.wait([reader.as_fd()], short).unwrap(), [false]);
        drop(writer);
        assert_eq!(stop.wait([reader.as_fd()], None).unwrap(), [true]);
        assert!(!stop.told());
        assert!(!stop.wait_for_it(short).unwrap());
    }

    #[test]
    fn a_signal_ends_it() {
        let mut stop = Stop::new(Input::Ignored).unwrap();
        // SAFETY: sends this thread a signal that it has blocked.
        unsafe { libc::raise(libc::SIGTERM) };
        assert!(stop.wait_for_it(Some(Duration::from_secs(10))).unwrap());
        assert!(stop.told());
        // Take it back: a pending signal must not outlive the test.
        let mut info = [0u8; 128];
        rustix::io::read(&stop.signals, &mut info).unwrap();
    }
}
