// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tables of every struct and constant that the C headers define
//!
//! `tests/header_layout.rs` compares them with the headers in both directions.

use crate::wire::Layout;
use crate::{command, device, event, ioctl, limits, request, response, status, types, wire};

/// A struct of a C header
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Struct {
    /// Its name in C.
    pub name: &'static str,
    /// Bytes.
    pub size: usize,
    /// Its fields in order.
    pub fields: &'static [Field],
}

/// A field of a [`Struct`]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name in C.
    pub name: &'static str,
    /// Bytes from the start of the struct.
    pub offset: usize,
    /// Bytes.
    pub size: usize,
}

/// A field's name in C: `type` for Rust's `r#type`.
pub(crate) const fn plain(name: &'static str) -> &'static str {
    match name.as_bytes() {
        [b'r', b'#', ..] => name.split_at(2).1,
        _ => name,
    }
}

/// The row of a wire struct under the name of its twin in `bufshare.h`.
const fn twin(name: &'static str, of: Struct) -> Struct {
    Struct { name, ..of }
}

/// Every struct of `virtio_bufshare.h` and `bufshare.h`.
pub const LAYOUT: &[Struct] = &[
    wire::Config::LAYOUT,
    wire::Req::LAYOUT,
    wire::Resp::LAYOUT,
    wire::Batch::LAYOUT,
    wire::BatchResp::LAYOUT,
    wire::Handle::LAYOUT,
    wire::Window::LAYOUT,
    wire::Id::LAYOUT,
    wire::Extent::LAYOUT,
    wire::Access::LAYOUT,
    wire::Plane::LAYOUT,
    wire::Image::LAYOUT,
    wire::Meta::LAYOUT,
    wire::GetCaps::LAYOUT,
    wire::GetCapsResp::LAYOUT,
    wire::Cursor::LAYOUT,
    wire::Peer::LAYOUT,
    wire::ListResp::LAYOUT,
    wire::Export::LAYOUT,
    wire::ExportResp::LAYOUT,
    wire::ById::LAYOUT,
    wire::Unexport::LAYOUT,
    wire::Attach::LAYOUT,
    wire::AttachResp::LAYOUT,
    wire::Map::LAYOUT,
    wire::MapResp::LAYOUT,
    wire::Sync::LAYOUT,
    wire::Quiesce::LAYOUT,
    wire::SetMeta::LAYOUT,
    wire::SetMetaResp::LAYOUT,
    wire::GetMeta::LAYOUT,
    wire::GetMetaResp::LAYOUT,
    wire::Buffer::LAYOUT,
    wire::QueryResp::LAYOUT,
    wire::Event::LAYOUT,
    wire::Pushed::LAYOUT,
    wire::Rect::LAYOUT,
    wire::Frame::LAYOUT,
    wire::Push::LAYOUT,
    wire::PushResp::LAYOUT,
    wire::Return::LAYOUT,
    twin("bufshare_id", ioctl::Id::LAYOUT),
    twin("bufshare_access", ioctl::Access::LAYOUT),
    twin("bufshare_plane", ioctl::Plane::LAYOUT),
    twin("bufshare_image", ioctl::Image::LAYOUT),
    twin("bufshare_meta", ioctl::Meta::LAYOUT),
    twin("bufshare_peer", ioctl::Peer::LAYOUT),
    twin("bufshare_buffer", ioctl::Buffer::LAYOUT),
    twin("bufshare_event", ioctl::Event::LAYOUT),
    twin("bufshare_rect", wire::Rect::LAYOUT),
    twin("bufshare_frame_record", wire::Frame::LAYOUT),
    ioctl::Info::LAYOUT,
    ioctl::Table::LAYOUT,
    ioctl::Alloc::LAYOUT,
    ioctl::Export::LAYOUT,
    ioctl::Import::LAYOUT,
    ioctl::HandleToFd::LAYOUT,
    ioctl::Close::LAYOUT,
    ioctl::PushFrame::LAYOUT,
    ioctl::Push::LAYOUT,
    ioctl::ReturnFrame::LAYOUT,
    ioctl::Return::LAYOUT,
    ioctl::Pushed::LAYOUT,
    ioctl::Returned::LAYOUT,
    ioctl::MetaIo::LAYOUT,
    ioctl::Query::LAYOUT,
    ioctl::Quiesce::LAYOUT,
];

/// Every numeric constant of `virtio_bufshare.h` and `bufshare.h`, in several tables.
pub const CONSTS: &[&[(&str, u64)]] = &[OTHERS, command::CONSTS, event::CONSTS, status::CONSTS];

macro_rules! others {
    ($($c_name:ident = $value:expr,)+) => {
        /// Those that no list elsewhere has.
        const OTHERS: &[(&str, u64)] = &[$((stringify!($c_name), $value as u64),)+];
    };
}

others! {
    VIRTIO_BUFSHARE_ID = device::ID,
    VIRTIO_BUFSHARE_VERSION = device::VERSION,
    VIRTIO_BUFSHARE_QUEUE_CONTROL = device::QUEUE_CONTROL,
    VIRTIO_BUFSHARE_QUEUE_EVENT = device::QUEUE_EVENT,
    VIRTIO_BUFSHARE_NUM_QUEUES = device::NUM_QUEUES,
    VIRTIO_BUFSHARE_SHMID = device::SHMID,
    VIRTIO_BUFSHARE_NAME_LEN = limits::NAME_LEN,
    VIRTIO_BUFSHARE_ID_LEN = limits::ID_LEN,
    VIRTIO_BUFSHARE_MAX_PLANES = limits::MAX_PLANES,
    VIRTIO_BUFSHARE_MAX_ACL = limits::MAX_ACL,
    VIRTIO_BUFSHARE_MAX_EXTENTS = limits::MAX_EXTENTS,
    VIRTIO_BUFSHARE_MAX_BLOB = limits::MAX_BLOB,
    VIRTIO_BUFSHARE_MAX_LIST = limits::MAX_LIST,
    VIRTIO_BUFSHARE_MAX_BATCH = limits::MAX_BATCH,
    VIRTIO_BUFSHARE_MAX_STRUCT = limits::MAX_STRUCT,
    VIRTIO_BUFSHARE_MAX_ENTRY = limits::MAX_ENTRY,
    VIRTIO_BUFSHARE_MAX_EXTENT_SIZE = limits::MAX_EXTENT_SIZE,
    VIRTIO_BUFSHARE_MAX_FRAME_BUFFERS = limits::MAX_FRAME_BUFFERS,
    VIRTIO_BUFSHARE_MAX_CONSUMERS = limits::MAX_CONSUMERS,
    VIRTIO_BUFSHARE_MAX_FRAME_RECORD = limits::MAX_FRAME_RECORD,
    VIRTIO_BUFSHARE_MAX_DAMAGE = limits::MAX_DAMAGE,
    VIRTIO_BUFSHARE_MIN_EVENT_SIZE = limits::MIN_EVENT_SIZE,
    VIRTIO_BUFSHARE_MAX_EVENT_SIZE = limits::MAX_EVENT_SIZE,
    VIRTIO_BUFSHARE_CONFIG_SIZE = limits::CONFIG_SIZE,
    VIRTIO_BUFSHARE_CAP_MAP = device::CAP_MAP,
    VIRTIO_BUFSHARE_CAP_UDMABUF = device::CAP_UDMABUF,
    VIRTIO_BUFSHARE_CAP_RO_ENFORCED = device::CAP_RO_ENFORCED,
    VIRTIO_BUFSHARE_READ = types::Rights::READ.to_wire(),
    VIRTIO_BUFSHARE_WRITE = types::Rights::WRITE.to_wire(),
    VIRTIO_BUFSHARE_WAY_NONE = types::Way::None,
    VIRTIO_BUFSHARE_WAY_DIRECT = types::Way::Direct,
    VIRTIO_BUFSHARE_WAY_UDMABUF = types::Way::Udmabuf,
    VIRTIO_BUFSHARE_WAY_POOL = types::Way::Pool,
    VIRTIO_BUFSHARE_WAY_COPY_WINDOW = types::Way::CopyWindow,
    VIRTIO_BUFSHARE_WAY_COPY_GUEST = types::Way::CopyGuest,
    VIRTIO_BUFSHARE_COHERENT = types::Properties::COHERENT.to_wire(),
    VIRTIO_BUFSHARE_RO_HELD = types::Properties::RO_HELD.to_wire(),
    VIRTIO_BUFSHARE_REVOCABLE = types::Properties::REVOCABLE.to_wire(),
    VIRTIO_BUFSHARE_MOVABLE = types::Properties::MOVABLE.to_wire(),
    VIRTIO_BUFSHARE_SURVIVES = types::Properties::SURVIVES.to_wire(),
    VIRTIO_BUFSHARE_BACKING_EXTENTS = request::BACKING_EXTENTS,
    VIRTIO_BUFSHARE_BACKING_POOL = request::BACKING_POOL,
    VIRTIO_BUFSHARE_BACKING_DEFERRED = request::BACKING_DEFERRED,
    VIRTIO_BUFSHARE_BACKING_STREAM = request::BACKING_STREAM,
    VIRTIO_BUFSHARE_STREAM_ENDED = types::STREAM_ENDED,
    VIRTIO_BUFSHARE_UNEXPORT_FORCED = request::UNEXPORT_FORCED,
    VIRTIO_BUFSHARE_UNEXPORT_GRACEFUL = request::UNEXPORT_GRACEFUL,
    VIRTIO_BUFSHARE_UNEXPORT_QUIESCED = request::UNEXPORT_QUIESCED,
    VIRTIO_BUFSHARE_ATTACH_CONSUMER = request::ATTACH_CONSUMER,
    VIRTIO_BUFSHARE_KNOW_BUFFERS = types::KNOW_BUFFERS,
    VIRTIO_BUFSHARE_CLOCK_NONE = types::frame::CLOCK_NONE,
    VIRTIO_BUFSHARE_CLOCK_MONOTONIC = types::frame::CLOCK_MONOTONIC,
    VIRTIO_BUFSHARE_CLOCK_REALTIME = types::frame::CLOCK_REALTIME,
    VIRTIO_BUFSHARE_CLOCK_TAI = types::frame::CLOCK_TAI,
    VIRTIO_BUFSHARE_FRAME_DISCONT = types::frame::FRAME_DISCONT,
    VIRTIO_BUFSHARE_FRAME_CORRUPTED = types::frame::FRAME_CORRUPTED,
    VIRTIO_BUFSHARE_FRAME_GAP = types::frame::FRAME_GAP,
    VIRTIO_BUFSHARE_FRAME_LAST = types::frame::FRAME_LAST,
    VIRTIO_BUFSHARE_FRAME_INTERLACED = types::frame::FRAME_INTERLACED,
    VIRTIO_BUFSHARE_FRAME_BOTTOM_FIRST = types::frame::FRAME_BOTTOM_FIRST,
    VIRTIO_BUFSHARE_FRAME_EXPOSURE_END = types::frame::FRAME_EXPOSURE_END,
    VIRTIO_BUFSHARE_PEER_UP = response::PEER_UP,
    VIRTIO_BUFSHARE_MAP_CACHED = response::MAP_CACHED,
    VIRTIO_BUFSHARE_SYNC_BEGIN = request::SyncOp::Begin,
    VIRTIO_BUFSHARE_SYNC_END = request::SyncOp::End,
    VIRTIO_BUFSHARE_BUFFER_OWNED = response::BUFFER_OWNED,
    VIRTIO_BUFSHARE_BUFFER_REVOKING = response::BUFFER_REVOKING,
    VIRTIO_BUFSHARE_BUFFER_QUIESCED = response::BUFFER_QUIESCED,
    VIRTIO_BUFSHARE_BUFFER_STREAM = response::BUFFER_STREAM,
    VIRTIO_BUFSHARE_QUIESCE_ACTIVE = request::QUIESCE_ACTIVE,
    VIRTIO_BUFSHARE_QUIESCE_QUIESCED = request::QUIESCE_QUIESCED,
    BUFSHARE_NAME_LEN = limits::NAME_LEN,
    BUFSHARE_ID_LEN = limits::ID_LEN,
    BUFSHARE_MAX_PLANES = limits::MAX_PLANES,
    BUFSHARE_MAX_ACL = limits::MAX_ACL,
    BUFSHARE_MAX_BLOB = limits::MAX_BLOB,
    BUFSHARE_MAX_ENTRY = limits::MAX_ENTRY,
    BUFSHARE_READ = types::Rights::READ.to_wire(),
    BUFSHARE_WRITE = types::Rights::WRITE.to_wire(),
    BUFSHARE_EXPORT_STREAM = ioctl::EXPORT_STREAM,
    BUFSHARE_EXPORT_PART = ioctl::EXPORT_PART,
    BUFSHARE_IMPORT_HANDLE = ioctl::IMPORT_HANDLE,
    BUFSHARE_IMPORT_CONSUME = ioctl::IMPORT_CONSUME,
    BUFSHARE_MAX_BATCH = ioctl::MAX_BATCH,
    BUFSHARE_BACKING_EXTENTS = request::BACKING_EXTENTS,
    BUFSHARE_BACKING_STREAM = request::BACKING_STREAM,
    BUFSHARE_MAX_HANDLES = ioctl::MAX_HANDLES,
    BUFSHARE_QUIESCE_ACTIVE = request::QUIESCE_ACTIVE,
    BUFSHARE_QUIESCE_QUIESCED = request::QUIESCE_QUIESCED,
    BUFSHARE_IOC_MAGIC = ioctl::MAGIC,
    BUFSHARE_IOC_INFO = ioctl::INFO,
    BUFSHARE_IOC_PEERS = ioctl::PEERS,
    BUFSHARE_IOC_ALLOC = ioctl::ALLOC,
    BUFSHARE_IOC_EXPORT = ioctl::EXPORT,
    BUFSHARE_IOC_IMPORT = ioctl::IMPORT,
    BUFSHARE_IOC_SET_META = ioctl::SET_META,
    BUFSHARE_IOC_GET_META = ioctl::GET_META,
    BUFSHARE_IOC_QUERY = ioctl::QUERY,
    BUFSHARE_IOC_LIST = ioctl::LIST,
    BUFSHARE_IOC_QUIESCE = ioctl::QUIESCE,
    BUFSHARE_IOC_HANDLE_TO_FD = ioctl::HANDLE_TO_FD,
    BUFSHARE_IOC_CLOSE = ioctl::CLOSE,
    BUFSHARE_IOC_PUSH = ioctl::PUSH,
    BUFSHARE_IOC_RETURN = ioctl::RETURN,
}
