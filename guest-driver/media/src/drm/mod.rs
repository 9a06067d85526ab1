// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Cards and their screens
//!
//! A [`Screen`] is the one that shows pictures best; a [`Head`] is any one of a card's. Where no
//! card takes a picture's dma-buf, the picture is read by the CPU through a [`Memory`].

mod canvas;
mod card;
mod screen;

pub use card::{Head, Imported, dumb_dmabuf};
pub use screen::{Screen, Shown};

use crate::error::Result;

/// Rows of pixels in one of a picture's memories
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Which memory.
    pub buffer: u32,
    /// Where the first row begins, bytes.
    pub first: u64,
    /// Bytes from a row to the next.
    pub stride: u64,
    /// Bytes to be read of each; not more than the stride.
    pub len: usize,
}

impl Rows {
    /// Where a row begins; beyond all memory if it would be beyond 64 bits.
    #[must_use]
    pub fn start(&self, row: u32) -> u64 {
        let from = u64::from(row).saturating_mul(self.stride);
        from.saturating_add(self.first)
    }
}

/// The memory of a picture, for who copies it
pub trait Memory {
    /// Reads the rows of these `numbers` and passes each on, all within one CPU access. What is
    /// not within the memory is an error, as are those of `take`.
    fn read_rows(
        &self,
        rows: Rows,
        numbers: &mut dyn Iterator<Item = u32>,
        take: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()>;
}
