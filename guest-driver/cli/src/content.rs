// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Filling and hashing what is in a dma-buf.

use bufshare::{DmaBuf, Mapping, Rights};
use sha2::{Digest, Sha256};
use xxhash_rust::xxh3::Xxh3;

use crate::args::HashKind;
use crate::failure::Result;

/// Bytes written at a time.
const CHUNK: usize = 64 * 1024;

/// What a buffer is filled with.
pub(crate) enum Pattern<'a> {
    Repeat(&'a [u8]),
    Seed(u64),
}

impl Pattern<'_> {
    /// Writes the bytes from `offset` on, a multiple of eight.
    fn bytes(&self, offset: u64, out: &mut [u8]) {
        match self {
            Self::Repeat(bytes) => {
                let skip = offset.checked_rem(bytes.len() as u64).unwrap_or(0);
                let skip = usize::try_from(skip).unwrap_or(0);
                for (to, from) in out.iter_mut().zip(bytes.iter().cycle().skip(skip)) {
                    *to = *from;
                }
            }
            Self::Seed(seed) => {
                for (index, word) in (offset / 8..).zip(out.chunks_mut(8)) {
                    let value = splitmix64(*seed, index).to_le_bytes();
                    for (to, from) in word.iter_mut().zip(value) {
                        *to = from;
                    }
                }
            }
        }
    }
}

/// Number `index` of the generator SplitMix64 started at `seed`.
fn splitmix64(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Fills all of a buffer; answers its hashes.
pub(crate) fn fill(buffer: &DmaBuf, pattern: &Pattern<'_>) -> Result<(String, String)> {
    let mapping = buffer.map(Rights::RW)?;
    let access = mapping.begin(Rights::WRITE)?;
    let (mut sha256, mut xxh3) = (Sha256::new(), Xxh3::new());
    let mut chunk = vec![0; CHUNK];
    for (offset, count) in pieces(mapping.len()) {
        let bytes = chunk.get_mut(..count).unwrap_or_default();
        pattern.bytes(offset as u64, bytes);
        access.write_at(offset, bytes)?;
        sha256.update(&*bytes);
        xxh3.update(bytes);
    }
    access.finish()?;
    Ok((hex(&sha256.finalize()), digits(xxh3.digest())))
}

/// Hash of the first bytes of each of these, one behind the other; each is read within one begin
/// and end of CPU access. That one is revoked meanwhile is an error.
pub(crate) fn xxh3<'a>(parts: impl IntoIterator<Item = (&'a Mapping, usize)>) -> Result<u64> {
    let mut hash = Xxh3::new();
    let mut chunk = vec![0; CHUNK];
    for (mapping, len) in parts {
        let access = mapping.begin(Rights::READ)?;
        for (offset, count) in pieces(len) {
            let bytes = chunk.get_mut(..count).unwrap_or_default();
            access.read_at_checked(offset, bytes)?;
            hash.update(bytes);
        }
        access.finish()?;
    }
    Ok(hash.digest())
}

/// A hash of either kind that is fed piece by piece.
pub(crate) enum Hasher {
    Sha256(Sha256),
    Xxh3(Box<Xxh3>),
}

impl Hasher {
    pub(crate) fn new(kind: HashKind) -> Self {
        match kind {
            HashKind::Sha256 => Self::Sha256(Sha256::new()),
            HashKind::Xxh3 => Self::Xxh3(Box::default()),
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Xxh3(hash) => hash.update(bytes),
        }
    }

    /// As (sha256, xxh3), one of them.
    pub(crate) fn finish(self) -> (Option<String>, Option<String>) {
        match self {
            Self::Sha256(hash) => (Some(hex(&hash.finalize())), None),
            Self::Xxh3(hash) => (None, Some(digits(hash.digest()))),
        }
    }
}

/// Copies the first `len` bytes out, piece by piece.
pub(crate) fn each_chunk(
    mapping: &Mapping,
    len: usize,
    take: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let access = mapping.begin(Rights::READ)?;
    access.chunks(0, len, take)?;
    access.finish()?;
    Ok(())
}

/// One byte. That its buffer is revoked meanwhile is an error.
pub(crate) fn byte_at(mapping: &Mapping, offset: usize) -> Result<u8> {
    let mut byte = [0];
    read_at(mapping, offset, &mut byte)?;
    let [byte] = byte;
    Ok(byte)
}

/// Reads bytes. That their buffer is revoked meanwhile is an error.
pub(crate) fn read_at(mapping: &Mapping, offset: usize, bytes: &mut [u8]) -> Result<()> {
    let access = mapping.begin(Rights::READ)?;
    access.read_at_checked(offset, bytes)?;
    access.finish()?;
    Ok(())
}

/// Writes bytes. That their buffer is revoked meanwhile is an error.
pub(crate) fn write_at(mapping: &Mapping, offset: usize, bytes: &[u8]) -> Result<()> {
    let access = mapping.begin(Rights::WRITE)?;
    access.write_at_checked(offset, bytes)?;
    access.finish()?;
    Ok(())
}

/// (offset, length) of the chunks of `len` bytes.
fn pieces(len: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..len)
        .step_by(CHUNK)
        .map(move |offset| (offset, CHUNK.min(len.saturating_sub(offset))))
}

/// An xxh3 as it is printed.
pub(crate) fn digits(xxh3: u64) -> String {
    format!("{xxh3:016x}")
}

/// Digits of a hash.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_is_splitmix64() {
        // The published first values for seed 1234567.
        let values: Vec<u64> = (0..3).map(|index| splitmix64(1_234_567, index)).collect();
        assert_eq!(
            values,
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423
            ]
        );
    }

    #[test]
    fn a_pattern_does_not_depend_on_the_chunks() {
        for pattern in [Pattern::Repeat(&[1, 2, 3]), Pattern::Seed(7)] {
            let mut whole = [0; 96];
            pattern.bytes(0, &mut whole);
            let mut parts = [0; 96];
            for (index, part) in parts.chunks_mut(16).enumerate() {
                pattern.bytes(index as u64 * 16, part);
            }
            assert_eq!(whole, parts);
        }
    }

    #[test]
    fn pieces_cover_everything_once() {
        assert_eq!(pieces(0).count(), 0);
        let all: Vec<_> = pieces(CHUNK * 2 + 5).collect();
        assert_eq!(all, [(0, CHUNK), (CHUNK, CHUNK), (CHUNK * 2, 5)]);
    }
}
