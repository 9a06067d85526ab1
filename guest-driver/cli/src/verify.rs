// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What `capture` states for `view` about the frame in a buffer, as opaque metadata.
//!
//! | offset | type | |
//! |---|---|---|
//! | 0 | 4 bytes | `BSFR` |
//! | 4 | u16 | version, 1 |
//! | 6 | u16 | length of this structure, 64 and 24 for each part |
//! | 8 | u64 | frame number, from 1 |
//! | 16 | u32 | the driver's sequence number |
//! | 20 | u32 | flags: 1 a reply is wanted, 2 the last frame, 4 there is no hash |
//! | 24 | u64 | xxh3 of the frame's bytes, or 0 |
//! | 32 | u64 | how many bytes of it are in this buffer, from its start |
//! | 40 | u64 | offset of the reply byte |
//! | 48 | u8 | the reply byte |
//! | 49 | 7 bytes | zero |
//! | 56 | u64 | the run: frame numbers of different runs do not compare |
//! | 64 | parts | up to three more buffers of the frame: id, 16 bytes; how many bytes, u64 |
//!
//! Little endian. The reply byte is written by the viewer when it has shown the frame; that it
//! arrives proves that the way back works, too.

use bufshare::BufferId;

/// Length of the structure without parts.
const SIZE: usize = 64;
/// Length of a part.
const PART: usize = 24;
/// A frame has up to four buffers.
const MAX_PARTS: usize = 3;
const MAGIC: [u8; 4] = *b"BSFR";
const VERSION: u16 = 1;
const FLAG_REPLY: u32 = 1;
const FLAG_LAST: u32 = 2;
const FLAG_NO_HASH: u32 = 4;

/// Where the viewer answers, and with what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReplyByte {
    pub(crate) offset: u64,
    pub(crate) value: u8,
}

/// Another buffer of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) id: BufferId,
    pub(crate) bytes: u64,
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) run: u64,
    pub(crate) number: u64,
    pub(crate) sequence: u32,
    pub(crate) last: bool,
    /// Where one was asked for.
    pub(crate) hash: Option<u64>,
    /// In the buffer that announces it.
    pub(crate) bytes: u64,
    pub(crate) parts: Vec<Part>,
    pub(crate) reply: Option<ReplyByte>,
}

impl Frame {
    /// The bytes to send.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let reply = self.reply.unwrap_or(ReplyByte {
            offset: 0,
            value: 0,
        });
        let mut flags = 0;
        if self.reply.is_some() {
            flags |= FLAG_REPLY;
        }
        if self.last {
            flags |= FLAG_LAST;
        }
        if self.hash.is_none() {
            flags |= FLAG_NO_HASH;
        }
        let len = SIZE.saturating_add(self.parts.len().saturating_mul(PART));
        let mut out = Vec::with_capacity(len);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&u16::try_from(len).unwrap_or(u16::MAX).to_le_bytes());
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&flags.to_le_bytes());
        out.extend_from_slice(&self.hash.unwrap_or(0).to_le_bytes());
        out.extend_from_slice(&self.bytes.to_le_bytes());
        out.extend_from_slice(&reply.offset.to_le_bytes());
        out.push(reply.value);
        out.extend_from_slice(&[0; 7]);
        out.extend_from_slice(&self.run.to_le_bytes());
        for part in &self.parts {
            out.extend_from_slice(&part.id.0);
            out.extend_from_slice(&part.bytes.to_le_bytes());
        }
        out
    }

    /// Reads what another machine sent. None: not a frame of this version, or one
    /// that does not fit a buffer of `size` bytes.
    pub(crate) fn decode(blob: &[u8], size: u64) -> Option<Self> {
        let (fixed, rest) = blob.split_at_checked(SIZE)?;
        let (parts, []) = rest.as_chunks::<PART>() else {
            return None;
        };
        if parts.len() > MAX_PARTS
            || !fixed.starts_with(&MAGIC)
            || u16::from_le_bytes(bytes(blob, 4)?) != VERSION
            || usize::from(u16::from_le_bytes(bytes(blob, 6)?)) != blob.len()
            || blob.get(49..56)?.iter().any(|byte| *byte != 0)
        {
            return None;
        }
        let flags = u32::from_le_bytes(bytes(blob, 20)?);
        if flags & !(FLAG_REPLY | FLAG_LAST | FLAG_NO_HASH) != 0 {
            return None;
        }
        let reply = ReplyByte {
            offset: u64::from_le_bytes(bytes(blob, 40)?),
            value: *blob.get(48)?,
        };
        let hash = u64::from_le_bytes(bytes(blob, 24)?);
        let frame = Self {
            run: u64::from_le_bytes(bytes(blob, 56)?),
            number: u64::from_le_bytes(bytes(blob, 8)?),
            sequence: u32::from_le_bytes(bytes(blob, 16)?),
            last: flags & FLAG_LAST != 0,
            hash: (flags & FLAG_NO_HASH == 0).then_some(hash),
            bytes: u64::from_le_bytes(bytes(blob, 32)?),
            parts: parts.iter().map(part).collect::<Option<_>>()?,
            reply: (flags & FLAG_REPLY != 0).then_some(reply),
        };
        let reply_fits = frame.reply.is_none_or(|reply| reply.offset < size);
        (frame.number != 0 && frame.bytes <= size && reply_fits).then_some(frame)
    }
}

fn part(raw: &[u8; PART]) -> Option<Part> {
    Some(Part {
        id: BufferId(bytes(raw, 0)?),
        bytes: u64::from_le_bytes(bytes(raw, 16)?),
    })
}

fn bytes<const N: usize>(blob: &[u8], at: usize) -> Option<[u8; N]> {
    blob.get(at..)?.first_chunk().copied()
}

/// The reply to frame `number`: differs from frame to frame and from what is in
/// its place now.
pub(crate) fn reply_value(number: u64, present: u8) -> u8 {
    let value = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0];
    if value == present {
        value.wrapping_add(1)
    } else {
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame() -> Frame {
        Frame {
            run: 0x0011_2233_4455_6677,
            number: 7,
            sequence: 9,
            last: true,
            hash: Some(0x0123_4567_89ab_cdef),
            bytes: 1_228_800,
            reply: Some(ReplyByte {
                offset: 1_228_799,
                value: 0xa5,
            }),
            parts: Vec::new(),
        }
    }

    #[test]
    fn a_frame_comes_back_as_it_was() {
        assert_eq!(Frame::decode(&frame().encode(), 1_228_800), Some(frame()));
        let silent = Frame {
            reply: None,
            last: false,
            hash: None,
            ..frame()
        };
        assert_eq!(Frame::decode(&silent.encode(), 1_228_800), Some(silent));
        let part = |byte| Part {
            id: BufferId([byte; 16]),
            bytes: byte.into(),
        };
        for parts in [vec![part(1)], vec![part(1), part(2), part(3)]] {
            let whole = Frame { parts, ..frame() };
            assert_eq!(Frame::decode(&whole.encode(), 1_228_800), Some(whole));
        }
        let parts = vec![part(1); 4];
        let wide = Frame { parts, ..frame() };
        assert_eq!(Frame::decode(&wide.encode(), 1_228_800), None);
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        let blob = frame().encode();
        assert_eq!(blob.len(), SIZE);
        assert_eq!(&blob[..8], b"BSFR\x01\0\x40\0");
        assert_eq!(blob[8], 7);
        assert_eq!(blob[20], 3);
        assert_eq!(blob[24], 0xef);
        assert_eq!(blob[48], 0xa5);
        assert_eq!(blob[56..58], [0x77, 0x66]);
    }

    #[test]
    fn what_does_not_fit_the_buffer_is_refused() {
        assert_eq!(Frame::decode(&frame().encode(), 1_228_799), None);
        let outside = Frame {
            reply: Some(ReplyByte {
                offset: 1_228_800,
                value: 0,
            }),
            ..frame()
        };
        assert_eq!(Frame::decode(&outside.encode(), 1_228_800), None);
    }

    #[test]
    fn foreign_bytes_are_refused() {
        assert_eq!(Frame::decode(&[], 1_228_800), None);
        for (at, value) in [(0, b'X'), (4, 2), (6, 65), (20, 8), (49, 1), (55, 1)] {
            let mut blob = frame().encode();
            blob[at] = value;
            assert_eq!(Frame::decode(&blob, 1_228_800), None, "byte {at}");
        }
        let mut long = frame().encode();
        long.push(0);
        assert_eq!(Frame::decode(&long, 1_228_800), None);
        assert_eq!(
            Frame::decode(
                &Frame {
                    number: 0,
                    ..frame()
                }
                .encode(),
                1_228_800
            ),
            None
        );
    }

    #[test]
    fn a_reply_is_never_what_is_there_already() {
        for number in 1..1000 {
            for present in [0, 0x7f, 0xff, reply_value(number, 0)] {
                assert_ne!(reply_value(number, present), present);
            }
        }
    }
}
