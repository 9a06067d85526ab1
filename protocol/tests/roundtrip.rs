// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! parse ∘ encode = id, nothing else is accepted, and no bytes panic
#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

use bufshare_protocol::event::{self, Event, EventKind};
use bufshare_protocol::limits::{
    MAX_ACL, MAX_BLOB, MAX_EXTENTS, MAX_LIST, MAX_PLANES, MAX_REQUEST, MAX_RESPONSE,
    RESPONSE_HEADER,
};
use bufshare_protocol::request::{self, Export, Header, Request, SyncOp, SyncTarget};
use bufshare_protocol::response::{self, BufferInfo, Caps, PeerInfo, Reply, Response};
use bufshare_protocol::status::Status;
use bufshare_protocol::types::{Access, BufferId, Extent, Image, Meta, Name, Plane, Rights, Way};
use bufshare_protocol::{command, wire};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// No file of past failures: what fails is printed and becomes a test.
fn config() -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

// --- Values -----------------------------------------------------------------

fn id() -> impl Strategy<Value = BufferId> {
    any::<[u8; 16]>().prop_map(BufferId)
}

fn grant() -> impl Strategy<Value = Rights> {
    select(&[Rights::READ, Rights::RW][..])
}

fn rights() -> impl Strategy<Value = Rights> {
    select(&[Rights::NONE, Rights::READ, Rights::WRITE, Rights::RW][..])
}

fn name() -> impl Strategy<Value = Name> {
    vec(any::<char>(), 0..31).prop_map(|chars| {
        let mut text = String::new();
        for c in chars.into_iter().filter(|c| !c.is_control()) {
            if text.len() + c.len_utf8() <= 31 {
                text.push(c);
            }
        }
        Name::new(&text).unwrap()
    })
}

fn plane() -> impl Strategy<Value = Plane> {
    any::<(u64, u32, u32)>().prop_map(|(offset, stride, rows)| Plane {
        offset,
        stride,
        rows,
    })
}

fn image() -> impl Strategy<Value = Image> {
    let head = (1..=u32::MAX, any::<u32>(), any::<u32>(), any::<u64>());
    (head, vec(plane(), 1..=MAX_PLANES)).prop_map(|((fourcc, width, height, modifier), planes)| {
        Image {
            fourcc,
            width,
            height,
            modifier,
            planes,
        }
    })
}

fn meta() -> impl Strategy<Value = Meta> {
    let blob = prop_oneof![
        9 => vec(any::<u8>(), 0..64),
        1 => vec(any::<u8>(), MAX_BLOB),
    ];
    (name(), option::of(image()), blob).prop_map(|(name, image, blob)| Meta { name, image, blob })
}

fn export() -> impl Strategy<Value = Export> {
    let extent = any::<(u64, u64)>().prop_map(|(addr, len)| Extent { addr, len });
    let extents = prop_oneof![
        9 => vec(extent.clone(), 1..8),
        1 => vec(extent, MAX_EXTENTS),
    ];
    let line = (any::<u64>(), grant()).prop_map(|(peer, rights)| Access { peer, rights });
    (any::<u64>(), extents, vec(line, 0..=MAX_ACL), meta()).prop_map(
        |(size, extents, acl, meta)| Export {
            size,
            extents,
            acl,
            meta,
        },
    )
}

fn sync() -> impl Strategy<Value = Request> {
    let target = prop_oneof![
        (1..=u64::MAX).prop_map(SyncTarget::Handle),
        id().prop_map(SyncTarget::Owned),
    ];
    let op = select(&[SyncOp::Begin, SyncOp::End][..]);
    let access = select(&[Rights::READ, Rights::WRITE, Rights::RW][..]);
    (target, op, access, any::<u64>(), any::<u64>()).prop_map(
        |(target, op, access, offset, len)| Request::Sync {
            target,
            op,
            access,
            offset,
            len,
        },
    )
}

fn a_request() -> impl Strategy<Value = Request> {
    let any64 = any::<u64>;
    prop_oneof![
        (1..=u32::MAX).prop_map(|version| Request::GetCaps { version }),
        any64().prop_map(|cursor| Request::Peers { cursor }),
        export().prop_map(Request::Export),
        id().prop_map(|id| Request::Unexport { id }),
        (id(), grant()).prop_map(|(id, rights)| Request::Attach { id, rights }),
        any64().prop_map(|handle| Request::Detach { handle }),
        (any64(), any64(), any64()).prop_map(|(handle, offset, len)| Request::Map {
            handle,
            offset,
            len
        }),
        any64().prop_map(|handle| Request::Unmap { handle }),
        sync(),
        (id(), meta()).prop_map(|(id, meta)| Request::SetMeta { id, meta }),
        id().prop_map(|id| Request::GetMeta { id }),
        id().prop_map(|id| Request::Query { id }),
        Just(Request::Flush),
        any64().prop_map(|cursor| Request::List { cursor }),
    ]
}

fn caps() -> impl Strategy<Value = Caps> {
    (any::<[u32; 9]>(), any::<[u64; 3]>(), name()).prop_map(|(small, big, name)| Caps {
        version: small[0],
        caps: small[1],
        max_windows: small[2],
        max_extents: small[3],
        max_buffers: small[4],
        max_attachments: small[5],
        max_blob: small[6],
        map_align: small[7],
        windows_used: small[8],
        shm_size: big[0],
        max_buffer_size: big[1],
        peer_id: big[2],
        name,
    })
}

fn peer() -> impl Strategy<Value = PeerInfo> {
    (name(), any::<bool>(), rights(), rights()).prop_map(
        |(name, up, export_rights, import_rights)| PeerInfo {
            id: 0,
            name,
            up,
            export_rights,
            import_rights,
        },
    )
}

fn buffer() -> impl Strategy<Value = BufferInfo> {
    let flags = any::<(bool, bool)>();
    (
        id(),
        any::<[u64; 4]>(),
        any::<[u32; 4]>(),
        rights(),
        flags,
        name(),
    )
        .prop_map(
            |(id, big, small, rights, (owned, revoking), name)| BufferInfo {
                id,
                owner: big[0],
                size: big[1],
                generation: big[2],
                meta_seq: big[3],
                rights,
                owned,
                revoking,
                extents: small[0],
                attachments: small[1],
                mapped: small[2],
                fourcc: small[3],
                name,
            },
        )
}

/// Numbers from 1 upwards, with gaps.
fn keys(gaps: Vec<u16>) -> impl Iterator<Item = u64> {
    gaps.into_iter().scan(0, |key, gap| {
        *key += 1 + u64::from(gap);
        Some(*key)
    })
}

fn peers() -> impl Strategy<Value = Vec<PeerInfo>> {
    vec((peer(), any::<u16>()), 0..12).prop_map(|peers| {
        let (peers, gaps): (Vec<_>, Vec<_>) = peers.into_iter().unzip();
        peers
            .into_iter()
            .zip(keys(gaps))
            .map(|(peer, id)| PeerInfo { id, ..peer })
            .collect()
    })
}

fn buffers() -> impl Strategy<Value = Vec<BufferInfo>> {
    vec((buffer(), any::<u16>()), 0..12).prop_map(|buffers| {
        let (buffers, gaps): (Vec<_>, Vec<_>) = buffers.into_iter().unzip();
        buffers
            .into_iter()
            .zip(keys(gaps))
            .map(|(buffer, generation)| BufferInfo {
                generation,
                ..buffer
            })
            .collect()
    })
}

/// An answer that is not a list, with the kind of its request.
fn single() -> impl Strategy<Value = (u32, Response)> {
    let done = select(
        &[
            command::UNEXPORT,
            command::DETACH,
            command::UNMAP,
            command::SYNC,
        ][..],
    );
    let way = select(&[Way::Direct, Way::Udmabuf, Way::Copy][..]);
    prop_oneof![
        done.prop_map(|kind| (kind, Response::Done)),
        caps().prop_map(|caps| (command::GET_CAPS, Response::Caps(caps))),
        (id(), any::<u64>()).prop_map(|(id, generation)| {
            (command::EXPORT, Response::Exported { id, generation })
        }),
        (1..=u64::MAX, any::<[u64; 3]>(), grant(), way, any::<u32>()).prop_map(
            |(handle, [size, generation, owner], rights, way, windows)| {
                let answer = Response::Attached {
                    handle,
                    size,
                    generation,
                    owner,
                    rights,
                    way,
                    windows,
                };
                (command::ATTACH, answer)
            }
        ),
        any::<(u64, u64, bool, bool)>().prop_map(|(shm_offset, len, coherent, cached)| {
            (
                command::MAP,
                Response::Mapped {
                    shm_offset,
                    len,
                    coherent,
                    cached,
                },
            )
        }),
        any::<u64>().prop_map(|seq| (command::SET_META, Response::MetaSet { seq })),
        (any::<u64>(), meta())
            .prop_map(|(seq, meta)| (command::GET_META, Response::Meta { seq, meta })),
        buffer().prop_map(|buffer| (command::QUERY, Response::Buffer(buffer))),
    ]
}

fn an_event() -> impl Strategy<Value = Event> {
    (select(EventKind::ALL), any::<[u64; 4]>(), id()).prop_map(
        |(kind, [seq, peer, handle, value], id)| Event {
            kind,
            seq,
            peer,
            id,
            handle,
            value,
        },
    )
}

// --- Requests ---------------------------------------------------------------

/// What is accepted is what `encode` writes, so that no two encodings mean the
/// same and no byte goes unread.
fn check_canonical(bytes: &[u8]) {
    if let Ok((header, request)) = request::parse(bytes) {
        assert_eq!(request.kind(), header.kind);
        assert_eq!(request.encode(header.cookie), bytes);
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn request_parse_after_encode_is_identity(request in a_request(), cookie: u64) {
        let bytes = request.encode(cookie);
        prop_assert!(bytes.len() <= MAX_REQUEST);
        let header = Header { kind: request.kind(), cookie };
        prop_assert_eq!(request::parse(&bytes), Ok((header, request)));
    }

    #[test]
    fn request_truncated_is_bad_length(request in a_request(), cookie: u64) {
        let bytes = request.encode(cookie);
        let header = Header { kind: request.kind(), cookie };
        for end in 0..bytes.len() {
            let known = (end >= 16).then_some(header);
            prop_assert_eq!(request::parse(&bytes[..end]), Err((known, Status::BadLength)));
        }
    }

    #[test]
    fn request_extended_is_bad_length(request in a_request(), cookie: u64, more in vec(any::<u8>(), 1..64)) {
        let bytes = [request.encode(cookie), more].concat();
        let header = Header { kind: request.kind(), cookie };
        prop_assert_eq!(request::parse(&bytes), Err((Some(header), Status::BadLength)));
    }

    #[test]
    fn request_of_any_bytes_is_total(bytes in vec(any::<u8>(), 0..512)) {
        check_canonical(&bytes);
    }

    #[test]
    fn request_of_any_body_is_total(kind in select(command::ALL), body in vec(any::<u8>(), 0..512)) {
        let hdr = wire::Req { r#type: kind, flags: 0, cookie: 1 }.to_bytes();
        check_canonical(&[&hdr[..], &body].concat());
    }

    #[test]
    fn request_damaged_is_total(request in a_request(), at: Index, value: u8) {
        let mut bytes = request.encode(1);
        let at = at.index(bytes.len());
        bytes[at] = value;
        check_canonical(&bytes);
    }
}

/// The request with the four bytes at `offset` replaced, and its status.
fn status_with(request: &Request, offset: usize, value: u32) -> Status {
    let mut bytes = request.encode(1);
    bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    request::parse(&bytes).unwrap_err().1
}

fn small_export() -> Request {
    Request::Export(Export {
        size: 4096,
        extents: vec![Extent { addr: 0, len: 4096 }],
        acl: vec![Access {
            peer: 1,
            rights: Rights::READ,
        }],
        meta: Meta::default(),
    })
}

#[test]
fn request_with_unknown_command_is_unsupported_and_keeps_its_cookie() {
    let bytes = wire::Req {
        r#type: 0xdead,
        flags: 1,
        cookie: 5,
    }
    .to_bytes();
    let header = Header {
        kind: 0xdead,
        cookie: 5,
    };
    assert_eq!(
        request::parse(&bytes),
        Err((Some(header), Status::Unsupported))
    );
}

#[test]
fn request_with_flags_is_bad_field() {
    assert_eq!(
        status_with(&Request::Peers { cursor: 0 }, 4, 1),
        Status::BadField
    );
}

#[test]
fn get_caps_of_version_0_or_with_reserved_is_bad_field() {
    assert_eq!(
        status_with(&Request::GetCaps { version: 1 }, 16, 0),
        Status::BadField
    );
    assert_eq!(
        status_with(&Request::GetCaps { version: 1 }, 20, 1),
        Status::BadField
    );
}

#[test]
fn attach_for_no_grant_or_with_reserved_is_bad_field() {
    let attach = Request::Attach {
        id: BufferId::ZERO,
        rights: Rights::READ,
    };
    for rights in [0, Rights::WRITE.to_wire(), 4, 7] {
        assert_eq!(
            status_with(&attach, 32, rights),
            Status::BadField,
            "{rights}"
        );
    }
    assert_eq!(status_with(&attach, 36, 1), Status::BadField);
}

#[test]
fn sync_with_two_targets_or_no_access_is_bad_field() {
    let sync = Request::Sync {
        target: SyncTarget::Handle(1),
        op: SyncOp::Begin,
        access: Rights::READ,
        offset: 0,
        len: 1,
    };
    assert_eq!(
        status_with(&sync, 24, 1),
        Status::BadField,
        "id beside handle"
    );
    assert_eq!(status_with(&sync, 40, 2), Status::BadField, "op");
    assert_eq!(status_with(&sync, 44, 0), Status::BadField, "no access");
    assert_eq!(
        status_with(&sync, 44, 4),
        Status::BadField,
        "unknown access"
    );
}

#[test]
fn export_with_counts_over_their_caps_is_refused_by_cap() {
    assert_eq!(
        status_with(&small_export(), 24, 1025),
        Status::TooFragmented
    );
    assert_eq!(
        status_with(&small_export(), 24, u32::MAX),
        Status::TooFragmented
    );
    assert_eq!(status_with(&small_export(), 28, 17), Status::BadField);
    assert_eq!(status_with(&small_export(), 24, 0), Status::BadField);
    assert_eq!(status_with(&small_export(), 24, 1024), Status::BadLength);
}

#[test]
fn export_with_bad_line_of_access_list_is_bad_field() {
    let line = wire::Export::SIZE;
    assert_eq!(
        status_with(&small_export(), line + 8, 0),
        Status::BadField,
        "no rights"
    );
    assert_eq!(
        status_with(&small_export(), line + 8, 2),
        Status::BadField,
        "write-only"
    );
    assert_eq!(
        status_with(&small_export(), line + 12, 1),
        Status::BadField,
        "reserved"
    );
}

#[test]
fn metadata_not_well_formed_has_its_own_status() {
    let set = Request::SetMeta {
        id: BufferId::ZERO,
        meta: Meta::default(),
    };
    let meta = 32;
    assert_eq!(
        status_with(&set, meta, 0x1b),
        Status::BadMeta,
        "control character"
    );
    assert_eq!(
        status_with(&set, meta + 4, 0x41),
        Status::BadMeta,
        "name behind its NUL"
    );
    assert_eq!(
        status_with(&set, meta + 32, 1),
        Status::BadMeta,
        "image without planes"
    );
    assert_eq!(
        status_with(&set, meta + 40, 1),
        Status::BadMeta,
        "width without image"
    );
    assert_eq!(status_with(&set, meta + 120, 4097), Status::MetaTooLarge);
    assert_eq!(status_with(&set, meta + 120, 1), Status::BadLength);
    assert_eq!(status_with(&set, meta + 124, 1), Status::BadField);
}

#[test]
fn longest_request_is_max_request() {
    let longest = Request::Export(Export {
        size: 0,
        extents: vec![Extent::default(); MAX_EXTENTS],
        acl: vec![
            Access {
                peer: 1,
                rights: Rights::RW
            };
            MAX_ACL
        ],
        meta: Meta {
            blob: vec![0; MAX_BLOB],
            ..Meta::default()
        },
    });
    let bytes = longest.encode(1);
    assert_eq!(bytes.len(), MAX_REQUEST);
    assert_eq!(request::parse(&bytes).unwrap().1, longest);
}

// --- Responses --------------------------------------------------------------

fn header(kind: u32) -> Header {
    Header {
        kind,
        cookie: 0xc0ffee,
    }
}

/// One PEERS or LIST exchange: the keys of the entries received, and `next`.
fn exchange(kind: u32, reply: &Reply, room: usize) -> Result<(Vec<u64>, u64), Status> {
    let bytes = response::encode(&header(kind), reply, room);
    assert!(bytes.len() <= room);
    let (cookie, reply, next) = response::parse(kind, &bytes).unwrap();
    assert_eq!(cookie, 0xc0ffee);
    match reply? {
        Response::Peers { entries, more } => {
            assert_eq!(more, next != 0);
            Ok((entries.iter().map(|peer| peer.id).collect(), next))
        }
        Response::Buffers { entries, more } => {
            assert_eq!(more, next != 0);
            Ok((
                entries.iter().map(|buffer| buffer.generation).collect(),
                next,
            ))
        }
        other => panic!("{other:?}"),
    }
}

/// Reads the whole table as a driver does, `page` entries at most per reply.
fn walk<E: Copy>(
    kind: u32,
    table: &[E],
    key: impl Fn(&E) -> u64,
    reply: impl Fn(Vec<E>, bool) -> Response,
    page: usize,
    room: usize,
) -> Result<Vec<u64>, Status> {
    let mut seen = Vec::new();
    let mut cursor = 0;
    loop {
        let behind: Vec<E> = table
            .iter()
            .filter(|entry| key(entry) > cursor)
            .copied()
            .collect();
        let more = behind.len() > page;
        let entries = behind.into_iter().take(page).collect();
        let (keys, next) = exchange(kind, &Ok(reply(entries, more)), room)?;
        seen.extend(keys);
        if next == 0 {
            return Ok(seen);
        }
        assert!(next > cursor, "the cursor must rise");
        cursor = next;
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn response_parse_after_encode_is_identity((kind, response) in single()) {
        let bytes = response::encode(&header(kind), &Ok(response.clone()), MAX_RESPONSE);
        prop_assert_eq!(response::parse(kind, &bytes), Ok((0xc0ffee, Ok(response), 0)));
    }

    #[test]
    fn response_status_round_trips(kind in select(command::ALL), status in select(Status::ALL)) {
        prop_assume!(status != Status::Ok);
        let bytes = response::encode(&header(kind), &Err(status), MAX_RESPONSE);
        prop_assert_eq!(bytes.len(), RESPONSE_HEADER);
        prop_assert_eq!(response::parse(kind, &bytes), Ok((0xc0ffee, Err(status), 0)));
    }

    #[test]
    fn response_without_room_is_no_room_or_nothing((kind, response) in single(), room: Index) {
        let whole = response::encode(&header(kind), &Ok(response.clone()), MAX_RESPONSE);
        let room = room.index(whole.len());
        let bytes = response::encode(&header(kind), &Ok(response), room);
        if room < RESPONSE_HEADER {
            prop_assert!(bytes.is_empty());
        } else {
            let no_room = Ok((0xc0ffee, Err(Status::NoRoom), 0));
            prop_assert_eq!(response::parse(kind, &bytes), no_room);
        }
    }

    #[test]
    fn response_truncated_or_extended_is_refused((kind, response) in single(), more in 1..64usize) {
        let mut bytes = response::encode(&header(kind), &Ok(response), MAX_RESPONSE);
        for end in 0..bytes.len() {
            prop_assert_eq!(response::parse(kind, &bytes[..end]), Err(Status::BadLength));
        }
        bytes.resize(bytes.len() + more, 0);
        prop_assert!(response::parse(kind, &bytes).is_err());
    }

    #[test]
    fn response_of_any_bytes_is_total(kind in select(command::ALL), body in vec(any::<u8>(), 0..512)) {
        let _ = response::parse(kind, &body);
        let hdr = wire::Resp { r#type: kind, status: 0, cookie: 1 }.to_bytes();
        let _ = response::parse(kind, &[&hdr[..], &body].concat());
    }

    #[test]
    fn response_damaged_is_total((kind, response) in single(), at: Index, value: u8) {
        let mut bytes = response::encode(&header(kind), &Ok(response), MAX_RESPONSE);
        let at = at.index(bytes.len());
        bytes[at] = value;
        if let Ok((cookie, reply, 0)) = response::parse(kind, &bytes) {
            prop_assert_eq!(response::encode(&Header { kind, cookie }, &reply, MAX_RESPONSE), bytes);
        }
    }

    #[test]
    fn peers_are_walked_once_each(table in peers(), page in 1..16usize, room in 0..1024usize) {
        let reply = |entries, more| Response::Peers { entries, more };
        let walked = walk(command::PEERS, &table, |peer| peer.id, reply, page, room.max(16));
        let fits = room >= 32 + if table.is_empty() { 0 } else { wire::Peer::SIZE };
        let keys = table.iter().map(|peer| peer.id).collect();
        prop_assert_eq!(walked, if fits { Ok(keys) } else { Err(Status::NoRoom) });
    }

    #[test]
    fn buffers_are_walked_once_each(table in buffers(), page in 1..16usize, room in 0..2048usize) {
        let reply = |entries, more| Response::Buffers { entries, more };
        let walked = walk(command::LIST, &table, |b| b.generation, reply, page, room.max(16));
        let fits = room >= 32 + if table.is_empty() { 0 } else { wire::Buffer::SIZE };
        let keys = table.iter().map(|buffer| buffer.generation).collect();
        prop_assert_eq!(walked, if fits { Ok(keys) } else { Err(Status::NoRoom) });
    }

    #[test]
    fn list_entries_round_trip(peers in peers(), buffers in buffers(), more: bool) {
        let last = peers.last().filter(|_| more).map_or(0, |peer| peer.id);
        let expected = Response::Peers { entries: peers.clone(), more: last != 0 };
        let reply = Ok(Response::Peers { entries: peers, more });
        let bytes = response::encode(&header(command::PEERS), &reply, MAX_RESPONSE);
        prop_assert_eq!(response::parse(command::PEERS, &bytes), Ok((0xc0ffee, Ok(expected), last)));

        let last = buffers.last().filter(|_| more).map_or(0, |buffer| buffer.generation);
        let expected = Response::Buffers { entries: buffers.clone(), more: last != 0 };
        let reply = Ok(Response::Buffers { entries: buffers, more });
        let bytes = response::encode(&header(command::LIST), &reply, MAX_RESPONSE);
        prop_assert_eq!(response::parse(command::LIST, &bytes), Ok((0xc0ffee, Ok(expected), last)));
    }

    #[test]
    fn config_space_is_the_head_of_caps(caps in caps()) {
        let bytes = response::encode(&header(command::GET_CAPS), &Ok(Response::Caps(caps)), MAX_RESPONSE);
        prop_assert_eq!(&bytes[16..80], &caps.config_space()[..]);
    }
}

#[test]
fn list_is_cut_to_max_list() {
    let entry = |generation| BufferInfo {
        generation,
        ..BufferInfo::default()
    };
    let reply = Ok(Response::Buffers {
        entries: (1..=65).map(entry).collect(),
        more: false,
    });
    let (keys, next) = exchange(command::LIST, &reply, MAX_RESPONSE * 2).unwrap();
    assert_eq!((keys.len(), next), (MAX_LIST, 64));
}

#[test]
fn list_that_fits_exactly_has_no_next() {
    let entry = |id| PeerInfo {
        id,
        ..PeerInfo::default()
    };
    let reply = |n| {
        Ok(Response::Peers {
            entries: (1..=n).map(entry).collect(),
            more: false,
        })
    };
    let room = wire::ListResp::SIZE + 2 * wire::Peer::SIZE;
    assert_eq!(
        exchange(command::PEERS, &reply(2), room),
        Ok((vec![1, 2], 0))
    );
    assert_eq!(
        exchange(command::PEERS, &reply(3), room),
        Ok((vec![1, 2], 2))
    );
    assert_eq!(
        exchange(command::PEERS, &reply(2), room - 1),
        Ok((vec![1], 1))
    );
}

#[test]
fn response_to_another_kind_is_bad_field() {
    let bytes = response::encode(&header(command::UNMAP), &Ok(Response::Done), 64);
    assert_eq!(
        response::parse(command::DETACH, &bytes),
        Err(Status::BadField)
    );
}

// --- Events -----------------------------------------------------------------

proptest! {
    #![proptest_config(config())]

    #[test]
    fn event_round_trips(event in an_event()) {
        prop_assert_eq!(Event::from_bytes(&event.to_bytes()), Ok(event));
    }

    #[test]
    fn event_of_any_bytes_is_canonical(
        kind in select(EventKind::ALL),
        bytes in vec(any::<u8>(), event::SIZE),
        tidy: bool,
    ) {
        let mut bytes: [u8; event::SIZE] = bytes.try_into().unwrap();
        let _ = Event::from_bytes(&bytes);
        if tidy {
            bytes[..4].copy_from_slice(&kind.to_wire().to_le_bytes());
            bytes[4..8].fill(0);
            bytes[56..].fill(0);
        }
        if let Ok(event) = Event::from_bytes(&bytes) {
            prop_assert_eq!(event.to_bytes(), bytes);
        }
    }
}

#[test]
fn event_kinds_round_trip() {
    for kind in EventKind::ALL {
        assert_eq!(EventKind::from_wire(kind.to_wire()), Some(*kind));
    }
    assert_eq!(EventKind::from_wire(0), None);
}
