// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Streams, by example.

use bufshare_protocol::event::EventKind;
use bufshare_protocol::request::{Attach, Export, Request};
use bufshare_protocol::response::{Reply, Response};
use bufshare_protocol::status::Status;
use bufshare_protocol::types::{
    Access, BufferId, Extent, Image, Meta, Name, Plane, Properties, Push, Rights, StreamState, Way,
    Ways,
};

use super::host::*;
use crate::broker::*;

fn record(name: &str, epoch: u64) -> Meta {
    Meta {
        name: Name::new(name).unwrap(),
        stream: StreamState {
            epoch,
            ended: false,
        },
        ..Meta::default()
    }
}

impl Host {
    fn create(&mut self, peer: PeerId, name: &str, to: &[PeerId]) -> Reply {
        let acl = to.iter().map(|peer| Access {
            peer: peer.to_wire(),
            rights: Rights::RW,
        });
        let export = Export {
            acl: acl.collect(),
            meta: record(name, 1),
            ..Export::default()
        };
        self.call(peer, Request::Export(Box::new(export)))
    }

    fn stream(&mut self, peer: PeerId, name: &str, to: &[PeerId]) -> BufferId {
        match self.create(peer, name, to) {
            Ok(Response::Exported { id, .. }) => id,
            other => panic!("{other:?}"),
        }
    }

    /// A buffer of a stream.
    fn part(&mut self, peer: PeerId, stream: BufferId) -> Reply {
        let extent = Extent {
            addr: RAM,
            len: PAGE,
        };
        let export = Export {
            size: PAGE,
            extents: vec![extent],
            stream,
            ..Export::default()
        };
        self.call(peer, Request::Export(Box::new(export)))
    }

    fn join(&mut self, peer: PeerId, stream: BufferId) -> u64 {
        match self.call(peer, Request::Attach(Attach::join(stream))) {
            Ok(Response::Attached { handle, .. }) => handle,
            other => panic!("{other:?}"),
        }
    }

    fn set_meta(&mut self, peer: PeerId, id: BufferId, meta: Meta) -> Reply {
        let meta = Box::new(meta);
        self.call(peer, Request::SetMeta { id, meta })
    }

    fn meta(&mut self, peer: PeerId, id: BufferId) -> Meta {
        match self.call(peer, Request::GetMeta { id }) {
            Ok(Response::Meta { meta, .. }) => meta,
            other => panic!("{other:?}"),
        }
    }

    /// The kinds of the events that a peer has of a buffer or stream.
    fn kinds(&mut self, peer: PeerId, id: BufferId) -> Vec<EventKind> {
        let events = self.events(peer).into_iter();
        let events = events.filter(|event| event.id == id);
        events.map(|event| event.kind).collect()
    }
}

/// SPEC 7.3, and SPEC 7.7.
#[test]
fn a_stream_is_offered_joined_and_left_and_its_end_is_an_event() {
    let mut host = Host::new();
    let id = host.stream(A, "camera", &[B]);
    assert_eq!(host.kinds(B, id), [EventKind::Offer]);
    assert_eq!(host.kinds(C, id), []);
    let joined = host.call(B, Request::Attach(Attach::join(id)));
    let Ok(Response::Attached {
        handle,
        size: 0,
        way: Way::None,
        properties: Properties::NONE,
        windows: 0,
        ..
    }) = joined
    else {
        panic!("{joined:?}");
    };
    let Ok(Response::Buffer(info)) = host.call(B, Request::Query { id }) else {
        panic!("B sees no stream");
    };
    assert!(info.is_stream && info.size == 0 && info.stream.is_zero());
    assert_eq!((info.name.as_str(), info.attachments), ("camera", 1));
    let hidden = host.call(C, Request::Attach(Attach::join(id)));
    assert_eq!(hidden, Err(Status::NotFound));
    host.detach(B, handle).unwrap();
    assert_eq!(host.kinds(A, id), [EventKind::Released]);
    let again = host.join(B, id);
    assert_eq!(host.call(A, unexport_request(id)), Ok(Response::Done));
    assert_eq!(host.kinds(B, id), [EventKind::Revoked]);
    host.detach(B, again).unwrap();
}

/// SPEC 7.14: who joins late has the record as it is, who was there an event.
#[test]
fn the_record_of_a_stream_is_read_and_followed() {
    let mut host = Host::new();
    let id = host.stream(A, "camera", &[B, C]);
    host.join(B, id);
    host.events(B);
    let far = Plane {
        offset: 1 << 40,
        stride: 4,
        rows: 1,
        buffer: 1,
    };
    let later = Meta {
        image: Some(Image {
            fourcc: 1,
            planes: vec![far],
            ..Image::default()
        }),
        stream: StreamState {
            epoch: 2,
            ended: true,
        },
        ..record("camera", 2)
    };
    host.set_meta(A, id, later.clone()).unwrap();
    assert_eq!(host.kinds(B, id), [EventKind::Meta]);
    host.join(C, id);
    for peer in [A, B, C] {
        assert_eq!(host.meta(peer, id), later);
    }
    let renamed = host.set_meta(A, id, record("other", 3));
    assert_eq!(renamed, Err(Status::BadMeta));
    let far = Plane {
        offset: u64::MAX,
        ..far
    };
    let image = Some(Image {
        fourcc: 1,
        planes: vec![far],
        ..Image::default()
    });
    let nowhere = Meta {
        image,
        ..record("camera", 3)
    };
    assert_eq!(host.set_meta(A, id, nowhere), Err(Status::BadMeta));
    assert_eq!(host.meta(B, id), later);
}

/// SPEC 7.3.
#[test]
fn the_name_of_a_stream_is_its_peers_only_one_until_it_ends() {
    let mut host = Host::new();
    let id = host.stream(A, "camera", &[]);
    assert_eq!(host.create(A, "camera", &[]), Err(Status::Exists));
    assert_eq!(host.create(A, "", &[]), Err(Status::BadMeta));
    host.stream(B, "camera", &[]);
    // A buffer of that name is something else.
    let buffer = host.export(A, 1);
    host.set_meta(A, buffer, record("camera", 0)).unwrap();
    host.call(A, unexport_request(buffer)).unwrap();
    assert_eq!(host.create(A, "camera", &[]), Err(Status::Exists));
    host.call(A, unexport_request(id)).unwrap();
    host.stream(A, "camera", &[]);
    host.stop(A);
    let effects = host.broker.peer_up(A, true);
    host.take(effects);
    host.stream(A, "camera", &[]);
}

/// SPEC 7.3: a part has the access list of its stream.
#[test]
fn a_buffer_of_a_stream_is_for_those_of_the_stream() {
    let mut host = Host::new();
    let stream = host.stream(A, "camera", &[C]);
    let Ok(Response::Exported { id, .. }) = host.part(A, stream) else {
        panic!("no part");
    };
    let Ok(Response::Buffer(info)) = host.call(C, Request::Query { id }) else {
        panic!("C does not see it");
    };
    assert_eq!((info.stream, info.is_stream), (stream, false));
    let query = Request::Query { id };
    assert_eq!(host.call(B, query), Err(Status::NotFound));
    host.set_meta(A, id, record("frame", 0)).unwrap();
    let Ok(Response::Buffer(info)) = host.call(C, Request::Query { id }) else {
        panic!("C does not see it");
    };
    assert_eq!(info.stream, stream, "metadata took it out of its stream");
    host.join(C, stream);
    let shown = host.broker.snapshot().buffers.into_iter();
    let shown = shown.map(|one| (one.id, one.is_stream, one.stream, one.importers));
    let (stream_id, importers) = (stream.to_string(), vec!["c".to_owned()]);
    assert_eq!(
        shown.collect::<Vec<_>>(),
        [
            (stream_id.clone(), true, None, importers),
            (id.to_string(), false, Some(stream_id), vec![]),
        ]
    );
    // It outlives the stream, and so does what it says.
    host.call(A, unexport_request(stream)).unwrap();
    host.attach(C, id);
}

/// SPEC 7.3, SPEC 7.5, SPEC 7.9, and SPEC 7.17.
#[test]
fn misuse_of_a_stream_is_a_status_each() {
    let mut host = Host::new();
    let stream = host.stream(A, "camera", &[]);
    let buffer = host.export(A, 1);
    let theirs = host.stream(B, "screen", &[]);
    assert_eq!(host.part(A, buffer), Err(Status::BadField));
    assert_eq!(host.part(A, theirs), Err(Status::NotFound));
    assert_eq!(host.part(A, BufferId([7; 16])), Err(Status::NotFound));
    let consume = Attach {
        consumer: true,
        ..Attach::join(stream)
    };
    assert_eq!(
        host.call(B, Request::Attach(consume)),
        Err(Status::BadField)
    );
    let coherent = Attach {
        required: Properties::COHERENT,
        ..Attach::join(stream)
    };
    assert_eq!(host.call(B, Request::Attach(coherent)), Err(Status::NoWay));
    let handle = host.join(B, stream);
    assert_eq!(host.call(B, map(handle, 0)), Err(Status::BadField));
    let frames = vec![Push {
        buffers: vec![stream],
        ..Push::default()
    }];
    let answer = host.call(A, Request::Push { frames });
    assert!(
        matches!(
            answer,
            Ok(Response::Pushed {
                status: Status::BadField,
                entry: 0,
                ..
            })
        ),
        "{answer:?}"
    );
    // What only streams have is nothing of a buffer.
    let of_a_stream = host.set_meta(A, buffer, record("", 1));
    assert_eq!(of_a_stream, Err(Status::BadMeta));
}

/// SPEC 7.5: who wants bytes joins no stream, and who joins is given no buffer.
#[test]
fn a_stream_is_joined_and_a_buffer_attached_by_who_accepts_that() {
    let mut host = Host::new();
    let stream = host.stream(A, "camera", &[]);
    let buffer = host.export(A, 1);
    let none = Ways::NONE.with(Way::None);
    for (id, ways, wanted) in [
        (stream, Ways::NONE, Err(Status::NoWay)),
        (stream, Ways::USUAL, Err(Status::NoWay)),
        (stream, Ways::SERVED, Ok(Way::None)),
        (stream, none.with(Way::Pool), Ok(Way::None)),
        (buffer, none, Err(Status::NoWay)),
        (buffer, Ways::SERVED, Ok(Way::Direct)),
    ] {
        for consumer in [false, true] {
            let attach = Attach {
                ways,
                consumer,
                ..Attach::new(id, Rights::RW)
            };
            let wanted = match wanted {
                Ok(Way::None) if consumer => Err(Status::BadField),
                wanted => wanted,
            };
            let way = match host.call(B, Request::Attach(attach)) {
                Ok(Response::Attached { way, .. }) => Ok(way),
                other => Err(other.unwrap_err()),
            };
            assert_eq!(way, wanted, "{ways:?} of {id}, {consumer}");
        }
    }
}

/// SPEC 6.7: it counts as a buffer.
#[test]
fn streams_are_as_few_as_buffers() {
    let limits = Limits {
        max_buffers: 2,
        ..Limits::default()
    };
    let mut host = Host::with(config(limits));
    host.stream(A, "one", &[]);
    host.stream(A, "two", &[]);
    assert_eq!(host.create(A, "three", &[]), Err(Status::TooMany));
}
