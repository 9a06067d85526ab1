// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An answer to bytes, within the room there is

use alloc::vec::Vec;

use crate::limits::{MAX_LIST, RESPONSE_HEADER};
use crate::request::Header;
use crate::response::{MAP_CACHED, MAP_COHERENT, Reply, Response};
use crate::status::Status;
use crate::wire::{self, Wire};

/// The bytes that answer a request, never more than `room`.
///
/// A list is cut to what fits and to [`MAX_LIST`]; its `next` then is the key
/// of the last entry sent: the id of a peer, the generation of a buffer.
/// Entries must be in the order of their keys. An answer that does not fit,
/// and a list of which not even one entry does, become
/// [`NoRoom`](Status::NoRoom). Without room for a header the answer is empty.
///
/// ```
/// use bufshare_protocol::request::Header;
/// use bufshare_protocol::response::{Response, encode};
///
/// let header = Header { kind: 0x0203, cookie: 42 };
/// assert_eq!(encode(&header, &Ok(Response::Done), 4096).len(), 16);
/// assert!(encode(&header, &Ok(Response::Done), 15).is_empty());
/// ```
#[must_use]
pub fn encode(header: &Header, reply: &Reply, room: usize) -> Vec<u8> {
    if room < RESPONSE_HEADER {
        return Vec::new();
    }
    let answer = match reply {
        Ok(response) => answer(head(header, Status::Ok), response, room),
        Err(status) => Err(*status),
    };
    match answer {
        Ok(bytes) if bytes.len() <= room => bytes,
        Ok(_) => head(header, Status::NoRoom).to_bytes().into(),
        Err(status) => head(header, status).to_bytes().into(),
    }
}

fn head(header: &Header, status: Status) -> wire::Resp {
    wire::Resp {
        r#type: header.kind,
        status: status.to_wire(),
        cookie: header.cookie,
    }
}

/// The whole answer, whether it fits or not; only lists look at `room`.
fn answer(hdr: wire::Resp, response: &Response, room: usize) -> Result<Vec<u8>, Status> {
    Ok(match response {
        Response::Done => hdr.to_bytes().into(),
        Response::Caps(caps) => wire::GetCapsResp {
            hdr,
            config: caps.to_config(),
            name: caps.name.to_wire(),
            windows_used: caps.windows_used,
            reserved: 0,
        }
        .to_bytes()
        .into(),
        Response::Peers { entries, more } => {
            let keyed = entries.iter().map(|peer| (peer.id, peer.to_wire()));
            list(hdr, keyed, *more, room)?
        }
        &Response::Exported { id, generation } => wire::ExportResp {
            hdr,
            id: id.to_wire(),
            generation,
        }
        .to_bytes()
        .into(),
        &Response::Attached {
            handle,
            size,
            generation,
            owner,
            rights,
            way,
            windows,
        } => wire::AttachResp {
            hdr,
            handle,
            size,
            generation,
            owner,
            rights: rights.to_wire(),
            way: way.to_wire(),
            windows,
            reserved: 0,
        }
        .to_bytes()
        .into(),
        &Response::Mapped {
            shm_offset,
            len,
            coherent,
            cached,
        } => {
            let coherent = if coherent { MAP_COHERENT } else { 0 };
            let cached = if cached { MAP_CACHED } else { 0 };
            let flags = coherent | cached;
            wire::MapResp {
                hdr,
                shm_offset,
                len,
                flags,
                reserved: 0,
            }
            .to_bytes()
            .into()
        }
        &Response::MetaSet { seq } => wire::SetMetaResp { hdr, seq }.to_bytes().into(),
        Response::Meta { seq, meta } => {
            let head = wire::GetMetaResp {
                hdr,
                seq: *seq,
                meta: meta.to_wire(),
            };
            [head.to_bytes().as_slice(), &meta.blob].concat()
        }
        Response::Buffer(info) => wire::QueryResp {
            hdr,
            buffer: info.to_wire(),
        }
        .to_bytes()
        .into(),
        Response::Buffers { entries, more } => {
            let keyed = entries.iter().map(|info| (info.generation, info.to_wire()));
            list(hdr, keyed, *more, room)?
        }
    })
}

/// As many entries, given with their keys, as `room` holds.
fn list<T: Wire>(
    hdr: wire::Resp,
    entries: impl ExactSizeIterator<Item = (u64, T)>,
    more: bool,
    room: usize,
) -> Result<Vec<u8>, Status> {
    let space = room
        .checked_sub(wire::ListResp::SIZE)
        .ok_or(Status::NoRoom)?;
    let fits = space.checked_div(T::LEN).unwrap_or(0).min(MAX_LIST);
    let total = entries.len();
    if fits == 0 && total != 0 {
        return Err(Status::NoRoom);
    }
    let count = total.min(fits);
    let mut body = Vec::new();
    let mut last = 0;
    for (key, entry) in entries.take(count) {
        put(&mut body, entry);
        last = key;
    }
    let next = if more || count < total { last } else { 0 };
    let count = u32::try_from(count).map_err(|_| Status::NoRoom)?;
    let head = wire::ListResp {
        hdr,
        next,
        count,
        reserved: 0,
    };
    Ok([head.to_bytes().as_slice(), &body].concat())
}

fn put<T: Wire>(bytes: &mut Vec<u8>, value: T) {
    let start = bytes.len();
    bytes.resize(start.saturating_add(T::LEN), 0);
    if let Some(room) = bytes.get_mut(start..) {
        value.write(&mut wire::Writer::new(room));
    }
}
