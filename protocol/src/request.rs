// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a driver asks
//!
//! [`parse`] is the only door for a guest's bytes. It accepts what
//! [`Request::encode`] writes, in structures of any length: what is missing counts as
//! zeroes, what is too much has to be zeroes.

mod encode;
mod parse;

pub use parse::parse;

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::command;
#[cfg(doc)]
use crate::limits;
use crate::types::{Access, BufferId, Extent, Meta, Properties, Push, Rights, Way, Ways};
use crate::wire;

/// Backing of an EXPORT: extents of the exporter's RAM.
pub const BACKING_EXTENTS: u32 = 0;
/// Backing of an EXPORT: a range of a pool. Not served yet.
pub const BACKING_POOL: u32 = 1;
/// Backing of an EXPORT: said at the first use. Not served yet.
pub const BACKING_DEFERRED: u32 = 2;

/// Backing of an EXPORT: none. It is a stream.
pub const BACKING_STREAM: u32 = 3;

/// Mode of an UNEXPORT: importers have until the deadline.
pub const UNEXPORT_FORCED: u32 = 0;
/// Mode of an UNEXPORT: importers have until they detach. Not served yet.
pub const UNEXPORT_GRACEFUL: u32 = 1;
/// Mode of an UNEXPORT: as forced, of a buffer that is quiesced and stays so.
pub const UNEXPORT_QUIESCED: u32 = 2;

/// Flag of an ATTACH: it is given the frames of the buffer.
pub const ATTACH_CONSUMER: u32 = 0x1;

/// Mode of a QUIESCE: the exporter may write.
pub const QUIESCE_ACTIVE: u32 = 0;
/// Mode of a QUIESCE: nothing of the exporter's VM writes.
pub const QUIESCE_QUIESCED: u32 = 1;

/// Head of a request: what its answer depends on
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Header {
    /// A number of [`command`], or an unknown one.
    pub kind: u32,
    /// Chosen by the driver, returned as it is.
    pub cookie: u64,
    /// Bytes that the answer's structure shall have, up to
    /// [`MAX_STRUCT`](limits::MAX_STRUCT). Below
    /// [`RESPONSE_HEADER`](limits::RESPONSE_HEADER) of a request that is refused.
    pub resp_length: u32,
    /// Bytes that an entry of a list, or the record of metadata, shall have, up to
    /// [`MAX_ENTRY`](limits::MAX_ENTRY); 0 if the answer has none.
    pub entry_size: u32,
}

impl Header {
    /// The head of a request of this `kind` by a driver that knows as much as this crate.
    #[must_use]
    pub fn new(kind: u32, cookie: u64) -> Self {
        let resp_length = match kind {
            command::GET_CAPS => wire::GetCapsResp::SIZE,
            command::PEERS | command::LIST => wire::ListResp::SIZE,
            command::EXPORT => wire::ExportResp::SIZE,
            command::ATTACH => wire::AttachResp::SIZE,
            command::DETACH | command::UNMAP | command::RETURN => wire::BatchResp::SIZE,
            command::PUSH => wire::PushResp::SIZE,
            command::MAP => wire::MapResp::SIZE,
            command::SET_META => wire::SetMetaResp::SIZE,
            command::GET_META => wire::GetMetaResp::SIZE,
            command::QUERY => wire::QueryResp::SIZE,
            _ => wire::Resp::SIZE,
        };
        let entry_size = match kind {
            command::PEERS => wire::Peer::SIZE,
            command::LIST => wire::Buffer::SIZE,
            command::GET_META => wire::Meta::SIZE,
            _ => 0,
        };
        Self {
            kind,
            cookie,
            resp_length: size(resp_length),
            entry_size: size(entry_size),
        }
    }
}

/// The size of a structure as it stands on the wire.
fn size(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// Contents of an EXPORT: of a buffer, or of a stream, which has no extents
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Export {
    /// Bytes; 0 of a stream.
    pub size: u64,
    /// Up to [`MAX_EXTENTS`](crate::limits::MAX_EXTENTS) pieces in the order of
    /// the buffer's bytes; none: it is a stream.
    pub extents: Vec<Extent>,
    /// The stream that the buffer is part of; zero: of none.
    pub stream: BufferId,
    /// At most [`MAX_ACL`](crate::limits::MAX_ACL) lines; none: that of its stream, or all
    /// peers the operator allows.
    pub acl: Vec<Access>,
    /// Metadata.
    pub meta: Meta,
}

/// Contents of an ATTACH
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Attach {
    /// The buffer.
    pub id: BufferId,
    /// [`Rights::READ`] or [`Rights::RW`].
    pub rights: Rights,
    /// Ways that are accepted; an empty set: direct and udmabuf.
    pub ways: Ways,
    /// Properties without which it is refused.
    pub required: Properties,
    /// VMM mappings that a MAP may take; 0: any number.
    pub max_windows: u32,
    /// It is given the frames of the buffer.
    pub consumer: bool,
}

impl Export {
    /// Whether it is of a stream.
    #[must_use]
    pub const fn is_stream(&self) -> bool {
        self.extents.is_empty()
    }
}

impl Attach {
    /// With these rights, directly or by udmabuf.
    #[must_use]
    pub fn new(id: BufferId, rights: Rights) -> Self {
        Self {
            id,
            rights,
            ..Self::default()
        }
    }

    /// Joins a stream.
    #[must_use]
    pub fn join(id: BufferId) -> Self {
        Self {
            ways: Ways::NONE.with(Way::None),
            ..Self::new(id, Rights::READ)
        }
    }
}

/// Who announces CPU access
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SyncTarget {
    /// An importer, by its attachment, not 0.
    Handle(u64),
    /// The owner, by the buffer.
    Owned(BufferId),
}

/// Which end of CPU access is announced
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum SyncOp {
    /// Access begins.
    Begin = 0,
    /// Access has ended.
    End = 1,
}

impl SyncOp {
    /// The operation with this number, `None` if it is unknown.
    #[must_use]
    pub const fn from_wire(value: u32) -> Option<Self> {
        match value {
            0 => Some(Self::Begin),
            1 => Some(Self::End),
            _ => None,
        }
    }

    /// The number on the wire.
    #[must_use]
    pub const fn to_wire(self) -> u32 {
        match self {
            Self::Begin => 0,
            Self::End => 1,
        }
    }
}

/// A well-formed request
///
/// Well-formed says nothing about whether the buffer exists, the offsets lie
/// inside it or the asker may do it. What is long is boxed: a request is moved often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Agree on a version, return the device's limits.
    GetCaps {
        /// Highest version the driver speaks, not 0.
        version: u32,
    },
    /// List the peers.
    Peers {
        /// 0 to start, then the answer's `next`.
        cursor: u64,
    },
    /// Offer a buffer.
    Export(Box<Export>),
    /// Revoke an offered buffer.
    Unexport {
        /// The buffer.
        id: BufferId,
        /// It is quiesced, and stays so until the answer.
        quiesced: bool,
    },
    /// Begin to use another peer's buffer.
    Attach(Attach),
    /// End that use.
    Detach {
        /// The attachments, 1 to [`MAX_BATCH`](limits::MAX_BATCH).
        handles: Vec<u64>,
    },
    /// Make an attached buffer appear in the shared-memory region.
    Map {
        /// The attachment.
        handle: u64,
        /// Bytes into the buffer.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Undo one MAP for each entry.
    Unmap {
        /// What the MAPs answered, 1 to [`MAX_BATCH`](limits::MAX_BATCH).
        windows: Vec<u64>,
    },
    /// Begin or end CPU access.
    Sync {
        /// Who, and to which buffer.
        target: SyncTarget,
        /// Begin or end.
        op: SyncOp,
        /// Class of access, not empty.
        access: Rights,
        /// Bytes into the buffer.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Give up all windows that are not in use.
    Flush,
    /// State whether the exporter writes to its buffer.
    Quiesce {
        /// The buffer.
        id: BufferId,
        /// Nothing of its VM does.
        quiesced: bool,
    },
    /// Hand frames over.
    Push {
        /// 1 to [`MAX_BATCH`](limits::MAX_BATCH), in their order.
        frames: Vec<Push>,
    },
    /// Give frames back.
    Return {
        /// Attachments and the numbers of frames that they were given, 1 to
        /// [`MAX_BATCH`](limits::MAX_BATCH).
        frames: Vec<(u64, u64)>,
    },
    /// Replace a buffer's metadata.
    SetMeta {
        /// The buffer.
        id: BufferId,
        /// The new metadata.
        meta: Box<Meta>,
    },
    /// Return a buffer's metadata.
    GetMeta {
        /// The buffer.
        id: BufferId,
    },
    /// Describe one buffer.
    Query {
        /// The buffer.
        id: BufferId,
    },
    /// List the buffers one owns or may attach to.
    List {
        /// 0 to start, then the answer's `next`.
        cursor: u64,
    },
}

impl Request {
    /// The number of the command.
    #[must_use]
    pub const fn kind(&self) -> u32 {
        match self {
            Self::GetCaps { .. } => command::GET_CAPS,
            Self::Peers { .. } => command::PEERS,
            Self::Export(_) => command::EXPORT,
            Self::Unexport { .. } => command::UNEXPORT,
            Self::Attach(_) => command::ATTACH,
            Self::Detach { .. } => command::DETACH,
            Self::Map { .. } => command::MAP,
            Self::Unmap { .. } => command::UNMAP,
            Self::Sync { .. } => command::SYNC,
            Self::Flush => command::FLUSH,
            Self::Quiesce { .. } => command::QUIESCE,
            Self::Push { .. } => command::PUSH,
            Self::Return { .. } => command::RETURN,
            Self::SetMeta { .. } => command::SET_META,
            Self::GetMeta { .. } => command::GET_META,
            Self::Query { .. } => command::QUERY,
            Self::List { .. } => command::LIST,
        }
    }
}
