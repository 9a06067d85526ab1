// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a producer says of a frame

use std::hash::{Hash, Hasher};

use bufshare_protocol::limits::{MAX_DAMAGE, MAX_FRAME_BUFFERS, MAX_FRAME_RECORD};
use bufshare_protocol::{types, wire};

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

/// What the colours of a frame are, by ITU-T H.273; 0 everywhere: not said
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Colour {
    /// `ColourPrimaries`.
    pub primaries: u8,
    /// `TransferCharacteristics`.
    pub transfer: u8,
    /// `MatrixCoefficients`.
    pub matrix: u8,
    /// 1: limited, 2: full.
    pub range: u8,
    /// One more than `ChromaLocType`.
    pub chroma_location: u8,
}

impl Colour {
    fn from_wire(raw: &wire::Frame) -> Self {
        Self {
            primaries: raw.colour_primaries,
            transfer: raw.transfer_characteristics,
            matrix: raw.matrix_coefficients,
            range: raw.full_range,
            chroma_location: raw.chroma_location,
        }
    }

    fn to_wire(self, frame: wire::Frame) -> wire::Frame {
        wire::Frame {
            colour_primaries: self.primaries,
            transfer_characteristics: self.transfer,
            matrix_coefficients: self.matrix,
            full_range: self.range,
            chroma_location: self.chroma_location,
            ..frame
        }
    }
}

/// How bright a frame is, and the display that it was made for; 0 everywhere: not said
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Luminance {
    /// x and y of red, green, blue and white of that display, each in 0.00002 (SMPTE ST 2086).
    pub mastering: [u16; 8],
    /// Of that display, cd/m2.
    pub max: u32,
    /// Of that display, 0.0001 cd/m2.
    pub min: u32,
    /// Of the brightest pixel, cd/m2.
    pub max_cll: u16,
    /// Of the frame that is brightest on average, cd/m2.
    pub max_fall: u16,
}

impl Luminance {
    fn from_wire(raw: &wire::Frame) -> Self {
        Self {
            mastering: raw.mastering,
            max: raw.max_luminance,
            min: raw.min_luminance,
            max_cll: raw.max_cll,
            max_fall: raw.max_fall,
        }
    }

    fn to_wire(self, frame: wire::Frame) -> wire::Frame {
        wire::Frame {
            mastering: self.mastering,
            max_luminance: self.max,
            min_luminance: self.min,
            max_cll: self.max_cll,
            max_fall: self.max_fall,
            ..frame
        }
    }
}

/// What a producer says of a frame
///
/// Nothing of it has to be said. What a newer version says beyond this is handed on when a
/// record that was received is pushed again, and is otherwise ignored. Source: SPEC.md,
/// section 6.6.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct FrameRecord {
    /// Bits of `FRAME_*`, as [`FRAME_LAST`](crate::FRAME_LAST).
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
    /// What the colours are.
    pub colour: Colour,
    /// How bright it is, and what it was made for.
    pub luminance: Luminance,
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

    /// A record by its bytes, as the kernel gives them and `struct bufshare_frame_record` of
    /// `bufshare.h` has them; what is missing is zero. `None`: they are more than 768.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let record = types::FrameRecord::received(bytes).ok()?;
        let raw = record.known();
        // More than there can be: a later version's, which says nothing here.
        let damage = usize::try_from(raw.num_damage).ok();
        let damage = damage.and_then(|damage| raw.damage.get(..damage));
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
            colour: Colour::from_wire(&raw),
            luminance: Luminance::from_wire(&raw),
            damage: damage
                .unwrap_or_default()
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

    /// Its bytes, as of [`parse`](Self::parse); `None` if there is more damage than a record has
    /// room for.
    #[must_use]
    pub fn to_bytes(&self) -> Option<Vec<u8>> {
        self.with_damage(&self.damage)
    }

    /// As [`to_bytes`](Self::to_bytes), with this damage instead.
    fn with_damage(&self, changed: &[Rect]) -> Option<Vec<u8>> {
        let mut damage = [wire::Rect::default(); MAX_DAMAGE];
        let rects = damage.get_mut(..changed.len())?;
        for (raw, rect) in rects.iter_mut().zip(changed) {
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
            num_damage: u32::try_from(changed.len()).ok()?,
            damage,
            ..self
                .luminance
                .to_wire(self.colour.to_wire(self.whole.known()))
        };
        let rest = self.whole.bytes().get(wire::Frame::SIZE..);
        let bytes = [raw.to_bytes().as_slice(), rest.unwrap_or_default()].concat();
        (bytes.len() <= MAX_FRAME_RECORD).then_some(bytes)
    }
}

/// By what goes over to another VM, and the damage for which a record has no room.
impl PartialEq for FrameRecord {
    fn eq(&self, other: &Self) -> bool {
        self.damage == other.damage && self.with_damage(&[]) == other.with_damage(&[])
    }
}

impl Eq for FrameRecord {}

impl Hash for FrameRecord {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.damage.hash(state);
        self.with_damage(&[]).hash(state);
    }
}

#[cfg(test)]
mod tests {
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
        record.colour.matrix = 9;
        record.luminance.max_cll = 1000;
        let mut bytes = record.to_bytes().unwrap();
        let parsed = FrameRecord::parse(&bytes).unwrap();
        assert_eq!((parsed.sequence, parsed.time), (7, record.time));
        assert_eq!((parsed.crop, &parsed.damage), (record.crop, &record.damage));
        assert_eq!(parsed, record);
        bytes.extend([9; 16]);
        let later = FrameRecord::parse(&bytes).unwrap();
        assert_eq!(later.to_bytes(), Some(bytes));
    }

    #[test]
    fn a_record_that_is_pushed_again_keeps_all_that_was_not_changed() {
        // Nothing that is known has a wrong value; what is not has some.
        let mut bytes = wire::Frame {
            must_know: 4,
            flags: 1 << 31,
            sequence: 7,
            max_fall: 3,
            clock: types::frame::CLOCK_TAI,
            num_damage: 1,
            ..wire::Frame::default()
        }
        .to_bytes()
        .to_vec();
        bytes.extend([9; 16]);
        let mut again = FrameRecord::parse(&bytes).unwrap();
        again.sequence = 8;
        again.damage.clear();
        let pushed = again.to_bytes().unwrap();
        let (known, rest) = pushed.split_at(wire::Frame::SIZE);
        assert_eq!(rest, [9; 16]);
        let known = wire::Frame::from_bytes(known.try_into().unwrap());
        let wanted = wire::Frame {
            sequence: 8,
            num_damage: 0,
            ..wire::Frame::from_bytes(bytes.first_chunk().unwrap())
        };
        assert_eq!(known.to_bytes(), wanted.to_bytes());
        assert_ne!(again, FrameRecord::parse(&bytes).unwrap());
    }

    #[test]
    fn records_of_too_much_damage_are_equal_if_all_of_it_is() {
        let of = |sequence, damage| {
            let mut record = FrameRecord::new();
            (record.sequence, record.damage) = (sequence, vec![damage; 17]);
            record
        };
        let other = Rect {
            x: 1,
            ..Rect::default()
        };
        let record = of(1, Rect::default());
        assert_eq!(record, record.clone());
        assert_ne!(record, of(2, Rect::default()));
        assert_ne!(record, of(1, other));
        assert_ne!(record, FrameRecord::new());
    }

    #[test]
    fn a_record_of_a_later_version_is_passed_on_and_its_clock_is_unknown() {
        let bytes = [0xff; MAX_FRAME_RECORD];
        let record = FrameRecord::parse(&bytes).unwrap();
        assert!(!record.is_understood());
        assert_eq!(
            record.time.map(|time| time.clock),
            Some(Clock::Unknown(u32::MAX))
        );
        assert!(record.damage.is_empty());
        assert_eq!(FrameRecord::parse(&[0; MAX_FRAME_RECORD + 8]), None);
    }

    #[test]
    fn too_much_damage_is_no_record() {
        let mut record = FrameRecord::new();
        record.damage = vec![Rect::default(); 17];
        assert_eq!(record.to_bytes(), None);
    }
}
