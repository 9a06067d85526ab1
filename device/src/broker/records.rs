// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Records side by side in one piece of memory, found by a key that is a part of them.
//!
//! With tens of thousands of records an operation costs what the caches do not hold. So
//! records do not lie in the nodes of a tree, nor each by itself: the index has five bytes
//! for each, and whoever knows a record's [`Slot`] needs no index. Records have no order;
//! what is listed in one has an index of its own.
//!
//! Only records are written down: the index is made anew from them.

use core::hash::{BuildHasher, Hash};
use core::num::NonZeroU32;

use hashbrown::HashTable;
use rustc_hash::FxBuildHasher;
use serde::{Deserialize, Serialize};
use slab::Slab;

/// Where a record is, as long as it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Slot(NonZeroU32);

impl Slot {
    fn new(place: usize) -> Option<Self> {
        let number = u32::try_from(place).ok()?.checked_add(1)?;
        NonZeroU32::new(number).map(Self)
    }

    fn place(self) -> usize {
        let place = self.0.get().saturating_sub(1);
        usize::try_from(place).unwrap_or(usize::MAX)
    }
}

/// What is found by a part of itself, which does not change.
pub(super) trait Record {
    /// No two records have the same. It is a counter's or random, so guests cannot choose it;
    /// they can choose which records stay, and so have those that collide found more slowly:
    /// a few microseconds with [`super::limits::Limits::default`], after millions of requests.
    type Key: Eq + Hash;

    fn key(&self) -> Self::Key;
}

/// See the module's text.
#[derive(Debug, Serialize, Deserialize)]
#[serde(
    from = "Written<T>",
    bound(deserialize = "T: Record + Deserialize<'de>")
)]
pub(super) struct Records<T> {
    slots: Slab<T>,
    #[serde(skip)]
    index: HashTable<Slot>,
}

#[derive(Deserialize)]
struct Written<T> {
    slots: Slab<T>,
}

impl<T: Record> From<Written<T>> for Records<T> {
    fn from(written: Written<T>) -> Self {
        let mut records = Self {
            slots: written.slots,
            index: HashTable::new(),
        };
        for (place, record) in &records.slots {
            if let Some(slot) = Slot::new(place) {
                let hash = |slot: &Slot| hash_in(&records.slots, *slot);
                records
                    .index
                    .insert_unique(hash_of(&record.key()), slot, hash);
            }
        }
        records
    }
}

impl<T> Default for Records<T> {
    fn default() -> Self {
        Self {
            slots: Slab::new(),
            index: HashTable::new(),
        }
    }
}

fn hash_of(key: &impl Hash) -> u64 {
    FxBuildHasher.hash_one(key)
}

fn hash_in<T: Record>(slots: &Slab<T>, slot: Slot) -> u64 {
    slots.get(slot.place()).map_or(0, |one| hash_of(&one.key()))
}

impl<T: Record> Records<T> {
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn find(&self, key: &T::Key) -> Option<Slot> {
        if self.slots.is_empty() {
            return None;
        }
        let same = |slot: &Slot| self.get(*slot).is_some_and(|one| one.key() == *key);
        self.index.find(hash_of(key), same).copied()
    }

    pub(super) fn get(&self, slot: Slot) -> Option<&T> {
        self.slots.get(slot.place())
    }

    /// To be changed, but not its key.
    pub(super) fn get_mut(&mut self, slot: Slot) -> Option<&mut T> {
        self.slots.get_mut(slot.place())
    }

    /// Adds a record, of whose key there is none. `None` if there are as many as slots have
    /// numbers: limits are lower.
    pub(super) fn insert(&mut self, record: T) -> Option<Slot> {
        let slot = Slot::new(self.slots.vacant_key())?;
        let hash = hash_of(&record.key());
        self.slots.insert(record);
        let slots = &self.slots;
        self.index
            .insert_unique(hash, slot, |slot| hash_in(slots, *slot));
        Some(slot)
    }

    pub(super) fn remove(&mut self, slot: Slot) -> Option<T> {
        let record = self.slots.try_remove(slot.place())?;
        let entry = self
            .index
            .find_entry(hash_of(&record.key()), |one| *one == slot);
        if let Ok(entry) = entry {
            entry.remove();
        }
        Some(record)
    }

    /// All, in no order that means anything.
    pub(super) fn into_iter(self) -> impl Iterator<Item = T> {
        self.slots.into_iter().map(|(_, record)| record)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Slot, &T)> {
        self.slots
            .iter()
            .filter_map(|(place, record)| Some((Slot::new(place)?, record)))
    }

    /// Whether each is found by its key.
    #[cfg(test)]
    pub(super) fn check(&self) -> bool {
        self.index.len() == self.len()
            && self
                .iter()
                .all(|(slot, one)| self.find(&one.key()) == Some(slot))
    }
}
