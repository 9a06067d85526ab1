// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! When to end: a signal, or the end of the input. And waiting for that among others.

use std::io;
use std::os::fd::{BorrowedFd, IntoRawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use crate::input::Heard;
pub(crate) use crate::input::{Input, Listener};

/// The signals that ask for the end.
const SIGNALS: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];
/// How long a reader that takes none of our output keeps us from ending by a signal.
const PATIENCE_SECONDS: u32 = 3;

/// Where the handler writes; below zero: nowhere.
static BELL: AtomicI32 = AtomicI32::new(-1);
/// The signal that came; zero: none.
static CAME: AtomicI32 = AtomicI32::new(0);
/// Output is being written, which may wait for its reader.
static PRINTING: AtomicBool = AtomicBool::new(false);

/// SIGTERM, SIGINT, SIGHUP and the standard input, as something to wait for.
pub(crate) struct Stop {
    signals: io::PipeReader,
    input: Option<Listener>,
    /// One of them came.
    requested: bool,
}

impl Stop {
    /// Takes over the signals, but for those that the caller has us ignore, as `nohup` does.
    pub(crate) fn new(input: Input) -> io::Result<Self> {
        let (signals, ringer) = io::pipe()?;
        // A handler must not wait.
        rustix::io::ioctl_fionbio(&ringer, true)?;
        // Never closed: a handler may run as long as the program does.
        BELL.store(ringer.into_raw_fd(), Ordering::SeqCst);
        for signal in SIGNALS {
            if action(signal)?.sa_sigaction != libc::SIG_IGN {
                handle(signal, asked)?;
            }
        }
        handle(libc::SIGALRM, unread)?;
        let mut stop = Self {
            signals,
            input: None,
            requested: false,
        };
        stop.listen_to(input)?;
        Ok(stop)
    }

    /// Changes what of the standard input counts from now on.
    pub(crate) fn listen_to(&mut self, input: Input) -> io::Result<()> {
        self.input = Listener::start(rustix::stdio::stdin(), input)?;
        Ok(())
    }

    /// Whether the end was asked for.
    pub(crate) fn requested(&self) -> bool {
        self.requested
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
        while !self.requested {
            let mut fds: Vec<PollFd<'_>> = others
                .iter()
                .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
                .collect();
            fds.push(PollFd::new(&self.signals, PollFlags::IN));
            if let Some(input) = &self.input {
                fds.push(PollFd::new(input, PollFlags::IN));
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
            self.requested = woken.get(N).copied().unwrap_or(false);
            if woken.get(N.saturating_add(1)).copied().unwrap_or(false) {
                match self.input.as_ref().map(Listener::heard) {
                    Some(Heard::Wanted) => self.requested = true,
                    Some(Heard::Silence) | None => self.input = None,
                }
            }
            if ready.contains(&true) {
                break;
            }
        }
        Ok(ready)
    }

    /// Waits for nothing but the end. Answers false when the time was up first.
    pub(crate) fn wait_for_it(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        self.wait([], timeout)?;
        Ok(self.requested)
    }
}

/// Writes output. A signal to end, before or meanwhile, ends the program as it would without
/// a handler when the reader of the output then takes nothing for [`PATIENCE_SECONDS`].
pub(crate) fn while_printing<T>(write: impl FnOnce() -> T) -> T {
    PRINTING.store(true, Ordering::SeqCst);
    if CAME.load(Ordering::SeqCst) != 0 {
        // SAFETY: only sets a timer, whose signal is handled since a signal can come.
        unsafe { libc::alarm(PATIENCE_SECONDS) };
    }
    let result = write();
    PRINTING.store(false, Ordering::SeqCst);
    if CAME.load(Ordering::SeqCst) != 0 {
        // SAFETY: only ends the timer.
        unsafe { libc::alarm(0) };
    }
    result
}

/// What is done about a signal.
fn action(signal: libc::c_int) -> io::Result<libc::sigaction> {
    // SAFETY: a sigaction of all zeroes is a valid one.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: changes nothing, and writes to a valid place.
    match unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut action) } {
        0 => Ok(action),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has `handler`, which must only do what is allowed in one, handle a signal.
fn handle(signal: libc::c_int, handler: extern "C" fn(libc::c_int)) -> io::Result<()> {
    // SAFETY: a sigaction of all zeroes is a valid one.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: a valid action; the handlers of this file do only what is allowed in one.
    match unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A signal asks for the end.
extern "C" fn asked(signal: libc::c_int) {
    // SAFETY: where this thread's errno is, which the code that was interrupted may need.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: valid as long as the thread is.
    let before = unsafe { *errno };
    CAME.store(signal, Ordering::SeqCst);
    let byte = [0u8; 1];
    // SAFETY: writes one byte that is there. When the pipe is full, it is readable already.
    unsafe { libc::write(BELL.load(Ordering::SeqCst), byte.as_ptr().cast(), 1) };
    if PRINTING.load(Ordering::SeqCst) {
        // SAFETY: only sets a timer.
        unsafe { libc::alarm(PATIENCE_SECONDS) };
    }
    // SAFETY: as above.
    unsafe { *errno = before };
}

/// Nobody reads our output, and we were to end.
extern "C" fn unread(_: libc::c_int) {
    let signal = CAME.load(Ordering::SeqCst);
    if signal != 0 && PRINTING.load(Ordering::SeqCst) {
        // SAFETY: allowed in a handler.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        // SAFETY: allowed in a handler; ends the program.
        unsafe { libc::raise(signal) };
    }
}

/// Why a long command ended, in a word.
pub(crate) fn ended<T, E>(stop: &Stop, result: &Result<T, E>) -> &'static str {
    match result {
        Err(_) => "failed",
        Ok(_) if stop.requested() => "stopped",
        Ok(_) => "done",
    }
}

/// Whether a lost buffer is reported in JSON.
static LOST_IN_JSON: AtomicBool = AtomicBool::new(false);

/// Has the loss of a mapped buffer reported like any other failure. The kernel
/// sends SIGBUS to who touches a buffer that its exporter revoked.
pub(crate) fn tell_lost_buffers(json: bool) {
    LOST_IN_JSON.store(json, Ordering::Relaxed);
    let handler: extern "C" fn(libc::c_int) = lost;
    // SAFETY: the handler does only what is allowed in one.
    unsafe { libc::signal(libc::SIGBUS, handler as libc::sighandler_t) };
}

extern "C" fn lost(_: libc::c_int) {
    let text: &[u8] = if LOST_IN_JSON.load(Ordering::Relaxed) {
        b"{\"error\":\"the buffer was revoked while in use\",\"errno\":null,\"status\":\"REVOKED\"}\n"
    } else {
        b"bufshare: the buffer was revoked while in use\n"
    };
    let _ = rustix::io::write(rustix::stdio::stderr(), text);
    // SAFETY: ends the process without running anything else of it.
    unsafe { libc::_exit(1) };
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::sync::{Mutex, MutexGuard, PoisonError};

    use super::*;

    /// Handlers are of the whole process: one test at a time.
    fn alone() -> MutexGuard<'static, ()> {
        static SIGNALS_IN_USE: Mutex<()> = Mutex::new(());
        SIGNALS_IN_USE
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    const NOW: Option<Duration> = Some(Duration::ZERO);

    #[test]
    fn others_wake_it_and_time_ends_it() {
        let _alone = alone();
        let mut stop = Stop::new(Input::Ignored).unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        let short = Some(Duration::from_millis(10));
        assert_eq!(stop.wait([reader.as_fd()], short).unwrap(), [false]);
        drop(writer);
        assert_eq!(stop.wait([reader.as_fd()], None).unwrap(), [true]);
        assert!(!stop.requested());
        assert!(!stop.wait_for_it(short).unwrap());
    }

    #[test]
    fn a_signal_ends_it() {
        let _alone = alone();
        for signal in SIGNALS {
            // SAFETY: no handler is set. Whoever runs the tests may ignore it.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
            let mut stop = Stop::new(Input::Ignored).unwrap();
            // SAFETY: sends this thread a signal that is handled.
            unsafe { libc::raise(signal) };
            assert!(stop.wait_for_it(NOW).unwrap());
            assert!(stop.requested());
        }
        CAME.store(0, Ordering::SeqCst);
    }

    #[test]
    fn a_signal_that_is_ignored_does_not_end_it() {
        let _alone = alone();
        // SAFETY: ignores a signal that other tests do not need now.
        unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
        let mut stop = Stop::new(Input::Ignored).unwrap();
        // SAFETY: sends this thread a signal that it ignores.
        unsafe { libc::raise(libc::SIGHUP) };
        assert!(!stop.wait_for_it(NOW).unwrap());
        // SAFETY: as it was when the program started.
        unsafe { libc::signal(libc::SIGHUP, libc::SIG_DFL) };
    }
}
