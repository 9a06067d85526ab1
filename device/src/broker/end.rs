// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whose memory the VMMs hold, and the end of all sharing.

use std::collections::BTreeMap;

use super::Broker;
use super::backing::BackingId;
use super::types::{Effect, PeerId};

/// What the VMM of one peer may still map of another peer's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Whose VMM.
    pub importer: PeerId,
    /// Whose memory.
    pub owner: PeerId,
    /// VMM mappings.
    pub windows: u32,
    /// Bytes.
    pub bytes: u64,
}

impl Broker {
    /// What all VMMs may still map of each other's memory.
    #[must_use]
    pub fn holds(&self) -> Vec<Hold> {
        let mut sums: BTreeMap<(PeerId, PeerId), (u32, u64)> = BTreeMap::new();
        for (importer, state) in &self.peers {
            for (owner, cost, size) in state.windows.exposed() {
                let (windows, bytes) = sums.entry((*importer, owner)).or_default();
                *windows = windows.saturating_add(cost);
                *bytes = bytes.saturating_add(size);
            }
        }
        sums.into_iter()
            .map(|((importer, owner), (windows, bytes))| Hold {
                importer,
                owner,
                windows,
                bytes,
            })
            .collect()
    }

    /// Whether [`Broker::close`] was called.
    #[must_use]
    pub fn closed(&self) -> bool {
        self.closed
    }

    /// The program is to end: every backing is revoked, and nobody can export any more. At
    /// most [`super::limits::MAX_REVOKE`] of them are looked at in one call; also returns
    /// whether those were the last.
    pub fn close(&mut self) -> (bool, Vec<Effect>) {
        self.closed = true;
        let next: Vec<BackingId> = self
            .backings
            .range(self.close_from..=*BackingId::ALL.end())
            .map(|backing| backing.number)
            .take(self.at_once)
            .collect();
        for id in &next {
            self.close_from = id.next();
            self.revoke_unasked(*id);
        }
        (next.len() < self.at_once, self.finish())
    }
}
