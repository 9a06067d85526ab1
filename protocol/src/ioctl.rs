// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Structs and request numbers of `/dev/bufshare`
//!
//! The structs have the layout that the kernel reads and writes, with native
//! integers. The numbers are those of the `_IOC` encoding that x86, Arm and
//! RISC-V have.

use crate::limits::{MAX_FRAME_BUFFERS, NAME_LEN};
use crate::wire::layout_struct;
pub use crate::wire::{Access, Buffer, Event, Id, Image, Meta, Peer, Plane};

layout_struct! {
    /// INFO: the device and its limits
    Info = "bufshare_info" {
        /// Version of the wire format in force.
        version: u32,
        /// Bits of [`device`](crate::device)`::CAP_*`.
        caps: u32,
        /// VMM mappings this VM may hold at once.
        max_windows: u32,
        /// Pieces per exported buffer.
        max_extents: u32,
        /// Buffers exported at once.
        max_buffers: u32,
        /// Imports at once.
        max_attachments: u32,
        /// Bytes of opaque metadata.
        max_blob: u32,
        /// Alignment of pieces, bytes.
        map_align: u32,
        /// Bytes of the window region.
        shm_size: u64,
        /// Bytes per buffer.
        max_buffer_size: u64,
        /// Our id.
        peer_id: u64,
        /// VMM mappings held now, idle ones included.
        windows_used: u32,
        /// [`Ways`](crate::types::Ways) that an import may be given.
        ways: u32,
        /// Our name, given by the host's operator.
        name: [u8; NAME_LEN],
        /// What the host takes an EXPORT of: bits `1 <<` [`BACKING_STREAM`](crate::request::BACKING_STREAM) and the like.
        backings: u32,
        /// Frames of a PUSH, and of a RETURN; 0: the driver hands none over.
        max_batch: u32,
    }
}

layout_struct! {
    /// PEERS and LIST: read a table in pieces
    Table = "bufshare_table" {
        /// In: 0 to start, then the last answer's. Out: 0: this was all.
        cursor: u64,
        /// In: address of an array of [`Peer`] or [`Buffer`].
        entries: u64,
        /// In: room, entries, not zero. Out: entries written.
        count: u32,
        /// In: bytes of an entry.
        entry_size: u32,
        /// Out: status of the host.
        status: u32,
        /// Zero.
        reserved: u32,
    }
}

layout_struct! {
    /// ALLOC: a dma-buf of this VM's RAM in few pieces
    Alloc = "bufshare_alloc" {
        /// In: bytes, rounded up to whole pages and to the alignment of pieces.
        size: u64,
        /// In: `O_CLOEXEC` and `O_RDWR` or `O_RDONLY`.
        fd_flags: u32,
        /// In: zero.
        flags: u32,
        /// Out: the dma-buf.
        fd: i32,
        /// Out: pieces it has.
        extents: u32,
    }
}

layout_struct! {
    /// EXPORT: offer a dma-buf, ours or any driver's
    Export = "bufshare_export" {
        /// In: the dma-buf; -1 of a stream.
        dmabuf_fd: i32,
        /// In: `O_CLOEXEC` or 0.
        fd_flags: u32,
        /// In: [`EXPORT_STREAM`], [`EXPORT_PART`] or 0.
        flags: u32,
        /// In: lines of the access list; 0: all peers the operator allows.
        num_acl: u32,
        /// In: address of an array of [`Access`].
        acl: u64,
        /// In: address of `meta.blob_len` bytes.
        blob: u64,
        /// In: address of a [`Meta`].
        meta: u64,
        /// In: bytes of it.
        meta_size: u32,
        /// In: bytes of a line of the access list.
        access_size: u32,
        /// Out: the buffer's name.
        id: Id,
        /// Out: number of this export, not used again (SPEC 5.2).
        generation: u64,
        /// Out: closing the last copy of it ends the export.
        export_fd: i32,
        /// Out: status of the host.
        status: u32,
        /// In: with [`EXPORT_PART`] the export of the stream; else zero.
        stream_fd: i32,
        /// Zero.
        reserved: u32,
    }
}

layout_struct! {
    /// IMPORT: another VM's buffer as a dma-buf
    Import = "bufshare_import" {
        /// In: the buffer.
        id: Id,
        /// In: wanted. Out: granted.
        rights: u32,
        /// In: `O_CLOEXEC` and `O_RDWR` or `O_RDONLY`.
        fd_flags: u32,
        /// In: [`IMPORT_HANDLE`] and, with it, [`IMPORT_CONSUME`], or 0.
        flags: u32,
        /// In: [`Ways`](crate::types::Ways) that are accepted; 0: direct and udmabuf. Of a stream:
        /// none.
        ways: u32,
        /// In: [`Properties`](crate::types::Properties) without which it is refused.
        required: u32,
        /// In: VMM mappings that mapping it may take; 0: any number.
        max_windows: u32,
        /// Out: the dma-buf, or -1 with [`IMPORT_HANDLE`]; closing its last copy is the detach,
        /// if no handle is left either.
        fd: i32,
        /// Out: status of the host.
        status: u32,
        /// Out: bytes.
        size: u64,
        /// Out: of the export.
        generation: u64,
        /// Out: exporting peer.
        owner: u64,
        /// Out: a [`Way`](crate::types::Way).
        way: u32,
        /// Out: [`Properties`](crate::types::Properties) that hold.
        properties: u32,
        /// Out: VMM mappings that mapping it takes.
        windows: u32,
        /// In: zero. Out: with [`IMPORT_HANDLE`] the handle, not zero, else zero.
        handle: u32,
    }
}

/// `flags` of [`Export`]: it is a stream, of no dma-buf.
pub const EXPORT_STREAM: u32 = 0x1;
/// `flags` of [`Export`]: it is part of a stream.
pub const EXPORT_PART: u32 = 0x2;

/// `flags` of [`Import`]: a handle instead of a descriptor.
pub const IMPORT_HANDLE: u32 = 0x1;

/// `flags` of [`Import`], with [`IMPORT_HANDLE`]: the handle is given the frames of the buffer.
pub const IMPORT_CONSUME: u32 = 0x2;

/// Frames of a [`Push`], and of a [`Return`].
pub const MAX_BATCH: u32 = 16;

/// Handles that one open file of `/dev/bufshare` may have: half of the imports that a VM may
/// have unless its operator says more.
pub const MAX_HANDLES: u32 = 512;

layout_struct! {
    /// `HANDLE_TO_FD`: a descriptor of an import, on demand
    HandleToFd = "bufshare_handle_to_fd" {
        /// In: of IMPORT.
        handle: u32,
        /// In: `O_CLOEXEC` or 0.
        fd_flags: u32,
        /// Out: the dma-buf, the same each time.
        fd: i32,
        /// Zero.
        reserved: u32,
    }
}

layout_struct! {
    /// CLOSE: end a handle
    Close = "bufshare_close" {
        /// In: of IMPORT.
        handle: u32,
        /// Zero.
        reserved: u32,
    }
}

layout_struct! {
    /// SET_META and GET_META
    MetaIo = "bufshare_meta_io" {
        /// GET_META, in: the buffer. SET_META, out: the buffer.
        id: Id,
        /// In: address of `meta.blob_len` bytes.
        blob: u64,
        /// Out: sequence number.
        seq: u64,
        /// In: address of a [`Meta`], which SET_META reads and GET_META writes. A GET_META
        /// with too little room for the blob is `EMSGSIZE` and writes the length needed.
        meta: u64,
        /// In: bytes of it.
        meta_size: u32,
        /// SET_META, in: the export, by its descriptor. GET_META: zero.
        export_fd: i32,
        /// Out: status of the host.
        status: u32,
        /// Zero.
        reserved: u32,
    }
}

layout_struct! {
    /// QUERY
    Query = "bufshare_query" {
        /// Out: status of the host.
        status: u32,
        /// Zero.
        reserved: u32,
        /// In: `buffer.id`. Out: all.
        buffer: Buffer,
    }
}

layout_struct! {
    /// QUIESCE: promise the host that nothing writes to the memory
    Quiesce = "bufshare_quiesce" {
        /// In: an export of memory of ALLOC.
        export_fd: i32,
        /// In: [`QUIESCE_ACTIVE`](crate::request::QUIESCE_ACTIVE) or
        /// [`QUIESCE_QUIESCED`](crate::request::QUIESCE_QUIESCED).
        mode: u32,
        /// Out: status of the host.
        status: u32,
        /// Zero.
        reserved: u32,
    }
}

layout_struct! {
    /// An entry of PUSH: a frame that is handed over
    ///
    /// Its record is the last `record_size` bytes of the entry, zeroes are between.
    PushFrame = "bufshare_push_frame" {
        /// What it is in: exports, by their descriptors.
        buffers: [i32; MAX_FRAME_BUFFERS],
        /// 1 to [`MAX_FRAME_BUFFERS`]; those beyond are zero.
        num_buffers: u32,
        /// A VM that has so many frames of this one's, of the same stream or of none, is not given
        /// it; 0: all are.
        max_held: u32,
        /// Zero.
        flags: u32,
        /// Bytes of the record, which ends the entry, a multiple of 8.
        record_size: u32,
    }
}

layout_struct! {
    /// PUSH: hand frames over
    Push = "bufshare_push" {
        /// In: address of [`PushFrame`]s with their records.
        frames: u64,
        /// In: 1 to [`MAX_BATCH`].
        count: u32,
        /// In: bytes of each with its record.
        entry_size: u32,
        /// Out: number of the first frame; those of the others follow.
        frame: u64,
        /// Out: the first that is wrong, or `count`.
        entry: u32,
        /// Out: status of the host.
        status: u32,
    }
}

layout_struct! {
    /// An entry of RETURN: a frame that is given back
    ReturnFrame = "bufshare_return_frame" {
        /// The one that was given it, of IMPORT.
        handle: u32,
        /// Zero.
        reserved: u32,
        /// Its number.
        frame: u64,
    }
}

layout_struct! {
    /// RETURN: give frames back
    Return = "bufshare_return" {
        /// In: address of [`ReturnFrame`]s.
        frames: u64,
        /// In: 1 to [`MAX_BATCH`].
        count: u32,
        /// In: bytes of each.
        entry_size: u32,
        /// Out: the first that is wrong, or `count`.
        entry: u32,
        /// Out: what the host would say of that.
        status: u32,
    }
}

layout_struct! {
    /// What `read()` returns of a PUSHED
    ///
    /// The record of the frame is its last `record_size` bytes.
    Pushed = "bufshare_pushed" {
        /// As of other events; `handle` is the one of IMPORT that is given the frame.
        event: Event,
        /// The other buffers; those beyond `num_buffers` are zero.
        others: [Id; MAX_FRAME_BUFFERS - 1],
        /// Those of the frame, the first included.
        num_buffers: u32,
        /// Bytes of the record, which ends the event.
        record_size: u32,
        /// Sequence number of the first buffer's metadata when it was pushed.
        meta_seq: u64,
        /// When the driver learned of it, nanoseconds of this VM's `CLOCK_MONOTONIC`.
        arrival: u64,
    }
}

layout_struct! {
    /// What `read()` gives of an event RETURNED
    Returned = "bufshare_returned" {
        /// As of other events.
        event: Event,
        /// When the driver learned of it, nanoseconds of this VM's `CLOCK_MONOTONIC`.
        arrival: u64,
    }
}

/// The letter of our requests.
pub const MAGIC: u32 = 0xBE;

const DIR_READ: u32 = 2;
const DIR_WRITE: u32 = 1;

/// `_IOC` of the kernel's `asm-generic/ioctl.h`: 2 bits direction, 14 bits
/// size, 8 bits letter, 8 bits number.
#[expect(clippy::cast_possible_truncation, reason = "checked when compiled")]
const fn ioc(dir: u32, nr: u32, size: usize) -> u32 {
    assert!(size < 1 << 14 && nr < 1 << 8);
    (dir << 30) | ((size as u32) << 16) | (MAGIC << 8) | nr
}

/// INFO; the argument is an [`Info`].
pub const INFO: u32 = ioc(DIR_READ | DIR_WRITE, 0x00, Info::SIZE);
/// PEERS; the argument is a [`Table`] of [`Peer`].
pub const PEERS: u32 = ioc(DIR_READ | DIR_WRITE, 0x01, Table::SIZE);
/// ALLOC; the argument is an [`Alloc`].
pub const ALLOC: u32 = ioc(DIR_READ | DIR_WRITE, 0x02, Alloc::SIZE);
/// EXPORT; the argument is an [`Export`].
pub const EXPORT: u32 = ioc(DIR_READ | DIR_WRITE, 0x03, Export::SIZE);
/// IMPORT; the argument is an [`Import`].
pub const IMPORT: u32 = ioc(DIR_READ | DIR_WRITE, 0x04, Import::SIZE);
/// SET_META; the argument is a [`MetaIo`].
pub const SET_META: u32 = ioc(DIR_READ | DIR_WRITE, 0x05, MetaIo::SIZE);
/// GET_META; the argument is a [`MetaIo`].
pub const GET_META: u32 = ioc(DIR_READ | DIR_WRITE, 0x06, MetaIo::SIZE);
/// QUERY; the argument is a [`Query`].
pub const QUERY: u32 = ioc(DIR_READ | DIR_WRITE, 0x07, Query::SIZE);
/// LIST; the argument is a [`Table`] of [`Buffer`].
pub const LIST: u32 = ioc(DIR_READ | DIR_WRITE, 0x08, Table::SIZE);
/// QUIESCE; the argument is a [`Quiesce`].
pub const QUIESCE: u32 = ioc(DIR_READ | DIR_WRITE, 0x09, Quiesce::SIZE);
/// `HANDLE_TO_FD`; the argument is a [`HandleToFd`].
pub const HANDLE_TO_FD: u32 = ioc(DIR_READ | DIR_WRITE, 0x0A, HandleToFd::SIZE);
/// CLOSE; the argument is a [`Close`].
pub const CLOSE: u32 = ioc(DIR_READ | DIR_WRITE, 0x0B, Close::SIZE);
/// PUSH; the argument is a [`Push`].
pub const PUSH: u32 = ioc(DIR_READ | DIR_WRITE, 0x0C, Push::SIZE);
/// RETURN; the argument is a [`Return`].
pub const RETURN: u32 = ioc(DIR_READ | DIR_WRITE, 0x0D, Return::SIZE);
