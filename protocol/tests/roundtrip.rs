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
    MAX_ACL, MAX_BATCH, MAX_BLOB, MAX_ENTRY, MAX_EXTENT_SIZE, MAX_EXTENTS, MAX_FRAME_BUFFERS,
    MAX_FRAME_RECORD, MAX_LIST, MAX_PLANES, MAX_REQUEST, MAX_RESPONSE, MAX_STRUCT, REQUEST_HEADER,
    RESPONSE_HEADER,
};
use bufshare_protocol::request::{
    self, Attach, Export, Header, Request, SyncOp, SyncTarget, UNEXPORT_GRACEFUL,
};
use bufshare_protocol::response::{self, BufferInfo, Caps, PeerInfo, Reply, Response};
use bufshare_protocol::status::Status;
use bufshare_protocol::types::{
    Access, BufferId, Extent, FrameRecord, Image, Meta, Name, Plane, Properties, Push, Pushed,
    Rights, StreamState, Way, Ways,
};
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
    let buffer = 0..u32::try_from(MAX_FRAME_BUFFERS).unwrap();
    (any::<(u64, u32, u32)>(), buffer).prop_map(|((offset, stride, rows), buffer)| Plane {
        offset,
        stride,
        rows,
        buffer,
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
    let stream = any::<(u64, bool)>().prop_map(|(epoch, ended)| StreamState { epoch, ended });
    (name(), option::of(image()), blob, stream).prop_map(|(name, image, blob, stream)| Meta {
        name,
        image,
        blob,
        stream,
    })
}

fn export() -> impl Strategy<Value = Export> {
    let extent = any::<(u64, u64)>().prop_map(|(addr, len)| Extent { addr, len });
    let extents = prop_oneof![
        9 => vec(extent.clone(), 1..8),
        1 => vec(extent, MAX_EXTENTS),
    ];
    let acl = || {
        let line = (any::<u64>(), grant());
        vec(
            line.prop_map(|(peer, rights)| Access { peer, rights }),
            0..=MAX_ACL,
        )
    };
    let of_stream = (id(), acl()).prop_map(|(stream, acl)| {
        if stream.is_zero() {
            (stream, acl)
        } else {
            (stream, vec![])
        }
    });
    let buffer = (any::<u64>(), extents, of_stream, meta());
    let buffer = buffer.prop_map(|(size, extents, (stream, acl), meta)| Export {
        size,
        extents,
        stream,
        acl,
        meta,
    });
    let stream = (acl(), meta()).prop_map(|(acl, meta)| Export {
        acl,
        meta,
        ..Export::default()
    });
    prop_oneof![4 => buffer, 1 => stream]
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

/// As short or long as anybody may have it.
fn record() -> impl Strategy<Value = FrameRecord> {
    let raw = (any::<[u32; 8]>(), any::<[u64; 4]>(), any::<[u16; 8]>()).prop_map(
        |([flags, must_know, clock, transform, used, x, range, damage], times, mastering)| {
            let [sequence, pts, duration, epoch] = times;
            let rect = wire::Rect {
                x,
                y: used,
                width: 1,
                height: flags,
            };
            let num_damage = damage % 17;
            let mut raw = wire::Frame {
                flags,
                must_know,
                sequence,
                pts,
                duration,
                clock: clock % 4,
                transform: transform % 8,
                bytes_used: [used; 4],
                crop: rect,
                full_range: (range % 3) as u8,
                mastering,
                num_damage,
                epoch,
                ..wire::Frame::default()
            };
            let damage = raw.damage.iter_mut().take(num_damage as usize);
            damage.for_each(|one| *one = rect);
            raw.to_bytes()
        },
    );
    let size = (0..=MAX_FRAME_RECORD / 8).prop_map(|words| words * 8);
    (raw, prop_oneof![Just(wire::Frame::SIZE), size]).prop_map(|(raw, size)| {
        let mut bytes = raw.to_vec();
        bytes.resize(size, 9);
        // A part of a rectangle, or one less than there were.
        if size < wire::Frame::SIZE {
            bytes.truncate(core::mem::offset_of!(wire::Frame, damage).min(size));
        }
        FrameRecord::new(&bytes).unwrap()
    })
}

fn push() -> impl Strategy<Value = Push> {
    let buffers = vec(id(), 1..=MAX_FRAME_BUFFERS);
    (buffers, any::<u32>(), record()).prop_map(|(buffers, max_held, record)| Push {
        buffers,
        max_held,
        record,
    })
}

fn a_request() -> impl Strategy<Value = Request> {
    let any64 = any::<u64>;
    prop_oneof![
        (1..=u32::MAX).prop_map(|version| Request::GetCaps { version }),
        any64().prop_map(|cursor| Request::Peers { cursor }),
        export().prop_map(|export| Request::Export(Box::new(export))),
        (id(), any::<bool>()).prop_map(|(id, quiesced)| Request::Unexport { id, quiesced }),
        (id(), any::<bool>()).prop_map(|(id, quiesced)| Request::Quiesce { id, quiesced }),
        (id(), grant(), any::<[u32; 3]>(), any::<bool>()).prop_map(
            |(id, rights, [ways, required, max_windows], consumer)| {
                Request::Attach(Attach {
                    id,
                    rights,
                    ways: Ways::from_wire(ways),
                    required: Properties::from_wire(required),
                    max_windows,
                    consumer,
                })
            }
        ),
        vec(push(), 1..=MAX_BATCH).prop_map(|frames| Request::Push { frames }),
        vec((any64(), any64()), 1..=MAX_BATCH).prop_map(|frames| Request::Return { frames }),
        vec(any64(), 1..=MAX_BATCH).prop_map(|handles| Request::Detach { handles }),
        (any64(), any64(), any64()).prop_map(|(handle, offset, len)| Request::Map {
            handle,
            offset,
            len
        }),
        vec(any64(), 1..=MAX_BATCH).prop_map(|windows| Request::Unmap { windows }),
        sync(),
        (id(), meta()).prop_map(|(id, meta)| Request::SetMeta {
            id,
            meta: Box::new(meta)
        }),
        id().prop_map(|id| Request::GetMeta { id }),
        id().prop_map(|id| Request::Query { id }),
        Just(Request::Flush),
        any64().prop_map(|cursor| Request::List { cursor }),
    ]
}

fn caps() -> impl Strategy<Value = Caps> {
    (any::<[u32; 10]>(), any::<[u64; 3]>(), name()).prop_map(|(small, big, name)| Caps {
        version: small[0],
        caps: small[1],
        max_windows: small[2],
        max_extents: small[3],
        max_buffers: small[4],
        max_attachments: small[5],
        max_blob: small[6],
        map_align: small[7],
        windows_used: small[8],
        ways: Ways::from_wire(small[9]),
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
    let flags = any::<(bool, bool, bool, bool)>();
    (
        (id(), id()),
        any::<[u64; 4]>(),
        any::<[u32; 4]>(),
        rights(),
        flags,
        name(),
    )
        .prop_map(
            |((id, stream), big, small, rights, flags, name)| BufferInfo {
                id,
                owner: big[0],
                size: big[1],
                generation: big[2],
                meta_seq: big[3],
                rights,
                owned: flags.0,
                revoking: flags.1,
                quiesced: flags.2,
                is_stream: flags.3,
                stream,
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
    let done = [
        command::UNEXPORT,
        command::FLUSH,
        command::QUIESCE,
        command::SYNC,
    ];
    let done = select(done.as_slice().to_vec());
    let batch = select(&[command::DETACH, command::UNMAP, command::RETURN][..]);
    let way = select(Way::ALL);
    prop_oneof![
        done.prop_map(|kind| (kind, Response::Done)),
        (batch, select(Status::ALL), any::<u32>())
            .prop_map(|(kind, status, entry)| (kind, Response::Batch { status, entry })),
        (select(Status::ALL), any::<(u32, u64)>()).prop_map(|(status, (entry, frame))| {
            let answer = Response::Pushed {
                status,
                entry,
                frame: if status == Status::Ok { frame } else { 0 },
            };
            (command::PUSH, answer)
        }),
        caps().prop_map(|caps| (command::GET_CAPS, Response::Caps(caps))),
        (id(), any::<u64>()).prop_map(|(id, generation)| {
            (command::EXPORT, Response::Exported { id, generation })
        }),
        (
            1..=u64::MAX,
            any::<[u64; 3]>(),
            grant(),
            way,
            any::<[u32; 2]>()
        )
            .prop_map(
                |(handle, [size, generation, owner], rights, way, [properties, windows])| {
                    let answer = Response::Attached {
                        handle,
                        size,
                        generation,
                        owner,
                        rights,
                        way,
                        properties: Properties::from_wire(properties),
                        windows,
                    };
                    (command::ATTACH, answer)
                }
            ),
        (1..=u64::MAX, any::<(u64, u64, bool)>()).prop_map(
            |(window, (shm_offset, len, cached))| {
                (
                    command::MAP,
                    Response::Mapped {
                        window,
                        shm_offset,
                        len,
                        cached,
                    },
                )
            }
        ),
        any::<u64>().prop_map(|seq| (command::SET_META, Response::MetaSet { seq })),
        (any::<u64>(), meta())
            .prop_map(|(seq, meta)| (command::GET_META, Response::Meta { seq, meta })),
        buffer().prop_map(|buffer| (command::QUERY, Response::Buffer(buffer))),
    ]
}

fn an_event() -> impl Strategy<Value = Event> {
    let others = vec(id(), 0..MAX_FRAME_BUFFERS);
    let pushed = (others, any::<u64>(), record());
    (select(EventKind::ALL), any::<[u64; 5]>(), id(), pushed).prop_map(
        |(kind, [seq, peer, handle, generation, value], id, (others, meta_seq, record))| {
            let pushed = Pushed {
                others,
                meta_seq,
                record,
            };
            Event {
                kind,
                seq,
                peer,
                id,
                handle,
                generation,
                value,
                frame: (kind == EventKind::Pushed).then(|| std::sync::Arc::new(pushed)),
            }
        },
    )
}

// --- Requests ---------------------------------------------------------------

/// What is accepted means what `encode` writes of it: encoded anew it is accepted as the
/// same, and as what it was if its structure has the length that is known.
fn check_canonical(bytes: &[u8]) {
    if let Ok((header, request)) = request::parse(bytes) {
        assert_eq!(request.kind(), header.kind);
        let again = request.encode(header.cookie);
        assert_eq!(request::parse(&again).unwrap().1, request);
        let asked = |bytes: &[u8]| bytes[12..16].to_vec();
        let sizes = Header::new(header.kind, header.cookie).entry_size == header.entry_size;
        if bytes[8..12] == again[8..12] && asked(bytes) == asked(&again) && sizes {
            // Entries and records have their own lengths.
            let sized = matches!(
                request,
                Request::Unmap { .. }
                    | Request::Detach { .. }
                    | Request::Export(_)
                    | Request::SetMeta { .. }
            );
            if !sized {
                assert_eq!(again, bytes);
            }
        }
    }
}

/// Where the structure of an encoded request ends.
fn structure(bytes: &[u8]) -> usize {
    u32::from_le_bytes(bytes[8..12].try_into().unwrap()) as usize
}

/// The request with `more` behind its structure, which then says so.
fn grown(request: &Request, more: &[u8]) -> Vec<u8> {
    let mut bytes = request.encode(1);
    let end = structure(&bytes);
    bytes.splice(end..end, more.iter().copied());
    let length = u32::try_from(end + more.len()).unwrap();
    bytes[8..12].copy_from_slice(&length.to_le_bytes());
    bytes
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn request_parse_after_encode_is_identity(request in a_request(), cookie: u64) {
        let bytes = request.encode(cookie);
        prop_assert!(bytes.len() <= MAX_REQUEST);
        let header = Header::new(request.kind(), cookie);
        prop_assert_eq!(request::parse(&bytes), Ok((header, request)));
    }

    /// SPEC 4.3.
    #[test]
    fn request_that_is_longer_by_zeroes_means_the_same(request in a_request(), more in 1..8usize) {
        let bytes = grown(&request, &vec![0; more * 8]);
        prop_assert_eq!(request::parse(&bytes).unwrap().1, request);
    }

    /// SPEC 4.3.
    #[test]
    fn request_that_says_more_than_is_known_is_unsupported(request in a_request(), more in 1..8usize, at: Index) {
        let mut tail = vec![0; more * 8];
        tail[at.index(more * 8)] = 1;
        let status = request::parse(&grown(&request, &tail)).unwrap_err().1;
        prop_assert_eq!(status, Status::Unsupported);
    }

    /// SPEC 4.3.
    #[test]
    fn request_that_is_shorter_counts_as_filled_with_zeroes(request in a_request(), cut: Index) {
        let whole = request.encode(1);
        let end = structure(&whole);
        let cut = REQUEST_HEADER + cut.index((end - REQUEST_HEADER) / 8 + 1) * 8;
        let mut filled = whole.clone();
        filled[cut..end].fill(0);
        let mut short = whole;
        short.drain(cut..end);
        short[8..12].copy_from_slice(&u32::try_from(cut).unwrap().to_le_bytes());
        prop_assert_eq!(
            request::parse(&short).map(|(_, request)| request),
            request::parse(&filled).map(|(_, request)| request)
        );
    }

    /// SPEC 4.6.
    #[test]
    fn request_truncated_is_bad_length(request in a_request(), cookie: u64) {
        let bytes = request.encode(cookie);
        for end in 0..bytes.len() {
            let (header, status) = request::parse(&bytes[..end]).unwrap_err();
            let known = header.map(|header| (header.kind, header.cookie));
            prop_assert_eq!(known, (end >= REQUEST_HEADER).then_some((request.kind(), cookie)));
            prop_assert_eq!(status, Status::BadLength);
        }
    }

    /// SPEC 4.6.
    #[test]
    fn request_extended_is_bad_length(request in a_request(), cookie: u64, more in vec(any::<u8>(), 1..64)) {
        let bytes = [request.encode(cookie), more].concat();
        prop_assert_eq!(request::parse(&bytes).unwrap_err().1, Status::BadLength);
    }

    #[test]
    fn request_of_any_bytes_is_total(bytes in vec(any::<u8>(), 0..512)) {
        check_canonical(&bytes);
    }

    #[test]
    fn request_of_any_body_is_total(kind in select(command::ALL), body in vec(any::<u8>(), 0..512)) {
        let length = u32::try_from(REQUEST_HEADER + body.len()).unwrap();
        for length in [length & !7, length.min(40) & !7] {
            let hdr = wire::Req { r#type: kind, flags: 0, length, resp_length: 64, cookie: 1 };
            check_canonical(&[&hdr.to_bytes()[..], &body].concat());
        }
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

fn encode(header: &Header, reply: &Reply, room: usize) -> Vec<u8> {
    let mut bytes = b"of another answer".to_vec();
    response::encode(header, reply, room, &mut bytes);
    bytes
}

fn unexport(quiesced: bool) -> Request {
    Request::Unexport {
        id: BufferId::ZERO,
        quiesced,
    }
}

fn small_export() -> Request {
    Request::Export(Box::new(Export {
        size: 4096,
        extents: vec![Extent { addr: 0, len: 4096 }],
        acl: vec![Access {
            peer: 1,
            rights: Rights::READ,
        }],
        ..Export::default()
    }))
}

/// SPEC 4.6: before what is wrong with its lengths and flags.
#[test]
fn request_with_unknown_command_is_unsupported_and_keeps_its_cookie() {
    for resp_length in [0, 24] {
        let bytes = wire::Req {
            r#type: 0xdead,
            flags: 1,
            length: 24,
            resp_length,
            cookie: 5,
        }
        .to_bytes();
        let (header, status) = request::parse(&bytes).unwrap_err();
        let header = header.unwrap();
        assert_eq!((header.kind, header.cookie), (0xdead, 5));
        assert_eq!(status, Status::Unsupported);
    }
}

/// SPEC 7.16.
#[test]
fn what_is_named_and_not_served_is_unsupported() {
    for &kind in command::NOT_SERVED {
        let hdr = wire::Req {
            r#type: kind,
            flags: 0,
            length: 24,
            resp_length: 24,
            cookie: 1,
        };
        let (_, status) = request::parse(&hdr.to_bytes()).unwrap_err();
        assert_eq!(status, Status::Unsupported, "{:?}", command::name(kind));
    }
    for mode in [UNEXPORT_GRACEFUL, 3, u32::MAX] {
        assert_eq!(
            status_with(
                &unexport(false),
                core::mem::offset_of!(wire::Unexport, mode),
                mode
            ),
            Status::Unsupported
        );
    }
    for backing in [request::BACKING_POOL, request::BACKING_DEFERRED, 4] {
        assert_eq!(
            status_with(
                &small_export(),
                core::mem::offset_of!(wire::Export, backing),
                backing
            ),
            Status::Unsupported
        );
    }
}

/// SPEC 7.3.
#[test]
fn a_stream_with_bytes_or_in_a_stream_and_a_part_with_an_access_list_are_refused() {
    let stream = Request::Export(Box::default());
    let size = core::mem::offset_of!(wire::Export, size);
    let number = core::mem::offset_of!(wire::Export, stream);
    assert_eq!(status_with(&stream, size, 4096), Status::BadField);
    assert_eq!(status_with(&stream, number, 1), Status::BadField);
    assert_eq!(status_with(&small_export(), number, 1), Status::BadField);
    let backing = core::mem::offset_of!(wire::Export, backing);
    let changed = status_with(&small_export(), backing, request::BACKING_STREAM);
    assert_eq!(changed, Status::BadField);
    let changed = status_with(&stream, backing, request::BACKING_EXTENTS);
    assert_eq!(changed, Status::BadField);
}

/// SPEC 4.6.
#[test]
fn lengths_that_no_structure_has_are_bad_length() {
    let flush = Request::Flush;
    for length in [0, 16, 20, 28, 32, 4104, u32::MAX] {
        assert_eq!(
            status_with(&flush, 8, length),
            Status::BadLength,
            "{length}"
        );
    }
    for resp_length in [0, 16, 23, 28, 4104, u32::MAX] {
        assert_eq!(
            status_with(&flush, 12, resp_length),
            Status::BadLength,
            "{resp_length}"
        );
    }
}

/// SPEC 4.7.
#[test]
fn batch_of_none_or_too_many_or_of_odd_entries_is_refused() {
    let unmap = Request::Unmap {
        windows: vec![7; 2],
    };
    for count in [0, 17, u32::MAX] {
        assert_eq!(status_with(&unmap, 24, count), Status::BadField, "{count}");
    }
    assert_eq!(status_with(&unmap, 24, 3), Status::BadLength);
    for size in [0, 1, 12, 1032, u32::MAX] {
        assert_eq!(status_with(&unmap, 28, size), Status::BadField, "{size}");
    }
    assert_eq!(status_with(&unmap, 28, 16), Status::BadLength);
}

/// A batch of two with entries of `size` bytes, each a seven and then `last`.
fn batch(size: usize, last: u8) -> Vec<u8> {
    let unmap = Request::Unmap {
        windows: vec![7; 2],
    };
    let mut bytes = unmap.encode(1);
    bytes.truncate(wire::Batch::SIZE);
    bytes[28..32].copy_from_slice(&u32::try_from(size).unwrap().to_le_bytes());
    for _ in 0..2 {
        let mut entry = vec![0; size];
        entry[0] = 7;
        if size > 8 {
            entry[size - 1] = last;
        }
        bytes.extend(entry);
    }
    bytes
}

/// SPEC 4.7 and SPEC 4.3.
#[test]
fn entries_of_a_batch_grow_as_structures_do() {
    let sevens = Request::Unmap {
        windows: vec![7; 2],
    };
    for size in [8, 16, 64, MAX_ENTRY] {
        assert_eq!(request::parse(&batch(size, 0)).unwrap().1, sevens, "{size}");
    }
    assert_eq!(
        request::parse(&batch(16, 1)).unwrap_err().1,
        Status::Unsupported
    );
}

/// A PUSH of one frame in two buffers, changed at these bytes of its entry.
fn push_with(change: impl FnOnce(&mut Vec<u8>)) -> Result<Request, Status> {
    let push = Request::Push {
        frames: vec![Push {
            buffers: vec![BufferId([1; 16]), BufferId([2; 16])],
            record: FrameRecord::new(&wire::Frame::default().to_bytes()).unwrap(),
            ..Push::default()
        }],
    };
    let mut bytes = push.encode(1);
    let mut entry = bytes.split_off(wire::Batch::SIZE);
    change(&mut entry);
    bytes[28..32].copy_from_slice(&u32::try_from(entry.len()).unwrap().to_le_bytes());
    bytes.extend(entry);
    match request::parse(&bytes) {
        Ok((_, request)) => Ok(request),
        Err((_, status)) => Err(status),
    }
}

/// SPEC 7.17.
#[test]
fn frames_that_are_not_well_formed_are_refused() {
    use core::mem::offset_of;
    let put = |at: usize, value: u32| {
        push_with(move |entry| entry[at..at + 4].copy_from_slice(&value.to_le_bytes()))
    };
    assert!(push_with(|_| ()).is_ok());
    assert_eq!(
        put(offset_of!(wire::Push, flags), 1),
        Err(Status::Unsupported)
    );
    for count in [0, 1, 5, u32::MAX] {
        let wrong = put(offset_of!(wire::Push, num_buffers), count);
        assert_eq!(wrong, Err(Status::BadField), "{count} buffers");
    }
    for size in [1, 4, 12, 384, u32::MAX] {
        let wrong = put(offset_of!(wire::Push, record_size), size);
        assert_eq!(wrong, Err(Status::BadField), "a record of {size}");
    }
    let short = push_with(|entry| entry.truncate(wire::Push::SIZE - 8));
    assert_eq!(short, Err(Status::BadField));
    let record = wire::Push::SIZE;
    let in_record = [
        (offset_of!(wire::Frame, clock), 4),
        (offset_of!(wire::Frame, transform), 8),
        (offset_of!(wire::Frame, colour_primaries), 3 << 24),
        (offset_of!(wire::Frame, num_damage), 17),
        (offset_of!(wire::Frame, damage), 1),
    ];
    for (at, value) in in_record {
        assert_eq!(put(record + at, value), Err(Status::BadMeta), "at {at}");
    }
    let reserved = put(record + offset_of!(wire::Frame, chroma_location), 1 << 8);
    assert_eq!(reserved, Err(Status::Unsupported));
    let long = push_with(|entry| {
        entry.resize(record + MAX_FRAME_RECORD + 8, 0);
        let size = u32::try_from(MAX_FRAME_RECORD + 8).unwrap();
        entry[offset_of!(wire::Push, record_size)..][..4].copy_from_slice(&size.to_le_bytes());
    });
    assert_eq!(long, Err(Status::TooLarge));
}

/// SPEC 7.17, and SPEC 4.3.
#[test]
fn what_is_before_the_record_of_a_frame_grows() {
    let grow = |last: u8| {
        push_with(move |entry| {
            entry.splice(
                wire::Push::SIZE..wire::Push::SIZE,
                [0, 0, 0, 0, 0, 0, 0, last],
            );
        })
    };
    assert_eq!(grow(0), push_with(|_| ()));
    assert_eq!(grow(1), Err(Status::Unsupported));
}

/// SPEC 6.6, and SPEC 10.5: a consumer does not judge what others know more of.
#[test]
fn frames_of_a_later_version_are_received() {
    let record = FrameRecord::received(&[0xff; MAX_FRAME_RECORD]).unwrap();
    let event = Event {
        kind: EventKind::Pushed,
        seq: 1,
        peer: 1,
        id: BufferId([1; 16]),
        handle: 1,
        generation: 1,
        value: 1,
        frame: Some(std::sync::Arc::new(Pushed {
            others: vec![],
            meta_seq: 1,
            record,
        })),
    };
    let mut bytes = event.to_bytes();
    assert_eq!(Event::split(&bytes), Some((Ok(event.clone()), &[][..])));
    // With more before the record.
    bytes.splice(wire::Pushed::SIZE..wire::Pushed::SIZE, [7; 8]);
    let length = core::mem::offset_of!(wire::Event, length);
    bytes[length] += 8;
    assert_eq!(Event::split(&bytes), Some((Ok(event), &[][..])));
    // A record that is longer than what is left.
    let record_size = core::mem::offset_of!(wire::Pushed, record_size);
    bytes[record_size + 2] = 1;
    assert_eq!(
        Event::split(&bytes),
        Some((Err(Status::BadLength), &[][..]))
    );
}

/// SPEC 7.5.
#[test]
fn an_attach_with_unknown_flags_is_unsupported() {
    let attach = Request::Attach(Attach::new(BufferId([1; 16]), Rights::READ));
    for at in [
        core::mem::offset_of!(wire::Attach, flags),
        core::mem::offset_of!(wire::Attach, reserved),
    ] {
        assert_eq!(status_with(&attach, at, 2), Status::Unsupported);
    }
}

/// SPEC 4.6. What is wrong here comes ever earlier in the order of checks.
#[test]
fn first_check_that_fails_gives_the_status() {
    let mut bytes = small_export().encode(1);
    let mut status_after = |offset: usize, value: u32| {
        bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
        request::parse(&bytes).unwrap_err().1
    };
    let meta = wire::Export::SIZE;
    assert_eq!(status_after(meta, 0x1b), Status::BadMeta, "name");
    assert_eq!(status_after(meta + 152, 1), Status::BadLength, "blob");
    assert_eq!(status_after(meta + 152, 4097), Status::MetaTooLarge, "blob");
    assert_eq!(status_after(52, 1), Status::BadField, "extent size");
    assert_eq!(status_after(48, 1025), Status::TooFragmented, "extents");
    assert_eq!(status_after(40, 17), Status::BadField, "access lines");
    assert_eq!(status_after(32, 1), Status::Unsupported, "backing");
    assert_eq!(status_after(4, 1), Status::Unsupported, "flags");
    assert_eq!(status_after(12, 23), Status::BadLength, "resp_length");
    assert_eq!(status_after(0, 0xdead), Status::Unsupported, "command");
}

/// SPEC 4.6.
#[test]
fn request_with_flags_is_unsupported() {
    assert_eq!(
        status_with(&Request::Peers { cursor: 0 }, 4, 1),
        Status::Unsupported
    );
}

/// SPEC 7.1.
#[test]
fn get_caps_of_version_0_or_with_reserved_is_refused() {
    assert_eq!(
        status_with(&Request::GetCaps { version: 1 }, 24, 0),
        Status::BadField
    );
    assert_eq!(
        status_with(&Request::GetCaps { version: 1 }, 28, 1),
        Status::Unsupported
    );
}

/// SPEC 7.5 and SPEC 6.1.
#[test]
fn attach_for_no_grant_is_bad_field() {
    let attach = Request::Attach(Attach::new(BufferId::ZERO, Rights::READ));
    for rights in [0, Rights::WRITE.to_wire(), 4, 7] {
        assert_eq!(
            status_with(&attach, 40, rights),
            Status::BadField,
            "{rights}"
        );
    }
}

/// SPEC 4.8.
#[test]
fn list_of_entries_without_size_or_too_large_is_bad_field() {
    let list = Request::List { cursor: 0 };
    for size in [0, 1, 12, 1032, u32::MAX] {
        assert_eq!(status_with(&list, 32, size), Status::BadField, "{size}");
    }
    assert_eq!(status_with(&list, 36, 1), Status::Unsupported, "reserved");
}

/// SPEC 7.9.
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
        status_with(&sync, 32, 1),
        Status::BadField,
        "id beside handle"
    );
    assert_eq!(status_with(&sync, 48, 2), Status::Unsupported, "op");
    assert_eq!(status_with(&sync, 52, 0), Status::BadField, "no access");
    assert_eq!(
        status_with(&sync, 52, 4),
        Status::BadField,
        "unknown access"
    );
}

/// SPEC 7.3.
#[test]
fn export_with_counts_over_their_caps_is_refused_by_cap() {
    assert_eq!(
        status_with(&small_export(), 48, 1025),
        Status::TooFragmented
    );
    assert_eq!(
        status_with(&small_export(), 48, u32::MAX),
        Status::TooFragmented
    );
    assert_eq!(status_with(&small_export(), 40, 17), Status::BadField);
    assert_eq!(status_with(&small_export(), 48, 0), Status::BadField);
    assert_eq!(status_with(&small_export(), 48, 1024), Status::BadLength);
}

/// SPEC 7.3.
#[test]
fn export_with_a_pool_that_it_is_not_of_is_bad_field() {
    for at in [56, 72] {
        assert_eq!(
            status_with(&small_export(), at, 1),
            Status::BadField,
            "{at}"
        );
    }
}

/// SPEC 7.3 and SPEC 6.1.
#[test]
fn export_with_bad_line_of_access_list_is_refused() {
    let line = wire::Export::SIZE + wire::Meta::SIZE;
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
        Status::Unsupported,
        "reserved"
    );
}

/// SPEC 6.5.
#[test]
fn metadata_not_well_formed_has_its_own_status() {
    let set = Request::SetMeta {
        id: BufferId::ZERO,
        meta: Box::default(),
    };
    let meta = wire::SetMeta::SIZE;
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
    assert_eq!(status_with(&set, meta + 152, 4097), Status::MetaTooLarge);
    assert_eq!(status_with(&set, meta + 152, 1), Status::BadLength);
    assert_eq!(status_with(&set, meta + 156, 2), Status::Unsupported);
    let nothing_apart = status_with(&set, meta + 156, 1);
    assert_eq!(nothing_apart, Status::BadMeta, "no plane is elsewhere");
}

/// An EXPORT whose structure, record and entries are as long as they may be.
fn grown_everywhere(request: &Request) -> Vec<u8> {
    let Request::Export(export) = request else {
        panic!("{request:?}");
    };
    let mut bytes = request.encode(1);
    let mut rest = bytes.split_off(wire::Export::SIZE);
    bytes.resize(MAX_STRUCT, 0);
    let mut put = |at: usize, value: usize| {
        bytes[at..at + 4].copy_from_slice(&u32::try_from(value).unwrap().to_le_bytes());
    };
    put(8, MAX_STRUCT);
    put(36, MAX_ENTRY);
    put(44, MAX_ENTRY);
    put(52, MAX_EXTENT_SIZE);
    let mut take = |size: usize, grown: usize| {
        let mut entry: Vec<u8> = rest.drain(..size).collect();
        entry.resize(grown, 0);
        bytes.extend(entry);
    };
    take(wire::Meta::SIZE, MAX_ENTRY);
    for _ in &export.acl {
        take(wire::Access::SIZE, MAX_ENTRY);
    }
    for _ in &export.extents {
        take(wire::Extent::SIZE, MAX_EXTENT_SIZE);
    }
    bytes.extend(rest);
    bytes
}

/// SPEC 4.3 and SPEC 7.3.
#[test]
fn sizes_of_what_an_export_consists_of_are_bounded_and_aligned() {
    for (at, most) in [(36, MAX_ENTRY), (44, MAX_ENTRY), (52, MAX_EXTENT_SIZE)] {
        for size in [0, 4, 12, most + 8, u32::MAX as usize] {
            let size = u32::try_from(size).unwrap();
            let status = status_with(&small_export(), at, size);
            assert_eq!(status, Status::BadField, "{size} at {at}");
        }
    }
    let small = small_export();
    assert_eq!(request::parse(&grown_everywhere(&small)).unwrap().1, small);
}

/// SPEC 7.4.
#[test]
fn unexport_that_is_forced_has_no_deadline_of_its_own() {
    let at = core::mem::offset_of!(wire::Unexport, deadline_ms);
    for quiesced in [false, true] {
        assert_eq!(status_with(&unexport(quiesced), at, 1), Status::BadField);
    }
}

/// SPEC 7.11.
#[test]
fn quiesce_of_an_unknown_mode_or_with_reserved_is_unsupported() {
    let quiesce = Request::Quiesce {
        id: BufferId::ZERO,
        quiesced: true,
    };
    let (mode, reserved) = (
        core::mem::offset_of!(wire::Quiesce, mode),
        core::mem::offset_of!(wire::Quiesce, reserved),
    );
    for value in [2, u32::MAX] {
        assert_eq!(status_with(&quiesce, mode, value), Status::Unsupported);
    }
    assert_eq!(status_with(&quiesce, reserved, 1), Status::Unsupported);
}

#[test]
fn longest_request_is_max_request() {
    let longest = Request::Export(Box::new(Export {
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
        ..Export::default()
    }));
    let bytes = grown_everywhere(&longest);
    assert_eq!(bytes.len(), MAX_REQUEST);
    assert_eq!(request::parse(&bytes).unwrap().1, longest);
    assert!(request::parse(&[&bytes[..], &[0]].concat()).is_err());
}

// --- Responses --------------------------------------------------------------

fn header(kind: u32) -> Header {
    Header::new(kind, 0xc0ffee)
}

/// One PEERS or LIST exchange: the keys of the entries received, and `next`.
fn exchange(kind: u32, reply: &Reply, room: usize) -> Result<(Vec<u64>, u64), Status> {
    let bytes = encode(&header(kind), reply, room);
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
        let bytes = encode(&header(kind), &Ok(response.clone()), MAX_RESPONSE);
        prop_assert_eq!(response::parse(kind, &bytes), Ok((0xc0ffee, Ok(response), 0)));
    }

    #[test]
    fn response_status_round_trips(kind in select(command::ALL), status in select(Status::ALL)) {
        prop_assume!(status != Status::Ok);
        let bytes = encode(&header(kind), &Err(status), MAX_RESPONSE);
        prop_assert_eq!(bytes.len(), RESPONSE_HEADER);
        prop_assert_eq!(response::parse(kind, &bytes), Ok((0xc0ffee, Err(status), 0)));
    }

    /// SPEC 4.4.
    #[test]
    fn response_without_room_is_no_room_or_nothing((kind, response) in single(), room: Index) {
        let whole = encode(&header(kind), &Ok(response.clone()), MAX_RESPONSE);
        let room = room.index(whole.len());
        let bytes = encode(&header(kind), &Ok(response), room);
        if room < RESPONSE_HEADER {
            prop_assert!(bytes.is_empty());
        } else {
            let no_room = Ok((0xc0ffee, Err(Status::NoRoom), 0));
            prop_assert_eq!(response::parse(kind, &bytes), no_room);
        }
    }

    #[test]
    fn response_truncated_or_extended_is_refused((kind, response) in single(), more in 1..64usize) {
        let mut bytes = encode(&header(kind), &Ok(response), MAX_RESPONSE);
        for end in 0..bytes.len() {
            prop_assert_eq!(response::parse(kind, &bytes[..end]), Err(Status::BadLength));
        }
        bytes.resize(bytes.len() + more, 0);
        prop_assert!(response::parse(kind, &bytes).is_err());
    }

    #[test]
    fn response_of_any_bytes_is_total(kind in select(command::ALL), body in vec(any::<u8>(), 0..512)) {
        let _ = response::parse(kind, &body);
        let length = header(kind).resp_length;
        let hdr = wire::Resp { r#type: kind, status: 0, length, flags: 0, cookie: 1 }.to_bytes();
        let _ = response::parse(kind, &[&hdr[..], &body].concat());
    }

    #[test]
    fn response_damaged_is_total((kind, response) in single(), at: Index, value: u8) {
        let mut bytes = encode(&header(kind), &Ok(response), MAX_RESPONSE);
        let at = at.index(bytes.len());
        bytes[at] = value;
        if let Ok((cookie, reply, 0)) = response::parse(kind, &bytes) {
            // What is not known of it is ignored.
            let again = encode(&Header::new(kind, cookie), &reply, MAX_RESPONSE);
            prop_assert_eq!(response::parse(kind, &again), Ok((cookie, reply, 0)));
        }
    }

    /// SPEC 4.8.
    #[test]
    fn peers_are_walked_once_each(table in peers(), page in 1..16usize, room in 0..1024usize) {
        let reply = |entries, more| Response::Peers { entries, more };
        let walked = walk(command::PEERS, &table, |peer| peer.id, reply, page, room.max(24));
        let fits = room >= wire::ListResp::SIZE + if table.is_empty() { 0 } else { wire::Peer::SIZE };
        let keys = table.iter().map(|peer| peer.id).collect();
        prop_assert_eq!(walked, if fits { Ok(keys) } else { Err(Status::NoRoom) });
    }

    /// SPEC 4.8.
    #[test]
    fn buffers_are_walked_once_each(table in buffers(), page in 1..16usize, room in 0..2048usize) {
        let reply = |entries, more| Response::Buffers { entries, more };
        let walked = walk(command::LIST, &table, |b| b.generation, reply, page, room.max(24));
        let fits = room >= wire::ListResp::SIZE + if table.is_empty() { 0 } else { wire::Buffer::SIZE };
        let keys = table.iter().map(|buffer| buffer.generation).collect();
        prop_assert_eq!(walked, if fits { Ok(keys) } else { Err(Status::NoRoom) });
    }

    #[test]
    fn list_entries_round_trip(peers in peers(), buffers in buffers(), more: bool) {
        let last = peers.last().filter(|_| more).map_or(0, |peer| peer.id);
        let expected = Response::Peers { entries: peers.clone(), more: last != 0 };
        let reply = Ok(Response::Peers { entries: peers, more });
        let bytes = encode(&header(command::PEERS), &reply, MAX_RESPONSE);
        prop_assert_eq!(response::parse(command::PEERS, &bytes), Ok((0xc0ffee, Ok(expected), last)));

        let last = buffers.last().filter(|_| more).map_or(0, |buffer| buffer.generation);
        let expected = Response::Buffers { entries: buffers.clone(), more: last != 0 };
        let reply = Ok(Response::Buffers { entries: buffers, more });
        let bytes = encode(&header(command::LIST), &reply, MAX_RESPONSE);
        prop_assert_eq!(response::parse(command::LIST, &bytes), Ok((0xc0ffee, Ok(expected), last)));
    }

    /// SPEC 7.1.
    #[test]
    fn config_space_is_the_head_of_caps(caps in caps()) {
        let bytes = encode(&header(command::GET_CAPS), &Ok(Response::Caps(caps)), MAX_RESPONSE);
        prop_assert_eq!(&bytes[24..280], &caps.config_space()[..]);
    }
}

proptest! {
    #![proptest_config(config())]

    /// SPEC 4.3.
    #[test]
    fn response_has_the_length_that_was_asked_for(
        (kind, response) in single(),
        resp_length in RESPONSE_HEADER / 8..=MAX_STRUCT / 8,
    ) {
        let resp_length = resp_length * 8;
        let whole = encode(&header(kind), &Ok(response.clone()), MAX_RESPONSE);
        let known = header(kind).resp_length as usize;
        let asked = Header { resp_length: u32::try_from(resp_length).unwrap(), ..header(kind) };
        let bytes = encode(&asked, &Ok(response), MAX_RESPONSE);
        let (head, tail) = bytes.split_at(resp_length);
        let (known, blob) = whole.split_at(known);
        prop_assert_eq!(tail, blob);
        prop_assert_eq!(&head[8..12], &asked.resp_length.to_le_bytes());
        let both = known.len().min(head.len());
        prop_assert_eq!(&head[12..both], &known[12..both]);
        prop_assert!(head[both..].iter().all(|byte| *byte == 0));
    }

    /// SPEC 4.3.
    #[test]
    fn entries_have_the_size_that_was_asked_for(table in buffers(), entry_size in 1..=MAX_ENTRY / 8) {
        let entry_size = entry_size * 8;
        let reply = Ok(Response::Buffers { entries: table.clone(), more: false });
        let whole = encode(&header(command::LIST), &reply, MAX_RESPONSE);
        let asked = Header { entry_size: u32::try_from(entry_size).unwrap(), ..header(command::LIST) };
        let bytes = encode(&asked, &reply, MAX_RESPONSE);
        let (head, entries) = bytes.split_at(wire::ListResp::SIZE);
        let (known_head, known) = whole.split_at(wire::ListResp::SIZE);
        prop_assert_eq!(head, known_head);
        prop_assert_eq!(entries.len(), table.len() * entry_size);
        for (entry, known) in entries.chunks(entry_size).zip(known.chunks(wire::Buffer::SIZE)) {
            let both = known.len().min(entry.len());
            prop_assert_eq!(&entry[..both], &known[..both]);
            prop_assert!(entry[both..].iter().all(|byte| *byte == 0));
        }
    }
}

#[test]
fn longest_response_is_max_response() {
    let entry = |generation| BufferInfo {
        generation,
        ..BufferInfo::default()
    };
    let reply = Ok(Response::Buffers {
        entries: (1..=64).map(entry).collect(),
        more: false,
    });
    let asked = Header {
        resp_length: u32::try_from(MAX_STRUCT).unwrap(),
        entry_size: u32::try_from(MAX_ENTRY).unwrap(),
        ..header(command::LIST)
    };
    let bytes = encode(&asked, &reply, usize::MAX);
    assert_eq!(bytes.len(), MAX_RESPONSE);
}

/// SPEC 4.8.
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

/// SPEC 4.8.
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
    let bytes = encode(&header(command::FLUSH), &Ok(Response::Done), 64);
    assert_eq!(
        response::parse(command::SYNC, &bytes),
        Err(Status::BadField)
    );
}

// --- Events -----------------------------------------------------------------

proptest! {
    #![proptest_config(config())]

    #[test]
    fn events_round_trip(events in vec(an_event(), 0..4)) {
        let bytes: Vec<u8> = events.iter().flat_map(|event| event.to_bytes()).collect();
        let mut rest = &bytes[..];
        for event in events {
            let (found, behind) = Event::split(rest).unwrap();
            prop_assert_eq!(found, Ok(event));
            rest = behind;
        }
        prop_assert!(rest.is_empty());
    }

    /// SPEC 10.1.
    #[test]
    fn event_is_as_long_as_it_says(event in an_event(), length in 12..512usize, more in 0..64usize) {
        let event = Event {
            kind: match event.kind {
                EventKind::Pushed => EventKind::Returned,
                other => other,
            },
            frame: None,
            ..event
        };
        let mut bytes = event.to_bytes();
        bytes.resize(length, 0xff);
        bytes[8..12].copy_from_slice(&u32::try_from(length).unwrap().to_le_bytes());
        bytes.resize(length + more, 0xee);
        let (found, rest) = Event::split(&bytes).unwrap();
        prop_assert_eq!(rest.len(), more);
        prop_assert_eq!(found.as_ref().map(|found| found.kind), Ok(event.kind));
        if length >= event::SIZE {
            prop_assert_eq!(found, Ok(event));
        }
        prop_assert!(Event::split(&bytes[..length - 1]).is_none());
    }

    #[test]
    fn event_of_any_bytes_is_total(
        kind in select(EventKind::ALL),
        mut bytes in vec(any::<u8>(), 0..256),
        tidy: bool,
    ) {
        if tidy && bytes.len() >= event::SIZE {
            bytes[..4].copy_from_slice(&kind.to_wire().to_le_bytes());
            bytes[4..8].fill(0);
            bytes[8..12].copy_from_slice(&72_u32.to_le_bytes());
            bytes[12..16].fill(0);
        }
        if let Some((Ok(event), rest)) = Event::split(&bytes)
            && bytes.len() - rest.len() == event::SIZE
        {
            prop_assert_eq!(&event.to_bytes()[..], &bytes[..event::SIZE]);
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
