// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Another VM's stream, and the frames of it that this program is given

use std::cell::OnceCell;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bufshare_protocol::ioctl as abi;
use bufshare_protocol::limits::MAX_FRAME_BUFFERS;
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::following::{Following, Source};
use crate::{
    BufferId, BufferInfo, Change, Device, Event, FrameImport, FrameRecord, Image, Import, Joined,
    Mapping, Meta, Name, Offers, Operation, Rights, Status, ioctl,
};

/// How a [`Consumer`] follows its stream
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsumerOptions {
    /// The frames are to be written, too.
    pub write: bool,
    /// The same of buffers that the producer lets this VM write, and the others are read.
    pub write_if_granted: bool,
    /// When the stream is over, the next one of the same peer and name is joined: that of a
    /// producer that was started again. Says nothing of a stream that is found by its id.
    pub rejoin: bool,
    /// VMM mappings that the buffers of the stream may take together, at least 1 each, of
    /// [`Info::max_windows`](crate::Info::max_windows) of this whole VM. Those of more are
    /// [refused](ConsumerEvent::Refused): a producer says how many buffers its stream has, and
    /// would else take them all. 0: 32.
    pub max_windows: u32,
}

/// Enough for 8 frames of 4 buffers, or 32 of one; and two thirds of those that a VM has where
/// its operator sets nothing.
pub(crate) const MAX_WINDOWS: u32 = 32;

impl ConsumerOptions {
    /// To read the frames of one stream, until that is over.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks for the right to write, too.
    #[must_use]
    pub fn write(mut self, write: bool) -> Self {
        self.write = write;
        self
    }

    /// Asks for the right to write, too, where it is granted.
    #[must_use]
    pub fn write_if_granted(mut self, write: bool) -> Self {
        self.write_if_granted = write;
        self
    }

    /// Joins the next stream of the same name, too.
    #[must_use]
    pub fn rejoin(mut self, rejoin: bool) -> Self {
        self.rejoin = rejoin;
        self
    }

    /// Lets the buffers take so many VMM mappings together; 0: 32.
    #[must_use]
    pub fn max_windows(mut self, windows: u32) -> Self {
        self.max_windows = windows;
        self
    }
}

/// Which stream
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    Id(BufferId),
    Named { peer: u64, name: Name },
}

impl Wanted {
    pub(crate) fn is(&self, buffer: &BufferInfo) -> bool {
        buffer.is_stream
            && match self {
                Self::Id(id) => buffer.id == *id,
                Self::Named { peer, name } => buffer.owner == *peer && buffer.name == *name,
            }
    }
}

/// Why a frame was returned unseen
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Rejection {
    /// A newer version of the producer says that one has to know more to make sense of it.
    NotUnderstood,
    /// It has a buffer that this VM cannot import.
    Buffer(BufferId),
    /// A plane of its image is not all in its buffers: its offset, stride or rows are wrong. Or
    /// the image is linear, and a plane has no bytes, or the first fewer rows than the image.
    Image,
    /// It says to use more bytes than its buffers have.
    BytesUsed,
    /// What is to be seen of it is not all in its image.
    Crop,
}

impl fmt::Display for Rejection {
    /// A reason, as a sentence without its end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotUnderstood => f.write_str("its record is of a newer version: update this one"),
            Self::Buffer(id) => write!(f, "its buffer {id} cannot be imported here"),
            Self::Image => f.write_str(
                "its image does not fit its planes, or those its buffers: its producer has its \
                 offsets, strides or rows wrong",
            ),
            Self::BytesUsed => {
                f.write_str("it has more bytes than its buffers: its producer has that wrong")
            }
            Self::Crop => {
                f.write_str("its crop is not within its image: its producer has that wrong")
            }
        }
    }
}

/// What happened to a stream; from [`Consumer::next_event`]
#[derive(Debug)]
#[non_exhaustive]
pub enum ConsumerEvent {
    /// The stream is there, and was joined. Its frames follow.
    #[non_exhaustive]
    Joined {
        /// What is known of it.
        stream: BufferInfo,
        /// Its record: format, epoch, and whether it has ended.
        record: Meta,
    },
    /// It has another record. If that says that the stream has [ended](Meta::ended), no frame
    /// comes any more in this epoch.
    #[non_exhaustive]
    Record {
        /// The new one.
        record: Meta,
    },
    /// A frame, which is this program's until it is dropped or given back.
    Frame(Frame),
    /// A frame was returned unseen, because nothing sensible can be made of it.
    #[non_exhaustive]
    Rejected {
        /// Its number.
        frame: u64,
        /// Its producer's count.
        sequence: u64,
        /// Why.
        why: Rejection,
    },
    /// A buffer of the stream was revoked, or this VM was suspended. Its memory is gone, or will
    /// be: see [`Mapping`].
    #[non_exhaustive]
    Revoked {
        /// Its number.
        buffer: BufferId,
        /// The frame in it that this program has, which is not to be given back any more.
        frame: Option<u64>,
    },
    /// The stream or a buffer of it cannot be joined or consumed, or the stream's record not be
    /// read, as the error says. It is tried again when events were lost; and, if too little of
    /// something was there, or the host failed, by calls of [`Consumer::next_event`], about once a
    /// second: a buffer that would take more mappings than are [left](ConsumerOptions::max_windows)
    /// when more are. This is not said again meanwhile. The descriptor does not become readable
    /// for that: a loop that polls does so for a second at most, if it wants to join or consume
    /// what it can as soon as it can.
    #[non_exhaustive]
    Refused {
        /// Which.
        buffer: BufferInfo,
        /// Why.
        error: Error,
    },
    /// The stream is over: its producer, or the VM of that, has ended. No frame comes any more,
    /// until [another](ConsumerOptions::rejoin) is joined.
    #[non_exhaustive]
    Over {
        /// Its number.
        stream: BufferId,
    },
    /// Any other event: of a peer, of a buffer that is not of this stream, or that events were
    /// lost. What was lost of this stream comes as the other variants, frames always.
    Other(Event),
    /// Nothing came of some 64 events and requests, and there may be more: other VMs can have as
    /// many of those as they like. The next call goes on, which has to come without a poll.
    Pending,
}

/// A buffer of the stream, imported as long as it is part of it and in a frame
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) import: FrameImport,
    /// The frame that the program has whose first buffer it is; 0: none.
    held: AtomicU64,
    revoked: AtomicBool,
    /// Made by the last frame that was mapped: each frame would need one else.
    mapping: Mutex<Option<Mapping>>,
    rights: Rights,
}

impl Part {
    pub(crate) fn new(import: FrameImport, rights: Rights) -> Self {
        Self {
            import,
            held: AtomicU64::new(0),
            revoked: AtomicBool::new(false),
            mapping: Mutex::new(None),
            rights,
        }
    }

    /// VMM mappings that it takes when it is mapped.
    pub(crate) fn windows(&self) -> u32 {
        self.import.import().windows
    }

    /// Bytes.
    pub(crate) fn size(&self) -> u64 {
        self.import.import().buffer.len() as u64
    }

    /// Its memory is gone. Returns the frame in it that the program has.
    pub(crate) fn revoke(&self) -> Option<u64> {
        self.revoked.store(true, Ordering::Relaxed);
        match self.held.swap(0, Ordering::Relaxed) {
            0 => None,
            frame => Some(frame),
        }
    }
}

/// A frame that this program has, until it is dropped or [given back](Self::give_back)
///
/// Its producer writes nothing there meanwhile, if it is honest. It goes from thread to thread.
#[derive(Debug)]
pub struct Frame {
    number: u64,
    arrival: u64,
    record: FrameRecord,
    image: Option<Image>,
    blob: Arc<[u8]>,
    parts: Vec<Arc<Part>>,
    mappings: [OnceCell<Mapping>; MAX_FRAME_BUFFERS],
}

impl Frame {
    /// `parts` is not empty; the device reads the frame of the first.
    pub(crate) fn new(
        number: u64,
        arrival: u64,
        record: FrameRecord,
        (image, blob): (Option<Image>, Arc<[u8]>),
        parts: Vec<Arc<Part>>,
    ) -> Self {
        if let Some(part) = parts.first() {
            part.held.store(number, Ordering::Relaxed);
        }
        Self {
            number,
            arrival,
            record,
            image,
            blob,
            parts,
            mappings: Default::default(),
        }
    }

    /// Its number, of those of its exporter.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// What its producer says of it. Of a frame that has an image the damage is all in that: if a
    /// rectangle was not, there is none, which says that all may have changed. Of one without,
    /// nothing has looked at the damage or the crop.
    #[must_use]
    pub fn record(&self) -> &FrameRecord {
        &self.record
    }

    /// What it shows: the image of its first buffer's metadata, or, where that has none, of the
    /// stream's record. That is the newest record that was read: a producer that changes it
    /// while frames are out says in each buffer what is in that. Each plane is in the frame's buffers, and so is what the record's
    /// `bytes_used` says; the record's crop is in the image. Of a linear image
    /// ([modifier](Image::modifier) 0) no plane is empty, and the first has no fewer rows than the
    /// image. Nothing else binds the planes to the image's width and height: whether a row of so
    /// many pixels is within its stride, and whether the other planes have all rows, is for those
    /// to look at who know the format, before they reach for a pixel. Of another layout not even
    /// the rows are looked at.
    #[must_use]
    pub fn image(&self) -> Option<&Image> {
        self.image.as_ref()
    }

    /// Bytes that only the programs understand, of the [metadata](crate::Meta) of its first
    /// buffer as it was at the push, or newer.
    #[must_use]
    pub fn blob(&self) -> &[u8] {
        &self.blob
    }

    /// When this VM's driver learned of it, nanoseconds of `CLOCK_MONOTONIC`.
    #[must_use]
    pub fn arrival(&self) -> u64 {
        self.arrival
    }

    /// Its buffers. The same import comes again with a later frame in the same buffer.
    pub fn imports(&self) -> impl ExactSizeIterator<Item = &Import> {
        self.parts.iter().map(|part| part.import.import())
    }

    /// One of its buffers, mapped to be read, and written if
    /// [that](ConsumerOptions::write) was asked for; its [rights](Mapping::rights) say so. The mapping is kept for later frames in the
    /// same buffer.
    ///
    /// # Errors
    /// There is no buffer of that index (`EINVAL`), or as [`DmaBuf::map`](crate::DmaBuf::map).
    pub fn mapping(&self, index: usize) -> Result<&Mapping> {
        let both = self.parts.get(index).zip(self.mappings.get(index));
        let (part, cell) = both.ok_or_else(|| Error::new(Operation::Map, Errno::INVAL))?;
        if let Some(mapping) = cell.get() {
            return Ok(mapping);
        }
        let kept = part.mapping.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = { kept }.take();
        let mapping = match kept {
            Some(mapping) => mapping,
            None => part.import.import().buffer.map(part.rights)?,
        };
        Ok(cell.get_or_init(|| mapping))
    }

    /// Whether the consumer has learned that the memory of one of its buffers is gone. Asks
    /// nobody.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        let mut parts = self.parts.iter();
        parts.any(|part| part.revoked.load(Ordering::Relaxed))
    }

    /// Gives it back, as dropping it does. Does not wait.
    ///
    /// # Errors
    /// Its first buffer was revoked, and so this was given back already
    /// ([`Error::is_revoked`]); the device is gone (`ENODEV`).
    pub fn give_back(mut self) -> Result<()> {
        self.put_back()
    }

    fn put_back(&mut self) -> Result<()> {
        for (part, cell) in self.parts.iter().zip(&mut self.mappings) {
            if let Some(mapping) = cell.take() {
                let mut kept = part.mapping.lock().unwrap_or_else(PoisonError::into_inner);
                *kept = Some(mapping);
            }
        }
        // None the second time.
        let parts = std::mem::take(&mut self.parts);
        let Some(first) = parts.first() else {
            return Ok(());
        };
        let _ = first
            .held
            .compare_exchange(self.number, 0, Ordering::Relaxed, Ordering::Relaxed);
        return_frame(&first.import, self.number)
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        // Whoever wants to know calls give_back().
        let _ = self.put_back();
    }
}

/// RETURN of a frame that was read, and is returned once.
fn return_frame(import: &FrameImport, frame: u64) -> Result<()> {
    let op = Operation::GiveBack;
    let mut raw = abi::Return::default();
    ioctl::give_back(import.device(), &mut raw, &[import.entry(frame)]).map_err(|errno| {
        let error = Error::of_host(op, errno, raw.status);
        match (error.status, Errno::from_io_error(&error.errno)) {
            // Only this can have taken it.
            (Some(Status::Unbalanced), _) => Error::revoked(op, Errno::STALE),
            _ => error,
        }
    })
}

/// Another VM's stream, and the frames of it that this program is given
///
/// It waits for the stream to be offered, joins it, and consumes the buffers of it that are there
/// and those that come. Imports are kept as long as their buffers are part of the stream. Whatever
/// another VM does is an ordinary [`ConsumerEvent`].
///
/// # In an event loop
/// As [`Offers`]: poll the [descriptor](AsFd) for reading; before the first poll, and whenever it
/// is readable or hung up, call [`next_event`](Self::next_event) with a timeout of zero until it
/// returns `None`; a loop that has more to do may stop before, if it calls it again without a
/// poll. That does not wait for events or peers, but asks the host where the stream is
/// new, or a buffer of it, or metadata, or where events were lost, see [`Device`]. A frame in
/// buffers that are known takes no request but its return. `examples/consumer.rs`:
///
/// ```no_run
#[doc = include_str!("../../examples/consumer.rs")]
/// ```
#[derive(Debug)]
pub struct Consumer {
    following: Following,
    source: Host,
}

impl Consumer {
    /// Follows the stream of that name of the peer of that name. Asks the host for its peers;
    /// the stream need not be there yet, nor the peer run.
    ///
    /// The device is the consumer's from now on, with its events. It has to be one of which no
    /// events were read.
    ///
    /// # Errors
    /// The host's operator lets this VM share nothing with a peer of that name (`ENOENT`), or as
    /// [`Device::check_frames`] and [`Device::peers`].
    pub fn named(
        device: Device,
        peer: &str,
        stream: Name,
        options: &ConsumerOptions,
    ) -> Result<Self> {
        device.check_frames()?;
        let found = device.peer(peer)?;
        let found = found.ok_or_else(|| Error::new(Operation::FindPeer, Errno::NOENT))?;
        Ok(Self::of_peer(device, found.id, stream, options))
    }

    /// As [`named`](Self::named), of a peer's id. Asks nobody, and so it waits in vain where
    /// [frames cannot be handed over](Device::check_frames).
    #[must_use]
    pub fn of_peer(device: Device, peer: u64, stream: Name, options: &ConsumerOptions) -> Self {
        let name = stream;
        Self::new(device, Wanted::Named { peer, name }, options)
    }

    /// As [`named`](Self::named), of a stream's id. Asks nobody, and so it waits in vain where
    /// [frames cannot be handed over](Device::check_frames).
    #[must_use]
    pub fn of_stream(device: Device, stream: BufferId, options: &ConsumerOptions) -> Self {
        Self::new(device, Wanted::Id(stream), options)
    }

    fn new(device: Device, wanted: Wanted, options: &ConsumerOptions) -> Self {
        let offers = match wanted {
            Wanted::Named { peer, .. } => Offers::of_peer(device, peer),
            // Whose that is shows when it is offered.
            Wanted::Id(_) => device.offers(),
        };
        Self {
            following: Following::new(wanted, options),
            source: Host {
                offers,
                write: options.write,
                write_if_granted: options.write_if_granted,
                enforced: None,
            },
        }
    }

    /// What happened next; `None` if it was nothing in time. Without a timeout it waits as long
    /// as it takes, with one of zero for no event. A signal does not end the wait. The host may
    /// be asked, whose answer is waited for also after the timeout.
    ///
    /// # Errors
    /// The device is gone (`ENODEV`), which is the end; or the host does not answer. Nothing is
    /// lost then: the next call asks again. Or an event makes no sense (`EPROTO`), see
    /// [`Device::next_event`].
    pub fn next_event(&mut self, timeout: Option<Duration>) -> Result<Option<ConsumerEvent>> {
        self.following.next(&mut self.source, timeout)
    }

    /// The stream that is joined now.
    #[must_use]
    pub fn stream(&self) -> Option<BufferId> {
        self.following.stream()
    }

    /// The device, for everything but its events and frames.
    #[must_use]
    pub fn device(&self) -> &Device {
        self.source.offers.device()
    }
}

impl AsRawFd for Consumer {
    fn as_raw_fd(&self) -> RawFd {
        self.source.offers.as_raw_fd()
    }
}

impl AsFd for Consumer {
    /// For `poll`: that of the [`Device`], readable when something may have happened.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.source.offers.as_fd()
    }
}

/// The open device
#[derive(Debug)]
struct Host {
    offers: Offers,
    write: bool,
    write_if_granted: bool,
    /// Whether this VM's VMM enforces read-only, once that is known.
    enforced: Option<bool>,
}

impl Source for Host {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn next_change(&mut self, timeout: Option<Duration>) -> Result<Option<Change>> {
        self.offers.next_change(timeout)
    }

    fn query(&self, id: BufferId) -> Result<BufferInfo> {
        self.offers.device().query(id)
    }

    fn join(&self, id: BufferId) -> Result<Joined> {
        self.offers.device().join(id)
    }

    fn get_meta(&self, id: BufferId) -> Result<(u64, Meta)> {
        self.offers.device().get_meta(id)
    }

    fn consume(&mut self, buffer: &BufferInfo, max_windows: u32) -> Result<Part> {
        let device = self.offers.device();
        let enforced = match self.enforced {
            Some(enforced) => enforced,
            None => device.info()?.enforces_read_only(),
        };
        self.enforced = Some(enforced);
        let granted = self.write_if_granted && buffer.rights.contains(Rights::RW);
        let (rights, map) = match self.write || granted {
            true => (Rights::RW, Rights::RW),
            false if enforced => (Rights::READ, Rights::READ),
            false => (buffer.rights, Rights::READ),
        };
        let import = device.consume_within(buffer.id, rights, max_windows)?;
        Ok(Part::new(import, map))
    }

    fn is_revoked(&self, part: &Part) -> bool {
        part.import.import().buffer.is_revoked()
    }

    fn return_frame(&self, part: &Part, frame: u64) -> Result<()> {
        return_frame(&part.import, frame)
    }
}
