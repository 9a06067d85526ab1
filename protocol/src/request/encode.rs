// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A request to bytes

use alloc::vec::Vec;

use crate::request::{
    ATTACH_CONSUMER, Attach, BACKING_EXTENTS, BACKING_STREAM, Export, Header, QUIESCE_ACTIVE,
    QUIESCE_QUIESCED, Request, SyncTarget, UNEXPORT_FORCED, UNEXPORT_QUIESCED, size,
};
use crate::types::{BufferId, Push};
use crate::wire::{self, Wire};

impl Request {
    /// The request as bytes.
    ///
    /// Nothing is checked: a request over a limit gives bytes that the device
    /// refuses.
    #[must_use]
    pub fn encode(&self, cookie: u64) -> Vec<u8> {
        let header = Header::new(self.kind(), cookie);
        let entry_size = header.entry_size;
        let hdr = wire::Req {
            r#type: header.kind,
            flags: 0,
            length: size(self.length()),
            resp_length: header.resp_length,
            cookie,
        };
        match self {
            &Self::GetCaps { version } => wire::GetCaps {
                hdr,
                version,
                reserved: 0,
            }
            .to_bytes()
            .into(),
            &Self::Peers { cursor } | &Self::List { cursor } => wire::Cursor {
                hdr,
                cursor,
                entry_size,
                reserved: 0,
            }
            .to_bytes()
            .into(),
            Self::Export(export) => export.encode(hdr),
            Self::Flush => hdr.to_bytes().into(),
            &Self::Unexport { id, quiesced } => wire::Unexport {
                hdr,
                id: id.to_wire(),
                mode: if quiesced {
                    UNEXPORT_QUIESCED
                } else {
                    UNEXPORT_FORCED
                },
                deadline_ms: 0,
            }
            .to_bytes()
            .into(),
            &Self::Quiesce { id, quiesced } => wire::Quiesce {
                hdr,
                id: id.to_wire(),
                mode: if quiesced {
                    QUIESCE_QUIESCED
                } else {
                    QUIESCE_ACTIVE
                },
                reserved: 0,
            }
            .to_bytes()
            .into(),
            &Self::GetMeta { id } => wire::GetMeta {
                hdr,
                id: id.to_wire(),
                meta_size: entry_size,
                reserved: 0,
            }
            .to_bytes()
            .into(),
            &Self::Query { id } => wire::ById {
                hdr,
                id: id.to_wire(),
            }
            .to_bytes()
            .into(),
            &Self::Attach(Attach {
                id,
                rights,
                ways,
                required,
                max_windows,
                consumer,
            }) => wire::Attach {
                hdr,
                id: id.to_wire(),
                rights: rights.to_wire(),
                ways: ways.to_wire(),
                required: required.to_wire(),
                max_windows,
                flags: if consumer { ATTACH_CONSUMER } else { 0 },
                reserved: 0,
            }
            .to_bytes()
            .into(),
            Self::Detach { handles } => {
                let entries = handles.iter().map(|&handle| wire::Handle { handle });
                batch(hdr, entries, wire::Handle::to_bytes)
            }
            Self::Unmap { windows } => {
                let entries = windows.iter().map(|&window| wire::Window { window });
                batch(hdr, entries, wire::Window::to_bytes)
            }
            Self::Push { frames } => push(hdr, frames),
            Self::Return { frames } => {
                let entries = frames
                    .iter()
                    .map(|&(handle, frame)| wire::Return { handle, frame });
                batch(hdr, entries, wire::Return::to_bytes)
            }
            &Self::Map {
                handle,
                offset,
                len,
            } => wire::Map {
                hdr,
                handle,
                offset,
                len,
            }
            .to_bytes()
            .into(),
            &Self::Sync {
                target,
                op,
                access,
                offset,
                len,
            } => {
                let (handle, id) = match target {
                    SyncTarget::Handle(handle) => (handle, BufferId::ZERO),
                    SyncTarget::Owned(id) => (0, id),
                };
                wire::Sync {
                    hdr,
                    handle,
                    id: id.to_wire(),
                    op: op.to_wire(),
                    access: access.to_wire(),
                    offset,
                    len,
                }
                .to_bytes()
                .into()
            }
            Self::SetMeta { id, meta } => {
                let head = wire::SetMeta {
                    hdr,
                    id: id.to_wire(),
                    meta_size: size(wire::Meta::SIZE),
                    reserved: 0,
                };
                let record = meta.to_wire().to_bytes();
                [head.to_bytes().as_slice(), &record, &meta.blob].concat()
            }
        }
    }

    /// Bytes of the request's structure.
    fn length(&self) -> usize {
        match self {
            Self::GetCaps { .. } => wire::GetCaps::SIZE,
            Self::Peers { .. } | Self::List { .. } => wire::Cursor::SIZE,
            Self::Export(_) => wire::Export::SIZE,
            Self::Unexport { .. } => wire::Unexport::SIZE,
            Self::Attach(_) => wire::Attach::SIZE,
            Self::Detach { .. } | Self::Unmap { .. } | Self::Push { .. } | Self::Return { .. } => {
                wire::Batch::SIZE
            }
            Self::Map { .. } => wire::Map::SIZE,
            Self::Sync { .. } => wire::Sync::SIZE,
            Self::Flush => wire::Req::SIZE,
            Self::Quiesce { .. } => wire::Quiesce::SIZE,
            Self::SetMeta { .. } => wire::SetMeta::SIZE,
            Self::GetMeta { .. } => wire::GetMeta::SIZE,
            Self::Query { .. } => wire::ById::SIZE,
        }
    }
}

fn batch<T: Wire, const N: usize>(
    hdr: wire::Req,
    entries: impl ExactSizeIterator<Item = T>,
    to_bytes: impl Fn(T) -> [u8; N],
) -> Vec<u8> {
    let head = wire::Batch {
        hdr,
        count: size(entries.len()),
        entry_size: size(T::LEN),
    };
    let mut bytes = Vec::from(head.to_bytes());
    bytes.extend(entries.flat_map(to_bytes));
    bytes
}

/// Each entry is as long as the longest record has it.
fn push(hdr: wire::Req, frames: &[Push]) -> Vec<u8> {
    let records = frames.iter().map(|frame| frame.record.bytes().len());
    let record = records.max().unwrap_or_default().next_multiple_of(8);
    let entry = wire::Push::SIZE.saturating_add(record);
    let head = wire::Batch {
        hdr,
        count: size(frames.len()),
        entry_size: size(entry),
    };
    let mut bytes = Vec::from(head.to_bytes());
    for frame in frames {
        let end = bytes.len().saturating_add(entry);
        bytes.extend(frame.to_wire().to_bytes());
        bytes.resize(end.saturating_sub(frame.record.bytes().len()), 0);
        bytes.extend(frame.record.bytes());
    }
    bytes
}

impl Export {
    fn encode(&self, hdr: wire::Req) -> Vec<u8> {
        let head = wire::Export {
            hdr,
            size: self.size,
            backing: if self.is_stream() {
                BACKING_STREAM
            } else {
                BACKING_EXTENTS
            },
            meta_size: size(wire::Meta::SIZE),
            num_acl: size(self.acl.len()),
            access_size: size(wire::Access::SIZE),
            num_extents: size(self.extents.len()),
            extent_size: size(wire::Extent::SIZE),
            pool: wire::Id::default(),
            offset: 0,
            stream: self.stream.to_wire(),
        };
        let mut bytes = Vec::from(head.to_bytes());
        bytes.extend(self.meta.to_wire().to_bytes());
        bytes.extend(self.acl.iter().flat_map(|line| line.to_wire().to_bytes()));
        bytes.extend(
            self.extents
                .iter()
                .flat_map(|extent| extent.to_wire().to_bytes()),
        );
        bytes.extend(&self.meta.blob);
        bytes
    }
}
