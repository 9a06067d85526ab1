// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An answer to bytes, within the room there is

use alloc::vec::Vec;

use crate::limits::{MAX_ENTRY, MAX_LIST, MAX_STRUCT, RESPONSE_HEADER};
use crate::request::Header;
use crate::response::{MAP_CACHED, Reply, Response};
use crate::status::Status;
use crate::wire::{self, Wire};

/// The bytes that answer a request, never more than `room`, in place of what is in `bytes`.
///
/// The structure is cut, or filled with zeroes, to the length that the request asked for.
/// A list is cut to what fits and to [`MAX_LIST`]; its `next` then is the key
/// of the last entry sent: the id of a peer, the generation of a buffer.
/// Entries must be in the order of their keys. An answer that does not fit,
/// and a list of which not even one entry does, become
/// [`NoRoom`](Status::NoRoom). Without room for a header the answer is empty.
///
/// ```
/// use bufshare_protocol::command;
/// use bufshare_protocol::request::Header;
/// use bufshare_protocol::response::{Response, encode};
///
/// let header = Header::new(command::FLUSH, 42);
/// let mut bytes = Vec::new();
/// encode(&header, &Ok(Response::Done), 4096, &mut bytes);
/// assert_eq!(bytes.len(), 24);
/// encode(&header, &Ok(Response::Done), 23, &mut bytes);
/// assert!(bytes.is_empty());
/// ```
pub fn encode(header: &Header, reply: &Reply, room: usize, bytes: &mut Vec<u8>) {
    bytes.clear();
    if room < RESPONSE_HEADER {
        return;
    }
    let answer = match reply {
        Ok(response) => answer(header, response, room, bytes),
        Err(status) => Err(*status),
    };
    match answer {
        Ok(()) if bytes.len() <= room => {}
        Ok(()) => refusal(header, Status::NoRoom, bytes),
        Err(status) => refusal(header, status, bytes),
    }
}

fn refusal(header: &Header, status: Status, bytes: &mut Vec<u8>) {
    let answer = wire::Resp {
        r#type: header.kind,
        status: status.to_wire(),
        length: u32::try_from(RESPONSE_HEADER).unwrap_or_default(),
        flags: 0,
        cookie: header.cookie,
    };
    bytes.clear();
    put(bytes, answer, RESPONSE_HEADER);
}

/// Appends a structure, cut or filled with zeroes to this size.
fn put<T: Wire>(bytes: &mut Vec<u8>, value: T, size: usize) {
    let start = bytes.len();
    bytes.resize(start.saturating_add(T::LEN), 0);
    if let Some(room) = bytes.get_mut(start..) {
        value.write(&mut wire::Writer::new(room));
    }
    bytes.resize(start.saturating_add(size), 0);
}

/// The whole answer, whether it fits or not; only lists look at `room`.
fn answer(
    header: &Header,
    response: &Response,
    room: usize,
    bytes: &mut Vec<u8>,
) -> Result<(), Status> {
    let status = match response {
        Response::Batch { status, .. } | Response::Pushed { status, .. } => *status,
        _ => Status::Ok,
    };
    let hdr = wire::Resp {
        r#type: header.kind,
        status: status.to_wire(),
        length: header.resp_length,
        flags: 0,
        cookie: header.cookie,
    };
    let length = usize::try_from(header.resp_length).map_err(|_| Status::NoRoom)?;
    let length = length.min(MAX_STRUCT);
    match response {
        Response::Done => put(bytes, hdr, length),
        &Response::Batch { entry, .. } => put(
            bytes,
            wire::BatchResp {
                hdr,
                entry,
                reserved: 0,
            },
            length,
        ),
        &Response::Pushed { entry, frame, .. } => put(
            bytes,
            wire::PushResp {
                hdr,
                entry,
                reserved: 0,
                frame,
            },
            length,
        ),
        Response::Caps(caps) => put(
            bytes,
            wire::GetCapsResp {
                hdr,
                config: caps.to_config(),
                name: caps.name.to_wire(),
                windows_used: caps.windows_used,
                reserved: 0,
            },
            length,
        ),
        Response::Peers { entries, more } => {
            let list = List::new(header, length, room)?;
            list.put(bytes, hdr, entries, |one| (one.id, one.to_wire()), *more)?;
        }
        &Response::Exported { id, generation } => put(
            bytes,
            wire::ExportResp {
                hdr,
                id: id.to_wire(),
                generation,
            },
            length,
        ),
        &Response::Attached {
            handle,
            size,
            generation,
            owner,
            rights,
            way,
            properties,
            windows,
        } => put(
            bytes,
            wire::AttachResp {
                hdr,
                handle,
                size,
                generation,
                owner,
                rights: rights.to_wire(),
                way: way.to_wire(),
                properties: properties.to_wire(),
                windows,
            },
            length,
        ),
        &Response::Mapped {
            window,
            shm_offset,
            len,
            cached,
        } => put(
            bytes,
            wire::MapResp {
                hdr,
                window,
                shm_offset,
                len,
                flags: if cached { MAP_CACHED } else { 0 },
                reserved: 0,
            },
            length,
        ),
        &Response::MetaSet { seq } => put(bytes, wire::SetMetaResp { hdr, seq }, length),
        Response::Meta { seq, meta } => {
            let size = usize::try_from(header.entry_size).map_err(|_| Status::NoRoom)?;
            put(bytes, wire::GetMetaResp { hdr, seq: *seq }, length);
            put(bytes, meta.to_wire(), size.min(MAX_ENTRY));
            bytes.extend_from_slice(&meta.blob);
        }
        Response::Buffer(info) => put(
            bytes,
            wire::QueryResp {
                hdr,
                buffer: info.to_wire(),
            },
            length,
        ),
        Response::Buffers { entries, more } => {
            let list = List::new(header, length, room)?;
            list.put(
                bytes,
                hdr,
                entries,
                |one| (one.generation, one.to_wire()),
                *more,
            )?;
        }
    }
    Ok(())
}

/// The shape of an answer that is a list
struct List {
    /// Bytes of its structure.
    length: usize,
    /// Bytes of an entry, not 0.
    entry_size: usize,
    /// Entries that there is room for.
    fits: usize,
}

impl List {
    fn new(header: &Header, length: usize, room: usize) -> Result<Self, Status> {
        let space = room.checked_sub(length).ok_or(Status::NoRoom)?;
        let entry_size = usize::try_from(header.entry_size).map_err(|_| Status::NoRoom)?;
        let fits = space.checked_div(entry_size).ok_or(Status::NoRoom)?;
        Ok(Self {
            length,
            entry_size,
            fits: fits.min(MAX_LIST),
        })
    }

    /// Appends the answer, with as many entries as there is room for. `keyed` has the key of
    /// one and what it is on the wire.
    fn put<E, T: Wire>(
        &self,
        bytes: &mut Vec<u8>,
        hdr: wire::Resp,
        entries: &[E],
        keyed: impl Fn(&E) -> (u64, T),
        more: bool,
    ) -> Result<(), Status> {
        if self.fits == 0 && !entries.is_empty() {
            return Err(Status::NoRoom);
        }
        let sent = entries.get(..self.fits).unwrap_or(entries);
        let last = sent.last().map_or(0, |entry| keyed(entry).0);
        let head = wire::ListResp {
            hdr,
            next: if more || sent.len() < entries.len() {
                last
            } else {
                0
            },
            count: u32::try_from(sent.len()).map_err(|_| Status::NoRoom)?,
            reserved: 0,
        };
        put(bytes, head, self.length);
        for entry in sent {
            put(bytes, keyed(entry).1, self.entry_size);
        }
        Ok(())
    }
}
