// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Streams that one virtual machine offers and others join.

#![allow(clippy::panic, clippy::unwrap_used)]

mod common;

use bufshare_protocol::event::EventKind;
use bufshare_protocol::request::{Attach, Export, Request};
use bufshare_protocol::response::Response;
use bufshare_protocol::status::Status;
use bufshare_protocol::types::{BufferId, Extent, Meta, Name, StreamState};
use common::frontend::PAGE;
use common::pair::two;
use common::vm::{DATA, Vm, unexport_request};

fn record(epoch: u64, ended: bool) -> Meta {
    Meta {
        name: Name::new("camera").unwrap(),
        stream: StreamState { epoch, ended },
        ..Meta::default()
    }
}

fn export(vm: &mut Vm, export: Export) -> BufferId {
    match vm.request(&Request::Export(Box::new(export))) {
        Ok(Response::Exported { id, .. }) => id,
        other => panic!("EXPORT: {other:?}"),
    }
}

fn create(vm: &mut Vm) -> BufferId {
    let meta = record(1, false);
    export(
        vm,
        Export {
            meta,
            ..Export::default()
        },
    )
}

fn part(vm: &mut Vm, stream: BufferId, addr: u64) -> BufferId {
    export(
        vm,
        Export {
            size: PAGE,
            extents: vec![Extent { addr, len: PAGE }],
            stream,
            ..Export::default()
        },
    )
}

fn join(vm: &mut Vm, stream: BufferId) -> u64 {
    let attach = Request::Attach(Attach::join(stream));
    match vm.request(&attach) {
        Ok(Response::Attached { handle, .. }) => handle,
        other => panic!("ATTACH: {other:?}"),
    }
}

fn meta(vm: &mut Vm, id: BufferId) -> Meta {
    match vm.request(&Request::GetMeta { id }) {
        Ok(Response::Meta { meta, .. }) => meta,
        other => panic!("GET_META: {other:?}"),
    }
}

/// SPEC 6.7: the record first, then the buffers that there are, then frames.
#[test]
fn who_joins_late_finds_the_record_and_the_buffers_and_is_given_frames() {
    let (daemon, mut a, mut b) = two();
    let stream = create(&mut a);
    let parts = [0, 1].map(|n| part(&mut a, stream, DATA + n * PAGE));
    let number = a.push(parts[0]);
    assert_eq!(a.returned(), (parts[0], number), "nobody is there");

    join(&mut b, stream);
    assert_eq!(meta(&mut b, stream), record(1, false));
    let Ok(Response::Buffers { entries, .. }) = b.request(&Request::List { cursor: 0 }) else {
        panic!("no LIST");
    };
    let found = entries.iter().filter(|entry| entry.stream == stream);
    let found: Vec<BufferId> = found.map(|entry| entry.id).collect();
    assert_eq!(found, parts);
    let handles = parts.map(|id| b.consume(id));
    for n in [0, 1] {
        let number = a.push(parts[n]);
        let event = b.event_of(EventKind::Pushed);
        assert_eq!((event.handle, event.value), (handles[n], number));
        b.give_back(handles[n], number);
        assert_eq!(a.returned(), (parts[n], number));
    }
    drop((a, b));
    daemon.finish();
}

/// SPEC 6.7.
#[test]
fn a_new_record_is_an_event_and_so_is_the_end_of_the_stream() {
    let (daemon, mut a, mut b) = two();
    let stream = create(&mut a);
    let offer = b.event_of(EventKind::Offer);
    assert_eq!((offer.id, offer.value), (stream, 0));
    let handle = join(&mut b, stream);

    a.request(&Request::SetMeta {
        id: stream,
        meta: Box::new(record(1, true)),
    })
    .unwrap();
    assert_eq!(b.event_of(EventKind::Meta).id, stream);
    assert_eq!(meta(&mut b, stream), record(1, true));

    assert_eq!(a.request(&unexport_request(stream)), Ok(Response::Done));
    let end = b.event_of(EventKind::Revoked);
    assert_eq!((end.id, end.handle), (stream, handle));
    drop((a, b));
    daemon.finish();
}

/// SPEC 6.7: its exporter sees who has left, in whatever way.
#[test]
fn who_leaves_a_stream_or_dies_is_released() {
    let (daemon, mut a, mut b) = two();
    let stream = create(&mut a);
    let handle = join(&mut b, stream);
    b.detach(handle);
    assert_eq!(a.event_of(EventKind::Released).id, stream);
    join(&mut b, stream);
    drop(b);
    assert_eq!(a.event_of(EventKind::Released).id, stream);
    drop(a);
    daemon.finish();
}

/// SPEC 7.3: the name is free again when the stream's driver has gone.
#[test]
fn a_producer_that_starts_again_has_its_name_again() {
    let (daemon, mut a, b) = two();
    create(&mut a);
    let meta = record(2, false);
    let again = Request::Export(Box::new(Export {
        meta,
        ..Export::default()
    }));
    assert_eq!(a.request(&again), Err(Status::Exists));
    a.reset();
    assert!(a.request(&again).is_ok());
    drop((a, b));
    daemon.finish();
}
