// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Frames that one virtual machine hands over and others give back.

mod common;

use bufshare_protocol::event::EventKind;
use bufshare_protocol::limits::MAX_FRAME_RECORD;
use bufshare_protocol::request::Request;
use bufshare_protocol::response::Response;
use bufshare_protocol::status::Status;
use bufshare_protocol::types::FrameRecord;
use common::daemon::{Daemon, Setup};
use common::frontend::{Options, PAGE};
use common::pair::two;
use common::until;
use common::vm::{DATA, Vm};

/// SPEC 7.17, and SPEC 7.18: whatever else there is, is there before and afterwards.
#[test]
fn a_frame_takes_one_chain_and_one_event_each_way_and_no_map() {
    let (daemon, mut a, mut b) = two();
    let ids = [0, 1, 2].map(|n| a.export(DATA + n * PAGE, PAGE));
    let handles = ids.map(|id| b.consume(id));
    for handle in handles {
        b.map(handle, PAGE);
    }
    for vm in [&mut a, &mut b] {
        vm.request(&Request::GetCaps { version: 2 }).unwrap();
        vm.events();
    }
    b.front.shm.forget_asked();
    let count = |what: &str| {
        let of = |name| daemon.session(name)[what].as_u64().unwrap();
        (of("a"), of("b"))
    };
    let before = (count("chains"), count("events"));
    for round in 0..1000 {
        let n = round % ids.len();
        a.front.ram.write(DATA + n as u64 * PAGE, b"a frame");
        let number = a.push(ids[n]);
        let event = b.event_of(EventKind::Pushed);
        assert_eq!((event.handle, event.value), (handles[n], number));
        b.give_back(handles[n], number);
        assert_eq!(a.returned(), (ids[n], number));
    }
    let after = (count("chains"), count("events"));
    for (before, after) in [(before.0, after.0), (before.1, after.1)] {
        assert_eq!((after.0 - before.0, after.1 - before.1), (1000, 1000));
    }
    assert_eq!(b.front.shm.asked(), []);
    drop((a, b));
    daemon.finish();
}

/// SPEC 6.6: what a device does not know, it hands on.
#[test]
fn a_record_of_a_later_version_comes_as_it_was_sent() {
    let (daemon, mut a, mut b) = two();
    let id = a.export(DATA, PAGE);
    b.consume(id);
    let mut bytes = [0; MAX_FRAME_RECORD];
    bytes[376..].fill(7);
    // Flags that nobody knows yet.
    bytes[0..8].copy_from_slice(&[0xff; 8]);
    a.push_with(id, FrameRecord::new(&bytes).unwrap());

    let frame = b.event_of(EventKind::Pushed).frame.unwrap();

    assert_eq!(frame.record.bytes(), bytes);
    drop((a, b));
    daemon.finish();
}

/// SPEC 7.18: a consumer that ends, in whatever way, holds nothing up.
#[test]
fn a_frame_of_a_consumer_that_is_reset_or_dies_comes_back() {
    let (daemon, mut a, mut b) = two();
    let id = a.export(DATA, PAGE);
    b.consume(id);
    let number = a.push(id);
    b.reset();
    assert_eq!(a.returned(), (id, number));

    b.consume(id);
    let number = a.push(id);
    drop(b);
    assert_eq!(a.returned(), (id, number));

    // Nobody is there.
    let number = a.push(id);
    assert_eq!(a.returned(), (id, number));
    drop(a);
    daemon.finish();
}

/// SPEC 7.18: one that has stopped has what it has.
#[test]
fn a_stopped_consumer_holds_its_frame_and_nobody_elses() {
    let daemon = Daemon::start(&Setup::default());
    let [mut a, mut b, mut c] = ["a", "b", "c"].map(|name| Vm::boot(&daemon.socket(name)));
    let ids = [0, 1, 2].map(|n| a.export(DATA + n * PAGE, PAGE));
    let stopped = [0, 2].map(|n: usize| b.consume(ids[n]));
    let runs = ids.map(|id| c.consume(id));
    let held = a.push(ids[0]);
    c.give_back(runs[0], held);
    let bases = b.front.stop();

    // It is given this one, too, and no other of the buffer.
    let late = a.push(ids[2]);
    c.give_back(runs[2], late);
    for _ in 0..50 {
        let number = a.push(ids[1]);
        c.give_back(runs[1], number);
        assert_eq!(a.returned(), (ids[1], number));
    }
    b.resume(&bases);
    assert_eq!(b.event_of(EventKind::Pushed).value, held);
    assert_eq!(b.event_of(EventKind::Pushed).value, late);
    b.give_back(stopped[0], held);
    assert_eq!(a.returned(), (ids[0], held));
    b.give_back(stopped[1], late);
    assert_eq!(a.returned(), (ids[2], late));
    drop((a, b, c));
    daemon.finish();
}

/// SPEC 7.18.
#[test]
fn a_frame_of_an_exporter_that_ends_is_no_frame_any_more() {
    let (daemon, mut a, mut b) = two();
    let id = a.export(DATA, PAGE);
    let handle = b.consume(id);
    let number = a.push(id);
    assert_eq!(b.event_of(EventKind::Pushed).value, number);
    drop(a);
    assert_eq!(b.event_of(EventKind::Revoked).handle, handle);
    let frames = vec![(handle, number)];
    let reply = b.request(&Request::Return { frames });
    let wrong = Response::Batch {
        status: Status::Unbalanced,
        entry: 0,
    };
    assert_eq!(reply, Ok(wrong));
    drop(b);
    daemon.finish();
}

/// SPEC 10.5: a driver that was told what an event may need, and has not so much.
#[test]
fn an_event_buffer_that_a_frame_does_not_fit_is_given_back_empty() {
    let daemon = Daemon::start(&Setup::default());
    let mut a = Vm::boot(&daemon.socket("a"));
    let short = Options {
        event_size: 512,
        ..Options::default()
    };
    let mut b = Vm::boot_with(&daemon.socket("b"), &short);
    let id = a.export(DATA, PAGE);
    let handle = b.consume(id);
    let number = a.push(id);
    b.give_back(handle, number);
    assert_eq!(a.returned(), (id, number));
    a.push_with(id, FrameRecord::new(&[0; 640]).unwrap());
    until("a buffer that was too short", || {
        daemon.session("b")["short_event_buffers"] != 0
    });
    // What is due to others does not wait for that.
    let other = a.export(DATA + PAGE, PAGE);
    let number = a.push(other);
    assert_eq!(a.returned(), (other, number));
    drop((a, b));
    daemon.finish();
}
