// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a driver asks
//!
//! [`parse`] is the only door for a guest's bytes. It accepts exactly what
//! [`Request::encode`] writes.

mod encode;
mod parse;

pub use parse::parse;

use alloc::vec::Vec;

use crate::command;
use crate::types::{Access, BufferId, Extent, Meta, Rights};

/// Head of a request
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Header {
    /// A number of [`command`], or an unknown one.
    pub kind: u32,
    /// Chosen by the driver, returned as it is.
    pub cookie: u64,
}

/// Contents of an EXPORT
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Export {
    /// Bytes.
    pub size: u64,
    /// 1 to [`MAX_EXTENTS`](crate::limits::MAX_EXTENTS) pieces in the order of
    /// the buffer's bytes.
    pub extents: Vec<Extent>,
    /// At most [`MAX_ACL`](crate::limits::MAX_ACL) lines; none: all peers the
    /// operator allows.
    pub acl: Vec<Access>,
    /// Metadata.
    pub meta: Meta,
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
/// inside it or the asker may do it.
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
    Export(Export),
    /// Revoke an offered buffer.
    Unexport {
        /// The buffer.
        id: BufferId,
    },
    /// Begin to use another peer's buffer.
    Attach {
        /// The buffer.
        id: BufferId,
        /// [`Rights::READ`] or [`Rights::RW`].
        rights: Rights,
    },
    /// End that use.
    Detach {
        /// The attachment.
        handle: u64,
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
    /// Undo one MAP.
    Unmap {
        /// The attachment.
        handle: u64,
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
    /// Replace a buffer's metadata.
    SetMeta {
        /// The buffer.
        id: BufferId,
        /// The new metadata.
        meta: Meta,
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
            Self::Attach { .. } => command::ATTACH,
            Self::Detach { .. } => command::DETACH,
            Self::Map { .. } => command::MAP,
            Self::Unmap { .. } => command::UNMAP,
            Self::Sync { .. } => command::SYNC,
            Self::Flush => command::FLUSH,
            Self::SetMeta { .. } => command::SET_META,
            Self::GetMeta { .. } => command::GET_META,
            Self::Query { .. } => command::QUERY,
            Self::List { .. } => command::LIST,
        }
    }
}
