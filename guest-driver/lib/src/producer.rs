// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A stream of this VM's and the buffers that its frames are in

use std::cell::OnceCell;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bufshare_protocol::limits::MAX_FRAME_BUFFERS;
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::slots::{Push as Outcome, Slots};
use crate::{
    Access, BufferId, Device, DmaBuf, Event, Export, ExportOptions, FrameRecord, Image, Mapping,
    Meta, Name, Operation, Push, Rights, Stream,
};

/// What a [`Producer`] makes
///
/// ```
/// use bufshare::{Image, Name, Plane, ProducerOptions};
/// let xrgb = u32::from_le_bytes(*b"XR24");
/// let image = Image::new(xrgb, 640, 480).plane(Plane::new(0, 2560, 480));
/// let options = ProducerOptions::new(Name::new("camera")?).image(image).slots(3);
/// assert_eq!(options.frame_sizes(), [1_228_800]);
/// # Ok::<(), bufshare::InvalidName>(())
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ProducerOptions {
    /// Of the stream: not empty, and unlike that of all other streams of this VM.
    pub name: Name,
    /// Who may join it, as [`ExportOptions::access`].
    pub access: Vec<Access>,
    /// What each frame is, in the stream's record and in the metadata of the buffers.
    pub image: Option<Image>,
    /// Bytes that only the programs understand, in the stream's record.
    pub blob: Vec<u8>,
    /// Slots that are allocated; others can be [added](Producer::add).
    pub slots: u32,
    /// Bytes of each of the 1 to 4 buffers of a slot; empty: as many as the image needs.
    pub sizes: Vec<u64>,
    /// As [`Push::max_held`]; 0: no limit. So that consumers which keep frames do not stop the
    /// others, the slots have to be more than this times the VMs that may join, or else those that
    /// are kept are [removed](Producer::remove) and others [added](Producer::add).
    pub max_held: u32,
    /// Another number at each start; 0: the time of the start.
    pub epoch: u64,
}

impl ProducerOptions {
    /// A stream of that name, without slots, for all peers that the operator allows.
    #[must_use]
    pub fn new(name: Name) -> Self {
        Self {
            name,
            ..Self::default()
        }
    }

    /// Says what each frame is.
    #[must_use]
    pub fn image(mut self, image: Image) -> Self {
        self.image = Some(image);
        self
    }

    /// Lets this peer join it, too; those that no call names may not.
    #[must_use]
    pub fn allow(mut self, peer: u64, rights: Rights) -> Self {
        self.access.push(Access::new(peer, rights));
        self
    }

    /// Allocates so many slots.
    #[must_use]
    pub fn slots(mut self, slots: u32) -> Self {
        self.slots = slots;
        self
    }

    /// Makes the buffers of a slot so large, bytes.
    #[must_use]
    pub fn sizes(mut self, sizes: impl Into<Vec<u64>>) -> Self {
        self.sizes = sizes.into();
        self
    }

    /// Sets how many frames a VM may have at once.
    #[must_use]
    pub fn max_held(mut self, frames: u32) -> Self {
        self.max_held = frames;
        self
    }

    /// Bytes of the buffers of a slot: [`sizes`](Self::sizes), or what the image needs. A size
    /// that no buffer can have is `u64::MAX`.
    #[must_use]
    pub fn frame_sizes(&self) -> Vec<u64> {
        if !self.sizes.is_empty() {
            return self.sizes.clone();
        }
        let planes = self.image.iter().flat_map(|image| &image.planes);
        let mut sizes = Vec::new();
        for plane in planes {
            let Ok(buffer @ 0..MAX_FRAME_BUFFERS) = usize::try_from(plane.buffer) else {
                continue;
            };
            if sizes.len() <= buffer {
                sizes.resize(buffer.saturating_add(1), 0);
            }
            let length = u64::from(plane.stride).saturating_mul(plane.rows.into());
            if let Some(size) = sizes.get_mut(buffer) {
                *size = plane.offset.saturating_add(length).max(*size);
            }
        }
        sizes
    }

    fn record(&self, ended: bool) -> Meta {
        Meta {
            name: self.name,
            image: self.image.clone(),
            blob: self.blob.clone(),
            epoch: self.epoch,
            ended,
        }
    }
}

/// What happened to a stream of this VM's; from [`Producer::next_event`]
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProducerEvent {
    /// Nobody has that frame any more: its slot is free.
    #[non_exhaustive]
    Returned {
        /// Its [number](Slot::number).
        slot: u32,
        /// Of the frame.
        frame: u64,
        /// When this VM's driver learned of it, nanoseconds of `CLOCK_MONOTONIC`; 0 from one that
        /// does not say.
        arrival: u64,
    },
    /// No program of that VM is joined any more. That does not mean that its frames are back: each
    /// comes back by [`Returned`](Self::Returned) when the VM returns it or ends its import of the
    /// buffer. [`Producer::remove`] takes one from it.
    #[non_exhaustive]
    Left {
        /// Its id.
        peer: u64,
    },
    /// An export of a slot has ended, though nobody here ended it: the host revoked it, or this
    /// VM was suspended. The slot is no more; one that is held is still good to write in, and
    /// not to push.
    #[non_exhaustive]
    Lost {
        /// Its number.
        slot: u32,
    },
    /// The stream itself has ended so: nothing can be pushed any more, and another producer has
    /// to be made.
    Ended,
    /// Any other event: of a peer, of another VM's buffer, or that events were lost. What was
    /// lost of this stream comes as the other variants. After many events in a row of which
    /// nothing came, one of those.
    Other(Event),
}

/// One buffer of a slot
#[derive(Debug)]
struct Part {
    buffer: DmaBuf,
    export: Export,
    mapping: OnceCell<Mapping>,
}

/// What a frame is written into: 1 to 4 buffers, which no other VM has
///
/// Dropping it gives it back to the [`Producer`] without a push.
#[derive(Debug)]
pub struct Slot {
    number: u32,
    parts: Vec<Part>,
    home: Home,
}

/// Slots that were dropped.
type Home = Arc<Mutex<Vec<(u32, Vec<Part>)>>>;

impl Slot {
    /// Counted from 0 in the order in which they were allocated or added. None is used twice.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Its buffers, in the order of the frame's.
    pub fn buffers(&self) -> impl ExactSizeIterator<Item = &DmaBuf> {
        self.parts.iter().map(|part| &part.buffer)
    }

    /// The exports of its buffers, in the same order: their ids, and what
    /// [`Device::set_meta`] says of the frame's image or content by, before the push.
    pub fn exports(&self) -> impl ExactSizeIterator<Item = &Export> {
        self.parts.iter().map(|part| &part.export)
    }

    /// One of its buffers, mapped to be read and written; it stays mapped as long as the slot is
    /// there. An [access](Mapping::begin) has to end before the push.
    ///
    /// # Errors
    /// There is no buffer of that index (`EINVAL`), or as [`DmaBuf::map`].
    pub fn mapping(&self, index: usize) -> Result<&Mapping> {
        let part = self.parts.get(index);
        let part = part.ok_or_else(|| Error::new(Operation::Map, Errno::INVAL))?;
        if let Some(mapping) = part.mapping.get() {
            return Ok(mapping);
        }
        let mapping = part.buffer.map(Rights::RW)?;
        Ok(part.mapping.get_or_init(|| mapping))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let parts = std::mem::take(&mut self.parts);
        if !parts.is_empty() {
            let mut home = self.home.lock().unwrap_or_else(PoisonError::into_inner);
            home.push((self.number, parts));
        }
    }
}

/// A stream of this VM's and the buffers that its frames are in
///
/// A program [acquires](Self::acquire) a slot, writes a frame into it, [pushes](Self::push) it,
/// and gets the slot back when all consumers have returned the frame.
///
/// Dropping it ends the stream and revokes the buffers, also those that consumers have. One that
/// wants them to see the last frame calls [`end`](Self::end) and waits until
/// [`out`](Self::out) is 0.
///
/// # In an event loop
/// Poll the [descriptor](AsFd) for reading. When it is readable or hung up, and after each
/// [`push`](Self::push), which may find what no descriptor says, call
/// [`next_event`](Self::next_event) with a timeout of zero until it returns `None`. Other VMs may
/// keep it from ever doing so: a loop that has more to do may stop before, if it calls it again
/// without a poll. No function waits for a consumer; `push` and those that say so ask the host,
/// see [`Device`]. `examples/producer.rs`:
///
/// ```no_run
#[doc = include_str!("../../examples/producer.rs")]
/// ```
#[derive(Debug)]
pub struct Producer {
    // Dropped first: consumers leave before their buffers go.
    stream: Stream,
    slots: Slots<Vec<Part>, FrameRecord>,
    home: Home,
    options: ProducerOptions,
    next_number: u32,
    device: Device,
}

impl Producer {
    /// Creates the stream, allocates the slots and exports them. Asks the host, for the stream
    /// and each buffer; whoever looks for the stream may join before this returns.
    ///
    /// The device is the producer's from now on, with its events; events that it has read are
    /// none of the producer's.
    ///
    /// # Errors
    /// There are slots to be made, and `options` say neither sizes nor an image, or more than 4
    /// buffers for each (`EINVAL`), or as [`Device::check_frames`], [`Device::create_stream`],
    /// [`Device::alloc`] and [`Device::export_part`].
    pub fn new(device: Device, options: &ProducerOptions) -> Result<Self> {
        let mut options = options.clone();
        if options.epoch == 0 {
            options.epoch = now();
        }
        let sizes = options.frame_sizes();
        if options.slots != 0 && !(1..=MAX_FRAME_BUFFERS).contains(&sizes.len()) {
            return Err(Error::new(Operation::CreateStream, Errno::INVAL));
        }
        device.check_frames()?;
        let stream = device.create_stream(&ExportOptions {
            access: options.access.clone(),
            meta: options.record(false),
        })?;
        let mut producer = Self {
            stream,
            slots: Slots::new(),
            home: Home::default(),
            options,
            next_number: 0,
            device,
        };
        for _ in 0..producer.options.slots {
            let buffers = sizes.iter().map(|size| producer.device.alloc(*size));
            let buffers = buffers.collect::<Result<_>>()?;
            producer.add_buffers(buffers)?;
        }
        Ok(producer)
    }

    /// Makes a slot of dma-bufs of any driver's, as a camera's, 1 to 4, and returns its number.
    /// Asks the host, for each.
    ///
    /// # Errors
    /// There are no buffers or more than 4 (`EINVAL`); one is in a slot already, in whatever
    /// place, or twice in `buffers` (`EALREADY`); or as [`DmaBuf::from_fd`] and [`Device::export_part`]. The
    /// descriptors are closed then.
    pub fn add(&mut self, buffers: Vec<OwnedFd>) -> Result<u32> {
        let buffers = buffers.into_iter().map(DmaBuf::from_fd);
        self.add_buffers(buffers.collect::<Result<_>>()?)
    }

    fn add_buffers(&mut self, buffers: Vec<DmaBuf>) -> Result<u32> {
        if !(1..=MAX_FRAME_BUFFERS).contains(&buffers.len()) {
            return Err(Error::new(Operation::Export, Errno::INVAL));
        }
        let mut meta = Meta::new().name(self.options.name);
        // The first has the frame's.
        meta.image = self.options.image.clone();
        let mut parts = Vec::new();
        for buffer in buffers {
            let options = ExportOptions::new().meta(meta.clone());
            let export = self.device.export_part(&self.stream, &buffer, &options);
            let export = export.map_err(already_part)?;
            meta.image = None;
            parts.push(Part {
                buffer,
                export,
                mapping: OnceCell::new(),
            });
        }
        let number = self.next_number;
        self.next_number = number.saturating_add(1);
        let ids: Vec<_> = parts.iter().map(|part| part.export.id()).collect();
        if !self.slots.add(number, &ids, parts) {
            return Err(Error::new(Operation::Export, Errno::ALREADY));
        }
        Ok(number)
    }

    /// Takes a slot away: its exports end. A frame in it that is out is out no more, and whoever
    /// has it loses the memory: so that one consumer which keeps frames does not stop the others.
    /// Returns whether there was such a slot; not one that the program has [acquired](Self::acquire).
    /// Waits for nobody.
    pub fn remove(&mut self, slot: u32) -> bool {
        self.collect();
        self.slots.remove(slot).is_some()
    }

    /// A free slot, the longest free of all; `None` if there is none now. Asks nobody and does
    /// not wait.
    pub fn acquire(&mut self) -> Option<Slot> {
        self.collect();
        let (number, parts) = self.slots.acquire(None)?;
        Some(self.slot(number, parts))
    }

    /// As [`acquire`](Self::acquire), of the slot of that number; `None` if it is not free.
    pub fn acquire_number(&mut self, number: u32) -> Option<Slot> {
        self.collect();
        let (number, parts) = self.slots.acquire(Some(number))?;
        Some(self.slot(number, parts))
    }

    fn slot(&self, number: u32, parts: Vec<Part>) -> Slot {
        Slot {
            number,
            parts,
            home: Arc::clone(&self.home),
        }
    }

    /// Takes what was dropped.
    fn collect(&mut self) {
        let mut home = self.home.lock().unwrap_or_else(PoisonError::into_inner);
        for (number, parts) in home.drain(..) {
            self.slots.give_back(number, parts);
        }
    }

    /// Hands the frame in a slot over, with what is said of it; its
    /// [epoch](FrameRecord::epoch) is the producer's. Returns the frame's number. Asks the host,
    /// which waits for nobody.
    ///
    /// That a slot is [lost](ProducerEvent::Lost) may show here, also one that the host did not
    /// answer about before: [`next_event`](Self::next_event) says so, and the descriptor does not
    /// become readable for that.
    ///
    /// # Errors
    /// As [`Device::push`]. The slot is free again then, unless the host did not answer, so that
    /// it may yet push the frame: then it is out, and what was not pushed is pushed with the
    /// next frame, before that. Where the host does not answer then either, a later frame may be
    /// pushed before it: the order is that of [`FrameRecord::sequence`].
    pub fn push(&mut self, mut slot: Slot, mut record: FrameRecord) -> Result<u64> {
        let (number, parts) = (slot.number, std::mem::take(&mut slot.parts));
        if !Arc::ptr_eq(&slot.home, &self.home) {
            // Of another producer: it goes home.
            slot.parts = parts;
            return Err(Error::new(Operation::Push, Errno::INVAL));
        }
        self.push_doubtful();
        record.epoch = self.options.epoch;
        let pushed = self.push_parts(&parts, &record);
        self.slots.pushed(number, parts, record, outcome(&pushed));
        pushed
    }

    /// Pushes again what may not have been pushed.
    fn push_doubtful(&mut self) {
        for (number, parts, record) in self.slots.take_doubtful() {
            let pushed = self.push_parts(&parts, &record);
            self.slots.pushed(number, parts, record, outcome(&pushed));
        }
    }

    fn push_parts(&self, parts: &[Part], record: &FrameRecord) -> Result<u64> {
        self.device.push(&[Push {
            buffers: parts.iter().map(|part| &part.export).collect(),
            max_held: self.options.max_held,
            record: record.clone(),
        }])
    }

    /// What happened next; `None` if it was nothing in time. Without a timeout it waits as long
    /// as it takes, with one of zero not at all. A signal does not end the wait. Asks nobody.
    ///
    /// # Errors
    /// The device is gone (`ENODEV`): then the stream is over.
    pub fn next_event(&mut self, timeout: Option<Duration>) -> Result<Option<ProducerEvent>> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let left = || deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        loop {
            self.collect();
            if let Some(event) = self.slots.next_event() {
                return Ok(Some(event));
            }
            let Some(event) = self.device.next_event(left())? else {
                return Ok(None);
            };
            self.slots.take(event, self.stream.id());
            if self.slots.is_unsure() {
                let ended = |parts: &Vec<Part>| {
                    let mut exports = parts.iter().map(|part| part.export.has_ended());
                    exports.position(|ended| ended.unwrap_or(true))
                };
                self.slots.verify(self.stream.has_ended()?, ended);
            }
        }
    }

    /// Frames that were pushed and have not come back.
    #[must_use]
    pub fn out(&self) -> usize {
        self.slots.out()
    }

    /// VMs that have joined the stream now. Asks the host.
    ///
    /// # Errors
    /// As [`Device::query`].
    pub fn consumers(&self) -> Result<u32> {
        Ok(self.device.query(self.id())?.attachments)
    }

    /// Says in the stream's record that no more frames come in this epoch. Asks the host. A
    /// consumer that has not heard of it when the producer is dropped hears of that alone; the
    /// last frame can say it, too, by [`FRAME_LAST`](crate::FRAME_LAST), and is not lost.
    ///
    /// # Errors
    /// As [`Device::set_meta`].
    pub fn end(&mut self) -> Result<()> {
        let record = self.options.record(true);
        self.device.set_meta(self.stream.export(), &record)?;
        Ok(())
    }

    /// The stream's number.
    #[must_use]
    pub fn id(&self) -> BufferId {
        self.stream.id()
    }

    /// Another number at each start.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.options.epoch
    }

    /// The device, for everything but its events and frames.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }
}

impl AsRawFd for Producer {
    fn as_raw_fd(&self) -> RawFd {
        self.device.as_raw_fd()
    }
}

impl AsFd for Producer {
    /// For `poll`: that of the [`Device`], readable when something may have happened.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

/// The driver finds a dma-buf that is part of the stream, which is the producer's alone, with
/// other metadata: in another place of a frame.
fn already_part(error: Error) -> Error {
    match (error.status, Errno::from_io_error(&error.errno)) {
        (None, Some(Errno::EXIST)) => Error::new(error.op, Errno::ALREADY),
        _ => error,
    }
}

/// Nanoseconds since 1970, not 0.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let ns = since.map_or(0, |since| since.as_nanos());
    u64::try_from(ns).unwrap_or(u64::MAX).max(1)
}

/// What a push made of its slot.
fn outcome(result: &Result<u64>) -> Outcome {
    match result {
        Ok(frame) => Outcome::Out(*frame),
        Err(error) if error.is_absent() => Outcome::Gone,
        Err(error) => match (error.status, Errno::from_io_error(&error.errno)) {
            // The host's answer is not known; or an earlier one's was not.
            (None, Some(Errno::TIMEDOUT | Errno::INTR | Errno::PROTO)) | (_, Some(Errno::BUSY)) => {
                Outcome::Doubtful
            }
            _ => Outcome::Refused,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Plane;

    #[test]
    fn buffers_are_as_large_as_the_image_needs() {
        let image = Image::new(1, 4, 4)
            .plane(Plane::new(0, 16, 4))
            .plane(Plane::new(64, 8, 2))
            .plane(Plane::new(0, 8, 2).buffer(1));
        let mut options = ProducerOptions::new(Name::EMPTY).image(image);
        assert_eq!(options.frame_sizes(), [80, 16]);
        options.sizes = vec![4096];
        assert_eq!(options.frame_sizes(), [4096]);
    }

    #[test]
    fn a_size_that_is_too_large_to_be_one_is_no_overflow() {
        let image = Image::new(1, 4, 4)
            .plane(Plane::new(u64::MAX, 16, 4))
            .plane(Plane::new(0, 1, 1).buffer(u32::MAX));
        let options = ProducerOptions::new(Name::EMPTY).image(image);
        assert_eq!(options.frame_sizes(), [u64::MAX]);
    }

    #[test]
    fn a_dma_buf_in_another_place_of_a_frame_is_one_that_is_in_a_slot() {
        let of = |errno: Errno, status: u32| {
            let error = Error::of_host(Operation::Export, errno.into(), status);
            Errno::from_io_error(&already_part(error).errno)
        };
        assert_eq!(of(Errno::EXIST, 0), Some(Errno::ALREADY));
        assert_eq!(of(Errno::ACCESS, 0), Some(Errno::ACCESS));
        let exists = crate::Status::Exists.number();
        assert_eq!(of(Errno::EXIST, exists), Some(Errno::EXIST));
    }

    #[test]
    fn what_the_host_did_not_answer_is_in_doubt_and_what_it_refused_is_not() {
        let of = |errno: Errno, status: u32| {
            outcome(&Err(Error::of_host(Operation::Push, errno.into(), status)))
        };
        assert_eq!(outcome(&Ok(7)), Outcome::Out(7));
        assert_eq!(of(Errno::TIMEDOUT, 0), Outcome::Doubtful);
        assert_eq!(of(Errno::NODEV, 0), Outcome::Refused);
        let status = |status: crate::Status| status.number();
        assert_eq!(
            of(Errno::INVAL, status(crate::Status::BadMeta)),
            Outcome::Refused
        );
        assert_eq!(
            of(Errno::STALE, status(crate::Status::Revoked)),
            Outcome::Gone
        );
    }
}
