// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Free ranges of one shared-memory region.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::broker::refcount;

/// Which bytes of a region are free. First fit, neighbours merged.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct FreeRanges {
    /// Start to length, both bytes; no two touch.
    free: BTreeMap<u64, u64>,
}

impl FreeRanges {
    /// A region of which `size` bytes are free.
    pub(super) fn new(size: u64) -> Self {
        let mut free = BTreeMap::new();
        if size > 0 {
            free.insert(0, size);
        }
        Self { free }
    }

    /// Takes `len` bytes and returns where they begin.
    pub(super) fn take(&mut self, len: u64) -> Option<u64> {
        if len == 0 {
            return None;
        }
        let (start, room) = self
            .free
            .iter()
            .find(|(_, room)| **room >= len)
            .map(|(start, room)| (*start, *room))?;
        self.free.remove(&start);
        if room > len {
            self.free
                .insert(start.checked_add(len)?, room.checked_sub(len)?);
        }
        Some(start)
    }

    /// Gives `len` bytes at `start` back. They were taken before.
    pub(super) fn give(&mut self, start: u64, len: u64) {
        let after = start.saturating_add(len);
        let overlaps = |(at, room): (&u64, &u64)| at.saturating_add(*room) > start;
        if self.free.range(..after).next_back().is_some_and(overlaps) {
            // Else it might be taken twice.
            return refcount::wrong("free bytes");
        }
        let mut start = start;
        let mut len = len;
        if let Some((&before, &room)) = self.free.range(..start).next_back()
            && before.saturating_add(room) == start
        {
            self.free.remove(&before);
            start = before;
            len = len.saturating_add(room);
        }
        let end = start.saturating_add(len);
        if let Some(room) = self.free.remove(&end) {
            len = len.saturating_add(room);
        }
        self.free.insert(start, len);
    }

    /// Whether a range of `len` bytes is free.
    pub(super) fn fits(&self, len: u64) -> bool {
        self.free.values().any(|room| *room >= len)
    }

    /// How many free ranges there are.
    #[cfg(test)]
    pub(super) fn ranges(&self) -> usize {
        self.free.len()
    }

    /// Free bytes in all.
    #[cfg(test)]
    pub(super) fn total(&self) -> u64 {
        self.free.values().fold(0, |sum, n| sum.saturating_add(*n))
    }
}

#[cfg(test)]
#[allow(
    clippy::arithmetic_side_effects,
    reason = "a test that overflows fails"
)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn given_back_ranges_merge_with_both_neighbours() {
        let mut free = FreeRanges::new(0x4000);
        let a = free.take(0x1000).unwrap();
        let b = free.take(0x1000).unwrap();
        let c = free.take(0x1000).unwrap();
        free.give(a, 0x1000);
        free.give(c, 0x1000);
        assert!(!free.fits(0x4000));
        free.give(b, 0x1000);
        assert!(free.fits(0x4000));
    }

    proptest! {
        #[test]
        fn taken_ranges_never_overlap_and_nothing_is_lost(
            ops in prop::collection::vec((any::<bool>(), 1u64..9, any::<prop::sample::Index>()), 1..200)
        ) {
            const SIZE: u64 = 64;
            let mut free = FreeRanges::new(SIZE);
            let mut taken: Vec<(u64, u64)> = Vec::new();
            for (take, len, at) in ops {
                if take {
                    if let Some(start) = free.take(len) {
                        prop_assert!(start + len <= SIZE);
                        for (s, l) in &taken {
                            prop_assert!(start + len <= *s || s + l <= start);
                        }
                        taken.push((start, len));
                    }
                } else if !taken.is_empty() {
                    let (s, l) = taken.swap_remove(at.index(taken.len()));
                    free.give(s, l);
                }
                let held: u64 = taken.iter().map(|(_, l)| l).sum();
                prop_assert_eq!(free.total() + held, SIZE);
            }
        }
    }
}
