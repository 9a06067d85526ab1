// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How the exporter's bytes become visible in the importer

use core::fmt;

/// How an importer reaches the bytes of a buffer; ATTACH chooses it
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[repr(u32)]
pub enum Way {
    /// The importer's VMM maps the exporter's RAM itself, piece by piece.
    Direct = 1,
    /// The importer's VMM maps a host dma-buf of just the shared pages.
    Udmabuf = 2,
    /// The host copies at each handover. Not served in version 1.
    Copy = 3,
}

impl Way {
    /// The way with this number, `None` if it is unknown.
    #[must_use]
    pub const fn from_wire(value: u32) -> Option<Self> {
        match value {
            1 => Some(Self::Direct),
            2 => Some(Self::Udmabuf),
            3 => Some(Self::Copy),
            _ => None,
        }
    }

    /// The number on the wire.
    #[must_use]
    pub const fn to_wire(self) -> u32 {
        match self {
            Self::Direct => 1,
            Self::Udmabuf => 2,
            Self::Copy => 3,
        }
    }

    /// A word for people: `direct`, `udmabuf` or `copy`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Udmabuf => "udmabuf",
            Self::Copy => "copy",
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
