// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is known of a buffer

use bufshare_protocol::response;

use crate::{BufferId, Name, Rights};

/// What this VM may know of a buffer that it exports or may import; from
/// [`Device::list`](crate::Device::list) and [`Device::query`](crate::Device::query)
///
/// As it was when the host was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BufferInfo {
    /// Its name: random, so that no other buffer has the same, and nobody can guess it.
    pub id: BufferId,
    /// The exporting peer's id.
    pub owner: u64,
    /// Bytes.
    pub size: u64,
    /// Number of the export. No other has the same, also after a restart of the host's daemon,
    /// unless the host's clock was set back before. Of one owner's, the later has the greater one.
    pub generation: u64,
    /// Sequence number of the metadata, from 1.
    pub meta_seq: u64,
    /// What this VM may do with it.
    pub rights: Rights,
    /// This VM exports it.
    pub owned: bool,
    /// This VM's own export of it is ending.
    pub revoking: bool,
    /// This VM has promised that nothing of it writes there: see
    /// [`Device::quiesce`](crate::Device::quiesce).
    pub quiesced: bool,
    /// Pieces that it consists of; 0 unless this VM exports it.
    pub extents: u32,
    /// Imports of it: of all peers if this VM exports it, else of this VM.
    pub attachments: u32,
    /// How many of those imports are mapped.
    pub mapped: u32,
    /// DRM fourcc of the image in it; 0: none. Whether this version of the library can make sense
    /// of that image, [`Device::get_meta`](crate::Device::get_meta) says.
    pub fourcc: u32,
    /// For people.
    pub name: Name,
    /// It is a [stream](crate::Stream): there are no bytes.
    pub is_stream: bool,
    /// The stream that it is part of.
    pub stream: Option<BufferId>,
}

impl BufferInfo {
    pub(crate) fn from_protocol(buffer: &response::BufferInfo) -> Self {
        Self {
            id: buffer.id,
            owner: buffer.owner,
            size: buffer.size,
            generation: buffer.generation,
            meta_seq: buffer.meta_seq,
            rights: buffer.rights,
            owned: buffer.owned,
            revoking: buffer.revoking,
            quiesced: buffer.quiesced,
            extents: buffer.extents,
            attachments: buffer.attachments,
            mapped: buffer.mapped,
            fourcc: buffer.fourcc,
            name: Name::from_protocol(buffer.name),
            is_stream: buffer.is_stream,
            stream: (!buffer.stream.is_zero()).then_some(buffer.stream),
        }
    }
}
