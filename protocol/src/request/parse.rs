// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest's bytes to a request

use alloc::vec::Vec;

use crate::command;
use crate::limits::{MAX_ACL, MAX_EXTENTS};
use crate::request::{Export, Header, Request, SyncOp, SyncTarget};
use crate::status::Status;
use crate::types::{Access, BufferId, Extent, Meta, Rights};
use crate::wire::{self, Wire};

/// Parses one whole request.
///
/// Total: any bytes give a request or a status. Memory is taken only after the
/// counts were found to be within [`limits`](crate::limits) and to agree with
/// the length of `bytes`.
///
/// # Errors
/// The header is `None` if there is not even one.
/// [`Unsupported`](Status::Unsupported): unknown command.
/// [`BadLength`](Status::BadLength): not exactly as long as the fields say.
/// [`BadField`](Status::BadField): flags or a reserved field set, or a value
/// that no state of the device could make valid.
/// [`TooFragmented`](Status::TooFragmented): too many extents.
/// [`MetaTooLarge`](Status::MetaTooLarge): blob too long.
/// [`BadMeta`](Status::BadMeta): name or image not well-formed.
///
/// ```
/// use bufshare_protocol::request::{Request, parse};
/// use bufshare_protocol::status::Status;
///
/// let bytes = Request::Detach { handle: 7 }.encode(42);
/// let (header, request) = parse(&bytes).unwrap();
/// assert_eq!((header.cookie, request), (42, Request::Detach { handle: 7 }));
/// assert_eq!(parse(&bytes[..3]), Err((None, Status::BadLength)));
/// ```
pub fn parse(bytes: &[u8]) -> Result<(Header, Request), (Option<Header>, Status)> {
    let Some((raw, _)) = wire::Req::split(bytes) else {
        return Err((None, Status::BadLength));
    };
    let header = Header {
        kind: raw.r#type,
        cookie: raw.cookie,
    };
    let request = match header.kind {
        command::GET_CAPS => get_caps(bytes),
        command::PEERS => exact(bytes).map(|c: wire::Cursor| Request::Peers { cursor: c.cursor }),
        command::EXPORT => export(bytes),
        command::UNEXPORT => by_id(bytes).map(|id| Request::Unexport { id }),
        command::ATTACH => attach(bytes),
        command::DETACH => by_handle(bytes).map(|handle| Request::Detach { handle }),
        command::MAP => exact(bytes).map(|map: wire::Map| Request::Map {
            handle: map.handle,
            offset: map.offset,
            len: map.len,
        }),
        command::UNMAP => by_handle(bytes).map(|handle| Request::Unmap { handle }),
        command::SYNC => sync(bytes),
        command::FLUSH => exact(bytes).map(|_: wire::Req| Request::Flush),
        command::SET_META => set_meta(bytes),
        command::GET_META => by_id(bytes).map(|id| Request::GetMeta { id }),
        command::QUERY => by_id(bytes).map(|id| Request::Query { id }),
        command::LIST => exact(bytes).map(|c: wire::Cursor| Request::List { cursor: c.cursor }),
        _ => Err(Status::Unsupported),
    };
    match request {
        Ok(_) if raw.flags != 0 => Err((Some(header), Status::BadField)),
        Ok(request) => Ok((header, request)),
        Err(status) => Err((Some(header), status)),
    }
}

/// A struct that is the whole message.
fn exact<T: Wire>(bytes: &[u8]) -> Result<T, Status> {
    match T::split(bytes) {
        Some((value, [])) => Ok(value),
        _ => Err(Status::BadLength),
    }
}

fn by_id(bytes: &[u8]) -> Result<BufferId, Status> {
    exact(bytes).map(|raw: wire::ById| BufferId::from_wire(&raw.id))
}

fn by_handle(bytes: &[u8]) -> Result<u64, Status> {
    exact(bytes).map(|raw: wire::ByHandle| raw.handle)
}

fn get_caps(bytes: &[u8]) -> Result<Request, Status> {
    let raw: wire::GetCaps = exact(bytes)?;
    if raw.version == 0 || raw.reserved != 0 {
        return Err(Status::BadField);
    }
    Ok(Request::GetCaps {
        version: raw.version,
    })
}

fn attach(bytes: &[u8]) -> Result<Request, Status> {
    let raw: wire::Attach = exact(bytes)?;
    let rights = Rights::grant_from_wire(raw.rights).ok_or(Status::BadField)?;
    if raw.reserved != 0 {
        return Err(Status::BadField);
    }
    Ok(Request::Attach {
        id: BufferId::from_wire(&raw.id),
        rights,
    })
}

fn sync(bytes: &[u8]) -> Result<Request, Status> {
    let raw: wire::Sync = exact(bytes)?;
    let id = BufferId::from_wire(&raw.id);
    let target = match raw.handle {
        0 => SyncTarget::Owned(id),
        handle if id.is_zero() => SyncTarget::Handle(handle),
        _ => return Err(Status::BadField),
    };
    let op = SyncOp::from_wire(raw.op).ok_or(Status::BadField)?;
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

fn set_meta(bytes: &[u8]) -> Result<Request, Status> {
    let (raw, blob) = wire::SetMeta::split(bytes).ok_or(Status::BadLength)?;
    let meta = Meta::from_wire(&raw.meta, blob)?;
    Ok(Request::SetMeta {
        id: BufferId::from_wire(&raw.id),
        meta,
    })
}

fn export(bytes: &[u8]) -> Result<Request, Status> {
    let (raw, rest) = wire::Export::split(bytes).ok_or(Status::BadLength)?;
    let acl_len = count(raw.num_acl, MAX_ACL).ok_or(Status::BadField)?;
    let extents_len = count(raw.num_extents, MAX_EXTENTS).ok_or(Status::TooFragmented)?;
    if extents_len == 0 {
        return Err(Status::BadField);
    }
    let (acl, rest) = table::<wire::Access>(rest, acl_len).ok_or(Status::BadLength)?;
    let (extents, blob) = table::<wire::Extent>(rest, extents_len).ok_or(Status::BadLength)?;
    Ok(Request::Export(Export {
        size: raw.size,
        meta: Meta::from_wire(&raw.meta, blob)?,
        acl: entries(acl)
            .map(|raw| Access::from_wire(&raw))
            .collect::<Result<Vec<_>, _>>()?,
        extents: entries(extents)
            .map(|raw| Extent::from_wire(&raw))
            .collect(),
    }))
}

/// A guest's count as a length, `None` if it is over the cap.
fn count(value: u32, cap: usize) -> Option<usize> {
    usize::try_from(value).ok().filter(|&count| count <= cap)
}

/// The bytes of `count` entries, and what follows.
fn table<T: Wire>(bytes: &[u8], count: usize) -> Option<(&[u8], &[u8])> {
    bytes.split_at_checked(count.checked_mul(T::LEN)?)
}

/// Walks a table.
fn entries<T: Wire>(mut bytes: &[u8]) -> impl Iterator<Item = T> {
    core::iter::from_fn(move || {
        let (entry, rest) = T::split(bytes)?;
        bytes = rest;
        Some(entry)
    })
}
