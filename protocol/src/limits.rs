// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Limits of the format
//!
//! Each bounds what one message can make the receiver allocate or walk. The
//! device's own limits, often lower, are in its configuration space.

use crate::wire;

/// Bytes of a name on the wire, the closing NUL included. Fits a line of `ls`.
pub const NAME_LEN: usize = 32;

/// Bytes of a buffer id. 128 random bits cannot be guessed.
pub const ID_LEN: usize = 16;

/// Planes per image. DRM framebuffers have no more.
pub const MAX_PLANES: usize = 4;

/// Lines per access list. Bounds the check that each attach makes.
pub const MAX_ACL: usize = 16;

/// Extents per export. udmabuf's default `list_limit`, so that each buffer
/// that can be exported can also be confined.
pub const MAX_EXTENTS: usize = 1024;

/// Bytes of opaque metadata per buffer. One page; more belongs into a buffer.
pub const MAX_BLOB: usize = 4096;

/// Entries per answer to PEERS and LIST. Bounds the time under the broker's
/// lock and the size of the answer.
pub const MAX_LIST: usize = 64;

/// Entries per UNMAP or DETACH. Bounds what a request does under the broker's lock.
pub const MAX_BATCH: usize = 16;

/// Bytes of the structure of a request or response, with what is to come of it. A page.
pub const MAX_STRUCT: usize = 4096;

/// Bytes of an entry of a table, with what is to come of it.
pub const MAX_ENTRY: usize = 1024;

/// Buffers per frame: as planes of an image.
pub const MAX_FRAME_BUFFERS: usize = MAX_PLANES;

/// Rectangles of damage per frame. More are joined by whoever would send them.
pub const MAX_DAMAGE: usize = 16;

/// Bytes of an extent, with what is to come of it: there may be many of them.
pub const MAX_EXTENT_SIZE: usize = 32;

/// The least `event_size` that a device has. As small as a driver may provide buffers for,
/// however events grow.
pub const MIN_EVENT_SIZE: usize = 512;

/// The most. A page: what a driver has to provide for each event that may wait.
pub const MAX_EVENT_SIZE: usize = 4096;

/// Bytes of the events of this device. PUSHED is the longest.
pub const EVENT_SIZE: usize = 1024;

/// Attachments of one peer to one buffer that are given its frames: one for each pair of rights
/// and way that programs may want, beside one that is about to end.
pub const MAX_CONSUMERS: usize = 4;

/// Bytes of the record of a frame, with what is to come of it. It is handed on in an event.
pub const MAX_FRAME_RECORD: usize = 768;
const _: () = assert!(wire::Pushed::SIZE + MAX_FRAME_RECORD <= EVENT_SIZE);

/// Bytes of the header of each request.
pub const REQUEST_HEADER: usize = wire::Req::SIZE;

/// Bytes of the header of each response.
pub const RESPONSE_HEADER: usize = wire::Resp::SIZE;

/// Bytes of the longest request, an EXPORT with everything at its cap. A
/// device need not read more of a chain.
pub const MAX_REQUEST: usize =
    MAX_STRUCT + MAX_ENTRY + MAX_ACL * MAX_ENTRY + MAX_EXTENTS * MAX_EXTENT_SIZE + MAX_BLOB;

/// Bytes of the longest response, a LIST of [`MAX_LIST`] buffers. A driver
/// with this much room never sees [`NoRoom`](crate::status::Status::NoRoom).
pub const MAX_RESPONSE: usize = MAX_STRUCT + MAX_LIST * MAX_ENTRY;

/// Bytes of the configuration space. Command lines of VMMs name them.
pub const CONFIG_SIZE: usize = 256;

/// Bytes of the smallest page that any supported host or guest has, and thus
/// the smallest possible `map_align`.
pub const PAGE: u64 = 4096;

const _: () = assert!(wire::Config::SIZE == CONFIG_SIZE);
const _: () = assert!(MAX_RESPONSE >= MAX_STRUCT + MAX_ENTRY + MAX_BLOB);
const _: () = assert!(wire::Push::SIZE + MAX_FRAME_RECORD <= MAX_ENTRY);
const _: () = assert!(wire::Frame::SIZE <= MAX_FRAME_RECORD);
const _: () = assert!(MAX_REQUEST >= MAX_STRUCT + MAX_BATCH * MAX_ENTRY);
