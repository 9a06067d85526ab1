// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory of which the host does not report who has it mapped.

use std::os::fd::AsRawFd;
use std::path::Path;

use super::daemon::Daemon;
use super::frontend::Options;
use super::other::Other;
use super::pair::share;
use super::until;
use super::vm::Vm;

/// Nobody can open the RAM file of `vm` a second time, so it cannot be marked.
pub fn forbid_to_open_ram(vm: &Vm) {
    // Whoever opens the file now has to wait, or to do without. The attempt ends the
    // lease, of which its owner hears by a signal.
    // SAFETY: no handler is set.
    unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
    let ram = vm.front.ram_file.as_raw_fd();
    // SAFETY: takes no pointer.
    let leased = unsafe { libc::fcntl(ram, libc::F_SETLEASE, libc::F_RDLCK) };
    assert_eq!(leased, 0, "{}", std::io::Error::last_os_error());
}

pub fn boot_by(other: &Other) -> Vm {
    let options = Options {
        socket: Some(other.socket.clone()),
        ..Options::default()
    };
    Vm::boot_with(Path::new("unused"), &options)
}

/// B, whose VMM is another process, has a page of A mapped for which the host does
/// not report who holds it, and its session has ended.
pub fn unmarked(daemon: &Daemon) -> (Vm, Vm, Other) {
    let mut a = Vm::boot(&daemon.socket("a"));
    let other = Other::connect(&daemon.socket("b"));
    let mut b = boot_by(&other);
    forbid_to_open_ram(&a);
    share(&mut a, &mut b);
    // SAFETY: an open socket.
    unsafe { libc::shutdown(other.socket.as_raw_fd(), libc::SHUT_RDWR) };
    until("the state of b's session", || {
        daemon.report()["holds"][0]["state"] == "ended"
    });
    (a, b, other)
}
