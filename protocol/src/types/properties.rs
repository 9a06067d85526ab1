// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What holds of an attachment, whatever its way

use core::ops::BitOr;

/// Set of properties of an attachment
///
/// Drivers and programs act on these alone; the [`Way`](crate::types::Way) is for people.
///
/// ```
/// use bufshare_protocol::types::Properties;
/// let both = Properties::COHERENT | Properties::RO_HELD;
/// assert!(both.contains(Properties::COHERENT));
/// assert!(!Properties::COHERENT.contains(both));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Properties(u32);

impl Properties {
    /// None at all.
    pub const NONE: Self = Self(0);
    /// SYNC moves no data and may be left out.
    pub const COHERENT: Self = Self(0x1);
    /// The importer's VMM keeps it from writing.
    pub const RO_HELD: Self = Self(0x2);
    /// Can be revoked without the importer's VMM.
    pub const REVOCABLE: Self = Self(0x4);
    /// The bytes may move to other memory.
    pub const MOVABLE: Self = Self(0x8);
    /// Outlives the exporter's VM.
    pub const SURVIVES: Self = Self(0x10);

    /// All that have a name.
    pub const KNOWN: Self = Self(0x1f);

    /// The set with these bits, known or not.
    #[must_use]
    pub const fn from_wire(bits: u32) -> Self {
        Self(bits)
    }

    /// The bits on the wire.
    #[must_use]
    pub const fn to_wire(self) -> u32 {
        self.0
    }

    /// Whether all of `other` is in here.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Properties {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}
