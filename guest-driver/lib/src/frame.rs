// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Frames: what is handed over from one VM to others, and comes back

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use bufshare_protocol::limits::{MAX_DAMAGE, MAX_FRAME_BUFFERS, MAX_FRAME_RECORD};
use bufshare_protocol::wire;
use bufshare_protocol::{ioctl as abi, types};

use crate::error::{Error, Result};
use crate::{BufferId, Export, Import, Operation, ioctl};

/// Clock of a frame's time
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Clock {
    /// Of the exporting VM, from some start on, as `CLOCK_MONOTONIC`. It says when in relation to
    /// its other frames, and nothing in relation to a clock of another VM.
    Monotonic,
    /// UTC, as the exporting VM knows it.
    Realtime,
    /// TAI, as the exporting VM knows it.
    Tai,
    /// Of a newer version, by its number.
    Unknown(u32),
}

impl Clock {
    fn from_number(number: u32) -> Option<Self> {
        match number {
            types::frame::CLOCK_NONE => None,
            types::frame::CLOCK_MONOTONIC => Some(Self::Monotonic),
            types::frame::CLOCK_REALTIME => Some(Self::Realtime),
            types::frame::CLOCK_TAI => Some(Self::Tai),
            other => Some(Self::Unknown(other)),
        }
    }

    fn number(self) -> u32 {
        match self {
            Self::Monotonic => types::frame::CLOCK_MONOTONIC,
            Self::Realtime => types::frame::CLOCK_REALTIME,
            Self::Tai => types::frame::CLOCK_TAI,
            Self::Unknown(number) => number,
        }
    }
}

/// When a frame was taken, or is to be shown
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct FrameTime {
    /// By which clock.
    pub clock: Clock,
    /// Nanoseconds.
    pub ns: i64,
}

impl FrameTime {
    /// So many nanoseconds by this clock.
    #[must_use]
    pub fn new(clock: Clock, ns: i64) -> Self {
        Self { clock, ns }
    }
}

/// A rectangle of an image, in pixels
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "as their names say")]
pub struct Rect {
    pub x: i32,
    pub y: i32,
    pub width: u32,
    pub height: u32,
}

impl Rect {
    fn from_wire(raw: &wire::Rect) -> Self {
        Self {
            x: raw.x.cast_signed(),
            y: raw.y.cast_signed(),
            width: raw.width,
            height: raw.height,
        }
    }

    fn to_wire(self) -> wire::Rect {
        wire::Rect {
            x: self.x.cast_unsigned(),
            y: self.y.cast_unsigned(),
            width: self.width,
            height: self.height,
        }
    }
}

/// What a producer says of a frame
///
/// Nothing of it has to be said. What a newer version says beyond this is handed on when a
/// record that was received is pushed again, and is otherwise ignored. Source: SPEC.md,
/// section 6.6.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct FrameRecord {
    /// `FRAME_*`.
    pub flags: u32,
    /// The producer's count of its frames, those that it lost included.
    pub sequence: u64,
    /// Another number at each start of the producer.
    pub epoch: u64,
    /// When it was taken, or is to be shown.
    pub time: Option<FrameTime>,
    /// Nanoseconds; 0: not said.
    pub duration: u64,
    /// What turns the contents upright: 0 to 7, as Wayland's `wl_output` has them.
    pub transform: u32,
    /// Bytes of each of its buffers that have contents; 0: all.
    pub bytes_used: [u32; MAX_FRAME_BUFFERS],
    /// What of it is to be seen; `None`: all.
    pub crop: Option<Rect>,
    /// What changed since the frame before, at most 16 rectangles; empty: all may have.
    pub damage: Vec<Rect>,
    /// All of it, as it came.
    whole: types::FrameRecord,
}

impl FrameRecord {
    /// One that says nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The bytes of a record, as the kernel gives them. `None`: they make no sense.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let record = types::FrameRecord::new(bytes).ok()?;
        let raw = record.known();
        let damage = usize::try_from(raw.num_damage).ok()?;
        let crop = Rect::from_wire(&raw.crop);
        let time = Clock::from_number(raw.clock).map(|clock| FrameTime {
            clock,
            ns: raw.pts.cast_signed(),
        });
        Some(Self {
            flags: raw.flags,
            sequence: raw.sequence,
            epoch: raw.epoch,
            time,
            duration: raw.duration,
            transform: raw.transform,
            bytes_used: raw.bytes_used,
            crop: (crop.width != 0 && crop.height != 0).then_some(crop),
            damage: raw
                .damage
                .get(..damage)?
                .iter()
                .map(Rect::from_wire)
                .collect(),
            whole: record,
        })
    }

    /// Whether a consumer of this version can make sense of the frame. One of which it is false
    /// is to be returned as it is.
    #[must_use]
    pub fn is_understood(&self) -> bool {
        self.whole.known().must_know == 0
    }

    /// Its bytes; `None` if there is more damage than a record has room for.
    fn to_bytes(&self) -> Option<Vec<u8>> {
        let mut damage = [wire::Rect::default(); MAX_DAMAGE];
        let rects = damage.get_mut(..self.damage.len())?;
        for (raw, rect) in rects.iter_mut().zip(&self.damage) {
            *raw = rect.to_wire();
        }
        let raw = wire::Frame {
            flags: self.flags,
            sequence: self.sequence,
            epoch: self.epoch,
            pts: self.time.map_or(0, |time| time.ns.cast_unsigned()),
            clock: self
                .time
                .map_or(types::frame::CLOCK_NONE, |time| time.clock.number()),
            duration: self.duration,
            transform: self.transform,
            bytes_used: self.bytes_used,
            crop: self.crop.unwrap_or_default().to_wire(),
            num_damage: u32::try_from(self.damage.len()).ok()?,
            damage,
            ..self.whole.known()
        };
        let rest = self.whole.bytes().get(wire::Frame::SIZE..);
        let bytes = [raw.to_bytes().as_slice(), rest.unwrap_or_default()].concat();
        (bytes.len() <= MAX_FRAME_RECORD).then_some(bytes)
    }
}

/// A frame that is handed over
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Push<'a> {
    /// What it is in: 1 to 4 exports, each once.
    pub buffers: Vec<&'a Export>,
    /// A VM that has so many frames of this one's and has not returned them is not given it;
    /// 0: all are.
    pub max_held: u32,
    /// What it is.
    pub record: FrameRecord,
}

impl<'a> Push<'a> {
    /// A frame in one buffer, for all consumers, of which nothing is said.
    #[must_use]
    pub fn new(buffer: &'a Export) -> Self {
        Self {
            buffers: vec![buffer],
            max_held: 0,
            record: FrameRecord::new(),
        }
    }

    /// As an entry of PUSH; `None` if it has more buffers or damage than that has room for.
    pub(crate) fn to_bytes(&self) -> Option<Vec<u8>> {
        let mut buffers = [0_i32; MAX_FRAME_BUFFERS];
        let used = buffers.get_mut(..self.buffers.len())?;
        for (descriptor, export) in used.iter_mut().zip(&self.buffers) {
            *descriptor = export.as_raw_fd();
        }
        let count = u32::try_from(self.buffers.len()).ok()?;
        let buffers = buffers.iter().flat_map(|fd| fd.to_ne_bytes());
        // Flags and what is reserved are zero.
        let rest = [count, self.max_held, 0, 0];
        let rest = rest.iter().flat_map(|number| number.to_ne_bytes());
        let record = self.record.to_bytes()?;
        Some(buffers.chain(rest).chain(record).collect())
    }
}

/// A frame that was handed over, beside what its event says
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct PushedFrame {
    /// The frame's buffers but the first.
    pub others: Vec<BufferId>,
    /// When the driver learned of it, nanoseconds of this VM's `CLOCK_MONOTONIC`.
    pub arrival: u64,
    /// What it is.
    pub record: FrameRecord,
}

impl PushedFrame {
    /// What `read()` of the device gave behind an event; `None` if it makes no sense.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let (head, record) = bytes.split_at_checked(abi::Pushed::SIZE)?;
        // It begins as the host has it.
        let (raw, arrival) = head.split_first_chunk()?;
        let raw = wire::Pushed::from_bytes(raw);
        let count = usize::try_from(raw.num_buffers).ok()?.checked_sub(1)?;
        Some(Self {
            others: raw
                .others
                .get(..count)?
                .iter()
                .map(|id| BufferId(id.b))
                .collect(),
            arrival: u64::from_ne_bytes(arrival.try_into().ok()?),
            record: FrameRecord::parse(record)?,
        })
    }
}

/// Another VM's buffer, whose frames this program is given
///
/// The device of which it was made reads an event [`Pushed`](crate::EventKind::Pushed) of each,
/// with this [`handle`](Self::handle). It is to be returned by
/// [`Device::give_back`](crate::Device::give_back); dropping this returns it, too, and does not
/// wait.
#[derive(Debug)]
pub struct Consumer {
    device: Arc<OwnedFd>,
    handle: u32,
    import: Import,
}

impl Consumer {
    pub(crate) fn new(device: Arc<OwnedFd>, handle: u32, import: Import) -> Self {
        Self {
            device,
            handle,
            import,
        }
    }

    /// Its number, as events have it.
    #[must_use]
    pub fn handle(&self) -> u64 {
        self.handle.into()
    }

    /// The buffer.
    #[must_use]
    pub fn import(&self) -> &Import {
        &self.import
    }

    pub(crate) fn entry(&self, frame: u64) -> abi::ReturnFrame {
        abi::ReturnFrame {
            handle: self.handle,
            reserved: 0,
            frame,
        }
    }
}

impl AsRawFd for Consumer {
    fn as_raw_fd(&self) -> RawFd {
        self.import.as_raw_fd()
    }
}

impl AsFd for Consumer {
    /// That of the [dma-buf](crate::DmaBuf).
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.import.as_fd()
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        let mut close = abi::Close {
            handle: self.handle,
            ..abi::Close::default()
        };
        // Fails only if somebody else closed it.
        let _ = ioctl::close(self.device.as_fd(), &mut close);
    }
}

/// The bytes of all entries of a PUSH, each as long as the longest.
pub(crate) fn entries(frames: &[Push<'_>]) -> Result<(Vec<u8>, usize)> {
    let op = Operation::Push;
    let entries: Option<Vec<Vec<u8>>> = frames.iter().map(Push::to_bytes).collect();
    let entries = entries.ok_or_else(|| Error::new(op, rustix::io::Errno::INVAL))?;
    let size = entries.iter().map(Vec::len).max().unwrap_or_default();
    let mut bytes = Vec::new();
    for mut entry in entries {
        entry.resize(size, 0);
        bytes.append(&mut entry);
    }
    Ok((bytes, size))
}

#[cfg(test)]
mod tests {
    use core::mem::offset_of;

    use super::*;

    #[test]
    fn a_record_comes_back_as_it_was_said_and_what_is_not_known_with_it() {
        let mut record = FrameRecord::new();
        record.sequence = 7;
        record.time = Some(FrameTime::new(Clock::Tai, -5));
        record.crop = Some(Rect {
            x: -1,
            width: 2,
            height: 3,
            ..Rect::default()
        });
        record.damage = vec![Rect::default(); 3];
        let mut bytes = record.to_bytes().unwrap();
        let parsed = FrameRecord::parse(&bytes).unwrap();
        assert_eq!((parsed.sequence, parsed.time), (7, record.time));
        assert_eq!((parsed.crop, &parsed.damage), (record.crop, &record.damage));
        bytes.extend([9; 16]);
        let later = FrameRecord::parse(&bytes).unwrap();
        assert_eq!(later.to_bytes(), Some(bytes));
    }

    #[test]
    fn an_entry_begins_as_the_kernel_has_it() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let export = Export::new(file.into(), BufferId([7; 16]), 1);
        let mut frame = Push::new(&export);
        frame.max_held = 3;
        let bytes = frame.to_bytes().unwrap();
        let field = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(field(0), export.as_raw_fd() as u32);
        assert_eq!(field(offset_of!(abi::PushFrame, num_buffers)), 1);
        assert_eq!(field(offset_of!(abi::PushFrame, max_held)), 3);
        assert_eq!(bytes.len(), abi::PushFrame::SIZE + wire::Frame::SIZE);
        frame.buffers = vec![&export; 5];
        assert_eq!(frame.to_bytes(), None);
    }

    #[test]
    fn too_much_damage_is_no_record() {
        let mut record = FrameRecord::new();
        record.damage = vec![Rect::default(); 17];
        assert_eq!(record.to_bytes(), None);
    }
}
