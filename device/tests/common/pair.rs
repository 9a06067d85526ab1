// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A daemon with two virtual machines, and what one of them shares with the other.

use bufshare_protocol::request::Request;
use bufshare_protocol::types::BufferId;

use super::daemon::{Daemon, Setup, Start};
use super::frontend::PAGE;
use super::vm::{DATA, Ticket, Vm};

pub fn two() -> (Daemon, Vm, Vm) {
    two_with(Daemon::start)
}

pub fn two_with(start: Start) -> (Daemon, Vm, Vm) {
    boot(start(&Setup::default()))
}

pub fn boot(daemon: Daemon) -> (Daemon, Vm, Vm) {
    let a = Vm::boot(&daemon.socket("a"));
    let b = Vm::boot(&daemon.socket("b"));
    (daemon, a, b)
}

/// `from` exports a page and `to` maps it. Returns the handle.
pub fn share(from: &mut Vm, to: &mut Vm) -> u64 {
    let id = from.export(DATA, PAGE);
    let handle = to.attach(id);
    to.map(handle, PAGE);
    handle
}

/// B's MAP of a page of A, which B's VMM does not answer. Returns the buffer.
pub fn map_that_waits(a: &mut Vm, b: &mut Vm, at: u64) -> BufferId {
    let id = a.export(at, PAGE);
    let handle = b.attach(id);
    b.front.shm.hold(true);
    b.submit(&Request::Map {
        handle,
        offset: 0,
        len: PAGE,
    });
    b.front.shm.until_waiting();
    id
}

/// B's MAP of a page of A, whose barrier B's VMM does not look at.
pub fn map_without_its_barrier(a: &mut Vm, b: &mut Vm) -> (BufferId, Ticket) {
    let id = a.export(DATA, PAGE);
    let handle = b.attach(id);
    b.front.shm.hold_after_map();
    let map = Request::Map {
        handle,
        offset: 0,
        len: PAGE,
    };
    let ticket = b.submit(&map);
    b.front.shm.until_waiting();
    assert!(!b.is_done(ticket), "answered before the barrier");
    (id, ticket)
}
