// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A test and one process in the guest that holds buffers for it
//!
//! The process does one operation after another and keeps what they make:
//! buffers, exports and mappings, each under a number that is never used again.
//! It can be killed like any other program of the guest.

use serde::{Deserialize, Serialize};

/// One line to the process.
#[derive(Debug, Serialize, Deserialize)]
pub struct Call {
    /// Chosen by the test, returned with the outcome.
    pub id: u64,
    /// What to do.
    pub op: Op,
}

/// One line from the process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Line {
    /// It has opened the device and waits for calls.
    Ready,
    /// The outcome of a call.
    Outcome {
        /// The call's.
        id: u64,
        /// What came of it.
        result: Result<Yield, Refusal>,
    },
    /// A watcher saw something for the first time.
    Saw {
        /// The mapping.
        map: u64,
        /// What it saw.
        sight: Sight,
    },
}

/// Name of the virtio-serial port that carries frames.
pub const SERIAL: &str = "org.bufshare.frames";

/// Name of the one by which a VM hears that a file was written.
pub const WRITTEN: &str = "org.bufshare.written";

/// This VM's end of what carries frames to another without bufshare.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Carrier {
    /// TCP, where somebody else connects.
    Listen {
        /// Address and port.
        address: String,
    },
    /// TCP.
    Connect {
        /// Address and port.
        address: String,
    },
    /// The port [`SERIAL`].
    Serial,
    /// A file that both VMs see.
    Virtiofs {
        /// Its path.
        file: String,
    },
    /// Memory that both VMs see, of `ivshmem-plain`.
    Ivshmem,
}

/// Where a dma-buf comes from.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// `/dev/bufshare`'s ALLOC.
    Alloc,
    /// A heap of `/dev/dma_heap`.
    Heap(String),
    /// The same, open for reading only.
    ReadOnlyHeap(String),
    /// `/dev/udmabuf` over an anonymous file.
    Udmabuf {
        /// The file's pages in mixed order, which makes them many pieces.
        scattered: bool,
    },
    /// A dumb buffer of this DRM driver.
    Dumb(String),
    /// A capture buffer of this video device.
    Capture(String),
    /// The exporter driver of the tests (tests/guest/exporter).
    Movable(MovableKind),
}

/// What that driver does when it is to move a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MovableKind {
    /// Nothing while it is pinned.
    Movable,
    /// It moves it all the same.
    Rude,
    /// As the first; and only who can be made to unmap may attach.
    Revocable,
}

/// What the process does.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Op {
    /// INFO.
    Info,
    /// PEERS.
    Peers,
    /// LIST.
    List,
    /// QUERY.
    Query {
        /// The buffer.
        id: String,
    },
    /// GET_META.
    GetMeta {
        /// The buffer.
        id: String,
    },
    /// SET_META: replaces the name and the opaque data.
    SetMeta {
        /// The export.
        export: u64,
        /// For people.
        name: String,
        /// Opaque.
        #[serde(with = "crate::bytes")]
        blob: Vec<u8>,
    },
    /// QUIESCE: promises that nothing writes to the memory, or ends that.
    Quiesce {
        /// The export.
        export: u64,
        /// Which of the two.
        quiesced: bool,
    },
    /// Make a dma-buf.
    Make {
        /// Where.
        source: Source,
        /// Bytes.
        size: u64,
    },
    /// Have the exporter driver of the tests move a buffer of its own.
    Move {
        /// The buffer.
        buf: u64,
    },
    /// Take a dma-buf that another process of this guest has open.
    Adopt {
        /// The process.
        pid: i32,
        /// Which of its dma-bufs, by descriptor, from 0.
        index: usize,
    },
    /// Take a descriptor of our own that an ioctl made for a dma-buf.
    Take {
        /// Its number.
        fd: i32,
    },
    /// EXPORT.
    Export {
        /// The buffer.
        buf: u64,
        /// Names of peers and what they may: `false` read, `true` write too; none: all that are allowed.
        access: Vec<(String, bool)>,
        /// For people.
        name: String,
        /// Opaque.
        #[serde(with = "crate::bytes")]
        blob: Vec<u8>,
    },
    /// EXPORT of a stream to all whom the operator allows.
    Create {
        /// Its name.
        name: String,
        /// Another at each start.
        epoch: u64,
    },
    /// EXPORT of a buffer that is part of a stream.
    ExportPart {
        /// What Create gave.
        stream: u64,
        /// The buffer.
        buf: u64,
    },
    /// Whether more frames of a stream come.
    SetRecord {
        /// What Create gave.
        stream: u64,
        /// Its name.
        name: String,
        /// Another at each start.
        epoch: u64,
        /// No more come.
        ended: bool,
    },
    /// GET_META of a stream.
    GetRecord {
        /// The stream.
        id: String,
    },
    /// IMPORT of a stream, with a handle.
    Join {
        /// The stream.
        id: String,
    },
    /// IMPORT.
    Import {
        /// The buffer.
        id: String,
        /// To write, too.
        write: bool,
    },
    /// Close a buffer, an export, a mapping or a video device.
    Close {
        /// Its number.
        number: u64,
    },
    /// mmap a buffer, all of it, shared.
    Map {
        /// The buffer.
        buf: u64,
        /// To write, too.
        write: bool,
    },
    /// mmap a buffer from an offset to its end, shared, to read and write.
    MapFrom {
        /// The buffer.
        buf: u64,
        /// Whole pages.
        offset: u64,
    },
    /// mmap some buffers and read a byte of each, each on a thread of its own, and unmap
    /// them.
    TouchTogether {
        /// The buffers.
        bufs: Vec<u64>,
    },
    /// Write the pattern of `seed` everywhere.
    Fill {
        /// The mapping.
        map: u64,
        /// Which pattern.
        seed: u32,
    },
    /// The same in a child of this process, by the mapping that it inherits.
    FillInChild {
        /// The mapping.
        map: u64,
        /// Which pattern.
        seed: u32,
    },
    /// Read a byte in each page of page table entries that the mapping needs, and count
    /// the page faults.
    Touch {
        /// The mapping.
        map: u64,
    },
    /// Write bytes.
    Poke {
        /// The mapping.
        map: u64,
        /// Where.
        offset: u64,
        /// What.
        #[serde(with = "crate::bytes")]
        data: Vec<u8>,
    },
    /// Read bytes.
    Peek {
        /// The mapping.
        map: u64,
        /// Where.
        offset: u64,
        /// How many.
        len: u64,
    },
    /// Compare with the pattern of `seed`.
    Compare {
        /// The mapping.
        map: u64,
        /// Which pattern.
        seed: u32,
    },
    /// DMA_BUF_IOCTL_SYNC.
    Sync {
        /// The buffer.
        buf: u64,
        /// To write, too.
        write: bool,
        /// The end of an access.
        end: bool,
    },
    /// Read the whole mapping again and again on a thread of its own, and report
    /// whatever is not the pattern of `seed`. At the first SIGBUS it ends.
    Watch {
        /// The mapping.
        map: u64,
        /// Which pattern.
        seed: u32,
    },
    /// Nothing: its answer comes after all that watchers saw before.
    Barrier,
    /// How often a watcher has read all.
    Watched {
        /// The mapping.
        map: u64,
    },
    /// Import, map, compare the first word, unmap and close, `count` times.
    Cycle {
        /// The buffer.
        id: String,
        /// How often.
        count: u32,
        /// Which pattern its first word is of.
        seed: u32,
    },
    /// DMA_BUF_SET_NAME.
    SetName {
        /// The buffer.
        buf: u64,
        /// Its name.
        name: String,
    },
    /// Keep a buffer by an O_PATH descriptor alone. What is left under its number
    /// can only be closed.
    KeepPath {
        /// The buffer.
        buf: u64,
    },
    /// Open anonymous files, map a page of each privately and write the pattern of
    /// `seed` there.
    PrivateFiles {
        /// How many.
        count: u32,
        /// Which pattern.
        seed: u32,
    },
    /// Compare what was written into private files.
    ComparePrivate {
        /// What PrivateFiles gave.
        files: u64,
    },
    /// Have the importer driver of the tests (tests/guest/importer) take a buffer.
    Attach {
        /// The buffer.
        buf: u64,
        /// How.
        kind: AttachKind,
    },
    /// Have that driver do something with it.
    Importer {
        /// What Attach gave.
        importer: u64,
        /// What to do.
        step: Step,
    },
    /// IMPORT with a handle that is given the frames of the buffer.
    Consume {
        /// The buffer's name.
        id: String,
        /// To write, too.
        write: bool,
    },
    /// PUSH.
    Push {
        /// The exports of each frame.
        frames: Vec<Vec<u64>>,
        /// A VM that has so many of the same stream is not given it; 0: all are.
        max_held: u32,
        /// The sequence number of the first frame.
        sequence: u64,
    },
    /// RETURN.
    GiveBack {
        /// What Consume gave, and the number of the frame.
        frames: Vec<(u64, u64)>,
    },
    /// Push frames in turn, each when the last of its export was returned.
    Produce {
        /// The exports, each in frames of its own.
        exports: Vec<u64>,
        /// How many frames.
        frames: u64,
        /// Limit for each.
        timeout_ms: u64,
    },
    /// Give back so many frames as they come.
    Consumed {
        /// What Consume gave.
        consumers: Vec<u64>,
        /// How many frames.
        frames: u64,
        /// Limit for each.
        timeout_ms: u64,
    },
    /// Push frames of one export, each when the last was returned.
    HandOver {
        /// The export.
        export: u64,
        /// How many frames.
        frames: u64,
        /// Limit for each.
        timeout_ms: u64,
    },
    /// IMPORT a buffer, map it and read its first byte, and end all that before the next.
    FirstBytes {
        /// The buffer's name.
        id: String,
        /// How often.
        count: u64,
    },
    /// QUERY.
    Ask {
        /// The buffer's name.
        id: String,
        /// How often.
        count: u64,
    },
    /// Open an end of something else that carries frames.
    Open(Carrier),
    /// Send frames there, each when the last was received.
    Send {
        /// What Open gave.
        transport: u64,
        /// Bytes of a frame.
        size: u64,
        /// How many frames.
        frames: u64,
    },
    /// Receive them.
    Receive {
        /// What Open gave.
        transport: u64,
        /// Bytes of a frame.
        size: u64,
        /// How many frames.
        frames: u64,
    },
    /// The next event.
    Event {
        /// Limit.
        timeout_ms: u64,
    },
    /// An ioctl of `/dev/bufshare`, byte for byte.
    Raw {
        /// Its number.
        request: u32,
        /// The structure.
        #[serde(with = "crate::bytes")]
        data: Vec<u8>,
        /// Put into the structure first.
        patches: Vec<Patch>,
    },
    /// The same on a thread of its own, up to where the kernel accesses memory that
    /// is not there: its address is put into the structure.
    Stall {
        /// Its number.
        request: u32,
        /// The structure.
        #[serde(with = "crate::bytes")]
        data: Vec<u8>,
        /// Put into the structure first.
        patches: Vec<Patch>,
        /// Where the address of that memory goes.
        at: usize,
    },
    /// Provide that memory, and let the ioctl end.
    Unstall {
        /// What Stall gave.
        stalled: u64,
    },
    /// Read with `read()` from a descriptor of ours into room of this size.
    ReadFd {
        /// A buffer or an export; none: the device.
        number: Option<u64>,
        /// Room.
        room: usize,
    },
    /// A control of a video device of this guest is set.
    SetControl {
        /// The video device.
        device: String,
        /// As the driver names it.
        name: String,
        /// A number, or the entry of a menu; a button takes any.
        value: i32,
    },
    /// A driver of this guest captures video into the buffer, once.
    CaptureInto {
        /// The buffer.
        buf: u64,
        /// The video device.
        device: String,
        /// Pixels a row, XRGB8888.
        width: u32,
        /// Rows.
        height: u32,
    },
    /// A driver of this guest is given the buffer to capture video into, and
    /// keeps it mapped.
    LendVideo {
        /// The buffer.
        buf: u64,
        /// The video device.
        device: String,
        /// Pixels a row, XRGB8888.
        width: u32,
        /// Rows.
        height: u32,
    },
    /// A driver captures video into the buffer that it was given, once.
    CaptureLent {
        /// What LendVideo gave.
        video: u64,
    },
    /// A driver of this guest sends the buffer as video, and the same driver's
    /// capture side receives it in memory of its own.
    OutputFrom {
        /// The buffer.
        buf: u64,
        /// The video device that sends.
        output: String,
        /// The video device that receives; none: only send.
        capture: Option<String>,
        /// Pixels a row, XRGB8888.
        width: u32,
        /// Rows.
        height: u32,
    },
    /// Show the buffer on this guest's screen; stays until the buffer is closed.
    Show {
        /// The buffer.
        buf: u64,
        /// The DRM driver.
        driver: String,
        /// Pixels a row, XRGB8888.
        width: u32,
        /// Rows.
        height: u32,
    },
}

/// How a driver attaches to a dma-buf.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttachKind {
    /// Not at all: it only has a reference.
    Plain,
    /// By dma_buf_attach().
    Static,
    /// By dma_buf_dynamic_attach(); it unmaps when the exporter asks for that.
    Dynamic,
    /// By dma_buf_dynamic_attach(); it does not unmap.
    Stubborn,
}

/// What the importer driver does with its dma-buf.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Map it for its device, perhaps once more.
    Map,
    /// End the oldest of these mappings.
    Unmap,
    /// Its device reads by the newest mapping, a page at most.
    DmaRead {
        /// Where.
        offset: u64,
        /// How many bytes.
        len: u32,
    },
    /// Its device writes by the newest mapping, a page at most.
    DmaWrite {
        /// Where.
        offset: u64,
        /// What.
        #[serde(with = "crate::bytes")]
        data: Vec<u8>,
    },
    /// Map it for the kernel.
    Vmap,
    /// End that.
    Vunmap,
    /// Read by the kernel's mapping.
    CpuRead {
        /// Where.
        offset: u64,
        /// How many bytes.
        len: u32,
    },
    /// Write by the kernel's mapping.
    CpuWrite {
        /// Where.
        offset: u64,
        /// What.
        #[serde(with = "crate::bytes")]
        data: Vec<u8>,
    },
    /// dma_buf_begin_cpu_access().
    Begin,
    /// dma_buf_end_cpu_access().
    End,
    /// Its device has something to do with the dma-buf: a fence is added to it.
    Fence,
    /// It has done that.
    Signal,
    /// What has become of the mapping.
    State,
}

/// What is put into a [`Op::Raw`] structure.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Patch {
    /// The file descriptor behind a number, 32 bits.
    Descriptor {
        /// Where.
        at: usize,
        /// The number.
        number: u64,
    },
    /// The address of these bytes, 64 bits.
    Address {
        /// Where.
        at: usize,
        /// The bytes.
        #[serde(with = "crate::bytes")]
        of: Vec<u8>,
    },
}

/// What an operation gives.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Yield {
    /// Nothing.
    Done,
    /// INFO.
    Info(Info),
    /// PEERS.
    Peers(Vec<Peer>),
    /// QUERY and LIST.
    Buffers(Vec<Buffer>),
    /// GET_META, SET_META.
    Meta {
        /// Sequence number.
        seq: u64,
        /// For people.
        name: String,
        /// Opaque.
        #[serde(with = "crate::bytes")]
        blob: Vec<u8>,
    },
    /// A dma-buf.
    Made {
        /// Its number.
        buf: u64,
        /// Bytes.
        size: u64,
    },
    /// An export.
    Exported {
        /// Its number.
        export: u64,
        /// The buffer's name.
        id: String,
        /// Of the export.
        generation: u64,
    },
    /// An import.
    Imported {
        /// The buffer's number.
        buf: u64,
        /// Bytes.
        size: u64,
        /// Of the export.
        generation: u64,
        /// To write, too.
        write: bool,
        /// How.
        way: u32,
        /// VMM mappings that it takes.
        windows: u32,
    },
    /// A stream that was joined.
    Joined {
        /// Its number.
        joined: u64,
    },
    /// GET_META of a stream.
    Record {
        /// Another at each start.
        epoch: u64,
        /// No more frames come.
        ended: bool,
    },
    /// A handle that is given frames.
    Consumes {
        /// Its number.
        consumer: u64,
        /// The number of a buffer with a descriptor of its own.
        buf: u64,
        /// Bytes.
        size: u64,
        /// As events call it.
        handle: u64,
    },
    /// Frames that were pushed.
    Pushed {
        /// The number of the first.
        frame: u64,
    },
    /// Of many frames.
    Frames {
        /// The sequence numbers of those that came, unless they are in order from 0.
        sequences: Vec<u64>,
        /// Microseconds for all.
        total_us: u64,
    },
    /// How long each of many took, nanoseconds.
    Times(Vec<u64>),
    /// An end of something that carries frames.
    Opened {
        /// Its number.
        transport: u64,
    },
    /// A mapping.
    Mapped {
        /// Its number.
        map: u64,
    },
    /// Of a mapping that was touched.
    Touched {
        /// Bytes that were read.
        places: u64,
        /// Page faults of that.
        faults: u64,
    },
    /// Of buffers that were read together.
    TouchedTogether {
        /// Whether each could be read.
        sights: Vec<Sight>,
    },
    /// Private files.
    PrivateFiles {
        /// Their number, of all of them.
        files: u64,
    },
    /// A buffer that the importer driver has taken.
    Attached {
        /// Its number.
        importer: u64,
    },
    /// Of the importer driver.
    Importer {
        /// How often it is mapped for the device.
        mapped: u32,
        /// How often the exporter asked to unmap it.
        invalidated: u32,
    },
    /// A video device with a buffer.
    Lent {
        /// Its number.
        video: u64,
    },
    /// Bytes.
    Data(#[serde(with = "crate::bytes")] Vec<u8>),
    /// What a comparison, a fill or a read saw.
    Seen(Sight),
    /// Of a watcher.
    Watched {
        /// How often all was read.
        rounds: u64,
        /// What it saw last; nothing before the end of the first round.
        last: Option<Sight>,
    },
    /// Of many cycles.
    Cycled {
        /// Done.
        count: u32,
        /// Microseconds for the first.
        first_us: u64,
        /// Microseconds for all.
        total_us: u64,
    },
    /// An event, if there was one.
    Event(Option<Event>),
    /// An ioctl that waits for memory.
    Stalled {
        /// Its number.
        stalled: u64,
    },
    /// What an ioctl left.
    Raw {
        /// Its error number, or 0.
        errno: i32,
        /// The structure.
        #[serde(with = "crate::bytes")]
        data: Vec<u8>,
    },
}

/// What memory holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sight {
    /// What was expected.
    Pattern,
    /// Something else: what is not zero first.
    Other {
        /// Where first.
        offset: u64,
        /// What is there.
        word: u64,
    },
    /// Nothing: the access was refused with SIGBUS.
    Sigbus,
}

/// INFO.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// Our name.
    pub name: String,
    /// Bits.
    pub caps: u32,
    /// Limit.
    pub max_windows: u32,
    /// Used.
    pub windows_used: u32,
    /// Limit.
    pub max_extents: u32,
    /// Limit.
    pub max_buffers: u32,
    /// Limit.
    pub max_attachments: u32,
    /// Limit.
    pub max_blob: u32,
    /// Bytes.
    pub shm_size: u64,
    /// Limit.
    pub max_buffer_size: u64,
    /// Our id.
    pub peer_id: u64,
}

/// PEERS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Its driver runs.
    pub up: bool,
}

/// QUERY and LIST.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buffer {
    /// Its name.
    pub id: String,
    /// For people.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Ours.
    pub owned: bool,
    /// Attachments reported.
    pub attachments: u32,
    /// Mapped ones.
    pub mapped: u32,
    /// Pieces.
    pub extents: u32,
    /// Nothing of ours writes there.
    pub quiesced: bool,
    /// It is a stream.
    pub is_stream: bool,
    /// The stream that it is part of.
    pub stream: Option<String>,
}

/// An event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// PeerUp, PeerDown, Offer, Released, Revoked, Meta, Overflow, Pushed, Returned.
    pub kind: String,
    /// Whom it is about.
    pub peer: u64,
    /// The buffer.
    pub id: String,
    /// The attachment.
    pub handle: u64,
    /// What the kind says.
    pub value: u64,
    /// Of Pushed.
    pub frame: Option<Frame>,
}

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// Its buffers but the first.
    pub others: Vec<String>,
    /// The producer's count.
    pub sequence: u64,
    /// When it came, nanoseconds.
    pub arrival: u64,
}

/// Why an operation was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Which part of it.
    pub what: String,
    /// The system's error number.
    pub errno: i32,
    /// The host's reason, by name.
    pub status: Option<String>,
}

/// Bytes of memory that state their place: each word of 8 bytes holds the seed
/// and its own number.
#[must_use]
pub fn word(seed: u32, index: u64) -> u64 {
    // Only the low half of the number: a buffer has fewer words.
    (u64::from(seed) << 32) | (index & 0xffff_ffff)
}

/// The pattern of `seed`, as bytes.
#[must_use]
pub fn pattern(seed: u32, len: u64) -> Vec<u8> {
    (0..len / 8)
        .flat_map(|index| word(seed, index).to_ne_bytes())
        .collect()
}
