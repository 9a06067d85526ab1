// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The structs of `virtio_bufshare.h`, field by field
//!
//! Native integers in memory, little endian on the wire, no padding. Nothing
//! is checked here: [`request`](crate::request), [`response`](crate::response)
//! and [`types`](crate::types) do.

mod codec;

pub use codec::{Layout, Reader, Wire, Writer};
pub(crate) use codec::{layout_struct, wire_struct};

use crate::limits::{ID_LEN, MAX_DAMAGE, MAX_FRAME_BUFFERS, MAX_PLANES, NAME_LEN};

wire_struct! {
    /// Device configuration space, read-only
    Config = "virtio_bufshare_config" {
        /// [`device::VERSION`](crate::device::VERSION).
        version: u32,
        /// Bits of [`device`](crate::device)`::CAP_*`.
        caps: u32,
        /// VMM mappings this peer may hold at once, idle ones included.
        max_windows: u32,
        /// Extents per EXPORT.
        max_extents: u32,
        /// Buffers this peer may export at once.
        max_buffers: u32,
        /// Attachments this peer may hold at once.
        max_attachments: u32,
        /// Bytes of opaque metadata per buffer.
        max_blob: u32,
        /// Alignment of addresses and sizes, bytes, a power of two.
        map_align: u32,
        /// Bytes of the shared-memory region.
        shm_size: u64,
        /// Bytes per buffer.
        max_buffer_size: u64,
        /// This peer's id.
        peer_id: u64,
        /// Bytes that an event may have.
        event_size: u32,
        /// Entries per UNMAP or DETACH.
        max_batch: u32,
        /// [`Ways`](crate::types::Ways) that an ATTACH may be given, to some buffers.
        ways: u32,
        /// Kinds of backing that an EXPORT may have, as bits.
        backings: u32,
        /// Zero; fields to come, which a driver that does not know them ignores.
        reserved: [u64; 23],
    }
}

wire_struct! {
    /// Header of each request
    Req = "virtio_bufshare_req" {
        /// A number of [`command`](crate::command).
        r#type: u32,
        /// Zero.
        flags: u32,
        /// Bytes of the request's structure, this header included; what follows it
        /// begins there.
        length: u32,
        /// Bytes that the response's structure shall have, its header included.
        resp_length: u32,
        /// Chosen by the driver, returned as it is.
        cookie: u64,
    }
}

wire_struct! {
    /// Header of each response
    Resp = "virtio_bufshare_resp" {
        /// The request's type.
        r#type: u32,
        /// A [`Status`](crate::status::Status); unless OK nothing follows, but in a [`BatchResp`].
        status: u32,
        /// Bytes of the response's structure, this header included.
        length: u32,
        /// Zero.
        flags: u32,
        /// The request's cookie.
        cookie: u64,
    }
}

wire_struct! {
    /// Name of a buffer
    Id = "virtio_bufshare_id" {
        /// Bytes; all zero is never a buffer.
        b: [u8; ID_LEN],
    }
}

wire_struct! {
    /// A piece of the exporter's RAM
    Extent = "virtio_bufshare_extent" {
        /// Guest-physical address, a multiple of `map_align`.
        addr: u64,
        /// Bytes, a multiple of `map_align`, not zero.
        len: u64,
    }
}

wire_struct! {
    /// One line of an access list
    Access = "virtio_bufshare_access" {
        /// Who may attach.
        peer: u64,
        /// READ, or READ and WRITE.
        rights: u32,
        /// Zero.
        reserved: u32,
    }
}

wire_struct! {
    /// One plane of an image
    Plane = "virtio_bufshare_plane" {
        /// Bytes from the start of the buffer.
        offset: u64,
        /// Bytes per row.
        stride: u32,
        /// Rows of this plane.
        rows: u32,
        /// Which of the buffers of a frame it is in; 0: this one, the first.
        buffer: u32,
        /// Zero.
        reserved: u32,
    }
}

wire_struct! {
    /// What the pixels mean
    Image = "virtio_bufshare_image" {
        /// DRM fourcc; 0: not an image, then every other field is zero.
        fourcc: u32,
        /// 1 to [`MAX_PLANES`]; planes beyond are zero.
        num_planes: u32,
        /// Pixels.
        width: u32,
        /// Pixels.
        height: u32,
        /// DRM format modifier.
        modifier: u64,
        /// The planes.
        planes: [Plane; MAX_PLANES],
    }
}

wire_struct! {
    /// Metadata, a record of its own size; `blob_len` bytes of blob end the message
    Meta = "virtio_bufshare_meta" {
        /// For people, UTF-8, NUL padded, may be empty.
        name: [u8; NAME_LEN],
        /// Typed image description.
        image: Image,
        /// Bytes of opaque data.
        blob_len: u32,
        /// What a reader has to know to make sense of it, as bits.
        must_know: u32,
        /// Of a stream: another at each start of its producer.
        epoch: u64,
        /// Of a stream: bits of [`types`](crate::types)`::STREAM_*`.
        flags: u32,
        /// Zero.
        reserved: u32,
    }
}

wire_struct! {
    /// GET_CAPS
    GetCaps = "virtio_bufshare_get_caps" {
        /// Request header.
        hdr: Req,
        /// Highest version the driver speaks, not zero.
        version: u32,
        /// Zero.
        reserved: u32,
    }
}

wire_struct! {
    /// Answer to GET_CAPS
    GetCapsResp = "virtio_bufshare_get_caps_resp" {
        /// Response header.
        hdr: Resp,
        /// As the configuration space; `version` is the one in force.
        config: Config,
        /// This peer's name, given by the operator.
        name: [u8; NAME_LEN],
        /// VMM mappings held now, idle ones included.
        windows_used: u32,
        /// Zero.
        reserved: u32,
    }
}

wire_struct! {
    /// PEERS and LIST
    Cursor = "virtio_bufshare_cursor" {
        /// Request header.
        hdr: Req,
        /// 0 to start, then the answer's `next`.
        cursor: u64,
        /// Bytes that an entry of the answer shall have.
        entry_size: u32,
        /// Zero.
        reserved: u32,
    }
}

wire_struct! {
    /// One peer; the asker itself is listed too
    Peer = "virtio_bufshare_peer" {
        /// Its id, constant while the device process lives.
        id: u64,
        /// Given by the operator.
        name: [u8; NAME_LEN],
        /// [`PEER_UP`](crate::response::PEER_UP) or 0.
        state: u32,
        /// What the asker may grant it.
        export_rights: u32,
        /// What it may grant the asker.
        import_rights: u32,
        /// Zero.
        reserved: u32,
    }
}

wire_struct! {
    /// Head of the answer to PEERS and LIST
    ListResp = "virtio_bufshare_list_resp" {
        /// Response header.
        hdr: Resp,
        /// Cursor of the next request, 0: this was all.
        next: u64,
        /// Entries that follow: [`Peer`] or [`Buffer`].
        count: u32,
        /// Zero.
        reserved: u32,
    }
}

wire_struct! {
    /// EXPORT; metadata, access list, extents and blob follow
    Export = "virtio_bufshare_export" {
        /// Request header.
        hdr: Req,
        /// Bytes, the sum of the extents.
        size: u64,
        /// One of [`request`](crate::request)`::BACKING_*`.
        backing: u32,
        /// Bytes of the metadata.
        meta_size: u32,
        /// 0 to [`MAX_ACL`](crate::limits::MAX_ACL); 0: all peers the operator
        /// allows.
        num_acl: u32,
        /// Bytes of a line of the access list.
        access_size: u32,
        /// 1 to `config.max_extents`.
        num_extents: u32,
        /// Bytes of an extent.
        extent_size: u32,
        /// The pool, zero unless the backing is a range of one.
        pool: Id,
        /// Bytes into the pool.
        offset: u64,
        /// The stream that it is part of, whose access list it has then, or zero.
        stream: Id,
    }
}

wire_struct! {
    /// Answer to EXPORT
    ExportResp = "virtio_bufshare_export_resp" {
        /// Response header.
        hdr: Resp,
        /// The buffer's name.
        id: Id,
        /// Number of this export, not used again (SPEC 5.2).
        generation: u64,
    }
}

wire_struct! {
    /// QUERY
    ById = "virtio_bufshare_by_id" {
        /// Request header.
        hdr: Req,
        /// The buffer.
        id: Id,
    }
}

wire_struct! {
    /// UNEXPORT
    Unexport = "virtio_bufshare_unexport" {
        /// Request header.
        hdr: Req,
        /// The buffer.
        id: Id,
        /// One of [`request`](crate::request)`::UNEXPORT_*`.
        mode: u32,
        /// Milliseconds after which a graceful one is forced.
        deadline_ms: u32,
    }
}

wire_struct! {
    /// ATTACH
    Attach = "virtio_bufshare_attach" {
        /// Request header.
        hdr: Req,
        /// The buffer.
        id: Id,
        /// Wanted: READ, or READ and WRITE.
        rights: u32,
        /// [`Ways`](crate::types::Ways) that are accepted; 0: direct and udmabuf. Of a stream:
        /// none.
        ways: u32,
        /// [`Properties`](crate::types::Properties) without which it is refused.
        required: u32,
        /// VMM mappings that a MAP may take; 0: any number.
        max_windows: u32,
        /// Bits of [`request`](crate::request)`::ATTACH_*`.
        flags: u32,
        /// Zero.
        reserved: u32,
    }
}

wire_struct! {
    /// Answer to ATTACH
    AttachResp = "virtio_bufshare_attach_resp" {
        /// Response header.
        hdr: Resp,
        /// Of this attachment, never zero, not used again (SPEC 5.2).
        handle: u64,
        /// Bytes of the buffer.
        size: u64,
        /// Of the export.
        generation: u64,
        /// The exporting peer.
        owner: u64,
        /// Granted.
        rights: u32,
        /// A [`Way`](crate::types::Way).
        way: u32,
        /// [`Properties`](crate::types::Properties) that hold.
        properties: u32,
        /// VMM mappings that a MAP will take.
        windows: u32,
    }
}

wire_struct! {
    /// UNMAP, DETACH; the entries follow
    Batch = "virtio_bufshare_batch" {
        /// Request header.
        hdr: Req,
        /// 1 to [`MAX_BATCH`](crate::limits::MAX_BATCH).
        count: u32,
        /// Bytes of an entry.
        entry_size: u32,
    }
}

wire_struct! {
    /// Answer to UNMAP and DETACH
    BatchResp = "virtio_bufshare_batch_resp" {
        /// Response header.
        hdr: Resp,
        /// The first entry that is wrong, or `count`.
        entry: u32,
        /// Zero.
        reserved: u32,
    }
}

wire_struct! {
    /// Entry of DETACH
    Handle = "virtio_bufshare_handle" {
        /// Of the attachment.
        handle: u64,
    }
}

wire_struct! {
    /// Entry of UNMAP
    Window = "virtio_bufshare_window" {
        /// Of the answer to MAP.
        window: u64,
    }
}

wire_struct! {
    /// MAP
    Map = "virtio_bufshare_map" {
        /// Request header.
        hdr: Req,
        /// Of the attachment.
        handle: u64,
        /// Bytes into the buffer.
        offset: u64,
        /// Bytes.
        len: u64,
    }
}

wire_struct! {
    /// Answer to MAP
    MapResp = "virtio_bufshare_map_resp" {
        /// Response header.
        hdr: Resp,
        /// Number of this range of the attachment where it is mapped, not zero.
        window: u64,
        /// Where it begins in the shared-memory region.
        shm_offset: u64,
        /// Bytes, contiguous there whatever the extents.
        len: u64,
        /// Bits of [`response`](crate::response)`::MAP_*`.
        flags: u32,
        /// Zero.
        reserved: u32,
    }
}

wire_struct! {
    /// SYNC: begin or end of CPU access
    Sync = "virtio_bufshare_sync" {
        /// Request header.
        hdr: Req,
        /// Of the attachment; 0: the owner speaks, by `id`.
        handle: u64,
        /// The owner's buffer, zero when `handle` is not.
        id: Id,
        /// A [`SyncOp`](crate::request::SyncOp).
        op: u32,
        /// READ, WRITE or both.
        access: u32,
        /// Bytes into the buffer.
        offset: u64,
        /// Bytes; `offset + len` is at most the size.
        len: u64,
    }
}

wire_struct! {
    /// QUIESCE, owner only
    Quiesce = "virtio_bufshare_quiesce" {
        /// Request header.
        hdr: Req,
        /// The buffer.
        id: Id,
        /// [`QUIESCE_ACTIVE`](crate::request::QUIESCE_ACTIVE) or
        /// [`QUIESCE_QUIESCED`](crate::request::QUIESCE_QUIESCED).
        mode: u32,
        /// Zero.
        reserved: u32,
    }
}

wire_struct! {
    /// SET_META, owner only; metadata, which replaces all, and blob follow
    SetMeta = "virtio_bufshare_set_meta" {
        /// Request header.
        hdr: Req,
        /// The buffer.
        id: Id,
        /// Bytes of the metadata.
        meta_size: u32,
        /// Zero.
        reserved: u32,
    }
}

wire_struct! {
    /// Answer to SET_META
    SetMetaResp = "virtio_bufshare_set_meta_resp" {
        /// Response header.
        hdr: Resp,
        /// Sequence number in force now; EXPORT's metadata has 1.
        seq: u64,
    }
}

wire_struct! {
    /// GET_META
    GetMeta = "virtio_bufshare_get_meta" {
        /// Request header.
        hdr: Req,
        /// The buffer.
        id: Id,
        /// Bytes that the metadata shall have.
        meta_size: u32,
        /// Zero.
        reserved: u32,
    }
}

wire_struct! {
    /// Answer to GET_META; metadata and blob follow
    GetMetaResp = "virtio_bufshare_get_meta_resp" {
        /// Response header.
        hdr: Resp,
        /// Its sequence number.
        seq: u64,
    }
}

wire_struct! {
    /// One buffer as QUERY and LIST report it
    Buffer = "virtio_bufshare_buffer" {
        /// Its name.
        id: Id,
        /// The exporting peer.
        owner: u64,
        /// Bytes.
        size: u64,
        /// Of the export.
        generation: u64,
        /// Sequence number of the metadata.
        meta_seq: u64,
        /// The asker's.
        rights: u32,
        /// Bits of [`response`](crate::response)`::BUFFER_*`.
        flags: u32,
        /// Number of pieces; 0 unless the asker owns it.
        extents: u32,
        /// Of all peers if the asker owns it, else of the asker.
        attachments: u32,
        /// How many of those are mapped.
        mapped: u32,
        /// Of the image, 0: none.
        fourcc: u32,
        /// For people.
        name: [u8; NAME_LEN],
        /// The stream that it is part of, or zero.
        stream: Id,
    }
}

wire_struct! {
    /// Answer to QUERY
    QueryResp = "virtio_bufshare_query_resp" {
        /// Response header.
        hdr: Resp,
        /// The buffer.
        buffer: Buffer,
    }
}

wire_struct! {
    /// A rectangle of an image, pixels
    Rect = "virtio_bufshare_rect" {
        /// Signed.
        x: u32,
        /// Signed.
        y: u32,
        /// 0: none.
        width: u32,
        /// 0: none.
        height: u32,
    }
}

wire_struct! {
    /// What a frame is; the C header says what each field means
    Frame = "virtio_bufshare_frame" {
        /// What else holds of it, as bits.
        flags: u32,
        /// What a consumer has to know, as bits.
        must_know: u32,
        /// The producer's count.
        sequence: u64,
        /// Nanoseconds, signed, by `clock`.
        pts: u64,
        /// Nanoseconds, 0: unknown.
        duration: u64,
        /// Which clock; 0: it has no time.
        clock: u32,
        /// As `wl_output`'s.
        transform: u32,
        /// Bytes with contents of each of its buffers, 0: all.
        bytes_used: [u32; MAX_FRAME_BUFFERS],
        /// What is to be seen; empty: all.
        crop: Rect,
        /// ITU-T H.273, 0: not said.
        colour_primaries: u8,
        /// ITU-T H.273, 0: not said.
        transfer_characteristics: u8,
        /// ITU-T H.273, 0: not said.
        matrix_coefficients: u8,
        /// 1: limited, 2: full, 0: not said.
        full_range: u8,
        /// One more than H.273's, 0: not said.
        chroma_location: u8,
        /// Zero.
        reserved: [u8; 3],
        /// Primaries and white of the mastering display, 0.00002.
        mastering: [u16; 8],
        /// Of that display, cd/m².
        max_luminance: u32,
        /// Of that display, 0.0001 cd/m².
        min_luminance: u32,
        /// cd/m², 0: not said.
        max_cll: u16,
        /// cd/m², 0: not said.
        max_fall: u16,
        /// Rectangles of `damage`, 0: all may have changed.
        num_damage: u32,
        /// Another at each start of the producer.
        epoch: u64,
        /// What has changed since the frame before.
        damage: [Rect; MAX_DAMAGE],
    }
}

wire_struct! {
    /// Entry of PUSH; the record follows, to the end of the entry
    Push = "virtio_bufshare_push" {
        /// What it is in; those beyond `num_buffers` are zero.
        buffers: [Id; MAX_FRAME_BUFFERS],
        /// 1 to [`MAX_FRAME_BUFFERS`].
        num_buffers: u32,
        /// A consumer whose peer has so many frames of the asker, of the same stream or of none, is
        /// not given this one; 0: all are.
        max_held: u32,
        /// Zero.
        flags: u32,
        /// Bytes of the record, which ends the entry, a multiple of 8.
        record_size: u32,
    }
}

wire_struct! {
    /// Answer to PUSH
    PushResp = "virtio_bufshare_push_resp" {
        /// Response header.
        hdr: Resp,
        /// The first entry that is wrong, or their number.
        entry: u32,
        /// Zero.
        reserved: u32,
        /// Number of the first frame.
        frame: u64,
    }
}

wire_struct! {
    /// Entry of RETURN
    Return = "virtio_bufshare_return" {
        /// The attachment that was given it.
        handle: u64,
        /// Its number.
        frame: u64,
    }
}

wire_struct! {
    /// One event
    Event = "virtio_bufshare_event" {
        /// An [`EventKind`](crate::event::EventKind).
        r#type: u32,
        /// Zero.
        flags: u32,
        /// Bytes of this structure.
        length: u32,
        /// Zero.
        reserved: u32,
        /// Number of the event in this session, from 1, without gaps.
        seq: u64,
        /// Whom it is about.
        peer: u64,
        /// The buffer, or zero.
        id: Id,
        /// The attachment, or zero.
        handle: u64,
        /// Of the export, or zero.
        generation: u64,
        /// See [`EventKind`](crate::event::EventKind).
        value: u64,
    }
}

wire_struct! {
    /// The event PUSHED; the record follows, to the end of the event
    Pushed = "virtio_bufshare_pushed" {
        /// As of other events.
        event: Event,
        /// The other buffers; those beyond `num_buffers` are zero.
        others: [Id; MAX_FRAME_BUFFERS - 1],
        /// Those of the frame, the first included.
        num_buffers: u32,
        /// Bytes of the record, which ends the event.
        record_size: u32,
        /// Sequence number of the first buffer's metadata when it was pushed.
        meta_seq: u64,
    }
}
