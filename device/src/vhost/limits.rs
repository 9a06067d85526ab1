// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What one front end may take of the process, each limit with its reason.

use std::time::Duration;

/// Regions of a memory table, windows among them: what the vhost-user crate
/// reports to front ends.
pub const MAX_REGIONS: usize = 509;

/// Those that are RAM, of which each takes a descriptor: QEMU has at most 256 memory
/// devices, and cuts what is there from the start into a few pieces.
pub const MAX_RAM_REGIONS: usize = 288;

/// dma-bufs that may be held after the VMM said that it has unmapped them, or not mapped
/// them, before another one is given to it. Each takes a descriptor. Nobody but that VMM
/// and its other back ends can have them held. One that closes them 0.1 s later, as QEMU
/// does, would have to map and unmap 2500 in a second.
pub const MAX_KEPT_DMABUFS: usize = 256;

/// Pieces of the RAM of one owner that may count as held then. The owner, too, can have
/// them count so, and make each answer of the kernel slow: it has its own memory later, and
/// others wait as [`LOCK_SHARE`] and [`LOOK_TIME`] say. The kernel is asked about each of
/// them again and again. QEMU needs 0.1 ms and more to map or unmap a piece.
pub const MAX_KEPT_MARKS: usize = 1024;

/// Descriptors of the RAM of one owner that are kept by nothing but pieces that one
/// importer has unmapped and still holds, before it is given another. An owner has one for
/// each region, and more if it replaces its RAM. What its windows need beyond these takes
/// what is reserved for windows; when that is used up, by those that were unmapped too,
/// there are no more than these.
pub const MAX_OWNER_FILES: usize = 64;

/// How long the kernel is asked at one time about pieces of one owner that were unmapped;
/// a single answer may take longer. A job waits for that of one owner at most.
pub const LOOK_TIME: Duration = Duration::from_millis(2);

/// One part of so many of the time of an importer's shared-memory thread may go by while
/// the kernel looks through the locks on RAM of one owner: whoever has the file can make
/// them without number, and what other owners wait for is unmapped by the same thread.
pub const LOCK_SHARE: u32 = 10;

/// How long marking one piece, or closing its file, may take without counting in that: in
/// RAM on which nobody has many locks it takes a tenth of this.
pub const MARK_FREE: Duration = Duration::from_micros(200);

/// How long marking pieces of one owner may take at once, beyond that share. After that no
/// other piece of it is mapped until it has been made up for. Marks of a buffer of 256
/// pieces take less, also in RAM on which there are those of 64 importers. What other
/// owners wait for may come that late, for each owner that has this done; later where the
/// importer is stopped or reset, when all that it has mapped is asked about without a budget.
pub const MARK_TIME: Duration = Duration::from_millis(500);

/// Files that a front end was sent, before those that it has no more are forgotten. It
/// has one for each of its windows, [`MAX_KEPT_DMABUFS`] and [`MAX_OWNER_FILES`] of each
/// other peer, which is less.
pub const MAX_SENT: usize = 8192;

/// Address space that all memory tables together may take: half of what a process
/// on x86-64 has.
const MAX_TABLES_BYTES: u64 = 1 << 46;

/// The share of one of so many peers.
#[must_use]
pub fn max_table_bytes(peers: usize) -> u64 {
    let peers = u64::try_from(peers).unwrap_or(u64::MAX);
    MAX_TABLES_BYTES
        .checked_div(peers)
        .unwrap_or(MAX_TABLES_BYTES)
}

/// Queue sizes that front ends may ask for. crosvm offers the highest that
/// virtio has unless configured otherwise; memory is not taken for it.
pub const MAX_QUEUE_SIZE: usize = 32768;

/// Descriptors per chain that are looked at. The longest request and response
/// in single pages are 16 and 18; a driver may cut finer, but not without end.
pub const MAX_DESCRIPTORS: usize = 256;

/// Chains that one kick serves before the worker looks at its other work
/// (and whether the session is over).
pub const MAX_PER_KICK: usize = 256;

/// Descriptors that a batch of event buffers may have before the worker looks at its
/// other work: a driver's has one, and one that means harm [`MAX_DESCRIPTORS`].
pub const MAX_WALKED_PER_KICK: usize = 4096;
