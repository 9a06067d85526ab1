// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bytes to an answer, for tests of the device

use alloc::vec::Vec;

use crate::command;
use crate::limits::{MAX_LIST, RESPONSE_HEADER};
use crate::request::Header;
use crate::response::{BufferInfo, Caps, MAP_CACHED, PeerInfo, Reply, Response};
use crate::status::Status;
use crate::types::{BufferId, Meta, Properties, Rights, Way};
use crate::wire::{self, Wire};

/// Parses the answer to a request of this `kind` with the head that [`Header::new`] makes:
/// its cookie, the reply, and for lists the cursor of the next request (0: that was all).
///
/// Total: any bytes give an answer or a status.
///
/// It is strict with a device of this version, which is what it is there to test. A driver has
/// to take statuses and ways that it does not know (SPEC 4.2 and 6.3).
///
/// # Errors
/// The answer is none of this version. [`BadLength`](Status::BadLength): not
/// exactly as long as it says. [`BadField`](Status::BadField): another kind; a status, way or
/// grant that this version does not have; or a number that is 0 and must not be. Other bits
/// that are not known are ignored.
/// [`BadMeta`](Status::BadMeta), [`MetaTooLarge`](Status::MetaTooLarge): a name,
/// image or blob that is not well-formed. [`Unsupported`](Status::Unsupported):
/// `kind` is no command.
pub fn parse(kind: u32, bytes: &[u8]) -> Result<(u64, Reply, u64), Status> {
    let (hdr, rest) = wire::Resp::split(bytes).ok_or(Status::BadLength)?;
    if hdr.r#type != kind {
        return Err(Status::BadField);
    }
    let status = Status::from_wire(hdr.status).ok_or(Status::BadField)?;
    let alone = usize::try_from(hdr.length) == Ok(RESPONSE_HEADER) && rest.is_empty();
    let whole = hdr.length == Header::new(kind, 0).resp_length;
    match status {
        Status::Ok if !whole => Err(Status::BadLength),
        Status::Ok => {
            let (response, next) = answer(kind, bytes)?;
            Ok((hdr.cookie, Ok(response), next))
        }
        _ if alone => Ok((hdr.cookie, Err(status), 0)),
        _ if whole && matches!(kind, command::DETACH | command::UNMAP | command::RETURN) => {
            Ok((hdr.cookie, Ok(batch(bytes, status)?), 0))
        }
        _ if whole && kind == command::PUSH => Ok((hdr.cookie, Ok(pushed(bytes, status)?), 0)),
        _ => Err(Status::BadLength),
    }
}

fn answer(kind: u32, bytes: &[u8]) -> Result<(Response, u64), Status> {
    let response = match kind {
        command::GET_CAPS => Response::Caps(Caps::from_wire(&exact(bytes)?)?),
        command::PEERS => {
            let (entries, next) = list(bytes, PeerInfo::from_wire)?;
            return Ok((
                Response::Peers {
                    entries,
                    more: next != 0,
                },
                next,
            ));
        }
        command::EXPORT => {
            let raw: wire::ExportResp = exact(bytes)?;
            Response::Exported {
                id: BufferId::from_wire(&raw.id),
                generation: raw.generation,
            }
        }
        command::DETACH | command::UNMAP | command::RETURN => batch(bytes, Status::Ok)?,
        command::PUSH => pushed(bytes, Status::Ok)?,
        command::UNEXPORT | command::SYNC | command::FLUSH | command::QUIESCE => {
            exact::<wire::Resp>(bytes)?;
            Response::Done
        }
        command::ATTACH => attached(&exact(bytes)?)?,
        command::MAP => mapped(&exact(bytes)?)?,
        command::SET_META => {
            let raw: wire::SetMetaResp = exact(bytes)?;
            Response::MetaSet { seq: raw.seq }
        }
        command::GET_META => {
            let (raw, rest) = wire::GetMetaResp::split(bytes).ok_or(Status::BadLength)?;
            let (meta, blob) = wire::Meta::split(rest).ok_or(Status::BadLength)?;
            Response::Meta {
                seq: raw.seq,
                meta: Meta::understood(&meta, blob)?,
            }
        }
        command::QUERY => {
            let raw: wire::QueryResp = exact(bytes)?;
            Response::Buffer(BufferInfo::from_wire(&raw.buffer)?)
        }
        command::LIST => {
            let (entries, next) = list(bytes, BufferInfo::from_wire)?;
            return Ok((
                Response::Buffers {
                    entries,
                    more: next != 0,
                },
                next,
            ));
        }
        _ => return Err(Status::Unsupported),
    };
    Ok((response, 0))
}

/// A struct that is the whole message.
fn exact<T: Wire>(bytes: &[u8]) -> Result<T, Status> {
    match T::split(bytes) {
        Some((value, [])) => Ok(value),
        _ => Err(Status::BadLength),
    }
}

fn batch(bytes: &[u8], status: Status) -> Result<Response, Status> {
    let raw: wire::BatchResp = exact(bytes)?;
    Ok(Response::Batch {
        status,
        entry: raw.entry,
    })
}

fn pushed(bytes: &[u8], status: Status) -> Result<Response, Status> {
    let raw: wire::PushResp = exact(bytes)?;
    if (raw.frame == 0) == (status == Status::Ok) {
        return Err(Status::BadField);
    }
    Ok(Response::Pushed {
        status,
        entry: raw.entry,
        frame: raw.frame,
    })
}

fn attached(raw: &wire::AttachResp) -> Result<Response, Status> {
    if raw.handle == 0 {
        return Err(Status::BadField);
    }
    Ok(Response::Attached {
        handle: raw.handle,
        size: raw.size,
        generation: raw.generation,
        owner: raw.owner,
        rights: Rights::grant_from_wire(raw.rights).ok_or(Status::BadField)?,
        way: Way::from_wire(raw.way).ok_or(Status::BadField)?,
        properties: Properties::from_wire(raw.properties),
        windows: raw.windows,
    })
}

fn mapped(raw: &wire::MapResp) -> Result<Response, Status> {
    if raw.window == 0 {
        return Err(Status::BadField);
    }
    Ok(Response::Mapped {
        window: raw.window,
        shm_offset: raw.shm_offset,
        len: raw.len,
        cached: raw.flags & MAP_CACHED != 0,
    })
}

fn list<T: Wire, E>(
    bytes: &[u8],
    check: impl Fn(&T) -> Result<E, Status>,
) -> Result<(Vec<E>, u64), Status> {
    let (head, mut rest) = wire::ListResp::split(bytes).ok_or(Status::BadLength)?;
    let count = match usize::try_from(head.count) {
        Ok(count) if count <= MAX_LIST => count,
        _ => return Err(Status::BadField),
    };
    if count.checked_mul(T::LEN) != Some(rest.len()) {
        return Err(Status::BadLength);
    }
    let mut entries = Vec::with_capacity(count);
    while let Some((raw, tail)) = T::split(rest) {
        entries.push(check(&raw)?);
        rest = tail;
    }
    Ok((entries, head.next))
}
