// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What requests may ask for, by example: batches, ways, numbers, versions.

use bufshare_protocol::event::EventKind;
use bufshare_protocol::request::{Attach, Request};
use bufshare_protocol::response::Response;
use bufshare_protocol::status::Status;
use bufshare_protocol::types::{BufferId, Properties, Rights, Way, Ways};

use super::host::*;
use crate::broker::*;

/// SPEC 4.7.
#[test]
fn a_batch_is_done_to_all_or_to_none_and_says_which_was_wrong() {
    let mut host = Host::new();
    let id = host.export(A, 1);
    let handles = [host.attach(B, id), host.attach(B, id)];
    for handle in handles {
        host.call(B, map(handle, 1)).unwrap();
    }
    let windows = handles.map(|handle| host.window(B, handle));
    let refused = |host: &mut Host, request, entry, status| {
        let wrong = Response::Batch { status, entry };
        assert_eq!(host.call(B, request), Ok(wrong));
        assert_eq!(handles.map(|handle| host.window(B, handle)), windows);
        assert_eq!(host.peer(B).attachments, 2);
    };
    let all = |windows: &[u64]| Request::Unmap {
        windows: windows.to_vec(),
    };
    refused(&mut host, all(&[windows[0], 7]), 1, Status::NotFound);
    let twice = all(&[windows[1], windows[0], windows[1]]);
    refused(&mut host, twice, 2, Status::NotFound);
    let detach = Request::Detach {
        handles: handles.to_vec(),
    };
    refused(&mut host, detach.clone(), 0, Status::Busy);

    let done = Ok(Response::Batch {
        status: Status::Ok,
        entry: 2,
    });
    assert_eq!(host.call(B, all(&windows)), done);
    let detach_twice = Request::Detach {
        handles: vec![handles[0]; 2],
    };
    let again = Response::Batch {
        status: Status::NotFound,
        entry: 1,
    };
    assert_eq!(host.call(B, detach_twice), Ok(again));
    assert_eq!(host.call(B, detach), done);
    assert_eq!(host.peer(B).attachments, 0);
}

/// SPEC 8.1, and SPEC 5.2: no number comes again.
#[test]
fn a_mapping_has_one_number_as_long_as_it_lasts_and_another_afterwards() {
    let mut host = Host::new();
    let id = host.export(A, 1);
    let (one, other) = (host.attach(B, id), host.attach(B, id));
    let window = |host: &mut Host, handle| match host.call(B, map(handle, 1)) {
        Ok(Response::Mapped { window, .. }) => window,
        reply => panic!("{reply:?}"),
    };
    let first = window(&mut host, one);
    assert_eq!(window(&mut host, one), first);
    // One range of the region shows both, and each is unmapped by itself.
    assert_ne!(window(&mut host, other), first);
    for _ in 0..2 {
        host.unmap(B, one).unwrap();
    }
    assert_ne!(window(&mut host, one), first);
}

/// SPEC 5.2.
#[test]
fn numbers_begin_where_the_operators_clock_says() {
    let mut config = config(Limits::default());
    config.started_us = 1 << 40;
    let mut host = Host::with(config);
    let id = host.export(A, 1);
    let handle = host.attach(B, id);
    assert!(handle > 1 << 40);
    host.call(B, map(handle, 1)).unwrap();
    assert!(host.window(B, handle) > 1 << 40);
}

/// SPEC 7.5.
#[test]
fn an_attach_is_given_only_what_it_accepts() {
    let mut host = Host::new();
    let id = host.export(A, 1);
    let (none, ways) = (Attach::new(id, Rights::RW), Ways::NONE);
    let mut try_it = |attach: Attach| host.call(B, Request::Attach(attach));
    let cases = [
        (ways.with(Way::CopyWindow), Status::Unsupported),
        (Ways::from_wire(1 << 31), Status::Unsupported),
        (ways.with(Way::Udmabuf), Status::NoWay),
    ];
    for (ways, wanted) in cases {
        assert_eq!(status(try_it(Attach { ways, ..none })), wanted, "{ways:?}");
    }
    let cases = [
        (Properties::from_wire(0x20), Status::Unsupported),
        (Properties::REVOCABLE, Status::NoWay),
        (Properties::RO_HELD, Status::NoWay),
    ];
    for (required, wanted) in cases {
        let attach = Attach { required, ..none };
        assert_eq!(status(try_it(attach)), wanted, "{required:?}");
    }
    let attach = Attach {
        ways: ways.with(Way::Direct).with(Way::CopyGuest),
        required: Properties::COHERENT,
        max_windows: 1,
        ..none
    };
    match try_it(attach) {
        Ok(Response::Attached {
            way, properties, ..
        }) => {
            assert_eq!(way, Way::Direct);
            assert_eq!(properties, Properties::COHERENT);
        }
        other => panic!("{other:?}"),
    }
}

/// SPEC 7.5.
#[test]
fn a_buffer_in_more_pieces_than_an_attach_allows_is_refused() {
    let mut host = Host::new();
    let pieces = export(&[(RAM, 1), (RAM + 2 * PAGE, 1)]);
    let Ok(Response::Exported { id, .. }) = host.call(A, pieces) else {
        panic!("no export");
    };
    let attach = |max_windows| {
        Request::Attach(Attach {
            max_windows,
            ..Attach::new(id, Rights::RW)
        })
    };
    assert_eq!(status(host.call(B, attach(1))), Status::TooFragmented);
    host.call(B, attach(2)).unwrap();
}

/// SPEC 7.1.
#[test]
fn a_driver_of_an_older_format_is_refused() {
    let mut host = Host::new();
    for (version, wanted) in [(0, Status::BadField), (1, Status::Unsupported)] {
        let caps = Request::GetCaps { version };
        assert_eq!(status(host.call(A, caps)), wanted);
    }
    host.call(A, Request::GetCaps { version: 3 }).unwrap();
}

/// SPEC 10.2.
#[test]
fn events_of_a_buffer_name_its_generation() {
    let mut host = Host::new();
    let Ok(Response::Exported { id, generation }) = host.call(A, export(&[(RAM, 1)])) else {
        panic!("no export");
    };
    let of = |host: &mut Host, kind| {
        let events = host.events(B);
        events
            .iter()
            .find(|event| event.kind == kind)
            .unwrap()
            .clone()
    };
    assert_eq!(of(&mut host, EventKind::Offer).generation, generation);
    let handle = host.attach(B, id);
    host.call(A, unexport_request(id)).unwrap();
    let revoked = of(&mut host, EventKind::Revoked);
    assert_eq!((revoked.generation, revoked.handle), (generation, handle));
}

/// SPEC 7.5. The file of the whole RAM is not handed out because an importer likes it better.
#[test]
fn an_importer_does_not_choose_the_weaker_confinement() {
    let mut config = config(Limits::default());
    config.host_udmabuf = true;
    let mut host = Host::with(config);
    let id = host.export(A, 1);
    let attach = |ways| {
        Request::Attach(Attach {
            ways,
            ..Attach::new(id, Rights::RW)
        })
    };
    let direct = Ways::NONE.with(Way::Direct);
    assert_eq!(status(host.call(B, attach(direct))), Status::NoWay);
    for ways in [Ways::NONE, direct.with(Way::Udmabuf)] {
        match host.call(B, attach(ways)) {
            Ok(Response::Attached { way, .. }) => assert_eq!(way, Way::Udmabuf),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_clock_that_leaves_no_numbers_for_exports_is_an_error() {
    let mut config = config(Limits::default());
    config.started_us = u64::MAX;
    let broker = Broker::new(config, super::super::types::no_ids());
    assert!(matches!(broker.err(), Some(ConfigError::Clock(u64::MAX))));
}

/// What QUERY says to its owner.
fn is_quiesced(host: &mut Host, id: BufferId) -> bool {
    match host.call(A, Request::Query { id }) {
        Ok(Response::Buffer(buffer)) => buffer.quiesced,
        other => panic!("{other:?}"),
    }
}

/// SPEC 7.11 and SPEC 7.13.
#[test]
fn a_quiesced_buffer_is_shown_to_its_owner_alone_until_it_is_active() {
    let mut host = Host::new();
    let (id, other) = (host.export(A, 1), host.export(A, 1));
    assert!(!is_quiesced(&mut host, id));
    for state in [true, true, false, false, true] {
        host.call(A, quiesce(id, state)).unwrap();
        assert_eq!(is_quiesced(&mut host, id), state);
        assert!(!is_quiesced(&mut host, other));
    }
    match host.call(B, Request::Query { id }) {
        Ok(Response::Buffer(buffer)) => assert!(!buffer.quiesced),
        reply => panic!("{reply:?}"),
    }
    let handle = host.attach(B, id);
    host.call(B, map(handle, 1)).unwrap();
    host.call(A, quiesce(id, false)).unwrap();
    assert!(!is_quiesced(&mut host, id));
}

/// SPEC 7.11.
#[test]
fn nobody_but_its_owner_quiesces_a_buffer() {
    let mut host = Host::new();
    let id = host.export(A, 1);
    for state in [true, false] {
        for (peer, id) in [(B, id), (C, id), (A, BufferId::ZERO)] {
            assert_eq!(
                status(host.call(peer, quiesce(id, state))),
                Status::NotFound
            );
        }
    }
    assert!(!is_quiesced(&mut host, id));
}

/// SPEC 7.4: it is refused, and nothing is done.
#[test]
fn an_unexport_of_a_quiesced_buffer_needs_one() {
    let mut host = Host::new();
    let id = host.export(A, 1);
    let handle = host.attach(B, id);
    host.call(B, map(handle, 1)).unwrap();
    assert_eq!(
        status(host.call(A, unexport_quiesced(id))),
        Status::BadField
    );
    host.call(A, quiesce(id, true)).unwrap();
    host.call(A, quiesce(id, false)).unwrap();
    assert_eq!(
        status(host.call(A, unexport_quiesced(id))),
        Status::BadField
    );
    assert_eq!(host.peer(A).revocations, 0);
    assert_eq!(host.peer(A).unexports_quiesced, 0);

    host.call(A, quiesce(id, true)).unwrap();
    let token = host.send(A, unexport_quiesced(id));
    assert!(host.answer(A, token).is_none(), "B has it mapped");
    assert_eq!(host.deadlines.len(), 1, "B has its time");
    assert_eq!(host.peer(A).unexports_quiesced, 1);
    host.unmap(B, handle).unwrap();
    assert_eq!(host.answer(A, token), Some(&Ok(Response::Done)));
    assert_eq!(status(host.call(A, quiesce(id, false))), Status::NotFound);
}

/// SPEC 7.4: the driver does not wait for importers to write again.
#[test]
fn a_buffer_that_is_being_revoked_can_be_quiesced_and_active() {
    let mut host = Host::new();
    let id = host.export(A, 1);
    let handle = host.attach(B, id);
    host.call(B, map(handle, 1)).unwrap();
    host.call(A, quiesce(id, true)).unwrap();
    let token = host.send(A, unexport_quiesced(id));
    for state in [false, true, false] {
        host.call(A, quiesce(id, state)).unwrap();
        assert_eq!(is_quiesced(&mut host, id), state);
    }
    assert!(host.answer(A, token).is_none());
    assert_eq!(status(host.call(A, unexport_quiesced(id))), Status::Busy);
    host.unmap(B, handle).unwrap();
    assert_eq!(host.answer(A, token), Some(&Ok(Response::Done)));
}

/// SPEC 3.2, and SPEC 7.4: what it takes for quiesced can still be unexported as that.
#[test]
fn a_stop_ends_what_its_driver_promised() {
    let mut host = Host::new();
    let id = host.export(A, 1);
    let handle = host.attach(B, id);
    host.call(B, map(handle, 1)).unwrap();
    host.call(A, quiesce(id, true)).unwrap();
    let effects = host.broker.peer_stopped(A);
    host.take(effects);
    assert!(
        !host.broker.snapshot().buffers[0].quiesced,
        "before the steps"
    );
    while !host.revoke_next(A) {}
    let effects = host.broker.peer_up(A, true);
    host.take(effects);
    assert!(!is_quiesced(&mut host, id));
    let token = host.send(A, unexport_quiesced(id));
    host.unmap(B, handle).unwrap();
    assert_eq!(host.answer(A, token), Some(&Ok(Response::Done)));
    assert_eq!(host.peer(A).unexports_quiesced, 0);
}
