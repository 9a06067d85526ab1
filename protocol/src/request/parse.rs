// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest's bytes to a request

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::slice::Chunks;

use crate::command;
use crate::limits::{
    MAX_ACL, MAX_BATCH, MAX_ENTRY, MAX_EXTENT_SIZE, MAX_EXTENTS, MAX_STRUCT, REQUEST_HEADER,
    RESPONSE_HEADER,
};
use crate::request::{
    ATTACH_CONSUMER, Attach, BACKING_EXTENTS, BACKING_STREAM, Export, Header, QUIESCE_ACTIVE,
    QUIESCE_QUIESCED, Request, SyncOp, SyncTarget, UNEXPORT_FORCED, UNEXPORT_QUIESCED,
};
use crate::status::Status;
use crate::types::{Access, BufferId, Extent, Meta, Properties, Push, Rights, Ways};
use crate::wire::{self, Wire};

/// Parses one whole request.
///
/// Total: any bytes give a request or a status. Memory is taken only after the
/// counts were found to be within [`limits`](crate::limits) and to agree with
/// the length of `bytes`.
///
/// # Errors
/// The header is `None` if there is not even one.
/// [`Unsupported`](Status::Unsupported): unknown command; something that is named and not
/// served; flags, a reserved field or one behind those that are known is set.
/// [`BadLength`](Status::BadLength): not exactly as long as the fields say.
/// [`BadField`](Status::BadField): a value that no state of the device could make valid.
/// [`TooFragmented`](Status::TooFragmented): too many extents.
/// [`MetaTooLarge`](Status::MetaTooLarge): blob too long.
/// [`BadMeta`](Status::BadMeta): name or image not well-formed.
///
/// ```
/// use bufshare_protocol::request::{Request, parse};
/// use bufshare_protocol::status::Status;
///
/// let flush = Request::Flush;
/// let (header, request) = parse(&flush.encode(42)).unwrap();
/// assert_eq!((header.cookie, request), (42, Request::Flush));
/// assert_eq!(parse(&flush.encode(42)[..3]), Err((None, Status::BadLength)));
/// ```
pub fn parse(bytes: &[u8]) -> Result<(Header, Request), (Option<Header>, Status)> {
    let Some((raw, _)) = wire::Req::split(bytes) else {
        return Err((None, Status::BadLength));
    };
    let mut header = Header {
        kind: raw.r#type,
        cookie: raw.cookie,
        resp_length: raw.resp_length,
        entry_size: 0,
    };
    match message(&mut header, &raw, bytes) {
        Ok(request) => Ok((header, request)),
        Err(status) => Err((Some(header), status)),
    }
}

fn message(header: &mut Header, raw: &wire::Req, bytes: &[u8]) -> Result<Request, Status> {
    let within = |length: u32, least: usize| {
        let length = usize::try_from(length).ok()?;
        let fits = (least..=MAX_STRUCT).contains(&length) && length.is_multiple_of(ALIGN);
        fits.then_some(length)
    };
    let length = within(raw.length, REQUEST_HEADER);
    let split = length.and_then(|length| bytes.split_at_checked(length));
    let answer = within(raw.resp_length, RESPONSE_HEADER);
    let message = split.filter(|_| answer.is_some());
    match message {
        // That it is unknown is worth more than that it is cut short.
        _ if crate::command::name(header.kind).is_none() => Err(Status::Unsupported),
        None => Err(Status::BadLength),
        // They may change what the rest means.
        Some(_) if raw.flags != 0 => Err(Status::Unsupported),
        Some((head, rest)) => Message { head, rest }.request(header),
    }
}

/// What sizes of structures, records and entries are multiples of, bytes.
const ALIGN: usize = 8;

/// A message in its parts
struct Message<'a> {
    /// The structure, of whatever length.
    head: &'a [u8],
    /// What follows it.
    rest: &'a [u8],
}

impl<'a> Message<'a> {
    fn request(&self, header: &mut Header) -> Result<Request, Status> {
        match header.kind {
            command::GET_CAPS => get_caps(&self.whole()?),
            command::PEERS => {
                let cursor = self.cursor(header)?;
                Ok(Request::Peers { cursor })
            }
            command::EXPORT => export(self),
            command::UNEXPORT => unexport(&self.whole()?),
            command::ATTACH => attach(&self.whole()?),
            command::DETACH => {
                let entries = self.batch(known(|entry: wire::Handle| entry.handle));
                entries.map(|handles| Request::Detach { handles })
            }
            command::MAP => self.whole().map(|map: wire::Map| Request::Map {
                handle: map.handle,
                offset: map.offset,
                len: map.len,
            }),
            command::UNMAP => {
                let entries = self.batch(known(|entry: wire::Window| entry.window));
                entries.map(|windows| Request::Unmap { windows })
            }
            command::SYNC => sync(&self.whole()?),
            command::FLUSH => self.whole().map(|_: wire::Req| Request::Flush),
            command::QUIESCE => quiesce(&self.whole()?),
            command::PUSH => self.batch(push).map(|frames| Request::Push { frames }),
            command::RETURN => {
                let entries = self.batch(known(|entry: wire::Return| (entry.handle, entry.frame)));
                entries.map(|frames| Request::Return { frames })
            }
            command::SET_META => set_meta(self),
            command::GET_META => get_meta(&self.whole()?, header),
            command::QUERY => self.whole().map(|raw: wire::ById| Request::Query {
                id: BufferId::from_wire(&raw.id),
            }),
            command::LIST => {
                let cursor = self.cursor(header)?;
                Ok(Request::List { cursor })
            }
            _ => Err(Status::Unsupported),
        }
    }

    /// The structure, and what follows it.
    fn split<T: Wire>(&self) -> Result<(T, &'a [u8]), Status> {
        let value = T::grown(self.head).ok_or(Status::Unsupported)?;
        Ok((value, self.rest))
    }

    /// A structure that nothing follows.
    fn whole<T: Wire>(&self) -> Result<T, Status> {
        match self.split()? {
            (value, []) => Ok(value),
            _ => Err(Status::BadLength),
        }
    }

    fn cursor(&self, header: &mut Header) -> Result<u64, Status> {
        let raw: wire::Cursor = self.whole()?;
        if raw.reserved != 0 {
            return Err(Status::Unsupported);
        }
        size(raw.entry_size, MAX_ENTRY)?;
        header.entry_size = raw.entry_size;
        Ok(raw.cursor)
    }

    /// The entries of a batch, each from its bytes.
    fn batch<V>(&self, value: impl Fn(&[u8]) -> Result<V, Status>) -> Result<Vec<V>, Status> {
        let (raw, entries) = self.split::<wire::Batch>()?;
        let count = count(raw.count, MAX_BATCH).ok_or(Status::BadField)?;
        let size = size(raw.entry_size, MAX_ENTRY)?;
        if count == 0 {
            return Err(Status::BadField);
        }
        match pieces(entries, count, size)? {
            (entries, []) => entries.map(value).collect(),
            _ => Err(Status::BadLength),
        }
    }
}

/// What is made of an entry that has zeroes beyond what is known.
fn known<T: Wire, V>(value: impl Fn(T) -> V) -> impl Fn(&[u8]) -> Result<V, Status> {
    move |entry| T::grown(entry).map(&value).ok_or(Status::Unsupported)
}

/// What an entry of PUSH says; what is not known of its record is handed on.
fn push(entry: &[u8]) -> Result<Push, Status> {
    let (known, _) = entry.split_first_chunk().ok_or(Status::BadField)?;
    let record = wire::Push::from_bytes(known).record_size;
    let record = usize::try_from(record).map_err(|_| Status::BadField)?;
    let place = entry
        .len()
        .checked_sub(record)
        .filter(|place| *place >= wire::Push::SIZE && place.is_multiple_of(ALIGN));
    let (head, record) = place
        .and_then(|place| entry.split_at_checked(place))
        .ok_or(Status::BadField)?;
    let head = wire::Push::grown(head).ok_or(Status::Unsupported)?;
    Push::from_wire(&head, record)
}

/// Bytes of an entry or a record.
fn size(value: u32, cap: usize) -> Result<usize, Status> {
    let size = count(value, cap).filter(|size| *size != 0 && size.is_multiple_of(ALIGN));
    size.ok_or(Status::BadField)
}

/// A guest's count as a length, `None` if it is over the cap.
fn count(value: u32, cap: usize) -> Option<usize> {
    usize::try_from(value).ok().filter(|&count| count <= cap)
}

/// `count` pieces of `size` bytes, not 0, and what follows them.
fn pieces(bytes: &[u8], count: usize, size: usize) -> Result<(Chunks<'_, u8>, &[u8]), Status> {
    let length = count.checked_mul(size).ok_or(Status::BadLength)?;
    let (entries, rest) = bytes.split_at_checked(length).ok_or(Status::BadLength)?;
    Ok((entries.chunks(size), rest))
}

/// `count` entries of `size` bytes, not 0, and what follows them.
fn table<T: Wire>(
    bytes: &[u8],
    count: usize,
    size: usize,
) -> Result<(impl Iterator<Item = Result<T, Status>>, &[u8]), Status> {
    let (entries, rest) = pieces(bytes, count, size)?;
    let known = entries.map(|entry| T::grown(entry).ok_or(Status::Unsupported));
    Ok((known, rest))
}

/// The record of metadata of so many bytes, and what follows it.
fn meta_record(bytes: &[u8], meta_size: u32) -> Result<(wire::Meta, &[u8]), Status> {
    let size = size(meta_size, MAX_ENTRY)?;
    let (record, rest) = bytes.split_at_checked(size).ok_or(Status::BadLength)?;
    let record = wire::Meta::grown(record).ok_or(Status::Unsupported)?;
    Ok((record, rest))
}

fn get_caps(raw: &wire::GetCaps) -> Result<Request, Status> {
    if raw.reserved != 0 {
        return Err(Status::Unsupported);
    }
    if raw.version == 0 {
        return Err(Status::BadField);
    }
    Ok(Request::GetCaps {
        version: raw.version,
    })
}

fn unexport(raw: &wire::Unexport) -> Result<Request, Status> {
    let quiesced = match raw.mode {
        UNEXPORT_FORCED => false,
        UNEXPORT_QUIESCED => true,
        _ => return Err(Status::Unsupported),
    };
    // Importers have the time that the operator gives them, whatever an exporter wants.
    if raw.deadline_ms != 0 {
        return Err(Status::BadField);
    }
    Ok(Request::Unexport {
        id: BufferId::from_wire(&raw.id),
        quiesced,
    })
}

fn quiesce(raw: &wire::Quiesce) -> Result<Request, Status> {
    let quiesced = match (raw.mode, raw.reserved) {
        (QUIESCE_ACTIVE, 0) => false,
        (QUIESCE_QUIESCED, 0) => true,
        _ => return Err(Status::Unsupported),
    };
    Ok(Request::Quiesce {
        id: BufferId::from_wire(&raw.id),
        quiesced,
    })
}

fn get_meta(raw: &wire::GetMeta, header: &mut Header) -> Result<Request, Status> {
    if raw.reserved != 0 {
        return Err(Status::Unsupported);
    }
    size(raw.meta_size, MAX_ENTRY)?;
    header.entry_size = raw.meta_size;
    Ok(Request::GetMeta {
        id: BufferId::from_wire(&raw.id),
    })
}

fn attach(raw: &wire::Attach) -> Result<Request, Status> {
    if raw.flags & !ATTACH_CONSUMER != 0 || raw.reserved != 0 {
        return Err(Status::Unsupported);
    }
    Ok(Request::Attach(Attach {
        id: BufferId::from_wire(&raw.id),
        rights: Rights::grant_from_wire(raw.rights).ok_or(Status::BadField)?,
        ways: Ways::from_wire(raw.ways),
        required: Properties::from_wire(raw.required),
        max_windows: raw.max_windows,
        consumer: raw.flags & ATTACH_CONSUMER != 0,
    }))
}

fn sync(raw: &wire::Sync) -> Result<Request, Status> {
    let id = BufferId::from_wire(&raw.id);
    let target = match raw.handle {
        0 => SyncTarget::Owned(id),
        handle if id.is_zero() => SyncTarget::Handle(handle),
        _ => return Err(Status::BadField),
    };
    let op = SyncOp::from_wire(raw.op).ok_or(Status::Unsupported)?;
    let access = Rights::from_wire(raw.access).ok_or(Status::BadField)?;
    if access.is_empty() {
        return Err(Status::BadField);
    }
    Ok(Request::Sync {
        target,
        op,
        access,
        offset: raw.offset,
        len: raw.len,
    })
}

fn set_meta(message: &Message<'_>) -> Result<Request, Status> {
    let (raw, rest) = message.split::<wire::SetMeta>()?;
    if raw.reserved != 0 {
        return Err(Status::Unsupported);
    }
    let (meta, blob) = meta_record(rest, raw.meta_size)?;
    Ok(Request::SetMeta {
        id: BufferId::from_wire(&raw.id),
        meta: Box::new(Meta::from_wire(&meta, blob)?),
    })
}

fn export(message: &Message<'_>) -> Result<Request, Status> {
    let (raw, rest) = message.split::<wire::Export>()?;
    let is_stream = match raw.backing {
        BACKING_EXTENTS => false,
        BACKING_STREAM => true,
        _ => return Err(Status::Unsupported),
    };
    if raw.pool != wire::Id::default() || raw.offset != 0 {
        return Err(Status::BadField);
    }
    let stream = BufferId::from_wire(&raw.stream);
    // A stream is part of no other, and what is part of one has the access list of that.
    if !stream.is_zero() && (is_stream || raw.num_acl != 0) {
        return Err(Status::BadField);
    }
    let acl_len = count(raw.num_acl, MAX_ACL).ok_or(Status::BadField)?;
    let extents_len = count(raw.num_extents, MAX_EXTENTS).ok_or(Status::TooFragmented)?;
    if is_stream != (extents_len == 0) || (is_stream && raw.size != 0) {
        return Err(Status::BadField);
    }
    let access_size = size(raw.access_size, MAX_ENTRY)?;
    let extent_size = size(raw.extent_size, MAX_EXTENT_SIZE)?;
    let (meta, rest) = meta_record(rest, raw.meta_size)?;
    let (acl, rest) = table::<wire::Access>(rest, acl_len, access_size)?;
    let (extents, blob) = table::<wire::Extent>(rest, extents_len, extent_size)?;
    Ok(Request::Export(Box::new(Export {
        size: raw.size,
        stream,
        meta: Meta::from_wire(&meta, blob)?,
        acl: acl
            .map(|raw| Access::from_wire(&raw?))
            .collect::<Result<_, _>>()?,
        extents: extents
            .map(|raw| raw.map(|raw| Extent::from_wire(&raw)))
            .collect::<Result<_, _>>()?,
    })))
}
