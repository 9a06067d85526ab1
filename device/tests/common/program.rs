// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A program that a test has started: it ends with the test, and nothing waits for it
//! without a limit.

use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Output};

use super::{soon, until};

/// Is killed when this is dropped, or when the thread that started it ends.
pub struct Program(Child);

impl Program {
    pub fn start(command: &mut Command) -> Self {
        let end_with_us = || {
            // SAFETY: takes no pointer.
            match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        };
        // SAFETY: between fork and exec nothing but prctl is called.
        unsafe { command.pre_exec(end_with_us) };
        Self(command.spawn().unwrap())
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }

    pub fn signal(&self, signal: libc::c_int) {
        // SAFETY: our own child, not reaped yet.
        let rc = unsafe { libc::kill(self.id() as i32, signal) };
        assert_eq!(rc, 0);
    }

    /// How it has ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().unwrap()
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        until("the end of the program", || {
            status = self.ended();
            status.is_some()
        });
        status.unwrap()
    }

    /// Waits for its end, and takes what it wrote into pipes: less than these hold.
    pub fn output(mut self) -> Output {
        let status = self.wait();
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        if let Some(mut pipe) = self.0.stdout.take() {
            pipe.read_to_end(&mut stdout).unwrap();
        }
        if let Some(mut pipe) = self.0.stderr.take() {
            pipe.read_to_end(&mut stderr).unwrap();
        }
        Output {
            status,
            stdout,
            stderr,
        }
    }
}

impl Program {
    /// It may have ended.
    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a program says to its service manager next.
pub fn notified(manager: &UnixDatagram) -> String {
    let limit = soon();
    manager.set_read_timeout(Some(limit)).unwrap();
    let mut buf = [0; 256];
    loop {
        match manager.recv(&mut buf) {
            Ok(n) => return String::from_utf8(buf[..n].to_vec()).unwrap(),
            // With a time limit, also by a signal that stops and continues this process.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => panic!("waited {limit:?} for the program to say something: {error}"),
        }
    }
}
