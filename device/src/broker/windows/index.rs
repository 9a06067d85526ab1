// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which windows are of a backing, idle, waiting for a barrier, or on their way out: found
//! without a look at all of them.

#[cfg(test)]
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::{State, Window, WindowId};
use crate::broker::backing::BackingId;
use crate::broker::types::EffectId;

/// Windows by what is asked of them. Follows the table by [`Index::add`] and
/// [`Index::remove`] around each change of a window.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Index {
    of_backing: BTreeSet<(BackingId, WindowId)>,
    /// By the time since when they are.
    idle: BTreeSet<(u64, WindowId)>,
    /// By the effect whose end has to be followed by a barrier.
    awaiting: BTreeSet<(EffectId, WindowId)>,
    /// Their mappings and place will be free, or with users.
    leaving: BTreeSet<WindowId>,
}

impl Index {
    pub(super) fn add(&mut self, id: WindowId, window: &Window) {
        self.of_backing.insert((window.key.backing, id));
        match window.state {
            State::Idle(since) => {
                self.idle.insert((since, id));
            }
            State::Mapped(effect) | State::Quarantined(effect) => {
                self.awaiting.insert((effect, id));
            }
            _ => {}
        }
        if window.is_leaving() {
            self.leaving.insert(id);
        }
    }

    pub(super) fn remove(&mut self, id: WindowId, window: &Window) {
        self.of_backing.remove(&(window.key.backing, id));
        match window.state {
            State::Idle(since) => {
                self.idle.remove(&(since, id));
            }
            State::Mapped(effect) | State::Quarantined(effect) => {
                self.awaiting.remove(&(effect, id));
            }
            _ => {}
        }
        self.leaving.remove(&id);
    }

    /// Of these backings, in their order.
    pub(super) fn of(&self, backings: RangeInclusive<BackingId>) -> impl Iterator<Item = WindowId> {
        let first = (*backings.start(), WindowId(0));
        let last = (*backings.end(), WindowId(u64::MAX));
        self.of_backing.range(first..=last).map(|(_, id)| *id)
    }

    /// The backings that have windows.
    pub(super) fn backings(&self) -> BTreeSet<BackingId> {
        self.of_backing
            .iter()
            .map(|(backing, _)| *backing)
            .collect()
    }

    /// Least recently used first.
    pub(super) fn idle(&self) -> impl Iterator<Item = WindowId> {
        self.idle.iter().map(|(_, id)| *id)
    }

    /// Those for which an acknowledgement of `effect` is the barrier.
    pub(super) fn awaiting_before(&self, effect: EffectId) -> Vec<WindowId> {
        let earlier = self.awaiting.range(..(effect, WindowId(0)));
        earlier.map(|(_, id)| *id).collect()
    }

    /// The newest effect that needs a barrier.
    pub(super) fn newest_awaiting(&self) -> Option<EffectId> {
        self.awaiting.last().map(|(effect, _)| *effect)
    }

    pub(super) fn leaving(&self) -> impl Iterator<Item = WindowId> {
        self.leaving.iter().copied()
    }

    /// The index of a whole table.
    #[cfg(test)]
    pub(super) fn of_table(table: &BTreeMap<WindowId, Window>) -> Self {
        let mut index = Self::default();
        for (id, window) in table {
            index.add(*id, window);
        }
        index
    }
}
