// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Buffers that are revoked while another virtual machine uses them: when UNEXPORT is
//! answered, and what the importer still sees.

mod common;

use bufshare_protocol::event::EventKind;
use bufshare_protocol::status::Status;
use bufshare_protocol::types::Extent;
use common::frontend::{Asked, PAGE, SHM_GPA};
use common::pair::{map_without_its_barrier, two};
use common::until;
use common::vm::{DATA, Vm, unexport_request};

#[test]
fn unexport_is_answered_after_the_importer_released_the_buffer() {
    let (daemon, mut a, mut b) = two();
    let id = a.export(DATA, PAGE);
    let handle = b.attach(id);
    let (at, _) = b.map(handle, PAGE);
    let pending = a.submit(&unexport_request(id));

    let event = b.event_of(EventKind::Revoked);

    assert_eq!((event.id, event.handle), (id, handle));
    assert!(!a.is_done(pending), "answered before the release");
    b.unmap(handle);
    assert!(a.finish(pending).is_ok());
    assert_eq!(b.front.shm.windows(), 0);
    assert_eq!(b.front.shm.region.read(at, 4), [0; 4]);
    assert_eq!(b.try_map(handle, PAGE), Err(Status::Revoked));
    b.detach(handle);
    drop((a, b));
    daemon.finish();
}

#[test]
fn unexport_puts_zero_pages_in_place_of_a_buffer_whose_importer_does_not_release_it() {
    let (daemon, mut a, mut b) = two();
    a.front.ram.write(DATA, b"mine");
    let id = a.export(DATA, PAGE);
    let handle = b.attach(id);
    let (at, _) = b.map(handle, PAGE);

    a.unexport(id);

    assert_eq!(b.event_of(EventKind::Revoked).handle, handle);
    until("the zero pages", || b.front.shm.windows() == 1);
    assert_eq!(b.front.shm.region.read(at, 4), [0; 4]);
    b.front.shm.region.write(at, b"lost");
    assert_eq!(a.front.ram.read(DATA, 4), b"mine");
    let place = Extent {
        addr: SHM_GPA + at,
        len: PAGE,
    };
    let reply = b.request(&Vm::export_of(vec![place], vec![]));
    assert_eq!(reply, Err(Status::NotRam), "it is no RAM of the VM");

    // His place is not given to another buffer.
    let other = a.export(DATA, PAGE);
    let second = b.attach(other);
    assert_ne!(b.map(second, PAGE).0, at);
    b.unmap(handle);
    until("the end of the zero pages", || b.front.shm.windows() == 1);
    b.detach(handle);

    // Zero pages again, whatever was written there.
    b.unmap(second);
    a.unexport(other);
    until("the end of the other", || b.front.shm.windows() == 0);
    let third = a.export(DATA, PAGE);
    let handle = b.attach(third);
    assert_eq!(b.map(handle, PAGE).0, at);
    a.unexport(third);
    until("the zero pages", || b.front.shm.windows() == 1);
    assert_eq!(b.front.shm.region.read(at, 4), [0; 4]);
    drop((a, b));
    daemon.finish();
}

#[test]
fn map_that_is_revoked_before_its_barrier_is_unmapped_after_it() {
    let (daemon, mut a, mut b) = two();
    let (id, ticket) = map_without_its_barrier(&mut a, &mut b);
    let unexport = a.submit(&unexport_request(id));
    assert_eq!(b.finish(ticket), Err(Status::Revoked));
    assert!(!a.is_done(unexport), "b's VMM maps it");

    b.front.shm.hold(false);

    a.finish(unexport).unwrap();
    assert_eq!(b.front.shm.windows(), 0);
    drop((a, b));
    daemon.finish();
}

#[test]
fn front_end_that_refuses_to_unmap_is_not_believed_while_it_holds_the_memory() {
    let (daemon, mut a, mut b) = two();
    let id = a.export(DATA, PAGE);
    let handle = b.attach(id);
    b.map(handle, PAGE);
    b.front.shm.refuse_unmaps();

    let ticket = a.submit(&unexport_request(id));
    b.unmap(handle);

    b.front.shm.until("the refusal", |asked| {
        asked
            .iter()
            .any(|a| matches!(a, Asked::RefusedUnmap { .. }))
    });
    // Nothing is known of it any more, so it cannot be served.
    until("the end of b's session", || {
        daemon.session("b")["running"] == false
    });
    assert_eq!(b.front.shm.windows(), 1);
    assert!(!a.is_done(ticket));
    drop(b);
    a.finish(ticket).unwrap();
    drop(a);
    daemon.finish();
}
