// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What holds of an import, whatever its way

use bufshare_protocol::types::Properties as Wire;

/// What holds of an import, whatever its [`Way`](crate::Way)
///
/// Programs act on this. Source: `VIRTIO_BUFSHARE_COHERENT` and those after it in
/// `virtio_bufshare.h`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Properties(Wire);

impl Properties {
    pub(crate) fn from_wire(bits: u32) -> Self {
        Self(Wire::from_wire(bits))
    }

    /// All VMs see the same bytes: `DMA_BUF_IOCTL_SYNC` moves no data between them.
    #[must_use]
    pub fn is_coherent(self) -> bool {
        self.0.contains(Wire::COHERENT)
    }

    /// This VM's VMM keeps this VM from writing.
    #[must_use]
    pub fn is_read_only_held(self) -> bool {
        self.0.contains(Wire::RO_HELD)
    }

    /// The exporter can revoke it without this VM's VMM.
    #[must_use]
    pub fn is_revocable(self) -> bool {
        self.0.contains(Wire::REVOCABLE)
    }

    /// Its bytes may move to other memory.
    #[must_use]
    pub fn is_movable(self) -> bool {
        self.0.contains(Wire::MOVABLE)
    }

    /// It outlives the exporter's VM.
    #[must_use]
    pub fn survives(self) -> bool {
        self.0.contains(Wire::SURVIVES)
    }

    /// The bits in the C header, those among them that this version does not know.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0.to_wire()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bit_is_one_property() {
        let of = |bits| {
            let it = Properties::from_wire(bits);
            let known = [
                it.is_coherent(),
                it.is_read_only_held(),
                it.is_revocable(),
                it.is_movable(),
                it.survives(),
            ];
            known.iter().filter(|holds| **holds).count()
        };
        for bit in 0..5 {
            assert_eq!(of(1 << bit), 1);
        }
        assert_eq!((of(0x1f), of(0x20)), (5, 0));
        assert_eq!(Properties::from_wire(0x20).bits(), 0x20);
    }
}
