// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the device answers
//!
//! [`encode`] is the device's side; [`parse`] reads its bytes in tests. Drivers do not use it.

mod encode;
mod info;
mod parse;

pub use encode::encode;
pub use info::{
    BUFFER_OWNED, BUFFER_QUIESCED, BUFFER_REVOKING, BUFFER_STREAM, BufferInfo, Caps, PEER_UP,
    PeerInfo,
};
pub use parse::parse;

use alloc::vec::Vec;

use crate::status::Status;
use crate::types::{BufferId, Meta, Properties, Rights, Way};

/// Flag of MAP's answer: nothing had to be mapped for it.
pub const MAP_CACHED: u32 = 0x1;

/// An answer, or why there is none. `Err(Status::Ok)` does not occur; on the
/// wire it would be an answer without contents.
pub type Reply = Result<Response, Status>;

/// An answer
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// To UNEXPORT, SYNC, FLUSH and QUIESCE.
    Done,
    /// To DETACH, UNMAP and RETURN.
    Batch {
        /// Why nothing was done, or [`Status::Ok`].
        status: Status,
        /// The first entry that is wrong, or how many there are.
        entry: u32,
    },
    /// To GET_CAPS.
    Caps(Caps),
    /// To PEERS.
    Peers {
        /// Peers with an id above the cursor, in the order of their ids.
        entries: Vec<PeerInfo>,
        /// Whether there are peers behind the last entry.
        more: bool,
    },
    /// To EXPORT.
    Exported {
        /// The buffer's name.
        id: BufferId,
        /// Number of this export.
        generation: u64,
    },
    /// To ATTACH.
    Attached {
        /// Of this attachment, never 0.
        handle: u64,
        /// Bytes of the buffer.
        size: u64,
        /// Of the export.
        generation: u64,
        /// The exporting peer.
        owner: u64,
        /// Granted.
        rights: Rights,
        /// How the bytes become visible.
        way: Way,
        /// What holds.
        properties: Properties,
        /// VMM mappings that a MAP will take.
        windows: u32,
    },
    /// To MAP.
    Mapped {
        /// Number of this range of the attachment where it is mapped, not 0.
        window: u64,
        /// Where the buffer begins in the shared-memory region, bytes.
        shm_offset: u64,
        /// Bytes.
        len: u64,
        /// Nothing had to be mapped for it.
        cached: bool,
    },
    /// To PUSH.
    Pushed {
        /// Why nothing was handed over, or [`Status::Ok`].
        status: Status,
        /// The first frame that is wrong, or how many there are.
        entry: u32,
        /// Number of the first frame; the others' follow. 0 if nothing was handed over.
        frame: u64,
    },
    /// To SET_META.
    MetaSet {
        /// Sequence number in force now.
        seq: u64,
    },
    /// To GET_META.
    Meta {
        /// Its sequence number.
        seq: u64,
        /// The metadata.
        meta: Meta,
    },
    /// To QUERY.
    Buffer(BufferInfo),
    /// To LIST.
    Buffers {
        /// Buffers with a generation above the cursor, in the order of their
        /// generations.
        entries: Vec<BufferInfo>,
        /// Whether there are buffers behind the last entry.
        more: bool,
    },
}
