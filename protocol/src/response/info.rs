// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What answers state about the device, a peer, a buffer

use crate::limits::{self, CONFIG_SIZE, MAX_BATCH};
use crate::request::{BACKING_EXTENTS, BACKING_STREAM};
use crate::status::Status;
use crate::types::{BufferId, Name, Rights, Ways};
use crate::wire;

/// State of a peer: its driver runs.
pub const PEER_UP: u32 = 0x1;
/// Flag of a buffer: the asker exported it.
pub const BUFFER_OWNED: u32 = 0x1;
/// Flag of a buffer: its UNEXPORT is under way.
pub const BUFFER_REVOKING: u32 = 0x2;
/// Flag of a buffer: nothing of its exporter's VM writes; only that sees it.
pub const BUFFER_QUIESCED: u32 = 0x4;
/// It is a stream: it has no bytes.
pub const BUFFER_STREAM: u32 = 0x8;

#[expect(clippy::cast_possible_truncation, reason = "far below")]
const EVENT_SIZE: u32 = limits::EVENT_SIZE as u32;
#[expect(clippy::cast_possible_truncation, reason = "far below")]
const BATCH: u32 = MAX_BATCH as u32;

/// The device and its limits, as one peer sees them
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caps {
    /// Version in force.
    pub version: u32,
    /// Bits of [`device`](crate::device)`::CAP_*`.
    pub caps: u32,
    /// VMM mappings this peer may hold at once, idle ones included.
    pub max_windows: u32,
    /// Extents per EXPORT.
    pub max_extents: u32,
    /// Buffers this peer may export at once.
    pub max_buffers: u32,
    /// Attachments this peer may hold at once.
    pub max_attachments: u32,
    /// Bytes of opaque metadata per buffer.
    pub max_blob: u32,
    /// Alignment of addresses and sizes, bytes, a power of two.
    pub map_align: u32,
    /// Bytes of the shared-memory region.
    pub shm_size: u64,
    /// Bytes per buffer.
    pub max_buffer_size: u64,
    /// This peer's id.
    pub peer_id: u64,
    /// This peer's name, given by the operator.
    pub name: Name,
    /// VMM mappings held now, idle ones included.
    pub windows_used: u32,
    /// Ways that an ATTACH may be given, to some buffers.
    pub ways: Ways,
}

impl Caps {
    /// The bytes of the configuration space.
    #[must_use]
    pub fn config_space(&self) -> [u8; CONFIG_SIZE] {
        self.to_config().to_bytes()
    }

    pub(super) const fn to_config(self) -> wire::Config {
        wire::Config {
            version: self.version,
            caps: self.caps,
            max_windows: self.max_windows,
            max_extents: self.max_extents,
            max_buffers: self.max_buffers,
            max_attachments: self.max_attachments,
            max_blob: self.max_blob,
            map_align: self.map_align,
            shm_size: self.shm_size,
            max_buffer_size: self.max_buffer_size,
            peer_id: self.peer_id,
            event_size: EVENT_SIZE,
            max_batch: BATCH,
            ways: self.ways.to_wire(),
            backings: (1 << BACKING_EXTENTS) | (1 << BACKING_STREAM),
            reserved: [0; 23],
        }
    }

    pub(super) fn from_wire(raw: &wire::GetCapsResp) -> Result<Self, Status> {
        let config = &raw.config;
        Ok(Self {
            version: config.version,
            caps: config.caps,
            max_windows: config.max_windows,
            max_extents: config.max_extents,
            max_buffers: config.max_buffers,
            max_attachments: config.max_attachments,
            max_blob: config.max_blob,
            map_align: config.map_align,
            shm_size: config.shm_size,
            max_buffer_size: config.max_buffer_size,
            peer_id: config.peer_id,
            name: Name::from_wire(&raw.name)?,
            windows_used: raw.windows_used,
            ways: Ways::from_wire(config.ways),
        })
    }
}

/// One peer
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerInfo {
    /// Its id, from 1, constant while the device process lives.
    pub id: u64,
    /// Given by the operator.
    pub name: Name,
    /// Its driver runs.
    pub up: bool,
    /// What the asker may grant it.
    pub export_rights: Rights,
    /// What it may grant the asker.
    pub import_rights: Rights,
}

impl PeerInfo {
    /// The entry as it goes over the wire.
    #[must_use]
    pub const fn to_wire(self) -> wire::Peer {
        wire::Peer {
            id: self.id,
            name: self.name.to_wire(),
            state: if self.up { PEER_UP } else { 0 },
            export_rights: self.export_rights.to_wire(),
            import_rights: self.import_rights.to_wire(),
            reserved: 0,
        }
    }

    /// Makes sense of an entry as it came over the wire or from the kernel: bits that are
    /// not known are ignored.
    ///
    /// # Errors
    /// [`Status::BadMeta`] for a name that is not well-formed.
    pub fn from_wire(raw: &wire::Peer) -> Result<Self, Status> {
        Ok(Self {
            id: raw.id,
            name: Name::from_wire(&raw.name)?,
            up: raw.state & PEER_UP != 0,
            export_rights: Rights::known(raw.export_rights),
            import_rights: Rights::known(raw.import_rights),
        })
    }
}

/// One buffer
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BufferInfo {
    /// Its name.
    pub id: BufferId,
    /// The exporting peer.
    pub owner: u64,
    /// Bytes.
    pub size: u64,
    /// Number of the export, not 0 (SPEC 5.2).
    pub generation: u64,
    /// Sequence number of the metadata.
    pub meta_seq: u64,
    /// The asker's.
    pub rights: Rights,
    /// The asker exported it.
    pub owned: bool,
    /// Its UNEXPORT is under way.
    pub revoking: bool,
    /// Nothing of its exporter's VM writes; false unless the asker owns it.
    pub quiesced: bool,
    /// Number of pieces; 0 unless the asker owns it.
    pub extents: u32,
    /// Of all peers if the asker owns it, else of the asker.
    pub attachments: u32,
    /// How many of those are mapped.
    pub mapped: u32,
    /// DRM fourcc of the image, 0: none.
    pub fourcc: u32,
    /// For people.
    pub name: Name,
    /// It is a stream: it has no bytes.
    pub is_stream: bool,
    /// The stream that it is part of, or zero.
    pub stream: BufferId,
}

impl BufferInfo {
    /// The entry as it goes over the wire.
    #[must_use]
    pub const fn to_wire(self) -> wire::Buffer {
        let owned = if self.owned { BUFFER_OWNED } else { 0 };
        let revoking = if self.revoking { BUFFER_REVOKING } else { 0 };
        let quiesced = if self.quiesced { BUFFER_QUIESCED } else { 0 };
        let is_stream = if self.is_stream { BUFFER_STREAM } else { 0 };
        wire::Buffer {
            id: self.id.to_wire(),
            owner: self.owner,
            size: self.size,
            generation: self.generation,
            meta_seq: self.meta_seq,
            rights: self.rights.to_wire(),
            flags: owned | revoking | quiesced | is_stream,
            extents: self.extents,
            attachments: self.attachments,
            mapped: self.mapped,
            fourcc: self.fourcc,
            name: self.name.to_wire(),
            stream: self.stream.to_wire(),
        }
    }

    /// Makes sense of an entry as it came over the wire or from the kernel: bits that are
    /// not known are ignored.
    ///
    /// # Errors
    /// [`Status::BadMeta`] for a name that is not well-formed.
    pub fn from_wire(raw: &wire::Buffer) -> Result<Self, Status> {
        Ok(Self {
            id: BufferId::from_wire(&raw.id),
            owner: raw.owner,
            size: raw.size,
            generation: raw.generation,
            meta_seq: raw.meta_seq,
            rights: Rights::known(raw.rights),
            owned: raw.flags & BUFFER_OWNED != 0,
            revoking: raw.flags & BUFFER_REVOKING != 0,
            quiesced: raw.flags & BUFFER_QUIESCED != 0,
            extents: raw.extents,
            attachments: raw.attachments,
            mapped: raw.mapped,
            fourcc: raw.fourcc,
            name: Name::from_wire(&raw.name)?,
            is_stream: raw.flags & BUFFER_STREAM != 0,
            stream: BufferId::from_wire(&raw.stream),
        })
    }
}
