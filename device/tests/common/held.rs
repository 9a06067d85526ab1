// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A stop that is held up by an importer that is paused.

use std::os::fd::AsRawFd;

use super::daemon::{Daemon, Setup, Start};
use super::pair::{boot, share};
use super::until;
use super::vm::Vm;

/// B is paused with a buffer of A mapped, and A's stop is held up for it.
pub struct Held {
    pub daemon: Daemon,
    pub b: Vm,
    pub bases: Vec<u16>,
    /// A's connection.
    pub connection: std::os::fd::RawFd,
    /// Gives A, and how many of B's windows showed its RAM at the answer.
    pub stop: std::thread::JoinHandle<(Vm, usize)>,
}

/// B is paused with a buffer of A mapped, for which a stop of A will wait.
pub fn paused(start: Start) -> (Daemon, Vm, Vm, Vec<u16>) {
    let (daemon, mut a, mut b) = boot(start(&Setup::that_waits("unlimited")));
    share(&mut a, &mut b);
    let bases = b.front.stop();
    (daemon, a, b, bases)
}

pub fn held() -> Held {
    held_with(Daemon::start)
}

pub fn held_with(start: Start) -> Held {
    let (daemon, mut a, b, bases) = paused(start);
    let shm = b.front.shm.clone();
    let connection = a.front.raw().as_raw_fd();
    let stop = std::thread::spawn(move || {
        a.front.stop();
        let windows = shm.windows_of(&a.front.ram_file);
        (a, windows)
    });
    until("the stop", || daemon.broker("a")["up"] == false);
    assert!(!stop.is_finished());
    Held {
        daemon,
        b,
        bases,
        connection,
        stop,
    }
}
