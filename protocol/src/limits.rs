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

/// Bytes of the header of each request.
pub const REQUEST_HEADER: usize = wire::Req::SIZE;

/// Bytes of the header of each response.
pub const RESPONSE_HEADER: usize = wire::Resp::SIZE;

/// Bytes of the longest request, an EXPORT with everything at its cap. A
/// device need not read more of a chain.
pub const MAX_REQUEST: usize =
    wire::Export::SIZE + MAX_ACL * wire::Access::SIZE + MAX_EXTENTS * wire::Extent::SIZE + MAX_BLOB;

/// Bytes of the longest response, a LIST of [`MAX_LIST`] buffers. A driver
/// with this much room never sees [`NoRoom`](crate::status::Status::NoRoom).
pub const MAX_RESPONSE: usize = wire::ListResp::SIZE + MAX_LIST * wire::Buffer::SIZE;

/// Bytes of the configuration space.
pub const CONFIG_SIZE: usize = wire::Config::SIZE;

/// Bytes of the smallest page that any supported host or guest has, and thus
/// the smallest possible `map_align`.
pub const PAGE: u64 = 4096;

const _: () = assert!(MAX_RESPONSE >= wire::GetMetaResp::SIZE + MAX_BLOB);
