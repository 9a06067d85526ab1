// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! PUSH and RETURN, by example.

use bufshare_protocol::event::{Event, EventKind};
use bufshare_protocol::request::{Attach, Request};
use bufshare_protocol::response::Response;
use bufshare_protocol::status::Status;
use bufshare_protocol::types::{BufferId, FrameRecord, Image, Meta, Plane, Push, Rights};
use bufshare_protocol::wire;

use super::host::*;
use crate::broker::*;

impl Host {
    fn consume(&mut self, peer: PeerId, id: BufferId) -> u64 {
        let attach = Attach {
            consumer: true,
            ..Attach::new(id, Rights::RW)
        };
        match self.call(peer, Request::Attach(attach)) {
            Ok(Response::Attached { handle, .. }) => handle,
            other => panic!("{other:?}"),
        }
    }

    /// The status, the entry, and the number of the first frame.
    fn push(&mut self, peer: PeerId, frames: Vec<Push>) -> (Status, u32, u64) {
        match self.call(peer, Request::Push { frames }) {
            Ok(Response::Pushed {
                status,
                entry,
                frame,
            }) => (status, entry, frame),
            other => panic!("{other:?}"),
        }
    }

    /// One frame in one buffer, to all.
    fn push_one(&mut self, peer: PeerId, id: BufferId) -> u64 {
        let (status, entry, frame) = self.push(peer, vec![frame(&[id])]);
        assert_eq!((status, entry), (Status::Ok, 1));
        frame
    }

    fn give_back(&mut self, peer: PeerId, frames: &[(u64, u64)]) -> (Status, u32) {
        let frames = frames.to_vec();
        match self.call(peer, Request::Return { frames }) {
            Ok(Response::Batch { status, entry }) => (status, entry),
            other => panic!("{other:?}"),
        }
    }

    /// Buffers and numbers of the frames that events of this kind name, the others dropped.
    fn frames(&mut self, peer: PeerId, kind: EventKind) -> Vec<(BufferId, u64)> {
        let events = self.events(peer).into_iter();
        let events = events.filter(|event| event.kind == kind);
        events.map(|event| (event.id, event.value)).collect()
    }

    fn pushed(&mut self, peer: PeerId) -> Vec<Event> {
        let events = self.events(peer).into_iter();
        events.filter(|one| one.kind == EventKind::Pushed).collect()
    }
}

fn frame(buffers: &[BufferId]) -> Push {
    Push {
        buffers: buffers.to_vec(),
        ..Push::default()
    }
}

const RETURNED: EventKind = EventKind::Returned;
const PUSHED: EventKind = EventKind::Pushed;

/// SPEC 7.17, and SPEC 7.18.
#[test]
fn a_frame_goes_to_each_consumer_and_comes_back_when_the_last_has_returned_it() {
    let mut host = Host::new();
    let id = host.export(A, 1);
    let [b, c] = [B, C].map(|peer| (peer, host.consume(peer, id)));
    // It is not given frames.
    host.attach(B, id);
    for peer in [A, B, C] {
        host.events(peer);
    }
    let number = host.push_one(A, id);
    for (peer, handle) in [b, c] {
        let events = host.events(peer);
        let [event] = &events[..] else {
            panic!("{events:?}");
        };
        assert_eq!((event.kind, event.id), (PUSHED, id));
        assert_eq!((event.handle, event.value), (handle, number));
        assert_eq!(event.peer, A.to_wire());
    }
    assert_eq!(host.give_back(B, &[(b.1, number)]), (Status::Ok, 1));
    assert_eq!(host.frames(A, RETURNED), []);
    assert_eq!(host.give_back(C, &[(c.1, number)]), (Status::Ok, 1));
    assert_eq!(host.frames(A, RETURNED), [(id, number)]);
    assert!(host.push_one(A, id) > number);
}

#[test]
fn a_frame_without_a_consumer_comes_back_at_once() {
    let mut host = Host::new();
    let id = host.export(A, 1);
    host.attach(B, id);
    host.events(A);
    let number = host.push_one(A, id);
    assert_eq!(host.frames(A, RETURNED), [(id, number)]);
}

/// SPEC 7.17: all or none, with the first that is wrong.
#[test]
fn what_cannot_be_pushed_is_a_status_each() {
    let mut host = Host::new();
    let [one, two, small] = [1, 2, 1].map(|pages| host.export(A, pages));
    let theirs = host.export(B, 1);
    let handle = host.consume(B, one);
    let refused = |host: &mut Host, frames: Vec<Push>, entry, status| {
        assert_eq!(host.push(A, frames), (status, entry, 0));
        assert_eq!(host.pushed(B), []);
    };
    refused(&mut host, vec![frame(&[theirs])], 0, Status::NotFound);
    let twice = vec![frame(&[two]), frame(&[one]), frame(&[two])];
    refused(&mut host, twice, 2, Status::Busy);
    refused(&mut host, vec![frame(&[one, one])], 0, Status::Busy);
    let mut raw = wire::Frame::default();
    raw.bytes_used[0] = 4097;
    let mut large = frame(&[small]);
    large.record = FrameRecord::new(&raw.to_bytes()).unwrap();
    refused(&mut host, vec![large], 0, Status::BadMeta);

    let number = host.push_one(A, one);
    assert_eq!(host.frames(B, PUSHED), [(one, number)]);
    refused(&mut host, vec![frame(&[two, one])], 0, Status::Busy);
    assert_eq!(host.give_back(B, &[(handle, number)]), (Status::Ok, 1));
    // It has not heard of that yet.
    refused(&mut host, vec![frame(&[one])], 0, Status::Busy);
    host.events(A);
    host.push_one(A, one);
}

/// SPEC 7.18.
#[test]
fn what_was_not_given_is_not_given_back() {
    let mut host = Host::new();
    let [one, two] = [1, 1].map(|pages| host.export(A, pages));
    let [first, second] = [one, two].map(|id| host.consume(B, id));
    let other = host.consume(C, one);
    let number = host.push_one(A, one);
    let unbalanced = (Status::Unbalanced, 0);
    assert_eq!(host.give_back(B, &[(second, number)]), unbalanced);
    assert_eq!(host.give_back(B, &[(first, number + 1)]), unbalanced);
    assert_eq!(host.give_back(C, &[(7777, number)]), (Status::NotFound, 0));
    let twice = [(first, number), (first, number)];
    assert_eq!(host.give_back(B, &twice), (Status::Unbalanced, 1));
    assert_eq!(host.give_back(B, &twice[..1]), (Status::Ok, 1));
    assert_eq!(host.give_back(B, &twice[..1]), unbalanced);
    assert_eq!(host.frames(A, RETURNED), []);
    assert_eq!(host.give_back(C, &[(other, number)]), (Status::Ok, 1));
}

/// SPEC 6.5, and SPEC 7.17.
#[test]
fn planes_of_an_image_are_in_the_buffers_of_its_frame() {
    let mut host = Host::new();
    let [one, two] = [2, 1].map(|pages| host.export(A, pages));
    let plane = |buffer, rows| Plane {
        stride: 64,
        rows,
        buffer,
        ..Plane::default()
    };
    let image = |planes: &[Plane]| {
        let image = Image {
            fourcc: 1,
            planes: planes.to_vec(),
            ..Image::default()
        };
        Box::new(Meta {
            image: Some(image),
            ..Meta::default()
        })
    };
    for (planes, both, alone) in [
        ([plane(0, 128), plane(1, 64)], Status::Ok, Status::BadMeta),
        (
            [plane(0, 128), plane(1, 65)],
            Status::BadMeta,
            Status::BadMeta,
        ),
        ([plane(0, 128), plane(0, 1)], Status::Ok, Status::Ok),
    ] {
        let meta = image(&planes);
        host.call(A, Request::SetMeta { id: one, meta }).unwrap();
        assert_eq!(host.push(A, vec![frame(&[one, two])]).0, both);
        host.events(A);
        assert_eq!(host.push(A, vec![frame(&[one])]).0, alone);
        host.events(A);
    }
}

#[test]
fn a_frame_of_several_buffers_is_one_event_and_keeps_all_of_them_out() {
    let mut host = Host::new();
    let ids = [1, 1, 1].map(|pages| host.export(A, pages));
    let handle = host.consume(B, ids[0]);
    let (status, _, number) = host.push(A, vec![frame(&ids)]);
    assert_eq!(status, Status::Ok);
    let events = host.pushed(B);
    let [event] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!(event.frame.as_ref().unwrap().others, ids[1..]);
    assert_eq!(host.push(A, vec![frame(&[ids[2]])]).0, Status::Busy);
    assert_eq!(host.give_back(B, &[(handle, number)]).0, Status::Ok);
    assert_eq!(host.frames(A, RETURNED), [(ids[0], number)]);
    host.push_one(A, ids[2]);
}

/// SPEC 7.17: `max_held`.
#[test]
fn a_slow_consumer_misses_frames_that_may_be_missed() {
    let mut host = Host::new();
    let ids = [1, 1, 1, 1].map(|pages| host.export(A, pages));
    let slow = ids.map(|id| host.consume(B, id));
    let fast = ids.map(|id| host.consume(C, id));
    let live = |id| Push {
        max_held: 1,
        ..frame(&[id])
    };
    let (_, _, number) = host.push(A, ids[..3].iter().map(|id| live(*id)).collect());
    assert_eq!(host.frames(B, PUSHED), [(ids[0], number)]);
    // It has one, too, until it gives it back.
    assert_eq!(host.frames(C, PUSHED), [(ids[0], number)]);
    assert_eq!(host.frames(A, RETURNED).len(), 2, "nobody had them");
    assert_eq!(host.give_back(C, &[(fast[0], number)]).0, Status::Ok);
    let (_, _, number) = host.push(A, vec![live(ids[1])]);
    assert_eq!(host.frames(B, PUSHED), []);
    assert_eq!(host.frames(C, PUSHED), [(ids[1], number)]);
    // Who may not miss any is given it.
    let number = host.push_one(A, ids[3]);
    assert_eq!(host.frames(B, PUSHED), [(ids[3], number)]);
    assert_eq!(host.give_back(B, &[(slow[3], number)]).0, Status::Ok);
}

#[test]
fn a_frame_comes_back_from_consumers_that_detach_are_reset_or_die() {
    let mut host = Host::new();
    let id = host.export(A, 1);
    let end: [fn(&mut Host, u64); 3] = [
        |host, handle| drop(host.detach(B, handle)),
        |host, _| {
            let effects = host.broker.peer_reset(B);
            host.take(effects);
        },
        |host, _| host.disconnect(B),
    ];
    for end in end {
        let handle = host.consume(B, id);
        let number = host.push_one(A, id);
        end(&mut host, handle);
        assert_eq!(host.frames(A, RETURNED), [(id, number)]);
        if !host.broker.snapshot().peers[1].up {
            host.connect(B);
        }
    }
}

/// SPEC 7.18: a consumer has a frame until it knows that it has not.
#[test]
fn a_frame_goes_on_without_another_of_its_buffers() {
    let mut host = Host::new();
    let ids = [1, 1, 1].map(|pages| host.export(A, pages));
    let handle = host.consume(B, ids[0]);
    let (_, _, number) = host.push(A, vec![frame(&ids)]);
    let [event] = &host.pushed(B)[..] else {
        panic!("B has no frame");
    };
    assert_eq!(event.value, number);
    host.call(A, unexport_request(ids[1])).unwrap();
    assert_eq!(host.frames(A, RETURNED), []);
    let again = vec![frame(&ids[..1])];
    assert_eq!(host.push(A, again).0, Status::Busy);
    assert_eq!(host.give_back(B, &[(handle, number)]), (Status::Ok, 1));
    assert_eq!(host.frames(A, RETURNED), [(ids[0], number)]);
    host.push_one(A, ids[2]);
}

/// SPEC 7.18, and SPEC 10.3: news of what somebody does not have any more is taken back.
#[test]
fn the_end_of_a_frames_first_buffer_takes_it_back_from_all() {
    let mut host = Host::new();
    let ids = [1, 1].map(|pages| host.export(A, pages));
    let handle = host.consume(B, ids[0]);
    let (_, _, number) = host.push(A, vec![frame(&ids)]);
    host.call(A, unexport_request(ids[0])).unwrap();
    assert_eq!(host.pushed(B), []);
    assert_eq!(host.give_back(B, &[(handle, number)]).0, Status::Unbalanced);
    assert_eq!(host.frames(A, RETURNED), [], "{number} is gone with it");
    let next = host.push_one(A, ids[1]);
    assert_eq!(host.frames(A, RETURNED), [(ids[1], next)]);
}

/// SPEC 7.18: who leaves can give nothing back.
#[test]
fn a_consumer_that_leaves_has_no_frame_and_is_given_none() {
    let mut host = Host::new();
    let id = host.export(A, 1);
    host.consume(B, id);
    let number = host.push_one(A, id);
    let effects = host.broker.peer_leaves(B);
    host.take(effects);
    assert_eq!(host.frames(A, RETURNED), [(id, number)]);
    let number = host.push_one(A, id);
    assert_eq!(host.frames(A, RETURNED), [(id, number)]);
}

/// SPEC 5.2: the attachments of an exporter do not show in what its consumers see.
#[test]
fn frames_are_numbered_by_themselves() {
    let mut host = Host::new();
    let id = host.export(A, 1);
    let theirs = host.export(B, 1);
    assert_eq!(host.push_one(A, id), 1);
    host.attach(A, theirs);
    host.events(A);
    assert_eq!(host.push_one(A, id), 2);
    assert_eq!(host.peer(A).frames, 2);
}

#[test]
fn few_attachments_of_a_peer_consume_a_buffer_and_have_one_frame_together() {
    let mut host = Host::new();
    let ids = [1, 1].map(|pages| host.export(A, pages));
    let mut handles: Vec<u64> = (0..4).map(|_| host.consume(B, ids[0])).collect();
    let more = Attach {
        consumer: true,
        ..Attach::new(ids[0], Rights::RW)
    };
    let refused = status(host.call(B, Request::Attach(more)));
    assert_eq!(refused, Status::TooMany);
    host.consume(C, ids[0]);
    host.detach(B, handles.remove(0)).unwrap();
    handles.push(host.consume(B, ids[0]));
    let other = host.consume(B, ids[1]);
    let at_most = |id, max_held| Push {
        max_held,
        ..frame(&[id])
    };
    let (_, _, number) = host.push(A, vec![at_most(ids[0], 1), at_most(ids[1], 2)]);
    let given: Vec<u64> = host.pushed(B).iter().map(|event| event.handle).collect();
    assert_eq!(given, [&handles[..], &[other]].concat());
    assert_eq!(host.peer(B).frames_held, 2);
    for handle in handles {
        assert_eq!(host.peer(B).frames_held, 2);
        assert_eq!(host.give_back(B, &[(handle, number)]), (Status::Ok, 1));
    }
    assert_eq!(host.peer(B).frames_held, 1);
}

#[test]
fn a_revoked_frame_is_one_less_of_a_peer_however_many_attachments_have_it() {
    let mut host = Host::new();
    let ids = [1, 1].map(|pages| host.export(A, pages));
    for _ in 0..3 {
        host.consume(B, ids[0]);
    }
    host.consume(C, ids[0]);
    let other = host.consume(B, ids[1]);
    host.push(A, ids.iter().map(|id| frame(&[*id])).collect());
    host.call(A, unexport_request(ids[0])).unwrap();
    let held = |peer| host.peer(peer).frames_held;
    assert_eq!((held(B), held(C)), (1, 0));
    let left: Vec<u64> = host.pushed(B).iter().map(|event| event.handle).collect();
    assert_eq!(left, [other], "what waits of the revoked one is taken back");
}
