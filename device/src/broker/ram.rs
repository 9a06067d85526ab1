// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The RAM of the VMs, and the backings in it.

use bufshare_protocol::types::Extent;

use super::Broker;
use super::backing::{Backing, BackingId};
use super::types::{Effect, PeerId, RamRegion};

impl Broker {
    /// The whole own RAM of a VM, each time its memory table changes: regions that do
    /// not overlap. Windows that the front end lists among it are left out by the
    /// adapter: memory of others cannot be exported. Backings that are no longer
    /// inside are not offered any more, and are to be revoked by [`Broker::revoke_next`],
    /// which is called until that is done.
    ///
    /// A VMM may send tables without end, so only what may be lost is looked at: the
    /// peer's own backings, if a region is not there any more as it was.
    pub fn set_ram(&mut self, peer: PeerId, mut ram: Vec<RamRegion>) -> Vec<Effect> {
        ram.sort_unstable_by_key(|region| region.addr);
        let Some(state) = self.peers.get_mut(&peer) else {
            return Vec::new();
        };
        let mut changed = core::mem::replace(&mut state.ram, ram);
        let ram = &state.ram;
        changed.retain(|old| {
            let same = |new: &RamRegion| new.addr == old.addr && new.len == old.len;
            !at_or_below(ram, old.addr).is_some_and(same)
        });
        if changed.is_empty() {
            return self.finish();
        }
        let mut looks = 0_u64;
        let lost: Vec<BackingId> = self
            .backings
            .range(BackingId::all_of(peer))
            .filter(|backing| backing.revoking.is_none())
            .filter(|backing| is_lost(backing, &changed, ram, &mut looks))
            .map(|backing| backing.number)
            .collect();
        #[cfg(test)]
        {
            self.extents_looked_at = self.extents_looked_at.saturating_add(looks);
        }
        if let Some(state) = self.peers.get_mut(&peer) {
            state.lost.extend(lost);
        }
        self.finish()
    }
}

/// Whether a part of a backing lay in a region that has `changed`, and is in none of
/// `ram` now. Counts the extents that it looked at.
fn is_lost(backing: &Backing, changed: &[RamRegion], ram: &[RamRegion], looks: &mut u64) -> bool {
    backing.extents.iter().any(|extent| {
        *looks = looks.saturating_add(1);
        region_of(changed, *extent).is_some() && region_of(ram, *extent).is_none()
    })
}

/// The last region that begins at `addr` or below, of regions in order.
fn at_or_below(ram: &[RamRegion], addr: u64) -> Option<&RamRegion> {
    let above = ram.partition_point(|region| region.addr <= addr);
    ram.get(above.checked_sub(1)?)
}

/// The region that holds the whole of `extent`, of regions in order that do not
/// overlap.
pub(super) fn region_of(ram: &[RamRegion], extent: Extent) -> Option<&RamRegion> {
    let end = extent.addr.checked_add(extent.len)?;
    at_or_below(ram, extent.addr).filter(|region| {
        region
            .addr
            .checked_add(region.len)
            .is_some_and(|region_end| end <= region_end)
    })
}

#[cfg(test)]
#[allow(
    clippy::arithmetic_side_effects,
    reason = "a test that overflows fails"
)]
mod tests {
    use super::*;

    #[test]
    fn region_is_found_only_if_it_holds_all() {
        let region = |addr, len| RamRegion {
            addr,
            len,
            sealed: true,
        };
        let ram = [
            region(0, 0x2000),
            region(0x2000, 0x1000),
            region(0x8000, 0x1000),
        ];
        let found = |addr, len| region_of(&ram, Extent { addr, len }).map(|region| region.addr);

        assert_eq!(found(0, 0x2000), Some(0));
        assert_eq!(found(0x1000, 0x1000), Some(0));
        assert_eq!(found(0x1000, 0x2000), None, "across two");
        assert_eq!(found(0x2000, 0x1000), Some(0x2000));
        assert_eq!(found(0x3000, 0x1000), None);
        assert_eq!(found(0x8000, 0x1001), None);
        assert_eq!(found(u64::MAX, 1), None);
        assert_eq!(region_of(&[], Extent { addr: 0, len: 1 }), None);
    }
}
