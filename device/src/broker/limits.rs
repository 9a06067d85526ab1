// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every limit of the broker, each with its reason.
//!
//! What a guest can make grow, per peer, and what bounds it (`max_*`: [`Limits`]):
//!
//! | what | at most |
//! |---|---|
//! | exports, and ids | `max_buffers`, each of `max_extents` and `max_blob` |
//! | attachments | `max_attachments` |
//! | requests that wait for an answer | `max_requests` |
//! | windows | `max_windows` that have mappings, and one for each attachment |
//! | requests to the VMM | one for each window, and one for a barrier |
//! | waiting events of droppable kinds | `max_events` for each other peer |
//! | frames | one for each own buffer |
//! | waiting events of attachments | one for each attachment; PUSHED has up to 768 bytes of record, which the attachments of one frame have in common |
//! | waiting events of own exports | three times `max_buffers`, and one for each buffer and importer |
//! | waiting events of peers | two for each other peer |
//! | answers to UNEXPORT that a driver has left | `max_buffers` |
//! | deadlines | one for each backing that is being revoked, and one for each importer of it that was stopped |
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

/// Bits of a generation that count a peer's exports; the peer stands above them. JSON
/// numbers hold both exactly. The count begins at the time since 1970, in steps of some
/// tens of microseconds: half of the range lasts until the year 2039, the other half for
/// years of 100,000 exports a second.
pub const GENERATION_BITS: u32 = 46;

/// Smallest shared-memory region: a window and the page that is never mapped.
pub const MIN_SHM_SIZE: u64 = 1 << 20;

/// Alignment of everything that is mapped, bytes: the page of x86-64 hosts.
pub const MAP_ALIGN: u64 = 4096;

/// The last bytes of each region are never mapped, so that a request to unmap
/// them is always refused, and serves as a barrier.
pub const GUARD: u64 = MAP_ALIGN;

/// Most mappings that may ever be allowed per VMM. QEMU 11.1 aborts when
/// mappings and RAM slots together pass 512.
pub const HARD_MAX_WINDOWS: u32 = 448;

/// Memory regions of one VM that vhost in the kernel takes (`max_mem_regions` of its module).
/// QEMU announces each mapping to every vhost device of the VM, as one more region. Of a
/// larger table vhost keeps the one before, and a device that starts then does not.
const VHOST_REGIONS: u32 = 64;

/// Regions that a VM may have beside its mappings: one or two of RAM, and one for each NUMA
/// node, DIMM, virtio-mem, ivshmem and BAR of a device passed through.
const OWN_REGIONS: u32 = 16;

/// Backings that the stop of a VM, or the end of the program, revokes in one step. Between
/// two steps others may have their requests served.
pub const MAX_REVOKE: usize = 32;

/// Most list entries of a udmabuf, the default of the Linux driver.
pub const UDMABUF_MAX_EXTENTS: usize = 1024;

/// Largest udmabuf, bytes, the default of the Linux driver.
pub const UDMABUF_MAX_SIZE: u64 = 64 << 20;

/// Times one attachment may be mapped, or its access begun, at once: far more
/// than any driver needs, and no counter can wrap.
pub const MAX_NESTING: u32 = 1 << 16;

macro_rules! limits {
    ($($(#[doc = $doc:literal])+ $name:ident: $default:expr, at most $max:expr;)+) => {
        /// Limits that an operator may lower or raise, in the table `[limits]` of the
        /// configuration file; the numbers are of each peer
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
        pub struct Limits {
            $($(#[doc = $doc])+ pub $name: u32,)+
        }

        impl Default for Limits {
            fn default() -> Self {
                Self { $($name: $default,)+ }
            }
        }

        impl Limits {
            /// Each with its name, value and highest possible value; all are at least 1.
            pub fn all(&self) -> impl Iterator<Item = (&'static str, u32, u32)> {
                [$((stringify!($name), self.$name, $max)),+].into_iter()
            }
        }
    };
}

limits! {
    /// VMM mappings, idle ones included. Each makes every later one slower. As many as a
    /// vhost-net device of the same VM survives.
    max_windows: VHOST_REGIONS - OWN_REGIONS, at most HARD_MAX_WINDOWS;
    /// Pieces of one buffer.
    max_extents: MAX_EXTENTS, at most MAX_EXTENTS;
    /// Buffers exported at once. Each takes about 500 bytes, more if it is in many pieces.
    max_buffers: 1024, at most 65_536;
    /// Attachments held at once. Each takes about 150 bytes.
    max_attachments: 1024, at most 65_536;
    /// Bytes of opaque metadata of one buffer.
    max_blob: MAX_BLOB, at most MAX_BLOB;
    /// Requests that wait for their answer at once: as many as the largest queue of QEMU
    /// holds. No more are taken from the queue until one is answered, so what waits in the
    /// broker (MAP, FLUSH, UNEXPORT) is no more than that.
    max_requests: 1024, at most 32_768;
    /// Events of droppable kinds about one peer that wait for another; more are counted
    /// and reported by OVERFLOW. An offer and news of a few hundred buffers. How often
    /// events come is bounded by the requests that cause them alone: each peer's are
    /// served one at a time, on its own thread. A least time between two would be added to
    /// each frame that is handed over.
    max_events: 512, at most 65_536;
    /// Milliseconds that an importer's driver has to release a buffer that is revoked,
    /// before the window is taken from under it. A reset of the exporter waits for it.
    release_ms: 1000, at most 600_000;
}

impl Limits {
    /// How long an importer's driver has to release a buffer that is revoked.
    #[must_use]
    pub fn release(&self) -> Duration {
        Duration::from_millis(self.release_ms.into())
    }
}
