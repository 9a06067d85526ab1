// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device and its limits

use bufshare_protocol::ioctl;
use bufshare_protocol::request::BACKING_STREAM;

use crate::{CAP_RO_ENFORCED, Name, Rights, Way};

/// The device and its limits, as this VM sees them; from
/// [`Device::info`](crate::Device::info)
///
/// Limits are those of this VM as a whole, not of one process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Info {
    /// Of the wire format in force between driver and host.
    pub version: u32,
    /// What can be done here: a set of [`CAP_MAP`](crate::CAP_MAP),
    /// [`CAP_UDMABUF`](crate::CAP_UDMABUF), [`CAP_RO_ENFORCED`]. Other bits mean nothing to this
    /// version of the library.
    pub caps: u32,
    /// VMM mappings that this VM may hold at once, idle ones included.
    pub max_windows: u32,
    /// Pieces that an exported buffer may consist of.
    pub max_extents: u32,
    /// Buffers that this VM may export at once.
    pub max_buffers: u32,
    /// Imports that this VM may hold at once.
    pub max_attachments: u32,
    /// Bytes of opaque metadata of a buffer.
    pub max_blob: u32,
    /// Bytes, a power of two: the addresses and sizes of the pieces of an exported buffer are
    /// multiples of it.
    pub map_align: u32,
    /// Bytes of the shared-memory region in which imports appear, where this VM has one
    /// ([`CAP_MAP`](crate::CAP_MAP)).
    pub shm_size: u64,
    /// Bytes of the largest buffer that can be exported.
    pub max_buffer_size: u64,
    /// This VM's own id, as in [`Peer::id`](crate::Peer::id).
    pub peer_id: u64,
    /// VMM mappings that this VM holds now, idle ones included.
    pub windows_used: u32,
    /// The ways that an import may be given, of some buffers.
    pub ways: Vec<Way>,
    /// This VM's name, given by the host's operator.
    pub name: Name,
    /// The host serves streams, and hands their frames over.
    pub streams: bool,
    /// Frames that can be [pushed](crate::Device::push) at once; 0 where this VM's driver is of a
    /// version that hands none over.
    pub max_batch: u32,
}

impl Info {
    /// Whether this VM's VMM enforces read-only mappings. Without that an import for reading
    /// alone is refused ([`RoNotEnforced`](crate::Status::RoNotEnforced)).
    #[must_use]
    pub fn enforces_read_only(&self) -> bool {
        self.caps & CAP_RO_ENFORCED != 0
    }

    /// What to ask for, or to grant, where reading is enough, of the rights that `allowed`
    /// permits: [`Rights::READ`] where read-only is enforced, else all of them, because READ
    /// alone would be refused.
    ///
    /// ```
    /// use bufshare::{CAP_RO_ENFORCED, Info, Rights};
    /// let mut info = Info::default();
    /// assert_eq!(info.rights_to_read(Rights::RW), Rights::RW);
    /// info.caps = CAP_RO_ENFORCED;
    /// assert_eq!(info.rights_to_read(Rights::RW), Rights::READ);
    /// ```
    #[must_use]
    pub fn rights_to_read(&self, allowed: Rights) -> Rights {
        if self.enforces_read_only() {
            allowed.intersection(Rights::READ)
        } else {
            allowed
        }
    }

    /// What INFO gave; `None` if its name is none.
    pub(crate) fn from_wire(raw: &ioctl::Info) -> Option<Self> {
        Some(Self {
            version: raw.version,
            caps: raw.caps,
            max_windows: raw.max_windows,
            max_extents: raw.max_extents,
            max_buffers: raw.max_buffers,
            max_attachments: raw.max_attachments,
            max_blob: raw.max_blob,
            map_align: raw.map_align,
            shm_size: raw.shm_size,
            max_buffer_size: raw.max_buffer_size,
            peer_id: raw.peer_id,
            windows_used: raw.windows_used,
            ways: Way::all_of(raw.ways),
            name: Name::from_wire(&raw.name)?,
            streams: raw.backings & (1 << BACKING_STREAM) != 0,
            max_batch: raw.max_batch,
        })
    }
}
