// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What `capture --verify` says of a frame's content to `view --verify`: in the last [`ROOM`] bytes
//! of the frame's first buffer, behind the picture. So it is handed over with that, and nobody
//! has to ask for it.
//!
//! | offset | type | |
//! |---|---|---|
//! | 0 | 4 bytes | `BSVF` |
//! | 4 | u16 | version, 1 |
//! | 6 | u16 | length of this structure, 32 |
//! | 8 | u64 | xxh3 of the bytes that the frame uses of each of its buffers, in their order |
//! | 16 | u64 | offset of the reply byte in the frame's first buffer |
//! | 24 | u8 | the reply byte |
//! | 25 | u8 | 1: a reply is wanted |
//! | 26 | 6 bytes | zero |
//!
//! Little endian. The last byte of the buffer is the reply byte, which is written by the viewer when it has shown the frame; that it
//! arrives proves that the way back works, too. It differs from what is in its place before.

use bufshare::Mapping;

use crate::content;
use crate::failure::Result;

/// Bytes that a frame's first buffer has for it and the reply byte.
pub(crate) const ROOM: usize = 64;
/// Length of the structure.
const SIZE: usize = 32;
const MAGIC: [u8; 4] = *b"BSVF";
const VERSION: u16 = 1;

/// Where the viewer answers, and with what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReplyByte {
    pub(crate) offset: u64,
    pub(crate) value: u8,
}

/// Of one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verification {
    pub(crate) hash: u64,
    pub(crate) reply: Option<ReplyByte>,
}

impl Verification {
    /// Puts it into a frame's first buffer.
    pub(crate) fn write(&self, first: &Mapping) -> Result<()> {
        content::write_at(first, first.len().saturating_sub(ROOM), &self.encode())
    }

    /// What another machine has put there. `None`: nothing that makes sense.
    pub(crate) fn read(first: &Mapping) -> Result<Option<Self>> {
        let mut bytes = [0; SIZE];
        if let Some(offset) = first.len().checked_sub(ROOM) {
            content::read_at(first, offset, &mut bytes)?;
        }
        Ok(Self::decode(&bytes, first.len()))
    }

    /// The bytes to send.
    fn encode(&self) -> Vec<u8> {
        let reply = self.reply.unwrap_or(ReplyByte {
            offset: 0,
            value: 0,
        });
        let mut out = Vec::with_capacity(SIZE);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&u16::try_from(SIZE).unwrap_or(u16::MAX).to_le_bytes());
        out.extend_from_slice(&self.hash.to_le_bytes());
        out.extend_from_slice(&reply.offset.to_le_bytes());
        out.push(reply.value);
        out.push(self.reply.is_some().into());
        out.extend_from_slice(&[0; 6]);
        out
    }

    /// Reads what another machine sent. `None`: nothing of this version, or a reply that is not
    /// within a buffer of `size` bytes.
    fn decode(blob: &[u8], size: usize) -> Option<Self> {
        if blob.len() != SIZE
            || !blob.starts_with(&MAGIC)
            || u16::from_le_bytes(bytes(blob, 4)?) != VERSION
            || usize::from(u16::from_le_bytes(bytes(blob, 6)?)) != SIZE
            || bytes::<6>(blob, 26)? != [0; 6]
        {
            return None;
        }
        let reply = ReplyByte {
            offset: u64::from_le_bytes(bytes(blob, 16)?),
            value: *blob.get(24)?,
        };
        let reply = match *blob.get(25)? {
            0 => None,
            1 if reply.offset < size as u64 => Some(reply),
            _ => return None,
        };
        Some(Self {
            hash: u64::from_le_bytes(bytes(blob, 8)?),
            reply,
        })
    }
}

fn bytes<const N: usize>(blob: &[u8], at: usize) -> Option<[u8; N]> {
    blob.get(at..)?.first_chunk().copied()
}

/// Where and with what a viewer of frame `number` is to answer, in the frame's first buffer:
/// behind the picture if there is room, else in its very last byte. No screen shows that of an
/// XRGB picture.
pub(crate) fn reply_byte(first: &Mapping, number: u64) -> Result<ReplyByte> {
    let offset = first.len().saturating_sub(1);
    let present = content::byte_at(first, offset)?;
    Ok(ReplyByte {
        offset: offset as u64,
        value: reply_value(number, present),
    })
}

/// The reply to frame `number`: differs from frame to frame and from what is in
/// its place now.
fn reply_value(number: u64, present: u8) -> u8 {
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

    const BYTES: usize = 1_228_800;

    fn verification() -> Verification {
        Verification {
            hash: 0x0123_4567_89ab_cdef,
            reply: Some(ReplyByte {
                offset: 1_228_799,
                value: 0xa5,
            }),
        }
    }

    #[test]
    fn it_comes_back_as_it_was() {
        let silent = Verification {
            reply: None,
            ..verification()
        };
        for one in [verification(), silent] {
            assert_eq!(Verification::decode(&one.encode(), BYTES), Some(one));
        }
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        let blob = verification().encode();
        assert_eq!(blob.len(), SIZE);
        assert_eq!(&blob[..8], b"BSVF\x01\0\x20\0");
        assert_eq!((blob[8], blob[16]), (0xef, 0xff));
        assert_eq!(blob[24..26], [0xa5, 1]);
    }

    #[test]
    fn a_reply_outside_of_the_buffer_is_refused() {
        let blob = verification().encode();
        assert_eq!(Verification::decode(&blob, BYTES - 1), None);
    }

    #[test]
    fn foreign_bytes_are_refused() {
        assert_eq!(Verification::decode(&[], BYTES), None);
        for (at, value) in [(0, b'X'), (4, 2), (6, 33), (25, 2), (26, 1), (31, 1)] {
            let mut blob = verification().encode();
            blob[at] = value;
            assert_eq!(Verification::decode(&blob, BYTES), None, "byte {at}");
        }
        let mut long = verification().encode();
        long.push(0);
        assert_eq!(Verification::decode(&long, BYTES), None);
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
