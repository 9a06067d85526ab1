// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guests that send what they should not. Each request gets a status, or at
//! least its descriptors back, and the device goes on.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod common;

use bufshare_protocol::limits::{MAX_REQUEST, MAX_RESPONSE, RESPONSE_HEADER};
use bufshare_protocol::request::Request;
use bufshare_protocol::response::{self, Response};
use bufshare_protocol::status::Status;
use bufshare_protocol::types::{BufferId, Extent};
use common::daemon::{Daemon, Setup, Start};
use common::frontend::{Options, PAGE, SHM_GPA};
use common::vm::{DATA, Vm, unexport_request};

fn one() -> (Daemon, Vm) {
    one_with(Daemon::start)
}

fn one_with(start: Start) -> (Daemon, Vm) {
    let daemon = start(&Setup::default());
    let a = Vm::boot(&daemon.socket("a"));
    (daemon, a)
}

fn status(bytes: &[u8]) -> Status {
    Status::from_wire(u32::from_le_bytes(bytes[4..8].try_into().unwrap())).unwrap()
}

/// The device still answers.
fn check(daemon: Daemon, mut vm: Vm) {
    let reply = vm.request(&Request::GetCaps { version: 2 });
    assert!(matches!(reply, Ok(Response::Caps(_))), "{reply:?}");
    drop(vm);
    daemon.finish();
}

#[test]
fn unknown_command_is_unsupported_and_keeps_its_cookie() {
    let (daemon, mut a) = one();
    let mut bytes = Request::GetCaps { version: 2 }.encode(77);
    bytes[0..4].copy_from_slice(&0xdead_u32.to_le_bytes());

    let ticket = a.submit_bytes(0xdead, &bytes);
    let answer = a.finish_raw(ticket);

    assert_eq!(answer.len(), RESPONSE_HEADER);
    assert_eq!(status(&answer), Status::Unsupported);
    assert_eq!(answer[16..24], 77_u64.to_le_bytes());
    check(daemon, a);
}

#[test]
fn extents_that_make_no_sense_are_refused() {
    let (daemon, mut a) = one();
    let ram = Options::default().ram;
    let page = |addr| Extent { addr, len: PAGE };
    for (extents, want) in [
        (vec![page(ram)], Status::NotRam),
        (vec![page(SHM_GPA)], Status::NotRam),
        (
            vec![Extent {
                addr: ram - PAGE,
                len: 2 * PAGE,
            }],
            Status::NotRam,
        ),
        (vec![page(DATA), page(DATA)], Status::Overlap),
        (vec![page(DATA + 1)], Status::Unaligned),
        (
            vec![Extent {
                addr: DATA,
                len: PAGE + 1,
            }],
            Status::Unaligned,
        ),
    ] {
        let reply = a.request(&Vm::export_of(extents.clone(), vec![]));
        assert_eq!(reply, Err(want), "{extents:?}");
    }
    let high = u64::MAX - PAGE + 1;
    let reply = a.request(&Vm::export_of(vec![page(high)], vec![]));
    assert_eq!(reply, Err(Status::NotRam));
    check(daemon, a);
}

#[test]
fn handle_of_another_peer_is_not_found() {
    let (daemon, mut a) = one();
    let mut b = Vm::boot(&daemon.socket("b"));
    let mut c = Vm::boot(&daemon.socket("c"));
    let id = a.export(DATA, PAGE);
    let handle = b.attach(id);

    let windows = vec![handle];
    let not_found = Response::Batch {
        status: Status::NotFound,
        entry: 0,
    };
    assert_eq!(c.request(&Request::Unmap { windows }), Ok(not_found));
    assert_eq!(c.try_map(handle, PAGE), Err(Status::NotFound));
    assert_eq!(b.request(&unexport_request(id)), Err(Status::NotFound));
    drop((b, c));
    check(daemon, a);
}

#[test]
fn repeated_unexport_is_not_found() {
    let (daemon, mut a) = one();
    let id = a.export(DATA, PAGE);
    a.unexport(id);

    assert_eq!(a.request(&unexport_request(id)), Err(Status::NotFound));
    assert_eq!(
        a.request(&unexport_request(BufferId([9; 16]))),
        Err(Status::NotFound)
    );
    check(daemon, a);
}

/// SPEC 7.11: each is refused, and the buffer is as it was.
#[test]
fn quiesce_that_makes_no_sense_is_refused_and_changes_nothing() {
    let daemon = Daemon::start(&Setup::default());
    let mut a = Vm::boot(&daemon.socket("a"));
    let mut b = Vm::boot(&daemon.socket("b"));
    let id = a.export(DATA, PAGE);
    for quiesced in [false, true] {
        a.ok(&Request::Quiesce { id, quiesced });
        let sound = Request::Quiesce {
            id,
            quiesced: !quiesced,
        };
        let mode = size_of::<[u64; 5]>();
        for (offset, value, want) in [
            (4, 1_u32, Status::Unsupported),
            (8, 40, Status::BadLength),
            (8, 56, Status::BadLength),
            (12, 16, Status::BadLength),
            (24, 0, Status::NotFound),
            (mode, 2, Status::Unsupported),
            (mode, u32::MAX, Status::Unsupported),
            (mode + 4, 1, Status::Unsupported),
        ] {
            let mut bytes = sound.encode(5);
            bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
            let ticket = a.submit_bytes(0, &bytes);
            let answer = a.finish_raw(ticket);
            assert_eq!(status(&answer), want, "{value} at {offset}");
        }
        let longer = [sound.encode(5), vec![0; 8]].concat();
        let ticket = a.submit_bytes(0, &longer);
        assert_eq!(status(&a.finish_raw(ticket)), Status::BadLength);
        assert_eq!(b.request(&sound), Err(Status::NotFound));
        match a.request(&Request::Query { id }) {
            Ok(Response::Buffer(buffer)) => assert_eq!(buffer.quiesced, quiesced),
            other => panic!("{other:?}"),
        }
    }
    drop(b);
    check(daemon, a);
}

#[test]
fn request_longer_than_any_is_bad_length() {
    let (daemon, mut a) = one();
    let mut bytes = Request::GetCaps { version: 2 }.encode(5);
    bytes.resize(MAX_REQUEST + 100, 0);

    let ticket = a.submit_bytes(0, &bytes);
    let answer = a.finish_raw(ticket);

    assert_eq!(status(&answer), Status::BadLength);
    assert_eq!(answer[16..24], 5_u64.to_le_bytes());
    check(daemon, a);
}

#[test]
fn request_shorter_than_its_header_is_bad_length() {
    let (daemon, mut a) = one();

    let ticket = a.submit_bytes(0, &[1; 7]);
    let answer = a.finish_raw(ticket);

    assert_eq!(status(&answer), Status::BadLength);
    check(daemon, a);
}

#[test]
fn chain_without_room_for_a_header_is_completed_with_nothing() {
    let (daemon, mut a) = one();
    let bytes = Request::GetCaps { version: 2 }.encode(5);
    a.front.ram.write(DATA, &bytes);

    for room in [0, RESPONSE_HEADER as u32 - 1] {
        let mut chain = vec![(DATA, bytes.len() as u32, false)];
        if room > 0 {
            chain.push((DATA + PAGE, room, true));
        }
        let ticket = a.submit_chain(&chain);
        assert!(a.finish_raw(ticket).is_empty());
    }

    assert_eq!(daemon.session("a")["no_room"], 2);
    check(daemon, a);
}

#[test]
fn answer_that_does_not_fit_is_no_room() {
    let (daemon, mut a) = one();
    let bytes = Request::GetCaps { version: 2 }.encode(5);
    a.front.ram.write(DATA, &bytes);

    let room = RESPONSE_HEADER as u32;
    let ticket = a.submit_chain(&[(DATA, bytes.len() as u32, false), (DATA + PAGE, room, true)]);
    assert_eq!(a.finish_raw(ticket).len(), RESPONSE_HEADER);

    assert_eq!(status(&a.front.ram.read(DATA + PAGE, 16)), Status::NoRoom);
    check(daemon, a);
}

#[test]
fn chain_that_reads_after_it_writes_is_bad_length() {
    let (daemon, mut a) = one();
    let bytes = Request::GetCaps { version: 2 }.encode(5);
    a.front.ram.write(DATA, &bytes);

    let ticket = a.submit_chain(&[(DATA + PAGE, 4096, true), (DATA, bytes.len() as u32, false)]);
    a.finish_raw(ticket);

    assert_eq!(
        status(&a.front.ram.read(DATA + PAGE, 16)),
        Status::BadLength
    );
    assert_eq!(daemon.session("a")["malformed"], 1);
    check(daemon, a);
}

#[test]
fn chain_outside_of_ram_is_completed() {
    let (daemon, mut a) = one();
    let bytes = Request::GetCaps { version: 2 }.encode(5);
    a.front.ram.write(DATA, &bytes);
    let len = bytes.len() as u32;

    let read = a.submit_chain(&[(u64::MAX - 8, len, false), (DATA + PAGE, 4096, true)]);
    a.finish_raw(read);
    let write = a.submit_chain(&[(DATA, len, false), (1 << 50, 4096, true)]);
    let written = a.finish_raw(write);

    assert_eq!(
        status(&a.front.ram.read(DATA + PAGE, 16)),
        Status::BadLength
    );
    assert!(written.is_empty());
    check(daemon, a);
}

#[test]
fn response_into_a_window_is_not_written() {
    let (daemon, mut a) = one();
    let mut b = Vm::boot(&daemon.socket("b"));
    let id = b.export(DATA, PAGE);
    let handle = a.attach(id);
    let (at, _) = a.map(handle, PAGE);
    let bytes = Request::GetCaps { version: 2 }.encode(5);
    a.front.ram.write(DATA, &bytes);

    let ticket = a.submit_chain(&[
        (DATA, bytes.len() as u32, false),
        (SHM_GPA + at, MAX_RESPONSE.min(4096) as u32, true),
    ]);

    assert!(a.finish_raw(ticket).is_empty());
    assert_eq!(b.front.ram.read(DATA, 16), [0; 16]);
    drop(b);
    check(daemon, a);
}

#[test]
fn chain_that_loops_is_completed() {
    let (daemon, mut a) = one();

    let head = a.submit_loop(DATA);
    a.finish_raw(head);

    assert_eq!(daemon.session("a")["malformed"], 1);
    check(daemon, a);
}

/// More than what `cause` in [`wakeups`] and what came just before it wakes.
const FEW: u64 = 5;

/// How often the worker of `peer` was woken by what `cause` did, and while others
/// were served for a while.
fn wakeups(daemon: &Daemon, peer: &str, other: &mut Vm, cause: impl FnOnce()) -> u64 {
    let wakeups = || daemon.session(peer)["wakeups"].as_u64().unwrap();
    let before = wakeups();
    cause();
    common::until("the worker", || wakeups() > before);
    for _ in 0..200 {
        other.request(&Request::Peers { cursor: 0 }).unwrap();
    }
    wakeups() - before
}

#[test]
fn available_index_that_makes_no_sense_is_looked_at_once() {
    for ring in [0, 1] {
        let (daemon, mut a) = one();
        let mut b = Vm::boot(&daemon.socket("b"));

        let woken = wakeups(&daemon, "a", &mut b, || a.spoil_available_index(ring));

        assert!(woken < FEW, "{woken}");
        assert_eq!(daemon.session("a")["ring_faults"], 1);
        // The ring is of no use any more; a reset of the driver is.
        a.reset();
        drop(b);
        check(daemon, a);
    }
}

#[test]
fn disabled_ring_is_left_alone_until_it_is_enabled() {
    let (daemon, mut a) = one();
    let mut b = Vm::boot(&daemon.socket("b"));
    let mut c = Vm::boot(&daemon.socket("c"));
    a.front.enable(0, false);
    let ticket = a.submit(&Request::GetCaps { version: 2 });

    // The event queue runs on. News from others has the worker look at both.
    let woken = wakeups(&daemon, "a", &mut b, || {
        c.export(DATA, PAGE);
    });

    assert!(woken < FEW, "{woken}");
    assert!(!a.is_done(ticket));
    a.front.enable(0, true);
    assert!(matches!(a.finish(ticket), Ok(Response::Caps(_))));
    drop((b, c));
    check(daemon, a);
}

#[test]
fn chain_that_comes_again_and_again_before_it_is_used_is_taken_once() {
    let (daemon, mut a) = one();
    let mut b = Vm::boot(&daemon.socket("b"));
    let id = b.export(DATA, PAGE);
    let handle = a.attach(id);
    a.map(handle, PAGE);
    a.unmap(handle);
    let before = daemon.session("a")["chains"].as_u64().unwrap();
    // Answered when the window is unmapped.
    a.front.shm.hold(true);
    let flush = a.submit(&Request::Flush);
    a.front.shm.until_waiting();

    let mut published = 1;
    while published < 100_000 {
        a.publish_again(flush);
        published += 64;
        common::until("the queue", || {
            let session = daemon.session("a");
            session["ring_faults"] == 1 || session["chains"] == before + published
        });
    }

    assert_eq!(daemon.session("a")["pending"], 1);
    assert_eq!(daemon.session("a")["chains"], before + 1);
    a.front.shm.hold(false);
    assert_eq!(a.finish(flush), Ok(Response::Done));
    a.reset();
    b.unexport(id);
    drop(b);
    check(daemon, a);
}

#[test]
fn short_event_buffers_come_back_empty() {
    let (daemon, mut a) = one();

    a.post_short_event_buffer();
    let b = Vm::boot(&daemon.socket("b"));

    common::until("the short buffer", || {
        daemon.session("a")["short_event_buffers"] == 1
    });
    drop(b);
    drop(a);
    daemon.finish();
}

#[test]
fn many_bad_requests_write_few_lines() {
    let (daemon, mut a) = one_with(Daemon::spawn);

    for _ in 0..2000 {
        let ticket = a.submit_bytes(0, &[1; 7]);
        a.finish_raw(ticket);
    }

    let lines = daemon
        .log()
        .lines()
        .filter(|line| line.contains("bad request"))
        .count();
    assert!((1..=40).contains(&lines), "{lines}");
    assert_eq!(daemon.broker("a")["refused"], 2000);
    check(daemon, a);
}

#[test]
fn many_resets_write_few_lines() {
    let (daemon, mut a) = one_with(Daemon::spawn);

    for _ in 0..500 {
        a.reset();
        a.request(&Request::GetCaps { version: 2 }).unwrap();
    }

    let lines = daemon
        .log()
        .lines()
        .filter(|line| line.contains(": driver "))
        .count();
    assert!((1..=100).contains(&lines), "{lines}");
    check(daemon, a);
}

#[test]
fn many_mappings_that_fail_write_few_lines() {
    let (daemon, mut a) = one_with(Daemon::spawn);
    let mut b = Vm::boot(&daemon.socket("b"));
    let id = b.export(DATA, PAGE);
    let handle = a.attach(id);
    a.front.shm.refuse(500);

    for _ in 0..500 {
        assert_eq!(a.try_map(handle, PAGE), Err(Status::MapFailed));
    }

    let log = daemon.log();
    let lines = log.lines().filter(|line| line.contains("refused to map"));
    assert!((1..=40).contains(&lines.count()), "{log}");
    assert_eq!(daemon.session("a")["refused"], 500);
    drop(b);
    check(daemon, a);
}

#[test]
fn full_queue_of_requests_is_answered_each_once() {
    let (daemon, mut a) = one();
    for _ in 0..50 {
        let tickets: Vec<_> = (0..32)
            .map(|_| a.submit(&Request::Peers { cursor: 0 }))
            .collect();
        for ticket in tickets {
            assert!(matches!(a.finish(ticket), Ok(Response::Peers { .. })));
        }
    }
    assert_eq!(daemon.session("a")["pending"], 0);
    check(daemon, a);
}

#[test]
fn responses_are_parsed_by_the_protocol() {
    let (daemon, mut a) = one();
    let ticket = a.submit(&Request::GetCaps { version: 2 });
    let bytes = a.finish_raw(ticket);

    let (_, reply, next) = response::parse(0x100, &bytes).unwrap();

    assert!(matches!(reply, Ok(Response::Caps(caps)) if caps.name.as_str() == "a"));
    assert_eq!(next, 0);
    check(daemon, a);
}
