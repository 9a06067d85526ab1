// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A request to bytes

use alloc::vec::Vec;

use crate::request::{Export, Request, SyncTarget};
use crate::types::BufferId;
use crate::wire;

impl Request {
    /// The request as bytes.
    ///
    /// Nothing is checked: a request over a limit gives bytes that the device
    /// refuses.
    #[must_use]
    pub fn encode(&self, cookie: u64) -> Vec<u8> {
        let hdr = wire::Req {
            r#type: self.kind(),
            flags: 0,
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
            &Self::Peers { cursor } | &Self::List { cursor } => {
                wire::Cursor { hdr, cursor }.to_bytes().into()
            }
            Self::Export(export) => export.encode(hdr),
            Self::Flush => hdr.to_bytes().into(),
            &Self::Unexport { id } | &Self::GetMeta { id } | &Self::Query { id } => wire::ById {
                hdr,
                id: id.to_wire(),
            }
            .to_bytes()
            .into(),
            &Self::Attach { id, rights } => {
                let rights = rights.to_wire();
                wire::Attach {
                    hdr,
                    id: id.to_wire(),
                    rights,
                    reserved: 0,
                }
                .to_bytes()
                .into()
            }
            &Self::Detach { handle } | &Self::Unmap { handle } => {
                wire::ByHandle { hdr, handle }.to_bytes().into()
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
                    meta: meta.to_wire(),
                };
                [head.to_bytes().as_slice(), &meta.blob].concat()
            }
        }
    }
}

impl Export {
    fn encode(&self, hdr: wire::Req) -> Vec<u8> {
        let head = wire::Export {
            hdr,
            size: self.size,
            num_extents: u32::try_from(self.extents.len()).unwrap_or(u32::MAX),
            num_acl: u32::try_from(self.acl.len()).unwrap_or(u32::MAX),
            meta: self.meta.to_wire(),
        };
        let mut bytes = Vec::from(head.to_bytes());
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
