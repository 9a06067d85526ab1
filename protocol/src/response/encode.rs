// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An answer to bytes, within the room there is

use alloc::vec::Vec;

use crate::limits::{MAX_ENTRY, MAX_LIST, MAX_STRUCT, RESPONSE_HEADER};
use crate::request::Header;
use crate::response::{MAP_CACHED, Reply, Response};
use crate::status::Status;
use crate::wire::{self, Wire};

/// The bytes that answer a request, never more than `room`.
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
/// assert_eq!(encode(&header, &Ok(Response::Done), 4096).len(), 24);
/// assert!(encode(&header, &Ok(Response::Done), 23).is_empty());
/// ```
#[must_use]
pub fn encode(header: &Header, reply: &Reply, room: usize) -> Vec<u8> {
    if room < RESPONSE_HEADER {
        return Vec::new();
    }
    let answer = match reply {
        Ok(response) => answer(header, response, room),
        Err(status) => Err(*status),
    };
    match answer {
        Ok(bytes) if bytes.len() <= room => bytes,
        Ok(_) => refusal(header, Status::NoRoom),
        Err(status) => refusal(header, status),
    }
}

fn refusal(header: &Header, status: Status) -> Vec<u8> {
    wire::Resp {
        r#type: header.kind,
        status: status.to_wire(),
        length: u32::try_from(RESPONSE_HEADER).unwrap_or_default(),
        flags: 0,
        cookie: header.cookie,
    }
    .to_bytes()
    .into()
}

/// The whole answer, whether it fits or not; only lists look at `room`.
fn answer(header: &Header, response: &Response, room: usize) -> Result<Vec<u8>, Status> {
    let status = match response {
        Response::Batch { status, .. } => *status,
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
    let mut tail = Vec::new();
    let mut bytes: Vec<u8> = match response {
        Response::Done => hdr.to_bytes().into(),
        &Response::Batch { entry, .. } => wire::BatchResp {
            hdr,
            entry,
            reserved: 0,
        }
        .to_bytes()
        .into(),
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
            return List::new(header, length, room)?.fill(hdr, keyed, *more);
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
            properties,
            windows,
        } => wire::AttachResp {
            hdr,
            handle,
            size,
            generation,
            owner,
            rights: rights.to_wire(),
            way: way.to_wire(),
            properties: properties.to_wire(),
            windows,
        }
        .to_bytes()
        .into(),
        &Response::Mapped {
            window,
            shm_offset,
            len,
            cached,
        } => wire::MapResp {
            hdr,
            window,
            shm_offset,
            len,
            flags: if cached { MAP_CACHED } else { 0 },
            reserved: 0,
        }
        .to_bytes()
        .into(),
        &Response::MetaSet { seq } => wire::SetMetaResp { hdr, seq }.to_bytes().into(),
        Response::Meta { seq, meta } => {
            let size = usize::try_from(header.entry_size).map_err(|_| Status::NoRoom)?;
            tail.extend(meta.to_wire().to_bytes());
            tail.resize(size.min(MAX_ENTRY), 0);
            tail.extend_from_slice(&meta.blob);
            wire::GetMetaResp { hdr, seq: *seq }.to_bytes().into()
        }
        Response::Buffer(info) => wire::QueryResp {
            hdr,
            buffer: info.to_wire(),
        }
        .to_bytes()
        .into(),
        Response::Buffers { entries, more } => {
            let keyed = entries.iter().map(|info| (info.generation, info.to_wire()));
            return List::new(header, length, room)?.fill(hdr, keyed, *more);
        }
    };
    bytes.resize(length, 0);
    bytes.append(&mut tail);
    Ok(bytes)
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

    /// As many entries, given with their keys, as there is room for.
    fn fill<T: Wire>(
        &self,
        hdr: wire::Resp,
        entries: impl ExactSizeIterator<Item = (u64, T)>,
        more: bool,
    ) -> Result<Vec<u8>, Status> {
        let total = entries.len();
        if self.fits == 0 && total != 0 {
            return Err(Status::NoRoom);
        }
        let count = total.min(self.fits);
        let mut body = Vec::new();
        let mut last = 0;
        for (key, entry) in entries.take(count) {
            self.put(&mut body, entry);
            last = key;
        }
        let head = wire::ListResp {
            hdr,
            next: if more || count < total { last } else { 0 },
            count: u32::try_from(count).map_err(|_| Status::NoRoom)?,
            reserved: 0,
        };
        let mut bytes = Vec::from(head.to_bytes());
        bytes.resize(self.length, 0);
        bytes.extend(body);
        Ok(bytes)
    }

    /// Appends an entry, cut or filled with zeroes.
    fn put<T: Wire>(&self, bytes: &mut Vec<u8>, value: T) {
        let start = bytes.len();
        bytes.resize(start.saturating_add(T::LEN), 0);
        if let Some(room) = bytes.get_mut(start..) {
            value.write(&mut wire::Writer::new(room));
        }
        bytes.resize(start.saturating_add(self.entry_size), 0);
    }
}
