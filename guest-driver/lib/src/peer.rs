// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A virtual machine of the host's

use bufshare_protocol::response::PeerInfo;

use crate::{Name, Rights};

/// A virtual machine that this one may share with, or this one itself; from
/// [`Device::peers`](crate::Device::peers)
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Peer {
    /// Its number, from 1, the same as long as the host's daemon lives: its place in the
    /// operator's configuration. [`Access::peer`], [`BufferInfo::owner`] and [`Event::peer`] name
    /// it so.
    ///
    /// [`Access::peer`]: crate::Access::peer
    /// [`BufferInfo::owner`]: crate::BufferInfo::owner
    /// [`Event::peer`]: crate::Event::peer
    pub id: u64,
    /// Given by the host's operator.
    pub name: Name,
    /// Its driver runs.
    pub up: bool,
    /// The most that this VM may grant it.
    pub export_rights: Rights,
    /// The most that it may grant this VM.
    pub import_rights: Rights,
}

impl Peer {
    pub(crate) fn from_protocol(peer: PeerInfo) -> Self {
        Self {
            id: peer.id,
            name: Name::from_protocol(peer.name),
            up: peer.up,
            export_rights: peer.export_rights,
            import_rights: peer.import_rights,
        }
    }
}
