// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every limit of the broker, each with its reason.
//!
//! What a guest can make grow, per peer, and what bounds it (`max_*`: [`Limits`]):
//!
//! | what | at most |
//! |---|---|
//! | exports, and ids | `max_buffers`, each of `max_extents` and `max_blob` |
//! | attachments | `max_attachments` |
//! | requests that wait for an answer | [`MAX_PENDING`] |
//! | windows | `max_windows` that have mappings, and one for each attachment |
//! | requests to the VMM | one for each window, and one for a barrier |
//! | waiting events of droppable kinds | [`MAX_DROPPABLE_EVENTS`] for each other peer |
//! | waiting events of attachments | one for each attachment |
//! | waiting events of own exports | twice `max_buffers`, and one for each buffer and importer |
//! | waiting events of peers | two for each other peer |
//! | answers to UNEXPORT that a driver has left | `max_buffers` |
//! | deadlines | one for each buffer that is taken back, and one for each importer of it that was stopped |
//! | nested maps and accesses | [`MAX_NESTING`] |
//!
//! The model test checks them at every step.

use serde::{Deserialize, Serialize};

use core::time::Duration;

use bufshare_protocol::limits as wire;

#[allow(clippy::cast_possible_truncation, reason = "1024")]
const MAX_EXTENTS: u32 = wire::MAX_EXTENTS as u32;
#[allow(clippy::cast_possible_truncation, reason = "4096")]
const MAX_BLOB: u32 = wire::MAX_BLOB as u32;

/// Peers of one daemon: one process, a few threads and descriptors per VM.
pub const MAX_PEERS: usize = 64;

/// Bits of a generation that count a peer's exports; the peer stands above them. That
/// is enough for years of 100,000 exports a second, and JSON numbers hold both exactly.
pub const GENERATION_BITS: u32 = 44;

/// Smallest shared-memory region: a window and the page that is never mapped.
pub const MIN_SHM_SIZE: u64 = 1 << 20;

/// Alignment of everything that is mapped, bytes: the page of x86-64 hosts.
pub const MAP_ALIGN: u64 = 4096;

/// The last bytes of each region are never mapped, so that a request to unmap
/// them is always refused: a proof that the VMM did what was asked before.
pub const GUARD: u64 = MAP_ALIGN;

/// Most mappings that may ever be allowed per VMM. QEMU 11.1 aborts when
/// mappings and RAM slots together pass 512.
pub const HARD_MAX_WINDOWS: u32 = 448;

/// How long an importer's driver may take to zap its mappings before the
/// window is taken from under them. A reset of the exporter waits for it.
pub const REVOKE_ACK: Duration = Duration::from_millis(1000);

/// Requests of one peer that wait for their answer at once: as many as the largest
/// queue of QEMU holds. The adapter takes no more from the peer's queue until one is
/// answered. So what waits in the broker for one peer (MAP, FLUSH, UNEXPORT) is no
/// more than that.
pub const MAX_PENDING: usize = 1024;

/// Buffers that the stop of a VM, or the end of the program, takes back at once, before
/// others may have their requests served: each takes as long as a revocation.
pub const MAX_REVOKE: usize = 32;

/// Events of droppable kinds about one peer that wait for another; more are
/// counted and told by OVERFLOW. An offer and news of a few hundred buffers. How often
/// events come is bounded by the requests that cause them alone: each peer's are served one
/// at a time, on its own thread. A least time between two would be added to each frame that
/// is handed over.
pub const MAX_DROPPABLE_EVENTS: usize = 512;

/// Most list entries of a udmabuf, the default of the Linux driver.
pub const UDMABUF_MAX_EXTENTS: usize = 1024;

/// Largest udmabuf, bytes, the default of the Linux driver.
pub const UDMABUF_MAX_SIZE: u64 = 64 << 20;

/// Times one attachment may be mapped, or its access begun, at once: far more
/// than any driver needs, and no counter can wrap.
pub const MAX_NESTING: u32 = 1 << 16;

/// Limits per peer that an operator may lower or raise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// VMM mappings, idle ones included. Each makes every later one slower.
    pub max_windows: u32,
    /// Pieces of one buffer.
    pub max_extents: u32,
    /// Buffers exported at once.
    pub max_buffers: u32,
    /// Attachments held at once.
    pub max_attachments: u32,
    /// Bytes of opaque metadata per buffer.
    pub max_blob: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_windows: 256,
            max_extents: MAX_EXTENTS,
            max_buffers: 1024,
            max_attachments: 1024,
            max_blob: MAX_BLOB,
        }
    }
}

impl Limits {
    /// Every limit with its name and highest possible value.
    #[must_use]
    pub fn checked(&self) -> [(&'static str, u32, u32); 5] {
        [
            ("max_windows", self.max_windows, HARD_MAX_WINDOWS),
            ("max_extents", self.max_extents, MAX_EXTENTS),
            ("max_buffers", self.max_buffers, 65_536),
            ("max_attachments", self.max_attachments, 65_536),
            ("max_blob", self.max_blob, MAX_BLOB),
        ]
    }
}
