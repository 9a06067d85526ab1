// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What an EXPORT is made of: pieces of RAM and lines of an access list

use crate::status::Status;
use crate::types::Rights;
use crate::wire;

/// A piece of the exporter's RAM
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Extent {
    /// Guest-physical address.
    pub addr: u64,
    /// Bytes.
    pub len: u64,
}

impl Extent {
    pub(crate) fn from_wire(raw: &wire::Extent) -> Self {
        Self {
            addr: raw.addr,
            len: raw.len,
        }
    }

    pub(crate) fn to_wire(self) -> wire::Extent {
        wire::Extent {
            addr: self.addr,
            len: self.len,
        }
    }
}

/// One line of an access list
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Access {
    /// Who may attach; the peer's id.
    pub peer: u64,
    /// [`Rights::READ`] or [`Rights::RW`].
    pub rights: Rights,
}

impl Access {
    /// Checks a line as it came over the wire.
    ///
    /// # Errors
    /// [`Status::BadField`] if the rights are not a grant, [`Status::Unsupported`] if
    /// `reserved` is set.
    pub fn from_wire(raw: &wire::Access) -> Result<Self, Status> {
        let rights = Rights::grant_from_wire(raw.rights).ok_or(Status::BadField)?;
        if raw.reserved != 0 {
            return Err(Status::Unsupported);
        }
        Ok(Self {
            peer: raw.peer,
            rights,
        })
    }

    /// The line as it goes over the wire and to the kernel.
    #[must_use]
    pub const fn to_wire(self) -> wire::Access {
        wire::Access {
            peer: self.peer,
            rights: self.rights.to_wire(),
            reserved: 0,
        }
    }
}
