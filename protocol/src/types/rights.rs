// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rights to a buffer and classes of access

use core::fmt;
use core::ops::BitOr;

use crate::status::Status;

/// Set of rights, or of classes of access
///
/// ```
/// use bufshare_protocol::types::Rights;
/// assert!(Rights::RW.contains(Rights::READ));
/// assert_eq!(Rights::RW.intersection(Rights::WRITE), Rights::WRITE);
/// assert_eq!(Rights::RW.to_string(), "rw");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "u32", into = "u32"))]
pub struct Rights(u32);

impl TryFrom<u32> for Rights {
    type Error = Status;

    fn try_from(bits: u32) -> Result<Self, Status> {
        Self::from_wire(bits).ok_or(Status::BadField)
    }
}

impl From<Rights> for u32 {
    fn from(rights: Rights) -> Self {
        rights.0
    }
}

impl Rights {
    /// None at all.
    pub const NONE: Self = Self(0);
    /// To read.
    pub const READ: Self = Self(0x1);
    /// To write.
    pub const WRITE: Self = Self(0x2);
    /// To read and to write.
    pub const RW: Self = Self(0x3);

    /// The set with these bits, `None` if a bit is unknown.
    #[must_use]
    pub const fn from_wire(bits: u32) -> Option<Self> {
        match bits {
            0..=3 => Some(Self(bits)),
            _ => None,
        }
    }

    /// The rights among these bits that are known.
    #[must_use]
    pub const fn known(bits: u32) -> Self {
        Self(bits & Self::RW.0)
    }

    /// As [`from_wire`](Self::from_wire), but only what can be granted and
    /// asked for: READ, or READ and WRITE. No memory is write-only.
    #[must_use]
    pub const fn grant_from_wire(bits: u32) -> Option<Self> {
        match bits {
            1 | 3 => Some(Self(bits)),
            _ => None,
        }
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

    /// What is in both.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether nothing is in here.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl BitOr for Rights {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Display for Rights {
    /// `-`, `r`, `w` or `rw`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self.0 {
            0x1 => "r",
            0x2 => "w",
            0x3 => "rw",
            _ => "-",
        })
    }
}
