// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The life of buffers by example.

use bufshare_protocol::event::EventKind;
use bufshare_protocol::request::{Attach, Export, Request, SyncOp, SyncTarget};
use bufshare_protocol::response::Response;
use bufshare_protocol::status::Status;
use bufshare_protocol::types::{Access, BufferId, Image, Meta, Name, Plane, Rights, Way};

use super::host::*;
use crate::broker::*;

fn mapped(reply: bufshare_protocol::response::Reply) -> (u64, bool) {
    match reply {
        Ok(Response::Mapped {
            shm_offset, cached, ..
        }) => (shm_offset, cached),
        other => panic!("{other:?}"),
    }
}

fn with_acl(acl: Vec<Access>) -> Request {
    let Request::Export(mut request) = export(&[(RAM, 1)]) else {
        unreachable!()
    };
    request.acl = acl;
    Request::Export(request)
}

fn with_meta(meta: Meta) -> Request {
    let Request::Export(request) = export(&[(RAM, 1)]) else {
        unreachable!()
    };
    Request::Export(Box::new(Export { meta, ..*request }))
}

fn kinds(host: &mut Host, peer: PeerId) -> Vec<EventKind> {
    host.events(peer).iter().map(|e| e.kind).collect()
}

/// The importer lists while the OFFER still waits for a buffer of its queue.
#[test]
fn the_end_of_a_buffer_that_only_a_list_or_query_showed_is_reported() {
    for request in [
        Request::List { cursor: 0 },
        Request::Query { id: BufferId::ZERO },
    ] {
        let mut host = Host::new();
        let id = host.export(A, 1);
        let request = match request {
            Request::Query { .. } => Request::Query { id },
            other => other,
        };
        host.call(B, request).unwrap();
        host.call(A, unexport_request(id)).unwrap();
        assert_eq!(kinds(&mut host, B), [EventKind::Revoked]);
    }
}

#[test]
fn attach_alone_asks_the_vmm_for_nothing() {
    let mut host = Host::new();
    let id = host.export(A, 2);
    host.attach(B, id);
    assert_eq!(host.peer(B).vmm_maps, 0);
}

#[test]
fn a_map_is_answered_only_after_its_barrier() {
    let mut host = Host::new();
    let id = host.export(A, 2);
    let handle = host.attach(B, id);
    let token = host.send(B, map(handle, 2));
    assert!(host.serve(B), "the mapping is asked for");
    assert!(
        host.answer(B, token).is_none(),
        "acknowledged is not visible"
    );
    assert!(host.serve(B), "the barrier is asked for");
    assert!(host.answer(B, token).unwrap().is_ok());
}

#[test]
fn a_map_that_ends_with_its_barrier_is_answered_at_once() {
    let mut host = Host::new();
    host.vmms.get_mut(&B).unwrap().proves = true;
    let [first, second] = [2, 3].map(|pages| {
        let id = host.export(A, pages);
        (host.attach(B, id), pages)
    });
    let tokens = [first, second].map(|(handle, pages)| host.send(B, map(handle, pages)));

    host.serve(B);
    assert!(
        host.answer(B, tokens[0]).is_none(),
        "the second is its barrier"
    );
    host.serve(B);

    for token in tokens {
        assert!(host.answer(B, token).unwrap().is_ok());
    }
    assert!(!host.serve(B), "no other barrier is asked for");
    assert_eq!(host.peer(B).barriers, 1);
}

#[test]
fn a_map_that_was_revoked_meanwhile_is_unmapped_though_it_is_proved() {
    let mut host = Host::new();
    host.vmms.get_mut(&B).unwrap().proves = true;
    let id = host.export(A, 2);
    let handle = host.attach(B, id);
    let token = host.send(B, map(handle, 2));
    let unexport = host.send(A, unexport_request(id));

    host.serve(B);

    assert!(host.answer(A, unexport).is_none(), "it is mapped");
    host.settle();
    assert_eq!(
        host.answer(B, token).cloned().map(status),
        Some(Status::Revoked)
    );
    assert_eq!(host.answer(A, unexport), Some(&Ok(Response::Done)));
    assert!(!host.vmms[&B].shows(A));
}

#[test]
fn extents_stand_back_to_back_in_one_range() {
    let mut host = Host::new();
    let request = export(&[(RAM + 8 * PAGE, 2), (RAM, 1), (RAM + 4 * PAGE, 3)]);
    let Ok(Response::Exported { id, .. }) = host.call(A, request) else {
        panic!()
    };
    let handle = host.attach(B, id);
    let (offset, _) = mapped(host.call(B, map(handle, 6)));
    let shown: Vec<(u64, u64)> = host.vmms[&B]
        .mappings
        .iter()
        .map(|(at, s)| (at - offset, s.addr))
        .collect();
    assert_eq!(
        shown,
        [
            (0, RAM + 8 * PAGE),
            (2 * PAGE, RAM),
            (3 * PAGE, RAM + 4 * PAGE)
        ]
    );
}

#[test]
fn a_second_map_uses_the_idle_window_even_after_a_new_attach() {
    let mut host = Host::new();
    let id = host.export(A, 2);
    for round in 0..3 {
        let handle = host.attach(B, id);
        let (_, cached) = mapped(host.call(B, map(handle, 2)));
        assert_eq!(cached, round > 0);
        host.unmap(B, handle).unwrap();
        host.detach(B, handle).unwrap();
    }
    assert_eq!(host.peer(B).vmm_maps, 1);
}

#[test]
fn two_attachments_of_one_buffer_share_a_window() {
    let mut host = Host::new();
    let id = host.export(A, 2);
    let (first, second) = (host.attach(B, id), host.attach(B, id));
    let (at, _) = mapped(host.call(B, map(first, 2)));
    assert_eq!(mapped(host.call(B, map(second, 2))), (at, true));
    host.unmap(B, first).unwrap();
    assert_eq!(host.peer(B).windows_live, 1);
    host.unmap(B, second).unwrap();
    assert_eq!(host.peer(B).windows_idle, 1);
}

#[test]
fn idle_windows_are_evicted_least_recently_used_first() {
    let limits = Limits {
        max_windows: 2,
        ..Limits::default()
    };
    let mut host = Host::with(config(limits));
    let ids: Vec<BufferId> = (0..3).map(|_| host.export(A, 1)).collect();
    let handles: Vec<u64> = ids.iter().map(|id| host.attach(B, *id)).collect();
    for handle in &handles[..2] {
        mapped(host.call(B, map(*handle, 1)));
        host.unmap(B, *handle).unwrap();
    }
    assert!(!mapped(host.call(B, map(handles[2], 1))).1);
    assert!(
        mapped(host.call(B, map(handles[1], 1))).1,
        "the newer one stayed"
    );
    assert_eq!(
        status(host.call(B, map(handles[0], 1))),
        Status::NoWindow,
        "both are in use"
    );
}

#[test]
fn a_range_is_used_again_only_after_the_barrier_behind_its_unmapping() {
    let mut host = Host::new();
    let big = host.export(A, 200);
    let first = host.attach(B, big);
    mapped(host.call(B, map(first, 200)));
    host.unmap(B, first).unwrap();
    let other = host.export(A, 100);
    let second = host.attach(B, other);
    let token = host.send(B, map(second, 100));
    assert!(host.serve(B), "the idle window is unmapped");
    assert!(
        !host.vmms[&B]
            .requests
            .iter()
            .any(|(_, r)| matches!(r, VmmRequest::Map { .. })),
        "nothing is mapped there before the barrier"
    );
    host.settle();
    mapped(host.answer(B, token).unwrap().clone());
}

#[test]
fn what_does_not_fit_between_windows_in_use_is_refused() {
    let mut host = Host::new();
    let big = host.export(A, 200);
    let handle = host.attach(B, big);
    mapped(host.call(B, map(handle, 200)));
    let other = host.export(A, 100);
    let second = host.attach(B, other);
    assert_eq!(status(host.call(B, map(second, 100))), Status::NoSpace);
}

#[test]
fn a_buffer_of_more_pieces_than_the_budget_is_refused_at_attach() {
    let limits = Limits {
        max_windows: 3,
        ..Limits::default()
    };
    let mut host = Host::with(config(limits));
    let pieces: Vec<(u64, u64)> = (0..4).map(|i| (RAM + 2 * i * PAGE, 1)).collect();
    let Ok(Response::Exported { id, .. }) = host.call(A, export(&pieces)) else {
        panic!()
    };
    let rights = Rights::RW;
    assert_eq!(
        status(host.call(B, Request::Attach(Attach::new(id, rights)))),
        Status::TooFragmented
    );
}

#[test]
fn udmabuf_is_taken_when_the_host_has_it_and_takes_one_mapping() {
    let mut config = config(Limits::default());
    config.host_udmabuf = true;
    let mut host = Host::with(config);
    let pieces: Vec<(u64, u64)> = (0..8).map(|i| (RAM + 2 * i * PAGE, 1)).collect();
    let Ok(Response::Exported { id, .. }) = host.call(A, export(&pieces)) else {
        panic!()
    };
    let rights = Rights::RW;
    let Ok(Response::Attached {
        way,
        windows,
        handle,
        ..
    }) = host.call(B, Request::Attach(Attach::new(id, rights)))
    else {
        panic!()
    };
    assert_eq!((way, windows), (Way::Udmabuf, 1));
    mapped(host.call(B, map(handle, 8)));
    assert_eq!(host.peer(B).windows, 1);
}

#[test]
fn raw_ram_is_not_handed_out_unless_the_operator_allows_it() {
    let mut config = config(Limits::default());
    config.peers[0].raw_ram = false;
    let mut host = Host::with(config);
    let id = host.export(A, 1);
    let rights = Rights::RW;
    assert_eq!(
        status(host.call(B, Request::Attach(Attach::new(id, rights)))),
        Status::NoWay
    );
}

#[test]
fn a_read_only_share_needs_a_vmm_that_enforces_it() {
    let mut config = config(Limits::default());
    config.peers[1].enforces_ro = true;
    let mut host = Host::with(config);
    let id = host.export(A, 1);
    let rights = Rights::READ;
    assert!(
        host.call(B, Request::Attach(Attach::new(id, rights)))
            .is_ok()
    );
    assert_eq!(
        status(host.call(C, Request::Attach(Attach::new(id, rights)))),
        Status::RoNotEnforced
    );
}

#[test]
fn unknown_and_forbidden_ids_look_the_same() {
    let mut host = Host::new();
    let of_b = host.export(B, 1);
    for id in [of_b, BufferId([7; 16])] {
        let rights = Rights::RW;
        for request in [
            Request::Attach(Attach::new(id, rights)),
            Request::Query { id },
            Request::GetMeta { id },
            unexport_request(id),
        ] {
            assert_eq!(status(host.call(C, request)), Status::NotFound);
        }
    }
}

#[test]
fn handles_of_other_peers_are_unknown() {
    let mut host = Host::new();
    let id = host.export(A, 1);
    let handle = host.attach(B, id);
    host.call(B, map(handle, 1)).unwrap();
    let windows = vec![host.window(B, handle)];
    let handles = vec![handle];
    assert_eq!(status(host.call(C, map(handle, 1))), Status::NotFound);
    for request in [Request::Unmap { windows }, Request::Detach { handles }] {
        assert_eq!(status(one(host.call(C, request))), Status::NotFound);
    }
}

#[test]
fn bad_extents_are_refused_with_the_reason() {
    let mut host = Host::new();
    let cases = [
        (vec![(RAM - PAGE, 1)], Status::NotRam),
        (vec![(RAM + (8 << 20) - PAGE, 2)], Status::NotRam),
        (vec![(RAM + 1, 1)], Status::Unaligned),
        (vec![(RAM, 2), (RAM + PAGE, 1)], Status::Overlap),
        (vec![(RAM, 1), (RAM, 1)], Status::Overlap),
        (vec![(u64::MAX - PAGE + 1, 1)], Status::NotRam),
        (vec![(RAM, 256)], Status::TooLarge),
        (vec![(RAM, 0)], Status::BadField),
    ];
    for (extents, expected) in cases {
        assert_eq!(
            status(host.call(A, export(&extents))),
            expected,
            "{extents:?}"
        );
    }
    let Request::Export(mut wrong_sum) = export(&[(RAM, 2)]) else {
        unreachable!()
    };
    wrong_sum.size = PAGE;
    assert_eq!(
        status(host.call(A, Request::Export(wrong_sum))),
        Status::BadField
    );
    assert_eq!(host.broker.snapshot().buffers, []);
}

#[test]
fn policy_that_is_replaced_revokes_what_it_does_not_allow_and_nothing_else() {
    let mut host = Host::new();
    let line = |peer: PeerId| Access {
        peer: peer.to_wire(),
        rights: Rights::RW,
    };
    let export = |host: &mut Host, to| match host.call(A, with_acl(vec![line(to)])) {
        Ok(Response::Exported { id, .. }) => id,
        other => panic!("{other:?}"),
    };
    let (to_b, to_c) = (export(&mut host, B), export(&mut host, C));
    let handle = host.attach(B, to_b);
    mapped(host.call(B, map(handle, 1)));
    host.events(B);
    let kept = host.attach(C, to_c);
    let allow = |exporter, importer| Allow {
        exporter,
        importer,
        rights: Rights::RW,
    };

    let unknown = host.broker.set_policy(&[allow(A, PeerId(9))]);
    assert_eq!(unknown, Err(ConfigError::UnknownPeer(PeerId(9))));
    mapped(host.call(C, map(kept, 1)));

    let (owners, effects) = host.broker.set_policy(&[allow(A, C)]).unwrap();
    assert_eq!(owners, [A]);
    host.take(effects);
    // Before the first step.
    assert_eq!(status(host.call(B, map(handle, 1))), Status::Revoked);
    assert!(host.revoke_next(A));

    let kinds: Vec<EventKind> = host.events(B).iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [EventKind::Revoked]);
    host.unmap(B, handle).unwrap();
    host.settle();
    let left: Vec<String> = host
        .broker
        .snapshot()
        .buffers
        .iter()
        .map(|b| b.id.clone())
        .collect();
    assert_eq!(left, [to_c.to_string()]);
    mapped(host.call(C, map(kept, 1)));
    assert_eq!(
        status(host.call(A, with_acl(vec![line(B)]))),
        Status::Denied
    );
    assert_eq!(host.broker.set_policy(&[allow(A, C)]).unwrap().0, []);
}

#[test]
fn an_exporter_can_only_narrow_the_operators_policy() {
    let mut host = Host::new();
    let line = |peer: u64, rights| Access { peer, rights };
    let rw = Rights::RW;
    for (acl, expected) in [
        (vec![line(9, rw)], Status::Denied),
        (vec![line(u64::MAX, rw)], Status::Denied),
        (vec![line(1, rw)], Status::Denied),
        (vec![line(2, Rights::WRITE)], Status::BadField),
        (vec![line(2, rw), line(2, rw)], Status::BadField),
    ] {
        assert_eq!(status(host.call(A, with_acl(acl))), expected);
    }
    let Ok(Response::Exported { id, .. }) = host.call(A, with_acl(vec![line(3, rw)])) else {
        panic!()
    };
    assert_eq!(
        status(host.call(B, Request::Attach(Attach::new(id, rw)))),
        Status::NotFound
    );
    host.attach(C, id);
}

#[test]
fn nobody_to_share_with_is_reported_at_export() {
    let mut host = Host::new();
    assert_eq!(status(host.call(C, export(&[(RAM, 1)]))), Status::Denied);
}

#[test]
fn an_image_that_leaves_its_buffer_is_refused() {
    let mut host = Host::new();
    let image = |rows| Image {
        fourcc: 0x3432_5258,
        width: 32,
        height: rows,
        modifier: 0,
        planes: vec![Plane {
            offset: 0,
            stride: 128,
            rows,
            buffer: 0,
        }],
    };
    let meta = |rows| Meta {
        image: Some(image(rows)),
        ..Meta::default()
    };
    assert!(host.call(A, with_meta(meta(32))).is_ok());
    assert_eq!(status(host.call(A, with_meta(meta(33)))), Status::BadMeta);
}

#[test]
fn a_blob_that_is_too_large_is_refused_not_cut() {
    let limits = Limits {
        max_blob: 8,
        ..Limits::default()
    };
    let mut host = Host::with(config(limits));
    let meta = |n| Meta {
        blob: vec![1; n],
        ..Meta::default()
    };
    let Ok(Response::Exported { id, .. }) = host.call(A, with_meta(meta(8))) else {
        panic!()
    };
    let request = Request::SetMeta {
        id,
        meta: Box::new(meta(9)),
    };
    assert_eq!(status(host.call(A, request)), Status::MetaTooLarge);
    let Ok(Response::Meta { seq, meta }) = host.call(B, Request::GetMeta { id }) else {
        panic!()
    };
    assert_eq!((seq, meta.blob.len()), (1, 8));
}

#[test]
fn metadata_updates_are_counted_and_reported_to_whoever_may_attach() {
    let mut host = Host::new();
    let id = host.export(A, 1);
    host.events(B);
    let meta = Meta {
        name: Name::new("frame").unwrap(),
        blob: vec![1],
        ..Meta::default()
    };
    for seq in 2..5 {
        let request = Request::SetMeta {
            id,
            meta: Box::new(meta.clone()),
        };
        assert_eq!(host.call(A, request), Ok(Response::MetaSet { seq }));
    }
    let events = host.events(B);
    assert_eq!(events.len(), 1);
    assert_eq!((events[0].kind, events[0].value), (EventKind::Meta, 4));
    let request = Request::SetMeta {
        id,
        meta: Box::new(meta),
    };
    assert_eq!(status(host.call(B, request)), Status::NotFound);
}

#[test]
fn limits_refuse_one_more_and_other_peers_see_nothing() {
    let limits = Limits {
        max_buffers: 2,
        max_attachments: 2,
        ..Limits::default()
    };
    let mut host = Host::with(config(limits));
    let id = host.export(A, 1);
    host.export(A, 1);
    assert_eq!(status(host.call(A, export(&[(RAM, 1)]))), Status::TooMany);
    host.export(B, 1);
    host.attach(B, id);
    host.attach(B, id);
    let rights = Rights::RW;
    assert_eq!(
        status(host.call(B, Request::Attach(Attach::new(id, rights)))),
        Status::TooMany
    );
    host.attach(C, id);
}

#[test]
fn maps_are_counted_and_a_mapped_attachment_is_busy() {
    let mut host = Host::new();
    let id = host.export(A, 1);
    let handle = host.attach(B, id);
    assert_eq!(status(host.unmap(B, handle)), Status::NotFound);
    mapped(host.call(B, map(handle, 1)));
    mapped(host.call(B, map(handle, 1)));
    host.unmap(B, handle).unwrap();
    assert_eq!(status(host.detach(B, handle)), Status::Busy);
    host.unmap(B, handle).unwrap();
    host.detach(B, handle).unwrap();
    assert_eq!(status(host.detach(B, handle)), Status::NotFound);
}

#[test]
fn a_detach_while_its_map_is_under_way_is_busy() {
    let mut host = Host::new();
    let id = host.export(A, 1);
    let handle = host.attach(B, id);
    host.send(B, map(handle, 1));
    let handles = vec![handle];
    let token = host.send(B, Request::Detach { handles });
    let busy = Response::Batch {
        status: Status::Busy,
        entry: 0,
    };
    assert_eq!(host.answer(B, token), Some(&Ok(busy)));
}

#[test]
fn released_comes_once_per_importer_after_its_last_attachment() {
    let mut host = Host::new();
    let id = host.export(A, 1);
    let handles = [host.attach(B, id), host.attach(B, id)];
    host.events(A);
    host.detach(B, handles[0]).unwrap();
    assert_eq!(kinds(&mut host, A), []);
    host.detach(B, handles[1]).unwrap();
    let events = host.events(A);
    assert_eq!(events.len(), 1);
    assert_eq!(
        (events[0].kind, events[0].peer, events[0].id),
        (EventKind::Released, B.to_wire(), id)
    );
}

#[test]
fn unexport_is_answered_when_the_importer_has_unmapped() {
    let mut host = Host::new();
    let id = host.export(A, 1);
    let handle = host.attach(B, id);
    mapped(host.call(B, map(handle, 1)));
    host.events(B);
    let unexport = host.send(A, unexport_request(id));
    host.settle();
    assert!(host.answer(A, unexport).is_none());
    let events = host.events(B);
    assert_eq!(
        (events[0].kind, events[0].handle),
        (EventKind::Revoked, handle)
    );
    assert_eq!(status(host.call(B, map(handle, 1))), Status::Revoked);
    host.unmap(B, handle).unwrap();
    assert_eq!(host.answer(A, unexport), Some(&Ok(Response::Done)));
    assert!(!host.broker.exposed(A));
    host.detach(B, handle).unwrap();
    assert_eq!(status(host.call(A, unexport_request(id))), Status::NotFound);
}

#[test]
fn an_importer_that_does_not_unmap_loses_the_window_at_the_deadline() {
    let mut host = Host::new();
    let id = host.export(A, 1);
    let handle = host.attach(B, id);
    mapped(host.call(B, map(handle, 1)));
    let unexport = host.send(A, unexport_request(id));
    let again = host.send(A, unexport_request(id));
    assert_eq!(host.answer(A, again), Some(&Err(Status::Busy)));
    let deadline = host.deadlines.pop_front().unwrap();
    let effects = host.broker.deadline(deadline);
    host.take(effects);
    assert!(host.answer(A, unexport).is_none(), "not before the barrier");
    host.settle();
    assert!(host.answer(A, unexport).is_some());
    assert!(!host.vmms[&B].shows(A));
    assert_eq!(host.peer(B).deadlines_missed, 1);
    host.unmap(B, handle).unwrap();
    host.detach(B, handle).unwrap();
}

/// B has a buffer of `pieces` pages mapped, and loses it at the deadline:
/// its handle and the offset.
fn forced(host: &mut Host, pieces: u64) -> (u64, u64) {
    let list: Vec<(u64, u64)> = (0..pieces).map(|i| (RAM + 2 * i * PAGE, 1)).collect();
    let id = match host.call(A, export(&list)) {
        Ok(Response::Exported { id, .. }) => id,
        other => panic!("{other:?}"),
    };
    let handle = host.attach(B, id);
    let (offset, _) = mapped(host.call(B, map(handle, pieces)));
    let unexport = host.send(A, unexport_request(id));
    let deadline = host.deadlines.pop_front().unwrap();
    let effects = host.broker.deadline(deadline);
    host.take(effects);
    host.settle();
    assert_eq!(host.answer(A, unexport), Some(&Ok(Response::Done)));
    (handle, offset)
}

#[test]
fn who_does_not_unmap_sees_zero_pages_in_one_mapping_until_he_does() {
    let mut host = Host::new();
    let (handle, offset) = forced(&mut host, 3);

    let zero_pages = Shown {
        len: 3 * PAGE,
        owner: NOBODY,
        addr: 0,
    };
    assert_eq!(host.vmms[&B].mappings, [(offset, zero_pages)].into());
    let peer = host.peer(B);
    assert_eq!((peer.windows, peer.windows_zero), (1, 1));
    assert_eq!(peer.direct_bytes, 0);

    host.unmap(B, handle).unwrap();
    host.settle();
    assert_eq!(host.vmms[&B].mappings.len(), 0);
    assert_eq!(host.peer(B).windows, 0);
}

#[test]
fn the_place_of_a_revoked_buffer_is_not_used_before_its_users_left() {
    let mut host = Host::new();
    let pages = SHM / PAGE - 1;
    let id = host.export(A, pages - 1);
    let large = host.attach(B, id);
    let (handle, _) = forced(&mut host, 2);

    let reply = host.call(B, map(large, pages - 1));
    assert_eq!(status(reply), Status::NoSpace);

    host.unmap(B, handle).unwrap();
    host.call(B, map(large, pages - 1)).unwrap();
}

fn hole(outcome: Outcome) {
    let mut host = Host::new();
    let id = host.export(A, 1);
    let handle = host.attach(B, id);
    let (offset, _) = mapped(host.call(B, map(handle, 1)));
    let unexport = host.send(A, unexport_request(id));
    host.vmms.get_mut(&B).unwrap().no_map = Some(outcome);
    let deadline = host.deadlines.pop_front().unwrap();
    let effects = host.broker.deadline(deadline);
    host.take(effects);
    host.settle();
    host.vmms.get_mut(&B).unwrap().no_map = None;

    assert_eq!(host.answer(A, unexport), Some(&Ok(Response::Done)));
    assert_eq!(host.vmms[&B].mappings.len(), 0);
    let peer = host.peer(B);
    assert_eq!((peer.windows, peer.windows_zero), (0, 1));
    let other = host.export(A, 1);
    let second = host.attach(B, other);
    assert_ne!(mapped(host.call(B, map(second, 1))).0, offset);

    host.unmap(B, handle).unwrap();
    assert_eq!(host.peer(B).windows_zero, 0);
    host.settle();
    let third = host.export(A, 2);
    let third = host.attach(B, third);
    host.call(B, map(third, 2)).unwrap();
}

#[test]
fn a_vmm_that_refuses_zero_pages_leaves_a_hole_that_is_not_used_either() {
    hole(Outcome::Refused);
}

#[test]
fn zero_pages_that_are_not_asked_for_leave_a_hole_that_is_not_used_either() {
    hole(Outcome::HostError);
}

#[test]
fn zero_pages_are_unmapped_when_their_driver_is_reset() {
    let mut host = Host::new();
    forced(&mut host, 2);

    let effects = host.broker.peer_reset(B);
    host.take(effects);
    host.settle();

    assert_eq!(host.vmms[&B].mappings.len(), 0);
    let peer = host.peer(B);
    assert_eq!((peer.windows, peer.windows_zero), (0, 0));
}

#[test]
fn zero_pages_that_come_when_nobody_is_left_are_unmapped_at_once() {
    let mut host = Host::new();
    let id = host.export(A, 1);
    let handle = host.attach(B, id);
    mapped(host.call(B, map(handle, 1)));
    host.send(A, unexport_request(id));
    let deadline = host.deadlines.pop_front().unwrap();
    let effects = host.broker.deadline(deadline);
    host.take(effects);
    assert!(host.serve(B), "the unmapping");
    let windows = vec![host.window(B, handle)];
    host.send(B, Request::Unmap { windows });
    host.settle();

    assert_eq!(host.peer(B).vmm_zero_maps, 1);
    assert_eq!(host.vmms[&B].mappings.len(), 0);
    assert_eq!(host.peer(B).windows, 0);
}

#[test]
fn unexport_while_a_map_is_under_way_ends_both() {
    let mut host = Host::new();
    let id = host.export(A, 1);
    let handle = host.attach(B, id);
    let map = host.send(B, map(handle, 1));
    let unexport = host.send(A, unexport_request(id));
    assert_eq!(host.answer(B, map), Some(&Err(Status::Revoked)));
    host.settle();
    assert_eq!(host.answer(A, unexport), Some(&Ok(Response::Done)));
    assert_eq!(host.vmms[&B].mappings.len(), 0);
}

#[test]
fn a_reset_exporter_is_exposed_until_the_importer_has_lost_the_window() {
    let mut host = Host::new();
    let id = host.export(A, 1);
    let handle = host.attach(B, id);
    mapped(host.call(B, map(handle, 1)));
    host.events(B);
    let effects = host.broker.peer_reset(A);
    host.take(effects);
    assert_eq!(host.broker.exposed_to(A), [B]);
    assert_eq!(
        kinds(&mut host, B),
        [EventKind::PeerDown, EventKind::Revoked]
    );
    host.unmap(B, handle).unwrap();
    assert!(!host.broker.exposed(A));
    assert_eq!(host.peer(A).exports, 0);
}

#[test]
fn a_reset_importer_lets_go_of_everything() {
    let mut host = Host::new();
    let id = host.export(A, 1);
    let handle = host.attach(B, id);
    mapped(host.call(B, map(handle, 1)));
    host.events(A);
    let effects = host.broker.peer_reset(B);
    host.take(effects);
    host.settle();
    assert_eq!(
        kinds(&mut host, A),
        [EventKind::PeerDown, EventKind::Released]
    );
    let peer = host.peer(B);
    assert_eq!((peer.attachments, peer.windows), (0, 0));
    assert_eq!(host.vmms[&B].mappings.len(), 0);
}

#[test]
fn a_driver_that_was_only_paused_keeps_its_imports_and_learns_what_it_lost() {
    let mut host = Host::new();
    let theirs = host.export(A, 1);
    let handle = host.attach(B, theirs);
    mapped(host.call(B, map(handle, 1)));
    let own = host.export(B, 1);
    host.events(B);
    host.stop(B);
    host.settle();
    assert!(!host.broker.exposed(B));
    assert_eq!(host.peer(B).windows_live, 1);
    let effects = host.broker.peer_up(B, true);
    host.take(effects);
    let events: Vec<_> = host.events(B).iter().map(|e| (e.kind, e.id)).collect();
    assert!(events.contains(&(EventKind::Revoked, own)));
    assert!(events.iter().any(|(kind, _)| *kind == EventKind::Overflow));
    assert!(!events.contains(&(EventKind::Revoked, theirs)));
    host.unmap(B, handle).unwrap();
    host.detach(B, handle).unwrap();
}

#[test]
fn a_paused_importer_learns_that_its_import_was_revoked() {
    let mut host = Host::new();
    let id = host.export(A, 1);
    let handle = host.attach(B, id);
    mapped(host.call(B, map(handle, 1)));
    host.events(B);
    host.stop(B);
    let unexport = host.send(A, unexport_request(id));
    let effects = host.broker.peer_up(B, true);
    host.take(effects);
    let events = host.events(B);
    assert!(
        events
            .iter()
            .any(|e| e.kind == EventKind::Revoked && e.handle == handle)
    );
    host.unmap(B, handle).unwrap();
    assert_eq!(host.answer(A, unexport), Some(&Ok(Response::Done)));
}

/// The driver of A leaves while B, which is stopped, holds its UNEXPORT up.
fn leaves_without_its_answer(host: &mut Host) -> (BufferId, u64) {
    let id = host.export(A, 1);
    let handle = host.attach(B, id);
    mapped(host.call(B, map(handle, 1)));
    host.stop(B);
    let unexport = host.send(A, unexport_request(id));
    host.settle();
    assert!(host.answer(A, unexport).is_none());
    let effects = host.broker.peer_reset(A);
    host.unanswered.clear();
    host.take(effects);
    (id, handle)
}

#[test]
fn a_driver_that_left_asks_again_and_waits() {
    let mut host = Host::new();
    let (id, handle) = leaves_without_its_answer(&mut host);
    let effects = host.broker.peer_up(A, true);
    host.take(effects);
    let again = host.send(A, unexport_request(id));
    host.settle();
    assert!(host.answer(A, again).is_none());
    let effects = host.broker.peer_up(B, true);
    host.take(effects);
    host.unmap(B, handle).unwrap();
    assert_eq!(host.answer(A, again), Some(&Ok(Response::Done)));
}

#[test]
fn a_driver_that_left_has_its_answer_in_the_next_session_once() {
    let mut host = Host::new();
    let (id, handle) = leaves_without_its_answer(&mut host);
    // It comes while nobody of A listens.
    let effects = host.broker.peer_up(B, true);
    host.take(effects);
    host.unmap(B, handle).unwrap();
    assert!(!host.broker.exposed(A));
    let effects = host.broker.peer_up(A, true);
    host.take(effects);
    // It is nobody else's.
    let other = status(host.call(B, unexport_request(id)));
    assert_eq!(other, Status::NotFound);
    host.call(A, unexport_request(id)).unwrap();
    let again = status(host.call(A, unexport_request(id)));
    assert_eq!(again, Status::NotFound);
}

#[test]
fn answers_that_no_driver_asks_for_do_not_add_up() {
    let mut host = Host::with(config(Limits {
        max_buffers: 8,
        ..Limits::default()
    }));
    // Each leaves one answer, more than there may be.
    for _ in 0..40 {
        let id = host.export(A, 1);
        let effects = host.broker.peer_reset(A);
        host.take(effects);
        let effects = host.broker.peer_up(A, true);
        host.take(effects);
        // Nobody had it: that is known at once.
        host.call(A, unexport_request(id)).unwrap();
        host.export(A, 1);
        let effects = host.broker.peer_reset(A);
        host.take(effects);
        let effects = host.broker.peer_up(A, true);
        host.take(effects);
        host.broker.check().unwrap();
    }
}

/// B is stopped with a buffer of A mapped, then A stops: the handle.
fn stopped_importer_of_a_stopped_exporter(host: &mut Host) -> u64 {
    let id = host.export(A, 1);
    let handle = host.attach(B, id);
    mapped(host.call(B, map(handle, 1)));
    host.stop(B);
    host.stop(A);
    handle
}

#[test]
fn a_resumed_importer_loses_at_once_what_an_exporter_did_not_wait_for() {
    let mut host = Host::new();
    stopped_importer_of_a_stopped_exporter(&mut host);
    host.broker.stop_unproved(A);
    let effects = host.broker.peer_up(B, true);
    host.take(effects);
    host.settle();
    assert!(!host.broker.exposed(A));
    assert!(!host.vmms[&B].shows(A));
}

#[test]
fn a_resumed_importer_is_given_time_to_unmap_if_the_exporter_waits() {
    let mut host = Host::new();
    let handle = stopped_importer_of_a_stopped_exporter(&mut host);
    // It is paused for longer than that.
    let deadline = host.deadlines.pop_front().unwrap();
    let effects = host.broker.deadline(deadline);
    host.take(effects);
    assert_eq!(host.vmms[&B].requests.len(), 0, "it cannot release it");
    let effects = host.broker.peer_up(B, true);
    host.take(effects);
    host.settle();
    assert!(host.vmms[&B].shows(A), "it cannot have released it yet");

    host.unmap(B, handle).unwrap();
    host.settle();

    assert!(!host.broker.exposed(A));
    assert_eq!(host.vmms[&B].mappings.len(), 0);
    assert_eq!(host.peer(B).deadlines_missed, 0);
}

#[test]
fn a_resumed_importer_that_does_not_unmap_loses_the_window_at_a_new_deadline() {
    let mut host = Host::new();
    stopped_importer_of_a_stopped_exporter(&mut host);
    let early = host.deadlines.pop_front().unwrap();
    let effects = host.broker.peer_up(B, true);
    host.take(effects);
    let effects = host.broker.deadline(early);
    host.take(effects);
    assert!(host.vmms[&B].shows(A), "that deadline is not its own");

    let deadline = host.deadlines.pop_front().unwrap();
    let effects = host.broker.deadline(deadline);
    host.take(effects);
    host.settle();

    assert!(!host.vmms[&B].shows(A));
    assert_eq!(host.peer(B).deadlines_missed, 1);
}

#[test]
fn a_stopped_importer_loses_its_windows_when_the_exporter_waits_no_longer() {
    let mut host = Host::new();
    let id = host.export(A, 1);
    let other = host.attach(C, id);
    mapped(host.call(C, map(other, 1)));
    host.unmap(C, other).unwrap();
    let handle = host.attach(B, id);
    mapped(host.call(B, map(handle, 1)));
    host.stop(B);
    host.stop(A);
    assert!(host.vmms[&B].shows(A));

    let (stopped, effects) = host.broker.revoke_from_stopped(A);
    host.take(effects);
    host.settle();

    assert_eq!(stopped, [B], "not those that run");
    assert!(!host.vmms[&B].shows(A));
    assert!(!host.broker.exposed(A));
    assert_eq!(host.peer(B).deadlines_missed, 1);
    let (stopped, _) = host.broker.revoke_from_stopped(A);
    assert_eq!(stopped, []);
}

#[test]
fn a_peer_that_stops_loses_what_an_exporter_did_not_wait_for() {
    let mut host = Host::new();
    let id = host.export(A, 1);
    let handle = host.attach(B, id);
    mapped(host.call(B, map(handle, 1)));
    host.stop(A);
    assert!(!host.broker.revoke_unproved(B).0, "A still waits");
    host.broker.stop_unproved(A);
    host.stop(B);

    let (any, effects) = host.broker.revoke_unproved(B);
    host.take(effects);
    host.settle();

    assert!(any);
    assert!(!host.vmms[&B].shows(A));
}

fn stop_and_go_on(host: &mut Host, peer: PeerId) {
    host.stop(peer);
    let effects = host.broker.peer_up(peer, true);
    host.take(effects);
    host.settle();
}

#[test]
fn an_importer_does_not_put_its_deadline_off_by_stopping_again() {
    let mut host = Host::new();
    let id = host.export(A, 1);
    let handle = host.attach(B, id);
    mapped(host.call(B, map(handle, 1)));
    let unexport = host.send(A, unexport_request(id));
    stop_and_go_on(&mut host, B);
    assert!(host.vmms[&B].shows(A), "it is given time once");

    stop_and_go_on(&mut host, B);

    assert!(!host.vmms[&B].shows(A));
    assert_eq!(host.answer(A, unexport), Some(&Ok(Response::Done)));
}

#[test]
fn a_peer_that_stops_does_not_put_the_deadline_of_another_off() {
    let mut host = Host::new();
    let id = host.export(A, 1);
    let handle = host.attach(B, id);
    mapped(host.call(B, map(handle, 1)));
    let unexport = host.send(A, unexport_request(id));
    stop_and_go_on(&mut host, C);

    let deadline = host.deadlines.pop_front().unwrap();
    let effects = host.broker.deadline(deadline);
    host.take(effects);
    host.settle();

    assert!(!host.vmms[&B].shows(A));
    assert_eq!(host.answer(A, unexport), Some(&Ok(Response::Done)));
}

#[test]
fn windows_that_the_front_end_dropped_itself_end_a_pending_unexport() {
    let mut host = Host::new();
    let id = host.export(A, 1);
    let handle = host.attach(B, id);
    mapped(host.call(B, map(handle, 1)));
    let effects = host.broker.peer_reset(B);
    host.take(effects);
    let unexport = host.send(A, unexport_request(id));
    assert!(host.answer(A, unexport).is_none());
    host.vmms.insert(B, Vmm::default());
    let effects = host.broker.windows_gone(B);
    host.take(effects);
    assert_eq!(host.answer(A, unexport), Some(&Ok(Response::Done)));
    assert_eq!(host.peer(B).windows, 0);
}

#[test]
fn an_importer_that_vanishes_ends_a_pending_unexport() {
    let mut host = Host::new();
    let id = host.export(A, 1);
    let handle = host.attach(B, id);
    mapped(host.call(B, map(handle, 1)));
    let unexport = host.send(A, unexport_request(id));
    host.disconnect(B);
    assert_eq!(host.answer(A, unexport), Some(&Ok(Response::Done)));
    assert_eq!(host.peer(B).windows, 0);
}

#[test]
fn an_exporter_that_vanishes_is_revoked_at_its_importers() {
    let mut host = Host::new();
    let id = host.export(A, 1);
    let handle = host.attach(B, id);
    mapped(host.call(B, map(handle, 1)));
    host.events(B);
    host.disconnect(A);
    assert_eq!(
        kinds(&mut host, B),
        [EventKind::PeerDown, EventKind::Revoked]
    );
    host.unmap(B, handle).unwrap();
    host.detach(B, handle).unwrap();
    assert_eq!(host.broker.snapshot().buffers, []);
    assert_eq!(host.peer(B).windows, 0);
    host.connect(A);
    let id = host.export(A, 1);
    let handle = host.attach(B, id);
    mapped(host.call(B, map(handle, 1)));
}

#[test]
fn memory_that_is_unplugged_is_revoked() {
    let mut host = Host::new();
    let id = host.export(A, 1);
    let handle = host.attach(B, id);
    mapped(host.call(B, map(handle, 1)));
    host.events(A);
    host.set_ram(A, Vec::new());
    assert_eq!(kinds(&mut host, A), [EventKind::Revoked]);
    host.unmap(B, handle).unwrap();
    assert!(!host.broker.exposed(A));
}

#[test]
fn a_new_memory_table_costs_no_look_at_what_it_cannot_take() {
    const MANY: u64 = 100;
    let mut host = Host::new();
    for _ in 0..MANY {
        host.export(A, 2);
    }
    let region = |addr, len| RamRegion {
        addr,
        len,
        sealed: true,
    };
    let (all, more) = (region(RAM, 8 << 20), region(1 << 40, PAGE));
    // Each page of the buffers is in the first half.
    let halves = [region(RAM, 4 << 20), region(RAM + (4 << 20), 4 << 20)];
    for (what, peer, ram, most) in [
        ("of another peer", B, vec![], 0),
        ("with more", A, vec![more, all], 0),
        ("in another order", A, vec![all, more], 0),
        ("without what nobody exported", A, vec![all], 2 * MANY),
        ("in pieces", A, halves.to_vec(), 2 * MANY),
    ] {
        let before = host.broker.extents_looked_at;
        host.set_ram(peer, ram);
        let looks = host.broker.extents_looked_at - before;
        assert!(looks <= most, "{what}: {looks} looks");
        assert_eq!(u64::from(host.peer(A).exports), MANY, "{what}");
    }

    host.set_ram(A, halves[1..].to_vec());
    assert_eq!(host.peer(A).exports, 0);
}

#[test]
fn an_unexport_of_what_is_being_revoked_is_answered_when_it_is_gone() {
    let mut host = Host::new();
    let id = host.export(A, 1);
    let handle = host.attach(B, id);
    mapped(host.call(B, map(handle, 1)));
    host.set_ram(A, Vec::new());
    let unexport = host.send(A, unexport_request(id));
    let again = host.send(A, unexport_request(id));
    host.settle();
    assert!(host.answer(A, unexport).is_none(), "b still maps it");
    assert_eq!(host.answer(A, again), Some(&Err(Status::Busy)));
    host.unmap(B, handle).unwrap();
    assert_eq!(host.answer(A, unexport), Some(&Ok(Response::Done)));
    assert!(!host.broker.exposed(A));
}

#[test]
fn a_buffer_whose_file_is_kept_holds_up_its_owner_and_nobody_else() {
    let mut host = Host::new();
    host.kept = Some(Vec::new());
    let id = host.export(A, 1);
    let handle = host.attach(B, id);
    let (at, _) = mapped(host.call(B, map(handle, 1)));
    host.unmap(B, handle).unwrap();
    host.call(B, Request::Flush).unwrap();
    assert_eq!(host.peer(B).windows, 0);

    let unexport = host.send(A, unexport_request(id));
    host.settle();

    assert_eq!(host.answer(A, unexport), None);
    assert!(host.broker.exposed(A));
    assert_eq!(host.broker.shown_to(A), []);
    let holds: Vec<_> = host
        .broker
        .holds()
        .iter()
        .map(|h| (h.windows, h.bytes))
        .collect();
    assert_eq!(holds, [(1, PAGE)]);
    let other = host.export(A, 1);
    let handle = host.attach(B, other);
    assert_eq!(
        mapped(host.call(B, map(handle, 1))),
        (at, false),
        "its place"
    );
    for (peer, effect) in host.kept.take().unwrap() {
        let effects = host.broker.file_released(peer, effect);
        host.take(effects);
        let again = host.broker.file_released(peer, effect);
        assert_eq!(again, []);
    }
    assert_eq!(host.answer(A, unexport), Some(&Ok(Response::Done)));
}

#[test]
fn a_file_is_kept_also_when_the_front_end_drops_its_windows() {
    let mut host = Host::new();
    host.kept = Some(Vec::new());
    let ids = [host.export(A, 1), host.export(A, 1)];
    let handles = ids.map(|id| host.attach(B, id));
    for handle in handles {
        mapped(host.call(B, map(handle, 1)));
    }
    host.unmap(B, handles[0]).unwrap();
    host.call(B, Request::Flush).unwrap();
    let unexports = ids.map(|id| host.send(A, unexport_request(id)));

    host.vmms.insert(B, Vmm::default());
    let effects = host.broker.windows_gone(B);
    host.take(effects);

    assert_eq!(host.answer(A, unexports[0]), None, "its file is kept");
    assert_eq!(host.answer(A, unexports[1]), Some(&Ok(Response::Done)));
    for (peer, effect) in host.kept.take().unwrap() {
        let effects = host.broker.file_released(peer, effect);
        host.take(effects);
    }
    assert_eq!(host.answer(A, unexports[0]), Some(&Ok(Response::Done)));
}

#[test]
fn a_file_that_a_session_kept_is_released_with_it() {
    let mut host = Host::new();
    host.kept = Some(Vec::new());
    let id = host.export(A, 1);
    let handle = host.attach(B, id);
    mapped(host.call(B, map(handle, 1)));
    host.unmap(B, handle).unwrap();
    let unexport = host.send(A, unexport_request(id));
    host.settle();
    assert_eq!(host.answer(A, unexport), None);

    host.disconnect(B);

    assert_eq!(host.answer(A, unexport), Some(&Ok(Response::Done)));
    assert!(!host.broker.exposed(A));
}

#[test]
fn no_deadline_is_waited_for_when_nothing_is_mapped() {
    let mut host = Host::new();
    let id = host.export(A, 1);
    host.attach(B, id);

    assert_eq!(host.call(A, unexport_request(id)), Ok(Response::Done));

    assert!(host.deadlines.is_empty());
}

#[test]
fn a_stop_revokes_many_buffers_in_steps_and_shows_none_meanwhile() {
    let mut host = Host::new();
    let many = limits::MAX_REVOKE + 1;
    for _ in 1..many {
        host.export(A, 1);
    }
    let last = host.export(A, 1);
    let handle = host.attach(B, last);
    let idle = host.attach(B, last);
    mapped(host.call(B, map(handle, 1)));
    host.events(B);
    let left = |host: &Host| host.broker.snapshot().buffers.len();

    let effects = host.broker.peer_stopped(A);
    host.take(effects);
    let (done, effects) = host.broker.revoke_next(A);
    host.take(effects);
    assert!(!done);
    assert_eq!(left(&host), 1, "the first step");
    // Nothing is asked of anybody for the last one yet, and nobody gets at it.
    assert!(host.deadlines.is_empty());
    let rights = Rights::RW;
    for (request, status) in [
        (Request::Attach(Attach::new(last, rights)), Status::NotFound),
        (Request::Query { id: last }, Status::NotFound),
        (map(handle, 1), Status::Revoked),
        (map(idle, 1), Status::Revoked),
    ] {
        assert_eq!(host.call(B, request), Err(status));
    }
    assert!(host.broker.exposed(A));

    let (done, effects) = host.broker.revoke_next(A);
    host.take(effects);
    assert!(done);
    assert_eq!(host.deadlines.len(), 1);
    let (again, effects) = host.broker.revoke_next(A);
    assert!(again && effects.is_empty());
    host.unmap(B, handle).unwrap();
    assert!(!host.broker.exposed(A));
    assert_eq!(left(&host), 0);
}

#[test]
fn a_peer_that_goes_on_during_the_steps_of_its_stop_keeps_nothing_of_before() {
    let mut host = Host::new();
    host.broker.at_once = 1;
    let ids = [0; 3].map(|_| host.export(A, 1));
    let effects = host.broker.peer_stopped(A);
    host.take(effects);
    let (done, effects) = host.broker.revoke_next(A);
    host.take(effects);
    assert!(!done);

    let effects = host.broker.peer_up(A, true);
    host.take(effects);
    let new = host.export(A, 1);
    let (done, effects) = host.broker.revoke_next(A);
    host.take(effects);

    assert!(done);
    for id in ids {
        let rights = Rights::RW;
        let attach = host.call(B, Request::Attach(Attach::new(id, rights)));
        assert_eq!(attach, Err(Status::NotFound));
    }
    host.attach(B, new);
}

#[test]
fn a_table_without_ram_revokes_many_buffers_in_steps_and_offers_none_meanwhile() {
    let mut host = Host::new();
    for _ in 0..limits::MAX_REVOKE {
        host.export(A, 1);
    }
    let last = host.export(A, 1);
    let handle = host.attach(B, last);
    host.events(A);

    let effects = host.broker.set_ram(A, Vec::new());
    host.take(effects);
    assert!(!host.revoke_next(A));
    assert_eq!(host.broker.snapshot().buffers.len(), 1, "the first step");
    let rights = Rights::RW;
    for (request, status) in [
        (Request::Attach(Attach::new(last, rights)), Status::NotFound),
        (Request::Query { id: last }, Status::NotFound),
        (map(handle, 1), Status::Revoked),
    ] {
        assert_eq!(host.call(B, request), Err(status));
    }
    // Whatever is there again.
    let ram = RamRegion {
        addr: RAM,
        len: 8 << 20,
        sealed: true,
    };
    let effects = host.broker.set_ram(A, vec![ram]);
    host.take(effects);
    let new = host.export(A, 1);

    assert!(host.revoke_next(A));
    let left = host.broker.snapshot().buffers.len();
    assert_eq!(left, 1, "the new one");
    host.attach(B, new);
    assert_eq!(
        kinds(&mut host, A),
        [EventKind::Revoked; limits::MAX_REVOKE + 1]
    );
}

#[test]
fn the_end_revokes_many_buffers_in_steps() {
    let mut host = Host::new();
    let many = limits::MAX_REVOKE + 1;
    for _ in 0..many {
        host.export(A, 1);
    }
    let left = |host: &Host| host.broker.snapshot().buffers.len();
    assert_eq!(left(&host), many);

    for (last, rest) in [(false, 1), (true, 0)] {
        let (was_last, effects) = host.broker.close();
        host.take(effects);
        assert_eq!((was_last, left(&host)), (last, rest));
        assert_eq!(status(host.call(A, export(&[(RAM, 1)]))), Status::HostError);
    }
}

#[test]
fn closing_revokes_every_buffer_and_lets_nobody_export() {
    let mut host = Host::new();
    let ids = [host.export(A, 1), host.export(B, 2)];
    let handles = [host.attach(B, ids[0]), host.attach(A, ids[1])];
    mapped(host.call(B, map(handles[0], 1)));
    mapped(host.call(A, map(handles[1], 2)));
    let idle = host.export(A, 3);
    let handle = host.attach(C, idle);
    mapped(host.call(C, map(handle, 3)));
    host.unmap(C, handle).unwrap();
    for peer in [A, B, C] {
        host.events(peer);
    }

    let (last, effects) = host.broker.close();
    host.take(effects);

    assert!(last);
    let hold = |importer, owner, pages| Hold {
        importer,
        owner,
        windows: 1,
        bytes: pages * PAGE,
    };
    let all = [hold(A, B, 2), hold(B, A, 1), hold(C, A, 3)];
    assert_eq!(host.broker.holds(), all);
    let revoked = EventKind::Revoked;
    assert_eq!(kinds(&mut host, A), [revoked; 3], "two of its own");
    assert_eq!(kinds(&mut host, B), [revoked; 3], "one never attached");
    host.settle();
    assert_eq!(host.broker.holds(), all[..2], "c's was in no use");
    assert_eq!(status(host.call(A, export(&[(RAM, 1)]))), Status::HostError);
    for (peer, handle) in [(B, handles[0]), (A, handles[1])] {
        host.unmap(peer, handle).unwrap();
    }
    assert_eq!(host.broker.holds(), []);
    assert_eq!(host.broker.snapshot().buffers, []);
}

#[test]
fn a_vmm_that_refuses_a_map_leaves_no_trace() {
    let mut host = Host::new();
    let id = host.export(A, 2);
    let handle = host.attach(B, id);
    host.vmms.get_mut(&B).unwrap().no_map = Some(Outcome::Refused);
    assert_eq!(status(host.call(B, map(handle, 2))), Status::MapFailed);
    assert_eq!(host.peer(B).windows, 0);
    host.vmms.get_mut(&B).unwrap().no_map = None;
    mapped(host.call(B, map(handle, 2)));
}

#[test]
fn what_the_host_cannot_provide_is_a_status_and_leaves_no_trace() {
    let mut host = Host::new();
    let id = host.export(A, 2);
    let handle = host.attach(B, id);
    let token = host.send(B, map(handle, 2));
    let Some((effect, VmmRequest::Map { .. })) =
        host.vmms.get_mut(&B).unwrap().requests.pop_front()
    else {
        panic!()
    };
    let effects = host.broker.complete(effect, Outcome::HostError);
    host.take(effects);
    assert_eq!(host.answer(B, token), Some(&Err(Status::HostError)));
    assert_eq!(host.peer(B).windows, 0);
}

#[test]
fn without_shared_memory_requests_nothing_can_be_attached() {
    let mut host = Host::new();
    let id = host.export(A, 1);
    let effects = host.broker.peer_up(B, false);
    host.take(effects);
    let rights = Rights::RW;
    assert_eq!(
        status(host.call(B, Request::Attach(Attach::new(id, rights)))),
        Status::NoShmem
    );
}

#[test]
fn partial_maps_are_unsupported() {
    let mut host = Host::new();
    let id = host.export(A, 2);
    let handle = host.attach(B, id);
    assert_eq!(status(host.call(B, map(handle, 1))), Status::Unsupported);
}

#[test]
fn accesses_are_counted_and_an_end_needs_its_begin() {
    let mut host = Host::new();
    let id = host.export(A, 1);
    let handle = host.attach(B, id);
    let sync = |target, op, access, len| Request::Sync {
        target,
        op,
        access,
        offset: 0,
        len,
    };
    let mine = SyncTarget::Handle(handle);
    let end = sync(mine, SyncOp::End, Rights::READ, PAGE);
    assert_eq!(status(host.call(B, end.clone())), Status::Unbalanced);
    host.call(B, sync(mine, SyncOp::Begin, Rights::READ, PAGE))
        .unwrap();
    assert_eq!(
        status(host.call(B, sync(mine, SyncOp::End, Rights::RW, PAGE))),
        Status::Unbalanced
    );
    host.call(B, end).unwrap();
    assert_eq!(
        status(host.call(B, sync(mine, SyncOp::Begin, Rights::READ, PAGE + 1))),
        Status::BadField
    );
    let owned = SyncTarget::Owned(id);
    host.call(A, sync(owned, SyncOp::Begin, Rights::RW, PAGE))
        .unwrap();
    assert_eq!(
        status(host.call(B, sync(owned, SyncOp::Begin, Rights::RW, PAGE))),
        Status::NotFound
    );
}

#[test]
fn peers_see_only_those_they_may_share_with() {
    let mut host = Host::new();
    let names = |host: &mut Host, peer| {
        let Ok(Response::Peers { entries, more }) = host.call(peer, Request::Peers { cursor: 0 })
        else {
            panic!()
        };
        assert!(!more);
        entries
            .iter()
            .map(|e| e.name.as_str().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&mut host, A), ["a", "b", "c"]);
    assert_eq!(names(&mut host, C), ["a", "c"]);
}

#[test]
fn a_list_goes_on_from_its_cursor() {
    let mut host = Host::new();
    let ids: Vec<BufferId> = (0..70).map(|_| host.export(A, 1)).collect();
    let mut seen = Vec::new();
    let mut cursor = 0;
    loop {
        let Ok(Response::Buffers { entries, more }) = host.call(B, Request::List { cursor }) else {
            panic!()
        };
        cursor = entries.last().unwrap().generation;
        seen.extend(entries.iter().map(|e| e.id));
        if !more {
            break;
        }
    }
    assert_eq!(seen, ids);
    assert_eq!(
        status(host.call(B, Request::List { cursor: u64::MAX })),
        Status::BadField
    );
}

#[test]
fn impossible_configurations_are_refused() {
    struct NoIds;
    impl IdSource for NoIds {
        fn fresh(&mut self) -> Option<BufferId> {
            None
        }
    }
    let good = || config(Limits::default());
    let try_new = |c| Broker::new(c, Box::new(NoIds)).err();
    assert_eq!(try_new(good()), None);
    let mut c = good();
    c.peers[1].name = Name::new("a").unwrap();
    assert_eq!(try_new(c), Some(ConfigError::DuplicateName("a".into())));
    let mut c = good();
    c.allow[0].importer = PeerId(9);
    assert_eq!(try_new(c), Some(ConfigError::UnknownPeer(PeerId(9))));
    let mut c = good();
    c.allow[0].importer = A;
    assert_eq!(try_new(c), Some(ConfigError::SelfShare("a".into())));
    let mut c = good();
    c.shm_size = 3 << 20;
    assert_eq!(try_new(c), Some(ConfigError::ShmSize(3 << 20)));
    let mut c = good();
    c.limits.max_windows = limits::HARD_MAX_WINDOWS + 1;
    assert!(matches!(try_new(c), Some(ConfigError::Limit { .. })));
    let mut c = good();
    c.peers.clear();
    assert_eq!(try_new(c), Some(ConfigError::NoPeer));
}

#[test]
fn a_flush_is_answered_when_idle_windows_are_proved_to_be_gone() {
    let mut host = Host::new();
    let (id, other) = (host.export(A, 1), host.export(A, 1));
    let (idle, used) = (host.attach(B, id), host.attach(B, other));
    for handle in [idle, used] {
        mapped(host.call(B, map(handle, 1)));
    }
    host.unmap(B, idle).unwrap();
    let token = host.send(B, Request::Flush);
    assert!(host.serve(B), "the idle window is unmapped");
    assert!(host.answer(B, token).is_none(), "not before the barrier");
    host.settle();
    assert_eq!(host.answer(B, token), Some(&Ok(Response::Done)));
    let peer = host.peer(B);
    assert_eq!((peer.windows_idle, peer.windows_live), (0, 1));
    assert_eq!(host.call(B, Request::Flush), Ok(Response::Done));
}

#[test]
fn a_revocation_is_reported_to_others_of_a_peer_whose_attachment_is_given_up() {
    let mut host = Host::new();
    host.events(B);
    let id = host.export(A, 1);
    let handle = host.attach(B, id);
    host.events(B);
    host.call(A, unexport_request(id)).unwrap();
    host.detach(B, handle).unwrap();
    let events = host.events(B);
    assert!(
        matches!(events[..], [Event { kind: EventKind::Revoked, id: of, handle: 0, .. }] if of == id),
        "{events:?}"
    );
}

#[test]
fn a_driver_that_takes_no_events_exports_no_more_than_it_learns_the_end_of() {
    let limits = Limits {
        max_buffers: 4,
        ..Limits::default()
    };
    let mut host = Host::with(config(limits));
    host.events(A);
    let fill = |host: &mut Host| {
        let mut exported = 0;
        loop {
            match host.call(A, export(&[(RAM, 1)])) {
                Ok(_) => exported += 1,
                Err(status) => break (exported, status),
            }
        }
    };
    for expected in [4, 0, 0] {
        assert_eq!(fill(&mut host), (expected, Status::TooMany));
        host.stop(A);
        let effects = host.broker.peer_up(A, true);
        host.take(effects);
    }
    assert_eq!(host.peer(A).events_waiting, 4 + 1, "REVOKED, OVERFLOW");
    host.events(A);
    assert_eq!(fill(&mut host), (4, Status::TooMany));
}

#[test]
fn what_a_paused_driver_was_offered_and_is_gone_is_not_offered_when_it_goes_on() {
    let mut host = Host::new();
    host.events(B);
    let id = host.export(A, 1);
    host.stop(B);
    host.call(A, unexport_request(id)).unwrap();
    let effects = host.broker.peer_up(B, true);
    host.take(effects);
    assert_eq!(kinds(&mut host, B), [EventKind::Overflow]);
}

#[test]
fn nothing_is_evicted_for_a_map_that_cannot_be_made_room_for() {
    let limits = Limits {
        max_windows: 3,
        ..Limits::default()
    };
    for (pieces, pages, expected) in [(3, 3, Status::NoWindow), (1, 200, Status::NoSpace)] {
        let mut host = Host::with(config(limits));
        let ids: Vec<BufferId> = (0..2).map(|_| host.export(A, 60)).collect();
        let handles: Vec<u64> = ids.iter().map(|id| host.attach(B, *id)).collect();
        for handle in &handles {
            mapped(host.call(B, map(*handle, 60)));
        }
        // The second stays in use, and the first is kept.
        host.unmap(B, handles[0]).unwrap();
        let list: Vec<(u64, u64)> = (0..pieces)
            .map(|i| (RAM + i * 2 * PAGE, pages / pieces))
            .collect();
        let Ok(Response::Exported { id, .. }) = host.call(A, export(&list)) else {
            panic!()
        };
        let big = host.attach(B, id);

        assert_eq!(status(host.call(B, map(big, pages))), expected);

        assert_eq!(host.peer(B).vmm_unmaps, 0);
        assert!(
            mapped(host.call(B, map(handles[0], 60))).1,
            "it is still there"
        );
    }
}

#[test]
fn as_many_idle_windows_are_evicted_as_a_map_needs() {
    let limits = Limits {
        max_windows: 4,
        ..Limits::default()
    };
    let mut host = Host::with(config(limits));
    let ids: Vec<BufferId> = (0..4).map(|_| host.export(A, 1)).collect();
    let handles: Vec<u64> = ids.iter().map(|id| host.attach(B, *id)).collect();
    for handle in &handles {
        mapped(host.call(B, map(*handle, 1)));
    }
    for handle in [handles[2], handles[0], handles[1], handles[3]] {
        host.unmap(B, handle).unwrap();
    }
    let request = export(&[(RAM + 8 * PAGE, 1), (RAM + 16 * PAGE, 1)]);
    let Ok(Response::Exported { id, .. }) = host.call(A, request) else {
        panic!()
    };
    let two = host.attach(B, id);

    mapped(host.call(B, map(two, 2)));

    assert_eq!(host.peer(B).vmm_unmaps, 2);
    for handle in [handles[1], handles[3]] {
        assert!(mapped(host.call(B, map(handle, 1))).1, "used more recently");
    }
}

#[test]
fn generations_do_not_show_how_much_others_export() {
    let mut host = Host::new();
    let mut export_of = |peer| match host.call(peer, export(&[(RAM, 1)])) {
        Ok(Response::Exported { generation, .. }) => generation,
        other => panic!("{other:?}"),
    };
    let first = export_of(A);
    let others: Vec<u64> = (0..10).map(|_| export_of(B)).collect();

    assert_eq!(export_of(A), first + 1);

    assert!(!others.contains(&first) && !others.contains(&(first + 1)));
    let highest = (limits::MAX_PEERS as u64 + 1) << limits::GENERATION_BITS;
    assert!(highest < 1 << 53, "a JSON number");
}
