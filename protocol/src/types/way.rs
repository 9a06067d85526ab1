// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How the exporter's bytes become visible in the importer

use core::fmt;

/// How an importer reaches the bytes of a buffer; ATTACH chooses it
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[repr(u32)]
pub enum Way {
    /// There are no bytes: it is a stream.
    None = 0,
    /// The importer's VMM maps the exporter's RAM itself, piece by piece.
    Direct = 1,
    /// The importer's VMM maps a host dma-buf of just the shared pages.
    Udmabuf = 2,
    /// The importer's VMM maps memory of the device. Not served yet.
    Pool = 3,
    /// The importer's VMM maps memory of the device that gets a copy. Not served yet.
    CopyWindow = 4,
    /// RAM of the importer gets a copy. Not served yet.
    CopyGuest = 5,
}

impl Way {
    /// Every way, in numeric order.
    pub const ALL: &[Self] = &[
        Self::None,
        Self::Direct,
        Self::Udmabuf,
        Self::Pool,
        Self::CopyWindow,
        Self::CopyGuest,
    ];

    /// The way with this number, `None` if it is unknown.
    #[must_use]
    pub const fn from_wire(value: u32) -> Option<Self> {
        match value {
            0 => Some(Self::None),
            1 => Some(Self::Direct),
            2 => Some(Self::Udmabuf),
            3 => Some(Self::Pool),
            4 => Some(Self::CopyWindow),
            5 => Some(Self::CopyGuest),
            _ => None,
        }
    }

    /// The number on the wire.
    #[must_use]
    pub const fn to_wire(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Direct => 1,
            Self::Udmabuf => 2,
            Self::Pool => 3,
            Self::CopyWindow => 4,
            Self::CopyGuest => 5,
        }
    }

    /// A word for people: `none`, `direct`, `udmabuf`, `pool`, `copy` or `copy-guest`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Direct => "direct",
            Self::Udmabuf => "udmabuf",
            Self::Pool => "pool",
            Self::CopyWindow => "copy",
            Self::CopyGuest => "copy-guest",
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Set of ways, those among them that this code does not know
///
/// ```
/// use bufshare_protocol::types::{Way, Ways};
/// let copies = Ways::NONE.with(Way::CopyWindow).with(Way::CopyGuest);
/// assert!(copies.contains(Way::CopyWindow) && !copies.contains(Way::Direct));
/// assert!(!copies.accept(Way::Direct));
/// assert!(Ways::NONE.accept(Way::Direct) && !Ways::NONE.accept(Way::CopyWindow));
/// // A stream is joined by who says so.
/// assert!(!Ways::NONE.accept(Way::None) && Ways::NONE.with(Way::None).accept(Way::None));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ways(u32);

impl Ways {
    /// None at all; in an ATTACH: direct and udmabuf.
    pub const NONE: Self = Self(0);

    /// What stands for none at all in an ATTACH.
    pub const USUAL: Self = Self::NONE.with(Way::Direct).with(Way::Udmabuf);

    /// What devices of this version serve: buffers by the usual ones, streams by none.
    pub const SERVED: Self = Self::USUAL.with(Way::None);

    /// The set with these bits.
    #[must_use]
    pub const fn from_wire(bits: u32) -> Self {
        Self(bits)
    }

    /// The bits on the wire.
    #[must_use]
    pub const fn to_wire(self) -> u32 {
        self.0
    }

    /// This set and `way`.
    #[must_use]
    pub const fn with(self, way: Way) -> Self {
        Self(self.0 | 1 << way.to_wire())
    }

    /// Whether `way` is in here.
    #[must_use]
    pub const fn contains(self, way: Way) -> bool {
        self.0 & 1 << way.to_wire() != 0
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

    /// Whether an ATTACH with this set may be given `way`.
    #[must_use]
    pub const fn accept(self, way: Way) -> bool {
        if self.is_empty() {
            Self::USUAL.contains(way)
        } else {
            self.contains(way)
        }
    }
}
