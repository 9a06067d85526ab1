// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Frames: what is handed over

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::limits::{MAX_FRAME_BUFFERS, MAX_FRAME_RECORD};
use crate::status::Status;
use crate::types::BufferId;
use crate::wire::{self, Wire as _};

/// Clock of a frame's time: it has none.
pub const CLOCK_NONE: u32 = 0;
/// Clock of a frame's time: the exporter's, from some start on.
pub const CLOCK_MONOTONIC: u32 = 1;
/// Clock of a frame's time: UTC, as far as the exporter knows it.
pub const CLOCK_REALTIME: u32 = 2;
/// Clock of a frame's time: TAI, as far as the exporter knows it.
pub const CLOCK_TAI: u32 = 3;

/// Flag of a frame: it does not follow the one before.
pub const FRAME_DISCONT: u32 = 0x1;
/// Flag of a frame: the contents may be wrong.
pub const FRAME_CORRUPTED: u32 = 0x2;
/// Flag of a frame: there are no contents.
pub const FRAME_GAP: u32 = 0x4;
/// Flag of a frame: no frame follows.
pub const FRAME_LAST: u32 = 0x8;
/// Flag of a frame: two fields, line by line.
pub const FRAME_INTERLACED: u32 = 0x10;
/// Flag of a frame: the field of the second line is the first.
pub const FRAME_BOTTOM_FIRST: u32 = 0x20;
/// Flag of a frame: its time is the end of the exposure.
pub const FRAME_EXPOSURE_END: u32 = 0x40;

/// The most that its `transform` may be.
const LAST_TRANSFORM: u32 = 7;

/// The most that its `full_range` may be.
const LAST_RANGE: u8 = 2;

/// What its producer says of a frame
///
/// It is handed on as it came, with what is not known here at its end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct FrameRecord(Box<[u8]>);

impl FrameRecord {
    /// Checks a record that somebody wants to hand over.
    ///
    /// # Errors
    /// [`Status::TooLarge`] if it is over [`MAX_FRAME_RECORD`], [`Status::Unsupported`] if a
    /// reserved field is set, [`Status::BadMeta`] if a value is out of its range.
    pub fn new(bytes: &[u8]) -> Result<Self, Status> {
        let record = Self::received(bytes)?;
        let raw = record.known();
        if raw.reserved != <[u8; 3]>::default() {
            return Err(Status::Unsupported);
        }
        let damage = usize::try_from(raw.num_damage).ok();
        let damage = damage.and_then(|count| raw.damage.split_at_checked(count));
        let (_, unused) = damage.ok_or(Status::BadMeta)?;
        let fits = raw.clock <= CLOCK_TAI
            && raw.transform <= LAST_TRANSFORM
            && raw.full_range <= LAST_RANGE
            && unused.iter().all(|rect| *rect == wire::Rect::default());
        fits.then_some(record).ok_or(Status::BadMeta)
    }

    /// A record that was handed over, perhaps by somebody who knows more: its values may be
    /// out of the ranges that are known here.
    ///
    /// # Errors
    /// [`Status::TooLarge`] if it is over [`MAX_FRAME_RECORD`].
    pub fn received(bytes: &[u8]) -> Result<Self, Status> {
        if bytes.len() > MAX_FRAME_RECORD {
            return Err(Status::TooLarge);
        }
        Ok(Self(bytes.into()))
    }

    /// As its producer sent it.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// What is known of it here; what is missing is zero.
    #[must_use]
    pub fn known(&self) -> wire::Frame {
        let known = self.0.get(..wire::Frame::SIZE).unwrap_or(&self.0);
        wire::Frame::grown(known).unwrap_or_default()
    }

    /// Whether what its buffers have of contents fits into them, of these sizes, bytes.
    #[must_use]
    pub fn fits(&self, sizes: &[u64]) -> bool {
        let used = self.known().bytes_used;
        let mut buffers = used.iter().zip(sizes);
        buffers.all(|(used, size)| u64::from(*used) <= *size)
            && used.iter().skip(sizes.len()).all(|used| *used == 0)
    }
}

/// One frame of a PUSH
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Push {
    /// 1 to [`MAX_FRAME_BUFFERS`] buffers; planes are in which their image says.
    pub buffers: Vec<BufferId>,
    /// A consumer whose peer has so many frames of the asker, of the same stream or of none, is
    /// not given it; 0: all are.
    pub max_held: u32,
    /// What it is.
    pub record: FrameRecord,
}

impl Push {
    /// Checks an entry of PUSH, without its record.
    pub(crate) fn from_wire(raw: &wire::Push, record: &[u8]) -> Result<Self, Status> {
        if raw.flags != 0 {
            return Err(Status::Unsupported);
        }
        let count = usize::try_from(raw.num_buffers).ok();
        let buffers = count.and_then(|count| raw.buffers.split_at_checked(count));
        let (used, unused) = buffers.ok_or(Status::BadField)?;
        if used.is_empty() || unused.iter().any(|id| *id != wire::Id::default()) {
            return Err(Status::BadField);
        }
        Ok(Self {
            buffers: used.iter().map(BufferId::from_wire).collect(),
            max_held: raw.max_held,
            record: FrameRecord::new(record)?,
        })
    }

    /// Buffers beyond [`MAX_FRAME_BUFFERS`] are counted but left out, so that the receiver
    /// refuses the frame.
    pub(crate) fn to_wire(&self) -> wire::Push {
        let mut buffers = [wire::Id::default(); MAX_FRAME_BUFFERS];
        for (raw, id) in buffers.iter_mut().zip(&self.buffers) {
            *raw = id.to_wire();
        }
        wire::Push {
            buffers,
            num_buffers: u32::try_from(self.buffers.len()).unwrap_or(u32::MAX),
            max_held: self.max_held,
            flags: 0,
            record_size: u32::try_from(self.record.bytes().len()).unwrap_or(u32::MAX),
        }
    }
}

/// What PUSHED says beside what all events say
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Pushed {
    /// The frame's buffers but the first.
    pub others: Vec<BufferId>,
    /// Sequence number of the first one's metadata when it was pushed.
    pub meta_seq: u64,
    /// What it is.
    pub record: FrameRecord,
}
