// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Buffers that one virtual machine exports and another maps.

mod common;

use bufshare_protocol::request::Request;
use bufshare_protocol::status::Status;
use bufshare_protocol::types::Extent;
use common::daemon::{Daemon, Setup};
use common::frontend::{Asked, PAGE, SHM_GPA};
use common::pair::{map_without_its_barrier, two, two_with};
use common::until;
use common::vm::{DATA, Vm};

#[test]
fn mapped_buffer_is_the_same_memory_on_both_sides() {
    let (daemon, mut a, mut b) = two();
    let pages = [7, 3, 5].map(|n| Extent {
        addr: DATA + n * PAGE,
        len: PAGE,
    });
    for (n, extent) in pages.iter().enumerate() {
        a.front
            .ram
            .write(extent.addr, format!("page {n}").as_bytes());
    }
    let export = Vm::export_of(pages.to_vec(), vec![]);
    let Ok(bufshare_protocol::response::Response::Exported { id, .. }) = a.request(&export) else {
        panic!("not exported");
    };
    let handle = b.attach(id);

    let (at, cached) = b.map(handle, 3 * PAGE);

    assert!(!cached);
    for n in 0..3 {
        let seen = b.front.shm.region.read(at + n * PAGE, 6);
        assert_eq!(seen, format!("page {n}").as_bytes());
    }
    b.front.shm.region.write(at + PAGE + 100, b"written by b");
    assert_eq!(a.front.ram.read(pages[1].addr + 100, 12), b"written by b");
    assert_eq!(b.front.shm.windows(), 3);
    drop((a, b));
    daemon.finish();
}

#[test]
fn second_map_of_an_idle_window_does_not_ask_the_vmm() {
    let (daemon, mut a, mut b) = two();
    let id = a.export(DATA, 4 * PAGE);
    let handle = b.attach(id);
    let first = b.map(handle, 4 * PAGE);
    b.unmap(handle);
    b.front.shm.forget_asked();

    let second = b.map(handle, 4 * PAGE);

    assert_eq!(second, (first.0, true));
    assert_eq!(b.front.shm.asked(), []);
    drop((a, b));
    daemon.finish();
}

#[test]
fn window_cannot_be_exported_again() {
    let (daemon, mut a, mut b) = two();
    let id = a.export(DATA, PAGE);
    let handle = b.attach(id);
    let (at, _) = b.map(handle, PAGE);
    let window = Extent {
        addr: SHM_GPA + at,
        len: PAGE,
    };

    let reply = b.request(&Vm::export_of(vec![window], vec![]));

    assert_eq!(reply, Err(Status::NotRam));
    assert_eq!(daemon.session("b")["window_regions"], 1);
    drop((a, b));
    daemon.finish();
}

#[test]
fn map_is_answered_when_its_barrier_is() {
    let (daemon, mut a, mut b) = two();
    let (_, ticket) = map_without_its_barrier(&mut a, &mut b);
    assert_eq!(b.front.shm.windows(), 1);
    let other = a.export(DATA + PAGE, PAGE);
    assert!(!b.is_done(ticket), "answered before the barrier");

    b.front.shm.hold(false);

    b.finish(ticket).unwrap();
    let handle = b.attach(other);
    b.map(handle, PAGE);
    drop((a, b));
    daemon.finish();
}

#[test]
fn maps_in_a_row_have_one_barrier_behind_the_last() {
    let (daemon, mut a, mut b) = two();
    b.front.shm.hold(true);
    let tickets: Vec<_> = (0..3)
        .map(|page| {
            let id = a.export(DATA + page * PAGE, PAGE);
            let handle = b.attach(id);
            b.submit(&Request::Map {
                handle,
                offset: 0,
                len: PAGE,
            })
        })
        .collect();
    until("the requests", || daemon.session("b")["jobs"] == 3);
    b.front.shm.hold(false);
    for ticket in tickets {
        b.finish(ticket).unwrap();
    }

    let asked = b.front.shm.asked();
    let is_map = |asked: &Asked| matches!(asked, Asked::Map { .. });
    assert_eq!(asked.iter().filter(|one| is_map(one)).count(), 3);
    assert_eq!(asked[3..], [Asked::Barrier]);
    assert_eq!(daemon.broker("b")["barriers"], 1);
    drop((a, b));
    daemon.finish();
}

#[test]
fn refused_map_is_a_status_and_its_range_waits_for_a_barrier() {
    let (daemon, mut a, mut b) = two();
    let id = a.export(DATA, PAGE);
    let handle = b.attach(id);
    b.front.shm.refuse(1);

    let refused = b.try_map(handle, PAGE);
    let (at, _) = b.map(handle, PAGE);

    assert_eq!(refused, Err(Status::MapFailed));
    let asked = b.front.shm.asked();
    let refusal = asked
        .iter()
        .position(|a| matches!(a, Asked::RefusedMap { .. }));
    let retry = asked.iter().position(|a| matches!(a, Asked::Map { .. }));
    // A refusal is itself the acknowledgement of all before it, so the range may
    // serve again at once; but nothing is mapped twice.
    assert!(refusal.unwrap() < retry.unwrap());
    assert_eq!(
        asked
            .iter()
            .filter(|a| matches!(a, Asked::Unmap { .. }))
            .count(),
        0
    );
    assert!(at < b.front.shm.region.len);
    assert_eq!(b.front.shm.windows(), 1);
    drop((a, b));
    daemon.finish();
}

#[test]
fn refused_piece_has_the_earlier_pieces_unmapped() {
    let (daemon, mut a, mut b) = two();
    let pages = [1, 3, 5].map(|n| Extent {
        addr: DATA + n * PAGE,
        len: PAGE,
    });
    let export = Vm::export_of(pages.to_vec(), vec![]);
    let Ok(bufshare_protocol::response::Response::Exported { id, .. }) = a.request(&export) else {
        panic!("not exported");
    };
    let handle = b.attach(id);
    b.front.shm.refuse_after(2, 1);

    let refused = b.try_map(handle, 3 * PAGE);

    assert_eq!(refused, Err(Status::MapFailed));
    assert_eq!(b.front.shm.windows(), 0);
    b.map(handle, 3 * PAGE);
    assert_eq!(b.front.shm.windows(), 3);
    drop((a, b));
    daemon.finish();
}

#[test]
fn map_beyond_the_window_budget_is_a_status() {
    let setup = Setup {
        extra: vec!["--shm-size", "16M", "--max-windows", "4"],
        ..Setup::default()
    };
    let daemon = Daemon::start(&setup);
    let mut a = Vm::boot(&daemon.socket("a"));
    let mut b = Vm::boot(&daemon.socket("b"));
    let handles: Vec<u64> = (0..5)
        .map(|n| a.export(DATA + 2 * n * PAGE, PAGE))
        .map(|id| b.attach(id))
        .collect();
    for handle in &handles[..4] {
        b.map(*handle, PAGE);
    }

    let fifth = b.try_map(handles[4], PAGE);

    assert_eq!(fifth, Err(Status::NoWindow));
    b.unmap(handles[0]);
    b.map(handles[4], PAGE);
    assert_eq!(b.front.shm.windows(), 4);
    drop((a, b));
    daemon.finish();
}

#[test]
fn peer_without_policy_sees_nothing() {
    let setup = Setup {
        allow: vec!["a:b:r"],
        ..Setup::default()
    };
    let daemon = Daemon::start(&setup);
    let mut a = Vm::boot(&daemon.socket("a"));
    let mut c = Vm::boot(&daemon.socket("c"));
    let id = a.export(DATA, PAGE);

    assert_eq!(c.try_attach(id), Err(Status::NotFound));
    assert!(c.events().is_empty());
    drop((a, c));
    daemon.finish();
}

#[test]
fn ten_thousand_cached_maps_leave_nothing_behind() {
    let (daemon, mut a, mut b) = two_with(Daemon::spawn);
    let id = a.export(DATA, 4 * PAGE);
    let handle = b.attach(id);
    b.map(handle, 4 * PAGE);
    b.unmap(handle);
    let fds = daemon.fds();

    for _ in 0..10_000 {
        assert!(b.map(handle, 4 * PAGE).1);
        b.unmap(handle);
    }

    assert_eq!(daemon.fds(), fds);
    assert_eq!(b.front.shm.windows(), 1);
    drop((a, b));
    daemon.finish();
}

#[test]
fn evicting_maps_leave_nothing_behind() {
    let setup = Setup {
        extra: vec!["--shm-size", "16M", "--max-windows", "1"],
        ..Setup::default()
    };
    let daemon = Daemon::spawn(&setup);
    let mut a = Vm::boot(&daemon.socket("a"));
    let mut b = Vm::boot(&daemon.socket("b"));
    let handles = [0, 2].map(|n| {
        let id = a.export(DATA + n * PAGE, PAGE);
        b.attach(id)
    });
    b.map(handles[0], PAGE);
    b.unmap(handles[0]);
    let fds = daemon.fds();

    for round in 1..2001 {
        assert!(!b.map(handles[round % 2], PAGE).1);
        b.unmap(handles[round % 2]);
    }

    assert_eq!(daemon.fds(), fds);
    assert_eq!(b.front.shm.windows(), 1);
    assert_eq!(daemon.broker("b")["windows"], 1);
    drop((a, b));
    daemon.finish();
}
